"""Networks without batch-norm or with one for each layer, whose layers published code numbers."""

from .base import Layout

ADVERTORCH_MNIST = Layout("advertorch's LeNet5Madry, LeNet5 and MLP", renames=((r"^linear(\d)\.", r"fc\1."),))

WONG = Layout(
    "the Sequential of Wong and Kolter's convex_adversarial and of fast_adversarial",
    renames=((r"^0\.", "conv1."), (r"^2\.", "conv2."), (r"^5\.", "fc1."), (r"^7\.", "fc2.")),
)

_KW_LARGE = {0: "conv1", 2: "conv2", 4: "conv3", 6: "conv4", 9: "fc1", 11: "fc2", 13: "fc3"}
WONG_LARGE = Layout(
    "the large Sequential of Wong et al.'s convex_adversarial",
    renames=tuple((rf"^{index}\.", f"{name}.") for index, name in _KW_LARGE.items()),
)

# A block is four entries of their DenseSequential: a convolution, a ReLU, the sum of the shortcut and the second
# convolution, a ReLU.
_KW_BLOCKS = {2: "block1", 6: "block2", 10: "block3", 14: "block4"}
WONG_RESNET = Layout(
    "the DenseSequential of Wong et al.'s convex_adversarial, N = 1 and factor 1",
    renames=(
        (r"^0\.", "conv1."), (r"^19\.", "fc1."), (r"^21\.", "fc2."),
        *((rf"^{index}\.Ws\.0\.", f"{name}.conv1.") for index, name in _KW_BLOCKS.items()),
        *((rf"^{index + 2}\.Ws\.0\.", f"{name}.shortcut.") for index, name in _KW_BLOCKS.items()),
        *((rf"^{index + 2}\.Ws\.2\.", f"{name}.conv2.") for index, name in _KW_BLOCKS.items()),
    ),
)  # fmt: skip

_CNN7 = ("conv1", "bn1", "", "conv2", "bn2", "", "conv3", "bn3", "", "conv4", "bn4", "", "conv5", "bn5", "", "", "fc1",
         "bn6", "", "fc2")  # fmt: skip
CTRAIN = Layout(
    "CTRAIN's CNN7_Shi",
    renames=tuple((rf"^layers\.{index}\.", f"{name}.") for index, name in enumerate(_CNN7) if name),
)
