"""What a newcomer types and gets wrong: it works, or one line says what to write."""

import re
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import atent
from atent import Threat
from atent.attacks import ATTACKS, Attack
from atent.attacks.spec import parse
from atent.checks import mistyped
from atent.cli import main
from atent.cli.parse import read
from atent.data import DataSettings, from_tensors, load
from atent.methods import ATENT, PGDAT, Standard
from atent.optim import Schedule
from atent.train import TrainSettings, fit

QUICK = ["--device", "cpu", "--quiet", "--limit", "8"]


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A run of one epoch, trained from Python, beside a module that builds its network and holds an attack."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stepsmine.py").write_text(
        "from dataclasses import dataclass\nfrom torch import nn\nfrom atent import Threat\n"
        "from atent.attacks import Attack\n\n"
        "def net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n\n"
        "@dataclass(frozen=True)\nclass X(Attack):\n    threat: Threat\n    tries: int = 2\n    size: float = 1\n"
        "    passes = 2\n    def search(self, oracle, x, y, streams):\n        return x\n"
    )
    data = load(DataSettings(limit=64, test_limit=20, validation=20))
    how = TrainSettings(epochs=1, batch_size=32, device="cpu", validate_attack="FGSM")
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    fit(net, data, Standard(), settings=how, run="run", progress=False, builder="stepsmine:net")
    return tmp_path


def line(capsys, *words):
    """The one line of a command that is not understood."""
    assert main([*words]) == 2
    (found,) = capsys.readouterr().err.strip().splitlines()
    return found


def test_data_is_shown_in_one_line():
    x, y = torch.rand(60, 1, 4, 4), torch.arange(60) % 3
    data = from_tensors(x[:40], y[:40], x[40:], y[40:], validation=10, name="mine")
    assert repr(data) == "Data('mine', 3 classes, shape (1, 4, 4), 30 train, 10 validation, 20 test)"
    assert repr(data.test) == "Split(20 samples of shape (1, 4, 4), float32 on cpu)"


def test_the_package_is_called_as_its_function():
    from atent import evaluate

    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    x, y = torch.rand(6, 1, 4, 4), torch.arange(6) % 3
    found = evaluate(net, x, y, {})
    assert found.to_json() == atent.evaluate.evaluate(net, x, y, {}).to_json()
    assert atent.evaluate.sweep


def test_fields_of_an_own_attack_are_checked_in_a_call(mine, capsys):
    threat = Threat("linf", 0.1)
    assert parse("stepsmine:X(tries=3, size=2)", threat, ATTACKS).tries == 3
    for text, told in (
        ("stepsmine:X(tries=x)", "tries must be an integer, got 'x'"),
        ("stepsmine:X(tries=1.5)", "tries must be an integer, got 1.5"),
        ("stepsmine:X(tries=true)", "tries must be an integer, got True"),
        ("stepsmine:X(size=none)", "size must be a number, got None"),
    ):
        with pytest.raises(ValueError, match=re.escape(told)) as error:
            parse(text, threat, ATTACKS)
        assert "\n" not in str(error.value)
    told = line(
        capsys, "evaluate", "run", "--norm", "linf", "--eps", "0.1", "--attacks", "stepsmine:X(tries=x)", *QUICK
    )
    assert "tries must be an integer" in told


def test_types_in_words():
    @dataclass
    class Fields:
        pair: tuple[int, int] = (1, 2)
        many: tuple[str, ...] = ()
        which: int | None = None
        net: nn.Module | str = ""

    Fields.__annotations__ = {"pair": tuple[int, int], "many": tuple[str, ...], "which": int | None, "net": nn.Module}
    right = {"pair": (1, 2), "many": ["a", "b"], "which": None, "net": 3}
    assert mistyped(Fields, right) is None
    assert mistyped(Fields, {"pair": (1, 2, 3)}) == "pair must be a tuple of integers, got (1, 2, 3)"
    assert mistyped(Fields, {"many": (1,)}) == "many must be a tuple of strings, got (1,)"
    assert mistyped(Fields, {"which": "x"}) == "which must be an integer or none, got 'x'"


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (lambda x: None, "got NoneType"),
        (lambda x: x[:1], r"got torch.float32 of shape \(1, 4\)"),
        (lambda x: (x, x), "got tuple"),
        (lambda x: x.long(), "got torch.int64"),
    ],
)
def test_a_search_that_returns_nonsense_is_named(given, told):
    @dataclass(frozen=True)
    class Odd(Attack):
        threat: Threat

        def search(self, oracle, x, y, streams):
            return given(x)

    net, x, y = nn.Linear(4, 3), torch.rand(5, 4), torch.arange(5) % 3
    with pytest.raises(ValueError, match=f"Odd.search must return adversarial inputs, .*{told}") as error:
        Odd(Threat("linf", 0.1))(net, x, y)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("words", [["--help"], ["list", "models"], ["recipes"]])
