"""The pipeline from settings to a finished run: data, model, training, one evaluation on the test set, and files."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from importlib import import_module, resources
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atent import runs as folder
from atent import trust
from atent.attacks import ATTACKS, Attack
from atent.attacks.length import LONGEST_INNER, check_length
from atent.attacks.spec import label, labelled, parse
from atent.data import SOURCES, Data
from atent.data import load as load_data
from atent.distributed import alone, current, entered
from atent.experiments.evaluation import evaluate_model
from atent.experiments.introduction import introduction
from atent.experiments.job import Job
from atent.experiments.kept import best_sum, kept
from atent.experiments.recipe_changes import in_run
from atent.experiments.recipe_files import read_recipe
from atent.experiments.results import EvaluationFile
from atent.experiments.target import attacks_of, data_of, recipe_attacks, threat_of
from atent.messages import quoted
from atent.methods import Standard
from atent.methods.awp import Perturbation
from atent.methods.embedding import EmbeddingTerm
from atent.models import MODELS, ModelSettings, check_output, make
from atent.optim.settings import OPTIMIZERS
from atent.registry import plugin_found, plugin_of
from atent.rng import fold
from atent.runs.checkpoint import check_architecture, load_state, read_states, weights_file
from atent.runs.foreign import begins_with_file, is_weights
from atent.runs.loading import model_of
from atent.runs.locks import held
from atent.runs.manifest import Sum, write_json
from atent.runs.pretrained import load_start
from atent.signals import computed, resumed_by
from atent.threat import Threat
from atent.train.agreement import reloaded
from atent.train.callbacks import Callback
from atent.train.interrupt import resumption
from atent.train.loop import Fitted, digest_of, facts, fit
from atent.train.preflight import check_attacks
from atent.train.settings import pick_device

Say = Callable[[str], None]


@dataclass(frozen=True)
class Finished:
    """A run that is trained and evaluated."""

    path: Path
    fitted: Fitted
    evaluation: EvaluationFile


def run_job(
    job: Job,
    path: Path,
    *,
    resume: bool = False,
    saved: Saved | None = None,
    progress: bool = True,
    report: Callable[[dict[str, Any]], None] | None = None,
    say: Say = lambda line: None,
    introduce: Say | None = None,
    callbacks: Sequence[Callback] = (),
) -> Finished:
    """Train, evaluate once on the test set, and write a complete run folder to ``path``.

    ``progress``: show bars. ``introduce`` gets the lines that describe the run, ``say`` by default. A resumed run keeps
    its data.subset. ``saved``: what `saved_run` read of a run that was trained from Python, to resume it. Raises
    ValueError (InUse while another process is at work on the run), FileNotFoundError, FileExistsError, Diverged,
    Interrupted, OSError.
    """
    with entered(lambda: held(path / folder.LOCK, "train")), resumed_by(lambda: resumption(path)):
        job = as_begun(job, path) if resume else job
        return _run(
            job, path, resume, saved, progress=progress, report=report, say=say, introduce=introduce or say,
            callbacks=callbacks,
        )  # fmt: skip


def fit_job(job: Job, path: Path, *, resume: bool = False, saved: Saved | None = None, **how: Any) -> Fitted:
    """Train as `run_job`, with the same arguments, without using the test set."""
    with entered(lambda: held(path / folder.LOCK, "train")), resumed_by(lambda: resumption(path)):
        return _fitted(as_begun(job, path) if resume else job, path, resume, saved, **how)[0]


def _run(
    job: Job, path: Path, resume: bool, saved: Saved | None, *, progress: bool,
    report: Callable[[dict[str, Any]], None] | None, say: Say, introduce: Say, callbacks: Sequence[Callback],
) -> Finished:  # fmt: skip
    """`run_job` under the run's lock."""
    before = alone(lambda: best_sum(path)) if resume else None
    fitted, model, data, attacks = _fitted(
        job, path, resume, saved, progress=progress, report=report, say=say, introduce=introduce, callbacks=callbacks
    )
    found = alone(lambda: _kept(job, path, fitted, data, attacks, before)) if resume else None
    if found is None:
        evaluation = _evaluated(job, path, model, fitted, data, attacks, progress and current().first)
        content = evaluation.to_json()
        with computed(evaluation):
            alone(lambda: write_json(path / folder.EVALUATION, content))
    else:
        evaluation, content = found, found.to_json()
        if current().first:
            say(f"{path} is finished: its evaluation on the test set is not repeated")
    for callback in callbacks if current().first else ():
        callback.evaluation(content)
    return Finished(path, fitted, evaluation)


