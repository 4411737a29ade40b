"""The files of a smoothing certificate: rows that are appended, and a sidecar that describes how they are made."""

from __future__ import annotations

import contextlib
import glob
import hashlib
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from atent.messages import once
from atent.runs import as_json, dumps, manifest, write_atomic
from atent.runs.files import report_dropped, write_error, write_new
from atent.runs.identity import LENGTH, digest


class Row(NamedTuple):
    """One sample; the first six columns are those of Cohen et al.'s files."""

    idx: int
    """Sample number."""
    label: int
    """True class."""
    predict: int
    """Certified class (CERTIFY), -1 where it abstains."""
    radius: float
    """l2 radius around the sample within which that class cannot change; 0 where it abstains."""
    correct: int
    """1 where predict equals the label, else 0."""
    time: float
    """Seconds, divided equally among samples that were certified together."""
    clean: int
    """Class of the base model without noise."""
    smoothed: int
    """Class of the smoothed model (PREDICT) from the n samples of the estimate, -1 where it abstains; equal to predict
    after a sequential test."""
    samples: int = 0
    """Noise samples of a sequential test, including those of the selection; 0, and no column, where n0 + n were
    taken."""
    image: str = ""
    """Hash of the image, see `images_of`; "", and no column, in files of earlier versions."""


_FIXED = list(Row._fields[:-2])
# The columns of files of all kinds.
_HEADS = [[*_FIXED, *samples, *image] for samples in ([], ["samples"]) for image in ([], ["image"])]


def images_of(ids: Tensor, x: Tensor) -> dict[int, str]:
    """The hashes of the images ``x`` (n, ...) by their numbers ``ids`` (n,)."""
    return {number: digest(image) for number, image in zip(ids.tolist(), x)}


def sidecar(path: Path) -> Path:
    """The file with the settings of a file of rows, and at the end its summary."""
    return path.with_suffix(".json")


def made_alike(path: Path, wanted: dict[str, Any]) -> bool:
    """Whether the certificate at ``path`` is absent, or was made with the ``wanted`` settings."""
    return not sidecar(path).exists() or dumps(made(path)) == dumps(wanted)


def claimed_as(path: Path, wanted: dict[str, Any]) -> bool:
    """Whether the certificate at ``path`` is begun, and made with the ``wanted`` settings."""
    return sidecar(path).exists() and made_alike(path, wanted)


def claim(path: Path, wanted: dict[str, Any]) -> None:
    """Record how the rows of ``path`` are made; ValueError where they were made with other settings."""
    if not sidecar(path).exists():
        if path.exists():
            raise ValueError(f"{path} has no {sidecar(path).name} that says how it was made: choose another file")
        manifest.forget_file(sidecar(path))  # of a certificate that was removed
        # Another process may do the same: one of the two is first.
        with contextlib.suppress(FileExistsError):
            text = as_json({"made": wanted, "complete": False}, sidecar(path).name)
            write_new(sidecar(path), text, numbered=False)
    if not made_alike(path, wanted):
        old, new = _flat(made(path)), _flat(wanted)
        key = next(k for k in (*old, *new) if old.get(k) != new.get(k))
        if _is_earlier(path, wanted):
            raise ValueError(f"{path} {_EARLIER}: choose another file")
        if key == "noise":
            raise ValueError(
                f"{path} was made with the noise of another version ({old.get(key, 'before it was recorded')}), not"
                f" {new.get(key)}: choose another file, rows of the two do not mix"
            )
        if key.startswith("about.") and made(path).get("about") == {}:  # as `certify_run` of earlier versions wrote it
            raise ValueError(
                f"{path} does not record its network: choose another file, or resume it by certify_run(about={{}}) if"
                " its network is this one"
            )
        raise ValueError(
            f"{path} was made with {key} {old.get(key)}, not {new.get(key)}: choose another file, or the old value"
        )


def free(path: Path, wanted: dict[str, Any]) -> Path:
    """``path``, or the first numbered one, that is absent or has the ``wanted`` settings: earlier results remain."""
    stem, dot, tail = path.name.partition(".")
    number, found = 1, path
    while not made_alike(found, wanted):
        if _is_earlier(found, wanted):
            once(f"{found} {_EARLIER}: it remains, and is not continued")
        number += 1
        found = path.with_name(f"{stem}-{number}{dot}{tail}")
    return found


