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
from atent.attacks.step_rules import Halving, Rule, Sparse, stages
from atent.checks import check_choice, check_number
from atent.losses import LOSSES, dlr_targeted, margin_targeted
from atent.rng import Streams
from atent.threat import Threat, per_sample

_TARGETED = "dlr-targeted"
# The classes that the formula of a loss takes.
_LEAST = {"dlr": 3, _TARGETED: 4}
_EARLY = (0, 1, 2, 4, 8, 16)


@attack
@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD of Croce and Hein 2020, Algorithm 1, for linf and l2, and of Croce and Hein 2021 for l1.

    linf, l2: z = project(x_k + s ascent(g_k)), x_{k+1} = project(x_k + 0.75 (z - x_k) + 0.25 (x_k - x_{k-1})), with
    step sizes s of each sample's own: 2 eps at first, and halved at a checkpoint where less than a share ``rho`` of the
    steps since the last one raised the loss, or where neither step size nor best loss changed since then; a sample
    whose step is halved resumes from its best point.

    l1: equal steps in the coordinates of the largest gradients, projected onto ball and box, without momentum; step
    size and number of coordinates adapt (`step_rules.Sparse`). With ``radii="shrinking"`` 30 % of a run's steps are in
    the ball of 3 eps, 30 % in that of 2 eps and 40 % in that of eps, each part from the best point of the one before.

    ``loss="dlr-targeted"`` climbs Eq. 7 towards the ``targets`` most likely wrong classes of the clean logits, each
    from a start of its own. Its formula takes 4 classes, that of "dlr" 3: with fewer the plain difference of logits,
    z_t - z_y or the margin, is climbed in its place, as `remarks` says. Per sample the result is a misclassified
    iterate where there is one, else the iterate of highest loss; over several runs, that of the largest margin.

    A sample is done when it is fooled, which is looked at after 0, 1, 2, 4, 8 and 16 steps and at the checkpoints; of
    what it has found by then the largest margin counts. The first run decides which samples see the others, and those
    go side by side, as rows of one batch: a sample is done when one of them succeeds. A pass sees no more rows than
    the caller's batch has, or 2^16 input numbers. A random model, ``eot`` above 1, is evaluated by its mean logits and
    climbed to the end.

    ``steps`` backwards and steps + 1 forwards per run (shrinking: steps + 3), times ``eot``. Differences from the
    paper: a checkpoint looks at its own iterate, not one step later. From the authors' code: it takes a gradient at the
    last point too, which nothing uses; it halves at a share of exactly rho, and never at the first checkpoint for want
    of a better loss; it compares the first step's loss with 0, not with the start's; its checkpoints are rounded
    otherwise (100 steps: the same); it returns the last misclassified iterate; its targets come one after the other.

    References
    ----------
    Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", ICML, Algorithm 1.

    Croce and Hein 2021, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import APGD
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> APGD(Threat("linf", 0.1), steps=5).run(model, x, y).x_adv.shape
    torch.Size([2, 3, 4, 4])
    """

    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

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
    radii: Literal["fixed", "shrinking"] = "fixed"
    """l1: shrinking, from 3 eps over 2 eps to eps, as in AutoAttack; or fixed, all steps in the ball of eps."""

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "targets", "eot"):
            check_number(name, getattr(self, name), 1, whole=True)
        check_choice("loss", self.loss, (*LOSSES, _TARGETED))
        check_number("rho", self.rho, 0)
        if self.rho > 1:
            raise ValueError(f"rho is a share of steps and must be at most 1, got {self.rho}")
        check_start(self.threat, self.start)
        check_choice("radii", self.radii, ("fixed", "shrinking"))
        if self.radii == "shrinking" and self.threat.norm != "l1":
            raise ValueError(f"radii 'shrinking' is for l1, got {self.threat.norm}: use radii 'fixed'")

    @property
    def stages(self) -> list[tuple[float, int]]:
        """Radii in units of eps, and the steps at each."""
        return stages(self.steps) if self.radii == "shrinking" else [(1.0, self.steps)]

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
        return runs * self.eot * (2 * self.steps + len(self.stages)) + self.targeted + (2 if runs > 1 else 0) + 1

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
        threat = self.threat.take(oracle.rows).scaled(self.stages[0][0])
        return torch.stack([start(threat, self.start, x, streams, run) for run in runs], 1)

    def _climb(self, oracle: Oracle, x: Tensor, y: Tensor, begin: Tensor, aims: Tensor) -> Tensor:
        """Several runs for each sample, side by side: starts (n, runs, ...) and targets (n, runs); one result each."""
        runs = begin.shape[1]
        if runs > 1:
            # A sample's rows lie next to each other.
            rows = torch.arange(len(x), device=x.device).repeat_interleave(runs)
            oracle, x, y = oracle.take(rows), x[rows], y[rows]
        whole, point, aim = self.threat.take(oracle.rows), begin.flatten(0, 1), aims.flatten()
        for factor, steps in self.stages:
            threat = whole.scaled(factor)
            point = threat.project(point, x)
            warm = point if self.radii == "shrinking" else None
            last = factor == 1
            point, score = self._ascend(oracle, threat, x, y, point, aim, steps, runs if last else 0, warm)
        return point if runs == 1 else _worst(point, score, runs)

    def _ascend(
        self, oracle: Oracle, threat: Threat, x: Tensor, y: Tensor, point: Tensor, aim: Tensor, steps: int, runs: int,
        warm: Tensor | None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The best points of ``steps`` steps from ``point``, and their margins.

        ``runs`` rows in a row are of one sample, and leave once one of them is misclassified; 0: none leaves, and the
        loss alone says what is best. ``warm``: a point whose number of changed coordinates the l1 steps begin with.
        """

        def loss(logits: Tensor, y: Tensor) -> Tensor:
            return self._loss(oracle, logits, y, aim)

        grad, values, logits = oracle.gradient(point, y, loss)
        before = best = point
        best_grad, best_value, best_margin = grad, values, oracle.margin(logits, y)
        rule: Rule = (
            Sparse.begin(threat, x, warm, steps)
            if threat.norm == "l1"
            else Halving.begin(threat, x, values, best_margin, steps, self.rho)
        )
        done, done_margin, place = point, best_margin, torch.arange(len(x), device=x.device)

        for k in range(steps + 1):
            if k:
                before, point = point, rule.move(threat, x, point, before, grad, k)
                if k < steps:
                    grad, values, logits = oracle.gradient(point, y, loss)
                else:
                    values, logits = oracle.value(point, y, loss)
                rule.see(values)
                score = oracle.margin(logits, y)
                better = values > best_value
                if runs:
                    # Once misclassified, the margin decides what is better, before that the loss.
                    better = torch.where(torch.maximum(score, best_margin) > 0, score > best_margin, better)
                best = torch.where(per_sample(better, x), point, best)
                best_grad = torch.where(per_sample(better, x), grad, best_grad)
                best_value = torch.maximum(values, best_value)
                best_margin = torch.where(better, score, best_margin)
            if k in rule.checks:
                back = per_sample(rule.check(k, x, best, best_value), x)
                point, grad = torch.where(back, best, point), torch.where(back, best_grad, grad)
            if runs and k < steps and oracle.samples == 1 and (k in rule.checks or k in _EARLY):
                standing = (best_margin <= 0).view(-1, runs).all(1)
                keep = standing.repeat_interleave(runs).nonzero().squeeze(1)
                if len(keep) < len(x):
                    done, done_margin = done.index_copy(0, place, best), done_margin.index_copy(0, place, best_margin)
                    oracle, threat, rule = oracle.take(keep), threat.take(keep), rule.take(keep)
                    x, y, aim, point, before, grad, best, best_grad, place, best_value, best_margin = (
                        t[keep]
                        for t in (x, y, aim, point, before, grad, best, best_grad, place, best_value, best_margin)
                    )
                    if not len(keep):
                        break
        return done.index_copy(0, place, best), done_margin.index_copy(0, place, best_margin)

    def _loss(self, oracle: Oracle, logits: Tensor, y: Tensor, aim: Tensor) -> Tensor:
        """What is climbed; the difference of logits where the model has fewer classes than the loss takes."""
        few = logits.shape[1] < _LEAST.get(self.loss, 0)
        if self.targeted:
            return margin_targeted(logits, y, aim) if few else dlr_targeted(logits, y, aim)
        return oracle.margin(logits, y) if few else oracle.aimed(LOSSES[self.loss])(logits, y)


def _worst(points: Tensor, margins: Tensor, runs: int) -> Tensor:
    """Of each sample's ``runs``, which lie next to each other, the one of the largest margin."""
    pick = margins.view(-1, runs).argmax(1)
    chosen: Tensor = points.unflatten(0, (-1, runs))[torch.arange(len(pick), device=pick.device), pick]
    return chosen
