"""alpha-CROWN: sound for all slopes, never looser than CROWN, and an ascent that increases the bound."""

from functools import partial
from itertools import pairwise, product

import pytest
import torch
from torch import nn

from atent import Threat
from atent.certify import bounds, margins, verified
from atent.certify.bounds import prepare
from atent.certify.hidden import hidden_layers
from atent.certify.linear import back, form, least
from atent.certify.slopes import ascended, with_slopes
from atent.testing import check_certifier

THREATS = [Threat("linf", 0.2), Threat("l2", 0.4)]
IDS = ["linf", "l2"]


def made(seed=0):
    """A network of three inputs, in which about half of the units are undecided, and four samples."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 4)).double().eval()
    return net, torch.rand(4, 3, dtype=torch.float64)


def points(x, threat, steps=9):
    """A grid over each sample's box, with its corners, cut to the ball: (m, n, 3)."""
    eps = float(threat.eps)
    grid = torch.tensor(
        list(product(torch.linspace(-eps, eps, steps, dtype=x.dtype).tolist(), repeat=3)), dtype=x.dtype
    )
    if threat.norm == "l2":
        grid = grid * (eps / grid.norm(dim=1, keepdim=True).clamp_min(eps))
    return (x + grid[:, None]).clamp(0, 1)


@pytest.mark.parametrize("threat", THREATS, ids=IDS)
def test_the_bounds_enclose_all_points_of_a_grid_and_are_tighter_than_crown(threat):
    net, x = made()
    with torch.no_grad():
        (lower, upper), (low, high) = (bounds(net, x, threat, m) for m in ("alpha-crown", "crown"))
        answers = net(points(x, threat).flatten(0, 1)).view(-1, *lower.shape)
    assert (lower <= answers.amin(0)).all()
    assert (upper >= answers.amax(0)).all()
    assert (lower >= low).all()
    assert (upper <= high).all()
    assert float((upper - lower).mean()) < 0.98 * float((high - low).mean())


@pytest.mark.parametrize("threat", THREATS, ids=IDS)
def test_margins_are_never_below_those_of_crown_and_more_steps_lower_none(threat):
    net, x = made(1)
    y = net(x).argmax(1)
    with torch.no_grad():
        found = [margins(net, x, y, threat, "alpha-crown", steps=n) for n in (0, 1, 5, 20)]
        assert torch.equal(found[0], margins(net, x, y, threat, "crown"))
        for less, more in pairwise(found):
            # The best slopes are chosen without rounding, and evaluated with it.
            assert (more >= less - 1e-12).all()
        assert (found[-1] > found[0] + 1e-6).any()
        answers = net(points(x, threat).flatten(0, 1)).view(-1, len(x), 4)
    apart = answers.gather(2, y.expand(len(answers), -1)[..., None]) - answers
    assert (found[-1] <= apart.amin(0)).all()


def slow_alpha_crown(net, x, eps, steps):
    """The bounds of one sample's logits in linf, with dense matrices: intervals and CROWN for the hidden layers (Zhang
    et al. 2018), then for each bound its own slopes by Adam, of which the best of all steps count (Xu et al. 2021)."""
    (w1, b1), (w2, b2), (w3, b3) = ((m.weight.detach(), m.bias.detach()) for m in net[::2])
    left, right = (x - eps).clamp(0, 1), (x + eps).clamp(0, 1)

    def ends(w, b, low, high):
        up, down = w.clamp(min=0), w.clamp(max=0)
        return up @ low + down @ high + b, up @ high + down @ low + b

    def lines(low, high):
        """Whether a unit is undecided, its slopes below and above, and the offset above."""
        both = (low < 0) & (high > 0)
        above = torch.where(both, high / (high - low), (low >= 0).double())
        return both, torch.where(both, (high > -low).double(), above), above, torch.where(both, -above * low, 0)

    def least(a, c, layers, slopes):
        """The least value of <a, relu(z)> + c, z of the last of the layers, by substitution."""
        for (w, b, (_, _, above, lift)), below in zip(reversed(layers), reversed(slopes), strict=True):
            c = c + a.clamp(max=0) @ lift
            a = a.clamp(min=0) * below + a.clamp(max=0) * above
            c, a = c + a @ b, a @ w
        return c + a.clamp(min=0) @ left + a.clamp(max=0) @ right

    def highest(a, c, layers):
        slopes = [each[2][1].clone().requires_grad_() for each in layers]
        adam, found = torch.optim.Adam(slopes, 0.5, maximize=True), []
        for _ in range(steps + 1):
            adam.zero_grad()
            value = least(a, c, layers, slopes)
            value.backward()
            found.append(value.item())
            for slope, (_, _, (both, *_)) in zip(slopes, layers, strict=True):
                slope.grad *= both
            adam.step()
            adam.param_groups[0]["lr"] *= 0.98
            for slope in slopes:
                slope.data.clamp_(0, 1)
        return max(found)

    first = [(w1, b1, lines(*(box := ends(w1, b1, left, right))))]
    low, high = ends(w2, b2, *(t.clamp(min=0) for t in box))
    for i in range(len(low)):
        if low[i] < 0 < high[i]:
            slopes = [first[0][2][1]]
            below, above = least(w2[i], b2[i], first, slopes), -least(-w2[i], -b2[i], first, slopes)
            low[i], high[i] = max(low[i], below), min(high[i], above)
    layers = [*first, (w2, b2, lines(low, high))]
    low, high = ends(w3, b3, low.clamp(min=0), high.clamp(min=0))
    for i in range(len(low)):
        low[i] = max(float(low[i]), highest(w3[i], b3[i], layers))
        high[i] = min(float(high[i]), -highest(-w3[i], -b3[i], layers))
    return low, high