def claimed(path: Path, wanted: dict[str, Any]) -> Path:
    """`free`, claimed."""
    while True:
        found = free(path, wanted)
        try:
            claim(found, wanted)
            return found
        except ValueError:
            # Another process may have claimed it with other settings in the meantime.
            if made_alike(found, wanted):
                raise


def made(path: Path) -> dict[str, Any]:
    """How the rows of a file are made; FileNotFoundError where it has no sidecar."""
    if not sidecar(path).is_file():
        raise FileNotFoundError(
            f"{path} has no {sidecar(path).name} that says how it was made: give a certificate's .csv"
        )
    found: dict[str, Any] = manifest.read_json(sidecar(path))["made"]
    return found


def note_hint(path: Path, hint: str | None) -> None:
    """Record a `Certificate`'s hint beside its rows, where `hint_of` finds it when they are merged."""
    content = manifest.read_json(sidecar(path))
    if content.get("hint") != hint:
        manifest.write_json(sidecar(path), {**content, "hint": hint})


def hint_of(path: Path) -> str | None:
    """The hint that `note_hint` recorded."""
    found: str | None = manifest.read_json(sidecar(path)).get("hint")
    return found


_EARLIER = "was made by an earlier version, which did not record its images and all settings of its network"


def _is_earlier(path: Path, wanted: dict[str, Any]) -> bool:
    """Whether the certificate at ``path`` is of the same weights, by a version that did not identify the network by
    more than these."""
    old, new = (tree.get("about", tree) for tree in (made(path), wanted))
    return "model" in new and "model" not in old and old.get("weights") == new.get("weights")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    out: dict[str, Any] = {}
    for key, value in tree.items():
        out |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return out


def read_rows(path: str | Path) -> list[Row]:
    """The rows of a file, none for an absent one; an incomplete last line, as an interruption leaves it, is ignored.

    ValueError, with the line number, for a broken line elsewhere.
    """
    path = Path(path)
    if not path.exists():
        return []
    manifest.check_file(path)
    *lines, _ = path.read_text(errors="replace").split("\n")
    if lines and not _is_header(lines[0]):
        raise ValueError(f"{path}, line 1: expected the columns {' '.join(_FIXED)}, found {lines[0]!r}")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        row = _parsed(line)
        if row is None:
            raise ValueError(f"{path}, line {number}: not a row of a certificate: {line!r}")
        rows.append(row)
    return rows


def _is_header(line: str) -> bool:
    # In files of earlier versions the column of the clean class is called natural.
    return line.replace("natural", "clean").split("\t") in _HEADS


def _header(rows: Sequence[Row]) -> str:
    more = {name: bool(rows and getattr(rows[0], name)) for name in ("samples", "image")}
    return "\t".join([*_FIXED, *(name for name, there in more.items() if there)]) + "\n"


def _parsed(line: str) -> Row | None:
    cells = line.split("\t")
    # No number of noise samples is as long as a hash.
    image = cells.pop() if len(cells) > len(_FIXED) and re.fullmatch(_HASH, cells[-1]) else ""
    kinds = (int, int, int, float, int, float, int, int, int)
    try:
        values: list[Any] = [kind(cell) for kind, cell in zip(kinds[: max(len(cells), 8)], cells, strict=True)]
        return Row(*values)._replace(image=image)
    except ValueError:
        return None


_HASH = f"[0-9a-f]{{{LENGTH}}}"


def check_images(path: Path, rows: Iterable[Row], images: Mapping[int, str]) -> None:
    """ValueError, in one line, for a row of another image than that of its number in ``images``, as of `images_of`."""
    for row in rows:
        if not row.image:
            raise ValueError(f"{path} {_EARLIER}: choose another file")
        if row.image != images.get(row.idx, row.image):
            raise ValueError(
                f"{path} has the certificate of another image as number {row.idx}: choose another file, or give the"
                " images that it was begun with"
            )


# ---- a file that grows


def sums(path: Path) -> Path:
    """The file with the checksums of the rows until the certificate is complete."""
    return path.with_name(f".{path.name}.sums")


