"""ATENT's training step against the slow transcription in `oracle_atent`."""

import copy

import oracle_atent as oracle
import pytest
import torch
from atent_networks import EPS, NETWORKS, Mlp, Residual, batch, network, recorded
from kit import ROUNDING, distance, gradient, stream
from torch import nn

from atent import Threat
from atent.methods import ATENT
from atent.methods.base import Method

pytestmark = pytest.mark.usefixtures("seeded")


def compare(make, steps, variant="released", norm="l2", n=8, dropout="fresh", mode="train", **given):
    """One step of both on copies of one network, from the same draws; all differences asserted."""
    x, y = batch(n)
    ours = network(make)
    theirs = copy.deepcopy(ours)
    method = ATENT(Threat(norm, EPS[norm]), steps=steps, variant=variant, dropout=dropout, mode=mode, **given)
    torch.manual_seed(21)
    with recorded(ours) as seen:
        metrics = method.backward(ours, x, y, rng=stream())
    torch.manual_seed(21)
    s = oracle.settings(norm, EPS[norm], steps, variant, dropout=dropout, mode=mode, **given)
    with recorded(theirs) as seen_by_oracle:
        mu, path = oracle.step(theirs, x, y, stream(), s)
    assert len(seen_by_oracle) == 2 * steps
    if mode == "train" and dropout == "shared":
        assert len(seen) == steps + 1
    elif mode == "eval":
        # the chain comes first, then the loss passes
        assert len(seen) == 2 * steps
        seen = [*seen[:steps], seen[-1]]
    else:
        # the gradient pass at x^k follows the loss pass at x^k
        assert len(seen) == 2 * steps
        seen = [seen[0], *seen[1::2]]
    for z, expected in zip(seen, path, strict=True):
        assert distance(z, expected) <= ROUNDING
    assert distance(gradient(ours), gradient(theirs)) <= ROUNDING
    assert float(metrics["loss"]) == pytest.approx(float(mu), rel=ROUNDING)
    assert metrics["loss"].dtype == torch.float64
    for (name, a), (_, b) in zip(ours.named_buffers(), theirs.named_buffers(), strict=True):
        if name.endswith("num_batches_tracked"):
            assert int(a) == int(b) == 3 + (2 * steps if mode == "train" else steps)
        else:
            assert distance(a, b) <= ROUNDING, name
    last = path[-1] - x
    expected = last.abs().flatten(1).amax(1) if norm == "linf" else last.flatten(1).norm(dim=1)
    torch.testing.assert_close(metrics["distance"], expected, rtol=ROUNDING, atol=0)
    return ours, theirs


# -- against the transcription


