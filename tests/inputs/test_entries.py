"""What users of other libraries pass in: their numbers, arrays, loaders and ways of writing an attack."""

import copy
import dataclasses
import inspect
import json
import math
import pickle
import re
from typing import Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from atent import Threat
from atent.attacks import ATTACKS, DDN, FMN, PGD
from atent.attacks.spec import parse, show
from atent.certify import Sampling, Smoothed, bounds, certify_run, verified
from atent.checks import Settings, check_number, plain
from atent.data import DataSettings, collect, from_tensors
from atent.evaluate import evaluate, masking_checks, predict, sweep
from atent.evaluate.craft import craft
from atent.experiments.target import EvaluateSettings
from atent.methods import AWP, METHODS, PGDAT
from atent.optim import Optimizer, Schedule
from atent.train import TrainSettings, fit

LINF = Threat("linf", 0.1)
ATTACK = PGD(LINF, steps=2)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3)).eval()


@pytest.fixture
def data():
    """Values that are exact in half precision too, so that every type holds the same images."""
    rng = torch.Generator().manual_seed(1)
    return torch.randint(17, (20, 1, 8, 8), generator=rng) / 16, torch.arange(20) % 3


def reported(found):
    """An evaluation without its times."""
    content = found.to_json()
    for attack in content["attacks"].values():
        attack.pop("seconds")
    return content


# ---- numbers


@pytest.mark.parametrize("kind", [np.int64, np.int32, np.uint8, torch.tensor, lambda v: np.array(v)])
def test_integers_of_numpy_and_torch_are_integers(kind, net, data):
    x, y = data
    want = ATTACK(net, x, y, seed=3)
    attack = PGD(LINF, steps=kind(2), restarts=kind(1))
    assert attack == ATTACK
    assert type(attack.steps) is int
    assert torch.equal(attack(net, x, y, seed=kind(3)), want)
    assert reported(evaluate(net, x, y, [ATTACK], seed=kind(3), batch=kind(7))) == reported(
        evaluate(net, x, y, [ATTACK], seed=3)
    )
    votes = Smoothed(net, 0.25).votes(x, 120, seed=3)
    assert torch.equal(Smoothed(net, 0.25).votes(x, kind(120), seed=kind(3), batch=kind(100)), votes)
    sampling = Sampling(0.25, kind(50), kind(100), 0.01, kind(3))
    assert sampling == Sampling(0.25, 50, 100, 0.01, 3)
    json.dumps(dataclasses.asdict(sampling))
    settings = TrainSettings(epochs=kind(3), batch_size=kind(8), seed=kind(3))
    assert settings == TrainSettings(epochs=3, batch_size=8, seed=3)
    json.dumps(dataclasses.asdict(settings))
    assert DataSettings(limit=kind(50)) == DataSettings(limit=50)
    assert EvaluateSettings(limit=kind(50)) == EvaluateSettings(limit=50)


@pytest.mark.parametrize("kind", [np.float64, np.float32, torch.tensor])
def test_numbers_of_numpy_and_torch_are_numbers(kind):
    for made in (
        PGD(Threat("linf", kind(0.5)), step_size=kind(0.25)), Optimizer(lr=kind(0.25)), Schedule(factor=kind(0.25)),
        Smoothed(nn.Identity(), kind(0.25)), METHODS["Gaussian"](kind(0.25)),
    ):  # fmt: skip
        values = [v for v in vars(made).values() if isinstance(v, int | float | np.generic | torch.Tensor)]
        assert 0.25 in values
        assert all(type(v) in (int, float, bool) for v in values)


def test_what_is_no_number_stays():
    array, text = np.zeros(3), "8/255"
    assert plain(array) is array
    assert plain(text) is text
    with pytest.raises(ValueError, match=r"steps must be an integer, got 2\.0"):
        PGD(LINF, steps=np.float64(2.0))
    with pytest.raises(ValueError, match="seed must be an integer"):
        ATTACK(nn.Identity(), torch.zeros(1, 3), torch.zeros(1).long(), seed=np.float64(3))


