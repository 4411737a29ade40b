"""From settings to a finished run: data, model, training, one look at the test set, and the files that tell of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atent import run as folder
from atent.attacks import ATTACKS, Attack
from atent.attacks.spec import labelled, parse
from atent.data import Data, DataSettings
from atent.data import load as load_data
from atent.evaluate import evaluate
from atent.methods import Method, Standard
from atent.models import ModelSettings, make
from atent.optim import Optimizer, Schedule
from atent.progress import bar
from atent.rng import fold
from atent.threat import Norm, Threat
from atent.train.checkpoint import load_weights, model_of
from atent.train.loop import Fitted, facts, fit
from atent.train.settings import TrainSettings, pick_device

Say = Callable[[str], None]


@dataclass(frozen=True)
class EvaluateSettings:
    """How the finished model is judged on the test set."""

    attacks: tuple[str, ...] = ("FGSM", "PGD(steps=20)", "Langevin(steps=20)")
    """Attacks, each written as a call, such as PGD(steps=40, step_size=0.01, restarts=5)."""
    norm: Norm | None = None
    """Norm of the threat; left out: the method's."""
    eps: float | str | None = None
    """Radius of the threat; left out: the method's."""
    limit: int | None = 1000
    """Number of test images, the first ones; none: all."""
    batch: int = 250
    """Images per batch."""
    seed: int = 0
    """Seed of the attacks' draws."""
    last: bool = True
    """Judge the last epoch's weights as well, where another epoch is the best."""

    def __post_init__(self) -> None:
        for name in ("limit", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


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
        method = {"name": type(self.method).__name__, **asdict(self.method)}
        return {"recipe": self.recipe, "method": method, **{name: asdict(getattr(self, name)) for name in names}}


@dataclass(frozen=True)
class Finished:
    """A run that is trained and judged."""

    path: Path
    fitted: Fitted
    evaluation: dict[str, Any]
    """The content of evaluation.json."""


def threat_of(own: Threat | None, box: tuple[float, float], settings: EvaluateSettings) -> Threat | None:
    """The threat to judge by: the method's ``own``, norm and eps replaced where the settings say so."""
    norm, eps = settings.norm or (own.norm if own else None), settings.eps
    if eps is None and own is not None:
        eps = own.eps
    return None if norm is None or eps is None else Threat(norm, eps, box)


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
    if job.model.weights is not None and not resume:
        _begin_from(model, Path(job.model.weights))
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
        report=report,
    )  # fmt: skip
    draw_curves(path, {job.recipe or type(job.method).__name__: fitted.history})
    content = judge(fitted.model, data, attacks, job.evaluate, progress=progress)
    content = {"run": path.name, "epoch": fitted.best["epoch"], **content}
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


def judge(
    model: torch.nn.Module,
    data: Data,
    attacks: Mapping[str, Attack],
    settings: EvaluateSettings,
    *,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate on the first test images; plain values with provenance."""
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    part = data.test.first(settings.limit or len(data.test)).to(device)
    x, y = part.batch(torch.arange(len(part), device=device))
    with bar(len(part) * len(attacks), "test", enabled=progress) as advance:
        found = evaluate(model, x, y, attacks, seed=settings.seed, ids=part.ids, batch=settings.batch, advance=advance)
    return {
        "data": {"name": data.name, "split": "test", "n": len(part), "of": data.about["available"]["test"]},
        **found.to_json(),
        "provenance": folder.provenance(seed=settings.seed, device=device),
    }


def evaluate_run(
    path: Path,
    *,
    attacks: tuple[str, ...] | None = None,
    which: str = "best",
    root: str | None = None,
    device: str = "auto",
    limit: int | None = None,
    seed: int | None = None,
    batch: int | None = None,
    weights: Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Judge a finished run again: its recipe's attacks or others, under its own threat and on its own test set.

    ``weights`` replaces the run's by those of a .safetensors file. What is left out is as the run had it.
    """
    if not (path / folder.CONFIG).is_file():
        raise FileNotFoundError(f"{path} is not a run folder (no {folder.CONFIG}): give the path that training printed")
    config = folder.read_json(path / folder.CONFIG)
    model = model_of(config, path)
    about = load_weights(model, weights or path, which=which)
    own = config["evaluate"]
    changes = {"limit": limit, "seed": seed, "batch": batch, "attacks": attacks}
    known = {**own, **{k: v for k, v in changes.items() if v is not None}}
    settings = EvaluateSettings(**{**known, "attacks": tuple(known["attacks"])})
    data = load_data(DataSettings(**{**config["data"], **({"root": root} if root else {})}))
    method = config["method"].get("threat")
    threat = threat_of(Threat(method["norm"], method["eps"], data.box) if method else None, data.box, settings)
    named = labelled([parse(text, threat, ATTACKS) for text in settings.attacks])
    content = judge(model.to(pick_device(device)).eval(), data, named, settings, progress=progress)
    source = str(weights) if weights else which
    return {"run": path.name, "weights": source, "epoch": about.get("epoch"), **content}


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
    return line
