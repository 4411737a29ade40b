"""The networks of Wong and Kolter: small enough for certified training."""

from collections import OrderedDict

from torch import Tensor, nn
from torch.nn.functional import relu

from atent.models.registry import model
from atent.models.sides import at_least

from .init import kaiming_fan_out


@model
def kw_small(*, classes: int = 10, shape: tuple[int, int, int] = (1, 28, 28)) -> nn.Sequential:
    """The convolutional network of Wong and Kolter 2018: (n, c, h, w) to (n, classes) logits.

    4x4 convolutions of stride 2 to 16 and 32 channels, then fully connected 100-classes, ReLUs between. For
    (1, 28, 28) and 10 classes: 272 + 8,224 + 156,900 + 1,010, which is 166,406 parameters. The initial weights are
    PyTorch's, as in the authors' code for MNIST; for CIFAR-10 it initialises the convolutions as those of `kw_resnet`.
    Raises ValueError if h or w is below 4.
    """
    c, rows, columns = _quarter("kw_small", shape)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(c, 16, 4, stride=2, padding=1), relu1=nn.ReLU(),
            conv2=nn.Conv2d(16, 32, 4, stride=2, padding=1), relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(32 * rows * columns, 100), relu3=nn.ReLU(),
            fc2=nn.Linear(100, classes),
        )
    )  # fmt: skip


@model
def kw_large(*, classes: int = 10, shape: tuple[int, int, int] = (1, 28, 28)) -> nn.Sequential:
    """The large convolutional network of Wong et al. 2018: (n, c, h, w) to (n, classes) logits.

    3x3 convolutions to 32 and 64 channels, each followed by a 4x4 one of stride 2, then fully connected
    512-512-classes, ReLUs between. For (1, 28, 28) and 10 classes: 320 + 16,416 + 18,496 + 65,600 + 1,606,144 +
    262,656 + 5,130, which is 1,974,762 parameters. Raises ValueError if h or w is below 4.
    """
    c, rows, columns = _quarter("kw_large", shape)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(c, 32, 3, padding=1), relu1=nn.ReLU(),
            conv2=nn.Conv2d(32, 32, 4, stride=2, padding=1), relu2=nn.ReLU(),
            conv3=nn.Conv2d(32, 64, 3, padding=1), relu3=nn.ReLU(),
            conv4=nn.Conv2d(64, 64, 4, stride=2, padding=1), relu4=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(64 * rows * columns, 512), relu5=nn.ReLU(),
            fc2=nn.Linear(512, 512), relu6=nn.ReLU(),
            fc3=nn.Linear(512, classes),
        )
    )  # fmt: skip


class PlainBlock(nn.Module):
    """Two convolutions around a convolution as shortcut, all with bias and none with batch-norm.

    If the block halves the image (`halve`), its first kernel is 4x4 and that of the shortcut 2x2, both of stride 2;
    else they are 3x3 and 1x1.
    """

    def __init__(self, inputs: int, outputs: int, halve: bool):
        super().__init__()
        first, skip, stride = (4, 2, 2) if halve else (3, 1, 1)
        self.conv1 = nn.Conv2d(inputs, outputs, first, stride, padding=1)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.shortcut = nn.Conv2d(inputs, outputs, skip, stride)

    def forward(self, x: Tensor) -> Tensor:
        return relu(self.conv2(relu(self.conv1(x))) + self.shortcut(x))


@model
def kw_resnet(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Sequential:
    """The small residual network of Wong et al. 2018: (n, c, h, w) to (n, classes) logits.

    A 3x3 convolution to 16 channels, four `PlainBlock` of 16, 16, 32 and 64 channels, the last two halving the image,
    then fully connected 1000-classes. Convolutions are initialised from He's normal distribution with zero bias. For
    (3, 32, 32) and 10 classes:

        stem 448; blocks 4,912 + 4,912 + 19,552 + 78,016; fully connected 4,097,000 + 10,010

    which is 4,214,850 parameters. Raises ValueError if h or w is below 4.
    """
    c, rows, columns = _quarter("kw_resnet", shape)
    network = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(c, 16, 3, padding=1), relu1=nn.ReLU(),
            block1=PlainBlock(16, 16, halve=False),
            block2=PlainBlock(16, 16, halve=False),
            block3=PlainBlock(16, 32, halve=True),
            block4=PlainBlock(32, 64, halve=True),
            flatten=nn.Flatten(),
            fc1=nn.Linear(64 * rows * columns, 1000), relu2=nn.ReLU(),
            fc2=nn.Linear(1000, classes),
        )
    )  # fmt: skip
    kaiming_fan_out(network)
    for module in network.modules():
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            nn.init.zeros_(module.bias)
    return network


def _quarter(name: str, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """The channels of the input, and its sides after two halvings."""
    c, h, w = at_least(4, name, shape)
    return c, h // 4, w // 4
