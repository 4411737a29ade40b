"""Tables: a CSV file, or a folder of two, as data."""

import csv
import gzip
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from kit import fails

from atent import Threat
from atent.attacks import PGD
from atent.cli import main
from atent.cli.jobs import recipe_job
from atent.data import DataSettings, load
from atent.experiments.pipeline import run_job
from atent.experiments.plan import Run, agree, state
from atent.experiments.recipes import job
from atent.experiments.recorded import recorded_data
from atent.experiments.validated import verify
from atent.methods import PGDAT, Standard
from atent.models import build
from atent.train import TrainSettings, fit


def write(path, rows, head=("length", "width", "constant", "label")):
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return str(path)


@pytest.fixture
def rows():
    """Three classes of words around three centres; columns of very different size, one that never changes."""
    g = np.random.default_rng(0)
    centres = {"setosa": (0.1, 3000.0), "versicolor": (0.3, 1000.0), "virginica": (0.6, 2500.0)}
    names = [name for name in centres for _ in range(60)]
    return [[a + 0.03 * g.normal(), b + 100 * g.normal(), 7, name] for name in names for a, b in [centres[name]]]


def numbers(rows):
    return np.array([row[:3] for row in rows], dtype=float)


def test_one_file_in_units_of_its_range(tmp_path, rows):
    data = load(DataSettings("table", write(tmp_path / "flowers.csv", rows)))
    assert (data.classes, data.shape, data.box) == (3, (3,), (0.0, 1.0))
    assert data.about["class_names"] == ["setosa", "versicolor", "virginica"]
    assert [len(s) for s in (data.train, data.validation, data.test)] == [130, 14, 36]
    assert torch.bincount(data.test.y).tolist() == [12, 12, 12]
    seen = torch.cat([data.train.x, data.validation.x])
    assert seen[:, :2].min(0).values.tolist() == [0, 0]
    assert seen[:, :2].max(0).values.tolist() == [1, 1]
    assert not seen[:, 2].any()
    assert ((data.test.x >= 0) & (data.test.x <= 1)).all()
    # Each value returns to that of its row: the units are recorded.
    origin, unit = (torch.tensor(data.about["scales"][k], dtype=torch.float64) for k in ("origin", "unit"))
    again = seen.double() * unit + origin
    all_rows = torch.from_numpy(numbers(rows))
    nearest = (again[:, None] - all_rows).abs() / unit
    assert nearest.amax(2).amin(1).max() < 1e-6


def test_the_test_rows_follow_the_split_seed_and_nothing_else(tmp_path, rows):
    path = write(tmp_path / "t.csv", rows)
    one, same, other = (load(DataSettings("table", path, split_seed=k)).test.x for k in (0, 0, 1))
    assert torch.equal(one, same)
    assert one.shape == other.shape
    assert not torch.equal(one, other)


def test_a_recipe_trains_in_units_of_the_spread(tmp_path, rows, monkeypatch):
    """The box follows from the training rows, so no recipe can give it. Before: no training in these units began."""
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "t.csv", rows)
    words = ["--data.name", "table", "--data.root", str(path), "--data.units", "spread", "--data.augment", "none"]
    words += ["--model.name", "mlp", "--train.epochs", "1", "--method.threat.eps", "1.5", "--evaluate.attacks", "FGSM"]
    made, _ = recipe_job("own-linf-pgdat", words, prog="atent train")
    run_job(made, tmp_path / "run")
    box = load(made.data).box
    assert json.loads((tmp_path / "run/config.json").read_text())["method"]["threat"]["box"] == [*map(list, box)]
    resumed = run_job(made, tmp_path / "run", resume=True)
    assert len(resumed.fitted.history) == 1
    assert verify(made, resumed.fitted.model, tmp_path / "run", "ibp").n == len(load(made.data).validation)
    agree({"one": made, "two": made})
    assert state(Run("own-linf-pgdat", made, tmp_path / "run"), job) == "finished"


