"""The hand-written figures of docs/paper.md and results/README.md, and the Markdown of results/laptop, agree with the
result files."""

import json
import os
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from commands import compare_jobs, given, train_job

from atent.data import DataSettings, load
from atent.experiments.recipe_files import recipe_names
from atent.paper.evidence import difference
from atent.paper.render import rendered

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "results"
PAPER = (ROOT / "docs" / "paper.md").read_text("utf-8")
README = (RESULTS / "README.md").read_text("utf-8")


def content(name):
    return json.loads((RESULTS / name).read_text("utf-8"))


def cells(name, place="laptop"):
    """{row: {column: cell}} of a table of scale laptop."""
    return {
        row["key"]: {key: cell["ours"] for key, cell in row["cells"].items()}
        for block in content(f"{place}/{name}.json")["blocks"]
        for row in block["rows"]
    }


def figures(text):
    """The numbers of a string, signs and all."""
    return re.findall(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?", text)


def percent(*shares, digits=1):
    return [f"{100 * share:.{digits}f}" for share in shares]


def lead(one, other):
    """A paired difference as the pages write it, as figures."""
    return figures(str(difference(one, other)))


def test_what_the_paper_s_page_concludes_has_the_figures_of_the_files():
    smoothed = {key: row["certified"] for key, row in cells("table-s2").items()}
    attacked, mnist, plane = cells("table-s1")["atent"], cells("mnist"), content("laptop/figure-1.json")
    published, corrected = smoothed["atent-smoothing"], smoothed["atent-mended"]
    settings = ["5,000", "0.549", "0.435", "2", "0.3", "40", "1", "1", str(attacked["full-autoattack"]["n"])]
    expected = [*settings, *percent(*(smoothed[k]["value"] for k in ("gaussian", "smoothadv", "trades-smoothing")))]
    expected += percent(published["value"], corrected["value"])
    expected += percent(*sorted(published["each"])[1:], digits=0)
    assert min(published["each"]) < 0.15
    expected += lead(corrected, smoothed["smoothadv"]) + lead(corrected, smoothed["gaussian"])

    whole, few = attacked["full-published"], attacked["full-autoattack"]
    expected += percent(whole["value"], attacked["full-weak"]["value"], few["value"], few["same_images"]["value"])
    expected += [str(few["n"])]
    for column in ("half-published", "full-published"):
        means = [cells("table-s1")[key][column]["value"] for key in ("pgdat", "mma", "atent")]
        assert max(means) - min(means) < 0.02

    ten = cells("table-s1", "cifar/laptop-table-s1-ten-seeds")
    expected += lead(ten["atent"]["full-published"], ten["mma"]["full-published"])
    expected += lead(ten["atent"]["full-published"], ten["pgdat"]["full-published"])
    tuned = {row: each["robust"] for row, each in cells("finetune", "cifar/laptop-finetune-ten-seeds").items()}
    expected += lead(tuned["atent"], tuned["pgdat"]) + lead(tuned["scratch"], tuned["atent"])

    expected += percent(*sorted(mnist["linf-atent"]["robust"]["each"]), digits=0)
    others = [v for key in ("pgdat", "trades", "mma") for v in mnist[f"linf-{key}"]["robust"]["each"]]
    expected += percent(min(others), max(others), digits=0)

    found = {row["name"]: row["ours"]["grid"]["mean"] for row in plane["rows"]}
    expected += percent(*(found[k] for k in ("pgdat", "atent", "trades", "standard", "pgdat-unit", "trades-unit")))
    gaps = {gap["over"]: gap for gap in plane["gaps"]}
    for name in ("pgdat", "trades"):
        gap = gaps[name]["ours"]["grid"]
        expected += [f"{gap[key]:+.1f}" for key in ("mean", "low", "high")]
    expected += [f"{gaps[name]['published']['robust']:.1f}" for name in ("trades", "pgdat")]
    expected += [str(plane["rows"][0]["seeds"][0]["grid"]["n"])] * 2
    assert round(plane["out_of_reach"]["value"], 1) == 0.8

    section = PAPER.partition("## Conclusions")[2]
    assert Counter(figures(section)) == Counter(expected)


@pytest.mark.parametrize("path", sorted((RESULTS / "laptop").glob("*.json")), ids=lambda p: p.stem)
def test_markdown_is_that_of_the_result_file(path):
    assert path.with_suffix(".md").read_text("utf-8") == rendered(path)


def section_of(heading):
    return next(part for part in README.split("\n## ") if part.startswith(heading))


def test_the_pilot_of_the_rate_has_the_figures_of_its_file():
    pilot = content("cifar/pilot/pilot.json")
    rows = {(row["method"], row["lr"]): row for row in pilot["rows"]}
    rates = sorted({lr for _, lr in rows})
    text = " ".join(section_of("cifar").split())
    for method in ("PGDAT", "ATENT"):
        kept = percent(*(rows[method, lr]["average_validation_robust"] for lr in rates))
        assert "{}, {} and {} %".format(*kept) in text
        for lr in rates:
            row = rows[method, lr]
            sides = [
                abs(row[f"average_validation_robust{end}"] - row["average_validation_robust"])
                for end in ("_low", "_high")
            ]
            assert 0.019 < sum(sides) / 2 < 0.028
    assert "peak rates {}, {} and {}".format(*rates) in text
    assert pilot["commit"].startswith(re.search(r"at commit (\w+)", text)[1])


def test_every_result_has_its_place_on_the_page():
    named = {
        name.strip() for heading in re.findall(r"^## (.*)$", README, re.M) for name in re.split(r", (?:and )?", heading)
    }
    there = {path.name for path in RESULTS.iterdir()} - {"README.md"}
    assert there <= named
    assert named - there == {"The role of the test set", "With an accelerator"}


def test_the_exception_among_the_attacks_is_the_file_s():
    """ALMA with 100 steps, on one network of l2."""
    found = content("parity.json")
    assert not found["weaker"]
    (larger,) = found["larger"]
    assert larger.startswith("digits-l2-")
    assert larger.endswith("ALMA-100")


def test_first_images_of_unsorted_sets_hold_every_class():
    """The page gives the fewest and the most of a class among the first test images."""
    for name, n in (("digits", 200), ("mnist", 100)):
        if name == "mnist" and not (Path(os.environ.get("ATENT_DATA_ROOT", "data")) / "mnist").is_dir():
            continue
        counts = load(DataSettings(name)).test.first(n).y.bincount()
        assert f"{int(counts.min())} to {int(counts.max())}" in README


def expanded(command):
    """The words of a command as a shell gives them; of numbers in braces, each its own training, the first."""
    command = re.sub(r"\{(\d[^,}]*),[^}]*\}", r"\1", command)
    line = subprocess.run(["bash", "-c", f"printf '%s\\n' {command}"], capture_output=True, text=True, check=True)
    return line.stdout.splitlines()


def commands(page):
    """The commands of the page's blocks, in one line each, without those that hold a variable of the shell."""
    for block in re.findall(r"^```\n(.*?)^```", page, re.M | re.S):
        for line in block.replace("\\\n", " ").splitlines():
            line = line.partition(" #")[0].strip()
            if line.startswith("atent ") and "$" not in line:
                yield line


@pytest.mark.slow
def test_the_commands_of_the_results_parse():
    seen = Counter()
    for line in commands(README):
        _, command, *words = expanded(line)
        seen[command] += 1
        if command == "train" and "--resume" not in words:
            recipes = [word for word in words if word in recipe_names()]
            assert recipes, line
            for name in recipes:
                assert train_job(name, *(word for word in words if word not in recipes)).recipe == name
        elif command == "compare":
            # Those of a recipe's file are of one that the reader makes.
            assert any(word.endswith(".toml") for word in words) or compare_jobs(*words)
        else:
            assert given(command, *words)
    assert set(seen) >= {"train", "compare", "certify", "evaluate", "reproduce", "theory"}
