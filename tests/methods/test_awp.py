"""AWP: the published code as an oracle, the identity at gamma 0, and weights that come back whatever happens."""

import copy
import dataclasses
import json

import pytest
import torch
from commands import train_job
from kit import ROUNDING, N, Syncs, batch, distance, gradient, network, stream, unsealed
from torch import nn

from atent import Threat
from atent import runs as folder
from atent.data import DataSettings, load
from atent.experiments.pipeline import baseline
from atent.experiments.recipes import UsageError, job, read_recipe
from atent.messages import deprecated
from atent.methods import ATENT, AWP, METHODS, MMA, PGDAT, Free, Perturbation, Standard
from atent.methods.awp import plain
from atent.models import build
from atent.train import Callback, TrainSettings, fit

EPS = {"l2": 0.8, "linf": 0.2}
GAMMA = 0.05


def inner(name, norm="linf", **given):
    return METHODS[name](Threat(norm, EPS[norm]), steps=3, **given)


CASES = [
    pytest.param(name, norm, given, id=" ".join([name, norm, *map(str, given.values())]))
    for name, norms, given in [
        ("PGDAT", ("linf", "l2"), {}),
        ("TRADES", ("linf", "l2"), {}),
        ("ATENT", ("linf", "l2"), {}),
        ("MART", ("linf",), {}),
        ("ATENT", ("l2",), {"mode": "eval"}),
        ("ATENT", ("linf",), {"dropout": "fresh"}),
    ]
    for norm in norms
]


def run(method, model, seed=11, weight=1.0, progress=1.0, grad=None):
    """Metrics, and a copy of the model with its gradients."""
    model, (x, y) = copy.deepcopy(model), batch()
    for p in model.parameters():
        p.grad = None if grad is None else torch.full_like(p, grad)
    torch.manual_seed(21)
    metrics = method.backward(
        model, x, y, rng=stream(seed), ids=torch.arange(N), weight=weight, progress=progress
    )  # fmt: skip
    return metrics, model


# ---- against the authors' structure


def theirs(method, model, gamma):
    """One step as the authors' code has it: a proxy with its own SGD, the difference of its weights scaled layer by
    layer, added to the model, gradient there, subtracted again. The adversary and the loss are the method's own."""
    x, y = batch()
    aux = method.adversary(model, x, y, rng=stream())
    proxy = copy.deepcopy(model)
    optimizer = torch.optim.SGD(proxy.parameters(), lr=0.01)
    optimizer.zero_grad()
    (-method.loss(proxy, x, y, aux)[0]).backward()
    optimizer.step()
    change = {}
    for (name, new), (_, old) in zip(proxy.state_dict().items(), model.state_dict().items(), strict=True):
        if "weight" in name and old.dim() > 1:
            step = new - old
            change[name] = gamma * old.norm() / (step.norm() + 1e-20) * step
    for name, p in model.named_parameters():
        if name in change:
            p.data.add_(change[name])
    loss, _ = method.loss(model, x, y, aux)
    model.zero_grad()
    loss.backward()
    for name, p in model.named_parameters():
        if name in change:
            p.data.sub_(change[name])
    return loss, model, change


@pytest.mark.parametrize(("name", "norm", "given"), CASES)
@pytest.mark.parametrize("batchnorm", [False, True], ids=["plain", "bn"])
def test_equals_the_published_step(name, norm, given, batchnorm):
    model, method = network(batchnorm), inner(name, norm, **given)
    metrics, ours = run(AWP(method, GAMMA), model)
    loss, other, change = theirs(method, copy.deepcopy(model), GAMMA)
    assert len(change) == 3
    assert distance(gradient(ours), gradient(other)) <= 1e-9
    assert float(metrics["loss"]) == pytest.approx(loss.item(), rel=1e-10)
    for a, b in zip(ours.buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=ROUNDING)
    # the perturbation matters
    assert distance(gradient(run(method, model)[1]), gradient(other)) > 1e-2


