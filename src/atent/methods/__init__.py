"""Training methods: each one file, a frozen dataclass of its settings; see `atent.methods.base.Method`."""

from atent.methods.atent import ATENT
from atent.methods.base import Method
from atent.methods.pgdat import PGDAT
from atent.methods.standard import Standard

METHODS: dict[str, type[Method]] = {"Standard": Standard, "PGDAT": PGDAT, "ATENT": ATENT}
"""Name -> class; recipes, the command line and the contract tests read it."""

__all__ = ["ATENT", "METHODS", "PGDAT", "Method", "Standard"]
