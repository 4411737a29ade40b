"""`atent reproduce`: the published figures, the tables as data, and the engine from end to end on tiny networks."""

import dataclasses
import json
import re
import shutil
import signal
import statistics
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from commands import given

from atent.attacks import ATTACKS, AutoAttack
from atent.attacks.spec import parse
from atent.certify.limits import check_radius, linf_radius
from atent.cli import main
from atent.cli.words import seconds
from atent.data.described import unspan
from atent.evaluate import evaluate
from atent.experiments import recipes as config
from atent.experiments.target import load_target
from atent.messages import once
from atent.paper import engine, result, timing
from atent.paper import reproduce as room
from atent.paper.engine import Bench, job, measured
from atent.paper.layout import Measure, Training
from atent.paper.published import Figure, published, value
from atent.paper.scales import LAPTOP, PAPER, SCALES, SMOKE
from atent.paper.tables import NAMES, TABLES, claimed
from atent.runs import manifest, read_json, read_jsonl
from atent.threat import Threat, radius
from atent.train.interrupt import Interrupted, stop_requests

UNREACHED = {
    ("mnist-linf", "mart"): "in no table of the supplement; `atent train mnist5k-linf-mart` shows the method",
    ("cifar10-linf", "mart"): "in no table of the supplement; `atent train cifar10-linf-mart` makes it",
    ("cifar10-linf", "mma"): "in no table of the supplement; no recipe for linf MMA on CIFAR-10",
    ("cifar10-linf", "standard"): "in no table of the supplement; the first row of `finetune` is that network",
    ("cifar10-linf", "atent"): "in no table of the supplement; `table-s3` evaluates that network",
    ("cifar10-linf", "trades"): "in no table of the supplement; `atent train cifar10-linf-trades` makes it",
    ("cifar10-linf", "pgdat"): "in no table of the supplement; `atent train cifar10-linf-pgdat` makes it",
}
"""Published rows that no command here reproduces, with the reason."""

# Made in files of their own: every row of these is claimed there.
ELSEWHERE = ("table-s4", "figure-s1", "figure-1")

# The supplement's tables, typed a second time: row, then its figures from left to right.
SUPPLEMENT = {
    "table-s1": """
        pgdat 83.25 66.69 46.11
        mma 88.92 66.81 37.22
        atent 85.44 65.12 47.38
        trades-smoothing 75.13 61.03
        atent-smoothing 72.1 64.53""",
    "table-s2": """
        crown-ibp 72 54
        dual 68.3 53.9
        smoothadv 82.1 60.8
        trades-smoothing-110 78.7 62.6
        trades-smoothing 78.2 58.1
        atent-smoothing 72.2 55.41""",
    "table-s3": """
        pgd 79.83 73.35 57.23 39.37
        langevin 79.95 73.76 59.69 47.53""",
    "table-s4": """
        atent-10 282.04 1128.21
        atent-5 142.47 572.85
        trades 2606.43 1577.29
        pgdat 241.79 615.48""",
    "figure-1": """
        atent 93.02 73.17
        trades 88.55 72.63
        pgdat 86.23 72.09
        standard 94.63 68.52""",
}
SPREADS = {"atent-10": (1.65, 5.29), "atent-5": (1.18, 4.93), "trades": (2.64, 1.45), "pgdat": (0.79, 4.09)}


# ---- what is published


@pytest.mark.parametrize("name", SUPPLEMENT)
def test_published_figures_are_the_supplements(name):
    lines = [line.split() for line in SUPPLEMENT[name].strip().splitlines()]
    assert {row: [v.value for v in r.values.values()] for row, r in published()[name].rows.items()} == {
        row: [float(v) for v in values] for row, *values in lines
    }


