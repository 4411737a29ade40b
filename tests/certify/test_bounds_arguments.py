"""The arguments of the layers and functions of a forward pass, whichever of them its code names."""

import pytest
import torch
from bound_networks import encloses, inputs, shuffled
from test_bounds_refused import refused
from torch import nn
from torch.nn import functional as F

from atent.certify import bounds, read
from atent.threat import Threat


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1)

    def forward(self, z):
        return F.relu(self.conv(z))


class Net(nn.Module):
    """A network of inputs (1, 4, 4) whose middle part, of (4, 4, 4), is given by a test."""

    def __init__(self, middle):
        super().__init__()
        self.middle = middle
        self.conv, self.mix, self.up = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.ConvTranspose2d(4, 4, 1)
        self.block, self.relu, self.fc = Block(), nn.ReLU(inplace=True), nn.LazyLinear(3)
        self.square, self.kernel = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4, 4, 1, 1))
        self.gain = nn.Parameter(torch.ones(4))
        self.register_buffer("shift", torch.full((4, 1, 1), 0.3))

    def forward(self, x):
        return self.fc(self.middle(self, self.conv(x)).flatten(1))


def net_of(middle):
    net = Net(middle)
    net(torch.zeros(1, 1, 4, 4))
    return shuffled(net)


NAMED = {
    "a layer": (lambda m, z: m.mix(input=z), lambda m, z: m.mix(z)),
    "a block": (lambda m, z: m.block(z=z), lambda m, z: m.block(z)),
    "a function with weights": (
        lambda m, z: F.linear(bias=None, weight=m.square, input=z),
        lambda m, z: F.linear(z, m.square),
    ),
    "a convolution": (lambda m, z: F.conv2d(weight=m.kernel, input=z), lambda m, z: F.conv2d(z, m.kernel)),
    "a sum": (lambda m, z: torch.add(other=m.mix(z), input=z), lambda m, z: z + m.mix(z)),
    "a method's other operand": (lambda m, z: z.add(other=m.mix(z)), lambda m, z: z + m.mix(z)),
    "a difference": (lambda m, z: torch.sub(z, other=m.mix(z)), lambda m, z: z - m.mix(z)),
    "a constant": (lambda m, z: torch.sub(other=z, input=m.shift), lambda m, z: m.shift - z),
    "a number": (lambda m, z: torch.div(torch.mul(input=z, other=3), other=2), lambda m, z: z * 3 / 2),
    "an activation": (lambda m, z: torch.sigmoid(input=torch.relu(input=z)), lambda m, z: torch.sigmoid(F.relu(z))),
    "an absolute value": (lambda m, z: torch.abs(input=torch.neg(input=z)), lambda m, z: abs(-z)),
    "a clamp": (lambda m, z: torch.clamp(max=0.5, input=z, min=-1), lambda m, z: z.clamp(-1, 0.5)),
    "a mean": (lambda m, z: torch.mean(dim=(2, 3), input=z), lambda m, z: z.mean((2, 3))),
    "a mean by the names of numpy": (
        lambda m, z: z.mean(axis=(2, 3), keepdims=True),
        lambda m, z: z.mean((2, 3), keepdim=True),
    ),
    "pooling": (lambda m, z: F.avg_pool2d(kernel_size=2, input=z), lambda m, z: F.avg_pool2d(z, 2)),
    "a new shape": (lambda m, z: torch.reshape(shape=(-1, 64), input=z), lambda m, z: z.reshape(-1, 64)),
    "a view": (lambda m, z: z.view(size=(-1, 8, 8)), lambda m, z: z.view(-1, 8, 8)),
    "a vector": (lambda m, z: torch.flatten(start_dim=1, input=z), lambda m, z: z.flatten(1)),
}


@torch.no_grad()
@pytest.mark.parametrize("name", NAMED)
def test_a_named_argument_is_read_as_one_in_its_place(name):
    """Before: refused, as a layer or a function that acts on no activation or is not supported."""
    named, placed = map(net_of, NAMED[name])
    x, threat = inputs((1, 4, 4)), Threat("linf", 0.03)
    for one, other in zip(bounds(named, x, threat), bounds(placed, x, threat), strict=True):
        assert torch.equal(one, other)


SHAPED = {
    "view": lambda m, z: z * m.gain.view(1, 4, 1, 1),
    "index": lambda m, z: (z - m.gain[:, None, None]) / m.square[0][None, :, None, None],
    "names": lambda m, z: torch.add(input=z, other=torch.reshape(input=m.gain, shape=(4, 1)).unsqueeze(dim=-1)),
}


@pytest.mark.parametrize("name", SHAPED)
def test_a_parameter_is_read_in_another_shape(name):
    """Before: refused, as a view or an index of the input that bounds cannot read."""
    net = net_of(SHAPED[name])
    graph, x = read(net), inputs((1, 4, 4))
    encloses(net, x, Threat("linf", 0.03), "crown", 20)
    before = bounds(graph, x, Threat("linf", 0.0))[0]
    with torch.no_grad():
        net.gain.mul_(2)
        torch.testing.assert_close(bounds(graph, x, Threat("linf", 0.0))[0], net(x), rtol=0, atol=1e-10)
        assert not torch.allclose(before, net(x))


MULTIPLES = {
    "of an activation": lambda m, z: torch.add(z, F.relu(m.mix(z)), alpha=-0.7),
    "of an activation, subtracted": lambda m, z: z.sub(F.relu(m.mix(z)), alpha=0.7),
    "of a constant": lambda m, z: torch.sub(F.relu(z), m.shift, alpha=0.7),
    "added to a constant": lambda m, z: torch.sub(m.shift, F.relu(z), alpha=0.7),
}


