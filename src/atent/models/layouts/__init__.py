"""The layer names of published code for networks of this library, one file per family of code.

A layout renames and does not change values. If published code computes something else under the same names, there is a
separate network in `atent.models`.
"""

from .base import Layout
from .mnist import ADVERTORCH_MNIST, CTRAIN, WONG, WONG_LARGE, WONG_RESNET
from .resnets import KUANGLIU, TORCHVISION
from .wide import ADVERTORCH_WIDE, TRADES

__all__ = ["LAYOUTS", "Layout"]

LAYOUTS: tuple[Layout, ...] = (
    TRADES, KUANGLIU, TORCHVISION, ADVERTORCH_WIDE, ADVERTORCH_MNIST, WONG, WONG_LARGE, WONG_RESNET, CTRAIN,
)  # fmt: skip
"""Tried in this order, after the names as they are."""
