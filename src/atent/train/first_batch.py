"""Measurements on the first batch, before the first step of a training, for settings that depend on them."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from atent.data import Data
from atent.guard import guard
from atent.methods import Method
from atent.methods.awp import aside
from atent.methods.base import State
from atent.methods.inner import LowInner, exact
from atent.rng import fold
from atent.train import calibration, preflight
from atent.train.finite import ordered
from atent.train.settings import TrainSettings

AGREEMENT = 0.1
"""Maximum relative difference of the inner objective between a bfloat16 chain and the float32 chain.

On digits chains on the cross-entropy differ by at most 0.05 %. Chains on the KL divergence start where it is nearly 0,
with a first gradient whose direction changes by rounding to bfloat16: there up to 6.5 %, of either sign."""
_SECONDS = 3.0
_REPEATS = 5


@dataclass(frozen=True)
class Dropped:
    """The effect of `ATENT.drop_below` on the first step's gradient."""

    drop_below: float
    kept: int
    """Number of iterates used."""
    steps: int
    """Number of iterates of the chain."""
    difference: float
    """||g' - g|| / ||g||, g the exact gradient of the weights with the same random numbers."""
    n: int
    """Samples of the batch."""

    def __str__(self) -> str:
        return (
            f"drop_below {self.drop_below:g} keeps {self.kept} of {self.steps} iterates: the gradient differs by"
            f" {self.difference:.2g} of its norm on the first batch of {self.n}"
        )


@dataclass(frozen=True)
class Inner:
    """A bfloat16 inner chain compared with the float32 one, on a batch with equal random numbers and at full eps."""

    precision: str
    """The chosen precision: float32 or bfloat16."""
    float32: float
    """The inner objective after the float32 chain, evaluated in float32."""
    bfloat16: float
    """The inner objective after the bfloat16 chain, evaluated in float32."""
    ratio: float | None
    """Ratio of the times of a step with the bfloat16 and the float32 chain; None if not measured."""
    n: int
    """Samples of the batch."""

    @property
    def difference(self) -> float:
        """Difference of the objectives, relative to the float32 one; NaN if one is not finite."""
        gap = self.bfloat16 - self.float32
        return gap / abs(self.float32) if self.float32 else gap

    @property
    def agrees(self) -> bool:
        """Whether the objectives differ by at most `AGREEMENT`."""
        return abs(self.difference) <= AGREEMENT  # false for NaN

    def __str__(self) -> str:
        time = "" if self.ratio is None else f", a step takes {self.ratio:.2f} times as long"
        return (
            f"inner_precision {self.precision}: a bfloat16 chain ends at an inner objective of {self.bfloat16:.4g}, a"
            f" float32 one at {self.float32:.4g} ({100 * self.difference:+.2g} %){time}, on the first batch of {self.n}"
        )


class Batch:
    """The first batch of a training as in its first step, for measurements of a method without side effects."""

    def __init__(
        self, model: nn.Module, data: Data, settings: TrainSettings, move: Callable[..., Tensor], state: State,
        layout: torch.memory_format,
    ) -> None:  # fmt: skip
        model.train()  # a network's own train() may return nothing
        self.model, self.state, self.seed = model, state, settings.seed
        self.rng = torch.Generator(data.train.x.device)
        order = ordered(data, self.seed, 0, self.rng, {})
        self.ids = order[: settings.batch_size]
        x, self.y = data.train.batch(self.ids)
        self.rng.manual_seed(fold(self.seed, "augment", 0, 0))
        self.x = move(x, self.rng).contiguous(memory_format=layout)

    def _given(self) -> dict[str, Any]:
        """The arguments of a method's first call; random numbers are set to those of the first step."""
        self.rng.manual_seed(fold(self.seed, "step", 0, 0))
        torch.manual_seed(fold(self.seed, "model", 0, 0))
        return {"rng": self.rng, "ids": self.ids, "state": copy.deepcopy(self.state), "progress": 1.0}

    def gradient(self, method: Method) -> Tensor:
        """The gradient of the weights after a step, as one vector."""
        with aside(self.model):
            method.backward(self.model, self.x, self.y, **self._given())
            return torch.cat([p.grad.flatten().double() for p in self.model.parameters() if p.grad is not None])

    def objective(self, method: Method, of: Method) -> float:
        """The inner objective of ``of`` at the result of ``method``'s adversary; ValueError if that does not evaluate
        the network."""
        calls: list[int] = []
        hook = self.model.register_forward_pre_hook(lambda *_: calls.append(1))
        given = self._given()
        try:
            aux = method.adversary(self.model, self.x, self.y, **given)
        finally:
            hook.remove()
        if not calls:
            raise ValueError(
                f"inner_precision has no effect with {type(of).__name__}, whose adversary does not use the network:"
                " use inner_precision float32"
            )
        with guard(self.model, mode="as-is", seed=fold(self.seed, "model", 0, 1)), torch.no_grad():
            loss, metrics = of.loss(self.model, self.x, self.y, aux, progress=1.0, state=given["state"])
        # The term that the adversary maximises, if the loss has others.
        return float(metrics.get("robust_loss", loss))

    def ratio(self, method: Method, other: Method) -> float:
        """Ratio of the times of a step of ``method`` and of ``other``, the median of interleaved repeats."""
        times: list[tuple[Method, list[float]]] = [(method, []), (other, [])]
        end = time.perf_counter() + _SECONDS
        for repeat in range(_REPEATS + 1):
            for one, kept in times:
                self._wait()
                begun = time.perf_counter()
                with aside(self.model):
                    one.backward(self.model, self.x, self.y, **self._given())
                self._wait()
                kept.append(time.perf_counter() - begun)
            if repeat and time.perf_counter() > end:
                break
        # The first steps prepare kernels and memory.
        first, second = (median(kept[1:]) for _, kept in times)
        return first / second

    def _wait(self) -> None:
        if self.x.is_cuda:
            torch.cuda.synchronize(self.x.device)


