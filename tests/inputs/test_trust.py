"""Nothing of a folder that somebody else made runs: names in its files are text until the user says otherwise."""

import contextlib
import copy
import json
import os
import re
import shutil
import stat
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from torch import nn

import atent
from atent import runs as folder
from atent import trust
from atent.attacks import ATTACKS
from atent.attacks.spec import parse, relabelled
from atent.attacks.transfer import Transfer
from atent.cli import main
from atent.experiments.target import load_target
from atent.registry import load_object
from atent.runs.checkpoint import export
from atent.threat import Threat
from atent.trust import Untrusted

EVIL = "evilmod:f"
LINF = Threat("linf", 0.1)
CODE = [("model", "name"), ("data", "name"), ("method", "name"), ("optimizer", "name"), ("train", "validate_attack")]
"""Fields that may name code in every configuration."""
FORMS = (EVIL, f"Transfer(source='{EVIL}')", f"{EVIL}(steps=1)")
MODULE = """
from pathlib import Path
Path({ran!r}).touch()
from torch import nn

def f(*args, **given):
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
"""
TRAIN = [
    *("--train.epochs", "1", "--data.limit", "60", "--data.validation", "20", "--train.validate_attack", "FGSM"),
    *(
        "--train.validate_limit",
        "10",
        "--evaluate.limit",
        "10",
        "--evaluate.attacks",
        "FGSM",
        "--no-baseline",
        "--quiet",
    ),
]
BASES = ["own", pytest.param("python", marks=pytest.mark.slow)]
COMMANDS = {
    "train": "train --resume {run} --quiet",
    "pretrain": "pretrain --resume {run} --quiet",
    "evaluate": "evaluate {run} --limit 4 --quiet",
    "attack": "attack {run} --limit 4 --attack FGSM --out {out}/adversarial.npz --quiet",
    "transfer": "transfer {run} {other} --limit 4 --attack FGSM --out {out}/transfer.json --quiet",
    "certify": "certify {run} --limit 2 --n0 4 --n 12 --sigma 0.1 --quiet",
    "bounds": "certify {run} --limit 2 --method ibp --quiet",
    "compare": "compare {run} {other} --runs {out}",
    "report": "report {run} --images 1 --out {out}/page.html --quiet",
}


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """Runs that the user made: two by a recipe, of which one is certified, and one from Python."""
    from atent.data import DataSettings, load
    from atent.methods import PGDAT
    from atent.models import build
    from atent.train import fit
    from atent.train.settings import TrainSettings

    place = tmp_path_factory.mktemp("home")
    with contextlib.chdir(place):
        for name, seed in (("own", "0"), ("other", "1")):
            words = ["train", "digits-linf-fgsmrs", "--name", name, "--train.seed", seed, *TRAIN]
            assert main(words) == 0
        data = load(DataSettings("digits"))
        settings = TrainSettings(epochs=1, validate_attack="FGSM", validate_limit=10)
        fit(
            build("digits_cnn", shape=(1, 8, 8)), data, PGDAT(LINF, steps=1), settings=settings, run="runs/python",
            builder="digits_cnn", data_builder="digits",
        )  # fmt: skip
        config = folder.read_json("runs/python/config.json")
        config["evaluate"] = {"attacks": ["FGSM"], "limit": 10}
        folder.write_json("runs/python/config.json", folder.signed(config))
        Path("runs/python/manifest.json").unlink(missing_ok=True)
        assert main(COMMANDS["evaluate"].format(run="runs/python").split()) == 0
        assert main(COMMANDS["certify"].format(run="runs/own").split()) == 0
    return place / "runs"


@pytest.fixture
def ran(tmp_path, monkeypatch):
    """The file that evilmod, which can be imported, writes when it is."""
    place = tmp_path / "here"
    place.mkdir()
    monkeypatch.chdir(place)
    mark = tmp_path / "ran"
    (place / "evilmod.py").write_text(MODULE.format(ran=str(mark)))
    monkeypatch.syspath_prepend(str(place))
    yield mark
    sys.modules.pop("evilmod", None)


def leaves(value, path=()):
    """The path of every text in a JSON value, and of every null, which a string might take the place of."""
    if isinstance(value, dict | list):
        for key, each in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(each, (*path, key))
    elif isinstance(value, str) or value is None:
        yield path


def planted(value, path, text):
    """The value with ``text`` at ``path``."""
    out = copy.deepcopy(value)
    inner = out
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = text
    return out


