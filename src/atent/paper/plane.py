"""The networks of Figure 1: their methods and settings, and an exhaustive search for adversaries in the plane."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from atent.attacks.oracle import Oracle
from atent.data import DataSettings
from atent.experiments.job import Job
from atent.experiments.target import EvaluateSettings
from atent.guard import ask, guard
from atent.methods import ATENT, PGDAT, TRADES, Method, Standard
from atent.methods.base import Metrics, State
from atent.models import ModelSettings
from atent.optim import Optimizer, Schedule
from atent.paper.published import published
from atent.rng import Batch
from atent.threat import Threat
from atent.train import TrainSettings

_UNIT = (0.0, 1.0)
SIDE = 41


@dataclass(frozen=True)
class Scale:
    """The size of the experiment."""

    epochs: int
    seeds: int
    digits: bool
    """MNIST's digits 5 and 8 if available; otherwise two half-moons."""
    limit: int | None = None
    """Number of training points, as in the data's settings."""
    test_limit: int | None = None
    """Number of test points, likewise."""


SCALES = {
    "smoke": Scale(epochs=3, seeds=1, digits=False, limit=320, test_limit=300),
    # The network is small enough for the paper's full experiment on a laptop.
    "laptop": Scale(epochs=30, seeds=10, digits=True),
    "paper": Scale(epochs=30, seeds=10, digits=True),
}

PUBLISHED = {
    row: {column: figure.value for column, figure in printed.values.items()}
    for row, printed in published()["figure-1"].rows.items()
}
"""The titles of the paper's four panels, per cent; each is one training without a seed."""

LABELS = {
    "atent": "ATENT",
    "trades": "TRADES",
    "pgdat": "PGD",
    "standard": "standard training",
    "trades-unit": "TRADES, clamped to [0, 1]",
    "pgdat-unit": "PGD, clamped to [0, 1]",
}


@dataclass(frozen=True)
class Elsewhere(Method):
    """A method whose adversary clamps every step to a box that does not contain the data, as in the released
    experiment.

    The released notebook passes coordinates between -10 and 10 to PGD and TRADES and keeps their clamp at [0, 1]. The
    ball is centred at the point and the clamp comes last, so that the adversary of a point far from the unit square is
    a fixed point on its edge, independent of the gradient. `atent.attacks.PGD` rejects points outside the box.
    """

    threat: Threat
    """The threat of the evaluation, in the data's box."""
    inner: PGDAT | TRADES
    """The method, whose threat has the other box."""

    def adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator,
        ids: Tensor | None = None, progress: float = 1.0, state: State | None = None,
    ) -> Tensor:  # fmt: skip
        """x' (n, 2) in the other box, often outside the ball; the model is unchanged."""
        counters = torch.zeros(2, len(x), dtype=torch.int64, device=x.device)
        with guard(model, mode="eval"):
            oracle = Oracle(model, *counters, check=False)
            return self.inner.attack(progress).search(oracle, x, y, Batch(rng)).detach()

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        return self.inner.loss(model, x, y, aux, progress=progress, state=state)


def methods(threat: Threat) -> dict[str, Method]:
    """The figure's four methods, and TRADES and PGD as released; 40 steps of eps / 10 everywhere.

    ATENT starts at the point itself, with noise 1e-9, and projects only at its last step, as released.
    """
    step = float(threat.eps) / 10
    unit = replace(threat, box=_UNIT)
    return {
        "atent": ATENT(threat, 40, step, gamma=0.0, noise=1e-9, alpha=0.9, start="zero", projection="last"),
        "trades": TRADES(threat, 40, step, beta=8.0),
        "pgdat": PGDAT(threat, 40, step, start="corner"),
        "standard": Standard(),
        "trades-unit": Elsewhere(threat, TRADES(unit, 40, step, beta=8.0)),
        "pgdat-unit": Elsewhere(threat, PGDAT(unit, 40, step, start="corner")),
    }


def jobs(scale: Scale, data: DataSettings, threat: Threat) -> dict[str, Job]:
    """One job per row, seed 0: SGD at 0.01, a tenth of it from epoch 25 on, batches of 32, the last epoch kept."""
    step = float(threat.eps) / 10
    return {
        name: Job(
            recipe=None,
            method=method,
            data=data,
            model=ModelSettings(name="two_class"),
            optimizer=Optimizer(lr=0.01, momentum=0.9),
            # Milestones count from 0: the 25th epoch is the first at the lower rate.
            schedule=Schedule(kind="multistep", milestones=(24,), factor=0.1),
            train=TrainSettings(epochs=scale.epochs, batch_size=32, select="last", validate_limit=0, device="cpu"),
            evaluate=EvaluateSettings(
                attacks=(
                    f"PGD(steps=40, step_size={step:g})",
                    f"PGD(steps=40, step_size={step:g}, restarts=10)",
                    f"PGD(steps=40, step_size={step:g}, restarts=10, loss=margin)",
                ),
                norm=threat.norm, eps=float(threat.eps), limit=None, batch=1000,
            ),
        )
        for name, method in methods(threat).items()
    }  # fmt: skip


def exhaustive(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, side: int = SIDE) -> Tensor:
    """bool (n,): whether every point of a side x side grid over each point's linf ball, cut by the box, is correctly
    classified. In the plane this is nearly exact and independent of gradients."""
    line = torch.linspace(-1, 1, side, dtype=x.dtype)
    grid = float(threat.eps) * torch.cartesian_prod(line, line)
    robust = []
    with guard(model), torch.no_grad():
        for some, label in zip(x.split(64), y.split(64)):
            points = threat.clamp(some[:, None] + grid)
            right = ask(model, points.flatten(0, 1)).argmax(1).view(len(some), -1) == label[:, None]
            robust.append(right.all(1))
    return torch.cat(robust)


def out_of_reach(x: Tensor, eps: float, box: tuple[float, float] = _UNIT) -> Tensor:
    """bool (n,): points whose linf ball of radius eps does not meet the box: an adversary clamped to it leaves it."""
    return (x - x.clamp(*box)).abs().amax(1) > eps
