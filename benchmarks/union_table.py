"""README.md and pictures of `union.py`, from the files of its second stage."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from atent import plots
from atent.markdown import table
from atent.plots.canvas import TEXT, blank, look, plain
from atent.runs import atomic
from atent.stats import Estimate, paired

NAMES = {"standard": "standard", "pgdat": "PGD-AT", "trades": "TRADES", "atent": "ATENT"}
NETWORKS = ("cnn", "vit")
DATA = {"digits": "digits", "digits-long": "digits, twice the epochs", "mnist5k": "MNIST-5k"}

Results = dict[tuple[str, str], dict[int, dict[str, Any]]]
"""By method and network the result of each seed."""


def write(out: Path) -> None:
    """Write the README and the pictures of all results in ``out``."""
    lines = [_HEAD]
    for data, name in DATA.items():
        found = _read(out, data)
        if found:
            lines += [f"## {name}", *_setting(found), *_accuracies(found), *_differences(found), *_answer(found)]
            lines += _curves(found)
            lines += list(_pictures(found, data, out))
    with atomic(out / "README.md") as place:
        place.write_text("\n\n".join(lines) + "\n")


_HEAD = """# Several threats at once

Four training methods, each on a convolutional network and on a vision transformer of its size, under linf, l2, l1, l0
and patches. Made by `python benchmarks/union.py train`, `evaluate` and `table`; the files hold every image's outcome.
All methods train for the same epochs with the same optimizer for each network and take the last epoch's weights; the
adversarial ones train in linf. Robust accuracies are in %, upper bounds by the attacks named below."""


def _read(out: Path, data: str) -> Results:
    found: Results = {}
    for path in sorted(out.glob(f"{data}-*.json")):
        one = json.loads(path.read_text())
        if one["data"] == data:
            found.setdefault((one["method"], one["network"]), {})[one["seed"]] = one
    return {(m, k): found[m, k] for m in NAMES for k in NETWORKS if (m, k) in found}


def _any(found: Results) -> dict[str, Any]:
    return next(iter(next(iter(found.values())).values()))


def _setting(found: Results) -> Iterator[str]:
    one = _any(found)
    networks = {one["network"]: f"{one['model']} ({one['parameters']:,} parameters)" for one in _all(found)}
    optimizers = {one["network"]: f"{one['optimizer']['name']}, lr {one['optimizer']['lr']:g}" for one in _all(found)}
    yield (
        f"{', '.join(f'{k}: {networks[k]}, {optimizers[k]}' for k in networks)}; {one['epochs']} epochs;"
        f" {one['union']['n']} test images, a stratified sample, the same for all; seeds"
        f" {', '.join(map(str, sorted({one['seed'] for one in _all(found)})))}."
    )
    threats = one["union"]["threats"]
    rows = [[t, ", ".join(f"`{a['attack']}`" for a in each["attacks"].values())] for t, each in threats.items()]
    yield "\n".join(table(["threat", "attacks, each on what the ones before left"], rows, left=2))
    some = {m for m, _ in found}
    missing = [
        f"{NAMES[m]} {k}" for m in NAMES for k in NETWORKS
        if m in some and len(found.get((m, k), {})) < len(_seeds(found))
    ]  # fmt: skip
    if missing:
        yield f"Not all seeds are there for {', '.join(missing)}."


def _all(found: Results) -> list[dict[str, Any]]:
    return [one for seeds in found.values() for one in seeds.values()]


def _seeds(found: Results) -> set[int]:
    return {one["seed"] for one in _all(found)}


def _measures(found: Results) -> dict[str, Callable[[dict[str, Any]], str]]:
    """By name what gives a result's outcome on each image: 1 correct, 0 not."""
    made: dict[str, Callable[[dict[str, Any]], str]] = {"clean": lambda one: one["union"]["outcomes"]["clean"]}
    for threat in _any(found)["union"]["threats"]:
        made[threat] = lambda one, threat=threat: one["union"]["outcomes"]["threats"][threat]
    made["union"] = lambda one: "".join(
        str(int(all(flag == "1" for flag in flags))) for flags in zip(*one["union"]["outcomes"]["threats"].values())
    )
    return made


def _share(bits: str) -> float:
    return bits.count("1") / len(bits)


def _accuracies(found: Results) -> Iterator[str]:
    yield "Mean over the seeds, with the least and the greatest of them."
    measures = _measures(found)
    rows = [["", "seeds", *measures, "average"]]
    for (method, network), seeds in found.items():
        cells = [[_share(bits(one)) for one in seeds.values()] for bits in measures.values()]
        cells.append([one["union"]["average"]["value"] for one in seeds.values()])
        rows.append([f"{NAMES[method]}, {network}", str(len(seeds)), *map(_spread, cells)])
    yield "\n".join(table(rows[0], rows[1:]))


def _spread(values: list[float]) -> str:
    mean = f"{100 * fmean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({100 * min(values):.1f} to {100 * max(values):.1f})"