def test_published_rows_say_whence_they_are():
    assert {"figure-s1", "finetune", "mnist-linf", "mnist-l2"} < set(published())
    for name, table in published().items():
        assert len(table.title) > 20
        for key, row in table.rows.items():
            assert re.search(r"supplement|main paper|authors", row.source), (name, key)
            assert row.label
            assert row.network
            assert all(v.value > 0 and (v.high is None or v.high > v.value) for v in row.values.values())
    spreads = {key: tuple(v.sd for v in row.values.values()) for key, row in published()["table-s4"].rows.items()}
    assert spreads == SPREADS
    assert value("finetune", "atent", "robust") == Figure(52.1)
    assert str(value("mnist-l2", "atent", "robust")) == "77-79.3"
    assert str(value("table-s4", "pgdat", "l2")) == "241.79 ± 0.79"
    assert value("table-s1", "atent-smoothing", "full") is None


def test_every_published_cell_is_claimed_or_said_to_be_out_of_reach():
    cells = {(t, r, c) for t, table in published().items() for r, row in table.rows.items() for c in row.values}
    made = {cell for cell in cells if cell in claimed() or cell[0] in ELSEWHERE}
    assert {cell[:2] for cell in cells - made} == set(UNREACHED)
    assert not {cell[:2] for cell in made} & set(UNREACHED)
    assert all(len(why) > 10 for why in UNREACHED.values())
    # A published figure appears once in a table, not beside two measured ones.
    for make in TABLES.values():
        named = [row.published for row in make(PAPER).rows() if row.published]
        assert len(named) == len(set(named))


# ---- tables as data


@pytest.mark.parametrize("scale", SCALES.values(), ids=lambda s: s.name)
@pytest.mark.parametrize("name", TABLES)
def test_tables_refer_to_recipes_that_exist(name, scale, capsys):
    once.cache_clear()
    table = TABLES[name](scale)
    bench = Bench(scale, Path("runs"), config.job, config.read_recipe)
    for training in table.trainings():
        made = job(bench, training, 3)
        assert made.train.seed == 3
        assert made.data.name == {"smoke": "digits", "laptop": "mnist"}.get(scale.name, made.data.name)
        if scale.name == "cifar" and name not in scale.without:
            assert made.data.name == "cifar10"
    # A scale's settings are those of all its trainings.
    assert not capsys.readouterr().err
    for block in table.blocks:
        columns = {column.key for column in block.columns}
        for row in block.rows:
            assert set(row.cells) == columns
            for cell in row.cells.values():
                assert (cell.training is None) == (cell.measure is None) == bool(cell.why)
    names = [training.name for training in table.trainings()]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("scale", SCALES.values(), ids=lambda s: s.name)
def test_measures_are_ones_that_can_be_made(scale):
    """Attacks parse, certificates can reach their radius, the linf ball of the bounds lies within the l2 one."""
    seen = 0
    for make in TABLES.values():
        for row in make(scale).rows():
            for m in (cell.measure for cell in row.cells.values() if cell.measure):
                seen += 1
                if m.kind == "attack":
                    parse(m.attack, None, ATTACKS)
                if m.kind == "smoothing":
                    check_radius(float(m.radius), m.samples, 0.001, m.sigma)
                assert m.n <= (scale.strong if "AutoAttack" in m.attack else scale.images)
    assert seen > 60
    dim = {"smoke": 64, "laptop": 784}.get(scale.name, 3072)
    assert linf_radius(scale.smoothing, dim) == pytest.approx(radius(scale.bounded), rel=0.01)
    # The radii of the sweep are those of the paper, by that of training.
    assert [radius(r) / radius(scale.linf) for r in scale.sweep] == pytest.approx([0.25, 0.5, 1, 1.5], rel=0.02)


def test_scales_are_what_was_asked_for():
    assert SMOKE.strong <= 16
    assert (LAPTOP.seeds, LAPTOP.images, LAPTOP.certified) >= (3, 1000, 1000)
    (pgd, weak, aa) = (m.attack for _, m in _block_one(PAPER, "atent"))
    assert parse(pgd, None, ATTACKS).resolved_step == pytest.approx(0.25)
    assert parse(pgd, None, ATTACKS).start == "cube"
    assert parse(weak, None, ATTACKS).resolved_step == pytest.approx(0.05)
    assert parse(aa, None, ATTACKS) == AutoAttack(Threat("l2", 1.0))
    assert not LAPTOP.cheaper