@pytest.mark.parametrize("name", MULTIPLES)
def test_a_multiple_is_added(name):
    encloses(net_of(MULTIPLES[name]), inputs((1, 4, 4)), Threat("linf", 0.03), "crown", 20)


EVAL = {
    "alpha": (nn.AlphaDropout(), lambda m, z: F.alpha_dropout(z, 0.5, m.training), (4,)),
    "channels by alpha": (
        nn.FeatureAlphaDropout(),
        lambda m, z: F.feature_alpha_dropout(z, training=m.training),
        (4, 1),
    ),
    "no elements": (nn.Dropout(0.0), lambda m, z: F.dropout(input=z, p=0.0), (4,)),
    "elements": (nn.Dropout(), lambda m, z: torch.dropout(input=z, p=0.5, train=m.training), (4,)),
    "channels of one dimension": (nn.Dropout1d(), lambda m, z: F.dropout1d(z, 0.5, m.training), (4, 1)),
    "channels of two dimensions": (nn.Dropout2d(), lambda m, z: F.dropout2d(z, 0.5, m.training), (4, 1, 1)),
    "channels of three": (nn.Dropout3d(), lambda m, z: F.dropout3d(z, training=m.training), (4, 1, 1, 1)),
    "slopes": (nn.RReLU(0.1, 0.6), lambda m, z: F.rrelu(z, 0.1, 0.6, training=m.training), (4,)),
}


class Around(nn.Module):
    """Linear layers around one whose input has a given shape."""

    def __init__(self, middle, shape=(4,)):
        super().__init__()
        self.first, self.last, self.shape = nn.Linear(4, 4), nn.Linear(4, 3), shape
        self.middle = middle if isinstance(middle, nn.Module) else lambda z: middle(self, z)

    def forward(self, z):
        z = self.first(z)
        return self.last(self.middle(z if self.shape == (4,) else z.view(-1, *self.shape)).flatten(1))


@pytest.mark.parametrize("form", [0, 1], ids=["layer", "function"])
@pytest.mark.parametrize("name", EVAL)
def test_what_is_random_in_training_alone_is_bounded_in_eval_mode(name, form):
    """Before: most of these dropouts and the randomised ReLU were not supported."""
    net = shuffled(Around(EVAL[name][form], EVAL[name][2]))
    encloses(net, inputs((4,)), Threat("linf", 0.03), "crown", 20)


def test_what_stays_random_in_eval_mode_is_refused_by_that():
    for middle in (lambda m, z: F.dropout(z), lambda m, z: F.alpha_dropout(z, training=True)):
        refused(lambda f=middle: read(net_of(f)), "random numbers in eval mode too", "training=self.training")
    refused(lambda: read(Around(nn.RReLU()).train(), training=True), "middle (RReLU)", "not a fixed function")


@pytest.mark.parametrize(
    ("middle", "parts"),
    [
        (lambda m, z: m.up(z, output_size=(4, 4)), ["up (ConvTranspose2d)", "output_size"]),
        (lambda m, z: m.mix(z=z), ["mix (Conv2d)", "other arguments than its own"]),
        (lambda m, z: torch.div(z, 2, rounding_mode="floor"), ["div", "rounding_mode"]),
        (lambda m, z: torch.add(z, z, out=z), ["add", "out"]),
        (lambda m, z: z * m.gain.exp().view(4, 1, 1), ["exp", "weights or buffers alone", "__init__"]),
        (lambda m, z: z.flatten(), ["flatten", "arguments", "use flatten(1)"]),
        (lambda m, z: z.mean(), ["mean", "arguments", "dimensions of a sample"]),
        (lambda m, z: z.mean((0, 1)), ["mean", "a dimension of the samples"]),
        (lambda m, z: torch.clamp(z, min=m.mix(z)), ["clamp", "limits that are not numbers"]),
        (lambda m, z: F.linear(input=z, weight=z), ["linear", "weights that depend on the input"]),
        (lambda m, z: m.relu(input=m.block(z)) + m.block.conv(z), None),
        (lambda m, z: (lambda a: m.relu(input=a) + a)(m.mix(z)), ["relu (ReLU)", "inplace=False"]),
    ],
)
def test_an_argument_that_bounds_cannot_read_is_named(middle, parts):
    """Before: `output_size` was ignored, and the position of an activation was read as the limit of a clamp."""
    net = Net(middle)
    net.fc = nn.Linear(64, 3)
    net.eval()
    if parts is None:
        read(net)
    else:
        refused(lambda: read(net), *parts)


@pytest.mark.parametrize(
    ("middle", "parts"),
    [
        (lambda m, z: z.flip(-4), ["flip: ", "a dimension of the samples", "use others"]),
        (lambda m, z: z.repeat(1, 1, 1, 1, 2), ["repeat: ", "one for each dimension"]),
        (lambda m, z: F.pad(z, (0, 0, 0, 0, 0, 0, 1, 1)), ["pad: ", "includes the samples"]),
        (lambda m, z: z[:, :2] + z, ["add: ", "sums of shapes (2, 4, 4) and (4, 4, 4)"]),
        (lambda m, z: z[:, :1] * m.shift, ["mul: ", "constants of shape (4, 1, 1)", "expand the values first"]),
        (lambda m, z: F.pixel_shuffle(z.unsqueeze(1), 1), ["pixel_shuffle: ", "channels, height, width"]),
    ],
)
def test_what_the_shape_of_values_does_not_allow_is_refused_with_the_name_of_its_step(middle, parts):
    """Before: a network of many layers was refused without a word where."""
    net = Net(middle)
    net.fc = nn.Linear(64, 3)
    net = net.double().eval()
    refused(lambda: bounds(net, inputs((1, 4, 4)), Threat("linf", 0.03)), *parts)
