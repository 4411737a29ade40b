"""Attacks of this library as attacks of foolbox."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from atent.attacks.base import Attack
from atent.integrations.packages import needed


def attack(ours: Attack, *, seed: int = 0) -> Any:
    """An attack of foolbox that runs ``ours``: ``attack(PGD(threat))(fmodel, images, labels, epsilons=[0.1, 0.2])``.

    An attack within eps is a ``FixedEpsilonAttack``, a minimum-norm attack a ``MinimizationAttack``. The epsilon of the
    call replaces that of the threat, and foolbox's bounds replace its box. Sample i of the batch uses the random stream
    of (seed, i), as in ``ours.run(model, images, labels, seed=seed)``.

    Parameters
    ----------
    ours
        An attack in linf, l2, l1, or l0 on elements.
    seed
        Seed of its random numbers.

    Returns
    -------
    object
        An attack of foolbox, a ``FixedEpsilonAttack`` or a ``MinimizationAttack``.

    Raises
    ------
    ValueError
        In one line: if foolbox cannot be used, and for a threat without a distance in foolbox.

    Examples
    --------
    >>> import foolbox
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import PGD
    >>> from atent.integrations.foolbox import attack
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
    >>> x, y = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    >>> theirs = foolbox.PyTorchModel(network, bounds=(0, 1))
    >>> _, clipped, success = attack(PGD(Threat("linf", 0.1), steps=3))(theirs, x, y, epsilons=[0.1, 0.2])
    >>> len(clipped), success.shape
    (2, torch.Size([2, 2]))
    """
    base = needed("foolbox", "foolbox.attacks.base")
    distances, criteria = needed("foolbox", "foolbox.distances"), needed("foolbox", "foolbox.criteria")
    ep = needed("foolbox", "eagerpy")
    fixed: Any = base.FixedEpsilonAttack
    smallest: Any = base.MinimizationAttack
    threat = ours.threat
    if threat.norm == "patch" or threat.group != "element":
        raise ValueError(f"foolbox has no {threat.norm} distance of groups: use linf, l2, l1, or l0 on elements")
    measure = getattr(distances, threat.norm)

    def found(model: Any, inputs: Any, criterion: Any, eps: float) -> Any:
        x, restore = ep.astensor_(inputs)
        targeted = isinstance(criterion, criteria.TargetedMisclassification)
        if not targeted and not isinstance(criterion, criteria.Misclassification):
            raise ValueError(f"{type(ours).__name__} takes labels or target classes, got {criterion}")
        labels = ep.astensor(criterion.target_classes if targeted else criterion.labels).raw
        box = (float(model.bounds.lower), float(model.bounds.upper))
        run = replace(ours, threat=replace(threat, eps=eps, box=box))
        return restore(ep.astensor(run(_Network(model), x.raw, labels, seed=seed, targeted=targeted)))

    class Fixed(fixed):  # type: ignore[misc]
        distance = measure

        def run(self, model: Any, inputs: Any, criterion: Any, *, epsilon: float, **_: Any) -> Any:
            return found(model, inputs, base.get_criterion(criterion), epsilon)

    class Smallest(smallest):  # type: ignore[misc]
        distance = measure

        def run(self, model: Any, inputs: Any, criterion: Any, *, early_stop: float | None = None, **_: Any) -> Any:
            return found(model, inputs, base.get_criterion(criterion), float("inf"))

    return Smallest() if ours.minimum_norm else Fixed()


class _Network(nn.Module):
    """A model of foolbox as a network."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.model(x)
        return logits
