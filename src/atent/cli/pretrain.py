"""`atent pretrain`: weights to begin with, learned without labels."""

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
    """Pre-train a network without labels by a recipe of method ACL, and keep all of it in a run folder.

    The run is made and resumed as that of `atent train`. Its accuracies are those of a linear probe that is trained on
    the features beside, through which no label reaches the network. Afterwards `atent train RECIPE --model.weights RUN`
    fine-tunes the network, or with --model.frozen its last layer alone; --model.branch n or a chooses the batch-norms
    of clean or of adversarial inputs. Every field of a recipe is an option as well: `atent pretrain RECIPE --help`.
    Exit status: 0 done, 1 failed, 2 not understood.

    Parameters
    ----------
    recipe
        What to train.
    name
        Name of the run folder. Default: the recipe's name, numbered where it is taken.
    runs
        Folder that holds the run folders.
    resume
        Resume this run, with its own settings.
    allow_large_eps
        Allow an eps that covers the whole box: linf of its width or more, l2 and l1 of its diagonal or more, l0 and
        patch of as many elements, pixels or patches as a sample has.
    root
        With --resume: folder that holds the data. Default: as the run had it.
    log
        Record the training by these trackers as well: tensorboard, mlflow, wandb (each an extra of the package).
    quiet
        No progress: neither bar, lines nor estimate.
    steal_lock
        Take over the lock of a process on another host, which is known to be gone.
    """
    if resume is not None:
        return training.train(recipe, resume=resume, root=root, log=log, quiet=quiet, steal_lock=steal_lock)
    if recipe is None:
        raise UsageError("which recipe? `atent pretrain RECIPE`, such as digits-acl; `atent recipes` lists them")
    if root is not None:
        raise UsageError("--root is for --resume: use --data.root")
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
        status = training.train_job(job, path, baseline=False, quiet=quiet, log=log, resume=begun)
    print(next_steps(job, path))
    return status


def run(words: list[str]) -> int:
    """`atent pretrain` of these words, some of which set fields of the recipe."""
    return training.run_words(words, pretrain)
