"""Train the networks of a table, measure each once, and resume where an earlier command stopped.

A network is a run folder, runs/SCALE/NAME-seedK; beside its weights, measures.json keeps what was measured of them.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent import signals, stats
from atent.attacks import ATTACKS
from atent.attacks.spec import parse
from atent.certify import Certificate, Sampling, Smoothed, certify_run
from atent.certify.certificate import certified_network, identity, made_of
from atent.certify.rows import claimed
from atent.data.described import spans
from atent.evaluate import Evaluation, evaluate
from atent.evaluate.evaluation import costs
from atent.evaluate.outcomes import FOOLED, NOT_TRIED, ROBUST
from atent.experiments.certificate import certify_folder
from atent.experiments.job import Job
from atent.experiments.pipeline import Say, as_begun, run_job
from atent.experiments.plan import Build, Run, state
from atent.experiments.target import Target, load_target
from atent.messages import first_only, shared_settings
from atent.paper.layout import Measure, Table, Training
from atent.paper.scales import Scale
from atent.progress import bar, checked
from atent.runs.locks import held
from atent.threat import radius
from atent.train.interrupt import Interrupted

MEASURES = "measures.json"

# Images that are misclassified without an attack are not attacked.
_ROBUST = str.maketrans({ROBUST: "1", FOOLED: "0", NOT_TRIED: "0"})

# Small enough to keep a time limit and to lose little by a kill; on a GPU large enough to keep it busy.
_BATCH = {"cpu": 250, "cuda": 2000}
_STRONG_BATCH = {"cpu": 50, "cuda": 1000}

Read = Callable[[str], dict[str, Any]]
"""read(recipe): its tables."""


@dataclass(frozen=True)
class Bench:
    """The place and the time limit of the work."""

    scale: Scale
    runs: Path
    build: Build
    read: Read
    deadline: float | None = None
    """Deadline on the clock of `time.monotonic`; None: no limit."""
    progress: bool = False
    say: Say = lambda line: None

    def check(self) -> None:
        """Interrupted once the time is up."""
        if self.late():
            raise Interrupted("time limit reached: repeating the command resumes")

    def late(self) -> bool:
        """Whether the time is up."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def path(self, training: Training, seed: int) -> Path:
        """The run folder of a training."""
        return self.runs / self.scale.name / f"{training.name}-seed{seed}"


# ---- networks ----------------------------------------------------------------------------------------------


def job(bench: Bench, training: Training, seed: int) -> Job:
    """The job of a training: its recipe with the scale's changes and its own. ValueError as the recipes raise it."""
    tables = bench.read(training.recipe)
    for changes in (bench.scale.changes, bench.scale.own.get(training.recipe, {}), training.changes):
        for section, values in changes.items():
            tables[section] = {**tables.get(section, {}), **values}
    tables["train"] = {**tables.get("train", {}), "seed": seed}
    # The evaluation of the networks is defined by the table.
    tables["evaluate"] = {**tables.get("evaluate", {}), "attacks": [], "limit": 1000, "last": False}
    if training.after is not None:
        tables["model"] = {**tables.get("model", {}), "weights": str(bench.path(training.after, seed))}
    with shared_settings():
        return bench.build(tables, training.recipe)


def run_of(bench: Bench, training: Training, seed: int) -> Run:
    """The run of a training, as in `atent compare`; an existing run keeps its data.subset."""
    path = bench.path(training, seed)
    return Run(training.recipe, as_begun(job(bench, training, seed), path), path)


def stage(run: Run, build: Build) -> str:
    """new, started or finished; how the network is evaluated does not count, so that a run made by hand may be used."""
    try:
        return state(run, build, aside=("evaluate",))
    except (ValueError, FileExistsError) as error:
        raise type(error)(str(error).replace("choose another --name", "choose other --runs")) from None


def train(
    bench: Bench, training: Training, seed: int, each_epoch: Callable[[Path, dict[str, Any]], None] | None = None
) -> Path:
    """The finished run of a training, made if it is not there; Interrupted, with the state saved, when time is up.

    ``each_epoch`` is called with the run folder and the row of each epoch.
    """
    run = run_of(bench, training, seed)
    run.path.parent.mkdir(parents=True, exist_ok=True)
    with _turn(bench, run.path):
        found = stage(run, bench.build)
        if found == "finished":
            return run.path
        bench.check()
        if found == "new" and run.path.exists():
            folder.clear(run.path)
        begun = time.monotonic()
        bench.say(f"train    {run.path.name}" + (" (resumes)" if found == "started" else ""))
        report = None if each_epoch is None else lambda row: each_epoch(run.path, row)
        try:
            with alarm(bench.deadline):
                run_job(run.job, run.path, resume=found == "started", progress=bench.progress, report=report)
        except Interrupted:
            bench.check()
            raise Interrupted("interrupted: repeating the command resumes") from None
        bench.say(f"         {time.monotonic() - begun:.0f} s")
    return run.path


