"""What the studies of corruptions, frequencies and transfer share: checked samples, batches, a file to resume from."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atent.attacks.base import Attack
from atent.checks import check_number, check_seed
from atent.data.corruptions import check_images
from atent.evaluate.answers import predict
from atent.evaluate.ledger import fingerprint
from atent.evaluate.lines import Lines, Notes, Portion, Resume
from atent.evaluate.samples import Checked, checked
from atent.geometry.values import as_box
from atent.guard import outside_inference
from atent.progress import Advance
from atent.threat import Box, Threat


@dataclass(frozen=True, eq=False)
class Study:
    """Images on which a model is asked again and again, batch by batch; see `study`."""

    model: nn.Module
    x: Tensor
    y: Tensor
    ids: Tensor
    box: Box
    seed: int
    batch: int
    notes: Notes
    advance: Advance | None

    @property
    def n(self) -> int:
        return len(self.x)

    def batches(self, of: Tensor | None = None) -> Iterator[tuple[str, Tensor]]:
        """A key for each batch, and the places of its samples; ``of`` (m,): only of these places."""
        places = torch.arange(self.n, device=self.x.device) if of is None else of.to(self.x.device)
        for start in range(0, len(places), self.batch):
            yield str(start), places[start : start + self.batch]

    def wrong(self, model: nn.Module, x: Tensor, at: Tensor) -> list[int]:
        """For each of the samples ``at`` these places whether the model misclassifies ``x``, 0 or 1."""
        found: list[int] = (predict(model, x, self.y[at], batch=self.batch) != self.y[at]).int().tolist()
        return found

    def right(self) -> Tensor:
        """Whether the model classifies each clean sample correctly, bool (n,), on the CPU."""
        return (predict(self.model, self.x, self.y, batch=self.batch) == self.y).cpu()

    def unit(self, x: Tensor) -> Tensor:
        """Images of the box in [0, 1]."""
        low, high = self._edges(x)
        scaled: Tensor = (x - low) / (high - low)
        return scaled

    def boxed(self, x: Tensor) -> Tensor:
        """Images of [0, 1] in the box."""
        low, high = self._edges(x)
        scaled: Tensor = low + (high - low) * x
        return scaled

    def _edges(self, x: Tensor) -> tuple[Any, Any]:
        edges: tuple[Any, Any] = Threat("linf", 0.0, self.box).edges(x)
        return edges

    def step(self, samples: int, text: str) -> None:
        """Report progress."""
        if self.advance:
            self.advance(samples, text)


def depends_on(
    model: nn.Module, samples: Checked, *, box: Box, seed: int, batch: int,
    attacks: Mapping[str, Attack] | None = None, models: Mapping[str, nn.Module] | None = None, **settings: Any,
) -> dict[str, Any]:  # fmt: skip
    """What a `study` of these arguments writes into the first line of its file."""
    x, y, ids = samples.x, samples.y.long(), samples.ids
    about = fingerprint(model, x, y, ids, attacks or {}, seed=seed, batch=batch, box=list(box), **settings)
    others = {name: fingerprint(m, x[:0], y[:0], ids[:0], {})["model"] for name, m in (models or {}).items()}
    return {**about, "others": others}


def study(
    kind: str, model: nn.Module, x: Tensor | Checked, y: Tensor | None, *, box: Box, seed: int, ids: Tensor | None,
    batch: int, resume: Resume, advance: Advance | None, attacks: Mapping[str, Attack] | None = None,
    models: Mapping[str, nn.Module] | None = None, images: bool = True, **settings: Any,
) -> Study:  # fmt: skip
    """The study of that ``kind``; what it depends on, with the ``settings``, goes into the file to resume from.

    ``models`` are further ones that are asked. ValueError, in one line, for samples that are not in the box or, with
    ``images``, are not images, for fewer than two of them, and for a file of another study.
    """
    batch, seed = check_number("batch", batch, 1, whole=True), check_seed(seed)
    box = as_box(box)
    found = checked(model, x, y, ids, {box})
    if images:
        check_images(found.x.shape[1:])
    if len(found.x) < 2:
        raise ValueError(f"a {kind} needs two samples or more, got {len(found.x)}: raise the limit")
    x, y, ids = outside_inference(found.x), outside_inference(found.y).long(), found.ids
    lines, portion = Lines(None, kind), resume if isinstance(resume, Portion) else None
    path, rank = (resume.path, resume.rank) if isinstance(resume, Portion) else (resume, 0)
    if path is not None:
        about = depends_on(
            model, found, box=box, seed=seed, batch=batch, attacks=attacks, models=models, **settings
        )  # fmt: skip
        lines = Lines(path, kind, about, valid=lambda row: isinstance(row.get("key"), str), rank=rank)
    return Study(model, x, y, ids, box, seed, batch, Notes(lines, portion.shard if portion else None), advance)