def _kept(
    job: Job, path: Path, fitted: Fitted, data: Data, attacks: dict[str, Attack], before: Sum | None
) -> EvaluationFile | None:
    """The evaluation of a run that was finished before it was resumed; ``before``: the sum of its best weights then."""
    return kept(path, fitted, data, attacks, job.evaluate) if best_sum(path) == before else None


def _fitted(
    job: Job, path: Path, resume: bool, saved: Saved | None, *, progress: bool = True,
    report: Callable[[dict[str, Any]], None] | None = None, say: Say = lambda line: None, introduce: Say | None = None,
    callbacks: Sequence[Callback] = (),
) -> tuple[Fitted, nn.Module, Data, dict[str, Attack]]:  # fmt: skip
    """The training, its network and data, and the attacks of the evaluation that may follow, which are checked."""
    teacher = getattr(job.method, "teacher", None)
    if teacher and not resume:
        _need_run(Path(teacher), "method.teacher")
    data = saved.data if saved else load_data(job.data)
    job = job.within(data.box)
    threat = threat_of(getattr(job.method, "threat", None), data.box, job.evaluate)
    attacks = _attacks(job, threat, data)
    model = saved.model if saved else _network(job, data, resume)
    check_attacks(model, data, {f"evaluate.attacks {name}": attack for name, attack in attacks.items()})
    import_module("matplotlib.figure")  # the curves are drawn at the end
    config = saved.config if saved else _config(job, path, model, data, attacks.values())
    for line in introduction(path, data, config, job.train.validate_limit, job.evaluate.limit):
        (introduce or say)(line)
    fitted = fit(
        model, data, job.method, optimizer=job.optimizer, schedule=job.schedule, settings=job.train,
        augmentation=job.data.augment, threat=job.method.threat or threat, run=path, config=config, resume=resume,
        progress=progress, report=report, say=say, callbacks=callbacks,
    )  # fmt: skip
    alone(lambda: draw_curves(path, {job.recipe or job.title: fitted.history}))
    return fitted, model, data, attacks


def _attacks(job: Job, threat: Threat | None, data: Data) -> dict[str, Attack]:
    """The attacks of the evaluation by name, each with an eps that is valid for the data."""
    if job.evaluate.threats:
        attacks = attacks_of(job.evaluate, threat, data)
    else:
        attacks = labelled(recipe_attacks(job.evaluate, threat))
    for attack in attacks.values():
        attack.threat.check_eps(data.shape)
    if job.evaluate.checks and threat is not None and threat.eps == math.inf:
        raise ValueError("evaluate.checks needs a finite eps, got inf: set evaluate.eps, or omit evaluate.checks")
    _check_length(job, threat, attacks)
    return attacks


def _check_length(job: Job, threat: Threat | None, attacks: dict[str, Attack]) -> None:
    """ValueError for attacks of the evaluation or the validation, and a training's adversary, that would not end."""
    allowed, option = job.evaluate.allow_long, "--evaluate.allow-long"
    named = {f"evaluate.attacks {name}": attack for name, attack in attacks.items()}
    if threat is not None and job.train.validate_attack.strip().lower() != "none":
        made = parse(job.train.validate_attack, threat, ATTACKS, allow_large_eps=job.evaluate.allow_large_eps)
        named[f"train.validate_attack {label(made)}"] = made
    check_length(named, allowed=allowed, option=option)
    inner = {"method.steps": getattr(job.method, "steps", 0), "train.watch_steps": job.train.watch_steps}
    for name, steps in inner.items():
        if steps > LONGEST_INNER and not allowed:
            raise ValueError(
                f"{name} {steps:,} is the number of passes per batch, at most {LONGEST_INNER:,} are allowed: lower it"
                f" ({option} to insist)"
            )


