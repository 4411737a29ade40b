"""The guide says what the results say: its tables are the files', and so is every figure that it argues with."""

import json
import re
from pathlib import Path

import pytest
import tables

from atent.experiments.recipes import recipe_names
from atent.paper.evidence import difference
from atent.paper.verdicts import ALIKE
from atent.runs import with_present_keys

ROOT = Path(__file__).parents[2]
GUIDE = ROOT / "docs" / "choosing.md"
TEXT = GUIDE.read_text()


def comparison(name):
    return with_present_keys(json.loads((ROOT / f"results/{name}/comparison.json").read_text()))["rows"]


def test_the_tables_are_those_of_the_results():
    found = re.findall(r"<!-- comparison: (\S+) -->", TEXT)
    assert found
    assert "<!-- ablation: " in TEXT
    assert tables.refreshed(TEXT, ROOT / "results") == TEXT
    rows = [row["recipe"] for name in found for row in comparison(name)]
    assert sorted(rows) == sorted(re.findall(r"^\| `([\w-]+)` \| +[\d.]+ ± ", TEXT, re.M))


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


def below(lead):
    return lead.inside(0) is False


def alike(lead):
    return lead.inside(-ALIKE, ALIKE) is True


def undecided(lead):
    return lead.inside(0) is None and lead.inside(-ALIKE, ALIKE) is None


def words(passage):
    """The page between two headings, or its first part, with its white space as single blanks."""
    (found,) = [part for part in re.split(r"^## ", TEXT, flags=re.M) if part.startswith(passage)]
    return " ".join(found.split())


def prose(passage):
    """The same without its generated tables, which have most of the differences too."""
    (found,) = [part for part in re.split(r"^## ", TEXT, flags=re.M) if part.startswith(passage)]
    return " ".join(re.sub(r"<!--.*?<!-- end -->", "", found, flags=re.S).split())


