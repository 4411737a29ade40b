"""Functions and methods that bounds refuse: changes in place, the samples, casts, and what only looks alike."""

import math
import operator

import pytest
import torch
from bound_forms import net_of
from bound_networks import encloses, inputs
from test_bounds_refused import refused
from torch import fx, nn
from torch.nn import functional as F

from atent.certify import bounds, copies, read
from atent.threat import Threat


@pytest.mark.parametrize(
    "view",
    [
        lambda a: a.unsqueeze(1),
        lambda a: a[:, None],
        lambda a: a.squeeze(1),
        lambda a: a.permute(0, 2, 3, 1),
        lambda a: a.transpose(1, 2),
        lambda a: a.movedim(1, 2),
        lambda a: a.select(1, 0),
        lambda a: a.narrow(1, 0, 2),
        lambda a: a.chunk(2, 1)[0],
        lambda a: a.split(2, 1)[1],
        lambda a: a.tensor_split(2, 1)[0],
        lambda a: a.unbind(1)[0],
        lambda a: a.flatten(2),
        lambda a: a.unflatten(1, (2, 2)),
        lambda a: a.expand(-1, 4, -1, -1),
        lambda a: a.double(),
        lambda a: a.to(torch.float64),
        lambda a: a.type_as(a),
        lambda a: torch.positive(a),
    ],
)
def test_a_change_of_a_view_that_is_read_again_is_refused(view):
    """A view that went unseen would give the bounds of a network without its change in place."""

    def first(m, z):
        a = m.mix(z)
        view(a).relu_()
        return a

    def second(m, z):
        a = m.mix(z)
        b = view(a)
        a.sub_(0.1)
        return b

    for middle in (first, second):
        refused(lambda middle=middle: read(net_of(middle, 64)), "changes in place what the network reads again later")


def statements(m, z):
    """Changes in place whose result is not named again."""
    z.mul_(2)
    a = m.mix(z)
    a += z
    turned = a.mT  # a view, which the trace takes where it is used
    a.sub_(0.1)
    b = turned.reshape(-1, 64)
    b.add_(0.3)
    m.own(b)
    return b


@pytest.mark.parametrize("own", [nn.ReLU(inplace=True), nn.Dropout(inplace=True)], ids=["ReLU", "Dropout"])
def test_a_statement_that_changes_a_value_in_place_is_read(own):
    """Before: refused, as a change of what is read again."""
    x, threat = inputs((1, 4, 4)), Threat("linf", 0.03)
    net = net_of(statements, 64)
    twin = net_of(lambda m, z: m.own((m.mix(2 * z) + 2 * z - 0.1).transpose(2, 3) + 0.3), 64)
    net.own, twin.own = own.eval(), own
    encloses(net, x, threat, "crown", 20)
    with torch.no_grad():
        for mine, other in zip(bounds(net, x, threat), bounds(twin, x, threat), strict=True):
            torch.testing.assert_close(mine, other, rtol=0, atol=1e-9)


@pytest.mark.parametrize("later", [lambda a, b: a, lambda a, b: torch.cat([a.flatten(1), b], 1)[:, :64]])
def test_a_statement_that_changes_a_view_in_place_is_refused_where_the_value_is_read(later):
    def middle(m, z):
        a = m.mix(z)
        b = a.view(-1, 64)
        b.relu_()
        return later(a, b)

    refused(lambda: read(net_of(middle, 64)), "changes in place what the network reads again later")


def attribute(m, z):
    a = m.mix(z)
    turned = a.mT
    turned *= m.shift
    return a


def later_size(m, z):
    a = m.mix(z)
    sizes = a.shape  # which the trace takes where it is used
    a.unsqueeze_(1)
    return a.view(-1, sizes[1], 16)


def later_view(m, z):
    a = m.mix(z)
    turned = a.mT
    a.transpose_(2, 3)
    return torch.cat([a, turned], 1)[:, :4]


@pytest.mark.parametrize("middle", [attribute, later_size, later_view])
def test_a_change_in_place_is_refused_where_an_attribute_is_changed_or_taken_later(middle):
    """Before: the first was read as a new tensor, and the others' attributes as those of the changed value."""
    refused(lambda: read(net_of(middle, 64)), "changes in place what the network reads again later")


@pytest.mark.parametrize(
    "change",
    [
        lambda a: operator.iadd(a[:, 1:], a[:, :-1]),
        lambda a: a[:, 1:].sub_(a[:, :-1], alpha=2),
        lambda a: a.narrow(3, 1, 3).add_(other=a.narrow(3, 0, 3)),
        lambda a: operator.isub(a.view(-1, 8, 8)[:, 2:], a.view(-1, 8, 8)[:, :-2]),
    ],
)
def test_a_slice_that_is_changed_by_another_slice_of_the_same_memory_is_refused(change):
    """Before: read as if no entry were written before it is read."""
    refused(lambda: read(net_of(lambda m, z: change(m.mix(z)), 48)), "in place", "another slice or view", "x = x + y")


