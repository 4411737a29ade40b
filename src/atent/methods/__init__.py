"""Training methods: one file each, a frozen dataclass of its settings; see `atent.methods.base.Method`.

Methods are resolved by name: `from atent.methods import ATENT` queries the registry, which imports every file of this
folder.
"""

from typing import TYPE_CHECKING, Any

from atent.methods.awp import AWP as AWP
from atent.methods.awp import Perturbation as Perturbation
from atent.methods.base import METHODS as METHODS
from atent.methods.base import Method as Method
from atent.methods.base import method as method
from atent.methods.embedding import EmbeddingRegularised as EmbeddingRegularised
from atent.methods.embedding import EmbeddingTerm as EmbeddingTerm
from atent.registry import exported

if TYPE_CHECKING:
    # For type checkers only; at run time the registry resolves the names.
    from atent.methods.acl import ACL as ACL
    from atent.methods.atent import ATENT as ATENT
    from atent.methods.crown_ibp import CROWNIBP as CROWNIBP
    from atent.methods.distilled_trades import DistilledTRADES as DistilledTRADES
    from atent.methods.dual import Dual as Dual
    from atent.methods.fgsm_rs import FGSMRS as FGSMRS
    from atent.methods.free import Free as Free
    from atent.methods.gaussian import Gaussian as Gaussian
    from atent.methods.mart import MART as MART
    from atent.methods.mma import MMA as MMA
    from atent.methods.pgdat import PGDAT as PGDAT
    from atent.methods.smoothadv import SmoothAdv as SmoothAdv
    from atent.methods.standard import Standard as Standard
    from atent.methods.trades import TRADES as TRADES
    from atent.methods.trades_smoothing import TRADESSmoothing as TRADESSmoothing

_OTHERS = ("AWP", "EmbeddingRegularised", "EmbeddingTerm", "METHODS", "Method", "Perturbation", "method")


def __getattr__(name: str) -> Any:
    return exported(METHODS, __name__, name, _OTHERS)


def __dir__() -> list[str]:
    return sorted([*globals(), *METHODS])