def _block_one(scale, key):
    row = next(row for row in TABLES["table-s1"](scale).rows() if row.key == key)
    return [(k, c.measure) for k, c in row.cells.items() if k.startswith("full")]


def test_a_line_through_points():
    """On a line the fit is that line, off it that of least squares."""
    import numpy

    line = timing.fit([2, 5, 10], [0.5 + 0.25 * k for k in (2, 5, 10)])
    assert (line.slope, line.intercept) == pytest.approx((0.25, 0.5))
    k, s = [2, 5, 10, 15, 20], [1.0, 1.4, 2.9, 3.1, 5.2]
    line = timing.fit(k, s)
    slope, intercept = numpy.polyfit(k, s, 1)
    assert (line.slope, line.intercept) == pytest.approx((slope, intercept))
    with pytest.raises(ValueError, match="three points"):
        timing.fit([1, 2], [1, 2])


# ---- the engine


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, and a smoke scale so small that a table takes a second or two."""
    monkeypatch.chdir(tmp_path)
    tiny = dataclasses.replace(
        SMOKE, images=20, strong=4, certified=4, timed=(2, 1), cheaper="steps=2, targets=2, queries=5",
        changes={
            "data": {"limit": 64, "test_limit": 20}, "optimizer": {"lr": 0.02},
            "train": {"epochs": 2, "batch_size": 32, "validate_limit": 10, "device": "cpu", "validate_attack": "FGSM"},
        },
    )  # fmt: skip
    monkeypatch.setitem(SCALES, "smoke", tiny)
    return tmp_path


def run(capsys, *args):
    status = main(["reproduce", *args])
    out, err = capsys.readouterr()
    return status, out, err


def stamps(path):
    return {p: p.stat().st_mtime_ns for p in path.rglob("*") if p.is_file() and not p.name.endswith(".lock")}


def test_a_table_from_end_to_end(here, capsys):
    status, out, err = run(capsys, "table-s1", "--only", "pgdat", "--seeds", "2")
    assert status == 0, err
    assert "written: results/table-s1.md, results/table-s1.json, results/table-s1.png" in out
    runs = here / "runs" / "reproduce" / "smoke"
    assert sorted(p.name for p in runs.iterdir() if p.is_dir()) == ["digits-l2-pgdat-seed0", "digits-l2-pgdat-seed1"]
    found = read_json(here / "results" / "table-s1.json")
    first = found["blocks"][0]["rows"][0]
    cells = first["cells"]
    assert {key: cell["published"] for key, cell in cells.items()} == {
        "clean": "83.25", "half-published": "66.69", "half-weak": None, "half-autoattack": None,
        "full-published": "46.11", "full-weak": None, "full-autoattack": None,
    }  # fmt: skip
    kept = [measured(runs / f"digits-l2-pgdat-seed{k}") for k in (0, 1)]
    text = "PGD(steps=10, start=cube, norm=l2, eps=0.5)"
    mine = cells["half-published"]["ours"]
    shares = [k[f"{text}, stratified 20"]["share"]["value"] for k in kept]
    assert mine["value"] == pytest.approx(statistics.fmean(shares))
    assert mine["sd"] == pytest.approx(statistics.stdev(shares))
    assert mine["low"] <= mine["value"] <= mine["high"]
    assert (mine["n"], mine["seeds"], mine["scale"]) == (20, [0, 1], "smoke")
    assert mine["protocol"].startswith(text)
    assert mine["hardware"]
    assert mine["commit"]
    assert cells["full-autoattack"]["ours"]["n"] == 4
    same = [k[f"{text}, stratified 4"]["share"]["value"] for k in kept]
    reported = cells["half-autoattack"]["ours"]["same_images"]
    assert (reported["attack"], reported["value"], reported["each"]) == (text, statistics.fmean(same), same)
    # Each figure has the outcome of each image: networks and attacks are compared image by image.
    for one in (mine, cells["clean"]["ours"], cells["full-autoattack"]["ours"], reported):
        counts = [each.count("1") for each in one["outcomes"]["each"]]
        images = len(unspan(one["outcomes"]["ids"]))
        assert {len(each) for each in one["outcomes"]["each"]} == {images}
        assert [k / images for k in counts] == one["each"]
    # Omitted rows have the reason, and no published figure is in the measured column.
    other = found["blocks"][0]["rows"][1]["cells"]["clean"]
    assert (other["ours"], other["why"], other["published"]) == (None, "not measured yet", "88.92")
    assert not found["complete"]
    page = (here / "results" / "table-s1.md").read_text()
    assert "Not complete: the command asks for the rows pgdat, and not for the others." in page
    for unfinished in ({"only": []}, {"seeds": [0, 1, 2]}):
        assert "Not complete: repeating the command resumes." in result.markdown({**found, **unfinished})
    for part in ("83.25", "not measured yet", "radii are rescaled", "Hardware: ", "atent reproduce table-s1 --only"):
        assert part in page
    assert (here / "results" / "table-s1.png").read_bytes().startswith(b"\x89PNG")

    # The same again trains and measures nothing.
    before = stamps(here / "runs")
    status, out, _ = run(capsys, "table-s1", "--only", "pgdat", "--seeds", "2")
    assert status == 0
    assert "train " not in out
    assert "measure " not in out
    assert stamps(here / "runs") == before

    # A run of other settings is not taken for this one.
    path = runs / "digits-l2-pgdat-seed0" / "config.json"
    saved = read_json(path)
    saved["method"]["steps"] = 7
    manifest.write_json(path, saved)
    status, _, err = run(capsys, "table-s1", "--only", "pgdat")
    assert status == 2
    assert len(err.strip().splitlines()) == 1
    assert "method.steps 7, not 10" in err
    assert "choose other --runs" in err


def test_a_time_limit_stops_and_the_same_command_goes_on(here, capsys, monkeypatch):
    """Stopped in the middle of a training: what comes of it in the end is what an unbroken command gives."""
    command = ["table-s1", "--only", "pgdat"]
    assert run(capsys, *command, "--runs", "whole", "--out", "whole")[0] == 0
    made = engine.run_job

    def stopped(job, path, **more):
        """As the alarm would, ask to stop after the first epoch."""
        return made(job, path, **{**more, "report": lambda row: signal.raise_signal(signal.SIGTERM)})

    monkeypatch.setattr(engine, "run_job", stopped)
    status, _, err = run(capsys, *command)
    assert (status, err) == (143, "atent: interrupted: repeating the command resumes\n")
    path = here / "runs" / "reproduce" / "smoke" / "digits-l2-pgdat-seed0"
    assert len(read_jsonl(path / "metrics.jsonl")) == 1
    assert not (path / "evaluation.json").exists()
    assert not read_json(here / "results" / "table-s1.json")["complete"]
    monkeypatch.setattr(engine, "run_job", made)

    # No time at all: nothing is trained, and the table says what is there.
    with pytest.raises(Interrupted, match="time limit reached: repeating the command resumes"):
        room.reproduce("table-s1", "smoke", build=config.job, read=config.read_recipe, time_limit=0, only=["pgdat"])
    assert not (path / "evaluation.json").exists()
    assert main(["reproduce", *command, "--time-limit", "10m"]) == 0
    assert "resumes" in capsys.readouterr().out
    unbroken = measured(here / "whole" / "smoke" / path.name)
    assert {k: m["share"] for k, m in measured(path).items()} == {k: m["share"] for k, m in unbroken.items()}
    assert len(unbroken) == 9


def test_measures_stop_too(here, monkeypatch):
    """A measure asks whether the time is up while it works, and keeps what is finished."""
    bench = Bench(SCALES["smoke"], Path("runs"), config.job, config.read_recipe)
    path = engine.train(bench, Training("digits-linf-standard"), 0)
    late = dataclasses.replace(bench, deadline=time.monotonic() - 1)
    wanted = [Measure("clean", 20), Measure("attack", 20, attack="FGSM(norm=linf, eps=0.1)")]
    engine.measure(bench, path, wanted[:1])
    with pytest.raises(Interrupted):
        engine.measure(late, path, wanted)
    assert list(measured(path)) == [wanted[0].key]
    times = iter([0, 0, 0, 2])
    with monkeypatch.context() as patch:
        # The engine's clock alone: others look at theirs as often as they like.
        patch.setattr(engine, "time", SimpleNamespace(**{**vars(time), "monotonic": lambda: next(times, 2)}))
        with pytest.raises(Interrupted):
            engine.measure(dataclasses.replace(bench, deadline=1), path, wanted)
    assert list(path.glob("measure-*.jsonl"))
    engine.measure(bench, path, wanted)
    assert list(measured(path)) == [m.key for m in wanted]
    assert not list(path.glob("measure-*.jsonl"))


def test_the_alarm_rings_at_the_deadline_only():
    with stop_requests() as asked, engine.alarm(time.monotonic() + 0.05):
        until = time.monotonic() + 20
        while not asked() and time.monotonic() < until:
            time.sleep(0.02)
        assert asked()
    with stop_requests() as asked:
        with engine.alarm(time.monotonic() + 20):
            (timer,) = (t for t in threading.enumerate() if isinstance(t, threading.Timer))
        timer.join(10)
        assert not timer.is_alive()
        assert not asked()


def test_smoothing_and_bounds(here, capsys):
    """Table S2: three accuracies that are not one another's, and rows that have no smoothed network."""
    status, _, err = run(capsys, "table-s2", "--only", "gaussian", "crown-ibp", "trades-smoothing-110")
    assert status == 0, err
    rows = {row["key"]: row for row in read_json("results/table-s2.json")["blocks"][0]["rows"]}
    kept = measured(Path("runs/reproduce/smoke/digits-l2-gaussian-seed0"))
    (content,) = kept.values()
    cells = rows["gaussian"]["cells"]
    shown = {"base": "clean", "clean": "smoothed", "certified": "certified"}
    for key, name in shown.items():
        assert cells[key]["ours"]["value"] == content[name]["value"]
        assert cells[key]["published"] is None
        outcomes = cells[key]["ours"]["outcomes"]["each"]
        assert [each.count("1") / len(each) for each in outcomes] == cells[key]["ours"]["each"]
    # What is certified is classified correctly.
    certified, smoothed = (cells[key]["ours"]["outcomes"]["each"][0] for key in ("certified", "clean"))
    assert all(c <= s for c, s in zip(certified, smoothed, strict=True))
    assert cells["seconds"]["ours"]["value"] == content["seconds"] > 0
    assert cells["certified"]["ours"]["value"] <= cells["clean"]["ours"]["value"]
    bounds = rows["crown-ibp"]["cells"]
    assert bounds["clean"]["ours"] is None
    assert bounds["clean"]["why"].startswith("not reached: bounds verify")
    assert bounds["certified"]["published"] == "54"
    (verified,) = bounds["certified"]["ours"]["outcomes"]["each"]
    assert verified.count("1") / len(verified) == bounds["certified"]["ours"]["value"]
    assert bounds["certified"]["ours"]["value"] <= bounds["base"]["ours"]["value"]
    # A cell without a figure at this scale has the reason, and keeps the published figure in its own column.
    other = rows["trades-smoothing-110"]["cells"]["certified"]
    assert (other["ours"], other["published"]) == (None, "62.6")
    assert other["why"].startswith("not reached: ")
    page = Path("results/table-s2.md").read_text()
    line = next(line for line in page.splitlines() if line.startswith("| TRADES smoothing, ResNet-110"))
    assert line.count("n/a") == 4
    assert "78.7" in line