def row_of(passage, start):
    """The figures of a hand-written table's row, without its first cell: "-5.3 [-7.6, -3.1]" is three."""
    (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| {start} |")]
    assert line.split("|")[1].strip() in words(passage)
    return re.findall(r"[-+]?\d+(?:\.\d+)?", "|".join(line.split("|")[2:]))


def pairs(name, base="pgdat"):
    """Each adversarial row's lead over another, by row, but for rows of averaged weights."""
    rows = race(name)
    return {
        key: tables.lead(row, rows[base])
        for key, row in rows.items()
        if key not in (base, "standard") and not tables.averaged(row["recipe"])
    }


NAMES = {
    "race-epochs": {"below": {"fgsmrs", "free", "trades-awp"}, "alike": {"trades", "mma"}},
    "race-time": {"below": {"atent", "trades-awp", "atent-awp"}, "alike": set()},
    "race-l2-epochs": {"below": {"mma"}, "alike": set()},
    "race-l2-time": {"below": {"trades", "mma"}, "alike": set()},
    "race-mnist5k": {"below": set(), "alike": set()},
    "race-mnist5k-time": {"below": {"fgsmrs", "mma"}, "alike": set()},
}


@pytest.mark.parametrize("name", NAMES)
def test_what_is_decided(name):
    """The rows that the guide calls below and alike are those that the paired intervals put there; none is above."""
    leads = pairs(name)
    reported = NAMES[name]
    assert {key for key, lead in leads.items() if below(lead)} == reported["below"]
    assert {key for key, lead in leads.items() if alike(lead)} == reported["alike"]
    assert {key for key, lead in leads.items() if undecided(lead)} == set(leads) - reported["below"] - reported["alike"]


def test_the_words_are_those_of_the_intervals():
    """Every difference that the guide argues with, in the passage that it stands in."""
    leads = {name: pairs(name) for name in NAMES}
    passages = {"race-l2": "l2 on digits", "race-mnist5k": "linf on MNIST", "race": "linf on digits"}
    for name, row in (
        ("race-epochs", "mart"), ("race-epochs", "atent"), ("race-epochs", "fgsmrs"), ("race-epochs", "free"),
        ("race-time", "atent"), ("race-time", "free"), ("race-mnist5k", "free"), ("race-mnist5k-time", "free"),
        ("race-mnist5k-time", "mma"), ("race-l2-epochs", "mma"), ("race-l2-epochs", "atent"),
        ("race-l2-epochs", "trades"), ("race-l2-time", "trades"),
    ):  # fmt: skip
        passage = passages[re.sub("-(epochs|time)$", "", name)]
        assert str(leads[name][row]) in prose(passage), (name, row)
    ranks = words("Where ATENT ranks")
    assert str(leads["race-time"]["atent"]) in ranks
    assert str(pairs("race-time", "mma")["atent"]) in ranks
    assert [below(leads[name]["atent"]) for name in NAMES] == [name == "race-time" for name in NAMES]
    seconds = {key: row["seconds_per_epoch"]["mean"] for key, row in race("race-epochs").items()}
    assert seconds["fgsmrs"] / seconds["pgdat"] < 1 / 3
    assert seconds["free"] / seconds["pgdat"] == pytest.approx(2 / 3, abs=0.05)
    failed = {name: sum(map(constant, race(name)["mart"]["seeds"])) for name in ("race-mnist5k", "race-mnist5k-time")}
    assert failed == {"race-mnist5k": 1, "race-mnist5k-time": 2}


def test_averaged_weights_are_compared_with_their_own_alone():
    """No rival of these races averages its weights: the tables have no difference there, and the text only to ATENT."""
    for name in NAMES:
        rows = race(name)
        assert [key for key, row in rows.items() if tables.averaged(row["recipe"])] == ["atent-plus"]
        (line,) = [line for line in tables.comparison(ROOT / "results" / name).splitlines() if "atent-plus`" in line]
        assert "| averaged weights |" in line
    for name in ("race-time", "race-l2-time", "race-mnist5k", "race-mnist5k-time"):
        rows = race(name)
        lead = tables.lead(rows["atent-plus"], rows["atent"])
        assert undecided(lead)
        assert f"{lead} points from" in " ".join(TEXT.split()), name
    kept = [race(name)["atent-plus"]["worst"]["mean"] for name in NAMES]
    norms = (
        "{:.1f} and {:.1f} % in $\\ell_\\infty$ on digits, {:.1f} and {:.1f} in $\\ell_2$, {:.1f} and {:.1f} on MNIST"
    )
    assert norms.format(*(100 * k for k in kept)) in words("Where ATENT ranks")


def test_where_atent_ranks():
    text = words("Where ATENT ranks")
    at = {name: {k: f"{100 * row['worst']['mean']:.1f}" for k, row in race(name).items()} for name in NAMES}
    races = {
        "linf on digits, equal epochs": ("race-epochs", "atent", "pgdat", "mart"),
        "linf on digits, equal time": ("race-time", "atent", "pgdat", "mart", "mma"),
        "l2 on digits, equal epochs": ("race-l2-epochs", "atent", "pgdat"),
        "l2 on digits, equal time": ("race-l2-time", "atent", "pgdat"),
        "linf on MNIST, equal epochs": ("race-mnist5k", "atent", "pgdat"),
        "linf on MNIST, equal time": ("race-mnist5k-time", "atent", "pgdat"),
    }
    for start, (name, *methods) in races.items():
        assert row_of("Where ATENT ranks", start)[: len(methods)] == [at[name][method] for method in methods]
    assert undecided(tables.lead(race("race-epochs")["atent"], race("race-epochs")["mart"]))
    free, data = ({row["recipe"]: row for row in comparison("digits-data-entropy")}[f"digits-l2-atent-{k}"]
                  for k in ("free-energy", "data-entropy"))  # fmt: skip
    (best,) = (row for row in comparison("digits-l2") if row["recipe"] == "digits-l2-pgdat")
    gain, lack = tables.lead(data, free), tables.lead(data, best)
    assert gain.inside(0) is True
    assert below(lack)
    assert str(gain) in text
    assert str(lack) in text


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
    """The best by PGD-20 is the last of the adversarial rows by AutoAttack."""
    rows = race("race-l2-epochs")
    del rows["standard"]
    pgd = {name: 100 * row["attacks"]["PGD-20"]["mean"] for name, row in rows.items()}
    robust = {name: 100 * row["worst"]["mean"] for name, row in rows.items()}
    assert max(pgd, key=pgd.get) == min(robust, key=robust.get) == "mma"
    gaps = {name: pgd[name] - robust[name] for name in rows}
    assert gaps.pop("mma") == pytest.approx(28.5, abs=0.1)
    assert [round(min(gaps.values())), round(max(gaps.values()))] == [12, 18]
    assert row_of("How far", "l2 on digits")[2:5] == ["12", "18", "28.5"]
    clean = {name: 100 * row["clean"]["mean"] for name, row in race("race-l2-time").items()}
    assert clean["atent"] - clean["atent-plus"] == pytest.approx(5, abs=0.5)


def constant(seed):
    """A training that ended as a constant: the share of one class, under every attack."""
    return seed["clean"]["value"] == seed["worst"]["value"] < 0.2


def test_how_trainings_on_mnist_fail():
    for name, lost, fgsm in (("race-mnist5k", 1, [68, 25, 12]), ("race-mnist5k-time", 2, [68, 78, 71])):
        seeds = {key: row["seeds"] for key, row in race(name).items() if key != "standard"}
        assert [round(100 * seed["worst"]["value"]) for seed in seeds["fgsmrs"]] == fgsm
        assert {key: sum(map(constant, found)) for key, found in seeds.items() if any(map(constant, found))} == {
            "mart": lost
        }
    kept = [s["worst"]["value"] for s in race("race-mnist5k")["mart"]["seeds"] if not constant(s)]
    assert [round(100 * value) for value in kept] == [86, 87]


def test_what_the_parts_bring():
    """No part that is in an atent-plus has an interval clear of 0; of the others, the three that the guide names."""
    effects = {
        name: with_present_keys(json.loads((ROOT / f"results/ablation-{name}/ablation.json").read_text()))["effects"]
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
    reported = {
        ("mnist5k-linf", "all of them"): 2.3, ("mnist5k-l2", "all of them"): 2.0, ("mnist5k-linf", "alpha"): 2.0,
        ("mnist5k-l2", "alpha"): 1.7, ("mnist5k-linf", "awp"): -18.0, ("mnist5k-l2", "awp"): -0.7,
        ("mnist5k-linf", "eps_warmup-0.3"): -23.7,
    }  # fmt: skip
    assert reported.items() <= mean.items()
    rows = {row["recipe"]: row for row in comparison("ablation-mnist5k-linf")}
    perturbed = rows["mnist5k-linf-atent-plus-with-awp"]["seeds"]
    assert [round(100 * seed["worst"]["value"]) for seed in perturbed] == [83, 83, 36]


def test_what_is_certified():
    found = with_present_keys(json.loads((ROOT / "results/laptop/table-s2.json").read_text()))
    cells = {row["key"]: row["cells"] for row in found["blocks"][0]["rows"]}
    ours = {key: c["certified"]["ours"] for key, c in cells.items() if c["certified"]["ours"]}
    seconds = {key: cells[key]["seconds"]["ours"]["value"] for key in ours}
    text = words("Certificates")
    bound, dual = (f"{100 * ours[key]['value']:.1f} %" for key in ("crown-ibp", "dual"))
    for fact in (
        f"{bound} of {ours['crown-ibp']['n']:,} images", "5 ms an image",
        f"{dual} of the first {ours['dual']['n']}", "6 s an image",
    ):  # fmt: skip
        assert fact in text
    assert [round(1000 * seconds["crown-ibp"]), round(seconds["dual"])] == [5, 6]
    assert "highest" not in next(line for line in TEXT.splitlines() if "`CROWNIBP`" in line)
    rows = with_present_keys(json.loads((ROOT / "results/certified/mnist5k.json").read_text()))["rows"]
    same = {row["run"]: row["certified"][-1]["share"] for row in rows if "s2" in row["run"]}
    reported = [f"{100 * same[f'mnist5k-linf-{key}-s2']['value']:.1f}" for key in ("crown-ibp", "dual")]
    assert "By CROWN on the same 200 images" in text
    assert "{} and {} %".format(*reported) in text
    assert [round(100 * ours[key]["value"]) for key in ("smoothadv", "trades-smoothing")] == [91, 91]
    assert alike(difference(ours["smoothadv"], ours["trades-smoothing"]))
    lack = difference(ours["gaussian"], ours["smoothadv"])
    assert below(lack)
    assert str(lack) in text
    tuned = with_present_keys(json.loads((ROOT / "results/laptop/finetune.json").read_text()))
    rows = {row["key"]: row["cells"]["robust"]["ours"] for row in tuned["blocks"][0]["rows"]}
    assert [round(100 * rows[key]["value"]) for key in ("benign", "atent", "pgdat")] == [0, 73, 74]
    assert undecided(difference(rows["atent"], rows["pgdat"]))


@pytest.mark.parametrize(
    ("names", "start"),
    [
        (("race-epochs", "race-time"), "linf on digits"),
        (("race-l2-epochs", "race-l2-time"), "l2 on digits"),
        (("race-mnist5k", "race-mnist5k-time"), "linf on MNIST"),
    ],
)
def test_how_far_pgd_20_lies_above_autoattack_in_every_race(names, start):
    rows = [row for name in names for part, row in race(name).items() if part != "standard"]
    gaps = [100 * (row["attacks"]["PGD-20"]["mean"] - row["worst"]["mean"]) for row in rows]
    low, high = map(float, row_of("How far", start)[:2])
    assert min(gaps) == pytest.approx(low, abs=0.51)
    assert max(gaps) == pytest.approx(high, abs=0.51)


def test_the_differences_on_cifar_10_are_those_of_the_results():
    shown = re.findall(r"- (.*?) ([-+][\d.]+ \[[-+][\d.]+, [-+][\d.]+\])(?: points)?, n = ([\d,]+)", prose("CIFAR-10"))
    assert len(shown) == 3
    there = (ROOT / "results" / "cifar" / "README.md").read_text()
    for (_, points, n), attack in zip(
        shown, ("no attack", "AutoAttack(norm=l2, eps=0.5)", "AutoAttack, l2 1"), strict=True
    ):
        assert f"| {attack} | {points} | {n} |" in there
    assert "| PGD(steps=10, start=cube, norm=l2, eps=1.0) | -1.5 [-2.2, -0.8] | 9,980 |" in there
    assert "(PGD-10 on all 9,980 has -1.5 [-2.2, -0.8])" in prose("CIFAR-10")


def test_what_pgd_at_costs_in_linf_on_cifar_10():
    shown = {}
    for name in ("standard", "pgdat"):
        place = ROOT / "results" / "cifar" / f"cifar10-linf-{name}"
        clean = json.loads((place / "measures.json").read_text())["natural, stratified 10000"]["share"]["value"]
        corrupted = json.loads((place / "evaluation.json").read_text())["corruptions"]["mean"]["value"]
        shown[name] = clean, corrupted
    cost = 100 * (shown["standard"][0] - shown["pgdat"][0])
    assert f"costs {cost:.1f} points of clean accuracy" in prose("CIFAR-10")
    assert f"{100 * shown['pgdat'][1]:.1f} against {100 * shown['standard'][1]:.1f} %" in prose("CIFAR-10")


def test_the_fine_tuned_pair_on_cifar_10_is_that_of_the_results():
    text = prose("CIFAR-10")
    place = ROOT / "results" / "cifar"
    pgd = "PGD(steps=20, step_size=0.003, norm=linf, eps=8/255)"
    for name, said in (
        ("finetune-atent", "{} under PGD-20 by ATENT"), ("finetune-pgdat", "and {} by PGD-AT"),
        ("linf-pgdat", "against {} of PGD-AT from scratch"),
    ):  # fmt: skip
        found = json.loads((place / f"cifar10-{name}" / "measures.json").read_text())
        value = found[f"{pgd}, stratified 10000"]["share"]["value"]
        assert said.format(f"{100 * value:.1f} %") in text
    _, _, table = (place / "README.md").read_text().partition("### ATENT less PGD-AT, fine-tuned")
    for attack, n, said in (
        (pgd, "9,980", "PGD-20 {} (n = 9,980)"), ("AutoAttack(norm=linf, eps=8/255)", "300", "AutoAttack {} (n = 300)"),
        ("no attack", "9,980", "clean accuracy {}."),
    ):  # fmt: skip
        (points,) = re.findall(
            rf"\| {re.escape(attack)} \| (\S+ \[\S+ \S+\]) \| {n} \|", table.partition("### Checks")[0]
        )
        assert said.format(points) in text


def test_the_settings_of_the_pair_are_those_of_its_trainings():
    """The two adversaries differ, and nothing else in data, network, optimizer, schedule and training."""
    pgdat, atent = (
        json.loads((ROOT / "results" / "cifar" / f"cifar10-l2-{name}" / "config.json").read_text())
        for name in ("pgdat", "atent")
    )
    for part in ("data", "model", "optimizer", "schedule", "train"):
        assert {key: atent[part][key] for key in pgdat[part]} == pgdat[part], part
    assert (pgdat["method"]["mode"], pgdat["method"]["step_size"], pgdat["method"]["steps"]) == ("eval", None, 10)
    assert (atent["method"]["mode"], atent["method"]["step_size"], atent["method"]["steps"]) == ("train", 0.2, 10)
    assert "uses the batch statistics of batch norm (`mode` `train`) and steps of 0.2" in prose("CIFAR-10")
    assert "the stored statistics (`eval`) and steps of 0.25" in prose("CIFAR-10")
