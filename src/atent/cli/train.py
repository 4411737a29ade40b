"""`atent train`: trains a recipe, or resumes a run."""

from __future__ import annotations

import itertools
import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from atent.cli import output
from atent.cli.jobs import recipe_job, with_sections
from atent.cli.parse import Name, Place, arg, read
from atent.cli.words import SAME, help_wanted, hyphened, options_of, split_sections
from atent.experiments.recipe_files import SECTIONS, UsageError
from atent.messages import quoted, unknown
from atent.torchrun import restarted

if TYPE_CHECKING:
    from atent.experiments.results import EvaluationFile


def train(
    recipe: Annotated[tyro.conf.Positional[str | None], arg("RECIPE")] = None,
    *,
    name: Name = None,
    runs: Annotated[str, arg("PATH")] = "runs",
    resume: Annotated[str | None, arg("RUN")] = None,
    baseline: Annotated[bool | None, arg("")] = None,
    validation_only: bool = False,
    certifier: Name = None,
    allow_large_eps: bool = False,
    model: Name = None,
    data: Name = None,
    root: Place = None,
    log: Annotated[tuple[str, ...], arg("TRACKER")] = (),
    quiet: bool = False,
    steal_lock: bool = False,
    fields: Annotated[tuple[str, ...], tyro.conf.Suppress] = (),
) -> int:
    """Train a model from a recipe, evaluate it once on the test set, and write a run folder.

    RECIPE is a name that `atent recipes` lists, or a .toml file. Every field of a recipe is also an option: `atent
    train RECIPE --help` lists them, and `atent train RECIPE --help optimizer` those of one section. Common options:
    --train.epochs 5, --train.seed 1, --train.device cuda, --train.threads auto, --data.limit 2000, --data.root PATH,
    --model resnet18, --method TRADES, --method.threat.eps 4/255, --evaluate.attacks FGSM "PGD(steps=40)" AutoAttack.
    Exit status: 0 success, 1 failure, or with --baseline not shown to be more robust, 2 invalid usage.

    Parameters
    ----------
    recipe
        Recipe name or .toml file.
    name
        Name of the run folder. Default: the recipe's name; a number is appended if it exists.
    runs
        Parent folder of the run folders.
    resume
        Run folder to resume, with its own settings.
    baseline
        Also train the same network by standard training, and exit with 1 unless the robust model is more robust with
        disjoint 95 % intervals. Default: the recipe's.
    validation_only
        Do not use the test set: validation.jsonl contains one row per epoch, and `atent evaluate RUN` evaluates the
        model later.
    certifier
        With --validation-only: also report verified accuracy on the validation images at the best epoch, by ibp,
        crown-ibp, crown or dual.
    allow_large_eps
        Allow an eps that covers the entire box: linf at least its width, l2 and l1 at least its diagonal, l0 and patch
        at least the number of elements, pixels or patches of a sample.
    model
        The network, as --model.name: a name or module:function. With --resume: for a run trained from Python.
    data
        The data set, as --data.name. With --resume: module:function that returns the data of a run trained on tensors.
    root
        Folder of the data (npz: the file), as --data.root. Default: the recipe's, or with --resume the run's.
    log
        Also log to these trackers: tensorboard, mlflow, wandb (each an extra of the package).
    quiet
        Print only results, warnings and errors: no progress, estimates or suggestions.
    steal_lock
        Take over the lock of a process on another host. Use it only if that process has ended.
    """
    from atent.runs import locks

    # A lock that this job left on another machine belongs to a process that torchrun has ended.
    locks.steal(steal_lock or (resume is not None and restarted()))
    if certifier is not None and not validation_only:
        raise UsageError("--certifier needs --validation-only: use `atent certify RUN --method ...` for test images")
    if validation_only and (baseline or log):
        option = "--baseline" if baseline else "--log"
        raise UsageError(f"--validation-only makes no evaluation, which {option} needs: omit one of them")
    if resume is not None:
        if recipe is not None:
            raise UsageError(f"unexpected argument {recipe!r}: --resume uses the recipe of {resume}")
        return _resume(
            Path(resume), model=model, data=data, root=root, baseline=bool(baseline), quiet=quiet, log=log,
            validation_only=validation_only, certifier=certifier,
        )  # fmt: skip
    if recipe is None:
        raise UsageError("no recipe given: write `atent train RECIPE`; see `atent recipes`")
    if root is not None:
        if any(word.partition("=")[0] == "--data.root" for word in fields):
            raise UsageError("--root and --data.root are the same option: omit one")
        fields = (*fields, "--data.root", root)
    from atent.distributed import entered
    from atent.methods import ACL
    from atent.runs.restarts import claimed

    job, own = recipe_job(recipe, list(fields), prog=f"atent train {recipe}", allow_large_eps=allow_large_eps)
    if isinstance(job.method, ACL):
        raise ValueError(f"{type(job.method).__name__} trains without labels: use `atent pretrain {recipe}`")
    beside = own and not validation_only if baseline is None else baseline
    if beside:
        _check_baseline(job, asked=baseline is not None)
    place = (runs, (job.recipe or "run") if name is None else name, "train")
    with entered(lambda: claimed(*place, numbered=name is None)) as (path, begun):
        if name is None and not begun:
            report_unfinished(runs, job.recipe or "run", path)
        return train_job(
            job, path, baseline=beside, quiet=quiet, log=log, resume=begun, validation_only=validation_only,
            certifier=certifier,
        )  # fmt: skip


