"""What every attack shares: the contract, and what one call does around the search."""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass, is_dataclass, replace
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from atent.attacks.oracle import Oracle
from atent.attacks.watch import Callback, Watch
from atent.checks import (
    Settings,
    as_inputs,
    as_labels,
    check_batch,
    check_seed,
    numbered,
)
from atent.guard import Mode, guard, outside_inference
from atent.precision import Lowered, SearchDtype, full_precision, images_last
from atent.registry import Registry
from atent.rng import Batch, PerSample, Streams, narrow, seed_from
from atent.threat import Threat, per_sample


class Outcome(NamedTuple):
    """What an attack did to n samples."""

    x_adv: Tensor
    """Adversarial inputs, the shape of x."""
    success: Tensor
    """bool (n,): the model misclassifies x_adv, or gives it its target, recomputed on that very tensor."""
    norm: Tensor
    """float64 (n,): distance to x in the threat's norm."""
    forwards: Tensor
    """int64 (n,): forward passes that each sample took part in."""
    backwards: Tensor
    """int64 (n,): backward passes that each sample took part in."""

    @property
    def robust(self) -> float:
        """The share of the samples on which the attack has no success; without targets the robust accuracy."""
        return 1 - self.success.double().mean().item()


@dataclass(frozen=True)
class Attack(metaclass=Settings):
    """The contract of an attack; a concrete one has a ``search`` method, and its own fields after ``threat``."""

    threat: Threat
    """What the adversary may change."""

    minimum_norm: ClassVar[bool] = False
    """The attack looks for the smallest change: ``search`` returns the smallest adversarial point that it found, x
    where it found none, and the threat's eps may be infinite; x is returned where the norm exceeds eps."""
    needs_gradient: ClassVar[bool] = True
    """The attack differentiates the model."""
    aims: ClassVar[bool] = False
    """The attack takes ``targeted=True``."""
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    """The norms of the threats that it takes: it is refused, in one line, where it is made with another."""

    @classmethod
    def able(cls, norm: str) -> list[str]:
        """The names of the attacks for a norm."""
        return [name for name, kind in ATTACKS.items() if norm in kind.norms]

    @property
    def stream(self) -> str:
        """The name that keys the attack's random numbers."""
        return type(self).__name__

    @property
    def passes(self) -> int:
        """The most forwards and backwards together that one sample can cost, the verdict's forward included."""
        raise TypeError(f"{type(self).__name__} has no passes: define how many one sample can cost at most")

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        """Adversarial inputs for ``x`` in the box; the model is frozen and guarded by the caller."""
        raise TypeError(f"{type(self).__name__} has no search: define search(oracle, x, y, streams)")

    def of(self, rows: Tensor) -> Attack:
        """The attack on some of the samples: itself where all have one eps."""
        threat: Threat = self.threat
        part = threat.take(rows)
        return self if part is threat else replace(self, threat=part)

    def parts(self) -> dict[str, Attack]:
        """The attacks that a composite one runs, by name, each on what is robust to those before; {}: none."""
        return {}

    def remarks(self, classes: int) -> list[str]:
        """What the attack does otherwise than its name says on a model of so few classes, a clause each."""
        return []

    def check_aims(self) -> None:
        """ValueError, in one line, for an attack that takes no targets."""
        if not self.aims:
            able = ", ".join(name for name, kind in ATTACKS.items() if kind.aims)
            raise ValueError(f"{type(self).__name__} takes no targets: use one of {able}, or targeted=False")

    def _checked(self, found: Any, x: Tensor) -> Tensor:
        """What a search found; ValueError where that is not adversarial inputs for ``x``."""
        if isinstance(found, Tensor) and found.shape == x.shape and found.is_floating_point():
            return found
        got = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        wanted = f"adversarial inputs, {x.dtype} of shape {tuple(x.shape)}"
        raise ValueError(f"{type(self).__name__}.search must return {wanted}, got {got}")

    def search_part(self, part: str, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        """What the part of that name finds, x where a minimum-norm one finds nothing within eps.

        ``streams`` are the composite's; the part has streams of its own in them, so that it finds the same in the
        composite's ``search`` and alone.
        """
        return self.parts()[part].bounded(oracle, x, y, streams.named(part))

    def bounded(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        """`search`, with x where a minimum-norm attack finds nothing within eps."""
        x_adv = self._checked(self.search(oracle, x, y, streams), x)
        if not self.minimum_norm:
            return x_adv
        threat: Threat = self.threat.take(oracle.rows)
        return torch.where(per_sample(threat.contains(x_adv, x), x), x_adv, x)

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None = None,
        *,
        seed: int = 0,
        ids: Tensor | None = None,
        rng: torch.Generator | None = None,
        mode: Mode = "eval",
        targeted: bool = False,
        callback: Callback | None = None,
    ) -> Tensor:
        """Adversarial inputs (n, ...) for inputs ``x`` in the box and true labels ``y`` (n,).

        With ``seed`` and ``ids`` (sample numbers, default 0 .. n-1) each sample draws from its own stream;
        with ``rng`` one stream serves the batch and the input checks are left out, as in training. The model
        is seen in ``mode`` and comes back as it was found. Arrays become tensors, see `atent.checks.as_inputs`.
        With ``targeted`` the labels are targets, and the attack wants the model to give them; ``callback(k, x_adv,
        loss)`` receives every point whose loss the attack computes, see `atent.attacks.watch.Watch`.
        ValueError for inputs that no attack can use, and for an attack without targets.
        """
        return self._guarded(model, x, y, seed, ids, rng, mode, targeted, callback)[0]

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None = None,
        *,
        seed: int = 0,
        ids: Tensor | None = None,
        rng: torch.Generator | None = None,
        mode: Mode = "eval",
        part: str | None = None,
        search_dtype: SearchDtype | None = None,
        channels_last: bool = False,
        targeted: bool = False,
        callback: Callback | None = None,
    ) -> Outcome:
        """As the call, with the verdict, the distances and the passes of each sample.

        ``part`` runs that part of a composite attack only. ``search_dtype`` searches under autocast (float32 models);
        the verdict is given in the model's own precision on the returned tensor, without autocast and TF32, and without
        ``rng`` the search too: a minimum-norm attack's points lie on the boundary, where rounding decides.
        ``channels_last`` shows the model images in that memory format: the same numbers to rounding, faster or slower
        as the network and the machine have it; where the model cannot take it, a warning says so, and images stay as
        they are.
        """
        if rng is None:
            x = as_inputs(x, model)
        x_adv, success, forwards, backwards = self._guarded(
            model, x, y, seed, ids, rng, mode, targeted, callback, part, search_dtype, channels_last, verdict=True
        )
        threat: Threat = self.threat
        return Outcome(x_adv, success, threat.distance(x_adv, threat.clamp(x.detach())), forwards, backwards)

    def _guarded(
        self, model: nn.Module, x: Tensor, y: Tensor | None, seed: int, ids: Tensor | None,
        rng: torch.Generator | None, mode: Mode, targeted: bool, callback: Callback | None, part: str | None = None,
        search_dtype: SearchDtype | None = None, channels_last: bool = False, *, verdict: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """`run` without the distances; ``success`` is empty where no ``verdict`` is asked for."""
        threat: Threat = self.threat
        streams: Streams
        if targeted:
            self.check_aims()
        if rng is None:
            x, seed = as_inputs(x, model), check_seed(seed)
        x, y = x.detach(), y if isinstance(y, Tensor) else as_labels(y)
        if x.is_inference() or y.is_inference():
            x, y = outside_inference(x), outside_inference(y)
        if not self.minimum_norm and threat.eps == math.inf:
            raise ValueError(
                f"{type(self).__name__} needs a finite eps, got inf: only minimum-norm attacks work without a budget"
            )
        if rng is None:
            check_batch(x, y, threat.box)
        threat.check_eps(x.shape[1:])
        if type(threat.eps) is not float:
            threat.check_samples(len(x))
        n, y = len(x), y.long()
        if rng is None:
            streams, inner = PerSample(seed, numbered(ids, n, x.device), self.stream), narrow(seed)
        else:
            streams, inner = Batch(rng), seed_from(rng)
        if n == 0:
            counters = torch.zeros(2, 0, dtype=torch.int64, device=x.device)
            return x.clone(), torch.zeros(0, dtype=torch.bool, device=x.device), *counters
        exact = rng is None and search_dtype is None
        with guard(model, mode=mode, seed=inner), full_precision(x.device) if exact else nullcontext():
            counters, clean = torch.zeros(2, n, dtype=torch.int64, device=x.device), threat.clamp(x)
            seen = model if search_dtype is None else Lowered(model, search_dtype)
            last = channels_last and images_last(model, clean)
            watch = None if callback is None else Watch(callback, clean)
            oracle = Oracle(seen, *counters, check=rng is None, channels_last=last, targeted=targeted, watch=watch)
            if part is not None:
                x_adv = self.search_part(part, oracle, clean, y, streams).detach()
            elif self.minimum_norm:
                x_adv = self.bounded(oracle, clean, y, streams).detach()
            else:
                x_adv = self._checked(self.search(oracle, clean, y, streams), clean).detach()
            if not verdict:
                return x_adv, torch.empty(0), *counters
            # The verdict is checked like the first pass: NaN logits would count as fooled.
            oracle.model, oracle.check = model, rng is None
            with full_precision(x.device):
                return x_adv, oracle.fooled(oracle.logits(x_adv, y), y), *counters


def _is_attack(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, Attack) and is_dataclass(found)


_PEERS = dict.fromkeys(("foolbox", "torchattacks", "adv_lib", "art", "pyautoattack"), "atent.integrations.peers")

ATTACKS: Registry[type[Attack]] = Registry(
    "attack", "atent.attacks", "atent.attacks", _is_attack, "a dataclass that inherits from atent.attacks.Attack",
    _PEERS,
)  # fmt: skip
"""Name -> class; recipes, the command line and the contract tests read it."""

attack = ATTACKS.register
"""Decorator that makes an attack known by its class's name."""
