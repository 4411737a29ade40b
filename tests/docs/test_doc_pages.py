"""Every code block of README and docs runs: its Python here or in the test that is named, its commands are understood.

A block that cannot run has a comment before it, <!-- not run: REASON -->.
"""

import re
import shlex
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from commands import compare_jobs, given, train_job
from kit import threat_in
from torch import nn

from atent.attacks import ATTACKS
from atent.attacks.several import several
from atent.attacks.spec import parse
from atent.cli import COMMANDS, main
from atent.cli.words import split_sections
from atent.data import DataSettings, load
from atent.experiments.recipe_files import recipe_names
from atent.methods import Standard
from atent.train import TrainSettings, fit

ROOT = Path(__file__).parents[2]
PAGES = {"README": ROOT / "README.md", "CONTRIBUTING": ROOT / "CONTRIBUTING.md"}
PAGES |= {path.stem: path for path in sorted((ROOT / "docs").glob("*.md"))}
ELSEWHERE = {
    "add-attack": "test_extending_pages.py",
    "add-certifier": "test_extending_pages.py",
    "add-data": "test_extending_pages.py",
    "add-method": "test_extending_pages.py",
    "add-network": "test_extending_pages.py",
    "attacks": "test_attack_calls.py",
    "checkpoints": "test_checkpoints_page.py",
    "corruptions": "test_study_commands.py",
    "data_parallel": "rank_jobs.py",
    "distributed": "test_launch.py",
    "ecosystem": "test_ecosystem.py",
    "export": "test_zoo_networks.py",
    "gpu": "test_gpu_graphs.py",
    "large-data": "test_streaming.py",
    "loops": "test_loops.py",
    "networks": "test_vit.py",
    "pretraining": "test_pretrain.py",
    "security": "test_trust.py",
    "sweeps": "test_sweep_runs.py",
    "training": "test_training_page.py",
}
"""The pages whose Python another test runs, with what that needs and what must come of it."""
FENCE = re.compile(r"(?:<!-- not run: (.+?) -->\n+)?^```(\S*)[^\n]*\n(.*?)^```$", re.M | re.S)


def blocks(page, *languages):
    """The code of a page in these languages, but for what is marked with a reason."""
    found = FENCE.findall(PAGES[page].read_text("utf-8"))
    return [code for reason, language, code in found if language in languages and not reason]


def test_what_the_comment_means(tmp_path):
    PAGES["a"] = tmp_path / "a.md"
    try:
        PAGES["a"].write_text("```python\n1\n```\n<!-- not run: it waits -->\n```python\n2\n```\n```\n3\n```\n")
        assert blocks("a", "python") == ["1\n"]
        assert blocks("a", "") == ["3\n"]
    finally:
        del PAGES["a"]


@pytest.mark.parametrize("page", ELSEWHERE)
def test_the_named_test_reads_the_page(page):
    (file,) = (ROOT / "tests").rglob(ELSEWHERE[page])
    text = file.read_text()
    assert f"{page}.md" in text or f'"{page}"' in text


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with an evaluated run, as the pages name it; the names that a page presupposes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    builder = "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    Path("mine.py").write_text(builder)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    data = load(DataSettings("digits", limit=64, validation=20))
    settings = TrainSettings(epochs=1, batch_size=32, device="cpu", validate_attack="FGSM")
    made = Path("runs/evaluated")
    fit(net, data, Standard(), settings=settings, run=made, progress=False, builder="mine:net")
    words = ["--norm", "linf", "--eps", "0.1", "--attacks", "FGSM", "--limit", "20", "--quiet"]
    assert main(["evaluate", str(made), *words]) == 0
    x, y = data.sample("test", 10).batch(range(10))
    yield {"model": net.eval(), "x": x, "y": y, "data": data, "__name__": "page"}
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE and blocks(page, "python")])
def test_the_python_of_a_page_runs(page, place):
    """In the order of the page, in one namespace; trainings take one epoch, and any run that is named is there."""
    code = "\n".join(blocks(page, "python"))
    for name in re.findall(r'"(runs/[\w-]+)["/]', code):
        if name not in re.findall(r'run="(runs/[\w-]+)"', code) and not Path(name).exists():
            Path(name).symlink_to("evaluated")
    exec(compile(re.sub(r"epochs=\d+", "epochs=1", code), PAGES[page].name, "exec"), place)


def commands(page):
    """The command lines of a page, without their prompts: all of a bash block, and those of other blocks."""
    for language in ("bash", "", "console", "text", "yaml"):
        for code in blocks(page, language):
            lines = code.replace("\\\n", " ").splitlines()
            for line in (re.sub(r"^\s*(- run: |run: |\$ )?", "", line) for line in lines):
                known = line.startswith(("atent ", "torchrun ", "make ", "pip ", "python ")) or language == "bash"
                if known and (words := shlex.split(line, comments=True)):
                    yield words


def understood(words):
    """Whether a command exists and takes its words."""
    if words[0] == "torchrun":
        words = words[words.index("atent") if "atent" in words else words.index("-m") :]
    kind, *rest = words
    match kind, *rest[:1]:
        case "make", target:
            return re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M)
        case "pip", "install":
            return all(re.fullmatch(r"(-\S+|\.|[\w-]+)(\[[\w,]+\])?", word) for word in rest[1:])
        case "python", name if name.endswith(".py"):
            return name == "my.py" or (ROOT / name).is_file() or (ROOT / "examples" / name).is_file()
        case "python", "-c":
            return compile(rest[1], "-c", "exec")
        case "python", "-m":
            return True
        case "atent", option if option.startswith("--"):
            return option in ("--help", "--version", "--install-completion")
        case "atent", name if name in COMMANDS:
            return takes(name, rest[1:])
    return kind in ("export", "cd", "git", "tensorboard")


def takes(name, words):
    if "--help" in words or any("${{" in word for word in words):
        return True
    if name in ("train", "pretrain", "compare"):
        own, _ = split_sections(list(words))
        options = given(name, *own)
        recipes = options["recipes"] if name == "compare" else [options.get("recipe")]
        if name != "pretrain" and set(recipes) <= set(recipe_names()):
            assert compare_jobs(*words) if name == "compare" else train_job(*words).recipe
        return True
    options = given(name, *(split_sections(list(words))[0] if name == "sweep" else words))
    threat = threat_in(words[words.index("--norm") + 1] if "--norm" in words else "linf")
    attacks = options.get("attacks") or ([options["attack"]] if name == "attack" else [])
    for text in attacks:
        # Attacks of other packages parse where these are installed, those of a page's own file in its own test.
        if not re.match(r"\w+:", text):
            parse(text, threat, ATTACKS)
    if options.get("threats"):
        assert len(several(options["threats"])) >= len(options["threats"])
    return True


@pytest.mark.parametrize("page", [page for page in PAGES if any(True for _ in commands(page))])
def test_the_commands_of_a_page_are_understood(page):
    for words in commands(page):
        assert understood(words), words


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "toml")])
def test_the_toml_of_a_page_is_read(page):
    for code in blocks(page, "toml"):
        assert tomllib.loads(code)


@pytest.mark.parametrize("page", PAGES)
def test_no_line_is_lost_as_a_comment(page):
    """The site's parser drops a line that begins with a percent sign, such as the end of a wrapped "200 %"."""
    prose = re.sub(r"^```.*?^```$", "", PAGES[page].read_text("utf-8"), flags=re.M | re.S)
    assert not re.search(r"^\s*%", prose, re.M)
