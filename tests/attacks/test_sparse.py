"""The attacks on few elements, pixels and patches against closed forms on linear models and slow transcriptions."""

import math

import pytest
import torch
from torch import nn

from atent.attacks.pgd import PGD
from atent.attacks.sapf import SAPF, onto_box, onto_sphere, shrink
from atent.attacks.sigma_zero import SigmaZero, count_slope
from atent.attacks.sparse_pgd import SparsePGD
from atent.attacks.sparse_rs import SparseRS
from atent.attacks.token import TokenAttack
from atent.evaluate.fewest import fewest
from atent.geometry.blocks import largest
from atent.threat import Radii, Threat

QUICK = {"steps": 400, "final_steps": 400}
SHORT = {"steps": 400, "final_steps": 100, "search_steps": 4}


class Linear(nn.Module):
    """Two classes: the margin of the wrong one is <w, x> - b, with w the same for all samples."""

    def __init__(self, w, b):
        super().__init__()
        self.w, self.b = nn.Parameter(w.flatten()), b

    def forward(self, x):
        score = x.flatten(1) @ self.w - self.b
        return torch.stack([torch.zeros_like(score), score], 1)


def problem(shape, n=12, seed=0, scale=3.0):
    """A linear model, inputs in the middle of the box of class 0, their margins, w and the room of each element."""
    g = torch.Generator().manual_seed(seed)
    w = torch.randn(shape, generator=g, dtype=torch.float64)
    x = 0.4 + 0.2 * torch.rand(n, *shape, generator=g, dtype=torch.float64)
    score = (x * w).flatten(1).sum(1)
    model = Linear(w, float(score.max()) + scale)
    room = torch.where(w > 0, 1 - x, x)
    return model, x, torch.zeros(n, dtype=torch.long), model.b - score, w, room


def optimal_count(gain, gap):
    """The fewest of the gains (n, u) that sum to the gap."""
    best = gain.sort(1, descending=True).values.cumsum(1)
    return (best <= gap[:, None]).sum(1) + 1


# -- l0


@pytest.mark.parametrize("k", [pytest.param(3, marks=pytest.mark.slow), 8])
def test_sapf_reaches_the_smallest_l2_change_of_k_elements(k):
    model, x, y, gap, w, room = problem((40,), scale=0.5)
    out = SAPF(Threat("l0", k), **QUICK).run(model, x, y)
    best = gap / w.abs().topk(k).values.norm()
    free = (w.abs().topk(k).values.amin() * 0 + best * w.abs().max() / w.abs().topk(k).values.norm()) < room.min()
    assert free.any()  # the closed form needs a box that is out of the way
    size = (out.x_adv - x).norm(dim=1)
    assert out.success[free].all()
    assert (out.norm == k).all()
    assert (size[free] <= 1.05 * best[free]).all()
    assert (size[free] >= best[free] * (1 - 1e-9)).all()


@pytest.mark.slow
def test_sapf_changes_whole_pixels_and_leaves_the_others_bit_for_bit():
    model, x, y, gap, w, _ = problem((3, 6, 6), scale=0.5)
    out = SAPF(Threat("l0", 4, group="pixel"), **QUICK).run(model, x, y)
    changed = (out.x_adv != x).any(1).flatten(1)
    assert out.success.all()
    assert (changed.sum(1) <= 4).all()
    best = gap / w.flatten(1).norm(dim=0).topk(4).values.norm()
    assert ((out.x_adv - x).flatten(1).norm(dim=1) <= 1.05 * best).all()


