"""Residual networks with basic and bottleneck blocks (He et al. 2016), for CIFAR and for ImageNet."""

from collections.abc import Callable, Sequence

from torch import Tensor, nn
from torch.nn.functional import max_pool2d, pad, relu

from atent.models.registry import model
from atent.models.sides import at_least

from .init import kaiming_fan_out


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; a 1x1 convolution with batch-norm if the size changes."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return relu(out + self.shortcut(x))


class PaddedShortcut(nn.Module):
    """He et al.'s option A: every second pixel, and zeros for the added channels, half before and half after."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.before, self.after = (outputs - inputs) // 2, (outputs - inputs + 1) // 2

    def forward(self, x: Tensor) -> Tensor:
        return pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class PaddedBlock(BasicBlock):
    """A `BasicBlock` whose shortcut has no weights if the size changes: option A."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__(inputs, outputs, stride)
        self.shortcut = nn.Sequential() if inputs == outputs else PaddedShortcut(inputs, outputs)


class Bottleneck(nn.Module):
    """1x1, 3x3 (with the stride) and 1x1 convolutions, the last to `outputs` channels, four times the others' width."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        width = outputs // 4
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = relu(self.bn1(self.conv1(x)))
        out = self.bn3(self.conv3(relu(self.bn2(self.conv2(out)))))
        return relu(out + self.shortcut(x))


class ResNet(nn.Module):
    """A stem, one stage of blocks per width (each except the first halves h and w), mean, one linear layer.

    `channels` of the input, `widths` and `blocks` per stage, number of `classes`, the kind of `block` (made from its
    channels in and out and its stride). The stem is a 3x3 convolution, or with `pooled` that of ImageNet: 7x7 of stride
    2 and a 3x3 max-pooling of stride 2. It has 64 channels before bottlenecks and with `pooled`, else those of the
    first stage. Takes (n, channels, h, w), returns logits (n, classes).
    """

    def __init__(
        self, channels: int, widths: Sequence[int], blocks: Sequence[int], classes: int,
        block: Callable[[int, int, int], nn.Module] = BasicBlock, pooled: bool = False,
    ):  # fmt: skip
        super().__init__()
        inputs = 64 if pooled or block is Bottleneck else widths[0]
        self.pooled = pooled
        size, stride = (7, 2) if pooled else (3, 1)
        self.conv1 = nn.Conv2d(channels, inputs, size, stride, padding=size // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(inputs)
        self.stages = len(widths)
        for number, (width, count) in enumerate(zip(widths, blocks, strict=True), start=1):
            first = block(inputs, width, 1 if number == 1 else 2)
            rest = [block(width, width, 1) for _ in range(count - 1)]
            self.add_module(f"layer{number}", nn.Sequential(first, *rest))
            inputs = width
        self.fc = nn.Linear(inputs, classes)
        kaiming_fan_out(self)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)))
        if self.pooled:
            x = max_pool2d(x, 3, stride=2, padding=1)
        for number in range(1, self.stages + 1):
            x = getattr(self, f"layer{number}")(x)
        logits: Tensor = self.fc(x.mean((2, 3)))
        return logits


def _resnet(
    name: str, shape: tuple[int, int, int], widths: Sequence[int], blocks: Sequence[int], classes: int,
    block: Callable[[int, int, int], nn.Module] = BasicBlock, pooled: bool = False,
) -> ResNet:  # fmt: skip
    c, _, _ = at_least(32 if pooled else 8, name, shape)
    return ResNet(c, widths, blocks, classes, block, pooled)


@model
def resnet18(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> ResNet:
    """ResNet-18 in its CIFAR form: stem of stride 1 without pooling, widths 64-128-256-512, 2 blocks each.

    (n, c, h, w) to (n, classes) logits; any c, and h, w >= 8, else ValueError. 11,173,962 parameters for
    (3, 32, 32) and 10 classes. The shortcut of a stage that changes the size is a 1x1 convolution with
    batch-norm. Differences from the file in most robustness repositories: the last layer is named
    `fc` (there `linear`), and the convolutions are initialised from He's normal distribution (there
    PyTorch's uniform default).
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

    which is 1,730,714 parameters. In eval mode before training its logits are very large (1e7 and more),
    since 54 blocks add up without scaling until batch-norm has statistics.
    """
    return _resnet("resnet110", shape, (16, 32, 64), (18, 18, 18), classes)


@model
def resnet20_a(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> ResNet:
    """ResNet-20 for CIFAR as He et al. 2016 define it: `resnet20` with 3 blocks a stage and shortcuts of option A.

    If the size changes, the shortcut takes every second pixel and pads the channels with zeros, so that it has no
    weights: the network of akamaster's published files, whose initial weights scale with the fan-in. (n, c, h, w) to
    (n, classes) logits; any c, and h, w >= 8, else ValueError. 269,722 parameters for (3, 32, 32) and 10 classes.
    """
    return _resnet("resnet20_a", shape, (16, 32, 64), (3, 3, 3), classes, PaddedBlock)


@model
def resnet32_a(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> ResNet:
    """ResNet-32 for CIFAR as He et al. 2016 define it: `resnet20` with 5 blocks a stage and shortcuts of option A.

    If the size changes, the shortcut takes every second pixel and pads the channels with zeros, so that it has no
    weights: the network of akamaster's published files. (n, c, h, w) to (n, classes) logits; any c, and h, w >= 8, else
    ValueError. 464,154 parameters for (3, 32, 32) and 10 classes.
    """
    return _resnet("resnet32_a", shape, (16, 32, 64), (5, 5, 5), classes, PaddedBlock)


@model
def resnet44_a(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> ResNet:
    """ResNet-44 for CIFAR as He et al. 2016 define it: `resnet20` with 7 blocks a stage and shortcuts of option A.

    If the size changes, the shortcut takes every second pixel and pads the channels with zeros, so that it has no
    weights: the network of akamaster's published files. (n, c, h, w) to (n, classes) logits; any c, and h, w >= 8, else
    ValueError. 658,586 parameters for (3, 32, 32) and 10 classes.
    """
    return _resnet("resnet44_a", shape, (16, 32, 64), (7, 7, 7), classes, PaddedBlock)


@model
def resnet56_a(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> ResNet:
    """ResNet-56 for CIFAR as He et al. 2016 define it: `resnet20` with 9 blocks a stage and shortcuts of option A.

    If the size changes, the shortcut takes every second pixel and pads the channels with zeros, so that it has no
    weights: the network of akamaster's published files. (n, c, h, w) to (n, classes) logits; any c, and h, w >= 8, else
    ValueError. 853,018 parameters for (3, 32, 32) and 10 classes.
    """
    return _resnet("resnet56_a", shape, (16, 32, 64), (9, 9, 9), classes, PaddedBlock)


@model
def resnet110_a(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> ResNet:
    """ResNet-110 for CIFAR as He et al. 2016 define it: `resnet20` with 18 blocks a stage and shortcuts of option A.

    If the size changes, the shortcut takes every second pixel and pads the channels with zeros, so that it has no
    weights: the network of akamaster's published files. (n, c, h, w) to (n, classes) logits; any c, and h, w >= 8, else
    ValueError. 1,727,962 parameters for (3, 32, 32) and 10 classes.
    """
    return _resnet("resnet110_a", shape, (16, 32, 64), (18, 18, 18), classes, PaddedBlock)


@model
def resnet50(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> ResNet:
    """ResNet-50 in its CIFAR form: as `resnet18`, with 3, 4, 6 and 3 bottleneck blocks.

    The network of Engstrom et al. 2019 and Augustin et al. 2020 in RobustBench. (n, c, h, w) to (n, classes) logits;
    any c, and h, w >= 8, else ValueError. 23,520,842 parameters for (3, 32, 32) and 10 classes.
    """
    return _resnet("resnet50", shape, (256, 512, 1024, 2048), (3, 4, 6, 3), classes, Bottleneck)


@model
def resnet18_imagenet(*, classes: int = 10, shape: tuple[int, int, int] = (3, 224, 224)) -> ResNet:
    """ResNet-18 in its ImageNet form, the layout of torchvision: a 7x7 stem of stride 2 and pooling before the stages.

    (n, c, h, w) to (n, classes) logits; any c, and h, w >= 32, else ValueError. 11,181,642 parameters for
    (3, 224, 224) and 10 classes.
    """
    return _resnet("resnet18_imagenet", shape, (64, 128, 256, 512), (2, 2, 2, 2), classes, BasicBlock, pooled=True)


@model
def resnet34_imagenet(*, classes: int = 10, shape: tuple[int, int, int] = (3, 224, 224)) -> ResNet:
    """ResNet-34 in its ImageNet form, the layout of torchvision: a 7x7 stem of stride 2 and pooling before the stages.

    (n, c, h, w) to (n, classes) logits; any c, and h, w >= 32, else ValueError. 21,289,802 parameters for
    (3, 224, 224) and 10 classes.
    """
    return _resnet("resnet34_imagenet", shape, (64, 128, 256, 512), (3, 4, 6, 3), classes, BasicBlock, pooled=True)


@model
def resnet50_imagenet(*, classes: int = 10, shape: tuple[int, int, int] = (3, 224, 224)) -> ResNet:
    """ResNet-50 in its ImageNet form, the layout of torchvision: a 7x7 stem of stride 2 and pooling before the stages.

    (n, c, h, w) to (n, classes) logits; any c, and h, w >= 32, else ValueError. 23,528,522 parameters for
    (3, 224, 224) and 10 classes.
    """
    return _resnet("resnet50_imagenet", shape, (256, 512, 1024, 2048), (3, 4, 6, 3), classes, Bottleneck, pooled=True)
