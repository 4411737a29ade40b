"""Max-margin adversarial training (Ding, Sharma, Lui and Huang 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from atent.attacks.bisection import bisect
from atent.attacks.oracle import Oracle
from atent.attacks.starts import Start, check_start, start
from atent.checks import check_number
from atent.distributed import gathered
from atent.guard import ask, guard
from atent.losses import cross_entropy
from atent.methods.base import Method, Metrics, State, check_budget, check_reach, correct, method
from atent.rng import Batch, seed_from
from atent.threat import Threat, per_sample

REACH = 1.05
"""Range of the bisection in units of d_max: slightly beyond the hinge, as in the authors' code."""

_EPS_MIN = {"linf": 0.005, "l2": 0.5}


def soft_logit_margin(logits: Tensor, y: Tensor) -> Tensor:
    """log sum over i != y of exp(z_i), minus z_y; negative if and only if p_y > 1/2. Shape (n,)."""
    z = logits.to(torch.promote_types(logits.dtype, torch.float32))
    own = z.gather(1, y[:, None])
    return z.scatter(1, y[:, None], float("-inf")).logsumexp(1) - own.squeeze(1)


@method
@dataclass(frozen=True)
class MMA(Method):
    """Maximise each sample's margin to the decision boundary, up to d_max (Ding et al. 2020, Algorithms 1 and 2).

    ``clean_weight`` times the mean cross-entropy at x, plus the rest times the mean of
        the cross-entropy at x                  if the sample is misclassified,
        the cross-entropy at x + delta*         if it is correctly classified with a margin d below d_max (the hinge),
        0                                       if it is correctly classified and farther from the boundary.

    d_max is the threat's eps. x + delta* lies on the boundary, at distance d along the direction of AN-PGD: PGD
    on the soft logit margin (SLM) within the sample's own eps, then bisection on [0, 1.05 d_max] for the SLM's zero.
    The sample's next eps is d, but at least ``eps_min``, the initial value. Delta* is constant in the gradient.

    As in the authors' code, correctly classified means SLM < 0 in the train-mode clean pass (p_y > 1/2, which is
    stricter than the largest logit for three or more classes); the loss at the boundary is the cross-entropy, which the
    paper uses instead of the SLM for stability (``margin_loss="slm"`` is the form of its theory); of the two train-mode
    passes, one is on the clean batch, the other on the boundary points of all correctly classified samples, including
    those beyond the hinge (they count in batch-norm), and the clean inputs of the misclassified ones.

    Deviations from their code (BorealisAI/mma_training). The clean pass comes after the attack here and before it
    there: with batch-norm, the statistics in their attack include this batch already; without, the order makes no
    difference. Attack and bisection use the model in eval mode here; there the bisection, and the pass before it that
    classifies the attack's last iterate, are in train mode, with a graph, and update batch-norm ``bisection + 1``
    times. AN-PGD runs on the full batch, so that the host does not wait for the device: a misclassified sample's
    bisection ends near 0, hence at ``eps_min``; they set 0. The direction is delta / ||delta|| as in the paper; their
    code divides by eps. The boundary point is clamped to the box, also at the end; d is the length before that clamp.
    PGD projects onto the ball, then the box; ``start`` is uniform in the ball, theirs in l2 a random image projected
    onto the ball. A zero gradient does not move the iterate.

    Passes: ``steps + bisection`` forwards and ``steps`` backwards for the adversary, two of each for the loss (one
    backward with ``clean_weight=0``). The margin of a misclassified sample is 0.

    References
    ----------
    Ding, Sharma, Lui and Huang 2020, "MMA training: direct input space margin maximization through adversarial
    training", ICLR, arXiv 1812.02637.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.methods import MMA
    >>> from atent.models import build
    >>> x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    >>> net = build("digits_cnn", shape=(1, 8, 8))
    >>> metrics = MMA(Threat("l2", 1.0), steps=3).backward(net, x, y)  # leaves the gradient in .grad
    >>> sorted(metrics)
    ['clean', 'loss', 'margin']
    """

    alike: ClassVar[tuple[str, ...]] = ("eps",)

    threat: Threat
    """Norm of the margin; its eps is d_max: samples with a larger margin have no loss."""
    steps: int = 10
    """Number of gradient steps."""
    bisection: int = 10
    """Number of points evaluated by the bisection, 5 to 53; float32 has no use for more than 24."""
    step_scale: float = 2.5
    """Length of a step: step_scale * eps / steps, with each sample's own eps; above 0."""
    start: Start = "uniform"
    """Start of the adversary: zero, uniform, corner (linf), sphere (l2) or cube."""
    eps_min: float | None = None
    """First and smallest eps of a sample; default: 0.005 (linf), 0.5 (l2), as on CIFAR-10, at most d_max."""
    clean_weight: float = 1 / 3
    """Weight of the clean cross-entropy, in [0, 1); 0 is the paper's OMMA."""
    margin_loss: Literal["ce", "slm"] = "ce"
    """Loss at the boundary point: cross-entropy or soft logit margin."""

    def __post_init__(self) -> None:
        if not float(self.threat.eps) > 0:
            raise ValueError("the threat's eps, MMA's d_max, must be above 0, got 0")
        check_budget(self.threat)
        check_number("steps", self.steps, 1, whole=True)
        # With fewer, a sample without a boundary in the range could end below d_max: 1.05 / 2^4 > 0.05.
        check_number("bisection", self.bisection, 5, whole=True)
        if self.bisection > 53:
            raise ValueError(f"bisection must be at most 53 (the precision of floats), got {self.bisection}")
        # Without steps the direction is that of the start, and start zero has none.
        check_number("step_scale", self.step_scale, 0, above=True)
        check_start(self.threat, self.start)
        if self.eps_min is not None:
            check_number("eps_min", self.eps_min, 0, above=True)
            if self.eps_min > self.d_max:
                raise ValueError(f"eps_min must be at most d_max, the threat's eps {self.d_max:g}, got {self.eps_min}")
        step = self.step_scale * self.resolved_eps_min / self.steps
        length = f"with steps={self.steps} and eps_min={self.resolved_eps_min:g} a step of"
        check_reach(self.threat, step, f"step_scale {self.step_scale:g} {length}")
        check_number("clean_weight", self.clean_weight, 0, 1, below=True)

    @property
    def d_max(self) -> float:
        """The hinge: the margin above which a sample has no loss."""
        return float(self.threat.eps)

    @property
    def resolved_eps_min(self) -> float:
        """The first and smallest eps in use."""
        return min(_EPS_MIN[self.threat.norm], self.d_max) if self.eps_min is None else self.eps_min

    def init(self, n_train: int, shape: tuple[int, ...], device: torch.device) -> State:
        """``eps``: each training sample's current eps, float64 (n_train,)."""
        return {"eps": torch.full((n_train,), self.resolved_eps_min, dtype=torch.float64, device=device)}

    def adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator,
        ids: Tensor | None = None, progress: float = 1.0, state: State | None = None,
    ) -> list[Tensor]:  # fmt: skip
        """[boundary points (n, ...), margins (n,)]; with ``state`` and ``ids`` the samples' eps are updated.

        Without either of them, all samples take ``eps_min``.
        """
        threat, x, y = self.threat, self.threat.clamp(x.detach()), y.long()
        if state is None or ids is None:
            eps = x.new_full((len(x),), self.resolved_eps_min)
        else:
            eps = state["eps"][ids].to(x.dtype)
        inner = seed_from(rng)
        # Starts scale with the radius: sample in the unit ball and scale by each sample's eps.
        begin = start(Threat(threat.norm, 1.0, threat.box), self.start, x, Batch(rng)) - x
        z = threat.clamp(x + per_sample(eps, x) * begin)
        step = per_sample(self.step_scale / self.steps * eps, x)
        with guard(model, mode="eval", seed=inner):
            oracle = Oracle(model, *torch.zeros(2, len(x), dtype=torch.int64, device=x.device), check=False)
            for _ in range(self.steps):
                grad, _, _ = oracle.gradient(z, y, soft_logit_margin)
                z = threat.project(z + step * threat.ascent(grad), x, eps=eps)
            length = threat.distance(z, x).to(x.dtype)
            # The floor avoids 0/0: a sample that did not move has no direction, and does not cross the boundary.
            direction = (z - x) / per_sample(length.clamp_min(torch.finfo(x.dtype).tiny), x)

            def at(t: Tensor) -> Tensor:
                return threat.clamp(x + per_sample(t, x) * direction)

            reach = torch.full_like(length, REACH * self.d_max)
            margin = bisect(
                lambda t: soft_logit_margin(oracle.logits(at(t), y), y) >= 0,
                torch.minimum(length, reach), reach, self.bisection,
            )  # fmt: skip
        if state is not None and ids is not None:
            now = margin.to(state["eps"].dtype).clamp_min(self.resolved_eps_min)
            # Every process stores the eps of all samples.
            state["eps"].index_copy_(0, gathered(ids.to(now.device)), gathered(now))
        return [at(margin).detach(), margin]

    def points(self, x: Tensor, aux: Any) -> Tensor | None:
        """The boundary points."""
        boundary: Tensor = aux[0]
        return boundary

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        boundary, margin = aux
        # With clean_weight 0 the clean pass still measures accuracy, and updates batch-norm.
        with torch.set_grad_enabled(self.clean_weight > 0):
            logits = ask(model, x)
        right = soft_logit_margin(logits.detach(), y) < 0
        pushed = ask(model, torch.where(per_sample(right, x), boundary, x))
        wrong_loss = cross_entropy(pushed, y)
        right_loss = wrong_loss if self.margin_loss == "ce" else soft_logit_margin(pushed, y)
        hinged = torch.where(margin < self.d_max, right_loss, torch.zeros_like(right_loss))
        loss = (1 - self.clean_weight) * torch.where(right, hinged, wrong_loss).mean()
        if self.clean_weight > 0:
            loss = loss + self.clean_weight * cross_entropy(logits, y).mean()
        return loss, {
            "clean": correct(logits, y),
            "margin": torch.where(right, margin, torch.zeros_like(margin)),
        }
