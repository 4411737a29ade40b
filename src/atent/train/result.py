"""What a training gives back, or how it fails."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn


class Diverged(ValueError):
    """A loss, gradient, weight or logit became NaN or infinite; ``run`` is the folder of what was saved before."""

    def __init__(self, why: str, run: Path | None) -> None:
        super().__init__(f"{why}; " + (f"what was saved before stays in {run}" if run else "nothing was written"))
        self.why = why
        """What became so and where, in one line."""


@dataclass(frozen=True)
class Fitted:
    """What a training gives back."""

    model: nn.Module
    """The user's network with the best epoch's weights, in eval mode."""
    history: list[dict[str, Any]]
    """One row per epoch, as in metrics.jsonl."""
    best: dict[str, Any]
    """The row of the best epoch."""
    run: Path | None
    """The run folder, where there is one."""
    stopped: str | None = None
    """Why the training ended before its time, in one line; None where it did not."""
