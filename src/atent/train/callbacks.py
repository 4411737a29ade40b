"""Hooks of a training: progress, early stopping, trackers, and custom callbacks."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from atent.distributed import current
from atent.docstrings import Documented
from atent.progress import MINUTE, Advance, bar, roughly, say
from atent.train.settings import TrainSettings

Row = dict[str, Any]
# Seconds of steps for the estimate of a training's duration.
_MEASURED = 5.0


@dataclass(frozen=True)
class Progress(metaclass=Documented):
    """The progress of a training, for callbacks.

    Examples
    --------
    >>> from atent.train import Callback
    >>> class Steps(Callback):
    ...     def step(self, progress):
    ...         print(f"epoch {progress.epoch}, step {progress.step} of {progress.steps}")
    """

    model: nn.Module
    """The network in training; changes to it affect the training."""
    settings: TrainSettings
    """The settings of the training."""
    config: dict[str, Any]
    """The run's configuration."""
    run: Path | None
    """The run folder; None without one."""
    history: tuple[Row, ...]
    """The rows of the epochs so far."""
    epoch: int
    """Number of the epoch, from 1; 0 before the first."""
    step: int = 0
    """Completed steps of this epoch."""
    steps: int = 0
    """Steps per epoch."""
    share: float = 0.0
    """Completed share of the training, in [0, 1]."""
    loss: float | None = None
    """Mean loss of the epoch so far; None at steps at which it is not read from the device."""
    last: bool = False
    """Whether this step ends its epoch."""


class Callback:
    """Hooks of a training, which do nothing by default; override the required ones.

    A string returned by `start` or `epoch` ends the training with that reason (`Fitted.stopped`). `validation`,
    `checkpoint` and `epoch` are called in this order after an epoch is saved, so that an exception, which ends the
    training with its own error, loses no epoch. With several ranks only rank 0 calls them: their return values are
    shared, and a change of the network would affect rank 0 alone. Rows are those of metrics.jsonl; do not modify them.

    Examples
    --------
    >>> from atent.data import DataSettings, load
    >>> from atent.methods import Standard
    >>> from atent.train import Callback, TrainSettings, fit
    >>> class StopAt(Callback):
    ...     def epoch(self, progress, row):
    ...         return "two epochs are enough" if progress.epoch == 2 else None
    >>> data = load(DataSettings("digits", limit=64, validation=50))
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> settings = TrainSettings(epochs=5)
    >>> fit(net, data, Standard(), settings=settings, progress=False, callbacks=[StopAt()]).stopped
    'two epochs are enough'
    """

    def start(self, progress: Progress) -> str | None:
        """Before the first step, also of a resumed training, whose ``progress.history`` is restored."""

    def step(self, progress: Progress) -> None:
        """After each step."""

    def validation(self, progress: Progress, row: Row) -> None:
        """After an epoch with a validation."""

    def checkpoint(self, progress: Progress, row: Row) -> None:
        """After an epoch whose checkpoint was written."""

    def epoch(self, progress: Progress, row: Row) -> str | None:
        """After each epoch."""

    def end(self, progress: Progress) -> None:
        """At the end, also of a training that fails or is interrupted."""

    def evaluation(self, content: dict[str, Any]) -> None:
        """After the evaluation on the test set that `atent train` makes; ``content`` is that of evaluation.json."""


class EarlyStopping(Callback):
    """Ends the training after ``patience`` consecutive measured epochs that are not the best so far.

    Parameters
    ----------
    patience
        Measured epochs without improvement, at least 1.

    Raises
    ------
    ValueError
        For another patience.

    Examples
    --------
    >>> from atent.train import EarlyStopping
    >>> EarlyStopping(patience=5).patience
    5
    """

    def __init__(self, patience: int) -> None:
        if isinstance(patience, bool) or not isinstance(patience, int) or patience < 1:
            raise ValueError(f"patience must be an integer of at least 1, got {patience!r}")
        self.patience, self.waited = patience, 0

    def start(self, progress: Progress) -> str | None:
        """Recount the epochs of a resumed training."""
        self.waited = 0
        for row in progress.history:
            self._count(row)
        return self._reason(progress)

    def epoch(self, progress: Progress, row: Row) -> str | None:
        """Stop after ``patience`` epochs without improvement."""
        self._count(row)
        return self._reason(progress)

    def _count(self, row: Row) -> None:
        if "validation_clean" in row:
            self.waited = 0 if row["best"] else self.waited + 1

    def _reason(self, progress: Progress) -> str | None:
        if self.waited < self.patience:
            return None
        return f"stopped at epoch {progress.epoch}: no improvement in the last {self.waited} measured epochs"


