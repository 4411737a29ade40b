"""Evaluations and sweeps that are killed resume to the same figures; other files are refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import MethodType

import pytest
import torch
from cascades import RISING, THREAT, Twofold
from torch import nn

from atent.attacks import FGSM, PGD, Attack, Transfer
from atent.evaluate import evaluate, sweep
from atent.models import build
from atent.runs import dumps
from atent.runs.identity import digest, identity_of
from atent.threat import Threat


class Killed(Exception):
    pass


def killed_after(batches, *args, **kwargs):
    """Evaluate until so many calls of an attack are done."""
    original, calls = Attack.run, []

    def stopping(self, *a, **k):
        if len(calls) == batches:
            raise Killed
        calls.append(1)
        return original(self, *a, **k)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attack, "run", stopping)
        with pytest.raises(Killed):
            evaluate(*args, **kwargs)


# Each number of batches with one kind of evaluation; the other four pairs are slow.
@pytest.mark.parametrize(
    ("batches", "cascade"),
    [
        pytest.param(batches, cascade, marks=[] if cascade == (batches in (0, 4)) else [pytest.mark.slow])
        for batches in (0, 1, 4, 8)
        for cascade in (True, False)
    ],
)
def test_a_killed_evaluation_goes_on(batches, cascade, conv_net, batch, tmp_path):
    x, y = batch(40)
    ids = 3 * torch.arange(40)
    attacks = {**RISING, "two": Twofold(THREAT)}
    settings = {"seed": 2, "ids": ids, "batch": 9, "cascade": cascade}
    full = evaluate(conv_net(), x, y, attacks, **settings)
    path = tmp_path / "part.jsonl"
    killed_after(batches, conv_net(), x, y, attacks, **settings, resume=path)
    assert len(path.read_text().splitlines() if batches else [0]) == 1 + batches
    with open(path, "a") as file:
        file.write('{"attack": "torn')
    counted, original = [], Attack.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attack, "run", lambda self, *a, **k: counted.append(1) or original(self, *a, **k))
        got = evaluate(conv_net(), x, y, attacks, **settings, resume=path)
        total = len(path.read_text().splitlines()) - 1
        assert len(counted) == total - batches > 0
        again = evaluate(conv_net(), x, y, attacks, **settings, resume=path)
        assert len(counted) == total - batches
    assert plain(got) == plain(full) == plain(again)
    if not batches:
        return
    # another batch size resumes too
    path.unlink()
    killed_after(batches, conv_net(), x, y, attacks, **settings, resume=path)
    other = evaluate(conv_net(), x, y, attacks, **{**settings, "batch": 14}, resume=path)
    assert other.outcomes == full.outcomes


def plain(evaluation):
    found = json.loads(dumps(evaluation.to_json()))
    for result in found["attacks"].values():
        for reported in (result, *result.get("parts", {}).values()):
            reported.pop("seconds")
    return found


@pytest.mark.parametrize(("change", "text"), [
    ({"model": True}, "other model"),
    ({"x": lambda x: x * 0.999}, "other inputs"),
    ({"y": lambda y: (y + 1) % 10}, "other labels"),
    ({"ids": 1 + torch.arange(12)}, "other ids"),
    ({"seed": 1}, "other seed"),
    ({"cascade": False}, "other cascade"),
    ({"attacks": [PGD(THREAT, steps=3)]}, "other attacks"),
    ({"attacks": [PGD(Threat("linf", 0.06), steps=2)]}, "other attacks"),
    ({"seed": 1, "ids": 1 + torch.arange(12)}, "other ids, seed"),
])  # fmt: skip
def test_a_file_of_another_evaluation_is_refused(change, text, conv_net, batch, tmp_path):
    x, y = batch(12)
    path = tmp_path / "part.jsonl"
    evaluate(conv_net(), x, y, [PGD(THREAT, steps=2)], ids=torch.arange(12), resume=path)
    before = path.read_bytes()
    x, y = (change.get(k, lambda v: v)(v) for k, v in (("x", x), ("y", y)))
    attacks = change.get("attacks", [PGD(THREAT, steps=2)])
    settings = {"ids": torch.arange(12), **{k: v for k, v in change.items() if k in ("ids", "seed", "cascade")}}
    with pytest.raises(ValueError, match=f"{text}.*: give another file to resume from") as error:
        evaluate(conv_net(norm="model" in change), x, y, attacks, resume=path, **settings)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def test_a_file_of_another_kind_is_refused(conv_net, batch, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n')
    with pytest.raises(ValueError, match="is not the file of an unfinished evaluation"):
        evaluate(conv_net(), *batch(4), [FGSM(THREAT)], resume=path)
    assert path.read_text() == '{"epoch": 1}\n'


def test_a_killed_sweep_goes_on(conv_net, batch, tmp_path):
    x, y = batch(30)
    path = tmp_path / "part.jsonl"
    args = (conv_net(), x, y, [PGD(THREAT, steps=2), FGSM(THREAT)], [0.02, 0.05])
    full = sweep(*args, batch=10)
    original, calls = Attack.run, []

    def stopping(self, *a, **k):
        calls.append(1)
        if len(calls) == 5:
            raise Killed
        return original(self, *a, **k)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attack, "run", stopping)
        with pytest.raises(Killed):
            sweep(*args, batch=10, resume=path)
    got = sweep(*args, batch=10, resume=path)
    for row in (*got, *full):
        row.pop("seconds")
    assert got == full


class Scaled(torch.nn.Module):
    """Its settings are no parameters."""

    def __init__(self, scale=1.0, slope=0.1, shape=torch.tanh, shift=0.5):
        super().__init__()
        torch.manual_seed(0)
        self.scale, self.act, self.lin = scale, torch.nn.LeakyReLU(slope), torch.nn.Linear(16, 3)
        self.shape, self.settings, self.cache = shape, {"shift": shift, "name": None}, None

    def forward(self, z):
        self.cache = torch.full((), self.settings["shift"])
        return self.lin(self.act(self.shape(self.scale * z.flatten(1) - self.cache)))


@pytest.mark.parametrize("change", ["attribute", "layer", "hook", "function", "mapping", "forward"])
def test_rows_of_a_network_with_other_settings_are_not_taken(change, tmp_path):
    """Before: the rows of the first network were those of the second, whose weights are the same."""
    x, y, attacks = torch.rand(12, 1, 4, 4), torch.arange(12) % 3, [FGSM(Threat("linf", 0.05))]
    first = evaluate(Scaled(), x, y, attacks, resume=tmp_path / "rows")
    assert evaluate(Scaled(), x, y, attacks, resume=tmp_path / "rows").outcomes == first.outcomes
    settings = {"attribute": ("scale", 0.5), "layer": ("slope", 0.3), "function": ("shape", torch.sin)}
    settings["mapping"] = "shift", -0.5
    other = Scaled(**dict([settings[change]] if change in settings else []))
    if change == "forward":
        other.forward = lambda z: -Scaled.forward(other, z)
    if change == "hook":
        other.register_forward_hook(lambda _module, _inputs, logits: -logits)
    with pytest.raises(ValueError, match="an evaluation with other model"):
        evaluate(other, x, y, attacks, resume=tmp_path / "rows")


def test_rows_of_a_built_in_network_with_a_hook_are_not_taken(tmp_path):
    """Before: they were those of the network without the hook."""
    x, y, attacks = torch.rand(4, 3, 8, 8), torch.arange(4) % 3, [FGSM(Threat("linf", 0.05))]
    net = build("resnet20", classes=3)
    evaluate(net, x, y, attacks, resume=tmp_path / "rows")
    net.register_forward_pre_hook(lambda _module, inputs: (1 - inputs[0],))
    with pytest.raises(ValueError, match="an evaluation with other model"):
        evaluate(net, x, y, attacks, resume=tmp_path / "rows")


def leaky(slope, more=()):
    """A function with a value of the function that made it."""

    def act(z, power=1):
        return torch.nn.functional.leaky_relu(z, slope) ** power

    act.__defaults__ = more or act.__defaults__
    return act


def recursive():
    def act(z):
        return act(z) if z.dim() < 0 else z

    return act


def test_values_of_functions_count():
    """A partial and a function with a closure had the identity of those with other values."""
    relu = torch.nn.functional.leaky_relu
    shapes = [
        leaky(0.1), leaky(0.2), leaky(0.1, (2,)), partial(relu, negative_slope=0.1), partial(relu, negative_slope=0.2),
        partial(torch.pow, exponent=2), partial(torch.pow, exponent=3), recursive(), {"tanh": [partial(relu)]},
        {"tanh": [torch.tanh]}, MethodType(leaky(0.3), 1), MethodType(leaky(0.4), 1),
    ]  # fmt: skip
    names = [identity_of(Scaled(shape=shape)) for shape in shapes]
    assert len(set(names)) == len(names)
    assert identity_of(Scaled(shape=leaky(0.1))) == names[0]


class Negative:
    """A hook that is an object."""

    def __init__(self, scale):
        self.scale = scale

    def __call__(self, _module, given, _out=None):
        return -self.scale * given[0]

    def hook(self, _module, given):
        return (self.scale * given[0],)


def scaled(by, kept=None):
    def hook(_module, _given, out):
        if kept is not None:
            kept.append(float(out.mean()))
        return by * out

    return hook


def test_values_and_code_of_hooks_count():
    """Two hooks of one name were taken for one, and those of the backward pass were not seen."""
    hooks = [
        scaled(1.0), scaled(2.0), partial(scaled(1.0)), Negative(1.0), Negative(2.0),
        (lambda _m, _g, out: out), (lambda _m, _g, out: -out),
    ]  # fmt: skip
    names = [identity_of(Scaled())]
    for kind in ("register_forward_hook", "register_forward_pre_hook", "register_full_backward_hook"):
        for hook in (*hooks, Negative(1.0).hook, Negative(2.0).hook):
            net = Scaled()
            getattr(net.act, kind)(hook)
            names.append(identity_of(net))
            again = Scaled()
            getattr(again.act, kind)(hook)
            assert identity_of(again) == names[-1]
    for shape in (lambda z: z.sin(), lambda z: z.cos(), Negative(1.0), Negative(2.0)):
        names.append(identity_of(Scaled(shape=shape)))
    # The kinds of hooks are one list.
    assert len(set(names)) == 1 + len(hooks) + 2 + 4


def test_what_a_hook_records_is_no_setting():
    net, kept = Scaled(), []
    net.register_forward_hook(scaled(1.0, kept))
    before = identity_of(net)
    net(torch.rand(2, 1, 4, 4))
    assert kept
    assert identity_of(net) == before


@pytest.mark.parametrize("made", ["script", "trace", "freeze", "export"])
def test_the_program_of_a_compiled_network_counts(made):
    """Programs with another activation or, if frozen, with other weights had one identity."""

    def program(act, scale=1.0):
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(4, 3), act).eval()
        net[0].weight.data.mul_(scale)
        if made == "trace":
            return torch.jit.trace(net, torch.rand(2, 4))
        if made == "export":
            return torch.export.export(net, (torch.rand(2, 4),)).module()
        script = torch.jit.script(net)
        return torch.jit.freeze(script) if made == "freeze" else script

    nets = [(nn.ReLU(),), (nn.Tanh(),), (nn.LeakyReLU(0.1),), (nn.LeakyReLU(0.2),), (nn.ReLU(), 2.0)]
    names = [identity_of(program(*given)) for given in nets]
    assert len(set(names)) == len(names)
    assert identity_of(program(nn.ReLU())) == names[0]


@dataclass(frozen=True)
class Moved(Attack):
    """An attack with a function as a setting."""

    threat: Threat
    by: Callable = torch.sign

    passes = 1
    needs_gradient = False

    def search(self, oracle, x, y, streams):
        return self.threat.project(x + self.by(x), x)


def test_the_function_of_an_attack_counts_and_its_address_does_not(tmp_path):
    """Another process had another address, and another function may have the same one."""
    x, y, threat = torch.rand(12, 16), torch.arange(12) % 3, Threat("linf", 0.05)
    first = evaluate(Scaled(), x, y, [Moved(threat, leaky(0.1))], resume=tmp_path / "rows")
    assert "0x" not in (tmp_path / "rows").read_text()
    assert "0x" not in "".join(first.attacks)
    again = evaluate(Scaled(), x, y, [Moved(threat, leaky(0.1))], resume=tmp_path / "rows")
    assert again.outcomes == first.outcomes
    for other in (leaky(0.2), torch.sin):
        with pytest.raises(ValueError, match="an evaluation with other attacks"):
            evaluate(Scaled(), x, y, [Moved(threat, other)], resume=tmp_path / "rows")


IDENTITY = """
from functools import partial

