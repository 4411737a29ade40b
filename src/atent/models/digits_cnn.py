"""A small network for 8x8 digits, to train in seconds on a CPU."""

from collections import OrderedDict

from torch import nn

from atent.models.activation import activations
from atent.models.registry import model


@model
def digits_cnn(
    *, classes: int = 10, shape: tuple[int, int, int] = (1, 8, 8), activation: str = "relu"
) -> nn.Sequential:  # fmt: skip
    """Three convolutions and two fully connected layers: (n, c, h, w) to (n, classes) logits.

    Not a published network. Convolutions 3x3 to 16 channels, 4x4 with stride 2 to 32 and again to 32, then
    fully connected 128-classes. 42,602 parameters for (1, 8, 8) and 10 classes. Strides in place of
    pooling, and no batch-norm: every layer is affine or ReLU, which suits interval and linear bounds,
    and samples are independent. `activation` is relu, softplus or tanh: the last two make the loss smooth in
    the input, as theory requires, and bounds do not support them. Raises ValueError if h or w is not a
    multiple of 4, and for another activation.
    """
    relu = activations(activation)
    c, h, w = shape
    if h % 4 or w % 4:
        raise ValueError(f"digits_cnn takes inputs with h and w divisible by 4, got shape {tuple(shape)}")
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(c, 16, 3, padding=1), relu1=relu(),
            conv2=nn.Conv2d(16, 32, 4, stride=2, padding=1), relu2=relu(),
            conv3=nn.Conv2d(32, 32, 4, stride=2, padding=1), relu3=relu(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(32 * (h // 4) * (w // 4), 128), relu4=relu(),
            fc2=nn.Linear(128, classes),
        )
    )  # fmt: skip
