"""Signals that request a stop: SIGINT, SIGTERM, SIGHUP, and SIGUSR1 and SIGUSR2, which batch systems send at the end.

Work with a safe place to stop, such as training between two steps, records the signal by `stop_requests`; all other
work raises `Stopped`, and files that are written row by row, or atomically, remain valid.
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

STOPPING = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
"""The signals that request a stop, where the system has them."""
_PARENT = "ATENT_PARENT"
_ECHO = 2.0  # seconds until a signal is sent again
_DEEPEST = 100  # length of a chain of exception contexts


class Stopped(KeyboardInterrupt):
    """A signal requested a stop.

    Parameters
    ----------
    signum
        The signal.
    how
        How to resume the work, if known.
    """

    def __init__(self, signum: int, how: str | None = None) -> None:
        super().__init__(signum)
        self.signum, self.how = signum, how


class Unwritten(OSError):
    """A file could not be written; one line, with the remedy and how the work is resumed."""

    resumed = False
    """Whether the line already says how the work is resumed."""
    result: Any = None
    """What the file would contain, if it was computed."""

    def add(self, how: str) -> None:
        """Add how the work is resumed, unless already known."""
        if not self.resumed:
            self.args, self.resumed = (f"{self}; {how}",), True


@dataclass
class _State:
    """Process-wide state of signal handling."""

    first: int | None = None
    """The first signal since the outermost `raising` began."""
    raising: bool = False
    raised: bool = False
    """Whether `Stopped` was raised since then."""
    dropping: bool = False
    """Whether Python is reporting an exception that it ignores."""
    echo: threading.Timer | None = None
    """Timer that sends the signal again, in case other code caught the exception."""
    echoing: bool = False
    """Whether the next signal is a repetition."""
    noted: list[bool] = field(default_factory=list)
    """Whether a stop was requested of each active `stop_requests`, the innermost last."""


_STATE = _State()


def handled() -> list[signal.Signals]:
    """The signals that request a stop, without ignored ones, as under nohup; [] outside the main thread, the only one
    that may handle signals."""
    if threading.current_thread() is not threading.main_thread():
        return []
    known = [getattr(signal, name) for name in STOPPING if hasattr(signal, name)]
    # None: a handler that is not Python's, which could not be restored.
    return [each for each in known if signal.getsignal(each) not in (signal.SIG_IGN, None)]


@contextmanager
def raising() -> Iterator[None]:
    """Context in which a signal raises `Stopped`, and raises it again if it was caught and the work continues."""
    if _STATE.raising:
        yield
        return

    def stop(signum: int, frame: FrameType | None) -> None:
        echoed, _STATE.echoing = _STATE.echoing, False
        _STATE.first = _STATE.first or signum
        if _STATE.dropping:
            _again(signum, 0.2)
            return
        # A repetition must not interrupt the cleanup after the first signal.
        if not (echoed and _handling()):
            _STATE.raised = True
            _again(signum, _ECHO)
            raise Stopped(signum)
        _again(signum, _ECHO)

    def dropped(lost: Any) -> None:
        # A signal that arrives while this runs would be ignored too.
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
    """Send a signal again: its exception may have been raised where Python ignores it, as in a finaliser, or where a
    library catches all exceptions."""

    def send() -> None:
        if _STATE.raising:
            _STATE.echoing = True
            # To the main thread: this interrupts a blocking call, and the handler runs.
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
    """Whether `Stopped` is being handled, that is, cleanup is running."""
    error, seen = sys.exc_info()[1], 0
    while error is not None and seen < _DEEPEST:
        if isinstance(error, Stopped):
            return True
        error, seen = error.__context__, seen + 1
    return False


def caused() -> bool:
    """Whether `Stopped` was raised, so that an error that ends a command may be its consequence: a library converts it
    into its own error, or a module whose import was interrupted fails at the next import."""
    return _STATE.raised


@contextmanager
def postponed() -> Iterator[None]:
    """Context, of a short block, in which signals are deferred to its end."""
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
    """Yield a function that returns whether a signal or `request` requested a stop; a second SIGINT raises at once."""
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
    """Request a stop of every active `stop_requests`, as a signal would."""
    _STATE.noted[:] = [True] * len(_STATE.noted)


def asked_by() -> int:
    """The first signal since the outermost `raising` began, 0 without one."""
    return _STATE.first or 0


def passed_on(signum: int) -> None:
    """Record that a signal (0: none) requested a stop of another process of the same job, which stops this one too."""
    _STATE.first = _STATE.first or signum or None
    request()


def ignored() -> None:
    """Ignore further signals until the outermost `raising` ends."""
    for each in handled():
        signal.signal(each, lambda signum, frame: None)


def status(default: int) -> int:
    """The exit status of a command that was stopped: 128 plus the number of the first signal, or ``default``."""
    return default if _STATE.first is None else 128 + _STATE.first


@contextmanager
def repaired_by(how: str | Callable[[], str]) -> Iterator[None]:
    """If the block cannot write a file, add to `Unwritten` how the work is resumed, unless already set."""
    try:
        yield
    except Unwritten as error:
        error.add(how if isinstance(how, str) else how())
        raise


@contextmanager
def computed(result: Any) -> Iterator[None]:
    """If the block cannot write a file, add to `Unwritten` what the file would contain."""
    try:
        yield
    except Unwritten as error:
        error.result = result
        raise


@contextmanager
def resumed_by(how: str | Callable[[], str]) -> Iterator[None]:
    """If the block is stopped, or cannot write a file, add to `Stopped` or `Unwritten` how the work is resumed, unless
    already set."""
    try:
        with repaired_by(how):
            yield
    except KeyboardInterrupt as error:
        known = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
        known.how = known.how or (how if isinstance(how, str) else how())
        raise known from None


# ---- children


def followed(environment: dict[str, str]) -> dict[str, str]:
    """The environment for a child process that `follow_parent` ends together with this process."""
    return {**environment, _PARENT: str(os.getpid())}


def follow_parent() -> None:
    """Receive SIGTERM when the parent process, which used `followed`, ends."""
    parent = os.environ.pop(_PARENT, "")
    if not parent.isdigit() or os.name == "nt":
        return
    if not (sys.platform == "linux" and _signalled_by_kernel()):
        threading.Thread(target=_watch, args=(int(parent),), daemon=True).start()
    # The parent may have ended before the kernel call.
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
