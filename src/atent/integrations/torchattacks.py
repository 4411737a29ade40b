"""Attacks of this library as attacks of torchattacks."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from atent.attacks.base import Attack
from atent.guard import Mode
from atent.integrations.packages import needed


def attack(model: nn.Module, ours: Attack, *, seed: int = 0) -> Any:
    """An attack of torchattacks that runs ``ours``: ``attack(model, PGD(threat))(images, labels)``.

    Its modes and ``set_normalization_used`` are supported: with a normalisation, ``model`` takes normalised images, and
    the attack is in pixel units. Sample i of the batch uses the random stream of (seed, i).

    Parameters
    ----------
    model
        The network.
    ours
        The attack, with its threat.
    seed
        Seed of its random numbers.

    Returns
    -------
    object
        An attack of torchattacks.

    Raises
    ------
    ValueError
        In one line, if torchattacks cannot be used.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import PGD
    >>> from atent.integrations.torchattacks import attack
    >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
    >>> x, y = torch.rand(2, 1, 4, 4), torch.tensor([0, 1])
    >>> attack(network, PGD(Threat("linf", 0.1), steps=3))(x, y).shape
    torch.Size([2, 1, 4, 4])
    """
    base: Any = needed("torchattacks", "torchattacks.attack").Attack

    class Wrapped(base):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__(type(ours).__name__, model)
            self.eps = float(ours.threat.eps)
            self.supported_mode = ["default", "targeted"] if ours.aims else ["default"]

        def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
            place = inputs.device if self.device is None else self.device
            x, y = inputs.clone().detach().to(place), labels.clone().detach().to(place)
            if self.targeted:
                y = self.get_target_label(x, y)
            mode: Mode = "as-is" if self._model_training else "eval"
            return ours(_Network(self), x, y, seed=seed, targeted=self.targeted, mode=mode)

    return Wrapped()


class _Network(nn.Module):
    """The model of the attack, with its normalisation."""

    def __init__(self, owner: Any) -> None:
        super().__init__()
        self.model, self.ask = owner.model, owner.get_logits

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.ask(x)
        return logits
