"""Former names in files and in code: what called clean accuracy natural is read, and reported once."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from kit import save_state, unsealed

from atent.cli.jobs import recipe_job
from atent.data import DataSettings, load
from atent.evaluate import evaluate, fourier_map, measure_corruptions
from atent.experiments import migrate
from atent.experiments.recipe_files import moved
from atent.experiments.results import EvaluationFile
from atent.messages import deprecated
from atent.methods import Standard
from atent.runs import append_jsonl, keep_jsonl, read_jsonl, read_rows, with_present_keys
from atent.runs.checkpoint import load_state
from atent.runs.folder import completed
from atent.train import Callback, fit
from atent.train.settings import TrainSettings

RESULTS = Path(__file__).parents[2] / "results"


def test_keys_of_every_depth_and_no_others(tmp_path):
    old = {"natural": {"k": 3}, "per_class": [{"natural": 1, "naturally": 2, "robust_loss": 0}], "natural_loss": 4}
    before = json.dumps(old)
    assert with_present_keys(old) == {
        "clean": {"k": 3}, "per_class": [{"clean": 1, "naturally": 2, "robust_loss": 0}], "clean_loss": 4,
    }  # fmt: skip
    assert json.dumps(old) == before
    rows = tmp_path / "metrics.jsonl"
    rows.write_text('{"epoch": 1, "validation_natural_low": 0.5}\n{"epoch": 2, "validation_clean_low": 0.75}\n')
    assert [row["validation_clean_low"] for row in read_rows(rows)] == [0.5, 0.75]


def test_the_former_value_of_select_is_read_everywhere(capsys):
    deprecated.cache_clear()
    assert TrainSettings(select="natural") == TrainSettings(select="clean")
    assert moved({"train": {"select": "natural"}}) == {"train": {"select": "clean"}}
    for words in (["--train.select", "natural"], ["--train.select=natural"]):
        assert recipe_job("digits-linf-pgdat", words, prog="atent train")[0].train.select == "clean"
    assert capsys.readouterr().err.splitlines() == [
        "atent: select natural is deprecated: write clean",
        "atent: train.select natural is deprecated: write clean",
        "atent: --train.select natural is deprecated: write --train.select clean",
    ]


def test_a_configuration_of_an_earlier_version_has_the_names_of_today():
    old = {
        "method": {"name": "ATENT", "pull": "scaled"}, "train": {"select": "natural"}, "data": {"subset": "first"},
        "about": {"chain": {"pull": 0.05, "noise": 0.1}},
    }  # fmt: skip
    assert completed(old) == {
        "method": {"name": "ATENT", "anchor": "scaled"}, "train": {"select": "clean"}, "data": {"subset": "first"},
        "about": {"chain": {"anchor_weight": 0.05, "noise": 0.1}},
    }  # fmt: skip


def test_the_former_attribute_of_an_evaluation(capsys):
    deprecated.cache_clear()
    model = torch.nn.Linear(3, 3, bias=False)
    model.weight.data = 5 * torch.eye(3)
    found = evaluate(model, torch.eye(3), torch.tensor([0, 1, 1]), {})
    assert found.natural is found.clean
    assert found.clean["k"] == 2
    assert "Evaluation.natural is deprecated: write Evaluation.clean" in capsys.readouterr().err


def test_clean_counts_correct_samples_and_its_former_meaning_is_reported(capsys):
    deprecated.cache_clear()
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 2))
    x, y = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 1, 0])
    accuracy = evaluate(model, x, y, {}).clean
    for found in (measure_corruptions(model, x, y, names=["contrast"]), fourier_map(model, x, y)):
        name = type(found).__name__
        assert accuracy["k"] + int(found.clean_wrong.sum()) == accuracy["n"]
        assert found.clean is found.clean_wrong
        assert f"{name}.clean is deprecated: write {name}.clean_wrong" in capsys.readouterr().err


@pytest.mark.parametrize("was", ["clean", "natural"])
def test_reports_of_errors_of_an_earlier_version_are_read(was):
    stored = json.loads((RESULTS / "studies-digits" / "evaluation.json").read_text())
    errors = {}
    for report in (stored["corruptions"], stored["fourier"]):
        errors[report["n"]] = report.pop("clean_error", None) or report.pop("clean")
        report |= {"schema_version": 1, was: errors[report["n"]]}
    stored["corruptions"].pop("definitions", None)
    found = migrate.parsed(stored, EvaluationFile, RESULTS / "evaluation.json")
    assert (found.corruptions.schema_version, found.corruptions.definitions) == (3, 1)
    assert found.fourier.schema_version == 2
    for report in (found.corruptions, found.fourier):
        assert asdict(report.clean_error) == errors[report.n]
        assert report.clean_error.k == report.n - found.clean.k
    again = found.to_json()
    assert migrate.evaluation(again) == again
    with pytest.raises(ValueError, match="a report on errors of schema version 3"):
        migrate.parsed({**again, "fourier": {**again["fourier"], "schema_version": 3}}, EvaluationFile, RESULTS)


def test_rows_are_kept_by_the_former_function(tmp_path, capsys):
    deprecated.cache_clear()
    for epoch in (1, 2, 3):
        append_jsonl(tmp_path / "metrics.jsonl", {"epoch": epoch})
    keep_jsonl(tmp_path / "metrics.jsonl", lambda row: row["epoch"] != 2)
    assert [row["epoch"] for row in read_jsonl(tmp_path / "metrics.jsonl")] == [1, 3]
    assert "atent.runs.keep_jsonl is deprecated" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["Draws", "draws_needed"])
def test_former_names_of_certify(name, capsys):
    import atent.certify

    deprecated.cache_clear()
    assert getattr(atent.certify, name) is getattr(atent.certify, {"Draws": "Sampling"}.get(name, "samples_needed"))
    assert f"atent.certify.{name} is deprecated" in capsys.readouterr().err


def test_the_former_name_of_sampling_in_its_module(capsys):
    from atent.certify import certificate

    deprecated.cache_clear()
    assert certificate.Draws is certificate.Sampling
    assert "atent.certify.certificate.Draws is deprecated" in capsys.readouterr().err
    assert not hasattr(certificate, "Drawn")


def in_former_words(value):
    """What an earlier version wrote in the place of ``value``."""
    if isinstance(value, dict):
        return {re.sub(r"(^|_)clean(?=_|$)", r"\1natural", key): in_former_words(v) for key, v in value.items()}
    return value


class Dies(Callback):
    """Stops the training in the middle of its second epoch."""

    def step(self, progress):
        if (progress.epoch, progress.step) == (2, 2):
            raise ZeroDivisionError


def test_a_run_of_an_earlier_version_resumes_within_an_epoch(tmp_path):
    """Its metrics so far, in the checkpoint and in metrics.jsonl, count by their present names."""
    data = load(DataSettings("digits", limit=96, validation=30))

    def trained(name, *callbacks, resume=False):
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        settings = TrainSettings(epochs=3, batch_size=32, validate_limit=20, save_minutes=0, device="cpu", threads=1)
        found = fit(
            net, data, Standard(), settings=settings, run=tmp_path / name, callbacks=callbacks, resume=resume,
            progress=False,
        )  # fmt: skip
        return [{k: v for k, v in row.items() if k not in ("seconds", "memory_mb")} for row in found.history]

    with pytest.raises(ZeroDivisionError):
        trained("old", Dies())
    state = load_state(tmp_path / "old", torch.device("cpu"))
    assert state["mark"]["step"] > 0
    assert "clean" in state["meter"]["sums"]
    del state["metrics"]
    save_state(unsealed(tmp_path / "old"), {**state, "meter": in_former_words(state["meter"])})
    rows = read_rows(tmp_path / "old" / "metrics.jsonl")
    unsealed(tmp_path / "old")
    (tmp_path / "old" / "metrics.jsonl").write_text("".join(json.dumps(in_former_words(r)) + "\n" for r in rows))
    assert trained("old", resume=True) == trained("whole")
