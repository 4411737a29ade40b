"""`--json`: standard output is one JSON document, the one that the command writes."""

import json
import shutil
from pathlib import Path

import pytest
from kit import own

from atent.cli import main
from atent.experiments.results import CertificateFile, EvaluationFile

BEFORE = Path(__file__).parents[1] / "files" / "before_subsets"


@pytest.fixture
def run(tmp_path, monkeypatch):
    shutil.copytree(BEFORE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return own(tmp_path / "finished")


def test_evaluate_prints_what_it_writes(run, capsys):
    assert main(["evaluate", "finished", "--attacks", "FGSM", "--radius", "0.05", "--json", "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((run / "evaluation-2.json").read_text())
    assert EvaluationFile.from_json(printed).schema_version == 2


@pytest.mark.parametrize("how", [["--sigma", "0.1", "--n", "500"], ["--method", "ibp"]], ids=["smoothing", "bounds"])
def test_certify_prints_what_it_writes(run, capsys, how):
    earlier = {path: path.read_text() for path in run.glob("certificate*.json")}
    assert main(["certify", "finished", *how, "--limit", "4", "--json", "--device", "cpu"]) == 0
    printed = json.loads(capsys.readouterr().out)
    (made,) = [p for p in run.glob("certificate*.json") if earlier.get(p) != p.read_text()]
    assert printed == json.loads(made.read_text())
    assert CertificateFile.from_json(printed).schema_version == 2


def test_attack_prints_one_document(run, capsys):
    assert main(["attack", "finished", "--attack", "FGSM", "--limit", "4", "--json", "--device", "cpu"]) == 0
    assert json.loads(capsys.readouterr().out)
