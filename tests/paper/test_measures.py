"""A table's certificates by the sequential test: those of `atent certify`, resumed within a time limit."""

import dataclasses
from pathlib import Path

import pytest

from atent.certify import Sampling, Smoothed, certify_run
from atent.cli import main
from atent.data.described import spans
from atent.experiments import recipes as config
from atent.experiments.target import load_target
from atent.paper import engine
from atent.paper.engine import Bench, measured
from atent.paper.layout import Measure, Training
from atent.paper.scales import CIFAR, PAPER, SCALES
from atent.paper.tables import TABLES
from atent.train.interrupt import Interrupted

MADE = Measure("smoothing", 12, sigma=0.25, samples=2000, predicted=500, radius="3/5")


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """A bench whose trainings take some seconds."""
    monkeypatch.chdir(tmp_path)
    scale = dataclasses.replace(
        SCALES["smoke"],
        changes={
            "data": {"limit": 512, "test_limit": 40}, "optimizer": {"lr": 0.1},
            "train": {"epochs": 6, "batch_size": 32, "validate_limit": 10, "device": "cpu", "validate_attack": "FGSM"},
        },
    )  # fmt: skip
    return Bench(scale, Path("runs"), config.job, config.read_recipe)


def test_the_measure_is_the_certificate_of_the_command_and_predict(bench, capsys):
    path = engine.train(bench, Training("digits-l2-gaussian"), 0)
    options = ["--sigma", "0.25", "--radius", "0.6", "--n", "2000", "--limit", "12", "--subset", "stratified"]
    assert main(["certify", str(path), *options, "--quiet"]) == 0
    capsys.readouterr()
    made = {file: file.read_text() for file in path.glob("certificate*.csv")}
    engine.measure(bench, path, [MADE])
    # The images were certified already: nothing is computed again, and there is no second file.
    assert {file: file.read_text() for file in path.glob("certificate*.csv")} == made
    found = measured(path)[MADE.key]

    who = engine._some(load_target(str(path), attacks=()), MADE)
    x, y, ids = who.test()
    rows = certify_run(who.model, x, y, Sampling(0.25, n=2000, radius=0.6), ids=ids).rows
    classes = dict(zip(ids.tolist(), Smoothed(who.model, 0.25).predict(x, 500, ids=ids).tolist()))
    assert found["outcomes"] == {
        "ids": spans(sorted(ids.tolist())),
        "clean": "".join(str(int(row.clean == row.label)) for row in rows),
        "smoothed": "".join(str(int(classes[row.idx] == row.label)) for row in rows),
        "certified": "".join(str(row.correct) for row in rows),
    }
    for name in ("clean", "smoothed", "certified"):
        assert found[name]["k"] == found["outcomes"][name].count("1")
    # The three accuracies differ on this network, so that one taken for another would be seen.
    assert len({found["outcomes"][name] for name in ("clean", "certified")}) == 2
    assert (found["predicted"], found["radius"], found["draws"]["n"]) == (500, 0.6, 2000)


def test_a_certificate_ends_at_the_time_limit_and_goes_on(bench, monkeypatch):
    path = engine.train(bench, Training("digits-l2-gaussian"), 0)
    monkeypatch.setattr("atent.certify.certificate.TOGETHER", 4)

    def late(self):
        table = path / "certificate.csv"
        if table.is_file() and len(table.read_text().splitlines()) > 4:
            raise Interrupted("time limit reached: repeating the command resumes")

    with monkeypatch.context() as patch:
        patch.setattr(Bench, "check", late)
        with pytest.raises(Interrupted):
            engine.measure(bench, path, [MADE])
    assert not (path / engine.MEASURES).exists()
    begun = (path / "certificate.csv").read_text()
    assert 1 < len(begun.splitlines()) < 13
    engine.measure(bench, path, [MADE])
    assert (path / "certificate.csv").read_text().startswith(begun)
    assert measured(path)[MADE.key]["certified"]["n"] == 12


def test_table_s2_of_cifar10_takes_the_sequential_test():
    def columns(scale):
        (block,) = TABLES["table-s2"](scale).blocks
        return {column.key: column.protocol for column in block.columns}, block.rows

    told, rows = columns(CIFAR)
    measures = {cell.measure for row in rows for cell in row.cells.values() if cell.measure}
    keys = {m.key for m in measures if m.kind == "smoothing"}
    assert keys == {"smoothing, sigma 0.12, 1000 and at most 100000 draws, l2 0.435, stratified 200"}
    assert told["clean"].startswith("PREDICT of Cohen et al. 2019, 1,000 samples of noise 0.12")
    assert told["certified"].startswith("sequential test of at most 100,000 samples of noise 0.12")
    # Elsewhere all samples serve both, and the key is that of measures that are there already.
    told, rows = columns(PAPER)
    assert {
        m.measure.key for row in rows for m in row.cells.values() if m.measure and m.measure.kind == "smoothing"
    } == {"smoothing, sigma 0.12, 100000 draws, l2 0.435, stratified 500"}
    assert told["certified"].startswith("CERTIFY of Cohen et al. 2019, 100,000 samples")
