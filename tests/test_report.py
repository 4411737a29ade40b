"""The report: its figures are those of the files, names in files are text, and a browser shows it without complaint."""

import base64
import hashlib
import html
import io
import itertools
import json
import re
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch
from commands import given
from kit import unsealed

import atent
from atent import plots
from atent.cli import main
from atent.data import DataSettings
from atent.data import load as load_data
from atent.experiments import recipes as config
from atent.experiments.certificate import certify_folder
from atent.experiments.evaluation import evaluate_target
from atent.experiments.pipeline import run_job
from atent.experiments.target import load_target
from atent.report import compared, report, sections
from atent.report.collect import read
from atent.report.samples import gallery
from atent.runs import write_json
from atent.stats import percent, share

RESULTS = Path(__file__).parent.parent / "results"
EVIL = "<script>alert(1)</script>"
CAVEAT = "Not measured by AutoAttack: a stronger attack may lower these figures."
PART = ("attacked", "robust", "fooled", "distance", "forwards", "backwards", "seconds")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


# ---- a run with everything, made once ---------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A trained run with two evaluations, a sweep, checks and two certificates."""
    tables = config.read_recipe("digits-linf-pgdat")
    tables["method"]["steps"] = 2
    tables["train"] |= {"epochs": 6, "validate_limit": 30, "device": "cpu"}
    tables["data"] |= {"test_limit": 40}
    tables["evaluate"] |= {"attacks": ["FGSM", "PGD(steps=3)", "PGD(steps=4, loss=margin)"]}
    path = tmp_path_factory.mktemp("report") / "whole"
    run_job(config.job(tables, "digits-linf-pgdat"), path, progress=False)
    target = load_target(str(path), attacks=["FGSM", "PGD(steps=2)"], limit=10, device="cpu")
    found = evaluate_target(target, radii=["0.05", "0.15"], progress=False).to_json()
    found["checks"] = [
        {"name": "logits", "passed": True, "figure": "outputs lie in [-3, 3]", "why": "not shown"},
        {"name": "eps-zero", "passed": False, "figure": "9 of 10 stand", "why": "the attack ignores eps"},
    ]
    write_json(path / "evaluation-2.json", found)
    certify_folder(path, sigma=0.25, n=60, n0=10, limit=5, device="cpu", progress=False)
    certify_folder(path, method="ibp", radii=[0.01], limit=5, device="cpu", progress=False)
    return path


@pytest.fixture
def run(made, tmp_path):
    """A copy of it to change."""
    shutil.copytree(made, tmp_path / "copy")
    return unsealed(tmp_path / "copy")


@pytest.fixture(scope="module")
def page(made):
    return report([made], images=3, progress=False)


def part(*inside):
    """A part of a page, read."""
    return Document("".join(inside))


def load(path):
    return json.loads(path.read_text())


def change(path, **values):
    """Rewrite a JSON file with other values at its top."""
    path.write_text(json.dumps(load(path) | values))


