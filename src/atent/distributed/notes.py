"""Notes of the ranks of a job in a key-value store, separate from messages with tensors."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from atent.torchrun import Place


class Unreachable(ValueError):
    """This rank cannot connect to the others, so they cannot report the error."""


class Notes:
    """A connection of this rank to the store of its job: that of torchrun, or one opened by rank 0.

    Notes belong to one start of the job, as torchrun may restart all ranks with the same store. Errors of the
    connection are RuntimeErrors.

    Parameters
    ----------
    here
        The place of this rank.
    seconds
        Timeout of connections and notes.
    opens
        Whether rank 0 opens the store if torchrun has none.

    Raises
    ------
    ValueError
        In one line: the port is in use; `Unreachable` without a connection.
    """

    def __init__(self, here: Place, seconds: float, *, opens: bool = False) -> None:
        from torch._C._distributed_c10d import TCPStore

        self.here, self.seconds = here, seconds
        self._prefix = f"atent/{here.restarts}/{here.size}/"
        own = opens and not here.agent and here.rank == 0
        wait = timedelta(seconds=seconds)
        try:
            self.store: Any = _answered(
                lambda: TCPStore(here.host, here.port, None, own, wait, wait_for_workers=False), seconds
            )
        except (RuntimeError, ValueError, OSError) as error:
            text = " ".join(str(error).split())
            if own and ("in use" in text or "EADDRINUSE" in text or "failed to listen" in text):
                raise ValueError(
                    f"port {here.port} of {here.host} is in use: use another (torchrun --standalone, torchrun"
                    " --master-port, or MASTER_PORT)"
                ) from None
            raise Unreachable(f"rank {here.rank} cannot reach {here.host}:{here.port}: {text[:200]}") from None

    def write(self, name: str, text: str = "") -> None:
        """Write a note."""
        self.store.set(self._prefix + name, text)

    def first(self, name: str, text: str) -> str:
        """Write a note unless it exists; returns the note."""
        return bytes(self.store.compare_set(self._prefix + name, "", text)).decode()

    def read(self, name: str) -> str | None:
        """A note; None if it does not exist."""
        return bytes(self.store.get(self._prefix + name)).decode() if self.there([name]) else None

    def there(self, names: list[str]) -> bool:
        """Whether all these notes exist."""
        return bool(self.store.check([self._prefix + name for name in names]))

    def wait(self, name: str, seconds: float | None = None) -> str | None:
        """Wait for a note; None after the timeout."""
        end, pause = time.monotonic() + (self.seconds if seconds is None else seconds), 0.001
        while (found := self.read(name)) is None and time.monotonic() < end:
            time.sleep(pause)
            pause = min(2 * pause, 0.1)
        return found

    def kept(self, name: str, text: str | None = None) -> str | None:
        """A note that persists over restarts of all ranks, written if ``text`` is given; None if it does not exist, or
        if rank 0 opened the store."""
        if not self.here.agent:
            return None
        key = f"atent/kept/{name}"
        if text is not None:
            self.store.set(key, text)
            return text
        return bytes(self.store.get(key)).decode() if self.store.check([key]) else None

    def below(self, name: str) -> Any:
        """A store for a process group, separate from the notes."""
        from torch._C._distributed_c10d import PrefixStore

        return PrefixStore(self._prefix + name, self.store)


def _answered(connect: Callable[[], Any], seconds: float) -> Any:
    """The result or exception of ``connect``; TimeoutError if it does not return, for example because another program
    listens on the port."""
    found: list[Any] = []
    errors: list[Exception] = []

    def call() -> None:
        try:
            found.append(connect())
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds + 1)
    if errors:
        raise errors[0]
    if not found:
        raise TimeoutError("another program listens on this port: no answer as a store of ranks")
    return found[0]