@pytest.mark.slow
def test_sapf_with_regions_changes_fewer_of_them():
    # Two regions of like weights: without the group term the places are anywhere.
    g = torch.Generator().manual_seed(0)
    w = 1 + 0.1 * torch.rand(1, 4, 8, generator=g, dtype=torch.float64)
    x = torch.full((1, 1, 4, 8), 0.5, dtype=torch.float64)
    model, y = Linear(w, float((x * w).sum()) + 1.0), torch.zeros(1, dtype=torch.long)
    touched = {}
    for weight in (0.0, 0.5):
        attack = SAPF(Threat("l0", 8), regions="grid", region_side=4, region_weight=weight, **SHORT)
        out = attack.run(model, x, y)
        assert out.success.all()
        touched[weight] = (out.x_adv != x)[0, 0].view(4, 2, 4).any(2).any(0).sum()
    assert touched[0.5] == 1
    assert touched[0.0] == 2


def test_sapf_projections():
    g = torch.Generator().manual_seed(1)
    v = 3 * torch.randn(5, 20, generator=g, dtype=torch.float64)
    sphere = onto_sphere(v)
    assert torch.allclose((sphere - 0.5).norm(dim=1), torch.full((5,), math.sqrt(20) / 2, dtype=torch.float64))
    assert torch.allclose(onto_sphere(sphere), sphere, rtol=0, atol=1e-12)
    assert torch.equal(onto_box(onto_box(v)), onto_box(v))
    binary = (v > 0).double()
    assert torch.equal(onto_box(binary), binary)
    assert torch.allclose(onto_sphere(binary), binary, rtol=0, atol=1e-12)
    centre = torch.full((1, 4), 0.5, dtype=torch.float64)
    assert onto_sphere(centre).isfinite().all()


def test_sapf_shrinks_regions_to_the_minimiser():
    g = torch.Generator().manual_seed(2)
    v, regions = torch.randn(1, 9, generator=g, dtype=torch.float64), torch.arange(9)[None] // 3
    v[0, 6:] *= 0.05

    def cost(u, by):
        groups = torch.stack([u[0, regions[0] == b].norm() for b in range(3)])
        return by * groups.sum() + ((u - v) ** 2).sum() / 2

    found = shrink(v, regions, 0.3)
    assert not found[0, 6:].any()
    for _ in range(200):  # convex: no direction from the minimiser descends
        near = found + 1e-3 * torch.randn(v.shape, generator=g, dtype=torch.float64)
        assert cost(found, 0.3) <= cost(near, 0.3)
    assert torch.equal(shrink(v, regions, 0.0), v)


@pytest.mark.parametrize("shape", [(40,), (3, 5, 5)])
def test_sigma_zero_finds_the_fewest(shape):
    model, x, y, gap, w, room = problem(shape, scale=2.0)
    group = "element" if len(shape) == 1 else "pixel"
    gain = w.abs() * room
    gain = gain.flatten(1) if group == "element" else gain.sum(1).flatten(1)
    best = optimal_count(gain, gap)
    out = SigmaZero(Threat("l0", "inf", group=group), steps=300).run(model, x, y)
    assert out.success.all()
    assert (out.norm >= best).all()
    # One more where the step size, a tenth of the box at the end, cannot tell the last element.
    assert (out.norm <= best + 1).all()
    assert (out.norm == best).double().mean() >= 0.5


def test_sigma_zero_count_slope_is_the_gradient_of_the_count():
    for threat in (Threat("l0", 2), Threat("l0", 2, group="pixel")):
        d = torch.randn(2, 3, 4, 4, dtype=torch.float64, requires_grad=True)
        squares = d**2 if threat.group == "element" else (d**2).sum(1)
        (wanted,) = torch.autograd.grad((squares / (squares + 0.1)).flatten(1).mean(1).sum(), d)
        assert torch.allclose(count_slope(threat.blocks(d.shape[1:]), d.detach(), 0.1), wanted, rtol=1e-12, atol=0)


SPARSE = {
    "sPGD": lambda threat: SparsePGD(threat, steps=100),
    "sPGD projected": lambda threat: SparsePGD(threat, steps=100, gradient="projected", restarts=3),
    "Sparse-RS": lambda threat: SparseRS(threat, queries=1500),
}


