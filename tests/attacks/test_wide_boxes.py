"""Boxes that are far wider than the inputs and the radius, such as one of +-1e30 for inputs without limits."""

import pytest
import torch
from torch import nn

from atent.attacks import DDN, FAB, FMN, PGD, SAPF, Langevin, SigmaZero, Square
from atent.testing.attack_case import within
from atent.threat import Threat

WIDE = (-1e30, 1e30)
EPS = {"linf": 0.3, "l2": 1.5, "l1": 6.0, "l0": 4, "patch": 1}
SIDE = {"linf": None, "l2": None, "l1": None, "l0": None, "patch": 2}
ATTACKS = {
    PGD: {"steps": 3}, Langevin: {"steps": 3}, FAB: {"steps": 3}, FMN: {"steps": 5}, DDN: {"steps": 5},
    Square: {"queries": 20}, SigmaZero: {"steps": 5},
}  # fmt: skip


@pytest.fixture
def problem():
    g = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.ReLU(), nn.Linear(16, 3)).eval()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g) / 4)
    x = torch.randn(6, 3, 4, 4, generator=g)
    return net, x, net(x).argmax(1)


def beyond(x, norm):
    """The samples with a change of twice the radius, in more units or elements than allowed."""
    out = x.clone()
    change = {"linf": 0.6, "l2": 3.0, "l1": 12.0}.get(norm, 1.0)
    if norm in ("l0", "patch"):
        out += change
    else:
        out[:, 0, 0, 0] += change
    return out


@pytest.mark.parametrize("norm", EPS)
def test_a_point_beyond_the_radius_is_outside_whatever_the_box(norm, problem):
    """Before: in a box of +-1e30 every point within it was inside the ball of linf, l2 and l1."""
    _, x, _ = problem
    threat = Threat(norm, EPS[norm], WIDE, side=SIDE[norm])
    assert not threat.contains(beyond(x, norm), x).any()
    assert threat.contains(x, x).all()


def test_the_change_inside_a_patch_is_held_whatever_the_box(problem):
    _, x, _ = problem
    threat = Threat("patch", 1, WIDE, side=2, inner="linf", inner_eps=0.1)
    near, far = x.clone(), x.clone()
    near[:, :, :2, :2] += 0.05
    far[3:, :, :2, :2] += 0.2
    assert threat.contains(near, x).all()
    assert threat.contains(far, x).tolist() == [True] * 3 + [False] * 3


@pytest.mark.parametrize("norm", ["linf", "l2", "l1"])
def test_rounding_of_large_inputs_is_allowed_for(norm, problem):
    """A coordinate near 1000 is rounded by 3e-5."""
    _, x, _ = problem
    x, threat = x + 1000, Threat(norm, EPS[norm], WIDE)
    z = x + 10 * torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    assert threat.contains(threat.project(z, x), x).all()


@pytest.mark.parametrize(
    ("cls", "norm"), [(cls, norm) for cls in ATTACKS for norm in cls.norms], ids=lambda v: getattr(v, "__name__", v)
)
def test_an_attack_is_finite_and_within_the_radius(cls, norm, problem):
    """Before: minimum-norm attacks, and FAB in AutoAttack, returned points beyond eps as successes."""
    net, x, y = problem
    threat = Threat(norm, EPS[norm], WIDE, side=SIDE[norm])
    out = cls(threat, **ATTACKS[cls]).run(net, x, y)
    assert out.x_adv.isfinite().all()
    assert (threat.distance(out.x_adv, x) <= EPS[norm] * (1 + 2e-6)).all()


def test_the_square_attack_does_not_depend_on_a_box_that_never_binds(problem):
    """Before: its pattern was divided by the width of the box, and in l2 nothing changed."""
    net, x, y = problem
    near, far = (Square(Threat("l2", 1.5, box), queries=30)(net, x, y) for box in ((-100, 100), WIDE))
    assert torch.equal(near, far)
    assert (Threat("l2", 1.5).distance(far, x) > 1.4).all()
    each = Threat("l2", [0.0, *[1.5] * 5], WIDE)
    some = Square(each, queries=30)(net, x, y)
    assert torch.equal(some[0], x[0])
    assert some.isfinite().all()


def test_a_box_whose_squared_width_overflows_is_refused_by_the_attack_that_needs_it(problem):
    """Before: it ended in NaN inputs, and named the gradients of the network as the cause."""
    with pytest.raises(
        ValueError, match=r"^SAPF weighs squared widths of the box, .*\[-1e\+30, 1e\+30\].*range of the"
    ):
        SAPF(Threat("l0", 4, WIDE))
    net, x, y = problem
    assert SAPF(Threat("l0", 4, (-1e18, 1e18)), steps=3, final_steps=3)(net, x, y).isfinite().all()


@pytest.mark.parametrize("norm", ["linf", "l2", "l1", "patch"])
def test_a_projected_point_is_within_its_threat_in_a_box_of_any_size(norm):
    """Before: beyond 1, and just above a power of two, the rounding of the radius was not allowed for."""
    for seed in range(150):
        g = torch.Generator().manual_seed(seed)
        top, below, small, share = torch.rand(4, generator=g, dtype=torch.float64).tolist()
        top = 10 ** (6 * top - 3)
        low, eps = -below * top, (1 + below) * top * max(share / 2, 1e-3)
        more = {"side": 2, "inner": "linf", "inner_eps": eps} if norm == "patch" else {}
        threat = Threat(norm, 1 if norm == "patch" else eps, (low, top), **more)
        x = threat.clamp((low + (top - low) * torch.rand(4, 3, 6, 6, generator=g)) * 10 ** (-4 * round(small)))
        for far in (0.01, 0.3, 3.0):
            z = threat.project(x + far * top * torch.randn(x.shape, generator=g), x)
            assert threat.contains(z, x).all(), (seed, far)
            within(threat, z, x, float(threat.eps))