def test_a_box_of_another_size_is_refused_with_the_option_that_gives_it(tmp_path, rows):
    data = load(DataSettings("table", write(tmp_path / "t.csv", rows), units="spread"))
    box = tuple(tuple(side) for side in data.box)
    with pytest.raises(ValueError, match="give the threat box=data") as caught:
        fit(build("mlp", classes=3, shape=(3,)), data, PGDAT(Threat("linf", 0.1)), settings=TrainSettings(epochs=1))
    given = str(caught.value).partition("the data's ")[2].partition(": ")[0].split()
    made, _ = recipe_job("own-linf-pgdat", ["--method.threat.box", *given], prog="atent train")
    assert made.method.threat.box == box


def test_units_of_the_spread(tmp_path, rows):
    """eps = 1 is one standard deviation of every column, within a box of its own that attacks keep to."""
    data = load(DataSettings("table", write(tmp_path / "t.csv", rows), units="spread"))
    seen = torch.cat([data.train.x, data.validation.x]).double()
    assert (seen[:, :2].std(0, correction=0) - 1).abs().max() < 1e-5
    low, high = (torch.tensor(side) for side in data.box)
    assert torch.equal(low[:2], torch.cat([data.train.x, data.validation.x]).min(0).values[:2])
    net = torch.nn.Linear(3, 3)
    x, y = data.test.batch(range(len(data.test)))
    adv = PGD(Threat("linf", 0.5, data.box), steps=5)(net, x, y)
    assert ((adv >= low) & (adv <= high)).all()
    assert (adv - x).abs().max() <= 0.5 + 1e-6


def test_two_files_and_a_box(tmp_path, rows):
    write(tmp_path / "train.csv", rows[::2])
    write(tmp_path / "test.csv", [*rows[1::2], [5.0, 1.0, 7, "setosa"]])
    data = load(DataSettings("table", str(tmp_path)))
    assert (len(data.test), data.about["test"]) == (91, "test.csv")
    assert data.about["test_values_clipped"] >= 2
    assert data.test.x.max() == 1
    data = load(DataSettings("table", str(tmp_path), box="0..5000"))
    wanted = torch.from_numpy(numbers(rows[1::2]) / 5000).float()
    assert torch.equal(data.test.x[:-1], wanted)
    assert data.about["test_values_clipped"] == 0


@pytest.mark.parametrize(
    ("rows", "head", "settings", "parts"),
    [
        ([[1, "red", "a"], [2, "blue", "b"]], ("n", "colour", "label"), {}, ["line 2", "'red'", "'colour'", "encode"]),
        ([[1, "", "a"], [2, 3, "b"]], ("n", "m", "label"), {}, ["line 2", "missing value", "'m'"]),
        ([[1, "nan", "a"], [2, 3, "b"]], ("n", "m", "label"), {}, ["'nan'", "'m'"]),
        ([[1, 2, "a"], [2, 3]], ("n", "m", "label"), {}, ["line 3", "2 values", "3 columns"]),
        ([[1, 2, 3, "a"], [2, 3, "b"]], ("n", "m", "label"), {}, ["line 2", "4 values", "3 columns"]),
        ([[1, 2, "a"], [2, 3, "b"]], ("n", "m", "k"), {}, ["no column of classes", "n, m, k", "data.label"]),
        ([[1, 2, "a"], [2, 3, "b"]], ("n", "m", "k"), {"label": "z"}, ["no column 'z'", "data.label"]),
        ([[1, 2, "a"], [2, 3, "b"]], ("n", "n", "label"), {}, ["'n'", "2 times"]),
        ([[1, 2, "a"]] * 9, ("n", "m", "label"), {}, ["1 class", "2 or more"]),
        ([[1, 2, "a"], [2, 3, "b"]], ("n", "m", "label"), {}, ["fewer than 3 rows of classes 'a', 'b'"]),
        ([[1, 2, k] for k in "aaabbbc"], ("n", "m", "label"), {}, ["fewer than 3 rows of class 'c'", "add rows"]),
        ([[1, 2, 0], [2, 3, 1]], ("4", "5.5", "1"), {}, ["among 4, 5.5, 1", "add a first line"]),
        ([], ("n", "m", "label"), {}, ["0 rows"]),
        ([[1, 2, k] for k in "aaaabbbb"], ("n", "m", "label"), {"box": "2..3"}, ["'n'", "1 to 1", "2..3"]),
        ([[1, 2, k] for k in "aaaabbbb"], ("n", "m", "label"), {"box": "3..2"}, ["'3..2'", "min..max"]),
        ([[1, 2, k] for k in "aaaabbbb"], ("n", "m", "label"), {"units": "feet"}, ["'feet'", "range, spread"]),
    ],
)
def test_what_cannot_be_is_one_line(tmp_path, rows, head, settings, parts):
    path = write(tmp_path / "t.csv", rows, head)
    with pytest.raises(ValueError, match=r".") as error:
        load(DataSettings("table", path, **settings))
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 300
    for part in parts:
        assert part in text


