"""Figure 1: decision regions in the plane, over seeds, with the adversaries' clamp corrected and as released."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from atent import messages, plots, stats
from atent import runs as folder
from atent.attacks.spec import show
from atent.data import Data, DataSettings
from atent.data import load as load_data
from atent.data.two_class import cached
from atent.evaluate.outcomes import bits
from atent.experiments import migrate
from atent.experiments.comparison import accuracy, measure
from atent.experiments.job import Job
from atent.experiments.pipeline import as_begun, run_job
from atent.experiments.recipe_files import SECTIONS
from atent.experiments.results import EvaluationFile
from atent.guard import ask
from atent.markdown import table as markdown_table
from atent.paper.plane import LABELS, PUBLISHED, SCALES, SIDE, Scale, exhaustive, jobs, out_of_reach
from atent.paper.result import NOT_YET
from atent.runs.checkpoint import STATE
from atent.threat import Threat
from atent.train import load

NAME = "figure-1"
GRID = "grid.json"


class Stopped(Exception):
    """The deadline passed; the state is saved."""


def run_figure_1(
    scale: str,
    *,
    out: str | Path,
    runs: str | Path,
    seeds: int | None = None,
    deadline: float | None = None,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Train and evaluate missing runs, and write figure-1.json, .md and, once seed 0 is done, .png into ``out``.

    ``scale`` is smoke (two half-moons, 3 epochs, one seed), laptop or paper (both the paper's points, network and
    epochs, 10 seeds). Without MNIST the half-moons replace it, at a rescaled radius, which the result records.
    ``seeds`` replaces the number of seeds. Run folders are in runs/figure-1/, and finished ones are reused. Once
    `time.monotonic()` has passed ``deadline`` the training stops after its epoch, the files list the finished runs,
    and the same call resumes. Returns the content of figure-1.json, whose ``complete`` is true once all is done.
    Raises ValueError for an unknown scale, a number of seeds below 1, or a run folder of other settings.
    """
    if scale not in SCALES:
        raise ValueError(messages.unknown("scale", scale, SCALES))
    plan = SCALES[scale]
    count = plan.seeds if seeds is None else seeds
    if count < 1:
        raise ValueError(f"seeds must be at least 1, got {count}")
    out, place = Path(out), Path(runs) / NAME / scale
    settings, threat = _data(plan, Path(runs) / NAME, say)
    plans = jobs(plan, settings, threat)
    threads = torch.get_num_threads()
    # Several threads slow down kernels of a few microseconds.
    torch.set_num_threads(1)
    try:
        for seed in range(count):
            for name, job in plans.items():
                _make(replace(job, train=replace(job.train, seed=seed)), _path(place, name, seed), deadline, say)
    except Stopped:
        say(f"{NAME}: stopped at the time limit; repeating the command resumes")
    finally:
        torch.set_num_threads(threads)
    out.mkdir(parents=True, exist_ok=True)
    folder.write_json(out / f"{NAME}.json", _content(scale, plans, place, count, load_data(settings), threat))
    # What is returned and reported is what is stored.
    content: dict[str, Any] = folder.read_json(out / f"{NAME}.json")
    folder.write_atomic(out / f"{NAME}.md", markdown(content))
    _draw(out / f"{NAME}.png", content, place, load_data(settings), threat)
    return content


# ---- one run ---------------------------------------------------------------------------------------------


def _data(plan: Scale, place: Path, say: Callable[[str], None]) -> tuple[DataSettings, Threat]:
    """The data's settings, and the threat in their box: eps 1 for the digits, 0.2 for the half-moons."""
    if plan.digits:
        try:
            points = cached(place)
        except FileNotFoundError as error:
            say(f"{NAME}: {error}; two half-moons replace them")
        else:
            settings = DataSettings(name="two-class", root=str(points), limit=plan.limit, test_limit=plan.test_limit)
            return settings, Threat("linf", 1.0, load_data(settings).box)
    settings = DataSettings(name="moons", limit=plan.limit, test_limit=plan.test_limit)
    return settings, Threat("linf", 0.2, load_data(settings).box)


