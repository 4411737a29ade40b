"""`--json`: standard output is one JSON document, the one that the command writes."""

import json
import shutil
from inspect import signature
from pathlib import Path

import pytest
from kit import own

from atent.cli import COMMANDS, command, main
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


FAILING = {
    "attack": ["nope", "--attack", "FGSM"], "bench": ["nope"], "certify": ["nope"], "compare": ["nope"],
    "evaluate": ["nope", "--attacks", "FGSM"], "export": ["nope", "--format", "onnx"],
    "gate": ["nope", "--min-clean", "0"], "list": ["nope"], "show": ["nope"], "sweep": ["nope"], "theory": ["nope"],
    "transfer": ["nope", "no", "--attack", "FGSM"],
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [name for name in COMMANDS if "json" in signature(getattr(command(name), name)).parameters]
)
def test_an_error_leaves_standard_output_empty(name, tmp_path, monkeypatch, capsys):
    """Standard output holds a result or nothing, so that a file written from it is one that the library reads; the
    error is on standard error, with its exit status."""
    monkeypatch.chdir(tmp_path)
    assert main([name, *FAILING[name], "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    (line,) = printed.err.splitlines()
    assert line.startswith("atent: ")
    assert "an error leaves it empty" in " ".join(getattr(command(name), name).__doc__.split())
