"""The fast gradient sign method and its l2 form."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from atent.attacks.base import Attack, attack
from atent.attacks.oracle import Oracle
from atent.losses import cross_entropy
from atent.rng import Streams
from atent.threat import Threat


@attack
@dataclass(frozen=True)
class FGSM(Attack):
    """One step of length eps along the steepest ascent of the cross-entropy (Goodfellow et al. 2015).

    linf: x + eps sign(g); l2: x + eps g / ||g||_2; then the box. One forward, one backward.
    """

    aims: ClassVar[bool] = True

    threat: Threat

    @property
    def passes(self) -> int:
        return 3

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        threat = self.threat.take(oracle.rows)
        grad, _, _ = oracle.gradient(x, y, oracle.aimed(cross_entropy))
        return threat.project(x + threat.lengths(x) * threat.ascent(grad), x)