def resumed(
    path: Path, labels: Mapping[int, int], most: float, images: Mapping[int, str] | None = None
) -> dict[int, Row]:
    """The rows of a file that grows, by sample number; damaged ones are dropped, with one line on stderr.

    Parameters
    ----------
    path
        The file; an absent one has none.
    labels
        True classes by sample number.
    most
        The largest radius.
    images
        Hashes of the images by sample number, as of `images_of`. Default: not compared.

    Raises
    ------
    ValueError
        In one line, for a file that contains no row of a certificate, and for rows of other images.
    """
    if not path.exists():
        return {}
    manifest.check_file(path)
    known = set(sums(path).read_text(errors="replace").split()) if sums(path).is_file() else None
    *lines, _ = path.read_text(errors="replace").split("\n")
    rows = [_parsed(line) for line in lines[1:]]
    salt = dumps(made(path))
    intact = [row for row in rows if row is not None and (known is None or _sum(row, salt) in known)]
    if images is not None:
        # Other images may have other labels, which are no damage.
        check_images(path, intact, images)
    good = [row for row in intact if _possible(row, labels, most)]
    headed = bool(lines) and _is_header(lines[0])
    if lines and not good and not headed:
        raise ValueError(f"{path}, line 1: expected the columns {' '.join(_FIXED)}, found {lines[0][:200]!r}")
    dropped = len(rows) - len(good) + (bool(lines) and not headed)
    if dropped:
        report_dropped(path, dropped)
    # An incomplete last line is removed too.
    write_atomic(path, (_header(good) if lines else "") + "".join(map(_line, good)))
    write_atomic(sums(path), "".join(f"{_sum(row, salt)}\n" for row in good))
    return {row.idx: row for row in good}


def append(path: Path, rows: list[Row]) -> None:
    """Add rows, whose checksums are written first."""
    salt = dumps(made(path))
    _write(sums(path), "".join(f"{_sum(row, salt)}\n" for row in rows), "")
    _write(path, "".join(map(_line, rows)), _header(rows))


def _possible(row: Row, labels: Mapping[int, int], most: float) -> bool:
    """Whether the values of a row are possible in a certificate of these samples."""
    return (
        row.label == labels.get(row.idx, row.label)
        and row.idx >= 0
        and min(row.label, row.clean, row.predict + 1, row.smoothed + 1) >= 0
        and row.correct == int(row.predict == row.label)
        and 0 <= row.radius <= (most * (1 + 1e-9) if row.predict >= 0 else 0)
        and 0 <= row.time < math.inf
        and row.samples >= 0
    )


def _sum(row: Row, salt: str) -> str:
    return hashlib.sha256(f"{salt}\n{_line(row)}".encode()).hexdigest()[:16]


def of_rank(path: Path, rank: int) -> Path:
    """The file of one of the processes that share a certificate; the first one's is ``path``."""
    return path.with_name(f".{path.stem}.rank-{rank}{path.suffix}") if rank else path


def absorb(path: Path) -> None:
    """Move the rows of all files that other ranks left to ``path``, and remove these files."""
    files = sorted(path.parent.glob(f".{glob.escape(path.stem)}.rank-*{path.suffix}"))
    known = resumed(path, {}, math.inf) if files else {}
    for file in files:
        if made_alike(file, made(path)):
            rows = [row for number, row in resumed(file, {}, math.inf).items() if number not in known]
            if rows:
                manifest.forget_file(path)  # it grows
                append(path, rows)
            known |= {row.idx: row for row in rows}
        removed(file)


def removed(path: Path) -> None:
    """Remove a file of rows, its sidecar and its checksums."""
    for each in (path, sidecar(path), sums(path)):
        each.unlink(missing_ok=True)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write a complete file of rows, atomically."""
    with manifest.seal(path) as temporary:
        temporary.write_text(_header(rows) + "".join(map(_line, rows)))


def _line(row: Row) -> str:
    more = ([repr(row.samples)] if row.samples else []) + ([row.image] if row.image else [])
    return "\t".join([*map(repr, row[: len(_FIXED)]), *more]) + "\n"


def _write(path: Path, text: str, head: str) -> None:
    try:
        with open(path, "a") as file:
            file.write(("" if file.tell() else head) + text)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise write_error(path, None, error) from error
