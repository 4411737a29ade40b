import math

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from atent import plots, stats
from atent import runs as run
from atent.runs import files


def rows(epochs=20, best=12):
    result = []
    for epoch in range(1, epochs + 1):
        t = 1 - math.exp(-epoch / 6)
        row = {
            "epoch": epoch,
            "loss": 1.0,
            "train_clean": 0.9 * t,
            "train_robust": 0.6 * t,
            "validation_clean": 0.8 * t,
            "validation_robust": 0.5 * t,
        }
        for kind in ("clean", "robust"):
            cell = stats.share(round(1000 * row[f"validation_{kind}"]), 1000)
            row[f"validation_{kind}_low"], row[f"validation_{kind}_high"] = cell["low"], cell["high"]
        if epoch in (3, best):
            row["best"] = True
        result.append(row)
    return result


def lines(axes):
    return {line.get_label(): line for line in axes.get_lines() if not line.get_label().startswith("_")}


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_curves_draws_what_the_rows_say():
    data = rows()
    figure = plots.curves(data)
    assert isinstance(figure, Figure)
    (axes,) = figure.axes
    drawn = lines(axes)
    assert list(drawn) == ["clean, train", "clean, validation", "robust, train", "robust, validation"]
    for label, line in drawn.items():
        kind, split = label.split(", ")
        assert list(line.get_xdata()) == list(range(1, 21))
        assert list(line.get_ydata()) == pytest.approx([100 * row[f"{split}_{kind}"] for row in data])
    colours = {label: to_hex(line.get_color()) for label, line in drawn.items()}
    assert colours["clean, train"] == colours["clean, validation"] != colours["robust, train"]
    assert drawn["clean, validation"].get_linestyle() == "-" != drawn["clean, train"].get_linestyle()
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_ylim()) == ("epoch", "accuracy (%)", (0, 100))
    assert len(axes.collections) == 2
    assert legend(figure) == [*drawn, "95 % interval", "best epoch"]


def test_curves_show_what_robustness_lost_after_the_best_epoch():
    data = rows(epochs=6, best=4)
    for row, value in zip(data, (0.1, 0.2, 0.3, 0.5, 0.45, 0.44), strict=True):
        row["validation_robust"] = value
    texts = [t.get_text() for t in plots.curves(data).axes[0].texts]
    assert "gap 6.0" in texts
    data[-1]["validation_robust"] = 0.5
    assert not [t for t in plots.curves(data).axes[0].texts if "gap" in t.get_text()]


def test_curves_marks_the_last_best_epoch():
    data = rows(best=12)
    (axes,) = plots.curves(data, title="digits").axes
    stars = [line for line in axes.get_lines() if line.get_marker() == "*"]
    assert [star.get_xdata()[0] for star in stars] == [12, 12]
    assert [star.get_ydata()[0] for star in stars] == pytest.approx(
        [100 * data[11]["validation_clean"], 100 * data[11]["validation_robust"]]
    )
    assert axes.get_title(loc="left") == "digits\nbest epoch 12: clean 69.2 %, robust 43.2 %"


def test_curves_leaves_out_what_is_missing():
    data = [{"epoch": e, "train_clean": 0.5, "validation_robust": 0.2 if e % 5 == 0 else None} for e in range(1, 11)]
    figure = plots.curves(data)
    drawn = lines(figure.axes[0])
    assert list(drawn) == ["clean, train", "robust, validation"]
    assert list(drawn["robust, validation"].get_xdata()) == [5, 10]
    assert legend(figure) == list(drawn)


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_curves_gives_each_run_its_panel(count):
    data = {f"run {i}": rows(5 + i, best=4) for i in range(count)}
    figure = plots.curves(data, title="runs")
    assert len(figure.axes) == count
    assert [axes.get_title(loc="left").split("\n")[0] for axes in figure.axes] == list(data)
    assert all(axes.get_ylim() == (0, 100) for axes in figure.axes)
    lengths = [len(lines(axes)["robust, train"].get_xdata()) for axes in figure.axes]
    assert lengths == [5 + i for i in range(count)]
    assert figure.axes[0].get_ylabel() == "accuracy (%)"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "no rows"),
        ({}, "no runs"),
        ({"a": rows(), "b": []}, "run 'b': no rows"),
        ([{"epoch": 1, "loss": 2.0}], "no accuracies"),
        ([{"train_clean": 0.5}], "row 1 has no epoch"),
        ([{"epoch": 7, "train_clean": 51.3}], r"epoch 7: train_clean is 51\.3"),
        ([{"epoch": 7, "train_clean": math.nan}], "train_clean is nan"),
    ],
)
def test_curves_refuses(data, message):
    with pytest.raises(ValueError, match=message) as caught:
        plots.curves(data)
    assert "\n" not in str(caught.value)


