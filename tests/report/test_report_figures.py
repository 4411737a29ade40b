"""The report's figures and images are those of the files."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
from report_run import CAVEAT, PART, Document, change, load, made_once, part, run_to_change  # noqa: F401 - fixtures

import atent
from atent.data import DataSettings
from atent.data import load as load_data
from atent.experiments.evaluation import evaluate_target
from atent.experiments.target import load_target
from atent.report import report, sections
from atent.report.collect import read
from atent.report.samples import gallery
from atent.runs import write_json
from atent.stats import percent, share


@pytest.fixture(scope="module")
def page(made):
    return report([made], images=3, progress=False)


# ---- figures ----------------------------------------------------------------------------------------------


def test_the_figures_are_those_of_the_files(made, page):
    doc = Document(page)
    first, second = load(made / "evaluation.json"), load(made / "evaluation-2.json")
    assert first["worst"]["k"] < first["clean"]["k"]
    alone, cascade = doc.rows("attack", "accuracy, 95 % interval", "attacked")
    for rows, found, after in ((alone, first, ""), (cascade, second, "after ")):
        named = {"no attack (clean)": found["clean"]} | ({} if after else {"worst of these": found["worst"]})
        for name, reported in found["attacks"].items():
            written = reported["attack"] if reported["attack"] != name else ""
            named[f"{after}{name}{written}"] = reported["robust"]
            cells = rows[f"{after}{name}{written}"]
            assert cells[1] == [f"{reported['attacked']:,}", reported["attacked"]]
            assert cells[2][1] == (reported["distance"] or {"median": None})["median"]
            assert cells[3][1] == (reported["forwards"] + reported["backwards"]) / reported["attacked"]
            assert cells[4][1] == reported["seconds"]
        assert {name: cells[0] for name, cells in rows.items()} == {
            n: [percent(s), s["value"]] for n, s in named.items()
        }

    for kind in ("worst", "clean"):
        s = first[kind]
        interval = f"[{100 * s['low']:.1f}, {100 * s['high']:.1f}]"
        reported = f"{100 * s['value']:.1f} %95 % interval {interval}; {s['k']} of {s['n']} images"
        assert reported in doc.text
    assert CAVEAT in doc.text

    (radii,) = (t[1:] for t in doc.tables if t[0][1][0] == "radius")
    assert len(radii) == 4
    assert [[c for c in row] for row in radii] == [
        [
            [row["attack"], None],
            [row["threat"], row["radius"]],
            *([percent(row[k]), row[k]["value"]] for k in ("robust", "monotone")),
        ]
        for row in second["sweep"]
    ]  # fmt: skip

    smooth, bound = doc.rows("certificate", "accuracy, 95 % interval")
    content = load(made / "certificate.json")
    proved = [percent(content["clean"]), percent(content["smoothed"])]
    proved += [percent(row["share"]) for row in content["certified"]]
    assert [cells[0][0] for cells in smooth.values()] == proved
    (reported,) = load(made / "certificate-2.json")["certified"]
    assert bound["verified by ibp, linf 0.01"][0][0] == percent(reported["share"])

    (checks,) = doc.rows("check")
    assert checks["logits"] == [["pass", None], ["outputs lie in [-3, 3]", None]]
    assert checks["eps-zero"] == [["warning", None], ["9 of 10 standthe attack ignores eps", None]]
    assert "1 of 2 checks pass" in doc.text


def test_the_pairs_of_classes_are_those_of_the_file_most_frequent_first(run):
    names = [f"digit {i}" for i in range(10)]
    found = load(run / "evaluation.json")
    pairs = [{"class": i, "predicted": (i + 1) % 10, "k": 20 - i, "n": 40} for i in range(10)]
    pairs.append({"class": 3, "predicted": 1, "k": 1, "n": 40})
    change(run / "evaluation.json", fooled_as=pairs, data=found["data"] | {"class_names": names})
    doc = part(report([run], images=0, progress=False))
    (table,) = (t[1:] for t in doc.tables if [cell[0] for cell in t[0][:2]] == ["class", "fooled as"])
    assert [[cell[0] for cell in row] for row in table] == [
        [f"digit {i}", f"digit {(i + 1) % 10}", str(20 - i), f"{100 * (20 - i) / 40:.1f}"] for i in range(10)
    ]
    assert "the first 10 of 11 pairs" in doc.text


@pytest.mark.parametrize(
    ("counts", "reported"),
    [
        ((3, 4, 5), f"Robust accuracy is lowest for class 0: {percent(share(3, 10))}."),
        ((5, 3, 3), "Robust accuracy is lowest for the classes 1, 2: 30.0 %."),
        ((0, 0, 0), "Robust accuracy is 0.0 % for every class."),
    ],
)
def test_classes_that_are_equally_weak_are_all_named(run, counts, reported):
    rows = [{"class": i, "n": 10, "clean": share(9, 10), "worst": share(k, 10)} for i, k in enumerate(counts)]
    for name in ("evaluation.json", "evaluation-2.json"):
        change(run / name, per_class=rows)
    assert reported in part(sections.section("classes", read(run))).text


def test_one_attack_alone_is_no_cascade(run):
    found = load(run / "evaluation-2.json")
    for attacks in ({"FGSM": found["attacks"]["FGSM"]}, {}):
        change(run / "evaluation.json", **found | {"attacks": attacks, "cascade": True})
        (run / "evaluation-2.json").unlink(missing_ok=True)
        text = part(sections.section("attacks", read(run))).text
        assert "after FGSM" not in text
        assert "ran in order" not in text
        assert ("The attack ran alone" in text) == bool(attacks)


def second_is_best(run):
    """The rows of a run's epochs, of which the second is now the best."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["best"] = row["epoch"] == 2
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return rows


