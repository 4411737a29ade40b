"""Precision, memory format and compilation as measured: what is chosen, kept and refused, by a fake clock."""

import json

import pytest
import torch
from test_precision import Clock, network, train
from torch import nn

from atent import probe as probing
from atent import runs as folder
from atent.cli.parse import read
from atent.cli.target import Target
from atent.data import DataSettings, load
from atent.experiments.recipe_files import UsageError
from atent.precision import Lowered, full_precision, under
from atent.probe import probe
from atent.train import TrainSettings, machine
from atent.train.clock import Clock as Steps
from atent.train.compiling import Compiling


class Timed(Clock):
    """A clock whose passes take the seconds of their kind: (precision, channels last)."""

    def __init__(self, **seconds):
        super().__init__()
        self.kinds = {("float32", False): 1e-4} | {
            (name.split("_")[0], name.endswith("last")): value for name, value in seconds.items()
        }

    def passed(self, x):
        precision = "bfloat16" if torch.is_autocast_enabled("cpu") else "float32"
        last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
        self.now += len(x) * self.kinds.get((precision, last), 1e-4)


class Colour(nn.Module):
    def __init__(self, clock, offset=0.0):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
        self.clock, self.offset = clock, offset

    def forward(self, x):
        self.clock.passed(x)
        return self.body(x + self.offset)


def chosen(monkeypatch, offset=0.0, **seconds):
    clock = Timed(**seconds)
    monkeypatch.setattr(probing, "perf_counter", clock)
    found = probe(Colour(clock, offset), torch.rand(16, 3, 8, 8))
    assert clock.now < 3
    return found


@pytest.mark.parametrize(
    ("seconds", "kind"),
    [
        ({}, ("float32", False)),
        ({"float32_last": 5e-5}, ("float32", True)),
        ({"bfloat16": 4e-5}, ("bfloat16", False)),
        ({"bfloat16": 4e-5, "bfloat16_last": 2e-5}, ("bfloat16", True)),
        ({"bfloat16": 2e-4, "bfloat16_last": 1e-4}, ("float32", False)),
        ({"bfloat16": 9.5e-5}, ("float32", False)),  # a twentieth is no gain
        ({"bfloat16": 0.5, "bfloat16_last": 0.5, "float32_last": 5e-5}, ("float32", True)),
    ],
)
def test_the_probe_chooses_the_fastest_kind(monkeypatch, seconds, kind):
    found = chosen(monkeypatch, **seconds)
    assert (found.precision, found.channels_last) == kind
    assert "\n" not in str(found)


def test_the_probe_never_chooses_what_disagrees(monkeypatch):
    """At 1e4 bfloat16 numbers are 64 apart: pixels vanish beside such an offset."""
    found = chosen(monkeypatch, offset=1e4, bfloat16=1e-5, bfloat16_last=1e-5, float32_last=5e-5)
    assert (found.precision, found.channels_last) == ("float32", True)
    assert ("bfloat16", False) in found.disagree


def test_the_probe_leaves_out_what_the_network_does_not_take(monkeypatch):
    class Views(Colour):
        def forward(self, x):
            self.clock.passed(x)
            return self.body[2:](x.view(len(x), -1)[:, :192].repeat(1, 2)[:, :288])

    clock = Timed(float32_last=1e-6, bfloat16_last=1e-6)
    monkeypatch.setattr(probing, "perf_counter", clock)
    found = probe(Views(clock), torch.rand(16, 3, 8, 8))
    assert (found.precision, found.channels_last) == ("float32", False)
    assert not any(last for _, last in found.times)


# ---- TF32


def test_tf32_is_on_in_both_passes_and_off_around_them(monkeypatch):
    """On a machine without CUDA the switches can be set all the same."""
    seen = []

    class Looks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            seen.append(("forward", torch.backends.cuda.matmul.allow_tf32))
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            seen.append(("backward", torch.backends.cuda.matmul.allow_tf32))
            return grad

    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="precision tf32 is for CUDA"):
        Lowered(net, "tf32")
    monkeypatch.setattr("atent.precision.check_tf32", lambda device: None)
    net.insert(1, type("Looking", (nn.Module,), {"forward": lambda self, x: Looks.apply(x)})())
    x = torch.rand(2, 4, requires_grad=True)
    before = torch.backends.cuda.matmul.allow_tf32
    torch.autograd.grad(Lowered(net, "tf32")(x).sum(), x)
    assert seen == [("forward", True), ("backward", True)]
    assert torch.backends.cuda.matmul.allow_tf32 is before
    both = under("tf32", torch.device("cuda"))
    with both, both:
        assert torch.backends.cuda.matmul.allow_tf32
    assert torch.backends.cuda.matmul.allow_tf32 is before
    with full_precision(torch.device("cpu")):
        assert torch.backends.cuda.matmul.allow_tf32 is before


# ---- in a training


@pytest.fixture(scope="module")
def digits():
    return load(DataSettings(limit=192, validation=60))


