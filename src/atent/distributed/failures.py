"""The end of a job: the failure of one rank ends all of them, with the same exit status and one report.

Every rank sends heartbeats, and the first that fails writes a note, which ends the others: immediately if they check,
within `GRACE` seconds if they are blocked in a message.
"""

from __future__ import annotations

import json
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from dataclasses import dataclass, replace

from atent import signals
from atent.distributed.notes import Notes
from atent.torchrun import Ending

BEAT = 0.5
"""Seconds between heartbeats."""
GONE = 60.0
"""Seconds without a heartbeat after which a rank counts as lost."""
GRACE = 10.0
"""Seconds that a rank has to exit after the failure of another."""
_CAUSE = 5.0  # seconds to find the reason of a lost connection

Report = Callable[[Ending], object]


@dataclass(frozen=True)
class Peer:
    """The description of a rank for the others."""

    pid: int
    boot: str
    """Identifier of the machine, its boot and its container."""
    versions: dict[str, str]

    @classmethod
    def own(cls, versions: dict[str, str]) -> Peer:
        """This process."""
        return cls(os.getpid(), _boot(), versions)

    def dead(self) -> bool:
        """Whether its process ran on this machine and does not exist any more."""
        return self.boot == _boot() and not _alive(self.pid)


@dataclass(frozen=True)
class Failure:
    """The note on the failure of a job."""

    rank: int
    status: int
    text: str
    by: int
    """The rank that wrote the note."""
    raw: bool = False
    gone: bool = False
    """Whether another rank wrote the note."""