def _network(job: Job, data: Data, resume: bool) -> nn.Module:
    """The network that the job describes, with the weights it begins from unless the run resumes."""
    model = make(job.model, classes=data.classes, shape=data.shape, seed=fold(job.train.seed, "weights"))
    # A network may make its layers in its first forward pass.
    check_output(model, data.shape, data.classes)
    if not resume:
        _begin_from(model, job.model)
    return model


def _config(job: Job, path: Path, model: nn.Module, data: Data, attacks: Iterable[Attack]) -> dict[str, Any]:
    """The content of the config.json at ``path`` for the job, the network and the data."""
    file = {"recipe_file": in_run(job.recipe_file, path)} if job.recipe_file else {}
    return {
        **job.sections(),
        "about": {**_with_plugins(facts(model, data, job.method), job, attacks), **file},
        "provenance": folder.provenance(seed=job.train.seed, device=pick_device(job.train.device)),
    }


def _evaluated(
    job: Job, path: Path, model: nn.Module, fitted: Fitted, data: Data, attacks: dict[str, Attack], progress: bool
) -> EvaluationFile:
    """The test set's evaluation of the best epoch and, with ``evaluate.last``, of the last one; ranks share both."""
    threat = threat_of(getattr(job.method, "threat", None), data.box, job.evaluate)
    how: dict[str, Any] = {"check_inputs": begins_with_file(job.sections()), "progress": progress}
    content = evaluate_model(fitted.model, data, attacks, job.evaluate, threat=threat, **how)
    kept = {"average": fitted.best["best_weights"] == "average"} if "best_weights" in fitted.best else {}
    stopped = {"stopped": fitted.stopped} if fitted.stopped else {}
    content = {"run": path.name, "epoch": fitted.best["epoch"], **kept, **content, **stopped}
    if job.evaluate.last and fitted.history[-1]["epoch"] != fitted.best["epoch"]:
        # Robust overfitting (Rice et al. 2020) shows in the difference; neither is chosen by the test set.
        reloaded(model, path, "last")
        last = evaluate_model(model, data, attacks, job.evaluate, **how)
        robust = {name: {"robust": found["robust"]} for name, found in last["attacks"].items()}
        content["last"] = {
            "epoch": fitted.history[-1]["epoch"], "clean": last["clean"], "attacks": robust, "worst": last["worst"],
        }  # fmt: skip
        reloaded(model, path, "best")
    shared: EvaluationFile = current().shared(EvaluationFile.from_json(content))
    return shared


def as_begun(job: Job, path: Path) -> Job:
    """The job with the data.subset of the run folder at ``path``, where there is one."""
    if not (path / folder.CONFIG).is_file():
        return job
    rule = folder.read_config(path / folder.CONFIG)["data"].get("subset", job.data.subset)
    return replace(job, data=replace(job.data, subset=rule))


@dataclass(frozen=True, eq=False)
class Saved:
    """A run that was trained from Python, rebuilt from its folder and the given names."""

    model: nn.Module
    data: Data
    config: dict[str, Any]


def saved_run(
    path: Path, *, model: str | None = None, data: str | None = None, root: str | None = None, trust_code: bool = False
) -> Saved:
    """The network and the data of a run folder of `fit`, ready to be resumed; ``model`` and ``data`` name them, as
    `model_of` and `data_of` take them. ``trust_code``: let a run that you did not make on this machine import what it
    names. ValueError as there, and for other training samples."""
    with trust.fenced(model, data, trust_code=trust_code):
        folder.admit(path)
        return _saved(path, model, data, root)


