"""The weight initialisation that the residual networks share."""

from torch import nn


def kaiming_fan_out(network: nn.Module) -> None:
    """Initialise every convolution of `network` from N(0, 2 / (k k c_out)), in place (He et al. 2015).

    Batch-norms have weight 1 and bias 0 by default, and fully connected layers keep PyTorch's default
    initialisation. On the meta device it has no effect.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
