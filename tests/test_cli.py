"""The command line, as a user meets it: what works, and what each mistake says."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import given, train_job

import atent
from atent import runs as folder
from atent import stats
from atent.cli import COMMANDS, completion, main

QUICK = [
    "--train.epochs", "2", "--data.limit", "128", "--data.test_limit", "60", "--train.validate_limit", "30",
    "--method.steps", "2", "--evaluate.attacks", "FGSM", "PGD(steps=3)", "--train.device", "cpu", "--quiet",
]  # fmt: skip


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ATENT_DATA_ROOT", raising=False)
    return tmp_path


def said(capsys, *args):
    """Exit status, standard output and standard error of a command."""
    status = main(list(args))
    out, err = capsys.readouterr()
    return status, out, err


def refused(capsys, *args, status=2, lines=1):
    """The error of a command that must fail: so many lines, no traceback."""
    got, _, err = said(capsys, *args)
    assert got == status, err
    reported = err.strip().splitlines()
    assert len(reported) == lines, err
    assert all(line.startswith("atent: ") for line in reported)
    return err


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
        (["recipes", "nothing"], ["unknown recipe 'nothing'"]),
    ],
)
def test_mistakes_are_one_line(here, capsys, args, parts):
    err = refused(capsys, *args)
    for part in parts:
        assert part in err
    assert not (here / "runs").exists()


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


# ---- help, version, recipes


def test_help_lists_what_works(capsys):
    status, out, _ = said(capsys, "--help")
    assert status == 0
    assert {"train", "evaluate", "recipes"} <= set(out.split())
    assert said(capsys)[1] == out
    assert said(capsys, "--version")[1] == f"atent {atent.__version__}\n"


@pytest.mark.parametrize("command", [["train"], ["train", "mnist-l2-atent"], ["evaluate"], ["attack"], ["recipes"]])
def test_help_of_each_command(command, capsys):
    status, out, _ = said(capsys, *command, "--help")
    assert status == 0
    assert len(out) > 80


def test_help_of_train_shows_the_recipes_values(capsys):
    _, out, _ = said(capsys, "train", "mnist-l2-atent", "--help")
    text = " ".join(out.split())
    assert "--method.steps" in text
    assert "(default: 0.125)" in text
    first = out.splitlines().index(next(line for line in out.splitlines() if line.lstrip().startswith("--")))
    assert first <= 24, "more than a screen before the first option"


def test_help_of_train_without_a_recipe_is_light(capsys):
    code = "import sys; from atent.cli import main; main(['train', '--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "Name of the run folder" in text
    assert "atent recipes" in text


@pytest.mark.parametrize("columns", [60, 80, 110])
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_wraps(command, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    status, out, _ = said(capsys, command, "--help")
    assert status == 0
    assert max(map(len, out.splitlines())) <= columns
    assert "(default: None)" not in out


def test_a_flag_that_took_a_value_still_does_and_says_what_to_write(capsys):
    assert given("evaluate", "run", "--checks", "true", "--cascade", "false") == given(
        "evaluate", "run", "--checks", "--no-cascade"
    )
    err = capsys.readouterr().err
    assert "--checks true is deprecated: write --checks" in err
    assert "--cascade false is deprecated: write --no-cascade" in err
    made = train_job("digits-linf-pgdat", "--train.channels_last", "true", "--evaluate.last", "false")
    assert (made.train.channels_last, made.evaluate.last) == (True, False)
    assert made == train_job("digits-linf-pgdat", "--train.channels-last", "--evaluate.no-last")
    for word, value in (("--channels-last", True), ("--no-channels-last", False)):
        assert given("certify", "run", word)["channels_last"] is value
    assert given("certify", "run")["channels_last"] is None


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_where_the_shell_looks(shell, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    status, out, _ = said(capsys, "--install-completion", shell)
    assert status == 0
    path = Path(out.splitlines()[0].removeprefix("written: "))
    assert path.is_relative_to(tmp_path)
    text = path.read_text()
    assert all(command in text for command in COMMANDS)
    assert "batch-size" in text


def test_completion_in_bash(tmp_path):
    if not shutil.which("bash"):
        pytest.skip("no bash")
    script = (
        'eval "$1"; COMP_WORDS=(atent cert); COMP_CWORD=1; _atent; echo "${COMPREPLY[*]}";'
        'COMP_WORDS=(atent certify --alp); COMP_CWORD=2; _atent; echo "${COMPREPLY[*]}"'
    )
    done = subprocess.run(["bash", "-c", script, "-", completion.script("bash")], capture_output=True, text=True)
    assert done.stdout.split() == ["certify", "--alpha"], done.stderr


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--seed", "x"], "--seed must be an integer, got 'x'"),
        (["--limit", "q"], "--limit must be an integer or all, got 'q'"),
        (["--norm", "l3"], "--norm must be one of"),
    ],
)
def test_a_value_of_another_type_is_said_in_words(words, line, capsys):
    err = refused(capsys, "evaluate", "run", *words)
    assert line in err
    assert "None" not in err


def test_none_is_a_name_and_a_list_needs_a_value(capsys):
    assert given("train", "digits-linf-pgdat", "--name", "none")["name"] == "none"
    assert "--attacks needs a value" in refused(capsys, "evaluate", "run", "--attacks", "--quiet")
    assert "--attacks needs a value" in refused(capsys, "evaluate", "run", "--attacks")


def test_an_unknown_shell_is_one_line(capsys):
    assert "use bash, zsh or fish" in refused(capsys, "--show-completion", "tcsh")


def test_a_baseline_that_cannot_be_compared_is_refused_before_training(here, capsys):
    err = refused(capsys, "train", "digits-linf-atent", "--evaluate.attacks", "FGSM", "--quiet")
    assert "--no-baseline" in err
    assert not (here / "runs").exists()


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["recipes"], ["recipes", "digits-l2-atent"]])
def test_light_commands_do_not_import_torch(args):
    code = f"import sys; from atent.cli import main; main({args!r}); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_library_needs_nothing_of_the_command_line():
    code = (
        "import sys\n"
        "for name in ('tyro', 'pydantic', 'rich', 'matplotlib'): sys.modules[name] = None\n"
        "import torch, atent\n"
        "from atent import Threat\n"
        "from atent.methods import ATENT\n"
        "from atent.data import load, DataSettings\n"
        "from atent.train import fit, TrainSettings\n"
        "data = load(DataSettings(limit=64, validation=20))\n"
        "net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
        "fit(net, data, ATENT(Threat('linf', 0.1), steps=2), settings=TrainSettings(epochs=1, device='cpu'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_python_m_atent():
    done = subprocess.run([sys.executable, "-m", "atent", "--version"], capture_output=True, text=True)
    assert done.stdout == f"atent {atent.__version__}\n"


def test_recipes_lists_them_all(capsys):
    from atent.experiments.recipes import recipe_names

    _, out, _ = said(capsys, "recipes")
    for name in recipe_names():
        assert name in out
    _, text, _ = said(capsys, "recipes", "mnist-l2-atent")
    assert "step_size = 0.125" in text


# ---- evaluate and attack: any model


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder of a short training."""
    root = tmp_path_factory.mktemp("trained")
    args = [*QUICK, "--data.limit", "1000", "--train.epochs", "5"]
    assert main(["train", "digits-linf-pgdat", "--runs", str(root), "--name", "run", *args]) == 0
    return root / "run"


