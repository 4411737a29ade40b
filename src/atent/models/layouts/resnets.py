"""Residual networks with basic and bottleneck blocks."""

from .base import Layout

KUANGLIU = Layout(
    "kuangliu's pytorch-cifar, and TRADES, MART, AWP, RobustBench and akamaster after it",
    renames=((r"^linear\.", "fc."),),
)

TORCHVISION = Layout("torchvision, and bearpaw's pytorch-classification", renames=((r"\.downsample\.", ".shortcut."),))
