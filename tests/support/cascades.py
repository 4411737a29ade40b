"""A threat, attacks in order of cost and a composite attack, for the tests of evaluations."""

from dataclasses import dataclass

import torch

from atent.attacks import FGSM, PGD, Attack, Langevin
from atent.threat import Threat

THREAT = Threat("linf", 0.05)
RISING = {  # in order of decreasing cost, which the evaluation reverses
    "chain": Langevin(THREAT, steps=4, noise=0.2, restarts=2),
    "pgd": PGD(THREAT, steps=4),
    "fgsm": FGSM(Threat("linf", 0.02)),
}


@dataclass(frozen=True)
class Twofold(Attack):
    """A composite of a random chain, a minimum-norm attack and a short PGD."""

    threat: Threat

    def parts(self):
        return {
            "chain": Langevin(self.threat, steps=2, noise=0.3),
            "nearest": Nearest(Threat(self.threat.norm, "inf")),
            "pgd": PGD(self.threat, steps=3),
        }

    @property
    def passes(self):
        return 100

    def search(self, oracle, x, y, streams):
        x_adv, fooled = x, oracle.logits(x, y).argmax(1) != y
        for part in self.parts():
            rows = (~fooled).nonzero().squeeze(1)
            if not len(rows):
                break
            some = oracle.take(rows)
            found = self.search_part(part, some, x[rows], y[rows], streams.take(rows))
            found = torch.where(self.threat.contains(found, x[rows])[:, None, None, None], found, x[rows])
            x_adv = x_adv.index_copy(0, rows, found)
            fooled = fooled.index_copy(0, rows, some.logits(found, y[rows]).argmax(1) != y[rows])
        return x_adv


@dataclass(frozen=True)
class Nearest(Attack):
    """A minimum-norm attack with an infinite eps: FGSM at 0.03."""

    threat: Threat
    minimum_norm = True

    @property
    def passes(self):
        return 3

    def search(self, oracle, x, y, streams):
        return FGSM(Threat("linf", 0.03)).search(oracle, x, y, streams)
