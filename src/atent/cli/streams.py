"""Output streams that ignore a closed reader and take any text, so that a measurement continues."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from errno import EBADF, EIO, EPIPE
from typing import Any, TextIO

_GONE = (EPIPE, EIO, EBADF)
ESCAPED = "atent-escaped"


class Steady:
    """A text stream that discards output once its reader has closed; a full disk remains an error."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write ``text``, or discard it."""
        try:
            try:
                return self._stream.write(text)
            except UnicodeEncodeError:
                return self._stream.write(text.encode(self._stream.encoding, ESCAPED).decode(self._stream.encoding))
        except (OSError, ValueError) as error:
            self._drop(error)
            return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """`write` for each of some strings."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Flush, unless the reader has closed."""
        try:
            self._stream.flush()
        except (OSError, ValueError) as error:
            self._drop(error)

    def _drop(self, error: Exception) -> None:
        closed = isinstance(error, ValueError) and self._stream.closed
        if not closed and getattr(error, "errno", None) not in _GONE:
            raise error
        # Buffered text needs a valid target, or the interpreter fails when it flushes at exit.
        with suppress(OSError, ValueError):
            handle = os.open(os.devnull, os.O_WRONLY)
            os.dup2(handle, self._stream.fileno())
            os.close(handle)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def _replaced(error: UnicodeError) -> tuple[str, int]:
    """An error handler of `codecs`: an escape for each character that the encoding lacks, and +- for the sign."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end].replace("\u00b1", "+-")
    return lacking.encode("ascii", "backslashreplace").decode(), error.end


codecs.register_error(ESCAPED, _replaced)


@contextmanager
def steady() -> Iterator[None]:
    """Make standard output and standard error `Steady` inside the block; one that was closed at start is silent."""
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
