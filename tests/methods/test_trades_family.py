"""What Gaussian training, TRADES and TRADES with smoothing promise alike, and the settings that they refuse."""

import contextlib
import copy
import math

import pytest
import torch
from kit import ROUNDING, N, batch, distance, gradient, stream
from trades_family import (
    CASES,
    KL_CASES,
    Recorded,
    network,
    run,
    threat,
)

from atent import Threat
from atent.methods.gaussian import Gaussian
from atent.methods.trades import TRADES
from atent.methods.trades_smoothing import TRADESSmoothing

pytestmark = pytest.mark.usefixtures("seeded")


def test_the_defaults_are_the_papers():
    method = TRADESSmoothing()
    assert (method.threat, method.sigma, method.beta) == (Threat("l2", 0.435), 0.12, 6.0)
    assert Gaussian().sigma == 0.12
    assert TRADES(threat("linf")).beta == 6.0


@pytest.mark.parametrize("method", CASES)
def test_backward_adds_weight_times_the_gradient(method):
    model, (x, y) = network(dropout=0.3), batch()
    metrics, full, _ = run(method, model, x, y)
    copied = copy.deepcopy(model)
    for p in copied.parameters():
        p.grad = torch.full_like(p, -3.0)
    torch.manual_seed(21)
    weighted = method.backward(copied, x, y, rng=stream(), weight=0.25)
    assert distance(gradient(copied) + 3.0, 0.25 * full) <= ROUNDING
    torch.testing.assert_close(weighted["loss"], metrics["loss"], rtol=ROUNDING, atol=0)


@pytest.mark.parametrize("method", CASES)
def test_the_same_random_numbers_give_the_same_bits_and_others_do_not(method):
    model, (x, y) = network(dropout=0.3), batch()
    (a, one, _), (b, two, _) = (run(method, model, x, y) for _ in range(2))
    assert torch.equal(one, two)
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert distance(run(method, model, x, y, seed=12)[1], one) > 1e-8


@pytest.mark.parametrize("method", KL_CASES)
@pytest.mark.parametrize("fails", [0, 1, 2, 4], ids=["ends", "first", "second", "last"])
def test_adversary_leaves_the_model_as_found(method, fails):
    model, (x, y) = network(dropout=0.3), batch()
    model[1].eval()
    model[3].weight.requires_grad_(False)
    model[7].weight.grad = torch.ones_like(model[7].weight)
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    flags = [(p.requires_grad, p.grad) for p in model.parameters()]
    clean, random_state, calls = x.clone(), torch.get_rng_state(), []

    def hook(_module, _args):
        calls.append(1)
        if len(calls) == fails:
            raise RuntimeError("stop")

    handle = model.register_forward_pre_hook(hook)
    with pytest.raises(RuntimeError, match="stop") if fails else contextlib.nullcontext():
        method.adversary(model, x, y, rng=stream(), ids=torch.arange(N))
    assert len(calls) == (fails or 4)
    handle.remove()
    assert [m.training for m in model.modules()] == modes
    for p, (flag, grad) in zip(model.parameters(), flags, strict=True):
        assert p.requires_grad == flag
        assert p.grad is grad
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert torch.equal(x, clean)
    assert not x.requires_grad
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("method", CASES)
def test_backward_leaves_the_input_the_modes_and_the_weights(method):
    model, (x, y) = network(dropout=0.3), batch()
    clean, modes = x.clone(), [m.training for m in model.modules()]
    weights = [p.clone() for p in model.parameters()]
    method.backward(model, x, y, rng=stream())
    assert torch.equal(x, clean)
    assert not x.requires_grad
    assert [m.training for m in model.modules()] == modes
    assert all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights, strict=True))


@pytest.mark.parametrize("method", KL_CASES)
def test_makes_k_plus_3_forwards_and_no_more(method):
    model, (x, y) = Recorded(network()), batch()
    method.backward(model, x, y, rng=stream())
    # the clean logits once in eval mode, without a graph; K input gradients; clean and perturbed in train mode
    assert [(training, graph) for _, training, graph in model.seen] == [
        (False, False), *[(False, True)] * 3, (True, True), (True, True)
    ]  # fmt: skip
    assert model.backwards == 3 + 2
    first, clean, robust = model.seen[0][0], model.seen[4][0], model.seen[5][0]
    assert torch.equal(first, clean)
    noise = clean - x
    assert (noise.norm() == 0) == isinstance(method, TRADES)
    assert method.threat.contains((robust - noise).clamp(0, 1), x).all()
    assert float((robust - clean).abs().max()) > 0.01


def test_without_a_kl_only_the_clean_batch_is_seen():
    for method in (Gaussian(), TRADES(threat("l2"), beta=0), TRADESSmoothing(beta=0)):
        model = Recorded(network())
        method.backward(model, *batch(), rng=stream())
        assert [(training, graph) for _, training, graph in model.seen] == [(True, True)]
        assert model.backwards == 1


@pytest.mark.parametrize("method", CASES)
def test_metrics_say_what_loss_says(method):
    model, (x, y) = network(), batch()
    found, grad, _ = run(method, model, x, y)
    assert all(v.shape == () and not v.requires_grad and torch.isfinite(v) for v in found.values())
    loss, metrics = method.loss(model, x, y, method.adversary(model, x, y, rng=stream()))
    assert float(found["loss"]) == pytest.approx(loss.item(), rel=ROUNDING)
    for key, value in metrics.items():
        torch.testing.assert_close(found[key], value, rtol=ROUNDING, atol=ROUNDING)
    if isinstance(method, Gaussian):
        assert set(found) == {"loss", "noisy"}
        return
    assert set(found) == {"loss", "clean", "robust", "clean_loss", "robust_loss"}
    parts = float(found["clean_loss"]) + method.beta * float(found["robust_loss"])
    assert float(found["loss"]) == pytest.approx(parts, rel=ROUNDING)
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    assert distance(grad, expected) <= 1e-10


@pytest.mark.parametrize(
    "bad",
    [
        {"steps": 0}, {"steps": 2.5}, {"step_size": -1.0}, {"step_size": math.nan}, {"beta": -0.1}, {"beta": math.inf},
        {"start_noise": 0.0}, {"start_noise": -1.0}, {"start_noise": math.nan}, {"eps_warmup": -0.5},
        {"eps_warmup": 2.0},
    ],
    ids=str,
)  # fmt: skip
@pytest.mark.parametrize("cls", [TRADES, TRADESSmoothing])
def test_refuses_bad_settings_in_one_line(cls, bad):
    with pytest.raises(ValueError, match=next(iter(bad))) as error:
        cls(threat("l2"), **bad)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cls", [Gaussian, TRADESSmoothing])
@pytest.mark.parametrize("sigma", [-0.1, math.nan, math.inf, "0.1", True])
def test_refuses_a_bad_sigma_in_one_line(cls, sigma):
    with pytest.raises(ValueError, match="sigma") as error:
        cls(sigma=sigma)
    assert "\n" not in str(error.value)


def test_trades_smoothing_refuses_other_norms_and_names_l2():
    with pytest.raises(ValueError, match="l2") as error:
        TRADESSmoothing(threat("linf"))
    assert "\n" not in str(error.value)
