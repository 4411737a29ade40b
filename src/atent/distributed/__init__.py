"""Several processes at work on one job: who they are, and what they say to each other."""

from atent.distributed.coupling import gathered
from atent.distributed.gradients import summed
from atent.distributed.shards import Shard, adjacent, shared, undivided
from atent.distributed.world import SINGLE, World, current

__all__ = ["SINGLE", "Shard", "World", "adjacent", "current", "gathered", "shared", "summed", "undivided"]
