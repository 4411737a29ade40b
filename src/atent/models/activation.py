"""The activations of built-in networks."""

from collections.abc import Callable
from functools import partial

from torch import nn

from atent.messages import unknown

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "softplus": partial(nn.Softplus, beta=5.0),
    "tanh": nn.Tanh,
}
"""By name; relu has a kink at 0, the others have bounded second derivatives. softplus is log(1 + exp(5 z)) / 5: with
sharpness 1 the small networks here do not start to learn."""


def activations(name: str) -> Callable[[], nn.Module]:
    """The class or function that builds a layer; ValueError for an unknown name."""
    if name not in ACTIVATIONS:
        raise ValueError(unknown("activation", name, ACTIVATIONS))
    return ACTIVATIONS[name]