def test_fine_tuning_begins_with_the_standard_network_of_the_same_seed(here, capsys):
    status, out, err = run(capsys, "finetune", "--only", "pgdat", "--seeds", "2")
    assert status == 0, err
    runs = Path("runs/reproduce/smoke")
    for seed in (0, 1):
        saved = read_json(runs / f"digits-finetune-pgdat-seed{seed}" / "config.json")
        assert saved["model"]["weights"] == str(runs / f"digits-linf-standard-seed{seed}")
    order = [line.split()[1] for line in out.splitlines() if line.startswith("train ")]
    assert order[:2] == ["digits-linf-standard-seed0", "digits-finetune-pgdat-seed0"]
    # The standard-trained network is trained as a start, and not measured: no row of it was asked for.
    assert not measured(runs / "digits-linf-standard-seed0")


def test_seconds_per_epoch(here, capsys, monkeypatch):
    status, _, err = run(capsys, "table-s4")
    assert status == 0, err
    found = read_json("results/table-s4.json")
    assert found["complete"]
    rows = {row["key"]: row["cells"] for row in found["blocks"][0]["rows"]}
    assert rows["atent-10"]["linf"]["published"] == "1128.21 ± 5.29"
    for norm in timing.NORMS:
        times = found["timings"][norm]
        seconds = {k: statistics.fmean(times["rows"][f"atent-{k}"]["cpu_seconds"]) for k in timing.K}
        assert rows["atent-10"][f"{norm}-cpu"]["ours"]["value"] == pytest.approx(seconds[10])
        clock = times["rows"]["trades"]["seconds"]
        assert rows["trades"][norm]["ours"]["value"] == pytest.approx(statistics.fmean(clock))
        assert seconds[20] > seconds[2]
        assert found["fit"][norm]["slope"] == pytest.approx(timing.fit(timing.K, list(seconds.values())).slope)
        ten, five = (times["rows"][f"atent-{k}"]["cpu_seconds"] for k in (10, 5))
        ratio = found["ratio"][norm]
        assert ratio["value"] == pytest.approx(statistics.geometric_mean(a / b for a, b in zip(ten, five)))
        assert ratio["low"] < ratio["value"] < ratio["high"]
        assert found["exponent"][norm]["low"] <= found["exponent"][norm]["value"] <= found["exponent"][norm]["high"]
        assert {row["batch_size"] for row in times["rows"].values()} == {32}
        assert {row["batches_per_epoch"] for row in times["rows"].values()} == {2}
        assert {row["steps"] for row in times["rows"].values()} == {*timing.K, 10}
    assert "with a free exponent K^" in Path("results/table-s4.md").read_text()
    assert Path("results/table-s4.png").is_file()
    # What was timed together stays together.
    monkeypatch.setattr(timing, "_Rig", None)
    assert run(capsys, "table-s4")[0] == 0