def _path(place: Path, name: str, seed: int) -> Path:
    return place / f"{name}-seed{seed}"


def _make(job: Job, path: Path, deadline: float | None, say: Callable[[str], None]) -> None:
    """Train and evaluate the run at ``path``, resume it, or leave it where it is finished."""
    job = as_begun(job, path)
    _check(job, path)
    if (path / folder.EVALUATION).is_file():
        _grid(path, job)
        return

    def stop(row: Any = None) -> None:
        if deadline is not None and time.monotonic() >= deadline:
            raise Stopped

    stop()
    started = (path / folder.LAST / STATE).is_file()
    if not started and path.exists():
        # After a kill before the end of the first epoch there is no state to resume from.
        for file in sorted(path.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
    begun = time.perf_counter()
    run_job(job, path, resume=started, progress=False, report=stop)
    _grid(path, job)
    found = migrate.read(path / folder.EVALUATION, EvaluationFile)
    say(f"{path.name}: clean {found.clean.text}, worst of PGD {found.worst.text}, {time.perf_counter() - begun:.0f} s")


def _check(job: Job, path: Path) -> None:
    """ValueError if the run folder was made with other settings."""
    if (path / folder.CONFIG).is_file():
        saved, wanted = folder.read_config(path / folder.CONFIG), json.loads(folder.dumps(job.sections()))
        for section in SECTIONS:
            # A setting that came later is at its default; where the points lie may change.
            if any(v != wanted[section].get(k) for k, v in saved[section].items() if k != "root"):
                raise ValueError(f"{path} was trained with other {section} settings: give another folder for the runs")


def _grid(path: Path, job: Job) -> dict[str, Any]:
    """The share of test points that are robust to the exhaustive search, computed once."""
    if (path / GRID).is_file():
        saved: dict[str, Any] = folder.read_json(path / GRID)["robust"]
        return saved
    data = load_data(job.data)
    threat = Threat(job.evaluate.norm or "linf", job.evaluate.eps or 0.0, data.box)
    x, y = data.test.batch(range(len(data.test)))
    robust = exhaustive(load(path), x, y, threat)
    share = {**stats.share(int(robust.sum()), len(y)), "outcomes": bits(robust)}
    folder.write_json(path / GRID, {"side": SIDE, "robust": share, "provenance": folder.provenance(device="cpu")})
    return share


# ---- the result ------------------------------------------------------------------------------------------


def _content(
    scale: str, plans: Mapping[str, Job], place: Path, count: int, data: Data, threat: Threat
) -> dict[str, Any]:
    found = {name: _finished(place, name, count, job) for name, job in plans.items()}
    rows = []
    for name, made in found.items():
        measures = {key: asdict(accuracy([m[key] for m in made])) for key in made[0]["keys"]} if made else None
        rows.append(
            {
                "name": name,
                "label": LABELS[name],
                "method": plans[name].sections()["method"],
                "published": PUBLISHED.get(name) if data.name == "two-class" else None,
                "ours": measures,
                "seconds_per_training": asdict(measure([m["seconds"] for m in made])) if made else None,
                "seeds": [{k: v for k, v in m.items() if k != "keys"} for m in made],
            }
        )
    x = data.train.batch(range(len(data.train)))[0]
    away = out_of_reach(x, float(threat.eps))
    job = next(iter(plans.values()))
    return {
        "name": NAME,
        "title": "Figure 1: decision regions in the plane",
        "scale": scale,
        "complete": all(len(made) == count for made in found.values()),
        "command": f"atent reproduce {NAME} --scale {scale}",
        "data": {**data.about, "box": data.box, "threat": show(threat), "eps": float(threat.eps)},
        "protocol": {
            "published": "one uniform start, steps of eps / 10",
            "strong": "the worst of PGD-40, PGD-40 with 10 restarts, and PGD-40 with 10 restarts on the margin loss",
            "grid": f"every point of a {SIDE} x {SIDE} grid over the ball",
            "attacks": job.evaluate.attacks,
            "epochs": job.train.epochs, "batch_size": job.train.batch_size, "selection": "last epoch",
            "validation": "held out of the training points for the curves, not to select",
        },
        "seeds": count,
        "out_of_reach": {
            "what": "training points whose ball misses [0, 1]^2", **stats.share(int(away.sum()), len(away)),
        },
        "rows": rows,
        "gaps": _gaps(found),
        "provenance": folder.provenance(device="cpu"),
    }  # fmt: skip


def _finished(place: Path, name: str, count: int, job: Job) -> list[dict[str, Any]]:
    """The results of the finished runs of a row, by seed."""
    out = []
    for seed in range(count):
        path = _path(place, name, seed)
        if not (path / folder.EVALUATION).is_file():
            continue
        evaluation = migrate.read(path / folder.EVALUATION, EvaluationFile)
        shares = {
            "clean": asdict(evaluation.clean),
            "published": asdict(next(iter(evaluation.attacks.values())).robust),  # the recipe's first attack
            "strong": asdict(evaluation.worst),
            "grid": _grid(path, as_begun(job, path)),
        }
        seconds = sum(row["seconds"] for row in folder.read_rows(path / folder.METRICS))
        out.append(
            {
                "seed": seed, "run": path.name, **shares, "keys": list(shares), "seconds": seconds,
                "provenance": evaluation.provenance,
            }
        )  # fmt: skip
    return out


def _gaps(found: Mapping[str, Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """ATENT's difference to each row, in points, paired by seed: the spread is that of the training alone, since all
    networks are evaluated on the same points."""
    ours = {m["seed"]: m for m in found["atent"]}
    out = []
    for name, made in found.items():
        pairs = [(ours[m["seed"]], m) for m in made if m["seed"] in ours]
        if name == "atent" or not pairs:
            continue
        lead = {
            key: asdict(
                measure(
                    [100 * (a[key]["value"] - b[key]["value"]) for a, b in pairs], resolution=100 / made[0][key]["n"]
                )
            )
            for key in made[0]["keys"]
        }
        printed = PUBLISHED.get(name)
        published = printed and {key: PUBLISHED["atent"][key] - printed[key] for key in printed}
        out.append({"over": name, "seeds": len(pairs), "published": published, "ours": lead})
    return out


def markdown(content: Mapping[str, Any]) -> str:
    """The table with its caption."""
    data, protocol = content["data"], content["protocol"]
    heads = ["clean, published (%)", "robust, published (%)", "clean (%)", "PGD-40 (%)", "strong (%)", "grid (%)"]
    lines = [f"# {content['title']}", ""]
    rows = []
    for row in content["rows"]:
        printed = row["published"]
        cells = [f"{printed[key]:.2f}" if printed else "-" for key in ("clean", "robust")]
        if row["ours"]:
            cells += [_cell(row["ours"][key]) for key in ("clean", "published", "strong", "grid")]
            cells.append(f"{row['seconds_per_training']['mean']:.0f}")
        else:
            cells += [NOT_YET] * 5
        rows.append([LABELS[row["name"]], *cells])
    lines += [*markdown_table(["method", *heads, "s / training"], rows), ""]
    leads = []
    for gap in content["gaps"]:
        printed = gap["published"]
        shown = [_points(gap["ours"][key]) for key in ("published", "strong", "grid")]
        printed_text = f"{printed['robust']:+.2f}" if printed and data["name"] == "two-class" else "-"
        leads.append([LABELS[gap["over"]], printed_text, *shown])
    heads = [f"{what} (points)" for what in ("robust, published", "PGD-40", "strong", "grid")]
    lines += markdown_table(["ATENT minus", *heads], leads)
    if all(any(m["seed"] == 0 for m in row["seeds"]) for row in content["rows"]):
        lines += ["", f"![Decision regions of four networks, with each test point's ball]({NAME}.png)"]
    away, made = content["out_of_reach"], content["provenance"]
    done = min(len(row["seeds"]) for row in content["rows"])
    lines += [
        "",
        f"Accuracy on {data['counts']['test']} test points: mean \u00b1 standard deviation over {content['seeds']}"
        f" seed{'s' if content['seeds'] > 1 else ''}"
        f"{'' if content['complete'] else f', of which {done} are finished in every row'}; in brackets the 95 %"
        " interval, at each end the wider of the t-interval over the seeds and the binomial interval over the test"
        " points. Differences are paired by seed; their t-intervals are over the trainings alone.",
        "",
        f"{data['source']}; {data['counts']['train']} training points, {data['counts']['validation']} held out;"
        f" {data['threat']}, box [{data['box'][0]:g}, {data['box'][1]:g}], {protocol['epochs']} epochs,"
        f" {protocol['selection']}. PGD-40: {protocol['published']}. Strong: {protocol['strong']}. Grid:"
        f" {protocol['grid']}.",
        "",
        f"{stats.percent(away)} of the training points are further from [0, 1]^2 than eps: with the released clamp"
        " their adversarial points lie outside their own balls.",
        "",
        f"Scale {content['scale']}; atent {made['version']}, commit {made['commit']}"
        f"{' with changes' * bool(made['dirty'])}; {made['device_name']}, one thread; `{content['command']}`.",
    ]
    return "\n".join([*lines, ""])


def _cell(cell: Mapping[str, Any]) -> str:
    spread = "" if cell["sd"] is None else f" \u00b1 {100 * cell['sd']:.1f}"
    return f"{100 * cell['mean']:.1f}{spread} [{100 * cell['low']:.1f}, {100 * cell['high']:.1f}]"


def _points(cell: Mapping[str, Any]) -> str:
    if cell["sd"] is None:
        return f"{cell['mean']:+.1f}"
    return f"{cell['mean']:+.1f} \u00b1 {cell['sd']:.1f} [{cell['low']:+.1f}, {cell['high']:+.1f}]"


def _draw(path: Path, content: Mapping[str, Any], place: Path, data: Data, threat: Threat) -> None:
    """The four panels of seed 0, once they are all trained."""
    rows = {row["name"]: row for row in content["rows"] if row["name"] in PUBLISHED}
    if not all(any(m["seed"] == 0 for m in row["seeds"]) for row in rows.values()):
        return
    x, y = data.test.batch(range(len(data.test)))
    eps = float(threat.eps)
    low, high = x.amin(0) - 1.5 * eps, x.amax(0) + 1.5 * eps
    across, up = (torch.arange(float(low[i]), float(high[i]), eps / 10) for i in range(2))
    points = torch.cartesian_prod(across, up)
    panels = {}
    for name, row in rows.items():
        model = load(_path(place, name, 0))
        with torch.no_grad():
            regions = ask(model, points).argmax(1).view(len(across), len(up)).T
        first = next(m for m in row["seeds"] if m["seed"] == 0)
        title = (
            f"{row['label']}: clean {100 * first['clean']['value']:.1f} %, PGD-40"
            f" {100 * first['published']['value']:.1f} %, grid {100 * first['grid']['value']:.1f} %"
        )
        panels[title] = {"regions": regions.numpy(), "robust": exhaustive(model, x, y, threat).numpy()}
    names = [str(name) for name in data.about["class_names"]]
    words = [f"digit {name}" if name.isdigit() else name for name in names]
    figure = plots.regions(panels, across.tolist(), up.tolist(), x.numpy(), y.numpy(), eps=eps, classes=words)
    plots.save(figure, path)