def test_the_ascent_is_of_length_gamma_in_each_layer():
    model, method, (x, y) = network(True), inner("PGDAT"), batch()
    layers = [p for p in model.parameters() if p.dim() > 1]
    before, seen = [p.detach().clone() for p in model.parameters()], []

    def hook(module, args):
        if module.training:
            seen.append([p.detach().clone() for p in model.parameters()])

    handle = model.register_forward_pre_hook(hook)
    AWP(method, 0.03).backward(model, x, y, rng=stream())
    handle.remove()
    # in train mode: the loss at w, and the loss at w + v
    flat, raised = seen
    assert all(torch.equal(a, b) for a, b in zip(flat, before, strict=True))
    moved = [(b - a, a) for a, b in zip(before, raised, strict=True)]
    assert [bool(d.any()) for d, _ in moved] == [p.dim() > 1 for p in model.parameters()]
    for d, w in moved:
        if w.dim() > 1:
            assert float(d.norm()) == pytest.approx(0.03 * float(w.norm()), rel=1e-10)
    assert len(layers) == 3


@pytest.mark.parametrize("name", ["PGDAT", "TRADES", "ATENT"])
def test_sharpness_is_what_the_perturbation_adds(name):
    """It is positive, and to first order gamma times the sum over layers of ||w|| ||g||."""
    model, method, gamma = network(), inner(name), 1e-6
    flat, plainly = run(method, model)
    metrics, _ = run(AWP(method, gamma), model)
    slope = sum(float(p.detach().norm() * p.grad.norm()) for p in plainly.parameters() if p.dim() > 1)
    assert float(metrics["sharpness"]) == pytest.approx(gamma * slope, rel=1e-3)
    assert float(metrics["loss"]) - float(flat["loss"]) == pytest.approx(float(metrics["sharpness"]), rel=1e-6)


# ---- the contract


@pytest.mark.parametrize(("name", "norm", "given"), CASES)
def test_gamma_zero_and_warm_up_are_the_inner_method_bit_for_bit(name, norm, given):
    model, method = network(True, 0.3), inner(name, norm, **given)
    metrics, plainly = run(method, model, weight=0.3)
    for awp, progress in ((AWP(method, 0.0), 1.0), (AWP(method, GAMMA, warmup=0.5), 0.49)):
        found, same = run(awp, model, weight=0.3, progress=progress)
        expected = plainly if progress == 1.0 else run(method, model, weight=0.3, progress=progress)[1]
        assert torch.equal(gradient(same), gradient(expected))
        assert all(torch.equal(a, b) for a, b in zip(same.buffers(), expected.buffers(), strict=True))
        assert metrics.keys() == found.keys()
    assert "sharpness" in run(AWP(method, GAMMA, warmup=0.5), model, progress=0.5)[0]


@pytest.mark.parametrize(("name", "norm", "given"), CASES)
def test_backward_adds_weight_times_the_gradient_and_repeats(name, norm, given):
    model, method = network(True, 0.3), AWP(inner(name, norm, **given), GAMMA)
    _, full = run(method, model)
    _, again = run(method, model)
    _, found = run(method, model, grad=-3.0, weight=0.25)
    assert torch.equal(gradient(full), gradient(again))
    assert distance(gradient(found) + 3.0, 0.25 * gradient(full)) <= ROUNDING


@pytest.mark.parametrize(("name", "norm", "given"), CASES)
@pytest.mark.parametrize("fails", ["never", "at w", "at w + v"])
def test_the_weights_come_back_bit_for_bit(name, norm, given, fails):
    model, (x, y) = network(True, 0.3).float(), (t.float() if t.is_floating_point() else t for t in batch())
    frozen = model[3].weight.requires_grad_(False)
    frozen_bias = model[7].bias
    frozen_bias.grad = torch.ones_like(frozen_bias)
    method = AWP(inner(name, norm, **given), GAMMA)
    weights = [p.detach().clone() for p in model.parameters()]
    buffers = [b.clone() for b in model.buffers()]
    modes, away = [m.training for m in model.modules()], []

    def hook(module, args):
        off = not torch.equal(module[0].weight, weights[0])
        away.append(off)
        if (fails == "at w" and len(away) == 3) or (fails == "at w + v" and off):
            raise RuntimeError("stop")

    handle = model.register_forward_pre_hook(hook)
    if fails == "never":
        method.backward(model, x, y, rng=stream())
        assert any(away)
        assert not torch.equal(gradient(model)[-5:], torch.ones(5))
    else:
        with pytest.raises(RuntimeError, match="stop"):
            method.backward(model, x, y, rng=stream())
        # as before the batch: no gradient has been reported
        assert all(p.grad is None for p in model.parameters() if p is not frozen_bias)
        assert torch.equal(frozen_bias.grad, torch.ones(5))
        if fails == "at w":
            assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers, strict=True))
    handle.remove()
    assert frozen.grad is None
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), weights, strict=True))
    assert [m.training for m in model.modules()] == modes


