"""`atent reproduce`: from the name of a table to its files."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from atent import messages
from atent import runs as folder
from atent.experiments.comparison import measure
from atent.experiments.pipeline import Say
from atent.experiments.plan import Build
from atent.paper import engine, result, timing, training_curves
from atent.paper.engine import Bench, Read
from atent.paper.layout import Table
from atent.paper.scales import SCALES
from atent.paper.tables import NAMES, TABLES
from atent.signals import raising, repaired_by
from atent.train.interrupt import Interrupted


def reproduce(
    what: str,
    scale: str,
    *,
    build: Build,
    read: Read,
    seeds: int | None = None,
    time_limit: float | None = None,
    out: str | Path = "results",
    runs: str | Path = "runs/reproduce",
    only: Sequence[str] = (),
    progress: bool = True,
    say: Say = lambda line: None,
    command: str = "",
) -> list[Path]:
    """Make ``what``, one of `NAMES`, "claims" or "all", at ``scale``, and return the files written in ``out``.

    Networks are trained and measured once, in ``runs``, and used again by other tables and later calls. After
    ``time_limit`` seconds, or a signal of `atent.signals`, the state is saved, finished measurements are written, and
    Interrupted is raised; the same call resumes. ``only`` names rows of a table to train and measure. ValueError for
    unknown names, and where ``out`` contains a result of another scale.
    """
    begun = time.monotonic()
    if scale not in SCALES:
        raise ValueError(messages.unknown("scale", scale, SCALES))
    if what == "claims":
        return _claims(Path(out))
    if what != "all" and what not in NAMES:
        raise ValueError(messages.unknown("table", what, (*NAMES, "claims", "all")))
    if seeds is not None and seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    size, out = SCALES[scale], Path(out)
    if what in size.without:
        made = ", ".join(s.name for s in SCALES.values() if what not in s.without)
        raise ValueError(f"scale {scale} does not make {what}: use one of {made}")
    names = tuple(n for n in NAMES if n not in size.without) if what == "all" else (what,)
    if only:
        _check_rows(what, [row.key for row in TABLES[what](size).rows()] if what in TABLES else [], only)
    for name in names:
        _check_place(out / f"{name}.json", scale)
    chosen = tuple(range(size.seeds if seeds is None else seeds))
    written: list[Path] = []
    with raising(), repaired_by("repeating the command resumes"):
        bench = Bench(size, Path(runs), build, read, None if time_limit is None else begun + time_limit, progress, say)
        out.mkdir(parents=True, exist_ok=True)
        for name in names:
            say(f"{name}, scale {scale}")
            stopped = None
            try:
                if name == "figure-1":
                    written += _figure_1(bench, out, seeds)
                    continue
                _MAKE.get(name, _make_table)(bench, name, chosen, only)
            except Interrupted as stop:
                stopped = stop
            except KeyboardInterrupt:
                stopped = Interrupted("interrupted: repeating the command resumes")
            if name != "figure-1":
                given = (bench, name, chosen, out, command)
                written += _WRITE[name](*given) if name in _WRITE else _write_table(*given, only)
            if stopped is not None:
                raise stopped
    return written + (_claims(out) if what == "all" else [])


def _claims(out: Path) -> list[Path]:
    """The paper's claims, evaluated on the tables in ``out``, of any scale."""
    from atent.paper.claims import run_claims
    from atent.paper.statements import NAME

    run_claims(out)
    return [out / f"{NAME}.md", out / f"{NAME}.json"]


def _check_rows(what: str, rows: Sequence[str], only: Sequence[str]) -> None:
    if not rows:
        raise ValueError(f"--only needs one of {', '.join(TABLES)}, got {what}: omit it")
    for row in only:
        if row not in rows:
            raise ValueError(messages.unknown(f"row of {what}", row, rows))


def _check_place(path: Path, scale: str) -> None:
    if path.is_file():
        held = folder.read_json(path).get("scale")
        if held != scale:
            raise ValueError(f"{path} is of scale {held}: choose another --out, such as {path.parent / scale}")


