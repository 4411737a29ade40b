"""The iterative fast gradient sign method, and its forms in other norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from atent.attacks.base import Attack, attack
from atent.attacks.oracle import Oracle
from atent.attacks.starts import check_step, report_path
from atent.checks import check_number
from atent.losses import cross_entropy
from atent.rng import Streams
from atent.threat import COUNTS, NORMS, Threat


@attack
@dataclass(frozen=True)
class IFGS(Attack):
    """Iterative FGSM, also called the basic iterative method: signed gradient steps from x, projected.

    x^0 = x, x^{k+1} = project(x^k + step_size * sign(g_k)), with g_k the gradient of the cross-entropy at x^k. In other
    norms the steepest ascent replaces the sign, see `Threat.step`. It is `PGD` started at x: deterministic, without
    restarts, returning the last iterate. ``steps`` forwards and backwards.

    References
    ----------
    Kurakin, Goodfellow and Bengio 2017, "Adversarial examples in the physical world", ICLR workshop, Section 2.2, arXiv
    1607.02533.

    Jagatap, Joshi, Chowdhury, Garg and Hegde 2022, "Adversarially robust learning via entropic regularization",
    Frontiers in Artificial Intelligence 4, supplement B.4, arXiv 2008.12338.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import IFGS
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> outcome = IFGS(Threat("linf", 0.1), steps=3).run(model, x, y)
    >>> outcome.x_adv.shape, bool(outcome.norm.max() <= 0.1 + 1e-6)
    (torch.Size([2, 3, 4, 4]), True)
    """

    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[str, ...]] = NORMS

    threat: Threat
    steps: int = 10
    """Number of gradient steps."""
    step_size: float | None = None
    """Length of a step in pixel units. Default: 1.25 eps / steps; l0, patch: 10 widths of the box. Kurakin et al. use
    steps of 1/255, and min(1.25 eps, eps + 4) of them, with eps in units of 1/255."""

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 1, whole=True)
        if self.step_size is not None:
            check_step(self.threat, self.step_size)
            report_path(self.threat, "zero", self.steps, self.step_size)

    @property
    def resolved_step(self) -> float:
        """The step size in use."""
        return float(self._length(float(self.threat.eps)))

    def _length(self, eps: Any) -> Any:
        if self.step_size is None and self.threat.norm not in COUNTS:
            return 1.25 * eps / self.steps
        return 0 * eps + (self.threat.leap if self.step_size is None else self.step_size)

    @property
    def passes(self) -> int:
        return 2 * self.steps + 1

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        threat = self.threat.take(oracle.rows)
        step, loss, z = threat.lengths(x, self._length), oracle.aimed(cross_entropy), x
        for _ in range(self.steps):
            grad, _, _ = oracle.gradient(z, y, loss)
            z = threat.project(threat.step(z, grad, step), x)
        return z
