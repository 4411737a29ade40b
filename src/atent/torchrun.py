"""Rank and size of this process in its job, from torchrun's environment variables; does not import torch."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

TIMEOUT = "ATENT_DISTRIBUTED_TIMEOUT"
_SECONDS = 600.0
_NEEDED = ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
_START = "start the command by torchrun"


@dataclass(frozen=True)
class Place:
    """The place of this process in a job started by torchrun or a similar launcher."""

    rank: int
    """Index of this process, from 0."""
    size: int
    """Number of processes."""
    local_rank: int
    """Index of this process on its machine."""
    local_size: int
    """Number of processes on its machine."""
    host: str
    """Host of the job's store."""
    port: int
    """Port of the job's store."""
    agent: bool = False
    """Whether torchrun hosts the store, which then outlives this process; otherwise rank 0 does."""
    restarts: int = 0
    """Number of times that torchrun restarted all processes."""


@dataclass(frozen=True)
class Ending:
    """The outcome of a command."""

    status: int
    """The exit status."""
    text: str | None = None
    """The error, if any."""
    lost: bool = False
    """Whether the error is that other ranks did not respond."""
    raw: bool = False
    """Whether the text is a traceback."""


def place(environ: Mapping[str, str] = os.environ) -> Place | None:
    """The place of this process; None for a single process.

    Raises
    ------
    ValueError
        In one line: WORLD_SIZE is above 1, and the other variables are missing or invalid.
    """
    if not environ.get("WORLD_SIZE"):
        return None
    size = _whole(environ, "WORLD_SIZE", 1, None)
    missing = [name for name in _NEEDED if not environ.get(name)]
    if missing:
        if size == 1:
            return None
        raise ValueError(
            f"WORLD_SIZE is {size}, and {', '.join(missing)} not set: {_START}, which sets them, or unset WORLD_SIZE"
        )
    rank = _whole(environ, "RANK", 0, size)
    local = _whole(environ, "LOCAL_RANK", 0, size)
    local_size = _whole(environ, "LOCAL_WORLD_SIZE", 1, size + 1) if environ.get("LOCAL_WORLD_SIZE") else size
    port = _whole(environ, "MASTER_PORT", 1, 65536)
    agent = environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
    restarts = _whole(environ, "TORCHELASTIC_RESTART_COUNT", 0, None) if agent else 0
    return Place(rank, size, local, local_size, environ["MASTER_ADDR"], port, agent, restarts)


def restarted(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether torchrun restarted the processes of this job; raises as `place`."""
    here = place(environ)
    return here is not None and here.restarts > 0


def quiet(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether rank 0, and not this process, reports errors in the variables that all processes share."""
    rank, size = environ.get("RANK", ""), environ.get("WORLD_SIZE", "")
    return rank.isdigit() and int(rank) > 0 and not (size.isdigit() and int(rank) >= int(size))


def timeout(environ: Mapping[str, str] = os.environ) -> float:
    """Seconds that a rank waits for the others, at the start and in messages; ValueError for an invalid value."""
    text = environ.get(TIMEOUT, "")
    if not text:
        return _SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 1.0 <= seconds <= 1e6:
        raise ValueError(f"{TIMEOUT} must be a number of seconds from 1 to 1e6, got {text!r}")
    return seconds


def _whole(environ: Mapping[str, str], name: str, least: int, end: int | None) -> int:
    """A variable as an integer from ``least``, below ``end``."""
    text = environ.get(name, "").strip()
    if text.isdigit() and least <= int(text) and (end is None or int(text) < end):
        return int(text)
    bound = f"from {least}" + ("" if end is None else f" to {end - 1}")
    size = f" (WORLD_SIZE is {environ.get('WORLD_SIZE')})" if name in ("RANK", "LOCAL_RANK") else ""
    raise ValueError(f"{name} must be an integer {bound}{size}, got {text!r}: {_START}, which sets it")
