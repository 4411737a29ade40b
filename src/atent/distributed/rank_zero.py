"""Work of rank 0 for all ranks: files, locks, and choices that depend on timings."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from atent.distributed.world import SINGLE, current, within

T = TypeVar("T")


class Elsewhere(RuntimeError):
    """An error of another rank whose class cannot be pickled, by its text."""


@dataclass(frozen=True)
class _Outcome:
    """The result of a function, or its exception."""

    value: Any = None
    error: Exception | None = None

    def portable(self) -> _Outcome:
        """A picklable copy for another process."""
        return self if self.error is None else _Outcome(error=_portable(self.error))


def _outcome(function: Callable[[], Any]) -> _Outcome:
    try:
        with within(SINGLE):
            return _Outcome(function())
    except Exception as error:
        return _Outcome(error=error)


def _value(own: _Outcome | None, found: _Outcome) -> Any:
    """The value, or raise its error, with the original traceback on the rank where it occurred."""
    error = own.error if own is not None else found.error
    if error is not None:
        raise error
    return found.value


def alone(function: Callable[[], T]) -> T:
    """Call ``function`` on rank 0 only; its result is returned, and its exception raised, on every rank.

    Inside, `current` is a single process. The others wait as in `World.wait`. The result must be picklable, with its
    tensors on the CPU.
    """
    world = current()
    if world.size == 1:
        return function()
    own = _outcome(function) if world.first else None
    world.wait()
    found: T = _value(own, world.shared(own.portable() if own else None))
    return found


def each(function: Callable[[], T]) -> list[T]:
    """The results of ``function`` by rank, called on each rank as in a single process; if it raises on any, the
    exception of the first of these is raised on every rank. As `atent.distributed.alone` otherwise."""
    world = current()
    if world.size == 1:
        return [function()]
    own = _outcome(function)
    world.wait()
    found = world.gather(own.portable())
    failed = next((rank for rank, outcome in enumerate(found) if outcome.error is not None), None)
    if failed is not None:
        _value(own if failed == world.rank else None, found[failed])
    return [outcome.value for outcome in found]


@contextmanager
def entered(make: Callable[[], AbstractContextManager[T]]) -> Iterator[T]:
    """Enter the context of ``make`` on rank 0 only; every rank gets the value that it yields.

    An exception on entry is raised on every rank.
    """
    world = current()
    with ExitStack() as stack:
        if world.size == 1:
            yield stack.enter_context(make())
            return

        def enter() -> T:
            return stack.enter_context(make())

        yield alone(enter)


def _portable(error: Exception) -> Exception:
    """The error itself if pickling preserves it, else an `Elsewhere` with its text."""
    try:
        again = pickle.loads(pickle.dumps(error))
    except Exception:
        return Elsewhere(str(error))
    if type(again) is type(error) and str(again) == str(error):
        return error
    return Elsewhere(str(error))
