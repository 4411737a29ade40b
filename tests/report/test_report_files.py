"""What the report collects: several runs, comparisons and sweeps; missing, damaged and earlier files."""

import json
import re
import shutil

import numpy as np
import pytest
from report_run import CAVEAT, RESULTS, Document, change, load, made_once, part, run_to_change  # noqa: F401 - fixtures

from atent import plots
from atent.cli import main
from atent.report import compared, report, sections
from atent.report.collect import read
from atent.runs import write_json
from atent.stats import percent, share

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
    for words in (
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
        assert words in text
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
