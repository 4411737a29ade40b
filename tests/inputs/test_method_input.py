"""What cannot train is refused before anything is written: in one line that says what was seen and how to mend it."""

import dataclasses
import json

import pytest
import torch

from atent.cli import main
from atent.experiments.recipes import job, read_recipe
from atent.fields import defaults
from atent.methods import AWP, METHODS, PGDAT
from atent.models import build
from atent.runs.checkpoint import save_weights
from atent.threat import Threat

# A recipe, one setting or several that it cannot have, and what the error must say.
BAD = [
    ("digits-linf-pgdat", {"method.steps": 0}, "steps must be at least 1, got 0"),
    ("digits-linf-pgdat", {"method.step_size": -0.1}, "step_size must be at least 0, got -0.1"),
    ("digits-linf-pgdat", {"method.step_size": 1e-9}, "a step_size of 1e-09 is lost in float32 for a pixel of 1"),
    ("digits-linf-pgdat", {"method.steps": 10**9}, "with steps=1000000000 a step_size of 3.75e-10 is lost in float32"),
    ("digits-linf-pgdat", {"method.threat.eps": 1e-9}, "with steps=10 a step_size of 2.5e-10 is lost in float32"),
    ("digits-linf-pgdat", {"method.threat.eps": "inf"}, "a training method needs a finite eps, got inf"),
    ("digits-linf-pgdat", {"method.threat.eps": "-1"}, "eps must be finite and at least 0, got -1"),
    ("digits-linf-pgdat", {"method.start": "sphere"}, "sphere"),
    ("digits-linf-pgdat", {"method.eps_warmup": 1.5}, "eps_warmup is a share of the training, in [0, 1], got 1.5"),
    ("digits-l2-gaussian", {"method.sigma": -0.1}, "sigma must be at least 0, got -0.1"),
    ("digits-linf-trades", {"method.beta": -1.0}, "beta must be at least 0, got -1"),
    ("digits-linf-trades", {"method.start_noise": 0.0}, "start_noise must be above 0, got 0"),
    ("digits-linf-trades", {"method.start_noise": 1e-9}, "start_noise 1e-09 is lost in float32 for a pixel of 1"),
    ("digits-linf-trades", {"method.steps": 10**9}, "with steps=1000000000 a step_size of"),
    ("digits-linf-trades", {"method.threat.eps": "inf"}, "a training method needs a finite eps, got inf"),
    ("digits-l2-trades", {"method.eps_warmup": -0.1}, "eps_warmup must be at least 0, got -0.1"),
    ("digits-l2-trades-smoothing", {"method.sigma": -1.0}, "sigma must be at least 0, got -1"),
    ("digits-l2-trades-smoothing", {"method.beta": -1.0}, "beta must be at least 0, got -1"),
    ("digits-l2-trades-smoothing", {"method.steps": 10**9}, "with steps=1000000000 a step_size of"),
    ("digits-l2-trades-smoothing", {"method.threat.eps": "inf"}, "a training method needs a finite eps, got inf"),
    ("digits-l2-trades-smoothing", {"method.threat.norm": "linf"}, "TRADESSmoothing has no form for linf: give"),
    ("digits-l2-smoothadv", {"method.sigma": -0.5}, "sigma must be at least 0, got -0.5"),
    ("digits-l2-smoothadv", {"method.samples": 0}, "samples must be at least 1, got 0"),
    ("digits-l2-smoothadv", {"method.shrink": 0.1}, "shrink has no effect with attack 'pgd'"),
    ("digits-l2-smoothadv", {"method.steps": 10**9}, "with steps=1000000000 a step_size of"),
    ("digits-l2-smoothadv", {"method.threat.norm": "linf"}, "SmoothAdv has no form for linf: give a threat in l2"),
    ("digits-l2-smoothadv", {"method.threat.eps": "inf"}, "a training method needs a finite eps, got inf"),
    ("digits-l2-smoothadv-ddn", {"method.step_size": 0.1}, "step_size and start have no effect with attack 'ddn'"),
    ("digits-l2-smoothadv-ddn", {"method.start": "uniform"}, "step_size and start have no effect with attack 'ddn'"),
    ("digits-l2-smoothadv-ddn", {"method.steps": 1}, "steps must be at least 2, got 1"),
    ("digits-l2-smoothadv-ddn", {"method.threat.eps": "inf"}, "a training method needs a finite eps, got inf"),
    ("digits-l2-mma", {"method.threat.eps": 0.0}, "eps, MMA's d_max, must be above 0, got 0"),
    ("digits-l2-mma", {"method.threat.eps": "inf"}, "a training method needs a finite eps, got inf"),
    ("digits-l2-mma", {"method.eps_min": 2.0}, "eps_min must be at most d_max, the threat's eps 1, got 2"),
    ("digits-l2-mma", {"method.steps": 10**8}, "with steps=100000000 and eps_min=0.1 a step of 2.5e-09 is lost"),
    ("digits-l2-mma", {"method.eps_min": 1e-8}, "with steps=10 and eps_min=1e-08 a step of 2.5e-09 is lost"),
    ("digits-l2-mma", {"method.step_scale": 0.0}, "step_scale must be above 0, got 0"),
    ("digits-l2-mma", {"method.bisection": 4}, "bisection must be at least 5, got 4"),
    ("digits-l2-mma", {"method.bisection": 54}, "bisection must be at most 53 (the precision of floats), got 54"),
    ("digits-l2-mma", {"method.clean_weight": 1.0}, "clean_weight must lie in [0, 1), got 1"),
    ("digits-l2-atent", {"method.noise": 0.1, "method.effective_noise": 0.2}, "exclude each other: give one of them"),
    ("digits-l2-atent", {"method.noise": 0.1, "method.temperature": 0.2}, "exclude each other: give one of them"),
    ("digits-l2-atent", {"method.temperature": -1.0}, "temperature"),
    ("digits-l2-atent", {"method.alpha": 1.1}, "alpha must lie in (0, 1], got 1.1"),
    ("digits-l2-atent", {"method.gamma": -1.0}, "gamma must be at least 0, got -1"),
    ("digits-l2-atent", {"method.gamma": 2.5}, "an anchor term of weight 2.5 per step makes the chain diverge"),
    ("digits-l2-atent", {"method.start": "corner"}, "start (for l2) 'corner' is not known: use one of zero"),
    ("digits-l2-atent", {"method.objective": "data-entropy"}, "'data-entropy' needs gradient 'raw', got 'unit'"),
    ("digits-l2-atent-data-entropy", {"method.noise": 0.0}, "objective 'data-entropy' needs noise above 0"),
    ("digits-l2-atent-data-entropy", {"method.burn_in": 10}, "burn_in must be below steps=10, got 10"),
    ("digits-l2-atent", {"method.gamma": "0.5->0.1"}, "gamma '0.5->0.1' is not a valid schedule: write a"),
    ("digits-l2-atent", {"method.label_smoothing": 1.0}, "label_smoothing must lie in [0, 1), got 1"),
    ("digits-linf-atent", {"method.steps": 10**9}, "with steps=1000000000 a step_size of"),
    ("digits-linf-atent", {"method.threat.eps": "inf"}, "a training method needs a finite eps, got inf"),
    ("digits-linf-fgsmrs", {"method.threat.norm": "l2"}, "FGSMRS has no form for l2: give a threat in linf, or use"),
    ("digits-linf-fgsmrs", {"method.threat.eps": "inf"}, "a training method needs a finite eps, got inf"),
    ("digits-linf-fgsmrs", {"method.step_size": -0.1}, "step_size must be at least 0, got -0.1"),
    ("digits-linf-free", {"method.threat.norm": "l2"}, "Free has no form for l2: give a threat in linf, or use"),
    ("digits-linf-free", {"method.replays": 0}, "replays must be at least 1, got 0"),
    ("digits-acl", {"method.variant": "S2A"}, "'S2A'"),
    ("digits-acl", {"method.temperature": 0.0}, "temperature must be above 0, got 0"),
    ("digits-acl", {"method.steps": 10**9}, "with steps=1000000000 a step_size of"),
    ("digits-acl", {"method.threat.eps": "inf"}, "a training method needs a finite eps, got inf"),
    ("digits-acl-semi", {"method.share": 1.5}, "share must lie in [0, 1], got 1.5"),
    ("digits-acl-semi", {"method.temperature": 0.0}, "temperature must be above 0, got 0"),
    ("digits-acl-semi", {"method.beta": -1.0}, "beta must be at least 0, got -1"),
    ("digits-linf-mart", {"method.threat.norm": "l2"}, "MART has no form for l2: give a threat in linf, or use"),
    ("digits-linf-mart", {"method.beta": -1.0}, "beta must be at least 0, got -1"),
    ("digits-linf-mart", {"method.steps": 10**9}, "with steps=1000000000 a step_size of"),
    ("digits-linf-crown-ibp", {"method.eps_end": 1.5}, "eps_end must lie in [0, 1], got 1.5"),
    ("digits-linf-crown-ibp", {"method.eps_start": 0.9}, "eps_end must be at least eps_start 0.9, got 0.4"),
    ("digits-linf-crown-ibp", {"method.kappa_end": -0.5}, "kappa_end must be at least 0, got -0.5"),
    ("digits-linf-crown-ibp", {"method.beta_end": 2.0}, "beta_end must lie in [0, 1], got 2"),
    ("digits-linf-crown-ibp", {"method.threat.eps": "inf"}, "a training method needs a finite eps, got inf"),
    ("digits-linf-dual", {"method.projections": 0}, "projections must be at least 1, got 0"),
    ("digits-linf-dual", {"method.threat.norm": "l2"}, "projections estimate the dual norms of linf, got"),
    ("digits-linf-dual", {"method.kappa": 1.5}, "kappa must lie in [0, 1], got 1.5"),
    ("digits-linf-dual", {"method.threat.eps": "inf"}, "a training method needs a finite eps, got inf"),
    ("digits-linf-standard", {"optimizer.lr": 0.0}, "lr must be above 0, got 0"),
    ("digits-linf-standard", {"optimizer.lr": float("inf")}, "inf"),
    ("digits-linf-standard", {"optimizer.weight_decay": -1.0}, "weight_decay must be at least 0, got -1"),
    ("digits-linf-standard", {"optimizer.momentum": 1.0}, "momentum must lie in [0, 1), got 1"),
    ("digits-linf-standard", {"optimizer.nesterov": True, "optimizer.momentum": 0.0}, "nesterov needs a momentum"),
    ("digits-linf-standard", {"optimizer.name": "Adam", "optimizer.nesterov": True}, "nesterov is for SGD and Entropy"),
    ("digits-linf-standard", {"optimizer.walk.noise": 0.1}, "optimizer.walk is for EntropySGD and SGLD, not for SGD"),
    ("digits-l2-entropy-sgd", {"optimizer.walk.gamma": -1.0}, "gamma must be at least 0, got -1"),
    ("digits-l2-entropy-sgd", {"optimizer.walk.inner_steps": -1}, "inner_steps must be at least 0, got -1"),
    ("digits-l2-entropy-sgd", {"optimizer.walk.alpha": 0.0}, "alpha must be above 0, got 0"),
    ("digits-l2-entropy-sgd", {"optimizer.walk.gamma": 1e3}, "a step would overshoot the anchor"),
]  # fmt: skip
IDS = [f"{recipe} {' '.join(f'{k}={v}' for k, v in given.items())}" for recipe, given, _ in BAD]


