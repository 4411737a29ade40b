"""From settings to a finished run: data, model, training, one look at the test set, and the files that tell of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from importlib import import_module, resources
from pathlib import Path
from typing import Any

from torch import nn

from atent import run as folder
from atent.attacks import ATTACKS
from atent.attacks.spec import labelled, parse
from atent.data import DataSettings
from atent.data import load as load_data
from atent.methods import Method, Standard
from atent.methods.awp import plain, title
from atent.models import ModelSettings, check_output, make
from atent.optim import Optimizer, Schedule
from atent.rng import fold
from atent.threat import Threat
from atent.train.checkpoint import load_weights
from atent.train.judgement import judge
from atent.train.loop import Fitted, facts, fit
from atent.train.preflight import check_attacks
from atent.train.settings import TrainSettings, pick_device
from atent.train.subject import EvaluateSettings, threat_of

Say = Callable[[str], None]


@dataclass(frozen=True)
class Job:
    """Everything that makes a run: what a recipe and the command line say."""

    recipe: str | None
    method: Method
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    train: TrainSettings = field(default_factory=TrainSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)

    def sections(self) -> dict[str, Any]:
        """The settings as plain values, in a recipe's form."""
        names = ("data", "model", "optimizer", "schedule", "train", "evaluate")
        sections = {name: asdict(getattr(self, name)) for name in names}
        return {"recipe": self.recipe, "method": plain(self.method), **sections}


@dataclass(frozen=True)
class Finished:
    """A run that is trained and judged."""

    path: Path
    fitted: Fitted
    evaluation: dict[str, Any]
    """The content of evaluation.json."""


def run_job(
    job: Job,
    path: Path,
    *,
    resume: bool = False,
    progress: bool = True,
    report: Callable[[dict[str, Any]], None] | None = None,
    say: Say = lambda line: None,
) -> Finished:
    """Train, judge on the test set once, and leave a whole run folder at ``path``.

    Raises what the rooms raise: ValueError, FileNotFoundError, FileExistsError, Diverged, Interrupted, OSError.
    """
    data = load_data(job.data)
    threat = threat_of(getattr(job.method, "threat", None), data.box, job.evaluate)
    attacks = labelled([parse(text, threat, ATTACKS) for text in job.evaluate.attacks])
    model = make(job.model, classes=data.classes, shape=data.shape, seed=fold(job.train.seed, "weights"))
    # A network may make its layers in its first forward pass.
    check_output(model, data.shape, data.classes)
    if job.model.weights is not None and not resume:
        _begin_from(model, Path(job.model.weights))
    check_attacks(model, data, {f"evaluate.attacks {name}": attack for name, attack in attacks.items()})
    import_module("matplotlib.figure")  # the curves are drawn at the end
    config = {
        **job.sections(),
        "about": facts(model, data, job.method),
        "provenance": folder.provenance(seed=job.train.seed, device=pick_device(job.train.device)),
    }
    counts = data.about["counts"]
    say(f"run     {path}")
    say(
        f"data    {data.name}: {counts['train']} train, {counts['validation']} validation (seed {job.data.split_seed}),"
        f" {counts['test']} test"
    )
    say(f"model   {job.model.name}, {config['about']['parameters']:,} parameters")
    say(f"method  {_method_line(config)}")
    fitted = fit(
        model, data, job.method, optimizer=job.optimizer, schedule=job.schedule, settings=job.train,
        augmentation=job.data.augment, threat=threat, run=path, config=config, resume=resume, progress=progress,
        report=report, say=say,
    )  # fmt: skip
    draw_curves(path, {job.recipe or title(job.method): fitted.history})
    content = judge(fitted.model, data, attacks, job.evaluate, progress=progress)
    kept = {"average": fitted.best["best_weights"] == "average"} if "best_weights" in fitted.best else {}
    content = {"run": path.name, "epoch": fitted.best["epoch"], **kept, **content}
    if fitted.stopped:
        content["stopped"] = fitted.stopped
    if job.evaluate.last and fitted.history[-1]["epoch"] != fitted.best["epoch"]:
        # Robust overfitting (Rice et al. 2020) shows in the difference; neither is chosen by the test set.
        load_weights(model, path, which="last")
        last = judge(model, data, attacks, job.evaluate, progress=progress)
        robust = {name: {"robust": found["robust"]} for name, found in last["attacks"].items()}
        content["last"] = {
            "epoch": fitted.history[-1]["epoch"], "natural": last["natural"], "attacks": robust, "worst": last["worst"],
        }  # fmt: skip
        load_weights(model, path)
    folder.write_json(path / folder.EVALUATION, content)
    return Finished(path, fitted, content)


def baseline(job: Job, threat: Threat) -> Job:
    """The same data, split, network, epochs, optimizer and judgement, trained plainly."""
    return replace(job, method=Standard(), evaluate=replace(job.evaluate, norm=threat.norm, eps=threat.eps))


def draw_curves(path: Path, runs: dict[str, list[dict[str, Any]]]) -> None:
    """curves.png: benign and robust accuracy, train and validation, against epoch."""
    from atent import plots

    drawn = {name: [row for row in rows if "validation_natural" in row] for name, rows in runs.items()}
    figure = plots.curves(drawn) if len(drawn) > 1 else plots.curves(next(iter(drawn.values())))
    plots.save(figure, path / folder.CURVES)


def _begin_from(model: nn.Module, path: Path) -> None:
    """Load the weights to begin with; where the run that a recipe makes is absent, the error names its command."""
    if path.suffix != ".safetensors" and not (path / folder.BEST).is_file():
        command = None
        if (path / folder.CONFIG).is_file():
            command = f"atent train --resume {path}"
        elif (resources.files("atent.recipes") / f"{path.name}.toml").is_file():
            command = f"atent train {path.name}" + ("" if path.parent == Path("runs") else f" --runs {path.parent}")
        if command:
            raise FileNotFoundError(
                f"no weights in {path} yet: run `{command}` first, or give others by --model.weights"
            )
    load_weights(model, path)


def _method_line(config: dict[str, Any]) -> str:
    method, chain = config["method"], config["about"].get("chain")
    threat = method.get("threat")
    line = method["name"] + (f", {threat['norm']} eps {threat['eps']:g}" if threat else "")
    if chain:
        line += (
            f", K {chain['steps']}, step {chain['step_size']:g}, pull {chain['pull']:g}, noise {chain['noise']:g}"
            f" (effective {chain['effective_noise']:.4g} per step), projection {chain['projection']}"
        )
    if method.get("calibrated"):
        line += f", {'noise' if method['calibrated'] == 'noise' else 'gamma'} to be calibrated"
    if "awp" in method:
        line += f", weights perturbed by {method['awp']['gamma']:g} (AWP)"
    return line
