"""The state before a step: which of it the step has changed, and how to undo that."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from atent.guard import Buffers


class Begun:
    """The buffers and the method's state before a step."""

    def __init__(self, model: nn.Module, state: dict[str, Any]) -> None:
        buffers = list(model.buffers())
        self.buffers = Buffers(model.modules(), buffers)
        self.state, self.kept = state, {key: _copied(value) for key, value in state.items()}
        # Inference tensors have no version, and are not written to by a step.
        self.versions = {(id(t), t._version) for t in buffers if not t.is_inference()}
        self.marks = {key: (id(t), t._version) for key, t in state.items() if isinstance(t, Tensor)}

    def moved(self, key: str, value: Tensor) -> bool:
        """Whether the step has written to an entry of the state, or replaced it."""
        return self.marks.get(key) != (id(value), value._version)

    def restore(self) -> None:
        """Restore them."""
        self.buffers.restore()
        self.state.clear()
        self.state.update(self.kept)


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else copy.deepcopy(value)
