"""Training methods: each one file, a frozen dataclass of its settings; see `atent.methods.base.Method`."""

from atent.methods.acl import ACL
from atent.methods.atent import ATENT
from atent.methods.awp import AWP, Perturbation
from atent.methods.base import METHODS, Method, method
from atent.methods.crown_ibp import CROWNIBP
from atent.methods.distilled_trades import DistilledTRADES
from atent.methods.dual import Dual
from atent.methods.fgsm_rs import FGSMRS
from atent.methods.free import Free
from atent.methods.gaussian import Gaussian
from atent.methods.mart import MART
from atent.methods.mma import MMA
from atent.methods.pgdat import PGDAT
from atent.methods.smoothadv import SmoothAdv
from atent.methods.standard import Standard
from atent.methods.trades import TRADES
from atent.methods.trades_smoothing import TRADESSmoothing

# A new method is one new file with the decorator `method`; the names above are for readers and type checkers.
__all__ = [
    "ACL", "ATENT", "AWP", "CROWNIBP", "FGSMRS", "MART", "METHODS", "MMA", "PGDAT", "TRADES", "DistilledTRADES", "Dual",
    "Free", "Gaussian", "Method", "Perturbation", "SmoothAdv", "Standard", "TRADESSmoothing", "method",
]  # fmt: skip


def __getattr__(name: str) -> type[Method]:
    if name in METHODS:
        return METHODS[name]
    raise AttributeError(f"module 'atent.methods' has no attribute {name!r}")
