"""Adaptation of a training to its machine: precision, memory layout, threads."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from atent.data import Data
from atent.distributed import alone
from atent.guard import check_module
from atent.models import check_output
from atent.precision import check_tf32, refuses_channels_last
from atent.probe import AUTO, bfloat16_pays, gaining, probe
from atent.runs.manifest import read_json
from atent.runs.names import CONFIG
from atent.threads import cores
from atent.threat import Threat
from atent.train import agreement, preflight
from atent.train.settings import TrainSettings

_CHOSEN = ("precision", "channels_last")
"""The settings with "auto"."""


def resolved(
    model: nn.Module, data: Data, settings: TrainSettings, device: torch.device, say: Callable[[str], None],
    run: Path | None,
) -> TrainSettings:  # fmt: skip
    """The settings with "auto" replaced by a precision and a memory format: those of the resumed ``run``, or those
    measured here (with several ranks on rank 0), reported in one line.

    ValueError if an explicit precision is slower or less accurate on a CPU, and for tf32 on devices other than CUDA.
    """
    found = alone(lambda: _resolved(model, data, settings, device, say, run))
    return replace(settings, **{name: getattr(found, name) for name in _CHOSEN})


def placed(
    model: nn.Module, data: Data, settings: TrainSettings, device: torch.device, threat: Threat | None,
    before: Path | None, say: Callable[[str], None],
) -> tuple[TrainSettings, torch.memory_format]:  # fmt: skip
    """Check the network and move it to the device; returns the settings, with the choices of the run ``before``, and
    the memory format of the network."""
    check_module(model)
    preflight.check_threat(threat, data)
    preflight.move(model, device, torch.contiguous_format)
    preflight.check_views(model)
    check_output(model, data.shape, data.classes, device, dtype=data.validation.batch([0])[0].dtype)
    preflight.check_lazy(model)
    agreement.same_start(model)
    settings = resolved(model, data, settings, device, say, before)
    if settings.channels_last and len(data.shape) == 3:
        return settings, channels_last(model, data, device, say)
    return settings, torch.contiguous_format


def _resolved(
    model: nn.Module, data: Data, settings: TrainSettings, device: torch.device, say: Callable[[str], None],
    run: Path | None,
) -> TrainSettings:  # fmt: skip
    if run is not None:
        before = read_json(run / CONFIG).get("train", {}) if (run / CONFIG).is_file() else {}
        kept = {k: before[k] for k in _CHOSEN if getattr(settings, k) == AUTO and before.get(k, AUTO) != AUTO}
        settings = replace(settings, **kept)
    if settings.precision == "tf32":
        check_tf32(device)
    if AUTO in (settings.precision, settings.channels_last):
        x, _ = data.train.batch(torch.arange(min(len(data.train), settings.batch_size), device=data.train.x.device))
        found = probe(
            model, x.to(device), precisions=None if settings.precision == AUTO else (settings.precision,),
            formats=None if settings.channels_last == AUTO else (settings.channels_last,),
        )  # fmt: skip
        say(f"precision {found}")
        chosen = replace(settings, precision=cast("Any", found.precision), channels_last=found.channels_last)
        if settings.precision == AUTO:
            return chosen
        settings = chosen
    if settings.precision == "bfloat16" and device.type != "cuda":
        check_bfloat16(model, data, settings, device)
    return settings


def recorded(config: dict[str, Any], settings: TrainSettings) -> dict[str, Any]:
    """The configuration with the choices of `resolved`."""
    chosen = {name: getattr(settings, name) for name in _CHOSEN}
    return {**config, "train": {**config["train"], **chosen}} if "train" in config else config


def prepare(
    model: nn.Module, data: Data, settings: TrainSettings, position: dict[str, Any], say: Callable[[str], None]
) -> None:
    """Set the number of CPU threads, recorded in ``position`` for a resume."""
    if settings.threads is not None:
        position["threads"] = alone(lambda: threads(model, data, settings, position.get("threads"), say))
        torch.set_num_threads(position["threads"])


def check_bfloat16(model: nn.Module, data: Data, settings: TrainSettings, device: torch.device) -> None:
    """ValueError, with the measurements, unless bfloat16 is faster here and agrees with float32."""
    x, _ = data.train.batch(torch.arange(min(len(data.train), settings.batch_size), device=data.train.x.device))
    timing = bfloat16_pays(model, data.shape, device, x=x.to(device), channels_last=bool(settings.channels_last))
    if not timing.pays:
        why = "disagrees with float32" if timing.faster else "is not faster than float32"
        raise ValueError(f"precision bfloat16 {why} on this {device.type} ({timing}): use precision float32")


def channels_last(
    model: nn.Module, data: Data, device: torch.device, say: Callable[[str], None]
) -> torch.memory_format:
    """Channels-last, also for the model's kernels, if the network supports it; else the default layout, with a
    warning."""
    refused = refuses_channels_last(model, data.validation.batch([0, 0])[0].to(device))
    if refused is None:
        preflight.move(model, device, torch.channels_last)
        return torch.channels_last
    say(f"warning: {refused}")
    return torch.contiguous_format


def threads(
    model: nn.Module, data: Data, settings: TrainSettings, before: int | None, say: Callable[[str], None]
) -> int:
    """The number of CPU threads; "auto" is measured once, and reused by a resumed run with the same number of cores."""
    if isinstance(settings.threads, int):
        return settings.threads
    most = cores()
    if before is not None and before <= most:
        return before
    x, _ = data.train.batch(torch.arange(min(len(data.train), settings.batch_size), device=data.train.x.device))
    chosen = gaining(model, x, low=settings.precision == "bfloat16")
    say(f"threads {chosen} of {most} cores")
    return chosen


def peak_memory(device: torch.device) -> float | None:
    """Peak memory in MiB: allocated by torch on a GPU, or resident in this process; None if unavailable."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)