def changed(settings, given):
    """The dataclass with the fields at these paths replaced, all at once."""
    inner = {}
    for path, value in given.items():
        name, _, rest = path.partition(".")
        inner.setdefault(name, {})[rest] = value
    return dataclasses.replace(
        settings, **{n: v[""] if "" in v else changed(getattr(settings, n), v) for n, v in inner.items()}
    )


@pytest.mark.parametrize(("recipe", "given", "text"), BAD, ids=IDS)
def test_in_python(recipe, given, text):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared below
        changed(job(read_recipe(recipe), recipe), given)
    assert text in str(error.value)
    assert "\n" not in str(error.value)


# `test_in_python` has all refusals; that a command passes one on does not depend on which of a recipe's it is.
@pytest.mark.parametrize(
    ("recipe", "given", "text"),
    [
        pytest.param(
            *case, id=name, marks=[] if all(case[0] != before[0] for before in BAD[:i]) else [pytest.mark.slow]
        )
        for i, (case, name) in enumerate(zip(BAD, IDS, strict=True))
    ],
)
def test_on_the_command_line(recipe, given, text, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = [word for k, v in given.items() for word in ((f"--{k}",) if v is True else (f"--{k}", str(v)))]
    status = main(["train", recipe, *words])
    # A note that a process writes once, such as one on short steps, may come first.
    *_, reported = lines = capsys.readouterr().err.strip().splitlines()
    assert status == 2
    assert all(line.startswith("atent: ") for line in lines)
    assert text in reported
    assert not (tmp_path / "runs").exists()


def test_every_method_that_takes_settings_has_its_refusals_here():
    tried = {
        type(job(read_recipe(recipe), recipe).method).__name__ for recipe, given, _ in BAD if "method" in str(given)
    }
    assert set(METHODS) - tried == {"Standard"}


def test_what_is_only_nearly_senseless_is_allowed():
    linf = job(read_recipe("digits-linf-pgdat"), None)
    for given in ({"method.step_size": 0.0}, {"method.step_size": 4e-8}, {"method.threat.eps": 0.0}):
        changed(linf, given)
    # in a small box, small steps count
    small = dataclasses.replace(linf.method.threat, eps=1e-9, box=(-1e-3, 1e-3))
    dataclasses.replace(linf.method, threat=small)
    x = torch.tensor(1.0)
    assert x - 4e-8 < x
    assert x - 2.9e-8 == x


# -- weights to begin from

QUICK = ["--train.epochs", "1", "--data.limit", "64", "--train.device", "cpu", "--quiet"]


def refused(capsys, *args):
    status = main(["train", *args])
    reported = capsys.readouterr().err.strip()
    assert (status, reported.count("\n")) == (2, 0), reported
    return reported


@pytest.mark.parametrize("recipe", ["digits-finetune-atent", "digits-finetune-pgdat"])
def test_fine_tuning_names_the_training_that_comes_first(recipe, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    reported = refused(capsys, recipe, *QUICK)
    assert "no weights in runs/digits-linf-standard" in reported
    assert "run `atent train digits-linf-standard` first, or give others by --model.weights" in reported
    reported = refused(capsys, recipe, "--model.weights", "other/digits-l2-standard", *QUICK)
    assert "run `atent train digits-l2-standard --runs other` first" in reported
    assert "no weights at nowhere: give a run folder or a weights file" in refused(
        capsys, recipe, "--model.weights", "nowhere", *QUICK
    )
    (tmp_path / "runs" / "digits-linf-standard").mkdir(parents=True)
    (tmp_path / "runs" / "digits-linf-standard" / "config.json").write_text("{}")
    assert "run `atent train --resume runs/digits-linf-standard` first" in refused(capsys, recipe, *QUICK)
    assert [p.name for p in (tmp_path / "runs").iterdir()] == ["digits-linf-standard"]


def test_weights_of_another_architecture(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    about = {"model": {"name": "lenet5"}, "classes": 10, "shape": [1, 28, 28]}
    save_weights(tmp_path / "lenet.safetensors", build("lenet5"), about)
    reported = refused(capsys, "digits-finetune-pgdat", "--model.weights", "lenet.safetensors", *QUICK)
    made = "lenet.safetensors holds a lenet5 (10 classes, inputs (1, 28, 28))"
    assert f"{made}, not a digits_cnn: give --model.name lenet5" in reported
    save_weights(tmp_path / "unnamed.safetensors", build("lenet5"), {})
    reported = refused(capsys, "digits-finetune-pgdat", "--model.weights", "unnamed.safetensors", *QUICK)
    assert "its tensors are those of lenet5" in reported
    assert not (tmp_path / "runs").exists()


def test_fine_tuning_begins_from_the_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    few = ["--evaluate.attacks", "FGSM", "--evaluate.limit", "20", "--train.validate_limit", "20"]
    assert main(["train", "digits-linf-standard", "--no_baseline", *few, *QUICK]) == 0
    rate = ["--optimizer.lr", "1e-12", "--method.steps", "1"]
    assert main(["train", "digits-finetune-pgdat", *rate, *few, *QUICK]) == 0, capsys.readouterr().err
    from atent.train import load

    first, second = (load(tmp_path / "runs" / n) for n in ("digits-linf-standard", "digits-finetune-pgdat"))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-8)
    config = json.loads((tmp_path / "runs" / "digits-finetune-pgdat" / "config.json").read_text())
    assert config["model"]["weights"] == "runs/digits-linf-standard"


# ---- batches of a training loop of the user's own


LINF = Threat("linf", 0.05)
CALLED = [kind(LINF) if "threat" in defaults(kind) else kind() for kind in METHODS.values() if "linf" in kind.norms]
CALLED = [method for method in CALLED if method.labelled] + [AWP(PGDAT(LINF))]


def _called(method, x=None, y=None, **given):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    x = torch.linspace(0, 1, 512).view(8, 1, 8, 8) if x is None else x
    y = torch.arange(8) % 3 if y is None else y
    torch.manual_seed(0)
    return float(method.backward(model, x, y, **given)["loss"])


@pytest.mark.parametrize("method", CALLED, ids=lambda m: type(m).__name__)
def test_a_batch_of_an_own_loop_is_checked(method):
    """Pixels of 0..255 were clamped to the box, so that networks were trained on white images."""
    x, y = torch.linspace(0, 1, 512).view(8, 1, 8, 8), torch.arange(8) % 3
    bad = [
        ({"x": x.double().fill_(float("nan")).float()}, "NaN or infinity"),
        ({"x": (255 * x).byte()}, "inputs must be floats"),
        ({"x": x[:0], "y": y[:0]}, "the batch is empty"),
        ({"y": y.float()}, "labels must be 8 integers"),
        ({"y": y[:, None]}, "labels must be 8 integers"),
        ({"y": y[:7]}, "labels must be 8 integers"),
        ({"y": y - 1}, "labels must be 0 or more"),
        ({"y": y + 1}, "label 3 is not an output of the model"),
    ]
    if method.threat is not None:
        bad.append(({"x": 255 * x}, "outside the box .*: divide pixels by 255"))
    for given, says in bad:
        with pytest.raises(ValueError, match=says) as error:
            _called(method, **given)
        assert "\n" not in str(error.value)
    with torch.no_grad(), pytest.raises(ValueError, match="gradients are disabled"):
        _called(method)


class Lookup(torch.nn.Module):
    """Its code has an index beyond its table, which is a label too."""

    def __init__(self):
        super().__init__()
        self.table, self.lin = torch.zeros(2), torch.nn.Linear(64, 3)

    def forward(self, z):
        return self.lin(z.flatten(1)) + self.table[2]


def test_an_index_in_the_code_of_a_network_is_not_taken_for_a_label():
    x, y = torch.linspace(0, 1, 512).view(8, 1, 8, 8), torch.arange(8) % 3
    with pytest.raises(IndexError, match="index 2 is out of bounds for dimension 0 with size 2"):
        PGDAT(LINF).backward(Lookup(), x, y)


@pytest.mark.parametrize("method", CALLED, ids=lambda m: type(m).__name__)
def test_an_own_loop_may_give_any_integers_and_inputs_with_a_graph(method):
    x, y = torch.linspace(0, 1, 512).view(8, 1, 8, 8), torch.arange(8) % 3
    usual = _called(method)
    tracked = x.clone().requires_grad_()
    assert _called(method, tracked) == usual
    assert tracked.grad is None
    assert [_called(method, y=y.to(kind)) for kind in (torch.int32, torch.uint8, torch.int16)] == [usual] * 3
    assert _called(method, x.numpy(), y.numpy()) == usual


def test_a_network_in_half_precision_is_answered_with_float32():
    """Its inputs became float32, and the error asked for inputs of half precision, which they were."""
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3)).bfloat16()
    with pytest.raises(ValueError, match=r"inputs are torch\.bfloat16, the model is .*: use float32 for both"):
        PGDAT(LINF).backward(model, torch.rand(2, 1, 8, 8).bfloat16(), torch.arange(2))
