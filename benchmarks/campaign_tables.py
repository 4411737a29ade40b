"""The paper's tables, the claims and the page of a campaign, from what lies under its --out.

    python benchmarks/campaign_tables.py

writes TABLE.json and TABLE.md of each table at the scale of --steps into --results, tables.md, which has the paper's,
the campaign's and --beside's figures in columns of their own, claims.md, claims.json and decided.md, the model card
NETWORK/card.md of each network that has an evaluation, and the part between the marks of README.md. A cell that is not
measured says what is missing and its estimated core hours.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from campaign_evaluate import HERE, Network, Steps, cost, entries, networks, read_steps
from campaign_pages import comparable, threads

from atent import plots, stats
from atent import runs as folder
from atent.evaluate.outcomes import ROBUST
from atent.experiments import migrate
from atent.experiments import recipes as config
from atent.experiments.results import EvaluationFile
from atent.experiments.target import load_target
from atent.export.card import card_of, markdown, results_of
from atent.markdown import table as markdown_table
from atent.paper import claims, engine, reproduce, result, training_curves
from atent.paper.evidence import Results, measured
from atent.paper.layout import Cell, Table
from atent.paper.statements import CLAIMS
from atent.paper.tables import TABLES
from atent.runs import manifest

BEGIN, END = "<!-- generated: campaign_tables.py -->", "<!-- end of generated -->"
CURVES, TIMES = "figure-s1", "table-s4"
COMMAND = "python benchmarks/campaign_tables.py"
PAIRS = {
    "ATENT less PGD-AT in l2": ("cifar10-l2-atent", "cifar10-l2-pgdat"),
    "ATENT less PGD-AT in linf": ("cifar10-linf-atent", "cifar10-linf-pgdat"),
    "ATENT less PGD-AT, fine-tuned": ("cifar10-finetune-atent", "cifar10-finetune-pgdat"),
}
"""The networks that are compared image by image."""


@dataclass(frozen=True)
class Campaign:
    """The finished networks, and the steps that say what the others cost."""

    steps: Steps
    found: Sequence[Network]
    bench: engine.Bench

    @property
    def seeds(self) -> list[int]:
        return sorted({n.seed for n in self.found}) or [0]

    def trained(self, training: str) -> bool:
        """Whether a network of that name is there, of any seed."""
        return any(n.training == training for n in self.found)

    def hours(self, training: str) -> float | None:
        """Estimated core hours of the first training of that name; None where the queue has none."""
        jobs = [job for job in self.steps.queue.jobs if (job.training or job.name) == training]
        return jobs[0].hours if jobs else None

    def why(self, training: str, cell: Cell | None) -> str:
        """Why a figure is missing, and what it costs."""
        if not self.trained(training):
            hours = self.hours(training)
            return "not trained (not in the queue)" if hours is None else f"not trained (~{hours:g} core hours)"
        if cell is None or cell.measure is None:
            return result.NOT_YET
        return f"not measured (~{minutes(cost(cell.measure))} core minutes)"


def minutes(hours: float) -> str:
    """Hours in minutes, to two digits."""
    return f"{60 * hours:.1f}" if hours < 1 / 6 else f"{60 * hours:.0f}"


def made_as_runs(found: Sequence[Network], scale: str, place: Path) -> None:
    """The networks as `atent reproduce` keeps its runs, without their weights."""
    for network in found:
        run = place / scale / f"{network.training}-seed{network.seed}"
        shutil.copytree(
            network.place, run, ignore=shutil.ignore_patterns("*.safetensors", "*.png", ".*", folder.MANIFEST)
        )
        recorded = folder.read_json(run / folder.CONFIG)
        if recorded["model"].get("weights"):
            # A fine-tuned network begins from another of the campaign, which had another place then.
            recorded["model"]["weights"] = str(run.parent / Path(recorded["model"]["weights"]).name)
            folder.write_json(run / folder.CONFIG, recorded)
        if not (run / folder.EVALUATION).is_file():
            folder.write_json(run / folder.EVALUATION, {})
        manifest.record(run, *(path.name for path in run.iterdir() if path.is_file()))


def contents(made: Campaign) -> Iterator[tuple[Table, dict[str, Any]]]:
    """Each table with its content."""
    for name, describe in TABLES.items():
        if name in made.bench.scale.without:
            continue
        table = describe(made.bench.scale)
        content = result.collect(made.bench, table, made.seeds)
        for block, shown in zip(table.blocks, content["blocks"], strict=True):
            for row, entry in zip(block.rows, shown["rows"], strict=True):
                for key, cell in row.cells.items():
                    if entry["cells"][key]["why"] == result.NOT_YET and cell.training is not None:
                        entry["cells"][key]["why"] = made.why(cell.training.name, cell)
        yield table, {**content, "command": COMMAND}


# ---- the paper, the campaign and a smaller scale side by side ------------------------------------------------


def beside(content: Mapping[str, Any], other: Mapping[str, Any] | None, heading: str) -> list[str]:
    """A table in long form: a line for each figure."""
    rows = []
    for block in content["blocks"]:
        labels = {column["key"]: column["label"].removesuffix(" (%)") for column in block["columns"]}
        for row in block["rows"]:
            for key, cell in row["cells"].items():
                shown = result.text(cell)
                if cell["ours"] and cell["ours"]["n"]:
                    shown += f", n = {cell['ours']['n']:,}"
                small = _there(other, row["key"], key)
                rows.append([row["label"], labels[key], cell["published"] or "-", shown, small])
    name = other["scale"] if other else "smaller scale"
    return markdown_table(["row", "measure", "paper", heading, f"{name}, its own radius"], rows, left=2)


def _there(content: Mapping[str, Any] | None, row: str, key: str) -> str:
    for block in content["blocks"] if content else ():
        for found in block["rows"]:
            if found["key"] == row and key in found["cells"]:
                return result.text(found["cells"][key])
    return "-"


def all_tables(made: Campaign, tables: Mapping[str, Mapping[str, Any]], other: Path) -> str:
    """tables.md."""
    epochs = made.bench.scale.changes["train"]["epochs"]
    heading = f"CIFAR-10, ResNet-20, {epochs} epochs"
    lines = ["# The paper, CIFAR-10 and a smaller scale side by side", ""]
    for name, content in tables.items():
        path = other / f"{name}.json"
        small = result.read_result(path) if path.is_file() else None
        lines += [f"## {content['title']}", "", *beside(content, small, heading), ""]
        if content["hardware"]:
            lines += [f"Measured on {'; '.join(content['hardware'])}, commit {', '.join(content['commit'])}.", ""]
    lines += ["## Figure S1: training curves of linf ATENT", ""]
    if made.trained(_curves(made)):
        lines += [f"![Clean and robust accuracy against epoch]({CURVES}.png)", "", f"[Each epoch]({CURVES}.md).", ""]
    else:
        lines += [made.why(_curves(made), None) + ".", ""]
    if TIMES not in tables:
        hours = next((job.hours for job in made.steps.queue.jobs if job.kind == "timing"), 0)
        lines += ["## Table S4: seconds per epoch", "", f"not measured (~{hours:g} core hours).", ""]
    lines += [f"Scale {made.bench.scale.name}: {made.bench.scale.about}.", ""]
    return "\n".join([*lines, "`python benchmarks/campaign_tables.py`", ""])


def _timed(made: Campaign) -> bool:
    return (made.bench.runs / made.bench.scale.name / "timing-l2.json").is_file()


def times(made: Campaign, out: Path) -> dict[str, dict[str, Any]]:
    """Table S4, where its timings are there: table-s4.json, .md and .png; its content by name."""
    if not _timed(made):
        return {}
    reproduce.write_times(made.bench, TIMES, [0], out, COMMAND)
    return {TIMES: result.read_result(out / f"{TIMES}.json")}


def curves(made: Campaign, out: Path) -> None:
    """Figure S1, where its network is trained: figure-s1.json, .md and .png."""
    if made.trained(_curves(made)):
        found = training_curves.collect(made.bench, made.seeds)
        content = {**training_curves.content(made.bench, found, made.seeds), "command": COMMAND}
        folder.write_json(out / f"{CURVES}.json", content)
        folder.write_atomic(out / f"{CURVES}.md", training_curves.markdown(content))
        plots.save(training_curves.figure(content), out / f"{CURVES}.png")


def _curves(made: Campaign) -> str:
    return training_curves.training(made.bench).name


# ---- claims --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked(Results):
    """Results that remember which figures were asked for and are not there."""

    lacks: list[tuple[str, str, str]] = field(default_factory=list)

    def cell(self, table: str, row: str, column: str) -> dict[str, Any] | None:
        """As in `Results`."""
        found = super().cell(table, row, column)
        if found is None:
            self.lacks.append((table, row, column))
        return found


def undecided(made: Campaign, out: Path, content: Mapping[str, Any]) -> list[str]:
    """Of each claim its verdict, what is missing for one, and when it would be another."""
    found = measured(out)
    rows = []
    for claim, entry in zip(CLAIMS, content["claims"], strict=True):
        asked = Asked(found.tables, found.facts)
        claim.evaluate(asked)
        if entry["verdict"] in ("not decided", "not measured yet"):
            lacks = _lacks(made, asked.lacks, claim.table)
            if not lacks and claim.table == TIMES:
                lacks = "more rounds of the job `table-s4`: an interval of a ratio contains a limit of the rule"
            elif not lacks and entry["verdict"] == "not decided":
                lacks = "a second and a third training of each (seeds 1 and 2): one training of each decides nothing"
            elif not lacks:
                lacks = "not at this scale: every network is ResNet-20, and the claim is about networks of two sizes"
        else:
            lacks = "-"
        rows.append([claim.says, f"**{entry['verdict']}**", lacks, claim.rule])
    return markdown_table(["the paper says", "verdict", "what is missing", "it is called true when"], rows, left=4)


def _lacks(made: Campaign, places: Sequence[tuple[str, str, str]], table: str | None) -> str:
    """Missing figures as trainings and measures, with their costs."""
    words: dict[str, None] = {}
    for name, row, column in places:
        if name not in TABLES or name in made.bench.scale.without:
            continue
        rows = {r.key: r for r in TABLES[name](made.bench.scale).rows()}
        cell = rows[row].cells.get(column) if row in rows else None
        if cell is not None and cell.training is not None:
            words[f"`{cell.training.name}`: {made.why(cell.training.name, cell)}"] = None
    if not words and table == CURVES and not made.trained(_curves(made)):
        words[f"`{_curves(made)}`: {made.why(_curves(made), None)}"] = None
    if not words and table == TIMES and not _timed(made):
        words["the job `table-s4` of benchmarks/cifar.toml"] = None
    if not words and table == "figure-1":
        words["it is not of CIFAR-10: see the laptop's scale"] = None
    return "; ".join(words)


# ---- the page ------------------------------------------------------------------------------------------------


def trainings(made: Campaign) -> list[str]:
    """How each network was trained, and where; then those that are not there."""
    rows = []
    for n in made.found:
        part, recorded = n.job["segments"][-1], folder.read_json(n.place / folder.CONFIG)
        where = f"{part['hardware']}, {threads(part['threads'])}, {part['precision']}"
        cells = (str(n.seed), str(n.job["epochs"]), f"{n.job['images_seen']:,}", f"{n.job['core_hours']:.1f}")
        rows.append([f"`{n.name}`", recorded["model"]["name"], where, n.job["commit"][:12], *cells])
    heads = ["network", "architecture", "where", "commit", "seed", "epochs", "images seen", "core hours"]
    lines = markdown_table(heads, rows, left=4)
    known = {n.name for n in made.found}
    left = [j for j in made.steps.queue.jobs if j.kind in ("train", "curves") and j.name not in known]
    if left:
        words = ", ".join(f"`{job.name}` ({job.hours:g})" for job in left)
        lines += ["", f"Not trained, with the estimated core hours: {words}."]
    return lines


def figures(made: Campaign) -> list[str]:
    """Every accuracy that is there, by network, with n, interval, seed, processor and commit."""
    rows = []
    for n in made.found:
        for key, found in engine.measured(n.place).items():
            share = found.get("share") or found["certified"]
            what = key.rpartition(", stratified")[0].replace("natural", "no attack")
            rows.append(_line(n, what, share, found["provenance"], engine.MEASURES))
        for path in sorted(n.place.glob("evaluation*.json")):
            rows += _evaluated(n, path)
    heads = ["network", "attack", "file", "where", "commit", "accuracy (%)", "n", "seed"]
    return markdown_table(heads, rows, left=5)


def _evaluated(n: Network, path: Path) -> list[list[str]]:
    found = migrate.read(path, EvaluationFile).to_json()
    made, rows = found["provenance"], []
    for attack in found["attacks"].values():
        threat = attack["threat"]
        what = f"{attack['attack']}, {threat['norm']} {float(threat['eps']):.4g}"
        rows.append(_line(n, what, attack["robust"], made, path.name))
    return rows


def _line(n: Network, what: str, share: Mapping[str, Any], made: Mapping[str, Any], file: str) -> list[str]:
    value = f"{100 * share['value']:.1f} [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"
    where = f"{made['device_name']}, {threads(made['threads'])}"
    return [f"`{n.name}`", what, file, where, result.commit(made), value, f"{share['n']:,}", str(made["seed"])]


def by_sample(place: Path) -> dict[tuple[str, str], str]:
    """By attack and test images, "1" for each image that remains correctly classified and "0" for the others."""
    out = {}
    for key, found in engine.measured(place).items():
        kept = found.get("outcomes", {})
        if "share" in kept:
            out[key.rpartition(", stratified")[0].replace("natural", "no attack"), kept["ids"]] = kept["share"]
    for path in sorted(place.glob("evaluation*.json")):
        content = migrate.read(path, EvaluationFile).to_json()
        for name, codes in content["outcomes"]["attacks"].items():
            attack, threat = content["attacks"][name]["attack"], content["attacks"][name]["threat"]
            what = f"{attack}, {threat['norm']} {float(threat['eps']):.4g}"
            out[what, content["outcomes"]["ids"]] = "".join("1" if code == ROBUST else "0" for code in codes)
    return out


def differences(made: Campaign, pair: tuple[str, str]) -> list[str]:
    """ATENT less PGD-AT, image by image, for each measure of both: of these two networks, not of the methods."""
    found = {n.name: by_sample(n.place) for n in made.found}
    one, other = (found.get(name, {}) for name in pair)
    rows = []
    for (what, ids), robust in one.items():
        if (what, ids) not in other:
            continue
        outcomes, n = ([robust], [other[what, ids]]), len(robust)
        gap = stats.paired(*([side[0].count("1") / n] for side in outcomes), n, outcomes)
        gaps = stats.by_image(*outcomes)
        counts = sum(g > 0 for g in gaps), sum(g < 0 for g in gaps)
        value = f"{100 * gap.value:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"
        rows.append([what, value, f"{n:,}", f"{counts[0]:,}", f"{counts[1]:,}", f"{stats.mcnemar(*counts):.2g}"])
    if not rows:
        return ["Not both are measured yet."]
    heads = ["attack", "difference (points)", "n", "only ATENT robust", "only PGD-AT robust", "McNemar's p"]
    return markdown_table(heads, rows)


def checked(made: Campaign) -> list[str]:
    """The masking checks and the mean error under corruptions of each evaluated network."""
    rows = []
    files = [(n, path) for n in made.found for path in sorted(n.place.glob("evaluation*.json"))]
    every = [migrate.read(path, EvaluationFile).to_json() for _, path in files]
    for (n, _), found, report in zip(files, every, comparable([each.get("corruptions") for each in every])):
        checks = found.get("checks") or []
        warned = [f"{check['name']} ({check['figure']})" for check in checks if not check["passed"]]
        passed = f"{len(checks) - len(warned)} of {len(checks)}" + "".join(f"; warns: {w}" for w in warned)
        if report:
            mean, clean = report["mean"], f"{100 * report['clean_error']['value']:.1f}"
            value = f"{100 * mean['value']:.1f} [{100 * mean['low']:.1f}, {100 * mean['high']:.1f}]"
            errors = [value, clean, f"{report['n']:,}"]
        else:
            # Errors of other definitions are not comparable with these.
            other = found.get("corruptions")
            errors = [f"by version {other['definitions']} of the corruptions" if other else "", "", ""]
        if checks or any(errors):
            rows.append([f"`{n.name}`", passed if checks else "", *errors])
    heads = ["network", "checks passed", "mean error under corruptions (%)", "without one (%)", "n"]
    text = (
        "The checks are for masked gradients and weak attacks; the error is the mean over 15 common corruptions at 5"
        " severities."
    )
    return [text, "", *markdown_table(heads, rows)] if rows else ["Nothing is measured yet."]


def costs(made: Campaign) -> list[str]:
    """What the evaluations of the networks took, and what the steps ask for and is not measured."""
    rows = []
    for n in made.found:
        spent = sum(entry["core_seconds"] for entry in entries(n.place)) / 3600
        left = "; ".join(f"`{p.name}` (~{minutes(p.hours)} core minutes)" for p in made.steps.missing(n))
        rows.append([f"`{n.name}`", left or "nothing", f"{spent:.2f}"])
    return markdown_table(["network", "not measured yet", "core hours"], rows, left=2)


def page(made: Campaign) -> str:
    """What stands between the marks of README.md."""
    parts = {
        "Trainings": trainings(made), "Figures": figures(made),
        **{f"{what}: these two networks, on the same images": differences(made, pair) for what, pair in PAIRS.items()},
        "Checks and corruptions": checked(made), "Evaluations": costs(made),
    }  # fmt: skip
    return "\n".join(line for title, lines in parts.items() for line in (f"### {title}", "", *lines, ""))


def filled(text: str, block: str) -> str:
    """A page with its block made anew; ValueError where it lacks a mark."""
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks the line {BEGIN if not begin else END}: put it where the tables belong")
    return f"{head}{begin}\n\n{block}{end}{tail}"


def cards(found: Sequence[Network]) -> None:
    """The model card of each evaluated network."""
    for network in found:
        if list(network.place.glob("evaluation*.json")):
            target = load_target(str(network.place), attacks=())
            made = card_of(target, results_of(target), name=network.name, license="mit")
            folder.write_atomic(network.place / "card.md", markdown(made))


def write_all(steps: Steps, results: Path, other: Path) -> None:
    """Every file of the campaign's tables."""
    found = networks(results, steps.queue)
    with tempfile.TemporaryDirectory() as place:
        made_as_runs(found, steps.scale.name, Path(place))
        for path in results.glob("*/timing-*.json"):
            shutil.copy(path, Path(place) / steps.scale.name / path.name)
        made = Campaign(steps, found, engine.Bench(steps.scale, Path(place), config.job, config.read_recipe))
        tables: dict[str, dict[str, Any]] = {}
        for table, content in contents(made):
            tables[table.name] = content
            folder.write_json(results / f"{table.name}.json", content)
            folder.write_atomic(results / f"{table.name}.md", result.markdown(content))
        curves(made, results)
        tables |= times(made, results)
        folder.write_atomic(results / "tables.md", all_tables(made, tables, other))
        verdicts = claims.run_claims(results)
        lines = ["# What is decided on CIFAR-10", "", *undecided(made, results, verdicts), ""]
        folder.write_atomic(results / "decided.md", "\n".join([*lines, "`python benchmarks/campaign_tables.py`", ""]))
        cards(found)
        text = (results / "README.md").read_text()
        folder.write_atomic(results / "README.md", filled(text, page(made)))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status 0 done, 1 failed, 2 not understood."""
    parser = argparse.ArgumentParser(
        prog="campaign_tables.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    results = HERE.parent / "results"
    parser.add_argument("--steps", type=Path, default=HERE / "cifar_evaluate.toml", help="the steps file")
    parser.add_argument("--results", type=Path, default=results / "cifar", help="the campaign's --out")
    parser.add_argument("--beside", type=Path, default=results / "laptop", help="tables of another scale")
    o = parser.parse_args(argv)
    try:
        write_all(read_steps(o.steps), o.results, o.beside)
    except (ValueError, OSError) as error:
        print(str(error).splitlines()[0], file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
