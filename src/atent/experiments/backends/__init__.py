"""Where the trainings of `atent compare` and `atent sweep` run: processes of this machine, Ray tasks, SLURM jobs.

A backend starts commands of `atent` and reports how they end; the caller decides what to start and how to interpret an
end. The run folders are the same wherever they are made. Ray and SLURM need a file system that all their machines
share.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from atent.experiments.backends.base import Backend, Child, Task, drive, train_task
from atent.experiments.backends.local import Local
from atent.messages import unknown

BACKENDS = ("local", "ray", "slurm")

__all__ = ["BACKENDS", "Backend", "Child", "Local", "Task", "drive", "make", "train_task"]


def make(
    name: str = "local", *, at_once: int = 1, address: str | None = None, cpus: int = 1, gpus: float = 0.0,
    slurm: Sequence[str] = (),
) -> Backend:  # fmt: skip
    """The backend of a name.

    Parameters
    ----------
    name
        One of `BACKENDS`.
    at_once
        Trainings at a time.
    address
        ray: the cluster. Default: one on this machine, for this command alone.
    cpus, gpus
        ray and slurm: what each training gets.
    slurm
        Parameters of the SLURM jobs, as "partition=gpu", by the names of submitit.

    Raises
    ------
    ValueError
        An unknown name, an option of another backend, or an extra that is not installed.
    """
    if name not in BACKENDS:
        raise ValueError(unknown("backend", name, BACKENDS))
    if name == "local" and (cpus != 1 or gpus):
        raise ValueError("--cpus and --gpus are for --backend ray and slurm: use --train.threads and --train.device")
    if cpus < 1 or not 0 <= gpus < math.inf:
        raise ValueError(f"a training needs --cpus of at least 1 and --gpus of at least 0, got {cpus} and {gpus:g}")
    if address is not None and name != "ray":
        raise ValueError(f"--address needs --backend ray, got --backend {name}: omit it")
    if slurm and name != "slurm":
        raise ValueError(f"--slurm needs --backend slurm, got --backend {name}: omit it")
    if name == "ray":
        from atent.experiments.backends.ray import Ray

        return Ray(at_once, address=address, cpus=cpus, gpus=gpus)
    if name == "slurm":
        from atent.experiments.backends.slurm import Slurm

        return Slurm(at_once, cpus=cpus, gpus=gpus, parameters=slurm)
    return Local(at_once)
