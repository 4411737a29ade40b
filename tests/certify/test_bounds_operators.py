"""Bounds of further layers and functions: copies, convolutions, activations."""

import copy
import itertools

import mpmath
import pytest
import torch
from bound_networks import EPS, METHOD, NORM, encloses, inputs, shuffled
from torch import nn
from torch.nn import functional as F

from atent.certify import METHODS, bounds, margins, read, smooth, verified
from atent.certify.affine import plain
from atent.models import build
from atent.models.resnet import PaddedBlock, ResNet
from atent.threat import Threat

FUNCTIONS = {
    **{k: v for k, v in vars(smooth).items() if isinstance(v, smooth.Smooth)},
    "ELU 0.3": smooth.elu(0.3),
    "ELU 2": smooth.elu(2.0),
}
SMOOTH = pytest.mark.parametrize("f", FUNCTIONS.values(), ids=FUNCTIONS)


class Net(nn.Module):
    """A network of inputs (1, 4, 4) whose middle part, of (4, 4, 4), is given by a test."""

    def __init__(self, middle, width):
        super().__init__()
        self.conv, self.middle, self.fc = nn.Conv2d(1, 4, 3, padding=1), middle, nn.Linear(width, 3)
        self.square, self.kernel = nn.Parameter(torch.zeros(4, 4)), nn.Parameter(torch.zeros(4, 2, 3, 3))
        self.oblong, self.offset = nn.Parameter(torch.zeros(3, 4)), nn.Parameter(torch.zeros(3))

    def forward(self, x):
        return self.fc(self.middle(self, self.conv(x)).flatten(1))


MIDDLES = {
    "option A": (lambda m, z: F.pad(F.relu(z)[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1)), 24),
    "cat": (lambda m, z: torch.cat([F.relu(z), -z, z.mul(0)], 1), 192),
    "cat of places": (lambda m, z: torch.cat((z[:, :, 1:], F.relu(z)), dim=-2), 112),
    "cat by names": (lambda m, z: torch.cat(tensors=[z[:, 1:], F.relu(z)], axis=1), 112),
    "absolute": (lambda m, z: z.abs(), 64),
    "index": (lambda m, z: F.relu(z)[:, 2, ..., -1], 4),
    "negative relu": (lambda m, z: -F.relu(-z) + z, 64),
    "linear": (lambda m, z: F.linear(F.relu(z), m.square, bias=None), 64),
    "linear to other columns": (lambda m, z: F.relu(F.linear(z, m.oblong, m.offset)), 48),
    "unused": (lambda m, z: (-z, F.relu(z))[0], 64),
    "conv2d": (lambda m, z: F.conv2d(F.relu(z), m.kernel, stride=2, padding=1, groups=2), 16),
    "shapes": (lambda m, z: F.relu(z.view(z.size(0), 8, 8)).mean(-1).reshape(-1, 2, 2, 2), 8),
    "leaky": (lambda m, z: F.leaky_relu(z, 0.2), 64),
    "clamp": (lambda m, z: z.clamp(-0.3, 0.4) + z.clamp(min=0.1) - torch.clamp(z, max=0.2), 64),
    "relu6": (lambda m, z: F.relu6(8 * z + 3), 64),
    "sigmoid": (lambda m, z: torch.sigmoid(3 * z), 64),
    "tanh": (lambda m, z: (2 * z).tanh(), 64),
    "silu": (lambda m, z: F.silu(3 * z - 1), 64),
    "gelu": (lambda m, z: F.gelu(2 * z), 64),
    "gelu by tanh": (lambda m, z: F.gelu(2 * z, approximate="tanh"), 64),
    "elu": (lambda m, z: F.elu(z), 64),
}


@METHOD
@NORM
@pytest.mark.parametrize("middle", MIDDLES.values(), ids=MIDDLES)
def test_bounds_enclose_all_outputs(middle, norm, method):
    encloses(shuffled(Net(*middle)), inputs((1, 4, 4)), Threat(norm, EPS[norm]), method, 50)


def layers():
    return nn.Sequential(
        nn.Conv1d(2, 4, 3, stride=2, padding=1, groups=2), nn.SiLU(), nn.Conv1d(4, 4, 3, dilation=2, padding=2),
        nn.BatchNorm1d(4), nn.LeakyReLU(), nn.Unflatten(1, (2, 2)),
        nn.ConvTranspose2d(2, 3, (2, 3), stride=2, padding=1),
        nn.GELU(), nn.ZeroPad2d((1, 0, 2, 1)), nn.Hardtanh(), nn.Flatten(),
        nn.Linear(3 * 5 * 10, 3), nn.Sigmoid(),
    )  # fmt: skip