def test_best_and_last_epoch_are_those_of_the_files(run):
    rows = second_is_best(run)
    found = load(run / "evaluation.json")
    last = {"epoch": 6, "clean": share(31, 40), "worst": share(7, 40)}
    last["attacks"] = {name: {"robust": share(9 + i, 40)} for i, name in enumerate(found["attacks"])}
    change(run / "evaluation.json", epoch=2, last=last)
    doc = part(sections.section("epochs", read(run)))
    (table,) = doc.rows("accuracy, 95 % interval", "best epoch (2)", "last epoch (6)")
    assert [cell[0] for cell in table["test, worst of these"]] == [percent(found["worst"]), percent(last["worst"])]
    assert [cell[1] for cell in table["test, clean"]] == [found["clean"]["value"], 31 / 40]
    assert table["test, PGD-3"][1][0] == percent(share(10, 40))
    assert [cell[1] for cell in table["validation, robust"]] == [r["validation_robust"] for r in (rows[1], rows[5])]
    assert "The last epoch is the best one." not in doc.text


def test_an_evaluation_of_the_last_epoch_is_not_shown_as_of_the_best(run):
    second_is_best(run)
    found = load(run / "evaluation.json")
    last = {"epoch": 6, "clean": share(31, 40), "worst": share(7, 40), "attacks": {}}
    change(run / "evaluation.json", weights="last", epoch=6, last=last)
    change(run / "evaluation-2.json", last=None)
    doc = part(sections.section("epochs", read(run)))
    (table,) = doc.rows("accuracy, 95 % interval", "best epoch (2)", "last epoch (6)")
    assert not [name for name in table if name.startswith("test")]
    assert f"evaluated on the test set: {', '.join(found['attacks'])}" in doc.text
    assert "were not evaluated" not in doc.text
    change(run / "evaluation.json", weights="best", last=None)
    assert "weights were not evaluated on the test set" in part(sections.section("epochs", read(run))).text


