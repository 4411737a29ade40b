"""The networks of a campaign as the documents show them; benchmarks/tables.py puts the tables between their markers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from atent.experiments import migrate
from atent.experiments.results import EvaluationFile
from atent.markdown import table as markdown_table
from atent.runs import with_present_keys

STRONG = "PGD-40 x 5 margin"
"""What `atent evaluate` calls the strongest attack of a campaign's networks that is no AutoAttack."""


def threads(n: int) -> str:
    """A number of threads in words."""
    return f"{n} thread" if n == 1 else f"{n} threads"


def times(folder: Path) -> str:
    """The times of the trainings of a campaign."""
    rows = []
    for path in sorted(folder.glob("*/job.json")):
        job = json.loads(path.read_text())
        if "epochs" not in job:  # timings, say
            continue
        part = job["segments"][-1]
        where = f"{part['hardware']}, {threads(part['threads'])}, {part['precision']}"
        counts = (str(job["epochs"]), f"{job['images_seen']:,}", f"{job['core_hours']:.1f}")
        rows.append([f"`{job['training']}`", where, *counts])
    return "\n".join(markdown_table(["recipe", "hardware", "epochs", "images", "core hours"], rows, left=2)) + "\n"


class Trained(NamedTuple):
    """A network of a campaign: how it was trained, and what was measured of it."""

    job: dict[str, Any]
    radius: str
    """The threat that its evaluations are of, such as "l2 1"."""
    shares: dict[str, dict[str, Any]]
    """Accuracies with k, n, value, low and high, by attack; "clean" without one."""
    strongest: dict[str, Any] | None
    """The accuracy under AutoAttack of most images at that radius."""
    corruptions: dict[str, Any] | None


def trained(folder: Path) -> list[Trained]:
    """The evaluated networks of a campaign."""
    out = []
    for path in sorted(folder.glob("*/job.json")):
        files = sorted(path.parent.glob("evaluation*.json"))
        if not files:
            continue
        found = [migrate.read(file, EvaluationFile).to_json() for file in files]
        # Of the clean accuracy the evaluation of the most images counts.
        shares = {"clean": max((each["clean"] for each in found), key=lambda share: share["n"])}
        measures = path.parent / "measures.json"
        whole = with_present_keys(json.loads(measures.read_text())) if measures.is_file() else {}
        clean = next((each["share"] for key, each in whole.items() if key.startswith("natural")), None)
        shares["clean"] = clean or shares["clean"]
        for each in found:
            shares |= {name: attack["robust"] for name, attack in each["attacks"].items()}
        threat = next(a["threat"] for each in found for a in each["attacks"].values())
        radius = f"{threat['norm']} {round(255 * threat['eps'])}/255" if threat["norm"] == "linf" else ""
        radius = radius or f"{threat['norm']} {threat['eps']:g}"
        corrupted = next((each["corruptions"] for each in found if each.get("corruptions")), None)
        spellings = float(threat["eps"]), radius.partition(" ")[2]
        tabled = tuple(f"AutoAttack(norm={threat['norm']}, eps={eps}), " for eps in spellings)
        strongest = [each["share"] for key, each in whole.items() if key.startswith(tabled)]
        strongest += [shares["AutoAttack"]] if "AutoAttack" in shares else []
        most = max(strongest, key=lambda share: share["n"], default=None)
        out.append(Trained(json.loads(path.read_text()), radius, shares, most, corrupted))
    current = comparable([network.corruptions for network in out])
    return [network._replace(corruptions=report) for network, report in zip(out, current)]


def comparable(reports: list[dict[str, Any] | None]) -> list[dict[str, Any] | None]:
    """The reports on corruptions, without those whose corruptions are defined otherwise than in the newest of them."""
    newest = max((report["definitions"] for report in reports if report), default=0)
    return [report if report and report["definitions"] == newest else None for report in reports]


def networks(folder: Path) -> str:
    """A row for each network of a campaign, one training each; networks of one threat stand together."""
    lines = []
    found = trained(folder)
    for radius in dict.fromkeys(network.radius for network in found):
        rows = []
        for network in (each for each in found if each.radius == radius):
            shown = [_share(network.shares.get(name)) for name in ("clean", STRONG)]
            shown.append(_share(network.strongest))
            error = network.corruptions and _share(network.corruptions["mean"])
            counts = (str(network.job["epochs"]), f"{network.job['core_hours']:.1f}")
            rows.append([f"`{network.job['name']}`", *shown, error or "not measured", *counts])
        attacks = f"{STRONG}, {radius} (%)", f"AutoAttack, {radius} (%)"
        headings = ["network", "clean (%)", *attacks, "error under corruptions (%)", "epochs", "core hours"]
        lines += [*markdown_table(headings, rows), ""]
    return "\n".join(lines or ["No network is evaluated yet."]) + "\n"


def _share(share: dict[str, Any] | None) -> str:
    if share is None:
        return "not measured"
    text = f"{100 * share['value']:.1f} [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"
    return f"{text}, n = {share['n']:,}" if "n" in share else text


def headline(folder: Path, present: str) -> str:
    """The README's results: those of a campaign once its l2 networks of PGD-AT and ATENT are evaluated by AutoAttack;
    until then ``present``."""
    found = {network.job["name"]: network for network in trained(folder)}
    pair = [found.get(f"cifar10-l2-{name}") for name in ("atent", "pgdat")]
    if any(network is None or "AutoAttack" not in network.shares for network in pair):
        return present
    one, other = (network for network in pair if network is not None)
    rows = []
    for name in ("clean", STRONG, "AutoAttack"):
        cells = [_share(network.shares.get(name)) for network in (one, other)]
        rows.append([name if name == "clean" else f"{name}, {one.radius}", *cells])
    table = "\n".join(markdown_table(["accuracy (%), 95 % interval", "ATENT", "PGD-AT"], rows))
    return (
        f"On CIFAR-10, ResNet-20, {one.job['epochs']} epochs, \u21132, one training each"
        f" ([details](results/{folder.name}/README.md)):\n\n{table}\n\n"
        "One training of each method does not decide which is better. Robust accuracy under an attack is an upper\n"
        "bound: a stronger attack may lower it. [All measured results](docs/measured.md), and\n"
        "[the paper's tables reproduced](docs/reproduce.md).\n"
    )