def test_a_layer_without_a_gradient_stays_and_nothing_is_nan():
    model = network()
    with torch.no_grad():
        model[7].weight.zero_()  # so no gradient reaches the layers before
    _, after = run(AWP(inner("PGDAT"), GAMMA), model)
    assert all(torch.isfinite(p.grad).all() for p in after.parameters())
    assert not after[0].weight.grad.any()


@pytest.mark.parametrize(("name", "norm", "given"), CASES)
def test_nothing_waits_for_the_device(name, norm, given):
    model, (x, y) = network(True, 0.3), batch()
    with Syncs() as syncs:
        metrics = AWP(inner(name, norm, **given), GAMMA).backward(model, x, y, rng=stream())
    # the seed of the network's own random numbers inside an attack
    assert len(syncs.seen) <= 1
    assert all(isinstance(v, torch.Tensor) and not v.requires_grad for v in metrics.values())


class Counted(nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.forwards = network(True), 0

    def forward(self, x):
        self.forwards += 1
        return self.net(x)


@pytest.mark.parametrize(
    ("name", "given", "before", "more"),
    [
        ("PGDAT", {}, 3 + 1, 1),
        ("TRADES", {}, 1 + 3 + 2, 2),
        # the accumulating pass yields iterates and gradient together; then one pass at each iterate
        ("ATENT", {}, 3 + 1, 3),
        ("ATENT", {"alpha": 1.0}, 3 + 1, 1),
        ("ATENT", {"dropout": "fresh"}, 6, 3),
        ("ATENT", {"mode": "eval"}, 6, 3),
    ],
)
def test_forwards(name, given, before, more):
    (x, y), method = batch(), inner(name, **given)
    for made, expected in ((method, before), (AWP(method, GAMMA), before + more)):
        model = Counted()
        made.backward(model, x, y, rng=stream())
        assert model.forwards == expected


def test_a_step_of_sgd_is_the_published_one_up_to_its_weight_decay():
    """Step at w + v, then subtract v: without weight decay the same weights as stepping from w."""
    model, method = network(), inner("PGDAT")
    _, ours = run(AWP(method, GAMMA), model)
    _, other, change = theirs(method, copy.deepcopy(model), GAMMA)
    for name, p in other.named_parameters():
        p.data.add_(change.get(name, 0.0))
    for m in (ours, other):
        torch.optim.SGD(m.parameters(), lr=0.1).step()
    for (name, p), q in zip(other.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(p - change.get(name, 0.0), q, rtol=1e-9, atol=ROUNDING)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_with_weight_decay_the_published_weights_are_ours_minus_lr_decay_v(momentum):
    """Their decay acts on w + v; one step, from the same weights."""
    model, method, lr, decay = network(), inner("PGDAT"), 0.1, 0.3
    _, ours = run(AWP(method, GAMMA), model)
    _, other, change = theirs(method, copy.deepcopy(model), GAMMA)
    for name, p in other.named_parameters():
        p.data.add_(change.get(name, 0.0))
    for m in (ours, other):
        torch.optim.SGD(m.parameters(), lr=lr, momentum=momentum, weight_decay=decay).step()
    moved = 0
    for (name, p), q in zip(other.named_parameters(), ours.parameters(), strict=True):
        v = change.get(name, torch.zeros_like(p))
        torch.testing.assert_close(p - v, q - lr * decay * v, rtol=1e-9, atol=ROUNDING)
        moved += int(bool((v != 0).any()))
    assert moved


def test_bad_settings_are_one_line():
    threat = Threat("linf", 0.1)
    for bad in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="gamma"):
            AWP(PGDAT(threat), bad)
    for bad in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"share of the training|must be a finite number"):
            AWP(PGDAT(threat), warmup=bad)
    for method in (Free(threat), AWP(PGDAT(threat))):
        with pytest.raises(ValueError, match="which overrides backward"):
            AWP(method)
    for method in (Standard(), MMA(threat)):
        assert AWP(method).threat == getattr(method, "threat", None)


