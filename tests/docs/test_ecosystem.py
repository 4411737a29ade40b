"""docs/ecosystem.md: every snippet of atent runs, the others where the package is installed; the table counts lines."""

import importlib
import re
import shlex
from pathlib import Path

import pytest
import snippets
import torch
from safetensors.torch import save_file
from torch.utils.data import DataLoader, TensorDataset

from atent.cli import main
from atent.data import DataSettings, load
from atent.models import build

ROOT = Path(__file__).parents[2]

TEXT = snippets.PAGE.read_text(encoding="utf-8")
PAIRS = {pair.package: pair for pair in snippets.pairs(TEXT)}
PACKAGES = {
    "RobustBench": "robustbench", "foolbox": "foolbox", "torchattacks": "torchattacks", "ART": "art", "MAIR": "mair",
    "timm": None, "auto_LiRPA": "auto_LiRPA", "scikit-learn": "sklearn",
}  # fmt: skip
"""What must import for the snippet of each; None: nothing but torch."""
NEVER_RUN = ("RobustBench", "MAIR")
"""Their snippets need files and data of their own, and were not run; the page says so."""


@pytest.fixture
def given(tmp_path, monkeypatch):
    """The names that the page's snippets use: a network, images, labels and loaders."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    data = load(DataSettings("digits"))
    (x, y), (x_test, y_test) = (part.batch(torch.arange(100)) for part in (data.train, data.test))
    train, test = (DataLoader(TensorDataset(a, b), 50) for a, b in ((x, y), (x_test, y_test)))
    model = build("digits_cnn").eval()
    save_file(model.state_dict(), tmp_path / "weights.safetensors")
    return {
        "model": model, "x": x, "y": y, "train_loader": train, "test_loader": test, "x_table": x.flatten(1).numpy(),
        "labels": y.numpy(), "x_test": x_test, "y_test": y_test,
    }  # fmt: skip


def run(code, names):
    exec(compile(code, "docs/ecosystem.md", "exec"), names)
    return names


def test_the_page_has_all_eight_and_the_table_is_counted():
    assert list(PAIRS) == list(PACKAGES)
    assert snippets.table(TEXT) in TEXT


@pytest.mark.parametrize("package", PACKAGES)
def test_a_snippet_of_ours_runs(package, given, capsys):
    pair = PAIRS[package]
    before = [p.clone() for p in given["model"].parameters()]
    if package == "auto_LiRPA":
        given |= {"x": given["x"][:10], "y": given["y"][:10]}
    if pair.language == "console":
        words = shlex.split(pair.here.removeprefix("$ atent"))
        assert main([*words, "--limit", "10", "--quiet"]) == 0
        assert "robust" in capsys.readouterr().out
        return
    found = run(pair.here, given)
    trained = any(not torch.equal(a, b) for a, b in zip(before, given["model"].parameters()))
    assert trained == (package in ("MAIR", "timm"))
    if package == "torchattacks":
        outcome = found["outcome"]
        with torch.no_grad():
            right = given["model"](outcome.x_adv).argmax(1) == given["y"]
        assert outcome.robust == pytest.approx(right.double().mean().item())
    if package == "ART":
        assert any(not torch.equal(a, b) for a, b in zip(before, found["trained"].network_.parameters()))
    if package == "foolbox":
        assert [row["radius"] for row in found["rows"]] == [0.01, 0.03, 0.1]
    if package == "MAIR":
        assert (Path("runs/ours") / "best.safetensors").is_file()
    for name in ("robust", "share", "accuracy"):
        assert 0 <= float(found.get(name, 0)) <= 1


@pytest.mark.parametrize("package", [name for name in PACKAGES if name not in NEVER_RUN])
def test_a_snippet_of_theirs_runs_where_the_package_is_installed(package, given):
    """What both sides compute agrees, where they compute one figure without chance."""
    module = PACKAGES[package]
    if module is not None:
        try:
            importlib.import_module(module)
        except Exception as error:
            pytest.skip(f"{module} does not import: {error}")
    if package == "auto_LiRPA":
        given |= {"x": given["x"][:10], "y": given["y"][:10]}
    theirs = run(PAIRS[package].there, dict(given))
    if package == "auto_LiRPA":
        ours = run(PAIRS[package].here, given)["share"]
        # Bounds of the same kind, cut to the intervals in ours alone: ours verify no fewer.
        assert ours >= theirs["verified"] - 1 / len(given["y"])
    if package == "timm":
        assert theirs["adversarial"].shape[1:] == (1, 8, 8)


def test_the_page_on_scikit_learn_runs(given):
    names = run(PAIRS["scikit-learn"].here, given)
    (code,) = re.findall(r"## The scikit-learn classifier\n.*?```python\n(.*?)```", TEXT, re.DOTALL)
    names = run(code, names)
    assert 0 <= names["verified_share"] <= 1
    assert names["search"].best_params_["robustclassifier__eps"] in (0.1, 0.3)


DRIVERS = re.findall(r"```python\n(.*?)```", TEXT.partition("## Attacks of atent in other packages")[2], re.DOTALL)


@pytest.mark.parametrize("module", ["foolbox", "torchattacks", "art"])
def test_attacks_of_atent_in_other_packages(module, given):
    pytest.importorskip(module)
    (code,) = [code for code in DRIVERS if f"from atent.integrations import {module} as" in code]
    run(code, given)