@pytest.mark.parametrize("name", SPARSE)
@pytest.mark.parametrize("shape", [(30,), (3, 4, 4)])
def test_sparse_attacks_succeed_where_k_suffices(name, shape):
    model, x, y, gap, w, room = problem(shape, n=24, scale=1.5)
    group = "element" if len(shape) == 1 else "pixel"
    gain = (w.abs() * room).flatten(1) if group == "element" else (w.abs() * room).sum(1).flatten(1)
    best = optimal_count(gain, gap)
    k = int(best.median())
    out = SPARSE[name](Threat("l0", k, group=group)).run(model, x, y)
    assert (out.norm <= k).all()
    assert not out.success[best > k].any()
    assert out.success[best <= k].double().mean() >= 0.9
    assert out.success[best < k].all()


def test_sparse_attacks_take_a_count_per_sample():
    model, x, y, *_ = problem((3, 4, 4), n=6)
    ks = Radii([1, 2, 3, 4, 5, 6])
    for attack in SPARSE.values():
        out = attack(Threat("l0", ks, group="pixel")).run(model, x, y)
        assert (out.norm <= ks.tensor).all()
        one = attack(Threat("l0", 3, group="pixel")).run(model, x[2:3], y[2:3], ids=torch.tensor([2]))
        assert torch.equal(one.x_adv[0], out.x_adv[2])


