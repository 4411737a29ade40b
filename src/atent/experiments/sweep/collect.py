"""From the trials of a sweep to sweep.json, its table and its plots."""

from __future__ import annotations

import statistics
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from atent import runs as folder
from atent.experiments.comparison import measure
from atent.experiments.results import SWEEP_VERSION, Spread, SweepFile, TrialResult, TrialSeed
from atent.experiments.results.sweep import State
from atent.experiments.sweep.spec import Sweep
from atent.experiments.sweep.study import Study, Trial
from atent.markdown import table as markdown_table

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RESULT = "sweep.json"
TABLE = "sweep.md"
PLOTS = "plots"
_SHARES = ("validation_clean", "validation_robust", "validation_certified")
WORDS = {
    "validation_robust": "validation robust (%)", "validation_clean": "validation clean (%)",
    "validation_certified": "validation certified (%)", "loss": "training loss",
    "seconds": "seconds per epoch", "memory_mb": "memory (MB)",
}  # fmt: skip


def collect(sweep: Sweep, study: Study, path: Path, command: str) -> SweepFile:
    """The content of sweep.json."""
    trials = [_trial(trial, len(sweep.objectives)) for trial in study.trials()]
    device = next((_device(path / seed.run) for trial in trials for seed in trial.seeds), None)
    return SweepFile(
        schema_version=SWEEP_VERSION,
        command=command,
        recipe=sweep.recipe,
        sampler=sweep.sampler,
        pruner=sweep.pruner,
        sampler_seed=sweep.seed,
        seeds=list(sweep.all_seeds),
        objectives=sweep.objectives,
        space={each.name: each.plain() for each in sweep.space},
        fixed=sweep.fixed,
        interval=(
            "mean over the seeds; 95 % intervals: at each end the wider of the t-interval over the seeds and, for"
            " shares, the mean of the exact binomial limits on the validation images" if sweep.seeds > 1 else
            "one seed: shares with the exact binomial 95 % interval on the validation images"
        ),
        trials=trials,
        best=study.best(),
        importance=study.importance(),
        provenance=folder.provenance(seed=sweep.seed, device=device),
        optuna=str(study.library.__version__),
    )  # fmt: skip


def _device(run: Path) -> Any:
    return folder.read_config(run / folder.CONFIG)["provenance"]["device"]


def _trial(trial: Trial, objectives: int) -> TrialResult:
    seeds = [TrialSeed(**{**each}) for each in trial.notes.get("seeds", {}).values()]
    state: Any = trial.state
    found = TrialResult(trial.number, state, trial.settings, [], seeds)
    if state == "failed":
        return replace(found, reason=trial.notes["reason"])
    if state == "pruned":
        return replace(found, reached=trial.notes["reached"]["epoch"], figure=trial.notes["reached"]["value"])
    return replace(found, values=[_spread(seeds, i) for i in range(objectives)])


def _spread(seeds: list[TrialSeed], i: int) -> Spread:
    if len(seeds) == 1:
        return Spread(seeds[0].values[i], None, seeds[0].low[i], seeds[0].high[i])
    found = measure([seed.values[i] for seed in seeds])
    ends = [(s.low[i], s.high[i]) for s in seeds if s.low and s.high]
    lows, highs = ([end for end in each if end is not None] for each in zip(*ends)) if ends else ([], [])
    if found.low is None or found.high is None or min(len(lows), len(highs)) < len(seeds):
        return found
    # Seeds share the validation images: counts that agree say no more of other images than one of them.
    return replace(found, low=min(found.low, statistics.fmean(lows)), high=max(found.high, statistics.fmean(highs)))


# ---- the table ---------------------------------------------------------------------------------------------


def ordered(found: SweepFile) -> list[TrialResult]:
    """The trials in order of the first objective, then the pruned ones, then the failed ones."""
    sign = -1 if next(iter(found.objectives.values())) == "maximize" else 1

    def key(trial: TrialResult) -> tuple[Any, ...]:
        place = get_args(State).index(trial.state)
        value = trial.values[0].mean if trial.values else trial.figure
        return place, sign * value if value is not None else 0.0, trial.number

    return sorted(found.trials, key=key)