def test_training_curves(here, capsys, monkeypatch):
    """The test curve has every epoch, and its last point is what the last weights score."""
    status, _, err = run(capsys, "figure-s1", "--seeds", "2")
    assert status == 0, err
    found = read_json("results/figure-s1.json")
    assert found["complete"]
    assert found["seeds"] == [0, 1]
    epochs = found["epochs"]
    assert [e["epoch"] for e in epochs] == [1, 2, 3, 4]
    assert found["decay"] == 3
    shares = []
    for seed in (0, 1):
        path = Path(f"runs/reproduce/smoke/figure-s1-digits-seed{seed}")
        who = load_target(str(path), attacks=("PGD(steps=10)",), which="last", limit=20)
        x, y, ids = who.test()
        shares.append(evaluate(who.model, x, y, who.attacks, ids=ids).worst["value"])
        assert read_json(path / "config.json")["train"]["select"] == "auto"
    assert epochs[-1]["test_robust"] == pytest.approx(statistics.fmean(shares))
    for epoch in epochs:
        test = epoch["test"]
        assert test["seeds"] == [0, 1]
        assert statistics.fmean(test["each"]) == pytest.approx(epoch["test_robust"])
        assert [each.count("1") / test["n"] for each in test["outcomes"]["each"]] == test["each"]
    assert epochs[-1]["test"]["each"] == shares
    assert found["peak"]["test_robust"] == max(e["test_robust"] for e in epochs)
    assert Path("results/figure-s1.png").is_file()
    assert "chosen on the validation split" in " ".join(Path("results/figure-s1.md").read_text().split())


