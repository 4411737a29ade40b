"""Attacks of this library as attacks of the Adversarial Robustness Toolbox (ART)."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn

from atent.attacks.base import Attack
from atent.integrations.packages import needed


def attack(classifier: Any, ours: Attack, *, seed: int = 0, batch_size: int = 250) -> Any:
    """An ``EvasionAttack`` that runs ``ours``: ``attack(classifier, PGD(threat)).generate(x, y)``.

    Labels are class numbers or one-hot rows; by default they are the classifier's predictions, as in ART, so
    that errors on clean inputs count as robust. Sample i uses the random stream of (seed, i), in any batch.

    Parameters
    ----------
    classifier
        A ``PyTorchClassifier`` of logits whose preprocessing is inside the network.
    ours
        The attack; its threat's box is the classifier's ``clip_values``.
    seed
        Seed of its random numbers.
    batch_size
        Number of samples per batch.

    Returns
    -------
    object
        An ``EvasionAttack`` of ART.

    Raises
    ------
    ValueError
        In one line: if ART cannot be used, for preprocessing outside the network, and for another box.

    Examples
    --------
    >>> import numpy as np
    >>> import torch
    >>> from art.estimators.classification import PyTorchClassifier
    >>> from atent import Threat
    >>> from atent.attacks import PGD
    >>> from atent.integrations.art import attack
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> loss = torch.nn.CrossEntropyLoss()
    >>> classifier = PyTorchClassifier(network, loss, (1, 4, 4), 3, clip_values=(0.0, 1.0))
    >>> x = np.random.default_rng(0).random((2, 1, 4, 4), dtype=np.float32)
    >>> attack(classifier, PGD(Threat("linf", 0.1), steps=3)).generate(x, np.array([0, 1])).shape
    (2, 1, 4, 4)
    """
    base: Any = needed("art", "art.attacks").EvasionAttack
    estimators = needed("art", "art.estimators.classification")
    if not isinstance(classifier, estimators.PyTorchClassifier):
        raise ValueError(f"an ART PyTorchClassifier is needed, got a {type(classifier).__name__}")
    _check(classifier, ours)

    class Wrapped(base):  # type: ignore[misc]
        attack_params = (*base.attack_params, "seed", "batch_size")
        _estimator_requirements = (estimators.PyTorchClassifier,)

        def __init__(self) -> None:
            super().__init__(estimator=classifier)
            self.seed, self.batch_size = seed, batch_size

        def generate(self, x: np.ndarray, y: np.ndarray | None = None, **_: Any) -> np.ndarray:
            labels = classifier.predict(x) if y is None else np.asarray(y)
            labels = labels.argmax(1) if labels.ndim == 2 and labels.shape[1] > 1 else labels.reshape(-1)
            made = []
            for rows in torch.arange(len(x)).split(self.batch_size):
                place = classifier.device
                batch, true = (torch.from_numpy(np.array(a[rows.numpy()])).to(place) for a in (x, labels))
                found = ours(_network(classifier), batch, true, seed=self.seed, ids=rows, targeted=self.targeted)
                made.append(found.cpu().numpy())
            return np.concatenate(made) if made else np.array(x)

    return Wrapped()


def _network(classifier: Any) -> nn.Module:
    model: nn.Module = classifier.model
    return model


def _check(classifier: Any, ours: Attack) -> None:
    """ValueError for preprocessing that the network does not see, and for another box."""
    kept = [op for op in classifier.preprocessing_operations if not _is_identity(op)]
    if kept:
        names = ", ".join(type(op).__name__ for op in kept)
        raise ValueError(f"the classifier has {names} outside its network: put it inside, as atent.models.Normalize")
    box = classifier.clip_values
    if box is None:
        return
    low, high = (np.unique(np.asarray(edge, dtype=np.float64)) for edge in box)
    edges = (float(low[0]), float(high[0])) if len(low) == len(high) == 1 else None
    if edges is None or edges != ours.threat.box:
        shown = "per feature" if edges is None else f"({edges[0]:g}, {edges[1]:g})"
        raise ValueError(f"clip_values {shown} are not the threat's box {ours.threat.box}: set threat.box to them")


def _is_identity(op: Any) -> bool:
    """Whether a step subtracts 0 and divides by 1, ART's default."""
    mean, std = getattr(op, "mean", None), getattr(op, "std", None)
    return mean is not None and std is not None and bool(np.all(np.asarray(mean) == 0) and np.all(np.asarray(std) == 1))
