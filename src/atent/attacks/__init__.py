"""Attacks: each one file, a frozen dataclass of its settings; see `atent.attacks.base.Attack` for the contract."""

from atent.attacks.base import Attack, Outcome
from atent.attacks.fab import FAB
from atent.attacks.fgsm import FGSM
from atent.attacks.ifgs import IFGS
from atent.attacks.langevin import Langevin, Sampler, sampler
from atent.attacks.pgd import PGD
from atent.attacks.square import Square

ATTACKS: dict[str, type[Attack]] = {
    "FGSM": FGSM, "IFGS": IFGS, "PGD": PGD, "Langevin": Langevin, "FAB": FAB, "Square": Square,
}  # fmt: skip
"""Name -> class; recipes, the command line and the contract tests read it."""

__all__ = ["ATTACKS", "FAB", "FGSM", "IFGS", "PGD", "Attack", "Langevin", "Outcome", "Sampler", "Square", "sampler"]
