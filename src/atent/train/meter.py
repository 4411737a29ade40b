"""Running metrics of an epoch, kept on the device until it is read."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

QUANTILES = {"q10": 0.1, "median": 0.5, "q90": 0.9}


class Meter:
    """Scalars are averaged over samples; vectors (one value per sample) are kept for their quantiles."""

    def __init__(self) -> None:
        self.count = 0
        self.skipped = self.in_a_row = 0
        """Skipped steps of this epoch, and since the last step that was taken."""
        self.sums: dict[str, Tensor] = {}
        self.values: dict[str, list[Tensor]] = {}

    def skip(self) -> None:
        """Count a skipped step."""
        self.skipped, self.in_a_row = self.skipped + 1, self.in_a_row + 1

    def take(self) -> None:
        """Count a step that was taken."""
        self.in_a_row = 0

    @property
    def empty(self) -> str:
        """The error for an epoch without a step that was taken."""
        if self.skipped:
            return "no step of the epoch had a finite loss and gradient: lower optimizer.lr"
        return "no step of the epoch computed a loss: the optimizer's step(closure) must call closure()"

    def add(self, metrics: dict[str, Tensor], n: int) -> None:
        """Add the metrics of a batch of n samples."""
        self.count += n
        for name, value in metrics.items():
            if value.dim():
                self.values.setdefault(name, []).append(value.detach().float())
            else:
                total = value.detach().double() * n
                self.sums[name] = self.sums[name] + total if name in self.sums else total

    def summary(self) -> dict[str, float | None]:
        """Means, and the 10, 50 and 90 % quantiles of vectors as ``name_q10``, ``name_median``, ``name_q90``.

        None for values that are not finite, which JSON does not support; they do not raise an error.
        """
        out = {name: float(total) / self.count for name, total in self.sums.items()}
        for name, parts in self.values.items():
            ordered = torch.cat(parts).sort().values
            for suffix, q in QUANTILES.items():
                out[f"{name}_{suffix}"] = float(ordered[round(q * (len(ordered) - 1))])
        return {name: value if math.isfinite(value) else None for name, value in out.items()}

    def state(self) -> dict[str, object]:
        """The state for `restore`."""
        values = {k: torch.cat(v) for k, v in self.values.items()}
        skipped = {"skipped": self.skipped, "in_a_row": self.in_a_row}
        return {"count": self.count, "sums": self.sums, "values": values, **skipped}

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Meter:
        """The meter of a saved state."""
        meter = cls()
        meter.count, meter.sums = state["count"], dict(state["sums"])
        meter.values = {k: [v] for k, v in state["values"].items()}
        # Earlier versions did not skip steps.
        meter.skipped, meter.in_a_row = state.get("skipped", 0), state.get("in_a_row", 0)
        return meter
