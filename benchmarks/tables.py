"""Regenerate the tables of a document from the files under results/.

    python benchmarks/tables.py docs/choosing.md

Each table stands between markers, <!-- comparison: NAME --> or <!-- ablation: NAME --> and <!-- end -->; NAME is a
folder of results/ that `atent compare` or benchmarks/ablation.py wrote. <!-- inputs: NAME -->, <!-- fuzz: NAME -->,
<!-- soak: NAME --> and <!-- upkeep: NAME --> show the files bad_inputs.json, fuzz.json, soak.json and upkeep.json of
the scripts of these names, <!-- bench: NAME --> the bench.json of `atent bench`, <!-- verdicts: NAME --> and <!--
power: NAME --> the sequential.json of benchmarks/sequential.py, <!-- search: NAME --> the search.json of
benchmarks/search.py, <!-- curves: NAME --> the loss_curves.json of benchmarks/loss_curves.py, <!-- profiles: NAME -->
the profiles.json of benchmarks/profiles.py, <!-- smoothing: NAME --> the certify.json of benchmarks/certify.py, and
<!-- speed: NAME --> what benchmarks/autoattack.py and benchmarks/bounds.py wrote there, <!-- scaling: NAME --> the
scaling.json of benchmarks/scaling.py, <!-- streaming: NAME --> the streaming.json of benchmarks/streaming.py, <!--
checks: NAME --> the checks for masked gradients of the evaluations in a folder, <!-- warnings: NAME --> those that
warn, <!-- times: NAME --> the durations in a comparison, <!-- campaign: NAME --> those
of the trainings of benchmarks/campaign.py, and <!-- attacked: NAME --> those of the evaluations in a folder.
<!-- networks: NAME --> shows the networks of a campaign with their accuracies, and <!-- headline: NAME --> the table of
results of README.md, which stays as it is until PGD-AT and ATENT are both evaluated.
"""

from __future__ import annotations

import argparse
import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import campaign_pages

from atent.bench import head
from atent.bench import tables as bench_tables
from atent.experiments import migrate
from atent.experiments.comparison import layout
from atent.experiments.recipes import read_recipe
from atent.experiments.results import BenchFile, ComparisonFile, EvaluationFile
from atent.markdown import table as markdown_table
from atent.paper.evidence import Difference, difference
from atent.runs import write_atomic

_SHOWN = ("clean (%)", "PGD-20 (%)", "AutoAttack (%)", "worst of these (%)", "s / epoch", "epochs")


def comparison(folder: Path) -> str:
    """The rows of a comparison, its strongest attack, how far each row lies above PGD-AT by it, and its time; the whole
    table is in the folder."""
    typed = migrate.read(folder / "comparison.json", ComparisonFile)
    headings, rows = layout(typed)
    found = typed.to_json()
    # Where AutoAttack ran, it decides: what another attack finds is in the folder's own table.
    shown = [h for h in _SHOWN if h in headings and not (h.startswith("worst") and "AutoAttack (%)" in headings)]
    places = [headings.index(h) for h in shown]
    leads = beside(found["rows"])
    # The lead stands right of the accuracy that it is of.
    at = max(i for i, heading in enumerate(shown) if heading.endswith("(%)")) + 1
    shown.insert(at, "less PGD-AT (points)")
    listed = []
    for row, (_, entries) in zip(found["rows"], rows, strict=True):
        cells = [f"{entries[i].text} {entries[i].interval}".strip() for i in places]
        cells.insert(at, leads[row["recipe"]])
        listed.append([f"`{row['recipe']}`", *cells])
    lines = markdown_table(["recipe", *shown], listed)
    return "\n".join(lines) + "\n"


def beside(rows: list[dict[str, Any]]) -> dict[str, str]:
    """By recipe, its accuracy under the worst attack less that of PGD-AT, paired by seed; only between rows that both
    average their weights, or both do not."""
    (base,) = (row for row in rows if row["recipe"].endswith("-pgdat"))
    out = {}
    for row in rows:
        unlike = averaged(row["recipe"]) != averaged(base["recipe"])
        out[row["recipe"]] = "-" if row is base else "averaged weights" if unlike else str(lead(row, base))
    return out


def lead(row: dict[str, Any], base: dict[str, Any]) -> Difference:
    """The accuracy of one row under the worst attack less that of another."""
    one, other = (
        {"each": [s["worst"]["value"] for s in r["seeds"]], "seeds": [s["seed"] for s in r["seeds"]],
         "n": r["seeds"][0]["worst"]["n"]}
        for r in (row, base)
    )  # fmt: skip
    return difference(one, other)


