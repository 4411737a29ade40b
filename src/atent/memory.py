"""Batches that halve where memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from atent.messages import note

T = TypeVar("T")

# What torch says without a type of its own: on a CPU, and inside cuBLAS and cuDNN.
_TEXTS = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "not enough memory")


class OutOfMemory(ValueError):
    """Memory ran out, and a smaller batch does not help; the message is one line."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def release() -> None:
    """Give back what a failed attempt held; call it once the exception is gone, whose frames hold tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Batches:
    """Work on rows in batches; where memory runs out, in half as many from there on."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.limit: int | None = None
        """The most rows that are tried at once; None: memory has not run out."""

    def over(self, n: int, size: int, work: Callable[[slice], T]) -> Iterator[tuple[slice, T]]:
        """``work`` on each part of ``n`` rows, at most ``size``, in order; a part that failed is done again in smaller
        ones.

        OutOfMemory, in one line, where a single row does not fit.
        """
        begin = 0
        while begin < n:
            most = size if self.limit is None else min(size, self.limit)
            part = slice(begin, min(begin + most, n))
            found = self._tried(part, work)
            if found is None:
                release()
                note(f"out of memory: {self.what} continues in batches of {self.limit}")
                continue
            yield part, found[0]
            begin = part.stop

    def _tried(self, part: slice, work: Callable[[slice], T]) -> tuple[T] | None:
        """The result; None where memory ran out and the limit is halved."""
        try:
            return (work(part),)
        except (RuntimeError, MemoryError) as error:
            self.limit = halved(part.stop - part.start, error, self.what)
            return None


def halved(count: int, error: BaseException, what: str) -> int:
    """Half of ``count`` rows, where memory ran out on them; the error itself where it is another, and OutOfMemory, in
    one line, for a single row."""
    if not out_of_memory(error):
        raise error
    if count == 1:
        raise OutOfMemory(f"out of memory: {what} does not fit with a single sample: use a smaller network or attack")
    return (count + 1) // 2