def rewritten(run, name, content):
    (run / name).write_text(json.dumps(content))


def with_metadata(run, text):
    """Weights whose metadata say ``text`` everywhere."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    for file in (run / "best.safetensors", run / "last/model.safetensors"):
        if not file.is_file():
            continue
        with safe_open(file, "pt") as opened:
            about, tensors = dict(opened.metadata()), {k: opened.get_tensor(k) for k in opened.keys()}  # noqa: SIM118
        for key, each in about.items():
            with contextlib.suppress(ValueError):
                value = json.loads(each)
                for path in leaves(value):
                    value = planted(value, path, text) if path else text
                about[key] = json.dumps(value)
        save_file(tensors, file, about)


def hostile(run, place, text, paths=None):
    """A copy of a run with ``text`` at the ``paths`` of its configuration; default: in all files, wherever one is."""
    made = place / "hostile"
    shutil.rmtree(made, ignore_errors=True)
    shutil.copytree(run, made)
    # Whoever writes the files writes their sums.
    (made / "manifest.json").unlink(missing_ok=True)
    for file in [made / "config.json"] if paths is not None else made.glob("*.json"):
        content = json.loads(file.read_text())
        for path in leaves(content) if paths is None else paths:
            content = planted(content, path, text)
        file.write_text(json.dumps(content))
    if paths is None:
        with_metadata(made, text)
    return made


def fields(run):
    return list(leaves(json.loads((run / "config.json").read_text())))


def said(capsys, *words):
    status = main([str(word) for word in words])
    out, err = capsys.readouterr()
    return status, out, err


def tried(name, run, home, out, *more):
    """The exit status of a command on a run."""
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    words = [word.format(run=run, other=home / "other", out=out) for word in COMMANDS[name].split()]
    return main([*words, *more])


# ---- hostile folders ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("base", BASES)
def test_a_command_runs_nothing_of_a_hostile_folder(base, name, home, tmp_path, ran):
    for text in FORMS:
        tried(name, hostile(home / base, tmp_path, text), home, tmp_path / "out")
        assert not ran.exists(), (name, text)
    # A report takes a second, and the slow test below has every field.
    for path in CODE if name != "report" else ():
        tried(name, hostile(home / base, tmp_path, EVIL, [path]), home, tmp_path / "out")
        assert not ran.exists(), (name, path)
    assert "evilmod" not in sys.modules


@pytest.mark.parametrize("base", BASES)
def test_no_field_of_a_configuration_runs_code(base, home, tmp_path, ran):
    for path in fields(home / base):
        if path[:3] == ("about", "data", "class_names") and path[3]:
            continue  # ten alike
        run = hostile(home / base, tmp_path, EVIL, [path])
        assert tried("attack", run, home, tmp_path / "out") in (0, 1, 2)
        assert not ran.exists(), path


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("base", ["own", "python"])
def test_no_field_runs_code_by_any_command(base, name, home, tmp_path, ran):
    for path in fields(home / base):
        tried(name, hostile(home / base, tmp_path, EVIL, [path]), home, tmp_path / "out")
        assert not ran.exists(), path


@pytest.mark.parametrize(
    ("base", "path"),
    [("own", ("model", "name")), ("own", ("data", "name")), ("own", ("evaluate", "attacks", 0)),
     ("python", ("model", "builder")), ("python", ("data", "builder"))],
)  # fmt: skip
def test_the_flag_lets_it_run_and_the_line_says_what(base, path, home, tmp_path, ran, capsys):
    run = hostile(home / base, tmp_path, EVIL, [path])
    words = ("evaluate", run, "--limit", 4, "--quiet", *([] if base == "own" else ["--attacks", "FGSM"]))
    status, out, err = said(capsys, *words)
    assert (status, out) == (2, "")
    assert all(part in err.splitlines()[-1] for part in (str(run), EVIL, "--trust-code"))
    assert not ran.exists()
    said(capsys, *words, "--trust-code")
    assert ran.exists()


def test_a_report_and_a_comparison_print_the_names(home, tmp_path, ran, capsys):
    run = hostile(home / "own", tmp_path, EVIL, [("model", "name"), ("method", "name")])
    assert tried("report", run, home, tmp_path / "out") == 0
    assert EVIL in (tmp_path / "out" / "page.html").read_text()
    other = hostile(home / "own", tmp_path / "second", FORMS[1], [("evaluate", "attacks", 0)])
    status, out, err = said(capsys, "compare", run, other, "--runs", tmp_path)
    assert (status, EVIL in out) == (0, True), err
    assert not ran.exists()


def test_python_asks_as_the_command_line_does(home, tmp_path, ran):
    run = hostile(home / "own", tmp_path, EVIL, [("model", "name")])
    for opened in (
        atent.load,
        lambda run: load_target(str(run), limit=4),
        lambda run: Transfer(LINF, source=str(run)).model,
    ):
        with pytest.raises(Untrusted, match=f"{EVIL}.*trust_code=True"):
            opened(run)
    assert not ran.exists()
    with pytest.raises(ValueError, match=r"\S"):
        atent.load(run, trust_code=True)
    assert ran.exists()


def test_texts_of_stored_attacks_run_nothing(ran):
    stored = {"a": {"attack": f"{EVIL}(steps=1)", "threat": LINF.plain()}}
    assert relabelled(stored) == stored
    stored["a"]["attack"] = FORMS[1]
    relabelled(stored)
    with trust.fenced(), pytest.raises(Untrusted):
        parse(FORMS[1], LINF, ATTACKS)
    assert not ran.exists()
    # In Python it is the caller's own text.
    assert isinstance(parse(FORMS[1], LINF, ATTACKS).model, nn.Module)


def test_a_picture_starts_no_interpreter(tmp_path, monkeypatch):
    pytest.importorskip("PIL")
    from PIL import EpsImagePlugin

    from atent.data import DataSettings, load

    started = []
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *args, **given: started.append(args))
    text = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(%pipe%touch ran) (w) file\n"
    for name in ("a/1.png", "a/2.png", "a/3.png", "b/1.png", "b/2.png", "b/3.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match="not a readable image"):
        load(DataSettings("folder", str(tmp_path)))
    assert not started


def test_a_figure_starts_no_latex(monkeypatch):
    import matplotlib
    from matplotlib.texmanager import TexManager

    from atent import plots

    started = []
    monkeypatch.setattr(TexManager, "_run_checked_subprocess", lambda *args, **given: started.append(args))
    rows = [{"epoch": epoch, "validation_clean": 0.5, "validation_robust": 0.4} for epoch in (1, 2)]
    # As a file matplotlibrc in the current folder has it.
    with matplotlib.rc_context({"text.usetex": True}):
        assert b"epoch" in plots.svg(plots.curves(rows))
    assert not started


# ---- what a user gives -------------------------------------------------------------------------------------------


def test_the_name_of_a_folder_grants_nothing(home, ran, capsys):
    shutil.copytree(hostile(home / "own", ran.parent, EVIL, [("model", "name")]), EVIL)
    for words in (("evaluate", EVIL), ("evaluate", f"./{EVIL}"), ("evaluate", f"../here/{EVIL}", "--limit=4")):
        assert said(capsys, *words)[0] == 2
    assert not ran.exists()


def test_references_are_found_in_words_and_texts():
    found = trust.references(
        ["--model=a:b", "PGD(steps=3)", "Transfer(source='c.d:e.f', attack=\"g:H(steps=1)\")", "l1 12: my:Own, Square",
         {"x": {"y": "odd-name:f"}}, "/some/k:m", "2026-11-28T13:35:47+00:00", "cuda:0", "http://host:path/x", 3, None]
    )  # fmt: skip
    assert found == ["a:b", "c.d:e.f", "g:H", "my:Own", "odd-name:f"]


def test_a_recipe_is_trusted_with_what_it_extends_and_not_the_folders_that_it_names(home, tmp_path, ran, capsys):
    (tmp_path / "base.toml").write_text(f'extends = "digits-linf-fgsmrs"\n[model]\nname = "{EVIL}"\n')
    Path("mine.toml").write_text('extends = "../base.toml"\n')
    assert said(capsys, "train", "mine.toml", "--name", "a", *TRAIN)[0] == 0
    assert ran.exists()
    ran.unlink()
    sys.modules.pop("evilmod")
    # Its own run needs no words.
    assert said(capsys, "evaluate", "runs/a", "--limit", 4, "--attacks", "FGSM", "--quiet")[0] == 0
    assert ran.exists()
    ran.unlink()
    sys.modules.pop("evilmod")
    foreign = hostile(home / "own", tmp_path, EVIL, [("model", "name")])
    said(capsys, "train", "digits-linf-fgsmrs", "--model.weights", foreign, "--name", "b", *TRAIN)
    status, _, err = said(
        capsys, "attack", home / "own", "--limit", 4, "--attack", f"Transfer(source='{foreign}', attack=FGSM)"
    )  # fmt: skip
    assert (status, EVIL in err) == (2, True)
    assert not ran.exists()


PLUGIN = """
import dataclasses
from atent import Threat
from atent.attacks import Attack, attack