@METHOD
@NORM
def test_layers_of_one_and_two_dimensions(norm, method):
    encloses(shuffled(layers()), inputs((2, 10)), Threat(norm, EPS[norm]), method, 50)


UNUSUAL = {
    "average, padded": nn.AvgPool2d(3, 2, 1),
    "average of a rectangle": nn.AvgPool2d((1, 3), (2, 1), (0, 1)),
    "average with gaps": nn.AvgPool2d(2, 3),
    "average by another divisor": nn.AvgPool2d(2, divisor_override=3),
    "maximum, padded": nn.MaxPool2d(3, 2, 1),
    "maximum of a rectangle": nn.MaxPool2d((2, 3), (1, 2), (1, 1)),
    "maximum, dilated": nn.MaxPool2d(2, 1, dilation=2),
    "batch norm without affine": nn.BatchNorm2d(4, affine=False, eps=0.5),
    "convolution of a rectangle": nn.Conv2d(4, 6, (1, 3), (2, 1), (0, 2), (1, 2), groups=2),
    "convolution with gaps": nn.Conv2d(4, 4, 1, 3),
    "transposed, dilated groups": nn.ConvTranspose2d(4, 4, (2, 3), (3, 2), (1, 0), (1, 0), groups=4, dilation=(2, 1)),
}


@METHOD
@pytest.mark.parametrize("layer", UNUSUAL.values(), ids=UNUSUAL)
def test_unusual_windows_are_bounded(layer, method):
    layers = nn.Conv2d(2, 4, 3, padding=1), copy.deepcopy(layer), nn.ReLU(), nn.Flatten()
    x = inputs((2, 6, 6), n=2)
    width = nn.Sequential(*layers).double().eval()(x).shape[1]
    encloses(shuffled(nn.Sequential(*layers, nn.Linear(width, 3))), x, Threat("linf", EPS["linf"]), method, 20)


@pytest.mark.parametrize("layer", UNUSUAL.values(), ids=UNUSUAL)
def test_intervals_of_an_unusual_window_are_exact(layer):
    """An entry of the layer is smallest where each pixel is at the end of its interval that its derivative asks for."""
    layer = shuffled(copy.deepcopy(layer))
    x, threat = inputs((4, 5, 5), n=1), Threat("linf", 0.07)
    low, high = (x - 0.07).clamp(0, 1), (x + 0.07).clamp(0, 1)
    flat = nn.Sequential(layer, nn.Flatten()).eval()
    lower, upper = bounds(flat, x, threat, "ibp")
    if isinstance(layer, nn.MaxPool2d):
        ends = flat(low), flat(high)
    else:
        slope = torch.autograd.functional.jacobian(flat, x)[0, :, 0]
        ends = [
            torch.cat([flat(torch.where(each > 0, one, other))[:, k] for k, each in enumerate(slope)])[None]
            for one, other in ((low, high), (high, low))
        ]
    assert (lower - ends[0]).abs().max() < 1e-12
    assert (upper - ends[1]).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_network_of_option_a_is_bounded(dtype):
    """Residual blocks whose shortcuts take every second pixel and add channels of zeros, one at each size."""
    net = ResNet(1, (4, 8, 12), (1, 1, 1), 4, PaddedBlock).eval().to(dtype)
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
    threat = Threat("linf", 1e-3)
    for method in METHODS:
        lower, upper = bounds(net, x, threat, method)
        d = 1e-3 * torch.randn(30, 2, 1, 8, 8, generator=torch.Generator().manual_seed(1)).sign().to(dtype)
        z = net(threat.project((x + d).flatten(0, 1), x.repeat(30, 1, 1, 1))).view(30, 2, 4)
        assert ((lower <= z) & (z <= upper)).all()
        assert method in ("ibp", "crown-ibp") or ((upper - lower) < 1).all()


@pytest.mark.slow
def test_all_of_resnet20_with_option_a_is_bounded():
    net, x = build("resnet20_a").eval(), torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    lower, upper = bounds(net, x, Threat("linf", 1e-4), "crown-ibp")
    z = net(x)
    assert ((lower <= z) & (z <= upper)).all()


# -- the parts


