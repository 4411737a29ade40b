"""The networks of the package: whole, small, and as their cards say."""

import importlib.util
import json
import os
import re
import shlex
from pathlib import Path

import pytest
import torch

import atent
from atent import zoo
from atent.cli import main
from atent.experiments.target import load_target
from atent.runs import manifest, read_json
from atent.runs.weights import fingerprint

ROOT = Path(__file__).parents[2]
OWN = sorted(path.parent.name for path in Path(zoo.__file__).parent.glob("*/config.json"))
DIGITS = "digits-linf-crown-ibp"


def test_the_networks_are_small_and_covered():
    assert DIGITS in OWN
    files = [p for name in OWN for p in zoo.find(name).rglob("*")]
    assert sum(p.stat().st_size for p in files) < 1.5 * 1024 * 1024
    for name in OWN:
        place = zoo.find(name)
        assert sum(p.stat().st_size for p in place.rglob("*")) < 1024 * 1024
        assert zoo.origin(name) == "built-in"
        assert set(manifest.states(place).values()) == {"whole"}
        card = read_json(place / "card.json")
        assert card["name"] == name
        assert all((place / figure["file"]).is_file() for figure in (*card["figures"], *card["attacks"]))
        assert card["sha256"]["model.safetensors"] == manifest.sum_of(place / "model.safetensors")["sha256"]
        config = read_json(place / "config.json")
        assert (config["data"]["root"], "signature" in config) == (None, False)


def check_verdicts(target):
    """The clean accuracy of the float16 weights, but for images on the boundary."""
    x, y, _ = target.test()
    with torch.no_grad():
        logits = target.model(x)
    top = logits.topk(2, dim=1).values
    # Rounding moves a logit by less than this.
    near = int((top[:, 0] - top[:, 1] < 1e-3).sum())
    found = read_json(target.origin / "evaluation.json")
    assert found["clean"]["n"] == len(x)
    assert abs(int((logits.argmax(1) == y).sum()) - found["clean"]["k"]) <= near
    assert near < 5


def test_a_network_is_what_its_card_says(tmp_path, monkeypatch):
    """Its verdicts, and a certificate of its weights."""
    monkeypatch.chdir(tmp_path)
    target = load_target(f"zoo:{DIGITS}", attacks=(), limit="all")
    check_verdicts(target)
    assert read_json(target.origin / "certificate.json")["made"]["weights"] == fingerprint(target.model)
    assert target.threat.plain()["eps"] == pytest.approx(0.1)
    assert all(p.dtype == torch.float32 for p in target.model.parameters())


CIFAR = Path(os.environ.get("ATENT_DATA_ROOT", "data")) / "cifar10"


# `test_a_network_is_what_its_card_says` holds the same of the digits, whose file is read in no time.
@pytest.mark.slow
@pytest.mark.skipif(not CIFAR.is_dir(), reason="the files of CIFAR-10 are needed")
def test_the_network_of_cifar_is_what_its_files_say():
    target = load_target("zoo:cifar10-l2-pgdat", attacks=(), limit=1000)
    check_verdicts(target)
    assert float(target.threat.eps) == 1.0


def test_a_listed_accuracy_has_its_interval_its_attacks_and_n():
    for name in OWN:
        listed = zoo.facts(name)
        for figure in read_json(zoo.find(name) / "card.json")["figures"]:
            share = figure["share"]
            value, low, high = (f"{100 * share[key]:.1f}" for key in ("value", "low", "high"))
            (part,) = [
                text for text in listed.split("; ") if text.startswith(f"{figure['name']} {value} % [{low}, {high}]")
            ]
            assert part.endswith(f"n = {share['n']:,}")
            assert all(attack in part for attack in figure["under"].rpartition("; ")[0].split(", "))


def test_names_and_results(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    before = sorted(zoo.find(DIGITS).iterdir())
    assert (
        main(["evaluate", f"zoo:{DIGITS}", "--attacks", "FGSM", "--limit", "20", "--quiet", "--min-clean", "0.5"]) == 0
    )
    (made,) = tmp_path.glob("*.json")
    assert made.name == f"zoo-{DIGITS}-evaluation.json"
    assert sorted(zoo.find(DIGITS).iterdir()) == before
    capsys.readouterr()
    assert main(["list", "zoo", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert "verified accuracy" in rows[f"zoo:{DIGITS}"]["about"]
    # Those of a checkout come after, without a card.
    assert all(rows[f"zoo:{p.parent.name}"]["origin"] == "checkout" for p in ROOT.glob("results/*/best.safetensors"))
    with pytest.raises(ValueError, match="did you mean"):
        atent.load("zoo:digits-linf-crown-ipb")


PAGE = (ROOT / "docs" / "export.md").read_text()


def test_the_page_on_exports_runs(tmp_path, monkeypatch, capsys):
    """Its commands and its Python; what needs an extra where that is installed."""
    monkeypatch.chdir(tmp_path)
    onnx = all(map(importlib.util.find_spec, ("onnx", "onnxruntime", "onnxscript")))
    ran = 0
    for kind, block in re.findall(r"```(bash|python)\n(.*?)```", PAGE, re.S):
        if "onnx" in block and not onnx:
            continue
        if kind == "python":
            exec(compile(block, "docs/export.md", "exec"), {})
            continue
        for line in block.splitlines():
            if "vnnlib" in line and not onnx:
                continue
            words = shlex.split(line)[1:]
            few = [] if words[0] == "list" or "--limit" in words else ["--limit", "10"]
            assert main([*words, *few]) == 0, capsys.readouterr().err
            ran += 1
    assert ran >= 5