TABLE = {
    "standard": {"none": stats.share(950, 1000), "AutoAttack": stats.share(0, 1000)},
    "ATENT": {"none": stats.share(830, 1000)},
}


def test_accuracies_draws_bars_and_intervals():
    figure = plots.accuracies(TABLE, title="CIFAR-10")
    (axes,) = figure.axes
    bars = [bar for bar in axes.containers if hasattr(bar, "patches")]
    assert [[patch.get_height() for patch in bar] for bar in bars] == [[95.0, 0.0], [83.0]]
    for bar, cells in zip(
        bars, ([TABLE["standard"]["none"], TABLE["standard"]["AutoAttack"]], [TABLE["ATENT"]["none"]]), strict=True
    ):
        ends = [segment[:, 1] for segment in bar.errorbar.lines[2][0].get_segments()]
        assert np.allclose(ends, [[100 * cell["low"], 100 * cell["high"]] for cell in cells])
    assert axes.get_ylabel() == "accuracy (%)"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["none", "AutoAttack"]
    assert {"95.0", "0.0", "83.0", "not\nrun"} == {text.get_text() for text in axes.texts}
    assert legend(figure) == ["standard", "ATENT"]
    assert figure.legends[0].get_title().get_text() == "error bars: 95 % intervals, n = 1,000"


def test_names_with_underscores_and_dollar_signs_are_shown(tmp_path):
    """A legend omits labels that begin with an underscore, and text between dollar signs is mathematics."""
    names = ["_run", r"a$\bad{$"]
    rows = [{"epoch": 1, "validation_clean": 0.5}]
    cell = {"value": 0.5, "low": 0.4, "high": 0.6, "n": 10}
    attacked = [row | {"attack": name} for name in names for row in sweep_rows({"PGD-20": {0.1: (150, 150)}})]
    figures = [
        plots.accuracies({name: {"PGD": cell} for name in names}),
        plots.pareto({"": {name: {"clean": cell, "robust": cell} for name in names}}),
        plots.security(attacked),
        plots.minimum_norm({name: ([0, 1], [1.0, 0.5]) for name in names}),
        plots.certified({name: [0.1, -1] for name in names}),
        plots.together(dict.fromkeys(names, rows)),
        plots.cost({name: ([(1, 1.0)], (1.0, 0.0)) for name in names}, {}),
    ]
    for figure in figures:
        shown = [text.strip().partition(" (n")[0] for text in legend(figure)]
        assert shown == names
        plots.save(figure, tmp_path / "figure.png")


@pytest.mark.parametrize("table", [{}, {"a": {}}, {"a": {"none": {"value": 95, "low": 90, "high": 99}}}])
def test_accuracies_refuses(table):
    with pytest.raises(ValueError, match=r"empty|fraction"):
        plots.accuracies(table)


def test_images_shows_the_pixels():
    x = torch.rand(5, 3, 4, 6)
    figure = plots.images(x, list("abcde"), columns=3)
    shown = [axes for axes in figure.axes if axes.get_images()]
    assert [axes.get_title() for axes in shown] == list("abcde")
    assert np.array_equal(shown[4].get_images()[0].get_array(), x[4].permute(1, 2, 0).numpy())
    grey = plots.images(np.full((1, 1, 2, 2), 0.5)).axes[0].get_images()[0]
    assert (grey.get_array().shape, grey.get_clim()) == ((2, 2), (0, 1))


@pytest.mark.parametrize(
    "x",
    [
        torch.rand(3, 8, 8),
        torch.rand(1, 2, 8, 8),
        torch.rand(0, 3, 8, 8),
        2 * torch.ones(1, 1, 2, 2),
        torch.full((1, 1, 2, 2), math.nan),
    ],
)
def test_images_refuses(x):
    with pytest.raises(ValueError, match="images"):
        plots.images(x)
    with pytest.raises(ValueError, match="2 labels"):
        plots.images(torch.rand(1, 1, 2, 2), ["a", "b"])


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_saved_bytes_are_the_same_twice(tmp_path, suffix):
    contents = []
    for name in ("a", "b"):
        path = tmp_path / f"{name}.{suffix}"
        plots.save(plots.curves({"ATENT": rows(6), "standard": rows(6)}), path)
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
    assert b"<dc:date>" not in contents[0]
    assert len(list(tmp_path.iterdir())) == 2


