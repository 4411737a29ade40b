"""The guide says what the results say: its tables are the files', and so is every figure that it argues with."""

import importlib.util
import json
import re
from pathlib import Path

import pytest

from atent.config import recipe_names

ROOT = Path(__file__).parent.parent
GUIDE = ROOT / "docs" / "choosing.md"
TEXT = GUIDE.read_text()

spec = importlib.util.spec_from_file_location("tables", ROOT / "benchmarks" / "tables.py")
tables = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tables)


def comparison(name):
    return json.loads((ROOT / f"results/{name}/comparison.json").read_text())["rows"]


def test_the_tables_are_those_of_the_results():
    found = re.findall(r"<!-- comparison: (\S+) -->", TEXT)
    assert found
    assert "<!-- ablation: " in TEXT
    assert tables.refreshed(TEXT, ROOT / "results") == TEXT
    rows = [row["recipe"] for name in found for row in comparison(name)]
    assert sorted(rows) == sorted(re.findall(r"^\| `([\w-]+)` \| +[\d.]+ \+- ", TEXT, re.M))


def test_a_table_that_differs_is_made_anew(tmp_path):
    wrong = TEXT.replace("| `digits-linf-pgdat` | ", "| `digits-linf-pgdat` | 100.0 ")
    assert wrong != TEXT
    assert tables.refreshed(wrong, ROOT / "results") == TEXT


def test_names_and_links_are_real():
    named = set(re.findall(r"`((?:digits|mnist5k|mnist|cifar10)-[\w-]+)`", TEXT))
    assert named <= set(recipe_names()), named - set(recipe_names())
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (GUIDE.parent / target).is_file(), target


def race(name):
    """The rows of a race by the method's part of their recipes' names."""
    return {re.sub(r"^\w+-(linf|l2)-", "", row["recipe"]): row for row in comparison(name)}


def meet(shares):
    """Whether every interval meets every other."""
    return max(share["low"] for share in shares) <= min(share["high"] for share in shares)


def test_what_is_called_level_is_level_and_what_is_called_below_is_below():
    rows = race("race-epochs")
    worst = {name: row["worst"] for name, row in rows.items()}
    full = [worst[name] for name in ("pgdat", "trades", "mma", "mart")]
    assert meet(full)
    assert max(worst, key=lambda name: worst[name]["mean"]) == "mart"
    behind = {name: 100 * (worst["pgdat"]["mean"] - worst[name]["mean"]) for name in ("fgsmrs", "free")}
    assert behind == {"fgsmrs": pytest.approx(8.5, abs=0.1), "free": pytest.approx(6.0, abs=0.1)}
    seconds = {name: row["seconds_per_epoch"]["mean"] for name, row in rows.items()}
    assert seconds["fgsmrs"] / seconds["pgdat"] < 1 / 3
    assert seconds["free"] / seconds["pgdat"] == pytest.approx(2 / 3, abs=0.05)


def test_where_atent_stands():
    """The guide says that it is not the best, by how much, and what is decided."""
    at = {name: {k: row["worst"] for k, row in race(name).items()} for name in ("race-epochs", "race-time")}
    told = {name: [f"{100 * rows[k]['mean']:.1f}" for k in ("atent", "atent-plus", "pgdat", "mart")]
            for name, rows in at.items()}  # fmt: skip
    words = " ".join(TEXT.split())
    atent, plus, pgdat, mart = told["race-epochs"]
    for text in (f"keeps {atent} % under", f"plus` {plus},", f"`digits-linf-pgdat` {pgdat} and", f"mart` {mart}:"):
        assert text in words
    assert "they keep {}, {}, {} and {} %".format(*told["race-time"]) in words
    for rows in at.values():
        assert rows["atent"]["high"] >= max(rows[k]["low"] for k in ("pgdat", "mart"))
        assert max(rows, key=lambda k: rows[k]["mean"]) not in ("atent", "atent-plus")


def test_how_much_pgd_flatters():
    rows = race("race-epochs")
    del rows["standard"]
    gap = {name: 100 * (row["attacks"]["PGD-20"]["mean"] - row["worst"]["mean"]) for name, row in rows.items()}
    assert min(gap.values()) == pytest.approx(1.7, abs=0.1)
    assert max(gap.values()) == pytest.approx(6.5, abs=0.1)
    rows = race("race-mnist5k")
    del rows["standard"]
    gap = {name: 100 * (row["attacks"]["PGD-20"]["mean"] - row["worst"]["mean"]) for name, row in rows.items()}
    assert [round(min(gap.values())), round(max(gap.values()))] == [4, 20]


def test_what_l2_on_digits_says():
    """All level under AutoAttack; the best by PGD-20 is the last by it; at equal time PGD-AT leads by a point."""
    rows = race("race-l2-epochs")
    del rows["standard"]
    pgd = {name: 100 * row["attacks"]["PGD-20"]["mean"] for name, row in rows.items()}
    judged = {name: 100 * row["worst"]["mean"] for name, row in rows.items()}
    assert meet([row["worst"] for row in rows.values()])
    assert max(pgd, key=pgd.get) == min(judged, key=judged.get) == "mma"
    gaps = {name: pgd[name] - judged[name] for name in rows}
    assert gaps.pop("mma") == pytest.approx(28.5, abs=0.1)
    assert [round(min(gaps.values())), round(max(gaps.values()))] == [12, 18]
    assert "12 to 18 points above AutoAttack, and 28.5 for" in TEXT

    rows = race("race-l2-time")
    worst = {name: row["worst"] for name, row in rows.items()}
    first, second = sorted(worst, key=lambda name: -worst[name]["mean"])[:2]
    assert (first, second) == ("pgdat", "atent-plus")
    assert meet([worst[first], worst[second]])
    assert 100 * (worst[first]["mean"] - worst[second]["mean"]) == pytest.approx(1, abs=0.1)
    natural = {name: 100 * rows[name]["natural"]["mean"] for name in (first, second)}
    assert natural[first] - natural[second] == pytest.approx(6, abs=0.5)


