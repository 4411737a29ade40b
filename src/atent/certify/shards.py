"""The samples of each shard of a certificate, and whether all shards exist."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from atent.distributed.shards import Shard


def shard_rows(shard: tuple[int, int], n: int, group: int) -> Tensor:
    """The positions (m,) of the samples of shard (i, k), ascending: see `certify_run`."""
    i, _, k = check_shard(shard, n)
    places = torch.arange(n)
    if k > -(-n // group):
        return places[i::k]
    return torch.cat(Shard(i, k).of(places.split(group)))


def check_shard(shard: tuple[int, int], n: int) -> tuple[int, int, int]:
    """(i, n, k), the slice of shard i of k; ValueError unless 0 <= i < k <= n."""
    if not isinstance(shard, tuple | list) or len(shard) != 2:
        raise ValueError(f"shard must be a pair (i, k) with 0 <= i < k, got {shard!r}: the first of 4 is (0, 4)")
    i, k = shard
    if not 0 <= i < k:
        raise ValueError(f"shard must be i/k with 0 <= i < k, got {i}/{k}: the shards of 4 are 0/4 to 3/4")
    if k > n:
        raise ValueError(f"{k} shards of {n} samples leave one empty: use at most {n}")
    return i, n, k


def check_complete(files: Sequence[Path], place: Path) -> None:
    """ValueError, in one line, unless the ``files`` are all shards of one certificate."""
    names = {tuple(map(int, re.findall(r"\.shard-(\d+)-of-(\d+)", file.name)[0])): file for file in files}
    counts = sorted({k for _, k in names})
    if len(counts) > 1:
        shown = " and ".join(f"{k} ({next(f for (_, each), f in names.items() if each == k).name})" for k in counts)
        raise ValueError(f"{place} has shards of {shown}: move the files of the other number away")
    for k in counts:
        # Earlier versions counted from 0.
        first = 0 if (0, k) in names else 1
        # With numbers of both kinds the shards cannot be identified: `merge` names the samples that are missing.
        if (0, k) in names and (k, k) in names:
            continue
        missing = next((i for i in range(k) if (first + i, k) not in names), None)
        if missing is not None:
            raise ValueError(f"shard {missing + 1}/{k} is missing in {place}: run --shard {missing + 1}/{k}")
    if not files:
        other = sorted(place.glob("*certificate*.shard-*-of-*.csv"))
        made = f"; {other[0].name} was made with other options or by an earlier version" if other else ""
        raise ValueError(f"{place} has no shard of this certificate{made}: give the options of --shard i/k to --merge")
