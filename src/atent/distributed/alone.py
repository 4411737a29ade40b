"""What rank 0 does for all: files, locks, and choices that are measured by the clock."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from atent.distributed.world import SINGLE, current, within

T = TypeVar("T")


class Elsewhere(RuntimeError):
    """An error of another rank whose own class cannot travel; its text."""


@dataclass(frozen=True)
class _Outcome:
    """What a function returned, or raised."""

    value: Any = None
    error: Exception | None = None

    def portable(self) -> _Outcome:
        """The same for another process."""
        return self if self.error is None else _Outcome(error=_portable(self.error))


def _outcome(function: Callable[[], Any]) -> _Outcome:
    try:
        with within(SINGLE):
            return _Outcome(function())
    except Exception as error:
        return _Outcome(error=error)


def _value(own: _Outcome | None, found: _Outcome) -> Any:
    """The value that was found; or its error is raised, by the rank whose own it is with its own traceback."""
    error = own.error if own is not None else found.error
    if error is not None:
        raise error
    return found.value


def alone(function: Callable[[], T]) -> T:
    """What ``function`` returns on rank 0, which alone calls it, on every rank; what it raises is raised on every rank.

    Inside, rank 0 is one process. The others wait as `World.wait` does. What is returned must be picklable, with its
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
    """What ``function`` returns on each rank, where it is called as in one process alone, by rank; where ranks raise,
    the error of the first of them is raised on every rank. As `alone` otherwise."""
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
    """The context that ``make`` gives, which rank 0 alone enters: what it yields there, on every rank.

    An error of entering it is raised on every rank.
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
    """The error, where another process gets the same from it; else its text."""
    try:
        again = pickle.loads(pickle.dumps(error))
    except Exception:
        return Elsewhere(str(error))
    if type(again) is type(error) and str(again) == str(error):
        return error
    return Elsewhere(str(error))