@pytest.mark.parametrize(
    ("args", "parts"),
    [
        ([], ["no table given"]),
        (["table-s5"], ["unknown table 'table-s5'", "table-s"]),
        (["table-s1", "--scale", "laptp"], ["laptop"]),
        (["table-s1", "--seeds", "0"], ["seeds", "at least 1", "0"]),
        (["table-s1", "--time-limit", "soon"], ["soon", "10m"]),
        (["table-s1", "--time-limit=0"], ["10m"]),
        (["table-s1", "--only", "pgdt"], ["unknown row of table-s1 'pgdt'", "pgdat"]),
        (["table-s4", "--only", "trades"], ["--only", "table-s4"]),
        (["table-s1", "--nope"], ["--nope"]),
    ],
)
def test_bad_input_is_one_line(here, capsys, args, parts):
    status, _, err = run(capsys, *args) if args else (main(["reproduce"]), *capsys.readouterr())
    assert status == 2
    assert len(err.strip().splitlines()) == 1, err
    for part in parts:
        assert part in err
    assert not Path("runs").exists()


def test_a_result_of_another_scale_stays(here, capsys):
    Path("results").mkdir()
    Path("results/table-s1.json").write_text('{"scale": "laptop"}')
    status, _, err = run(capsys, "table-s1")
    assert status == 2
    assert "is of scale laptop" in err
    assert "results/smoke" in err
    assert Path("results/table-s1.json").read_text() == '{"scale": "laptop"}'


