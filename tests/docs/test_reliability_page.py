"""docs/reliability.md and docs/how-long.md have the figures of the results and the limits of the code."""

import json
import re
from collections import Counter
from pathlib import Path

import pytest
import tables
import watch

from atent import Threat
from atent.attacks import ATTACKS
from atent.attacks.length import LONGEST, LONGEST_INNER
from atent.train import TrainSettings
from atent.train.finite import MOST_SKIPPED
from atent.train.watch import ALIGNED, MISALIGNED

ROOT = Path(__file__).parents[2]
MARKS = {
    "reliability": ["inputs: reliability", "fuzz: reliability", "soak: reliability", "upkeep: reliability"],
    "how-long": [
        "times: race-epochs", "times: race-l2-epochs", "times: race-mnist5k", "campaign: cifar", "attacked: published",
    ],
}  # fmt: skip


def page(name):
    return (ROOT / "docs" / f"{name}.md").read_text()


def paragraph(word):
    """The paragraphs and lists of docs/reliability.md with a word, on one line."""
    found = [part for part in page("reliability").split("\n\n") if word in " ".join(part.split())]
    assert found, word
    return " ".join(" ".join(found).split())


@pytest.mark.parametrize("name", MARKS)
def test_the_tables_are_those_of_the_results(name):
    text = page(name)
    assert re.findall(r"<!-- (\w+: \S+) -->", text) == MARKS[name]
    assert tables.refreshed(text, ROOT / "results") == text


def test_ten_thousand_bad_inputs_and_none_of_them_wrong():
    found = json.loads((ROOT / "results" / "reliability" / "bad_inputs.json").read_text())
    assert found["total"]["tried"] >= 10_000
    assert found["total"]["wrong"] == 0
    assert found["total"] == {key: sum(room[key] for room in found["by"].values()) for key in found["total"]}


def test_the_limits_are_those_of_the_code():
    text, settings = page("reliability"), TrainSettings()
    for name in ("watch_drop", "watch_gap", "watch_window", "rollbacks"):
        assert f"`train.{name}` ({getattr(settings, name):g})" in text
    for word, *figures in (
        ("--allow-long", LONGEST, LONGEST_INNER, _most_passes()),
        ("watch_alignment", MISALIGNED, ALIGNED),
        ("`skipped`", MOST_SKIPPED),
    ):
        for figure in figures:
            assert f" {figure:,}" in paragraph(word), (word, figure)


def _most_passes():
    """The passes per image of the attack that takes the most at its defaults."""
    passes = {}
    for name, kind in ATTACKS.items():
        if name == "Transfer":  # it has no default source
            continue
        norm = kind.norms[0]
        threat = Threat(norm, 1.0 if norm in ("l0", "patch") else 0.1, **({"side": 2} if norm == "patch" else {}))
        passes[name] = kind(threat).passes
    assert max(passes, key=passes.get) == "SAPF"
    return passes["SAPF"]


def test_the_trainings_of_the_watch_are_those_of_the_results():
    """What the page reports of the three sets beside the table of rates, which test_watch_rates.py checks."""
    kinds, rules = {}, {}
    for name in watch.COMMON:
        known = watch.references(name)
        kinds[name], rules[name] = Counter(), Counter()
        for row in watch.rows_of(name):
            reference = known.get((row["data"], row["eps"]), 0.0)
            kind = watch.kind(row, reference) if reference >= 0.2 else "without a reference"
            kinds[name][kind] += 1
            rules[name].update((kind, rule) for rule in watch.alarms(row))
            rules[name].update([(kind, row["method"])])
    assert "P is below 20 %" in paragraph("in none of the rates")
    left_out = {name: found["without a reference"] for name, found in kinds.items()}
    assert f"{left_out.pop('tuning')} of the {kinds['tuning'].total()} trainings" in paragraph("in none of the rates")
    assert left_out == {"held-out": 0, "fresh": 0}
    tuning = paragraph("set `tuning`")
    assert f"({kinds['tuning'].total()} trainings)" in tuning
    assert f"{rules['tuning']['good', 'fall']} of {kinds['tuning']['good']} good" in tuning
    assert rules["tuning"]["good", "stop"] == 0
    held_out = paragraph("set `held-out`")
    assert f"{kinds['held-out']['good']} good" in held_out
    assert not any(rules["held-out"]["good", rule] for rule in ("fall", "gap", "alignment"))
    assert f"{rules['held-out']['collapsed', 'fall']} of its {kinds['held-out']['collapsed']} collapses" in held_out
    assert f"{kinds['fresh'].total()} trainings" in paragraph("set `fresh`")
    scope, fixed = paragraph("Free did not collapse"), "FGSMRS:start=zero,step=1"
    of = {method: rules["fresh"]["collapsed", method] for method in (fixed, "FGSMRS")}
    assert sum(of.values()) == kinds["fresh"]["collapsed"]
    assert f"{of[fixed]} of FGSM without a random start and {of['FGSMRS']} with one" in scope
    omitted = sum(rules["fresh"][kind, fixed] for kind in ("good", "collapsed", "neither"))
    assert f"{omitted} of the {kinds['fresh'].total()} trainings" in scope
