"""AutoAttack: four attacks without free parameters, each on the samples that remain correctly classified."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import Tensor

from atent.attacks.apgd import APGD
from atent.attacks.base import Attack, attack
from atent.attacks.fab import FAB
from atent.attacks.loops import worst_of
from atent.attacks.oracle import Oracle
from atent.attacks.square import Square
from atent.checks import check_number
from atent.messages import report_idle
from atent.rng import Streams
from atent.threat import Threat


@attack
@dataclass(frozen=True)
class AutoAttack(Attack):
    """AutoAttack, the ensemble of Croce and Hein 2020, in the versions standard and rand of the authors' code.

    ``standard``, for deterministic models: APGD on cross-entropy, targeted APGD, targeted FAB and Square. In l1 (Croce
    and Hein 2021) both APGDs shrink their radius from 3 eps to eps, the one on cross-entropy has 5 restarts, and the
    targeted one has 5 targets. ``rand``, for random models: APGD on cross-entropy and on the DLR loss, with gradients
    averaged over ``eot`` samples.

    Misclassified samples are not attacked, and each part attacks only the samples that remain correctly classified
    after the previous ones, which takes one forward per part. FAB stops searching for a sample once it finds a point
    within eps. Square's windows shrink after the published numbers of queries, also where ``queries`` is another
    number. With fewer than 10 classes the targeted parts use all wrong classes, and with fewer classes than a DLR
    loss needs (4; rand: 3) `APGD` maximises the difference of logits in its place, as `remarks` reports.

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
    >>> from atent.attacks import AutoAttack
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> outcome = AutoAttack(Threat("linf", 0.1), version="rand", steps=5, eot=2).run(model, x, y)
    >>> outcome.x_adv.shape, bool(outcome.norm.max() <= 0.1 + 1e-6)
    (torch.Size([2, 3, 4, 4]), True)
    """

    norms: ClassVar[tuple[str, ...]] = ("linf", "l2", "l1")

    threat: Threat
    version: Literal["standard", "rand"] = "standard"
    """standard, or rand for random models."""
    steps: int = 100
    """Steps of APGD and FAB; published: 100."""
    targets: int = 9
    """Target classes of APGD-T and FAB-T, at most all wrong ones; published: 9, and for APGD-T in l1 at most 5."""
    queries: int = 5000
    """Queries of Square; published: 5,000."""
    eot: int = 20
    """Samples that a gradient of rand is averaged over; published: 20."""

    def __post_init__(self) -> None:
        for name in ("steps", "targets", "queries", "eot"):
            check_number(name, getattr(self, name), 1, whole=True)
        standard, fix = self.version == "standard", "set version to standard"
        given = [("targets", fix, standard), ("queries", fix, standard), ("eot", "set version to rand", not standard)]
        report_idle(self, "AutoAttack.", given)

    def parts(self) -> dict[str, Attack]:
        threat, steps, targets = self.threat, self.steps, self.targets
        if self.version == "rand":
            return {
                "APGD-CE": APGD(threat, steps, eot=self.eot),
                "APGD-DLR": APGD(threat, steps, eot=self.eot, loss="dlr"),
            }
        sparse = threat.norm == "l1"
        radii: Literal["fixed", "shrinking"] = "shrinking" if sparse else "fixed"
        few = min(targets, 5) if sparse else targets
        return {
            "APGD-CE": APGD(threat, steps, 5 if sparse else 1, radii=radii),
            "APGD-T": APGD(threat, steps, loss="dlr-targeted", targets=few, radii=radii),
            "FAB-T": FAB(threat, steps, targets=targets, stop_at_eps=True),
            "Square": Square(threat, self.queries, schedule="absolute"),
        }

    def remarks(self, classes: int) -> list[str]:
        return [f"{name} {said}" for name, part in self.parts().items() for said in part.remarks(classes)]

    @property
    def passes(self) -> int:
        # The count of a part includes a verdict, which here decides which samples remain robust; one more for x, and
        # one at the end.
        return sum(part.passes for part in self.parts().values()) + 2

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        names = list(self.parts())

        def once(oracle: Oracle, x: Tensor, y: Tensor, streams: Streams, k: int) -> Tensor:
            # The first candidate is x itself: misclassified samples are not attacked.
            return self.search_part(names[k - 1], oracle, x, y, streams) if k else x

        return worst_of(1 + len(names), once, oracle, x, y, streams)
