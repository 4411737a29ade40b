"""Settings given values of every type: they work with each, or refuse it in one line that names the field."""

import dataclasses
import math
import time
from pathlib import Path

import bad_inputs
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from atent import Threat
from atent.attacks import ATTACKS, PGD, SigmaZero
from atent.attacks.length import LONGEST, check_length
from atent.attacks.several import parse_threat
from atent.attacks.spec import parse
from atent.certify import bounds
from atent.cli import main
from atent.data import DataSettings
from atent.experiments.recipe_files import UsageError, read_recipe
from atent.experiments.recipes import job
from atent.experiments.target import EvaluateSettings
from atent.fields import LARGEST, fitting, mistyped, shown
from atent.methods import METHODS
from atent.models import ModelSettings
from atent.optim import Optimizer, Schedule
from atent.runs.folder import check_name
from atent.testing import ContractError
from atent.testing.bad_inputs import ODD, check_settings, settings_tried, tried
from atent.testing.networks import network
from atent.train.settings import TrainSettings

THREATS = bad_inputs.THREATS
SOURCE = torch.nn.Flatten()


def wrong(cases):
    return [f"{what}: {verdict.says}" for what, verdict in cases if verdict.kind == "wrong"]


@pytest.mark.parametrize("room", ["settings", "threats"])
def test_every_setting_and_threat_works_or_is_refused(room):
    assert not wrong(bad_inputs.ROOMS[room]())


@pytest.mark.slow
@pytest.mark.parametrize("room", [room for room in bad_inputs.ROOMS if room not in ("settings", "threats")])
def test_every_room_works_or_refuses(room):
    assert not wrong(bad_inputs.ROOMS[room]())


# hypothesis itself cannot print these; the test above has them.
PRINTED = [value for what, value in ODD.items() if what not in ("10^5000", "a deep list")]
# Any value of JSON or Python, numpy and torch.
numbers = st.one_of(
    st.integers(), st.integers(-(10**400), 10**400), st.floats(), st.booleans(),
    st.floats(width=32).map(np.float32), st.integers(-(2**62), 2**62).map(np.int64), st.floats().map(torch.tensor),
)  # fmt: skip
texts = st.one_of(st.text(max_size=30), st.sampled_from(["8/255", "inf", "nan", "1e999999999", "all", "auto", "linf"]))
anything = st.recursive(
    st.one_of(st.none(), numbers, texts, st.binary(max_size=5), st.sampled_from(PRINTED)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=2)),
    max_leaves=5,
)
CLASSES = [
    *((cls, {}) for cls in (TrainSettings, DataSettings, ModelSettings, Optimizer, Schedule, EvaluateSettings)),
    *(
        (cls, {"threat": THREATS[norm], **({"source": SOURCE} if name == "Transfer" else {})})
        for name, cls in ATTACKS.items()
        for norm in cls.norms
    ),
    *(
        (cls, {"threat": THREATS[norm]})
        for cls in METHODS.values()
        for norm in (cls.norms if "threat" in {f.name for f in dataclasses.fields(cls)} else ())
        if "teacher" not in {f.name for f in dataclasses.fields(cls)}
    ),
    *((Threat, threat.plain()) for threat in THREATS.values()),
]


@settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(CLASSES), st.data())
def test_any_value_works_or_is_refused_in_one_line_that_names_the_field(case, data):
    cls, good = case
    field = data.draw(st.sampled_from([f.name for f in dataclasses.fields(cls)]))
    value = data.draw(anything)
    verdict = tried(lambda: cls(**{**good, field: value}), field, cls.__name__.lower())
    assert verdict.kind != "wrong", f"{cls.__name__}({field}={shown(value)}): {verdict.says}"


def test_the_check_finds_a_setting_that_raises_what_it_may_not():
    @dataclasses.dataclass(frozen=True)
    class Loose:
        size: float = 1.0

        def __post_init__(self):
            math.isfinite(self.size)

    with pytest.raises(ContractError, match="size"):
        check_settings(Loose)
    assert check_settings(Threat, norm="linf", eps=0.1) == [field.name for field in dataclasses.fields(Threat)]
    kinds = {verdict.kind for _, _, verdict in settings_tried(Loose, {})}
    assert kinds == {"wrong", "accepted"}


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Optimizer(lr=1e308), "lr"),
        (lambda: Optimizer(lr=float("nan")), "lr"),
        (lambda: Schedule(every=-1), "every"),
        (lambda: EvaluateSettings(seed=10**30), "seed"),
        (lambda: Threat("linf", 1e308), "eps"),
        (lambda: Threat("linf", "1e999999999"), "eps"),
        (lambda: Threat("linf", 0.1, box=(0, 1e308)), "box"),
        (lambda: Threat("l0", -(10**400)), "eps"),
        (lambda: TrainSettings(threads=10**9), "threads"),
        (lambda: PGD(THREATS["linf"], 10, 0.1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13), "PGD"),
        (lambda: PGD(THREATS["linf"], 10, steps=20), "steps"),
        (lambda: PGD(THREATS["linf"], minimum_norm=True), "minimum_norm"),
        (lambda: parse_threat("patch 1 side \u00b2"), "side"),
        (lambda: bounds(network(batch_norm=False), torch.zeros(1, 1, 6, 6).double(), 0.1), "threat"),
        (lambda: check_name("../x"), "../x"),
        (lambda: check_name("x" * 300), "name"),
        (lambda: parse("PGD(steps=" + "-" * 20_000 + "1)", THREATS["linf"], ATTACKS), "attack"),
    ],
)  # fmt: skip
def test_what_was_not_refused_in_one_line_is(make, says):
    verdict = tried(make)
    assert verdict.kind == "refused", verdict
    assert says in verdict.says


