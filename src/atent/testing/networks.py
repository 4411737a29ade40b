"""Default networks and batches of the suites, and networks with deliberate side effects."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from atent.checks import Settings
from atent.testing.contract import require

CLASSES = 5


def network(*, batch_norm: bool = True, dropout: float = 0.0, seed: int = 3) -> nn.Module:
    """A small convolutional float64 network for inputs (n, 1, 6, 6), in train mode; its batch-norm has statistics."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        # Logits some units apart, so that attacks have gradients and some samples remain correctly classified.
        last = nn.Linear(24, CLASSES)
        last.weight.data.mul_(6.0)
        layers = [
            nn.Conv2d(1, 6, 3, padding=1),
            nn.BatchNorm2d(6) if batch_norm else nn.Identity(),
            nn.ReLU(),
            nn.Conv2d(6, 6, 3, stride=2),
            nn.ReLU(),
            nn.Flatten(),
            nn.Dropout(dropout),
            last,
        ]
        model = nn.Sequential(*layers).double().train()
        with torch.no_grad():
            for _ in range(3):
                model(torch.rand(16, 1, 6, 6, dtype=torch.float64))
    return model


def inputs(n: int, seed: int = 5) -> Tensor:
    """Inputs (n, 1, 6, 6) float64 in [0, 1], some elements at 0 or 1."""
    rng = torch.Generator().manual_seed(seed)
    return (1.2 * torch.rand(n, 1, 6, 6, generator=rng, dtype=torch.float64) - 0.1).clamp(0, 1)


def given(model: nn.Module | None, x: Tensor | None, y: Tensor | None) -> tuple[nn.Module, Tensor, Tensor] | None:
    """Copies of the caller's network and batch in float64, or None; ValueError if only some of them are given."""
    if model is None and x is None and y is None:
        return None
    if model is None or x is None or y is None:
        raise ValueError("model, x and y are required together: give all three, or none for the built-in ones")
    return copy.deepcopy(model).double(), x.double(), y.clone()


class Through(nn.Module):
    """Applies ``before`` to the input of a network and ``after`` to its output."""

    def __init__(
        self,
        body: nn.Module,
        *,
        before: Callable[[Tensor], Tensor] = lambda x: x,
        after: Callable[[Tensor], Any] = lambda z: z,
    ) -> None:
        super().__init__()
        self.body, self.before, self.after = body, before, after

    def forward(self, x: Tensor) -> Any:
        return self.after(self.body(self.before(x)))


class Restless(nn.Module):
    """Uses every global generator, changes buffers, and raises ArithmeticError at a given call."""

    def __init__(self, body: nn.Module, fails_at: int | None = None) -> None:
        super().__init__()
        self.body, self.fails_at, self.seen = body, fails_at, 0
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        self.calls += 1
        self.last = x.detach().sum()[None]
        if self.fails_at is not None and self.seen >= self.fails_at:
            raise ArithmeticError("the network broke")
        noise = torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        return self.body(x) + 1e-3 * noise  # type: ignore[no-any-return]


class Counting(nn.Module):
    """Counts the samples of all forward and all backward passes."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.forwards, self.backwards = body, 0, 0

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        z: Tensor = self.body(x)
        if z.requires_grad:
            z.register_hook(self._count)
        return z

    def _count(self, grad: Tensor) -> None:
        self.backwards += len(grad)


def mid_training(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy as in the middle of training: existing gradients, one of them None, a frozen parameter, mixed modes."""
    model = copy.deepcopy(model).train()
    with torch.random.fork_rng(devices=[]):
        model(x).sum().backward()
    parameters = list(model.parameters())
    if parameters:
        parameters[-1].grad = None
        parameters[0].requires_grad_(False)
    leaves = [m for m in model.modules() if not list(m.children())]
    leaves[0].eval()
    return model


def move_global_generators() -> None:
    """Advance the global generators of torch, numpy and Python."""
    torch.rand(7)
    np.random.rand(3)  # noqa: NPY002
    random.random()


class Snapshot:
    """A snapshot of the state of a network, which an attack or method must restore."""

    def __init__(self, model: nn.Module, *, statistics: bool = True, gradients: bool = True, streams: bool = True):
        self.model, self.statistics, self.gradients, self.streams = model, statistics, gradients, streams
        self.before = self._state()
        # References are kept, so that no new object reuses the id of an old one.
        self._held = [list(model.buffers()), [p.grad for p in model.parameters()]]

    def _state(self) -> dict[str, Any]:
        parameters = dict(self.model.named_parameters())
        own = {
            name: b
            for name, b in self.model.named_buffers()
            if self.statistics or not isinstance(_owner(self.model, name), nn.modules.batchnorm._NormBase)
        }
        state: dict[str, Any] = {
            "mode": {name or "the network": m.training for name, m in self.model.named_modules()},
            "requires_grad": {name: p.requires_grad for name, p in parameters.items()},
            "parameter": {name: p.detach().clone() for name, p in parameters.items()},
            "buffer": {name: b.detach().clone() for name, b in own.items()},
        }
        if self.gradients:
            state[".grad"] = {name: None if p.grad is None else p.grad.clone() for name, p in parameters.items()}
            state[".grad object"] = {name: id(p.grad) for name, p in parameters.items()}
            state["buffer object"] = {name: id(b) for name, b in own.items()}
        if self.streams:
            state["global random state"] = {
                "torch": torch.get_rng_state(),
                "Python": random.getstate(),
                "numpy": list(np.random.get_state(legacy=True))[1:3],  # noqa: NPY002
            }
        return state

    def check(self, when: str = "") -> None:
        """`Broken` for the first difference from the snapshot."""
        after = self._state()
        for kind, values in self.before.items():
            for name in {**values, **after[kind]}:
                a, b = values.get(name), after[kind].get(name)
                require(
                    name in values and name in after[kind] and same(a, b),
                    f"another {kind} of {name}{when}" if kind != "mode" else f"{name} in {_mode(b)} mode{when}",
                    "the network and the global generators unchanged",
                )


def _mode(training: Any) -> str:
    return "train" if training else "eval"


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


def same(a: Any, b: Any) -> bool:
    """Whether two values are equal bit for bit: tuples, lists and dicts of tensors, arrays and plain values."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        if a.shape != b.shape or a.dtype != b.dtype:
            return False
        if a.is_floating_point() and a.element_size() in (4, 8):
            word = torch.int32 if a.element_size() == 4 else torch.int64
            return torch.equal(a.contiguous().view(word), b.contiguous().view(word))
        return torch.equal(a, b)
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(same(v, w) for v, w in zip(a, b))
    return bool(a == b)


def check_instance(function: str, example: str, given: object, needs: str) -> None:
    """ValueError, in one line, for a class or a name instead of an instance, and for an instance of another contract,
    which lacks the method ``needs``."""
    of_another = isinstance(type(given), Settings) and not hasattr(given, needs)
    if isinstance(given, type | str) or of_another:
        name = f"the class {given.__name__}" if isinstance(given, type) else f"a {type(given).__name__}"
        raise ValueError(f"{function} needs an instance such as {example}(Threat('linf', 0.1)), got {name}")