def test_a_column_that_numbers_the_rows_is_reported(tmp_path, rows, capsys):
    """The rows are sorted by class, so their numbers give it away. Before: without a word."""
    head = ("length", "width", "constant", "label", "id")
    counted = write(tmp_path / "t.csv", [[*row, k] for k, row in enumerate(rows, 1)], head)
    load(DataSettings("table", counted))
    assert "column 'id' numbers the rows from 1" in capsys.readouterr().err
    load(DataSettings("table", write(tmp_path / "u.csv", [[*row, 7 * k % 60] for k, row in enumerate(rows)], head)))
    assert capsys.readouterr().err == ""
    saved = write(tmp_path / "s.csv", [[k, *row] for k, row in enumerate(rows)], ("Unnamed: 0", *head[:4]))
    with pytest.raises(ValueError, match="column 1 has no name but pandas' 'Unnamed: 0': remove it"):
        load(DataSettings("table", saved))


@pytest.mark.parametrize("word", ["NA", "N/A", "<NA>", "NULL", "?", "NaN"])
def test_a_missing_class_is_none(tmp_path, rows, word):
    """Before: only nan was known, and three rows with another such word were a class."""
    path = write(tmp_path / "t.csv", [*rows, *([1, 2, 7, word] for _ in range(3))])
    with pytest.raises(ValueError, match="a missing value: remove these rows"):
        load(DataSettings("table", path))


def test_a_training_from_python_is_evaluated_in_its_units(tmp_path, rows):
    """The run has no settings of its data but what they led to."""
    path = write(tmp_path / "t.csv", [[a, b, name] for a, b, _, name in rows], ("length", "width", "kind"))
    data = load(DataSettings("table", path, label="kind", units="spread"))
    fitted = fit(build("mlp", classes=3, shape=(2,)), data, Standard(), settings=TrainSettings(epochs=1),
                 run=tmp_path / "run", progress=False)  # fmt: skip
    settings = recorded_data(json.loads((fitted.run / "config.json").read_text()))
    again = load(replace(settings, root=path))
    assert again.box == data.box
    assert torch.equal(again.test.x, data.test.x)


def test_cells_of_several_lines_other_marks_and_packed_files(tmp_path):
    text = 'label,"a\nb",c\r\n' + "".join(f"{k % 2},{k},{2 * k}\n" for k in range(20))
    (tmp_path / "t.csv").write_text(text, newline="")
    plain = load(DataSettings("table", str(tmp_path / "t.csv"), validation=4))
    assert plain.about["columns"] == ["a\nb", "c"]
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(text.encode()))
    packed = load(DataSettings("table", str(tmp_path / "t.csv.gz"), validation=4))
    assert torch.equal(plain.train.x, packed.train.x)
    fails(
        ValueError,
        "line 22",
        "'x'",
        name="table",
        root=write(tmp_path / "u.csv", [*[[1, "p"]] * 20, ["x", "q"]], ("a", "y")),
    )
    for mark in ";\t":
        (tmp_path / "v.csv").write_text(text.replace(",", mark), newline="")
        fails(ValueError, "commas", repr(mark), name="table", root=str(tmp_path / "v.csv"))


