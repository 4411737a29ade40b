"""The command line, as a user meets it: a training from recipe to model, and what each mistake says."""

import json

import pytest
import torch
from command_line import QUICK, refused, said

import atent
from atent import runs as folder

# ---- the whole path


def test_train_evaluate_load(here, capsys):
    status, out, err = said(capsys, "train", "digits-linf-atent", "--no_baseline", *QUICK[:-1])
    assert status == 0, err
    assert [line.split()[0] for line in out.splitlines() if line][:5] == ["run", "data", "subset", "subset", "model"]
    assert sum(line.startswith("epoch ") for line in out.splitlines()) == 2
    path = here / "runs" / "digits-linf-atent"
    assert "run folder: runs/digits-linf-atent" in out
    assert "effective 0.06" not in out
    assert "(effective_noise " in out
    assert "Not measured by AutoAttack" in out
    names = {p.name for p in path.iterdir()}
    assert names >= {"config.json", "metrics.jsonl", "best.safetensors", "last", "curves.png", "evaluation.json"}
    found = json.loads((path / "evaluation.json").read_text())
    assert found["n"] == 60
    reported = {"name": "digits", "split": "test", "n": 60, "of": 500, "subset": "stratified", "subset_seed": 0}
    assert found["data"].items() >= reported.items()
    assert found["data"]["ids"] == found["outcomes"]["ids"]
    assert set(found["attacks"]) == {"FGSM", "PGD-3"}
    assert found["provenance"]["version"] == atent.__version__
    config = json.loads((path / "config.json").read_text())
    assert config["train"]["epochs"] == 2
    assert config["data"]["limit"] == 128

    model = atent.load(path)
    assert not model.training
    assert model(torch.zeros(1, 1, 8, 8)).shape == (1, 10)

    before = (path / "evaluation.json").read_bytes()
    status, out, err = said(capsys, "evaluate", str(path), "--attacks", "PGD(steps=2, eps=0)", "--quiet")
    assert status == 0, err
    assert (path / "evaluation.json").read_bytes() == before
    again = json.loads((path / "evaluation-2.json").read_text())
    assert again["attacks"]["PGD-2"]["robust"]["k"] == again["clean"]["k"] == found["clean"]["k"]

    err = refused(capsys, "evaluate", str(path), "--out", str(path / "evaluation.json"), "--quiet")
    assert "never overwritten" in err

    from atent.train import export

    small = export(path, here / "small")
    assert (small / "best.safetensors").stat().st_size < 0.6 * (path / "best.safetensors").stat().st_size
    assert said(capsys, "evaluate", "small", "--quiet")[0] == 0
    halves = json.loads((small / "evaluation.json").read_text())
    assert abs(halves["clean"]["k"] - found["clean"]["k"]) <= 2
    with pytest.raises(FileExistsError):
        export(path, here / "small")

    # A second training never touches the first.
    assert said(capsys, "train", "digits-linf-atent", "--no_baseline", *QUICK)[0] == 0
    assert (here / "runs" / "digits-linf-atent-2").is_dir()
    assert (path / "evaluation.json").read_bytes() == before


