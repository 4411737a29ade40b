"""Help, version, recipes and completion; what a light command imports."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import refused, said

import atent
from atent.cli import COMMANDS, completion

ROOT = Path(__file__).parents[2]
OPTION = re.compile(r"(?<![\w-])--[a-z][a-z0-9_.-]*[a-z0-9]")


def test_help_lists_what_works(capsys):
    status, out, _ = said(capsys, "--help")
    assert status == 0
    assert {"train", "evaluate", "recipes"} <= set(out.split())
    assert said(capsys)[1] == out
    assert said(capsys, "--version")[1] == f"atent {atent.__version__}\n"


@pytest.mark.parametrize("command", [["train"], ["train", "mnist-l2-atent"], ["evaluate"], ["attack"], ["recipes"]])
def test_help_of_each_command(command, capsys):
    status, out, _ = said(capsys, *command, "--help")
    assert status == 0
    assert len(out) > 80


def test_help_of_train_shows_the_recipes_values(capsys):
    _, out, _ = said(capsys, "train", "mnist-l2-atent", "--help")
    text = " ".join(out.split())
    assert "--method.steps" in text
    assert "(default: 0.125)" in text
    first = out.splitlines().index(next(line for line in out.splitlines() if line.lstrip().startswith("--")))
    assert first <= 24, "more than a screen before the first option"


def test_help_of_train_for_one_section(capsys):
    status, out, _ = said(capsys, "train", "mnist-l2-atent", "--method.steps", "3", "--help", "optimizer", "schedule")
    assert status == 0
    options = re.findall(r"^ *--([a-z]+)\.", out, re.MULTILINE)
    assert set(options) == {"optimizer", "schedule"}
    assert said(capsys, "train", "--help", "mnist-l2-atent", "schedule")[1].count("--schedule.") > 1
    assert "did you mean 'optimizer'" in refused(capsys, "train", "mnist-l2-atent", "--help", "optimzer")


def test_help_of_train_without_a_recipe_is_light(capsys):
    code = "import sys; from atent.cli import main; main(['train', '--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    text = " ".join(done.stdout.split())
    assert "Name of the run folder" in text
    assert "atent recipes" in text


@pytest.mark.parametrize("command", ["attack", "certify", "evaluate", "export", "theory", "transfer"])
def test_help_names_every_kind_of_network(command, capsys):
    """What loads a network loads a run, a file, one of the package or of the Hub, and one of your own."""
    (usage,) = re.findall(r"usage: .*? \[OPTIONS\]\s+(\S+)", said(capsys, command, "--help")[1])
    assert usage == "RUN|FILE|zoo:NAME|hub:USER/NAME|MODULE:FUNCTION"


ELSEWHERE = {
    *("--nproc-per-node", "--standalone", "--max-restarts", "--no-deps", "--signal", "--logdir"),
    *("--kills", "--minutes", "--repeats", "--files", "--mib", "--part-size", "--slice", "--state", "--take", "--to"),
}
"""Options in the pages that are of torchrun, pip, sbatch and tensorboard, and of scripts in benchmarks/."""


def test_the_options_of_the_pages_exist(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "200")
    lines = [[], *([name] for name in COMMANDS), *(["train", f"digits-{norm}-atent"] for norm in ("linf", "l2"))]
    known = {
        option.replace("_", "-") for words in lines for option in OPTION.findall(said(capsys, *words, "--help")[1])
    }
    # A former name, which is read, and the negation of an option.
    known |= {"--method.awp.gamma", "--no-baseline", "--train"}
    for path in [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]:
        given = {option.replace("_", "-") for option in OPTION.findall(path.read_text("utf-8"))}
        assert given - known - ELSEWHERE == set(), path.name


@pytest.mark.parametrize("columns", [60, 80, 110])
@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_help_wraps(command, columns, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(columns))
    status, out, _ = said(capsys, command, "--help")
    assert status == 0
    assert max(map(len, out.splitlines())) <= columns
    assert "(default: None)" not in out


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_is_installed_where_the_shell_looks(shell, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("XDG_DATA_HOME", "XDG_CONFIG_HOME"):
        monkeypatch.delenv(name, raising=False)
    status, out, _ = said(capsys, "--install-completion", shell)
    assert status == 0
    path = Path(out.splitlines()[0].removeprefix("written: "))
    assert path.is_relative_to(tmp_path)
    text = path.read_text()
    assert all(command in text for command in COMMANDS)
    assert "batch-size" in text


def test_completion_in_bash(tmp_path):
    if not shutil.which("bash"):
        pytest.skip("no bash")
    script = (
        'eval "$1"; COMP_WORDS=(atent cert); COMP_CWORD=1; _atent; echo "${COMPREPLY[*]}";'
        'COMP_WORDS=(atent certify --alp); COMP_CWORD=2; _atent; echo "${COMPREPLY[*]}"'
    )
    done = subprocess.run(["bash", "-c", script, "-", completion.script("bash")], capture_output=True, text=True)
    assert done.stdout.split() == ["certify", "--alpha"], done.stderr


def test_an_unknown_shell_is_one_line(capsys):
    assert "use bash, zsh or fish" in refused(capsys, "--show-completion", "tcsh")


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["recipes"], ["recipes", "digits-l2-atent"]])
def test_light_commands_do_not_import_torch(args):
    code = f"import sys; from atent.cli import main; main({args!r}); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_library_needs_nothing_of_the_command_line():
    code = (
        "import sys\n"
        "for name in ('tyro', 'pydantic', 'rich', 'matplotlib'): sys.modules[name] = None\n"
        "import torch, atent\n"
        "from atent import Threat\n"
        "from atent.methods import ATENT\n"
        "from atent.data import load, DataSettings\n"
        "from atent.train import fit, TrainSettings\n"
        "data = load(DataSettings(limit=64, validation=20))\n"
        "net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
        "fit(net, data, ATENT(Threat('linf', 0.1), steps=2), settings=TrainSettings(epochs=1, device='cpu'))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_python_m_atent():
    done = subprocess.run([sys.executable, "-m", "atent", "--version"], capture_output=True, text=True)
    assert done.stdout == f"atent {atent.__version__}\n"


def test_recipes_are_readable_at_80_columns(capsys, monkeypatch):
    from atent.experiments.recipe_files import heads

    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = said(capsys, "recipes")
    assert all(len(line) <= 80 for line in out.splitlines())
    assert len(out.splitlines()) <= 4 * len(heads())
    letters = re.sub(r"\W", "", out)
    for head in heads().values():
        for text in (head["about"], *head.get("aims", [])):
            assert re.sub(r"\W", "", text) in letters
    monkeypatch.setenv("COLUMNS", "160")
    assert "published figures" in said(capsys, "recipes")[1].splitlines()[0]


def test_recipes_lists_them_all(capsys):
    from atent.experiments.recipes import recipe_names

    _, out, _ = said(capsys, "recipes")
    for name in recipe_names():
        assert name in out
    _, text, _ = said(capsys, "recipes", "mnist-l2-atent")
    assert "step_size = 0.125" in text