@contextmanager
def alarm(deadline: float | None) -> Iterator[None]:
    """Ask the training loop to save and stop at ``deadline``, as a signal would."""
    if deadline is None:
        yield
        return
    timer = threading.Timer(max(0.0, deadline - time.monotonic()), signals.request)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


@contextmanager
def _turn(bench: Bench, path: Path) -> Iterator[None]:
    """Lock a run against other commands; wait for a run that is locked."""
    say_once = first_only(bench.say)

    def wait(line: str) -> None:
        say_once(f"wait     {line}")
        bench.check()

    with held(path / folder.LOCK, "reproduce", wait=wait):
        yield


# ---- measures ----------------------------------------------------------------------------------------------


def measured(path: Path) -> dict[str, Any]:
    """The measurements of a run, by `Measure.key`."""
    found: dict[str, Any] = (
        folder.with_present_keys(folder.read_json(path / MEASURES)) if (path / MEASURES).is_file() else {}
    )
    return found


def measure(bench: Bench, path: Path, wanted: Sequence[Measure]) -> None:
    """Make the missing measurements of the run at ``path``.

    Interrupted at the time limit; the same call resumes.
    """
    with _turn(bench, path):
        left = {m.key: m for m in wanted if m.key not in measured(path)}
        if not left:
            return
        who = load_target(str(path), attacks=())
        for key, m in left.items():
            bench.check()
            begun = time.monotonic()
            found = {**_MEASURES[m.kind](bench, who, m), "data": _some(who, m).samples()}
            found["provenance"] = folder.provenance(seed=0, device=who.test()[0].device)
            folder.write_json(path / MEASURES, {**measured(path), key: found})
            value = found.get("share") or found["certified"]
            bench.say(f"measure  {path.name}, {key}: {stats.percent(value)}, {time.monotonic() - begun:.0f} s")


def _accuracy(bench: Bench, who: Target, m: Measure) -> dict[str, Any]:
    x, y, ids = _some(who, m).test()
    attacks = {"attack": parse(m.attack, None, ATTACKS)} if m.kind == "attack" else {}
    strong = any(attack.parts() for attack in attacks.values())
    batch = (_STRONG_BATCH if strong else _BATCH).get(x.device.type, 250)
    part = who.place / f"measure-{_short(m)}.jsonl"
    with bar(len(x), who.name, enabled=bench.progress, costs=costs(attacks, False)) as advance:
        found = evaluate(
            who.model, x, y, attacks, ids=ids, batch=batch, cascade=False, resume=part if attacks else None,
            advance=checked(advance, bench.check),
        )  # fmt: skip
    with suppress(FileNotFoundError):
        part.unlink()
    kept = found.outcomes
    if not attacks:
        return {"share": found.clean, "outcomes": {"ids": kept["ids"], "share": kept["clean"]}}
    result = found.attacks["attack"]
    about = {k: result[k] for k in ("attack", "threat", "seconds")}
    return {"share": result["robust"], **about, "outcomes": robust_images(found, "attack")}


def robust_images(found: Evaluation, attack: str) -> dict[str, str]:
    """The numbers of the images, and for each "1" where it is correctly classified under the attack, "0" otherwise."""
    return {"ids": found.outcomes["ids"], "share": found.outcomes["attacks"][attack].translate(_ROBUST)}


def _smoothing(bench: Bench, who: Target, m: Measure) -> dict[str, Any]:
    if m.predicted:
        return _sequential(bench, who, m)
    x, y, ids = _some(who, m).test()
    sampling = Sampling(m.sigma, n=m.samples)
    about = identity(who.model) | {"data": who.data.name, "split": "test"}
    network = certified_network(who.model, x, sampling)
    place = who.place / f"certificate-{_short(m)}.csv"
    path = claimed(place, made_of(sampling, about, network.layers))
    total = len(x) * (sampling.n0 + sampling.n)
    with bar(total, who.name, enabled=bench.progress) as advance:
        found = certify_run(
            who.model, x, y, sampling, ids=ids, path=path, about=about, network=network,
            advance=checked(advance, bench.check),
        )  # fmt: skip
    return _of_rows(found, m, {r.idx: r.smoothed for r in found.rows})


