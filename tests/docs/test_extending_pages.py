"""docs/extending.md and its pages, docs/add-attack.md and others: their files, commands and checks work."""

import re
import shlex
import sys
import tomllib
from importlib import import_module
from pathlib import Path

import pytest

from atent.attacks import ATTACKS
from atent.certify import CERTIFIERS
from atent.cli import main
from atent.data import SOURCES
from atent.methods import METHODS
from atent.models import MODELS
from atent.optim.settings import OPTIMIZERS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = ["add-attack", "add-method", "add-data", "add-network", "add-certifier"]
GROUPS = {each.group: each for each in (ATTACKS, METHODS, MODELS, SOURCES, OPTIMIZERS, CERTIFIERS)}
NAMED = re.compile(r"`(\w+\.(?:py|toml))`[^`]*:\n\n```(?:python|toml)\n(.*?)```", re.S)


def text_of(page):
    return (DOCS / f"{page}.md").read_text("utf-8")


def announced(page):
    """The entry points of a page, by their groups."""
    blocks = [tomllib.loads(code) for code in re.findall(r"```toml\n(.*?)```", text_of(page), re.S)]
    (found,) = [block["project"]["entry-points"] for block in blocks if "project" in block]
    return found


@pytest.mark.parametrize("page", PAGES)
def test_the_files_of_a_page_work(page, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    text = text_of(page)
    files = [(name, code) for name, code in NAMED.findall(text) if name != "pyproject.toml"]
    assert files[0][0].endswith(".py")
    for name, code in files:
        Path(name).write_text(code)
        monkeypatch.delitem(sys.modules, Path(name).stem, raising=False)
    python = [code for code in re.findall(r"```python\n(.*?)```", text, re.S) if code not in dict(files).values()]
    try:
        exec(compile("\n".join(python), f"{page}.md", "exec"), {})
        for code in re.findall(r"```bash\n(.*?)```", text, re.S):
            for command in code.splitlines():
                assert main([*shlex.split(command)[1:], "--quiet"]) == 0, capsys.readouterr().err
        for group, things in announced(page).items():
            for name, reference in things.items():
                assert GROUPS[group].find(reference).__name__ == name
    finally:
        for name, _ in files:
            sys.modules.pop(Path(name).stem, None)


def test_one_run_uses_the_things_of_all_pages_together(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for page in PAGES[:4]:
        (name, code) = NAMED.findall(text_of(page))[0]
        Path(name).write_text(code.replace("nn.Linear(64, 32)", "nn.Linear(16, 32)").replace("(32, 10)", "(32, 3)"))
        monkeypatch.delitem(sys.modules, Path(name).stem, raising=False)
    things = ["--method", "corner_at:CornerAT", "--data.name", "blobs:blobs", "--model.name", "small:net"]
    things += ["--optimizer.name", "small:SignDescent", "--optimizer.lr", "0.01", "--train.epochs", "1"]
    attack = ["--attacks", "corners:Corners(tries=3)"]
    try:
        for command in (
            ["train", "digits-linf-pgdat", "--name", "all", *things, "--evaluate.attacks", "FGSM"],
            ["evaluate", "runs/all", *attack],
            ["report", "runs/all"],
        ):
            assert main([*command, "--quiet"]) == 0, capsys.readouterr().err
        assert "Corners(tries=3)" in Path("runs/all/report.html").read_text()
    finally:
        for name in ("corners", "corner_at", "blobs", "small"):
            sys.modules.pop(name, None)


def test_the_pages_announce_a_thing_in_every_group():
    assert {group for page in PAGES for group in announced(page)} == set(GROUPS)
    rows = re.findall(
        r"^\| an? \w+(?: \w+)* \| \[.+?\]\(([\w-]+)\.md.*?\) \| `([\w.]+)` \|$", text_of("extending"), re.M
    )
    assert {group for _, group in rows} == set(GROUPS)
    for page, group in rows:
        assert group in announced(page)


def test_the_decorators_of_the_page_exist():
    rows = re.findall(r"\| `src/(\S+?)/NAME.py` \| `@([\w.]+)\S*` of `([\w.]+)` \|", text_of("extending"))
    assert {room.replace("/", ".") for room, _, _ in rows} == {each.package for each in GROUPS.values()}
    for room, name, module in rows:
        register = import_module(module)
        for part in name.split("."):
            register = getattr(register, part)
        assert register.__self__.package == room.replace("/", ".")
