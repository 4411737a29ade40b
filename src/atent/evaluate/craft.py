"""Adversarial inputs, for a file, a figure, or another tool."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atent.attacks.base import Attack
from atent.attacks.spec import as_attack
from atent.checks import as_samples, check_number, check_seed, numbered
from atent.distributed.shards import Shard
from atent.evaluate.answers import predict
from atent.evaluate.search import prepare
from atent.precision import SearchDtype
from atent.probe import Auto
from atent.progress import Advance
from atent.runs import atomic, dumps


def craft(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None,
    attack: Attack,
    *,
    seed: int = 0,
    ids: Tensor | None = None,
    batch: int = 250,
    search_dtype: SearchDtype | Auto | None = None,
    channels_last: bool | Auto = False,
    folding: bool = True,
    shard: Shard | None = None,
    advance: Advance | None = None,
) -> dict[str, Tensor]:
    """Attack every sample, including those that are misclassified without an attack.

    Parameters
    ----------
    model
        From inputs to logits; it is evaluated in eval mode and comes back as it was.
    x, y
        Inputs (n, ...) in the attack's box and true labels (n,), tensors or arrays, or a DataLoader as ``x`` and None
        as ``y``.
    attack
        The attack.
    seed, ids
        They key the random numbers of every sample; sample numbers (n,), default: 0 .. n-1.
    batch
        Samples attacked at a time, 1 or more.
    search_dtype, channels_last, folding
        As in `evaluate`.
    shard
        Attack only its batches, each as it would be among all.
    advance
        Called with the number of samples that are done, and a string.

    Returns
    -------
    dict of str to Tensor
        On the CPU: x_adv and x (n, ...), y, ids, success (bool, the model misclassifies x_adv), predicted (its class of
        x_adv) and norm (float64, the distance of x_adv to x in the threat's norm), each (n,).

    Raises
    ------
    ValueError
        In one line, as `Attack.run`, for no samples, and for more shards than batches.
    """
    x, y = as_samples(x, y, model)
    if not len(x):
        raise ValueError("no samples to attack: give at least one")
    batch, seed = check_number("batch", batch, 1, whole=True), check_seed(seed)
    ids = numbered(ids, len(x), x.device)
    as_attack(attack).threat.check_samples(len(x))
    search = prepare(model, x, search_dtype=search_dtype, channels_last=channels_last, folding=folding)
    pieces = torch.arange(len(x), device=x.device).split(batch)
    if shard is not None:
        shard.check(len(x), batch)
        pieces = tuple(shard.of(pieces))
    found = []
    for some in pieces:
        found.append(search.attacked(attack.of(some), x[some], y[some], seed=seed, ids=ids[some])[:3])
        if advance:
            advance(len(some), "")
    x_adv, success, norm = (torch.cat(parts) for parts in zip(*found))
    x, y, ids = (tensor[torch.cat(pieces)] for tensor in (x, y, ids))
    predicted = predict(model, x_adv, y, batch=batch, seed=seed)
    made = {"x_adv": x_adv, "x": x, "y": y, "ids": ids, "success": success, "predicted": predicted, "norm": norm}
    return {name: tensor.detach().cpu() for name, tensor in made.items()}


def save(path: str | Path, made: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write an .npz of the tensors under their names, and of ``about`` as JSON text under "provenance", atomically.

    numpy.load reads it without pickle: `json.loads(str(file["provenance"]))`. Raises OSError of one line.
    """
    import numpy

    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in made.items()}
    with atomic(path) as temporary:
        numpy.savez_compressed(temporary, provenance=numpy.array(dumps(about)), **arrays)