# ---- tables of trained networks ------------------------------------------------------------------------------


def _make_table(bench: Bench, name: str, seeds: Sequence[int], only: Sequence[str]) -> None:
    engine.make(bench, TABLES[name](bench.scale), seeds, only)


def _write_table(
    bench: Bench, name: str, seeds: Sequence[int], out: Path, command: str, only: Sequence[str] = ()
) -> list[Path]:
    table = TABLES[name](bench.scale)
    content = {**result.collect(bench, table, seeds, only), "command": command}
    return _write(content, out, result.markdown(content), figure(content))


def figure(content: dict[str, Any]) -> Any:
    """The figure of a table of trained networks, by the content of its result file; None if nothing is measured."""
    table = TABLES[content["name"]](SCALES[content["scale"]])
    return _DRAW.get(content["name"], _draw_bars)(content, table)


def _write(content: dict[str, Any], out: Path, text: str, figure: Any) -> list[Path]:
    from atent import plots

    name = content["name"]
    folder.write_json(out / f"{name}.json", content)
    folder.write_atomic(out / f"{name}.md", text)
    files = [out / f"{name}.md", out / f"{name}.json"]
    if figure is not None:
        plots.save(figure, out / f"{name}.png")
        files.append(out / f"{name}.png")
    return files


def _draw_bars(content: dict[str, Any], table: Table) -> Any:
    """Each measured accuracy with its interval, by row."""
    from atent import plots

    shown: dict[str, dict[str, dict[str, Any]]] = {}
    for block in content["blocks"]:
        labels = {column["key"]: column["label"].removesuffix(" (%)") for column in block["columns"]}
        for row in block["rows"]:
            cells = {
                labels[key]: c["ours"] for key, c in row["cells"].items() if c["ours"] and c["ours"]["unit"] == "%"
            }
            if cells:
                label = row["label"] if len(content["blocks"]) == 1 else f"{row['label']}, {block['title']}"
                shown[label] = cells
    return plots.dots(shown) if shown else None


def _draw_sweep(content: dict[str, Any], table: Table) -> Any:
    """Table S3 against the radius, a line for each attack."""
    from atent import plots
    from atent.threat import radius

    ((block,), (described,)) = (content["blocks"], table.blocks)
    rows = []
    for row, cells in zip(block["rows"], described.rows, strict=True):
        clean = row["cells"]["clean"]["ours"]
        for key, c in row["cells"].items():
            attack = cells.cells[key].measure
            if key == "clean" or clean is None or c["ours"] is None or attack is None:
                continue
            r = radius(attack.attack.rpartition("eps=")[2].removesuffix(")"))
            share = {end: c["ours"][end] for end in ("value", "low", "high", "n")}
            name = f"{row['label'].partition(',')[0]}, n = {share['n']:,}"
            rows.append(
                {"attack": name, "norm": "linf", "radius": r, "clean": clean, "robust": share, "monotone": share}
            )
    return plots.security(rows, title=f"{content['title']}, scale {content['scale']}") if rows else None


_DRAW: dict[str, Callable[[dict[str, Any], Table], Any]] = {"table-s3": _draw_sweep}


# ---- Table S4 ------------------------------------------------------------------------------------------------


def _make_times(bench: Bench, name: str, seeds: Sequence[int], only: Sequence[str]) -> None:
    for norm in timing.NORMS:
        timing.timed(bench, norm)