@pytest.mark.parametrize(
    ("limits", "inside", "outside"),
    [
        ({"low": 0, "high": 1}, (0, 0.5, 1), {1.5: "[0, 1]", -0.5: "at least 0"}),
        ({"low": 0, "high": 1, "below": True}, (0, 0.5), {1: "[0, 1)", 2.0: "[0, 1)"}),
        ({"low": 0, "high": 100.0, "above": True}, (1e-3, 100), {101: "(0, 100]", 0: "above 0", math.inf: "above 0"}),
        ({"low": 1, "high": 3, "whole": True}, (1, 3), {4: "[1, 3]", 2.5: "an integer", math.nan: "an integer"}),
    ],
)  # fmt: skip
def test_a_number_lies_in_its_interval(limits, inside, outside):
    for value in inside:
        assert check_number("share", value, **limits) == value
    for value, says in outside.items():
        with pytest.raises(ValueError, match=re.escape(says)) as error:
            check_number("share", value, **limits)
        assert str(error.value).startswith("share must ")
        assert str(error.value).endswith(f", got {value}")


def choices(hint):
    """The strings among the values of a field's type."""
    if get_origin(hint) is Literal:
        return [choice for choice in get_args(hint) if isinstance(choice, str)]
    return [choice for part in get_args(hint) for choice in choices(part)]


@pytest.mark.parametrize("name", [*ATTACKS, *METHODS])
def test_another_choice_than_those_of_the_type_is_refused(name):
    cls = {**ATTACKS, **METHODS}[name]
    threats = [LINF, Threat("l2", 0.5), Threat("l0", 3), Threat("patch", 1, side=2)]
    given = {"threat": next(t for t in threats if t.norm in cls.norms)}
    hints = get_type_hints(cls)
    given = {} if "threat" not in {f.name for f in dataclasses.fields(cls)} else given
    for field in dataclasses.fields(cls):
        if known := choices(hints[field.name]):
            with pytest.raises(ValueError, match=f"^{field.name} .*{', '.join(known)}"):
                cls(**given, **{field.name: "nothing"})


# ---- a threat that is none


@pytest.mark.parametrize(
    "name", [*ATTACKS, *(n for n, m in METHODS.items() if "threat" in inspect.signature(m).parameters)]
)
@pytest.mark.parametrize("call", [{"eps": 8 / 255}, {"threat": 0.03}, (0.03,), ("linf", 0.03), (None,), {"epsilon": 1}])
def test_one_line_shows_how_to_write_it(name, call):
    cls = {**ATTACKS, **METHODS}[name]
    with pytest.raises(ValueError, match=f"{name} takes a Threat first") as error:
        cls(**call) if isinstance(call, dict) else cls(*call)
    text = str(error.value)
    assert "\n" not in text
    example = text.partition("write ")[2].partition(", with")[0]
    assert example.startswith(f"{name}(Threat(")
    if "..." not in example:  # what is shown runs
        assert isinstance(eval(example, {name: cls, "Threat": Threat}), cls)


def test_other_misuse_is_one_line():
    for call, says in (
        (
            lambda: PGD(nn.Identity(), eps=8 / 255, alpha=2 / 255),
            'a Identity, eps=0.03137, alpha=0.007843): write PGD(Threat("',
        ),
        (lambda: PGD(steps=3), "PGD takes a Threat first, got PGD(steps=3)"),
        (lambda: PGD(LINF, num_steps=3), "unknown field of PGD 'num_steps': did you mean 'steps'?"),
        (lambda: AWP(0.03), 'write AWP(PGDAT(Threat("linf", 8/255)))'),
        (lambda: AWP(eps=0.03), "AWP takes a Method first"),
        (lambda: METHODS["Standard"](eps=0.1), "unknown field of Standard 'eps'"),
        (lambda: TrainSettings(epoch=3), "did you mean 'epochs'?"),
    ):
        with pytest.raises(ValueError, match=re.escape(says)) as error:
            call()
        assert "\n" not in str(error.value)


def test_settings_are_copied_pickled_and_replaced():
    for made in (ATTACK, PGDAT(LINF), AWP(PGDAT(LINF)), TrainSettings()):
        assert isinstance(type(made), Settings)
        assert pickle.loads(pickle.dumps(made)) == made
        assert copy.deepcopy(made) == made
        assert dataclasses.replace(made) == made


# ---- arrays


