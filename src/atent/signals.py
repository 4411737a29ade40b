"""Signals that ask to stop: SIGINT, SIGTERM, SIGHUP, and SIGUSR1 and SIGUSR2, which batch systems send before the end.

Where work has a good place to stop, as a training has between two steps, `stop_requests` notes the signal; everywhere
else it raises `Stopped`, and the files that are kept row by row, or written whole, are what they were.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
_PARENT = "ATENT_PARENT"
_ECHO = 2.0  # seconds until a signal is sent once more
_DEEPEST = 100  # exceptions that came up while another was handled


class Stopped(KeyboardInterrupt):
    """A signal asked to stop.

    Parameters
    ----------
    signum
        The signal.
    how
        What resumes the work, where that is known.
    """

    def __init__(self, signum: int, how: str | None = None) -> None:
        super().__init__(signum)
        self.signum, self.how = signum, how


@dataclass
class _State:
    """Of the process, as signals are."""

    first: int | None = None
    """The first signal since the outermost `raising` began."""
    raising: bool = False
    raised: bool = False
    """Whether `Stopped` was raised since then."""
    dropping: bool = False
    """Python reports an exception that it drops."""
    echo: threading.Timer | None = None
    """What sends the signal once more, lest somebody else's code caught the exception."""
    echoing: bool = False
    """The signal that comes is the echo's."""
    noted: list[bool] = field(default_factory=list)
    """Whether each `stop_requests` that is at work, the innermost last, was asked to stop."""


_STATE = _State()


def handled() -> list[signal.Signals]:
    """The signals that ask to stop; without those that are ignored, as under nohup, and none outside the main thread,
    which alone may handle them."""
    if threading.current_thread() is not threading.main_thread():
        return []
    known = [getattr(signal, name) for name in _NAMES if hasattr(signal, name)]
    # None: a handler that is not Python's, which could not be put back.
    return [each for each in known if signal.getsignal(each) not in (signal.SIG_IGN, None)]


@contextmanager
def raising() -> Iterator[None]:
    """Inside, a signal raises `Stopped`, and does so again where that was caught and the work goes on."""
    if _STATE.raising:
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        echoed, _STATE.echoing = _STATE.echoing, False
        _STATE.first = _STATE.first or signum
        if _STATE.dropping:
            _again(signum, 0.2)
            return
        # What is cleaned up after the first one must not be broken off by its echo.
        if not (echoed and _handling()):
            _STATE.raised = True
            _again(signum, _ECHO)
            raise Stopped(signum)
        _again(signum, _ECHO)

    def dropped(lost: Any) -> None:
        # A signal that comes while this runs would be dropped too.
        _STATE.dropping = True
        try:
            _again(lost.exc_value.signum, 0.2) if isinstance(lost.exc_value, Stopped) else hook(lost)
        finally:
            _STATE.dropping = False

    _STATE.raising, _STATE.raised, _STATE.echoing, _STATE.first = True, False, False, None
    before, hook = {each: signal.signal(each, stop) for each in handled()}, sys.unraisablehook
    sys.unraisablehook = dropped
    try:
        yield
    finally:
        _STATE.raising = False
        if _STATE.echo is not None:
            _STATE.echo.cancel()
        sys.unraisablehook = hook
        for each, handler in before.items():
            signal.signal(each, handler)


def _again(signum: int, seconds: float) -> None:
    """Send a signal once more: its exception may have been raised where Python drops it, as in a finaliser, or where a
    library takes every exception for one of its own."""

    def send() -> None:
        if _STATE.raising:
            _STATE.echoing = True
            # To the main thread: a call in which that waits ends, and the handler runs.
            if hasattr(signal, "pthread_kill"):
                signal.pthread_kill(threading.main_thread().ident or 0, signum)
            else:
                signal.raise_signal(signum)

    if _STATE.echo is not None:
        _STATE.echo.cancel()
    _STATE.echo = threading.Timer(seconds, send)
    _STATE.echo.daemon = True
    _STATE.echo.start()


def _handling() -> bool:
    """Whether `Stopped` is being handled: a block that it ends cleans up."""
    error, seen = sys.exc_info()[1], 0
    while error is not None and seen < _DEEPEST:
        if isinstance(error, Stopped):
            return True
        error, seen = error.__context__, seen + 1
    return False


def caused() -> bool:
    """Whether `Stopped` was raised, so that an error that ends a command comes of it: a library makes its own error of
    it, or a module whose import it ended is half there and fails the next that imports it."""
    return _STATE.raised


@contextmanager
def postponed() -> Iterator[None]:
    """Inside, which must be short, a signal waits: it takes effect when the block ends."""
    came: list[int] = []
    before = {each: signal.signal(each, lambda signum, frame: came.append(signum)) for each in handled()}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        if came:
            signal.raise_signal(came[0])


@contextmanager
def stop_requests() -> Iterator[Callable[[], bool]]:
    """Yield a function that says whether a signal, or `request`, asked to stop; a second SIGINT raises at once."""
    place = len(_STATE.noted)
    _STATE.noted.append(False)

    def note(signum: int, frame: FrameType | None) -> None:
        echoed, _STATE.echoing = _STATE.echoing, False
        if _STATE.noted[place] and signum == signal.SIGINT and not echoed:
            _STATE.raised = True
            raise Stopped(signum)
        _STATE.first = _STATE.first or signum
        request()

    before = {each: signal.signal(each, note) for each in handled()}
    try:
        yield lambda: _STATE.noted[place]
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        del _STATE.noted[place:]


def request() -> None:
    """Ask every `stop_requests` that is at work to stop, as a signal would."""
    _STATE.noted[:] = [True] * len(_STATE.noted)


def asked_by() -> int:
    """The first signal since the outermost `raising` began, 0 where none came."""
    return _STATE.first or 0


def passed_on(signum: int) -> None:
    """Another process of the same job was asked to stop by a signal, 0 for none: this one is as well."""
    _STATE.first = _STATE.first or signum or None
    request()


def ignored() -> None:
    """Ignore what else asks to stop until the outermost `raising` ends: the end is near."""
    for each in handled():
        signal.signal(each, lambda signum, frame: None)


def status(default: int) -> int:
    """The exit status of a command that was stopped: 128 and the number of the first signal, else ``default``."""
    return default if _STATE.first is None else 128 + _STATE.first


@contextmanager
def resumed_by(how: str | Callable[[], str]) -> Iterator[None]:
    """Where the block is stopped, `Stopped` says how the work is resumed, unless it says so already."""
    try:
        yield
    except KeyboardInterrupt as error:
        known = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
        known.how = known.how or (how if isinstance(how, str) else how())
        raise known from None


# ---- children


def followed(environment: dict[str, str]) -> dict[str, str]:
    """The environment for a child that `follow_parent` ends with this process."""
    return {**environment, _PARENT: str(os.getpid())}


def follow_parent() -> None:
    """Receive SIGTERM when the process that started this one by `followed` is gone."""
    parent = os.environ.pop(_PARENT, "")
    if not parent.isdigit() or os.name == "nt":
        return
    if not (sys.platform == "linux" and _signalled_by_kernel()):
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()
    # It may have died before the kernel was asked.
    if os.getppid() != int(parent):
        os.kill(os.getpid(), signal.SIGTERM)


def _signalled_by_kernel() -> bool:
    import ctypes

    set_parent_death_signal = 1
    with suppress(OSError, AttributeError):
        return bool(ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGTERM), 0, 0, 0) == 0)
    return False


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
