"""Rows of numbers with a class each: a CSV file, or a folder with train.csv and test.csv."""

from __future__ import annotations

import csv
import io
import itertools
import math
import re
from collections import Counter
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from atent.data import checks
from atent.data.arrays import arrays
from atent.data.files import FIX, data_root, read, record
from atent.data.settings import DataSettings
from atent.data.sources import dataset
from atent.data.split import Source, split, stratified
from atent.messages import note
from atent.threat import Box

LABELS = ("label", "class", "target", "y")
"""Default names of the column of classes."""
TEST_SHARE = 0.2
"""Share of each class that becomes the test set if there is a single file."""
_TEST = 3
"""Stream number of split_seed for the test rows of a single file; `atent.data.split` uses those below."""

_MISSING = ("nan", "na", "n/a", "#n/a", "<na>", "null", "?")
"""Words by which pandas, R, SQL and older data sets write a missing value, in lower case."""
_NAMELESS = re.compile(r"Unnamed: \d+")
"""The name that pandas gives a column without one when it reads a file, and writes when it saves the table again."""
_FEW = 10
"""Of at most so many rows a column may count by chance."""

Units = Literal["range", "spread"]


@dataclass(frozen=True)
class Columns:
    """The fields of `DataSettings` for a loader with a parameter ``columns``."""

    label: str | None = None
    """Name of the column of classes."""
    box: str | None = None
    """"min..max", the range of every column; None: each column's own, in the training rows."""
    units: Units = "range"
    """Unit of each column: its range, or its standard deviation in the training rows."""
    split_seed: int = 0

    @classmethod
    def of(cls, settings: DataSettings) -> Columns:
        """From the settings."""
        return cls(*(getattr(settings, field.name) for field in fields(cls)))

    def limits(self) -> tuple[float, float] | None:
        """The two numbers of ``box``; ValueError for anything else."""
        if self.box is None:
            return None
        low, dots, high = self.box.partition("..")
        try:
            pair = float(low), float(high)
        except ValueError:
            pair = (math.nan, math.nan)
        if not dots or not (math.isfinite(pair[0]) and math.isfinite(pair[1]) and pair[0] < pair[1]):
            raise ValueError(f"data.box is {self.box!r}; it must be two numbers min..max, such as 0..255")
        return pair


DEFAULT = Columns()


def check(settings: DataSettings, taken: bool) -> None:
    """ValueError, in one line, for settings of columns that are invalid or have no effect."""
    given = [name for name in ("label", "box") if getattr(settings, name) is not None]
    given += ["units"] if settings.units != "range" else []
    if given and not taken:
        raise ValueError(f"data.{given[0]} has no effect for {settings.name}: it is for data.name table")
    Columns.of(settings).limits()


