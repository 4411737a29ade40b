"""What a training may approximate when asked: iterates of little weight, and the inner chain's precision."""

import json
import re

import pytest
import torch
from kit import ROUNDING, batch, distance, gradient, network, stream
from torch import nn
from torch.nn import functional as F

from atent import Threat
from atent.data import DataSettings, load
from atent.methods import ATENT, AWP, MMA, PGDAT, TRADES, Standard
from atent.methods.inner import LowInner
from atent.train import TrainSettings, first_batch, fit

LINF = Threat("linf", 0.1)


@pytest.fixture(scope="module")
def digits():
    return load(DataSettings(limit=96, validation=40))


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Flatten(), nn.Dropout(0.2), nn.Linear(216, 10)
    )


def trained(data, method, path=None, model=None, resume=False, callbacks=(), **settings):
    """The network after the training, and the lines that it says."""
    usual = {"epochs": 1, "batch_size": 32, "validate_attack": "none", "device": "cpu", "watch": "off"}
    said, model = [], model or net()
    fit(
        model, data, method, settings=TrainSettings(**{**usual, **settings}), progress=False, run=path, resume=resume,
        say=said.append, callbacks=callbacks,
    )  # fmt: skip
    return model, said


def about(path):
    return json.loads((path / "config.json").read_text())["about"]


def same(a, b):
    return all(torch.equal(p, q) for p, q in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


# -- dropped iterates


@pytest.mark.parametrize(("tolerance", "kept"), [(0.0, 10), (1e-11, 10), (1e-3, 3), (0.0895, 2), (0.9, 1)])
def test_shares_below_the_tolerance_are_dropped(tolerance, kept):
    exact = ATENT(LINF).weights()
    assert ATENT(LINF, drop_below=tolerance).weights() == [0.0] * (11 - kept) + exact[11 - kept :]


@pytest.mark.parametrize("perturbed", [False, True], ids=["alone", "in AWP"])
@pytest.mark.parametrize("given", [{}, {"mode": "eval"}, {"dropout": "fresh"}], ids=["shared", "eval", "fresh"])
def test_the_gradient_is_that_of_the_iterates_that_remain(given, perturbed):
    """sum over the last three iterates of c_k grad CE(x^k), by autograd, on the chain of the exact method."""
    model, (x, y) = network(), batch()
    method = ATENT(Threat("l2", 1.0), steps=6, drop_below=1e-3, **given)
    iterates = ATENT(Threat("l2", 1.0), steps=6, **given).adversary(model, x, y, rng=stream())
    loss = sum(c * F.cross_entropy(model(z), y) for c, z in zip([0.009, 0.09, 0.9], iterates[3:], strict=True))
    expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(model.parameters()))])
    metrics = (AWP(method, 0.0) if perturbed else method).backward(model, x, y, rng=stream())
    assert distance(gradient(model), expected) <= ROUNDING
    assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=ROUNDING)


def test_batch_norm_takes_one_update_from_an_iterate_that_is_dropped():
    model, (x, y) = network(True), batch()
    before = int(model[1].num_batches_tracked)
    ATENT(LINF, steps=6, drop_below=1e-3).backward(model, x, y, rng=stream())
    # x^0 and three dropped iterates once, two that remain twice, the last once
    assert int(model[1].num_batches_tracked) - before == 4 + 2 * 2 + 1


def test_the_training_measures_what_is_dropped_and_is_not_changed_by_it(digits, tmp_path, monkeypatch):
    method = ATENT(LINF, steps=5, drop_below=0.05)
    model, said = trained(digits, method, tmp_path / "run")
    (line,) = [s for s in said if "drop_below" in s]
    assert "\n" not in line
    found = about(tmp_path / "run")["dropped"]
    assert (found["kept"], found["steps"], found["n"]) == (2, 5, 32)
    # the definition, on the same batch
    seen = first_batch.Batch(net(), digits, TrainSettings(batch_size=32), lambda x, _: x, {}, torch.contiguous_format)
    g, exact = seen.gradient(method), seen.gradient(ATENT(LINF, steps=5))
    assert found["difference"] == pytest.approx(float((g - exact).norm() / exact.norm()), rel=1e-3)
    assert 0 < found["difference"] < 0.5
    monkeypatch.setattr(first_batch, "measured", lambda *given, **_: ({}, given[7]))
    assert same(model, trained(digits, method)[0])


def test_what_is_measured_is_the_first_step(digits):
    """The batch, its order and its random numbers are those of the first step of the training."""
    grads = []

    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = net()

        def forward(self, x):
            return self.body(x)

    method, model = ATENT(LINF, steps=3), First()
    seen = first_batch.Batch(model, digits, TrainSettings(batch_size=32), lambda x, _: x, {}, torch.contiguous_format)
    grads.append(seen.gradient(method))
    real = torch.optim.SGD.step

    def spy(self, closure):
        with torch.enable_grad():
            closure()
        grads.append(torch.cat([p.grad.flatten().double() for g in self.param_groups for p in g["params"]]))
        raise KeyboardInterrupt

    torch.optim.SGD.step = spy
    try:
        with pytest.raises(KeyboardInterrupt):
            trained(digits, method, model=model)
    finally:
        torch.optim.SGD.step = real
    assert torch.equal(*grads)


def test_drop_below_is_refused_where_it_would_drop_all_or_nothing():
    for given in ({"drop_below": 0.91}, {"drop_below": -1.0}, {"drop_below": 0.1, "burn_in": 2}):
        with pytest.raises(ValueError, match="drop_below") as caught:
            ATENT(LINF, **given)
        assert "\n" not in str(caught.value)


# -- the inner chain


