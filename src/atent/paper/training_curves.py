"""Figure S1: clean and robust accuracy of linf ATENT, in training and on the test set, against epoch.

The test curve is a diagnostic of the published figure: it is written to the run folder and selects no epoch.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from atent import runs as folder
from atent.attacks import ATTACKS
from atent.attacks.spec import parse, show
from atent.data.described import words
from atent.evaluate import evaluate
from atent.experiments.comparison import accuracy
from atent.experiments.target import load_target
from atent.markdown import table as markdown_table
from atent.paper.engine import Bench, robust_images, run_of, stage, train
from atent.paper.layout import Training
from atent.paper.published import value
from atent.paper.result import commit, head, machine
from atent.runs.manifest import read_json
from atent.threat import Threat

NAME = "figure-s1"
TEST = "test.jsonl"


# At the recipe's radius of 0.3 and with its rate kept until the decay, two of three trainings ended as constant
# predictors.
_LAPTOP: dict[str, Any] = {
    "data": {"limit": 2000},
    "method": {"threat": {"norm": "linf", "eps": 0.2}},
    "optimizer": {"lr": 0.02},
}


def training(bench: Bench) -> Training:
    """linf ATENT with a step of the rate near the end, as published (epoch 76), so that what follows can be seen."""
    small = bench.scale.small
    if bench.scale.name == "paper":
        # The published curve continues for a few epochs after the decay.
        return Training(f"{small}-linf-atent", {"train": {"epochs": 90}}, f"{NAME}-{small}")
    if bench.scale.name == "cifar":
        # This scale's own network decays at two thirds.
        return Training(f"{small}-linf-atent")
    epochs, decay = {"smoke": (4, 2), "laptop": (16, 10)}[bench.scale.name]
    changes: dict[str, Any] = {
        **(_LAPTOP if bench.scale.name == "laptop" else {}),
        "schedule": {"kind": "multistep", "unit": "epoch", "milestones": [decay], "factor": 0.1},
        "train": {"epochs": epochs},
    }
    return Training(f"{small}-linf-atent", changes, f"{NAME}-{small}")


def make(bench: Bench, seeds: Sequence[int], made: Training | None = None) -> None:
    """Train one network per seed and evaluate each epoch's weights on the test set; Interrupted at the time limit.

    ``made``: the training, with machine settings applied. Default: `training`.
    """
    for seed in seeds:
        path = train(bench, made or training(bench), seed, each_epoch=lambda run, row: _measure_epoch(bench, run, row))
        missing = _epochs(path / folder.METRICS) - _epochs(path / TEST)
        if missing:
            bench.say(f"note     {path.name}: stopped before the test accuracy of epoch {sorted(missing)} was measured")


def collect(bench: Bench, seeds: Sequence[int]) -> dict[str, Any]:
    """Per epoch, each of train, validation and test, clean and robust: mean, spread and interval over the seeds."""
    made = training(bench)
    found = [
        (seed, bench.path(made, seed)) for seed in seeds if stage(run_of(bench, made, seed), bench.build) == "finished"
    ]
    rows: dict[int, dict[str, list[Any]]] = {}
    rates: dict[int, float] = {}
    provenance = []
    for _, path in found:
        for row in folder.read_rows(path / folder.METRICS):
            rates[row["epoch"]] = row["lr"]
            into = rows.setdefault(row["epoch"], {})
            for key in ("train_clean", "train_robust", "validation_clean", "validation_robust"):
                if key in row:
                    into.setdefault(key, []).append(row[key])
        for row in _tests(path):
            provenance.append(row["provenance"])
            into = rows.setdefault(row["epoch"], {})
            for kind in ("clean", "robust"):
                into.setdefault(f"test_{kind}", []).append(row[kind])
    tests = {seed: {row["epoch"]: row for row in _tests(path)} for seed, path in found}
    epochs = []
    for epoch, values in sorted(rows.items()):
        entry: dict[str, Any] = {"epoch": epoch, "lr": rates.get(epoch)}
        for key, each in values.items():
            if key.startswith("test"):
                cell = accuracy(each)
                entry |= {key: cell.mean, f"{key}_low": cell.low, f"{key}_high": cell.high, f"{key}_sd": cell.sd}
            else:
                entry[key] = sum(each) / len(each)
        if "test_robust" in entry:
            entry["test"] = _each({seed: of[epoch] for seed, of in tests.items() if epoch in of})
        epochs.append(entry)
    decayed = [b["epoch"] for a, b in itertools.pairwise(epochs) if (b["lr"] or 0) < 0.5 * (a["lr"] or 0)]
    return {
        "recipe": made.recipe,
        "seeds": [seed for seed, _ in found],
        "decay": decayed[0] if decayed else None,
        "epochs": epochs,
        "about": _about(found[0][1]) if found else None,
        "provenance": provenance,
    }


def _measure_epoch(bench: Bench, path: Path, row: dict[str, Any]) -> None:
    """Measure the epoch's weights on the test set; they are on the disk by now."""
    if row["epoch"] in _epochs(path / TEST):
        return
    who = load_target(str(path), attacks=(), which="last", limit=_images(bench))
    x, y, ids = who.test()
    assert who.threat is not None
    attack = parse("PGD(steps=10)", who.threat, ATTACKS)
    with torch.random.fork_rng(devices=[]):
        found = evaluate(who.model, x, y, {"robust": attack}, ids=ids, cascade=False)
    entry = {"epoch": row["epoch"], "clean": found.clean, "robust": found.attacks["robust"]["robust"]}
    entry["data"] = who.samples()
    entry["outcomes"] = robust_images(found, "robust")
    entry["provenance"] = folder.provenance(seed=0, device=x.device)
    folder.append_jsonl(path / TEST, entry)