@pytest.fixture
def run_of(trained, here):
    shutil.copytree(trained, here / "run")
    for path in (here / "run").glob("evaluation*"):
        path.unlink()
    return here / "run"


CHEAP = ["--attacks", "PGD(steps=3)", "FGSM", "--limit", "60", "--quiet"]


def test_evaluate_runs_a_cascade_and_says_what_it_measured(run_of, capsys):
    status, out, err = said(capsys, "evaluate", "run", *CHEAP)
    assert status == 0, err
    found = folder.read_json(run_of / "evaluation.json")
    assert found["cascade"] is True
    assert list(found["attacks"]) == ["FGSM", "PGD-3"]
    assert found["attacks"]["PGD-3"]["attacked"] == found["attacks"]["FGSM"]["robust"]["k"]
    assert found["worst"] == found["attacks"]["PGD-3"]["robust"]
    assert set(found["outcomes"]) == {"ids", "clean", "attacks"}
    for line in (
        "after FGSM", "after PGD-3", "threat   linf 0.15 (eps 0.15)",
        "digits, test images: a stratified sample of 60 of 500 (seed 0), linf 0.15",
        "samples  digits, test images: a stratified sample of 60 of 500 (seed 0)",
        f"clean    {stats.percent(found['clean'])}", f"robust   {stats.percent(found['worst'])} under the worst of",
        f"version  atent {atent.__version__}", "seed     0", "Not measured by AutoAttack",
        "written: run/evaluation.json",
    ):  # fmt: skip
        assert line in out, line
    status, out, err = said(capsys, "evaluate", "run", *CHEAP, "--no-cascade", "--eps", "8/255", "--seed", "3")
    assert status == 0, err
    alone = folder.read_json(run_of / "evaluation-2.json")
    assert list(alone["attacks"]) == ["PGD-3", "FGSM"]
    assert {a["attacked"] for a in alone["attacks"].values()} == {alone["clean"]["k"]}
    assert "linf 8/255 (eps 0.0313725)" in out
    assert "worst of these" in out
    assert (alone["cascade"], alone["seed"]) == (False, 3)
    assert not list(run_of.glob("*.partial*"))


