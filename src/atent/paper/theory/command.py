"""Checks of the theory on a trained network: the measurements and files of `atent theory`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from atent import plots
from atent import runs as folder
from atent.data import DataSettings, Limit, Rule
from atent.data import load as load_data
from atent.data.described import described
from atent.experiments.named import is_own
from atent.experiments.recorded import names_data
from atent.experiments.results import THEORY_VERSION
from atent.experiments.target import Target, load_target
from atent.models.convention import Convention
from atent.paper.theory.check import Recipes, Settings, check
from atent.runs.manifest import read_json

THEORY = "theory.json"


def of_run(
    target: str,
    *,
    data: str | None = None,
    model: str | None = None,
    convention: Convention | None = None,
    root: str | None = None,
    which: str = "best",
    limit: Limit = 50,
    subset: Rule | None = None,
    gamma: float = 10.0,
    temperature: float | None = None,
    radius: float | None = None,
    chains: int = 12,
    steps: int = 500,
    samples: int = 20_000,
    seed: int = 0,
    recipes: Recipes | None = None,
    say: Callable[[str], None] = lambda _text: None,
) -> tuple[Target, dict[str, Any]]:
    """What ``target`` names (a run folder, a weights file or module:function) and the content of its theory.json.

    ``model`` and ``convention``, of a weights file, as `load_target` takes them. ``data``: of a run it may be another
    data set of the same shape. ``radius``: l2 radius of the samples; default: the run's eps, times sqrt(d) in linf, or
    1 without a threat. ``limit`` test images ("all": every one), chosen by ``subset``: "stratified" or "first", default
    as the run. ``recipes`` as `check` takes them. ValueError and FileNotFoundError as `load_target` and
    `check`, and for data of another shape.
    """
    path = Path(target)
    own = is_own(target)
    subject = load_target(
        target, model=model, convention=convention, data=data if own or _without_data(path) else None, root=root,
        attacks=["FGSM(norm=l2, eps=1)"] if own else (), which=which, limit=limit, subset=subset, device="cpu",
    )  # fmt: skip
    if not own and data is not None and data != subject.data.name and not _without_data(path):
        other = load_data(DataSettings(name=data, root=root))
        if other.shape != subject.data.shape or other.classes != subject.data.classes:
            raise ValueError(
                f"--data {data} has inputs {other.shape} and {other.classes} classes, the run {subject.data.shape} and"
                f" {subject.data.classes}: give data of the same form, or omit it"
            )
        used = replace(other, subset=subject.data.subset)
    else:
        used = subject.data
    part = used.sample("test", limit)
    x, y = part.batch(torch.arange(len(part)))
    if radius is None:
        threat = None if own else subject.threat
        radius = 1.0
        if threat is not None:
            radius = float(threat.eps) * (math.sqrt(x[0].numel()) if threat.norm == "linf" else 1.0)
    k = 10
    if not own:
        k = int((subject.config.get("method") or {}).get("steps") or k)
    settings = Settings(
        gamma=gamma, temperature=temperature, radius=radius, samples=samples, chains=chains, steps=steps, k=k, seed=seed
    )
    found = check(
        subject.model, x, y, settings, name=subject.name, box=used.box, recipes=recipes, say=say
    )  # fmt: skip
    content = {
        "schema_version": THEORY_VERSION,
        **subject.about,
        "data": described(used, "test", part),
        **found,
        "provenance": folder.provenance(seed=seed, device="cpu"),
    }
    return subject, content


def _without_data(path: Path) -> bool:
    """Whether a run folder does not say what its data are."""
    return (path / folder.CONFIG).is_file() and not names_data(read_json(path / folder.CONFIG))


def draw(content: dict[str, Any], out: Path) -> list[Path]:
    """The curves as pictures beside ``out``: theory-zoom.png and so on; their paths."""
    paths = []
    for name, curve in content["curves"].items():
        path = out.with_name(f"{out.stem}-{name}.png")
        plots.save(plots.lines(curve), path)
        paths.append(path)
    return paths
