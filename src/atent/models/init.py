"""The weight initialisation that the residual networks share."""

from torch import nn


def kaiming_fan_out(network: nn.Module) -> None:
    """Draw every convolution of `network` from N(0, 2 / (k k c_out)), in place (He et al. 2015).

    Batch-norms already start at weight 1 and bias 0, and fully connected weights keep PyTorch's own
    start. Works on the meta device, where it does nothing.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