def test_columns_count_where_output_is_piped(words, capsys, monkeypatch):
    longest = {}
    for columns in ("70", "160"):
        monkeypatch.setenv("COLUMNS", columns)
        assert main(words) == 0
        # Examples are whole, so that they can be copied.
        lines = [text for text in capsys.readouterr().out.splitlines() if not text.startswith("  atent ")]
        longest[columns] = max(map(len, lines))
    assert longest["70"] <= 70 < longest["160"] <= 160


def test_both_spellings_of_data_and_root(mine):
    from atent.cli.evaluate import evaluate as command

    for words in (["--data", "npz", "--root", "x.npz"], ["--data.name", "npz", "--data.root", "x.npz"]):
        given = read(command, ["weights.safetensors", *words], "atent evaluate")["target"]
        assert (given.data, given.root) == ("npz", "x.npz")


def test_train_takes_root(mine, capsys):
    for option in ("--root", "--data.root"):
        assert "x.npz is a file of arrays" in line(
            capsys, "train", "mnist-linf-atent-laptop", option, "x.npz", "--quiet"
        )


def test_words_for_numbers_and_for_what_a_resumed_run_has(mine, capsys):
    told = line(capsys, "train", "digits-linf-atent", "--train.epochs", "one")
    assert "must be an integer, got 'one'" in told
    assert "must be a number, got 'big'" in line(capsys, "train", "digits-linf-atent", "--optimizer.lr", "big")
    told = line(capsys, "train", "--resume", "run", "--train.epochs", "5")
    assert "--train.epochs has no effect with --resume" in told
    for command, option in (("train", "--name"), ("train", "--runs"), ("pretrain", "--name")):
        told = line(capsys, command, "--resume", "run", option, "other")
        assert f"{option} has no effect with --resume, which keeps the run's folder" in told
    with pytest.raises(FileExistsError, match=r"in Python run=.*resume=True"):
        fit(
            nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
            load(DataSettings(limit=64)),
            Standard(),
            run="run",
            progress=False,
        )


def test_an_unfinished_evaluation_of_something_else_stays_and_stops_nothing(mine):
    other = Path("run/evaluation.partial.jsonl")
    other.write_text('{"kind": "atent evaluation, unfinished", "model": "another"}\n')
    words = ["evaluate", "run", "--norm", "linf", "--eps", "0.1", "--attacks", "FGSM", *QUICK]
    assert main(words) == 0
    assert Path("run/evaluation.json").is_file()
    assert "another" in other.read_text()
    assert list(Path("run").glob("*.partial*")) == [other]


def test_choices_are_those_of_the_types():
    """The type of a field lists them once, for recipes and for Python."""
    for make, told in (
        (lambda: TrainSettings(average="emma"), "average 'emma' is not known: use one of none, ema, swa"),
        (lambda: DataSettings(subset="some"), "subset 'some' is not known: use one of stratified, first"),
        (lambda: Schedule(kind="cosin"), "kind 'cosin' is not known: use one of constant, step, multistep, cosine"),
        (lambda: PGDAT(Threat("linf", 0.1), mode="eva"), "mode 'eva' is not known: use one of eval, train"),
        (lambda: ATENT(Threat("linf", 0.1), dropout="x"), "dropout 'x' is not known: use one of shared, fresh"),
    ):
        with pytest.raises(ValueError, match=re.escape(told)):
            make()
