"""Calibration of a method, once before the first step of a training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from atent.data import Data
from atent.methods import ATENT, DistilledTRADES, Method
from atent.methods.calibration import Calibration, Setting
from atent.rng import fold
from atent.train.settings import TrainSettings

# Batches of the calibration, of training images of every class, with the training's augmentation.
_BATCHES = 2


def calibrated(
    method: Method, model: nn.Module, data: Data, settings: TrainSettings, move: Callable[..., Tensor], *, joined: bool
) -> Calibration[ATENT] | None:
    """The result of `ATENT.calibrate` for the untrained model at the threat's eps; None if it is not requested.

    ``joined``: the network cannot be evaluated on a single remaining image, so that image is omitted.
    """
    if not isinstance(method, ATENT) or not method.calibrated:
        return None
    rng, size = torch.Generator(data.train.x.device), settings.batch_size
    some = data.sample("train", _BATCHES * size, "stratified")
    count = len(some) - (joined and len(some) % size == 1)
    parts = []
    for position, index in enumerate(torch.split(torch.arange(count, device=rng.device), size)[:_BATCHES]):
        rng.manual_seed(fold(settings.seed, "augment", 0, position))
        x, y = some.batch(index)
        parts.append((move(x, rng), y))
    setting: Setting = "noise" if method.calibrated == "noise" else "gamma"
    x, y = (torch.cat(tensors) for tensors in zip(*parts, strict=True))
    return method.calibrate(
        model.train(), x, y, setting=setting, batch=size, seed=fold(settings.seed, "calibrate")
    )  # fmt: skip


def stand_in(method: Method) -> Method:
    """The method with a placeholder value, to try a step before the calibration; without its teacher, whose predictions
    a resumed training reads later."""
    if isinstance(method, DistilledTRADES):
        return replace(method, teacher=None, share=DistilledTRADES.share, temperature=DistilledTRADES.temperature)
    if not isinstance(method, ATENT) or not method.calibrated:
        return method
    return adopt(method, {"setting": "noise" if method.calibrated == "noise" else "gamma", "value": 1e-3})


def adopt(method: Method, found: dict[str, Any] | None) -> Method:
    """The method with the value of `Calibration.describe`; unchanged for None."""
    if found is None:
        return method
    given: dict[str, Any] = {"calibrated": False, found["setting"]: found["value"]}
    if found["setting"] == "noise":
        given |= {"effective_noise": None, "temperature": None}
    return replace(method, **given)


def recorded(config: dict[str, Any], found: Calibration[ATENT]) -> dict[str, Any]:
    """The configuration with the calibrated value."""
    known = {"chain": found.method.chain().describe(), "calibration": found.describe()}
    return {**config, "about": {**config["about"], **known}}