def layout(found: SweepFile) -> tuple[list[str], list[list[str]]]:
    """Headings and rows of the table, as strings."""
    several = len(found.best) > 1
    rows = []
    for trial in ordered(found):
        if trial.values:
            figures = [_cell(name, each) for name, each in zip(found.objectives, trial.values)]
            mark = ("front" if several else "best") if trial.number in found.best else ""
        else:
            figure = "" if trial.figure is None else f"{_number(next(iter(found.objectives)), trial.figure)}"
            figures = [figure, *[""] * (len(found.objectives) - 1)]
            mark = f"pruned after epoch {trial.reached}" if trial.state == "pruned" else "failed"
        rows.append([str(trial.number), *(_setting(trial.settings[name]) for name in found.space), *figures, mark])
    return ["trial", *found.space, *(WORDS[name] for name in found.objectives), ""], rows


def _setting(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)


def _number(name: str, value: float) -> str:
    return f"{100 * value:.1f}" if name in _SHARES else f"{value:.4g}"


def _cell(name: str, found: Spread) -> str:
    text = _number(name, found.mean)
    if found.low is not None and found.high is not None:
        ends = (max(0.0, found.low), min(1.0, found.high)) if name in _SHARES else (found.low, found.high)
        text += f" [{', '.join(_number(name, end) for end in ends)}]"
    return text


def caption(found: SweepFile) -> list[str]:
    """The footnotes of the table, one line each."""
    counts = {state: sum(trial.state == state for trial in found.trials) for state in get_args(State)}
    states = ", ".join(f"{count} {state}" for state, count in counts.items() if count)
    lines = [
        f"{len(found.trials)} trials ({states}) of {found.recipe}, sampler {found.sampler} (seed {found.sampler_seed}),"
        f" seeds {', '.join(map(str, found.seeds))}; validation metrics at each training's best epoch",
        found.interval,
    ]
    lines += [f"trial {t.number} failed: {t.reason}" for t in found.trials if t.state == "failed"]
    for name, shares in found.importance.items():
        each = ", ".join(f"{key} {100 * share:.0f} %" for key, share in shares.items())
        lines.append(f"importance for {name} (fANOVA, share of the variance over these trials): {each}")
    lines.append(
        "the validation score of the best of many trials is optimistic: evaluate the chosen trial on the test set, once"
    )
    return lines


def markdown(found: SweepFile) -> str:
    """sweep.md."""
    headings, rows = layout(found)
    lines = [*markdown_table(headings, rows), "", *(line + "  " for line in caption(found))]
    return "\n".join([*lines, "", f"`{found.command}`", ""]) if found.command else "\n".join([*lines, ""])


# ---- the files ---------------------------------------------------------------------------------------------


def write(path: Path, found: SweepFile) -> None:
    """Write sweep.json, sweep.md and the plots into the sweep's folder."""
    from atent import plots

    folder.write_json(path / RESULT, found.to_json())
    folder.write_atomic(path / TABLE, markdown(found))
    (path / PLOTS).mkdir(exist_ok=True)
    for name, figure in figures(found).items():
        plots.save(figure, path / PLOTS / f"{name}.png")


def figures(found: SweepFile) -> dict[str, Figure]:
    """Figures by name: parallel coordinates of each objective, the importances, and the Pareto front of two objectives;
    empty without complete trials."""
    from atent import plots

    scale = {name: 100.0 if name in _SHARES else 1.0 for name in found.objectives}
    complete = [trial for trial in found.trials if trial.values]
    if not complete:
        return {}
    made = {}
    logs = {name for name, given in found.space.items() if isinstance(given, dict) and given.get("log")}
    for i, (name, way) in enumerate(found.objectives.items()):
        lines = [(trial.settings, scale[name] * trial.values[i].mean) for trial in complete]
        pruned = [t.settings for t in found.trials if t.state == "pruned"]
        axes = {each: given if isinstance(given, list) else None for each, given in found.space.items()}
        made[f"parallel-{name}"] = plots.parallel(
            axes, lines, objective=WORDS[name], maximize=way == "maximize", logs=logs, pruned=pruned,
            title=f"{found.recipe}: {len(complete)} complete trials, {len(pruned)} pruned",
        )  # fmt: skip
    if found.importance:
        shares = {WORDS[name]: shares for name, shares in found.importance.items()}
        made["importance"] = plots.importance(shares, n=len(complete))
    if len(found.objectives) > 1:
        (one, other), ways = list(found.objectives)[:2], list(found.objectives.values())[:2]
        points = {t.number: (scale[one] * t.values[0].mean, scale[other] * t.values[1].mean) for t in complete}
        made["pareto"] = plots.front(
            points, found.best, labels=(WORDS[one], WORDS[other]), directions=(ways[0], ways[1])
        )  # fmt: skip
    return made
