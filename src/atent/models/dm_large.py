"""The large networks of interval bound propagation."""

from collections import OrderedDict

from torch import nn

from atent.models.registry import model


@model
def dm_large(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Sequential:
    """The network "DM-large" of Zhang et al. 2020 (CROWN-IBP), after the "large" one of Gowal et al. 2018.

    (n, c, h, w) to (n, classes) logits. Five 3x3 convolutions with padding 1, to 64, 64, 128, 128 and 128 channels,
    the third of stride 2, then fully connected 512-classes, ReLUs between. For (3, 32, 32) and 10 classes:

        convolutions 1,792 + 36,928 + 73,856 + 147,584 + 147,584; fully connected 16,777,728 + 5,130

    which is 17,190,602 parameters. Any h and w. As in the code of Zhang et al., the convolution of stride 2 pads on all
    sides; that of Gowal et al. pads images of even sides only below and to the right.
    """
    c, h, w = shape
    rows, columns = (h + 1) // 2, (w + 1) // 2
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(c, 64, 3, padding=1), relu1=nn.ReLU(),
            conv2=nn.Conv2d(64, 64, 3, padding=1), relu2=nn.ReLU(),
            conv3=nn.Conv2d(64, 128, 3, stride=2, padding=1), relu3=nn.ReLU(),
            conv4=nn.Conv2d(128, 128, 3, padding=1), relu4=nn.ReLU(),
            conv5=nn.Conv2d(128, 128, 3, padding=1), relu5=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(128 * rows * columns, 512), relu6=nn.ReLU(),
            fc2=nn.Linear(512, classes),
        )
    )  # fmt: skip


@model
def cnn7(*, classes: int = 10, shape: tuple[int, int, int] = (3, 32, 32)) -> nn.Sequential:
    """CNN7 of Shi et al. 2021, the usual network of certified training: `dm_large` with batch-norms.

    (n, c, h, w) to (n, classes) logits. Batch-norm follows each of the five convolutions and the first fully connected
    layer, before the ReLU. 17,192,650 parameters for (3, 32, 32) and 10 classes. Any h and w.
    """
    c, h, w = shape
    sizes = {1: (c, 64, 1), 2: (64, 64, 1), 3: (64, 128, 2), 4: (128, 128, 1), 5: (128, 128, 1)}
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (inputs, outputs, stride) in sizes.items():
        layers[f"conv{number}"] = nn.Conv2d(inputs, outputs, 3, stride, padding=1)
        layers[f"bn{number}"], layers[f"relu{number}"] = nn.BatchNorm2d(outputs), nn.ReLU()
    layers["flatten"] = nn.Flatten()
    layers["fc1"] = nn.Linear(128 * ((h + 1) // 2) * ((w + 1) // 2), 512)
    layers["bn6"], layers["relu6"] = nn.BatchNorm1d(512), nn.ReLU()
    layers["fc2"] = nn.Linear(512, classes)
    return nn.Sequential(layers)