# ---- recipes and the command line


def test_a_recipe_asks_for_it_beside_its_method():
    tables = read_recipe("digits-linf-trades")
    bare = job(tables, "x")
    tables["train"] = {**tables.get("train", {}), "awp": {"gamma": 0.004, "warmup": 0.25}}
    made = job(tables, "x")
    assert made.method == bare.method
    assert made.train == dataclasses.replace(bare.train, awp=Perturbation(0.004, 0.25))
    reported = made.sections()
    fields = {**dataclasses.asdict(bare.method), "threat": bare.method.threat.plain()}
    assert reported["method"] == {"name": "TRADES", **fields}
    assert reported["train"]["awp"] == {"gamma": 0.004, "warmup": 0.25}
    assert (made.title, bare.title) == ("TRADES-AWP", "TRADES")
    # What a run folder keeps makes the same job again, and so does the method around the method.
    assert job(reported | {"recipe": None}, "x") == made
    assert dataclasses.replace(bare, method=AWP(bare.method, 0.004, 0.25)) == made
    threat = made.method.threat
    plain = baseline(made, threat)
    assert (plain.title, plain.train) == ("Standard", bare.train)


def test_the_former_place_means_the_same(tmp_path, capsys):
    """In a recipe's tables, in a file that extends another, in what it drops, on the command line."""
    deprecated.cache_clear()
    want = train_job("digits-linf-trades-awp", "--train.awp.gamma", "0.01")
    tables = read_recipe("digits-linf-trades")
    assert capsys.readouterr().err == ""
    tables["method"]["awp"] = {"gamma": 0.01}
    assert job(tables, want.recipe) == want
    assert job(tables, want.recipe) == want
    assert capsys.readouterr().err == "atent: method.awp is deprecated: write train.awp\n"
    own = tmp_path / "digits-linf-trades-awp.toml"
    own.write_text('extends = "digits-linf-trades-awp"\n[method]\nawp = { gamma = 0.01 }\n')
    # A job also records the file of its recipe, which is another here.
    assert dataclasses.replace(train_job(str(own)), recipe_file=None) == want
    own.write_text('extends = "digits-linf-trades-awp"\ndrop = ["method.awp"]\n')
    assert train_job(str(own)).title == "TRADES"
    own.write_text("[method]\nawp = { gamma = 0.01 }\n[train]\nawp = { gamma = 0.01 }\n")
    with pytest.raises(UsageError, match=r"use train\.awp"):
        read_recipe(str(own))
    capsys.readouterr()
    assert train_job("digits-linf-trades-awp", "--method.awp.gamma", "0.01") == want
    assert "--method.awp.gamma is deprecated: use --train.awp.gamma" in capsys.readouterr().err


@pytest.mark.parametrize("recipe", ["digits-linf-pgdat", "digits-linf-trades", "digits-linf-atent"])
def test_the_command_line_puts_it_around_any_of_them(recipe):
    bare = train_job(recipe)
    made = train_job(*[recipe, "--train.awp.gamma", "0.01", "--train.awp.warmup", "0.1", "--method.steps", "4"])
    assert made.method == dataclasses.replace(bare.method, steps=4)
    assert made.train.awp == Perturbation(0.01, 0.1)


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["digits-linf-pgdat", "--train.awp.gamma", "-1"], ["gamma (of AWP) must be at least 0, got -1"]),
        (["digits-linf-pgdat", "--train.awp.warmup", "0.1"], ["no effect without awp.gamma"]),
        (["digits-linf-free", "--train.awp.gamma", "0.1"], ["AWP does not support Free"]),
        (["digits-linf-pgdat", "--method", "AWP"], ["unknown method 'AWP'"]),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(args, parts, capsys):
    from atent.cli import main

    assert main(["train", *args]) == 2
    err = capsys.readouterr().err
    assert len(err.strip().splitlines()) == 1
    assert all(part in err for part in parts), err


