"""The fast gradient sign method, and its forms in other norms."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from atent.attacks.base import Attack, attack
from atent.attacks.oracle import Oracle
from atent.losses import cross_entropy
from atent.rng import Streams
from atent.threat import COUNTS, NORMS, Threat


@attack
@dataclass(frozen=True)
class FGSM(Attack):
    """One step of length eps along the steepest ascent of the cross-entropy (Goodfellow et al. 2015).

    linf: x + eps sign(g). l2: x + eps g / ||g||_2. l1: the coordinates of the largest gradients move to the faces of
    the box until eps is used up. l0, patch: a step of 10 widths of the box along g divided by its largest entry. The
    result is projected onto ball and box. One forward, one backward.

    References
    ----------
    Goodfellow, Shlens and Szegedy 2015, "Explaining and harnessing adversarial examples", ICLR, Section 4, arXiv
    1412.6572.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import FGSM
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> outcome = FGSM(Threat("linf", 0.1)).run(model, x, y)
    >>> outcome.x_adv.shape, bool(outcome.norm.max() <= 0.1 + 1e-6)
    (torch.Size([2, 3, 4, 4]), True)
    """

    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[str, ...]] = NORMS

    threat: Threat

    @property
    def passes(self) -> int:
        return 3

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        threat = self.threat.take(oracle.rows)
        length = threat.leap if threat.norm in COUNTS else threat.lengths(x)
        grad, _, _ = oracle.gradient(x, y, oracle.aimed(cross_entropy))
        return threat.project(threat.step(x, grad, length), x)