def report_unfinished(runs: str, name: str, path: Path) -> None:
    """Print a line if the new run in ``path`` is beside an interrupted one of the same name."""
    from atent.distributed import current
    from atent.experiments.interrupted import beside
    from atent.messages import note

    line = beside(runs, name, path) if current().first else None
    if line is not None:
        note(line)


def run(words: list[str]) -> int:
    """Run `atent train` with these words, some of which set fields of the recipe."""
    return run_words(words, train)


def run_words(words: list[str], command: Callable[..., int]) -> int:
    """Run a training command with these words, some of which set fields of the recipe."""
    prog = f"atent {command.__name__}"
    if any(word.partition("=")[0] == "--resume" for word in words):
        _check_resumed(words)
        return command(**read(command, words, prog))
    own, fields = split_sections(words)
    if help_wanted(own):
        own = [word for word in own if word not in ("-h", "--help")]
        if own and not own[0].startswith("-"):
            recipe_job(own[0], [*fields, "--help"], prog=f"{prog} {own[0]}", shown=_sections(words, own[0]))
        own.append("--help")
    meant = with_sections(own, options_of(command))
    return command(**read(command, own, prog, meant=meant), fields=tuple(fields))


def _sections(words: list[str], recipe: str) -> tuple[str, ...]:
    """The sections of the recipe that follow --help, beside its name; UsageError for another word."""
    after = words[next(i for i, word in enumerate(words) if word in ("-h", "--help")) + 1 :]
    after = [word for word in itertools.takewhile(lambda word: not word.startswith("-"), after) if word != recipe]
    for name in after:
        if name not in SECTIONS:
            raise UsageError(unknown("section", name, SECTIONS))
    return tuple(after)


def _check_resumed(words: list[str]) -> None:
    """Raise UsageError for a recipe field or an option of a new run, which a resumed run already has."""
    for word in words:
        option = "--" + hyphened(word.partition("=")[0][2:]) if word.startswith("--") else ""
        section, dot, _ = option[2:].partition(".")
        fields = bool(dot) and section in SECTIONS and option not in SAME
        if fields or option in ("--name", "--runs", "--allow-large-eps"):
            kept = "folder" if option in ("--name", "--runs") else "settings"
            raise UsageError(
                f"{option} has no effect with --resume, which keeps the run's {kept}: omit it, or train a new run from"
                " its recipe"
            )