class Document(HTMLParser):
    """Elements, tables and text of a page; fails where tags are not closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words, self.tables = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            value = dict(attrs).get("data-value")
            self.tables[-1][-1].append(["", None if value is None else float(value)])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)
            if "tr" in self.open:
                self.tables[-1][-1][-1][0] += data

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self):
        return " ".join("".join(self.words).split())

    def rows(self, *headings):
        """The rows of the tables whose headings begin so, by the text of their first cell."""
        found = [t[1:] for t in self.tables if [cell[0] for cell in t[0]][: len(headings)] == list(headings)]
        assert found, headings
        return [{row[0][0]: row[1:] for row in body} for body in found]


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


def test_best_and_last_epoch_are_those_of_the_files(made, run):
    rows = [json.loads(line) for line in (made / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        row["best"] = row["epoch"] == 2
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
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
    assert f"{percent(worst)} under the worst of 2 attacks, the strongest AutoAttack, linf 0.15, n = 10" in doc.text
    (rows,) = doc.rows("attack", "accuracy, 95 % interval")
    assert rows["AutoAttack: after its APGD-CE"][0] == [percent(share(4, 10)), 0.4]
    assert rows["after AutoAttack"][0] == [percent(worst), 0.3]
    # the parts before the whole, which is the worst case and has no second row
    assert list(rows)[-1] == "after AutoAttack"


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


# ---- several ----------------------------------------------------------------------------------------------


def test_several_runs_are_shown_side_by_side(made, run):
    found = load(run / "evaluation.json")
    change(run / "evaluation.json", worst=share(1, 40), clean=share(39, 40))
    first = load(made / "evaluation.json")
    doc = Document(report([made, run, made], images=0))
    (rows,) = doc.rows("run", "method", "robust (worst case)", "clean", *first["attacks"])
    assert list(rows) == ["whole", "copy"]
    for name, worst, clean in (("whole", first["worst"], first["clean"]), ("copy", share(1, 40), share(39, 40))):
        shares = [worst, clean, *(a["robust"] for a in found["attacks"].values())]
        cells = rows[name][1 : 3 + len(found["attacks"])]
        assert [value for _, value in cells] == [s["value"] for s in shares]
        assert [text for text, _ in cells] == [percent(s).replace(" [", "[") for s in shares]
    assert CAVEAT in doc.text
    assert "Judged differently" not in doc.text
    alts = [a["alt"] for a in doc.all("img")]
    dots = next(alt for alt in alts if alt.startswith("Clean and robust accuracy by run"))
    assert "copy 97.5 % and 2.5 %" in dots
    assert any(alt.startswith("whole: Accuracy against epoch") and "copy: Accuracy" in alt for alt in alts)
    change(run / "evaluation.json", n=39)
    assert "compare with care: number of test images." in part(compared.several({"a": read(made), "b": read(run)})).text


def test_the_figures_of_several_runs_draw_what_they_are_given():
    table = {"a": {"clean": share(9, 10), "robust": share(2, 10)}, "b": {"robust": {"value": 0.5, "low": None}}}
    (axes,) = plots.dots(table).axes
    places = {line.get_label(): line.get_xdata() for line in axes.get_lines()}
    assert places["clean"] == pytest.approx([90])
    assert places["robust"] == pytest.approx([20, 50])
    spans = [[100 * end for end in (s["low"], s["high"])] for s in (share(9, 10), share(2, 10))]
    drawn = [segment[:, 0].tolist() for bars in axes.collections for segment in bars.get_segments()]
    assert np.allclose(drawn, [*spans, [50, 50]])
    assert [text.get_text() for text in axes.texts] == ["a", "b"]
    with pytest.raises(ValueError, match="expected a fraction"):
        plots.dots({"a": {"robust": {"value": 2}}})

    rows = {"a": [{"epoch": 1, "validation_clean": 0.5}, {"epoch": 2, "validation_clean": 0.75}]}
    rows["b"] = [{"epoch": 1, "validation_clean": 0.25, "validation_robust": 0.125}]
    clean, robust = plots.together(rows).axes
    assert [list(line.get_ydata()) for line in clean.get_lines()] == [[50, 75], [25]]
    assert [list(line.get_ydata()) for line in robust.get_lines()] == [[12.5]]
    assert robust.get_lines()[0].get_color() == clean.get_lines()[1].get_color() == plots.PALETTE[1]
    assert (robust.get_xlabel(), robust.get_ylabel()) == ("epoch", "robust accuracy (%)")
    narrow = plots.narrow(plots.curves(rows["a"]), 4)
    assert tuple(narrow.get_size_inches()) == (5.2, 4)
    assert [t.get_text() for t in narrow.legends[0].get_texts()] == ["clean, validation"]
    assert len(narrow.legends) == 1
    assert plots.svg(narrow) == plots.svg(narrow)


def test_folders_of_one_name_are_distinguished(made, tmp_path):
    shutil.copytree(made, tmp_path / "whole")
    doc = Document(report([made, tmp_path / "whole"], images=0))
    (rows,) = doc.rows("run", "method")
    assert list(rows) == [str(made), str(tmp_path / "whole")]


def test_a_comparison_shows_its_table():
    from atent.experiments.comparison import layout

    path = RESULTS / "digits-linf"
    found = load(path / "comparison.json")
    headings, rows = layout(read(path).found)
    doc = Document(report([path]))
    (table,) = doc.rows("recipe", *headings)
    assert {name: [cell[0] for cell in cells] for name, cells in table.items()} == {
        name: [e.text + e.interval for e in entries] for name, entries in rows
    }
    best = max(found["rows"], key=lambda row: row["worst"]["mean"])
    (lead,) = re.findall(r'<p class="lead">(.*?)</p>', report([path]))
    assert best["recipe"] in lead
    assert f"{100 * best['worst']['mean']:.1f} %" in lead
    assert "overlap" in lead
    assert (CAVEAT in doc.text) == bool(found["caveat"])
    assert found["command"] in doc.text
    each = doc.rows("run", "method", "seed")[0]
    seed = found["rows"][0]["seeds"][0]
    assert each[seed["run"]][3][0] == percent(seed["worst"])


def test_a_sweep_shows_its_trials_figures_and_trainings():
    from atent.experiments.sweep.collect import figures, layout

    path = RESULTS / "digits-sweep"
    found = read(path).found
    headings, rows = layout(found)
    doc = Document(report([path]))
    (table,) = doc.rows(*headings[:-1])
    assert {name: [cell[0] for cell in cells] for name, cells in table.items()} == {row[0]: row[1:] for row in rows}
    assert len(doc.all("figure")) == len(figures(found)) > 1
    assert all(figure["alt"] for figure in doc.all("img"))
    assert found.command in doc.text
    each = doc.rows("run", "trial", "seed")[0]
    assert set(each) == {seed.run for trial in found.trials for seed in trial.seeds}


def test_a_network_of_the_zoo_is_shown_and_its_folder_left_alone(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["report", "zoo:digits-linf-crown-ibp", "--images", "0", "--quiet"]) == 0
    assert "written: report.html" in capsys.readouterr().out
    assert "digits-linf-crown-ibp" in Document((tmp_path / "report.html").read_text()).text


# ---- missing and damaged parts ------------------------------------------------------------------------------


def test_a_bare_folder_gives_a_page_that_says_what_is_missing(made, tmp_path):
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(made / "config.json", bare)
    text = Document(report([bare], images=2, progress=False)).text
    for part in (
        "Not evaluated on the test set yet",
        f"atent evaluate {bare}",
        "There is no evaluation.",
        "do not say which epoch was the best",
        "no validation accuracies to draw",
        "Not measured yet. To measure it:",
        "Not certified yet.",
        "Not run yet.",
        "The images could not be made",
        "PGDAT",
        "digits-linf-pgdat",
    ):
        assert part in text
    assert "robust accuracy, linf" not in text
    config = load(bare / "config.json")
    (bare / "config.json").write_text(json.dumps({"method": {"name": "Mine"}, "train": config["train"]}))
    assert "Mine" in Document(report([bare, made], images=0)).text


def test_an_unfinished_certificate_is_named_and_left_alone(run):
    (run / "certificate.csv").write_text("torn")
    write_json(run / "certificate.json", {"made": {}, "complete": False})
    assert "certificate.json is not finished" in part(sections.section("certificates", read(run))).text
    assert (run / "certificate.csv").read_text() == "torn"


@pytest.mark.parametrize(
    ("name", "content", "reported"),
    [
        ("evaluation.json", "{", "not valid JSON"),
        ("evaluation.json", '{"clean": {}}', "'data' is missing"),
        ("evaluation-2.json", "[]", "is not what its name says"),
        ("metrics.jsonl", '{"loss": 1}\n', "'epoch' is missing"),
        ("config.json", "{}", "no table 'method'"),
        ("certificate.json", "{}", "'complete' is missing"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(run, name, content, reported):
    (run / name).write_text(content)
    with pytest.raises(ValueError, match=re.escape(reported)) as error:
        report([run], images=0)
    assert str(run / name) in str(error.value)
    assert "\n" not in str(error.value)


def test_earlier_results_without_newer_fields_are_shown():
    """Results from before cascades, outcomes and quantiles."""
    found = load(RESULTS / "mnist-linf-atent-laptop" / "evaluation.json")
    assert "cascade" not in found
    doc = Document(report([RESULTS / "mnist-linf-atent-laptop"], images=0))
    rows = {name: cells for table in doc.rows("attack", "accuracy, 95 % interval") for name, cells in table.items()}
    fgsm = found["attacks"]["FGSM"]
    assert rows["FGSM"][0] == [percent(fgsm["robust"]), fgsm["robust"]["value"]]
    assert rows["FGSM"][1][1] == found["natural"]["k"]
    assert rows["FGSM"][2][1] == fgsm["distance_median"]


# ---- the page itself ----------------------------------------------------------------------------------------


def test_the_page_is_whole_and_needs_nothing_else(page):
    doc = Document(page)
    assert page.startswith("<!doctype html>")
    ids = [a["id"] for _, a in doc.elements if "id" in a]
    assert len(ids) == len(set(ids))
    images = doc.all("img")
    assert len(images) >= 12
    assert all(a["src"].startswith("data:image/") and re.search(r"\d", a["alt"]) for a in images)
    assert not {"link", "iframe", "object", "base", "form"} & {name for name, _ in doc.elements}
    for image in images:
        if "svg" in image["src"][:20]:
            drawn = base64.b64decode(image["src"].partition(",")[2]).decode()
            # names of dialects and licences are no addresses that are fetched
            assert not re.search(r"(href|src)=[\"'](?!#)|url\((?!#)|@import", drawn)
    assert all(a["href"].startswith("#") for a in doc.all("a"))
    assert "url(" not in page
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for a in doc.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "@media print" in page
    for axis in ("accuracy (%)", "epoch", "linf radius", "certified l2 radius (pixel units)"):
        svgs = [base64.b64decode(a["src"].partition(",")[2]).decode() for a in images if "svg" in a["src"][:20]]
        assert any(axis in svg for svg in svgs), axis


def test_the_page_has_one_outline_and_tables_that_say_what_they_are(made, page):
    for text in (page, report([made, RESULTS / "digits-linf", RESULTS / "digits-sweep"], images=1, progress=False)):
        doc = Document(text)
        levels = [int(tag[1]) for tag, _ in doc.elements if re.fullmatch("h[1-6]", tag)]
        assert levels.count(1) == 1
        assert levels[0] == 1
        assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
        titles = re.findall(r"<h[1-6]>(.*?)</h[1-6]>", text)
        assert len(titles) == len(levels)
        assert not [title for title in titles if re.search(r"\.(json|csv|jsonl|html)\b", title)]
        anchors = {a["id"] for _, a in doc.elements if "id" in a}
        assert {a["href"][1:] for a in doc.all("a")} <= anchors
        tables = re.findall(r"<table.*?</table>", text, re.S)
        assert len(tables) > 5
        for table in tables:
            inside = Document(table)
            assert table.count("<caption>") == 1
            heads = [a for a in inside.all("th") if a.get("scope") == "col"]
            names = [cell[0] for cell in inside.tables[0][0]]
            cells = [a for tag, a in inside.elements if tag in ("td", "th") and a.get("scope") != "col"]
            # a card says beside each value what the column's heading says, in the heading's place
            assert [a["data-label"] for a in cells] == names * (len(cells) // len(names))
            assert len(heads) == len(names)
            for a in cells:
                assert ("data-value" in a) == (a.get("class") == "number")
                column = heads[names.index(a["data-label"])]
                assert "data-value" not in a or column.get("class") == "number"
    assert "prefers-color-scheme: dark" in page
    assert "max-width: 40rem" in page


def spoil(path, tmp_path):
    """The run again, with markup wherever a file can hold a name."""
    evil = tmp_path / '"><img src=x onerror=alert(2)> $\\frac$'
    unsealed(shutil.copytree(path, evil))
    change(evil / "config.json", recipe=EVIL)
    settings = load(evil / "config.json")
    settings["about"]["data"] |= {"name": EVIL, "source": EVIL, "files": {EVIL: {"sha256": EVIL}}}
    settings["method"] |= {EVIL: EVIL, "name": EVIL}
    settings["provenance"]["device_name"] = EVIL
    write_json(evil / "config.json", settings)
    found = load(evil / "evaluation-2.json")
    reported = found["attacks"].pop("PGD-2") | {"attack": EVIL}
    found["attacks"][EVIL] = reported | {"parts": {EVIL: {key: reported[key] for key in PART}}}
    for row in found["sweep"]:
        row["attack"] = EVIL
    found["checks"][1] |= {"name": EVIL, "figure": EVIL, "why": EVIL}
    found |= {"hint": EVIL, "weights": EVIL, "data": found["data"] | {"name": EVIL}}
    found["provenance"] |= {"version": EVIL, "device": EVIL}
    write_json(evil / "evaluation.json", found)
    (evil / "evaluation-2.json").rename(evil / "evaluation-<b>.json")
    return evil


def test_names_in_files_are_text(made, tmp_path):
    text = report([spoil(made, tmp_path), made], images=1, progress=False)
    doc = Document(text)
    assert text.count("<script") == 1
    assert not re.search(r"<img src=x|<b>\.json", text)
    assert not [a for _, a in doc.elements if "onerror" in a]
    # recipe, method, field, attack, its part, radii, check, hint, provenance ...
    assert text.count(html.escape(EVIL)) > 20
    assert all(a["src"].startswith("data:image/") for a in doc.all("img"))
    svgs = [base64.b64decode(a["src"].partition(",")[2]).decode() for a in doc.all("img") if "svg" in a["src"][:20]]
    assert svgs
    assert not any(re.search(r"<script|<img", svg) for svg in svgs)
    assert any("$\\frac$" in svg for svg in svgs)


# ---- the command --------------------------------------------------------------------------------------------


def said(capsys, *args):
    status = main(list(map(str, args)))
    out, err = capsys.readouterr()
    return status, out, err


def test_the_command_writes_beside_the_run_and_never_over_an_earlier_report(run, made, capsys, monkeypatch):
    monkeypatch.chdir(run.parent)
    for name in ("report.html", "report-2.html"):
        status, out, err = said(capsys, "report", run, "--images", 0, "--quiet")
        assert (status, out) == (0, f"written: {run / name}\n"), err
        Document((run / name).read_text())
    assert said(capsys, "report", made, run, "--images", 0)[:2] == (0, "written: report.html\n")
    assert "Side by side" in Path("report.html").read_text()
    assert said(capsys, "report", run, "--images", 0, "--out", "mine.html")[:2] == (0, "written: mine.html\n")
    before = sorted(run.parent.rglob("*"))
    for args, status, reported in (
        ([run, "--out", "mine.html"], 2, "never overwritten"),
        ([run, "--out", "absent/mine.html", "--images", 0], 1, "cannot write absent/mine.html"),
        ([run.parent], 2, "is not a run folder (no config.json)"),
        ([run / "nothing"], 2, "is not a run folder"),
        ([run, "--images", -1], 2, "images must be at least 0, got -1"),
        ([run, "--image", 1], 2, "did you mean '--images'"),
        ([], 2, "no run given: write `atent report RUN"),
    ):
        got, out, err = said(capsys, "report", *args)
        assert (got, out) == (status, ""), err
        assert reported in err
        assert len(err.strip().splitlines()) == 1
    assert sorted(run.parent.rglob("*")) == before
    status, out, _ = said(capsys, "report", "--help")
    assert status == 0
    assert "--images" in out
    assert "self-contained" in " ".join(out.split())


def test_the_commands_of_the_readme_parse():
    lines = (RESULTS.parent / "docs" / "start.md").read_text().splitlines()
    found = [line.split("#")[0].split()[2:] for line in lines if line.startswith("atent report ")]
    assert found
    assert all(given("report", *words)["runs"] for words in found)


def test_the_next_steps_are_commands_that_run(made):
    from atent.report.commands import next_steps

    steps = next_steps(read(made))
    assert [words[:3] for _, words in steps] == [["atent", v, str(made)] for v in ("report", "evaluate", "certify")]
    for shows, (_, verb, *words) in steps:
        assert shows
        assert given(verb, *words)


def test_the_next_steps_are_those_that_are_left(made):
    from atent.report.commands import next_steps

    run = read(made)
    few = {"about": {**run.config["about"], "data": {**run.config["about"]["data"], "counts": {"test": 30}}}}
    small = next_steps(replace(run, config={**run.config, **few}))
    assert [words[words.index("--limit") + 1] for _, words in small[1:]] == ["all", "all"]
    assert all("all 30 test images" in shows for shows, _ in small[1:])

    (name, found), *_ = run.evaluations.items()
    by = {"AutoAttack": replace(next(iter(found.attacks.values())), attack="AutoAttack")}
    left = next_steps(replace(run, evaluations={name: replace(found, attacks=by)}))
    assert [words[1] for _, words in left] == ["report", "certify"]


# ---- in a browser ---------------------------------------------------------------------------------------------

WATCH = """
const seen = [];
for (const kind of ["error", "securitypolicyviolation", "unhandledrejection"])
  window.addEventListener(kind, e => seen.push(kind + " " + (e.message || e.blockedURI || e.target)), true);
