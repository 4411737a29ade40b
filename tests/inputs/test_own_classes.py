"""A class or function of the user that lacks a member, or returns something else, is refused in one line."""

import importlib
import inspect
import sys
from dataclasses import dataclass

import pytest
import torch

from atent.attacks import Attack
from atent.cli import main
from atent.methods import Method
from atent.threat import Threat

HEAD = """
from dataclasses import dataclass

import abc
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from atent import Threat
from atent.attacks import Attack
from atent.methods import Method

"""
RECIPE = """
about = "a method of the user"

[data]
name = "digits"

[model]
name = "digits_cnn"

[method]
name = "own_of_user:T"

[train]
epochs = 1
device = "cpu"
validate_limit = 20

[evaluate]
norm = "linf"
eps = 0.1
attacks = ["FGSM"]
limit = 4
"""
FROZEN = "@dataclass(frozen=True)\n"
NO_GRADIENT = "    needs_gradient = False\n"
SEARCH = "    def search(self, oracle, x, y, streams):\n        "
PASSES = NO_GRADIENT + "    passes = 2\n"
LOSS = "    def loss(self, model, x, y, aux, *, progress=1.0, state=None):\n        "
OPTIMIZER = (
    "class T(torch.optim.Optimizer):\n    def __init__(self, params, lr):\n"
    "        super().__init__(params, {'lr': lr})\n"
)


