"""Methods in other people's loops: a step is that of `fit`, bit for bit, and the examples train."""

import copy
import importlib.util
import re
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from kit import CLASSES, ROUNDING, batch, distance, gradient, network, stream
from torch import nn

from atent import Threat
from atent.attacks import FGSM, PGD
from atent.data import augment, from_tensors
from atent.data.views import Views
from atent.methods import (
    ATENT,
    AWP,
    MART,
    PGDAT,
    TRADES,
    EmbeddingRegularised,
    EmbeddingTerm,
    Free,
    Gaussian,
    Standard,
)  # fmt: skip
from atent.models import ModelSettings, build
from atent.models.settings import make
from atent.optim import Optimizer
from atent.optim import build as build_optimizer
from atent.rng import check_rng, fold
from atent.train import TrainSettings, fit
from atent.train.finite import order_of

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
THREAT = Threat("linf", 0.1)


@pytest.mark.parametrize("method", [PGDAT(THREAT, steps=2), ATENT(THREAT, steps=2)], ids=["pgdat", "atent"])
def test_a_plain_loop_takes_the_steps_of_fit(method):
    """The same order and seeds give the same weights, bit for bit; in `fit` they are functions of (seed, step)."""
    x, y = torch.rand(100, 1, 8, 8, generator=stream()), torch.arange(100) % 3
    data = from_tensors(x, y, x[:9], y[:9], validation=20)
    torch.manual_seed(0)
    fitted = build("digits_cnn", classes=3)
    own, optimizer = copy.deepcopy(fitted), Optimizer("SGD", lr=0.05)
    settings = TrainSettings(epochs=2, batch_size=40, device="cpu", select="last", seed=4)
    fit(fitted, data, method, optimizer=optimizer, settings=settings, progress=False)

    steps, rng, made = 2, torch.Generator(), build_optimizer(optimizer, own, seed=4)
    for epoch in range(2):
        order = order_of(4, epoch, len(data.train), rng, ())
        for step, index in enumerate(order.split(40)):
            now = epoch * steps + step
            torch.manual_seed(fold(4, "model", now, 0))
            made.zero_grad()
            x, y = data.train.batch(index)
            rng.manual_seed(fold(4, "step", now, 0))
            method.backward(own.train(), x, y, rng=rng, ids=index, progress=now / 4)
            made.step()
    for (name, a), b in zip(fitted.named_parameters(), own.parameters()):
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    "method",
    [Standard(), PGDAT(THREAT, steps=2), TRADES(THREAT, steps=2), MART(THREAT, steps=2), ATENT(THREAT, steps=3),
     EmbeddingRegularised(PGDAT(THREAT, steps=2), EmbeddingTerm(weight=0.1))],
    ids=lambda method: type(method).__name__,
)  # fmt: skip
def test_the_called_loss_has_the_gradient_of_backward(method):
    x, y = batch()
    called, descended = network(), network()
    loss, metrics = method(called, x, y, rng=stream())
    loss.backward()
    other = method.backward(descended, x, y, rng=stream())
    # Two ways to one gradient, in float64.
    assert distance(gradient(called), gradient(descended)) < ROUNDING
    assert abs(float(loss.detach()) - float(other["loss"])) < ROUNDING * abs(float(other["loss"]))
    assert metrics.keys() == other.keys() - {"loss"}
    assert called.training


def test_without_a_generator_torchs_seed_decides():
    x, y = batch()
    method = PGDAT(THREAT, steps=1, start="uniform")

    def seeded(*calls):
        model = network()
        torch.manual_seed(7)
        return [call(model) for call in calls]

    def called(model):
        return method(model, x, y)[0].item()

    def descended(model):
        return method.backward(model, x, y)["loss"].item()

    one, two = seeded(called, called)
    assert one != two
    assert [one, two] == seeded(called, descended)


