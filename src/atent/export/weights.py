"""Weights in one .safetensors file, and networks that are loaded back from written files."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from atent.experiments.target import Target
from atent.export.card import built_by
from atent.export.checks import Run
from atent.export.hub import configuration
from atent.runs.checkpoint import load_weights, save_weights
from atent.runs.loading import load, load_file


def write_weights(target: Target, path: Path) -> Run:
    """Write the weights, with the settings of their network as metadata; returns the network loaded from the file.

    ValueError, in one line, for a network that is built by code.
    """
    config = configuration(target)
    code = built_by(config)
    if code is not None:
        raise ValueError(
            f"a file of weights contains no code, and the network of {target.name} is built by {code}: use --format hub"
            " for a folder that records this, or --format onnx or torch-export"
        )
    about = config["about"]["data"]
    made = {key: about[key] for key in ("classes", "shape", "box")} | {"model": config["model"]}
    # A run folder accepts only its own weights.
    known = {"run": config["id"]} if "id" in config else {}
    save_weights(path, target.model, {**known, **made, "data": target.data.name})
    model, _ = load_file(path, classes=target.data.classes, shape=tuple(target.data.shape))
    return _run(model)


def loaded(place: Path, target: Target) -> Run:
    """The network loaded back from a folder; if only code builds it, a copy of the target's network with the weights of
    the folder."""
    if not target.config or built_by(target.config) is None:
        return _run(load(place))
    model = copy.deepcopy(target.model).cpu()
    load_weights(model, place)
    return _run(model)


def _run(model: nn.Module) -> Run:
    def run(inputs: Tensor) -> Tensor:
        with torch.no_grad():
            logits: Tensor = model(inputs)
        return logits

    return run
