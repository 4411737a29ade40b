"""Methods around a method: what they do not override is that of the method inside."""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from atent import Threat
from atent.data import from_tensors
from atent.losses import cross_entropy
from atent.methods import AWP, FGSMRS, PGDAT, EmbeddingRegularised, EmbeddingTerm
from atent.methods.base import Method
from atent.methods.inner import LowInner
from atent.train import TrainSettings, fit

seen: list[int] = []
LINF = Threat("linf", 0.1)
AROUND = {
    "AWP": lambda inner: AWP(inner, 0.01),
    "EmbeddingRegularised": lambda inner: EmbeddingRegularised(inner, EmbeddingTerm(weight=0.1)),
    "LowInner": LowInner,
    "all": lambda inner: AWP(EmbeddingRegularised(LowInner(inner), EmbeddingTerm(weight=0.1)), 0.01),
}


@dataclass(frozen=True)
class Taught(Method):
    """Trains on answers that `prepare` computes from the training images; it has every part of the contract."""

    threat: Threat
    replays = 2
    single_step = True
    alike = ("count",)

    def init(self, n_train, shape, device):
        return {"count": torch.zeros((), device=device), "positions": torch.zeros(64, device=device)}

    def prepare(self, data):
        every = torch.arange(len(data.train))
        return {"answers": (data.train.batch(every)[1] + 1) % 3}

    def rows(self, state, x, part):
        return {**state, "positions": state["positions"][part]}

    def adversary(self, model, x, y, *, rng, ids=None, progress=1.0, state=None):
        with torch.no_grad():
            sign = model(x).sum().sign()
        return {"x": x + 0.05 * sign, "y": state["answers"][ids]}

    def loss(self, model, x, y, aux, *, progress=1.0, state=None):
        assert torch.equal(aux["y"], (y + 1) % 3)
        seen.append(len(y))
        return cross_entropy(model(aux["x"]), aux["y"]).mean(), {}

    def points(self, x, aux):
        return aux["x"]

    def diverged(self, state):
        return "it has diverged: stop" if float(state["count"]) > 1e6 else None


def data():
    torch.manual_seed(0)
    x, y = torch.rand(40, 1, 4, 4), torch.arange(40) % 3
    return from_tensors(x, y, x[:6], y[:6], validation=6)


def net():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("around", AROUND)
def test_the_state_and_the_facts_of_the_method_inside_are_kept(around):
    inner, given = Taught(LINF), data()
    outer = AROUND[around](inner)
    for fact in ("replays", "single_step", "labelled", "threat"):
        assert getattr(outer, fact) == getattr(inner, fact), fact
    assert set(inner.alike) <= set(outer.alike)
    assert outer.divisible or outer.gathers
    state = outer.init(34, (1, 4, 4), torch.device("cpu"))
    assert {"count", "positions"} <= set(state)
    assert torch.equal(outer.prepare(given)["answers"], inner.prepare(given)["answers"])
    assert len(outer.rows(state, torch.zeros(64, 1, 4, 4), slice(3, 8))["positions"]) == 5
    assert outer.diverged({**state, "count": torch.tensor(2e6)}) == "it has diverged: stop"
    assert outer.diverged(state) is None


@pytest.mark.parametrize("around", AROUND)
def test_a_training_uses_what_the_method_inside_prepares(around):
    """Batches of the answers, each passed twice."""
    seen.clear()
    settings = TrainSettings(epochs=1, batch_size=17)
    fit(net(), data(), AROUND[around](Taught(LINF)), settings=settings, progress=False)
    losses = 2 if around in ("AWP", "all") else 1
    assert seen == [17] * (2 * 2 * losses)


@pytest.mark.parametrize("around", [name for name in AROUND if name != "LowInner"])
def test_a_training_against_one_step_is_watched_under_every_wrapper(around, tmp_path: Path):
    fit(net(), data(), AROUND[around](FGSMRS(LINF)), run=tmp_path / "run", progress=False,
        settings=TrainSettings(epochs=1, batch_size=17))  # fmt: skip
    assert "watch_robust" in (tmp_path / "run" / "metrics.jsonl").read_text()


@pytest.mark.parametrize("around", [name for name in AROUND if name != "LowInner"])
def test_a_low_chain_is_inside_the_other_wrappers(around):
    """Around a discriminator it would leave out the discriminator's own step."""
    with pytest.raises(ValueError, match=r"inner_precision bfloat16 .* must be inside"):
        LowInner(AROUND[around](PGDAT(LINF, steps=1)))
