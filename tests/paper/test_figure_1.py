"""The two-class experiment in the plane: its points, its network's data, the clamp's mistake, and the figure."""

import math
import os
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from atent import plots
from atent.data import DataSettings, load
from atent.data.two_class import Embedding, cached, two_class
from atent.methods import PGDAT, TRADES
from atent.models import build
from atent.paper import figure_1, plane
from atent.runs import read_json
from atent.threat import Threat

TINY = plane.Scale(epochs=2, seeds=1, digits=False, limit=40, test_limit=40)
SMALL = Embedding(points=150, perplexity=5.0, iterations=260)


def points_file(path, digits=(5, 8, 3), n=60):
    """A file as `cached` writes it, with a class for every third point."""
    rng = np.random.default_rng(0)
    labels = np.array([digits[i % len(digits)] for i in range(n)])
    z = rng.uniform(-9, 9, (n, 2)).astype(np.float32)
    about = '{"embedding": {"perplexity": 5, "iterations": 250, "seed": 0, "points": 60}}'
    np.savez(path, z=z, digits=labels, about=np.array(about))
    return z, labels


# --- the points --------------------------------------------------------------------------------------------


def test_points_of_a_file_are_split_and_numbered_by_their_place(tmp_path):
    z, labels = points_file(tmp_path / "p.npz")
    source = two_class(str(tmp_path / "p.npz"))
    assert [len(source.train), len(source.test)] == [28, 12]
    ids = torch.cat([source.train.ids, source.test.ids])
    assert sorted(ids.tolist()) == np.flatnonzero(labels != 3).tolist()
    for part in (source.train, source.test):
        assert torch.equal(part.x, torch.from_numpy(z)[part.ids])
        assert part.y.tolist() == [int(labels[i] == 8) for i in part.ids]
    assert source.box == (-10.0, 10.0)
    assert source.about["class_names"] == ["5", "8"]


def test_box_holds_every_point(tmp_path):
    points_file(tmp_path / "p.npz")
    with np.load(tmp_path / "p.npz") as archive:
        held = dict(archive)
    held["z"][0] = (-3.0, 12.3)
    np.savez(tmp_path / "far.npz", **held)
    assert two_class(str(tmp_path / "far.npz")).box == (-13.0, 13.0)


def test_bad_files_are_refused_in_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.npz does not exist"):
        two_class(str(tmp_path / "none.npz"))
    np.savez(tmp_path / "other.npz", x=np.zeros(3))
    with pytest.raises(ValueError, match="not in the file, which contains x"):
        two_class(str(tmp_path / "other.npz"))
    points_file(tmp_path / "fives.npz", digits=(5, 3))
    with pytest.raises(ValueError, match="two-class"):
        two_class(str(tmp_path / "fives.npz"))


def test_embedding_of_mnist_is_cached_by_its_settings(tmp_path):
    root = os.environ.get("ATENT_DATA_ROOT")
    if not root or not (Path(root) / "mnist").is_dir():
        pytest.skip("no mnist under ATENT_DATA_ROOT")
    path = cached(tmp_path, SMALL)
    data = load(DataSettings("two-class", root=str(path), validation=2))
    assert data.about["embedding"]["points"] == 150
    assert 0 < data.about["divergence"] < 5
    labels = load(DataSettings("mnist")).test.y[:150]
    for part in (data.train, data.validation, data.test):
        assert torch.equal(labels[part.ids], torch.where(part.y == 1, 8, 5))
    assert len(data.train) + len(data.validation) + len(data.test) == int(((labels == 5) | (labels == 8)).sum())
    before = path.stat().st_mtime_ns
    assert cached(tmp_path, SMALL) == path
    assert path.stat().st_mtime_ns == before
    again = cached(tmp_path / "again", SMALL)
    assert again.name == path.name
    with np.load(path) as a, np.load(again) as b:
        assert np.array_equal(a["z"], b["z"])
    with pytest.raises(ValueError, match="points must be 16 to"):
        cached(tmp_path, replace(SMALL, points=15))


# --- the network and the mistake ---------------------------------------------------------------------------


