"""Auto-PGD: projected gradient ascent with momentum that chooses its own step sizes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from atent.attacks.base import Attack, attack
from atent.attacks.loops import all_targets, side_by_side, worst_of
from atent.attacks.oracle import Oracle
from atent.attacks.starts import Start, check_start, start
from atent.checks import check_choice, check_number
from atent.losses import LOSSES, dlr_targeted, margin_targeted
from atent.rng import Streams
from atent.threat import Threat, per_sample

_TARGETED = "dlr-targeted"
# The classes that the formula of a loss takes.
_LEAST = {"dlr": 3, _TARGETED: 4}
_EARLY = (0, 1, 2, 4, 8, 16)
_MOMENTUM = 0.75


def checkpoints(steps: int) -> dict[int, int]:
    """Step -> steps since the checkpoint before: where Auto-PGD looks back; Croce and Hein 2020, section 3.1.

    w_j = ceil(p_j steps) with p_0 = 0, p_1 = 0.22, p_{j+1} = p_j + max(p_j - p_{j-1} - 0.03, 0.06).
    """
    found, last, at, gap = {}, 0, 22, 22
    while at <= 100:
        step = -(-at * steps // 100)
        if step > last:
            found[step] = step - last
        last, gap = step, max(gap - 3, 6)
        at += gap
    return found


@attack
@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD of Croce and Hein 2020, Algorithm 1, for linf and l2.

    z = project(x_k + s ascent(g_k)), x_{k+1} = project(x_k + 0.75 (z - x_k) + 0.25 (x_k - x_{k-1})), with step sizes s
    of each sample's own: 2 eps at first, and halved at a checkpoint where less than a share ``rho`` of the steps since
    the last one raised the loss, or where neither step size nor best loss changed since then; a sample whose step is
    halved resumes from its best point.

    ``loss="dlr-targeted"`` climbs Eq. 7 towards the ``targets`` most likely wrong classes of the clean logits, each
    from a start of its own. Its formula takes 4 classes, that of "dlr" 3: with fewer the plain difference of logits,
    z_t - z_y or the margin, is climbed in its place, as `remarks` says. Per sample the result is a misclassified
    iterate where there is one, else the iterate of highest loss; over several runs, that of the largest margin.

    A sample is done when it is fooled, which is looked at after 0, 1, 2, 4, 8 and 16 steps and at the checkpoints; of
    what it has found by then the largest margin counts. The first run decides which samples see the others, and those
    go side by side, as rows of one batch: a sample is done when one of them succeeds. A pass sees no more rows than
    the caller's batch has, or 2^16 input numbers. A random model, ``eot`` above 1, is evaluated by its mean logits and
    climbed to the end.

    ``steps`` backwards and steps + 1 forwards per run, times ``eot``. Differences from the paper: a checkpoint looks
    at its own iterate, not one step later. From the authors' code: it takes a gradient at the last point too, which
    nothing uses; it halves at a share of exactly rho, and never at the first checkpoint for want of a better loss; it
    compares the first step's loss with 0, not with the start's; its checkpoints are rounded otherwise (100 steps: the
    same); it returns the last misclassified iterate; its targets come one after the other.
    """

    aims: ClassVar[bool] = True

    threat: Threat
    steps: int = 100
    """Number of gradient steps of a run."""
    restarts: int = 1
    """Number of starts, for each target; the worst result counts."""
    loss: Literal["ce", "dlr", "margin", "dlr-targeted"] = "ce"
    """Loss to climb."""
    targets: int = 9
    """For the targeted loss: how many wrong classes, at most all of them."""
    rho: float = 0.75
    """A step size stays while more than this share of the steps raises the loss; 0 to 1."""
    eot: int = 1
    """Samples over which gradients are averaged, for random models."""
    start: Start = "boundary"
    """boundary as published, or another start of PGD's, brought into the ball and the box."""

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "targets", "eot"):
            check_number(name, getattr(self, name), 1, whole=True)
        check_choice("loss", self.loss, (*LOSSES, _TARGETED))
        check_number("rho", self.rho, 0)
        if self.rho > 1:
            raise ValueError(f"rho is a share of steps and must be at most 1, got {self.rho}")
        check_start(self.threat, self.start)

    @property
    def targeted(self) -> bool:
        """The loss aims at chosen classes."""
        return self.loss == _TARGETED

    def remarks(self, classes: int) -> list[str]:
        said = []
        if classes < _LEAST.get(self.loss, 0):
            kind = "targeted DLR" if self.targeted else "DLR"
            said.append(f"climbs the difference of logits, as the {kind} loss takes {_LEAST[self.loss]} classes")
        if self.targeted and self.targets > classes - 1:
            said.append(all_targets(classes))
        return said

    def check_aims(self) -> None:
        if self.targeted:
            raise ValueError("loss 'dlr-targeted' chooses its targets itself: use loss 'dlr', 'margin' or 'ce'")

    @property
    def passes(self) -> int:
        runs = self.restarts * (self.targets if self.targeted else 1)
        return runs * self.eot * (2 * self.steps + 1) + self.targeted + (2 if runs > 1 else 0) + 1

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        if self.eot > 1:
            oracle = oracle.averaging(self.eot)
        whole, aims = x, y[:, None]
        if self.targeted:
            wrong = oracle.logits(x, y).scatter(1, y[:, None], float("-inf"))
            aims = wrong.topk(min(self.targets, wrong.shape[1] - 1), dim=1).indices
        # The targets of a restart of its own each, as published: run r goes to target r // restarts.
        runs = range(self.restarts * aims.shape[1])

        def once(oracle: Oracle, x: Tensor, y: Tensor, streams: Streams, wave: int, aims: Tensor) -> Tensor:
            beside = runs[1:] if wave else runs[:1]
            aims = aims[:, [run // self.restarts for run in beside]]
            if not wave:
                return self._climb(oracle, x, y, self._begin(oracle, x, streams, beside), aims)
            found = []
            for rows in torch.arange(len(x), device=x.device).split(side_by_side(whole, len(beside))):
                part = oracle.take(rows)
                begin = self._begin(part, x[rows], streams.take(rows), beside)
                found.append(self._climb(part, x[rows], y[rows], begin, aims[rows]))
            return torch.cat(found)

        return worst_of(min(2, len(runs)), once, oracle, x, y, streams, aims)

    def _begin(self, oracle: Oracle, x: Tensor, streams: Streams, runs: range) -> Tensor:
        """The starts of several runs, (n, runs, ...)."""
        threat = self.threat.take(oracle.rows)
        return torch.stack([start(threat, self.start, x, streams, run) for run in runs], 1)

    def _climb(self, oracle: Oracle, x: Tensor, y: Tensor, begin: Tensor, aims: Tensor) -> Tensor:
        """Several runs for each sample, side by side: starts (n, runs, ...) and targets (n, runs); one result each."""
        runs = begin.shape[1]
        if runs > 1:
            # A sample's rows lie next to each other.
            rows = torch.arange(len(x), device=x.device).repeat_interleave(runs)
            oracle, x, y = oracle.take(rows), x[rows], y[rows]
        threat = self.threat.take(oracle.rows)
        aim, point = aims.flatten(), threat.project(begin.flatten(0, 1), x)

        def loss(logits: Tensor, y: Tensor) -> Tensor:
            return self._loss(oracle, logits, y, aim)

        grad, values, logits = oracle.gradient(point, y, loss)
        before = best = point
        best_grad, best_value, best_margin = grad, values, oracle.margin(logits, y)
        last = at_check = values
        size = torch.zeros_like(best_margin, dtype=x.dtype) + threat.radii(x, lambda eps: 2 * eps)
        raised, halved = torch.zeros_like(values), torch.zeros_like(y, dtype=torch.bool)
        done, done_margin, place = point, best_margin, torch.arange(len(x), device=x.device)
        checks = checkpoints(self.steps)
        for k in range(self.steps + 1):
            if k:
                before, point = point, self._move(threat, x, point, before, grad, size, k)
                if k < self.steps:
                    grad, values, logits = oracle.gradient(point, y, loss)
                else:
                    values, logits = oracle.value(point, y, loss)
                raised, last = raised + (values > last), values
                score = oracle.margin(logits, y)
                # Once misclassified, the margin decides what is better, before that the loss.
                fooled = torch.maximum(score, best_margin) > 0
                better = torch.where(fooled, score > best_margin, values > best_value)
                best = torch.where(per_sample(better, x), point, best)
                best_grad = torch.where(per_sample(better, x), grad, best_grad)
                best_value = torch.maximum(values, best_value)
                best_margin = torch.where(better, score, best_margin)
            if k in checks:
                stuck = ~halved & (at_check >= best_value)
                halved = (raised < self.rho * checks[k]) | stuck
                size = torch.where(halved, size / 2, size)
                point = torch.where(per_sample(halved, x), best, point)
                grad = torch.where(per_sample(halved, x), best_grad, grad)
                raised, at_check = torch.zeros_like(raised), best_value
            if k < self.steps and oracle.samples == 1 and (k in checks or k in _EARLY):
                standing = (best_margin <= 0).view(-1, runs).all(1)
                keep = standing.repeat_interleave(runs).nonzero().squeeze(1)
                if len(keep) < len(x):
                    done, done_margin = done.index_copy(0, place, best), done_margin.index_copy(0, place, best_margin)
                    oracle, threat = oracle.take(keep), threat.take(keep)
                    x, y, aim, point, before, grad, best, best_grad, place = (
                        t[keep] for t in (x, y, aim, point, before, grad, best, best_grad, place)
                    )
                    best_value, best_margin, last, at_check, size, raised, halved = (
                        t[keep] for t in (best_value, best_margin, last, at_check, size, raised, halved)
                    )
                    if not len(keep):
                        break
        done, done_margin = done.index_copy(0, place, best), done_margin.index_copy(0, place, best_margin)
        return done if runs == 1 else _worst(done, done_margin, runs)

    def _loss(self, oracle: Oracle, logits: Tensor, y: Tensor, aim: Tensor) -> Tensor:
        """What is climbed; the difference of logits where the model has fewer classes than the loss takes."""
        few = logits.shape[1] < _LEAST.get(self.loss, 0)
        if self.targeted:
            return margin_targeted(logits, y, aim) if few else dlr_targeted(logits, y, aim)
        return oracle.margin(logits, y) if few else oracle.aimed(LOSSES[self.loss])(logits, y)

    def _move(
        self, threat: Threat, x: Tensor, point: Tensor, before: Tensor, grad: Tensor, size: Tensor, k: int
    ) -> Tensor:
        """Point k from the two before it: a step of the gradient, and from the second on with momentum."""
        moved = threat.project(point + per_sample(size, x) * threat.ascent(grad), x)
        if k == 1:
            return moved
        return threat.project(point + (_MOMENTUM * (moved - point) + (1 - _MOMENTUM) * (point - before)), x)


def _worst(points: Tensor, margins: Tensor, runs: int) -> Tensor:
    """Of each sample's ``runs``, which lie next to each other, the one of the largest margin."""
    pick = margins.view(-1, runs).argmax(1)
    chosen: Tensor = points.unflatten(0, (-1, runs))[torch.arange(len(pick), device=pick.device), pick]
    return chosen
