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
from atent.checks import check_number
from atent.losses import LOSSES, dlr_targeted, margin_targeted
from atent.messages import report_idle
from atent.rng import Streams
from atent.threat import Threat, per_sample

_TARGETED = "dlr-targeted"
# The smallest number of classes for which a loss is defined.
_LEAST = {"dlr": 3, _TARGETED: 4}
_EARLY = (0, 1, 2, 4, 8, 16)


@attack
@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD: projected gradient ascent with momentum and adaptive step sizes, for linf, l2 and l1.

    linf, l2: z = project(x_k + s ascent(g_k)), x_{k+1} = project(x_k + 0.75 (z - x_k) + 0.25 (x_k - x_{k-1})). The step
    size s of each sample starts at 2 eps and is halved at a checkpoint if less than a share ``rho`` of the steps since
    the last one increased the loss, or if neither the step size nor the best loss changed since then; the sample then
    resumes from its best point.

    l1: equal steps in the coordinates of the largest gradients, projected onto ball and box, without momentum; step
    size and number of coordinates adapt (`step_rules.Sparse`). With ``radii="shrinking"`` 30 % of the steps of a run
    use the ball of 3 eps, 30 % that of 2 eps and 40 % that of eps, each from the best point of the previous ball.

    ``loss="dlr-targeted"`` ascends the targeted DLR loss towards the ``targets`` most likely wrong classes of the clean
    logits, each from its own start. It needs 4 classes, "dlr" needs 3: with fewer, the difference of logits z_t - z_y
    or the margin replaces it, as `remarks` reports. Per sample the result is a misclassified iterate if there is one,
    otherwise the iterate of the highest loss; over several runs, the one with the largest margin.

    A sample is finished once it is misclassified, which is checked after 0, 1, 2, 4, 8 and 16 steps and at the
    checkpoints; its iterate with the largest margin so far is returned. Samples that resist the first run see the other
    runs side by side, as rows of one batch, until one of them succeeds. A pass has at most as many rows as the caller's
    batch, or 2^16 input elements. With ``eot`` above 1, for random models, mean logits are evaluated and no run ends
    early.

    ``steps`` backwards and steps + 1 forwards per run (shrinking: steps + 3), times ``eot``. Deviation from the paper:
    a checkpoint evaluates its own iterate, not the next one. Deviations of the authors' code from this one: it computes
    an unused gradient at the last point; it halves at a share of exactly rho, and never at the first checkpoint for
    lack of a better loss; it compares the loss after the first step with 0, not with that of the start; it rounds
    checkpoints differently (the same for 100 steps); it returns the last misclassified iterate; it runs targets in
    sequence.

    References
    ----------
    Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", ICML, arXiv 2003.01690.

    Croce and Hein 2021, "Mind the box: l1-APGD for sparse adversarial attacks on image classifiers", ICML, arXiv
    2103.01208.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import APGD
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> outcome = APGD(Threat("linf", 0.1), steps=5).run(model, x, y)
    >>> outcome.x_adv.shape, bool(outcome.norm.max() <= 0.1 + 1e-6)
    (torch.Size([2, 3, 4, 4]), True)
    """

    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

    threat: Threat
    steps: int = 100
    """Number of gradient steps per run."""
    restarts: int = 1
    """Number of starts, per target; the worst result counts."""
    loss: Literal["ce", "dlr", "margin", "dlr-targeted"] = "ce"
    """Loss to maximise: cross-entropy, difference of logits ratio, margin, or targeted difference of logits ratio."""
    targets: int = 9
    """For the targeted loss: number of target classes, at most all wrong ones."""
    rho: float = 0.75
    """Share of steps that must increase the loss, or else the step size is halved; 0 to 1."""
    eot: int = 1
    """Samples over which gradients are averaged, for random models."""
    start: Start = "boundary"
    """boundary (as published), or another start of PGD, projected onto ball and box."""
    radii: Literal["fixed", "shrinking"] = "fixed"
    """l1: shrinking, from 3 eps over 2 eps to eps, as in AutoAttack; or fixed, all steps in the ball of eps."""

    def __post_init__(self) -> None:
        for name in ("steps", "restarts", "targets", "eot"):
            check_number(name, getattr(self, name), 1, whole=True)
        check_number("rho", self.rho, 0, 1)
        check_start(self.threat, self.start)
        if self.radii == "shrinking" and self.threat.norm != "l1":
            raise ValueError(f"radii 'shrinking' is for l1, got {self.threat.norm}: use radii 'fixed'")
        report_idle(self, "APGD.", [("targets", f"set loss to {_TARGETED}", self.targeted)])

    @property
    def stages(self) -> list[tuple[float, int]]:
        """Radii in units of eps, and the steps at each."""
        return stages(self.steps) if self.radii == "shrinking" else [(1.0, self.steps)]

    @property
    def targeted(self) -> bool:
        """Whether the loss has target classes."""
        return self.loss == _TARGETED

    def remarks(self, classes: int) -> list[str]:
        said = []
        if classes < _LEAST.get(self.loss, 0):
            kind = "targeted DLR" if self.targeted else "DLR"
            said.append(f"maximises the difference of logits, as the {kind} loss needs {_LEAST[self.loss]} classes")
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
        # Each target has its own restarts, as published: run r has target r // restarts.
        runs = range(self.restarts * aims.shape[1])

        def once(oracle: Oracle, x: Tensor, y: Tensor, streams: Streams, wave: int, aims: Tensor) -> Tensor:
            beside = runs[1:] if wave else runs[:1]
            aims = aims[:, [run // self.restarts for run in beside]]
            if not wave:
                return self._run(oracle, x, y, self._begin(oracle, x, streams, beside), aims)
            found = []
            for rows in torch.arange(len(x), device=x.device).split(side_by_side(whole, len(beside))):
                part = oracle.take(rows)
                begin = self._begin(part, x[rows], streams.take(rows), beside)
                found.append(self._run(part, x[rows], y[rows], begin, aims[rows]))
            return torch.cat(found)

        return worst_of(min(2, len(runs)), once, oracle, x, y, streams, aims)

    def _begin(self, oracle: Oracle, x: Tensor, streams: Streams, runs: range) -> Tensor:
        """The starts of several runs, (n, runs, ...)."""
        threat = self.threat.take(oracle.rows).scaled(self.stages[0][0])
        return torch.stack([start(threat, self.start, x, streams, run) for run in runs], 1)

    def _run(self, oracle: Oracle, x: Tensor, y: Tensor, begin: Tensor, aims: Tensor) -> Tensor:
        """Several runs for each sample, side by side: starts (n, runs, ...) and targets (n, runs); one result each."""
        runs = begin.shape[1]
        if runs > 1:
            # The rows of a sample are adjacent.
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

        ``runs`` consecutive rows belong to one sample and are finished once one of them is misclassified; 0: none is
        finished early, and the best point has the highest loss. ``warm``: a point whose number of changed coordinates
        initialises the l1 steps.
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
                    # Once misclassified, points are compared by margin, before that by loss.
                    better = torch.where(torch.maximum(score, best_margin) > 0, score > best_margin, better)
                best = torch.where(per_sample(better, x), point, best)
                best_grad = torch.where(per_sample(better, x), grad, best_grad)
                best_value = torch.maximum(values, best_value)
                best_margin = torch.where(better, score, best_margin)
            if k in rule.checks:
                back = per_sample(rule.check(k, x, best, best_value), x)
                point, grad = torch.where(back, best, point), torch.where(back, best_grad, grad)
            if runs and k < steps and oracle.samples == 1 and (k in rule.checks or k in _EARLY):
                robust = (best_margin <= 0).view(-1, runs).all(1)
                keep = robust.repeat_interleave(runs).nonzero().squeeze(1)
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
        """The loss to maximise; the difference of logits where the model has fewer classes than the loss needs."""
        few = logits.shape[1] < _LEAST.get(self.loss, 0)
        if self.targeted:
            return margin_targeted(logits, y, aim) if few else dlr_targeted(logits, y, aim)
        return oracle.margin(logits, y) if few else oracle.aimed(LOSSES[self.loss])(logits, y)


def _worst(points: Tensor, margins: Tensor, runs: int) -> Tensor:
    """Of each sample's ``runs``, which are adjacent rows, the one with the largest margin."""
    pick = margins.view(-1, runs).argmax(1)
    chosen: Tensor = points.unflatten(0, (-1, runs))[torch.arange(len(pick), device=pick.device), pick]
    return chosen