def test_network_is_the_published_one():
    model = build("two_class", classes=2, shape=(2,)).double()
    x = torch.tensor([[0.3, -2.0]], dtype=torch.float64)
    weight, bias = model.conv1.weight.detach(), model.conv1.bias.detach()
    # Kernel 2, padding 2: the five windows of (0, 0, a, b, 0, 0).
    windows = torch.tensor([[0, 0], [0, 0.3], [0.3, -2], [-2, 0], [0, 0]], dtype=torch.float64)
    hidden = torch.relu(weight[:, 0] @ windows.T + bias[:, None]).flatten()
    hidden = torch.relu(model.fc1.weight @ hidden + model.fc1.bias)
    torch.testing.assert_close(model(x)[0], model.fc2.weight @ hidden + model.fc2.bias)
    assert sum(p.numel() for p in model.parameters()) == 15_512


@pytest.mark.parametrize("kind", [PGDAT, TRADES])
def test_the_released_clamp_leaves_the_ball(kind):
    torch.manual_seed(0)
    model = build("two_class", classes=2, shape=(2,))
    x, y = torch.tensor([[5.0, -4.0], [0.5, 3.0], [0.4, 0.6]]), torch.tensor([0, 1, 1])
    threat = Threat("linf", 1.0, (-10.0, 10.0))
    method = plane.Elsewhere(threat, kind(replace(threat, box=(0.0, 1.0)), 5, 0.1))
    z = method.adversary(model, x, y, rng=torch.Generator().manual_seed(0))
    # Ball first, clamp last: far points land on the nearest corner of the unit square, whatever the loss.
    assert torch.equal(z[0], torch.tensor([1.0, 0.0]))
    assert z[1, 1] == 1.0
    assert ((z >= 0) & (z <= 1)).all()
    assert threat.distance(z, x).gt(1).tolist() == [True, True, False]
    assert plane.out_of_reach(x, 1.0).tolist() == [True, True, False]
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    corrected = kind(threat, 5, 0.1).adversary(model, x, y, rng=torch.Generator().manual_seed(0))
    assert threat.contains(corrected, x).all()


def test_exhaustive_search_is_right_on_a_straight_boundary():
    class Line(nn.Module):
        def forward(self, x):
            return torch.stack([-x[:, 0], x[:, 0]], 1)

    x = torch.tensor([[0.9, 0.0], [1.1, 0.0], [-1.1, 0.0], [9.9, 3.0]])
    y = torch.tensor([1, 1, 1, 1])
    robust = plane.exhaustive(Line(), x, y, Threat("linf", 1.0, (-10.0, 10.0)))
    assert robust.tolist() == [False, True, False, True]
    # The box cuts the ball: nothing to the left of 0 is left to try.
    assert plane.exhaustive(Line(), x[:1], y[:1], Threat("linf", 1.0, (0.5, 10.0))).all()


# --- the figure --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Stopped before the first training, stopped after the first epoch, then run to its end."""
    path = tmp_path_factory.mktemp("figure-1")
    plane.SCALES["tiny"] = TINY
    said: list[str] = []

    def run(deadline=None):
        return figure_1.run_figure_1("tiny", out=path / "out", runs=path / "runs", deadline=deadline, say=said.append)

    threads = torch.get_num_threads()
    none = run(time.monotonic() - 1)
    early = (path / "out/figure-1.md").read_text()
    first = run(time.monotonic() + 0.05)
    whole = run()
    yield path, none, early, first, whole, run, threads
    del plane.SCALES["tiny"]


def test_a_time_limit_stops_and_the_same_call_goes_on(made):
    path, none, early, first, whole, run, threads = made
    assert not none["complete"]
    assert all(row["ours"] is None for row in none["rows"])
    assert early.count("not measured yet") == 5 * 6
    assert not first["complete"]
    assert whole["complete"]
    assert [row["name"] for row in whole["rows"]] == list(plane.LABELS)
    stamps = {p: p.stat().st_mtime_ns for p in (path / "runs").rglob("*") if p.is_file()}
    assert len(list((path / "runs").rglob("evaluation.json"))) == 6
    again = run()
    assert {p: p.stat().st_mtime_ns for p in (path / "runs").rglob("*") if p.is_file()} == stamps
    assert again["rows"] == whole["rows"]
    assert torch.get_num_threads() == threads


