"""Recipes that extend others: how they merge, what is refused, and that no value is stated twice without a reason."""

import json
import tomllib

import numpy as np
import pytest

from atent.cli import main
from atent.experiments.recipe_files import (
    BASE,
    RENAMED,
    SECTIONS,
    UsageError,
    _report_renamed,
    as_toml,
    base_names,
    moved,
    read_recipe,
    recipe_file,
    recipe_names,
)
from atent.experiments.recipes import job


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def file(name, text):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        return name

    return file


def test_a_child_wins_key_by_key_and_an_inline_table_is_one_value(write):
    write(
        "above/one.toml",
        '[method]\nname = "PGDAT"\nsteps = 7\nthreat = { norm = "linf", eps = 0.1 }\n[train]\nepochs = 2\n',
    )
    write(
        "two.toml",
        'about = "x"\nextends = "above/one.toml"\n[method]\nsteps = 9\nthreat = { norm = "l2", eps = 1.0 }\n',
    )
    found = read_recipe("two.toml")
    assert found == {
        "about": "x",
        "method": {"name": "PGDAT", "steps": 9, "threat": {"norm": "l2", "eps": 1.0}},
        "train": {"epochs": 2},
    }
    # A path is relative to the file that names it.
    write("above/three.toml", 'extends = "one.toml"\n')
    assert read_recipe("above/three.toml")["method"]["steps"] == 7


def test_several_levels_several_parents_and_what_is_dropped(write):
    write("a.toml", "[train]\nepochs = 1\nbatch_size = 8\n[optimizer]\nlr = 0.5\n")
    write("b.toml", 'extends = "a.toml"\n[train]\nepochs = 2\n')
    write("c.toml", "[train]\nepochs = 3\n[optimizer]\nmomentum = 0.1\n")
    write("d.toml", 'extends = ["b.toml", "c.toml"]\ndrop = ["train.batch_size"]\n')
    assert read_recipe("d.toml") == {"train": {"epochs": 3}, "optimizer": {"lr": 0.5, "momentum": 0.1}}


def test_your_own_file_extends_the_packages(write):
    write("mine.toml", 'extends = "digits-linf-pgdat"\n[train]\nepochs = 3\n')
    made, whole = job(read_recipe("mine.toml"), "mine"), job(read_recipe("digits-linf-pgdat"), "x")
    assert made.train.epochs == 3
    assert made.method == whole.method
    assert "about" not in read_recipe("mine.toml")


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ('extends = "digits-linf-pgdatt"', ["extends 'digits-linf-pgdatt'", "did you mean 'digits-linf-pgdat'"]),
        ('extends = "absent.toml"', ["no recipe file", "absent.toml"]),
        ('extends = "x.toml"', ["extends itself", "x -> x"]),
        ('extends = "y.toml"', ["extends itself", "x -> y -> x"]),
        ("extends = 3", ["extends and drop must be names or lists of names"]),
        ('extends = "digits-linf-pgdat"\ndrop = ["train.epoch"]', ["'train.epoch'", "does not inherit"]),
        ('extend = "digits-linf-pgdat"', ["did you mean 'extends'"]),
    ],
)
def test_mistakes_are_one_line(write, text, parts):
    write("x.toml", text + "\n")
    write("y.toml", 'extends = "x.toml"\n')
    with pytest.raises(UsageError) as error:
        read_recipe("x.toml")
    assert "\n" not in str(error.value)
    for part in parts:
        assert part in str(error.value)


def test_bases_are_not_recipes():
    assert base_names()
    assert not any(name.startswith(BASE) or name == "base" for name in recipe_names())
    for name in base_names():
        with pytest.raises(UsageError, match="is a base, not a recipe"):
            read_recipe(name)
        parents = recipe_file(name, bases=True)
        tables = tomllib.loads(parents.read_text())
        assert set(tables) <= {"extends", *SECTIONS}


def test_every_base_is_extended():
    files = [recipe_file(name, bases=True).read_text() for name in [*recipe_names(), *base_names()]]
    for name in base_names():
        assert any(name in parents(text) for text in files), name


def parents(text):
    """The names that a recipe extends, the one that wins last."""
    found = tomllib.loads(text).get("extends", [])
    return [found] if isinstance(found, str) else found


def inherited_by(text):
    """{section.key: value} of all that a recipe has from those that it extends."""
    values = {}
    for name in parents(text):
        base = recipe_file(name, bases=True).read_text()
        values |= inherited_by(base)
        own = tomllib.loads(base)
        values |= {f"{s}.{key}": value for s in SECTIONS for key, value in own.get(s, {}).items()}
    return values


def stated(text):
    """The values that a recipe states: {section.key: value}, and which of them stand beside a comment."""
    values = {
        f"{s}.{k}": v for s, table in tomllib.loads(text).items() if isinstance(table, dict) for k, v in table.items()
    }
    reasons, section, before = set(), "", ""
    for line in text.splitlines():
        if line.startswith("["):
            section = line.strip("[] ")
        elif "=" in line and ("#" in line or before.startswith("#")):
            reasons.add(f"{section}.{line.split('=')[0].strip()}")
        before = line
    return values, reasons


