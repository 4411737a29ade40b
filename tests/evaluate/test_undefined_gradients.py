"""NaN or infinite input gradients are a remark of the attack that met them, in every way to evaluate."""

import json

import pytest
import torch
from torch import nn

from atent import Threat
from atent.attacks import PGD, AutoAttack, Square, Transfer
from atent.attacks.oracle import UNDEFINED
from atent.cli import main
from atent.data import DataSettings, load
from atent.distributed.shards import Shard
from atent.evaluate import Evaluation, evaluate, evaluate_shard, sweep
from atent.experiments.comparison import attributed, markdown, radius_remarks
from atent.experiments.finished import compare_runs
from atent.experiments.results import ComparisonFile
from atent.experiments.results.base import Share
from atent.experiments.results.evaluation import SweepRow
from atent.methods import Standard
from atent.report import report
from atent.train import TrainSettings, fit

LINF = Threat("linf", 0.05)
CLAUSE = UNDEFINED.format("NaN or infinite input gradients")


class Masked(nn.Module):
    """A linear network with a NaN gradient where the thirteenth pixel is above a half, and finite logits everywhere."""

    def __init__(self, inputs=16, classes=5):
        super().__init__()
        self.linear = nn.Linear(inputs, classes)

    def forward(self, x):
        x = x.flatten(1)
        above = (x[:, 12:13] > 0.5).float()
        return self.linear(x) + torch.sqrt(above * (x[:, 12:13] - x[:, 12:13].detach()) + (1 - above)) * above


@pytest.fixture
def case():
    """A network, 6 inputs of which the last alone has a NaN gradient, and their classes."""
    torch.manual_seed(0)
    model, x = Masked(), 0.2 + 0.2 * torch.rand(6, 1, 4, 4)
    x[-1, 0, 3, 0] = 0.8
    return model, x, model(x).argmax(1)


def test_an_evaluation_has_the_remark_of_the_attack_that_met_them(case):
    found = evaluate(*case, [PGD(LINF, steps=2), Square(LINF, queries=3)], batch=2, cascade=False)
    assert found.attacks["PGD-2"]["remarks"] == [CLAUSE]
    assert "remarks" not in found.attacks["Square-3"]
    assert f"PGD-2: {CLAUSE}" in str(found)
    read = Evaluation.from_json(json.loads(json.dumps(found.to_json())))
    assert read.attacks["PGD-2"]["remarks"] == [CLAUSE]


def test_a_composite_attack_names_the_part_and_a_transfer_reports_its_source(case):
    model, x, y = case
    found = evaluate(model, x, y, [AutoAttack(LINF, version="rand", steps=3, eot=1)])
    assert f"APGD-CE {CLAUSE}" in next(iter(found.attacks.values()))["remarks"]
    plain = nn.Sequential(nn.Flatten(), nn.Linear(16, 5))
    found = evaluate(plain, x, plain(x).argmax(1), {"t": Transfer(LINF, source=model, attack="PGD(steps=2)")})
    assert CLAUSE in found.attacks["t"]["remarks"]


def test_the_radii_of_a_sweep_have_it_where_it_was_met(case):
    model, x, y = case
    rows = sweep(model, x, y, {"pgd": PGD(LINF, steps=2), "square": Square(LINF, queries=3)}, [0, 0.05])
    assert [row.get("remarks") for row in rows] == [[CLAUSE], [CLAUSE], None, None]
    assert "hint" not in rows[0]
    read = [SweepRow(**{**row, **{key: stated(row[key]) for key in ("clean", "robust", "monotone")}}) for row in rows]
    assert radius_remarks(read) == [f"pgd: {CLAUSE}."]
    (_, *others) = read
    assert radius_remarks(others) == [f"linf 0.05: pgd: {CLAUSE}."]


def stated(found):
    return Share(**found)


def test_the_radii_of_a_sweep_have_the_hint():
    class Flat(nn.Module):
        def forward(self, x):
            return torch.cat([x.flatten(1)[:, :1].round(), x.new_full((len(x), 1), 0.5)], 1)

    x = torch.rand(30, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    y = Flat()(x).argmax(1)
    rows = sweep(Flat(), x, y, [PGD(LINF, steps=2)], [0.01, 0.05])
    assert [("exactly zero" in row["hint"]) for row in rows] == [True, True]
    assert evaluate(Flat(), x, y, [PGD(LINF, steps=2)]).hint == rows[0]["hint"]


def test_a_resumed_and_a_sharded_evaluation_keep_it(case, tmp_path):
    attacks, how = [PGD(LINF, steps=2)], {"batch": 2, "blocks": True}
    whole = evaluate(*case, attacks, resume=tmp_path / "a.jsonl", **how)
    assert evaluate(*case, attacks, resume=tmp_path / "a.jsonl", **how) == whole
    lines = []
    for index in range(3):
        file = tmp_path / f"{index}.jsonl"
        evaluate_shard(*case, attacks, Shard(index, 3), resume=file, batch=2)
        lines += file.read_text().splitlines()[1 if lines else 0 :]
    (tmp_path / "all.jsonl").write_text("".join(f"{line}\n" for line in lines))
    merged = evaluate(*case, attacks, resume=tmp_path / "all.jsonl", **how)
    assert merged.attacks["PGD-2"]["remarks"] == whole.attacks["PGD-2"]["remarks"] == [CLAUSE]


def test_a_line_names_the_rows_that_it_concerns():
    assert attributed({"a": ["x"], "b": ["x", "y", "y"], "c": []}) == ["a, b: x", "b: y"]
    assert attributed({"a": ["x"], "b": ["x"]}) == ["x"]


def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def masked():
    return Masked(64, 10)


def test_comparison_and_report_show_it(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    data = load(DataSettings("digits", limit=200))
    how = TrainSettings(epochs=1, batch_size=64, device="cpu", validate_limit=20)
    for build in (plain, masked):
        own = f"{__name__}:{build.__name__}"
        fit(build(), data, Standard(), settings=how, run=build.__name__, builder=own, progress=False)
    found = compare_runs({"plain": "plain", "masked": "masked"}, attacks=["FGSM(norm=linf, eps=0.1)"], limit=20)
    (line,) = found.remarks
    assert line.startswith("masked: FGSM")
    assert CLAUSE in line
    assert line in markdown(found)
    assert ComparisonFile.from_json(found.to_json()) == found
    assert CLAUSE in report(["masked"], images=0)
    words = ["--attacks", "FGSM(norm=linf, eps=0.1)", "--limit", "20", "--radius", "0.05", "0.1", "--quiet"]
    capsys.readouterr()
    assert main(["evaluate", "masked", *words]) == 0
    assert capsys.readouterr().out.count(CLAUSE) == 2
    assert f'<p class="note">FGSM: {CLAUSE}.</p>' in report(["masked"], images=0)
    assert CLAUSE not in report(["plain"], images=0)
