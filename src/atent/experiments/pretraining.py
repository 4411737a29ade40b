"""The requirements of `atent pretrain` on a recipe, and the commands that follow its run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from atent.experiments.job import Job
from atent.experiments.recipe_files import read_recipe, recipe_names
from atent.messages import quoted
from atent.methods import ACL
from atent.methods.acl import TRAINED

PROJECTION = (128, 128)
"""Default widths of the projection head."""


def pretraining(job: Job) -> Job:
    """The job with a projection head, and evaluated by batch-norms that its variant trains.

    ValueError for a method that trains with labels, and for a branch that stays untrained.
    """
    method = job.method
    if not isinstance(method, ACL):
        raise ValueError(f"{job.title} trains with labels: use `atent train`; `atent pretrain` is for ACL")
    trained = TRAINED[method.variant]
    branch = job.model.branch or ("a" if "a" in trained else "n")
    if branch not in trained:
        raise ValueError(
            f"model.branch {branch} is not trained by variant {method.variant}: use {' or '.join(trained)}"
        )
    model = replace(job.model, projection=job.model.projection or PROJECTION, branch=branch)
    return replace(job, model=model)


def pretraining_recipes() -> list[str]:
    """The names of the package's recipes that pre-train."""
    return [name for name in recipe_names() if read_recipe(name)["method"]["name"] == "ACL"]


def next_steps(job: Job, path: Path) -> str:
    """Suggested next commands, one per line."""
    weights = f"--model.name {job.model.name} --model.weights {quoted(path)}"
    return "\n".join(
        [
            f"linear evaluation     atent train RECIPE {weights} --model.frozen",
            f"fine-tuning           atent train RECIPE {weights}",
        ]
    )
