"""The options that `atent compare` and `atent sweep` share: how many trainings run at a time, and where."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

from atent.cli.parse import Text, arg
from atent.experiments.recipe_files import UsageError

if TYPE_CHECKING:
    from atent.experiments.backends import Backend


@dataclasses.dataclass(frozen=True)
class TrainingsOptions:
    """How many trainings run at a time, and where."""

    jobs: Annotated[int, arg("N")] = 1
    """Number of concurrent trainings; each uses its share of the CPU cores. With one, a sweep of the same file always
    gives the same trials."""
    backend: Annotated[str, arg("{local,ray,slurm}")] = "local"
    """Where the trainings run: processes of this machine, Ray tasks, or SLURM jobs (extras of the package)."""
    address: Text = None
    """With --backend ray: address of the cluster, such as auto. Default: a temporary local cluster."""
    cpus: Annotated[int, arg("N")] = 1
    """With --backend ray and slurm: CPUs per training."""
    gpus: Annotated[float, arg("X")] = 0.0
    """With --backend ray and slurm: GPUs per training."""
    slurm: Annotated[tuple[str, ...], arg("NAME=VALUE ...")] = ()
    """With --backend slurm: job parameters under submitit's names, such as partition=gpu timeout_min=240."""

    def check(self) -> None:
        """UsageError for a number of trainings below 1."""
        if self.jobs < 1:
            raise UsageError(f"--jobs must be at least 1, got {self.jobs}")

    def place(self) -> Backend:
        """The backend; ValueError as `atent.experiments.backends.make`."""
        from atent.experiments import backends

        return backends.make(
            self.backend, at_once=self.jobs, address=self.address, cpus=self.cpus, gpus=self.gpus, slurm=self.slurm
        )
