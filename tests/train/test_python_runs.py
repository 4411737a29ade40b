"""Runs that were trained from Python: evaluated, certified, attacked, reported and resumed from the command line."""

import html
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from commands import given
from kit import unsealed

import atent
from atent import Threat, load
from atent import runs as folder
from atent.attacks import PGD
from atent.certify import Sampling, certify_run
from atent.cli import main
from atent.data import DataSettings
from atent.data import load as load_data
from atent.data.described import described
from atent.evaluate import evaluate
from atent.experiments.finished import compare_runs
from atent.experiments.results import ComparisonFile
from atent.methods import CROWNIBP, PGDAT, Gaussian, Standard
from atent.models import build
from atent.report import report
from atent.runs.checkpoint import read_weights
from atent.train import Interrupted, TrainSettings, export, fit, load_weights, trainer

MINE = """
import torch
from torch import nn
from atent.data import from_tensors

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 3))

def sized(width, outputs=(3,)):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, *outputs))

def wider():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 13), nn.ReLU(), nn.Linear(13, 3))

def data(seed=0, n=300):
    rng = torch.Generator().manual_seed(seed)
    x, y = torch.rand(n, 1, 8, 8, generator=rng), torch.arange(n) % 3
    x[torch.arange(n), 0, y, y] = 1.0
    return from_tensors(x[:200], y[:200], x[200:], y[200:], validation=40)

def other():
    return data(1)

def source(root=None):
    from atent.data import Source
    from atent.data.split import split
    made = data()
    parts = [split((255 * part.x).byte().numpy(), part.y.numpy(), 255.0) for part in (made.train, made.test)]
    return Source(3, *parts, 40, about={"source": "mine", "files": {}})

def fewer():
    return data(n=250)

def nothing():
    return 3
"""
LINF = Threat("linf", 0.05)
NAMED = ["--model", "entries_mine:net", "--data", "entries_mine:data"]
SMALL = ["--attacks", "PGD(steps=3)", "--limit", "30", "--device", "cpu", "--quiet"]