@pytest.fixture
def refused(tmp_path, monkeypatch, capsys):
    """Run a command on a module of the user; returns the line of its error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop("own_of_user", None)

    def run(source, words, status=2):
        (tmp_path / "own_of_user.py").write_text(HEAD + source)
        (tmp_path / "own.toml").write_text(RECIPE)
        importlib.invalidate_caches()
        assert main(words) == status
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1, lines
        return lines[0]

    yield run
    sys.modules.pop("own_of_user", None)


ATTACKS = {
    "passes": (FROZEN + "class T(Attack):\n" + NO_GRADIENT + SEARCH + "return x\n", ["T has no passes", "passes = "]),
    "passes is a function": (
        FROZEN + "class T(Attack):\n    def passes(self):\n        return 1\n" + SEARCH + "return x\n",
        ["passes of T is the function passes"],
    ),
    "search": (FROZEN + "class T(Attack):\n" + PASSES, ["T has no search", "search(self, oracle, x, y, streams)"]),
    "signature": (
        FROZEN + "class T(Attack):\n" + PASSES + "    def search(self, model, x, y):\n        return x\n",
        ["T.search takes (model, x, y)", "search(self, oracle, x, y, streams)"],
    ),
    "no decorator": (
        "class T(Attack):\n    tries: int = 3\n" + PASSES + SEARCH + "return x\n",
        ["T declares tries", "@dataclass(frozen=True)"],
    ),
    "own constructor": (
        "class T(Attack):\n" + PASSES + "    def __init__(self, threat):\n        pass\n" + SEARCH + "return x\n",
        ["T defines __init__", "@dataclass(frozen=True)"],
    ),
    "abstract": (
        "class Base(Attack):\n    pass\n" + FROZEN + "class T(Base):\n" + PASSES + SEARCH
        + "return x\nT.__abstractmethods__ = frozenset({'fitness'})\n",
        ["T is abstract: define fitness"],
    ),
    "annotated": (
        FROZEN + "class T(Attack):\n    needs_gradient: bool = False\n    passes = 2\n" + SEARCH + "return x\n",
        ["T annotates needs_gradient", "write needs_gradient = False without annotation"],
    ),
    "function": ("def T(model, x, y):\n    return x\n", ["the function T", "atent.attacks.Attack"]),
    "other class": ("class T:\n    pass\n", ["the class T", "atent.attacks.Attack"]),
}  # fmt: skip


@pytest.mark.parametrize(("source", "parts"), ATTACKS.values(), ids=ATTACKS)
def test_an_attack_that_lacks_a_member(refused, source, parts):
    words = ["evaluate", "zoo:digits-linf-crown-ibp", "--limit", "4", "--quiet", "--attacks", "own_of_user:T"]
    line = refused(source, words)
    assert all(part in line for part in ("own_of_user:T", "docs/add-attack.md", *parts)), line


EVALUATE = ["evaluate", "zoo:digits-linf-crown-ibp", "--limit", "4", "--quiet", "--attacks"]
VALID = FROZEN + "class T(Attack):\n    tries: int = 2\n" + PASSES + SEARCH + "return x\n"


def test_an_attack_in_a_dataclass_that_is_not_frozen(refused):
    source = VALID.replace("(frozen=True)", "")
    number = 1 + (HEAD + source).splitlines().index("@dataclass")
    line = refused(source, [*EVALUATE, "own_of_user:T"])
    assert any(f"(own_of_user.py, line {each})" in line for each in (number, number + 1)), line
    assert line.endswith("write @dataclass(frozen=True)")


NAMES = {
    "bare": (["T"], "did you mean 'own_of_user:T'?"),
    "misspelled": (["own_of_user:Tt"], "has no attribute 'Tt': did you mean 'own_of_user:T'?"),
    "dotted": (["own_of_user.T(tries=3)"], "did you mean 'own_of_user:T'?"),
    "file": (["own_of_user.py:T"], "write 'own_of_user' without .py"),
    "positional": (["own_of_user:T(3)"], "write own_of_user:T(tries=3)"),
    "too many": (["own_of_user:T(3, 4)"], "own_of_user:T has the settings tries"),
    "built-in": (["PGD(40, restarts=2)"], "write PGD(steps=40, restarts=2)"),
}


@pytest.mark.parametrize(("names", "part"), NAMES.values(), ids=NAMES)
def test_the_name_of_an_own_attack(refused, names, part):
    line = refused(VALID, [*EVALUATE, *names])
    assert part in line


def test_the_bare_name_of_an_own_method_or_network(refused):
    source = FROZEN + "class Own(Method):\n" + LOSS + "pass\n\n\ndef Net():\n    pass\n"
    for option, name in (("--method", "Own"), ("--model", "Net")):
        line = refused(source, ["train", "digits-linf-pgdat", option, name, "--quiet"])
        assert f"did you mean 'own_of_user:{name}'?" in line
        line = refused(source, ["train", "digits-linf-pgdat", option, f"own_of_user.{name}", "--quiet"])
        assert f"did you mean 'own_of_user:{name}'?" in line


def test_an_averaged_loss_names_the_line(refused):
    body = "return oracle.gradient(x, y, cross_entropy)[0]"
    source = FROZEN + "class T(Attack):\n    passes = 3\n" + SEARCH + body + "\n"
    number = 1 + (HEAD + source).splitlines().index(f"        {body}")
    line = refused(source, [*EVALUATE, "own_of_user:T"])
    assert "atent.losses" in line
    assert f"own_of_user.py, line {number}" in line


def test_an_attack_that_uses_more_passes_than_it_declares_is_reported_once(capsys):
    from atent import evaluate

    @dataclass(frozen=True)
    class Greedy(Attack):
        passes = 2

        def search(self, oracle, x, y, streams):
            for _ in range(4):
                oracle.logits(x, y)
            return x

    class Honest(Greedy):
        passes = 5

    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    x = torch.rand(6, 1, 4, 4)
    for kind in (Greedy, Greedy, Honest):
        evaluate(net, x, net(x).argmax(1), [kind(Threat("linf", 0.1))], batch=2)
    (line,) = capsys.readouterr().err.splitlines()
    assert "Greedy declares passes = 2 and uses 5" in line


RESULTS = {
    "nothing": ("pass", ["T.search", "(4, 1, 8, 8)", "NoneType"]),
    "shape": ("return x[:1]", ["T.search", "(1, 1, 8, 8)"]),
    "dtype": ("return x.double()", ["T.search", "torch.float64"]),
    "NaN": ("return x * float('nan')", ["T.search", "NaN"]),
    "loss": ("return oracle.gradient(x, y, lambda z, y: None)[0]", ["one value per sample", "None"]),
}


@pytest.mark.parametrize(("body", "parts"), RESULTS.values(), ids=RESULTS)
def test_an_attack_that_returns_something_else(refused, body, parts):
    words = ["evaluate", "zoo:digits-linf-crown-ibp", "--limit", "4", "--quiet", "--attacks", "own_of_user:T"]
    line = refused(FROZEN + "class T(Attack):\n" + PASSES + SEARCH + body + "\n", words)
    assert all(part in line for part in parts), line


def test_an_error_in_code_of_the_user_names_the_line(refused):
    words = ["evaluate", "zoo:digits-linf-crown-ibp", "--limit", "4", "--quiet", "--attacks", "own_of_user:T"]
    source = FROZEN + "class T(Attack):\n" + PASSES + SEARCH + "return undefined\n"
    number = 1 + (HEAD + source).splitlines().index("        return undefined")
    line = refused(source, words, status=1)
    assert "NameError" in line
    assert f"own_of_user.py, line {number}, in search" in line
    assert "--debug" in line


NETWORK = """
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(64, 10)

    def forward(self, x):
        if {when}:
            {fails}
        return self.layer(x.flatten(1))