@pytest.mark.parametrize("floats", [np.float32, np.float64, np.float16, ">f4"])
@pytest.mark.parametrize("integers", [np.int32, np.uint8, np.int64, np.uint16])
def test_arrays_are_taken_as_tensors_are(floats, integers, net, data):
    x, y = data
    ax, ay, ids = x.numpy().astype(floats), y.numpy().astype(integers), np.arange(20, dtype=np.int32)
    assert reported(evaluate(net, ax, ay, [ATTACK], ids=ids)) == reported(evaluate(net, x, y, [ATTACK]))
    assert torch.equal(ATTACK(net, ax, ay, ids=ids), ATTACK(net, x, y))
    assert torch.equal(ATTACK.run(net, ax, ay).norm, ATTACK.run(net, x, y).norm)
    assert torch.equal(predict(net, ax, ay), predict(net, x, y))
    assert torch.equal(Smoothed(net, 0.25).votes(ax, 50, ids=ids), Smoothed(net, 0.25).votes(x, 50))
    small = Threat("linf", 0.01)
    assert torch.equal(verified(net, ax, ay, small), verified(net, x, y, small))
    assert torch.equal(bounds(net, ax, small)[0], bounds(net, x, small)[0])
    rows = [certify_run(net, *pair, Sampling(0.25, 50, 100, 0.01), ids=ids).rows for pair in ((ax, ay), (x, y))]
    assert [r._replace(time=0) for r in rows[0]] == [r._replace(time=0) for r in rows[1]]
    assert torch.equal(craft(net, ax, ay, ATTACK)["x_adv"], craft(net, x, y, ATTACK)["x_adv"])
    made = from_tensors(ax, ay, ax, ay, validation=np.int64(4), split_seed=np.int64(2))
    want = from_tensors(x, y, x, y, validation=4, split_seed=2)
    assert torch.equal(made.train.x, want.train.x)
    assert torch.equal(made.train.y, want.train.y)
    assert made.train.x.dtype == torch.float32


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_attacked_in_single(dtype, net, data):
    x, y = data
    half = x.to(dtype)
    assert torch.equal(half.float(), x)
    made = ATTACK(net, half, y)
    assert made.dtype == torch.float32
    assert torch.equal(made, ATTACK(net, x, y))
    assert reported(evaluate(net, half, y, [ATTACK])) == reported(evaluate(net, x, y, [ATTACK]))
    assert torch.equal(Smoothed(net, 0.25).votes(half, 50), Smoothed(net, 0.25).votes(x, 50))
    assert torch.equal(bounds(net, half, LINF)[0], bounds(net, x, LINF)[0])
    assert torch.equal(from_tensors(half, y, half, y).train.x, from_tensors(x, y, x, y).train.x)
    with pytest.raises(ValueError, match="use float32 for both"):
        ATTACK(copy.deepcopy(net).to(dtype), half, y)


def test_a_float64_model_takes_arrays_in_float64(net, data):
    x, y = data
    assert ATTACK(net.double(), x.numpy(), y.numpy()).dtype == torch.float64


def test_arrays_of_every_layout(net, data):
    x, y = (t.numpy() for t in data)
    want = predict(net, *data)
    assert torch.equal(predict(net, x[::-1], y[::-1]), want.flip(0))
    assert torch.equal(predict(net, np.broadcast_to(x[:1], (3, 1, 8, 8)), y[:3]), want[:1].expand(3))
    frozen = x.copy()
    frozen.flags.writeable = False
    assert torch.equal(predict(net, frozen, y), want)
    assert torch.equal(predict(net, x.tolist(), y.tolist()), want)


# ---- loaders