@attack
@dataclasses.dataclass(frozen=True)
class Still(Attack):
    threat: Threat

    @property
    def passes(self):
        return 1

    def search(self, oracle, x, y, streams):
        return x
"""


def test_a_plugin_is_imported_first(home, tmp_path, ran, capsys, monkeypatch):
    Path("stillness.py").write_text(PLUGIN)
    run = tmp_path / "run"
    shutil.copytree(home / "own", run)
    words = ("evaluate", run, "--limit", 4, "--quiet", "--attacks", "Still")
    assert "unknown attack 'Still'" in said(capsys, *words)[2]
    monkeypatch.setattr(ATTACKS, "_built_in", dict(ATTACKS._built_in))
    status, out, err = said(capsys, *words, "--plugin", "stillness", "--json")
    assert status == 0, err
    assert [each["attack"] for each in json.loads(out)["attacks"].values()] == ["stillness:Still"]
    assert "stillness" in said(capsys, "list", "attacks", "--plugin=stillness")[1]
    for plugin, part in (("no.such", "no module named"), ("a:b", "needs a module"), ("", "needs a module")):
        status, _, err = said(capsys, *words, "--plugin", plugin)
        assert (status, part in err, err.count("\n")) == (2, True, 1)
    sys.modules.pop("stillness", None)


def test_the_trainings_of_a_comparison_trust_the_same():
    assert trust.options() == []
    with trust.fenced(trust_code=True, plugins=("a", "b.c")), trust.fenced():
        assert trust.options() == ["--trust-code", "--plugin", "a", "--plugin", "b.c"]


def test_a_comparison_folder_of_another_runs_nothing(home, tmp_path, ran, capsys):
    from atent.experiments.plan import PLAN

    config = json.loads((home / "own" / "config.json").read_text())
    jobs = {name: planted(config, ("method", "name"), EVIL) for name in ("digits-linf-fgsmrs", "digits-linf-standard")}
    (tmp_path / "theirs").mkdir()
    (tmp_path / "theirs" / PLAN).write_text(json.dumps({"command": EVIL, "seeds": [0], "jobs": jobs}))
    words = ("compare", *jobs, "--seeds", 1, "--runs", tmp_path, "--name", "theirs")
    status, _, err = said(capsys, *words)
    assert (status, EVIL in err) == (2, True)
    assert not ran.exists()


def test_code_that_is_trusted_names_what_it_likes(ran):
    Path("outer.py").write_text(
        "from atent.registry import load_object\ndef f():\n    return load_object('evilmod:f')()\n"
    )
    from atent.models import from_reference

    with trust.fenced("outer:f"):
        from_reference("outer:f")
        with pytest.raises(Untrusted):
            load_object(EVIL)
    assert ran.exists()
    sys.modules.pop("outer", None)


# ---- runs of one's own -------------------------------------------------------------------------------------------


@pytest.fixture
def mine(home, tmp_path, ran):
    """A run that needs evilmod, signed by the user."""
    run = hostile(home / "own", tmp_path, EVIL, [("model", "name")])
    config = folder.read_json(run / "config.json")
    folder.write_json(run / "config.json", folder.signed(config))
    return run


def admitted(run):
    with trust.fenced():
        folder.admit(run)
        return trust.granted(EVIL)


def test_a_copy_of_an_own_run_stays_trusted_and_an_edited_one_does_not(mine, home, tmp_path):
    assert admitted(mine)
    assert admitted(shutil.copytree(mine, tmp_path / "copy"))
    assert admitted(export(mine, tmp_path / "exported"))
    assert admitted(mine.rename(tmp_path / "moved"))
    config = folder.read_json(tmp_path / "copy" / "config.json")
    for path in fields(tmp_path / "copy"):
        edited = tmp_path / "edited"
        edited.mkdir(exist_ok=True)
        folder.write_json(edited / "config.json", planted(config, path, "changed"))
        assert not admitted(edited), path


def test_another_users_signature_is_none(mine, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "another"))
    assert not admitted(mine)
    assert not trust.key_file().exists()
    trust.signature(b"")
    assert not admitted(mine)


def test_a_name_that_was_not_granted_is_not_signed(mine, home):
    config = folder.read_json(mine / "config.json")
    with trust.fenced():
        assert "signature" not in folder.signed(config)
        assert "signature" in folder.signed(folder.read_json(home / "own" / "config.json"))


@pytest.mark.skipif(os.name == "nt", reason="permissions of POSIX")
def test_the_key_is_the_users_alone(mine, tmp_path, monkeypatch, capsys):
    key = trust.key_file()
    assert (stat.S_IMODE(key.stat().st_mode), key.stat().st_size) == (0o600, 32)
    assert [path.name for path in key.parent.iterdir()] == ["key"]
    key.chmod(0o644)
    try:
        assert not admitted(mine)
        with pytest.raises(OSError, match="may be read by others"):
            trust.signature(b"")
    finally:
        key.chmod(0o600)
    # A path that is relative would lie in whatever folder the command runs.
    monkeypatch.setenv("XDG_CONFIG_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert trust.key_file() == tmp_path / "home/.config/atent/key"
    for content in (b"short", b"x" * 33):
        trust.key_file().parent.mkdir(parents=True, exist_ok=True)
        trust.key_file().write_bytes(content)
        assert not admitted(mine)


def test_processes_that_make_the_key_at_once_share_one(tmp_path, monkeypatch):
    for round_ in range(20):
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / str(round_)))
        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(trust.signature, [b"same"] * 8))) == 1


def test_a_training_without_a_home_goes_on_with_a_line(tmp_path, ran, monkeypatch, capsys):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "file"))
    status, _, err = said(capsys, "train", "digits-linf-fgsmrs", "--model", EVIL, "--name", "a", *TRAIN)
    assert (status, err.count("\n"), "not signed" in err) == (0, 1, True)
    words = ("evaluate", "runs/a", "--limit", 4, "--attacks", "FGSM", "--quiet")
    assert said(capsys, *words)[0] == 2
    assert said(capsys, *words, "--trust-code")[0] == 0
    # Nothing is lost where all is built in.
    assert said(capsys, "train", "digits-linf-fgsmrs", "--name", "b", *TRAIN)[2] == ""


def test_the_page_runs():
    page = (Path(__file__).parents[2] / "docs" / "security.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "docs/security.md", "exec"), {})


# ---- the current folder ------------------------------------------------------------------------------------------

SHADOWS = ("numpy", "torch", "jinja2", "matplotlib", "safetensors", "rich", "pydantic", "tyro", "csv", "decimal", "PIL")


@pytest.fixture
def shadows(tmp_path):
    """A folder whose files have the names of modules that the library imports, its own name included."""
    place = tmp_path / "shadows"
    for name in SHADOWS:
        file = place / f"{name}.py"
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"open({str(tmp_path / 'ran')!r}, 'a').write({name!r})\nraise SystemExit(7)\n")
    (place / "matplotlibrc").write_text("backend: module://evilmod\n")
    return place


def child(place, *words):
    return subprocess.run(
        [sys.executable, *map(str, words)], cwd=place, capture_output=True, text=True, timeout=120, env=dict(os.environ)
    )  # fmt: skip


def test_the_command_imports_nothing_from_the_current_folder(home, shadows, tmp_path):
    (shadows / "atent").mkdir()
    (shadows / "atent" / "__init__.py").write_text((shadows / "numpy.py").read_text())
    # As an installer writes it.
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "atent").write_text("import sys\nfrom atent.cli import run\nsys.exit(run())\n")
    run = shutil.copytree(home / "own", shadows / "run")
    done = child(shadows, tmp_path / "bin" / "atent", "report", run, "--images", 1, "--quiet")
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()


@pytest.mark.slow
def test_neither_does_the_module_nor_a_comparison(shadows, tmp_path):
    for name in ("csv", "decimal"):  # what Python and the package import before the first line of the command
        (shadows / f"{name}.py").unlink()
    done = child(shadows, "-m", "atent", "list", "attacks")
    assert done.returncode == 0, done.stderr
    words = ["digits-linf-fgsmrs", "digits-linf-standard", "--seeds", "1", *TRAIN]
    words.remove("--no-baseline")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "atent").write_text("import sys\nfrom atent.cli import run\nsys.exit(run())\n")
    done = child(shadows, tmp_path / "bin" / "atent", "compare", *words)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "ran").exists()
