"""What results print, and remedies that fit where they are read."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from command_line import refused

from atent.experiments.comparison import _entry, measure
from atent.train.result import Fitted


def test_a_fitted_prints_its_best_epoch_and_not_its_history():
    rows = [{"epoch": k, "validation_clean": 0.9, "validation_robust": k / 10} for k in (1, 2, 3)]
    fitted = Fitted(None, rows, rows[2], Path("runs/a"), "no progress")
    text = str(fitted)
    assert text.splitlines() == [
        "3 epochs, best 3, validation clean 90.0 %, validation robust 30.0 %",
        "stopped early: no progress",
        "run folder: runs/a",
    ]
    shown = []
    fitted._repr_pretty_(SimpleNamespace(text=shown.append), False)  # a notebook's cell
    assert shown == [text]
    assert repr(fitted).count("validation_robust") == 4
    assert str(Fitted(None, rows[:1], {"epoch": 1}, None)) == "1 epoch, best 1"


def test_an_epoch_of_one_seed_is_an_integer():
    for values, text in (([34], "34"), ([34, 36], "35.0 \u00b1 1.4")):
        cell = measure(values)
        assert _entry(cell, digits=int(cell.sd is not None)).text == text


@pytest.mark.parametrize(("words", "who"), [([], "the baseline of this recipe"), (["--baseline"], "--baseline needs")])
def test_a_baseline_that_the_recipe_has_is_named_as_such(words, who, tmp_path, capsys):
    err = refused(capsys, "train", "digits-l2-atent", *words, "--evaluate.attacks", "FGSM", "--runs", str(tmp_path))
    assert who in err
    assert "--no-baseline" in err
