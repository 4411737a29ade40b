"""torch.compile in a training: on request, or if the remaining steps are long enough to compensate its cost."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from atent.train.clock import Clock
from atent.train.settings import TrainSettings

_MEASURED = 20
"""Number of steps for the estimate of the remaining time, without the first ones, which prepare kernels."""
_FIRST = 3
_WORTH = 30 * 60.0
"""Seconds of remaining steps above which compilation pays off."""


def compiler_missing(device: torch.device) -> bool:
    """Whether torch.compile has no C++ compiler, which it needs on a CPU."""
    return device.type == "cpu" and not any(map(shutil.which, ("c++", "g++", "clang++")))


class Compiling:
    """Compiles the forward pass of the network in place; its weights and their names do not change.

    A compiled training resumes compiled: ``position`` records it. Without a C++ compiler, on a CPU, a warning is
    reported, and the network is not compiled.
    """

    def __init__(
        self, model: nn.Module, settings: TrainSettings, position: dict[str, Any], device: torch.device,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._model, self._device, self._say = model, device, say
        self._undecided = settings.compile == "auto" and not position.get("compiled")
        self._marks: list[tuple[int, float]] = []
        self._compiled = False
        if settings.compile == "model" or (settings.compile == "auto" and position.get("compiled")):
            self._compile()

    def after(self, clock: Clock, now: int, position: dict[str, Any]) -> None:
        """Called after step ``now``: compile if the estimated remaining time exceeds the threshold."""
        if not self._undecided:
            return
        self._marks.append((now, clock.seconds()))
        if len(self._marks) <= _FIRST + _MEASURED:
            return
        self._undecided = False
        (first, begun), (last, ended) = self._marks[_FIRST], self._marks[-1]
        left = clock.epochs * clock.steps - now - 1
        seconds = left * (ended - begun) / (last - first) if clock.limit is None else clock.limit - ended
        if seconds > _WORTH:
            self._say(f"compile: the remaining steps would take {seconds / 60:.0f} minutes")
            position["compiled"] = self._compile()

    def _compile(self) -> bool:
        if compiler_missing(self._device):
            self._say("warning: compile needs a C++ compiler, such as g++: the network is not compiled")
            return False
        self._model.compile()
        self._compiled = True
        return True

    def end(self) -> None:
        """Restore the network: later shapes and modes would be compiled again."""
        if self._compiled:
            self._model._compiled_call_impl = None