def test_all_is_every_table(here, capsys, monkeypatch):
    """`all` goes through every name, in order, and stops at the first that is out of time."""
    seen = []
    for registry in ("_MAKE", "_WRITE"):
        monkeypatch.setattr(room, registry, {})
    monkeypatch.setattr(room, "_make_table", lambda bench, name, seeds, only: seen.append(name))
    monkeypatch.setattr(room, "_write_table", lambda bench, name, *more: [Path(f"{name}.md")])
    monkeypatch.setattr(room, "_figure_1", lambda bench, out, seeds: seen.append("figure-1") or [Path("figure-1.md")])
    status, out, _ = run(capsys, "all")
    assert status == 0
    assert seen == list(NAMES)
    assert all(f"{name}.md" in out for name in NAMES)


def test_times_are_read_as_they_are_said():
    for text, expected in {"9m": 540, "90s": 90, "45": 45, "1h30m": 5400, "2h": 7200}.items():
        assert seconds(given("reproduce", "all", "--time-limit", text)["time_limit"], "--time-limit") == expected
    assert given("reproduce", "all")["time_limit"] is None


def test_a_cell_is_written_for_people():
    made = {"value": 0.5, "sd": 0.01, "low": 0.4, "high": 0.6, "unit": "%"}
    assert result.text({"ours": made, "why": ""}) == "50.0 ± 1.0 [40.0, 60.0]"
    assert result.text({"ours": {**made, "unit": "s", "value": 2.5, "sd": 0.25}, "why": ""}) == "2.50 ± 0.25"
    assert result.text({"ours": None, "why": "not reached: one network"}) == "n/a"


