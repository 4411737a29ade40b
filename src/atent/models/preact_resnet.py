"""CIFAR residual networks with pre-activation blocks (He et al. 2016b)."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu

from atent.models.registry import model
from atent.models.sides import at_least

from .init import kaiming_fan_out


class PreActBlock(nn.Module):
    """BN-ReLU-conv twice; if the size changes, the shortcut is a 1x1 convolution of the first activation, or with `raw`
    of the input."""

    def __init__(self, inputs: int, outputs: int, stride: int, raw: bool = False):
        super().__init__()
        self.raw = raw
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.shortcut = None
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        active = relu(self.bn1(x))
        skip = x if self.shortcut is None else self.shortcut(x if self.raw else active)
        out: Tensor = skip + self.conv2(relu(self.bn2(self.conv1(active))))
        return out


class PreActResNet(nn.Module):
    """A 3x3 stem, one stage of blocks per width (all but the first halve h and w), BN-ReLU, mean, one linear layer.

    `channels` of the input, `widths` and `blocks` per stage, number of `classes`. With `raw`, shortcuts are of the
    block's input; without `ending` there is no BN-ReLU after the last block. Maps (n, channels, h, w) to logits
    (n, classes).
    """

    def __init__(
        self, channels: int, widths: Sequence[int], blocks: Sequence[int], classes: int, *, raw: bool = False,
        ending: bool = True,
    ):  # fmt: skip
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.stages = len(widths)
        inputs = widths[0]
        for number, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
            first = PreActBlock(inputs, width, stride=1 if number == 1 else 2, raw=raw)
            rest = [PreActBlock(width, width, stride=1, raw=raw) for _ in range(count - 1)]
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))
            inputs = width
        self.bn = nn.BatchNorm2d(inputs) if ending else None
        self.linear = nn.Linear(inputs, classes)
        kaiming_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for number in range(1, self.stages + 1):
            x = getattr(self, f"layer{number}")(x)
        if self.bn is not None:
            x = relu(self.bn(x))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


@model
def preact_resnet18(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> PreActResNet:
    """PreActResNet-18 in its CIFAR form, the network of Rice et al. 2020 and Wu et al. 2020.

    (n, c, h, w) to (n, classes) logits; any c, and h, w >= 8, else ValueError. Stem of stride 1 without pooling,
    widths 64-128-256-512, 2 blocks each; as He et al. 2016b, a batch-norm and a ReLU after the last block.
    For (3, 32, 32) and 10 classes:

        conv1 1,728; stages 147,968 + 525,184 + 2,098,944 + 8,392,192; bn 1,024; linear 5,130

    which is 11,172,170 parameters. The file of kuangliu's pytorch-cifar lacks that last batch-norm and ReLU, and so has
    11,171,146. The names in the state dict are those of that family of files; the convolutions are initialised from
    He's normal distribution (there PyTorch's uniform default).
    """
    return _preact_resnet18("preact_resnet18", shape, classes)


@model
def preact_resnet18_raw(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> PreActResNet:
    """PreActResNet-18 with shortcuts of the block's input, the network in the code of Wong et al. 2020.

    Where the size changes, the 1x1 convolution of the shortcut takes the block's input, that of `preact_resnet18` its
    first activation; otherwise as `preact_resnet18`. The tensors of both have the same names and shapes, so weights of
    one load as the other, which then computes something else. (n, c, h, w) to (n, classes) logits; any c, and h, w >=
    8, else ValueError. 11,172,170 parameters for (3, 32, 32) and 10 classes.
    """
    return _preact_resnet18("preact_resnet18_raw", shape, classes, raw=True)


@model
def preact_resnet18_plain(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> PreActResNet:
    """PreActResNet-18 without batch-norm and ReLU after the last block, with shortcuts of the block's input.

    The network of Andriushchenko and Flammarion 2020 and of Wong et al. 2020 in RobustBench, whose files lack that
    batch-norm. That of kuangliu's pytorch-cifar has the same tensors, but shortcuts of the first activation: load its
    files into a network of your own. (n, c, h, w) to (n, classes) logits; any c, and h, w >= 8, else ValueError.
    11,171,146 parameters for (3, 32, 32) and 10 classes.
    """
    return _preact_resnet18("preact_resnet18_plain", shape, classes, raw=True, ending=False)


def _preact_resnet18(
    name: str, shape: tuple[int, int, int], classes: int, *, raw: bool = False, ending: bool = True
) -> PreActResNet:  # fmt: skip
    c, _, _ = at_least(8, name, shape)
    return PreActResNet(c, (64, 128, 256, 512), (2, 2, 2, 2), classes, raw=raw, ending=ending)
