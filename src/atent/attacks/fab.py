"""Fast adaptive boundary attack: steps onto the linearised decision boundary, biased towards the clean input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from atent.attacks.base import Attack, attack
from atent.attacks.boundary import nearest_boundary
from atent.attacks.hyperplane import to_hyperplane
from atent.attacks.loops import all_targets, side_by_side
from atent.attacks.oracle import Oracle
from atent.attacks.smallest import length
from atent.attacks.starts import start
from atent.checks import check_number
from atent.rng import Streams
from atent.threat import Threat, per_sample

# Steps between two removals of finished samples from the batch.
_CHECK = 10
# Radius of a random start without an adversarial point and with infinite eps, as in the authors' code; in box widths.
_FREE = {"linf": 0.3, "l2": 1.0, "l1": 5.0}


@attack
@dataclass(frozen=True)
class FAB(Attack):
    """The smallest perturbation by the fast adaptive boundary attack (FAB), in the form that is part of AutoAttack.

    At z the differences of logits z_l - z_y are linearised; the target is the nearest of these hyperplanes. With d the
    step from z onto it inside the box and d0 that from x (`to_hyperplane`),

        z <- clamp((1 - alpha) (z + eta d) + alpha (x + eta d0)),  alpha = min(|d| / (|d| + |d0|), alpha_max).

    A misclassified z is stored if it is the nearest so far, and contracted: z <- x + beta (z - x). The first restart
    starts at x, the others at random in the ball of half the best norm so far, at most eps / 2 (the authors' code: on
    the sphere of radius eps / 2). As in AutoAttack, no final bisection follows.

    Without ``targets`` every wrong class is linearised: per step 2 forwards and one backward per wrong class. With
    ``targets`` (FAB-T) there is one run for each of the most likely wrong classes of x, at most all: 2 forwards and 1
    backward per step and run. The runs of a sample are rows of one batch: samples are processed in groups such that a
    pass has at most as many rows as the caller's batch, or 2^16 input elements.

    References
    ----------
    Croce and Hein 2020, "Minimally distorted adversarial examples with a fast adaptive boundary attack", ICML, arXiv
    1907.02044.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import FAB
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> outcome = FAB(Threat("linf", 0.1), steps=3).run(model, x, y)
    >>> outcome.x_adv.shape, bool(outcome.norm.max() <= 0.1 + 1e-6)
    (torch.Size([2, 3, 4, 4]), True)
    """

    minimum_norm: ClassVar[bool] = True
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

    threat: Threat
    steps: int = 100
    """Number of steps per run."""
    restarts: int = 1
    """Number of starts; the smallest perturbation counts."""
    targets: int | None = None
    """Number of wrong classes with a run each (FAB-T). Default: one run for all wrong classes."""
    alpha_max: float = 0.1
    """Largest weight of the step from x; between 0 and 1."""
    eta: float = 1.05
    """Length of a step, in units of the distance to the hyperplane; at least 1."""
    beta: float = 0.9
    """Factor by which the perturbation of a misclassified point is contracted; between 0 and 1."""
    stop_at_eps: bool = False
    """Stop a sample soon after a point within eps is found: as many successes, larger norms, fewer passes."""

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 1, whole=True)
        check_number("restarts", self.restarts, 1, whole=True)
        if self.targets is not None:
            check_number("targets", self.targets, 1, whole=True)
        check_number("eta", self.eta, 1)
        for name in ("alpha_max", "beta"):
            check_number(name, getattr(self, name), 0, 1)

    @property
    def passes(self) -> int:
        """As `Attack.passes`; without ``targets`` for a model with 10 classes."""
        return 2 + self.restarts * self.steps * (2 + 9 if self.targets is None else 3 * self.targets)

    def remarks(self, classes: int) -> list[str]:
        return [all_targets(classes)] if self.targets is not None and self.targets > classes - 1 else []

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        logits = oracle.logits(x, y)
        wrong = logits.scatter(1, y[:, None], -math.inf).argsort(1, descending=True)[:, :-1]
        # (n, runs, classes per run)
        others = wrong[:, None] if self.targets is None else wrong[:, : self.targets, None]
        found = x.clone()
        rows = (logits.argmax(1) == y).nonzero().squeeze(1)
        for part in rows.split(side_by_side(x, others.shape[1])) if len(rows) and others.shape[1:].numel() else ():
            found[part] = self._chase(oracle.take(part), x[part], y[part], others[part], streams.take(part))
        return found

    def _chase(self, oracle: Oracle, x: Tensor, y: Tensor, others: Tensor, streams: Streams) -> Tensor:
        """The smallest perturbation of correctly classified samples, x where none was found."""
        runs = others.shape[1]
        eps = x.new_zeros(len(x)) + self.threat.take(oracle.rows).radii(x)
        found, best = x.clone(), x.new_full((len(x),), math.inf)
        alive = torch.arange(len(x), device=x.device)

        def rows(t: Tensor) -> Tensor:
            return t.repeat_interleave(runs, 0)

        part, clean, true, goals = oracle.take(rows(alive)), rows(x), rows(y), others.flatten(0, 1)
        # The rows of a sample are adjacent.
        beside = torch.arange(runs, device=x.device)
        for restart in range(self.restarts):
            within = torch.minimum(best, eps)[alive]
            z = clean if restart == 0 else self._random(clean, within, streams.take(alive), restart)
            for k in range(self.steps):
                if self.stop_at_eps and (k or restart) and k % _CHECK == 0:
                    far = (best[alive] > eps[alive]).nonzero().squeeze(1)
                    if not len(far):
                        return found
                    if len(far) < len(alive):
                        keep = (far[:, None] * runs + beside).flatten()
                        alive, part = alive[far], part.take(keep)
                        z, clean, true, goals = z[keep], clean[keep], true[keep], goals[keep]
                z = self._step(part, z, clean, true, goals)
                fooled = part.logits(z, true).argmax(1) != true
                size = torch.where(fooled, self._norm(z - clean), math.inf)
                nearest, run = size.view(-1, runs).min(1)
                better = nearest < best[alive]
                z_nearest = z[run + runs * torch.arange(len(alive), device=x.device)]
                found[alive] = torch.where(per_sample(better, x), z_nearest, found[alive])
                best[alive] = torch.minimum(nearest, best[alive])
                z = torch.where(per_sample(fooled, z), clean + self.beta * (z - clean), z)
        return found

    def _step(self, oracle: Oracle, z: Tensor, x: Tensor, y: Tensor, others: Tensor) -> Tensor:
        """One step from ``z``, which is anchored at ``x``, onto the nearest of the linearised boundaries."""
        boundary, _ = nearest_boundary(oracle, z, y, others, self.threat.norm)
        w, gap = boundary.slope, -boundary.difference
        gap_x = gap + (w * (z - x)).flatten(1).sum(1)
        d = to_hyperplane(self.threat, torch.cat([z, x]), torch.cat([w, w]), torch.cat([gap, gap_x]))
        d_z, d_x = d.chunk(2)
        size_z, size_x = self._norm(d).clamp_min(1e-8 * self.threat.width).chunk(2)
        alpha = per_sample((size_z / (size_z + size_x)).clamp_max(self.alpha_max), x)
        return self.threat.clamp((1 - alpha) * (z + self.eta * d_z) + alpha * (x + self.eta * d_x))

    def _random(self, x: Tensor, best: Tensor, streams: Streams, restart: int) -> Tensor:
        """A random start for each run; ``x`` has the rows of the runs, ``best`` (the norm so far, at most eps) and
        ``streams`` those of the samples."""
        runs = len(x) // len(best)
        ball, origin = Threat(self.threat.norm, 1.0), torch.zeros_like(x[::runs])
        change = [start(ball, "uniform", origin, streams.named(f"run {run}"), restart) for run in range(runs)]
        radius = best / 2
        radius = torch.where(radius.isfinite(), radius, _FREE[self.threat.norm] / 2 * self.threat.width)
        far = per_sample(radius.repeat_interleave(runs), x)
        return self.threat.clamp(x + far * torch.stack(change, dim=1).flatten(0, 1))

    def _norm(self, d: Tensor) -> Tensor:
        return length(self.threat, d)
