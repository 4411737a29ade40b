"""How the methods of bounds compare, and what they verify."""

import pytest
import torch
from bound_networks import EPS, METHOD, NORM
from torch import nn

from atent.attacks import PGD
from atent.certify import METHODS, bounds, margins, verified
from atent.threat import Threat


@NORM
def test_crown_is_nowhere_looser_than_intervals(norm, trained, batch):
    x, y = batch(5)
    for net in trained.values():
        for eps in (0.2 * EPS[norm], 2 * EPS[norm], 10 * EPS[norm]):
            threat = Threat(norm, eps)
            low, high = bounds(net, x, threat, "ibp")
            lower, upper = bounds(net, x, threat, "crown")
            assert (lower >= low).all()
            assert (upper <= high).all()
            crown, ibp = (margins(net, x, y, threat, m) for m in ("crown", "ibp"))
            assert (crown >= ibp).all()
        assert (lower > low).any()


def test_crown_alone_can_be_looser():
    # Why the better of the two is kept: relu(z) for z in [-1, 1.1] lies above the line z, at -1 its end, and above 0.
    net = nn.Sequential(nn.Linear(1, 1), nn.ReLU(), nn.Linear(1, 2, bias=False)).double().eval()
    with torch.no_grad():
        net[0].weight.fill_(2.1)
        net[0].bias.fill_(-1.0)
        net[2].weight.copy_(torch.tensor([[1.0], [0.0]]))
    x, threat = torch.full((1, 1), 0.5, dtype=torch.float64), Threat("linf", 0.5)
    want = pytest.approx({"ibp": 0.0, "crown-ibp": -1.0, "crown": 0.0, "alpha-crown": 0.0, "dual": -1.1 / 2.1})
    with torch.no_grad():
        assert {method: float(bounds(net, x, threat, method)[0][0, 0]) for method in METHODS} == want
        y = torch.tensor([0])
        assert {method: float(margins(net, x, y, threat, method)[0, 1]) for method in METHODS} == want


def test_margins_are_tighter_than_differences_of_bounds(trained, batch):
    x, y = batch(10)
    for net in trained.values():
        for method in METHODS:
            lower, upper = bounds(net, x, Threat("linf", 0.03), method)
            below = margins(net, x, y, Threat("linf", 0.03), method)
            assert below.gather(1, y[:, None]).abs().max() == 0
            own = torch.eye(10, dtype=torch.bool)[y]
            if method in ("ibp", "dual"):
                assert (below >= lower.gather(1, y[:, None]) - upper - 1e-9)[~own].all()
            assert (below - (lower.gather(1, y[:, None]) - upper))[~own].mean() > 0.01


@pytest.mark.parametrize("method", ["crown", "dual"])
def test_chunks_and_batches_change_nothing(method, trained, batch):
    x, y = batch(3)
    for net in trained.values():
        full = margins(net, x, y, Threat("l2", 0.1), method)
        torch.testing.assert_close(margins(net, x, y, Threat("l2", 0.1), method, chunk=50), full, rtol=1e-9, atol=1e-9)
        single = torch.cat([margins(net, x[i : i + 1], y[i : i + 1], Threat("l2", 0.1), method) for i in range(3)])
        torch.testing.assert_close(single, full, rtol=1e-9, atol=1e-9)


RADII = {
    "ibp": {"linf": 0.002, "l2": 0.006},
    "crown-ibp": {"linf": 0.003, "l2": 0.012},
    "crown": {"linf": 0.03, "l2": 0.18},
    "alpha-crown": {"linf": 0.03, "l2": 0.18},
    "dual": {"linf": 0.03, "l2": 0.15},
}
"""Radii at which a method verifies some of the images and not all."""


@NORM
@METHOD
def test_nothing_verified_falls(norm, method, trained, batch):
    x, y = batch(20)
    for net in trained.values():
        counts = []
        for eps in (RADII[method][norm] / 2, RADII[method][norm] * 2):
            threat = Threat(norm, eps)
            certain = verified(net, x, y, threat, method)
            assert certain.dtype == torch.bool
            counts.append(int(certain.sum()))
            fooled = PGD(threat, steps=20, step_size=eps / 5, loss="margin", restarts=2).run(net, x, y).success
            assert not (certain & fooled).any()
        assert counts[0] > 0
        assert counts[1] < len(x)
        # No sample that the attack breaks is verified.
        wide = Threat(norm, {"linf": 0.15, "l2": 1.0}[norm])
        broken = PGD(wide, steps=10, step_size=float(wide.eps) / 4, loss="margin").run(net, x[:10], y[:10]).success
        assert broken.any()
        assert not (verified(net, x[:10], y[:10], wide, method) & broken).any()


def test_a_wrong_label_is_never_verified(trained, batch):
    x = batch(20)[0]
    net = trained["plain"]
    wrong = (net(x).argmax(1) + 1) % 10
    assert not verified(net, x, wrong, Threat("linf", 0.0)).any()
    right = net(x).argmax(1)
    assert verified(net, x, right, Threat("linf", 0.0)).all()
