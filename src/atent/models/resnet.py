"""CIFAR residual networks with basic blocks (He et al. 2016)."""

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.functional import relu

from atent.models.registry import model

from .init import kaiming_fan_out


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; a 1x1 convolution with batch-norm where the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem, one stage of blocks per width (each but the first halves h and w), mean, one linear layer.

    `channels` of the input, `widths` and `blocks` per stage, number of `classes`. Takes
    (n, channels, h, w), gives (n, classes) logits.
    """

    def __init__(self, channels: int, widths: Sequence[int], blocks: Sequence[int], classes: int):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(widths[0])
        self.stages = len(widths)
        inputs = widths[0]
        for number, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
            first = BasicBlock(inputs, width, stride=1 if number == 1 else 2)
            rest = [BasicBlock(width, width, stride=1) for _ in range(count - 1)]
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))
            inputs = width
        self.fc = nn.Linear(inputs, classes)
        kaiming_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)))
        for number in range(1, self.stages + 1):
            x = getattr(self, f"layer{number}")(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _resnet(
    name: str, shape: tuple[int, int, int], widths: Sequence[int], blocks: Sequence[int], classes: int
) -> ResNet:
    c, h, w = shape
    if min(h, w) < 8:
        raise ValueError(f"{name} takes inputs of at least 8 x 8 pixels, got shape {tuple(shape)}")
    return ResNet(c, widths, blocks, classes)


@model
def resnet18(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> ResNet:
    """ResNet-18 in its CIFAR form: stem of stride 1 without pooling, widths 64-128-256-512, 2 blocks each.

    (n, c, h, w) to (n, classes) logits; any c, and h, w >= 8, else ValueError. 11,173,962 parameters for
    (3, 32, 32) and 10 classes. The shortcut of a stage that changes the size is a 1x1 convolution with
    batch-norm. Against the file that most robustness code passes on: the last layer is named `fc` (there
    `linear`), and the convolutions start from He's normal distribution (there PyTorch's uniform default).
    """
    return _resnet("resnet18", shape, (64, 128, 256, 512), (2, 2, 2, 2), classes)


@model
def resnet8(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> ResNet:
    """ResNet-8, the smallest of the family of `resnet20`: widths 16-32-64, 1 basic block each; 78,042 parameters.

    A network with batch-norm that trains on small images on a CPU. (n, c, h, w) to (n, classes) logits; any c, and
    h, w >= 8, else ValueError.
    """
    return _resnet("resnet8", shape, (16, 32, 64), (1, 1, 1), classes)


@model
def resnet20(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> ResNet:
    """ResNet-20 for CIFAR (He et al. 2016, section 4.2): widths 16-32-64, 3 basic blocks each.

    (n, c, h, w) to (n, classes) logits; any c, and h, w >= 8, else ValueError. He et al. pad the shortcut
    with zeros; here, as in bearpaw's pytorch-classification, which the paper and randomised smoothing
    build on, it is a 1x1 convolution with batch-norm (there named `downsample`, here `shortcut`). For
    (3, 32, 32) and 10 classes:

        stem 432 + 32; fc 650; blocks of
        width 16: 3 x 4,672; width 32: 14,528 + 2 x 18,560; width 64: 57,728 + 2 x 73,984

    which is 272,474 parameters.
    """
    return _resnet("resnet20", shape, (16, 32, 64), (3, 3, 3), classes)


@model
def resnet110(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> ResNet:
    """ResNet-110 for CIFAR: `resnet20` with 18 blocks in each stage, the network of Cohen et al. 2019.

    For (3, 32, 32) and 10 classes:

        stem 432 + 32; fc 650; blocks of
        width 16: 18 x 4,672; width 32: 14,528 + 17 x 18,560; width 64: 57,728 + 17 x 73,984

    which is 1,730,714 parameters. In eval mode before any training its logits are huge (1e7 and more),
    since 54 blocks add up unscaled until batch-norm has seen data.
    """
    return _resnet("resnet110", shape, (16, 32, 64), (18, 18, 18), classes)
