"""What a training prints before it begins."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atent.attacks.spec import show
from atent.data import Data, Limit
from atent.data.described import described, words
from atent.data.split import Part
from atent.threat import COUNTS, Threat

_PROJECTED = {
    "never": "no projection", "last": "projected after the last step", "every": "projected after every step",
}  # fmt: skip


def introduction(
    path: Path, data: Data, config: dict[str, Any], validate_limit: Limit, test_limit: Limit
) -> Iterator[str]:
    """The lines: run folder, data and the samples in use, network, and method."""
    counts = data.about["counts"]
    yield f"run     {path}"
    parts = f"{counts['train']} train, {counts['validation']} validation (seed {data.about['split']['seed']})"
    yield f"data    {data.name}: {parts}, {counts['test']} test"
    limits: dict[Part, Limit] = {"validation": validate_limit or None, "test": test_limit}
    for part, limit in limits.items():
        chosen = described(data, part, data.sample(part, limit))
        if chosen["n"] < chosen["of"]:
            yield f"subset  {part}: {words(chosen)}"
    network = config["model"].get("name") or config["model"].get("class")
    yield f"model   {network}, {config['about']['parameters']:,} parameters"
    yield f"method  {method_line(config)}"


def method_line(config: dict[str, Any]) -> str:
    """The method of a run's configuration with its threat, its chain and what is around it."""
    method, chain = config["method"], config["about"].get("chain")
    threat = method.get("threat")
    line: str = method["name"]
    if threat:
        line += (
            f", {show(Threat(**threat))}" if threat["norm"] in COUNTS else f", {threat['norm']} eps {threat['eps']:g}"
        )
    if chain:
        line += (
            f", {chain['steps']} Langevin steps of {chain['step_size']:g}, {_anchor(chain['anchor_weight'])}"
            f", noise {chain['noise']:g} (effective_noise {chain['effective_noise']:.4g})"
            f", {_PROJECTED[chain['projection']]}"
        )
    if method.get("calibrated"):
        line += f", {'noise' if method['calibrated'] == 'noise' else 'gamma'} to be calibrated"
    awp = config["train"].get("awp")
    if awp and awp["gamma"]:
        line += f", weights perturbed by {awp['gamma']:g} (AWP)"
    term = config["train"].get("embedding")
    if term and term["weight"]:
        line += f", embeddings regularised by {term['weight']:g} {term['divergence']} (after Li et al. 2021)"
    return line


def _anchor(weight: float) -> str:
    """The anchor term of a Langevin step, with its factor."""
    return f"anchor term {weight:g} (x - x')" if weight else "no anchor term"
