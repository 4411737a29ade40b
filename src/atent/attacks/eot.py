"""Expectation over transformation: any gradient attack of this library, with gradients averaged over samples."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from atent.attacks.base import attack
from atent.attacks.oracle import Oracle
from atent.attacks.wrapper import Wrapper, inside
from atent.checks import check_number
from atent.rng import Streams
from atent.threat import Threat


@attack
@dataclass(frozen=True)
class EoT(Wrapper):
    """Expectation over transformation: an ``attack`` whose gradients are means over several passes.

    For random models: every gradient and its loss is a mean over ``samples`` passes. With one sample the result equals
    that of the attack itself, bit for bit. The model uses the global generators, which are seeded at every call;
    evaluate it in a mode in which it is random.

    `passes` counts per-class gradients (DeepFool, FAB) in one group. Those of a batch that exceed 2^24 numbers are
    computed in groups of classes, each with ``samples`` forwards of its own, which are additional.

    Raises
    ------
    ValueError
        For an attack without gradients, one that averages its own gradients (``eot`` above 1), an ensemble, and an
        attack under another threat.

    References
    ----------
    Athalye, Engstrom, Ilyas and Kwok 2018, "Synthesizing robust adversarial examples", ICML, arXiv 1707.07397.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import EoT
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> outcome = EoT(Threat("linf", 0.1), attack="PGD(steps=2)", samples=2).run(model, x, y)
    >>> outcome.x_adv.shape, bool(outcome.norm.max() <= 0.1 + 1e-6)
    (torch.Size([2, 3, 4, 4]), True)
    """

    FORMER: ClassVar[dict[str, str]] = {"draws": "samples"}

    threat: Threat
    attack: str = "PGD(steps=20)"
    """The attack, as text."""
    samples: int = 20
    """Number of passes over which a gradient is averaged."""

    def __post_init__(self) -> None:
        check_number("samples", self.samples, 1, whole=True)
        inner = self.inner
        if not inner.needs_gradient:
            raise ValueError(f"EoT averages gradients, and {self.attack} uses none: run it alone")
        if inside(inner) or getattr(inner, "eot", 1) > 1:
            raise ValueError(
                f"EoT needs an attack that is one search with single gradients, got {self.attack}: use PGD(...), or"
                " AutoAttack(version=rand) alone"
            )
        super().__post_init__()

    @property
    def passes(self) -> int:
        # At most half of the passes are gradients; each costs two passes per sample of the average.
        most = self.inner.passes
        return most + 2 * (self.samples - 1) * (most // 2)

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        return self.inner.bounded(oracle.averaging(self.samples), x, y, streams)
