"""Wide residual networks (Zagoruyko and Komodakis 2016), pre-activation, as TRADES uses them."""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn.functional import relu

from atent.models.registry import model
from atent.models.sides import at_least

from .init import kaiming_fan_out


class WideBlock(nn.Module):
    """BN-ReLU-conv twice, dropout before the second; a 1x1 convolution as shortcut if the width changes."""

    def __init__(self, inputs: int, outputs: int, stride: int, dropout: float):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        # Identity, so that a search for dropout layers finds only active ones
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.convShortcut = None
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        active = relu(self.bn1(x))
        skip = x if self.convShortcut is None else self.convShortcut(active)
        out: Tensor = self.drop(relu(self.bn2(self.conv1(active))))
        out = skip + self.conv2(out)
        return out


class WideResNet(nn.Module):
    """WRN-`depth`-`widen` with `dropout` in its blocks: (n, channels, h, w) to (n, classes) logits.

    `depth` is 6 k + 4 with k blocks in each of three stages of width 16, 32, 64 times `widen`; `widen` is
    at least 2; `dropout` is a probability in [0, 1). Raises ValueError for another depth or widening.
    """

    def __init__(self, depth: int, widen: int, *, channels: int = 3, classes: int = 10, dropout: float = 0.0):
        super().__init__()
        # with widen 1 the first stage would keep its width, and its shortcut would be of the block's input
        if depth < 10 or depth % 6 != 4 or widen < 2:
            raise ValueError(f"a WideResNet has depth 6 k + 4 and widen of at least 2, got {depth}, {widen}")
        count = (depth - 4) // 6
        narrow, *widths = 16, 16 * widen, 32 * widen, 64 * widen
        self.conv1 = nn.Conv2d(channels, narrow, 3, padding=1, bias=False)
        self.block1 = _stage(count, narrow, widths[0], 1, dropout)
        self.block2 = _stage(count, widths[0], widths[1], 2, dropout)
        self.block3 = _stage(count, widths[1], widths[2], 2, dropout)
        self.bn1 = nn.BatchNorm2d(widths[2])
        self.fc = nn.Linear(widths[2], classes)
        kaiming_fan_out(self)
        nn.init.zeros_(self.fc.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        logits: Tensor = self.fc(relu(self.bn1(x)).mean((2, 3)))
        return logits


def _stage(count: int, inputs: int, outputs: int, stride: int, dropout: float) -> nn.Sequential:
    first = WideBlock(inputs, outputs, stride, dropout)
    rest = [WideBlock(outputs, outputs, 1, dropout) for _ in range(count - 1)]
    # the extra level gives the published names, such as block1.layer.0.conv1.weight
    return nn.Sequential(OrderedDict(layer=nn.Sequential(first, *rest)))


def _wrn(name: str, depth: int, widen: int, shape: tuple[int, int, int], classes: int, dropout: float) -> WideResNet:
    c, _, _ = at_least(8, name, shape)
    return WideResNet(depth, widen, channels=c, classes=classes, dropout=dropout)


@model
def wrn_28_4(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32), dropout: float = 0.0) -> WideResNet:
    """WRN-28-4: as `wrn_34_10`, with 4 blocks per stage and widths 64-128-256.

    5,849,050 parameters for (3, 32, 32) and 10 classes.
    """
    return _wrn("wrn_28_4", 28, 4, shape, classes, dropout)


@model
def wrn_28_10(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32), dropout: float = 0.0) -> WideResNet:
    """WRN-28-10: as `wrn_34_10`, with 4 blocks per stage.

    36,479,194 parameters for (3, 32, 32) and 10 classes.
    """
    return _wrn("wrn_28_10", 28, 10, shape, classes, dropout)


@model
def wrn_34_10(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32), dropout: float = 0.0) -> WideResNet:
    """WRN-34-10, the CIFAR l_inf network of TRADES and the paper.

    That of Madry et al. 2018 has as many blocks of the same widths, but leaky ReLUs, and shortcuts without weights that
    pad channels with zeros. (n, c, h, w) to (n, classes) logits; any c, and h, w >= 8, else ValueError; `dropout` in
    [0, 1). Five blocks in each stage, widths 160-320-640. For (3, 32, 32) and 10 classes:

        conv1 432; stages 2,102,112 + 8,812,480 + 35,237,760; bn1 1,280; fc 6,410

    which is 46,160,474 parameters. The names in the state dict are those of the TRADES file. The
    published checkpoints of TRADES have 2,102,112 more parameters, under `sub_block1`: a copy of the first
    stage that its forward pass does not use. It is omitted here, and by `atent.load`.
    """
    return _wrn("wrn_34_10", 34, 10, shape, classes, dropout)


@model
def wrn_34_20(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32), dropout: float = 0.0) -> WideResNet:
    """WRN-34-20: as `wrn_34_10`, with 5 blocks per stage and widths 320-640-1280.

    184,531,674 parameters for (3, 32, 32) and 10 classes.
    """
    return _wrn("wrn_34_20", 34, 20, shape, classes, dropout)


@model
def wrn_70_16(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32), dropout: float = 0.0) -> WideResNet:
    """WRN-70-16: as `wrn_34_10`, with 11 blocks per stage and widths 256-512-1024.

    266,796,506 parameters for (3, 32, 32) and 10 classes.
    """
    return _wrn("wrn_70_16", 70, 16, shape, classes, dropout)