def _sequential(bench: Bench, who: Target, m: Measure) -> dict[str, Any]:
    """The certificate that `atent certify --radius` gives of these images, in its file; then PREDICT."""
    _, _, found = certify_folder(
        who.place, sigma=m.sigma, n=m.samples, radii=[m.radius], sequential=True, limit=m.n, subset="stratified",
        progress=bench.progress, check=bench.check,
    )  # fmt: skip
    assert found is not None
    x, _, ids = _some(who, m).test()
    network = certified_network(who.model, x, found.sampling)
    smoothed = Smoothed(network.network, m.sigma)
    with bar(len(x) * m.predicted, who.name, enabled=bench.progress) as advance:
        classes = smoothed.predict(x, m.predicted, ids=ids, advance=checked(advance, bench.check))
    return {**_of_rows(found, m, dict(zip(ids.tolist(), classes.tolist()))), "predicted": m.predicted}


def _of_rows(found: Certificate, m: Measure, smoothed: Mapping[int, int]) -> dict[str, Any]:
    """The shares and outcomes of a certificate; ``smoothed``: the classes of the smoothed classifier, by number."""
    rows = found.rows
    flags: dict[str, list[bool]] = {
        "clean": [r.clean == r.label for r in rows], "smoothed": [smoothed[r.idx] == r.label for r in rows],
        "certified": [bool(r.correct) and r.radius >= radius(m.radius) for r in rows],
    }  # fmt: skip
    return {
        **{key: stats.share(sum(each), len(rows)) for key, each in flags.items()},
        "outcomes": {"ids": spans(r.idx for r in rows), **{key: _bits(each) for key, each in flags.items()}},
        "seconds": found.to_json([radius(m.radius)])["seconds_per_image"],
        "draws": found.sampling.to_json(),
        "radius": radius(m.radius),
    }


def _bounds(bench: Bench, who: Target, m: Measure) -> dict[str, Any]:
    _, found, _ = certify_folder(
        who.place, method=m.method, radii=[m.radius], norm="linf", limit=m.n, subset="stratified",
        progress=bench.progress, check=bench.check,
    )  # fmt: skip
    content = found.to_json()
    (at,) = content["certified"]
    ids, verified = _some(who, m).test()[2].tolist(), set(at["verified"])
    outcomes = {"ids": spans(ids), "certified": _bits(i in verified for i in ids)}
    shares = {"clean": content["clean"], "certified": at["share"]}
    return {**shares, "outcomes": outcomes, "seconds": at["seconds_per_image"]}


_MEASURES: dict[str, Callable[[Bench, Target, Measure], dict[str, Any]]] = {
    "clean": _accuracy, "attack": _accuracy, "smoothing": _smoothing, "bounds": _bounds,
}  # fmt: skip


def _bits(flags: Iterable[Any]) -> str:
    """One character per image, 1 or 0."""
    return "".join("1" if flag else "0" for flag in flags)


def _short(m: Measure) -> str:
    """A name for files of a measure."""
    return hashlib.sha256(m.key.encode()).hexdigest()[:10]


def _some(who: Target, m: Measure) -> Target:
    """The subject with the measure's images, the same for every network."""
    return replace(
        who, data=replace(who.data, subset="stratified"), settings=replace(who.settings, limit=m.n)
    )  # fmt: skip


# ---- a table -----------------------------------------------------------------------------------------------


def make(bench: Bench, table: Table, seeds: Sequence[int], only: Sequence[str] = ()) -> None:
    """Train and measure everything of a table, or of its rows ``only``, seed by seed."""
    for seed in seeds:
        for training, wanted in needed(table, only).items():
            name = next(t for t in table.trainings() if t.name == training)
            measure(bench, train(bench, name, seed), wanted)


def needed(table: Table, only: Sequence[str] = ()) -> Mapping[str, list[Measure]]:
    """The measures of each training, in the order of training; trainings that only initialise others may have none."""
    out: dict[str, list[Measure]] = {}

    def add(training: Training) -> list[Measure]:
        if training.after is not None:
            add(training.after)
        return out.setdefault(training.name, [])

    for row in table.rows():
        if only and row.key not in only:
            continue
        for cell in row.cells.values():
            if cell.training is not None and cell.measure is not None:
                kept = add(cell.training)
                each = [m for m in (cell.measure, cell.also) if m is not None]
                kept += [m for m in each if m.key not in [k.key for k in kept]]
    return out
