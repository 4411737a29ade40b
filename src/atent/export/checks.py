"""Comparison of an exported network with the original on the same clean and adversarial images."""

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
"""Allowed difference of logits, in multiples of the rounding error of the network itself."""

Run = Callable[[Tensor], Tensor]
"""Inputs of shape (n, ...) to logits."""


@dataclass(frozen=True)
class Inputs:
    """The images of the comparison."""

    clean: Tensor
    labels: Tensor
    ids: Tensor
    adversarial: Tensor
    kind: str
    """Description of the adversarial images."""

    @property
    def all(self) -> Tensor:
        """Clean images, then the adversarial ones."""
        return torch.cat([self.clean, self.adversarial])


@dataclass(frozen=True)
class Check:
    """Result of the comparison of an exported network with the original."""

    inputs: str
    """Description of the images."""
    difference: float
    """The largest difference of a logit."""
    tolerance: float
    unequal: int
    """Images with another prediction although their two largest logits differ by more than twice the tolerance."""
    ties: int
    """Images whose two largest logits differ by at most that."""

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
    """The target's test images, and adversarial ones by PGD; without a threat, uniform random points of the box."""
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

    The rounding error of the network is its difference from the same network in float64. Another program adds the same
    products in another order, so its rounding error is of the same size: the tolerance is `ROUNDINGS` times the sum of
    it and of one unit in the last place of the largest logit. If the network cannot run in float64, the rounding error
    is taken as `ROUNDINGS` units.
    """
    logits = _in_parts(model, x)
    unit = torch.finfo(logits.dtype).eps * float(logits.abs().max())
    try:
        rounding = float((logits.double() - _in_parts(copy.deepcopy(model).double(), x.double())).abs().max())
    except RuntimeError:  # a forward pass that creates tensors of single precision
        rounding = ROUNDINGS * unit
    return ROUNDINGS * (rounding + unit)


def _in_parts(run: Run, x: Tensor, size: int = 250) -> Tensor:
    """The logits of ``run``, in batches of ``size``."""
    with torch.no_grad():
        return torch.cat([run(part) for part in x.split(size)])


def compared(model: nn.Module, run: Run, inputs: Inputs, batches: Sequence[int]) -> Check:
    """``run`` compared with ``model``, in batches of each of these sizes; batches of 1 on 10 images of each kind.
    ValueError where the shapes of the outputs differ."""
    model = copy.deepcopy(model).cpu().eval()
    x = inputs.all
    allowed = tolerance(model, x)
    logits = _in_parts(model, x)
    top = logits.topk(2, dim=1).values
    clear = top[:, 0] - top[:, 1] > 2 * allowed
    found = Check(_words(inputs, batches), 0.0, allowed, 0, int((~clear).sum()))
    for size in batches:
        # The first are clean, the last adversarial.
        some = torch.arange(len(x)) if size > 1 else torch.cat([torch.arange(len(x))[:10], torch.arange(len(x))[-10:]])
        other = _in_parts(run, x[some], size).to(logits.dtype)
        if other.shape != logits[some].shape:
            raise ValueError(f"the exported network returns {tuple(other.shape)}, the network {tuple(logits.shape)}")
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
