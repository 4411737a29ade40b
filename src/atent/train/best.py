"""Selection of the best epoch."""

from __future__ import annotations

from typing import Any

from atent.train.settings import TrainSettings
from atent.train.validation import Validation
from atent.train.watch import STOP


class Best:
    """The best epoch so far: of the raw weights, of the averaged ones, and of those that may be selected."""

    def __init__(self, validation: Validation, settings: TrainSettings) -> None:
        self.validation, self.average = validation, settings.average
        self.allowed = ("raw", "average") if settings.select_weights == "both" else (settings.select_weights,)
        self.tops: dict[str, tuple[float, float]] = {}
        self.row: dict[str, Any] | None = None

    def add(self, row: dict[str, Any]) -> dict[str, str]:
        """Mark the row, and return the weights to keep: {"best", "raw", "ema" or "swa": their kind}."""
        if row.get("watch") == STOP:  # a collapsed epoch is never the best
            row["best"] = False
            return {}
        scores = {"raw": self.validation.score(row)}
        if "average_validation_clean" in row:
            scores["average"] = self.validation.score(row, "average_")
        candidates = [kind for kind in self.allowed if kind in scores]
        if self.validation.select == "last":
            candidates.reverse()  # prefer the averaged weights
        kept = {}
        row["best"] = False
        for kind in candidates:
            if "best" not in self.tops or scores[kind] > self.tops["best"]:
                self.tops["best"], self.row, row["best"], kept["best"] = scores[kind], row, True, kind
        if self.average == "none":
            return kept
        if row["best"]:
            row["best_weights"] = kept["best"]
        for kind, score in scores.items():
            if kind not in self.tops or score > self.tops[kind]:
                self.tops[kind] = score
                kept["raw" if kind == "raw" else self.average] = kind
        return kept