def test_save_refuses_other_kinds(tmp_path):
    with pytest.raises(ValueError, match=r"\.png or \.svg"):
        plots.save(Figure(), tmp_path / "a.pdf")
    assert list(tmp_path.iterdir()) == []


def test_a_failing_save_keeps_the_earlier_figure(tmp_path, monkeypatch):
    path = tmp_path / run.CURVES
    path.write_text("old")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(OSError, match="the earlier file is intact"):
        plots.save(Figure(), path)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_palette_is_of_distinct_colours():
    assert len({to_hex(colour) for colour in plots.PALETTE}) == len(plots.PALETTE) == 8


def test_frequencies_are_whole_numbers():
    report = {"errors": [[1] * 4] * 4, "n": 10, "eps": 1.0, "clean_error": stats.share(1, 10)}
    axes = plots.fourier(report).axes[0]
    assert all(tick == round(tick) for tick in (*axes.get_xticks(), *axes.get_yticks()))


@pytest.mark.parametrize("name", ["clean_error", "clean", "natural"])
def test_reports_of_errors_of_earlier_versions_are_drawn(name):
    report = {"errors": [[1] * 4] * 4, "n": 10, "eps": 1.0, name: stats.share(1, 10)}
    assert "without noise 10.0 % error" in plots.fourier(report).axes[0].get_title(loc="left")
    row = {"corruption": "fog", "severity": 1, "error": stats.share(2, 10)}
    report = {"rows": [row], "n": 10, "mean": {"value": 0.2}, name: stats.share(1, 10)}
    assert "clean 10.0, mean 20.0" in plots.corruptions(report).axes[0].get_title(loc="left")


# ---- security curves and adversarial images


def sweep_rows(counts, norm="linf", n=200, clean=190):
    """counts: {attack: {radius: (standing, standing under smaller radii too)}}"""
    return [
        {
            "attack": attack,
            "norm": norm,
            "radius": radius,
            "clean": stats.share(clean, n),
            "robust": stats.share(alone, n),
            "monotone": stats.share(both, n),
        }
        for attack, found in counts.items()
        for radius, (alone, both) in found.items()
    ]


def test_security_draws_each_attack_from_the_clean_accuracy_on():
    counts = {"PGD-20": {0.1: (150, 150), 0.2: (80, 80)}, "ATENT-20": {0.2: (120, 90), 0.1: (100, 100)}}
    figure = plots.security(sweep_rows(counts), title="digits")
    (axes,) = figure.axes
    drawn = lines(axes)
    assert list(drawn) == ["PGD-20", "ATENT-20", "ATENT-20, with smaller radii"]
    assert list(drawn["PGD-20"].get_xdata()) == [0, 0.1, 0.2]
    assert list(drawn["PGD-20"].get_ydata()) == pytest.approx([95, 75, 40])
    assert list(drawn["ATENT-20"].get_ydata()) == pytest.approx([95, 50, 60])
    dashed = drawn["ATENT-20, with smaller radii"]
    assert list(dashed.get_ydata()) == pytest.approx([50, 45])
    assert dashed.get_linestyle() != "-"
    assert to_hex(dashed.get_color()) == to_hex(drawn["ATENT-20"].get_color()) != to_hex(drawn["PGD-20"].get_color())
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("linf radius (pixel units)", "robust accuracy (%)")
    assert axes.get_ylim() == (0, 100)
    band = axes.collections[0].get_paths()[0].vertices
    low, high = (100 * stats.share(80, 200)[key] for key in ("low", "high"))
    ends = band[band[:, 0] == 0.2][:, 1]
    assert (ends.min(), ends.max()) == (pytest.approx(low), pytest.approx(high))
    assert legend(figure) == list(drawn)
    assert "95 % intervals, n = 200" in figure.legends[0].get_title().get_text()


def test_security_writes_grey_levels_as_such():
    figure = plots.security(sweep_rows({"PGD-20": {0: (190, 190), 2 / 255: (150, 150), 8 / 255: (80, 80)}}))
    (axes,) = figure.axes
    assert list(lines(axes)["PGD-20"].get_xdata()) == pytest.approx([0, 2, 8])
    assert axes.get_xlabel() == "linf radius (1/255 in pixel units)"


