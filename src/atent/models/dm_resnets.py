"""The SiLU networks of Gowal et al. 2020 and Rebuffi et al. 2021 (DeepMind), used by many models of RobustBench.

They differ from `wrn_28_10` and `preact_resnet18` in more than the activation: a convolution of stride 2 pads only
below and to the right, as TensorFlow does, and the running statistics of a batch-norm move by 0.01 of the difference at
each batch, not by 0.1. The names in the state dict are those of the published files, so that weights of one kind do
not load as the other.
"""

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import pad, silu

from atent.models.registry import model

from .init import kaiming_fan_out

MOMENTUM = 0.01
"""Weight of a batch in the running statistics: a decay rate of 0.99."""


def _same(x: Tensor, stride: int) -> Tensor:
    """The image padded for a 3x3 convolution of the stride, as TensorFlow's SAME."""
    return pad(x, (0, 1, 0, 1) if stride == 2 else (1, 1, 1, 1))


class WideBlock(nn.Module):
    """BN-SiLU-conv twice; a 1x1 convolution of the first activation as shortcut if the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(inputs, momentum=MOMENTUM)
        self.conv_0 = nn.Conv2d(inputs, outputs, 3, stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(outputs, momentum=MOMENTUM)
        self.conv_1 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = None if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = silu(self.batchnorm_0(x))
        skip = x if self.shortcut is None else self.shortcut(active)
        out = self.conv_0(_same(active, self.stride))
        summed: Tensor = skip + self.conv_1(silu(self.batchnorm_1(out)))
        return summed


class PreActBlock(nn.Module):
    """BN-SiLU-conv twice; a 3x3 convolution of the block's input as shortcut if the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.stride = stride
        self.batchnorm_0 = nn.BatchNorm2d(inputs, momentum=MOMENTUM)
        self.conv_2d_1 = nn.Conv2d(inputs, outputs, 3, stride, bias=False)
        self.batchnorm_1 = nn.BatchNorm2d(outputs, momentum=MOMENTUM)
        self.conv_2d_2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        same = stride == 1 and inputs == outputs
        self.shortcut = None if same else nn.Conv2d(inputs, outputs, 3, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        skip = x if self.shortcut is None else self.shortcut(_same(x, self.stride))
        out = self.conv_2d_1(_same(silu(self.batchnorm_0(x)), self.stride))
        summed: Tensor = self.conv_2d_2(silu(self.batchnorm_1(out))) + skip
        return summed


def _stage(block: type[nn.Module], inputs: int, outputs: int, stride: int, count: int) -> nn.Sequential:
    return nn.Sequential(block(inputs, outputs, stride), *(block(outputs, outputs, 1) for _ in range(count - 1)))


class DMWideResNet(nn.Module):
    """WRN-`depth`-`widen` with SiLU: (n, channels, h, w) to (n, classes) logits, h and w even after the first halving.

    `depth` is 6 k + 4 with k blocks in each of three stages of width 16, 32, 64 times `widen`.
    """

    def __init__(self, depth: int, widen: int, *, channels: int = 3, classes: int = 10):
        super().__init__()
        count = (depth - 4) // 6
        widths = 16, 16 * widen, 32 * widen, 64 * widen
        self.init_conv = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        # the extra level gives the published names, such as layer.0.block.0.conv_0.weight
        self.layer = nn.Sequential(
            *(
                nn.Sequential(OrderedDict(block=_stage(WideBlock, inputs, outputs, stride, count)))
                for inputs, outputs, stride in zip(widths, widths[1:], (1, 2, 2), strict=False)
            )
        )
        self.batchnorm = nn.BatchNorm2d(widths[-1], momentum=MOMENTUM)
        self.logits = nn.Linear(widths[-1], classes)
        kaiming_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.layer(self.init_conv(x))
        logits: Tensor = self.logits(silu(self.batchnorm(x)).mean((2, 3)))
        return logits


class DMPreActResNet(nn.Module):
    """A 3x3 stem, four stages of SiLU blocks, BN-SiLU, mean, one linear layer; (n, channels, h, w) to logits."""

    def __init__(self, channels: int, widths: Sequence[int], blocks: Sequence[int], classes: int):
        super().__init__()
        self.conv_2d = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.stages = len(widths)
        inputs = widths[0]
        for number, (width, count) in enumerate(zip(widths, blocks, strict=True)):
            self.add_module(f"layer_{number}", _stage(PreActBlock, inputs, width, 1 if number == 0 else 2, count))
            inputs = width
        self.batchnorm = nn.BatchNorm2d(inputs, momentum=MOMENTUM)
        self.logits = nn.Linear(inputs, classes)
        kaiming_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_2d(x)
        for number in range(self.stages):
            x = getattr(self, f"layer_{number}")(x)
        logits: Tensor = self.logits(silu(self.batchnorm(x)).mean((2, 3)))
        return logits


def _check_sides(name: str, shape: tuple[int, int, int], halvings: int) -> int:
    """The number of channels; ValueError for sides for which one-sided padding is not defined."""
    c, h, w = shape
    if min(h, w) < 8 or h % 2**halvings or w % 2**halvings:
        raise ValueError(
            f"{name} takes inputs of at least 8 x 8 pixels with sides divisible by {2**halvings}, got shape"
            f" {tuple(shape)}"
        )
    return c


def _dm_wrn(name: str, depth: int, widen: int, shape: tuple[int, int, int], classes: int) -> DMWideResNet:
    return DMWideResNet(depth, widen, channels=_check_sides(name, shape, 2), classes=classes)


@model
def dm_wrn_28_10(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> DMWideResNet:
    """WRN-28-10 with SiLU of Gowal et al. 2020; DMWideResNet in RobustBench.

    (n, c, h, w) to (n, classes) logits; any c, and h, w >= 8 and divisible by 4, else ValueError. A convolution of
    stride 2 pads only below and to the right, and the momentum of batch-norms is 0.01. 36,479,194 parameters for
    (3, 32, 32) and 10 classes. The published files do not contain the normalisation by CIFAR-10's mean and std. The
    convolutions are initialised from He's normal distribution and the last layer by PyTorch's default (authors: a
    variance of 1 / fan-in, and zero).
    """
    return _dm_wrn("dm_wrn_28_10", 28, 10, shape, classes)


@model
def dm_wrn_34_10(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> DMWideResNet:
    """WRN-34-10 with SiLU, as `dm_wrn_28_10`.

    46,160,474 parameters for (3, 32, 32) and 10 classes.
    """
    return _dm_wrn("dm_wrn_34_10", 34, 10, shape, classes)


@model
def dm_wrn_70_16(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> DMWideResNet:
    """WRN-70-16 with SiLU, as `dm_wrn_28_10`.

    266,796,506 parameters for (3, 32, 32) and 10 classes.
    """
    return _dm_wrn("dm_wrn_70_16", 70, 16, shape, classes)


@model
def dm_preact_resnet18(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> DMPreActResNet:
    """PreActResNet-18 with SiLU (Rebuffi et al. 2021, Rade and Moosavi-Dezfooli 2022); RobustBench's DMPreActResNet.

    (n, c, h, w) to (n, classes) logits; any c, and h, w >= 8 and divisible by 8, else ValueError. Shortcuts that change
    the size are 3x3 convolutions of the block's input; a convolution of stride 2 pads only below and to the right. The
    momentum of batch-norms is 0.01. 12,548,426 parameters for (3, 32, 32) and 10 classes. The published files do not
    contain the normalisation by CIFAR-10's mean and std. The convolutions are initialised from He's normal distribution
    (authors: PyTorch's uniform default).
    """
    c = _check_sides("dm_preact_resnet18", shape, 3)
    return DMPreActResNet(c, (64, 128, 256, 512), (2, 2, 2, 2), classes)