def test_a_value_is_shown_on_one_short_line():
    for value in ODD.values():
        assert len(shown(value)) < 120
        assert "\n" not in shown(value)
    assert shown(0.5) == "0.5"
    assert shown([1, 2]) == "[1, 2]"


def test_numbers_beyond_float32_and_texts_that_no_file_takes_are_of_no_type():
    assert mistyped(Optimizer, {"lr": LARGEST}) is None
    assert "3.4e+38" in mistyped(Optimizer, {"lr": LARGEST * 1.01})
    assert "64 bits" in mistyped(TrainSettings, {"epochs": 2**64})
    assert mistyped(EvaluateSettings, {"eps": math.inf}) is None
    assert "NUL" in mistyped(DataSettings, {"root": "a\0"})
    assert mistyped(DataSettings, {"root": Path("x")}) is None


def test_lists_become_tuples_and_large_whole_numbers_floats():
    assert Schedule(kind="multistep", milestones=[1, 2]).milestones == (1, 2)
    assert type(fitting(SigmaZero, {"sigma": 2**63})["sigma"]) is float
    assert type(fitting(SigmaZero, {"sigma": 2})["sigma"]) is int


# ---- attacks without end -------------------------------------------------------------------------------------


def test_an_attack_without_end_needs_to_be_allowed():
    long = PGD(THREATS["linf"], steps=10**12)
    with pytest.raises(ValueError, match="--allow-long") as error:
        check_length({"PGD": long}, allowed=False)
    assert "2e+12 passes" in str(error.value)
    check_length({"PGD": long}, allowed=True)
    check_length({"PGD": PGD(THREATS["linf"], steps=LONGEST // 2 - 1)}, allowed=False)


def test_no_attack_is_too_long_by_default():
    for name, cls in ATTACKS.items():
        extra = {"source": SOURCE} if name == "Transfer" else {}
        check_length({name: cls(THREATS[cls.norms[0]], **extra)}, allowed=False)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--evaluate.attacks", "PGD(steps=1000000000000)"], "--evaluate.allow-long"),
        (["--train.validate-attack", "PGD(steps=1000000000000)"], "--evaluate.allow-long"),
        (["--method.steps", "20000", "--method.step-size", "0.1"], "--evaluate.allow-long"),
        (["--name", "../x"], "--runs"),
        (["--schedule.every", "-1"], "every"),
        (["--evaluate.seed", "1" + "0" * 30], "seed"),
        (["--evaluate.checks", "--evaluate.eps", "inf", "--evaluate.attacks", "FMN"], "evaluate.checks"),
        (["--optimizer.lr", "1e308"], "lr"),
        (["--method.threat.eps", "1e308"], "eps"),
    ],
)  # fmt: skip
def test_the_command_line_refuses_it_before_it_trains(words, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["train", "digits-linf-pgdat", *words, "--quiet"]) == 2
    found = capsys.readouterr()
    assert says in found.err
    assert found.err.count("\n") == 1
    assert not list(tmp_path.rglob("*"))


# ---- recipes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"[train]\nseed = 1979-05-27\n", "train.seed"),
        (b"x = " + b"[" * 2000 + b"]" * 2000, "nested"),
        (b"train = 3\n", "train must be a table"),
        (b"[[train]]\n", "train must be a table"),
        (b'[method]\nname = ["PGDAT"]\n', "method.name"),
        (b'[method]\nname = "PGDAT"\nthreat = "linf"\n', "method.threat"),
        (b'[method]\nname = "Standard"\n[optimizer]\nname = "SGLD"\n[optimizer.walk]\nnoise = nan\n', "noise must be"),
        (b'[method]\nname = "Standard"\n[train]\nseed = ' + b"9" * 400 + b"\n", "train.seed"),
        (b"[train]\nseed = " + b"9" * 5000 + b"\n", "digits"),
        (b'about = "\xff"\n', "UTF-8"),
        (b'about = "a\0"\n', "TOML"),
        (b"about = 3\n", "about"),
        (b"#" * (2**20 + 1), "1,048,576"),
    ],
)  # fmt: skip
def test_odd_recipes_are_refused_in_one_line(content, says, tmp_path):
    file = tmp_path / "odd.toml"
    file.write_bytes(content)
    with pytest.raises(UsageError) as error:
        job(read_recipe(str(file)), "odd")
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_a_byte_order_mark_is_read(tmp_path):
    file = tmp_path / "mark.toml"
    file.write_bytes(b'\xef\xbb\xbf[method]\nname = "Standard"\n')
    assert job(read_recipe(str(file)), "mark").method.replays == 1


def test_recipes_that_extend_each_other_twice_over_are_read_once_each(tmp_path):
    last = 25  # two to this power readings without a memory
    for k in range(last):
        (tmp_path / f"r{k}.toml").write_text(f'extends = ["r{k + 1}.toml", "r{k + 1}.toml"]\n')
    (tmp_path / f"r{last}.toml").write_text('[method]\nname = "Standard"\n')
    assert read_recipe(str(tmp_path / "r0.toml"))["method"] == {"name": "Standard"}


def test_a_chain_of_recipes_has_an_end(tmp_path):
    for k in range(80):
        (tmp_path / f"r{k}.toml").write_text(f'extends = "r{k + 1}.toml"\n')
    with pytest.raises(UsageError, match="chain"):
        read_recipe(str(tmp_path / "r0.toml"))


def test_settings_made_for_every_batch_stay_cheap():
    """A training makes an attack for every batch, in some 10 microseconds; a hundred times that would be seen."""

    def seconds(n=200):
        begun = time.process_time()
        for _ in range(n):
            PGD(THREATS["linf"], steps=10, step_size=0.01)
        return (time.process_time() - begun) / n

    assert min(seconds() for _ in range(5)) < 1e-3
