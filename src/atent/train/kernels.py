"""What of the process a training changes, and gives back: the random states, and which kernels a GPU takes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from atent.train.settings import TrainSettings


@contextmanager
def chosen(settings: TrainSettings, device: torch.device) -> Iterator[None]:
    """Inside, a GPU takes the fastest of the kernels that cuDNN measures, or with ``train.deterministic`` those that
    give the same bits each time; a CPU's always do. After, these switches and the global random states are as before.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        if device.type == "cuda":
            with _switched(settings.deterministic):
                yield
        else:
            yield


@contextmanager
def _switched(deterministic: bool) -> Iterator[None]:
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    strict, warned = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        cudnn.benchmark, cudnn.deterministic = not deterministic, deterministic
        if deterministic:
            torch.use_deterministic_algorithms(True, warn_only=True)
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before
        torch.use_deterministic_algorithms(strict, warn_only=warned)