@pytest.mark.parametrize("middle", ["option A", "cat of places", "index", "shapes", "conv2d", "linear"])
def test_the_way_back_is_the_adjoint(middle):
    """<a, W z> = <W^T a, z> of every affine node."""
    net = shuffled(Net(*MIDDLES[middle]))
    g, x = torch.Generator().manual_seed(0), inputs((1, 4, 4))
    nodes, values = read(net).nodes, [x]
    for node in nodes[1:]:
        z = values[node.inputs[0]]
        if node.kind != "affine":
            values.append(torch.cat([values[k] for k in node.inputs], node.op) if node.kind == "cat" else z.relu())
            continue
        out = node.op.apply(z, plain)
        a = torch.randn(3, 2, *out.shape[1:], generator=g, dtype=torch.float64)
        back = node.op.transpose(a, z.shape[1:])
        sides = (a * out[:, None]).flatten(2).sum(2), (back * z[:, None]).flatten(2).sum(2)
        size = (a.abs() * node.op.apply(z.abs(), torch.abs)[:, None]).flatten(2).sum(2)
        assert ((sides[0] - sides[1]).abs() <= 1e-13 * (1 + size)).all()
        values.append(out)


@pytest.mark.parametrize("f", [F.relu6, F.hardtanh, lambda z: F.leaky_relu(z, 0.1), lambda z: z.clamp(0.2, 0.7)])
def test_intervals_of_one_piecewise_linear_activation_are_exact(f):
    class One(nn.Module):
        def forward(self, x):
            return f(9 * x - 2)

    x = torch.linspace(0, 1, 22, dtype=torch.float64).view(-1, 2)
    lower, upper = bounds(One().eval(), x, Threat("linf", 0.07), "ibp")
    ends = [f(9 * (x + d).clamp(0, 1) - 2) for d in (-0.07, 0.07)]
    assert (lower - ends[0]).abs().max() < 1e-12
    assert (upper - ends[1]).abs().max() < 1e-12


def test_lines_of_a_leaky_relu_are_those_of_its_triangle():
    """Exact enumeration: the least value of one unit's function over its interval is found by CROWN where it is
    concave, and lies on the lower hull elsewhere."""
    net = nn.Sequential(nn.Linear(2, 2), nn.LeakyReLU(0.1), nn.Linear(2, 2)).double().eval()
    net[0].weight.data, net[0].bias.data = torch.eye(2).double(), torch.tensor([-0.5, -0.5]).double()
    net[2].weight.data, net[2].bias.data = torch.tensor([[-1.0, -1.0], [0.0, 0.0]]).double(), torch.zeros(2).double()
    x = torch.full((1, 2), 0.5, dtype=torch.float64)
    below = margins(net, x, torch.tensor([0]), Threat("linf", 0.5), "crown")[0, 1]
    corners = torch.tensor(list(itertools.product([0.0, 1.0], repeat=2)), dtype=torch.float64)
    exact = (net(corners)[:, 0] - net(corners)[:, 1]).min()
    assert exact - 1e-12 < below <= exact


@SMOOTH
@pytest.mark.parametrize("rounding", [False, True])
def test_smooth_functions_lie_between_their_lines_and_in_their_intervals(f, rounding):
    g = torch.Generator().manual_seed(0)
    size = 10 ** (4 * torch.rand(2000, generator=g, dtype=torch.float64) - 2.5)
    ends = torch.randn(2, 2000, generator=g, dtype=torch.float64) * size
    # Narrow, empty, far away and wide boxes too.
    lower, upper = ends.amin(0), ends.amax(0)
    upper[:100], upper[100:200] = lower[:100], lower[100:200] + 1e-9
    lower[200:250], upper[250:300] = -1e4, 1e4
    slope, below, above = smooth.lines(f, lower, upper, rounding=rounding)
    low, high = smooth.interval(f, lower, upper)
    share = torch.cat([torch.tensor([0.0, 1.0]), torch.rand(400, generator=g)]).double()[:, None]
    z = (lower + share * (upper - lower)).clamp(lower, upper)
    z = torch.cat(
        [
            z,
            *(
                torch.full((1, 2000), p).double().clamp(lower, upper)
                for p in (-3, -2.4, -1.5, -1.28, -1.19, -0.75, 0, 1.4, 3)
            ),
        ]
    )
    value = f.value(z)
    slack = 4e-16 * (1 + z.abs() + value.abs()) * (0 if rounding else 8)
    assert (slope * z + below <= value + slack).all()
    assert (value <= slope * z + above + slack).all()
    assert (low <= value + 4e-16 * (1 + value.abs())).all()
    assert (value <= high + 4e-16 * (1 + value.abs())).all()
    # Both lines touch the function, so that neither can move inwards.
    middle = slice(300, None)
    gap = torch.stack([value - slope * z - below, slope * z + above - value])[:, :, middle].amin(1)
    assert (gap <= 1e-4 * (1 + (upper - lower)[middle]) ** 2).all()


