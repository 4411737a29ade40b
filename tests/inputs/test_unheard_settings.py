"""Settings that had no effect without a word: they have it now, or are refused."""

import json
import sys
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
import torch
from torch import nn

from atent import Threat
from atent import runs as folder
from atent.attacks import APGD, ATTACKS, IFGS, PGD, SAPF, AutoAttack, EoT, Langevin
from atent.attacks.spec import parse
from atent.cli import main
from atent.data import DataSettings, load
from atent.experiments.recipe_files import read_recipe, recipe_names
from atent.experiments.recipes import job
from atent.messages import once, shared_settings
from atent.methods import (
    ACL,
    ATENT,
    AWP,
    CROWNIBP,
    FGSMRS,
    MART,
    PGDAT,
    TRADES,
    DistilledTRADES,
    Dual,
    SmoothAdv,
    Standard,
)  # fmt: skip
from atent.optim import Optimizer, Schedule, Walk
from atent.train import Callback, TrainSettings, fit


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def trained(data, **more):
    return fit(net(), data, Standard(), settings=TrainSettings(epochs=2, batch_size=32), progress=False, **more)


def test_a_training_has_the_augmentation_of_its_data():
    plain, flipped = (load(DataSettings("digits", limit=64, validation=40, augment=a)) for a in ("none", "flip"))
    losses = {name: [row["loss"] for row in trained(data, **more).history] for name, data, more in (
        ("none", plain, {}), ("flip", flipped, {}), ("given", plain, {"augmentation": "flip"}),
        ("refused", flipped, {"augmentation": "none"}),
    )}  # fmt: skip
    assert losses["flip"] == losses["given"] != losses["none"] == losses["refused"]


def two_rates(parameters, lr):
    """The bias at a tenth of the rate."""
    weight, bias = parameters
    return torch.optim.SGD([{"params": [weight]}, {"params": [bias], "lr": lr / 10}], lr=lr)


def own_rate(parameters, lr):
    """A rate that is not that of the settings."""
    return torch.optim.SGD(parameters, lr=0.02)


def decaying(parameters, lr):
    """A decay that the user has chosen."""
    return torch.optim.AdamW(parameters, lr)


class Rates(Callback):
    """The rates of the groups of an optimizer at each step."""

    def __init__(self, optimizers):
        self.optimizers, self.seen = optimizers, []

    def step(self, progress):
        self.seen.append([group["lr"] for group in self.optimizers[-1].param_groups])


@pytest.mark.parametrize(("make", "wanted"), [(two_rates, [0.1, 0.01]), (own_rate, [0.02])])
def test_each_group_of_parameters_keeps_its_rate(make, wanted, monkeypatch, tmp_path):
    """The schedule multiplies the rates that an own optimizer gives its groups."""
    made = []

    def two_groups(parameters, lr):
        parameters = list(parameters)
        # The settings are tried on a single parameter.
        made.append(make(parameters, lr) if len(parameters) == 2 else torch.optim.SGD(parameters, lr=lr))
        return made[-1]

    monkeypatch.setattr(sys.modules[__name__], "grouped", two_groups)
    rates = Rates(made)
    trained(
        load(DataSettings("digits", limit=64, validation=40)), optimizer=Optimizer(f"{__name__}:grouped"),
        schedule=Schedule("multistep", milestones=(1,)), callbacks=[rates],
    )  # fmt: skip
    assert rates.seen[0] == pytest.approx(wanted)
    assert rates.seen[-1] == pytest.approx([w / 10 for w in wanted])


grouped = None


@pytest.mark.parametrize("name", ["Adam", "SGLD", "torch.optim:RMSprop"])
def test_momentum_is_refused_where_it_has_no_effect(name):
    with pytest.raises(ValueError, match=f"momentum is for SGD, EntropySGD and LARS, not for {name}"):
        Optimizer(name, lr=0.01, momentum=0.5)
    assert Optimizer(name, lr=0.01).lr == 0.01