def test_a_mistake_in_a_recipe_is_named_by_its_path():
    tables = read_recipe("digits-linf-pgdat")
    tables["train"]["awp"] = {"gama": 0.1}
    with pytest.raises(UsageError, match=r"train.awp.gama.*did you mean 'gamma'"):
        job(tables, "x")
    tables["train"]["awp"] = {"gamma": "much"}
    with pytest.raises(UsageError, match=r"train.awp.gamma: .*'much'"):
        job(tables, "x")
    tables = read_recipe("digits-linf-free")
    tables["train"]["awp"] = {"gamma": 0.1}
    with pytest.raises(UsageError, match=r"train.awp: AWP does not support Free"):
        job(tables, "x")


def test_another_method_keeps_it_where_it_can(capsys):
    made = train_job(*["digits-linf-pgdat", "--method", "TRADES", "--train.awp.gamma", "0.01"])
    assert made.title == "TRADES-AWP"
    made = train_job("digits-linf-pgdat-awp", "--method", "Free")
    assert made.title == "Free"
    assert "Free has no" in capsys.readouterr().err
    assert isinstance(train_job("digits-linf-pgdat", "--method", "Standard").method, Standard)


def quick(**more):
    return TrainSettings(
        epochs=1, batch_size=64, validate_limit=20, validate_attack="none", device="cpu", save_minutes=60, **more
    )


@pytest.fixture(scope="module")
def digits():
    return load(DataSettings(limit=128, validation=30))


def trained(digits, method, settings, **more):
    torch.manual_seed(0)
    return fit(build("digits_cnn"), digits, method, settings=settings, progress=False, **more)


def test_it_is_a_setting_of_the_step(digits, tmp_path):
    """Asked for by the settings or around the method: the same bits, the same folder; once is enough."""
    method, awp = ATENT(Threat("linf", 0.1), steps=2), Perturbation(0.005)
    one = trained(digits, AWP(method), quick(), run=tmp_path / "one")
    other = trained(digits, method, quick(awp=awp), run=tmp_path / "other")
    assert one.history[0]["sharpness"] == other.history[0]["sharpness"] > 0
    assert all(torch.equal(a, b) for a, b in zip(one.model.parameters(), other.model.parameters(), strict=True))
    configs = [folder.read_json(tmp_path / run / folder.CONFIG) for run in ("one", "other")]
    assert configs[0]["method"] == configs[1]["method"] == folder.plain(plain(method))
    assert configs[0]["train"] == configs[1]["train"]
    assert configs[0]["train"]["awp"] == {"gamma": 0.005, "warmup": 0.0}
    assert configs[0]["about"]["chain"]["steps"] == 2
    with pytest.raises(ValueError, match="set twice"):
        trained(digits, AWP(method), quick(awp=awp))
    with pytest.raises(ValueError, match="awp must be a Perturbation, got"):
        quick(awp={"gamma": 0.005})


def test_a_run_of_an_earlier_version_resumes(digits, tmp_path):
    """One whose configuration and fingerprint have it with the method, and know no patience."""
    method = AWP(PGDAT(Threat("linf", 0.1), steps=1))
    two = dataclasses.replace(quick(), epochs=2)
    whole = trained(digits, method, two, run=tmp_path / "whole")

    class Stop(Callback):
        def epoch(self, progress, row):
            return "enough"

    trained(digits, method, two, run=tmp_path / "old", callbacks=[Stop()])

    def former(tables):
        awp = tables["train"].pop("awp")
        del tables["train"]["patience"]
        tables["method"]["awp"] = awp
        return tables

    path = unsealed(tmp_path / "old")
    folder.write_json(path / folder.CONFIG, former(folder.read_json(path / folder.CONFIG)))
    saved = torch.load(path / "last" / "state.pt", weights_only=True)
    saved["mark"]["config"] = folder.dumps(former(json.loads(saved["mark"]["config"])))
    torch.save(saved, path / "last" / "state.pt")
    assert folder.read_config(path / folder.CONFIG)["train"]["awp"]["gamma"] == 0.005
    again = trained(digits, method, two, run=path, resume=True)
    assert [row["loss"] for row in again.history] == [row["loss"] for row in whole.history]
    assert all(torch.equal(a, b) for a, b in zip(again.model.parameters(), whole.model.parameters(), strict=True))
    with pytest.raises(ValueError, match="trained with other settings"):
        trained(digits, method.method, two, run=path, resume=True)
