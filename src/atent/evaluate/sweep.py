"""Robust accuracy against the radius of the threat: security curves."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atent.attacks.base import Attack
from atent.attacks.spec import label, show
from atent.distributed import SINGLE, World
from atent.distributed.shards import Shard
from atent.evaluate.evaluation import evaluate, evaluate_shard
from atent.evaluate.outcomes import ROBUST
from atent.evaluate.samples import Checked
from atent.fields import shown
from atent.precision import SearchDtype
from atent.probe import Auto
from atent.progress import Advance
from atent.stats import share
from atent.threat import Radii, Threat, radius


def at_radii(
    attacks: Mapping[str, Attack] | Sequence[Attack], radii: Sequence[float | str]
) -> dict[tuple[str, float], Attack]:
    """Each attack at each radius, by (name, radius), radii ascending.

    Only eps changes: a step size at its default grows with it, one that is set remains. ValueError, in one line, for no
    attacks, no radii, a radius twice, one that is not a number of at least 0, for two attacks of one name, and for an
    attack with an eps for each sample, which a radius for all would replace.
    """
    if not isinstance(attacks, Mapping):
        names = [label(attack) for attack in attacks]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"two attacks are called {twice}: name them in a mapping, or remove one")
        attacks = dict(zip(names, attacks))
    if isinstance(radii, str) or not isinstance(radii, Iterable):
        raise ValueError(f"radii must be a list of numbers, got {shown(radii)}: write [0.1, 0.2] or ['8/255']")
    values = sorted(radius(r, "radius") for r in radii)
    if not attacks or not values:
        raise ValueError("a sweep needs one attack and one radius at least")
    again = next((a for a, b in itertools.pairwise(values) if a == b), None)
    if again is not None:
        raise ValueError(f"radius {again:g} is given twice: remove one")
    own = next((name for name, attack in attacks.items() if isinstance(_threat(attack).eps, Radii)), None)
    if own is not None:
        raise ValueError(f"a sweep has one radius for all samples, but {own} has an eps for each: give it one number")
    return {
        (name, r): replace(attack, threat=replace(attack.threat, eps=r))
        for name, attack in attacks.items()
        for r in values
    }


def sweep(
    model: nn.Module,
    x: Tensor | Checked,
    y: Tensor | None,
    attacks: Mapping[str, Attack] | Sequence[Attack],
    radii: Sequence[float | str],
    *,
    seed: int = 0,
    ids: Tensor | None = None,
    batch: int = 250,
    resume: str | Path | None = None,
    search_dtype: SearchDtype | Auto | None = None,
    channels_last: bool | Auto = False,
    folding: bool = True,
    blocks: bool = False,
    world: World = SINGLE,
    advance: Advance | None = None,
) -> list[dict[str, Any]]:
    """Robust accuracy under each attack alone, at each radius: security curves.

    Parameters
    ----------
    model, x, y
        As in `evaluate`.
    attacks
        Attacks in a list or by name; their own eps is replaced.
    radii
        Values of eps, numbers or fractions such as "8/255", all different.
    seed, ids, batch
        As in `evaluate`.
    resume
        As in `evaluate`; a sweep needs a file of its own.
    search_dtype, channels_last, folding, blocks, world
        As in `evaluate`.
    advance
        Called with the number of samples that are done, n for each radius and each of `rounds`, and a string.

    Returns
    -------
    list of dict
        A row for each attack and radius, radii ascending: attack (its name), norm, radius, threat (as text), clean,
        robust and monotone (shares with 95 % intervals), seconds, and where there are any, remarks (of the attack at
        this radius) and hint (on all rows), as in `Evaluation`. ``robust`` is the share that remains correctly
        classified under the attack at this radius; ``monotone`` counts a sample as fooled if the attack at this or any
        smaller radius fooled it, as the smaller ball lies in the larger one. Where the two differ, the attack was too
        weak at the larger radius.

    Raises
    ------
    ValueError
        In one line, as `at_radii` and `evaluate`.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import PGD
    >>> from atent.evaluate import sweep
    >>> model, x = torch.nn.Linear(4, 3), torch.rand(6, 4)
    >>> rows = sweep(model, x, model(x).argmax(1), [PGD(Threat("linf", 0.1), steps=3)], ["0", 0.1])
    >>> [(row["attack"], row["radius"]) for row in rows], rows[0]["robust"]["value"]
    ([('PGD-3', 0.0), ('PGD-3', 0.1)], 1.0)
    """
    jobs = at_radii(attacks, radii)
    named = _named(jobs)
    found = evaluate(
        model, x, y, named, seed=seed, ids=ids, batch=batch, resume=resume, cascade=False, search_dtype=search_dtype,
        channels_last=channels_last, folding=folding, blocks=blocks, world=world, advance=advance,
    )  # fmt: skip
    rows: list[dict[str, Any]] = []
    remaining: dict[str, Tensor] = {}
    for (name, r), (key, attack) in zip(jobs, named.items()):
        robust = torch.tensor([flag == ROBUST for flag in found.outcomes["attacks"][key]])
        remaining[name] = robust & remaining.get(name, robust)
        result = found.attacks[key]
        rows.append(
            {
                "attack": name,
                "norm": _threat(attack).norm,
                "radius": r,
                "threat": show(_threat(attack)),
                "clean": found.clean,
                "robust": result["robust"],
                "monotone": share(int(remaining[name].sum()), found.n),
                "seconds": result["seconds"],
                **({"remarks": result["remarks"]} if result.get("remarks") else {}),
                **({"hint": found.hint} if found.hint else {}),
            }
        )
    return rows


def sweep_shard(
    model: nn.Module, x: Checked, attacks: Mapping[str, Attack] | Sequence[Attack], radii: Sequence[float | str],
    shard: Shard, *, resume: str | Path, **how: Any,
) -> None:  # fmt: skip
    """The part of `sweep` with ``blocks`` that concerns the blocks of one shard; see `evaluate_shard`.

    Parameters
    ----------
    model
        As in `sweep`.
    x
        `Checked` samples.
    attacks, radii
        As in `sweep`.
    shard
        Which blocks.
    resume
        The file to which every batch is written.
    **how
        As in `sweep`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import FGSM
    >>> from atent.distributed.shards import Shard
    >>> from atent.evaluate import checked, sweep_shard
    >>> model, x = torch.nn.Linear(4, 3), torch.rand(6, 4)
    >>> samples = checked(model, x, model(x).argmax(1), None, [(0.0, 1.0)])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder) / "rows.jsonl"
    ...     sweep_shard(model, samples, [FGSM(Threat("linf", 0.1))], [0.1, 0.2], Shard(0, 2), resume=path, batch=2)
    ...     path.is_file()
    True
    """
    named = _named(at_radii(attacks, radii))
    evaluate_shard(model, x, None, named, shard, resume=resume, cascade=False, **how)


def _named(jobs: Mapping[tuple[str, float], Attack]) -> dict[str, Attack]:
    """The attacks of `at_radii` by a name for each."""
    named = {f"{name}, {show(_threat(attack))}": attack for (name, _), attack in jobs.items()}
    if len(named) == len(jobs):
        return named
    # Radii that agree in six digits have the same text.
    return {f"{name}, {r!r}": attack for (name, r), attack in jobs.items()}


def _threat(attack: Attack) -> Threat:
    return attack.threat