def test_columns_mean_nothing_elsewhere_and_absent_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"data\.label has no effect for digits"):
        load(DataSettings("digits", label="y"))
    with pytest.raises(FileNotFoundError, match=r"train\.csv and test\.csv"):
        load(DataSettings("table", str(tmp_path / "absent.csv")))
    write(tmp_path / "train.csv", [[1, 2, 3, "a"]])
    with pytest.raises(FileNotFoundError, match=r"test\.csv"):
        load(DataSettings("table", str(tmp_path)))
    (tmp_path / "t.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="UTF-8"):
        load(DataSettings("table", str(tmp_path / "t.csv")))


def test_from_training_to_certificate(tmp_path, rows, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "flowers.csv", rows)
    (tmp_path / "flowers.toml").write_text(
        f'[data]\nname = "table"\nroot = "{path}"\n[model]\nname = "mlp"\n[method]\nname = "ATENT"\nsteps = 3\n'
        '[method.threat]\nnorm = "linf"\neps = 0.05\n[train]\nepochs = 12\nbatch_size = 16\n'
    )
    assert main(["train", "flowers.toml", "--quiet"]) == 0
    run = tmp_path / "runs" / "flowers"
    found = json.loads((run / "evaluation.json").read_text())
    assert found["clean"]["value"] > 0.8
    assert main(["certify", str(run), "--method", "crown", "--limit", "12", "--quiet"]) == 0
    certificate = json.loads((run / "certificate.json").read_text())
    assert certificate["n"] == 12
    assert main(["report", str(run)]) == 0
    assert "virginica" in (run / "report.html").read_text()


def test_arrays_of_rows(tmp_path):
    path, rng = tmp_path / "rows.npz", np.random.default_rng(0)
    x, y = rng.integers(-5, 90, (60, 3)), np.array(["a", "b", "c"])[np.arange(60) % 3]
    np.savez(path, x_train=x[:45], y_train=y[:45], x_test=x[45:], y_test=y[45:])
    data = load(DataSettings("table", str(path), validation=6))
    assert (data.shape, len(data.train), len(data.test)) == ((3,), 39, 15)
    low, high = x[:45].min(0), x[:45].max(0)
    want = ((x[45:] - low) / (high - low)).clip(0, 1)[np.argsort(data.test.ids.numpy()).argsort()]
    np.testing.assert_allclose(data.test.x.numpy(), want, atol=1e-6)
    assert (data.about["test"], data.about["class_names"]) == ("x_test", ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"data\.label has no effect"):
        load(DataSettings("table", str(path), label="a"))
    with pytest.raises(ValueError, match=r"data\.name table"):
        load(DataSettings("npz", str(path)))
    for bad in (
        {"x_test": x[45:, :2]},
        {"y_test": y[:3]},
        {"x_train": np.full((45, 3), np.nan)},
        {"y_test": y[45:] + "d"},
    ):
        np.savez(path, **{"x_train": x[:45], "y_train": y[:45], "x_test": x[45:], "y_test": y[45:], **bad})
        with pytest.raises(ValueError, match=r"rows\.npz") as error:
            load(DataSettings("table", str(path)))
        assert "\n" not in str(error.value)


def test_a_numbering_of_the_rows_is_no_column(tmp_path, rows):
    """In a file that is sorted by class, the number of a row tells its class."""
    place = write(tmp_path / "t.csv", [[k, *row] for k, row in enumerate(rows)], ("", "a", "b", "c", "label"))
    fails(ValueError, "column 1 has no name: remove it if it numbers the rows", name="table", root=place)


def test_missing_classes_and_two_spellings_of_a_number_are_no_classes(tmp_path, rows):
    """A nan is no number to sort by, and pandas writes 1 as 1.0 in a column with missing values."""
    coded = [[*row[:3], f"{k % 2}"] for k, row in enumerate(rows)]
    missing = write(tmp_path / "missing.csv", [*coded, *[[*row[:3], "NaN"] for row in coded[:9]]])
    fails(ValueError, "a class is NaN, a missing value", name="table", root=missing)
    mixed = write(tmp_path / "mixed.csv", [*coded, *[[*row[:3], "1.0"] for row in coded[:9]]])
    fails(ValueError, "classes '1' and '1.0' are the same number", name="table", root=mixed)