from torch import nn, relu

from atent.runs.identity import identity_of


class Key:
    pass


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.none, self.pair, self.keyed = None, (None, 0.5), {Key(): 0.5}
        self.named = {name: 0.5 for name in {"one", "two", "three", "four"}}
        self.text, self.act, self.half = repr(Key()), lambda z: z, partial(relu, Key())
        self.loop = [0.5]
        self.loop.append(self.loop)
        setattr(self, "", 1.0)

    def extra_repr(self):
        return f"act={self.act}"


print(identity_of(Own()))
"""


def test_the_identity_of_a_network_is_that_of_other_processes(tmp_path):
    """Attributes with the address of an object and mappings made from sets gave each process another identity."""
    (tmp_path / "own.py").write_text(IDENTITY)
    environments = [{**os.environ, "PYTHONHASHSEED": str(seed)} for seed in range(2)]
    command = [sys.executable, str(tmp_path / "own.py")]
    found = {subprocess.run(command, env=e, capture_output=True, text=True, check=True).stdout for e in environments}
    assert len(found) == 1


def test_the_identity_of_a_network_without_functions_is_that_of_the_earlier_version():
    """Its unfinished files resume: None in a sequence was written as it is."""
    model = torch.nn.Sequential(torch.nn.Identity())
    model[0].scale, model[0].pair = 2.0, (None, 0.5)
    assert identity_of(model) == digest(" Sequential", "0 Identity", "0  [('pair', (None, 0.5)), ('scale', 2.0)] []")


def test_a_cache_that_the_first_pass_fills_is_no_setting():
    net = Scaled()
    before = identity_of(net)
    net(torch.rand(2, 1, 4, 4))
    assert net.cache is not None
    assert identity_of(net) == before


class Counting(Scaled):
    """Counts its calls, and keeps the sizes of its batches."""

    def __init__(self):
        super().__init__()
        self.calls, self.sizes = 0, []

    def forward(self, z):
        self.count(z)
        self.sizes.append(len(z))
        return super().forward(z)

    def count(self, z):
        self.calls += 1


def test_a_network_that_counts_its_calls_resumes_in_the_same_process(tmp_path):
    x, y, net = torch.rand(12, 1, 4, 4), torch.arange(12) % 3, Counting()
    first = evaluate(net, x, y, [FGSM(Threat("linf", 0.05))], resume=tmp_path / "rows")
    assert evaluate(net, x, y, [FGSM(Threat("linf", 0.05))], resume=tmp_path / "rows").outcomes == first.outcomes


def test_no_batch_is_empty_where_no_sample_is_robust():
    torch.manual_seed(0)
    x, net = torch.rand(12, 1, 4, 4), Counting()
    y = net(x).argmax(1)
    assert evaluate(net, x, y, [FGSM(Threat("linf", 0.99))]).worst["k"] == 0
    assert min(net.sizes) > 0


def test_the_settings_of_the_parts_of_an_attack_count(conv_net, batch, tmp_path, monkeypatch):
    """Before: the text of a composite attack alone, so that rows of two versions of AutoAttack would be mixed."""
    x, y = batch(12)
    path, made = tmp_path / "part.jsonl", Twofold.parts
    evaluate(conv_net(), x, y, [Twofold(THREAT)], resume=path)
    monkeypatch.setattr(Twofold, "parts", lambda self: {**made(self), "pgd": PGD(self.threat, steps=4)})
    with pytest.raises(ValueError, match="other attacks"):
        evaluate(conv_net(), x, y, [Twofold(THREAT)], resume=path)


@dataclass(frozen=True)
class Behind(Twofold):
    """A composite with a part that uses a model."""

    def parts(self):
        return {"behind": Transfer(self.threat, "PGD(steps=2)", SOURCES[-1])}


SOURCES = []


def test_a_model_of_a_part_counts(conv_net, batch, tmp_path):
    """Before: those of the attack itself alone."""
    x, y = batch(12)
    path = tmp_path / "part.jsonl"

    def measure(seed):
        torch.manual_seed(seed)
        SOURCES.append(nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 10)).to(x.dtype))
        return evaluate(conv_net(), x, y, [Behind(THREAT)], resume=path)

    assert measure(1).n == measure(1).n == 12
    with pytest.raises(ValueError, match="other attacks"):
        measure(2)