def test_sgld_has_only_the_noise_of_the_walk():
    with pytest.raises(ValueError, match="SGLD takes only the noise"):
        Optimizer("SGLD", walk=Walk(inner_steps=9))
    assert Optimizer("SGLD", walk=Walk(noise=0.01)).walk.noise == 0.01


LINF, L2 = Threat("linf", 0.1), Threat("l2", 0.5)
SAMPLES = {"objective": "data-entropy", "gradient": "raw", "noise": 0.1, "projection": "never"}


@pytest.mark.parametrize(
    ("make", "idle", "used"),
    [
        (TrainSettings, {"average_decay": 0.9}, {"average": "ema"}),
        (TrainSettings, {"average": "swa", "average_decay": 0.9}, {"average": "ema"}),
        (TrainSettings, {"average_start": 0.5}, {"average": "swa"}),
        (TrainSettings, {"validations": 5}, {"minutes": 1.0}),
        (TrainSettings, {"minutes": 1.0, "validate_every": 5}, {"minutes": None}),
        (TrainSettings, {"select": "last", "patience": 5}, {"select": "clean"}),
        (TrainSettings, {"rollbacks": 5}, {"on_nonfinite": "rollback"}),
        (Schedule, {"milestones": (5, 8)}, {"kind": "multistep"}),
        (Schedule, {"kind": "cosine", "milestones": (5, 8)}, {"kind": "multistep"}),
        (Schedule, {"every": 5}, {"kind": "step"}),
        (Schedule, {"kind": "multistep", "milestones": (5,), "every": 5}, {"kind": "step", "milestones": ()}),
        (Schedule, {"kind": "cosine", "factor": 0.5}, {"kind": "step", "every": 2}),
        (Schedule, {"kind": "multistep", "milestones": (5,), "factors": (0.2,), "factor": 0.5}, {"factors": ()}),
        (Schedule, {"kind": "cosine", "unit": "step", "peak": 0.3}, {"kind": "cyclic"}),
        (Schedule, {"unit": "step"}, {"warmup": 2}),
        (Schedule, {"kind": "step", "every": 2, "warmup": 1}, {"unit": "step"}),
        (Schedule, {"warmup": 1}, {"kind": "cosine"}),
        (Walk, {"average": "ergodic", "alpha": 0.5}, {"average": "exponential"}),
        (Walk, {"gamma": 0.0, "scale": "none", "scoping": 0.5}, {"gamma": 0.1}),
        (partial(ATENT, LINF), {"beta": 2.0}, {"outer_loss": "kl"}),
        (partial(ATENT, LINF), {"anchor": "scaled"}, {"gamma": 0.1}),
        (partial(ATENT, LINF), {"gamma": 0.0, "anchor": "scaled"}, {"gamma": "0.0..0.1"}),
        (partial(ATENT, LINF), {"calibrated": "noise", "anchor": "scaled"}, {"calibrated": True}),
        (partial(ATENT, L2), {"burn_in": 2, "alpha": 0.5}, {"burn_in": None}),
        (partial(ATENT, L2), {"mode": "eval", "dropout": "fresh"}, {"mode": "train"}),
        (partial(ATENT, L2), {**SAMPLES, "alpha": 0.5}, {"objective": "free-energy"}),
        (partial(CROWNIBP, LINF, eps_start=0.3), {"kappa_start": 0.5}, {"eps_end": 0.4}),
        (partial(CROWNIBP, LINF, eps_start=0.3), {"eps_growth": "smoothed"}, {"eps_end": 0.4}),
        (partial(Dual, LINF), {"eps_first": 0.05}, {"eps_warmup": 0.5}),
        (partial(DistilledTRADES, LINF), {"temperature": 3.0}, {"teacher": "runs/teacher"}),
        (partial(APGD, LINF), {"targets": 3}, {"loss": "dlr-targeted"}),
        (partial(AutoAttack, LINF), {"eot": 3}, {"version": "rand"}),
        (partial(AutoAttack, LINF), {"version": "rand", "queries": 10}, {"version": "standard"}),
        (partial(SAPF, Threat("l0", 3)), {"region_side": 2}, {"regions": "grid"}),
        (partial(SAPF, Threat("l0", 3)), {"region_weight": 0.1}, {"regions": "grid"}),
        (partial(Langevin, LINF), {"anchor": "scaled"}, {"gamma": 0.1}),
    ],
)
def test_a_setting_that_waits_for_another_is_reported(make, idle, used, capsys):
    once.cache_clear()
    make(**{**idle, **used})
    assert not capsys.readouterr().err
    make(**idle)
    assert f"{list(idle)[-1]} {list(idle.values())[-1]} has no effect here: " in capsys.readouterr().err