def test_nothing_of_the_paper_is_in_our_column():
    """No cell of ours is filled in from the paper: a cell without a measure has no value at any scale."""
    bench = Bench(SMOKE, Path("nowhere"), config.job, config.read_recipe)
    found = result.collect(bench, TABLES["table-s3"](SMOKE), [0])
    cells = [cell for block in found["blocks"] for row in block["rows"] for cell in row["cells"].values()]
    assert all(cell["ours"] is None and cell["why"] == "not measured yet" for cell in cells)
    assert sum(cell["published"] is not None for cell in cells) == 8
    assert not found["complete"]
    # Blocks with columns of one name each say their own protocol.
    page = result.markdown(result.collect(bench, TABLES["mnist"](SMOKE), [0]))
    assert "PGD-40: linf 0.15, one start; " in page
    assert "PGD-40: l2 1.0, one start, start cube; " in page


def test_the_readmes_block_is_made_from_the_results(here, capsys):
    """The block has the figures of the files, without smoke; the text around it is unchanged."""
    from atent.paper.summary import BEGIN, END, block, main, refresh

    assert run(capsys, "finetune", "--only", "benign")[0] == 0
    found = read_json("results/finetune.json")
    Path("results/laptop").mkdir()
    Path("results/laptop/finetune.json").write_text(json.dumps({**found, "scale": "laptop"}))
    Path("results/smoke").mkdir()
    Path("results/smoke/finetune.json").write_text(json.dumps(found))
    text = block(Path("results"), Path("docs"))
    mine = found["blocks"][0]["rows"][0]["cells"]["clean"]
    assert result.text(mine) in text
    assert text.count(found["title"]) == 1
    assert "not complete" in text
    Path("docs").mkdir()
    page = Path("docs/page.md")
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    assert main([str(page)]) == 0
    assert page.read_text() == f"before\n{text}\nafter\n"
    with pytest.raises(ValueError, match="needs one line"):
        refresh("no marks", Path("results"), Path("docs"))


def test_the_page_says_what_the_results_say():
    from atent.paper.summary import BEGIN, refresh

    root = Path(__file__).parents[2]
    text = (root / "docs" / "reproduce.md").read_text()
    if BEGIN not in text:
        assert not any((root / "results" / scale / "table-s1.json").is_file() for scale in ("laptop", "paper"))
        pytest.skip("no table of the paper is in results/ yet")
    assert text == refresh(text, root / "results", root / "docs")


def test_a_run_that_another_command_holds_is_waited_for(tmp_path):
    path, said = tmp_path / "run", []
    first = Bench(SCALES["smoke"], tmp_path, config.job, config.read_recipe, say=said.append)
    late = dataclasses.replace(first, deadline=time.monotonic())
    taken, done = threading.Event(), threading.Event()

    def hold():
        with engine._turn(first, path):
            taken.set()
            done.wait(60)

    other = threading.Thread(target=hold)
    other.start()
    assert taken.wait(60)
    # Another command on the same run waits until its time is up.
    with pytest.raises(Interrupted), engine._turn(late, path):
        pass
    assert [line.split()[0] for line in said] == ["wait"]
    with engine._turn(late, tmp_path / "other"):
        pass
    done.set()
    other.join()
    with engine._turn(late, path):
        pass


def test_settings_that_the_trainings_of_a_scale_share_are_not_reported(tmp_path, capsys):
    """The peak of a cyclic schedule, in the configuration of the one training with another schedule, too."""
    bench = Bench(SCALES["cifar"], tmp_path, config.job, config.read_recipe)
    training = Training("cifar10-linf-atent")
    folder = bench.path(training, 0)
    folder.mkdir(parents=True)
    for name in ("config.json", "evaluation.json"):
        shutil.copy(Path(__file__).parents[2] / "results/cifar/cifar10-linf-atent" / name, folder)
    once.cache_clear()
    assert engine.stage(engine.run_of(bench, training, 0), bench.build) == "finished"
    assert "has no effect" not in capsys.readouterr().err
