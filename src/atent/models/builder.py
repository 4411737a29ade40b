"""Builds a network by its name."""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from numbers import Integral

from torch import nn

from atent.checks import check_number
from atent.models.normalize import Normalize
from atent.models.reference import copied, made_of
from atent.models.registry import MODELS, default_shape, takes_task

_ANY_SHAPE = ("mlp",)
"""Networks for both vectors and images."""


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
    """The built-in network of that name, in train mode, with random initial weights.

    The weights are sampled by torch's global generator, on the device of a `torch.device(...)` context, which may be
    "meta".

    Parameters
    ----------
    name
        Name of a network of `MODELS`, or "module:function" of your own. A function without the parameters ``classes``
        and ``shape`` is called without arguments: its network has its own classes and inputs.
    classes
        Number of outputs, at least 2.
    shape
        Shape of one input: (c, h, w), (d,) for ``two_class``, either for ``mlp``. Default: ``native_shape(name)``.
    dropout
        Dropout rate in [0, 1), for networks with a dropout field. Default: the network's own.
    activation
        relu, softplus or tanh, for networks with an activation field. Default: relu.
    patch
        Side of the patches in pixels, for vision transformers. Default: the network's own.
    normalize
        (mean, std), per channel in pixel units: the result is a `Sequential` of ``normalize`` and ``network``, and its
        state-dict keys begin with these names. Default: the network without a normalisation layer.

    Returns
    -------
    nn.Module
        From floats (n, *shape), images in [0, 1], to logits (n, classes).

    Raises
    ------
    ValueError
        In one line: for an unknown name; a shape or a number of classes that the network does not take; a dropout, an
        activation or a patch that is unknown, out of range or not a field of the network; and a normalisation that
        does not fit the channels.

    Examples
    --------
    >>> import torch
    >>> from atent.models import build
    >>> net = build("small_cnn", classes=10, shape=(1, 28, 28))
    >>> net(torch.rand(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    >>> normalized = build("resnet20", normalize=((0.49, 0.48, 0.45), (0.25, 0.24, 0.26)))
    >>> [name for name, _ in normalized.named_children()]
    ['normalize', 'network']
    """
    function = MODELS.find(name)
    if not takes_task(name):
        if any(value is not None for value in (dropout, activation, patch, normalize)):
            raise ValueError(f"dropout, activation, patch and normalize are for other networks: set them inside {name}")
        own = made_of(function, name, nn.Module, "an nn.Module")
        return copied(own, name) if own is function else own
    if not isinstance(classes, Integral) or classes < 2:
        raise ValueError(f"classes must be an integer of at least 2, got {classes!r}")
    native = default_shape(name)
    shape = native_shape(name) if shape is None else tuple(shape) if isinstance(shape, Iterable) else (shape,)
    flat = native is not None and len(native) == 1
    allowed = (1, 3) if native is None or name in _ANY_SHAPE else (1,) if flat else (3,)
    if len(shape) not in allowed or not all(isinstance(side, Integral) and side > 0 for side in shape):
        wanted = "one positive integer (d,)" if flat else "three positive integers (c, h, w)"
        fix = (
            "images take another network"
            if flat
            else "for inputs that are not images use mlp, or your own module:function"
        )
        raise ValueError(f"shape must be {wanted}, got {shape}: {fix}")
    settings = _chosen(name, {"patch": patch, "activation": activation, "dropout": dropout})
    if dropout is not None:
        check_number("dropout", dropout, 0, 1, below=True)
    if normalize is not None and flat:
        raise ValueError(f"normalize is for images, and {name} takes points: scale them in the data")
    layer = None if normalize is None else Normalize(*normalize, dims=len(shape) - 1)
    if layer is not None and len(layer.mean) != shape[0]:
        raise ValueError(f"normalize is for {len(layer.mean)} channels, the input has {shape[0]}")
    network = function(classes=classes, shape=shape, **settings)
    return network if layer is None else nn.Sequential(OrderedDict(normalize=layer, network=network))


# The options that some networks have, and the beginning of the error for a network without.
_OPTIONS = {
    "patch": "{} has no patches; these have",
    "activation": "the activation of {} cannot be chosen; these have the option",
    "dropout": "{} has no dropout; these have",
}


def _chosen(name: str, options: dict[str, float | str | None]) -> dict[str, float | str]:
    """The options that are given; ValueError for one that the network does not have."""
    given = {option: value for option, value in options.items() if value is not None}
    for option in given:
        if not _has(name, option):
            able = ", ".join(other for other in MODELS if _has(other, option))
            raise ValueError(f"{_OPTIONS[option].format(name)}: {able}")
    return given


def _has(name: str, option: str) -> bool:
    return option in inspect.signature(MODELS.find(name)).parameters


def native_shape(name: str) -> tuple[int, ...]:
    """The default input shape, (c, h, w) or (d,), of the network `name`.

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
        For an unknown name, and for a network of your own without a default shape.

    Examples
    --------
    >>> from atent import models
    >>> models.native_shape("mlp")
    (1, 8, 8)
    """
    shape = default_shape(name)
    if shape is None:
        raise ValueError(f"{name} has no default shape: give the shape of one input")
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
    return _has(name, "dropout")


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
    return _has(name, "activation")


def has_patch(name: str) -> bool:
    """Whether the network `name` divides its input into patches.

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
    return _has(name, "patch")