@dataset
def table(root: str | None = None, columns: Columns = DEFAULT) -> Source:
    """Rows of a CSV file whose first line names the columns.

    `root` is its path, or a folder with train.csv and test.csv, or an .npz file with x_train (n, d), y_train, x_test
    and y_test.
    One column contains the classes, numbers or words; all others contain finite numbers. In units of the "range" a
    column's values become (v - low) / (high - low), in [0, 1]; its low and high are those of the training rows, or
    those of ``columns.box``, and a constant column is 0. In units of the "spread" they become v divided by the
    standard deviation in the training rows, and each column has a box of its own. A test value outside the range of
    the training rows is clipped to it, and counted in ``about``. Of a single file, a fifth of each class is the test
    set, by the split seed.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        In one line: for no rows, rows of other lengths, missing values, columns of words (which have no distance), a
        column of classes that is not found, and values outside a given box.
    """
    path = data_root(root)
    if not path.exists():
        raise FileNotFoundError(
            f"table: wanted a .csv file, or a folder with train.csv and test.csv, {path} does not exist; {FIX} to it"
        )
    paths = [path / "train.csv", path / "test.csv"] if path.is_dir() else [path]
    names, words, x, files = _arrays(path, columns) if path.suffix == ".npz" else _read(paths, columns.label)
    classes = _classes(paths[0], words[0])
    unknown = sorted(set(words[-1]) - set(classes))
    if unknown:
        raise ValueError(f"{paths[-1]}: class {unknown[0]!r} is in no row of {paths[0].name}")
    number = {word: k for k, word in enumerate(classes)}
    y = [np.array([number[word] for word in part], dtype=np.int64) for part in words]
    if len(classes) < 2:
        raise ValueError(f"{paths[0]}: {len(classes)} class in {len(x[0])} rows; a classifier needs 2 or more")
    test = "test.csv" if path.is_dir() else "x_test"
    if len(words) == 1:
        x, y = _parts(paths[0], x[0], y[0], columns.split_seed, classes)
        test = f"{TEST_SHARE:.0%} of {path.name}, by split_seed"
    scaled, box, outside, scales = _scaled(paths[0], names, x, columns)
    checks.every_class(str(paths[0]), y[0], len(classes))
    return Source(
        classes=len(classes),
        train=split(scaled[0], y[0], None),
        test=split(scaled[1], y[1], None),
        validation=min(1000, max(1, len(y[0]) // 10)),
        box=box,
        about={
            "source": path.name,
            "files": files,
            "test": test,
            "class_names": list(classes),
            "columns": names,
            "table": {"label": columns.label, "box": columns.box, "units": columns.units},
            "scales": scales,
            "test_values_clipped": outside,
        },
    )


def _arrays(path: Path, columns: Columns) -> tuple[list[str], list[list[str]], list[np.ndarray], dict[str, Any]]:
    """As `_read`, for the arrays of an .npz file; the names of the columns are their numbers."""
    if columns.label is not None:
        raise ValueError(f"data.label has no effect for {path}: its classes are y_train and y_test")
    found, digest = arrays(path, ("x_train", "y_train", "x_test", "y_test"))
    wide = found["x_train"].shape[1:]
    for part in ("train", "test"):
        x, y = found[f"x_{part}"], found[f"y_{part}"]
        if x.ndim != 2 or x.dtype.kind not in "fiu" or 0 in x.shape or x.shape[1:] != wide:
            raise ValueError(f"{path}: x_{part} is {x.dtype} {x.shape}; wanted numbers (n, d), as many columns in both")
        if y.shape != (len(x),) or y.dtype.kind not in "iuUb":
            raise ValueError(f"{path}: y_{part} is {y.dtype} {y.shape}; wanted integers or words ({len(x)},)")
        checks.floats(f"{path}: x_{part}", x, (-math.inf, math.inf))
    words = [[str(label) for label in found[f"y_{part}"].tolist()] for part in ("train", "test")]
    rows = [found[f"x_{part}"].astype(np.float64) for part in ("train", "test")]
    return [str(k) for k in range(*wide)], words, rows, {path.name: record(digest, None)}


def _classes(path: Path, words: list[str]) -> list[str]:
    """The classes in their order; ValueError for words that mean a missing value, or the same number."""
    classes = sorted(set(words), key=_order)
    lost = next((word for word in classes if word.lower() in _MISSING), None)
    if lost is not None:
        raise ValueError(
            f"{path}: a class is {lost}, a missing value: remove these rows, or give them a class of another name"
        )
    for one, other in itertools.pairwise(classes):
        if _order(one)[:2] == _order(other)[:2] and _order(one)[0] == 0:
            raise ValueError(f"{path}: classes {one!r} and {other!r} are the same number: write them alike")
    return classes


def _order(word: str) -> tuple[int, float, str]:
    """Sort key: numbers by size, then words in alphabetical order."""
    try:
        return 0, float(word), word
    except ValueError:
        return 1, 0.0, word


def _parts(
    path: Path, x: np.ndarray, y: np.ndarray, seed: int, classes: list[str]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Training and test rows of one file, in its order."""
    few = [int(k) for k, count in Counter(y.tolist()).items() if count < 3]
    if few:
        who = f"{'class' if len(few) == 1 else 'classes'} {', '.join(repr(classes[k]) for k in sorted(few)[:6])}"
        raise ValueError(
            f"{path}: fewer than 3 rows of {who}{' ...' if len(few) > 6 else ''}; training, validation and test need"
            " one each: add rows or remove these"
        )
    chosen = np.sort(stratified(y, max(1, round(TEST_SHARE * len(y))), (seed, _TEST), keep=2, least=1))
    rest = np.setdiff1d(np.arange(len(y)), chosen)
    return [x[rest], x[chosen]], [y[rest], y[chosen]]


def _scaled(
    path: Path, names: list[str], x: list[np.ndarray], columns: Columns
) -> tuple[list[np.ndarray], Box, int, dict[str, list[float]]]:
    """Both parts as float32 in the units of the settings, their box, the number of clipped test values, the units."""
    given = columns.limits()
    train = x[0]
    low, high = train.min(0), train.max(0)
    if given is not None:
        for part in x:
            bad = ((part < given[0]) | (part > given[1])).any(0)
            if bad.any():
                at = int(bad.argmax())
                raise ValueError(
                    f"{path}: column {names[at]!r} runs from {part[:, at].min():g} to {part[:, at].max():g}, outside"
                    f" data.box {columns.box}"
                )
        low, high = np.full_like(low, given[0]), np.full_like(high, given[1])
    outside = int(((x[1] < low) | (x[1] > high)).sum())
    clipped = [train, x[1].clip(low, high)]
    unit = high - low if columns.units == "range" else train.std(0)
    unit = np.where(unit > 0, unit, 1.0)
    origin = low if columns.units == "range" else np.zeros_like(low)
    scaled = [((part - origin) / unit).astype(np.float32) for part in clipped]
    box: Box = (0.0, 1.0)
    if columns.units == "spread":
        ends = ((side / unit).astype(np.float32) for side in (low, np.where(high > low, high, low + 1)))
        below, above = (tuple(side.tolist()) for side in ends)
        box = (below, above)
    return scaled, box, outside, {"origin": origin.tolist(), "unit": unit.tolist()}


def _read(paths: list[Path], label: str | None) -> tuple[list[str], list[list[str]], list[np.ndarray], dict[str, Any]]:
    """The names of the numeric columns; for each file its classes as words, its numbers and its record."""
    names: list[str] | None = None
    words, numbers, files = [], [], {}
    for path in paths:
        if not path.is_file():
            raise FileNotFoundError(
                f"table: wanted {path.name} beside {paths[0].name}, {path} does not exist; {FIX} to it"
            )
        content, digest = read(path)
        files[path.name] = record(digest, None)
        head, rows = _lines(path, content)
        twice = [name for name, count in Counter(head).items() if count > 1]
        nameless = next((k for k, name in enumerate(head, 1) if not name or _NAMELESS.fullmatch(name)), None)
        if nameless is not None:
            given = f" but pandas' {head[nameless - 1]!r}" if head[nameless - 1] else ""
            raise ValueError(
                f"{path}: column {nameless} has no name{given}: remove it if it numbers the rows (pandas writes none"
                " with to_csv(index=False)), or name it"
            )
        if twice:
            raise ValueError(
                f"{path}: column {twice[0]!r} is named {Counter(head)[twice[0]]} times; rename all but one"
            )
        found = _label(path, head, label)
        others = [name for name in head if name != found]
        if names is not None and others != names:
            raise ValueError(f"{path}: other columns than {paths[0].name}; both need the same ones in the same order")
        names = others
        at = head.index(found)
        words.append([row[at].strip() if len(row) > at else "" for _, row in rows])
        numbers.append(_numbers(path, head, rows, at))
        _report_counts(path, names, numbers[-1])
        if "" in words[-1]:
            raise ValueError(f"{path}: line {rows[words[-1].index('')][0]} has no class in column {found!r}")
    assert names is not None
    return names, words, numbers, files


def _report_counts(path: Path, names: list[str], x: np.ndarray) -> None:
    """Report columns that number the rows: in a file that is sorted by class they give the class away."""
    for k, name in enumerate(names):
        first = x[0, k]
        if len(x) > _FEW and first in (0, 1) and np.array_equal(x[:, k], first + np.arange(len(x))):
            note(
                f"{path}: column {name!r} numbers the rows from {first:.0f}, and is an input as the others: remove it"
                " unless it was measured"
            )


def _lines(path: Path, content: bytes) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The names of the columns, and the rows with the number of the line that each ends on."""
    try:
        # A quoted cell may contain line ends.
        reader = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        head = [name.strip() for name in next(reader, [])]
        rows = [(reader.line_num, row) for row in reader if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{path}: not a CSV file in UTF-8 ({error})") from None
    if not rows or len(head) < 2:
        other = next((sign for sign in ";\t" if len(head) == 1 and sign in head[0]), None)
        hint = f": separate the columns by commas, not by {other!r}" if other else ""
        raise ValueError(f"{path}: {len(rows)} rows of {len(head)} columns; wanted a line of names, then rows{hint}")
    return head, rows


def _label(path: Path, head: list[str], label: str | None) -> str:
    if label is None:
        # A column y may be a coordinate.
        found = [name for known in LABELS[:-1] for name in head if name.lower() == known]
        if len(found) > 1:
            raise ValueError(
                f"{path}: columns {', '.join(found)} may all be the classes: set data.label to one, and remove the"
                " others unless they are inputs"
            )
        label = next((name for known in LABELS for name in head if name.lower() == known), None)
    if label not in head:
        wanted = f"no column {label!r}" if label else "no column of classes"
        fix = "set data.label to its name"
        if label is None and all(_order(name)[0] == 0 for name in head):
            fix = "these are numbers: add a first line with the names of the columns"
        raise ValueError(f"{path}: {wanted} among {', '.join(head[:12])}: {fix}")
    return label


def _numbers(path: Path, head: list[str], rows: list[tuple[int, list[str]]], label: int) -> np.ndarray:
    """float64 (rows, columns without the label)."""
    out = np.empty((len(rows), len(head) - 1))
    for place, (line, row) in enumerate(rows):
        if len(row) != len(head):
            raise ValueError(f"{path}: line {line} has {len(row)} values; the {len(head)} columns need one each")
        for k, cell in enumerate([*row[:label], *row[label + 1 :]]):
            try:
                # Python reads 1_000 as a number.
                out[place, k] = math.nan if "_" in cell else float(cell)
            except ValueError:
                out[place, k] = math.nan
            if not math.isfinite(out[place, k]):
                name = [*head[:label], *head[label + 1 :]][k]
                kind = "a missing value" if not cell.strip() else f"{cell.strip()!r}"
                raise ValueError(
                    f"{path}: line {line} has {kind} in column {name!r}; every column but the classes needs finite"
                    " numbers: fill in missing values, and remove or encode columns of words"
                )
    return out
