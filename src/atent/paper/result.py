"""The result of a table: published and measured figures, cell by cell, as plain values and as Markdown."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent.data.described import words
from atent.experiments.comparison import INTERVAL, accuracy, measure
from atent.experiments.results import Spread
from atent.markdown import table as markdown_table
from atent.paper.engine import Bench, measured, run_of, stage
from atent.paper.layout import Cell, Measure, Row, Table
from atent.paper.published import published, value

NOT_REACHED = "not reached"
"""Prefix of the reason why a scale has no figure."""
NOT_YET = "not measured yet"


def collect(bench: Bench, table: Table, seeds: Sequence[int], only: Sequence[str] = ()) -> dict[str, Any]:
    """The content of a table's JSON, from the finished runs; cells without a figure have the reason.

    ``only``: the keys of the rows that were asked for, if not all.
    """
    content: dict[str, Any] = {**head(bench, table.name, table.title), "blocks": []}
    if only:
        content["only"] = list(only)
    for block in table.blocks:
        columns = [asdict(column) for column in block.columns]
        rows = [_row(bench, row, block.columns, seeds) for row in block.rows]
        content["blocks"].append({"title": block.title, "columns": columns, "rows": rows})
    return finish(content, seeds)


def head(bench: Bench, name: str, title: str) -> dict[str, Any]:
    """The header of every result of a scale."""
    return {"name": name, "title": title, "scale": bench.scale.name, "about": bench.scale.about}


def finish(content: dict[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """The content with the properties of all its cells: completeness, seeds, machines, commits; plain values."""
    cells = [cell for block in content["blocks"] for row in block["rows"] for cell in row["cells"].values()]
    ours = [cell["ours"] for cell in cells if cell["ours"] is not None]
    content |= {
        "seeds": list(seeds),
        "complete": all(_done(cell, seeds) for cell in cells),
        "interval": INTERVAL if len(seeds) > 1 else "95 % intervals, exact binomial; one seed: no standard deviation",
        "hardware": list(dict.fromkeys(h for cell in ours for h in cell["hardware"])),
        "commit": list(dict.fromkeys(c for cell in ours for c in cell["commit"])),
    }
    plain: dict[str, Any] = json.loads(json.dumps(content, default=asdict, allow_nan=False))
    return plain


def _done(cell: Mapping[str, Any], seeds: Sequence[int]) -> bool:
    """Whether a cell has its figure, of all seeds where it is an accuracy, or a reason why the scale has none."""
    mine = cell["ours"]
    return bool(cell["why"] != NOT_YET if mine is None else mine["unit"] != "%" or mine["seeds"] == list(seeds))


def ours(
    spread: Spread, *, unit: str, n: int | None, seeds: Sequence[int], protocol: str, scale: str,
    provenance: Sequence[Mapping[str, Any]], each: Sequence[float] = (),
) -> dict[str, Any]:  # fmt: skip
    """A measured cell with its protocol and provenance. ``each``: an accuracy's value by seed."""
    return {
        "value": spread.mean, "sd": spread.sd, "low": spread.low, "high": spread.high, "unit": unit, "n": n,
        "each": list(each), "seeds": list(seeds), "protocol": protocol, "scale": scale,
        "hardware": list(dict.fromkeys(machine(p) for p in provenance)),
        "commit": list(dict.fromkeys(commit(p) for p in provenance)),
    }  # fmt: skip


def cell(table: str, row: str, column: str | None, mine: dict[str, Any] | None, why: str = "") -> dict[str, Any]:
    """The published figure, as text, and the measured cell, or the reason why there is none."""
    printed = value(table, row, column) if column else None
    return {"published": str(printed) if printed else None, "ours": mine, "why": "" if mine else why}


def _row(bench: Bench, row: Row, columns: Sequence[Any], seeds: Sequence[int]) -> dict[str, Any]:
    protocols = {column.key: column.protocol for column in columns}
    cells = {key: _cell(bench, row, key, c, protocols[key], seeds) for key, c in row.cells.items()}
    trained = next((c.training for c in row.cells.values() if c.training is not None), None)
    made = None
    if trained is not None:
        job = run_of(bench, trained, seeds[0]).job
        made = {
            "recipe": trained.recipe, "run": trained.name, "network": job.model.name,
            "method": type(job.method).__name__, "epochs": job.train.epochs, "data": job.data.name,
        }  # fmt: skip
    printed = None
    if row.published is not None:
        source = published()[row.published[0]].rows[row.published[1]]
        printed = {key: getattr(source, key) for key in ("label", "network", "settings", "source")}
    return {"key": row.key, "label": row.label, "published": printed, "made": made, "cells": cells}