def averaged(recipe: str) -> bool:
    """Whether a recipe keeps an average of the weights."""
    return "average" in read_recipe(recipe).get("train", {})


def ablation(folder: Path) -> str:
    """The table that benchmarks/ablation.py wrote, without its caption."""
    return "".join(line + "\n" for line in (folder / "ablation.md").read_text().splitlines() if line.startswith("|"))


def inputs(folder: Path) -> str:
    """Invalid inputs by kind: how many were tried, rejected and accepted."""
    found = json.loads((folder / "bad_inputs.json").read_text())
    rows = {**found["by"], "total": found["total"]}
    kinds = ("tried", "refused", "accepted", "wrong")
    names = {"texts": "strings", "command_line": "command line"}
    cells = [[names.get(name, name), *(f"{row[kind]:,}" for kind in kinds)] for name, row in rows.items()]
    return "\n".join(markdown_table(["input", "tried", "rejected in one line", "accepted", "violations"], cells)) + "\n"


def soak(folder: Path) -> str:
    """The interruptions of a soak, and the differences."""
    found = json.loads((folder / "soak.json").read_text())
    headings = [
        "command",
        "completed",
        "SIGKILL",
        "other signals",
        "differences",
        "failures",
        "peak memory (MiB)",
        "most open files",
    ]
    rows = []
    for kind, count in found["commands"].items():
        wrong = (len(count["differences"]), len(count["failures"]))
        peak = (f"{count['memory'] / 1024:.0f}", count["files"])
        rows.append([f"`{kind}`", *map(str, (count["cycles"], count["kills"], count["signals"], *wrong, *peak))])
    total = found["total"]
    whole = (total[key] for key in ("cycles", "kills", "signals", "differences", "failures"))
    rows.append([f"total, {found['minutes']:g} minutes", *map(str, whole), "", ""])
    return "\n".join(markdown_table(headings, rows)) + "\n"


def upkeep(folder: Path) -> str:
    """The cost of finiteness checks and checkpoints."""
    found = json.loads((folder / "upkeep.json").read_text())
    rows = [
        [
            f"finiteness checks, `{row['network']}`, batch {row['batch']}",
            f"{100 * row['share']:.2f}",
            f"a step of {1000 * row['step']:.3g} ms",
        ]
        for row in found["marks"]
    ]
    kept = found["keeping"]
    rows.append([
        f"checkpoints and other files, `{kept['recipe']}`, {kept['epochs']} epochs", f"{100 * kept['share']:.2f}",
        f"a training of {kept['seconds']:.0f} s, {kept['saves']} saves",
    ])  # fmt: skip
    return "\n".join(markdown_table(["overhead", "share (%)", "share of"], rows)) + "\n"


def fuzz(folder: Path) -> str:
    """The coverage of each fuzzer."""
    found = json.loads((folder / "fuzz.json").read_text())
    cells = []
    for name, row in found.items():
        reached = row["coverage"] or {"edges": "-", "inputs": "-"}
        kinds = ", ".join(dict.fromkeys(kind.partition("-")[0] for kind in row["findings"])) or "none"
        counts = (f"{row['minutes']:g}", f"{row['executions']:,}", str(reached["edges"]), str(reached["inputs"]))
        cells.append([name, kinds, *counts, str(len(row["findings"]))])
    headings = ["reader", "exceptions", "minutes", "executions", "edges covered", "corpus", "locations"]
    return "\n".join(markdown_table(headings, cells, left=2)) + "\n"


def bench(folder: Path) -> str:
    """What `atent bench` measured, without quartiles: they are in the folder's bench.md."""
    found = migrate.read(folder / "bench.json", BenchFile)
    lines = [*(f"- {line}" for line in head(found)), ""]
    for table in bench_tables(found):
        kept = [i for i, heading in enumerate(table.headings) if heading != "quartiles"]
        rows = [[case, *(cells[i] for i in kept)] for case, some in table.cases.items() for cells in some]
        headings = ["case", "what", *(table.headings[i] for i in kept[1:])]
        lines += [f"### {table.title[0].upper()}{table.title[1:]}", "", *markdown_table(headings, rows, left=2), ""]
        lines += [*(f"- {note}" for note in table.notes), *([""] if table.notes else [])]
    return "\n".join(lines)


