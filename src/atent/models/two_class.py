"""The network of the paper's two-class experiment in the plane."""

from collections import OrderedDict

from torch import nn

from atent.models.registry import model


@model
def two_class(*, classes: int = 10, shape: tuple[int, ...] = (2,)) -> nn.Sequential:
    """The network of the paper's Figure 1, for points instead of images: (n, d) to (n, classes) logits.

    A point is a signal of d values in one channel: a 1-D convolution to 20 channels, kernel 2, zero padding 2, ReLU,
    then fully connected 150-classes. 16,720 parameters for d = 2 and 10 classes, 15,512 for the two classes of the
    figure. No batch-norm and no dropout.
    """
    (d,) = shape
    return nn.Sequential(
        OrderedDict(
            channel=nn.Unflatten(1, (1, d)),
            conv1=nn.Conv1d(1, 20, 2, padding=2), relu1=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(20 * (d + 3), 150), relu2=nn.ReLU(),
            fc2=nn.Linear(150, classes),
        )
    )  # fmt: skip
