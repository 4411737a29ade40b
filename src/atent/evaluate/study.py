"""The common part of studies of corruptions, frequencies and transfer: samples, batches, a file to resume from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atent.attacks.base import Attack
from atent.checks import check_number, check_seed
from atent.data.corruptions import check_images
from atent.evaluate.answers import predict
from atent.evaluate.ledger import fingerprint
from atent.evaluate.lines import Lines, Notes, Resume, ShardFile
from atent.evaluate.samples import Checked, checked
from atent.fields import shown
from atent.geometry.values import as_box
from atent.guard import outside_inference
from atent.progress import Advance
from atent.threat import Box, Threat


def listed(names: Any, kind: str) -> tuple[str, ...] | None:
    """The names of what is measured; None for all. ValueError, in one line, for anything but a list of names."""
    if names is None:
        return None
    if isinstance(names, str) or not isinstance(names, Iterable):
        raise ValueError(f"names must be a list of {kind}s, got {shown(names)}: write [{shown(names)}]")
    made = tuple(names)
    if not made:
        raise ValueError(f"names is empty: give at least one {kind}, or None for all")
    if (twice := next((name for name in made if made.count(name) > 1), None)) is not None:
        raise ValueError(f"{kind} {shown(twice)} is given twice: omit one, as means would count both")
    return made


@dataclass(frozen=True, eq=False)
class Study:
    """Samples on which models are evaluated many times, batch by batch; see `study`."""

    model: nn.Module
    """The model under study."""
    x: Tensor
    """Inputs (n, ...) in the box."""
    y: Tensor
    """True labels (n,)."""
    ids: Tensor
    """Sample numbers (n,)."""
    box: Box
    """Smallest and largest legal value."""
    seed: int
    """Seed of the random numbers."""
    batch: int
    """Samples at a time."""
    notes: Notes
    """Results by key, stored in the file to resume from."""
    advance: Advance | None
    """Receives the progress."""

    @property
    def n(self) -> int:
        return len(self.x)

    def batches(self, of: Tensor | None = None) -> Iterator[tuple[str, Tensor]]:
        """A key for each batch, and the positions of its samples; ``of`` (m,): only these positions."""
        places = torch.arange(self.n, device=self.x.device) if of is None else of.to(self.x.device)
        for start in range(0, len(places), self.batch):
            yield str(start), places[start : start + self.batch]

    def predicted(self, model: nn.Module, x: Tensor, at: Tensor) -> Tensor:
        """The model's classes (m,) for ``x``, inputs of the samples ``at`` these positions (m,)."""
        return predict(model, x, self.y[at], batch=self.batch, seed=self.seed)

    def wrong(self, model: nn.Module, x: Tensor, at: Tensor) -> list[int]:
        """Whether the model misclassifies each of ``x``, inputs of the samples ``at`` these positions: 0 or 1."""
        found: list[int] = (self.predicted(model, x, at) != self.y[at]).int().tolist()
        return found

    def right(self) -> Tensor:
        """Whether the model classifies each clean sample correctly, bool (n,), on the CPU."""
        return (predict(self.model, self.x, self.y, batch=self.batch, seed=self.seed) == self.y).cpu()

    def unit(self, x: Tensor) -> Tensor:
        """Images in the box, scaled to [0, 1]."""
        low, high = self._edges(x)
        scaled: Tensor = (x - low) / (high - low)
        return scaled

    def boxed(self, x: Tensor) -> Tensor:
        """Images in [0, 1], scaled to the box."""
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
    """The first line of the file of a `study` with these arguments."""
    x, y, ids = samples.x, samples.y.long(), samples.ids
    about = fingerprint(model, x, y, ids, attacks or {}, seed=seed, batch=batch, box=list(box), **settings)
    others = {name: fingerprint(m, x[:0], y[:0], ids[:0], {})["model"] for name, m in (models or {}).items()}
    return {**about, "others": others}


def study(
    kind: str, model: nn.Module, x: Tensor | Checked, y: Tensor | None, *, box: Box, seed: int, ids: Tensor | None,
    batch: int, resume: Resume, advance: Advance | None, attacks: Mapping[str, Attack] | None = None,
    models: Mapping[str, nn.Module] | None = None, images: bool = True, **settings: Any,
) -> Study:  # fmt: skip
    """The study of that ``kind``; the file to resume from records all that it depends on, with the ``settings``.

    ``models`` are further ones that are evaluated. ValueError, in one line, for samples outside the box or, with
    ``images``, that are not images, for fewer than two samples, and for a file of another study.
    """
    batch, seed = check_number("batch", batch, 1, whole=True), check_seed(seed)
    box = as_box(box)
    found = checked(model, x, y, ids, {box})
    if images:
        check_images(found.x.shape[1:])
    if len(found.x) < 2:
        raise ValueError(f"a {kind} needs two samples or more, got {len(found.x)}: give more samples (--limit)")
    x, y, ids = outside_inference(found.x), outside_inference(found.y).long(), found.ids
    lines, shared = Lines(None, kind), resume if isinstance(resume, ShardFile) else None
    path, rank = (resume.path, resume.rank) if isinstance(resume, ShardFile) else (resume, 0)
    if path is not None:
        about = depends_on(
            model, found, box=box, seed=seed, batch=batch, attacks=attacks, models=models, **settings
        )  # fmt: skip
        lines = Lines(path, kind, about, valid=lambda row: isinstance(row.get("key"), str), rank=rank)
    return Study(model, x, y, ids, box, seed, batch, Notes(lines, shared.shard if shared else None), advance)