def verdicts(folder: Path) -> str:
    """The decisions of the sequential test and of all samples."""
    found = json.loads((folder / "sequential.json").read_text())
    rows = []
    for row in found["results"]:
        counts = [row[f"verdicts_of_{which}"] for which in ("the_test", "all_samples")]
        kinds = [f"{c['certified']}, {c['certified_wrong']}, {c['abstained']}" for c in counts]
        same = f"{row['same_verdict']} of {row['images']}"
        fewer = f"{row['times_fewer']:.1f}"
        rows.append(
            [f"{row['radius']:g}", *kinds, same, f"{row['samples_mean']:.0f}", f"{row['samples_most']:,}", fewer]
        )
    headings = ["radius", "this test", "all samples", "same verdict", "mean samples", "most", "times fewer"]
    return "\n".join(markdown_table(headings, rows)) + "\n"


def power(folder: Path) -> str:
    """Power and mean number of samples of three sequential tests."""
    found = json.loads((folder / "sequential.json").read_text())
    rows = []
    for test in found["tests"]:
        for k, row in enumerate(test["shares"]):
            of = [row[name] for name in ("spending", "union", "mixture")]
            cells = [f"{each['power']:.3f}, {each['samples']:,.0f}" for each in of]
            name = f"{test['radius']:g} (p0 = {test['threshold']:.4f})" if not k else ""
            rows.append([name, f"{row['share']:.5g}", *cells])
    return "\n".join(markdown_table(["radius", "p", "this test", "union bound", "mixture"], rows)) + "\n"


def searched(folder: Path) -> str:
    """Robust accuracies of searches in two precisions and with two seeds, and their verdicts beside float32's."""
    found = json.loads((folder / "search.json").read_text())
    rows = []
    for name, arm in found["arms"].items():
        cells = []
        for attack, share in arm["robust"].items():
            pair = found["paired_with_float32"].get(f"{name}: {attack}")
            cells.append(f"{100 * share['value']:.2f} [{100 * share['low']:.1f}, {100 * share['high']:.1f}]")
            lost, won = ("", "") if pair is None else (pair["only_float32_fools"], pair["only_this_fools"])
            cells.append("" if pair is None else f"{won}, {lost}, p = {pair['p']:.2f}")
        rows.append([name, *cells, str(arm["again"]), f"{arm['cpu_seconds']:.0f}"])
    attacks = next(iter(found["arms"].values()))["robust"]
    columns = [heading for name in attacks for heading in (f"{name} (%)", "fools more, fewer")]
    return "\n".join(markdown_table(["search", *columns, "searched again", "CPU s"], rows)) + "\n"


def curves(folder: Path) -> str:
    """How far the mean losses of two ways to train differ, paired by seed, beside the noise of a seed."""
    found = json.loads((folder / "loss_curves.json").read_text())
    rows = []
    for name, epochs in found["pairs"].items():
        last = epochs[-1]
        widest = max(epochs, key=lambda each: abs(each["difference"]))
        cells = [f"{last['difference']:+.4f} [{last['low']:+.4f}, {last['high']:+.4f}]", f"{last['seeds']:.4f}"]
        rows.append([name, *cells, f"{widest['difference']:+.4f}", f"{widest['seeds']:.4f}"])
    headings = ["loss of", "last epoch", "sd over seeds", "epoch of the largest difference", "sd over seeds"]
    return "\n".join(markdown_table(headings, rows)) + "\n"


def profiles(folder: Path) -> str:
    """The operators with the most CPU time of their own, of a training and an evaluation."""
    content = json.loads((folder / "profiles.json").read_text())
    rows = []
    for name, found in content["results"].items():
        rows += [[name, f"`{e['name']}`", f"{100 * e['share']:.1f}", f"{e['calls']:,}"] for e in found["rows"]]
        rows.append([name, "these ten", f"{100 * sum(e['share'] for e in found['rows']):.1f}", ""])
    return "\n".join(markdown_table(["work", "operator", "share of the time (%)", "calls"], rows, left=2)) + "\n"


def smoothing(folder: Path) -> str:
    """Smoothing beside the usual loop."""
    rows = []
    for each in json.loads((folder / "certify.json").read_text())["results"]:
        for name, found in each["rows"].items():
            ratio, seconds = found["times_slower_than_atent"], found["seconds_per_image"]
            times = f"{ratio['median']:.2f} [{ratio['q10']:.2f}, {ratio['q90']:.2f}]"
            rows.append([f"`{each['model']}`", name, f"{seconds['median']:.2f}", times])
    headings = ["network", "loop", "s / image", "over atent, median [10 %, 90 %]"]
    return "\n".join(markdown_table(headings, rows, left=2)) + "\n"


