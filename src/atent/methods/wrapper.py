"""The base of methods that contain another method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from atent.methods.base import Method, Metrics, State
from atent.threat import Threat

if TYPE_CHECKING:
    from atent.data import Data

# What the training loop reads of a method; not `Method.shardable`, since a wrapper may read weights anywhere.
_FACTS = ("replays", "single_step", "divisible", "gathers", "alike", "labelled")


@dataclass(frozen=True)
class Wrapper(Method):
    """A method around another: what a subclass does not override is taken from ``method``.

    A step is the adversary and `descend` of ``method``. A subclass around methods with a step of their own overrides
    `attack_and_descend` too. `settings_at` is not passed on, since it is valid only for the class that defines it.
    """

    method: Method
    """The method inside."""

    def __post_init__(self) -> None:
        self._set(**{fact: getattr(self.method, fact) for fact in _FACTS})

    def _set(self, **facts: Any) -> None:
        for fact, value in facts.items():
            object.__setattr__(self, fact, value)

    @property
    def threat(self) -> Threat | None:
        """The threat of ``method``, if it has one."""
        return getattr(self.method, "threat", None)

    @property
    def is_one_loss(self) -> bool:
        """Whether a step of both methods consists of `adversary` and `loss` alone."""
        return type(self).backward is Method.backward and self.method.is_one_loss

    def init(self, n_train: int, shape: tuple[int, ...], device: torch.device) -> State:
        return self.method.init(n_train, shape, device)

    def prepare(self, data: Data) -> State:
        return self.method.prepare(data)

    def rows(self, state: State, x: Tensor, part: slice) -> State:
        return self.method.rows(state, x, part)

    def adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator,
        ids: Tensor | None = None, progress: float = 1.0, state: State | None = None,
    ) -> Any:  # fmt: skip
        return self.method.adversary(model, x, y, rng=rng, ids=ids, progress=progress, state=state)

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        return self.method.loss(model, x, y, aux, progress=progress, state=state)

    def descend(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, weight: float = 1.0,
        state: State | None = None,
    ) -> Metrics:  # fmt: skip
        return self.method.descend(model, x, y, aux, progress=progress, weight=weight, state=state)

    def points(self, x: Tensor, aux: Any) -> Tensor | None:
        return self.method.points(x, aux)

    def diverged(self, state: State | None) -> str | None:
        return self.method.diverged(state)
