"""The contract, for every attack in the registry: a new one is in the table as soon as it is registered."""

import copy
import math

import pytest
import torch
from kit import BALLS
from torch import nn

from atent.attacks import ATTACKS
from atent.attacks.starts import ALLOWED
from atent.testing import check_attack
from atent.testing.attack_case import within
from atent.testing.attacks import PROMISES
from atent.threat import COUNTS, NORMS, Threat

EPS = {"linf": 0.1, "l2": 0.7, "l1": 1.5, "l0": 2, "patch": 1}
FORM = {"patch": {"side": 2}}


def starts(norm, **more):
    return [{"start": s, **more} for s in ALLOWED[norm]]


# Settings beside the defaults, by attack and norm.
SETTINGS = {
    "PGD": lambda norm: [
        *starts(norm, steps=3),
        {"steps": 3, "restarts": 3},
        {"steps": 4, "keep": "best", "loss": "margin", "restarts": 2},
        {"steps": 3, "loss": "dlr", "step_size": 0.02, "keep": "best"},
        {"steps": 3, "loss": "kl"},
        {"steps": 3, "loss": "kl", "start": "gaussian", "start_noise": 0.01, "restarts": 3, "keep": "best"},
        {"steps": 4, "momentum": 1.0, "start": "zero"},
        {"steps": 4, "momentum": 0.7, "loss": "kl", "restarts": 2},
    ],
    "IFGS": lambda norm: [{"steps": 3, "step_size": 0.05}],
    "Langevin": lambda norm: [
        *starts(norm, steps=3),
        {"steps": 3, "variant": "published"},
        {"steps": 3, "variant": "published", "step_size": 0.05, "gamma": 2.0, "noise": 0.2},
        {"steps": 3, "projection": "every", "effective_noise": 0.1, "restarts": 3},
        {"steps": 3, "gradient": "raw", "anchor": "scaled", "step_size": 0.5, "noise": 0.5},
        {"steps": 3, "temperature": 0.04},
    ],
    "FAB": lambda norm: [
        {"steps": 4, "targets": 3},
        # steps so long that restarts matter, which they rarely do on networks as plain as these
        {"steps": 2, "targets": 2, "restarts": 6, "eta": 2.0, "alpha_max": 0.3, "beta": 0.5},
        {"steps": 3, "restarts": 4, "eta": 2.0, "alpha_max": 0.5},
        {"steps": 12, "targets": 3, "stop_at_eps": True},
    ],
    "Square": lambda norm: [
        {"queries": 8, "loss": "ce", "restarts": 2},
        {"queries": 52, "p_init": 0.3, "schedule": "absolute"},
    ],
    "APGD": lambda norm: [
        *starts(norm, steps=3),
        {"steps": 12, "restarts": 3},
        {"steps": 5, "loss": "dlr", "rho": 0.5, "eot": 2},
        {"steps": 5, "loss": "margin", "eot": 2, "restarts": 2},
        {"steps": 7, "loss": "dlr-targeted", "targets": 3},
        {"steps": 3, "loss": "dlr-targeted", "targets": 2, "restarts": 2},
    ],
    "AutoAttack": lambda norm: [{"version": "rand", "steps": 2, "eot": 2}],
    "SparsePGD": lambda norm: [{"steps": 10, "gradient": "projected", "restarts": 2, "patience": 1, "loss": "margin"}],
    "SparseRS": lambda norm: [{"queries": 10, "restarts": 2, "loss": "ce", "p_init": 0.3}],
    "TokenAttack": lambda norm: [{"steps": 6, "score": "greedy", "restarts": 2}, {"steps": 9, "score": "l1"}],
    "EoT": lambda norm: [{"attack": "FGSM", "samples": 3}],
}
# The same for the norms that not all attacks have.
SPARSE = {
    ("PGD", "l1"): [*starts("l1", steps=3), {"steps": 3, "restarts": 2, "keep": "best"}],
    ("PGD", "l0"): [{"steps": 3, "start": "zero"}, {"steps": 3, "restarts": 2, "keep": "best"}],
}
# The minimum-norm attacks draw nothing: every setting is in PLAIN too.
MINIMUM_NORM = {
    "CarliniWagner": [
        {"confidence": 0.3},
        {"steps": 12, "search_steps": 2, "initial_const": 5.0, "abort_early": False},
    ],
    "DeepFool": [{"classes": 3, "overshoot": 0.1}],
    "DDN": [{"init_norm": 0.3, "gamma": 0.1}, {"levels": 256}],
    "FMN": [{"step_size": 0.3, "final_step_size": 0.1, "gamma": 0.1, "final_gamma": 0.05}],
    "ALMA": [
        {"constraint": "margin", "penalty": "p3", "steps": 25},
        {"first_step": 0.3, "final_rate": 0.2, "tolerance": 0.0},
    ],
}
SETTINGS |= {name: lambda norm, more=more: more for name, more in MINIMUM_NORM.items()}
# Cheaper settings than the defaults, for attacks whose own would take minutes here.
QUICK = {
    "FAB": {"steps": 5},
    "Square": {"queries": 12},
    "APGD": {"steps": 8},
    "AutoAttack": {"steps": 3, "targets": 2, "queries": 6},
    "EoT": {"attack": "PGD(steps=3)", "samples": 2},
    "CarliniWagner": {"steps": 10, "search_steps": 3, "step_size": 0.05, "initial_const": 0.5},
    "DeepFool": {"steps": 6},
    "DDN": {"steps": 15},
    "FMN": {"steps": 15},
    "ALMA": {"steps": 20, "alpha": 0.5},
    "SAPF": {"steps": 10, "final_steps": 6, "search_steps": 2, "initial_const": 0.1},
    "SigmaZero": {"steps": 20},
    "SparsePGD": {"steps": 10},
    "SparseRS": {"queries": 12},
    "TokenAttack": {"steps": 8},
}
# The fewest classes that an attack works with, where that is more than 2.
CLASSES = {"AutoAttack": 4, "ALMA": 3}
# No draws at all: the seed does not matter.
PLAIN = [
    ("SAPF", {}),
    ("SigmaZero", {}),
    ("TokenAttack", {}),
    ("TokenAttack", {"steps": 9, "score": "l1"}),
    ("FGSM", {}),
    ("IFGS", {}),
    ("IFGS", {"steps": 3, "step_size": 0.05}),
    ("PGD", {"start": "zero", "steps": 3}),
    ("PGD", {"steps": 4, "momentum": 1.0, "start": "zero"}),
    ("FAB", {}),
    ("FAB", {"steps": 4, "targets": 3}),
    ("FAB", {"steps": 12, "targets": 3, "stop_at_eps": True}),
    ("APGD", {"start": "zero", "steps": 3}),
    ("EoT", {"attack": "FGSM", "samples": 3}),
    *((name, setting) for name, more in MINIMUM_NORM.items() for setting in [{}, *more]),
]