def net():
    return Net()
"""
COMMANDS = {
    "evaluate": ["--norm", "linf", "--eps", "0.1", "--attacks", "FGSM"],
    "attack": ["--norm", "linf", "--eps", "0.1", "--attack", "FGSM"],
    "certify": ["--sigma", "0.25", "--n", "20", "--n0", "5"],
    "train": ["--train.epochs", "1", "--data.limit", "64", "--train.device", "cpu"],
}
FAILURES = {
    "type, at the check": ("True", "self.layer(x, 3)", 2, "TypeError"),
    "sizes, at a batch": ("len(x) > 2", "torch.nn.Linear(7, 3)(x)", 2, "shapes cannot be multiplied"),
    "own ValueError": ("len(x) > 2", "raise ValueError('mine')", 2, "mine"),
    "own KeyError": ("len(x) > 2", "{}['weight']", 1, "KeyError: 'weight'"),
}


@pytest.mark.parametrize(("when", "fails", "status", "part"), FAILURES.values(), ids=FAILURES)
@pytest.mark.parametrize("command", COMMANDS)
def test_an_error_in_a_network_of_the_user_names_the_line(refused, command, when, fails, status, part):
    source = NETWORK.replace("{when}", when).replace("{fails}", fails)
    number = 1 + (HEAD + source).splitlines().index(f"            {fails}")
    first = ["digits-linf-standard", "--model", "own_of_user:net"] if command == "train" else ["own_of_user:net"]
    data = [] if command == "train" else ["--data", "digits", "--limit", "4"]
    line = refused(source, [command, *first, *data, *COMMANDS[command], "--quiet"], status=status)
    assert part in line
    assert line.count(f"own_of_user.py, line {number}, in forward") == 1


METHODS = {
    "loss": (FROZEN + "class T(Method):\n    a: int = 1\n", ["T has no loss", "loss(self, model, x, y, aux"]),
    "signature": (
        FROZEN + "class T(Method):\n    def loss(self, model, x, y):\n        pass\n", ["T.loss takes (model, x, y)"],
    ),
    "adversary": (
        FROZEN + "class T(Method):\n    def adversary(self, model, x, y):\n        return x\n" + LOSS + "pass\n",
        ["T.adversary takes (model, x, y)", "rng"],
    ),
    "init": (
        FROZEN + "class T(Method):\n    def init(self):\n        return {}\n" + LOSS + "pass\n",
        ["T.init takes ()", "n_train, shape, device"],
    ),
    "no decorator": (
        "class T(Method):\n    strength: float = 1.0\n" + LOSS + "pass\n", ["T declares strength", "@dataclass"],
    ),
    "function": ("def T(model, x, y):\n    return 0\n", ["the function T", "atent.methods.Method"]),
}  # fmt: skip


@pytest.mark.parametrize(("source", "parts"), METHODS.values(), ids=METHODS)
def test_a_method_that_lacks_a_member(refused, source, parts):
    line = refused(source, ["train", "own.toml", "--quiet"])
    assert all(part in line for part in ("own_of_user:T", "docs/add-method.md", *parts)), line


CE = "cross_entropy(model(x), y)"
LOSSES = {
    "nothing": ("pass", ["T.loss", "got None"]),
    "no metrics": (f"return {CE}", ["T.loss", "a Tensor", "return loss, {}"]),
    "vector": ("return cross_entropy(model(x), y, reduction='none'), {}", ["T.loss", "scalar", "(128,)"]),
    "number": ("return 1.0, {}", ["T.loss", "scalar", "a float"]),
    "detached": (f"return {CE}.detach(), {{}}", ["T.loss", "gradient"]),
    "metrics": (f"return {CE}, [1]", ["T.loss", "dict", "a list"]),
    "metric of a number": (f"return {CE}, {{'a': 1.0}}", ["T.loss", "'a'", "a float"]),
    "metric of images": (f"return {CE}, {{'a': x}}", ["T.loss", "'a'", "(128, 1, 8, 8)"]),
    "shapes": ("return cross_entropy(model(x[:3]), y), {}", ["own_of_user.py", "in loss"]),
}


@pytest.mark.parametrize(("body", "parts"), LOSSES.values(), ids=LOSSES)
def test_a_method_that_returns_something_else(refused, body, parts):
    line = refused(FROZEN + "class T(Method):\n" + LOSS + body + "\n", ["train", "own.toml", "--quiet"])
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(
    ("body", "got"), [("init(self, n_train, shape, device):\n        return None", "None"),
                  ("init(self, n_train, shape, device):\n        return {'a': 1}", "an int for 'a'")],
)  # fmt: skip
def test_a_state_that_is_no_tensor(refused, body, got):
    source = FROZEN + "class T(Method):\n    def " + body + "\n" + LOSS + f"return {CE}, {{}}\n"
    line = refused(source, ["train", "own.toml", "--quiet"])
    assert "T.init" in line
    assert f"got {got}" in line


def test_a_backward_without_metrics(refused):
    backward = "    def backward(self, model, x, y, *, rng, ids=None, progress=1.0, weight=1.0, state=None):\n"
    source = FROZEN + "class T(Method):\n" + backward + f"        {CE}.backward()\n"
    assert "T.backward must return metrics" in refused(source, ["train", "own.toml", "--quiet"])


OPTIMIZERS = {
    "step": (OPTIMIZER, ["T has no step", "closure"], 2),
    "signature": (OPTIMIZER + "    def step(self):\n        pass\n", ["T.step takes ()", "closure"], 2),
    "no closure": (OPTIMIZER + "    def step(self, closure=None):\n        pass\n", ["closure()"], 1),
    "raises": (
        OPTIMIZER + "    def step(self, closure=None):\n        closure()\n        raise KeyError('own')\n",
        ["KeyError: 'own'", "own_of_user.py", "in step"], 2,
    ),
    "returns nothing": ("def T(params, lr):\n    pass\n", ["got None"], 2),
    "number": ("T = 3\n", ["is an int", "docs/add-network.md"], 2),
}  # fmt: skip


@pytest.mark.parametrize(("source", "parts", "status"), OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_an_optimizer(refused, source, parts, status):
    words = ["train", "digits-linf-pgdat", "--train.epochs", "1", "--train.validate-limit", "20", "--quiet"]
    line = refused(source, [*words, "--train.device", "cpu", "--optimizer.name", "own_of_user:T"], status)
    assert all(part in line for part in parts), line


CERTIFY = "    def certify(self, x, n0=100, n=100_000, alpha=0.001, *, seed=0, ids=None):\n        return "
CERTIFIERS = {
    "nothing": ("def T(model, x, threat):\n    pass\n", ["returned None", "(lower, upper)"]),
    "NaN": ("def T(model, x, threat):\n    z = model(x)\n    return z * float('nan'), z\n", ["NaN", "4 of 4"]),
    "dtype": ("def T(model, x, threat):\n    z = model(x).long()\n    return z, z\n", ["torch.int64"]),
    "classes": (
        "class T:\n    def __init__(self, model, sigma):\n        pass\n" + CERTIFY
        + "torch.zeros(len(x)), torch.zeros(len(x))\n",
        ["T.certify", "integers", "torch.float32"],
    ),
    "no certify": ("class T:\n    pass\n", ["the class T", "docs/add-certifier.md"]),
}  # fmt: skip


@pytest.mark.parametrize(("source", "parts"), CERTIFIERS.values(), ids=CERTIFIERS)
def test_a_certifier(refused, source, parts):
    given = ["--sigma", "0.25", "--n", "200", "--n0", "10"] if "__init__" in source else ["--radius", "0.01"]
    words = ["certify", "zoo:digits-linf-crown-ibp", "--limit", "4", "--quiet", "--method", "own_of_user:T"]
    line = refused(source, [*words, *given])
    assert all(part in line for part in parts), line


@pytest.mark.parametrize(("source", "got"), [("class T:\n    pass\n", "a T"), ("def T():\n    pass\n", "None")])
def test_a_data_set(refused, source, got):
    line = refused(source, ["train", "digits-linf-pgdat", "--data.name", "own_of_user:T", "--quiet"])
    assert f"own_of_user:T returned {got}" in line


def test_settings_need_the_decorator_in_python_too():
    class Undeclared(Attack):
        tries: int = 3

    class Inherits(Attack):
        needs_gradient = False

    with pytest.raises(ValueError, match=r"Undeclared declares tries.*@dataclass\(frozen=True\)"):
        Undeclared(Threat("linf", 0.1))
    with pytest.raises(TypeError, match=r"Inherits has no passes.*docs/add-attack\.md"):
        _ = Inherits(Threat("linf", 0.1)).passes


def test_a_method_with_a_backward_of_its_own_needs_no_loss():
    from atent.methods.contract import lacking

    @dataclass(frozen=True)
    class Own(Method):
        def backward(self, model, x, y, *, rng=None, ids=None, progress=1.0, weight=1.0, state=None):
            return {"loss": torch.zeros(())}

    assert lacking(Own, Method) is None
    assert inspect.isclass(Own)