def read_result(path: Path) -> dict[str, Any]:
    """The content of a result file of any version."""
    content: dict[str, Any] = folder.with_present_keys(folder.read_json(path))
    for column in (column for block in content.get("blocks", ()) for column in block.get("columns", ())):
        if column["key"] == "natural":
            column["key"] = "clean"
    return content


def _cell(bench: Bench, row: Row, key: str, c: Cell, protocol: str, seeds: Sequence[int]) -> dict[str, Any]:
    table, line = row.published or ("", "")
    beside = c.published if row.published else None
    if c.training is None or c.measure is None:
        return cell(table, line, beside, None, f"{NOT_REACHED}: {c.why}")
    found = []
    for seed in seeds:
        run = run_of(bench, c.training, seed)
        content = measured(run.path).get(c.measure.key) if stage(run, bench.build) == "finished" else None
        if content is not None:
            found.append((seed, content))
    if not found:
        return cell(table, line, beside, None, NOT_YET)
    values = [content[c.measure.show] for _, content in found]
    spread = measure(values) if c.measure.show == "seconds" else accuracy(values)
    n = c.measure.n if c.measure.show == "seconds" else min(v["n"] for v in values)
    wording = c.measure.attack or protocol
    mine = ours(
        spread, unit=c.measure.unit, n=n, seeds=[seed for seed, _ in found],
        protocol=f"{wording}; {protocol}" if c.measure.attack and protocol else wording, scale=bench.scale.name,
        provenance=[content["provenance"] for _, content in found],
        each=[] if c.measure.show == "seconds" else [v["value"] for v in values],
    )  # fmt: skip
    samples = found[0][1].get("data")
    mine["samples"] = samples and words(samples)
    kept = _outcomes([content for _, content in found], c.measure.show)
    mine |= {"outcomes": kept} if kept else {}
    if c.also is not None:
        runs = (run_of(bench, c.training, seed).path for seed, _ in found)
        same = [content for content in (measured(p).get(c.also.key) for p in runs) if content]
        # A smaller set of images may be easier: a weaker attack on the same images is the fair comparison.
        mine["same_images"] = _same(same, c.also) if same else None
    return cell(table, line, beside, mine)


def _same(contents: Sequence[Mapping[str, Any]], m: Measure) -> dict[str, Any]:
    """A weaker attack on the images of a cell."""
    each, kept = [content["share"]["value"] for content in contents], _outcomes(contents, m.show)
    return {"attack": m.attack, "value": statistics.fmean(each), "each": each} | ({"outcomes": kept} if kept else {})


def _outcomes(contents: Sequence[Mapping[str, Any]], show: str) -> dict[str, Any] | None:
    """The outcome of each image, a string of 1 and 0 per seed, and the images' numbers, equal for all seeds; None for
    measures of earlier versions without outcomes. Cells that have them are compared image by image."""
    kept = [content.get("outcomes", {}) for content in contents]
    ids = {each.get("ids") for each in kept}
    if len(ids) != 1 or any(show not in each for each in kept):
        return None
    return {"ids": ids.pop(), "each": [each[show] for each in kept]}


def machine(p: Mapping[str, Any]) -> str:
    """The hardware of a provenance."""
    return f"{p['device_name']} ({p['device']}" + (f", {p['threads']} threads)" if p["device"] == "cpu" else ")")


def commit(p: Mapping[str, Any]) -> str:
    """The commit of a provenance."""
    return f"{(p['commit'] or 'unknown')[:12]}{' with changes' if p['dirty'] else ''}"


# ---- Markdown ----------------------------------------------------------------------------------------------


def text(found: Mapping[str, Any]) -> str:
    """A measured cell as text, with its interval in brackets."""
    mine = found["ours"]
    if mine is None:
        return "n/a" if found["why"].startswith(NOT_REACHED) else found["why"]
    scale, digits = (100, 1) if mine["unit"] == "%" else (1, 2)
    if mine["unit"] != "%" and mine["value"] < 1:
        digits = 4
    out = f"{scale * mine['value']:.{digits}f}"
    if mine["sd"] is not None:
        out += f" \u00b1 {scale * mine['sd']:.{digits}f}"
    if mine["unit"] == "%" and mine["low"] is not None:
        out += f" [{scale * mine['low']:.1f}, {scale * mine['high']:.1f}]"
    if mine.get("same_images"):
        out += f" (PGD: {100 * mine['same_images']['value']:.1f})"
    return out


def _missing(content: Mapping[str, Any]) -> str:
    """Why a table is not complete."""
    only = content.get("only", ())
    asked = [row for block in content["blocks"] for row in block["rows"] if row["key"] in only]
    if only and all(_done(cell, content["seeds"]) for row in asked for cell in row["cells"].values()):
        return f"Not complete: the command asks for the rows {', '.join(only)}, and not for the others."
    return "Not complete: repeating the command resumes."


