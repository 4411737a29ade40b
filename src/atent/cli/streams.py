"""Output that nobody reads any more must not end what is measured."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EBADF, EIO, EPIPE
from typing import Any, TextIO

_GONE = (EPIPE, EIO, EBADF)


class Steady:
    """A text stream that is silent from then on where its reader has gone; a full disk stays an error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write ``text``, or drop it."""
        try:
            return self._stream.write(text)
        except (OSError, ValueError) as error:
            self._drop(error)
            return len(text)

    def flush(self) -> None:
        """Flush, as far as somebody reads."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._drop(error)

    def _drop(self, error: Exception) -> None:
        closed = isinstance(error, ValueError) and self._stream.closed
        if not closed and getattr(error, "errno", None) not in _GONE:
            raise error
        # What is buffered must go somewhere, or the interpreter fails to flush it in the end.
        with suppress(OSError, ValueError):
            handle = os.open(os.devnull, os.O_WRONLY)
            os.dup2(handle, self._stream.fileno())
            os.close(handle)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def steady() -> Iterator[None]:
    """Inside, standard output and standard error are `Steady`; one that was closed from the beginning is silent."""
    before = sys.stdout, sys.stderr
    silent = [open(os.devnull, "w") for stream in before if stream is None]  # noqa: SIM115
    made = iter(silent)
    out, err = (Steady(next(made) if stream is None else stream) for stream in before)
    sys.stdout, sys.stderr = out, err
    try:
        yield
    finally:
        for stream in (out, err):
            stream.flush()
        sys.stdout, sys.stderr = before
        for each in silent:
            each.close()