@pytest.mark.parametrize(
    ("norm", "texts", "units"),
    [
        ("l0", {1: "l0 1 pixel", 2: "l0 2 pixels"}, "pixels"),
        ("l0", {1: "l0 1 element", 2: "l0 2 elements"}, "elements"),
        ("patch", {1: "patch 1 of 2x2", 2: "patch 2 of 2x2"}, "patches"),
        ("l1", {1: "l1 1", 2: "l1 2"}, "pixel units"),
        ("l2", {1: "l2 1", 2: "l2 2"}, "pixel units"),
    ],
)
def test_security_leaves_whole_numbers_of_other_norms_as_they_are(norm, texts, units):
    rows = sweep_rows({"PGD-20": {radius: (100, 100) for radius in texts}}, norm=norm)
    (axes,) = plots.security([row | {"threat": texts[row["radius"]]} for row in rows]).axes
    assert list(lines(axes)["PGD-20"].get_xdata()) == [0, 1, 2]
    assert axes.get_xlabel() == f"{norm} radius ({units})"
    counts = norm in ("l0", "patch")
    assert all(tick == round(tick) for tick in axes.get_xticks()) == counts


def test_minimum_norm_names_what_a_count_counts():
    (axes,) = plots.minimum_norm({"fewest": ([0, 1, 2], [1.0, 0.5, 0.1])}, norm="patch").axes
    assert axes.get_xlabel() == "patch radius (patches)"
    assert all(tick == round(tick) for tick in axes.get_xticks())


def test_security_refuses_what_it_cannot_draw():
    mixed = sweep_rows({"a": {0.1: (1, 1)}}) + sweep_rows({"b": {0.1: (1, 1)}}, norm="l2")
    with pytest.raises(ValueError, match="of one norm, got l2, linf: draw one for each"):
        plots.security(mixed)
    with pytest.raises(ValueError, match="of one norm, got no rows"):
        plots.security([])
    rows = sweep_rows({"a": {0.1: (1, 1)}})
    rows[0]["robust"]["value"] = 40
    with pytest.raises(ValueError, match=r"a at 0.1: value is 40, expected a fraction"):
        plots.security(rows)


def test_adversarial_shows_original_result_and_difference():
    x = torch.full((2, 1, 4, 4), 0.5)
    d = torch.zeros_like(x)
    d[0, 0, 0, 0], d[1, 0, 0, 0] = 0.1, -0.05
    figure = plots.adversarial(x, x + d, torch.tensor([3, 5]), torch.tensor([8, 5]))
    assert [axes.get_title() for axes in figure.axes] == [
        "class 3", "seen as 8", "difference x 5", "class 5", "seen as 5", "difference x 5",
    ]  # fmt: skip
    first = [axes.images[0].get_array()[0, 0] for axes in figure.axes]
    assert first == pytest.approx([0.5, 0.6, 1.0, 0.5, 0.45, 0.25])
    assert figure.axes[2].images[0].get_array()[1, 1] == 0.5
    plots.adversarial(x[:1], x[:1], [3], [3])


# ---- minimum-norm curves


