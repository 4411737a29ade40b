"""The figures of a comparison: intervals, the certain best, tables, plots and the caveat."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import figures
import pytest

from atent import plots, stats
from atent import runs as run
from atent.experiments import migrate
from atent.experiments.collect import seed_result
from atent.experiments.comparison import (
    INTERVAL,
    accuracy,
    caveat,
    draw,
    draw_pareto,
    markdown,
    measure,
    paired_lines,
    winner,
)
from atent.experiments.recipe_files import recipe_names
from atent.experiments.results import ComparisonFile, EvaluationFile, LastEpoch, Share, Spread
from atent.experiments.results.comparison import Difference, PairResult

ROOT = Path(__file__).parents[2]
BEFORE = Path(__file__).parents[1] / "files" / "before_subsets"


def test_measure_against_hand_numbers():
    assert measure([3.0]) == Spread(3.0, None, None, None)
    cell = measure([1.0, 2.0, 3.0])
    assert (cell.mean, cell.sd) == (2.0, 1.0)
    # t(2 degrees, 0.975) = 4.302653
    assert cell.high - 2 == pytest.approx(4.302653 / 3**0.5, rel=1e-6)
    assert 2 - cell.low == pytest.approx(cell.high - 2)


def shares(*counts, n=100):
    return [stats.share(k, n) for k in counts]


def test_accuracy_takes_the_wider_interval_end_by_end():
    one = accuracy(shares(80))
    assert (one.mean, one.sd) == (0.8, None)
    assert (one.low, one.high) == stats.interval(80, 100)
    # Equal seeds: the t-interval is a point, and three looks at the same 100 images are worth one.
    same = accuracy(shares(80, 80, 80))
    assert (same.mean, same.sd) == (pytest.approx(0.8), pytest.approx(0))
    assert (same.low, same.high) == stats.interval(80, 100)
    # Seeds far apart: the t-interval is the wider one, and ends at the box.
    far = accuracy(shares(60, 80, 100))
    assert far.sd == pytest.approx(0.2)
    assert far.low == pytest.approx(0.8 - 4.302653 * 0.2 / 3**0.5, rel=1e-6)
    assert far.high == 1.0
    # Near the edge the two ends come from different intervals: the counts' low one, t's high one is cut at 1.
    mixed = accuracy(shares(50, 49, 48, n=50))
    assert mixed.low == stats.interval(49, 50)[0]
    assert mixed.high == 1.0


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ([(0.8, 0.9), (0.6, 0.7)], 0),
        ([(0.6, 0.7), (0.1, 0.2), (0.8, 0.9)], 2),
        ([(0.8, 0.9), (0.7, 0.85)], None),
        ([(0.8, 0.9), (0.8, 0.9)], None),
        ([(0.8, 0.9), (0.7, 0.8)], None),
        ([(0.8, 0.9), (0.1, 0.2), (0.79, 0.81)], None),
        ([(0.5, 1.0), (0.6, 0.7)], None),
        ([(0.8, 0.8), (0.7, 0.79)], 0),
    ],
)
def test_only_a_certain_best_is_marked(ends, expected):
    assert winner([Spread((low + high) / 2, 0.1, low, high) for low, high in ends]) == expected


def test_no_interval_no_mark():
    assert winner([Spread(2.0, None, None, None), Spread(1.0, None, None, None)]) is None


ONE = stats.share(1, 2)
SEED = {
    "seed": 0, "run": "r", "clean": ONE, "attacks": {}, "worst": ONE, "seconds_per_epoch": 1.0, "memory_mb": None,
    "best_epoch": 1,
}  # fmt: skip


def made_up(*values):
    """A comparison whose rows have these cells, under two attacks."""
    cells = [Spread(m, 0.01, low, high) for m, low, high in values]
    best = winner(cells)
    where = {"device": "cpu", "device_name": "a chip", "threads": 2, "commit": "abc", "dirty": False}
    one = {"mean": 1.0, "sd": None, "low": None, "high": None}
    rows = [
        {
            "recipe": f"r{i}", "method": "Standard", "threat": None, "clean": vars(cell), "worst": vars(cell),
            "attacks": {"FGSM": vars(cell), "PGD-2": vars(cell)}, "seconds_per_epoch": one, "memory_mb": None,
            "best_epoch": one, "seeds": [SEED | {"provenance": where}],
            "best": {"clean": best == i, "worst": best == i, "attacks": {"FGSM": best == i, "PGD-2": False}},
        }
        for i, cell in enumerate(cells)
    ]  # fmt: skip
    data = {"name": "digits", "split": "test", "n": 40, "of": 500}
    content = {
        "command": "atent compare r0 r1", "data": data, "model": "m", "epochs": 2, "batch_size": 64, "seeds": [0, 1],
        "threats": ["linf 0.1"], "at_once": 2, "interval": INTERVAL, "caveat": None, "rows": rows, "provenance": {},
    }  # fmt: skip
    return ComparisonFile.from_json(migrate.comparison(content))


def test_markdown_marks_the_certain_best_alone():
    text = markdown(made_up((0.9, 0.88, 0.92), (0.5, 0.4, 0.6)))
    table = text.splitlines()
    assert table[0] == (
        "| recipe | clean (%) | FGSM (%) | PGD-2 (%) | worst of these (%) | s / epoch | peak MiB | best epoch |"
    )
    assert table[2] == (
        "| r0 (Standard) | **90.0 ± 1.0** [88.0, 92.0] | **90.0 ± 1.0** [88.0, 92.0] | 90.0 ± 1.0 [88.0, 92.0]"
        " | **90.0 ± 1.0** [88.0, 92.0] | 1.00 | - | 1 |"
    )
    assert "**" not in table[3]
    for part in ("a chip (cpu, 2 threads), 2 runs at once", "Commit: abc", "2 epochs, batches of 64"):
        assert part in text
    assert "AutoAttack" not in text
    assert "**" not in markdown(made_up((0.9, 0.88, 0.92), (0.89, 0.87, 0.91)))


BARE = {"epoch": 1, "validation_clean": 0.5}


@pytest.mark.parametrize("p", [0.03, None])
def test_differences_are_those_of_the_best_row_and_not_corrected_for_several(p):
    """Row 1 is the best: the difference of rows 0 and 2 is not shown, and that of 0 and 1 has its sign turned."""
    found = made_up((0.5, 0.4, 0.6), (0.7, 0.6, 0.8), (0.6, 0.5, 0.7))
    gaps = {(0, 1): (-0.2, -0.3, -0.1), (0, 2): (-0.1, -0.2, 0.0), (1, 2): (0.1, 0.0, 0.2)}
    pairs = [
        PairResult(f"r{i}", f"r{j}", Difference(*gap, p), Difference(*gap, p), "over 2 seeds")
        for (i, j), gap in gaps.items()
    ]
    *lines, note = paired_lines(replace(found, pairs=pairs))
    end = ", p 0.03" if p else ""
    first, second = f"+20.0 [+10.0, +30.0]{end}", f"+10.0 [+0.0, +20.0]{end}"
    assert lines == [
        f"r1 less r0: clean {first}, robust {first}", f"r1 less r2: clean {second}, robust {second}",
    ]  # fmt: skip
    assert "multiple comparisons (2 differences)" in note
    assert ("McNemar" in note) == bool(p)
    two = replace(found, rows=found.rows[:2], pairs=pairs[:1])
    assert "multiple comparisons" not in paired_lines(two)[-1]


def test_the_last_epoch_is_shown_beside_the_best(monkeypatch, tmp_path):
    found = made_up((0.9, 0.88, 0.92), (0.5, 0.4, 0.6))
    cells = (Spread(0.85, 0.07, 0.7, 0.95), None)
    found = replace(found, rows=[replace(row, last=cell) for row, cell in zip(found.rows, cells, strict=True)])
    table = markdown(found).splitlines()
    assert "| worst of these (%) | at the last epoch (%) | s / epoch |" in table[0]
    assert "| 85.0 ± 7.0 [70.0, 95.0] | 1.00 |" in table[2]
    assert "| 50.0 ± 1.0 [40.0, 60.0] | - | 1.00 |" in table[3]
    drawn = []
    monkeypatch.setattr(plots, "accuracies", lambda table, title: drawn.append(table) or plots.curves([BARE]))
    draw(tmp_path, found)
    ends = [{k: v["value"] for k, v in row.items() if k.startswith("worst")} for row in drawn[0].values()]
    assert ends == [{"worst,\nbest epoch": 0.9, "worst,\nlast epoch": 0.85}, {"worst,\nbest epoch": 0.5}]
    for threats in (["linf 0.1"], ["linf 0.1", "l2 1"]):
        found = replace(found, rows=found.rows[:1], threats=threats)
        assert ("at the last epoch" in markdown(found)) == (len(threats) == 1)


@pytest.mark.parametrize(
    ("epoch", "last", "expected"), [(2, None, 9), (1, 7, 7), (1, None, None)],
    ids=["the best", "evaluated", "not evaluated"],
)  # fmt: skip
def test_the_last_epochs_figure_of_a_run(here, epoch, last, expected):
    made = here / "r"
    made.mkdir()
    for n in (1, 2):
        run.append_jsonl(made / run.METRICS, {"epoch": n, "seconds": 1.0, "memory_mb": None})
    stored = migrate.evaluation(json.loads((BEFORE / "finished" / "evaluation.json").read_text()))
    stored = EvaluationFile.from_json(stored)
    other = last and LastEpoch(2, stored.clean, {}, Share(**stats.share(last, 10)))
    stored = replace(stored, epoch=epoch, worst=Share(**stats.share(9, 10)), last=other)
    found = seed_result(made, 0, stored).last
    assert (found and found.k) == expected
    # Where it is not asked for, a run whose best epoch is the last has no more than the others.
    assert seed_result(made, 0, stored, last=False).last is None


def test_the_pareto_plot_shows_what_the_rows_say(monkeypatch, tmp_path):
    found = made_up((0.9, 0.88, 0.92), (0.5, 0.4, 0.6))
    timed = replace(found, minutes=10.0)
    seen = []
    monkeypatch.setattr(plots, "pareto", lambda panels, robust: seen.append((panels, robust)) or plots.curves([BARE]))
    draw_pareto(tmp_path, [found, timed])
    ((panels, robust),) = seen
    assert list(panels) == ["digits, linf 0.1, 2 epochs each", "digits, linf 0.1, 10 minutes each"]
    share = {"value": 0.9, "low": 0.88, "high": 0.92}
    assert panels["digits, linf 0.1, 2 epochs each"]["r0"] == {"clean": share, "robust": share}
    assert robust == "robust accuracy (%), worst of 2 attacks"
    draw_pareto(tmp_path, [replace(found, minutes=1.0), replace(found, minutes=0.25)])
    assert [name.rsplit(", ")[-1] for name in seen.pop()[0]] == ["60 s each", "15 s each"]
    draw_pareto(tmp_path, [replace(found, threats=["linf 0.1", "l2 1"])])
    assert len(seen) == 1


def test_the_caveat_goes_with_autoattack():
    assert caveat({"FGSM": {"attack": "FGSM"}}) == (
        "Not measured by AutoAttack: a stronger attack may lower these figures."
    )
    assert caveat({"a": {"attack": "FGSM"}, "AutoAttack": {"attack": "AutoAttack"}}) is None


def reported(attack, norm="linf", eps=0.1):
    return {"attack": attack, "threat": {"norm": norm, "eps": eps, "box": [0.0, 1.0]}}


@pytest.mark.parametrize("norm", ["l0", "patch"])
def test_the_caveat_asks_for_no_autoattack_where_there_is_none(norm):
    counted = {"a": reported("PGD", norm, 3.0)}
    assert caveat(counted) == f"There is no AutoAttack for {norm}: a stronger attack may lower these figures."
    assert caveat(counted | {"AutoAttack": reported("AutoAttack")}) == caveat(counted)
    assert "Not measured by AutoAttack:" in caveat(counted | {"b": reported("FGSM")})


def test_the_caveat_stays_beside_a_weakened_autoattack():
    weak = "Not measured by AutoAttack at its standard settings: a stronger attack may lower these figures."
    for text in ("AutoAttack(steps=1)", "AutoAttack(version=rand)", "AutoAttack(queries=500)"):
        assert caveat({"a": reported("FGSM"), "AutoAttack": reported(text)}) == weak
    assert "Not measured by AutoAttack:" in caveat({"a": reported("Transfer(attack=AutoAttack, source=x)")})
    standard = {"a": reported("AutoAttack")}
    assert caveat(standard) is None
    assert "searched in bfloat16" in caveat(standard, "bfloat16")
    # At another radius, or in another norm, it measured something else.
    assert caveat(standard | {"b": reported("FGSM")}) is None
    assert "Not measured by AutoAttack at linf 0.2:" in caveat(standard | {"b": reported("FGSM", eps=0.2)})
    assert "at l2 0.1:" in caveat(standard | {"b": reported("FGSM", "l2")})
    assert caveat(standard | {"b": reported("DDN", "l2", "inf")}) is None


def test_committed_figures_are_drawn_again_from_their_files(tmp_path, monkeypatch):
    """benchmarks/figures.py draws the figures of a folder, with the comparison that its command names beside it."""
    for name in ("race-l2-epochs", "race-l2-time"):
        (tmp_path / name).mkdir()
        shutil.copy(ROOT / "results" / name / "comparison.json", tmp_path / name)
    compared, paper = tmp_path / "race-l2-time", tmp_path / "laptop"
    (compared / "pareto.png").touch()
    assert list(figures.redrawn(compared)) == [compared / "comparison.png", compared / "pareto.png"]
    paper.mkdir()
    for name in ("finetune", "figure-s1", "mnist"):
        shutil.copy(ROOT / "results" / "laptop" / f"{name}.json", paper)
    for name in ("finetune", "figure-s1"):
        (paper / f"{name}.png").touch()
    assert list(figures.redrawn(paper)) == [paper / "figure-s1.png", paper / "finetune.png"]
    drawn, dots = [], plots.dots
    monkeypatch.setattr(plots, "dots", lambda table: drawn.append(table) or dots(table))
    certified = tmp_path / "certified"
    shutil.copytree(ROOT / "results" / "certified", certified)
    assert list(figures.redrawn(certified)) == [certified / "digits.png", certified / "mnist5k.png"]
    # Runs of former recipes have the names that a reader finds today.
    names = {name.partition(",")[0] for table in drawn[-2:] for name in table}
    assert names <= set(recipe_names())
    pictures = [*compared.glob("*.png"), *paper.glob("*.png"), *certified.glob("*.png")]
    assert len(pictures) == 6
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in pictures)