@pytest.mark.parametrize("variant", ["released", "published"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("steps", [1, 5, 10])
@pytest.mark.parametrize("name", NETWORKS)
def test_equals_the_transcription(name, steps, norm, variant):
    compare(NETWORKS[name], steps, variant, norm, dropout="shared")


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("projection", ["never", "last", "every"])
@pytest.mark.parametrize("anchor", ["free", "scaled"])
@pytest.mark.parametrize("grad", ["raw", "unit", "sign"])
def test_every_switch_equals_the_transcription(norm, projection, anchor, grad):
    compare(
        NETWORKS["residual-bn"], 4, norm=norm, dropout="shared",
        projection=projection, anchor=anchor, gradient=grad, gamma=0.3, noise=0.02, alpha=0.6, step_size=0.17,
    )  # fmt: skip


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_start_zero_and_no_noise_equal_the_transcription(norm):
    compare(NETWORKS["residual-bn"], 3, norm=norm, dropout="shared", start="zero", noise=0.0)


def test_equals_the_transcription_where_the_mean_rounds():
    # 1/7 of a gradient is not the gradient's own digits, so the chains differ in the last ones
    compare(NETWORKS["residual-bn"], 5, n=7, dropout="shared")


@pytest.mark.parametrize("dropout", ["fresh", "shared"])
@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize(
    "make",
    [lambda: Residual("no", 0.4), lambda: Residual(0.1, 0.4), lambda: Mlp(0.5)],
    ids=["plain", "bn", "mlp"],
)
def test_dropout_equals_the_transcription(make, norm, dropout):
    compare(make, 5, norm=norm, dropout=dropout)


def test_fresh_and_shared_masks_differ_with_dropout_and_agree_without():
    def grad(make, dropout):
        model = network(make)
        torch.manual_seed(21)
        ATENT(Threat("l2", 1.0), steps=4, dropout=dropout).backward(model, *batch(), rng=stream())
        return gradient(model)

    assert distance(grad(lambda: Mlp(0.5), "fresh"), grad(lambda: Mlp(0.5), "shared")) > 1e-3
    for make in (NETWORKS["residual-bn"], NETWORKS["residual-bn-none"]):
        assert distance(grad(make, "fresh"), grad(make, "shared")) <= ROUNDING


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("make", [lambda: Residual(0.1, 0.4), NETWORKS["residual-bn-none"]], ids=["dropout", "none"])
def test_eval_mode_chain_equals_the_transcription(make, norm):
    ours, _ = compare(make, 5, norm=norm, mode="eval")
    assert all(m.training for m in ours.modules())


def test_many_batches_keep_batchnorm_together():
    ours = network(NETWORKS["residual-bn-none"])
    theirs = copy.deepcopy(ours)
    s = oracle.settings("l2", 1.0, 3)
    for seed in range(3):
        x, y = batch(seed=seed)
        ATENT(Threat("l2", 1.0), steps=3).backward(ours, x, y, rng=stream(seed))
        oracle.step(theirs, x, y, stream(seed), s)
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)
    assert all(m.momentum is None for m in ours.modules() if isinstance(m, nn.BatchNorm2d))


def test_eval_mode_is_adversary_and_loss_with_batchnorm_too():
    ours = network(lambda: Residual(0.1, 0.4))
    theirs = copy.deepcopy(ours)
    method, (x, y) = ATENT(Threat("l2", 1.0), steps=4, mode="eval"), batch()
    torch.manual_seed(3)
    method.backward(ours, x, y, rng=stream())
    torch.manual_seed(3)
    Method.backward(method, theirs, x, y, rng=stream())
    assert distance(gradient(ours), gradient(theirs)) <= ROUNDING
    for a, b in zip(ours.buffers(), theirs.buffers(), strict=True):
        assert torch.equal(a, b)


def test_the_chain_leaves_frozen_batchnorm_frozen():
    """Fine-tuning with the statistics held: mode train means as the loop has the network."""
    model = network(NETWORKS["residual-bn"])
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.eval()
    before = [b.clone() for b in model.buffers()]
    method, (x, y) = ATENT(Threat("l2", 1.0), steps=3), batch()
    iterates = method.adversary(model, x, y, rng=stream())
    with recorded(model) as seen:
        method.backward(model, x, y, rng=stream())
    assert all(torch.equal(a, b) for a, b in zip(before, model.buffers(), strict=True))
    for a, b in zip(iterates, seen[1:], strict=True):
        assert distance(a, b) <= ROUNDING


def test_warmup_shrinks_a_scaled_anchor_term_with_the_step():
    method = ATENT(Threat("l2", 1.0), variant="published", gamma=0.5, eps_warmup=0.5, effective_noise=0.1)
    full, half, none = method.chain(1.0), method.chain(0.25), method.chain(0.0)
    assert half.threat.eps == pytest.approx(0.5)
    assert half.anchor_weight == pytest.approx(full.anchor_weight / 2)
    assert half.noise == full.noise
    assert none.step_size == 0


@pytest.mark.parametrize("norm", ["l2", "linf"])
@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("dropout", ["shared", "fresh"])
def test_equals_adversary_and_loss_where_nothing_is_random_in_the_network(norm, mode, dropout):
    ours = network(NETWORKS["residual"])
    theirs = copy.deepcopy(ours)
    method = ATENT(Threat(norm, EPS[norm]), steps=5, mode=mode, dropout=dropout)
    x, y = batch()
    a = method.backward(ours, x, y, rng=stream(), weight=0.7)
    b = Method.backward(method, theirs, x, y, rng=stream(), weight=0.7)
    assert distance(gradient(ours), gradient(theirs)) <= ROUNDING
    assert a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("noise", [0.0, 1e-2])
def test_adversary_gives_the_iterates_that_backward_trains_on(noise):
    model, method = network(NETWORKS["residual"]), ATENT(Threat("l2", 1.0), steps=4, noise=noise)
    x, y = batch()
    iterates = method.adversary(model, x, y, rng=stream())
    with recorded(model) as seen:
        method.backward(model, x, y, rng=stream())
    assert len(iterates) == 4
    for a, b in zip(iterates, seen[1:], strict=True):
        assert distance(a, b) <= ROUNDING
        assert not a.requires_grad


# -- precision


def test_bfloat16_autocast_gives_float32_gradients():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 16), nn.ReLU(), nn.Linear(16, 5))
    exact = copy.deepcopy(model)
    x, y = batch()
    method = ATENT(Threat("l2", 1.0), steps=3)
    with torch.autocast("cpu", torch.bfloat16):
        metrics = method.backward(model, x.float(), y, rng=stream())
    assert torch.isfinite(metrics["loss"])
    assert metrics["loss"].dtype == torch.float32
    assert all(p.grad.dtype == torch.float32 and torch.isfinite(p.grad).all() for p in model.parameters())
    expected = method.backward(exact, x.float(), y, rng=stream())
    assert float(metrics["loss"]) == pytest.approx(float(expected["loss"]), rel=0.02)
    assert distance(gradient(model), gradient(exact)) < 0.05


@pytest.mark.parametrize("norm", ["l2", "linf"])
def test_float32_agrees_with_float64(norm):
    model, (x, y) = network(NETWORKS["residual-bn"]), batch()
    single = copy.deepcopy(model).float()
    # no draws: the streams of the two precisions differ
    method = ATENT(Threat(norm, EPS[norm]), steps=3, start="zero", noise=0.0)
    a = method.backward(single, x.float(), y, rng=stream())
    b = method.backward(model, x, y, rng=stream())
    assert float(a["loss"]) == pytest.approx(float(b["loss"]), rel=1e-4)
    assert distance(gradient(single).double(), gradient(model)) < 1e-3
