"""Attacks: one module each, a frozen dataclass of settings; see `atent.attacks.Attack` for the contract.

Attacks are looked up by name: `from atent.attacks import PGD` queries the registry, which imports every module of this
package.
"""

from typing import TYPE_CHECKING, Any

from atent.attacks.base import ATTACKS as ATTACKS
from atent.attacks.base import Attack as Attack
from atent.attacks.base import Outcome as Outcome
from atent.attacks.base import attack as attack
from atent.attacks.langevin import Sampler as Sampler
from atent.attacks.langevin import sampler as sampler
from atent.registry import exported

if TYPE_CHECKING:
    # For type checkers only; at run time an attack needs no line here.
    from atent.attacks.alma import ALMA as ALMA
    from atent.attacks.apgd import APGD as APGD
    from atent.attacks.autoattack import AutoAttack as AutoAttack
    from atent.attacks.carlini_wagner import CarliniWagner as CarliniWagner
    from atent.attacks.ddn import DDN as DDN
    from atent.attacks.deepfool import DeepFool as DeepFool
    from atent.attacks.eot import EoT as EoT
    from atent.attacks.fab import FAB as FAB
    from atent.attacks.fgsm import FGSM as FGSM
    from atent.attacks.fmn import FMN as FMN
    from atent.attacks.ifgs import IFGS as IFGS
    from atent.attacks.langevin import Langevin as Langevin
    from atent.attacks.pgd import PGD as PGD
    from atent.attacks.sapf import SAPF as SAPF
    from atent.attacks.sigma_zero import SigmaZero as SigmaZero
    from atent.attacks.sparse_pgd import SparsePGD as SparsePGD
    from atent.attacks.sparse_rs import SparseRS as SparseRS
    from atent.attacks.square import Square as Square
    from atent.attacks.token import TokenAttack as TokenAttack
    from atent.attacks.transfer import Transfer as Transfer

_OTHERS = ("ATTACKS", "Attack", "Outcome", "Sampler", "attack", "sampler")


def __getattr__(name: str) -> Any:
    return exported(ATTACKS, __name__, name, _OTHERS)


def __dir__() -> list[str]:
    return sorted([*globals(), *ATTACKS])
