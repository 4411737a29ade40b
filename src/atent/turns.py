"""Threads take turns on an object."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Turns:
    """A reentrant lock for each object, which a thread holds while it is inside `of`.

    Threads that hold one object and wait for another could wait for each other for ever: the last of them gets a
    RuntimeError.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._holders: dict[int, tuple[int, int]] = {}
        """By the object's id: the thread, and how often it has entered."""
        self._waiting: dict[int, int] = {}
        """By thread: the id of the object that it waits for."""

    @contextmanager
    def of(self, thing: Any, name: str) -> Iterator[None]:
        """Inside, no other thread is inside `of` the same object; ``name`` is for the error."""
        key, me = id(thing), threading.get_ident()
        with self._changed:
            while self._holders.get(key, (me, 0))[0] != me:
                if self._is_circular(key, me):
                    raise RuntimeError(
                        f"two threads wait for each other's {name}: give each thread a copy, copy.deepcopy({name}),"
                        " or use one thread"
                    )
                self._waiting[me] = key
                try:
                    self._changed.wait()
                finally:
                    del self._waiting[me]
            depth = self._holders.get(key, (me, 0))[1]
            self._holders[key] = me, depth + 1
        try:
            yield
        finally:
            with self._changed:
                if depth:
                    self._holders[key] = me, depth
                else:
                    del self._holders[key]
                    self._changed.notify_all()

    def _is_circular(self, key: int | None, me: int) -> bool:
        """Whether the holder of an object waits, through others, for one that this thread holds."""
        while key is not None and key in self._holders:
            holder = self._holders[key][0]
            if holder == me:
                return True
            key = self._waiting.get(holder)
        return False
