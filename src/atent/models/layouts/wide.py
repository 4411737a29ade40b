"""Wide residual networks."""

from .base import Layout

TRADES = Layout(
    "TRADES, MART, AWP and RobustBench's WideResNet",
    # A copy of the first stage, which these files contain and the forward pass does not use.
    unused=(r"sub_block1\.",),
)

ADVERTORCH_WIDE = Layout(
    "advertorch's WideResNet",
    renames=((r"^convgroup(\d)\.", r"block\1."), (r"\.conv_shortcut\.", ".convShortcut.")),
)
