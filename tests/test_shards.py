"""Shards and ranks: together they measure what one process measures."""

import json

import pytest

from atent.cli import main

QUICK = ["--quiet", "--device", "cpu"]
# An ensemble with parts, as AutoAttack is one, at a size for tests.
ATTACKS = ["--attacks", "FGSM", "PGD(steps=4)", "AutoAttack(version='rand', steps=3)"]
EVALUATE = [*ATTACKS, "--eps", "0.08", "--limit", "60", "--batch-size", "10", *QUICK]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    args = ["--train.epochs", "2", "--data.limit", "200", "--evaluate.attacks", "FGSM", "--evaluate.limit", "20"]
    quick = ["--runs", str(root), "--train.device", "cpu", "--quiet", "--train.validate_limit", "20"]
    assert main(["train", "digits-l2-gaussian", *args, *quick]) == 0
    return root / "digits-l2-gaussian"


def test_merged(run, tmp_path, capsys):
    found = {}
    for k in (1, 2, 3):
        out = tmp_path / f"{k}.json"
        for i in range(1, k + 1):
            assert main(["evaluate", str(run), *EVALUATE, "--out", str(out), "--shard", f"{i}/{k}"]) == 0
        assert main(["evaluate", str(run), *EVALUATE, "--out", str(out), "--merge"]) == 0
        found[k] = json.loads(out.read_text())
    assert main(["evaluate", str(run), *EVALUATE, "--out", str(tmp_path / "0.json")]) == 0
    print(capsys.readouterr())
    found[0] = json.loads((tmp_path / "0.json").read_text())
    print(found[0]["outcomes"], found[0]["worst"])
    assert found[1]["outcomes"] == found[2]["outcomes"] == found[3]["outcomes"] == found[0]["outcomes"]