SHORT = {"steps": 3, "step_size": 0.01}


@pytest.mark.parametrize(
    ("make", "short", "enough"),
    [
        (partial(PGD, LINF), SHORT, {"steps": 10}),
        (partial(PGD, LINF, start="zero", momentum=1.0), SHORT, {"step_size": None}),
        (partial(PGD, LINF), SHORT, {"start": "corner"}),
        (partial(PGD, Threat("l2", 0.1)), SHORT, {"step_size": 0.04}),
        (partial(PGD, Threat("linf", [0.05, 0.1])), SHORT, {"steps": 10}),
        (partial(IFGS, LINF), SHORT, {"step_size": 0.034}),
        (partial(EoT, LINF), {"attack": "PGD(steps=3, step_size=0.01)"}, {"attack": "PGD(steps=3)"}),
        (partial(Langevin, LINF, start="uniform"), SHORT, {"start": "corner"}),
        (partial(PGDAT, LINF), SHORT, {"steps": 10}),
        (partial(PGDAT, LINF, eps_warmup=0.5), SHORT, {"steps": 10}),
        (partial(TRADES, LINF), SHORT, {"step_size": 0.05}),
        (partial(MART, LINF), SHORT, {"step_size": None}),
        (partial(SmoothAdv, Threat("l2", 0.1)), SHORT, {"steps": 20}),
        (partial(ACL, LINF), SHORT, {"steps": 20}),
        (partial(ATENT, LINF, start="uniform"), SHORT, {"start": "corner"}),
    ],
)
def test_a_path_that_is_shorter_than_the_radius_is_reported(make, short, enough, capsys):
    """A recipe's step size with fewer steps was a weaker attack without a word."""
    once.cache_clear()
    make(**{**short, **enough})
    with shared_settings():
        make(**short)
    assert not capsys.readouterr().err
    made = make(**short)
    (line,) = capsys.readouterr().err.splitlines()
    assert "3 steps of step_size reach 30 % of" in line
    if hasattr(made, "eps_warmup") and callable(getattr(made, "attack", None)):
        for progress in (0.0, 0.1, 0.3, 1.0):
            made.attack(progress)
    make(**short)
    assert not capsys.readouterr().err


@dataclass(frozen=True)
class FewTargets(APGD):
    """Its default is not that of its base, and not an attribute of the class."""

    targets: int = field(default_factory=lambda: 3)


def test_the_default_of_a_subclass_is_not_reported(capsys):
    once.cache_clear()
    FewTargets(LINF)
    assert not capsys.readouterr().err
    FewTargets(LINF, targets=9)
    assert "APGD.targets 9 has no effect here" in capsys.readouterr().err


class WithoutDefaults(torch.optim.Optimizer):
    """It does not call the constructor of its base, which makes the attribute defaults."""

    def __init__(self, parameters, lr):
        self.param_groups, self.state = [{"params": list(parameters), "lr": lr}], {}

    def step(self, closure):
        return closure()


def test_an_optimizer_without_defaults_is_taken():
    name = f"{__name__}:WithoutDefaults"
    assert Optimizer(name).name == name