def constant(seed):
    """A training that ended as a constant: the share of one class, under every attack."""
    return seed["natural"]["value"] == seed["worst"]["value"] < 0.2


def test_what_linf_on_mnist_says():
    """Atent-plus leads by means that the intervals do not decide; MART's and FGSM-RS's trainings differ by seed."""
    short = {"atent": 83.0, "atent-plus": 85.3, "pgdat": 83.3}, {"atent": 83.3, "atent-plus": 85.7, "pgdat": 85.3}
    words = " ".join(TEXT.split())
    for name, told, ahead, lost, fgsm in zip(
        ("race-mnist5k", "race-mnist5k-time"), short, (2.0, 0.3), (1, 2), ([68, 25, 12], [68, 78, 71]), strict=True
    ):
        rows = race(name)
        del rows["standard"]
        mean = {key: 100 * row["worst"]["mean"] for key, row in rows.items()}
        assert meet([row["worst"] for row in rows.values()])
        assert sorted(mean, key=mean.get)[:-3:-1] == ["atent-plus", "pgdat"]
        assert mean["atent-plus"] - mean["pgdat"] == pytest.approx(ahead, abs=0.1)
        assert {key: round(mean[key], 1) for key in told} == told
        seeds = {key: row["seeds"] for key, row in rows.items()}
        assert [round(100 * seed["worst"]["value"]) for seed in seeds["fgsmrs"]] == fgsm
        assert {key: sum(map(constant, found)) for key, found in seeds.items() if any(map(constant, found))} == {
            "mart": lost
        }
        assert 0.45 < rows["free"]["seconds_per_epoch"]["mean"] / rows["pgdat"]["seconds_per_epoch"]["mean"] < 0.7
    kept = [s["worst"]["value"] for s in race("race-mnist5k")["mart"]["seeds"] if not constant(s)]
    assert [round(100 * value) for value in kept] == [86, 87]
    assert "At equal epochs `mnist5k-linf-atent` keeps 83.0 % and `mnist5k-linf-atent-plus` 85.3, beside 83.3" in words
    assert "at equal time 83.3 and 85.7, beside 85.3." in words


def test_what_the_parts_bring():
    """No part that is in an atent-plus has an interval clear of 0; of the others, the three that the guide names."""
    effects = {
        name: json.loads((ROOT / f"results/ablation-{name}/ablation.json").read_text())["effects"]
        for name in ("digits-linf", "digits-l2", "mnist5k-linf", "mnist5k-l2")
    }
    assert sum(map(len, effects.values())) == 33
    clear = {
        (name, e["part"]): tuple(round(100 * e["worst"][k], 1) for k in ("mean", "low", "high"))
        for name, found in effects.items()
        for e in found
        if e["worst"]["low"] > 0 or e["worst"]["high"] < 0
    }
    assert clear == {
        ("mnist5k-linf", "outer_loss-kl"): (-33.7, -63.7, -3.6),
        ("mnist5k-linf", "label_smoothing-0.1"): (-3.7, -6.5, -0.8),
        ("mnist5k-l2", "outer_loss-kl"): (5.3, 1.5, 9.1),
    }
    mean = {(name, e["part"]): round(100 * e["worst"]["mean"], 1) for name, found in effects.items() for e in found}
    told = {
        ("mnist5k-linf", "all of them"): 2.3, ("mnist5k-l2", "all of them"): 2.0, ("mnist5k-linf", "alpha"): 2.0,
        ("mnist5k-l2", "alpha"): 1.7, ("mnist5k-linf", "awp"): -18.0, ("mnist5k-l2", "awp"): -0.7,
        ("mnist5k-linf", "eps_warmup-0.3"): -23.7,
    }  # fmt: skip
    assert told.items() <= mean.items()
    rows = {row["recipe"]: row for row in comparison("ablation-mnist5k-linf")}
    perturbed = rows["mnist5k-linf-atent-plus-with-awp"]["seeds"]
    assert [round(100 * seed["worst"]["value"]) for seed in perturbed] == [83, 83, 36]


def test_what_a_short_time_costs():
    for name, mma, free in (("race-time", 10, 1), ("race-mnist5k-time", 14, 7)):
        mean = {key: 100 * row["worst"]["mean"] for key, row in race(name).items()}
        assert round(mean["pgdat"] - mean["mma"]) == mma
        assert round(mean["pgdat"] - mean["free"]) == free
    mean = {key: 100 * row["worst"]["mean"] for key, row in race("race-mnist5k").items()}
    assert round(mean["pgdat"] - mean["free"]) == 12


def test_what_is_proved():
    found = json.loads((ROOT / "results/laptop/table-s2.json").read_text())
    cells = {row["key"]: row["cells"] for row in found["blocks"][0]["rows"]}
    proved = {key: 100 * c["certified"]["ours"]["value"] for key, c in cells.items() if c["certified"]["ours"]}
    assert f"{proved['crown-ibp']:.1f} % proved on MNIST" in TEXT
    assert [round(proved[key]) for key in ("smoothadv", "trades-smoothing")] == [91, 91]
    assert proved["smoothadv"] - proved["gaussian"] == pytest.approx(4, abs=0.5)
    tuned = json.loads((ROOT / "results/laptop/finetune.json").read_text())
    rows = {row["key"]: row["cells"]["robust"]["ours"]["value"] for row in tuned["blocks"][0]["rows"]}
    assert [round(100 * rows[key]) for key in ("benign", "atent", "pgdat")] == [0, 73, 74]
