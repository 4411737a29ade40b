"""The scripts of examples/ for a newcomer: each runs, small, and ends where its sentence says."""

import runpy
import sys
from pathlib import Path

import pytest

import atent

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.fixture
def main(tmp_path, monkeypatch):
    """The `main` of a script, in a folder of its own; the script can be imported by its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(EXAMPLES))
    before = set(sys.modules)
    yield lambda name: runpy.run_path(str(EXAMPLES / f"{name}.py"))["main"]
    for name in set(sys.modules) - before:
        if str(EXAMPLES) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


def test_digits(main, capsys):
    assert main("digits")(epochs=1, images=10) >= 0
    assert "n = 10" in capsys.readouterr().out


def test_a_network_on_images(main):
    pytest.importorskip("PIL")
    fitted = main("own_network")(epochs=3)
    assert fitted.best["validation_clean"] > 0.6
    assert atent.load(fitted.run)(fitted.model[0].weight.new_zeros(1, 3, 32, 32)).shape == (1, 2)


def test_a_claim(main, capsys):
    """What two short steps support, PGD-20 and AutoAttack refute."""
    assert main("check_a_claim")(epochs=3, images=50) is False
    assert "refuted" in capsys.readouterr().out


def test_certificates(main):
    by_bounds, by_smoothing = main("certify")(images=20, n=200)
    assert by_bounds > 0.5
    assert by_smoothing > 0.5


def test_a_method(main):
    assert main("own_method")(epochs=6) > 0.2