@SMOOTH
def test_the_numbers_of_a_smooth_function(f):
    """Turning points and the least value, by mpmath in 30 digits."""
    mpmath.mp.dps = 30
    c = mpmath.sqrt(2 / mpmath.pi)
    # Klambauer et al. 2017, who give them with 16 digits.
    alpha, scale = mpmath.mpf("1.6732632423543772"), mpmath.mpf("1.0507009873554805")
    exact = {
        "SIGMOID": lambda z: 1 / (1 + mpmath.exp(-z)),
        "TANH": mpmath.tanh,
        "SILU": lambda z: z / (1 + mpmath.exp(-z)),
        "GELU": lambda z: z * (1 + mpmath.erf(z / mpmath.sqrt(2))) / 2,
        "GELU_TANH": lambda z: z * (1 + mpmath.tanh(c * (z + mpmath.mpf("0.044715") * z**3))) / 2,
        "ELU": lambda z: z if z > 0 else mpmath.expm1(z),
        "ELU 0.3": lambda z: z if z > 0 else mpmath.mpf(0.3) * mpmath.expm1(z),
        "ELU 2": lambda z: z if z > 0 else 2 * mpmath.expm1(z),
        "SELU": lambda z: scale * (z if z > 0 else alpha * mpmath.expm1(z)),
        "MISH": lambda z: z * mpmath.tanh(mpmath.log1p(mpmath.exp(z))),
        "HARDSWISH": lambda z: z * min(max(z + 3, 0), 6) / 6,
        "SOFTPLUS": lambda z: mpmath.log1p(mpmath.exp(z)),
        "SOFTSIGN": lambda z: z / (1 + abs(z)),
        "TANHSHRINK": lambda z: z - mpmath.tanh(z),
    }[next(k for k, v in FUNCTIONS.items() if v is f)]
    for place in set(f.inflections) - set(f.jumps):
        assert abs(mpmath.diff(exact, place, 2)) < 1e-9
    if f.lowest is not None:
        place, least = f.lowest
        assert abs(mpmath.diff(exact, place)) < 1e-9
        assert exact(mpmath.findroot(lambda z: mpmath.diff(exact, z), place)) - 1e-9 < least
        assert least < exact(mpmath.findroot(lambda z: mpmath.diff(exact, z), place))
    for z in (-8.0, -2.1, -0.6, 0.3, 1.5, 7.0):
        found = float(f.derivative(torch.tensor(z, dtype=torch.float64)))
        assert abs(found - mpmath.diff(exact, z)) < 1e-14 * (1 + abs(z))
        for dtype in (torch.float32, torch.float64):
            value = float(f.value(torch.tensor(z, dtype=dtype)))
            given = mpmath.mpf(float(torch.tensor(z, dtype=dtype)))
            size = abs(exact(given)) if f.bounded else max(abs(exact(given)), abs(given))
            assert abs(value - exact(given)) <= smooth.ULPS / 2 * torch.finfo(dtype).eps / 2 * size


@SMOOTH
def test_the_derivative_is_monotone_between_its_inflections_and_keeps_its_limits(f):
    ends = (-40.0, *f.inflections, 40.0)
    for start, stop in itertools.pairwise(ends):
        change = f.derivative(torch.linspace(start + 1e-9, stop - 1e-9, 20_001, dtype=torch.float64)).diff()
        assert (change >= -1e-13).all() or (change <= 1e-13).all()
    slopes = f.derivative(torch.linspace(-40, 40, 80_001, dtype=torch.float64))
    assert -0.5 <= slopes.min() <= slopes.max() <= smooth.STEEPEST
    for place in f.jumps:
        before, after = f.derivative(torch.tensor([place - 1e-9, place + 1e-9], dtype=torch.float64))
        assert abs(before - after) > 0.1