class Report(Callback):
    """Calls a function with each epoch's row; in a training of given minutes, with each measured one.

    Parameters
    ----------
    function
        Receives the row of an epoch, a line of metrics.jsonl.

    Examples
    --------
    >>> from atent.train.callbacks import Report
    >>> report = Report(lambda row: print(row["epoch"], row["loss"]))
    """

    def __init__(self, function: Callable[[Row], None]) -> None:
        self.function = function

    def epoch(self, progress: Progress, row: Row) -> None:
        """Pass the row on."""
        if "validation_clean" in row or progress.settings.minutes is None:
            self.function(row)


class Bar(Callback):
    """A progress bar of each epoch, and once an estimate of the training's duration from its first steps.

    ``lines``: without a terminal also a line after an epoch, if the last one is a minute ago: the bar of an epoch that
    is shorter than a minute prints none.
    """

    def __init__(self, *, lines: bool = False) -> None:
        self._lines, self._said = lines, time.perf_counter()
        self._begun: tuple[float, float] | None = None
        self._estimated = False
        self._open = ExitStack()
        self._advance: Advance | None = None

    def step(self, progress: Progress) -> None:
        """Open the bar at the first step of an epoch, and close it at the last."""
        if self._advance is None:
            self._advance = self._open.enter_context(bar(progress.steps, self._title(progress), estimate=False))
            self._advance(progress.step - 1, "")
        self._advance(1, "" if progress.loss is None else f"loss {progress.loss:.3f}")
        self._estimate(progress)
        if progress.last:
            self.end(progress)

    def epoch(self, progress: Progress, row: Row) -> str | None:
        """Print loss and validation of the epoch, once a minute."""
        now = time.perf_counter()
        if self._lines and now - self._said >= MINUTE and not sys.stderr.isatty():
            self._said = now
            shown = [f"loss {row['loss']:.3f}"] if row.get("loss") is not None else []
            for name in ("clean", "robust"):
                if row.get(f"validation_{name}") is not None:
                    shown.append(f"validation {name} {100 * row[f'validation_{name}']:.1f} %")
            say(": ".join([self._title(progress), ", ".join(shown)]))
        return None

    @staticmethod
    def _title(progress: Progress) -> str:
        if progress.settings.minutes is not None:
            return f"epoch {progress.epoch} ({progress.share:.0%} of the time)"
        return f"epoch {progress.epoch}/{progress.settings.epochs}"

    def _estimate(self, progress: Progress) -> None:
        """Report the estimated duration after some seconds of steps; the first step prepares kernels."""
        now = time.perf_counter()
        if self._begun is None:
            self._begun = progress.share, now
        share, seconds = progress.share - self._begun[0], now - self._begun[1]
        if self._estimated or share <= 0 or seconds < _MEASURED:
            return
        self._estimated = True
        left = seconds / share * (1 - progress.share)
        if progress.settings.minutes is None and left >= MINUTE:
            say(f"training: about {roughly(left)} on this machine, from its first steps, without validation")

    def end(self, progress: Progress) -> None:
        """Close the bar."""
        self._open.close()
        self._advance = None


def first(reasons: Sequence[str | None]) -> str | None:
    """The first reason to stop, or None; with several ranks that of rank 0, the only one with callbacks."""
    reason: str | None = current().shared(next((reason for reason in reasons if reason is not None), None))
    return reason
