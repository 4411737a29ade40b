"""How long a command takes before it does anything: what is imported, and CPU seconds within three times the goal."""

import inspect
import json
import subprocess
import sys

import pytest

from atent.cli import main
from atent.experiments import recipe_files

HEAVY = {"torch", "numpy", "scipy", "sklearn", "pydantic", "matplotlib", "jinja2"}
SPENT = "import json, time; print(json.dumps(time.process_time()), file=sys.stderr)"
# CPU seconds that the fastest of a few starts may take: three times the goal, as machines differ.
GOALS = {"--help": 0.3, "--version": 0.3, "recipes": 0.3, "train --help": 0.5, "bench --help": 0.5}


def child(code):
    """The last line that a fresh interpreter prints to standard error, as JSON."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return json.loads(done.stderr.splitlines()[-1])


def test_help_of_every_command_imports_nothing_heavy():
    code = (
        "import json, sys\nfrom atent.cli import COMMANDS, main\n"
        "status = [main([]), main(['--version']), main(['recipes']), main(['list', 'recipes'])]\n"
        "status += [main([name, '--help']) for name in COMMANDS]\n"
        "tops = {name.partition('.')[0] for name in sys.modules}\n"
        "print(json.dumps([status, sorted(tops)]), file=sys.stderr)"
    )
    status, tops = child(code)
    assert not any(status)
    assert not HEAVY & set(tops)


def test_a_further_command_reads_no_source(monkeypatch):
    """Before: the parser read that of all settings at each command, for texts that only help shows."""
    words = ["train", "digits-linf-pgdat", "--method.steps", "0"]
    assert main(words) == 2
    read, seen = inspect.findsource, []
    monkeypatch.setattr(inspect, "findsource", lambda kind: seen.append(kind) or read(kind))
    assert main(words) == 2
    # The class of a recipe's sections is made anew at each command, and looked for once.
    assert [kind.__name__ for kind in seen] in ([], ["sections"])


def test_the_package_itself_imports_the_standard_library_alone():
    code = (
        "import json, sys\nbefore = set(sys.modules)\nimport atent\n"
        "print(json.dumps(sorted(set(sys.modules) - before)), file=sys.stderr)"
    )
    found = child(code)
    assert {name.partition(".")[0] for name in found} <= {"atent", *sys.stdlib_module_names}
    # Reading the version asks for e-mail, zip and network modules of the standard library.
    assert not {"importlib.metadata", "email", "zipfile"} & set(found)


def test_the_version_is_that_of_the_distribution():
    import importlib.metadata

    import atent

    assert atent.__version__ == importlib.metadata.version("atent")
    assert "__version__" in dir(atent)


def test_listing_the_recipes_reads_each_file_once(monkeypatch):
    read = []
    real = recipe_files.tomllib.loads
    monkeypatch.setattr(recipe_files.tomllib, "loads", lambda text: read.append(text) or real(text))
    heads = recipe_files.heads()
    assert list(heads) == recipe_files.recipe_names()
    assert len(read) == len(heads)
    some = list(heads)[::20]
    assert all(heads[name].get("aims") == recipe_files.read_recipe(name).get("aims") for name in some)
    assert all(heads[name]["about"] == recipe_files.read_recipe(name)["about"] for name in some)


@pytest.mark.parametrize("words", GOALS)
def test_cpu_seconds_of_a_command_that_computes_nothing(words):
    code = f"import sys\nfrom atent.cli import main\nmain({words.split()!r})\n{SPENT}"
    assert min(child(code) for _ in range(2)) < 3 * GOALS[words]


def test_cpu_seconds_that_the_package_adds_to_torch():
    code = (
        "import json, sys, time, torch\nbegun = time.process_time()\nimport atent\n"
        "print(json.dumps(time.process_time() - begun), file=sys.stderr)"
    )
    assert child(code) < 3 * 0.05


@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["digits-linf-atent", "digits-l2-pgdat"])
def test_cpu_seconds_to_the_first_step_of_a_training(recipe, tmp_path):
    code = (
        "import json, os, sys, time, torch\n"
        "def stop(*_args, **_given):\n"
        "    print('\\n' + json.dumps(time.process_time()), file=sys.stderr, flush=True)\n"
        "    os._exit(0)\n"
        "for each in (torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW):\n"
        "    each.step = stop\n"
        "from atent.cli import main\n"
        f"main(['train', {recipe!r}, '--runs', {str(tmp_path)!r}, '--quiet'])\n"
        "sys.exit('no optimizer made a step')"
    )
    assert child(code) < 3 * 5