def test_a_killed_evaluate_goes_on(run_of, capsys, monkeypatch):
    from atent.attacks import Attack

    assert said(capsys, "evaluate", "run", *CHEAP, "--batch-size", "16", "--out", "whole.json")[0] == 0
    original, calls = Attack.run, []

    def stopping(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(self, *args, **kwargs)

    monkeypatch.setattr(Attack, "run", stopping)
    err = refused(capsys, "evaluate", "run", *CHEAP, "--batch-size", "16", status=130)
    assert "interrupted" in err
    (partial,) = run_of.glob("evaluation.*.partial.jsonl")
    assert len(partial.read_text().splitlines()) == 1 + 3
    before = len(calls)
    assert said(capsys, "evaluate", "run", *CHEAP, "--batch-size", "16")[0] == 0
    again = len(calls) - before
    assert again > 0
    assert not partial.exists()
    whole, resumed = (folder.read_json(p) for p in ("whole.json", run_of / "evaluation.json"))
    batches = sum(-(-result["attacked"] // 16) for result in whole["attacks"].values())
    assert again == batches - 3
    for found in (whole, resumed):
        found.pop("provenance")
        for result in found["attacks"].values():
            result.pop("seconds")
    assert resumed == whole


def test_radii_give_rows_and_a_picture(run_of, capsys):
    status, out, err = said(capsys, "evaluate", "run", *CHEAP, "--radius", "16/255", "8/255")
    assert status == 0, err
    rows = folder.read_json(run_of / "evaluation.json")["sweep"]
    assert [(r["attack"], r["threat"]) for r in rows] == [
        (name, f"linf {eps}/255") for name in ("PGD-3", "FGSM") for eps in (8, 16)
    ]
    for name in ("PGD-3", "FGSM"):
        counts = [r["monotone"]["k"] for r in rows if r["attack"] == name]
        assert counts[0] >= counts[1]
    assert (run_of / "security.png").stat().st_size > 10_000
    assert stats.percent(rows[0]["robust"]) in out
    assert "each attack alone, by radius" in out
    assert "radius must be finite" in refused(capsys, "evaluate", "run", *CHEAP, "--radius", "-1/2")
    two = ["--attacks", "FGSM", "PGD(norm=l2, eps=1)", "--radius", "0.1", "--quiet"]
    assert "--radius needs a single norm, and the attacks have l2 and linf" in refused(capsys, "evaluate", "run", *two)
    assert not list(run_of.glob("*.partial*"))


def test_checks_are_printed_stored_and_may_be_strict(run_of, capsys, monkeypatch):
    from atent.evaluate import Check
    from atent.experiments import evaluation as module

    verdicts = [
        Check("logits", True, "in [-3, 9]", "remove the softmax"),
        Check("loss", False, "50 / 20", "use margin"),
    ]
    asked = {}

    def fake(model, x, y, threat, **rest):
        asked.update(rest, n=len(x.x), threat=threat)
        return verdicts

    monkeypatch.setattr(module, "masking_checks", fake)
    status, out, err = said(capsys, "evaluate", "run", *CHEAP, "--checks")
    assert status == 0, err
    assert "loss: use margin" in out
    assert "remove softmax" not in out
    assert out.count("warn") == out.count(" pass ") == 1
    assert asked["n"] == 60
    assert asked["threat"].eps == 0.15
    assert type(asked["attack"]).__name__ == "PGD"
    assert folder.read_json(run_of / "evaluation.json")["checks"][1] == {
        "name": "loss", "passed": False, "figure": "50 / 20", "why": "use margin",
    }  # fmt: skip
    assert said(capsys, "evaluate", "run", *CHEAP, "--strict")[0] == 1
    assert (run_of / "evaluation-2.json").is_file()
    verdicts.pop()
    assert said(capsys, "evaluate", "run", *CHEAP, "--strict")[0] == 0


def test_the_checks_run_on_a_trained_model(run_of, capsys):
    status, out, err = said(capsys, "evaluate", "run", *CHEAP, "--checks")
    assert status == 0, err
    checks = folder.read_json(run_of / "evaluation.json")["checks"]
    assert {check["name"] for check in checks} >= {"logits", "eps-zero"}
    for check in checks:
        assert check["name"] in out


def test_evaluate_your_own_network_and_a_file(run_of, capsys):
    here = run_of.parent
    (here / "outside.py").write_text(
        "import atent\nfrom torch import nn\n\ndef robust():\n    return atent.load('run')\n\n"
        "class Wants(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.body = robust()\n"
        "    def forward(self, x):\n        return self.body((40 * (0.37 * x + 0.3 - 0.7)).sigmoid())\n"
    )
    about = ["--data", "digits", "--norm", "linf", "--eps", "0.15", *CHEAP]
    assert said(capsys, "evaluate", "run", *CHEAP)[0] == 0
    status, out, err = said(capsys, "evaluate", "outside:robust", *about)
    assert status == 0, err
    assert "written: outside-robust-evaluation.json" in out
    status, out, err = said(capsys, "evaluate", "run/best.safetensors", *about)
    assert status == 0, err
    assert "written: run/best-evaluation.json" in out
    first, second, third = (
        folder.read_json(p)
        for p in ("run/evaluation.json", "outside-robust-evaluation.json", "run/best-evaluation.json")
    )
    assert first["outcomes"] == second["outcomes"] == third["outcomes"]
    status, out, err = said(capsys, "evaluate", "outside:Wants", *about, "--limit", "500")
    assert status == 0, err
    assert "hint: the model seems to expect normalised inputs" in out


def test_weights_that_a_training_made_are_not_checked_for_normalised_inputs(run_of, capsys, monkeypatch):
    monkeypatch.setattr("atent.evaluate.trial.normalisation_hint", lambda *_: "normalise the inputs")
    (run_of.parent / "outside.py").write_text("import atent\n\ndef robust():\n    return atent.load('run')\n")
    about = ["--data", "digits", "--norm", "linf", "--eps", "0.15"]
    cheap = ["--attacks", "FGSM", "--limit", "10", "--quiet"]
    for target, hinted in (
        (["run"], False),
        (["run/best.safetensors", *about], False),
        (["outside:robust", *about], True),
    ):
        status, out, err = said(capsys, "evaluate", *target, *cheap)
        assert status == 0, err
        assert ("hint: normalise the inputs" in out) is hinted


def test_attack_keeps_arrays_and_draws_them(run_of, capsys):
    status, out, err = said(
        capsys, "attack", "run", "--attack", "PGD(steps=5)", "--limit", "30", "--out", "adv.npz", "--png", "grid.png"
    )
    assert status == 0, err
    with np.load("adv.npz") as file:
        made = {name: file[name] for name in file.files}
    about = json.loads(str(made.pop("provenance")))
    assert set(made) == {"x_adv", "x", "y", "ids", "success", "predicted", "norm"}
    assert made["x_adv"].shape == made["x"].shape == (30, 1, 8, 8)
    assert made["x_adv"].dtype == np.float32
    assert {len(a) for a in made.values()} == {30}
    d = np.abs(made["x_adv"].astype(float) - made["x"]).reshape(30, -1).max(1)
    assert np.allclose(made["norm"], d, rtol=1e-12)
    assert d.max() <= 0.15 + 6e-8
    with torch.no_grad():
        seen = atent.load("run")(torch.from_numpy(made["x_adv"])).argmax(1).numpy()
    assert np.array_equal(made["predicted"], seen)
    assert np.array_equal(made["success"], seen != made["y"])
    assert 0 < made["success"].sum() < 30
    assert f"{made['success'].sum()} of 30 images are misclassified" in out
    assert about["attack"] == "PGD(steps=5)"
    assert about["threat"] == {"norm": "linf", "eps": "0.15", "box": [0.0, 1.0]}
    assert about["provenance"]["version"] == atent.__version__
    assert (run_of.parent / "grid.png").stat().st_size > 5_000
    # the same attack on the same samples, as evaluate runs it
    assert said(capsys, "evaluate", "run", "--attacks", "PGD(steps=5)", "--limit", "30", "--quiet")[0] == 0
    found = folder.read_json(run_of / "evaluation.json")
    # evaluate leaves errors on clean images alone, and an attack may turn one into a right answer
    fooled = set(made["ids"][made["success"]].tolist()) - set(found["wrong"])
    assert fooled == set(found["attacks"]["PGD-5"]["fooled"])
    assert fooled


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        (["evaluate", "run", "--data", "mnist"], ["--data mnist has no effect on run"]),
        (["evaluate", "run", "--attacks", "PDG"], ["did you mean 'PGD'"]),
        (["evaluate", "run", "--limt", "3"], ["--limt", "did you mean '--limit'"]),
        (["evaluate", "run", "--cascade", "perhaps"], ["--cascade", "perhaps"]),
        (["evaluate", "run", "--norm", "l3"], ["l3"]),
        (["evaluate", "run", "--search_dtype", "int8"], ["int8"]),
        (["evaluate", "outside:build"], ["--data is missing"]),
        (["attack", "run", "--attack", "PGD(steps=0)"], ["steps must be at least 1, got 0"]),
        (["attack", "run", "--out", "adv.txt"], ["--out adv.txt: the name must end in .npz"]),
        (["attack", "run", "--png", "grid.jpg"], ["--png grid.jpg: the name must end in .png"]),
        (["attack", "nowhere"], ["nowhere is not a run folder"]),
        (["attack"], ["RUN"]),
    ],
)
def test_mistakes_of_evaluate_and_attack_are_one_line(run_of, capsys, args, parts):
    err = refused(capsys, *args)
    for part in parts:
        assert part in err
    assert {p.name for p in run_of.parent.iterdir()} == {"run"}


def test_attack_never_overwrites(run_of, capsys):
    (run_of.parent / "adv.npz").write_text("precious")
    assert "adv.npz exists" in refused(capsys, "attack", "run", "--out", "adv.npz")
    assert (run_of.parent / "adv.npz").read_text() == "precious"


@pytest.mark.parametrize("spelling", [["--train.average", "none"], ["--train.average=none"]])
def test_none_is_a_word_where_it_is_one_of_the_choices(spelling):
    job = train_job("digits-linf-atent-plus", *spelling, "--evaluate.limit", "none")
    assert job.train.average == "none"
    assert job.evaluate.limit is None


def test_none_is_a_word_where_it_is_one_of_the_names():
    """`--data.augment none` and `--train.shard none` name a choice; `--data.limit` and others without such a name mean
    no value."""
    from atent.cli.jobs import recipe_job

    words = ["--data.augment", "none", "--train.shard", "none", "--data.validation", "none"]
    job, _ = recipe_job("own-linf-atent", words, prog="atent train")
    assert (job.data.augment, job.train.shard, job.data.validation) == ("none", "none", None)


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
