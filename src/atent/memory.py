"""Batches that are halved when memory runs out."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch

from atent.messages import note

T = TypeVar("T")

# Messages of torch errors without a specific type: on a CPU, and inside cuBLAS and cuDNN.
_TEXTS = ("DefaultCPUAllocator", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "not enough memory")


class OutOfMemory(ValueError):
    """Memory ran out for a single sample; the message is one line."""


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception reports exhausted memory, on any device."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _TEXTS)


def release() -> None:
    """Free the memory of a failed attempt; call it after the exception is handled, since its frames hold tensors."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


class Batches:
    """Process rows in batches; when memory runs out, the batch size is halved from then on."""

    def __init__(self, what: str) -> None:
        self.what = what
        self.limit: int | None = None
        """The largest number of rows per batch; None: memory has not run out."""

    def over(self, n: int, size: int, work: Callable[[slice], T]) -> Iterator[tuple[slice, T]]:
        """``work`` on each part of ``n`` rows, at most ``size``, in order; a failed part is repeated in smaller ones.

        OutOfMemory, in one line, if a single row does not fit.
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
        """The result; None if memory ran out, after halving the limit."""
        try:
            return (work(part),)
        except (RuntimeError, MemoryError) as error:
            self.limit = halved(part.stop - part.start, error, self.what)
            return None


def halved(count: int, error: BaseException, what: str) -> int:
    """Half of ``count`` rows after an out-of-memory error; raises other errors again, and OutOfMemory, in one line, for
    a single row."""
    if not out_of_memory(error):
        raise error
    if count == 1:
        raise OutOfMemory(f"out of memory: {what} does not fit with a single sample: use a smaller network or attack")
    return (count + 1) // 2