def speed(folder: Path) -> str:
    """AutoAttack and bounds beside the field's code: CPU seconds, and how many times faster."""
    rows = []
    for each in json.loads((folder / "autoattack.json").read_text())["results"]:
        spent = [f"{sum(each['cpu_seconds'][name]):.0f}" for name in ("ours", "port")]
        what = f"AutoAttack, `{each['run']}`, {each['norm']}, {each['n']} images"
        rows.append([what, "pyautoattack", spent[0], "", spent[1], f"{each['ratio']['total']:.2f}", ""])
    bounds = [json.loads(path.read_text()) for path in sorted(folder.glob("bounds*.json"))]
    for each in (row for content in bounds for row in content["rows"]):
        seconds = {name: found["median"] for name, found in each["seconds"].items()}
        ours, plain = seconds.pop("ours"), seconds.pop("ours, rounding off")
        what = f"{each['method']}, {each['network']}, {each['norm']} {each['eps']:g}, {each['images']} images"
        for name, theirs in (seconds or {"none takes it": None}).items():
            ratios = (
                ["", "", ""] if theirs is None else [f"{theirs:.3f}", f"{theirs / ours:.2f}", f"{theirs / plain:.2f}"]
            )
            rows.append([what, name, f"{ours:.3f}", f"{plain:.3f}", *ratios])
    headings = ["what", "beside", "ours (s)", "rounding off (s)", "theirs (s)", "times faster", "rounding off"]
    return "\n".join(markdown_table(headings, rows, left=2)) + "\n"


def scaling(folder: Path) -> str:
    """Several processes beside one, and beside the cost model."""
    content = json.loads((folder / "scaling.json").read_text())
    rows = []
    for row in content["model"]:
        cells = [
            row["case"], str(row["processes"]), f"{row['seconds']:.3f}", f"{row['predicted']:.3f}",
            f"{row['speedup']:.2f}", f"{100 * row['efficiency']:.0f}",
        ]  # fmt: skip
        if "bytes" in row:
            bound = next(size for name, size in content["bound"].items() if f" {name}," in row["case"])
            cells += [f"{row['messages']:.0f}", f"{row['bytes'] / 1e6:.3f}", f"{bound / 1e6:.3f}"]
        rows.append(cells + [""] * (9 - len(cells)))
    headings = ["what", "processes", "s", "model (s)", "times faster", "efficiency (%)", "messages", "MB", "bound (MB)"]
    return "\n".join(markdown_table(headings, rows, left=1)) + "\n"


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, 120, break_long_words=False, break_on_hyphens=False)


_IMAGENET = {"cache": 1_331_167, "epoch": 1_281_167}
"""Images of ImageNet in both splits, and those of one epoch."""


def streaming(folder: Path) -> str:
    """The times of data on disk, and what they make of ImageNet."""
    found = json.loads((folder / "streaming.json").read_text())
    rates, spent, made = found["images_per_cpu_second"], found["cpu_milliseconds"], found["provenance"]
    batch, step = spent["batch"], spent["step"]
    of_ = f"of {found['batch']} images of 32 x 32: in memory / from the cache / decoded (BMP)"
    names = ("memory", "cache", "decoded")
    rows = [
        [
            f"JPEG of 500 x 375 ({found['kilobytes']:.0f} kB, synthetic) to {side} x {side}",
            f"{each['1']:.0f} images per CPU second with one thread, {each['2']:.0f} with two",
        ]
        for side, each in rates.items()
    ]
    rows += [
        [f"batch {of_}", " / ".join(f"{batch[name]:.2f}" for name in names) + " ms"],
        ["step of standard training of ResNet-20 on that batch", " / ".join(f"{step[n]:.0f}" for n in names) + " ms"],
    ]
    minutes = {what: n / rates["224"]["1"] / 60 for what, n in _IMAGENET.items()}
    return "\n".join([
        *_wrapped(
            f"CPU seconds of one thread on {made['device_name']}, torch {made['torch']}, beside other work; medians of"
            f" {found['repeats']} interleaved repeats, {found['images']} JPEG files."
        ),
        "",
        *markdown_table(["operation", "measured"], rows, left=2),
        "",
        *_wrapped(
            f"At these rates the cache of ImageNet at 224 x 224 takes {minutes['cache']:.0f} CPU minutes, once; with"
            f" `data.cache off`, decoding takes {minutes['epoch']:.0f} CPU minutes in every epoch. A batch from the"
            f" cache costs {batch['cache'] - batch['memory']:.1f} ms more than one from memory, in a step of"
            f" {step['memory']:.0f} ms."
        ),
        "",
    ])  # fmt: skip


def checks(folder: Path) -> str:
    """The accuracies of the evaluations in a folder, and their checks for masked gradients."""
    return _checked(folder, warned=False)


