"""The published figures as data, each with its source; they never enter a measured column."""

from __future__ import annotations

import functools
import tomllib
from dataclasses import dataclass
from importlib import resources
from typing import Any


@dataclass(frozen=True)
class Figure:
    """One published value: in percent, seconds per epoch, or an epoch."""

    value: float
    high: float | None = None
    """Upper end, where a range is printed; ``value`` is the lower one."""
    sd: float | None = None
    """The value printed after the plus-minus sign."""

    def __str__(self) -> str:
        if self.high is not None:
            return f"{self.value:g}-{self.high:g}"
        return f"{self.value:g}" + (f" \u00b1 {self.sd:g}" if self.sd is not None else "")


@dataclass(frozen=True)
class Published:
    """A row as it is printed."""

    label: str
    network: str
    settings: str
    source: str
    values: dict[str, Figure]
    """The values by column."""


@dataclass(frozen=True)
class Table:
    """A table, or a figure's figures, as printed."""

    title: str
    source: str
    rows: dict[str, Published]


@functools.cache
def published() -> dict[str, Table]:
    """All of published.toml, by table; ValueError, with the place, where it is not well formed."""
    raw = tomllib.loads((resources.files("atent.paper") / "published.toml").read_text())
    return {name: _table(name, dict(content)) for name, content in raw.items()}


def value(table: str, row: str, column: str) -> Figure | None:
    """One published value, None if nothing is printed there; KeyError for a table that does not exist."""
    found = published()[table].rows.get(row)
    return found.values.get(column) if found else None


def _table(name: str, content: dict[str, Any]) -> Table:
    title, source = content.pop("title"), content.pop("source")
    rows = {}
    for key, row in content.items():
        if set(row) - {"label", "network", "settings", "source", "values"} or not row.get("values"):
            raise ValueError(f"published.toml, {name}.{key}: expected label, network, settings, source and values")
        values = {column: _figure(v, f"{name}.{key}.{column}") for column, v in row["values"].items()}
        rows[key] = Published(row["label"], row["network"], row["settings"], row.get("source", source), values)
    return Table(title, source, rows)


def _figure(value: Any, where: str) -> Figure:
    if isinstance(value, dict):
        return Figure(float(value["value"]), sd=float(value["sd"]))
    if isinstance(value, list):
        low, high = value
        return Figure(float(low), high=float(high))
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError(f"published.toml, {where}: {value!r} is not a number")
    return Figure(float(value))
