"""`atent list`: what is known by name."""

import json
import subprocess
import sys

import pytest

from atent.cli import main
from atent.cli.list import KINDS, sentence

ONE_OF = {
    "attacks": "PGD",
    "methods": "ATENT",
    "models": "small_cnn",
    "data": "digits",
    "optimizers": "SGD",
    "certifiers": "smoothing",
    "recipes": "digits-linf-atent",
    "zoo": "zoo:digits-linf-crown-ibp",
}


def said(capsys, *words):
    status = main(["list", *words])
    out, err = capsys.readouterr()
    return status, out, err


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_says_what_each_is_and_where_it_comes_from(kind, capsys):
    status, out, err = said(capsys, kind, "--json")
    assert (status, err) == (0, "")
    rows = json.loads(out)
    names = [row["name"] for row in rows]
    assert ONE_OF[kind] in names
    assert len(set(names)) == len(names)
    for row in rows:
        assert row.keys() == {"name", "about", "origin"}
        assert row["origin"] in ("built-in", *(["checkout"] if kind == "zoo" else []))
        # Nothing is without a description.
        assert len(row["about"]) > 5, row
        assert "\n" not in row["about"]
    status, out, _ = said(capsys, kind)
    assert status == 0
    assert all(name in out for name in names)


def test_a_package_is_named_and_a_broken_one_is_one_line(tmp_path, monkeypatch, capsys):
    (tmp_path / "theirs-1.2.dist-info").mkdir()
    (tmp_path / "theirs.py").write_text(
        "import dataclasses\nfrom atent import Threat\nfrom atent.attacks import Attack\n"
        "@dataclasses.dataclass(frozen=True)\nclass Noise(Attack):\n    '''Noise. And more.'''\n    threat: Threat\n"
        "    passes = 1\n    def search(self, oracle, x, y, streams):\n        return x\n"
    )
    (tmp_path / "theirs-1.2.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.2\n")
    (tmp_path / "theirs-1.2.dist-info" / "entry_points.txt").write_text(
        "[atent.attacks]\nNoise = theirs:Noise\nBroken = theirs_absent:Noise\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    try:
        status, out, err = said(capsys, "attacks", "--json")
        assert status == 0
        assert {"name": "Noise", "about": "Noise", "origin": "theirs 1.2"} in json.loads(out)
        (line,) = err.splitlines()
        assert line.startswith("warning: attack 'Broken' of theirs cannot be imported")
    finally:
        sys.modules.pop("theirs", None)


def test_the_kinds_are_named(capsys):
    for words, part in (((), "attacks, methods, models"), (("atacks",), "did you mean 'attacks'")):
        status, _, err = said(capsys, *words)
        assert status == 2
        (line,) = err.splitlines()
        assert part in line


def test_recipes_import_no_torch():
    code = (
        "import sys; from atent.cli import main; main(['list', 'recipes', '--json']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.parametrize(
    ("text", "first"),
    [
        ("One step (Goodfellow et al. 2015). Another.", "One step (Goodfellow et al. 2015)"),
        ("As Madry et al. 2018,\nEq. 2; ``x`` stays.\n\nMore.", "As Madry et al. 2018, Eq. 2; x stays"),
        ("`TRADES` under noise:\n\n    min over w.", "TRADES under noise"),
        (None, "-"),
    ],
)
def test_the_first_sentence(text, first):
    assert sentence(text) == first