class Sees(nn.Module):
    """A network that notes of each pass whether it is under autocast, and whether its weights need a gradient."""

    def __init__(self):
        super().__init__()
        self.body, self.seen = net(), []

    def forward(self, x):
        self.seen.append((torch.is_autocast_enabled("cpu"), next(self.parameters()).requires_grad, x.dtype))
        return self.body(x)


METHODS = {
    "PGDAT": (PGDAT(LINF, steps=3), 3, 1), "TRADES": (TRADES(LINF, steps=3), 4, 2),
    "MMA": (MMA(LINF, steps=3, bisection=5), 8, 2), "ATENT": (ATENT(Threat("l2", 1.0), steps=3), 3, 3),
}  # fmt: skip


@pytest.mark.parametrize("name", METHODS)
def test_the_chain_is_low_and_the_gradient_of_the_weights_is_full(name):
    """Low: the passes of the chain. Full: the iterates, and the gradient, which is bit for bit that of the method at
    what the chain found."""
    method, low, full = METHODS[name]
    x, y = batch(side=8, classes=10)
    x, model = x.float(), Sees().train()
    metrics = LowInner(method).backward(model, x, y, rng=stream())
    assert model.seen == [(True, False, torch.float32)] * low + [(False, True, torch.float32)] * full
    found, other = gradient(model), Sees().train()
    aux = LowInner(method).adversary(other, x, y, rng=stream())
    assert all(t.dtype == torch.float32 for t in (aux if isinstance(aux, list) else [aux]))
    # adversary and loss may draw masks: those of a step that begins with the adversary
    torch.manual_seed(0)
    again, twin = Sees().train(), Sees().train()
    for one, run in ((again, lambda m: LowInner(method).backward(m, x, y, rng=stream())),
                     (twin, lambda m: method.descend(m, x, y, aux))):  # fmt: skip
        torch.manual_seed(5)
        run(one)
    assert torch.equal(gradient(again), gradient(twin))
    assert found.dtype == torch.float32
    assert torch.isfinite(metrics["loss"])


def test_low_and_full_chains_differ_by_rounding():
    """The chain is the method's own: on the cross-entropy it ends at the same loss to bfloat16's rounding, 2^-8."""
    x, y = batch(n=32, side=8, classes=10)
    x, model = x.float(), net().eval()
    ends = [m.adversary(model, x, y, rng=stream()) for m in (PGDAT(LINF), LowInner(PGDAT(LINF)))]
    losses = [F.cross_entropy(model(z), y).item() for z in ends]
    assert not torch.equal(*ends)
    assert losses[1] == pytest.approx(losses[0], rel=2**-8)


class Breaks(nn.Module):
    """A network whose answers under autocast have nothing to do with its input."""

    def __init__(self):
        super().__init__()
        self.body = net()

    def forward(self, x):
        z = self.body(x)
        return -z if torch.is_autocast_enabled("cpu") else z


def test_a_chain_that_disagrees_is_refused_and_not_chosen(digits, tmp_path):
    method = PGDAT(Threat("linf", 0.4), steps=5)
    with pytest.raises(ValueError, match="inner_precision bfloat16 disagrees with float32") as caught:
        trained(digits, method, model=Breaks(), inner_precision="bfloat16")
    assert "\n" not in str(caught.value)
    model, said = trained(digits, method, tmp_path / "run", model=Breaks(), inner_precision="auto")
    assert len([s for s in said if re.search("inner_precision float32: .* \\(-[0-9.]+ %\\)", s)]) == 1
    assert about(tmp_path / "run")["inner"]["precision"] == "float32"
    assert same(model, trained(digits, method, model=Breaks())[0])


def test_auto_takes_the_faster_one_and_a_resumed_run_keeps_it(digits, tmp_path, monkeypatch):
    from atent.train import Callback

    class Dies(Callback):
        def step(self, progress):
            if progress.step == 2:
                raise KeyboardInterrupt

    method, given = PGDAT(LINF, steps=2), {"inner_precision": "auto", "save_minutes": 0}
    found = {}
    for ratio in (0.5, 2.0):
        monkeypatch.setattr(first_batch.Batch, "ratio", lambda *_, ratio=ratio: ratio)
        found[ratio] = trained(digits, method, tmp_path / str(ratio), **given)[0]
    assert same(found[0.5], trained(digits, method, inner_precision="bfloat16")[0])
    assert same(found[2.0], trained(digits, method)[0])
    assert not same(*found.values())
    monkeypatch.setattr(first_batch.Batch, "ratio", lambda *_: 0.5)
    with pytest.raises(KeyboardInterrupt):
        trained(digits, method, tmp_path / "broken", callbacks=[Dies()], **given)
    monkeypatch.setattr(first_batch.Batch, "ratio", lambda *_: 1 / 0)
    assert same(found[0.5], trained(digits, method, tmp_path / "broken", resume=True, **given)[0])


def test_what_has_no_low_chain_is_refused(digits):
    from atent.methods import ACL, Free

    for method in (Free(LINF), ACL(LINF), ATENT(Threat("l2", 1.0), variant="published", objective="data-entropy",
                                                noise=0.1)):  # fmt: skip
        with pytest.raises(ValueError, match="inner_precision bfloat16 does not support this method"):
            LowInner(method)
    with pytest.raises(ValueError, match="Standard, whose adversary does not use the network"):
        trained(digits, Standard(), inner_precision="bfloat16")
    with pytest.raises(ValueError, match="no effect with precision bfloat16"):
        TrainSettings(inner_precision="bfloat16", precision="bfloat16")
    with pytest.raises(ValueError, match=r"needs a float32 network, this one is torch\.float64"):
        LowInner(PGDAT(LINF)).backward(network(), *batch(), rng=stream())