def test_the_headline_is_the_lowest_upper_limit_under_the_same_threat(run):
    first = load(run / "evaluation.json")
    high = first["worst"]["high"]

    def another(number, k, n, attack="PGD(steps=100)", **more):
        reported = first["attacks"]["PGD-3"] | {"attack": attack, "robust": share(k, n)}
        reported |= {"threat": reported["threat"] | more.pop("threat", {})}
        found = first | {"weights": "best", "n": n, "clean": share(n, n), "worst": share(k, n), **more}
        write_json(
            run / f"evaluation-{number}.json", found | {"attacks": {attack.split("(")[0]: reported}, "last": None}
        )
        return share(k, n)["high"]

    # fewer images and a lower figure, but a wider interval; another threat; other weights
    assert another(3, 0, 2) > high
    assert another(4, 0, 40, threat={"eps": 0.3}) < high
    assert another(5, 0, 40, weights="last") < high
    assert read(run).headline == "evaluation.json"
    assert another(6, 0, 40, attack="AutoAttack") < high
    assert read(run).headline == "evaluation-6.json"
    head = part(sections.section("headline", read(run))).text
    assert f"Robust accuracy {percent(share(0, 40))} under AutoAttack, linf 0.15, n = 40;" in head
    assert CAVEAT not in head
    # a weaker attack on more images stands beside AutoAttack, which leads although its interval is wider
    another(6, 1, 10, attack="AutoAttack")
    assert (read(run).headline, read(run).leading) == ("evaluation.json", "evaluation-6.json")
    head = part(sections.section("headline", read(run))).text
    assert f"Robust accuracy {percent(share(1, 10))} under AutoAttack, linf 0.15, n = 10;" in head
    assert CAVEAT not in head
    # it is not lower by value
    assert first["worst"]["value"] > share(1, 10)["value"]
    assert percent(first["worst"]) in head.partition("Also measured: ")[2]
    assert "Lowest measured" not in head
    k = int(10 * first["worst"]["value"]) + 1
    another(6, k, 10, attack="AutoAttack")
    assert read(run).leading == "evaluation-6.json"
    head = part(sections.section("headline", read(run))).text
    assert percent(first["worst"]) in head.partition("Lowest measured: ")[2]
    assert "Also measured" not in head
    # where AutoAttack leaves more beyond both intervals, the lower figure leads, and nothing says that it was not run
    another(6, 40, 40, attack="AutoAttack")
    assert read(run).leading == "evaluation.json"
    head = part(sections.section("headline", read(run))).text
    assert CAVEAT not in head
    assert percent(share(40, 40)) in head


def test_an_evaluation_without_an_attack_leads_where_there_is_no_other(run):
    change(run / "evaluation.json", attacks={}, worst=load(run / "evaluation.json")["clean"])
    attacked = load(run / "evaluation-2.json")
    assert (read(run).headline, read(run).leading) == ("evaluation-2.json", "evaluation-2.json")
    head = part(sections.section("headline", read(run))).text
    assert f"Robust accuracy {percent(attacked['worst'])} under" in head
    assert "No attack was run" not in head
    (run / "evaluation-2.json").unlink()
    assert read(run).leading == "evaluation.json"
    assert "No attack was run" in part(sections.section("headline", read(run))).text


def test_a_cascade_and_the_parts_of_an_ensemble_are_reported_as_such(run):
    found = load(run / "evaluation-2.json")
    reported = found["attacks"]["PGD-2"]
    alike = {key: reported[key] for key in PART}
    parts = {"APGD-CE": alike | {"robust": share(4, 10)}, "Square": alike | {"robust": share(3, 10)}}
    least = reported | {"attack": "AutoAttack", "robust": share(3, 10), "parts": parts}
    worst = share(3, 10)
    attacks = {"FGSM": found["attacks"]["FGSM"] | {"robust": share(5, 10)}, "AutoAttack": least}
    change(run / "evaluation.json", **found | {"attacks": attacks, "worst": worst, "clean": share(9, 10)})
    (run / "evaluation-2.json").unlink()
    doc = part(sections.section("headline", read(run)), sections.section("attacks", read(run)))
    # FGSM fooled images that AutoAttack did not meet.
    assert f"{percent(worst)} under the worst of 2 attacks (FGSM, AutoAttack), linf 0.15, n = 10" in doc.text
    (rows,) = doc.rows("attack", "accuracy, 95 % interval")
    assert rows["AutoAttack: after its APGD-CE"][0] == [percent(share(4, 10)), 0.4]
    assert rows["after AutoAttack"][0] == [percent(worst), 0.3]
    # the parts before the whole, which is the worst case and has no second row
    assert list(rows)[-1] == "after AutoAttack"


@pytest.mark.parametrize(
    ("cascade", "counts", "reported"),
    [
        (True, (5, 3), " (FGSM, PGD-2)"),
        (True, (9, 3), ", the strongest PGD-2"),
        (True, (5, 5), ", the strongest FGSM"),
        (True, (9, 9), " (FGSM, PGD-2)"),
        (False, (5, 3), ", the strongest PGD-2"),
        (False, (3, 5), ", the strongest FGSM"),
        ("threat", (5, 3), " (FGSM, PGD-2)"),
    ],
)
def test_an_attack_is_the_strongest_only_where_that_is_known(run, cascade, counts, reported):
    """In a cascade the second attack does not meet what the first has fooled."""
    found = load(run / "evaluation-2.json")
    attacks = {name: found["attacks"][name] | {"robust": share(k, 10)} for name, k in zip(("FGSM", "PGD-2"), counts)}
    more = {"attacks": attacks, "worst": share(min(counts), 10), "clean": share(9, 10), "cascade": cascade}
    change(run / "evaluation.json", **found | more)
    (run / "evaluation-2.json").unlink()
    assert f"under the worst of 2 attacks{reported}, linf 0.15" in part(sections.section("headline", read(run))).text