def write_times(bench: Bench, name: str, seeds: Sequence[int], out: Path, command: str) -> list[Path]:
    """Write the table of the timings that are kept, as .json, .md and .png, into ``out``; the files."""
    found = {norm: timing.kept(bench, norm) for norm in timing.NORMS}
    labels = {"atent-10": "ATENT (K = 10)", "atent-5": "ATENT (K = 5)", "trades": "TRADES", "pgdat": "PGD"}
    labels |= {f"atent-{k}": f"ATENT (K = {k})" for k in timing.K}
    rounds, batches = bench.scale.timed
    protocol = f"mean \u00b1 sd of {rounds} interleaved rounds of {batches} batches, scaled to an epoch"
    columns = []
    for norm, times in found.items():
        columns.append({"key": norm, "label": f"{norm} (s / epoch)", "protocol": protocol})
        if times is None or times["of"] == "cpu_seconds":
            columns.append(
                {"key": f"{norm}-cpu", "label": f"{norm} (CPU s / epoch)", "protocol": "CPU time of this process"}
            )
    rows = []
    for key, label in labels.items():
        cells = {}
        for column in columns:
            norm, _, cpu = column["key"].partition("-")
            times, mine = found[norm], None
            if times is not None:
                mine = result.ours(
                    measure(times["rows"][key]["cpu_seconds" if cpu else "seconds"]), unit="s", n=None, seeds=[0],
                    protocol=protocol, scale=bench.scale.name, provenance=[times["provenance"]],
                )  # fmt: skip
            cells[column["key"]] = result.cell("table-s4", key, column["key"], mine, result.NOT_YET)
        first = next((times["rows"][key] for times in found.values() if times is not None), None)
        made = first and {"network": first["model"], "method": first["method"], "recipe": first["recipe"]}
        rows.append({"key": key, "label": label, "published": _printed("table-s4", key), "made": made, "cells": cells})
    done = {norm: times for norm, times in found.items() if times is not None}
    content = {
        **result.head(bench, name, "Table S4: seconds per epoch"),
        "blocks": [{"title": "", "columns": columns, "rows": rows}],
        "fit": {norm: times["fit"] for norm, times in done.items()},
        "exponent": {norm: timing.exponent(timing.counted(times)) for norm, times in done.items()},
        "ratio": {norm: timing.times(timing.counted(times), "atent-10", "atent-5") for norm, times in done.items()},
        "timings": done,
    }
    content = {**result.finish(content, [0]), "command": command}
    content["interval"] = "mean \u00b1 standard deviation over the rounds"
    figure = timing.figure(list(done.values())) if done else None
    return _write(content, out, result.markdown(content, timing.growth(content)), figure)


def _printed(table: str, row: str) -> dict[str, str] | None:
    from atent.paper.published import published

    source = published()[table].rows.get(row)
    return {key: getattr(source, key) for key in ("label", "network", "settings", "source")} if source else None


# ---- the figures ---------------------------------------------------------------------------------------------


def _make_curves(bench: Bench, name: str, seeds: Sequence[int], only: Sequence[str]) -> None:
    training_curves.make(bench, seeds)


def _write_curves(bench: Bench, name: str, seeds: Sequence[int], out: Path, command: str) -> list[Path]:
    found = training_curves.collect(bench, seeds)
    content = {**training_curves.content(bench, found, seeds), "command": command}
    figure = training_curves.figure(content) if found["epochs"] else None
    return _write(content, out, training_curves.markdown(content), figure)


def _figure_1(bench: Bench, out: Path, seeds: int | None) -> list[Path]:
    """Figure 1 is a separate experiment."""
    from atent.paper.figure_1 import run_figure_1

    content = run_figure_1(
        bench.scale.name, out=out, runs=bench.runs, seeds=seeds, deadline=bench.deadline, say=bench.say
    )
    bench.check()
    if not content["complete"]:
        raise Interrupted("figure-1 is not complete: repeating the command resumes")
    return [path for path in (out / f"figure-1.{kind}" for kind in ("md", "json", "png")) if path.is_file()]


_MAKE: dict[str, Callable[[Bench, str, Sequence[int], Sequence[str]], None]] = {
    "table-s4": _make_times, "figure-s1": _make_curves,
}  # fmt: skip
_WRITE: dict[str, Callable[[Bench, str, Sequence[int], Path, str], list[Path]]] = {
    "table-s4": write_times, "figure-s1": _write_curves,
}  # fmt: skip
