"""Attacks: each one file, a frozen dataclass of its settings; see `atent.attacks.base.Attack` for the contract."""

from atent.attacks.alma import ALMA
from atent.attacks.apgd import APGD
from atent.attacks.autoattack import AutoAttack
from atent.attacks.base import ATTACKS, Attack, Outcome, attack
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

# A new attack is one new file with the decorator `attack`; the names above are for readers and type checkers.
__all__ = [
    "ALMA", "APGD", "ATTACKS", "DDN", "FAB", "FGSM", "FMN", "IFGS", "PGD", "Attack", "AutoAttack", "CarliniWagner",
    "DeepFool", "EoT", "Langevin", "Outcome", "Sampler", "Square", "Transfer", "attack", "sampler",
]  # fmt: skip


def __getattr__(name: str) -> type[Attack]:
    if name in ATTACKS:
        return ATTACKS[name]
    raise AttributeError(f"module 'atent.attacks' has no attribute {name!r}")
