"""The samples and batches that all attacks of an evaluation have in common."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor

from atent.attacks.base import Attack
from atent.attacks.eot import EoT
from atent.attacks.oracle import Loss
from atent.attacks.spec import plain, spell
from atent.attacks.wrapper import nest
from atent.distributed import SINGLE, World
from atent.distributed.shards import Shard
from atent.evaluate.answers import predict
from atent.evaluate.hints import Hints, collapse_hint, gradient_hint, normalisation_hint, one_class_hint
from atent.evaluate.ledger import NO_RESULT, Ledger, Result, code_of_attack
from atent.evaluate.outcomes import flags
from atent.evaluate.search import Search
from atent.evaluate.subject import gradient
from atent.independence import batch_hint, dependence, noise_hint
from atent.memory import Batches
from atent.progress import Advance
from atent.rng import narrow
from atent.stats import share
from atent.threat import Threat

_SLOPES = 100
"""Largest number of samples whose input gradients are computed for the hint."""


@dataclass(frozen=True, eq=False)
class Trial:
    """The samples, batches and files that all attacks of an evaluation have in common."""

    search: Search
    """Network, precision and memory format of the attacks."""
    x: Tensor
    """Inputs (n, ...)."""
    y: Tensor
    """True labels (n,)."""
    ids: Tensor
    """Sample numbers (n,)."""
    seed: int
    """Seed of the random numbers."""
    batch: int
    """Samples attacked at a time."""
    ledger: Ledger
    """The results of earlier calls."""
    advance: Advance | None
    """Receives the progress."""
    blocks: tuple[Tensor, ...] | None = None
    """Positions of the samples, ascending, that stay in separate batches for all attacks; None: each attack batches
    anew the samples that are robust to the attacks before it."""
    world: World = SINGLE
    """The ranks that share the batches."""
    own: int | None = None
    """The samples of which the displayed robust accuracy is a share; None: all."""

    @cached_property
    def batches(self) -> Batches:
        """The batches of all attacks: each begins with the batch size that memory allowed before."""
        return Batches("the evaluation")

    def hint(self, predicted: Tensor, hints: Hints, attacks: Sequence[Attack]) -> str | None:
        """One line on a mistake that the clean predictions suggest, if any; ``attacks``: those that follow."""
        right, model = (predicted == self.y).cpu(), self.search.model
        found = dependence(model, self.x, seed=narrow(self.seed), size=min(self.batch, len(self.x)))
        averaged = any(_averages(each) for each in attacks)

        def normalisation() -> str | None:
            return normalisation_hint(
                right, self.x, lambda z: predict(model, z, self.y, batch=self.batch, seed=self.seed), self.y
            )

        return (
            batch_hint(found)
            or (None if averaged else noise_hint(found))
            or (normalisation() if hints.check_inputs else None)
            or collapse_hint(predicted, self.y, hints)
            or one_class_hint(self.y, hints)
        )

    def slopes(self, attacks: Sequence[Attack], remaining: Tensor) -> str | None:
        """One line where the samples that are robust to the attacks have input gradients of zero, if any."""
        if not remaining.any():  # no pass over an empty batch, which a network may not support
            return None
        return gradient_hint(attacks, partial(self._flat, remaining.to(self.x.device)))

    def _flat(self, remaining: Tensor, loss: Loss) -> Tensor:
        """Which of at most 100 of these samples have an input gradient of zero, bool (n,)."""
        rows = remaining.nonzero().squeeze(1)
        most = min(_SLOPES, len(rows))
        rows = rows[torch.arange(most, device=rows.device) * len(rows) // most]
        x, y = self.x[rows].detach(), self.y[rows].long()
        grad = gradient(self.search.model, x, y, loss, seed=narrow(self.seed), batch=self.batch)
        return (grad.flatten(1) == 0).all(1)

    def attacks(
        self, named: Mapping[str, Attack], right: Tensor, cascade: bool | Literal["threat"], classes: int
    ) -> tuple[dict[str, dict[str, Any]], dict[str, str], Tensor, Tensor]:
        """Results and flags by attack, which of the samples that are ``right`` (n,) are robust to all attacks, and the
        class (n,) predicted after the first attack that fools a sample, -1 where none does."""
        results, outcomes, remaining = {}, {}, right.clone()
        turned = torch.full(right.shape, -1)
        left: dict[Threat | None, Tensor] = {}
        for name, attack in named.items():
            chain: Threat | None = attack.threat if cascade == "threat" else None
            before = left.get(chain, right) if cascade else right
            results[name], outcomes[name], left[chain], total = self.attack(name, attack, before)
            remarks = [*attack.remarks(classes), *total.remarks]
            results[name] |= {"remarks": remarks} if remarks else {}
            fooled = total.fooled & remaining[total.rows]
            turned[total.rows[fooled]] = total.predicted[fooled]
            remaining &= left[chain]
        return results, outcomes, remaining, turned

    def attack(self, name: str, attack: Attack, before: Tensor) -> tuple[dict[str, Any], str, Tensor, Result]:
        """The result of an attack on the samples that are robust ``before`` (n,), their flags, which are robust after
        it, and the results of its parts."""
        remaining, total, parts = before.clone(), NO_RESULT, {}
        for part in attack.parts() or [None]:
            found = self._results(name, attack, part, remaining)
            found = found if part is None else found.of_part(part)
            remaining[found.rows[found.fooled]] = False
            total = total.then(found)
            if part is not None:
                parts[part] = self._summary(found, remaining)
        result = {
            "attack": spell(attack),
            "threat": attack.threat.plain(),
            "settings": plain(attack),
            **({"code": code} if (code := code_of_attack(attack)) else {}),
            # A sample that several parts attacked counts once.
            **self._summary(total, remaining) | {"attacked": int(before.sum())},
        }
        return result | ({"parts": parts} if parts else {}), flags(before, before & ~remaining), remaining, total

    def _results(self, name: str, attack: Attack, part: str | None, remaining: Tensor) -> Result:
        """The result of the attack on the ``remaining`` samples, in their order; the same on every rank."""
        rows = remaining.nonzero().squeeze(1)
        groups = (
            [rows] if self.blocks is None else [left for block in self.blocks if len(left := block[remaining[block]])]
        )
        known, runs = self.ledger.divided(name, part, groups, self.batch)
        text = name if part is None else f"{name}, {part}"
        fooled = sum(int(result.fooled.sum()) for result in known)
        done = len(remaining) - len(rows) + sum(len(result.rows) for result in known)
        self._announce(done, text, len(rows) - fooled)
        if self.world.size > 1:
            pieces = [piece for run in runs for piece in run.split(self.batch)]
            runs = Shard(self.world.rank, self.world.size).of(pieces)
        made = []
        for run in runs:
            for result in self._attacked(attack, part, run):
                self.ledger.add(name, part, result)
                made.append(result)
                fooled += int(result.fooled.sum())
                self._announce(len(result.rows), text, len(rows) - fooled)
        if self.world.size > 1:
            own = sum(len(result.rows) for result in made)
            self.world.wait()
            made = [result for each in self.world.gather(made) for result in each]
            self._announce(sum(len(result.rows) for result in made) - own, text, len(rows) - fooled)
        return Result.joined([*known, *made])

    def _attacked(self, attack: Attack, part: str | None, run: Tensor) -> Iterator[Result]:
        """The results of the attack on the samples at these positions, a batch at a time."""

        def run_batch(chosen: slice) -> Result:
            begun, at = time.perf_counter(), run[chosen].to(self.x.device)
            remarks: list[str] = []
            outcome = self.search.attacked(
                attack.of(at), self.x[at], self.y[at], seed=self.seed, ids=self.ids[at], part=part,
                remark=remarks.append,
            )  # fmt: skip
            return Result(
                run[chosen], outcome.success.cpu(), outcome.norm.double().cpu(),
                self.search.classes(outcome, self.seed), int(outcome.forwards.sum()), int(outcome.backwards.sum()),
                time.perf_counter() - begun, tuple(dict.fromkeys(remarks)),
            )  # fmt: skip

        return (result for _, result in self.batches.over(len(run), self.batch, run_batch))

    def _announce(self, samples: int, text: str, remaining: int) -> None:
        if self.advance:
            self.advance(samples, f"{text} {100 * remaining / (self.own or len(self.x)):.1f} %")

    def _summary(self, result: Result, remaining: Tensor) -> dict[str, Any]:
        return {
            "attacked": len(result.rows),
            "robust": share(int(remaining.sum()), len(self.x)),
            "fooled": self.ids.cpu()[result.rows[result.fooled]].tolist(),
            "distance": _quantiles(result.distance[result.fooled]),
            "forwards": result.forwards,
            "backwards": result.backwards,
            "seconds": round(result.seconds, 3),
        }


def _quantiles(distance: Tensor) -> dict[str, float] | None:
    if not len(distance):
        return None
    values = distance.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=distance.dtype)).tolist()
    return dict(zip(("q10", "median", "q90"), values))


def _averages(attack: Attack) -> bool:
    """Whether an attack, or one that it runs, averages its gradients over several passes of a random model."""
    return any(getattr(run, "samples" if isinstance(run, EoT) else "eot", 1) > 1 for run in nest(attack))
