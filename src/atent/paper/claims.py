"""Evaluates the paper's claims on the measurements, and quantifies the discrepancies between its text and its code.

    python -m atent.paper.claims results docs/paper.md

writes claims.json and claims.md into results, and the same tables between the markers of the page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent.markdown import table as markdown_table
from atent.paper.discrepancies import DISCREPANCIES, Discrepancy
from atent.paper.evidence import Results, as_printed, measured
from atent.paper.statements import CLAIMS, COMMAND, NAME, Claim
from atent.paper.verdicts import NOT_YET

BEGIN, END = "<!-- generated: claims -->", "<!-- end of generated -->"


def run_claims(out: str | Path, page: str | Path | None = None) -> dict[str, Any]:
    """Evaluate every claim by the result files in ``out``; write claims.json and claims.md there and return the former.
    With ``page``, a Markdown file with the two markers, the tables between them are regenerated.

    Missing measurements read "not measured yet"; nothing is filled in by hand. Numbers that need no trained network are
    computed at each call, in some seconds. Raises ValueError if the page lacks a marker.
    """
    found = measured(out)
    printed = as_printed(found.facts)
    claims = [_entry(found, printed, claim) for claim in CLAIMS]
    made = {
        "name": NAME,
        "title": "Claims of the supplement, and discrepancies between its text and its code",
        "command": COMMAND,
        "claims": claims,
        "discrepancies": [_shown(found, one) for one in DISCREPANCIES],
        "facts": {key: asdict(fact) for key, fact in found.facts.items()},
        "results": {
            name: {"scale": table.get("scale"), "complete": table.get("complete")}
            for name, table in found.tables.items()
        },
        "provenance": folder.provenance(seed=0, device="cpu"),
    }
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    folder.write_json(out / f"{NAME}.json", made)
    content: dict[str, Any] = folder.read_json(out / f"{NAME}.json")
    folder.write_atomic(out / f"{NAME}.md", markdown(content))
    if page is not None:
        fill(Path(page), content)
    return content


def fill(page: Path, content: Mapping[str, Any]) -> None:
    """Write the tables of ``content`` between the markers of the page; ValueError if one is missing."""
    text = page.read_text()
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} lacks the line {BEGIN if not begin else END}: put it where the tables belong")
    folder.write_atomic(page, f"{head}{begin}\n\n{tables(content)}\n{end}{tail}")


def markdown(content: Mapping[str, Any]) -> str:
    """claims.md: both tables, and where they come from."""
    made = content["provenance"]
    changed = " with changes" if made["dirty"] else ""
    return (
        f"# {content['title']}\n\n{tables(content)}\natent {made['version']}, commit {made['commit']}{changed}, torch"
        f" {made['torch']}, {made['device_name']}; `{content['command']}`\n"
    )


def tables(content: Mapping[str, Any]) -> str:
    """The verdicts as a table, then the evidence of each claim, then the discrepancies, as Markdown."""
    heads = ["", "section", "claim", "published", "verdict on the published figures", "verdict"]
    rows = []
    for i, claim in enumerate(content["claims"], 1):
        cells = [claim["where"], claim["says"], claim["printed"], claim["by_its_own"] or "-", f"**{claim['verdict']}**"]
        rows.append([str(i), *cells])
    lines = [*markdown_table(heads, rows, left=6), "", "Evidence and criterion of each claim:", ""]
    for i, claim in enumerate(content["claims"], 1):
        basis = f"Measured (scale {claim['scale']})" if claim["scale"] else "Computed"
        figures = f"{basis}: {claim['ours']}." if claim["verdict"] != NOT_YET else "Not measured yet."
        parts = [figures, f"Criterion for `true`: {claim['rule']}.", f"Command: `{claim['command']}`"]
        lines += _item(i, claim["says"], parts)
    lines += ["", "Discrepancies between text, tables and code:", ""]
    for i, one in enumerate(content["discrepancies"], 1):
        printed = [f"Published: {one['printed']}."] if one["printed"] != "-" else []
        parts = [*printed, f"Computed or measured: {one['ours']}.", f"Command: `{one['command']}`"]
        lines += _item(i, one["what"], parts)
    return "\n".join([*lines, ""])


def _item(number: int, title: str, parts: Iterable[str]) -> list[str]:
    return [f"{number}. **{title}**", *(f"    - {part}" for part in parts)]


def _entry(found: Results, printed: Results, claim: Claim) -> dict[str, Any]:
    finding = claim.evaluate(found)
    # A claim about settings has a single verdict: no printed figure is evaluated.
    own = claim.evaluate(printed).verdict if claim.table else NOT_YET
    table = found.tables.get(claim.table or "")
    return {
        "where": claim.where, "says": claim.says, "printed": claim.printed,
        "by_its_own": own if own != NOT_YET else None, "verdict": finding.verdict,
        "ours": finding.ours, "scale": table.get("scale") if table and finding.verdict != NOT_YET else None,
        "rule": claim.rule, "command": claim.command,
    }  # fmt: skip


def _shown(found: Results, one: Discrepancy) -> dict[str, str]:
    printed, ours = [], []
    for key, names in one.facts:
        fact = found.facts[key]
        printed.append(fact.printed)
        ours += [f"{name}: {_number(fact.values[name])}" for name in names or fact.values]
    if one.shown is not None:
        ours.append(one.shown(found))
    return {
        "what": one.what, "printed": "; ".join(printed) or "-", "ours": "; ".join(ours), "command": one.command,
    }  # fmt: skip


def _number(v: float) -> str:
    return f"{v:,.0f}" if float(v).is_integer() and abs(v) < 1e15 else f"{v:.4g}"


if __name__ == "__main__":
    words = sys.argv[1:]
    if len(words) not in (1, 2):
        sys.exit("usage: python -m atent.paper.claims RESULTS [PAGE.md]")
    verdicts = [claim["verdict"] for claim in run_claims(*words)["claims"]]
    print(json.dumps({v: verdicts.count(v) for v in dict.fromkeys(verdicts)}))