class Failures:
    """The end of a job on one rank.

    Parameters
    ----------
    rank, peers
        This rank, and all ranks by number.
    notes
        The connection of the main thread.
    watched
        The connection of the monitoring thread.
    """

    def __init__(self, rank: int, peers: dict[int, Peer], notes: Notes, watched: Notes) -> None:
        self.rank, self.peers, self.notes, self.watched = rank, peers, notes, watched
        self._signs: dict[int, tuple[str, float]] = {}

    # ---- during the work

    @contextmanager
    def watching(self, report: Report) -> Iterator[None]:
        """Inside, a thread sends heartbeats of this rank, and ends its process if another has failed and it does not
        end."""
        over = threading.Event()
        thread = threading.Thread(target=self._watch, args=(over, report), daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()

    def _watch(self, over: threading.Event, report: Report) -> None:
        beat, since = 0, 0.0
        failure: Failure | None = None
        while not over.wait(BEAT):
            beat += 1
            try:
                self.watched.write(f"beat/{self.rank}", str(beat))
                failure = failure or self._failure(self.watched) or self._silence()
            except RuntimeError:
                failure = failure or self._gone(0)
            since = since or (time.monotonic() if failure else 0.0)
            if failure and time.monotonic() - since > GRACE and not over.is_set():
                ending = self._ending(failure)
                with suppress(Exception), redirect_stderr(sys.__stderr__):
                    if ending.text:
                        report(ending)
                os._exit(ending.status)

    def _silence(self) -> Failure | None:
        """The failure of a rank of this machine whose process does not exist any more, or of one without a heartbeat
        for `GONE` seconds: rank 0 checks all ranks, the others check rank 0."""
        dead = self._dead(self.watched)
        if dead is not None:
            return self._noted(self.watched, self._gone(dead))
        now = time.monotonic()
        for rank in self.peers if self.rank == 0 else (0,):
            sign = self.watched.read(f"beat/{rank}") or ""
            known, since = self._signs.get(rank, (None, now))
            if sign != known:
                self._signs[rank] = sign, now
            elif now - since > GONE:
                return self._noted(self.watched, self._gone(rank))
        return None

    def before(self, names: list[str]) -> Failure | None:
        """Wait until all these notes exist; returns the failure of the job if one occurs before."""
        pause = 0.001
        while not self.notes.there(names):
            failure = self._failure(self.notes)
            if failure:
                return failure
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        return None

    # ---- the end

    def agreed(self, ending: Ending) -> Ending:
        """The ending of the job, given that of this rank: the first failure of any, or that of rank 0. Its text is ""
        if another rank reports it."""
        try:
            return self._all_done(ending) if ending.text is None else self._all_failed(ending)
        except RuntimeError:  # the store ended with the rank that opened it
            signals.ignored()
            return self._ending(self._gone(0) if self.rank else Failure(0, ending.status or 1, ending.text or "", 0))
        except KeyboardInterrupt as error:
            signals.ignored()
            return Ending(128 + getattr(error, "signum", 2), "interrupted after the work was complete")

    def _all_done(self, ending: Ending) -> Ending:
        names = [f"done/{rank}" for rank in self.peers]
        self.notes.write(names[self.rank], str(ending.status))
        failure = self.before(names)
        return self._ending(failure) if failure else replace(ending, status=int(self.notes.read(names[0]) or 0))

    def _all_failed(self, ending: Ending) -> Ending:
        signals.ignored()
        own = Failure(self.rank, ending.status, ending.text or "", self.rank, ending.raw)
        dead = self._dead(self.notes, _CAUSE if ending.lost else 0.0)
        failure = self._noted(self.notes, own if dead is None else self._gone(dead))
        return self._ending(failure, ending.text)

    def _dead(self, notes: Notes, seconds: float = 0.0) -> int | None:
        """A rank of this machine whose process does not exist any more, found within ``seconds``, unless a rank has
        reported a failure."""
        end = time.monotonic() + seconds
        while True:
            dead = next((rank for rank, peer in self.peers.items() if peer.dead()), None)
            if self._failure(notes):
                return None
            if dead is not None or time.monotonic() >= end:
                return dead
            time.sleep(0.05)

    def _gone(self, rank: int) -> Failure:
        text = (
            f"rank {rank} of {len(self.peers)} (process {self.peers[rank].pid}) ended without"
            " reporting an error, for example killed: what was saved before remains, resume from it"
        )
        return Failure(rank, 1, text, self.rank, gone=True)

    def _noted(self, notes: Notes, failure: Failure) -> Failure:
        """The failure of the job: this one, unless another was noted before."""
        return Failure(**json.loads(notes.first("failed", json.dumps(vars(failure)))))

    def _failure(self, notes: Notes) -> Failure | None:
        found = notes.read("failed")
        return None if found is None else Failure(**json.loads(found))

    def _ending(self, failure: Failure, own: str | None = None) -> Ending:
        """The ending of this rank; ``own``: its error."""
        # Rank 0 reports, or, if it is lost, the rank that noticed.
        if self.rank != (failure.by if failure.gone and failure.rank == 0 else 0):
            return Ending(failure.status, "")
        # An error on every rank is one of the job, whichever rank noted it first.
        named = failure.rank != 0 and not failure.gone and failure.text != own
        text = f"rank {failure.rank}: {failure.text}" if named else failure.text
        return Ending(failure.status, text, raw=failure.raw)

    def reported(self, ending: Ending, report: Report) -> None:
        """Report the failure, or wait for the report: torchrun ends all ranks as soon as one has ended."""
        with suppress(RuntimeError):
            if ending.text:
                report(ending)
                self.notes.write("reported")
            else:
                self.notes.wait("reported", GRACE)

    def leave(self) -> None:
        """Rank 0 leaves last if it has opened the store, since the others still read it."""
        with suppress(RuntimeError):
            if self.rank:
                self.notes.write(f"left/{self.rank}")
            elif not self.notes.here.agent:
                end = time.monotonic() + _CAUSE
                for rank, peer in self.peers.items():
                    while rank and self.notes.wait(f"left/{rank}", 0.1) is None and not peer.dead():
                        if time.monotonic() > end:
                            return


def _boot() -> str:
    """Identifier of the machine, its boot, and the container (process namespace) of this process."""
    parts = [platform.node()]
    with suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        parts.append(file.read().strip())
    with suppress(OSError):
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def _alive(pid: int) -> bool:
    """Whether a process exists on this machine."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    with suppress(OSError), open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"
    return True