@pytest.mark.parametrize("threshold", [20.0, 2.0, 0.0, -1.5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_softplus_that_becomes_linear_lies_within_its_bounds(threshold, dtype):
    """At the threshold torch's function jumps, by 0.13 at 2."""
    net = nn.Sequential(nn.Linear(1, 2), nn.Softplus(2.0, threshold), nn.Linear(2, 2)).to(dtype).eval()
    net[0].weight.data, net[0].bias.data = torch.eye(2)[:, :1].to(dtype), torch.zeros(2, dtype=dtype)
    net[2].weight.data, net[2].bias.data = torch.tensor([[1.0, 0], [-1, 0]]).to(dtype), torch.zeros(2, dtype=dtype)
    x = torch.full((1, 1), 0.5, dtype=dtype)
    net[0].bias.data[0] = threshold / 2 - 0.5  # 2 z is the threshold at x = 0.5
    grid = torch.linspace(0, 1, 4001, dtype=dtype)[:, None]
    for eps in (1e-6, 0.5):
        inside = (grid - 0.5) * 2 * eps + 0.5
        for method in METHODS:
            lower, upper = bounds(net, x, Threat("linf", eps), method)
            with torch.no_grad():
                assert ((lower <= net(inside)) & (net(inside) <= upper)).all()


@SMOOTH
def test_float32_keeps_to_its_roundings(f):
    z = torch.cat([torch.linspace(-30, 30, 200_001), torch.logspace(-6, 2, 20_001), -torch.logspace(-6, 2, 20_001)])
    exact, found = f.value(z.double()), f.value(z).double()
    size = exact.abs() if f.bounded else torch.maximum(exact.abs(), z.double().abs())
    allowed = smooth.ULPS / 2 * 2.0**-24 * size + smooth.ULPS * torch.finfo(torch.float32).tiny
    assert ((found - exact).abs() <= allowed).all()


@SMOOTH
def test_lines_can_be_trained_through(f):
    lower = torch.tensor([-2.0, -0.3, 0.4, -3.1], dtype=torch.float64, requires_grad=True)
    upper = torch.tensor([1.0, -0.1, 2.5, 3.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda a, b: smooth.lines(f, a, b, rounding=False), (lower, upper), atol=1e-6)


@SMOOTH
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_the_derivative_of_a_line_is_that_of_the_end_it_passes_through(f, dtype):
    """Before: bisection that ended one rounding before an end gave the derivative of a fixed place, in up to 4 % of the
    boxes."""
    g = torch.Generator().manual_seed(0)
    lower = (3 * torch.randn(2000, generator=g)).double()
    ends = lower, lower + 1 + 6 * torch.rand(2000, generator=g).double()

    def offsets(a, b):
        return smooth.lines(f, a, b, rounding=False)[1:]

    mine = [end.to(dtype).requires_grad_() for end in ends]
    step = 1e-6
    for number, found in enumerate(offsets(*mine)):
        for place, derivative in enumerate(torch.autograd.grad(found.sum(), mine, retain_graph=True)):
            up, down = (
                offsets(*(end.to(dtype).double() + way * (k == place) for k, end in enumerate(ends)))[number]
                for way in (step, -step)
            )
            # A wrong one is off by the slope there less that of the line, a large part of 1.
            assert (derivative - (up - down) / (2 * step)).abs().max() < 1e-2


def test_certified_training_moves_a_network_with_smooth_units():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.SiLU(), nn.Linear(8, 3)).double().eval()
    x, y = inputs((1, 4, 4), n=8), torch.arange(8) % 3
    optimizer = torch.optim.Adam(net.parameters(), 0.05)
    before = None
    for _ in range(30):
        below = margins(net, x, y, Threat("linf", 0.01), "crown-ibp")
        loss = F.cross_entropy(-below, y)
        before = loss.item() if before is None else before
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.5 * before


@pytest.mark.parametrize("method", METHODS)
def test_sums_that_cancel_in_float32(method):
    """Certificates of a float32 network whose logits are differences of large numbers: none is false in float64."""
    g = torch.Generator().manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(), nn.Linear(16, 32), nn.Sigmoid(), nn.Linear(32, 32), nn.LeakyReLU(), nn.Linear(32, 3)
    )
    half = 1e3 * torch.randn(3, 16, generator=g)
    net[1].weight.data[16:], net[1].bias.data[16:] = net[1].weight.data[:16], net[1].bias.data[:16]
    net[3].weight.data, net[3].bias.data = torch.eye(32), torch.rand(32, generator=g)
    net[3].bias.data[16:] = net[3].bias.data[:16]
    net[5].weight.data = torch.cat([half, -half], 1)
    net.eval()
    x, labels, threat = torch.rand(40, 1, 4, 4, generator=g), torch.zeros(40, dtype=torch.long), Threat("linf", 1e-7)
    net[5].bias.data.zero_()
    net[5].bias.data[1:] = margins(net, x, labels, threat, method).detach()[:, 1:].median(0).values
    found = verified(net, x, labels, threat, method)
    lower, upper = bounds(net, x, threat, method)
    for dtype in (torch.float32, torch.float64):
        z = net.to(dtype)(x.to(dtype)).double()
        assert ((lower.double() <= z) & (z <= upper.double())).all()
        assert (z[found, :1] > z[found, 1:]).all()
    assert found.any()


@pytest.mark.parametrize(
    ("net", "parts"),
    [
        (nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), ["1 (LayerNorm)", "batch-norm", "smoothing"]),
        (nn.Sequential(nn.Conv2d(1, 4, 3), nn.GroupNorm(2, 4)), ["1 (GroupNorm)", "batch-norm"]),
        (nn.Sequential(nn.ConstantPad2d(1, 0.5)), ["0 (ConstantPad2d)", "0.5", "zeros"]),
    ],
)
def test_refused(net, parts):
    with pytest.raises(ValueError, match=r".") as error:
        read(net.eval())
    assert all(part in str(error.value) for part in parts), error.value
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "middle",
    [
        lambda m, z: z[:2],
        lambda m, z: z[z > 0],
        lambda m, z: torch.cat([z, z]),
        lambda m, z: torch.cat([z, m.square.expand(1, 4, 4, 4)], 1),
        lambda m, z: torch.cat(z.chunk(2, 1), 1),
        lambda m, z: F.pad(z, (1, 1), mode="circular"),
        lambda m, z: F.pad(z, (0,) * 6 + (1, 1)),
        lambda m, z: z.clamp(z, z),
        lambda m, z: F.linear(z, z),
        lambda m, z: F.avg_pool2d(m.conv(z[:, :1]), z.size()[2:]),
        lambda m, z: F.max_pool2d(z, z.shape[-1]),
        lambda m, z: F.conv2d(z, m.kernel, stride=z.size(2), groups=2),
        lambda m, z: z.view(z.size(0), m.conv(z[:, :1]).size(1) * 16),
        lambda m, z: z / z.size(1),
    ],
)
def test_code_that_is_refused(middle):
    with pytest.raises(ValueError, match=r".") as error:
        bounds(Net(middle, 64).eval(), torch.rand(2, 1, 4, 4), Threat("linf", 0.1), "ibp")
    assert "\n" not in str(error.value)