@pytest.mark.parametrize("form", ["loader", "dataset", "batches", "generator"])
def test_whatever_gives_pairs_replaces_both(form, net, data):
    x, y = data

    def pairs():
        loader = DataLoader(TensorDataset(x, y), batch_size=7)
        made = {
            "loader": loader,
            "dataset": TensorDataset(x, y),
            "batches": list(loader),
            "generator": iter(list(loader)),
        }
        return made[form]

    assert reported(evaluate(net, pairs(), attacks=[ATTACK])) == reported(evaluate(net, x, y, [ATTACK]))
    assert torch.equal(craft(net, pairs(), None, ATTACK)["x_adv"], craft(net, x, y, ATTACK)["x_adv"])
    assert len(certify_run(net, pairs(), None, Sampling(0.25, 50, 100, 0.01)).rows) == 20
    assert sweep(net, pairs(), None, [ATTACK], [0.1])[0]["robust"] == sweep(net, x, y, [ATTACK], [0.1])[0]["robust"]
    assert len(masking_checks(net, pairs(), None, LINF)) > 10
    both = collect(pairs())
    assert torch.equal(both[0], x)
    assert torch.equal(both[1], y)
    assert len(from_tensors(*collect(pairs()), *both).train) == 18


def test_what_cannot_be_taken_says_what_to_do(net, data):
    x, y = data
    loader = DataLoader(TensorDataset(x, y), batch_size=7)
    odd = DataLoader(TensorDataset(x, y, y))
    for call, says in (
        (lambda: evaluate(net, loader, [ATTACK]), "evaluate(model, loader, attacks=[PGD(...)])"),
        (lambda: evaluate(net, loader, y, [ATTACK]), "x, y = atent.data.collect(loader)"),
        (lambda: evaluate(net, x, attacks=[ATTACK]), "labels are missing"),
        (lambda: evaluate(net, odd, attacks=[ATTACK]), "must yield pairs (x, y), got 3 items"),
        (lambda: evaluate(net, [], attacks=[ATTACK]), "yields no pairs"),
        (lambda: ATTACK(net, loader), "x, y = atent.data.collect(loader)"),
        (lambda: ATTACK(net, x), "labels are missing"),
        (lambda: ATTACK(net, (x.numpy() * 255).astype(np.uint8), y), "divide pixels by 255"),
        (lambda: ATTACK(net, np.array(["a"] * 20), y), "x cannot be read as numbers"),
        (lambda: Smoothed(net, 0.25).certify(loader), "x, y = atent.data.collect(loader)"),
        (lambda: from_tensors(loader, None, loader, None), "x, y = atent.data.collect(loader)"),
        (lambda: fit(net, loader, PGDAT(LINF)), "from_tensors(*collect(train_loader), *collect(test_loader))"),
        (lambda: fit(net, (x, y), PGDAT(LINF)), "data must be Data, got a tuple"),
        (lambda: collect([(x, y), (x[..., :4], y)]), "shapes (1, 8, 4) and (1, 8, 8)"),
        (lambda: collect("digits"), "got a str"),
    ):
        with pytest.raises(ValueError, match=re.escape(says)) as error:
            call()
        assert "\n" not in str(error.value)


# ---- eps = inf


def test_minimum_norm_attacks_without_a_limit(net, data):
    x, y = data
    endless = Threat("l2", "inf")
    assert show(endless) == "l2 inf"
    found = evaluate(net, x, y, [DDN(endless, steps=5), FMN(Threat("l2", np.inf), steps=5)], cascade=False)
    assert list(found.attacks) == ["DDN-5", "FMN-5"]
    json.dumps(found.to_json(), allow_nan=False)
    # A linear network is fooled by a step of the right length.
    assert found.worst["k"] == 0
    assert parse("DDN(eps=inf)", LINF.__class__("l2", 0.1), ATTACKS).threat == endless
    assert EvaluateSettings(norm="l2", eps=float("inf")).eps == "inf"
    with pytest.raises(ValueError, match=r"needs a finite eps, got inf: .* DDN"):
        parse("PGD(steps=3)", endless, ATTACKS)


@pytest.mark.parametrize(
    "given", [{"args": (Threat("linf", 0.1),)}, {"threat": Threat("linf", 0.1)}], ids=["first", "named"]
)
def test_a_threat_where_none_is_taken_is_one_line(given):
    from atent.methods import Standard

    with pytest.raises(ValueError, match="Standard takes no Threat: its fields are label_smoothing"):
        Standard(*given.pop("args", ()), **given)


def test_awp_is_shown_where_it_is_asked_of_a_method():
    for given in ((), (Threat("linf", 0.1),)):
        with pytest.raises(ValueError, match=r"AWP\(PGDAT\(Threat\("):
            PGDAT(*given, awp={"gamma": 0.005})