def markdown(content: Mapping[str, Any], extra: Sequence[str] = ()) -> str:
    """The whole table with its captions; ``extra`` lines come before the hardware."""
    lines = [f"# {content['title']}", ""]
    if not content["complete"]:
        lines += [_missing(content), ""]
    for block in content["blocks"]:
        if block["title"]:
            lines += [f"## {block['title']}", ""]
        lines += [*grid(block), ""]
    lines += [f"Scale {content['scale']}: {content['about']}.", ""]
    lines += [*captions(content), *extra, ""]
    if content.get("command"):
        lines += [f"`{content['command']}`", ""]
    return "\n".join(lines)


def grid(block: Mapping[str, Any]) -> list[str]:
    """A block as a Markdown table: each measured column after the paper's, where it prints one."""
    printed = {
        column["key"]: any(row["cells"][column["key"]]["published"] for row in block["rows"])
        for column in block["columns"]
    }
    headings = ["row", "network in the paper", "network here"]
    for column in block["columns"]:
        wording = column.get("printed") or column["label"].removesuffix(" (%)")
        headings += ([f"paper: {wording}"] if printed[column["key"]] else []) + [column["label"]]
    shown = []
    for row in block["rows"]:
        source, made = row["published"], row["made"]
        wording = ", ".join(filter(None, (source["network"], source["settings"]))) if source else "-"
        epochs = f", {made['epochs']} epochs" if made and "epochs" in made else ""
        cells = [row["label"], wording, made["network"] + epochs if made else "-"]
        for column in block["columns"]:
            found = row["cells"][column["key"]]
            cells += ([found["published"] or "-"] if printed[column["key"]] else []) + [text(found)]
        shown.append(cells)
    return markdown_table(headings, shown, left=3)


def captions(content: Mapping[str, Any]) -> list[str]:
    """The description of the figures, one line each."""
    lines = []
    counts: dict[str, set[int]] = {}
    for block in content["blocks"]:
        for row in block["rows"]:
            for key, found in row["cells"].items():
                if found["ours"] and found["ours"]["n"]:
                    label = next(c["label"] for c in block["columns"] if c["key"] == key)
                    counts.setdefault(label, set()).add(found["ours"]["n"])
    cells = [cell for block in content["blocks"] for row in block["rows"] for cell in row["cells"].values()]
    if any(cell["ours"] and cell["ours"].get("same_images") for cell in cells):
        lines.append(
            "(PGD: ...): accuracy under PGD on the same images, since a smaller sample may contain easier images."
        )
    if counts:
        by_n: dict[str, list[str]] = {}
        for label, n in counts.items():
            by_n.setdefault(" or ".join(f"{v:,}" for v in sorted(n)), []).append(label.removesuffix(" (%)"))
        lines.append("Test images: " + "; ".join(f"{n} for {', '.join(labels)}" for n, labels in by_n.items()) + ".")
    drawn = dict.fromkeys(mine["samples"] for cell in cells if (mine := cell["ours"]) and mine.get("samples"))
    if drawn:
        lines.append(f"Sample: {'; '.join(drawn)}; the same for every network.")
    wording = dict.fromkeys(
        f"{c['label'].removesuffix(' (%)')}: {c['protocol']}"
        for block in content["blocks"]
        for c in block["columns"]
        if c["protocol"]
    )
    if wording:
        lines.append(f"Protocols: {'; '.join(wording)}.")
    seeds = content["seeds"]
    many = "s" if len(seeds) > 1 else ""
    lines.append(f"{len(seeds)} seed{many} ({', '.join(map(str, seeds))}). Values: {content['interval']}.")
    reasons = dict.fromkeys(
        f"{row['label']}: {found['why'].removeprefix(NOT_REACHED + ': ')}"
        for block in content["blocks"]
        for row in block["rows"]
        for found in row["cells"].values()
        if found["why"].startswith(NOT_REACHED)
    )
    if reasons:
        lines.append("n/a: " + "; ".join(reasons) + ".")
    sources = dict.fromkeys(
        row["published"]["source"] for block in content["blocks"] for row in block["rows"] if row["published"]
    )
    lines.append(f"Published figures: {'; '.join(sources)}; single trainings without intervals.")
    if content["hardware"]:
        lines.append(f"Hardware: {'; '.join(content['hardware'])}. Commit: {', '.join(content['commit'])}.")
    # Markdown joins lines without a blank line between them.
    return [part for line in lines for part in (line, "")][:-1]
