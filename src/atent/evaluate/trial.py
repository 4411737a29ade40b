"""What every attack of an evaluation meets, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor

from atent.attacks.base import Attack
from atent.attacks.spec import plain, spell
from atent.distributed import SINGLE, World
from atent.distributed.shards import Shard
from atent.evaluate.answers import predict
from atent.evaluate.hints import collapse_hint, normalisation_hint, one_class_hint
from atent.evaluate.ledger import NOTHING, Ledger, Met
from atent.evaluate.outcomes import flags
from atent.evaluate.search import Search
from atent.independence import dependence_hint
from atent.memory import Batches
from atent.progress import Advance
from atent.rng import narrow
from atent.stats import share
from atent.threat import Threat


@dataclass(frozen=True, eq=False)
class Trial:
    """What every attack of an evaluation meets."""

    search: Search
    x: Tensor
    y: Tensor
    ids: Tensor
    seed: int
    batch: int
    ledger: Ledger
    advance: Advance | None
    blocks: tuple[Tensor, ...] | None = None
    """Places of the samples, ascending, that stay in batches of their own for all attacks; None: each attack packs anew
    what the attacks before it left of all samples."""
    world: World = SINGLE
    """The ranks that share the batches."""

    @cached_property
    def batches(self) -> Batches:
        """The batches of all attacks: what memory allowed one is what the next begins with."""
        return Batches("the evaluation")

    def hint(self, predicted: Tensor) -> str | None:
        """One line on a mistake that the clean predictions suggest."""
        right, model = (predicted == self.y).cpu(), self.search.model
        return (
            dependence_hint(model, self.x, seed=narrow(self.seed), size=min(self.batch, len(self.x)))
            or normalisation_hint(right, self.x, lambda z: predict(model, z, self.y, batch=self.batch), self.y)
            or collapse_hint(predicted, self.y)
            or one_class_hint(self.y)
        )

    def attacks(
        self, named: Mapping[str, Attack], right: Tensor, cascade: bool | Literal["threat"], classes: int
    ) -> tuple[dict[str, dict[str, Any]], dict[str, str], Tensor, Tensor]:
        """Results and flags by attack, which of the samples that are ``right`` (n,) are robust to all of them, and the
        class (n,) that the first attack to fool a sample turned it into, -1 where none did."""
        results, outcomes, remaining = {}, {}, right.clone()
        turned = torch.full(right.shape, -1)
        left: dict[Threat | None, Tensor] = {}
        for name, attack in named.items():
            chain: Threat | None = attack.threat if cascade == "threat" else None
            before = left.get(chain, right) if cascade else right
            results[name], outcomes[name], left[chain], whole = self.attack(name, attack, before)
            remarks = attack.remarks(classes)
            results[name] |= {"remarks": remarks} if remarks else {}
            remaining &= left[chain]
            fooled = whole.fooled & (turned[whole.rows] == -1)
            turned[whole.rows[fooled]] = whole.predicted[fooled]
        return results, outcomes, remaining, turned

    def attack(self, name: str, attack: Attack, before: Tensor) -> tuple[dict[str, Any], str, Tensor, Met]:
        """The result of an attack on the samples that are robust ``before`` (n,), their flags, which are robust after
        it, and what its parts did."""
        remaining, whole, parts = before.clone(), NOTHING, {}
        for part in attack.parts() or [None]:
            met = self._meet(name, attack, part, remaining)
            remaining[met.rows[met.fooled]] = False
            whole = whole.then(met)
            if part is not None:
                parts[part] = self._summary(met, remaining)
        result = {
            "attack": spell(attack),
            "threat": attack.threat.plain(),
            "settings": plain(attack),
            # A sample that several parts met was attacked once.
            **self._summary(whole, remaining) | {"attacked": int(before.sum())},
        }
        return result | ({"parts": parts} if parts else {}), flags(before, before & ~remaining), remaining, whole

    def _meet(self, name: str, attack: Attack, part: str | None, remaining: Tensor) -> Met:
        """What the attack does to the samples that ``remain``, in their order; the same on every rank."""
        rows = remaining.nonzero().squeeze(1)
        groups = (
            [rows] if self.blocks is None else [kept for block in self.blocks if len(kept := block[remaining[block]])]
        )
        known, runs = self.ledger.divided(name, part, groups, self.batch)
        text = name if part is None else f"{name}, {part}"
        fooled = sum(int(met.fooled.sum()) for met in known)
        done = len(remaining) - len(rows) + sum(len(met.rows) for met in known)
        self._announce(done, text, len(rows) - fooled)
        if self.world.size > 1:
            pieces = [piece for run in runs for piece in run.split(self.batch)]
            runs = Shard(self.world.rank, self.world.size).of(pieces)
        made = []
        for run in runs:
            for met in self._attacked(attack, part, run):
                self.ledger.add(name, part, met)
                made.append(met)
                fooled += int(met.fooled.sum())
                self._announce(len(met.rows), text, len(rows) - fooled)
        if self.world.size > 1:
            own = sum(len(met.rows) for met in made)
            self.world.wait()
            made = [met for each in self.world.gather(made) for met in each]
            self._announce(sum(len(met.rows) for met in made) - own, text, len(rows) - fooled)
        return Met.joined([*known, *made])

    def _attacked(self, attack: Attack, part: str | None, run: Tensor) -> Iterator[Met]:
        """What the attack does to the samples at these places, a batch at a time."""

        def meet(chosen: slice) -> Met:
            begun, at = time.perf_counter(), run[chosen].to(self.x.device)
            outcome = self.search.attacked(
                attack.of(at), self.x[at], self.y[at], seed=self.seed, ids=self.ids[at], part=part
            )
            return Met(
                run[chosen], outcome.success.cpu(), outcome.norm.double().cpu(),
                self.search.classes(outcome, self.seed), int(outcome.forwards.sum()), int(outcome.backwards.sum()),
                time.perf_counter() - begun,
            )  # fmt: skip

        return (met for _, met in self.batches.over(len(run), self.batch, meet))

    def _announce(self, samples: int, text: str, remaining: int) -> None:
        if self.advance:
            self.advance(samples, f"{text} {100 * remaining / len(self.x):.1f} %")

    def _summary(self, met: Met, remaining: Tensor) -> dict[str, Any]:
        return {
            "attacked": len(met.rows),
            "robust": share(int(remaining.sum()), len(self.x)),
            "fooled": self.ids.cpu()[met.rows[met.fooled]].tolist(),
            "distance": _quantiles(met.distance[met.fooled]),
            "forwards": met.forwards,
            "backwards": met.backwards,
            "seconds": round(met.seconds, 3),
        }


def _quantiles(distance: Tensor) -> dict[str, float] | None:
    if not len(distance):
        return None
    values = distance.quantile(torch.tensor([0.1, 0.5, 0.9], dtype=distance.dtype)).tolist()
    return dict(zip(("q10", "median", "q90"), values))