def test_a_sum_in_place_with_what_dropout_returns_is_read():
    def middle(m, z):
        a = m.mix(z)
        out = F.dropout(a, 0.5, m.training)
        out += a
        return out

    encloses(net_of(middle), inputs((1, 4, 4)), Threat("linf", 0.03), "crown", 20)


def test_a_number_that_is_computed_from_a_size_leaves_the_size_as_it_is():
    """Before: `more` was read as a new value of `count`."""

    def middle(m, z):
        more = count = z.size(1)
        more *= 2
        return z.view(-1, count, 16)

    encloses(net_of(middle), inputs((1, 4, 4)), Threat("linf", 0.03), "crown", 20)


def test_a_copy_may_be_changed_in_place():
    def middle(m, z):
        a = m.mix(z)
        return torch.cat([a.clone().sub_(0.1).relu_(), a], 1)

    encloses(net_of(middle), inputs((1, 4, 4)), Threat("linf", 0.03), "crown", 20)


SAMPLES = {
    "sum": lambda m, z: z.sum(0),
    "sum of all": lambda m, z: z.sum(),
    "mean, counted from the last": lambda m, z: z.mean(-4, keepdim=True),
    "mean of all by no dimension": lambda m, z: z.mean(()),
    "squeeze": lambda m, z: z.squeeze(),
    "squeeze of the first": lambda m, z: z.squeeze(0),
    "unsqueeze": lambda m, z: z.unsqueeze(0),
    "unsqueeze, counted from the last": lambda m, z: z.unsqueeze(-5),
    "index": lambda m, z: z[None],
    "permute": lambda m, z: z.permute(1, 0, 2, 3),
    "permute, counted from the last": lambda m, z: z.permute(-1, -2, -3, -4),
    "transpose": lambda m, z: z.transpose(-4, 2),
    "transpose of a matrix": lambda m, z: z.flatten(1).mT,
    "movedim": lambda m, z: z.movedim(0, 1),
    "select": lambda m, z: z.select(0, 0),
    "narrow": lambda m, z: z.narrow(-4, 0, 1),
    "flatten": lambda m, z: z.flatten(0, 1),
    "flatten, counted from the last": lambda m, z: z.flatten(-4, -3),
    "unflatten": lambda m, z: z.unflatten(0, (1, -1)),
    "chunk": lambda m, z: z.chunk(2)[0],
    "unbind, counted from the last": lambda m, z: z.unbind(-4)[0],
    "hstack of one value each": lambda m, z: torch.hstack([z[:, 0, 0, 0], z[:, 0, 0, 1]]),
    "stack": lambda m, z: torch.stack([z, z]),
    "view by another size": lambda m, z: z.view(z.size(1), -1),
    "view by the size of a weight": lambda m, z: z.view(m.gain.size(0), -1),
    "view by a multiple of the samples": lambda m, z: z.view(z.size(0) * 4, -1),
    "view by a multiple of the samples twice": lambda m, z: z.view(z.size(0), z.size(0) * 16),
    "view by all sizes": lambda m, z: z.view(-1, math.prod(z.shape[:])),
    "flip": lambda m, z: z.flip(0),
    "flip, counted from the last": lambda m, z: z.flip(3, -4),
    "roll": lambda m, z: z.roll(1, -4),
    "roll of all": lambda m, z: torch.roll(z, 1),
    "repeat": lambda m, z: z.repeat(2, 1, 1, 1),
    "repeat by the samples": lambda m, z: z.repeat(z.size(0), 1, 1, 1),
    "repeat each": lambda m, z: z.repeat_interleave(2, 0),
    "repeat each of all": lambda m, z: z.repeat_interleave(2),
    "expand": lambda m, z: z[:, :1].expand(4, 4, 4, 4),
    "expand to channels by the samples": lambda m, z: z[:, :1].expand(-1, z.size(0), -1, -1),
    "view by the samples twice": lambda m, z: z.view(z.size(0), z.size(0), -1),
}


@pytest.mark.parametrize("name", SAMPLES)
def test_what_acts_on_the_samples_is_refused(name):
    net = net_of(SAMPLES[name], 64)
    # As many samples as channels: torch itself finds no fault with a view by the wrong one of the two.
    with pytest.raises(
        ValueError, match=r"sample|use squeeze\(dim\)|use view|use flatten|index|use repeat|a fixed number|own sizes"
    ) as error:
        bounds(net, inputs((1, 4, 4), n=4), Threat("linf", 0.03), "ibp")
    assert "\n" not in str(error.value)