def dropped(batch: Batch, method: Any) -> Dropped:
    """The difference between the gradient of a method with ``drop_below`` and the exact one."""
    g, full = batch.gradient(method), batch.gradient(exact(method))
    difference = float((g - full).norm() / full.norm())
    kept = sum(share > 0 for share in method.weights())
    return Dropped(method.drop_below, kept, method.steps, difference, len(batch.y))


def inner(batch: Batch, method: Method, settings: TrainSettings) -> Inner:
    """Check a bfloat16 inner chain, and for auto choose the precision; ValueError if bfloat16 is set and disagrees."""
    low, choose = LowInner(method), settings.inner_precision == "auto"
    exact_value, low_value = (batch.objective(m, method) for m in (method, low))
    found = Inner("bfloat16", exact_value, low_value, None, len(batch.y))
    if not choose and not found.agrees:
        raise ValueError(
            f"inner_precision bfloat16 disagrees with float32 by more than {100 * AGREEMENT:g} %: its chain ends at an"
            f" inner objective of {found.bfloat16:.4g}, the float32 one at {found.float32:.4g}, on the first batch of"
            f" {found.n}: use inner_precision float32"
        )
    if not choose:
        return found
    ratio = batch.ratio(low, method) if found.agrees else None
    return replace(found, precision="bfloat16" if ratio is not None and ratio < 1 else "float32", ratio=ratio)


def measured(
    model: nn.Module, method: Method, data: Data, settings: TrainSettings, state: State, move: Callable[..., Tensor],
    layout: torch.memory_format, config: dict[str, Any], *, joined: bool, say: Callable[[str], None],
) -> tuple[dict[str, Any], dict[str, Any]]:  # fmt: skip
    """Measure what the settings leave to the training, reporting each with a line to ``say``: the entries of the
    training's position, and the configuration that records them."""
    position: dict[str, Any] = {}
    calibrated = calibration.calibrated(method, model, data, settings, move, joined=joined)
    if calibrated is not None:
        say(f"found   {calibrated}")
        position["calibration"] = calibrated.describe()
        config = calibration.recorded(config, calibrated)
        method = calibrated.method
    drops, low = exact(method) is not method, settings.inner_precision != "float32"
    if not drops and not low:
        return position, config
    with preflight.random_state():
        batch = Batch(model, data, settings, move, state, layout)
        if drops:
            found = dropped(batch, method)
            say(f"found   {found}")
            config = recorded(config, "dropped", asdict(found))
        if low:
            chain = inner(batch, method, settings)
            say(f"found   {chain}")
            position["inner_precision"] = chain.precision
            config = recorded(config, "inner", asdict(chain) | {"difference": chain.difference})
    return position, config


def recorded(config: dict[str, Any], name: str, found: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the result; JSON has no numbers that are not finite."""
    plain = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in found.items()}
    return {**config, "about": {**config["about"], name: plain}}
