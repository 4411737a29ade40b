"""The batches of an epoch, and its row in metrics.jsonl, before its validation."""

from __future__ import annotations

from typing import Any

import torch

from atent.train import machine
from atent.train.clock import Clock
from atent.train.meter import Meter
from atent.train.settings import TrainSettings


def parts_of(n: int, size: int, *, joined: bool) -> list[slice]:
    """The slices of the batches of an epoch over ``n`` samples in its order; ``joined``: a single last sample joins the
    previous batch."""
    batches = -(-n // size) - joined
    return [slice(i * size, n if i == batches - 1 else (i + 1) * size) for i in range(batches)]


def row_of(
    epoch: int, passes: float, *, lr: float, clock: Clock, meter: Meter, settings: TrainSettings,
    position: dict[str, Any], device: torch.device, layout: torch.memory_format,
) -> dict[str, Any]:  # fmt: skip
    """The time and metrics of the steps of ``epoch`` (from 1), after ``passes`` over the training set."""
    row = {
        "epoch": epoch,
        "lr": lr,
        "seconds": round(clock.elapsed - clock.before, 3),
        "memory_mb": machine.peak_memory(device),
        "precision": settings.precision,
        "channels_last": layout is torch.channels_last,
        **meter.summary(),
    }
    if "micro_batch" in position:
        row["micro_batch"] = position["micro_batch"]
    if settings.on_nonfinite == "skip":
        row["skipped"] = meter.skipped
    if "rollbacks" in position:
        row["rollbacks"] = len(position["rollbacks"])
    if settings.minutes is not None:
        row |= {"passes": round(passes, 3), "elapsed": round(clock.elapsed, 3)}
    return row