def test_the_same_command_twice_gives_the_same_weights(here, capsys):
    for name in ("a", "b"):
        assert said(capsys, "train", "digits-linf-atent", "--no_baseline", "--name", name, *QUICK)[0] == 0
    a, b = (atent.load(here / "runs" / name).state_dict() for name in ("a", "b"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_a_demo_can_lose(here, capsys):
    """Two epochs of ATENT are not enough to beat plain training for certain: exit 1, and it says so."""
    status, out, _ = said(capsys, "train", "digits-linf-atent", *QUICK)
    assert status == 1
    assert "NOT shown to be more robust" in out
    assert (here / "runs" / "digits-linf-atent-standard" / "evaluation.json").is_file()


def test_another_method_keeps_what_it_knows(here, capsys):
    quick = [a for a in QUICK]
    status, _, err = said(
        capsys, "train", "digits-linf-atent", "--method", "PGDAT", "--no_baseline", "--name", "p", *quick
    )
    assert status == 0, err
    method = folder.read_json(here / "runs" / "p" / "config.json")["method"]
    assert err == ""
    _, _, err = said(capsys, "train", "mnist-l2-atent", "--method", "PGDAT", "--data.root", "nowhere")
    assert "PGDAT has no variant, gamma, noise, projection, alpha: removed" in err
    assert method["name"] == "PGDAT"
    assert method["threat"]["eps"] == 0.15
    assert method["eps_warmup"] == 0.2


def test_resume_from_the_command_line(here, capsys, monkeypatch):
    from atent.methods import ATENT
    from atent.train import Interrupted

    assert said(capsys, "train", "digits-linf-atent", "--no_baseline", "--name", "whole", *QUICK)[0] == 0
    original, calls = ATENT.backward, []

    def stopping(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(ATENT, "backward", stopping)
    err = refused(capsys, "train", "digits-linf-atent", "--no_baseline", "--name", "broken", *QUICK, status=130)
    assert "atent train --resume runs/broken" in err
    assert Interrupted.__name__ not in err
    monkeypatch.undo()
    monkeypatch.chdir(here)
    status, _, err = said(capsys, "train", "--resume", "runs/broken", "--quiet")
    assert status == 0, err
    a, b = (atent.load(here / "runs" / name).state_dict() for name in ("whole", "broken"))
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_your_own_network(here, capsys):
    (here / "mynet.py").write_text(
        "from torch import nn\ndef build():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
        "def seven():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))\n"
    )
    status, _, err = said(
        capsys, "train", "digits-linf-atent", "--no_baseline", "--model", "mynet:build", "--name", "mine", *QUICK
    )
    assert status == 0, err
    assert atent.load("runs/mine")(torch.zeros(1, 1, 8, 8)).shape == (1, 10)
    err = refused(capsys, "train", "digits-linf-atent", "--no_baseline", "--model", "mynet:seven", *QUICK)
    assert "7 outputs" in err
    assert "10 classes" in err


def test_a_recipe_of_your_own(here, capsys):
    (here / "mine.toml").write_text(
        '[data]\nname = "moons"\nlimit = 128\n[model]\nname = "net:build"\n'
        '[method]\nname = "ATENT"\nsteps = 2\nthreat = { norm = "l2", eps = "1/5", box = [-2.0, 3.0] }\n'
        '[train]\nepochs = 1\ndevice = "cpu"\n[evaluate]\nattacks = ["FGSM"]\nlimit = 50\n'
    )
    (here / "net.py").write_text(
        "from torch import nn\nbuild = lambda: nn.Sequential(nn.Linear(2, 8), nn.Linear(8, 2))\n"
    )
    status, out, err = said(capsys, "train", "mine.toml")
    assert status == 0, err
    assert (here / "runs" / "mine" / "evaluation.json").is_file()
    assert "l2 eps 0.2" in out


def test_quiet_prints_results_and_no_progress(here, capsys):
    status, out, err = said(capsys, "train", "digits-linf-pgdat", "--no_baseline", *QUICK)
    assert (status, err) == (0, "")
    assert "PGDAT" in out
    assert "run folder: " in out
    assert not any(
        line.startswith(("run  ", "data ", "model ", "method ", "epoch ", "Next")) for line in out.splitlines()
    )


@pytest.mark.parametrize(
    ("started", "found", "printed"),
    [
        (".venv/bin/atent", None, ".venv/bin/atent"),
        ("/opt/bin/atent", "/opt/bin/atent", "atent"),
        ("/usr/lib/pytest", None, "atent"),
    ],
)
def test_the_next_commands_begin_as_the_shell_finds_them(monkeypatch, started, found, printed):
    from atent.cli.train import _program

    monkeypatch.setattr("sys.argv", [started])
    monkeypatch.setattr("shutil.which", lambda name: found)
    assert _program() == printed


# ---- mistakes


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["trian"], ["unknown command 'trian'", "did you mean 'train'"]),
        (["train"], ["no recipe given", "atent train RECIPE", "atent recipes"]),
        (["train", "digit-linf-atent"], ["did you mean 'digits-linf-atent'"]),
        (["train", "absent.toml"], ["no recipe file absent.toml"]),
        (["train", "digits-linf-atent", "--run", "x"], ["'--run'", "did you mean '--name'"]),
        (["train", "digits-linf-atent", "--method.stepz", "5"], ["--method.stepz", "did you mean '--method.steps'"]),
        (["train", "digits-linf-atent", "--method.steps", "five"], ["--method.steps", "five"]),
        (["train", "digits-linf-atent", "--method.steps", "2.5"], ["--method.steps", "2.5"]),
        (["train", "digits-linf-atent", "--method.steps", "0"], ["steps must be", "got 0"]),
        (["train", "digits-linf-atent", "--method.threat.eps", "-1"], ["eps must be", "-1"]),
        (["train", "digits-linf-atent", "--method.threat.eps", "8/0"], ["eps '8/0' is not a number"]),
        (["train", "digits-linf-atent", "--method.threat.norm", "l3"], ["l3"]),
        (["train", "digits-linf-atent", "--method.start", "sphere"], ["sphere", "corner"]),
        (["train", "digits-linf-atent", "--method", "PGDATT"], ["did you mean 'PGDAT'"]),
        (["train", "digits-linf-atent", "--model", "resnt20"], ["did you mean 'resnet20'"]),
        (["train", "digits-linf-atent", "--data", "minst"], ["did you mean 'mnist'"]),
        (["train", "digits-linf-atent", "extra"], ["'extra'"]),
        (["train", "digits-linf-atent", "--evaluate.attacks", "PGD(stepz=3)"], ["did you mean 'steps'"]),
        (["train", "digits-linf-atent", "--evaluate.attacks", "PDG"], ["did you mean 'PGD'"]),
        (["train", "digits-linf-atent", "--train.device", "cuda:77"], ["cuda:77"]),
        (["train", "mnist-linf-atent"], ["mnist", "--data.root", "ATENT_DATA_ROOT"]),
        (["train", "digits-linf-atent", "--model.weights", "nowhere"], ["no weights at nowhere"]),
        (["train", "--resume", "nowhere"], ["nowhere is not a run folder"]),
        (["evaluate", "nowhere"], ["nowhere is not a run folder"]),
        (["evaluate", "runs/digits-l2-atent"], ["not a run folder", "`atent train digits-l2-atent`"]),
        (["recipes", "nothing"], ["unknown recipe 'nothing'"]),
    ],
)
def test_mistakes_are_one_line(here, capsys, args, parts):
    err = refused(capsys, *args)
    for part in parts:
        assert part in err
    assert not (here / "runs").exists()


