"""`atent evaluate` and `atent attack` on any model."""

import json
import shutil

import numpy as np
import pytest
import torch
from command_line import QUICK, refused, replaced, said

import atent
from atent import runs as folder
from atent import stats
from atent.cli import main


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run folder of a short training."""
    root = tmp_path_factory.mktemp("trained")
    args = replaced(QUICK, "--data.limit", "1000", "--train.epochs", "5")
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
        "after FGSM", "after PGD-3", "threat   linf 0.15\n",
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
    # That of the network before it was trained anew, which no command resumes.
    old = partial.with_name(f"{partial.name.partition('-')[0]}-{'0' * 12}.partial.jsonl")
    old.write_text(partial.read_text().replace('"model": "', '"model": "0', 1))
    before = len(calls)
    status, _, err = said(capsys, "evaluate", "run", *CHEAP, "--batch-size", "16")
    assert status == 0
    assert f"{old.name} is of an evaluation that was interrupted with other weights: removed" in err
    assert not old.exists()
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


def test_only_the_file_of_the_same_network_is_removed(run_of, capsys, monkeypatch):
    """Networks differ that have one name, and options that choose a network in a file."""
    from atent.attacks import Attack

    def stopping(self, *args, **kwargs):
        raise KeyboardInterrupt

    def partial():
        # A hint about the accuracy may precede the refusal.
        assert said(capsys, *command)[0] == 130
        (found,) = set(out.glob("e.*.partial.jsonl")) - seen
        return found

    out, seen = run_of.parent / "out", set()
    out.mkdir()
    for name in ("a", "b"):
        shutil.copytree(run_of, run_of.parent / name / "run")
    torch.manual_seed(0)
    states = [atent.models.build("digits_cnn").state_dict() for _ in range(2)]
    for folder_, state in zip("ab", states):
        torch.save({"one": state, "two": {k: v + 0.01 for k, v in state.items()}}, run_of.parent / folder_ / "w.pt")
    file = ["w.pt", "--model", "digits_cnn", "--data", "digits", "--norm", "linf", "--eps", "0.1"]
    commands = [
        ["a", "run"], ["b", "run"], ["b", "run", "--which", "last"], ["a", *file, "--key", "one"],
        ["a", *file, "--key", "two"], ["b", *file, "--key", "one"],
        ["b", *file, "--key", "one", "--mean", "0.5", "--std", "0.5"],
    ]  # fmt: skip
    original = Attack.run

    def second(self, *args, **kwargs):
        monkeypatch.setattr(Attack, "run", stopping)
        return original(self, *args, **kwargs)

    for where, *given in commands:
        command = ["evaluate", *given, *CHEAP, "--batch-size", "16", "--out", str(out / "e.json")]
        monkeypatch.chdir(run_of.parent / where)
        monkeypatch.setattr(Attack, "run", second)
        seen.add(partial())
    assert set(out.glob("e.*.partial.jsonl")) == seen


def test_a_run_that_is_moved_resumes(run_of, capsys, monkeypatch):
    from atent.attacks import Attack

    def stopping(self, *args, **kwargs):
        monkeypatch.setattr(Attack, "run", refusing)
        return original(self, *args, **kwargs)

    def refusing(self, *args, **kwargs):
        raise KeyboardInterrupt

    original = Attack.run
    monkeypatch.setattr(Attack, "run", stopping)
    refused(capsys, "evaluate", "run", *CHEAP, "--batch-size", "16", status=130)
    (partial,) = run_of.glob("evaluation.*.partial.jsonl")
    moved = run_of.parent / "elsewhere" / "other"
    moved.parent.mkdir()
    run_of.rename(moved)
    monkeypatch.setattr(Attack, "run", original)
    status, _, err = said(capsys, "evaluate", "elsewhere/other", *CHEAP, "--batch-size", "16")
    assert status == 0, err
    assert "removed" not in err
    assert not (moved / partial.name).exists()


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
    status, out, err = said(capsys, "evaluate", "outside:Wants", *replaced(about, "--limit", "500"))
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