def test_a_training_records_what_auto_chose_and_resumes_with_it(digits, monkeypatch, tmp_path):
    clock = Clock()
    monkeypatch.setattr(probing, "perf_counter", clock)
    row = train(digits, network(clock), tmp_path / "run", precision="auto", channels_last="auto").history[0]
    assert (row["precision"], row["channels_last"]) == ("bfloat16", False)
    saved = folder.read_config(tmp_path / "run" / folder.CONFIG)["train"]
    assert (saved["precision"], saved["channels_last"]) == ("bfloat16", False)
    monkeypatch.setattr("atent.train.machine.probe", None)  # never asked again
    settings = TrainSettings(precision="auto", channels_last="auto")
    kept = machine.resolved(network(clock), digits, settings, torch.device("cpu"), print, tmp_path / "run")
    assert (kept.precision, kept.channels_last) == ("bfloat16", False)
    train(digits, network(clock), tmp_path / "run", resume=True, precision="auto", channels_last="auto")


def test_float32_and_eager_are_the_defaults():
    made = TrainSettings()
    assert (made.precision, made.channels_last, made.compile) == ("float32", False, "off")


def test_what_cannot_be_is_one_line(digits, tmp_path):
    with pytest.raises(ValueError, match=r"^precision tf32 is for CUDA, this device is cpu: use .*$"):
        train(digits, network(), tmp_path / "run", precision="tf32")
    assert not (tmp_path / "run").exists()
    with pytest.raises(ValueError, match=r"^compile step is not supported: .*: use compile model$"):
        TrainSettings(compile="step")


# ---- compiling


@pytest.fixture
def compiled(monkeypatch):
    """`nn.Module.compile` without a compiler: what it is called for, and by what the forward pass is replaced."""
    calls, own = [], nn.Module.compile

    def compile(self, *args, **given):
        calls.append(self)
        own(self, *args, backend="eager", **given)

    monkeypatch.setattr(nn.Module, "compile", compile)
    monkeypatch.setattr("atent.train.compiling.compiler_missing", lambda device: False)
    return calls


def test_a_compiled_training_writes_the_weights_of_the_plain_network(digits, compiled, tmp_path):
    net = network()
    made = train(digits, net, tmp_path / "run", compile="model")
    assert compiled == [net]
    assert net._compiled_call_impl is None
    plain = train(digits, network(), tmp_path / "plain")
    # The eager backend computes the same numbers.
    assert made.history[0]["loss"] == pytest.approx(plain.history[0]["loss"], rel=1e-5)
    network().load_state_dict(made.model.state_dict())
    from safetensors import safe_open

    with safe_open(tmp_path / "run" / folder.BEST, "pt") as file:
        assert set(file.keys()) == set(network().state_dict())


def test_without_a_compiler_the_network_is_trained_as_it_is(digits, monkeypatch):
    monkeypatch.setattr("atent.train.compiling.shutil.which", lambda name: None)
    lines = []
    made = Compiling(network(), TrainSettings(compile="model"), {}, torch.device("cpu"), lines.append)
    assert made._model._compiled_call_impl is None
    assert len(lines) == 1
    assert "needs a C++ compiler" in lines[0]


@pytest.mark.parametrize(("seconds", "worth"), [(1.0, False), (2.5, True)])
def test_auto_compiles_where_more_than_half_an_hour_is_left(compiled, monkeypatch, seconds, worth):
    """1,000 steps: of 1 s they take 16 minutes, of 2.5 s 40; the first steps, which are slow, do not count."""
    now = [0.0]
    monkeypatch.setattr("atent.train.clock.time.perf_counter", lambda: now[0])
    clock, position = Steps(10, 100, None), {}
    clock.start()
    made = Compiling(network(), TrainSettings(compile="auto"), position, torch.device("cpu"), lambda line: None)
    for step in range(40):
        now[0] += seconds if step >= 3 else 60.0
        made.after(clock, step, position)
    assert position.get("compiled", False) is worth
    assert len(compiled) == worth
    Compiling(network(), TrainSettings(compile="auto"), position, torch.device("cpu"), lambda line: None)
    assert len(compiled) == 2 * worth  # a run that resumes


# ---- options


def given(*words):
    from atent.cli.evaluate import evaluate

    return read(evaluate, ["run", *words], "atent evaluate")["target"]


def test_the_options_of_a_search():
    assert given("--memory-format", "auto").keywords()["channels_last"] == "auto"
    assert given("--memory-format", "contiguous").keywords()["channels_last"] is False
    assert given("--channels-last").keywords()["channels_last"] is True
    assert given().keywords()["channels_last"] is None
    assert given("--no-folding").keywords()["folding"] is False
    assert [given("--precision", p).search_dtype() for p in ("float32", "auto", "tf32")] == [None, "auto", "tf32"]
    with pytest.raises(UsageError, match="set the same field"):
        given("--precision", "auto").search_dtype("bfloat16")
    with pytest.raises(UsageError, match="set the same field"):
        given("--memory-format", "auto", "--channels-last").keywords()
    assert isinstance(given(), Target)


def test_a_recipe_takes_auto():
    from commands import train_job

    made = train_job("digits-linf-pgdat", "--train.channels_last", "auto", "--train.precision", "auto").train
    assert (made.channels_last, made.precision) == ("auto", "auto")
    assert json.loads(folder.dumps({"x": made.channels_last})) == {"x": "auto"}