def _each(rows: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """Robust test accuracy of each seed at one epoch, and what became of each image where that was kept: epochs are
    compared within each training."""
    robust = [row["robust"] for row in rows.values()]
    out = {"seeds": list(rows), "each": [r["value"] for r in robust], "n": min(r["n"] for r in robust)}
    kept = [row["outcomes"] for row in rows.values() if "outcomes" in row]
    if len(kept) == len(rows) and len({k["ids"] for k in kept}) == 1:
        out["outcomes"] = {"ids": kept[0]["ids"], "each": [k["share"] for k in kept]}
    return out


def _images(bench: Bench) -> int:
    """Test images at each epoch."""
    return bench.scale.images if bench.scale.curve is None else bench.scale.curve


def _about(path: Path) -> dict[str, Any]:
    config = read_json(path / folder.CONFIG)
    method = config["method"]["threat"]
    samples = next((row["data"] for row in _tests(path) if "data" in row), None)
    return {
        "samples": samples and words(samples),
        "data": config["about"]["data"]["name"], "counts": config["about"]["data"]["counts"],
        "model": config["model"]["name"], "threat": show(Threat(**method)), "attack": "PGD-10",
    }  # fmt: skip


def _epochs(path: Path) -> set[int]:
    return {row["epoch"] for row in folder.read_jsonl(path)} if path.is_file() else set()


def _tests(path: Path) -> list[dict[str, Any]]:
    """The test rows, one per epoch."""
    return (
        list({row["epoch"]: row for row in folder.read_rows(path / TEST)}.values()) if (path / TEST).is_file() else []
    )


def content(bench: Bench, found: dict[str, Any], seeds: Sequence[int]) -> dict[str, Any]:
    """The content of figure-s1.json."""
    provenance = found.pop("provenance")
    peak = max((e for e in found["epochs"] if "test_robust" in e), key=lambda e: e["test_robust"], default=None)
    last = found["epochs"][-1] if found["epochs"] else None
    return {
        **found,
        **head(bench, NAME, "Figure S1: training curves of linf ATENT"),
        "about": found["about"],
        "about_scale": bench.scale.about,
        "complete": found["seeds"] == list(seeds),
        "published": {"epoch of the decay and of the peak": str(value(NAME, "atent", "epoch"))},
        "peak": peak and {k: peak[k] for k in ("epoch", "test_robust", "test_robust_low", "test_robust_high")},
        "last": last and {k: last.get(k) for k in ("epoch", "test_robust", "test_robust_low", "test_robust_high")},
        "images": _images(bench),
        "hardware": list(dict.fromkeys(machine(p) for p in provenance)),
        "commit": list(dict.fromkeys(commit(p) for p in provenance)),
    }


def figure(content: dict[str, Any]) -> Any:
    """The four published curves, and the validation curve that selects the epoch, with the decay marked."""
    from atent import plots

    about = content["about"]
    title = f"{about['data']}, {about['model']}, {about['threat']}, {about['attack']}, {_seeds(content)}"
    return plots.characteristics(content["epochs"], decay=content["decay"], title=title)


def markdown(content: dict[str, Any]) -> str:
    """A table of the epochs, and a comparison with the published figure."""
    lines = [f"# {content['title']}", ""]
    if not content["complete"]:
        lines += ["Not complete: repeating the command resumes.", ""]
    if content["epochs"]:
        keys = ("train_clean", "test_clean", "train_robust", "test_robust")
        heads = ["epoch", "learning rate", *(f"{k}, {p} (%)" for k in ("clean", "robust") for p in ("train", "test"))]
        rows = []
        for epoch in content["epochs"]:
            cells = [_text(epoch, key) for key in keys]
            rows.append([str(epoch["epoch"]), f"{epoch['lr']:g}", *cells])
        lines += markdown_table(heads, rows, left=0)
        about, peak, last = content["about"], content["peak"], content["last"]
        images = about.get("samples") or f"the first {content['images']:,}"
        lines += ["", f"![Clean and robust accuracy against epoch]({NAME}.png)", ""]
        if peak:
            lines += [
                f"Robust test accuracy is highest at epoch {peak['epoch']} ({_text(peak, 'test_robust')}) and"
                f" {_text(last, 'test_robust')} at the last, {last['epoch']}; the learning rate decays at"
                f" epoch {content['decay']}. In the paper it decays at epoch 76, where robust accuracy peaks.", "",
            ]  # fmt: skip
        lines += [
            f"{about['data']}, {about['counts']['train']:,} training images, {about['model']}, {about['threat']};"
            f" {about['attack']} on test images ({images}; 95 % intervals) and on as many training images as validation"
            f" uses; {_seeds(content)}. The test curve is a diagnostic: epochs are chosen on the validation split.", "",
        ]  # fmt: skip
    if content["scale"] != "paper" and content["epochs"]:
        until = content["epochs"][-1]["epoch"]
        lines += [
            f"Scale {content['scale']}: this figure has its own schedule of {until} epochs. The course of the curve"
            " after the decay can be compared with the paper's, the values cannot.", "",
        ]  # fmt: skip
    else:
        lines += [f"Scale {content['scale']}: {content['about_scale']}.", ""]
    if content["hardware"]:
        lines += [f"Hardware: {'; '.join(content['hardware'])}. Commit: {', '.join(content['commit'])}.", ""]
    if content.get("command"):
        lines += [f"`{content['command']}`", ""]
    return "\n".join(lines)


def _text(row: dict[str, Any], key: str) -> str:
    if row.get(key) is None:
        return "-"
    out = f"{100 * row[key]:.1f}"
    if row.get(f"{key}_low") is not None:
        out += f" [{100 * row[f'{key}_low']:.1f}, {100 * row[f'{key}_high']:.1f}]"
    return out


def _seeds(content: dict[str, Any]) -> str:
    n = len(content["seeds"])
    return f"mean of {n} seeds" if n > 1 else "one seed"