def _gap(
    found: Results, method: str, bits: Callable[[dict[str, Any]], str], *, correct: bool = False
) -> tuple[Estimate, int] | None:
    """The accuracy of the convolutional network less that of the transformer, and the number of images; ``correct``: on
    the images that all of these networks classify correctly without an attack."""
    sides = [found.get((method, network), {}) for network in NETWORKS]
    seeds = sorted(sides[0].keys() & sides[1].keys())
    if not seeds:
        return None
    clean = [side[seed]["union"]["outcomes"]["clean"] for side in sides for seed in seeds]
    kept = [not correct or all(flag == "1" for flag in flags) for flags in zip(*clean)]
    a, b = (["".join(bit for bit, keep in zip(bits(side[seed]), kept) if keep) for seed in seeds] for side in sides)
    return paired([_share(x) for x in a], [_share(x) for x in b], len(a[0]), (a, b)), len(a[0])


def _differences(found: Results) -> Iterator[str]:
    yield (
        "The convolutional network less the transformer, in points, paired by image and seed, with the 95 % interval"
        " over other images and trainings (one seed: other images)."
    )
    measures = _measures(found)
    rows = []
    for method in NAMES:
        gaps = [_gap(found, method, bits) for bits in measures.values()]
        if gaps[0] is not None:
            rows.append([NAMES[method], *(_points(gap[0]) for gap in gaps if gap is not None)])
    yield "\n".join(table(["", *measures], rows))


def _answer(found: Results) -> Iterator[str]:
    """What the intervals allow on one patch."""
    threat = next(t for t in _any(found)["union"]["threats"] if t.startswith("patch"))
    measure = _measures(found)[threat]
    verdicts = []
    for method in NAMES:
        every, both = _gap(found, method, measure), _gap(found, method, measure, correct=True)
        if every is None or both is None:
            continue
        verdicts.append(
            f"- {NAMES[method]}: {_points(every[0])} points on all images, {_verdict(every[0])};"
            f" {_points(both[0])} on the {both[1]} images that all of these networks classify correctly without an"
            f" attack, {_verdict(both[0])}."
        )
    if not verdicts:
        return
    yield (
        "**With one patch, are convolutional networks more robust than transformers** (Joshi, Jagatap and Hegde 2021,"
        f" on ImageNet)? Under {threat}, every place tried, the convolutional network less the transformer:"
    )
    yield "\n".join(verdicts)


def _verdict(gap: Estimate) -> str:
    if gap.low > 0:
        return "so it is more robust"
    return "so it is less robust" if gap.high < 0 else "which is inconclusive"


def _points(gap: Estimate) -> str:
    return f"{100 * gap.value:+.1f} [{100 * gap.low:+.1f}, {100 * gap.high:+.1f}]"


def _curves(found: Results) -> Iterator[str]:
    most = int(_any(found)["patches"]["threat"].split()[1])
    yield (
        f"Robust accuracy against the number K of patches (`TokenAttack(score=l1)`, the least K by bisection up to"
        f" {most}; mean over the seeds)."
    )
    rows = [["K", *map(str, range(most + 1))]]
    for (method, network), seeds in found.items():
        rows.append([f"{NAMES[method]}, {network}", *(f"{100 * v:.1f}" for v in _curve(seeds, most))])
    yield "\n".join(table(rows[0], rows[1:]))


def _curve(seeds: dict[int, dict[str, Any]], most: int) -> list[float]:
    """The share of images that K patches do not break, for K from 0, mean over the seeds."""
    least = [[math.inf if k is None else k for k in one["patches"]["fewest"]] for one in seeds.values()]
    return [fmean(fmean(k > budget for k in each) for each in least) for budget in range(most + 1)]


def _pictures(found: Results, data: str, out: Path) -> Iterator[str]:
    most = int(_any(found)["patches"]["threat"].split()[1])
    figure = blank(9, 5)
    axes = figure.subplots()
    plain(axes)
    for i, method in enumerate(NAMES):
        for network, dashes in zip(NETWORKS, ("-", "--")):
            if (method, network) in found:
                values = [100 * v for v in _curve(found[method, network], most)]
                style = look(i) | {"linestyle": dashes}
                label = f"{NAMES[method]}, {network}"
                axes.plot(range(most + 1), values, marker="o", linewidth=2, label=label, **style)
    axes.set_ylim(0, 100)
    axes.set_xlabel(f"K, patches of {_any(found)['patches']['threat'].split()[-1]} pixels a side")
    axes.set_ylabel("robust accuracy (%)")
    figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=TEXT - 1)
    plots.save(figure, out / f"{data}-patches.png")
    yield f"![Robust accuracy against the number of patches]({data}-patches.png)"
    method = next((m for m in ("pgdat", "standard") if all((m, k) in found for k in NETWORKS)), None)
    for network in NETWORKS if method else ():
        seed, one = min(found[method, network].items())
        title = f"{DATA[data]}, {NAMES[method]}, {one['model']}, seed {seed}, n = {one['union']['n']}"
        plots.save(plots.union(one["union"], title=title), out / f"{data}-{network}.png")
        yield f"![Several threats at once, {one['model']}]({data}-{network}.png)"
