"""Where this process stands in its job, as torchrun says by environment variables; imports no torch."""

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
    """The place of this process in a job that torchrun, or something like it, started."""

    rank: int
    """The number of this process, from 0."""
    size: int
    """How many processes there are."""
    local_rank: int
    """Its number on this machine."""
    local_size: int
    """How many run on this machine."""
    host: str
    """Where the job's store listens."""
    port: int
    """Its port."""
    agent: bool = False
    """Whether torchrun holds the store, which then outlives this process; otherwise rank 0 does."""
    restarts: int = 0
    """How often torchrun has started all processes again."""


@dataclass(frozen=True)
class Ending:
    """How a command ended."""

    status: int
    """The exit status."""
    text: str | None = None
    """The error, where it ended with one."""
    lost: bool = False
    """The error is that other ranks did not answer."""
    raw: bool = False
    """The text is a traceback."""


def place(environ: Mapping[str, str] = os.environ) -> Place | None:
    """The place of this process; None for one process alone.

    Raises
    ------
    ValueError
        In one line: WORLD_SIZE asks for several processes, and the other variables are missing or make no sense.
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
    """Whether torchrun has ended the processes of this job and started them again; raises as `place`."""
    here = place(environ)
    return here is not None and here.restarts > 0


def quiet(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether another process reports what is wrong with the variables that all of them have: rank 0."""
    rank, size = environ.get("RANK", ""), environ.get("WORLD_SIZE", "")
    return rank.isdigit() and int(rank) > 0 and not (size.isdigit() and int(rank) >= int(size))


def timeout(environ: Mapping[str, str] = os.environ) -> float:
    """Seconds that a rank waits for the others, at the start and in a message; ValueError for a value that is none."""
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
    """A variable as a whole number from ``least``, below ``end``."""
    text = environ.get(name, "").strip()
    if text.isdigit() and least <= int(text) and (end is None or int(text) < end):
        return int(text)
    bound = f"from {least}" + ("" if end is None else f" to {end - 1}")
    size = f" (WORLD_SIZE is {environ.get('WORLD_SIZE')})" if name in ("RANK", "LOCAL_RANK") else ""
    raise ValueError(f"{name} must be a whole number {bound}{size}, got {text!r}: {_START}, which sets it")
