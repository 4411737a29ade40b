"""The smallest number of pixels or patches with which an attack succeeds."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from atent.attacks.base import Attack
from atent.attacks.spec import as_attack
from atent.checks import as_samples, check_batch, check_number
from atent.evaluate.outcomes import attacked
from atent.guard import ask, guard
from atent.progress import Advance
from atent.threat import Radii


@torch.no_grad()
def fewest(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    attack: Attack,
    *,
    most: int | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    batch: int = 250,
    advance: Advance | None = None,
) -> Tensor:
    """The smallest k at which ``attack`` fools each sample, by bisection, float64 (n,).

    An upper bound of the budget that an optimal adversary needs, as tight as the attack is strong: bisection assumes
    that a larger budget never makes it fail. `atent.evaluate.norms` gives the curve of robust accuracy and quantiles of
    these numbers.

    Parameters
    ----------
    model, x, y
        Network, inputs (n, ...) in the box, and true labels (n,).
    attack
        An attack under an l0 or a patch threat; its own eps is replaced.
    most
        The largest k tried, at most the number that a sample has. Default: the eps of the threat, or all where it is
        inf.
    seed, ids
        They key the random numbers, as in `Attack.run`.
    batch
        Samples attacked at a time.
    advance
        Called with the number of samples that are done, and a string.

    Returns
    -------
    Tensor
        0 for misclassified samples, inf where the attack fails with ``most``.

    Raises
    ------
    ValueError
        In one line, for another threat, a ``most`` below 1 or above the number of pixels or patches, and invalid inputs
        or labels.
    """
    threat = as_attack(attack).threat
    if threat.norm not in ("l0", "patch"):
        raise ValueError(f"fewest counts pixels or patches, got a threat in {threat.norm}: use an l0 or a patch threat")
    x, y = as_samples(x, y, model)
    check_batch(x, y, threat.box)
    count = threat.blocks(x.shape[1:]).count
    limit = int(min(float(threat.eps), count)) if most is None else most
    check_number("most", limit, 1, whole=True)
    if limit > count:
        raise ValueError(f"most must be at most the number of {threat.units} of a sample, {count}, got {limit}")
    if threat.inner_eps is None:
        # All pixels or patches are an admissible budget here.
        attack = replace(attack, threat=replace(threat, allow_large_eps=True))
    numbers = torch.arange(len(x)) if ids is None else torch.as_tensor(ids)
    found = [
        _bisected(model, x[rows], y[rows], attack, limit, seed, numbers[rows], advance)
        for rows in torch.arange(len(x)).split(batch)
    ]
    return torch.cat(found) if found else torch.zeros(0, dtype=torch.float64)


def _bisected(
    model: nn.Module, x: Tensor, y: Tensor, attack: Attack, most: int, seed: int, ids: Tensor, advance: Advance | None
) -> Tensor:
    """`fewest` of one batch."""

    def succeeds(rows: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        here = replace(attack, threat=replace(attack.threat, eps=Radii(k.tolist())))
        out = attacked(here, model, x[rows], y[rows], seed=seed, ids=ids[rows])
        return out.success, out.norm

    with guard(model, mode="eval", seed=seed):
        wrong = (ask(model, x).argmax(1) != y).cpu()
    every = torch.arange(len(x))
    fooled, used = succeeds(every, torch.full((len(x),), float(most), dtype=torch.float64))
    # An attack that changed fewer pixels than allowed gives a smaller upper bound.
    high = torch.where(wrong, 0.0, torch.where(fooled.cpu(), used.cpu(), math.inf))
    low = torch.zeros(len(x), dtype=torch.float64)
    while len(rows := ((high - low > 1) & high.isfinite()).nonzero().squeeze(1)):
        middle = ((low[rows] + high[rows]) / 2).floor()
        fooled, used = succeeds(rows, middle)
        high[rows] = torch.where(fooled.cpu(), used.cpu(), high[rows])
        low[rows] = torch.where(fooled.cpu(), low[rows], middle)
    if advance is not None:
        advance(len(x), "")
    return high