def test_result_counts_what_the_runs_found(made):
    path, _, _, _, whole, _, _ = made
    assert read_json(path / "out/figure-1.json")["rows"] == whole["rows"]
    # Half-moons have no published figures.
    assert all(row["published"] is None for row in whole["rows"])
    for row in whole["rows"]:
        evaluation = read_json(path / "runs/figure-1/tiny" / f"{row['name']}-seed0" / "evaluation.json")
        assert evaluation["clean"]["n"] == 40
        assert row["ours"]["clean"]["mean"] == evaluation["clean"]["value"]
        one = {key: row["ours"][key]["mean"] for key in ("clean", "published", "strong", "grid")}
        assert one["clean"] >= one["published"] >= one["strong"]
        (grid,) = (seed["grid"] for seed in row["seeds"])
        assert (grid["outcomes"].count("1"), len(grid["outcomes"])) == (grid["k"], grid["n"])
        assert row["ours"]["clean"]["low"] <= one["clean"] <= row["ours"]["clean"]["high"]
    leads = {gap["over"]: gap["ours"]["grid"]["mean"] for gap in whole["gaps"]}
    grid = {row["name"]: row["ours"]["grid"]["mean"] for row in whole["rows"]}
    assert leads == {name: pytest.approx(100 * (grid["atent"] - grid[name])) for name in grid if name != "atent"}
    text = (path / "out/figure-1.md").read_text()
    assert "not measured yet" not in text
    assert "half" in text or "moons" in text
    assert (path / "out/figure-1.png").read_bytes().startswith(b"\x89PNG")


def test_differences_that_agree_by_chance_are_known_to_a_point_at_best():
    """Two seeds, each with the same difference of one of 40 points: t(1) x 2.5 / sqrt(2)."""

    def seeds(*counts):
        return [{"seed": i, "keys": ["grid"], "grid": {"value": k / 40, "n": 40}} for i, k in enumerate(counts)]

    (gap,) = figure_1._gaps({"atent": seeds(31, 36), "pgdat": seeds(30, 35)})
    found, half = gap["ours"]["grid"], 12.706204736174698 * 2.5 / math.sqrt(2)
    assert (found["mean"], found["sd"]) == (pytest.approx(2.5), pytest.approx(0))
    assert (found["low"], found["high"]) == (pytest.approx(2.5 - half), pytest.approx(2.5 + half))


def test_other_settings_and_bad_arguments_are_refused(made, tmp_path):
    path = made[0]
    plane.SCALES["tiny"] = replace(TINY, epochs=3)
    try:
        with pytest.raises(ValueError, match="other train settings"):
            figure_1.run_figure_1("tiny", out=tmp_path, runs=path / "runs")
    finally:
        plane.SCALES["tiny"] = TINY
    with pytest.raises(ValueError, match="unknown scale 'papr': did you mean 'paper'"):
        figure_1.run_figure_1("papr", out=tmp_path, runs=tmp_path)
    with pytest.raises(ValueError, match="seeds must be at least 1, got 0"):
        figure_1.run_figure_1("tiny", out=tmp_path, runs=tmp_path, seeds=0)


def test_smoke_needs_no_files_and_the_others_are_the_papers():
    assert not plane.SCALES["smoke"].digits
    for scale in ("laptop", "paper"):
        assert (plane.SCALES[scale].epochs, plane.SCALES[scale].seeds) == (30, 10)
    job = plane.jobs(plane.SCALES["paper"], DataSettings("two-class"), Threat("linf", 1.0, (-10.0, 10.0)))["atent"]
    chain = job.method.chain()
    assert (chain.steps, chain.step_size, chain.start, chain.projection) == (40, 0.1, "zero", "last")


def test_regions_refuse_sizes_that_disagree():
    panel = {"regions": np.zeros((3, 2)), "robust": np.ones(2, bool)}
    x, y = np.zeros((2, 2)), np.zeros(2)
    figure = plots.regions({"a": panel, "b": panel, "c": panel}, [0, 1], [0, 1, 2], x, y, eps=0.2)
    assert len(figure.axes) == 3
    assert figure.axes[0].get_title(loc="left") == "a"
    for bad in ({"regions": np.zeros((2, 3))}, {"robust": np.ones(3, bool)}):
        with pytest.raises(ValueError, match="a: regions"):
            plots.regions({"a": panel | bad}, [0, 1], [0, 1, 2], x, y, eps=0.2)
    with pytest.raises(ValueError, match="no panels"):
        plots.regions({}, [0, 1], [0, 1], x, y, eps=0.2)
