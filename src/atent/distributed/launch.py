"""Start and end of a job of several processes under torchrun."""

from __future__ import annotations

import atexit
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout, suppress
from datetime import timedelta
from typing import Any

from atent.distributed.failures import Failures, Peer, Report
from atent.distributed.notes import Notes, Unreachable
from atent.distributed.world import SINGLE, Lost, World, current, meeting, speaking, within
from atent.torchrun import Ending, Place, place, timeout

__all__ = ["Ending", "Job", "Unreachable", "described", "joined", "ranks", "remember", "run"]


def run(here: Place, work: Callable[[], Ending], report: Report) -> Ending:
    """Run ``work`` as one rank of a job; ``report`` receives the failure, on one rank.

    Standard output and standard error of the other ranks are suppressed. Every rank returns the same status.

    Raises
    ------
    ValueError
        In one line: the ranks cannot connect, or have different versions; `Unreachable` if only this rank can report
        it.
    """
    job = Job(here)
    job.begin()
    with ExitStack() as stack:
        stack.enter_context(job.at_work())
        if here.rank:
            silent = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
            stack.enter_context(redirect_stdout(silent))
            stack.enter_context(redirect_stderr(silent))
        stack.enter_context(job.failures.watching(report))
        ending = work()
        if ending.text is not None:
            job.drop()
        ending = job.failures.agreed(ending)
    if ending.text is not None:
        job.failures.reported(ending, report)
    job.end(failed=ending.text is not None, status=ending.status)
    return ending


@contextmanager
def joined() -> Iterator[World]:
    """The world of a Python script: that of the enclosing context, of the script's process group, or of torchrun's
    variables, whose process group exists until the process ends."""
    world = current()
    if world.size > 1:
        yield world
        return
    here, known = place(), _group()
    if known is None and here is not None and here.size > 1:
        job = Job(here)
        job.begin()
        atexit.register(job.drop)
        known = job.world
    with within(known or SINGLE) as found:
        yield found


def _group() -> World | None:
    """The world of the script's process group."""
    if "torch.distributed" not in sys.modules:
        return None
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return None
    return World(dist.get_rank(), dist.get_world_size())


def remember(name: str, text: str | None = None) -> str | None:
    """The note of this job under ``name`` from before a restart by torchrun, or now ``text``; None if there is no note,
    or no store for notes."""
    return _JOB.notes.kept(name, text) if _JOB is not None else None


def described() -> dict[str, Any]:
    """The record of a job's processes in a result; {} for a single process."""
    world = current()
    if world.size == 1:
        return {}
    import torch.distributed as dist

    return {"processes": world.size, "backend": str(dist.get_backend())}


class Job:
    """A job on one rank."""

    def __init__(self, here: Place) -> None:
        self.here, self.world, self.timeout = here, World(here.rank, here.size), timeout()
        self.accelerated = False
        self._met = 0

    def begin(self) -> None:
        """Connect to the other ranks, compare versions, and start the process group."""
        self.notes = Notes(self.here, self.timeout, opens=True)
        self.notes.write(f"here/{self.here.rank}", json.dumps(vars(Peer.own(_versions()))))
        peers = {rank: self._peer(rank) for rank in range(self.here.size)}
        _same({rank: peer.versions for rank, peer in peers.items()})
        self.failures = Failures(self.here.rank, peers, self.notes, Notes(self.here, self.timeout))
        if self.here.size > 1:
            self._begin_group()

    def _peer(self, rank: int) -> Peer:
        with suppress(RuntimeError):
            found = self.notes.wait(f"here/{rank}")
            if found is not None:
                return Peer(**json.loads(found))
        raise ValueError(
            f"rank {rank} of {self.here.size} did not start within {self.timeout:g} s: start all ranks, or set"
            " ATENT_DISTRIBUTED_TIMEOUT"
        )

    def _begin_group(self) -> None:
        import torch
        import torch.distributed as dist

        backend = "gloo"
        if torch.cuda.is_available():
            count = torch.cuda.device_count()
            torch.cuda.set_device(self.here.local_rank % count)
            # NCCL does not support two processes on one GPU; gloo transfers tensors of a GPU through the CPU.
            self.accelerated = self.here.local_size <= count and dist.is_nccl_available()
            backend = "cpu:gloo,cuda:nccl" if self.accelerated else "gloo"
        store = Notes(self.here, self.timeout).below("group")
        try:
            dist.init_process_group(
                backend, store=store, rank=self.here.rank, world_size=self.here.size,
                timeout=timedelta(seconds=self.timeout),
            )  # fmt: skip
        except RuntimeError as error:
            text = " ".join(str(error).split())[:200]
            raise ValueError(f"the process group of {self.here.size} ranks cannot start: {text}") from error

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Inside, this rank's world is the current one."""
        global _JOB
        _JOB = self
        try:
            with within(self.world), meeting(self.meet):
                yield
        finally:
            _JOB = None

    def meet(self) -> None:
        """Wait for every rank; `Lost` if one has failed."""
        self._met += 1
        with speaking():
            self.notes.write(f"met/{self._met}/{self.here.rank}")
            if self.failures.before([f"met/{self._met}/{rank}" for rank in range(self.here.size)]):
                raise Lost("another rank has failed")

    def drop(self) -> None:
        """Close the connections, so that other ranks do not wait for this one."""
        import torch.distributed as dist

        with suppress(RuntimeError):
            if not self.accelerated and dist.is_initialized():
                dist.destroy_process_group()

    def end(self, *, failed: bool, status: int) -> None:
        """End the process group; with NCCL after a failure end the process, since closing may wait for dead ranks."""
        import torch.distributed as dist

        if failed and self.accelerated:
            sys.stdout.flush()
            sys.stderr.flush()
            self.failures.leave()
            os._exit(status)
        with suppress(RuntimeError):
            if dist.is_initialized():
                dist.destroy_process_group()
        self.failures.leave()


_JOB: Job | None = None
"""The current job of `run`."""


def _versions() -> dict[str, str]:
    """The versions that must be equal on every rank."""
    import numpy
    import torch

    from atent import __version__

    return {
        "atent": __version__, "torch": str(torch.__version__), "numpy": numpy.__version__,
        "python": platform.python_version(),
    }  # fmt: skip


def _same(found: dict[int, dict[str, str]]) -> None:
    """ValueError, on every rank, for the first version that differs between ranks."""
    for name, value in found[0].items():
        other = [rank for rank, versions in found.items() if versions.get(name) != value]
        if other:
            raise ValueError(
                f"{name} {value} on rank 0 and {found[other[0]].get(name)} on {ranks(other)}: install equal"
                " versions on all"
            )


def ranks(numbers: list[int]) -> str:
    """A text for rank numbers."""
    shown = ", ".join(map(str, numbers[:8])) + (" ..." if len(numbers) > 8 else "")
    return f"rank {shown}" if len(numbers) == 1 else f"ranks {shown}"
