"""The settings of a network."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from atent.checks import Settings, check_seed
from atent.models.builder import build
from atent.models.contrastive import Contrastive, Frozen
from atent.models.dual import Branch
from atent.models.reference import built_anew


@dataclass(frozen=True)
class ModelSettings(metaclass=Settings):
    """Which network; checked by `make`.

    Examples
    --------
    >>> from atent.models import ModelSettings, make
    >>> net = make(ModelSettings("digits_cnn", activation="softplus"), classes=10, shape=(1, 8, 8))
    >>> any(isinstance(layer, torch.nn.Softplus) for layer in net.modules())
    True
    """

    name: str = "small_cnn"
    """A built-in network (see `atent.models.MODELS`), or your own as module:function."""
    dropout: float | None = None
    """Dropout rate in [0, 1), for networks that have such a field; default: the network's own."""
    activation: str | None = None
    """relu, softplus or tanh, for networks with an activation field (digits_cnn); default: relu."""
    patch: int | None = None
    """Side of the patches of a vision transformer in pixels, a divisor of the image's; default: the network's own."""
    mean: tuple[float, ...] | None = None
    """Per-channel mean that the first layer of the model subtracts; with std."""
    std: tuple[float, ...] | None = None
    """Per-channel standard deviation that the first layer of the model divides by; with mean."""
    weights: str | None = None
    """Initial weights: a run folder or a weights file (.safetensors, .pt, .pth ...) of the same network; with a
    pre-training run the last layer starts at zero."""
    projection: tuple[int, ...] = ()
    """For pre-training: widths of the projection head, such as 512 512; the batch-norms are doubled. Default: none."""
    branch: Branch | None = None
    """Batch-norms to load from a pre-training run, n (clean) or a (adversarial); for a network with a projection head,
    those that evaluation uses. Default: as recorded in the pre-training run, else a."""
    frozen: bool = False
    """Train the last layer alone (linear evaluation): the others keep their weights and batch-norm statistics."""


def make(settings: ModelSettings, *, classes: int, shape: tuple[int, ...], seed: int = 0) -> nn.Module:
    """The network that the settings describe, with weights initialised from ``seed``.

    ``settings.weights`` is not loaded here. The global random state is restored.

    Parameters
    ----------
    settings
        Name and options of the network.
    classes
        Number of outputs, at least 2. A network of your own ("module:function") decides it itself.
    shape
        Shape of one input, (c, h, w) or (d,).
    seed
        Seed of the initial weights.

    Returns
    -------
    nn.Module
        The network in train mode; with ``projection`` a `Contrastive`, with ``frozen`` a `Frozen` around it.

    Raises
    ------
    ValueError
        In one line: as `build` and `from_reference`; for one of mean and std without the other; for settings of
        built-in models with a network of your own; and for both of ``projection`` and ``frozen``.

    Examples
    --------
    >>> import torch
    >>> from atent.models import ModelSettings, make
    >>> one, two = (make(ModelSettings("mlp"), classes=10, shape=(1, 8, 8), seed=3) for _ in range(2))
    >>> all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    True
    """
    seed = check_seed(seed)
    if (settings.mean is None) != (settings.std is None):
        raise ValueError("model.mean and model.std go together: give both or neither")
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return _around(_made(settings, classes, shape), settings, shape)


def _made(settings: ModelSettings, classes: int, shape: tuple[int, ...]) -> nn.Module:
    """The network itself."""
    if ":" in settings.name:
        own = (settings.dropout, settings.activation, settings.patch, settings.mean)
        if any(value is not None for value in own):
            raise ValueError(
                f"dropout, activation, patch, mean and std are for built-in models: set them inside {settings.name}"
            )
        return built_anew(settings.name)
    normalize = None if settings.mean is None or settings.std is None else (settings.mean, settings.std)
    return build(
        settings.name, classes=classes, shape=shape, dropout=settings.dropout, activation=settings.activation,
        patch=settings.patch, normalize=normalize,
    )  # fmt: skip


def _around(network: nn.Module, settings: ModelSettings, shape: tuple[int, ...]) -> nn.Module:
    """The network in the wrapper of pre-training or of linear evaluation, if either is set."""
    if settings.projection and settings.frozen:
        raise ValueError("model.projection is for pre-training, model.frozen for linear evaluation: set one of them")
    if settings.projection:
        return Contrastive(network, settings.projection, shape, settings.branch or "a")
    return Frozen(network, shape) if settings.frozen else network