def settings(epochs=1, **more):
    return TrainSettings(
        **{"epochs": epochs, "batch_size": 32, "device": "cpu", "validate_attack": "PGD(steps=2)", **more}
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    path = tmp_path_factory.mktemp("python")
    (path / "entries_mine.py").write_text(MINE)
    sys.path.insert(0, str(path))
    yield path
    sys.path.remove(str(path))


@pytest.fixture(scope="module")
def runs(home):
    """One run of each kind, trained from Python."""
    import entries_mine as mine

    torch.manual_seed(0)
    common = {"settings": settings(), "progress": False}
    fit(mine.net(), mine.data(), PGDAT(LINF, steps=2), run=home / "tensors", **common)
    fit(mine.net(), mine.data(), Standard(), threat=LINF, run=home / "standard", **common)
    fit(mine.net(), mine.data(), Standard(), run=home / "bare", **common)
    fit(mine.net(), mine.data(), Gaussian(0.25), run=home / "noisy", **common)
    fit(mine.net(), mine.data(), CROWNIBP(LINF), run=home / "bounded", **common)
    chosen = DataSettings(limit=100, validation=30, split_seed=3, test_limit=60)
    model = build("digits_cnn", normalize=((0.3,), (0.4,)))
    fit(model, load_data(chosen), PGDAT(LINF, steps=2), run=home / "digits", **common)
    return home


@pytest.fixture
def here(runs, monkeypatch):
    monkeypatch.chdir(runs)
    return runs


def said(capsys, *args):
    status = main([str(a) for a in args])
    done = capsys.readouterr()
    return status, done.out, done.err


def test_python_m_atent_cli():
    done = subprocess.run([sys.executable, "-m", "atent.cli", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"atent {atent.__version__}\n")
    done = subprocess.run([sys.executable, "-m", "atent.cli", "tarin"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "did you mean 'train'" in done.stderr


# ---- evaluate


def test_it_is_evaluated(here, capsys, tmp_path):
    import entries_mine as mine

    out = tmp_path / "found.json"
    status, _, err = said(capsys, "evaluate", "tensors", *NAMED, *SMALL, "--out", out)
    assert (status, err) == (0, "")
    found = folder.read_json(out)
    net, part = mine.net(), mine.data().sample("test", 30)
    load_weights(net, "tensors")
    x, y = part.batch(torch.arange(30))
    want = evaluate(net.eval(), x, y, [PGD(LINF, steps=3)], ids=part.ids)
    assert found["worst"] == want.worst
    assert found["clean"] == want.clean
    assert {k: found["data"][k] for k in ("name", "split", "n", "of")} == {
        "name": "entries_mine:data", "split": "test", "n": 30, "of": 100,
    }  # fmt: skip
    assert found["attacks"]["PGD-3"]["threat"]["eps"] == 0.05


def test_the_threat_that_fit_was_given_is_the_one_to_evaluate_under(here, capsys, tmp_path):
    out = tmp_path / "found.json"
    assert said(capsys, "evaluate", "standard", *NAMED, *SMALL, "--out", out)[0] == 0
    assert folder.read_json(out)["attacks"]["PGD-3"]["threat"] == {"norm": "linf", "eps": 0.05, "box": [0.0, 1.0]}
    assert said(capsys, "evaluate", "bare", *NAMED, *SMALL, "--norm", "l2", "--eps", "0.1")[0] == 0


def test_a_data_set_with_a_name_is_loaded_as_it_was(here, capsys, tmp_path):
    """Also with a network of the library, whose normalisation is in the weights."""
    out = tmp_path / "found.json"
    status, _, err = said(capsys, "evaluate", "digits", "--model", "digits_cnn", *SMALL, "--out", out)
    assert (status, err) == (0, "")
    found = folder.read_json(out)["data"]
    assert (found["name"], found["split"], found["n"], found["of"]) == ("digits", "test", 30, 500)
    model = load("digits", model="digits_cnn")
    assert float(model.normalize.mean) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["tensors"], "tensors was trained from a Python object, a Sequential: give --model module:function"),
        (
            ["tensors", "--model", "entries_mine:net"],
            "on tensors, which are not saved: give --data module:function",
        ),
        (["tensors", "--model", "entries_mine:wider", "--data", "entries_mine:data"], "has another architecture"),
        (["tensors", "--model", "entries_mine:net", "--data", "digits"], "--data digits has classes 10, tensors was"),
        (
            ["tensors", "--model", "entries_mine:net", "--data", "entries_mine:nothing"],
            "returned an int, want Data",
        ),
        (["tensors", "--model", "entries_mine:net", "--data", "entries_mine:absent"], "no attribute 'absent'"),
        (["tensors", *NAMED, "--root", "elsewhere"], "data.root elsewhere has no effect for entries_mine:data"),
        (["digits", "--model", "digits_cnn", "--data", "digits"], "--data digits has no effect on digits"),
        (["bare", *NAMED], "--norm and --eps missing"),
    ],
)
def test_what_is_missing_is_said_in_one_line(here, capsys, args, says):
    for command in (
        ["evaluate", *args, "--quiet"],
        ["certify", *args, "--sigma", "0.25", "--limit", "1", "--n", "100"],
    ):
        if command[0] == "certify" and args[0] == "bare":
            continue  # noise needs no threat
        status, _, err = said(capsys, *command)
        assert status == 2
        assert says in err
        assert err.count("\n") == 1


# ---- certify, attack, theory


def test_it_is_certified_by_noise(here, capsys, tmp_path):
    import entries_mine as mine

    shutil.copytree("noisy", tmp_path / "noisy")
    args = [*NAMED, "--n", "100", "--n0", "20", "--alpha", "0.01", "--limit", "4", "--device", "cpu", "--quiet"]
    status, _, err = said(capsys, "certify", tmp_path / "noisy", *args)
    assert (status, err) == (0, "")
    content = folder.read_json(tmp_path / "noisy" / "certificate.json")
    assert content["sampling"]["sigma"] == 0.25
    assert content["trained"] == "Gaussian"
    net, part = mine.net(), mine.data().sample("test", 4)
    load_weights(net, "noisy")
    want = certify_run(net.eval(), *part.batch(torch.arange(4)), Sampling(0.25, 20, 100, 0.01), ids=part.ids)
    assert content["radius_mean"] == want.to_json()["radius_mean"]
    # A file of weights, and the bare network, have certificates of their own beside them.
    shutil.copy("noisy/best.safetensors", tmp_path / "kept.safetensors")
    assert said(capsys, "certify", tmp_path / "kept.safetensors", *args, "--sigma", "0.25")[0] == 0
    assert folder.read_json(tmp_path / "kept-certificate.json")["radius_mean"] == content["radius_mean"]


def test_a_network_of_ones_own_is_verified(here, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    args = ["certify", "entries_mine:net", "--method", "crown"]
    status, _, err = said(capsys, *args)
    assert status == 2
    assert "--data is missing" in err
    args += ["--data", "entries_mine:data", "--limit", "3", "--quiet"]
    status, _, err = said(capsys, *args)
    assert status == 2
    assert "give --norm and --radius" in err
    assert said(capsys, *args, "--norm", "linf", "--radius", "0")[0] == 0
    content = folder.read_json(tmp_path / "entries_mine-net-certificate.json")
    # At radius 0 the bounds are the logits.
    assert content["certified"][0]["share"]["k"] <= content["clean"]["k"]
    assert content["run"] == "entries_mine:net"
    status, _, err = said(capsys, "certify", "entries_mine:net", "--data", "entries_mine:data", "--limit", "1")
    assert status == 2
    assert "entries_mine:net does not record its training noise: give --sigma" in err


def test_it_is_attacked_and_exported(here, capsys, tmp_path):
    out = tmp_path / "adversarial.npz"
    assert (
        said(capsys, "attack", "tensors", *NAMED, "--attack", "FGSM", "--limit", "5", "--out", out, "--quiet")[0] == 0
    )
    assert out.is_file()
    export("tensors", tmp_path / "small")
    assert said(capsys, "evaluate", tmp_path / "small", *NAMED, *SMALL)[0] == 0
    model = load(tmp_path / "small", model="entries_mine:net")
    whole = read_weights(Path("tensors/best.safetensors"))[1]
    assert all(torch.equal(value.half(), whole[key].half()) for key, value in model.state_dict().items())


# ---- report


def commands(text):
    return [shlex.split(html.unescape(line)) for line in re.findall(r'class="command">(atent [^<]*)<', text)]


STUDIES = {"--checks", "--corruptions", "--flips", "--bands", "--fourier", "--radius"}


@pytest.mark.parametrize("name", ["tensors", "standard", "bare", "noisy", "bounded", "digits"])
def test_the_commands_that_a_report_prints_are_taken(name, here, capsys, tmp_path):
    """Each is run as it stands, on a few images where it takes more."""
    path = tmp_path / name
    shutil.copytree(name, path)
    own = name == "digits"
    text = report(
        [path], images=2, model="digits_cnn" if own else "entries_mine:net", data=None if own else "entries_mine:data",
        progress=False,
    )  # fmt: skip
    assert "could not be made" not in text
    if not own:
        assert "--model MODULE:FUNCTION --data MODULE:FUNCTION" in report([path], images=0, progress=False)
    printed = commands(text)
    assert {words[1] for words in printed} >= {"evaluate", "certify"}
    for _, verb, *rest in printed:
        if "--threats" in rest:  # each with AutoAttack: too much for a test
            assert given(verb, *rest)["threats"]
            continue
        # A study of Python objects is given the same whatever they were trained by; the others run those of `tensors`.
        if verb == "evaluate" and name in ("standard", "noisy", "bounded") and STUDIES & set(rest):
            assert given(verb, *rest)["target"].target == str(path)
            continue
        few = {
            "certify": ["--limit", "1", "--quiet", *([] if "--method" in rest else ["--n", "100"])],
            "evaluate": ["--limit", "2", "--quiet", "--attacks", "FGSM"],
        }[verb]
        status, _, err = said(capsys, verb, *rest, *few)
        # The checks may find nothing to check in a network that was hardly trained.
        assert status == 0 or "classifies none of" in err, err


def test_what_no_run_of_a_report_needs_is_refused(here, tmp_path):
    with pytest.raises(ValueError, match="--data entries_mine:data has no effect: every run records its own"):
        report(["digits"], images=0, model="digits_cnn", data="entries_mine:data", progress=False)


# ---- resume


def stopped_after(monkeypatch, steps):
    """Lets `fit` see a request to stop after so many steps, as Ctrl-C gives it."""
    from contextlib import contextmanager

    asked = 0

    @contextmanager
    def requests():
        def stop():
            nonlocal asked
            asked += 1
            return asked > steps

        yield stop

    monkeypatch.setattr(trainer, "stop_requests", requests)


def trained(path, method, data, **more):
    torch.manual_seed(4)
    import entries_mine as mine

    return fit(mine.net(), data, method, settings=settings(2, save_minutes=0), run=path, progress=False, **more)


@pytest.mark.parametrize("kind", ["robust", "standard"])
def test_it_is_resumed_to_the_same_bits(kind, here, capsys, tmp_path, monkeypatch):
    import entries_mine as mine

    method, more = (PGDAT(LINF, steps=2), {}) if kind == "robust" else (Standard(), {"threat": LINF})
    trained(tmp_path / "whole", method, mine.data(), **more)
    with monkeypatch.context() as patch:
        stopped_after(patch, 6)
        with pytest.raises(Interrupted, match="--model module:function --data module:function"):
            trained(tmp_path / "broken", method, mine.data(), **more)
    assert not (tmp_path / "broken" / folder.BEST).exists()
    # Until there are weights, the report names the command that makes them.
    (first, *_) = commands(report([tmp_path / "broken"], images=0, model=NAMED[1], data=NAMED[3], progress=False))
    assert first == ["atent", "train", "--resume", str(tmp_path / "broken"), *NAMED]
    resume = ["train", "--resume", tmp_path / "broken", "--quiet"]
    for args, says in (
        ([], "give --model module:function"),
        (NAMED[:2], "give --data module:function"),
        (["--model", "entries_mine:wider", *NAMED[2:]], "has another architecture"),
        ([*NAMED[:2], "--data", "entries_mine:other"], "cannot be resumed: the digest of its data was"),
        ([*NAMED, "--baseline"], "--baseline needs a recipe"),
    ):
        status, _, err = said(capsys, *resume, *args)
        assert status == 2
        assert says in err
        assert err.count("\n") == 1
    status, out, err = said(capsys, *resume, *NAMED)
    assert (status, err) == (0, "")
    assert "run folder:" in out
    whole, again = (read_weights(tmp_path / run / folder.BEST)[1] for run in ("whole", "broken"))
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    rows = [folder.read_jsonl(tmp_path / run / folder.METRICS) for run in ("whole", "broken")]
    assert [row["loss"] for row in rows[0]] == [row["loss"] for row in rows[1]]
    assert folder.read_json(tmp_path / "broken" / folder.EVALUATION)["attacks"]["FGSM"]["threat"]["eps"] == 0.05


def test_a_method_of_ones_own_is_resumed_from_python(here, capsys, tmp_path):
    shutil.copytree("tensors", tmp_path / "own")
    config = json.loads((tmp_path / "own" / "config.json").read_text())
    config["method"]["name"] = "Mine"
    (unsealed(tmp_path / "own") / "config.json").write_text(json.dumps(config))
    status, _, err = said(capsys, "train", "--resume", tmp_path / "own", *NAMED)
    assert status == 2
    assert "unknown method 'Mine'" in err
    assert "resume=True" in err


def test_runs_of_earlier_versions_are_taken(here, capsys, tmp_path):
    """Their configuration has neither the threat nor the digest of the data."""
    shutil.copytree("tensors", tmp_path / "old")
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    del config["evaluate"], config["about"]["data"]["digest"]
    (unsealed(tmp_path / "old") / "config.json").write_text(json.dumps(config))
    assert said(capsys, "evaluate", tmp_path / "old", *NAMED, *SMALL)[0] == 0
    assert said(capsys, "train", "--resume", tmp_path / "old", *NAMED, "--quiet")[0] == 0


# ---- data by a function


def test_data_of_ones_own_are_a_data_set_by_name(here):
    import entries_mine as mine

    found, want = load_data(DataSettings("entries_mine:data")), mine.data()
    assert torch.equal(found.train.x, want.train.x)
    assert (found.name, found.about["name"]) == ("entries_mine:data", "entries_mine:data")
    with pytest.raises(ValueError, match=r"data.limit 5 has no effect for entries_mine:data"):
        load_data(DataSettings("entries_mine:data", limit=5))


def test_a_recipe_trains_on_data_of_ones_own(here, capsys, tmp_path):
    (tmp_path / "own.toml").write_text(
        '[data]\nname = "entries_mine:data"\n[model]\nname = "entries_mine:net"\n'
        '[method]\nname = "PGDAT"\nthreat = { norm = "linf", eps = 0.05 }\nsteps = 1\n'
        '[train]\nepochs = 1\ndevice = "cpu"\n[evaluate]\nattacks = ["FGSM"]\n'
    )
    assert said(capsys, "train", tmp_path / "own.toml", "--runs", tmp_path / "runs", "--quiet")[0] == 0
    assert said(capsys, "evaluate", tmp_path / "runs" / "own", *SMALL)[0] == 0
    assert said(capsys, "train", "--resume", tmp_path / "runs" / "own", "--quiet")[0] == 0
    status, _, err = said(capsys, "train", "--resume", tmp_path / "runs" / "own", "--model", "entries_mine:net")
    assert status == 2
    assert "--model has no effect" in err


# ---- runs that name their builders


def test_a_run_that_names_its_builders_needs_no_options(here, capsys, tmp_path, monkeypatch):
    """Interrupted, resumed to the same bits, evaluated, certified, loaded and reported by its folder alone."""
    import entries_mine as mine

    args = {
        "builder": "entries_mine:sized", "builder_args": {"width": 9, "outputs": (3,)},
        "data_builder": "entries_mine:data", "data_builder_args": {"seed": 2},
    }  # fmt: skip

    def train(path, **more):
        torch.manual_seed(4)
        chosen = settings(2, save_minutes=0)
        method = PGDAT(LINF, steps=2)
        return fit(mine.sized(9), mine.data(2), method, settings=chosen, run=path, progress=False, **args, **more)

    train(tmp_path / "whole")
    config = folder.read_json(tmp_path / "whole" / folder.CONFIG)
    assert config["model"] == {
        "name": None, "class": "Sequential", "builder": "entries_mine:sized",
        "builder_args": {"width": 9, "outputs": [3]},
    }  # fmt: skip
    assert config["data"]["builder_args"] == {"seed": 2}
    with monkeypatch.context() as patch:
        stopped_after(patch, 6)
        with pytest.raises(Interrupted) as stopped:
            train(tmp_path / "named")
    assert "--model" not in str(stopped.value)
    assert "--data" not in str(stopped.value)
    assert said(capsys, "train", "--resume", tmp_path / "named", "--quiet")[::2] == (0, "")
    whole, again = (read_weights(tmp_path / run / folder.BEST)[1] for run in ("whole", "named"))
    assert all(torch.equal(whole[key], again[key]) for key in whole)
    assert said(capsys, "evaluate", tmp_path / "named", *SMALL)[0] == 0
    noise = ["--sigma", "0.25", "--limit", "1", "--n", "100", "--quiet"]
    assert said(capsys, "certify", tmp_path / "named", *noise)[0] == 0
    assert load(tmp_path / "named")[1].out_features == 9
    for words in commands(report([tmp_path / "named"], images=0, progress=False)):
        assert "--model" not in words
        assert "--data" not in words
    # A function that was renamed is named afterwards.
    status, _, err = said(capsys, "evaluate", tmp_path / "named", *NAMED, *SMALL)
    assert status == 2
    assert "has another architecture" in err
    # The names are no setting of the training: it resumes in Python without them.
    args.clear()
    train(tmp_path / "named", resume=True)


def test_a_network_of_the_library_is_a_builder(here, capsys, tmp_path):
    chosen = DataSettings(limit=100, validation=30)
    args = {"normalize": ((0.3,), (0.4,)), "activation": "softplus"}
    common = {"settings": settings(), "progress": False, "builder": "digits_cnn"}
    fit(
        build("digits_cnn", **args), load_data(chosen), PGDAT(LINF, steps=1), run=tmp_path / "run", builder_args=args,
        **common,
    )  # fmt: skip
    assert said(capsys, "evaluate", tmp_path / "run", *SMALL)[0] == 0
    assert float(load(tmp_path / "run").normalize.std) == pytest.approx(0.4)


@pytest.mark.parametrize("name", ["entries_mine:data", "entries_mine:source"])
def test_data_that_were_loaded_by_name_are_loaded_again(name, here, capsys, tmp_path):
    import entries_mine as mine

    chosen = DataSettings(name) if name.endswith("data") else DataSettings(name, limit=100, split_seed=3)
    data = load_data(chosen)
    common = {"settings": settings(), "progress": False, "builder": "entries_mine:net"}
    fit(mine.net(), data, PGDAT(LINF, steps=1), run=tmp_path / "run", **common)
    assert said(capsys, "train", "--resume", tmp_path / "run", "--quiet")[0] == 0
    out = tmp_path / "found.json"
    assert said(capsys, "evaluate", tmp_path / "run", *SMALL, "--out", out)[0] == 0
    found = folder.read_json(out)["data"]
    assert (found["name"], found["of"]) == (name, 100)
    assert found["ids"] == described(data, "test", data.sample("test", 30))["ids"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ({"builder": "entries_mine:wider"}, "builder entries_mine:wider returns another architecture: 1.weight has"),
        ({"builder": "entries_mine:sized", "builder_args": {"with": 3}}, "unexpected keyword argument 'with'"),
        ({"builder": "entries_mine:absent"}, "no attribute 'absent'"),
        ({"builder": "small_cn"}, "did you mean 'small_cnn'"),
        ({"builder": "digits_cnn", "builder_args": {"drop": 3}}, "did you mean 'dropout'"),
        ({"builder": print}, "builder must be a string such as 'module:function'"),
        ({"builder_args": {"width": 3}}, "builder_args needs builder"),
        ({"builder": "entries_mine:sized", "builder_args": [3]}, "a dictionary of keywords, got a list"),
        ({"builder": "entries_mine:sized", "builder_args": {"width": print}}, "builder_args must be numbers"),
        ({"data_builder": "entries_mine:other"}, "gives other train samples"),
        ({"data_builder": "digits"}, "gives classes 10, the data have 3"),
        ({"data_builder": "entries_mine:nothing"}, "returned an int, want Data"),
        ({"data_builder": "entries_mine:data", "data_builder_args": {"sed": 2}}, "unexpected keyword argument 'sed'"),
    ],
)
def test_a_wrong_builder_is_said_before_the_training(args, says, here, tmp_path):
    import entries_mine as mine

    with pytest.raises(ValueError, match=re.escape(says)) as error:
        fit(mine.net(), mine.data(), Standard(), settings=settings(), run=tmp_path / "run", progress=False, **args)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


# ---- compared


def test_runs_from_python_are_compared(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    from entries_mine import data, net

    made = []
    for steps in (1, 2):
        for seed in (0, 1):
            torch.manual_seed(seed)
            how = {"builder": "entries_mine:net", "data_builder": "entries_mine:data"}
            run = home / f"compared-{steps}-{seed}"
            method = PGDAT(LINF, steps=steps)
            made.append(fit(net(), data(), method, settings=settings(seed=seed), run=run, progress=False, **how))
    # They have no evaluation yet: each is evaluated once.
    found = compare_runs(made, attacks=["PGD(steps=3)"], limit=30, device="cpu")
    assert [row.recipe for row in found.rows] == ["PGDAT (steps 1)", "PGDAT (steps 2)"]
    assert (found.seeds, found.model, found.epochs, found.data.n) == ([0, 1], "Sequential", 1, 30)
    for row, steps in zip(found.rows, (1, 2)):
        kept = [folder.read_json(home / f"compared-{steps}-{seed}/evaluation.json") for seed in (0, 1)]
        assert [asdict(seed.worst) for seed in row.seeds] == [k["worst"] for k in kept]
        assert row.threat.norm == "linf"
    (pair,) = found.pairs
    assert pair.clean.value == pytest.approx(found.rows[0].clean.mean - found.rows[1].clean.mean)
    # The folders alone, named, and one seed: the images decide, for these two networks.
    names = {"one": home / "compared-1-0", "two": str(home / "compared-2-0")}
    one = compare_runs(names)
    assert [row.recipe for row in one.rows] == ["one", "two"]
    assert one.pairs[0].basis == "over 30 images, for these two networks"
    assert ComparisonFile.from_json(one.to_json()) == one
    assert main(["compare", str(home / "compared-1-0"), str(home / "compared-2-0"), "--runs", str(home / "c")]) == 0
    assert "less" in capsys.readouterr().out
    other = home / "compared-2-1"
    for runs, told in (
        ([made[0], made[1]], "needs two or more rows, got 1"),
        ([made[0], home], "is not a run folder"),
        ([made[0], 3], "got a int"),
        (str(home / "compared-1-0"), "a list of runs or a mapping"),
        ({"a": made[0], "b": []}, "got none for b"),
        ({"a": made[0], "b": made[3]}, "trained with the seeds 0, b with 1"),
        ({"a": [made[0], made[0]], "b": made[2]}, "have the same seed"),
    ):
        with pytest.raises((ValueError, FileNotFoundError), match=told) as error:
            compare_runs(runs)
        assert "\n" not in str(error.value)
    assert compare_runs(made, attacks=["PGD(steps = 3)"]).rows == found.rows
    with pytest.raises(ValueError, match=r"was evaluated already, by PGD\(steps=3\), got attacks FGSM"):
        compare_runs(made, attacks=["FGSM"])
    assert compare_runs(made, limit=30).rows == compare_runs(made).rows
    for limit in (20, 1000, "all"):
        with pytest.raises(ValueError, match=f"was evaluated already, on 30 images, got limit {limit}: omit limit"):
            compare_runs(made, limit=limit)
    changed = folder.read_json(other / "evaluation.json")
    (attack,) = changed["attacks"].values()
    further = {**attack, "threat": {**attack["threat"], "eps": 0.25}}
    folder.write_json(
        unsealed(other) / "evaluation.json", {**changed, "attacks": dict.fromkeys(changed["attacks"], further)}
    )
    with pytest.raises(ValueError, match=r"the threat of their evaluations \(.* and linf 0.25\)"):
        compare_runs(made)
    folder.write_json(other / "evaluation.json", {**changed, "seed": 7})
    with pytest.raises(ValueError, match="differ in the seed of their evaluations"):
        compare_runs(made)
    for words, told in (
        (["--seeds", "2"], "--seeds has no effect on run folders"),
        (["--train.epochs", "2"], "--train.epochs has no effect on run folders"),
        (["digits-linf-atent"], "digits-linf-atent is not a run folder, but other arguments are"),
    ):
        assert main(["compare", *map(str, names.values()), *words]) == 2
        assert told in capsys.readouterr().err
