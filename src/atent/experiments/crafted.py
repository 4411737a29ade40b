"""Adversarial inputs crafted by several processes: the shards of a file, and their merge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atent import runs as folder
from atent.distributed import alone, current
from atent.distributed.shards import Shard
from atent.evaluate.craft import save
from atent.experiments.evaluation import Request, about_adversarial, about_evaluation, adversarial
from atent.experiments.shards import Incomplete, check_same, gathered, shard_file
from atent.experiments.target import Target
from atent.precision import SearchDtype

TENSORS = ("x_adv", "x", "y", "ids", "success", "predicted", "norm")


def crafted(
    target: Target, *, search_dtype: SearchDtype | None = None, progress: bool = True
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The result of `adversarial`; ranks that call this together share its batches, and each gets the complete
    result."""
    world, n = current(), len(target.test()[0])
    if world.size > -(-n // target.settings.batch):
        # Fewer batches than ranks.
        return alone(lambda: adversarial(target, search_dtype=search_dtype, progress=progress))
    shard = None if world.size == 1 else Shard(world.rank, world.size)
    made, about = adversarial(target, search_dtype=search_dtype, progress=progress and world.first, shard=shard)
    if shard is None:
        return made, about
    world.wait()
    return _joined(target, world.gather(made)), about


def crafted_shard(
    target: Target, place: Path, shard: Shard, *, search_dtype: SearchDtype | None = None, progress: bool = True
) -> Path:
    """Craft every k-th batch into a file beside ``place``, which `crafted_merged` reads. An existing shard of the same
    command is kept; `Incomplete` for one of another command."""
    of, file = _of(target, search_dtype), shard_file(place, shard)
    if file.exists():
        check_same(file, _read(file)["of"], of)
        return file
    made, about = adversarial(target, search_dtype=search_dtype, progress=progress, shard=shard)
    save(file, made, {**about, "shard": shard.text, "of": of})
    return file


def crafted_merged(
    target: Target, place: Path, *, search_dtype: SearchDtype | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The result of `adversarial`, from the shards beside ``place``; `Incomplete` as `gathered`."""
    found = gathered(place, _of(target, search_dtype), _read)
    return _joined(target, [content["made"] for content in found]), about_adversarial(target, search_dtype)


def _of(target: Target, search_dtype: SearchDtype | None) -> dict[str, Any]:
    """The inputs that a shard depends on."""
    about = about_evaluation(target, Request(cascade=False, search_dtype=search_dtype))
    of: dict[str, Any] = folder.plain({**about, "batch": target.settings.batch})
    return of


def _read(file: Path) -> dict[str, Any]:
    import numpy

    try:
        with numpy.load(file) as stored:
            about = json.loads(str(stored["provenance"]))
            made = {name: torch.from_numpy(stored[name]) for name in TENSORS}
        return {"shard": about["shard"], "of": about["of"], "made": made}
    except Exception as error:  # numpy and zipfile raise various exceptions for invalid files
        raise Incomplete(f"{file} is damaged: remove it and run its shard again") from error


def _joined(target: Target, parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The parts in the order of the target's samples."""
    together = {name: torch.cat([part[name] for part in parts]) for name in TENSORS}
    place = {int(i): at for at, i in enumerate(together["ids"])}
    order = torch.tensor([place[int(i)] for i in target.test()[2]])
    return {name: tensor[order] for name, tensor in together.items()}
