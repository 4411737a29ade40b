"""Networks by name. Every one takes floats in [0, 1] of shape (n, c, h, w) and gives (n, classes) logits; `two_class`
takes points (n, d) of any range, `mlp` images or vectors."""

import inspect
from collections import OrderedDict
from collections.abc import Sequence
from numbers import Integral

from torch import nn

from .binary import binary_logits
from .normalize import Normalize
from .reference import check_output, from_reference
from .registry import MODELS, model
from .transformers import transformers_logits

__all__ = [
    "MODELS", "ModelSettings", "Normalize", "binary_logits", "build", "check_output", "from_reference",
    "has_activation", "has_dropout", "has_patch", "make", "model", "native_shape", "transformers_logits",
]  # fmt: skip


_ANY_SHAPE = ("mlp",)
"""Networks for vectors and for images."""


def build(
    name: str,
    *,
    classes: int = 10,
    shape: Sequence[int] | None = None,
    dropout: float | None = None,
    activation: str | None = None,
    patch: int | None = None,
    normalize: tuple[Sequence[float], Sequence[float]] | None = None,
) -> nn.Module:
    """The network `name` of `MODELS`, in train mode, with fresh weights from torch's global generator.

    `classes` is at least 2. `shape` is the (c, h, w) of one input ((d,) for `two_class`, either for `mlp`), default
    `native_shape(name)`.
    `dropout` in [0, 1), default the network's own, goes only to networks that have such a field.
    `activation` is relu, softplus or tanh, default relu, for networks that have such a field.
    `patch` is the side of a vision transformer's patches in pixels, default the network's own.
    `normalize` is (mean, std), per channel in pixel units: then the model is a `Sequential` of
    `normalize` and `network`, and its state-dict keys begin with these two names; without it the network
    comes bare. Builds on the device of `torch.device(...)` as a context, also on "meta".

    Raises ValueError, in one line, for an unknown name, a shape or a number of classes that the network
    cannot take, a dropout, an activation or a patch that is unknown, out of range or on a network without one, and a
    normalisation that does not fit the channels.
    """
    function = MODELS.find(name)
    if not isinstance(classes, Integral) or classes < 2:
        raise ValueError(f"classes must be an integer of at least 2, got {classes!r}")
    shape = native_shape(name) if shape is None else tuple(shape)
    flat = len(native_shape(name)) == 1
    allowed = (1, 3) if name in _ANY_SHAPE else (1,) if flat else (3,)
    if len(shape) not in allowed or not all(isinstance(side, Integral) and side > 0 for side in shape):
        wanted = "one positive integer (d,)" if flat else "three positive integers (c, h, w)"
        fix = (
            "images take another network"
            if flat
            else "for inputs that are not images use mlp, or your own module:function"
        )
        raise ValueError(f"shape must be {wanted}, got {shape}: {fix}")
    settings: dict[str, float | str] = {}
    if patch is not None:
        if not has_patch(name):
            able = ", ".join(other for other in MODELS if has_patch(other))
            raise ValueError(f"{name} has no patches; these have: {able}")
        settings["patch"] = patch
    if activation is not None:
        if not has_activation(name):
            able = ", ".join(other for other in MODELS if has_activation(other))
            raise ValueError(f"the activation of {name} cannot be chosen; these let you: {able}")
        settings["activation"] = activation
    if dropout is not None:
        if not has_dropout(name):
            able = ", ".join(other for other in MODELS if has_dropout(other))
            raise ValueError(f"{name} has no dropout; these have: {able}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1), got {dropout}")
        settings["dropout"] = dropout
    if normalize is not None and flat:
        raise ValueError(f"normalize is for images, {name} takes points: scale them in the data")
    layer = None if normalize is None else Normalize(*normalize)
    if layer is not None and len(layer.mean) != shape[0]:
        raise ValueError(f"normalize is for {len(layer.mean)} channels, the input has {shape[0]}")
    network = function(classes=classes, shape=shape, **settings)
    return network if layer is None else nn.Sequential(OrderedDict(normalize=layer, network=network))


def native_shape(name: str) -> tuple[int, ...]:
    """The (c, h, w), or (d,), that the network `name` was made for.

    Parameters
    ----------
    name
        Name of a network of `MODELS`.

    Returns
    -------
    tuple of int
        The shape of one input.

    Raises
    ------
    ValueError
        For an unknown name.

    Examples
    --------
    >>> from atent import models
    >>> models.native_shape("mlp")
    (1, 8, 8)
    """
    shape: tuple[int, ...] = inspect.signature(MODELS.find(name)).parameters["shape"].default
    return shape


def has_dropout(name: str) -> bool:
    """Whether the network `name` has a dropout field.

    Parameters
    ----------
    name
        Name of a network of `MODELS`.

    Returns
    -------
    bool
        Whether `build` takes ``dropout`` for it.

    Raises
    ------
    ValueError
        For an unknown name.

    Examples
    --------
    >>> from atent import models
    >>> models.has_dropout("mlp")
    False
    """
    return "dropout" in inspect.signature(MODELS.find(name)).parameters


def has_activation(name: str) -> bool:
    """Whether the activation of the network `name` can be chosen.

    Parameters
    ----------
    name
        Name of a network of `MODELS`.

    Returns
    -------
    bool
        Whether `build` takes ``activation`` for it.

    Raises
    ------
    ValueError
        For an unknown name.

    Examples
    --------
    >>> from atent import models
    >>> models.has_activation("mlp")
    False
    """
    return "activation" in inspect.signature(MODELS.find(name)).parameters


def has_patch(name: str) -> bool:
    """Whether the network `name` cuts its input into patches.

    Parameters
    ----------
    name
        Name of a network of `MODELS`.

    Returns
    -------
    bool
        Whether `build` takes ``patch`` for it.

    Raises
    ------
    ValueError
        For an unknown name.

    Examples
    --------
    >>> from atent import models
    >>> models.has_patch("mlp")
    False
    """
    return "patch" in inspect.signature(MODELS.find(name)).parameters


# The settings build on `build`.
from .settings import ModelSettings, make  # noqa: E402
