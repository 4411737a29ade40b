"""A training step as a CUDA graph: its launches are recorded once and replayed, so that the host no longer limits it.

A graph repeats the same kernels on the same memory. So a batch is copied to the memory of the recorded one, the
gradients are the tensors of the recording, and everything else that a step depends on (`_Key`) must be unchanged. The
random number streams are registered with the graph: each replay uses their seed and offset, and samples the same
numbers as the step without a graph.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from atent.memory import release
from atent.methods import Method
from atent.methods.base import Metrics, State, in_force
from atent.train.settings import TrainSettings

WARM = 3
"""Steps without a graph before the recording: in these, kernels are selected and libraries allocate workspaces."""

Backward = Callable[..., Metrics]
"""`Method.backward`."""


class Recorded(NamedTuple):
    """The result of a recording."""

    metrics: Metrics
    """The metrics of the step, overwritten by each replay."""
    replay: Callable[[], None]
    """Replays the step."""


class Record(Protocol):
    """Records the launches of ``body`` without executing them; ``rng`` is the stream that it uses. RuntimeError if
    ``body`` has operations that a graph cannot record, such as synchronisation with the device."""

    def __call__(self, body: Callable[[], Metrics], rng: torch.Generator) -> Recorded: ...


def graphed(method: Method, settings: TrainSettings, device: torch.device, say: Callable[[str], None]) -> Backward:
    """The method's `backward`, by CUDA graphs with ``train.cuda_graphs``; ValueError on devices other than CUDA."""
    if not settings.cuda_graphs:
        return method.backward
    if device.type != "cuda":
        raise ValueError(f"train.cuda_graphs needs CUDA, the device is {device.type}: omit it")
    if in_force(method, 1.0) is None:
        say(f"warning: {type(method).__name__} cannot be recorded as a CUDA graph: its steps run without one")
        return method.backward
    return Graphs(method, record, say).backward


class _Key(NamedTuple):
    """Everything that a step depends on except the values in memory."""

    settings: Hashable
    inputs: tuple[Any, ...]
    """Shape, type and layout of the batch."""
    places: tuple[int, ...]
    """Addresses of weights, buffers and the method's state."""
    autocast: torch.dtype | None


@dataclass
class _Graph:
    """A recorded step."""

    key: _Key
    inputs: tuple[Tensor, ...]
    """The memory of its batch."""
    grads: list[tuple[nn.Parameter, Tensor]]
    """Its gradients."""
    recorded: Recorded


class Graphs:
    """`Method.backward` with a graph of the most frequent step: full batches, with constant settings.

    Steps of another shape (the last batch, micro-batches), and steps whose settings change (a growing eps), run without
    a graph. So do all steps after a recording has failed, which ``say`` reports.
    """

    def __init__(self, method: Method, record: Record, say: Callable[[str], None]) -> None:
        self.method, self.record, self.say = method, record, say
        self.graph: _Graph | None = None
        self._last: _Key | None = None
        self._seen = 0
        self._failed = False

    def backward(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator, ids: Tensor | None = None,
        progress: float = 1.0, weight: float = 1.0, state: State | None = None,
    ) -> Metrics:  # fmt: skip
        """As `Method.backward`."""
        given: dict[str, Any] = {"progress": progress, "weight": weight, "state": state}
        key = None if self._failed or weight != 1.0 or ids is None else self._key(model, (x, y, ids), progress, state)
        if key is None or ids is None:
            return self.method.backward(model, x, y, rng=rng, ids=ids, **given)
        self._seen = self._seen + 1 if key == self._last else 1
        self._last = key
        if (self.graph is None or self.graph.key != key) and self._seen > WARM:
            self._capture(key, model, (x, y, ids), rng, given)
        if self.graph is None or self.graph.key != key:
            return self.method.backward(model, x, y, rng=rng, ids=ids, **given)
        return self._replay(self.graph, (x, y, ids))

    def _key(
        self, model: nn.Module, inputs: tuple[Tensor, ...], progress: float, state: State | None
    ) -> _Key | None:  # fmt: skip
        """The key of a step; None for a step that cannot be recorded."""
        settings = in_force(self.method, progress)
        parameters = list(model.parameters())
        if settings is None or any(p.grad is not None for p in parameters):
            return None
        kept = [value for value in (state or {}).values() if isinstance(value, Tensor)]
        places = tuple(t.data_ptr() for t in itertools.chain(parameters, model.buffers(), kept))
        kind = inputs[0].device.type
        low = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        return _Key(settings, tuple((t.shape, t.dtype, t.stride()) for t in inputs), places, low)

    def _capture(
        self, key: _Key, model: nn.Module, inputs: tuple[Tensor, ...], rng: torch.Generator, given: dict[str, Any]
    ) -> None:
        """Record the step; if that fails, no further step is recorded."""
        self.graph = None  # releases its memory for the new one
        x, y, ids = static = tuple(t.clone() for t in inputs)
        parameters, before = list(model.parameters()), rng.get_state()
        try:
            recorded = self.record(lambda: self.method.backward(model, x, y, rng=rng, ids=ids, **given), rng)
            grads = [(p, p.grad) for p in parameters if p.grad is not None]
            for p in parameters:
                p.grad = None
            if self._key(model, inputs, given["progress"], given["state"]) != key:
                raise RuntimeError("the step moves its state to other memory")
            self.graph = _Graph(key, static, grads, recorded)
        except RuntimeError as error:
            self._failed = True
            reason = " ".join(str(_first(error)).split())[:200]
            self.say(f"warning: no CUDA graph of {type(self.method).__name__} ({reason}): its steps run without one")
        if self._failed:
            for p in parameters:
                p.grad = None
            release()  # memory referenced by the exception's frames
        rng.set_state(before)

    def _replay(self, graph: _Graph, inputs: tuple[Tensor, ...]) -> Metrics:
        for place, value in zip(graph.inputs, inputs, strict=True):
            place.copy_(value)
        graph.recorded.replay()
        for p, grad in graph.grads:
            p.grad = grad
        # The next replay overwrites them.
        return {name: value.clone() for name, value in graph.recorded.metrics.items()}


def _first(error: BaseException) -> BaseException:
    """The first error: ending a failed recording raises another one."""
    return error if error.__context__ is None else _first(error.__context__)


def record(body: Callable[[], Metrics], rng: torch.Generator) -> Recorded:
    """`Record` on CUDA."""
    graph = torch.cuda.CUDAGraph()
    device = torch.cuda.current_device() if rng.device.index is None else rng.device.index
    generators = [rng, torch.cuda.default_generators[device]]
    before = [generator.clone_state() for generator in generators]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions register automatically and warn
        graph.register_generator_state(rng)
    # A weight that autocast has cached before the recording would keep its old value in every replay.
    torch.clear_autocast_cache()
    try:
        with torch.cuda.graph(graph):
            metrics = body()
    except BaseException:
        # After a failed recording a generator may remain in capture mode, and then cannot sample.
        for generator, state in zip(generators, before, strict=True):
            generator.graphsafe_set_state(state)
        raise
    finally:
        torch.clear_autocast_cache()
    return Recorded(metrics, graph.replay)
