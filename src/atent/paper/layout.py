"""The structure of a table of the paper: rows, columns and cells, with the network and the measure of each cell."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Training:
    """One network: a recipe, and what is changed in it. Trainings of one name and scale are the same run."""

    recipe: str
    changes: dict[str, Any] = field(default_factory=dict)
    """Changes by section and field, applied after those of the recipe and the scale."""
    label: str = ""
    """Name of its run folder; default: the recipe's name."""
    after: Training | None = None
    """The training, of the same seed, whose best weights initialise this one."""

    @property
    def name(self) -> str:
        return self.label or self.recipe


@dataclass(frozen=True)
class Measure:
    """A measurement of a trained network, on a stratified sample of ``n`` test images (the paper specifies none)."""

    kind: Literal["clean", "attack", "smoothing", "bounds"]
    n: int
    attack: str = ""
    """attack: as text, with norm and eps."""
    sigma: float = 0.0
    """smoothing: noise in pixel units."""
    samples: int = 0
    """smoothing: noise samples per image."""
    predicted: int = 0
    """smoothing: noise samples of PREDICT, where a sequential test of ``samples`` at most certifies. Default: all
    ``samples`` serve both."""
    radius: float | str = 0.0
    """smoothing: the l2 radius; bounds: the linf one."""
    method: str = ""
    """bounds: which."""
    show: Literal["share", "clean", "smoothed", "certified", "seconds"] = "share"
    """Which figure of it the cell shows."""

    @property
    def key(self) -> str:
        """Measures with one key are measured once."""
        return {
            "clean": "natural",  # as in files of measures that are there already
            "attack": self.attack,
            "smoothing": f"smoothing, sigma {self.sigma:g}, {self._draws} draws, l2 {self.radius}",
            "bounds": f"{self.method}, linf {self.radius}",
        }[self.kind] + f", stratified {self.n}"

    @property
    def _draws(self) -> str:
        return f"{self.predicted} and at most {self.samples}" if self.predicted else str(self.samples)

    @property
    def unit(self) -> str:
        return "s" if self.show == "seconds" else "%"


@dataclass(frozen=True)
class Column:
    """A column of measured figures."""

    key: str
    label: str
    protocol: str
    """How its cells are measured, as text."""
    printed: str = ""
    """Description of the published figures, if their radius differs."""


@dataclass(frozen=True)
class Cell:
    """One cell: what is measured of which network, and what the paper prints there."""

    training: Training | None
    measure: Measure | None
    published: str | None = None
    """The column of the published row beside it."""
    why: str = ""
    """Why this scale has no training or measure here."""
    also: Measure | None = None
    """A weaker attack on the same images, where the other columns use more images."""


@dataclass(frozen=True)
class Row:
    """A row: ``published`` names it in published.toml (table, row), None if the paper has no such row."""

    key: str
    label: str
    cells: dict[str, Cell]
    """The cells by column."""
    published: tuple[str, str] | None = None


@dataclass(frozen=True)
class Block:
    """Rows that share their columns."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """A table of `atent reproduce`, at one scale."""

    name: str
    title: str
    blocks: tuple[Block, ...]

    def rows(self) -> list[Row]:
        return [row for block in self.blocks for row in block.rows]

    def trainings(self) -> list[Training]:
        """Each once, what another begins with before it."""
        found: dict[str, Training] = {}

        def add(training: Training | None) -> None:
            if training is not None:
                add(training.after)
                found.setdefault(training.name, training)

        for row in self.rows():
            for cell in row.cells.values():
                add(cell.training)
        return list(found.values())