def test_the_decay_of_an_optimizer_is_known(capsys):
    """AdamW has a decay of its own, which the configuration of a run does not show."""
    once.cache_clear()
    for given in ({"weight_decay": 0.1}, {"args": {"weight_decay": 0.0}}, {"args": {"weight_decay": 0.1}}):
        Optimizer("torch.optim:AdamW", lr=0.001, **given)
        Optimizer("torch.optim:RMSprop", lr=0.001)
    Optimizer(f"{__name__}:decaying", lr=0.001)
    assert not capsys.readouterr().err
    Optimizer("torch.optim:AdamW", lr=0.001)
    assert "weight_decay 0 leaves torch.optim:AdamW its own default, 0.01" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"optimizer\.lr and optimizer\.args\.lr are the same setting"):
        Optimizer("torch.optim:AdamW", lr=0.001, args={"lr": 0.1})


def test_an_optimizer_of_torch_is_named_by_its_module():
    with pytest.raises(ValueError, match=r"unknown optimizer 'AdamW': write torch\.optim:AdamW"):
        Optimizer("AdamW", lr=0.001)
    with pytest.raises(ValueError, match="unknown optimizer 'adam': did you mean 'Adam'"):
        Optimizer("adam", lr=0.001)


def test_a_start_of_a_momentum_of_zero_is_reported(capsys):
    once.cache_clear()
    walk = Walk(momentum_start="gradient")
    Optimizer("EntropySGD", walk=walk)
    assert not capsys.readouterr().err
    Optimizer("EntropySGD", momentum=0.0, walk=walk)
    assert "optimizer.walk.momentum_start gradient has no effect here" in capsys.readouterr().err


def test_settings_of_a_watch_that_does_not_run_are_reported(digits, capsys):
    once.cache_clear()
    settings = TrainSettings(epochs=1, batch_size=32, validate_limit=20, watch_steps=3)
    for method, said in ((FGSMRS(LINF), False), (PGDAT(LINF, steps=1), True)):
        fit(net(), digits, method, settings=settings, progress=False)
        assert ("train.watch_steps 3 has no effect here: set watch to on" in capsys.readouterr().err) == said


def test_no_recipe_sets_what_has_no_effect(capsys):
    once.cache_clear()
    for name in recipe_names():
        made = job(read_recipe(name), name)
        under = made.evaluate.norm, made.evaluate.eps
        threat = made.method.threat if under[0] is None else Threat(*under)
        for text in (made.train.validate_attack, *made.evaluate.attacks):
            if text != "none" and threat is not None:
                parse(text, threat, ATTACKS)
    said = capsys.readouterr().err
    assert "has no effect" not in said
    assert "of step_size reach" not in said


@pytest.mark.parametrize("changes", [{"limit": 60}, {"split_seed": 1}, {"validation": 41}], ids=str)
def test_a_training_resumes_with_the_same_split(digits, tmp_path, changes):
    """Samples of the validation set would be trained on."""
    trained(digits, run=tmp_path / "run")
    other = load(DataSettings("digits", **{"limit": 64, "validation": 40, **changes}))
    with pytest.raises(ValueError, match="other samples are in its training or its validation set"):
        trained(other, run=tmp_path / "run", resume=True)
    assert trained(load(DataSettings("digits", limit=64, validation=40)), run=tmp_path / "run", resume=True).history


class Counting(nn.Module):
    """A buffer to which each pass in train mode assigns a new tensor."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(64, 10)
        self.register_buffer("passes", torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.passes = self.passes + 1
        return self.lin(x.flatten(1))


def test_only_the_pass_at_the_perturbed_weights_counts():
    """As for buffers that are written in place, such as batch-norm's."""
    model, x, y = Counting().train(), torch.rand(8, 1, 8, 8), torch.arange(8)
    AWP(PGDAT(Threat("linf", 0.1), steps=2, mode="train")).backward(model, x, y)
    assert int(model.passes) == 1


class Seen(Callback):
    def __init__(self):
        self.epochs = []

    def epoch(self, progress, row):
        self.epochs.append(row["epoch"])


@pytest.fixture(scope="module")
def digits():
    return load(DataSettings("digits", limit=64, validation=40))


def test_callbacks_may_be_a_generator(digits):
    seen = Seen()
    trained(digits, callbacks=(each for each in [seen]))
    assert seen.epochs == [1, 2]


