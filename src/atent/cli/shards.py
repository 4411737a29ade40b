"""The options --shard and --merge of several commands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from atent.experiments.recipe_files import UsageError

if TYPE_CHECKING:
    from atent.distributed.shards import Shard


def parsed(shard: str | None, merge: bool, whole: Mapping[str, Any] = {}) -> Shard | None:
    """Parse --shard; None if it is not given, ValueError if it is invalid.

    ``whole``: the options that need the complete result, which are refused with a shard."""
    if shard is None:
        return None
    late = ", ".join(f"--{name}" for name, given in whole.items() if given)
    if late and not merge:
        raise UsageError(f"{late} needs the complete result, not a shard: give it with --merge")
    if merge:
        raise UsageError("--shard makes one shard and --merge joins all shards: omit one")
    from atent.distributed import current
    from atent.distributed.shards import Shard

    found = Shard.parse(shard)
    if current().size > 1:
        raise UsageError("--shard is for independent processes, and the ranks of torchrun share the work: omit it")
    return found
