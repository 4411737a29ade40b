"""The figures that the page on performance repeats outside of its generated tables are those of the result files."""

import json
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "performance.md").read_text("utf-8")
WRITTEN = re.sub(r"<!-- \w+: \S+ -->\n.*?<!-- end -->", "", PAGE, flags=re.S)


def measured(name):
    return json.loads((ROOT / "results" / "speed" / f"{name}.json").read_text("utf-8"))["results"][0]


def cell(label):
    """The last cell of the row of a table that begins with ``label``."""
    (row,) = re.findall(rf"^\| {re.escape(label)} \|.*\|$", WRITTEN, re.M)
    return row.split("|")[-2].strip()


def spread(found):
    return "{median:.2f} [{q10:.2f}, {q90:.2f}]".format(**found)


@pytest.mark.parametrize(
    ("label", "method"), [("ATENT", "ATENT"), ("PGD-AT", "PGDAT"), ("TRADES", "TRADES"), ("MMA", "MMA")]
)
def test_methods_beside_their_bare_passes(label, method):
    assert f"| {label} | {spread(measured('methods')['rows'][method]['ratio_to_passes'])} |" in WRITTEN


def test_a_step_of_atent_beside_the_authors_structure():
    found = measured("atent_step")
    for label, form in (("float32", "accumulated"), ("float32, channels-last", "channels-last")):
        assert cell(label) == spread(found["speed"][form])
    assert cell("bfloat16, channels-last") == spread(found["speed"]["bfloat16"])


@pytest.mark.parametrize("form", ["channels-last", "bfloat16"])
def test_the_gain_by_memory_format_and_precision(form):
    seconds = measured("atent_step")["seconds"]
    ratios = [a / b for a, b in zip(seconds["accumulated"], seconds[form], strict=True)]
    middle, low, high = (f"{each:.2f}" for each in (statistics.median(ratios), min(ratios), max(ratios)))
    assert f"({low} to {high})" in WRITTEN
    assert f"[{middle} times](#training-steps)" in WRITTEN


def test_the_summary_repeats_the_generated_tables():
    tables = "".join(re.findall(r"<!-- \w+: \S+ -->\n.*?<!-- end -->", PAGE, re.S))
    summary = WRITTEN[: WRITTEN.index("These settings change the speed")]
    ratios = re.findall(r"\| (\d+\.\d\d)(?: (\[[\d., ]+\]))? \| \[", summary)
    assert len(ratios) == 9
    for ratio, interval in ratios:
        forms = [f"| {ratio} | {interval} |", f"| {ratio} {interval} |"] if interval else [f"| {ratio} |"]
        assert any(form in tables for form in forms), (ratio, interval)
    assert sum(bool(interval) for _, interval in ratios) == 4
    assert "1.76 in [another measurement]" in summary
    assert f"{measured('atent_step')['speed']['accumulated']['median']:.2f}" == "1.76"


def test_the_text_on_autoattack_repeats_its_measurement():
    found = json.loads((ROOT / "results" / "speed" / "autoattack.json").read_text("utf-8"))["results"]
    small, residual = (f"{each['ratio']['total']:.2f}" for each in found)
    text = " ".join(WRITTEN.split())
    assert f"is {small} times as fast as pyautoattack on SmallCNN and {residual} times on ResNet-20" in text
    seconds = {name: part["seconds"] for name, part in found[1]["parts"].items()}
    assert f"which is {100 * seconds['Square'] / sum(seconds.values()):.0f} % of the time of all four" in text
