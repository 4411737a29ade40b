"""The four-convolution MNIST network of TRADES."""

from collections import OrderedDict

from torch import nn

from atent.models.registry import model
from atent.models.sides import at_least


@model
def small_cnn(*, classes: int = 10, shape: tuple[int, int, int] = (1, 28, 28), dropout: float = 0.5) -> nn.Sequential:
    """SmallCNN of Zhang et al. 2019 (TRADES), the paper's MNIST l_inf network.

    (n, c, h, w) to (n, classes) logits. 3x3 convolutions without padding, 32-32-pool-64-64-pool, then
    fully connected 200-200-classes with `dropout` in [0, 1) between the first two. 312,202 parameters for
    (1, 28, 28) and 10 classes. The names in the state dict are those of the TRADES file. Raises
    ValueError if h or w is below 16.

    The last layer is initialised to zero, so before the first update all logits and input gradients are 0.
    """
    c, h, w = at_least(16, "small_cnn", shape)
    rows, columns = (((side - 4) // 2 - 4) // 2 for side in (h, w))
    features: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=nn.Conv2d(c, 32, 3), relu1=nn.ReLU(),
        conv2=nn.Conv2d(32, 32, 3), relu2=nn.ReLU(), maxpool1=nn.MaxPool2d(2),
        conv3=nn.Conv2d(32, 64, 3), relu3=nn.ReLU(),
        conv4=nn.Conv2d(64, 64, 3), relu4=nn.ReLU(), maxpool2=nn.MaxPool2d(2),
    )  # fmt: skip
    last = nn.Linear(200, classes)
    classifier: OrderedDict[str, nn.Module] = OrderedDict(
        fc1=nn.Linear(64 * rows * columns, 200), relu1=nn.ReLU(),
        # Identity, so that a search for dropout layers finds only active ones
        drop=nn.Dropout(dropout) if dropout else nn.Identity(),
        fc2=nn.Linear(200, 200), relu2=nn.ReLU(),
        fc3=last,
    )  # fmt: skip
    for layer in features.values():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(
        OrderedDict(
            feature_extractor=nn.Sequential(features),
            flatten=nn.Flatten(),
            classifier=nn.Sequential(classifier),
        )
    )
