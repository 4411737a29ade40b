"""Several processes at work on one job: who they are, and what they say to each other."""

from atent.distributed.alone import alone, each, entered
from atent.distributed.world import SINGLE, Lost, World, current

__all__ = ["SINGLE", "Lost", "World", "alone", "current", "each", "entered"]
