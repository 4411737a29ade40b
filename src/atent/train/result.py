"""The result of a training, and its failure."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from atent.docstrings import Documented


class Diverged(ValueError):
    """A loss, gradient, weight or logit became NaN or infinite.

    Parameters
    ----------
    why
        What is not finite, and where, in one line.
    run
        The run folder with the state saved before; None without one.

    Examples
    --------
    >>> from atent.train import Diverged
    >>> print(Diverged("the loss is nan at epoch 3", None))
    the loss is nan at epoch 3; nothing was written
    """

    def __init__(self, why: str, run: Path | None) -> None:
        super().__init__(f"{why}; " + (f"what was saved before remains in {run}" if run else "nothing was written"))
        self.why = why
        """What is not finite, and where, in one line."""


@dataclass(frozen=True)
class Fitted(metaclass=Documented):
    """The result of a training.

    Examples
    --------
    >>> from atent.data import DataSettings, load
    >>> from atent.methods import Standard
    >>> from atent.train import TrainSettings, fit
    >>> data = load(DataSettings("digits", limit=64, validation=50))
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> fitted = fit(net, data, Standard(), settings=TrainSettings(epochs=1), progress=False)
    >>> fitted.best["epoch"], fitted.run
    (1, None)
    """

    model: nn.Module
    """The user's network with the best epoch's weights, in eval mode."""
    history: list[dict[str, Any]]
    """One row per epoch, as in metrics.jsonl."""
    best: dict[str, Any]
    """The row of the best epoch."""
    run: Path | None
    """The run folder; None without one."""
    stopped: str | None = None
    """Why the training ended early, in one line; None if it did not."""

    def __str__(self) -> str:
        """The number of epochs, the best epoch with its validation accuracies in percent, and the run folder."""
        best, done = self.best, len(self.history)
        parts = [f"{done} epoch{'s' if done != 1 else ''}, best {best.get('epoch', '-')}"]
        for name in ("clean", "robust"):
            share = best.get(f"validation_{name}")
            if share is not None:
                parts.append(f"validation {name} {100 * share:.1f} %")
        lines = [", ".join(parts)]
        if self.stopped:
            lines.append(f"stopped early: {self.stopped}")
        return "\n".join(lines + ([f"run folder: {self.run}"] if self.run is not None else []))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """A notebook cell shows the lines of `str`."""
        printer.text(str(self))