def _saved(path: Path, model: str | None, data: str | None, root: str | None) -> Saved:
    config = folder.read_config(path / folder.CONFIG)
    state = load_state(path, torch.device("cpu"))
    net = model_of(config, path, model, state["model"])
    check_architecture(net, state["model"], path, {}, state.get("own", ()))
    found, about = data_of(config, path, data, root), config["about"]["data"]
    seen = {"counts": found.about["counts"], "digest": digest_of(found).get("digest")}
    for what, value in seen.items():
        if value != about.get(what, value):
            raise ValueError(
                f"{path} cannot be resumed: the {what} of its data was {about[what]}, not {value}: give the same data"
            )
    check_output(net, found.shape, found.classes)
    return Saved(net, found, config)


def baseline(job: Job, threat: Threat) -> Job:
    """The same data, split, network, epochs, optimizer and evaluation with standard training."""
    evaluate = replace(job.evaluate, norm=threat.norm, eps=float(threat.eps), **threat.extra())
    train = replace(job.train, awp=Perturbation(), embedding=EmbeddingTerm())
    return replace(job, method=Standard(), train=train, evaluate=evaluate)


def draw_curves(path: Path, runs: dict[str, list[dict[str, Any]]]) -> None:
    """curves.png: clean and robust accuracy, train and validation, against epoch."""
    from atent import plots

    drawn = {name: [row for row in rows if "validation_clean" in row] for name, rows in runs.items()}
    figure = plots.curves(drawn) if len(drawn) > 1 else plots.curves(next(iter(drawn.values())))
    plots.save(figure, path / folder.CURVES)


def _with_plugins(about: dict[str, Any], job: Job, attacks: Iterable[Attack]) -> dict[str, Any]:
    """The record of a job, with the module, class and version of each plug-in."""
    plugins = [plugin_of(ATTACKS, type(attack)) for attack in attacks]
    for registry, name in ((MODELS, job.model.name), (SOURCES, job.data.name), (OPTIMIZERS, job.optimizer.name)):
        if registry.origin(name) != "built-in":
            plugins.append(plugin_found(registry, name))
    found = [asdict(plugin) for plugin in plugins if plugin]
    known = [*about.get("plugins", []), *(each for i, each in enumerate(found) if each not in found[:i])]
    return {**about, "plugins": known} if known else about


def _begin_from(model: nn.Module, settings: ModelSettings) -> None:
    """Load the weights to begin with; where the run that a recipe makes is absent, the error names its command."""
    if settings.weights is None:
        if settings.frozen:
            raise ValueError("model.frozen keeps the weights that the training begins with: give model.weights")
        if settings.branch and not settings.projection:
            raise ValueError("model.branch is for weights of a pre-training run: give model.weights")
        return
    path = Path(settings.weights)
    _need_run(path, "model.weights")
    try:
        load_start(model, path, settings.branch)
    except ValueError as error:
        about = read_states(weights_file(path, "best"))[0]
        made = (about.get("model") or {}).get("name")
        if made in (None, settings.name):
            raise
        raise ValueError(
            f"{path} holds a {made} ({about.get('classes')} classes, inputs {tuple(about.get('shape', ()))}), not a"
            f" {settings.name}: give --model.name {made}"
        ) from error


def _need_run(path: Path, field: str) -> None:
    """FileNotFoundError, in one line with the command that makes it, for a run of a recipe without weights yet."""
    if is_weights(path) or (path / folder.BEST).is_file():
        return
    if (path / folder.CONFIG).is_file():
        verb = "pretrain" if _method_of(folder.read_config(path / folder.CONFIG)) == "ACL" else "train"
        command = f"atent {verb} --resume {quoted(path)}"
    elif (resources.files("atent.recipes") / f"{path.name}.toml").is_file():
        verb = "pretrain" if _method_of(read_recipe(path.name)) == "ACL" else "train"
        command = f"atent {verb} {path.name}" + (
            "" if path.parent == Path("runs") else f" --runs {quoted(path.parent)}"
        )
    else:
        return
    raise FileNotFoundError(f"no weights in {path} yet: run `{command}` first, or give others by --{field}")


def _method_of(tables: Mapping[str, Any]) -> str | None:
    """The name of the method, where the tables of a recipe or a run have one."""
    name: str | None = (tables.get("method") or {}).get("name")
    return name