def _resume(
    path: Path, *, model: str | None, data: str | None, root: str | None, baseline: bool, quiet: bool,
    log: tuple[str, ...], validation_only: bool, certifier: str | None,
) -> int:  # fmt: skip
    from atent import runs as folder
    from atent.experiments.pipeline import saved_run
    from atent.experiments.recipe_changes import changed
    from atent.experiments.recipes import python_job, resumed_job
    from atent.messages import note

    if not (path / folder.CONFIG).is_file():
        raise FileNotFoundError(f"{folder.no_run(path)}: give the run folder to resume")
    folder.admit(path)
    saved = folder.read_config(path / folder.CONFIG)
    if differs := changed(saved, path):
        note(differs)
    if all(section in saved for section in SECTIONS) and saved["model"].get("name"):
        job = resumed_job(saved, path, model=model, data=data, root=root)
        python = None
    else:
        job = python_job(saved, path, baseline=baseline)
        python = saved_run(path, model=model, data=data, root=root)
    return train_job(
        job, path, resume=True, saved=python, baseline=baseline, quiet=quiet, log=log,
        validation_only=validation_only, certifier=certifier,
    )  # fmt: skip


def train_job(
    job: Any, path: Path, *, baseline: bool, quiet: bool, log: tuple[str, ...], resume: bool = False, saved: Any = None,
    validation_only: bool = False, certifier: str | None = None,
) -> int:  # fmt: skip
    """Train or resume, with the baseline if requested, and print the results."""
    from atent.distributed import alone, entered
    from atent.experiments.pipeline import baseline as plain_job
    from atent.experiments.pipeline import draw_curves
    from atent.experiments.target import threat_of
    from atent.runs.restarts import claimed

    if validation_only:
        return _validated(job, path, quiet=quiet, resume=resume, saved=saved, certifier=certifier)
    options: dict[str, Any] = {
        "progress": not quiet, "report": None if quiet else _epoch_line, "introduce": output.lines(quiet), "log": log,
    }  # fmt: skip
    done = _tracked(job, path, resume=resume, saved=saved, **options)
    models = {job.title: done.evaluation}
    if not baseline:
        print()
        output.accuracies(models)
        _warnings(done.evaluation)
        print(f"\nrun folder: {path}")
        _next(path, quiet)
        return 0
    threat = threat_of(getattr(job.method, "threat", None), (0.0, 1.0), job.evaluate)
    assert threat is not None
    print("\nBaseline, standard training: same data, split, network, epochs, optimizer and schedule.")
    with entered(lambda: claimed(path.parent, f"{path.name}-standard", "train")) as (beside, begun):
        plain = _tracked(plain_job(job, threat), beside, resume=begun, **options)
    models["Standard"] = plain.evaluation
    alone(lambda: draw_curves(path, {job.title: done.fitted.history, "Standard": plain.fitted.history}))
    print()
    output.accuracies(models)
    status = _verdict(done.evaluation, plain.evaluation)
    print(f"\nrun folder: {path}")
    _next(path, quiet)
    return status


def _next(path: Path, quiet: bool) -> None:
    """Print suggested next commands for the run."""
    from atent.distributed import current
    from atent.report.collect import Run, read
    from atent.report.commands import next_steps

    # Other ranks may run on machines without the run folder.
    run = None if quiet or not current().first else read(path)
    if isinstance(run, Run):
        print("\nNext:")
        for shows, words in next_steps(run):
            print(f"  # {shows}\n  {shlex.join([_program(), *words[1:]])}")


def _program() -> str:
    """``atent``, or the path of the program if it is not on PATH, as after `make train`."""
    started = Path(sys.argv[0])
    return str(started) if started.name == "atent" and shutil.which("atent") is None else "atent"