def cell(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def test_pareto_fills_what_nothing_beats():
    table = {
        "plain": {"clean": cell(0.95, 0.93, 0.97), "robust": cell(0.02, 0.01, 0.04)},
        "good": {"clean": cell(0.9, 0.88, 0.92), "robust": cell(0.5, 0.45, 0.55)},
        "beaten": {"clean": cell(0.89), "robust": cell(0.5)},
        "cautious": {"clean": cell(0.8), "robust": cell(0.6)},
    }
    figure = plots.pareto({"epochs": table, "time": {"good": table["good"], "late": table["cautious"]}})
    first, second = figure.axes
    assert [a.get_title(loc="left") for a in (first, second)] == ["epochs", "time"]
    drawn = {line.get_label(): line for line in first.lines if line.get_label() in table}
    assert {n: (line.get_xdata()[0], line.get_ydata()[0]) for n, line in drawn.items()} == {
        n: (100 * row["clean"]["value"], 100 * row["robust"]["value"]) for n, row in table.items()
    }
    assert [n for n, line in drawn.items() if line.get_markerfacecolor() == "white"] == ["beaten"]
    steps = next(line for line in first.lines if line.get_drawstyle() == "steps-pre")
    assert steps.get_xydata().tolist() == [[80.0, 60.0], [90.0, 50.0], [95.0, 2.0]]
    # the same model looks the same in both panels, and no two look alike
    look = lambda line: (line.get_color(), line.get_marker())  # noqa: E731
    again = {line.get_label(): line for line in second.lines}
    assert look(again["good"]) == look(drawn["good"])
    assert len({look(line) for line in [*drawn.values(), again["late"]]}) == 5
    assert [t.get_text() for t in figure.legends[0].get_texts()] == [*table, "late"]


def test_pareto_labels_do_not_overlap(tmp_path):
    """Twenty names as long as a recipe's: legend and axes keep apart, and all is on the page."""
    names = [f"mnist5k-linf-trades-awp-{i}" for i in range(20)]
    table = {n: {"clean": cell(0.5 + 0.02 * i), "robust": cell(0.5 - 0.02 * i)} for i, n in enumerate(names)}
    for panels in ({"one": table}, {"one": table, "two": table}):
        figure = plots.pareto(panels)
        figure.savefig(tmp_path / "a.png")
        boxes = [t.get_window_extent() for t in figure.legends[0].get_texts()]
        assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
        assert all(not a.overlaps(axes.get_tightbbox()) for a in boxes for axes in figure.axes)
        assert all(figure.bbox.x0 <= b.x0 and b.x1 <= figure.bbox.x1 and b.y0 >= 0 for b in boxes)
        titles = [axes.get_tightbbox() for axes in figure.axes]
        assert not any(a.overlaps(b) for i, a in enumerate(titles) for b in titles[:i])


def test_pareto_refuses_what_it_cannot_draw():
    with pytest.raises(ValueError, match="no models"):
        plots.pareto({"a": {}})
    with pytest.raises(ValueError, match=r"x, robust.*fraction"):
        plots.pareto({"a": {"x": {"clean": cell(0.5), "robust": cell(50)}}})


def test_minimum_norm_draws_steps_that_fall_at_the_radii():
    found = {"DDN-100": ([0.0, 0.2, 0.5], [0.9, 0.4, 0.0]), "FMN-100": ([0.0, 0.3], [0.9, 0.5])}
    figure = plots.minimum_norm(found, norm="linf", title="digits")
    (axes,) = figure.axes
    drawn = lines(axes)
    assert list(drawn) == list(found) == legend(figure)
    for name, line in drawn.items():
        radii, accuracy = found[name]
        assert line.get_drawstyle() == "steps-post"
        assert list(line.get_xdata()) == pytest.approx([*radii, 0.525])
        assert list(line.get_ydata()) == pytest.approx([100 * v for v in [*accuracy, accuracy[-1]]])
    assert len({to_hex(line.get_color()) for line in drawn.values()}) == 2
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("linf radius (pixel units)", "robust accuracy (%)")
    assert (axes.get_xlim(), axes.get_ylim()) == ((0, pytest.approx(0.525)), (0, 100))
    assert axes.get_title(loc="left") == "digits"
    assert plots.minimum_norm({"nothing found": ([0.0], [1.0])}).axes[0].get_xlim() == (0, 1)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({}, "no curves"),
        ({"a": ([], [])}, "a: 0 radii and 0 accuracies"),
        ({"a": ([0.0, 1.0], [1.0])}, "a: 2 radii and 1 accuracies"),
        ({"a": ([0.5, 1.0], [1.0, 0.0])}, "a: radii must be finite and rise from 0"),
        ({"a": ([0.0, 0.0], [1.0, 0.0])}, "a: radii must be finite and rise from 0"),
        ({"a": ([0.0, math.inf], [1.0, 0.0])}, "a: radii must be finite and rise from 0"),
        ({"a": ([0.0, 1.0], [0.5, 0.6])}, "a: the accuracy must not rise"),
        ({"a": ([0.0], [95])}, "a: accuracy is 95"),
    ],
)
def test_minimum_norm_refuses(found, message):
    with pytest.raises(ValueError, match=message) as caught:
        plots.minimum_norm(found)
    assert "\n" not in str(caught.value)


def test_the_labels_of_a_logarithmic_axis_are_numbers_in_a_page():
    curve = {"title": "", "x": "K", "y": "loss", "log": "xy", "lines": {"a": ([1, 10, 1000], [0.001, 0.1, 1])}}
    text = plots.svg(plots.lines(curve)).decode()
    assert "$" not in text
    assert ">0.001<" in text
    assert ">1000<" in text