# Transfer sees the model once: tests of its own.
BOTH = [(name, norm) for name, kind in ATTACKS.items() if name != "Transfer" for norm in kind.norms]

TABLE = [
    pytest.param(name, norm, setting, id=" ".join([name, norm, *(f"{k}={v}" for k, v in setting.items())]))
    for name, norm in BOTH
    for setting in [{}, *(SETTINGS.get(name, lambda norm: [])(norm) if norm in BALLS else SPARSE.get((name, norm), []))]
]
CASE = pytest.mark.parametrize(("name", "norm", "setting"), TABLE)


def repeats(name, norm, setting):
    """Whether a quick case has the setting: that of linf, where another norm differs in its geometry alone, and that of
    PGD for a start, which is drawn for all of them by one function."""
    in_linf = norm != "linf" and any(c.values == (name, "linf", setting) for c in TABLE)
    return bool(setting) and (in_linf or (name != "PGD" and setting.keys() == {"start", "steps"}))


CONTRACTS = pytest.mark.parametrize(
    ("name", "norm", "setting"),
    [pytest.param(*c.values, id=c.id, marks=[pytest.mark.slow] if repeats(*c.values) else []) for c in TABLE],
)
MEASURED = pytest.mark.parametrize(("name", "norm", "setting"), [c for c in TABLE if c.values[1] not in COUNTS])


def typed(cases):
    """The cases in both precisions; slow is float64 with a setting, since those of an attack share its arithmetic."""
    return pytest.mark.parametrize(
        ("name", "norm", "setting", "dtype"),
        [
            pytest.param(
                *c.values, dtype, id=f"{name}-{c.id}", marks=[pytest.mark.slow] if wide and c.values[2] else []
            )
            for name, dtype, wide in (("f32", torch.float32, False), ("f64", torch.float64, True))
            for c in cases
        ],
    )