def test_projections_are_for_networks_of_relus():
    from atent.certify.projection import estimated_margins

    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3)).double().eval()
    x, y = torch.rand(2, 4, dtype=torch.float64), torch.tensor([0, 1])
    with pytest.raises(ValueError, match=r"network of ReLUs alone, got 1 \(Tanh\)"):
        estimated_margins(net, x, y, Threat("linf", 0.1), 5, torch.Generator())


@NORM
@METHOD
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Upsample(scale_factor=1.1), (2, 2)),
        (nn.Upsample(scale_factor=1.3), (1, 7)),
        (nn.Upsample(scale_factor=(0.6, 1.7), mode="nearest-exact"), (2, 4, 3)),
        (nn.Upsample(size=(5, 2)), (2, 4, 3)),
        (nn.Upsample(scale_factor=2.1, recompute_scale_factor=True), (1, 2, 2, 2)),
    ],
)
def test_nearest_values_are_those_of_the_forward_pass(layer, shape, norm, method):
    """At a scale such as 1.1 torch's derivative belongs to other entries than its values."""
    width = layer(torch.zeros(1, *shape))[0].numel()
    net = shuffled(nn.Sequential(layer, nn.Flatten(), nn.Linear(width, 6), nn.ReLU(), nn.Linear(6, 3)))
    encloses(net, inputs(shape), Threat(norm, 0.1), method, random=50)


def test_a_network_read_once_has_gradients_after_a_call_in_inference_mode():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Upsample(scale_factor=2), nn.Flatten(), nn.Linear(32, 3)).eval()
    graph, x, threat = read(net), torch.rand(2, 1, 4, 4), Threat("linf", 0.1)
    with torch.inference_mode():
        bounds(graph, x, threat, check=False)
    margins(graph, x, torch.tensor([0, 1]), threat).sum().backward()
    assert net[0].weight.grad.abs().max() > 0