for (const kind of ["error", "warn"]) console[kind] = (...what) => seen.push(kind + " " + what);
"""

LOOK = """
const tables = [...document.querySelectorAll("table.sortable")].map(table => {
  const columns = [...table.tHead.rows[0].cells].map((head, i) => {
    const look = () => [...table.tBodies[0].rows].map(r => [r.cells[i].dataset.value ?? null, r.cells[0].textContent]);
    head.querySelector("button").click();
    const up = look(), said = head.getAttribute("aria-sort");
    head.querySelector("button").click();
    return { up, down: look(), said: [said, head.getAttribute("aria-sort")] };
  });
  return { columns, foot: table.tFoot ? table.rows[table.rows.length - 1].parentNode === table.tFoot : null };
});
const found = {
  width: innerWidth, scroll: document.documentElement.scrollWidth, tables, seen: [...seen],
  images: [...document.images].map(i => i.naturalWidth * i.complete),
};
// The watch is not blind: what the policy forbids is refused, and noticed.
const forbidden = new Image();
forbidden.src = "https://example.invalid/x.png";
setTimeout(() => {
  found.control = seen.slice(found.seen.length);
  parent.postMessage(JSON.stringify(found), "*");
}, 200);
"""


# A window may be no narrower than 500 pixels; a frame may.
FRAME = """<!doctype html><title>frame</title><pre id="found"></pre>
<script>addEventListener("message", e => { document.getElementById("found").textContent = e.data; });</script>
<iframe src="page.html" width="390" height="844" style="border: 0"></iframe>
"""


@pytest.mark.timeout(600)
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the path")
def test_a_browser_shows_the_page_on_a_phone_without_complaint(made, tmp_path):
    text = report([made, spoil(made, tmp_path), RESULTS / "digits-linf"], images=2, progress=False)
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in (WATCH, LOOK)
    )
    copy = text.replace("script-src ", f"script-src {hashes} ")
    copy = copy.replace("<meta name=", f"<script>{WATCH}</script><meta name=", 1)
    copy = copy.replace("</body>", f"<script>{LOOK}</script></body>")
    (tmp_path / "page.html").write_text(copy)
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME)
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}",
            "--window-size=800,1000", "--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom",
            frame.as_uri(),
        ],
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    found = json.loads(html.unescape(found))
    assert found["seen"] == []
    assert "CONSOLE" not in re.sub(r".*example\.invalid.*", "", done.stderr)
    assert any("securitypolicyviolation" in line for line in found["control"])
    assert found["width"] == 390
    assert found["scroll"] <= 390
    assert len(found["images"]) > 15
    assert all(width > 0 for width in found["images"])
    assert len(found["tables"]) > 5
    for table in found["tables"]:
        assert table["foot"] in (None, True)
        for column in table["columns"]:
            assert column["said"] == ["ascending", "descending"]
            assert sorted(map(str, column["up"])) == sorted(map(str, column["down"]))
            up, down = ([float(v) for v, _ in column[way] if v is not None] for way in ("up", "down"))
            assert up == sorted(up)
            assert down == sorted(up, reverse=True)
            for way in ("up", "down"):
                # rows without a number come last
                empty = [v is None for v, _ in column[way]]
                assert empty == sorted(empty)
    # some column was out of order before one of the clicks, and some was moved by them
    assert any(c["up"] != c["down"] for t in found["tables"] for c in t["columns"])
