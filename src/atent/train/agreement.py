"""Agreement of the ranks of a training: the same start, and stopping, saving and ending at the same step."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from atent import signals
from atent.data import Data
from atent.distributed import alone, current
from atent.distributed.launch import ranks
from atent.runs.checkpoint import load_weights
from atent.runs.weights import copied, put
from atent.train.clock import Clock
from atent.train.settings import TrainSettings

CPU = torch.device("cpu")
_UNNAMED = 1000.0
"""A request to stop without a signal."""
_EVERY = 0.1
"""Approximate seconds of steps between messages."""
_FIRST = 30
"""Measured first steps, each with a message; `Compiling` uses them too."""
_MOST = 100
"""Maximum number of steps between messages."""


class Agreement:
    """The decisions of a step that depend on the clock or on a signal: a message of three numbers.

    If any rank received a request to stop, all stop; rank 0 decides whether a checkpoint is due, and measures the time
    of the training. A message follows each of the first steps, and then about every `_EVERY` seconds of steps, so that
    short steps do not wait for it. A single process decides without messages.
    """

    def __init__(self, asked: Callable[[], bool], due: Callable[[], bool]) -> None:
        self._asked, self._due, self.world = asked, due, current()
        self._found = (0.0, 0.0)
        self._steps = self._next = 0
        self._marks: list[tuple[int, float]] = []

    def meet(self, clock: Clock) -> None:
        """Exchange the decisions; called after a step, on every rank."""
        if self.world.size == 1:
            return
        self._found = (0.0, 0.0)
        self._steps += 1
        if self._steps < self._next:
            return
        asked = float(signals.asked_by() or _UNNAMED) if self._asked() else 0.0
        own = [float(self._due()), clock.measured()] if self.world.first else [0.0, 0.0]
        number, due, seconds = self.world.most([asked, *own])
        self._found = number, due
        clock.agree(seconds)
        self._next = self._steps + self._pause(seconds)
        if number and not asked:
            signals.passed_on(0 if number == _UNNAMED else int(number))

    def _pause(self, seconds: float) -> int:
        """Steps until the next message: equal on every rank, as computed from the values of rank 0."""
        self._marks = [*self._marks[-_FIRST:], (self._steps, seconds)]
        (first, begun), (last, ended) = self._marks[0], self._marks[-1]
        if self._steps < _FIRST or ended <= begun:
            return 1
        return max(1, min(_MOST, int(_EVERY * (last - first) / (ended - begun))))

    def asked(self) -> bool:
        """Whether the training should stop."""
        return self._asked() if self.world.size == 1 else bool(self._found[0])

    def due(self) -> bool:
        """Whether a checkpoint is due."""
        return self._due() if self.world.size == 1 else bool(self._found[1])


def check(data: Data, settings: TrainSettings, config: Mapping[str, Any], fingerprint: str) -> None:
    """ValueError, on every rank, if a rank would have no samples, or if settings or data of the ranks differ."""
    world = current()
    if world.size == 1:
        return
    for name, n in (
        ("training images", len(data.train)),
        ("images of a batch (train.batch_size)", settings.batch_size),
    ):
        if n < world.size:
            raise ValueError(f"{n} {name} are fewer than the {world.size} processes: start at most {n} processes")
    about = {key: value for key, value in config["about"]["data"].items() if key != "root"}
    own = _flat({**json.loads(fingerprint), "data as loaded": json.loads(json.dumps(about, default=str))})
    found = world.gather(own)
    for name in sorted({name for each in found for name in each}, key=lambda name: name.split(".")):
        values = [each.get(name, "absent") for each in found]
        other = [rank for rank, value in enumerate(values) if value != values[0]]
        if other:
            raise ValueError(
                f"{name} is {_short(values[0])} on rank 0 and {_short(values[other[0]])} on {ranks(other)}: use the"
                " same settings and data on every process"
            )


def same_start(model: nn.Module) -> None:
    """Copy the network's state from rank 0 to every rank, since networks built by a script may differ."""
    world = current()
    if world.size > 1:
        put(model, world.shared(to(copied(model), CPU) if world.first else None))


def reloaded(model: nn.Module, path: Path, which: Literal["best", "last"]) -> None:
    """Load weights of the run folder at ``path`` on every rank; rank 0 reads them."""
    alone(lambda: load_weights(model, path, which=which))
    same_start(model)


def to(value: Any, device: torch.device) -> Any:
    """Move the tensors in plain containers to a device."""
    if isinstance(value, torch.Tensor):
        return value.to(device)
    if isinstance(value, dict):
        return type(value)((key, to(inner, device)) for key, inner in value.items())
    if isinstance(value, list | tuple):
        return type(value)(to(inner, device) for inner in value)
    return value


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    """The plain values of nested tables by their dotted names."""
    if not isinstance(value, dict):
        return {name: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat |= _flat(inner, f"{name}.{key}" if name else str(key))
    return flat


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
