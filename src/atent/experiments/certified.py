"""Several certificates side by side: one table of smoothing and bounds, for people and for programs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent.data.described import words
from atent.markdown import table as markdown_table
from atent.threat import Threat

# Radii closer than this share of each other are one column: 0.549 is what l2 smoothing says of linf 5/255.
_SAME = 2e-3


def row(content: dict[str, Any]) -> dict[str, Any]:
    """One line of the table, from the content of a certificate.json: plain values.

    ``l2`` of an entry of "certified" is the l2 radius in which linf balls and l2 balls are compared: for smoothing its
    own, whose ball holds the linf ball of radius l2 / sqrt(d); for bounds in linf, eps sqrt(d).
    """
    smoothing = content["method"] == "smoothing"
    size = math.prod(content["images"]["shape"])
    entries = []
    for found in content["certified"]:
        if smoothing:
            norm, radius, seconds = "l2", found["radius"], content["seconds_per_image"]
        else:
            threat = Threat(**found["threat"])
            norm, radius, seconds = threat.norm, float(threat.eps), found["seconds_per_image"]
        l2 = radius * math.sqrt(size) if norm == "linf" else radius
        entries.append({"norm": norm, "radius": radius, "l2": l2, "share": found["share"], "seconds": seconds})
    return {
        "run": content["run"],
        "trained": content["trained"],
        "how": _how(content),
        "images": content["images"],
        "clean": content["clean"],
        "smoothed": content.get("smoothed"),
        "certified": entries,
        "provenance": content["provenance"],
    }


def check_table(path: str | Path | None) -> None:
    """ValueError for a path that no table can be written to."""
    if path is None:
        return
    path = Path(path)
    if path.suffix != ".md":
        raise ValueError(f"--table writes Markdown, got {path}: give a name that ends in .md")
    if path.exists() and not path.with_suffix(".json").exists():
        raise ValueError(f"{path} exists, and no .json beside it that it was made from: give another name")


def add(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    """Write ``rows`` into the table at ``path`` (.md, with a .json of the same name beside it); the .json's path.

    Rows that the .json holds already stay; one of the same run and certificate is replaced. ValueError for another
    ending, and for images that are not those of the table: shares of different images do not compare.
    """
    check_table(path)
    beside = path.with_suffix(".json")
    known = folder.with_present_keys(folder.read_json(beside))["rows"] if beside.exists() else []
    table = {(r["run"], r["how"]): r for r in [*known, *rows]}
    first = next(iter(table.values()))["images"]
    for found in table.values():
        if _which(found["images"]) != _which(first):
            raise ValueError(
                f"{found['run']} was certified on {_images(found['images'])}, the table holds {_images(first)}: give"
                " another --table, or the same --limit and --subset"
            )
    folder.write_json(beside, {"rows": list(table.values())})
    folder.write_atomic(path, markdown(list(table.values())))
    return beside


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table as Markdown, a column per radius in ascending order, and what it rests on below."""
    radii: list[float] = []
    for l2 in sorted(entry["l2"] for r in rows for entry in r["certified"]):
        if not radii or l2 - radii[-1] > _SAME * max(l2, 1e-9):
            radii.append(l2)
    dim = math.prod(rows[0]["images"]["shape"])
    headings = [f"l2 {r:.3g} = linf {255 * r / math.sqrt(dim):.3g}/255 (%)" for r in radii]
    head = ["run", "certificate", "clean, network (%)", "clean, smoothed (%)", *headings, "s / image"]
    shown = []
    for r in rows:
        cells = [_cell(next((e for e in r["certified"] if abs(e["l2"] - x) <= _SAME * x), None)) for x in radii]
        seconds = max(entry["seconds"] for entry in r["certified"])
        base = [f"{r['run']} ({r['trained']})", r["how"], _figure(r["clean"]), _figure(r["smoothed"])]
        shown.append([*base, *cells, f"{seconds:.3g}"])
    lines = markdown_table(head, shown, left=2)
    about = rows[0]["provenance"]
    lines += [
        "",
        f"{_images(rows[0]['images'])}. In brackets: 95 % intervals over the choice of test images.",
        "A column's linf ball lies within its l2 ball: smoothing and bounds in l2 certify both, bounds in linf the linf"
        " ball alone.",
        "Clean, smoothed: accuracy of the smoothed network, abstentions wrong; it certifies no radius.",
        f"Hardware: {about['device_name']}, {about['threads']} threads; seconds of wall time. Commit:"
        f" {', '.join(dict.fromkeys(str(r['provenance']['commit']) for r in rows))}.",
    ]
    return "\n".join(lines) + "\n"


def _how(content: dict[str, Any]) -> str:
    if content["method"] != "smoothing":
        norms = dict.fromkeys(found["threat"]["norm"] for found in content["certified"])
        return f"{content['method']}, {' and '.join(norms)}"
    sampling = content["sampling"]
    return f"smoothing, sigma {sampling['sigma']:.3g}, n {sampling['n']:,}, alpha {sampling['alpha']:g}"


def _images(images: dict[str, Any]) -> str:
    return f"{images['name']}, {images['split']} images: {words(images)}"


def _which(images: dict[str, Any]) -> tuple[Any, ...]:
    """What says whether two certificates are of the same images, in all versions of the file."""
    return _images(images), tuple(images["shape"])


def _figure(share: dict[str, Any] | None) -> str:
    if share is None:
        return "-"
    return f"{100 * share['value']:.1f} [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"


def _cell(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return "-"
    return _figure(entry["share"]) + (" linf only" if entry["norm"] == "linf" else "")
