"""What a sweep file may say, and the mistakes in it."""

from pathlib import Path

import pytest
from sweeps import LR, STEPS, folder_here, written  # noqa: F401 - fixtures

from atent import extras
from atent.cli import main
from atent.experiments.recipe_files import UsageError
from atent.experiments.sweep.space import Range, parameter
from atent.experiments.sweep.spec import changed, read_sweep


@pytest.mark.parametrize(
    ("sweep", "space", "fixed", "parts"),
    [
        ("trails = 3", STEPS, "", ["unknown setting 'trails'", "'trials'"]),
        ("trials = 0", STEPS, "", ["trials must be at least 1, got 0"]),
        ("trials = true", STEPS, "", ["trials must be an integer, got True"]),
        ('sampler = "gird"', STEPS, "", ["unknown sampler 'gird'", "'grid'"]),
        ('pruner = "median"', STEPS, "", ["unknown pruner", "none, asha"]),
        ('objective = "test_robust"', STEPS, "", ["unknown objective 'test_robust'"]),
        ('objective = ["loss", "loss"]', STEPS, "", ["loss twice"]),
        ('direction = ["maximize", "minimize"]', STEPS, "", ["1 objectives and 2 directions"]),
        ('direction = "up"', STEPS, "", ["unknown direction 'up'"]),
        ('objective = "validation_certified"', STEPS, "", ['certifier = "crown-ibp"']),
        ('certifier = "ibp"', STEPS, "", ["needs objective validation_certified"]),
        ('objective = "validation_certified"\ncertifier = "smoothing"', STEPS, "", ["does not verify by bounds"]),
        ('objective = "validation_certified"\ncertifier = "ibpp"', STEPS, "", ["did you mean 'ibp'"]),
        ("epochs = 2\nminutes = 1.0", STEPS, "", ["epochs and minutes exclude each other"]),
        ("epochs = 2", STEPS, '"train.epochs" = 3', ["set the same field: use one"]),
        ('pruner = "asha"\nminutes = 1.0', STEPS, "", ["asha counts epochs"]),
        ('pruner = "asha"\nrung = 4', STEPS, "", ["after 4 epochs, and a training has 4"]),
        (
            'pruner = "asha"\nobjective = ["validation_robust", "validation_clean"]',
            STEPS,
            "",
            ["single objective"],
        ),
        ('sampler = "grid"', LR, "", ["optimizer.lr: a grid needs listed values"]),
        ('sampler = "grid"\ntrials = 3', STEPS, "", ["the grid has 2 trials, not 3"]),
        ("", "", "", ["[space] is empty"]),
        ("", '"method.steps" = []', "", ["method.steps has no values"]),
        ("", '"method.steps" = 5', "", ["method.steps has a single value, 5"]),
        ("", '"method.steps" = [5, 5]', "", ["lists 5 twice"]),
        ("", '"method.steps" = [[5]]', "", ["takes numbers, strings, true and false"]),
        ("", '"method.stpes" = [5, 6]', "", ["method.stpes", "'steps'"]),
        ("", '"method.steps" = ["many"]', "", ["method.steps", "many"]),
        ("", '"steps" = [5]', "", ["steps is not a field of a recipe"]),
        ("", '"method.steps" = { low = 5, high = 2 }', "", ["low must be at most high, got 5 and 2"]),
        ("", '"method.steps" = { low = 5, high = 5 }', "", ["low and high are both 5"]),
        ("", '"method.steps" = { low = 1, high = 10, step = 2 }', "", ["steps of 2 from 1 do not meet high 10"]),
        ("", '"method.steps" = { low = 1, high = 3, step = 0.5 }', "", ["step must be above 0 and whole"]),
        ("", '"method.steps" = { low = 1.0, high = 10.0 }', "", ["method.steps"]),
        ("", '"optimizer.lr" = { low = 0.0, high = 1.0, log = true }', "", ["must begin above 0"]),
        ("", '"optimizer.lr" = { low = 0.1, high = 1.0, log = true, step = 0.1 }', "", ["exclude each other"]),
        ("", '"optimizer.lr" = { low = 0.1 }', "", ["optimizer.lr has no high"]),
        ("", '"optimizer.lr" = { low = 0.1, high = inf }', "", ["high must be a finite number"]),
        ("", '"optimizer.lr" = { low = 0.1, hihg = 1.0 }', "", ["unknown key 'hihg'"]),
        ("", STEPS, '"method.steps" = 3', ["in [space] and also fixed"]),
        ("", '"train.seed" = [0, 1]', "", ["give [sweep] seeds"]),
        ("", STEPS, '"train.seed" = 1', ["give [sweep] seeds"]),
        ("", '"evaluate.limit" = [10, 20]', "", ["changes the validation data or metric"]),
        ("", '"data.limit" = [10, 20]', "", ["changes the validation data or metric"]),
        ("", '"train.validate_attack" = ["FGSM", "PGD"]', "", ["changes the validation data or metric"]),
        ("", '"method.threat.eps" = [0.1, 0.2]', "", ["linf 0.1 and linf 0.2", "one sweep per threat"]),
        ("", STEPS, '"train.validate_attack" = "none"', ["not measured without"]),
        ("", '"method.name" = ["PGDAT", "PGDATT"]', "", ["PGDATT"]),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file(here, sweep, space, fixed, parts, capsys):
    file = written(sweep, space, fixed)
    assert main(["sweep", file]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"atent: sweep {file}: ")
    for part in parts:
        assert part in line
    assert not Path("runs").exists()


def test_a_file_that_is_none_is_one_line(here):
    Path("broken.toml").write_text("recipe = ")
    Path("other.toml").write_text('recipe = "tiny.toml"\nspace = 3')
    Path("without.toml").write_text("[space]\n")
    for file, part in {
        "absent.toml": "no sweep file", "broken.toml": "not valid TOML", "other.toml": "write [space]",
        "without.toml": "recipe is missing",
    }.items():  # fmt: skip
        with pytest.raises(UsageError, match=part.replace("[", r"\[")) as error:
            read_sweep(file)
        assert file in str(error.value)
        assert "\n" not in str(error.value)


def test_settings_may_be_spelled_as_on_the_command_line(here):
    file = written(
        "epochs = 2",
        '"--train.batch-size" = [32, 64]\n"method" = ["PGDAT", "Standard"]',
        '"evaluate.eps" = 0.1\n"evaluate.norm" = "linf"',
    )
    found = read_sweep(file)
    assert [each.name for each in found.space] == ["train.batch_size", "method.name"]
    made = found.job({"train.batch_size": 32, "method.name": "Standard"}, "x")
    assert (made.train.batch_size, type(made.method).__name__, made.train.epochs) == (32, "Standard", 2)


def test_a_nested_setting_changes_no_other_trial(here):
    tables = {"method": {"name": "PGDAT", "threat": {"norm": "linf", "eps": 0.1}}}
    assert changed(tables, {"method.threat.eps": 0.2})["method"]["threat"] == {"norm": "linf", "eps": 0.2}
    assert tables["method"]["threat"]["eps"] == 0.1


def test_a_range_with_a_step_is_a_grid_of_its_values():
    found = parameter("optimizer.lr", {"low": 0.1, "high": 0.4, "step": 0.1})
    assert isinstance(found, Range)
    assert found.listed() == pytest.approx((0.1, 0.2, 0.3, 0.4))


def test_a_missing_extra_is_one_line(here, monkeypatch, capsys):
    def absent(module):
        raise ImportError(f"No module named {module!r}")

    monkeypatch.setattr(extras.importlib, "import_module", absent)
    assert main(["sweep", written()]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "pip install 'atent[sweep]'" in line