def test_a_threat_beside_that_of_the_method_is_refused(digits):
    with pytest.raises(ValueError, match=r"threat linf 0\.3 has no effect with PGDAT, whose own is linf 0.1: omit it"):
        fit(net(), digits, PGDAT(Threat("linf", 0.1)), threat=Threat("linf", 0.3), progress=False)


def test_entries_of_the_configuration_are_added(digits, tmp_path):
    trained(digits, run=tmp_path / "run", config={"note": "a test"})
    config = json.loads((tmp_path / "run" / "config.json").read_text())
    assert config["note"] == "a test"
    assert config["train"]["epochs"] == 2
    with pytest.raises(ValueError, match="config has an entry 'train', which the training records itself"):
        trained(digits, config={"train": {"epochs": 9}})


def test_labels_beyond_the_classes_are_refused(digits):
    with pytest.raises(ValueError, match=r"the labels of data\.train run from 0 to 9; with 7 classes"):
        trained(replace(digits, classes=7))


def test_a_training_resumes_under_the_same_threat_and_with_the_same_parameters(digits, tmp_path):
    """The rows of the epochs would be of two threats; the momentum of one parameter would be that of another."""

    def run(eps=0.1, frozen=None):
        model = nn.Sequential(net(), nn.Linear(10, 10), nn.Linear(10, 10))
        if frozen is not None:
            model[frozen].requires_grad_(False)
        return trained(model, threat=Threat("linf", eps))

    def trained(model, **more):
        return fit(
            model, digits, Standard(), settings=TrainSettings(epochs=1, validate_limit=20), progress=False,
            run=tmp_path / "run", resume=(tmp_path / "run").exists(), **more,
        )  # fmt: skip

    run(frozen=1)
    for changes, says in (
        ({"frozen": 1, "eps": 0.3}, r"other settings \(validation.eps 0.1, not 0.3\)"),
        ({"frozen": 2}, "parameters: 1.bias was frozen, and is not"),
        ({}, "parameters: 1.bias was frozen, and is not"),
    ):
        with pytest.raises(ValueError, match=says):
            run(**changes)
    assert len(run(frozen=1).history) == 1


def negated(layer):
    layer.register_forward_hook(lambda _module, _given, out: -out)
    return layer


def replaced(layer):
    layer.forward = lambda z: z.sin()
    return layer


def test_a_training_resumes_with_the_same_layers(digits, tmp_path):
    """A network with other layers of the same parameters went on with the weights of the first."""

    def run(layer, pool=None):
        model = nn.Sequential(pool or nn.MaxPool2d(2), nn.Flatten(), layer, nn.Linear(16, 10))
        return fit(
            model, digits, Standard(), threat=Threat("linf", 0.1), progress=False, run=tmp_path / "run",
            settings=TrainSettings(epochs=1, validate_limit=20), resume=(tmp_path / "run").exists(),
        )  # fmt: skip

    run(nn.ReLU())
    for layer, says in (
        (nn.Tanh(), "2 was ReLU, and is Tanh"),
        (nn.LeakyReLU(0.1), "2 was ReLU, and is LeakyReLU negative_slope=0.1"),
        (nn.Sequential(nn.ReLU()), "2 was ReLU, and is Sequential and 1 other"),
        (negated(nn.ReLU()), "2 was ReLU, and is ReLU .*negated"),
        (replaced(nn.ReLU()), "2 was ReLU, and is ReLU .*forward.*replaced"),
    ):
        with pytest.raises(ValueError, match=f"was trained with other layers: {says}.*; build the network as it was"):
            run(layer)
    with pytest.raises(ValueError, match=r"layers: 0 was MaxPool2d kernel_size=2, .*, and is AvgPool2d"):
        run(nn.ReLU(), nn.AvgPool2d(2))
    assert len(run(nn.ReLU()).history) == 1
    # A run of an earlier version has no record of its layers.
    state = torch.load(tmp_path / "run" / folder.LAST / "state.pt", weights_only=True)
    assert state["mark"].pop("layers")["2"].startswith("ReLU")
    torch.save(state, tmp_path / "run" / folder.LAST / "state.pt")
    (tmp_path / "run" / folder.MANIFEST).unlink()
    assert len(run(nn.Tanh()).history) == 1