def relu6(z):
    return z * z


def absolute(z):
    return z.relu()


fx.wrap("relu6")
fx.wrap("absolute")

REFUSED = {
    "a function of another library": (lambda m, z: relu6(z), [".relu6", "not supported"]),
    "one in place of a view": (lambda m, z: absolute(z), [".absolute", "not supported"]),
    "the arguments in another order": (
        lambda m, z: torch.batch_norm(
            z, m.bn1.weight, m.bn1.bias, m.bn1.running_mean, m.bn1.running_var, False, 0.1, 1e-5, False
        ),
        ["torch.batch_norm", "not supported"],
    ),
    "batch statistics": (
        lambda m, z: F.batch_norm(z, m.bn1.running_mean, m.bn1.running_var, training=True),
        ["batch_norm", "training=self.training"],
    ),
    "another output": (lambda m, z: torch.cat([z, z], 1, out=m.shift.clone()), ["cat", "other things"]),
    "a mean in another dtype": (lambda m, z: z.mean((2, 3), dtype=torch.float64), ["mean", "arguments"]),
    "a lower dtype": (lambda m, z: z.half().double(), ["half"]),
    "a cast to a lower dtype": (lambda m, z: z.to(torch.bfloat16), ["to", "a cast to torch.bfloat16", "float64"]),
    "two dtypes": (lambda m, z: z.float().double(), ["casts to torch.float32 and torch.float64"]),
    "weights cast as the input is": (lambda m, z: F.linear(z, m.square.type_as(z)), ["linear", "weights that depend"]),
    "a window of another image": (lambda m, z: F.avg_pool2d(m.mix(z), z.size()[2:]), ["avg_pool2d", "arguments"]),
    "sizes in another order": (lambda m, z: F.avg_pool2d(z, (z.size(3), z.size(2))), ["avg_pool2d", "arguments"]),
    "a number that is no size": (lambda m, z: z * (z.size(1) + 1), ["mul", "computes with a size"]),
    "sizes of two": (lambda m, z: z.view(-1, z.size(1) * m.mix(z).size(2) * 4), ["mul", "computes with a size"]),
    "sizes of another": (lambda m, z: z.view(-1, m.mix(z).size(1) * 16), ["view", "x's own sizes"]),
    "a threshold with a jump": (lambda m, z: F.threshold(z, 0.1, 0), ["threshold", "use equal ones"]),
    "celu": (lambda m, z: F.celu(z, -2.0), ["celu", "alpha -2.0", "use a positive number"]),
    "slopes that depend on the input": (lambda m, z: F.prelu(z, z[0, :, 0, 0]), ["index"]),
    "repeats of further dimensions": (
        lambda m, z: z.repeat(1, 1, 1, 1, 1),
        ["5 repeats", "4 dimensions", "one for each"],
    ),
    "repeats by numbers of their own": (
        lambda m, z: z.repeat_interleave(m.gain, 1),
        ["repeat_interleave", "use repeat"],
    ),
    "sizes of further dimensions": (lambda m, z: z.expand(-1, 1, 4, 4, 4), ["5 sizes", "4 dimensions", "one for each"]),
    "an enlargement by means": (
        lambda m, z: F.interpolate(z, scale_factor=2, mode="bilinear"),
        ["interpolate", "'bilinear'", "use nearest"],
    ),
    "pixels of images without channels": (lambda m, z: F.pixel_unshuffle(z[:, 0], 2), ["(4, 4)", "(channels"]),
    "a constant in the shape of an activation": (
        lambda m, z: z[:, :, 0] + m.square.expand_as(z)[:, :, 0],
        ["getitem", "the shape of an activation", "call expand_as last"],
    ),
    "a bias that is no vector": (lambda m, z: F.linear(z, m.square, m.gain.view(1, 4)), ["bias", "(1, 4)", "a vector"]),
    "a scale in place of a flag": (lambda m, z: torch._C._nn.elu(z, 1.0, 2.0), ["elu", "arguments"]),
    "a view of more than a sample": (lambda m, z: z.view(-1, 2, 2, 2), ["64 values", "(2, 2, 2)"]),
    "a vector": (lambda m, z: z @ m.gain, ["product", "shape (4,)", "use a matrix"]),
    "a linear map to one number": (lambda m, z: F.linear(z, m.gain), ["product", "shape (4,)", "use a matrix"]),
    "a matrix first": (lambda m, z: m.square @ z, ["matmul", "a constant before its input"]),
    "two activations": (lambda m, z: torch.max(z, m.mix(z)), ["max", "use max(x, constant)"]),
    "a maximum over channels": (lambda m, z: z.max(1)[0], ["max", "use max(x, constant)"]),
    "parts at once": (lambda m, z: z.chunk(2, 1)[:1], ["getitem", "several parts", "x.chunk(2, 1)[0]"]),
    "a part by a size": (lambda m, z: z.split(z.size(1) // 2, 1)[0], ["split", "computes with a size"]),
    "a norm": (lambda m, z: F.layer_norm(z, (4, 4, 4)), ["layer_norm", "divides by the spread", "batch-norm"]),
    "images without channels": (lambda m, z: F.max_pool2d(z[:, 0], 2), ["(4, 4)", "(channels, height, width)"]),
    "an average of images without channels": (lambda m, z: F.avg_pool2d(z[:, 0], 2), ["(4, 4)", "(channels"]),
    "the number of samples": (lambda m, z: z.view(len(z), -1), ["len(x)", "use x.shape[0]"]),
    "a loop over sizes": (lambda m, z: z.view(-1, max(z.shape[1:]), 4), ["a loop over sizes", "use x.flatten(1)"]),
    "parts in a list": (lambda m, z: torch.cat([*z.chunk(2, 1)], 1), ["a loop over sizes or parts"]),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_read_is_named_with_its_reason(name):
    middle, parts = REFUSED[name]
    net = net_of(middle, 64)
    refused(lambda: bounds(net, inputs((1, 4, 4), n=1), Threat("linf", 0.03)), *parts)


class Centred(nn.Conv2d):
    def _conv_forward(self, z, weight, bias):
        return super()._conv_forward(z, weight - weight.mean(), bias)


class Halved(nn.Conv2d):
    def _conv_forward(self, z, weight, bias):
        return super()._conv_forward(z / 2, weight, bias)


def test_a_convolution_of_its_own_is_read_from_its_code():
    """Before: read as the convolution of torch that it is a subclass of."""
    net = net_of(lambda m, z: m.own(z), 64)
    net.own = Centred(4, 4, 1).double().eval()
    refused(lambda: read(net), "own (Centred)", "weights or buffers alone")
    net.own = Halved(4, 4, 1).double().eval()
    encloses(net, inputs((1, 4, 4)), Threat("linf", 0.03), "crown", 20)


def test_a_square_window_is_the_image_of_square_images_alone():
    net = net_of(lambda m, z: (lambda a: F.avg_pool2d(a, a.size(2)))(z[:, :, :2]))
    refused(lambda: bounds(net, inputs((1, 4, 4)), Threat("linf", 0.03)), "square window", "(2, 4)")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_cast_is_read_in_a_network_of_its_dtype(dtype):
    cast = {torch.float32: lambda z: z.float(), torch.float64: lambda z: z.double()}
    x, threat = inputs((1, 4, 4)).to(dtype), Threat("linf", 0.03)
    (another,) = set(cast) - {dtype}
    net, other = (net_of(lambda m, z, of=of: cast[of](z).relu(), 64).to(dtype) for of in (dtype, another))
    encloses(net, x, threat, "crown", 20)
    for mine, twin in zip(bounds(net, x, threat), bounds(net_of(nn.ReLU()).to(dtype), x, threat), strict=True):
        assert torch.equal(mine, twin)
    refused(lambda: bounds(other, x, threat), f"casts to {another}", f"its weights are {dtype}")
    graph = read(net)
    net.to(another)
    refused(lambda: bounds(graph, x.to(another), threat), f"casts to {dtype}")


def test_sizes_that_are_no_images_or_depend_on_rounding_are_refused():
    """By rounding, torch's kernels for CPUs differ between dtypes from 2 to 82 values."""
    move = copies.nearest(lambda z: z[:, :, :2] if z.dtype == torch.float32 else z[:, :, 1:])
    refused(lambda: move(torch.rand(2, 1, 3)), "(3,)", "(2,)", "whole scale factor")
    rows = nn.Sequential(nn.ChannelShuffle(2), nn.Flatten(), nn.Linear(8, 3)).eval()
    refused(lambda: bounds(rows, torch.rand(2, 2, 4), Threat("linf", 0.1)), "a shuffle of values", "(2, 4)")
    net = nn.Sequential(nn.Upsample(6), nn.Linear(6, 3)).eval()
    refused(lambda: bounds(net, torch.rand(2, 2), Threat("linf", 0.1)), "(2,)", "(channels, length)")


@pytest.mark.parametrize("threshold", [100.0, math.inf, math.nan])
def test_a_softplus_whose_exponential_overflows_is_refused(threshold):
    assert nn.Softplus(1.0, 100.0)(torch.tensor(90.0)).isinf()
    net = nn.Sequential(nn.Linear(3, 3), nn.Softplus(1.0, threshold)).eval()
    refused(lambda: read(net), "1 (Softplus)", f"threshold {threshold}", "up to 80")
