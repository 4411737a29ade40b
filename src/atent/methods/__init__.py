"""Training methods: each one file, a frozen dataclass of its settings; see `atent.methods.base.Method`."""

from atent.methods.atent import ATENT
from atent.methods.awp import AWP
from atent.methods.base import Method
from atent.methods.crown_ibp import CROWNIBP
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

METHODS: dict[str, type[Method]] = {
    method.__name__: method
    for method in (
        Standard, Gaussian, PGDAT, ATENT, TRADES, TRADESSmoothing, SmoothAdv, MMA, CROWNIBP, Dual, FGSMRS, Free, MART,
    )
}  # fmt: skip
"""Name -> class; recipes, the command line and the contract tests read it."""

__all__ = [
    "ATENT", "AWP", "CROWNIBP", "FGSMRS", "MART", "METHODS", "MMA", "PGDAT", "TRADES", "Dual", "Free", "Gaussian",
    "Method", "SmoothAdv", "Standard", "TRADESSmoothing",
]  # fmt: skip
