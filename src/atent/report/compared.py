"""Several runs side by side, and the table of a comparison over seeds."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from atent import plots
from atent.attacks.spec import show
from atent.experiments.comparison import caption, caveat, layout
from atent.report import words
from atent.report.collect import Comparison, Run, threats
from atent.report.page import Cell, Html, facts, figure, table, tag
from atent.report.sections import share_cell
from atent.stats import percent
from atent.threat import Threat


def several(runs: Mapping[str, Run]) -> list[Html]:
    """One table of all runs, and their curves together."""
    label = words.short(runs)
    judged = {title: run.judged for title, run in runs.items() if run.judged is not None}
    names = list(dict.fromkeys(name for found in judged.values() for name in found["attacks"]))
    headings = ["run", "method", "robust (worst case)", "natural", *names, "AutoAttack", "judged under", "test images"]
    headings += ["trained against", "best epoch", "s / epoch"]
    rows = [[title, *_row(run, names)] for title, run in runs.items()]
    out = [
        tag("h2", "Side by side"),
        table(headings, rows, label="all runs, with 95 % intervals"),
        tag("p", "Accuracies on test images, with 95 % intervals.", class_="note"),
        *_differences(judged),
    ]
    unsure = [title for title, found in judged.items() if caveat(found["attacks"], found["search_dtype"])]
    if unsure:
        which = "" if len(unsure) == len(runs) else f"{', '.join(unsure)}: "
        out.append(tag("p", which + str(caveat({})), class_="warning"))
    if judged:
        dots = {label[t]: {"natural": f["natural"], "robust (worst case)": f["worst"]} for t, f in judged.items()}
        told = "; ".join(
            f"{t} {words.percent(f['natural']['value'])} and {words.percent(f['worst']['value'])}"
            for t, f in judged.items()
        )
        out.append(
            figure(plots.dots(dots), f"Natural and robust accuracy by run: {told}.", height=1.6 + 0.5 * len(dots))
        )
    curves = {t: r.rows for t, r in runs.items() if any(row.get("validation_natural") is not None for row in r.rows)}
    if curves:
        told = " ".join(f"{title}: {words.course(rows)}" for title, rows in curves.items())
        height = 5.5 + 0.12 * len(curves)
        out.append(
            figure(
                plots.together({label[t]: rows for t, rows in curves.items()}),
                told,
                "Validation accuracy while training.",
                height=height,
            )
        )
    return out


def _row(run: Run, names: list[str]) -> list[Any]:
    method, found = run.config["method"], run.judged
    threat = method.get("threat")
    seconds = [row["seconds"] for row in run.rows if "seconds" in row]
    pace = statistics.median(seconds) if seconds else None
    row: list[Any] = [str(method.get("name") or "unknown")]
    if found is None:
        row += ["not judged"] + [""] * (len(names) + 4)
    else:
        row += [_stacked(found["worst"]), _stacked(found["natural"])]
        row += [_stacked(found["attacks"][n]["robust"]) if n in found["attacks"] else "not run" for n in names]
        row += ["no" if caveat(found["attacks"], found["search_dtype"]) else "yes", " and ".join(threats(found))]
        row.append(Cell(f"{found['n']:,}, {found['data']['name']}", found["n"]))
    row.append(show(Threat(**threat)) if threat else "none")
    best = run.best_epoch
    return [*row, Cell("" if best is None else str(best), best), Cell("" if pace is None else f"{pace:.2f}", pace)]


def _stacked(share: dict[str, Any]) -> Cell:
    """A share with its interval below it, which saves width."""
    value, interval = percent(share).split(" [")
    return Cell([value, tag("br"), f"[{interval}"], share["value"])


def _differences(judged: Mapping[str, dict[str, Any]]) -> list[Html]:
    """A warning where the runs were not judged alike."""
    looks = {
        "data": lambda f: f["data"]["name"],
        "number of test images": lambda f: f["n"],
        "choice of test images": lambda f: f["outcomes"].get("ids"),
        "threat": threats,
        "set of attacks": lambda f: [a["attack"] for a in f["attacks"].values()],
        "order of attacks": lambda f: f["cascade"],
    }
    differ = [name for name, look in looks.items() if len({str(look(found)) for found in judged.values()}) > 1]
    if not differ:
        return []
    return [tag("p", f"Judged differently, so compare with care: {', '.join(differ)}.", class_="warning")]


def over_seeds(comparison: Comparison) -> list[Html]:
    """The table, the figure and the caption of a comparison, and each training of it."""
    found = comparison.found
    headings, rows = layout(found)
    listed: list[list[Any]] = []
    for name, entries in rows:
        cells = []
        for e in entries:
            text = tag("b", e.text) if e.best else e.text
            cells.append(Cell([text, tag("br") if e.interval else None, e.interval], _number(e.text)))
        listed.append([name, *cells])
    dots = {
        row["recipe"]: {"natural": _share(row["natural"]), "robust (worst case)": _share(row["worst"])}
        for row in found["rows"]
    }
    told = "; ".join(
        f"{name} {words.percent(row['natural']['value'])} and {words.percent(row['robust (worst case)']['value'])}"
        for name, row in dots.items()
    )
    # The last line of a caption is the caveat, which stands above by itself.
    lines = [line for line in caption(found) if line != found["caveat"]]
    below = [tag("p", line, class_="note") for line in lines]
    each: list[list[Any]] = [
        [seed["run"], row["method"], Cell(str(seed["seed"]), seed["seed"]), share_cell(seed["natural"]),
         share_cell(seed["worst"]), Cell(str(seed["best_epoch"]), seed["best_epoch"])]
        for row in found["rows"] for seed in row["seeds"]
    ]  # fmt: skip
    trainings = table(
        ("run", "method", "seed", "natural", "robust (worst case)", "best epoch"), each, label="each training"
    )
    return [
        table(["recipe", *headings], listed, label="recipes compared, means over seeds with 95 % intervals"),
        *([tag("p", found["caveat"], class_="warning")] if found["caveat"] else []),
        *below,
        figure(
            plots.dots(dots), f"Natural and worst-case robust accuracy, means over the seeds: {told}.",
            "Means over the seeds, with 95 % intervals.", height=1.6 + 0.5 * len(dots),
        ),
        tag("details", tag("summary", f"Each of the {len(each)} trainings"), trainings),
        facts([("command", tag("code", found["command"])), ("folder", tag("code", str(comparison.path)))]),
    ]  # fmt: skip


def _share(cell: dict[str, Any]) -> dict[str, Any]:
    return {"value": cell["mean"], "low": cell["low"], "high": cell["high"]}


def _number(text: str) -> float | None:
    try:
        return float(text.split()[0])
    except (ValueError, IndexError):
        return None
