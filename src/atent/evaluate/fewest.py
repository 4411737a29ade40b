"""The smallest whole budget at which an attack succeeds: how many pixels or patches a network withstands."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor, nn

from atent.attacks.base import Attack
from atent.checks import check_batch, check_number
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

    An upper bound of what an optimal adversary needs, and as fine as the attack is: bisection assumes that a larger
    budget never makes it fail. `atent.evaluate.norms` turns the numbers into a curve of robust accuracy and quantiles.

    Parameters
    ----------
    model, x, y
        Network, inputs (n, ...) in the box, and true labels (n,).
    attack
        An attack under a threat that counts, "l0" or "patch"; its own eps is replaced.
    most
        The largest k tried, at most as many as a sample has. Default: the eps of the threat, or all where it is inf.
    seed, ids
        Of the random numbers, as in `Attack.run`.
    batch
        Samples attacked at a time.
    advance
        Called with the number of samples that are done.

    Returns
    -------
    Tensor
        0 for misclassified samples, inf where the attack fails with ``most``.

    Raises
    ------
    ValueError
        For a threat that does not count, a ``most`` below 1 or above their number, and inputs or labels that no attack
        can use.
    """
    threat = attack.threat
    if threat.norm not in ("l0", "patch"):
        raise ValueError(f"fewest counts pixels or patches, got a threat in {threat.norm}: use an l0 or a patch threat")
    check_batch(x, y, threat.box)
    count = threat.blocks(x.shape[1:]).count
    limit = int(min(float(threat.eps), count)) if most is None else most
    check_number("most", limit, 1, whole=True)
    if limit > count:
        raise ValueError(f"most must be at most the number of {threat.units} of a sample, {count}, got {limit}")
    if threat.inner_eps is None:
        # The question is how many are enough: all of them is an answer.
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
    # An attack that changed fewer pixels than it might shows a smaller budget at once.
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