def test_largest_takes_the_first_of_equal_scores():
    scores = torch.tensor([[1.0, 3.0, 3.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert largest(scores, torch.tensor([2, 1])).tolist() == [[False, True, True, False], [True, False, False, False]]


def test_sparse_rs_exchanges_by_the_schedule():
    attack = SparseRS(Threat("l0", 10), queries=10_000)
    shares = [attack.share(q) for q in (0, 49, 50, 199, 499, 999, 1999, 3999, 5999, 7999, 9999)]
    wanted = [0.8 / d for d in (2, 2, 4, 4, 5, 6, 8, 10, 12, 15, 20)]
    assert shares == pytest.approx(wanted, rel=1e-12)


# -- patches


def grids(v, side=2):
    h, w = v.shape[-2:]
    tiled = v.reshape(*v.shape[:-2], h // side, side, w // side, side).transpose(-3, -2)
    return tiled.reshape(*v.shape[:-3], -1, h // side * (w // side), side * side).transpose(-3, -2).flatten(-2)


@pytest.mark.parametrize("inner", ["free", "linf"])
@pytest.mark.parametrize("score", ["l1", "greedy"])
def test_token_attack_is_optimal_on_a_linear_model(inner, score):
    model, x, y, gap, w, room = problem((2, 6, 6), scale=1.0)
    reach = room if inner == "free" else room.clamp_max(0.1)
    gain = grids(w.abs() * reach)  # (n, patches, elements)
    given = {} if inner == "free" else {"inner": "linf", "inner_eps": 0.1}
    for k in (1, 2, 3):
        out = TokenAttack(Threat("patch", k, side=2, **given), score=score, steps=20).run(model, x, y)
        raised = ((out.x_adv - x) * w).flatten(1).sum(1)
        chosen = grids(w.abs()).sum(-1).topk(k).indices
        assert ((out.norm <= k) & (raised > 0)).all()
        if inner == "linf":
            wanted = gain[:, chosen].sum((1, 2))
            assert torch.allclose(raised[~out.success], wanted[~out.success], rtol=1e-9)
            assert torch.equal(out.success, wanted > gap)


def test_token_scores_differ_where_one_weight_is_large():
    # One patch with a single large weight, another with many equal small ones: l2 prefers the first, l1 the second.
    w = torch.zeros(1, 2, 4, dtype=torch.float64)
    w[0, 0, 0], w[0, :, 2:] = 1.5, 0.6
    x = torch.full((1, 1, 2, 4), 0.5, dtype=torch.float64)
    model, y = Linear(w, float((x * w).sum()) + 10.0), torch.zeros(1, dtype=torch.long)
    threat = Threat("patch", 1, side=2, inner="linf", inner_eps=0.1)
    raised = {s: float(((TokenAttack(threat, score=s)(model, x, y) - x) * w).sum()) for s in ("l2", "l1", "greedy")}
    assert raised["l2"] == pytest.approx(0.15)
    assert raised["l1"] == raised["greedy"] == pytest.approx(0.24)


def test_token_attack_leaves_other_patches_bit_for_bit():
    model, x, y, *_ = problem((2, 6, 6), scale=1.0)
    out = TokenAttack(Threat("patch", 2, side=3), restarts=2).run(model, x, y)
    changed = (out.x_adv != x).any(1).reshape(len(x), 2, 3, 2, 3).any(2).any(3)
    assert (changed.flatten(1).sum(1) <= 2).all()


def test_fewest_patches_by_bisection():
    model, x, y, gap, w, room = problem((2, 6, 6), n=20, scale=2.0)
    gain = grids(w.abs() * room.clamp_max(0.2)).sum(-1)
    by_score = gain.gather(1, grids(w.abs()).sum(-1).argsort(descending=True).expand(len(x), -1))
    wanted = (by_score.cumsum(1) <= gap[:, None]).sum(1).double() + 1
    attack = TokenAttack(Threat("patch", 1, side=2, inner="linf", inner_eps=0.2), score="l1", steps=10)
    found = fewest(model, x, y, attack, most=9)
    assert torch.equal(found, torch.where(wanted > 9, math.inf, wanted))
    assert (found.isfinite() & (found > 1)).any()
    wrong = fewest(model, x, 1 - y, attack, most=9)
    assert not wrong.any()
    with pytest.raises(ValueError, match="counts pixels or patches"):
        fewest(model, x, y, PGD(Threat("linf", 0.1)))


def test_fewest_may_need_all_patches_and_no_more():
    # Only all four patches together cross the gap.
    model, x, y = Linear(torch.ones(1, 4, 4), 15.0), torch.full((1, 1, 4, 4), 0.5), torch.zeros(1, dtype=torch.long)
    attack = TokenAttack(Threat("patch", 1, side=2), score="l1", steps=10)
    assert fewest(model, x, y, attack, most=4).tolist() == [4]
    assert fewest(model, x, y, attack, most=3).tolist() == [math.inf]
    with pytest.raises(ValueError, match=r"^most must be at most the number of patches of a sample, 4, got 5$"):
        fewest(model, x, y, attack, most=5)


def test_fewest_without_a_limit_tries_all_elements():
    model, x, y, *_ = problem((1, 2, 2), n=3, scale=0.1)
    found = fewest(model, x, y, SigmaZero(Threat("l0", "inf"), steps=5))
    assert (found <= 4).logical_or(found.isinf()).all()


def test_fewest_refuses_labels_that_are_too_few():
    model, x, y, *_ = problem((1, 2, 2), n=3, scale=1.0)
    with pytest.raises(ValueError, match="labels must be 3 integers, one per input"):
        fewest(model, x, y[:2], TokenAttack(Threat("patch", 1, side=1)))


def test_sigma_zero_changes_as_few_elements_as_the_authors_form(conv_net, batch):
    """Adversarial-library holds the form of the authors; it needs torchvision and visdom, beside which it may not
    import."""
    try:
        from adv_lib.attacks.sigma_zero import sigma_zero
    except ImportError as error:
        pytest.skip(f"adversarial-library does not import: {error}")
    model, (x, _) = conv_net(), batch(40)
    with torch.no_grad():
        y = model(x).argmax(1)
    theirs = sigma_zero(model, x, y, num_steps=300)
    with torch.no_grad():
        fooled = model(theirs).argmax(1) != y
    out = SigmaZero(Threat("l0", "inf"), steps=300).run(model, x, y)
    counts = (theirs != x).flatten(1).sum(1).double()
    assert (out.success | ~fooled).all()
    both = fooled & out.success
    # The forms differ in the margin that a result must have; most images have the same count.
    assert out.norm[both].mean() <= counts[both].mean() + 0.5
