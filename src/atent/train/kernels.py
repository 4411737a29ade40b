"""Process-wide settings of a training, restored after it: random states, and the selection of GPU kernels."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from atent.train.settings import TrainSettings


@contextmanager
def chosen(settings: TrainSettings, device: torch.device) -> Iterator[None]:
    """Select the fastest kernels measured by cuDNN, or with ``train.deterministic`` deterministic ones (those of a CPU
    always are). On exit, the switches and the global random states are restored.
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