# ---- on the command line


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of two epochs with 20 test images."""
    path = tmp_path_factory.mktemp("runs") / "one"
    data = load(DataSettings("digits", limit=64, validation=40, test_limit=20))
    settings = TrainSettings(epochs=1, batch_size=32, validate_limit=20)
    fit(
        net(), data, PGDAT(Threat("linf", 0.1), steps=1), settings=settings, run=path, progress=False,
        builder=f"{__name__}:net",
    )  # fmt: skip
    return path


def refused(capsys, *words):
    """The one line of a command that is refused before any work."""
    capsys.readouterr()
    assert main([*map(str, words)]) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1), err
    return err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["--attacks", "PGD", "--attacks", "FGSM"],
            "--attacks is given 2 times: write it once, followed by all",
        ),
        (["--eps", "0.1", "--eps=0.2"], "--eps is given 2 times: omit one"),
        (["--norm", "l2", "--eps", "1", "--norm", "linf"], "--norm is given 2 times: omit one"),
        (["--cascade", "--no-cascade"], "--cascade and --no-cascade contradict each other"),
        (
            ["--threats", "linf 0.1: FGSM", "l2 1: PGD", "--eps", "0.3"],
            "--eps is for one threat, and there are several",
        ),
        (["--threats", "linf 0.1: FGSM", "l2 1: PGD", "--norm", "l2"], "--norm is for one threat"),
        (["--shard", "1/2", "--checks"], "--checks needs the complete result, not a shard"),
        (["--shard", "1/2", "--strict", "--per-class"], "--strict, --per-class needs the complete result"),
        (["--norm", "patch", "--eps", "1", "--side", "2", "--inner", "free", "--inner-eps", "0.1"], "inner_eps 0.1"),
    ],
)
def test_options_of_an_evaluation_without_effect_are_refused(run, capsys, words, says):
    assert says in refused(capsys, "evaluate", run, *words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--method", "ibp", "--n0", "5"], "omit --n0"),
        (["--method", "ibp", "--alpha", "0.01", "--seed", "3"], "omit --alpha and --seed"),
        (["--method", "ibp", "--batch-size", "7"], "omit --batch-size"),
        (["--sigma", "0.2", "--sigma", "0.5"], "--sigma is given 2 times: omit one"),
        (["--sigma", "0.2", "--shard", "1/2", "--table", "t.md"], "--table needs the complete result"),
    ],
)
def test_options_of_a_certificate_without_effect_are_refused(run, capsys, words, says):
    assert says in refused(capsys, "certify", run, *words)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--model", "small_cnn", "--model.name", "mlp"], "--model and --model.name are the same option: omit one"),
        (["--root", "here", "--data.root", "there"], "--root and --data.root are the same option: omit one"),
        (["--method", "TRADES", "--method", "PGDAT"], "--method.name is given 2 times"),
        (["--name", "a", "--name", "b"], "--name is given 2 times: omit one"),
        (["--train.epochs", "1", "--train.epochs=2"], "--train.epochs is given 2 times: omit one"),
        (["--train.batch_size", "8", "--train.batch-size", "9"], "--train.batch-size is given 2 times: omit one"),
        (["--train.cuda-graphs", "--train.no-cuda-graphs"], "contradict each other"),
    ],
)
def test_options_of_a_training_that_are_given_twice_are_refused(capsys, words, says):
    assert says in refused(capsys, "train", "digits-linf-atent", *words)


@pytest.mark.parametrize("words", [["--name", "other"], ["--runs=there"], ["--allow_large_eps"]])
def test_options_of_a_new_run_are_refused_by_a_resume(run, capsys, words):
    option = words[0].partition("=")[0].replace("_", "-")
    assert f"{option} has no effect with --resume" in refused(capsys, "train", "--resume", run, *words)


def test_a_repeated_flag_is_one(run, capsys):
    assert main(["evaluate", str(run), "--attacks", "FGSM", "--quiet", "--quiet", "--limit", "4"]) == 0
