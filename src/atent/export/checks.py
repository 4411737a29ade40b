"""Whether an exported network is the network: both on the same clean and adversarial images."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from atent.attacks import PGD
from atent.attacks.spec import show
from atent.experiments.target import Target

ROUNDINGS = 32
"""How many times the rounding of the network itself the logits of an exported one may differ."""

Run = Callable[[Tensor], Tensor]
"""Inputs of shape (n, ...) to logits."""


@dataclass(frozen=True)
class Inputs:
    """What a file is checked on."""

    clean: Tensor
    labels: Tensor
    ids: Tensor
    adversarial: Tensor
    kind: str
    """What the adversarial images are, in words."""

    @property
    def all(self) -> Tensor:
        """Clean images, then the adversarial ones."""
        return torch.cat([self.clean, self.adversarial])


@dataclass(frozen=True)
class Check:
    """How far an exported network is from the network."""

    inputs: str
    """The images, in words."""
    difference: float
    """The largest difference of a logit."""
    tolerance: float
    unequal: int
    """Images with another prediction, where the two largest logits are further apart than the tolerance allows."""
    ties: int
    """Images whose two largest logits are closer than that."""

    @property
    def passed(self) -> bool:
        """Whether logits and predictions agree."""
        return self.difference <= self.tolerance and self.unequal == 0

    @property
    def text(self) -> str:
        """One line."""
        verdict = "predictions equal" if not self.unequal else f"{self.unequal} predictions differ"
        ties = f", {self.ties} within the tolerance" if self.ties else ""
        return (
            f"{self.inputs}: largest difference of a logit {self.difference:.3g}, tolerance {self.tolerance:.3g};"
            f" {verdict}{ties}"
        )


def inputs_of(target: Target) -> Inputs:
    """The target's test images, and adversarial ones that PGD finds from them; without a threat, points of the box
    chosen uniformly at random."""
    x, y, ids = (t.cpu() for t in target.test())
    threat, seed = target.threat, target.settings.seed
    if threat is not None and threat.eps != math.inf:
        device, found = _device(target.model), []
        for rows in torch.arange(len(x)).split(target.settings.batch):
            given = x[rows].to(device), y[rows].to(device)
            found.append(PGD(threat, steps=20)(target.model, *given, seed=seed, ids=ids[rows]).cpu())
        return Inputs(x, y, ids, torch.cat(found), f"adversarial ones (PGD-20, {show(threat)})")
    low, high = (torch.as_tensor(side, dtype=x.dtype) for side in target.data.box)
    low, high = (side.reshape(-1, *[1] * (x.dim() - 2)) if side.dim() else side for side in (low, high))
    noise = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed), dtype=x.dtype)
    return Inputs(x, y, ids, low + (high - low) * noise, "points of the box, uniformly at random")


def _device(model: nn.Module) -> torch.device:
    return next((p.device for p in model.parameters()), torch.device("cpu"))


def tolerance(model: nn.Module, x: Tensor) -> float:
    """The largest difference of a logit that rounding explains.

    The network's own rounding is measured against itself in float64. Another program adds the same products in another
    order, so its rounding is of the same size: `ROUNDINGS` times it are allowed, and as many units in the last place
    of the largest logit. A network that has no form in float64 is given `ROUNDINGS` units for the rounding.
    """
    logits = _in_parts(model, x)
    unit = torch.finfo(logits.dtype).eps * float(logits.abs().max())
    try:
        rounding = float((logits.double() - _in_parts(copy.deepcopy(model).double(), x.double())).abs().max())
    except RuntimeError:  # a forward pass that makes tensors of single precision
        rounding = ROUNDINGS * unit
    return ROUNDINGS * (rounding + unit)


def _in_parts(run: Run, x: Tensor, size: int = 250) -> Tensor:
    """What ``run`` gives, in batches of ``size``."""
    with torch.no_grad():
        return torch.cat([run(part) for part in x.split(size)])


def compared(model: nn.Module, run: Run, inputs: Inputs, batches: Sequence[int]) -> Check:
    """What ``run`` gives beside ``model``, in batches of each of these sizes; a batch of 1 on the first 20 images."""
    model = copy.deepcopy(model).cpu().eval()
    x = inputs.all
    allowed = tolerance(model, x)
    logits = _in_parts(model, x)
    top = logits.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > 2 * allowed
    found = Check(_words(inputs, batches), 0.0, allowed, 0, int((~clear).sum()))
    for size in batches:
        # Both kinds of images are at the ends.
        some = torch.arange(len(x)) if size > 1 else torch.cat([torch.arange(len(x))[:10], torch.arange(len(x))[-10:]])
        other = _in_parts(run, x[some], size).to(logits.dtype)
        if other.shape != logits[some].shape:
            raise ValueError(f"the exported network gives {tuple(other.shape)}, the network {tuple(logits.shape)}")
        difference = (other - logits[some]).abs().nan_to_num(torch.inf).max()
        unequal = (other.argmax(1) != logits[some].argmax(1)) & clear[some]
        found = replace(
            found, difference=max(found.difference, float(difference)), unequal=max(found.unequal, int(unequal.sum()))
        )
    return found


def _words(inputs: Inputs, batches: Sequence[int]) -> str:
    sizes = " and ".join(map(str, batches))
    n = len(inputs.clean)
    return f"{n} test images and {n} {inputs.kind}, batches of {sizes}"
