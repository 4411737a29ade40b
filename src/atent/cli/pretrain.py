"""`atent pretrain`: pre-training without labels."""

from __future__ import annotations

from typing import Annotated

import tyro

from atent.cli import train as training
from atent.cli.jobs import recipe_job
from atent.cli.parse import Name, Place, arg
from atent.experiments.recipe_files import RENAMED, UsageError, base_names, recipe_names
from atent.messages import unknown


def pretrain(
    recipe: Annotated[tyro.conf.Positional[str | None], arg("RECIPE")] = None,
    *,
    name: Name = None,
    runs: Annotated[str, arg("PATH")] = "runs",
    resume: Annotated[str | None, arg("RUN")] = None,
    allow_large_eps: bool = False,
    root: Place = None,
    log: Annotated[tuple[str, ...], arg("TRACKER")] = (),
    quiet: bool = False,
    steal_lock: bool = False,
    fields: Annotated[tuple[str, ...], tyro.conf.Suppress] = (),
) -> int:
    """Pre-train a network without labels from a recipe of method ACL, into a run folder.

    The run folder works as that of `atent train`. Accuracies are those of a linear probe on detached features, so that
    no label reaches the network. Afterwards, `atent train RECIPE --model.weights RUN` fine-tunes the network, or with
    --model.frozen only its last layer; --model.branch n or a selects the batch norms of clean or of adversarial inputs.
    Every field of a recipe is also an option: `atent pretrain RECIPE --help`. Exit status: 0 success, 1 failure, 2
    invalid usage.

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
    allow_large_eps
        Allow an eps that covers the entire box: linf at least its width, l2 and l1 at least its diagonal, l0 and patch
        at least the number of elements, pixels or patches of a sample.
    root
        With --resume: folder of the data. Default: the run's.
    log
        Also log to these trackers: tensorboard, mlflow, wandb (each an extra of the package).
    quiet
        Print only results, warnings and errors: no progress, estimates or suggestions.
    steal_lock
        Take over the lock of a process on another host. Use it only if that process has ended.
    """
    if resume is not None:
        return training.train(recipe, resume=resume, root=root, log=log, quiet=quiet, steal_lock=steal_lock)
    if recipe is None:
        raise UsageError("no recipe given: write `atent pretrain RECIPE`, such as digits-acl; see `atent recipes`")
    if root is not None:
        raise UsageError("--root needs --resume: use --data.root")
    from atent.distributed import entered
    from atent.experiments.pretraining import next_steps, pretraining, pretraining_recipes
    from atent.runs import locks
    from atent.runs.restarts import claimed

    locks.steal(steal_lock)
    if not recipe.endswith(".toml") and recipe not in (*recipe_names(), *base_names(), *RENAMED):
        raise UsageError(unknown("recipe", recipe, pretraining_recipes()))
    job, _ = recipe_job(recipe, list(fields), prog=f"atent pretrain {recipe}", allow_large_eps=allow_large_eps)
    job = pretraining(job)
    place = (runs, (job.recipe or "run") if name is None else name, "pretrain")
    with entered(lambda: claimed(*place, numbered=name is None)) as (path, begun):
        if name is None and not begun:
            training.report_unfinished(runs, job.recipe or "run", path)
        status = training.train_job(job, path, baseline=False, quiet=quiet, log=log, resume=begun)
    if not quiet:
        print(next_steps(job, path))
    return status


def run(words: list[str]) -> int:
    """Run `atent pretrain` with these words, some of which set fields of the recipe."""
    return training.run_words(words, pretrain)
