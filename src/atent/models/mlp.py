"""A fully connected network, for tables and small images."""

from __future__ import annotations

import math
from collections import OrderedDict

from torch import nn

from atent.models.registry import model

HIDDEN = 64


@model
def mlp(*, classes: int = 10, shape: tuple[int, ...] = (1, 8, 8)) -> nn.Sequential:
    """Two hidden layers of 64 ReLUs on the flattened input.

    (n, d) or (n, c, h, w) to (n, classes) logits. 8,970 parameters for (1, 8, 8) and 10 classes. No batch-norm and no
    dropout, so that certified training applies.
    """
    return nn.Sequential(
        OrderedDict(
            flatten=nn.Flatten(),
            hidden1=nn.Linear(math.prod(shape), HIDDEN), relu1=nn.ReLU(),
            hidden2=nn.Linear(HIDDEN, HIDDEN), relu2=nn.ReLU(),
            output=nn.Linear(HIDDEN, classes),
        )
    )  # fmt: skip