DEFAULTS = pytest.mark.parametrize(
    ("name", "norm"), [pytest.param(name, norm, id=f"{name} {norm}") for name, norm in BOTH]
)


def threat_in(norm, eps=None, **more):
    return Threat(norm, EPS[norm] if eps is None else eps, **{**FORM.get(norm, {}), **more})


def build(name, norm, setting, eps=None):
    return ATTACKS[name](threat=threat_in(norm, eps), **{**QUICK.get(name, {}), **setting})


def draws_nothing(name, setting):
    return (name, setting) in PLAIN


def bits(t):
    return t.view(torch.int32 if t.dtype == torch.float32 else torch.int64)


def assert_inside(norm, x_adv, x, eps):
    """The contract's box and radius, by the suite's own measure."""
    threat = threat_in(norm, eps)
    assert x_adv.dtype == x.dtype
    assert not x_adv.requires_grad
    assert threat.contains(x_adv, x).all()
    within(threat, x_adv, x, eps)


def promised(name, norm, setting):
    """What the suite has to have checked."""
    kind = ATTACKS[name]
    absent = set()
    if not kind.minimum_norm:
        absent.add(next(p for p in PROMISES if p.startswith("a minimum-norm attack")))
    if norm in COUNTS:  # no count is 0
        absent.add(next(p for p in PROMISES if p.startswith("eps = 0")))
    if not kind.needs_gradient:
        absent.add(next(p for p in PROMISES if p.startswith("a network without an input gradient")))
    if "effective_noise" in setting:  # there is no noise level for it at step size 0, which eps 0 gives
        absent.add(next(p for p in PROMISES if p.startswith("eps = 0")))
    return [p for p in PROMISES if p not in absent]


@CONTRACTS
def test_the_contract(name, norm, setting, conv_net, batch):
    x, y = batch(9)
    assert check_attack(build(name, norm, setting), model=conv_net(norm=True), x=x, y=y, seed=3) == promised(
        name, norm, setting
    )


def test_eps_zero_with_an_effective_noise(conv_net, batch):
    (x, y), model = batch(6), conv_net()
    for norm in BALLS:
        attack = build("Langevin", norm, {"steps": 3, "effective_noise": 0.1, "step_size": 0.01}, eps=0)
        assert torch.equal(bits(attack(model, x, y)), bits(x))


def test_the_table_is_no_formality(conv_net, batch):
    # some samples fall at these radii and some stand
    for norm in NORMS:
        for dtype in (torch.float32, torch.float64):
            x, y = batch(40, dtype)
            fooled = ATTACKS["PGD"](threat_in(norm)).run(conv_net(dtype, norm=True), x, y).success
            assert 5 < int(fooled.sum()) < 35


@typed(TABLE)
def test_seed_and_ids_matter_where_an_attack_draws(name, norm, setting, dtype, conv_net, batch):
    model, (x, y) = conv_net(dtype), batch(6, dtype)
    attack, ids = build(name, norm, setting), torch.tensor([5, 0, 2**40, 7, 8, 1])
    first, same = attack(model, x, y, seed=1, ids=ids), draws_nothing(name, setting)
    assert (first != x).any()
    assert torch.equal(attack(model, x, y, seed=2, ids=ids), first) == same
    assert torch.equal(attack(model, x, y, seed=1, ids=ids + 1), first) == same


class Counted(nn.Module):
    """Counts the passes of each sample, known by its first coordinate, which stays within its own n-th."""

    def __init__(self, n, d):
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.n, self.weight = n, nn.Parameter(torch.randn(d - 1, 4, generator=g, dtype=torch.float64))
        self.forwards, self.backwards = torch.zeros(n).long(), torch.zeros(n).long()

    def forward(self, x):
        rows = (x.detach()[:, 0] * self.n).floor().long()
        one = torch.ones_like(rows)
        self.forwards.index_add_(0, rows, one)
        z = torch.tanh(x[:, 1:] - 0.5) @ self.weight
        if z.requires_grad:

            def count(grad):
                self.backwards.index_add_(0, rows, one)

            z.register_hook(count)
        return z + 0.0 * x[:, :1]


