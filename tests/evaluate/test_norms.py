"""Accuracies, curves and quantiles of the norms that minimum-norm attacks find."""

import math
from statistics import median

import pytest
import torch
from minimum_norm import FREE

from atent.attacks.ddn import DDN
from atent.evaluate import norms as nm
from atent.threat import Threat


def test_robust_accuracy_is_counted_by_hand():
    norms = torch.tensor([0.3, 0.0, math.inf, 0.1, 0.3, 2.0, 0.0, 0.5])
    radii = torch.tensor([0.0, 0.05, 0.1, 0.29, 0.3, 1.0, 2.0, 100.0])
    expected = [sum(v > r for v in norms.tolist()) / 8 for r in radii.tolist()]
    assert nm.robust_accuracy(norms, radii).tolist() == expected
    assert expected[0] == 0.75
    assert expected[-1] == 0.125
    found = nm.curve(norms.double())
    assert found.radii == pytest.approx([0.0, 0.1, 0.3, 0.5, 2.0])
    assert found.accuracy == [0.75, 0.625, 0.375, 0.25, 0.125]
    assert nm.curve(torch.tensor([math.inf])) == ([0.0], [1.0])
    assert nm.curve(torch.zeros(2)) == ([0.0], [0.0])


def test_quantiles_are_radii_at_which_so_many_fall():
    g = torch.Generator().manual_seed(0)
    for n in (1, 2, 7, 10, 30):
        norms = torch.rand(n, generator=g, dtype=torch.float64)
        norms[norms > 0.8] = math.inf
        for share in (1e-10, 0.01, 0.1, 0.25, 0.3, 0.5, 0.9, 1.0):
            q = nm.quantile(norms, share)
            assert int((norms <= q).sum()) >= share * n - 1e-9
            smaller = norms[norms < q]
            assert len(smaller) < max(share * n - 1e-9, 1)
    assert nm.median(torch.tensor([3.0, 1.0, 2.0])) == median([3.0, 1.0, 2.0])
    assert nm.median(torch.tensor([1.0, math.inf, math.inf])) == math.inf
    assert nm.median(torch.tensor([1.0, 2.0, math.inf, math.inf])) == 2.0


def test_norms_come_from_outcomes(conv_net, batch):
    model, (x, y) = conv_net(), batch(20)
    eps = 0.5
    free = DDN(FREE["l2"], steps=30).run(model, x, y)
    bounded = DDN(Threat("l2", eps), steps=30).run(model, x, y)
    found = nm.found_norms(bounded)
    assert torch.equal(found, torch.where(free.norm <= eps, free.norm, math.inf))
    assert 0 < found.isinf().sum() < 20
    standing = nm.robust_accuracy(found, torch.tensor([0.0, eps]))
    assert standing[0] == (model(x).argmax(1) == y).double().mean()
    assert standing[1] == (~bounded.success).double().mean()


@pytest.mark.parametrize("norms", [torch.zeros(0), torch.zeros(2, 2), torch.tensor([1.0, math.nan]), -torch.ones(1)])
def test_no_norms_are_refused_in_one_line(norms):
    for ask in (nm.curve, nm.median, lambda v: nm.robust_accuracy(v, torch.zeros(1))):
        with pytest.raises(ValueError, match="norms must be") as error:
            ask(norms)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("share", [0.0, 1.5, -1.0, math.nan])
def test_shares_are_shares(share):
    with pytest.raises(ValueError, match=r"share must lie in \(0, 1\]"):
        nm.quantile(torch.ones(3), share)