# ---- images -----------------------------------------------------------------------------------------------


def test_the_images_are_a_stratified_sample_and_what_the_strongest_attack_made_of_them(made, page):
    from matplotlib.image import imread

    found = load(made / "evaluation.json")
    assert read(made).headline == "evaluation.json"
    strongest = min(found["attacks"].values(), key=lambda reported: reported["robust"]["k"])
    doc = Document(page)
    which = "a stratified sample of 3 of 500 (seed 0)"
    assert f"Test images, {which}, under {strongest['attack']}, linf 0.15:" in doc.text
    data, model = load_data(DataSettings("digits", test_limit=40)), atent.load(made)
    some = data.sample("test", 3)
    x, y = some.batch(torch.arange(3))
    assert len(set(y.tolist())) == 3
    with torch.no_grad():
        confidence, seen = model(x).softmax(1).max(1)
    pictures = [a for a in doc.all("img") if a["src"].startswith("data:image/png")]
    assert len(pictures) == 9
    for i, number in enumerate(some.ids.tolist()):
        before, after, change = (
            imread(io.BytesIO(base64.b64decode(p["src"].partition(",")[2])))[..., 0]
            for p in pictures[3 * i : 3 * i + 3]
        )
        assert np.abs(255 * before - 255 * x[i, 0].numpy()).max() <= 0.501
        assert 0.1 < np.abs(after - before).max() <= 0.15 + 1 / 255
        # grey where nothing changed, lighter where the image became lighter
        assert np.corrcoef((after - before).ravel(), change.ravel())[0, 1] > 0.99
        assert np.abs(change[after == before] - 0.5).max() < 0.02
        alts = [p["alt"] for p in pictures[3 * i : 3 * i + 3]]
        says = f"image {number}, class {y[i]}, original: seen as {seen[i]}, {100 * confidence[i]:.1f} %"
        assert alts[0] == says
        assert alts[1].startswith(f"image {number}, class {y[i]}, adversarial: seen as ")
        fooled = f"seen as {y[i]}," not in alts[1]
        verdict = "misclassified without an attack" if seen[i] != y[i] else "fooled" if fooled else "robust"
        assert f"class {y[i]}, image {number}: {verdict}" in doc.text
        assert alts[2].startswith(f"image {number}, difference x ")


@pytest.mark.parametrize("counted", [{"norm": "l0", "eps": 3}, {"norm": "patch", "eps": 1, "side": 2}])
def test_the_images_of_a_threat_that_counts(run, counted):
    target = load_target(str(run), attacks=["PGD(steps=2)"], limit=4, device="cpu", **counted)
    for path in run.glob("evaluation*.json"):
        path.unlink()
    write_json(run / "evaluation.json", evaluate_target(target, progress=False).to_json())
    found = gallery(read(run), 2, progress=False)
    assert found.threat == target.threat
    assert [sample.distance for sample in found.samples] == [counted["eps"]] * 2
    doc = part(sections.section("attacks", read(run)))
    assert f"The distance, a number of {target.threat.units}, is" in doc.text
    change(run / "config.json", method=load(run / "config.json")["method"] | {"threat": counted})
    offered = part(sections.section("radii", read(run))).text.partition("--radius ")[2].split()
    assert float(offered[0]) == 1
    assert all(re.fullmatch(r"[1-9]\d*", word) for word in offered[:2])


def test_where_images_cannot_be_made_the_page_says_why(run):
    assert "No images were requested" in gallery(read(run), 0)
    (run / "best.safetensors").unlink()
    text = gallery(read(run), 2, progress=False)
    assert text.startswith("The images could not be made: ")
    assert "best.safetensors" in text
    assert text in part(sections.section("images", read(run), gallery=text)).text
    change(run / "config.json", model={"name": None, "class": "Mine"})
    assert "was trained from a Python object" in gallery(read(run), 2, progress=False)
    change(run / "config.json", model={"name": "digits_cnn"}, about={})
    assert "the configuration has no 'data'" in gallery(read(run), 2, progress=False)
