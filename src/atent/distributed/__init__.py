"""Several processes at work on one job: who they are, and what they say to each other."""

from atent.distributed.world import SINGLE, World, current

__all__ = ["SINGLE", "World", "current"]
