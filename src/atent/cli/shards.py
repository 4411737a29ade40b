"""The options --shard and --merge, which several commands have."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atent.experiments.recipe_files import UsageError

if TYPE_CHECKING:
    from atent.distributed.shards import Shard


def parsed(shard: str | None, merge: bool) -> Shard | None:
    """The shard that --shard names, None where all is done; ValueError, in one line, for what is none."""
    if shard is None:
        return None
    if merge:
        raise UsageError("--shard makes one shard and --merge joins all of them: leave one out")
    from atent.distributed import current
    from atent.distributed.shards import Shard

    found = Shard.parse(shard)
    if current().size > 1:
        raise UsageError("--shard is for processes on their own, and under torchrun the ranks share all: leave it out")
    return found