def _validated(job: Any, path: Path, *, quiet: bool, resume: bool, saved: Any, certifier: str | None) -> int:
    """Train without the test set, and print the best epoch."""
    from atent.distributed import alone
    from atent.experiments.pipeline import fit_job
    from atent.experiments.validated import Rows, check_certifier, verify

    if certifier is not None:
        check_certifier(certifier)
    found = fit_job(
        job,
        path,
        resume=resume,
        saved=saved,
        progress=not quiet,
        report=None if quiet else _epoch_line,
        say=print,
        introduce=output.lines(quiet),
        callbacks=[Rows()],
    )
    if certifier is not None:
        verified = alone(lambda: verify(job, found.model, path, certifier).text)
        print(f"validation images verified by {certifier}: {verified}")
    print(f"\nbest epoch: {found.best['epoch']}; the test set was not used: run `atent evaluate {quoted(path)}`")
    print(f"run folder: {path}")
    return 0


def _warnings(found: EvaluationFile) -> None:
    """Print the checks for masked gradients that warn, one per line, if the recipe requests checks."""
    failed = [check for check in found.checks if not check.passed]
    if found.checks:
        print(f"checks for masked gradients: {len(failed)} of {len(found.checks)} warn")
    for check in failed:
        print(f"{check.name} ({check.figure}): {check.why}")


def _tracked(job: Any, path: Path, *, log: tuple[str, ...], **options: Any) -> Any:
    """Train and return the finished run, logged to the named trackers."""
    from atent.distributed import current
    from atent.experiments.pipeline import run_job

    if not log or not current().first:
        return run_job(job, path, say=print, **options)
    from atent.integrations.trackers import trackers

    callbacks = trackers(log, keep_open=True)
    try:
        return run_job(job, path, say=print, callbacks=callbacks, **options)
    finally:
        for callback in callbacks:
            callback.close()


def _check_baseline(job: Any, *, asked: bool) -> None:
    """Raise ValueError, before training, for settings under which a baseline cannot be compared; it is ``asked`` for
    by an option, or else part of the recipe."""
    from atent.attacks import ATTACKS
    from atent.experiments.target import threat_of

    needs = "--baseline needs" if asked else "the baseline of this recipe, standard training, needs"

    if threat_of(getattr(job.method, "threat", None), (0.0, 1.0), job.evaluate) is None:
        raise ValueError(f"{needs} a threat: use a robust method, or set evaluate.norm and eps")
    if job.evaluate.threats:
        raise ValueError(f"{needs} a single threat: leave evaluate.threats empty, or use --no-baseline")
    names = [re.split(r"\W", text.strip())[0] for text in job.evaluate.attacks]
    # An unknown name is reported later.
    if "PGD" not in names and ATTACKS.keys() >= set(names):
        raise ValueError(f"{needs} PGD: add it to evaluate.attacks, or use --no-baseline")


def _epoch_line(row: dict[str, Any]) -> None:
    def percent(key: str) -> str:
        return f"{100 * row[key]:5.1f} %" if key in row else "    - "

    distance = f"  distance {row['distance_median']:.3g}" if "distance_median" in row else ""
    if "average_validation_clean" in row:
        both = " / ".join(percent(f"average_validation_{k}").strip() for k in ("clean", "robust"))
        distance += f"  averaged {both}"
    print(
        f"epoch {row['epoch']:>3}  loss {row['loss']:.3f}  validation clean {percent('validation_clean')}"
        f"  robust {percent('validation_robust')}{distance}  {row['seconds']:.1f} s{'  best' if row['best'] else ''}",
        flush=True,
    )


def _verdict(robust: EvaluationFile, plain: EvaluationFile) -> int:
    """0 if the robust model's lower limit under PGD is above the standard model's upper limit, else 1."""
    name = next(n for n, a in robust.attacks.items() if a.attack.startswith("PGD"))
    low, high = robust.attacks[name].robust.low, plain.attacks[name].robust.high
    won = low > high
    sign, text = (">", "more robust than standard training") if won else ("<=", "NOT shown to be more robust")
    print(
        f"\n{name}: lower limit {100 * low:.1f} % {sign} {100 * high:.1f} %, the standard model's upper limit: {text}."
    )
    return 0 if won else 1