@pytest.mark.parametrize(
    "method",
    [
        AWP(PGDAT(THREAT)),
        Free(THREAT),
        EmbeddingRegularised(Standard(), EmbeddingTerm(0.1, divergence="discriminator")),
    ],
    ids=lambda method: type(method).__name__,
)
def test_a_method_that_does_more_refuses_to_be_called(method):
    """Its loss alone would be another training; `backward` works, with and without a generator."""
    x, y = batch()
    with pytest.raises(ValueError, match=r"backward\(model, x, y\)") as error:
        method(network(), x, y)
    assert "\n" not in str(error.value)
    model = network()
    method.backward(model, x, y)
    assert gradient(model).norm() > 0


def test_what_the_model_cannot_do_is_one_line():
    x, y = batch()
    halved = nn.Sequential(nn.Flatten(), nn.Linear(36, CLASSES).half())
    with pytest.raises(ValueError, match=r"weights are torch.float16") as error:
        Standard()(halved, x, y)
    assert "\n" not in str(error.value)


def views(x, rng):
    return Views()(x.repeat(1, 3, 1, 1), rng)


CALLS = {
    "attack": lambda x, y, model, rng: PGD(THREAT, steps=1)(model, x, y, rng=rng),
    "run": lambda x, y, model, rng: FGSM(THREAT).run(model, x, y, rng=rng),
    **{
        type(method).__name__: lambda x, y, model, rng, method=method: method.backward(model, x, y, rng=rng)
        for method in (Standard(), PGDAT(THREAT, steps=1), ATENT(THREAT, steps=1), Free(THREAT), AWP(PGDAT(THREAT)))
    },
    "loss": lambda x, y, model, rng: TRADES(THREAT, steps=1)(model, x, y, rng=rng),
    "adversary": lambda x, y, model, rng: Gaussian(0.1).adversary(model, x, y, rng=rng),
    "augment": lambda x, y, model, rng: augment("crop-flip")(x, rng),
    "views": lambda x, y, model, rng: views(x, rng),
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_generator_is_one_of_torch(call):
    """Others ended in an AttributeError, or were not read."""
    (x, y), model = batch(), network()
    call(x, y, model, torch.Generator())
    for rng, given in ((3, r"3: .*manual_seed\(3\)"), (1.5, "a float"), (True, "a bool"), ("0", "a str")):
        with pytest.raises(ValueError, match=rf"^rng must be a torch.Generator, got {given}") as error:
            call(x, y, model, rng)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"rng must be a torch\.Generator, got a Generator of numpy"):
        call(x, y, model, np.random.default_rng(0))


def test_a_generator_is_on_the_device_of_the_inputs():
    check_rng(torch.Generator(), torch.device("cpu"))
    with pytest.raises(ValueError, match=r"rng is on cpu, the inputs on cuda:0: use torch\.Generator\(x\.device\)"):
        check_rng(torch.Generator(), torch.device("cuda:0"))


@pytest.mark.parametrize("seed", [1.5, True, "0", 2**64, torch.Generator()])
def test_the_seed_of_a_network_is_an_integer(seed):
    with pytest.raises(ValueError, match="seed must be an integer of at most 64 bits, got"):
        make(ModelSettings("mlp"), classes=3, shape=(1, 8, 8), seed=seed)


@pytest.mark.parametrize(
    ("name", "needs", "least"),
    [("plain_loop", None, 0.4), ("lightning_module", "lightning", 0.4), ("hugging_face_trainer", "transformers", 0.1)],
)
def test_the_examples_train(name, needs, least):
    """Digits, where chance is 0.1, after two epochs; without the other package the example is compiled and not run."""
    path = EXAMPLES / f"{name}.py"
    if needs and importlib.util.find_spec(needs) is None:
        compile(path.read_text(), str(path), "exec")
        pytest.skip(f"{needs} is not installed")
    found = runpy.run_path(str(path))["main"](epochs=2)
    assert found > least


def test_the_page_runs():
    names = {}
    for code in re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "loops.md").read_text(), re.S):
        exec(compile(code, "docs/loops.md", "exec"), names)
    assert names["loss"].isfinite()
    assert names["sharpness"].isfinite()
