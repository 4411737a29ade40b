"""Jobs of several processes: ranks, communication, and sharding."""

from atent.distributed.batch_shard import BatchShard, adjacent, shared, undivided
from atent.distributed.coupling import gathered
from atent.distributed.gradients import summed
from atent.distributed.rank_zero import alone, each, entered
from atent.distributed.world import SINGLE, Lost, World, current

__all__ = [
    "SINGLE", "BatchShard", "Lost", "World", "adjacent", "alone", "current", "each", "entered", "gathered", "shared",
    "summed", "undivided",
]  # fmt: skip