def warnings(folder: Path) -> str:
    """As `checks`, with those alone that warn."""
    return _checked(folder, warned=True)


def _checked(folder: Path, *, warned: bool) -> str:
    found = migrate.read(folder / "evaluation.json", EvaluationFile)
    strongest = migrate.read(folder / "evaluation-autoattack.json", EvaluationFile)
    shares = {name: each.robust for name, each in (found.attacks | strongest.attacks).items()}
    robust = ", ".join(f"{share.text} under {name}" for name, share in shares.items())
    rows = [
        [check.name, "pass" if check.passed else "warn", check.figure]
        for check in found.checks
        if not (warned and check.passed)
    ]
    failed = sum(not check.passed for check in found.checks)
    return "\n".join([
        *_wrapped(
            f"`{found.run}` (seed {found.provenance['seed']}), {', '.join(found.threats)}, {found.data.text} test"
            f" images: {robust}. {failed} of {len(found.checks)} checks warn:"
        ),
        "",
        *markdown_table(["check", "", "figure"], rows, left=3),
        "",
    ])  # fmt: skip


def times(folder: Path) -> str:
    """The time of an epoch and of a training of each recipe, with the machine and the number of concurrent
    trainings."""
    found = migrate.read(folder / "comparison.json", ComparisonFile).to_json()
    made = found["provenance"]
    together = f"{found['at_once']} training{'s' if found['at_once'] > 1 else ''}"
    each = f"{made['threads']} thread{'s' if made['threads'] > 1 else ''} each"
    head = (
        f"`{found['model']}`, batch {found['batch_size']}, {len(found['seeds'])} seeds; {made['device_name']}, "
        f"{together} at a time, {each}, torch {made['torch']} (`results/{folder.name}`):\n\n"
    )
    rows = []
    for row in found["rows"]:
        seconds = [seed["seconds_per_epoch"] for seed in row["seeds"]]
        mean = sum(seconds) / len(seconds)
        whole = f"{mean * found['epochs']:.0f}"
        cells = (f"{mean:.3g}", f"{min(seconds):.3g} to {max(seconds):.3g}", str(found["epochs"]), whole)
        rows.append([f"`{row['recipe']}`", *cells])
    headings = ["recipe", "s / epoch", "range over seeds", "epochs", "s / training"]
    return head + "\n".join(markdown_table(headings, rows)) + "\n"


def attacked(folder: Path) -> str:
    """The times of the attacks of the evaluations in a folder."""
    rows = []
    for path in sorted(folder.glob("*.json")):
        found = migrate.read(path, EvaluationFile).to_json()
        made = found["provenance"]
        for name, attack in found["attacks"].items():
            where = f"{made['device_name']}, {made['threads']} thread"
            per = 1000 * attack["seconds"] / attack["attacked"]
            counts = (f"{attack['attacked']:,}", f"{attack['seconds']:.0f}", f"{per:.1f}")
            rows.append([f"`{found['model']}`, {found['data']['name']}", name, where, *counts])
    return (
        "\n".join(markdown_table(["network", "attack", "hardware", "images", "s", "ms / image"], rows, left=3)) + "\n"
    )


MAKE: dict[str, Callable[[Path], str]] = {
    "comparison": comparison,
    "ablation": ablation,
    "inputs": inputs,
    "fuzz": fuzz,
    "soak": soak,
    "upkeep": upkeep,
    "bench": bench,
    "verdicts": verdicts,
    "power": power,
    "search": searched,
    "curves": curves,
    "profiles": profiles,
    "smoothing": smoothing,
    "speed": speed,
    "scaling": scaling,
    "streaming": streaming,
    "checks": checks,
    "warnings": warnings,
    "times": times,
    "campaign": campaign_pages.times,
    "attacked": attacked,
    "networks": campaign_pages.networks,
}
"""What makes the text between the markers of each kind, from a folder of results; but for `headline`."""
MARKED = re.compile(rf"(<!-- ({'|'.join([*MAKE, 'headline'])}): (\S+) -->\n)(.*?)(<!-- end -->)", re.S)


def refreshed(text: str, results: Path) -> str:
    """A document with its tables regenerated."""

    def made(m: re.Match[str]) -> str:
        place = results / m[3]
        return m[1] + (campaign_pages.headline(place, m[4]) if m[2] == "headline" else MAKE[m[2]](place)) + m[5]

    return MARKED.sub(made, text)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("document", type=Path)
    parser.add_argument("--results", type=Path, default=Path("results"))
    given = parser.parse_args()
    write_atomic(given.document, refreshed(given.document.read_text(), given.results))