@MEASURED
def test_passes_are_counted_exactly(name, norm, setting):
    n, d, eps = 10, 9, 0.004
    x = torch.rand(n, d, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    x[:, 0] = (torch.arange(n) + 0.5) / n
    if {"noise", "effective_noise", "temperature"} & setting.keys():
        setting = {**setting, "noise": 1e-3, "step_size": 1e-3}
        setting.pop("effective_noise", None)
        setting.pop("temperature", None)
    model = Counted(n, d)
    y = model(x).argmax(1)
    y[[1, 4, 5]] = (y[[1, 4, 5]] + 1) % 4  # these fall at once, the others stand
    model.forwards.zero_()
    out = build(name, norm, setting, eps).run(model, x, y)
    assert 0 < int(out.success.sum()) < n
    assert torch.equal(out.forwards, model.forwards)
    assert torch.equal(out.backwards, model.backwards)
    most = build(name, norm, setting, eps).passes
    assert (out.forwards + out.backwards).max() <= most
    if not ATTACKS[name].minimum_norm and name not in SPARING:
        assert (out.forwards + out.backwards).max() == most
    assert out.forwards.dtype == out.backwards.dtype == torch.int64
    assert (out.forwards > 0).all()


# They leave out queries that cannot change anything.
SPARING = ("Square", "AutoAttack")

KNOWN_PASSES = [
    ("FGSM", {}, 1, 1),
    ("PGD", {"steps": 7}, 7, 7),
    ("PGD", {"steps": 7, "keep": "best"}, 8, 7),
    ("IFGS", {"steps": 7}, 7, 7),
    # the clean logits are asked for once
    ("PGD", {"steps": 7, "loss": "kl"}, 8, 7),
    ("PGD", {"steps": 7, "loss": "kl", "restarts": 3}, 25, 21),
    ("PGD", {"steps": 7, "momentum": 1.0}, 7, 7),
    ("Langevin", {"steps": 7}, 7, 7),
    # the clean logits; two forwards per step, and a backward for each of nine wrong classes
    ("FAB", {"steps": 7}, 15, 63),
    ("FAB", {"steps": 7, "restarts": 3, "stop_at_eps": True}, 43, 189),
    # five runs, one backward per step
    ("FAB", {"steps": 7, "targets": 5}, 71, 35),
    ("FAB", {"steps": 7, "targets": 20}, 127, 63),
    # the start and the query
    ("Square", {"queries": 1}, 2, 0),
    ("Square", {"queries": 1, "restarts": 2}, 6, 0),
    # each restart is evaluated by one more forward
    ("PGD", {"steps": 7, "restarts": 3}, 24, 21),
    # the last point is only evaluated
    ("APGD", {"steps": 7}, 8, 7),
    ("APGD", {"steps": 7, "eot": 3}, 24, 21),
    # the first run and the others together are evaluated; the clean logits name the targets
    ("APGD", {"steps": 7, "restarts": 3}, 26, 21),
    ("APGD", {"steps": 7, "loss": "dlr-targeted"}, 75, 63),
    ("APGD", {"steps": 7, "loss": "dlr-targeted", "targets": 20}, 75, 63),
    ("EoT", {"attack": "PGD(steps=7)", "samples": 4}, 28, 28),
    # the clean logits, and after each part an evaluation of the remaining samples
    ("AutoAttack", {"version": "rand", "steps": 7, "eot": 3}, 1 + 2 * (24 + 1), 2 * 21),
    ("AutoAttack", {"steps": 7, "targets": 9, "queries": 1}, 1 + (8 + 1) + (75 + 1) + (127 + 1) + (2 + 1), 7 + 63 + 63),
]


@pytest.mark.parametrize(("name", "setting", "forwards", "backwards"), KNOWN_PASSES)
def test_passes_are_as_many_as_stated(name, setting, forwards, backwards, conv_net, batch):
    model, (x, y) = conv_net(), batch(20)
    x, y = x[model(x).argmax(1) == y], y[model(x).argmax(1) == y]
    out = build(name, "linf", setting, eps=1e-6).run(model, x, y)
    assert not out.success.any()
    assert out.forwards.tolist() == [forwards + 1] * len(x)  # and one for the verdict
    assert out.backwards.tolist() == [backwards] * len(x)


@typed(TABLE)
def test_one_stream_for_the_batch(name, norm, setting, dtype, conv_net, batch):
    model, (x, y) = conv_net(dtype), batch(5, dtype)
    attack, rng = build(name, norm, setting), torch.Generator().manual_seed(6)
    first, second = attack(model, x, y, rng=rng), attack(model, x, y, rng=rng)
    again = attack(model, x, y, rng=torch.Generator().manual_seed(6))
    assert_inside(norm, first, x, EPS[norm])
    assert torch.equal(bits(first), bits(again))
    if draws_nothing(name, setting):
        assert torch.equal(first, second)
    elif norm not in COUNTS:  # two starts may end at the same few elements
        assert not torch.equal(first, second)


@DEFAULTS
def test_a_network_with_dropout_is_the_same_at_each_call(name, norm, conv_net, batch):
    (x, y), body = batch(4), conv_net()
    model = nn.Sequential(body[:-1], nn.Dropout(0.3), body[-1]).train()
    attack = build(name, norm, {})
    first = attack(model, x, y, seed=1, mode="train")
    torch.rand(5)  # the caller's own stream is elsewhere by now
    assert torch.equal(attack(model, x, y, seed=1, mode="train"), first)


@CASE
def test_channels_last_changes_speed_only(name, norm, setting, conv_net, batch):
    """The model sees that memory format, and float64 results agree to rounding."""
    seen = []

    def look(module, inputs):
        seen.append(inputs[0].stride(1) == 1 and inputs[0].is_contiguous(memory_format=torch.channels_last))

    (x, y), model, attack = batch(4), conv_net(), build(name, norm, setting)
    plain = attack.run(model, x, y)
    model.register_forward_pre_hook(look)
    other = attack.run(model, x, y, channels_last=True)
    assert seen
    assert all(seen)
    assert torch.equal(other.success, plain.success)
    assert (other.x_adv - plain.x_adv).abs().max() <= 1e-8


@CASE
def test_an_empty_batch_of_one_stream(name, norm, setting, conv_net, batch):
    x, y = (t[:0] for t in batch(2, torch.float32))
    attack, model = build(name, norm, setting), conv_net(torch.float32)
    assert attack.run(model, x, y).x_adv.dtype == torch.float32
    assert attack(model, x, y, rng=torch.Generator()).shape == (0, 1, 8, 8)


@typed([c for c in TABLE if c.values[1] not in COUNTS])
def test_flat_inputs(name, norm, setting, dtype, two_class):
    if setting.get("loss") in ("dlr", "dlr-targeted"):
        setting = {**setting, "loss": "ce"}
    if CLASSES.get(name, 2) > 2:
        pytest.skip(f"{name} needs {CLASSES[name]} classes; its test of flat inputs is its own")
    model, x, y, distance = two_class(dtype=dtype)
    eps = 1.2 * float(distance[norm].median())
    out = build(name, norm, setting, eps).run(model, x, y)
    assert_inside(norm, out.x_adv, x, eps)
    assert not out.success[distance[norm] > 1.01 * eps].any()


def changed(index, value):
    def change(x):
        x = x.clone()
        x[index] = value
        return x

    return change


BAD = {
    "uint8": ({"x": lambda x: (x * 255).to(torch.uint8)}, r"floats in \[0, 1\], got torch.uint8: divide"),
    "raw pixels": ({"x": lambda x: x * 255}, r"inputs lie in \[0, 255\], outside the box \[0, 1\]"),
    "0.1 above": ({"x": changed((0, 0, 0, 0), 1.1)}, r"inputs lie in \[0, 1.1\], outside the box \[0, 1\]"),
    "0.1 below": ({"x": changed((0, 0, 0, 0), -0.1)}, r"inputs lie in \[-0.1, 1\], outside"),
    "nan": ({"x": changed((1, 0, 2, 2), math.nan)}, "NaN or infinity"),
    "inf": ({"x": changed((1, 0, 2, 2), math.inf)}, "NaN or infinity"),
    "one dimension": ({"x": lambda x: x[:, 0, 0, 0]}, r"got shape \(4,\)"),
    "no dimension": ({"x": lambda x: x[0, 0, 0, 0]}, r"got shape \(\)"),
    "float labels": ({"y": lambda y: y.float()}, r"4 integers, one per input, got torch.float32 of shape"),
    "bool labels": ({"y": lambda y: y > 3}, "got torch.bool"),
    "one-hot labels": ({"y": lambda y: nn.functional.one_hot(y, 10)}, r"of shape \(4, 10\)"),
    "labels missing": ({"y": lambda y: y[:2]}, r"4 integers, one per input, got torch.int64 of shape \(2,\)"),
    "label below 0": ({"y": changed(0, -1)}, "labels must be 0 or more, got -1"),
    "label too large": ({"y": changed(0, 10)}, r"label 10 is out of range: the model has 10 outputs"),
    "ids missing": ({"ids": torch.arange(3)}, r"4 int64 sample numbers, got torch.int64 of shape \(3,\)"),
    "ids of floats": ({"ids": torch.arange(4.0)}, "got torch.float32"),
    "ids negative": ({"ids": torch.arange(4) - 1}, r"ids must lie in \[0, 2\^48\), got -1 to 2"),
    "ids too large": ({"ids": torch.arange(4) + 2**48}, "got 281474976710656 to"),
    "seed": ({"seed": 0.5}, "seed must be an integer of at most 64 bits, got 0.5"),
    "seed too large": ({"seed": 2**64}, "got 18446744073709551616"),
    "softmax": ({"model": lambda m: nn.Sequential(m, nn.Softmax(1))}, "returns probabilities"),
    "nan logits": ({"model": lambda m: Through(m, lambda z: z * math.nan)}, "NaN or infinite logits"),
    "no classes": ({"model": lambda m: Through(m, lambda z: z[:, 0])}, "got one output for each sample"),
    "a row only": ({"model": lambda m: Through(m, lambda z: z[:1])}, r"got shape \(1, 10\) for 4 inputs"),
    "a tuple": ({"model": lambda m: Through(m, lambda z: (z, z))}, "must return logits .* got a tuple"),
}


class Through(nn.Module):
    def __init__(self, body, change):
        super().__init__()
        self.body, self.change = body, change

    def forward(self, x):
        return self.change(self.body(x))


@pytest.mark.parametrize("name", ["PGD", "Square"])
@pytest.mark.parametrize("kind", BAD)
def test_bad_input_is_named(name, kind, conv_net, batch):
    """That every attack refuses it is the contract; what the line says comes from one place."""
    change, text = BAD[kind]
    (x, y), model = batch(4), conv_net()
    assert x.max() == 1
    x, y = change.get("x", lambda v: v)(x), change.get("y", lambda v: v)(y)
    model = change.get("model", lambda v: v)(model)
    keywords = {k: v for k, v in change.items() if k in ("ids", "seed")}
    with pytest.raises(ValueError, match=text) as error:
        build(name, "linf", {})(model, x, y, **keywords)
    assert "\n" not in str(error.value)


@DEFAULTS
def test_a_model_without_an_input_gradient(name, norm, conv_net, batch):
    cut, (x, y) = Through(conv_net(), lambda z: z.detach()), batch(4)
    if not ATTACKS[name].needs_gradient:
        build(name, norm, {})(cut, x, y)
        return
    with pytest.raises(ValueError, match="no gradient with respect to its input: a layer detaches"):
        build(name, norm, {})(cut, x, y)


BAD_SETTINGS = [
    ("PGD", "linf", {"steps": 0}, "steps must be at least 1, got 0"),
    ("PGD", "linf", {"steps": 2.5}, "steps must be an integer, got 2.5"),
    ("PGD", "linf", {"steps": "10"}, "steps must be an integer, got '10'"),
    ("PGD", "linf", {"steps": True}, "steps must be an integer, got True"),
    ("PGD", "linf", {"restarts": 0}, "restarts must be at least 1, got 0"),
    ("PGD", "linf", {"step_size": -0.1}, "step_size must be at least 0, got -0.1"),
    ("PGD", "linf", {"step_size": math.nan}, "step_size must be a finite number or none, got nan"),
    ("PGD", "linf", {"step_size": "big"}, "step_size must be a number or none, got 'big'"),
    ("PGD", "linf", {"start": "sphere"}, r"start \(for linf\) 'sphere' is not known: use one of zero"),
    ("PGD", "l2", {"start": "corner"}, r"start \(for l2\) 'corner' is not known"),
    ("PGD", "l2", {"loss": "cw"}, "loss 'cw' is not known: use one of ce, margin, dlr"),
    ("PGD", "l2", {"keep": "first"}, "keep 'first' is not known"),
    ("PGD", "l2", {"loss": "kl", "start": "zero"}, "loss 'kl' has its minimum at x, .* use start 'uniform'"),
    ("PGD", "linf", {"momentum": -0.5}, "momentum must be at least 0, got -0.5"),
    ("PGD", "linf", {"momentum": math.inf}, "momentum must be a finite number, got inf"),
    ("PGD", "linf", {"start": "gaussian", "start_noise": 0.0}, "start_noise must be above 0, got 0"),
    ("PGD", "linf", {"start_noise": 0.1}, "start_noise is for start 'gaussian', got start 'uniform': omit"),
    ("IFGS", "linf", {"steps": 0}, "steps must be at least 1, got 0"),
    ("IFGS", "l2", {"step_size": math.nan}, "step_size must be a finite number or none, got nan"),
    ("FAB", "l2", {"steps": 0}, "steps must be at least 1, got 0"),
    ("FAB", "l2", {"restarts": 1.5}, "restarts must be an integer, got 1.5"),
    ("FAB", "l2", {"targets": 0}, "targets must be at least 1, got 0"),
    ("FAB", "linf", {"alpha_max": 1.5}, r"alpha_max must lie in \[0, 1\], got 1.5"),
    ("FAB", "linf", {"alpha_max": -0.1}, "alpha_max must be at least 0, got -0.1"),
    ("FAB", "linf", {"beta": 2}, r"beta must lie in \[0, 1\], got 2"),
    ("FAB", "linf", {"eta": 0.9}, "eta must be at least 1, got 0.9"),
    ("Square", "linf", {"queries": 0}, "queries must be at least 1, got 0"),
    ("Square", "linf", {"restarts": 0}, "restarts must be at least 1, got 0"),
    ("Square", "l2", {"p_init": 0}, "p_init must be above 0, got 0"),
    ("Square", "l2", {"p_init": 1.2}, r"p_init must lie in \(0, 1\], got 1.2"),
    ("Square", "l2", {"loss": "dlr"}, "loss 'dlr' is not known: use one of margin, ce"),
    ("APGD", "linf", {"steps": 0}, "steps must be at least 1, got 0"),
    ("APGD", "linf", {"restarts": 1.5}, "restarts must be an integer, got 1.5"),
    ("APGD", "linf", {"targets": 0}, "targets must be at least 1, got 0"),
    ("APGD", "linf", {"eot": 0}, "eot must be at least 1, got 0"),
    ("APGD", "linf", {"rho": 1.5}, r"rho must lie in \[0, 1\], got 1.5"),
    ("APGD", "linf", {"rho": -0.5}, "rho must be at least 0, got -0.5"),
    ("APGD", "linf", {"loss": "cw"}, "loss 'cw' is not known: use one of ce, dlr, margin, dlr-targeted"),
    ("APGD", "linf", {"start": "sphere"}, r"start \(for linf\) 'sphere' is not known"),
    ("AutoAttack", "linf", {"version": "plus"}, "version 'plus' is not known: use one of standard, rand"),
    ("AutoAttack", "l2", {"queries": 0}, "queries must be at least 1, got 0"),
    ("EoT", "linf", {"samples": 0}, "samples must be at least 1, got 0"),
    ("EoT", "linf", {"attack": "Square"}, "EoT averages gradients, and Square uses none: run it alone"),
    ("EoT", "linf", {"attack": "AutoAttack"}, "EoT needs an attack that is one search .*, got AutoAttack: use PGD"),
    ("EoT", "linf", {"attack": "APGD(eot=5)"}, r"EoT needs an attack that is one search .*, got APGD\(eot=5\)"),
    ("EoT", "linf", {"attack": "EoT"}, "EoT needs an attack that is one search with single gradients, got EoT"),
    ("EoT", "linf", {"attack": "PGD(eps=0.5)"}, "has a threat of its own: give norm and eps to the attack around"),
    ("EoT", "linf", {"attack": "PGX"}, "unknown attack 'PGX'"),
    ("Transfer", "linf", {}, "Transfer needs a source: a run folder, module:function or, from Python, a module"),
    ("Transfer", "linf", {"source": 3}, "Transfer needs a source"),
    ("Transfer", "linf", {"source": "x", "attack": "PGD(norm=l2, eps=0.5)"}, "has a threat of its own"),
    ("Langevin", "l2", {"projection": "never"}, "projection 'never' is not known: use one of last, every"),
    ("Langevin", "l2", {"projection": "often"}, "projection 'often' is not known"),
    ("Langevin", "l2", {"variant": "mine"}, "variant 'mine' is not known: use one of released, published"),
    ("Langevin", "l2", {"gradient": "big"}, "gradient 'big' is not known"),
    ("Langevin", "l2", {"anchor": "hard"}, "anchor 'hard' is not known"),
    ("Langevin", "linf", {"start": "sphere"}, r"start \(for linf\) 'sphere'"),
    ("Langevin", "l2", {"steps": 0}, "steps must be at least 1, got 0"),
    ("Langevin", "l2", {"steps": 1.5}, "steps must be an integer, got 1.5"),
    ("Langevin", "l2", {"restarts": 0}, "restarts must be at least 1, got 0"),
    ("Langevin", "l2", {"noise": -1.0}, "noise must be at least 0, got -1"),
    ("Langevin", "l2", {"gamma": -1.0}, "gamma must be at least 0, got -1"),
    ("Langevin", "l2", {"step_size": math.inf}, "step_size must be a finite number or none, got inf"),
    ("Langevin", "l2", {"noise": 0.1, "effective_noise": 0.2}, "noise 0.1 and effective_noise 0.2 exclude"),
    ("Langevin", "l2", {"noise": 0.1, "temperature": 0.2}, "noise 0.1 and temperature 0.2 exclude each other"),
    ("Langevin", "l2", {"effective_noise": 0.1, "temperature": 0.2}, "effective_noise 0.1 and temperature 0.2 exclude"),
    ("Langevin", "l2", {"temperature": -1.0}, "temperature must be at least 0, got -1"),
    ("Langevin", "l2", {"effective_noise": 0.1, "step_size": 0.0}, "needs a step size above 0, got 0"),
    ("Langevin", "l2", {"gamma": 2.5}, "an anchor term of weight 2.5 per step makes the chain diverge"),
]


@pytest.mark.parametrize(("name", "norm", "setting", "text"), BAD_SETTINGS)
def test_bad_settings_are_refused_in_one_line(name, norm, setting, text):
    with pytest.raises(ValueError, match=text) as error:
        build(name, norm, setting)
    assert "\n" not in str(error.value)


def test_a_budget_attack_needs_a_budget(conv_net, batch):
    with pytest.raises(ValueError, match="FGSM needs a finite eps, got inf: only minimum-norm attacks"):
        ATTACKS["FGSM"](Threat("linf", math.inf))(conv_net(), *batch(3))


def test_gradients_are_averaged_over_samples(conv_net, batch):
    from atent.attacks.oracle import Oracle
    from atent.losses import cross_entropy

    model, (x, y) = nn.Sequential(nn.Dropout(0.3), conv_net()).train(), batch(4)
    counters = torch.zeros(2, 4, dtype=torch.int64)
    torch.manual_seed(0)
    grad, values, _ = Oracle(model, *counters, check=True).averaging(5).gradient(x, y, cross_entropy)
    torch.manual_seed(0)
    single = [Oracle(model, *torch.zeros_like(counters), check=False).gradient(x, y, cross_entropy) for _ in range(5)]
    assert torch.allclose(grad, sum(g for g, _, _ in single) / 5, rtol=1e-12, atol=1e-15)
    assert torch.allclose(values, sum(v for _, v, _ in single) / 5, rtol=1e-12)
    assert counters.tolist() == [[5] * 4] * 2


def test_dlr_on_two_classes_names_the_fix(two_class):
    model, x, y, _ = two_class()
    with pytest.raises(ValueError, match="at least 3 classes, got 2: use the margin loss"):
        build("PGD", "linf", {"loss": "dlr"})(model, x, y)


def test_attacks_are_frozen_and_comparable():
    for name in ATTACKS:
        for norm in ATTACKS[name].norms if name != "Transfer" else ():
            attack = build(name, norm, {})
            assert attack == copy.deepcopy(attack)
            with pytest.raises(AttributeError):
                attack.threat = None
