"""What a step costs beside its time: the passes that it makes, the bare loop of them, FLOP, bytes, memory."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from atent.bench.timing import Work
from atent.models import build, native_shape


def problem(
    name: str, batch: int, *, device: str = "cpu", shape: tuple[int, ...] | None = None
) -> tuple[nn.Module, Tensor, Tensor]:
    """A network with random weights in train mode, and a batch of random images and labels.

    Weights are resampled from He's normal distribution: with a zero last layer the inputs have no gradient.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build(name, shape=shape).train()
        for p in model.parameters():
            if p.dim() > 1:
                nn.init.kaiming_normal_(p)
        x = torch.rand(batch, *(shape or native_shape(name)))
        y = torch.randint(10, (batch,))
    return model.to(device), x.to(device), y.to(device)


# ---- passes ------------------------------------------------------------------------------------------------


@dataclass
class Pass:
    """One forward of a network, and the backwards from it."""

    n: int
    """Samples."""
    training: bool
    """Whether the network was in train mode."""
    backwards: list[set[str]] = field(default_factory=list)
    """The targets of each backward pass: "inputs", "weights" or both."""


@contextmanager
def _followed(model: nn.Module, passes: list[Pass]) -> Iterator[None]:
    """Inside, every pass of the network is noted."""
    open_: list[set[str]] = []

    def before(module: nn.Module, args: tuple[Any, ...]) -> None:
        # What was open belongs to backwards that are over.
        open_.clear()
        x = args[0]
        current = Pass(len(x), module.training)
        passes.append(current)
        if x.requires_grad:
            x.register_hook(lambda _grad: current.backwards[-1].add("inputs") if current.backwards else None)

    def after(_module: nn.Module, _args: Any, logits: Tensor) -> None:
        current = passes[-1]

        def reached(_grad: Tensor) -> None:
            current.backwards.append(set())
            open_.append(current.backwards[-1])

        if logits.requires_grad:
            logits.register_hook(reached)

    def weights(_grad: Tensor) -> None:
        # One sum of several passes' gradients: each of them is still open.
        for backward in open_:
            backward.add("weights")

    first = next(model.parameters())
    handles = [
        model.register_forward_pre_hook(before), model.register_forward_hook(after), first.register_hook(weights)
    ]  # fmt: skip
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def passes_of(step: Work, model: nn.Module) -> list[Pass]:
    """The passes through ``model`` that a step makes, in their order."""
    found: list[Pass] = []
    with _followed(model, found):
        step()
    return found


def units(passes: list[Pass], n: int) -> float:
    """The cost of passes in forward passes of n samples: a backward to the inputs alone is 1, one to the weights 2."""
    return sum(p.n * (1 + sum(2 if "weights" in b else 1 for b in p.backwards)) for p in passes) / n


def bare(passes: list[Pass], model: nn.Module, x: Tensor, y: Tensor) -> Work:
    """The same passes in a plain loop: nothing but the network, a cross-entropy and `torch.autograd.grad`."""
    inputs = {p.n: (_repeated(x, p.n), _repeated(y, p.n)) for p in passes}
    parameters = list(model.parameters())

    def run() -> None:
        for p in passes:
            model.train(p.training)
            images, labels = inputs[p.n]
            to_weights = any("weights" in b for b in p.backwards)
            for each in parameters:
                each.requires_grad_(to_weights)
            z = images.detach().requires_grad_(any("weights" not in b or "inputs" in b for b in p.backwards))
            with torch.set_grad_enabled(bool(p.backwards)):
                loss = F.cross_entropy(model(z), labels)
            for number, backward in enumerate(p.backwards, start=1):
                wanted = [*(parameters if "weights" in backward else ()), *([z] if z.requires_grad else ())]
                torch.autograd.grad(loss, wanted, retain_graph=number < len(p.backwards), allow_unused=True)
        for each in parameters:
            each.requires_grad_(True)

    return run


def _repeated(t: Tensor, n: int) -> Tensor:
    return torch.cat([t] * -(-n // len(t)))[:n].clone()


# ---- FLOP and bytes ----------------------------------------------------------------------------------------


class _Work(TorchDispatchMode):
    """Adds up the FLOP of matrix products and convolutions, and the bytes that operators read and write."""

    flops = bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = kwargs or {}
        out = func(*args, **given)
        # A view moves nothing.
        if not func.is_view:
            tensors = [t for t in tree_leaves((args, given, out)) if isinstance(t, Tensor)]
            self.bytes += sum(t.numel() * t.element_size() for t in tensors)
        if func.overloadpacket in flop_registry:
            self.flops += flop_registry[func.overloadpacket](*args, **given, out_val=out)
        return out


def work_of(step: Work) -> tuple[float, float]:
    """FLOP of a step, as `torch.utils.flop_counter` counts them, and the bytes that its operators read and write.

    The bytes are those of every operator's tensors, as if no cache kept one for the next. `FlopCounterMode` itself
    follows modules by hooks that `torch.autograd.grad` to the weights does not allow.
    """
    with _Work() as found:  # type: ignore[no-untyped-call]
        step()
    return found.flops, found.bytes


# ---- memory ------------------------------------------------------------------------------------------------


def saved_bytes(step: Callable[[], object], model: nn.Module) -> int:
    """Most bytes that autograd held at once for the backward pass while a step ran.

    `saved_tensors_hooks` wraps each saved tensor in a handle, whose release takes it off the sum. A storage that
    several operations save counts once; weights do not count. This is the part that grows with a step's graphs, not the
    peak of the process: workspaces and the allocator's slack are not in it.
    """
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    holders: Counter[int] = Counter()
    now = top = 0

    class Handle:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor = tensor

    def release(key: int, size: int) -> None:
        nonlocal now
        holders[key] -= 1
        if not holders[key]:
            now -= size

    def pack(tensor: Tensor) -> Handle:
        nonlocal now, top
        handle, storage = Handle(tensor), tensor.untyped_storage()
        key, size = storage.data_ptr(), storage.nbytes()
        if key not in weights and size:
            # The address stays taken as long as the handle holds the tensor.
            if not holders[key]:
                now += size
                top = max(top, now)
            holders[key] += 1
            weakref.finalize(handle, release, key, size)
        return handle

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda handle: handle.tensor):
        step()
    return top
