"""The configuration of a run from Python, and the records of any run."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from atent import runs as folder
from atent.data import Data
from atent.methods import ATENT, METHODS, Method
from atent.methods.awp import plain
from atent.optim import Optimizer, Schedule
from atent.registry import plugin_of
from atent.runs.weights import unwrapped
from atent.threat import Threat
from atent.train.settings import TrainSettings, pick_device

_AT_ONCE = 256


def describe(
    model: nn.Module, data: Data, method: Method, optimizer: Optimizer, schedule: Schedule, settings: TrainSettings,
    augmentation: str, threat: Threat | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A run's configuration from the settings alone, for runs without a recipe."""
    evaluate = {}
    if threat and method.threat is None:
        evaluate = {"norm": threat.norm, "eps": float(threat.eps), **threat.extra()}
    return {
        "recipe": None,
        "data": {"augment": augmentation, "subset": data.subset},
        "model": {"name": None, "class": type(unwrapped(model)).__qualname__},
        "method": plain(method),
        "optimizer": asdict(optimizer),
        "schedule": asdict(schedule),
        "train": asdict(settings),
        "evaluate": evaluate,
        "about": facts(model, data, method),
        "provenance": folder.provenance(seed=settings.seed, device=pick_device(settings.device)),
    }


def complete(config: dict[str, Any] | None, *described: Any) -> dict[str, Any]:
    """The configuration of a recipe, which is complete, or `describe` with the entries of ``config``; ValueError for an
    entry that the training records itself."""
    if config and "about" in config:
        return config
    found = describe(*described)
    own = next((name for name in config or {} if name in found), None)
    if own is not None:
        raise ValueError(f"config has an entry {own!r}, which the training records itself: give it another name")
    return {**found, **(config or {})}


def facts(model: nn.Module, data: Data, method: Method) -> dict[str, Any]:
    """Facts implied by the settings: the loaded data, the number of parameters, ATENT's resolved chain, and the origin
    of plug-ins."""
    found = plugin_of(METHODS, type(method))
    out: dict[str, Any] = {"plugins": [asdict(found)]} if found else {}
    out |= {
        "data": {
            "classes": data.classes,
            "shape": list(data.shape),
            "box": list(data.box),
            **data.about,
            **digest_of(data),
        },
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    if isinstance(method, ATENT):
        out["chain"] = method.chain().describe()
    return out


def with_code(config: dict[str, Any], code: Mapping[str, str]) -> dict[str, Any]:
    """A configuration with the hashes of the user's files that define the training, by module, if there are any."""
    return {**config, "about": {**config["about"], "code": dict(code)}} if code else config


def with_subsets(config: dict[str, Any], data: Data, subsets: dict[str, Any]) -> dict[str, Any]:
    """A configuration with the rule of the subsets of samples, and the chosen ones."""
    about = {**config["about"], "subsets": subsets}
    return {**config, "data": {**config["data"], "subset": data.subset}, "about": about}


def digest_of(data: Data) -> dict[str, str]:
    """A hash of the training samples of data without files, by which a resumed training verifies them."""
    if data.about.get("files"):
        return {}
    digest = hashlib.sha256()
    for part in (data.train, data.validation):
        # Samples on disk are not loaded into memory all at once.
        for index in torch.arange(len(part), device=part.x.device).split(_AT_ONCE):
            digest.update(part.x.index_select(0, index).cpu().contiguous().numpy().tobytes())
        digest.update(part.y.cpu().numpy().tobytes())
    return {"digest": digest.hexdigest()[:16]}


def summary(config: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a weights file."""
    data = config["about"]["data"]
    known = {"run": config["id"]} if "id" in config else {}
    return {
        **known, "recipe": config.get("recipe"), "model": config["model"], "classes": data["classes"],
        "shape": data["shape"], "box": data["box"], "provenance": config["provenance"],
    }  # fmt: skip