@pytest.mark.parametrize("steps", [0, 1, 20])
def test_they_are_those_of_a_slow_transcription(steps):
    net, x = made(2)
    with torch.no_grad():
        lower, upper = bounds(net, x[:2], Threat("linf", 0.2), "alpha-crown", steps=steps)
    for i in range(2):
        low, high = slow_alpha_crown(net, x[i], 0.2, steps)
        assert float((lower[i] - low).abs().max()) <= 1e-9
        assert float((upper[i] - high).abs().max()) <= 1e-9


def parts(net, x, threat):
    graph, place = prepare(net, x, None, threat, "alpha-crown", 1024, rounding=False)
    with torch.no_grad():
        boxes, relaxations = hidden_layers(graph, place, "alpha-crown", 1024)
    eye = torch.eye(4, dtype=x.dtype)
    start = form(graph.output, torch.cat([eye, -eye])[None], rounding=False)

    def value(slopes):
        return least(back(graph, start, boxes, with_slopes(relaxations, slopes)), boxes, place)

    return graph, start, boxes, relaxations, place, value


@pytest.mark.parametrize("threat", THREATS, ids=IDS)
def test_any_slopes_are_sound_and_their_gradient_is_the_difference_quotient(threat):
    net, x = made(2)
    _, _, _, relaxations, _, value = parts(net, x, threat)
    g = torch.Generator().manual_seed(3)
    slopes = {
        k: torch.rand(4, 8, *lines[0].shape[1:], generator=g, dtype=torch.float64).requires_grad_()
        for k, lines in relaxations.items()
    }
    found = value(slopes)
    with torch.no_grad():
        answers = net(points(x, threat).flatten(0, 1)).view(-1, 4, 4)
    assert (found[:, :4] <= answers.amin(0)).all()
    assert (-found[:, 4:] >= answers.amax(0)).all()
    gradients = torch.autograd.grad(found.sum(), list(slopes.values()))
    assert max(float(t.abs().max()) for t in gradients) > 1e-3
    way = {k: torch.randn(t.shape, generator=g, dtype=t.dtype) for k, t in slopes.items()}
    want = sum(float((gradient * way[k]).sum()) for k, gradient in zip(slopes, gradients))
    h = 1e-6
    with torch.no_grad():
        sides = [float(value({k: t + sign * h * way[k] for k, t in slopes.items()}).sum()) for sign in (1, -1)]
    # Piecewise smooth: the second difference is of order h within a piece.
    assert (sides[0] - sides[1]) / (2 * h) == pytest.approx(want, rel=1e-4)


def test_the_slopes_stay_within_0_and_1_and_decided_ones_as_they_are():
    net, x = made(3)
    graph, start, boxes, relaxations, place, _ = parts(net, x, THREATS[0])
    slopes = ascended(graph, start, boxes, relaxations, place, 20, torch.float64)
    for k, found in slopes.items():
        box = boxes[graph.nodes[k].inputs[0]]
        decided = ~((box.lower < 0) & (box.upper > 0))
        assert found.min() >= 0
        assert found.max() <= 1
        assert not found.requires_grad
        assert decided.any()
        assert not decided.all()
        before = relaxations[k][0][:, None].expand_as(found)
        assert torch.equal(found.movedim(1, 0)[:, decided], before.movedim(1, 0)[:, decided])
        assert (found.movedim(1, 0)[:, ~decided] != before.movedim(1, 0)[:, ~decided]).any()


@pytest.mark.parametrize("threat", THREATS, ids=IDS)
def test_the_contract_of_certifiers_holds(threat):
    method = {"method": "alpha-crown", "steps": 3}
    assert check_certifier(partial(bounds, **method), verified=partial(verified, **method), threat=threat)


def test_convolutions_in_float32_are_bounded_tighter_where_weights_want_gradients():
    """Slopes are found without a graph; the bound itself keeps that of the weights."""
    torch.manual_seed(4)
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU(), nn.Flatten(),
        nn.Linear(24, 3),
    ).eval()  # fmt: skip
    x, y, threat = torch.rand(3, 1, 8, 8), torch.tensor([0, 1, 2]), Threat("linf", 0.05)
    tight, loose = (margins(net, x, y, threat, m) for m in ("alpha-crown", "crown"))
    assert (tight >= loose).all()
    assert (tight > loose + 1e-4).any()
    tight.sum().backward()
    assert net[0].weight.grad.abs().max() > 0


def test_steps_are_a_whole_number():
    net, x = made()
    with pytest.raises(ValueError, match=r"steps .*-1"):
        bounds(net, x, THREATS[0], "alpha-crown", steps=-1)