def test_a_setting_without_its_section_is_answered_with_the_option(capsys):
    for short, option in (
        ("--lr", "--optimizer.lr"), ("--epochs", "--train.epochs"), ("--batch_size", "--train.batch-size"),
        ("--norm", "--method.threat.norm"), ("--eps", "--method.threat.eps"), ("--attacks", "--evaluate.attacks"),
        ("--weight-decay", "--optimizer.weight-decay"), ("--augment", "--data.augment"), ("--limit", "--data.limit"),
        ("--patience", "--train.patience"), ("--threads", "--train.threads"), ("--average=ema", "--train.average"),
        ("--gamma", "--method.gamma"), ("--schedule", "--schedule.kind"), ("--awp", "--train.awp.gamma"),
    ):  # fmt: skip
        for words in (("train", "digits-linf-atent"), ("compare", "digits-linf-atent", "digits-linf-pgdat")):
            assert f"did you mean '{option}'" in refused(capsys, *words, short, "1")
    for words in (("--lr", "0.1", "digits-linf-pgdat"), ("--lr", "0.1"), ("no-such-recipe", "--lr", "0.1")):
        assert "did you mean '--optimizer.lr'" in refused(capsys, "train", *words)
    assert "unknown option '--beta'" in refused(capsys, "train", "digits-linf-pgdat", "--beta", "6")


@pytest.mark.parametrize(
    ("option", "wanted"), [("--data.validation", "an integer"), ("--train.minutes", "a number")], ids=str
)
def test_the_type_of_an_optional_setting_is_in_words(capsys, option, wanted):
    assert f"{option} must be {wanted}, got 'half'" in refused(capsys, "train", "digits-linf-atent", option, "half")


def test_missing_arguments_of_evaluate(here, capsys):
    assert "RUN" in refused(capsys, "evaluate").upper()


def test_every_error_of_a_recipe_is_named_by_its_path(here, capsys):
    (here / "bad.toml").write_text(
        '[method]\nname = "ATENT"\nsteps = "5"\nthreat = { norm = "l3", eps = 0.1 }\n'
        '[train]\nepochs = 0\n[data]\nnmae = "x"\n'
    )
    err = refused(capsys, "train", "bad.toml", lines=4)
    for part in ("method.steps: ", "method.threat.norm: ", "epochs must be at least 1", "data.nmae: ", "'name'"):
        assert part in err
    (here / "torn.toml").write_text("[method\n")
    assert "not valid TOML" in refused(capsys, "train", "torn.toml")
    (here / "table.toml").write_text("[metod]\n")
    assert "did you mean 'method'" in refused(capsys, "train", "table.toml")
    (here / "none.toml").write_text("[train]\nepochs = 1\n")
    assert "method.name is missing" in refused(capsys, "train", "none.toml")


def test_an_existing_run_is_refused(here, capsys):
    (here / "runs" / "mine").mkdir(parents=True)
    (here / "runs" / "mine" / "precious").write_text("x")
    err = refused(capsys, "train", "digits-linf-atent", "--no_baseline", "--name", "mine", *QUICK)
    assert "--name" in err
    assert [p.name for p in (here / "runs" / "mine").iterdir()] == ["precious"]


def test_a_diverging_run_exits_1(here, capsys):
    err = refused(capsys, "train", "digits-linf-atent", "--no_baseline", "--optimizer.lr", "1e38", *QUICK, status=1)
    assert "not finite" in err


def test_debug_shows_the_traceback(here, capsys):
    status, _, err = said(capsys, "train", "digits-linf-atent", "--method.steps", "0", "--debug")
    assert status == 1
    assert "Traceback" in err


def test_a_baseline_that_cannot_be_compared_is_refused_before_training(here, capsys):
    err = refused(capsys, "train", "digits-linf-atent", "--evaluate.attacks", "FGSM", "--quiet")
    assert "--no-baseline" in err
    assert not (here / "runs").exists()
