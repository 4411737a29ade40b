"""Projected gradient descent (ascent on the loss)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from atent.attacks.base import Attack, attack
from atent.attacks.loops import restarted, worst_of
from atent.attacks.oracle import Loss, Oracle
from atent.attacks.starts import ALLOWED, Start, check_step, report_path, start
from atent.checks import check_choice, check_number
from atent.losses import LOSSES, kl
from atent.rng import Streams
from atent.threat import COUNTS, NORMS, Threat, per_sample, unit

# With a momentum above 1 the sum grows geometrically and overflows float32.
_MOMENTUM = 100.0


@attack
@dataclass(frozen=True)
class PGD(Attack):
    """Projected gradient descent on the negative loss (Madry et al. 2018): x <- project(x + step_size * ascent(g)).

    The steepest ascent is the sign of the gradient (linf), the unit gradient (l2), or a move to the faces of the box in
    the coordinates of the largest gradients (l1). In l0 and for patches the gradient divided by its largest entry is
    added, and the projection keeps the elements or patches with the largest change; long steps reselect them at each
    step, short steps keep the first selection.

    The starts ``cube``, x + U(-eps, eps)^d as in the published l2 evaluation of ATENT, and ``gaussian``,
    x + start_noise N(0, I) as in TRADES, may lie outside the ball and the box, where the first gradient is then
    computed; all other starts are clamped to the box. ``steps`` forwards and backwards per restart; restarts run only
    on samples that remain correctly classified.

    ``loss="kl"`` ascends KL(softmax(f(x)) || softmax(f(x'))), the inner maximisation of TRADES: it uses no labels, and
    computes the clean logits once, one more forward. With ``momentum`` mu above 0 the direction is that of the running
    sum g <- mu g + grad / ||grad||_1 per sample, from g = 0 at each start (MI-FGSM, Dong et al. 2018, who start at x
    with mu = 1 and steps of eps / steps).

    References
    ----------
    Madry, Makelov, Schmidt, Tsipras and Vladu 2018, "Towards deep learning models resistant to adversarial attacks",
    ICLR, Section 2.1, arXiv 1706.06083.

    Zhang, Yu, Jiao, Xing, El Ghaoui and Jordan 2019, "Theoretically principled trade-off between robustness and
    accuracy", ICML, arXiv 1901.08573.

    Dong, Liao, Pang, Su, Zhu, Hu and Li 2018, "Boosting adversarial attacks with momentum", CVPR, arXiv 1710.06081.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import PGD
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> outcome = PGD(Threat("linf", 0.1), steps=3).run(model, x, y)
    >>> outcome.x_adv.shape, bool(outcome.norm.max() <= 0.1 + 1e-6)
    (torch.Size([2, 3, 4, 4]), True)
    """

    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[str, ...]] = NORMS

    threat: Threat
    steps: int = 20
    """Number of gradient steps."""
    step_size: float | None = None
    """Length of a step in pixel units. Default: 2.5 eps / steps; l0, patch: 10 widths of the box."""
    restarts: int = 1
    """Number of starts; the worst result counts."""
    start: Start | Literal["gaussian"] = "uniform"
    """zero, uniform, corner (linf), sphere (l2), cube or gaussian."""
    loss: Literal["ce", "margin", "dlr", "kl"] = "ce"
    """Loss to maximise: cross-entropy, margin, difference of logits ratio, or divergence from the clean prediction."""
    keep: Literal["last", "best"] = "last"
    """Iterate that is returned: the last, or the one with the highest loss (one more forward)."""
    momentum: float = 0.0
    """mu: weight of the past gradients, 0 to 100; 0: none."""
    start_noise: float | None = None
    """Standard deviation of the gaussian start in pixel units, above 0. Default: 0.001 of the box's width."""

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 1, whole=True)
        check_number("restarts", self.restarts, 1, whole=True)
        if self.step_size is not None:
            check_step(self.threat, self.step_size)
            report_path(self.threat, self.start, self.steps, self.step_size)
        check_choice(f"start (for {self.threat.norm})", self.start, (*ALLOWED[self.threat.norm], "gaussian"))
        check_number("momentum", self.momentum, 0)
        if self.momentum > _MOMENTUM:
            raise ValueError(
                f"momentum must be at most {_MOMENTUM:g}, got {self.momentum:g}: its sum overflows float32"
            )
        if self.start_noise is not None:
            check_number("start_noise", self.start_noise, 0, above=True)
        if self.start != "gaussian" and self.start_noise is not None:
            raise ValueError(f"start_noise is for start 'gaussian', got start {self.start!r}: omit start_noise")
        if self.loss == "kl" and self.start == "zero":
            # The gradient at x is rounding error, whose sign would make a full step.
            raise ValueError("loss 'kl' has its minimum at x, the start 'zero': use start 'uniform'")

    @property
    def resolved_step(self) -> float:
        """The step size in use."""
        return float(self._length(float(self.threat.eps)))

    def _length(self, eps: Any) -> Any:
        if self.step_size is None and self.threat.norm not in COUNTS:
            return 2.5 * eps / self.steps
        return 0 * eps + (self.threat.leap if self.step_size is None else self.step_size)

    @property
    def passes(self) -> int:
        return restarted(2 * self.steps + (self.keep == "best"), self.restarts) + (self.loss == "kl")

    def check_aims(self) -> None:
        if self.loss == "kl":
            raise ValueError("loss 'kl' does not use labels, so it has no targets: use loss 'ce', 'margin' or 'dlr'")

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        clean = (oracle.logits(x, y),) if self.loss == "kl" else ()
        if self.restarts == 1:
            return self._ascend(oracle, x, y, streams, 0, *clean)
        return worst_of(self.restarts, self._ascend, oracle, x, y, streams, *clean)

    def _ascend(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams, restart: int, *clean: Tensor) -> Tensor:
        """The result of one start; ``clean`` are the logits that kl compares with."""
        threat = self.threat if oracle.rows is None else self.threat.take(oracle.rows)
        step = threat.lengths(x, self._length)
        loss: Loss = (lambda logits, _: kl(logits, *clean)) if clean else LOSSES[self.loss]
        if oracle.targeted:
            loss = oracle.aimed(loss)
        if self.start == "gaussian":
            noise = 1e-3 * threat.width if self.start_noise is None else self.start_noise
            z = x + noise * streams.normal(x, use="start", restart=restart)
        else:
            z = start(threat, self.start, x, streams, restart)
            z = z if self.start == "cube" else threat.clamp(z)
        best, highest, past = z, None, torch.zeros_like(x)
        for k in range(self.steps):
            grad, values, _ = oracle.gradient(z, y, loss)
            if self.keep == "best" and k:
                best, highest = _higher(best, highest, z, values)
            if self.momentum:
                grad = past = self.momentum * past + unit(grad, 1)
            z = threat.project(threat.step(z, grad, step), x)
        if self.keep == "last":
            return z
        values = loss(oracle.logits(z, y), y)
        oracle.report(z, values)
        return _higher(best, highest, z, values)[0]


def _higher(best: Tensor, highest: Tensor | None, z: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Per sample the iterate of the higher loss, and that loss; ``z`` if it is the first, unless its loss is NaN."""
    # Losses are compared in their own precision: rounded to that of x, a smaller one could appear larger.
    highest = torch.full_like(values, -math.inf) if highest is None else highest
    better = values > highest
    return torch.where(per_sample(better, z), z, best), torch.where(better, values, highest)
