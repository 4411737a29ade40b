"""Networks without shortcuts."""

from .base import Layout

ADVERTORCH_MNIST = Layout("advertorch's LeNet5Madry, LeNet5 and MLP", renames=((r"^linear(\d)\.", r"fc\1."),))

WONG = Layout(
    "the Sequential of Wong and Kolter's convex_adversarial and of fast_adversarial",
    renames=((r"^0\.", "conv1."), (r"^2\.", "conv2."), (r"^5\.", "fc1."), (r"^7\.", "fc2.")),
)

_CNN7 = ("conv1", "bn1", "", "conv2", "bn2", "", "conv3", "bn3", "", "conv4", "bn4", "", "conv5", "bn5", "", "", "fc1",
         "bn6", "", "fc2")  # fmt: skip
CTRAIN = Layout(
    "CTRAIN's CNN7_Shi",
    renames=tuple((rf"^layers\.{index}\.", f"{name}.") for index, name in enumerate(_CNN7) if name),
)
