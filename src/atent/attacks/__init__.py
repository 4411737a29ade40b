"""Attacks: each one file, a frozen dataclass of its settings; see `atent.attacks.base.Attack` for the contract."""

from atent.attacks.alma import ALMA
from atent.attacks.apgd import APGD
from atent.attacks.autoattack import AutoAttack
from atent.attacks.base import Attack, Outcome
from atent.attacks.carlini_wagner import CarliniWagner
from atent.attacks.ddn import DDN
from atent.attacks.deepfool import DeepFool
from atent.attacks.eot import EoT
from atent.attacks.fab import FAB
from atent.attacks.fgsm import FGSM
from atent.attacks.fmn import FMN
from atent.attacks.ifgs import IFGS
from atent.attacks.langevin import Langevin, Sampler, sampler
from atent.attacks.pgd import PGD
from atent.attacks.square import Square
from atent.attacks.transfer import Transfer

ATTACKS: dict[str, type[Attack]] = {
    "FGSM": FGSM, "IFGS": IFGS, "PGD": PGD, "Langevin": Langevin, "FAB": FAB, "Square": Square,
    "APGD": APGD, "AutoAttack": AutoAttack, "EoT": EoT, "Transfer": Transfer,
    "CarliniWagner": CarliniWagner, "DeepFool": DeepFool, "DDN": DDN, "FMN": FMN, "ALMA": ALMA,
}  # fmt: skip
"""Name -> class; recipes, the command line and the contract tests read it."""

__all__ = [
    "ALMA", "APGD", "ATTACKS", "DDN", "FAB", "FGSM", "FMN", "IFGS", "PGD", "Attack", "AutoAttack", "CarliniWagner",
    "DeepFool", "EoT", "Langevin", "Outcome", "Sampler", "Square", "Transfer", "sampler",
]  # fmt: skip