@pytest.mark.parametrize("name", recipe_names())
def test_no_value_is_stated_twice_without_a_reason(name):
    text = recipe_file(name).read_text()
    inherited = inherited_by(text)
    values, reasons = stated(text)
    again = [
        key for key, value in values.items() if key in inherited and inherited[key] == value and key not in reasons
    ]
    assert not again


@pytest.mark.parametrize("name", ["digits-linf-atent-plus", "cifar10-linf-atent", "own-l2-trades"])
def test_a_resolved_recipe_is_whole(name, capsys):
    assert main(["recipes", name, "--resolved"]) == 0
    out = capsys.readouterr().out
    assert "extends" not in out
    assert tomllib.loads(out) == read_recipe(name)
    assert main(["recipes", name]) == 0
    assert capsys.readouterr().out == recipe_file(name).read_text()


def test_toml_comes_back():
    tables = {
        "about": 'a "b" \\ ä',
        "aims": [],
        "train": {"lr": 1e-4, "on": True, "t": {"eps": "8/255", "l": [1, 2.5]}},
    }
    assert tomllib.loads(as_toml(tables)) == tables


def test_rivals_are_averaged_alike():
    """Each recipe -ema has the averaging of the recipe -plus of its data and norm, and what else its rival has."""
    found = [name for name in recipe_names() if name.endswith("-ema")]
    assert len(found) >= 15
    for name in found:
        data, norm, method, _ = name.split("-")
        rival, plus = job(read_recipe(name), name), job(read_recipe(f"{data}-{norm}-atent-plus"), "plus")
        for field in ("average", "average_decay", "average_start", "select_weights"):
            assert getattr(rival.train, field) == getattr(plus.train, field), (name, field)
        assert (rival.data, rival.model) == (plus.data, plus.model)
        if f"{data}-{norm}-{method}" in recipe_names() and data != "cifar10":
            plain = job(read_recipe(f"{data}-{norm}-{method}"), "plain")
            assert (rival.method, rival.optimizer, rival.schedule) == (plain.method, plain.optimizer, plain.schedule)


def test_your_own_data_has_recipes_of_no_other_name(write, tmp_path, capsys):
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    images = np.rint(x.reshape(-1, 1, 8, 8) * (255 / 16)).astype(np.uint8)
    np.savez(tmp_path / "mine.npz", x_train=images[:160], y_train=y[:160], x_test=images[160:220], y_test=y[160:220])
    words = [
        "--data.name", "npz", "--data.root", "mine.npz", "--model", "digits_cnn", "--train.epochs", "1",
        "--method.steps", "1", "--evaluate.attacks", "FGSM", "--train.device", "cpu", "--quiet",
    ]  # fmt: skip
    status = main(["train", "own-linf-atent", *words])
    assert status == 0, capsys.readouterr().err
    config = json.loads((tmp_path / "runs" / "own-linf-atent" / "config.json").read_text())
    assert config["data"]["name"] == "npz"
    assert config["recipe"] == "own-linf-atent"


def test_a_former_name_is_the_recipe_of_today_with_one_deprecation_line(write, capsys):
    for former, name in RENAMED.items():
        _report_renamed.cache_clear()
        assert former not in recipe_names()
        assert name in recipe_names()
        assert read_recipe(former) == read_recipe(name)
        assert read_recipe(former) == read_recipe(name)
        (line,) = capsys.readouterr().err.splitlines()
        assert former in line
        assert name in line
        # A recipe that extends it reads on.
        write("own.toml", f'extends = "{former}"\n')
        assert read_recipe("own.toml")["method"] == read_recipe(name)["method"]


def test_a_run_made_under_a_former_name_is_that_of_the_table():
    from atent.paper.scales import SCALES
    from atent.paper.tables import table_s2

    found = {t.name: t for scale in SCALES.values() for t in table_s2(scale).trainings()}
    for former, name in RENAMED.items():
        assert found[former].recipe == name


def test_another_method_keeps_the_fields_that_it_has(write, capsys):
    write("mine.toml", 'extends = "mnist-l2-atent"\n[method]\nname = "PGDAT"\n')
    found, whole = read_recipe("mine.toml"), read_recipe("mnist-l2-atent")
    assert found["method"]["threat"] == whole["method"]["threat"]
    assert "gamma" not in found["method"]
    assert "PGDAT has no variant, gamma" in capsys.readouterr().err
    assert type(job(found, "mine").method).__name__ == "PGDAT"


def test_the_former_name_of_the_anchor_term_is_read():
    found = moved({"method": {"name": "ATENT", "pull": "scaled"}})
    assert found["method"] == {"name": "ATENT", "anchor": "scaled"}
    other = {"method": {"name": "mine:Tug", "pull": 3}}
    assert moved(other) is other
    with pytest.raises(UsageError, match=r"method\.pull and method\.anchor"):
        moved({"method": {"name": "ATENT", "pull": "free", "anchor": "free"}})
