"""The two-convolution MNIST networks of Madry et al. and of advertorch, and a fully connected network."""

import math
from collections import OrderedDict

from torch import nn

from atent.models.registry import model
from atent.models.sides import at_least


@model
def lenet5(*, classes: int = 10, shape: tuple[int, int, int] = (1, 28, 28)) -> nn.Sequential:
    """LeNet5 of Madry et al. 2018, the paper's MNIST l_2 network: (n, c, h, w) to (n, classes) logits.

    5x5 convolutions with padding 2, 32-pool-64-pool, then fully connected 1024-classes. 3,274,634
    parameters for (1, 28, 28) and 10 classes. The names in the state dict are those of advertorch's
    LeNet5Madry, except for the last two layers, `fc1` and `fc2` (there `linear1` and `linear2`). The initial
    weights are PyTorch's, as there; those of Madry et al. have a standard deviation of 0.1, and biases of 0.1. Raises
    ValueError if h or w is below 4.
    """
    c, h, w = at_least(4, "lenet5", shape)
    rows, columns = h // 4, w // 4
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(c, 32, 5, padding=2), relu1=nn.ReLU(), maxpool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 64, 5, padding=2), relu2=nn.ReLU(), maxpool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(64 * rows * columns, 1024), relu3=nn.ReLU(),
            fc2=nn.Linear(1024, classes),
        )
    )  # fmt: skip


@model
def lenet5_small(*, classes: int = 10, shape: tuple[int, int, int] = (1, 28, 28)) -> nn.Sequential:
    """LeNet5 of advertorch, whose package includes weights for it: (n, c, h, w) to (n, classes) logits.

    3x3 convolutions with padding 1, 32-pool-64-pool, then fully connected 200-classes. 648,226 parameters for
    (1, 28, 28) and 10 classes. Raises ValueError if h or w is below 4.
    """
    c, h, w = at_least(4, "lenet5_small", shape)
    rows, columns = h // 4, w // 4
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(c, 32, 3, padding=1), relu1=nn.ReLU(), maxpool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(32, 64, 3, padding=1), relu2=nn.ReLU(), maxpool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(64 * rows * columns, 200), relu3=nn.ReLU(),
            fc2=nn.Linear(200, classes),
        )
    )  # fmt: skip


@model
def lenet300(*, classes: int = 10, shape: tuple[int, int, int] = (1, 28, 28)) -> nn.Sequential:
    """Fully connected 300-100-classes of LeCun et al. 1998, with ReLUs between: (n, c, h, w) to (n, classes) logits.

    advertorch's MLP. 266,610 parameters for (1, 28, 28) and 10 classes. Any h and w.
    """
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            fc1=nn.Linear(math.prod(shape), 300), relu1=nn.ReLU(),
            fc2=nn.Linear(300, 100), relu2=nn.ReLU(),
            fc3=nn.Linear(100, classes),
        )
    )  # fmt: skip
