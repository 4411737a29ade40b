"""Random numbers of the full batch for a part of it: ranks and micro-batches sample as one process does, and select
their rows.

The streams of `atent.rng.Batch` call `sampled`. Random operations of a network, such as dropout, and of a method with
its generator are intercepted by `Catching`, a dispatch mode of torch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from atent.distributed import batch_shard
from atent.distributed.batch_shard import Passing

_aten = torch.ops.aten
_SIZED = {_aten.rand, _aten.randn, _aten.randint, _aten.normal}
"""Operations with a size; `normal` also has forms with tensors."""
_FILLING = {
    _aten.uniform_, _aten.normal_, _aten.bernoulli_, _aten.random_, _aten.exponential_, _aten.cauchy_,
    _aten.geometric_, _aten.log_normal_,
}  # fmt: skip
"""Operations that overwrite a tensor."""
_ALIKE = {_aten.rand_like, _aten.randn_like, _aten.randint_like, _aten.bernoulli, _aten.normal, _aten.native_dropout}
"""Operations whose random numbers have the shape of a tensor and may depend on its values."""
_RANDOM = _SIZED | _FILLING | _ALIKE


def sampled(shape: Sequence[int], sample: Callable[[tuple[int, ...]], Tensor]) -> Tensor:
    """``sample(shape)`` for a full batch; for a part of it, its rows of ``sample`` at the full batch's shape.

    Parameters
    ----------
    shape
        The shape of the result; the first dimension is one of samples if it is a multiple of the part's.
    sample
        Returns random numbers of a given shape.
    """
    now = batch_shard.now
    layout = now.layout(shape[0]) if now is not None and len(shape) else None
    if now is None or layout is None:
        return sample(tuple(shape))
    with _by_hand(now):
        return now.take(sample((_rows(now, layout), *shape[1:])), layout)


class Catching(TorchDispatchMode):
    """Inside, random operations with a dimension of samples sample for the full batch and return the rows of its part.

    ``caught`` counts them, without those of `sampled`. Not intercepted are random numbers inside fused kernels and
    operations that use a number of them that depends on values: attention with dropout on CUDA, dropout between the
    layers of a recurrent network on CUDA, ``rrelu``, ``poisson``, ``multinomial``. These are sampled independently on
    each rank, as are those of compiled or scripted modules.
    """

    def __init__(self, now: Passing) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now, self.caught = now, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given: list[Any] = list(args)
        kwargs = kwargs or {}
        if func.overloadpacket not in _RANDOM or self.now.by_hand:
            return func(*args, **kwargs)
        place = next((i for i, a in enumerate(func._schema.arguments) if a.name == "size"), None)
        shape: Sequence[int] = args[place] if place is not None else getattr(args[0], "shape", ())
        layout = self.now.layout(shape[0]) if len(shape) else None
        if layout is None:
            return func(*args, **kwargs)
        self.caught += 1
        if place is not None:
            given[place] = [_rows(self.now, layout), *shape[1:]]
            return self.now.take(func(*given, **kwargs), layout)
        found = func(*[self._grown(a, layout) if _spans(a, shape[0]) else a for a in given], **kwargs)
        if func.overloadpacket in _FILLING:
            return given[0].copy_(self.now.take(found, layout))
        if isinstance(found, tuple):
            return tuple(self.now.take(t, layout) for t in found)
        return self.now.take(found, layout)

    def _grown(self, t: Tensor, layout: tuple[int, int]) -> Tensor:
        """A tensor of the full batch in the memory order of ``t``, with its values in the part's rows: random numbers
        are sampled in the order of memory."""
        # The samples are outermost if there is only one, whose stride is arbitrary.
        strides = [2**62 if len(t) == 1 else t.stride(0), *t.stride()[1:]]
        order = sorted(range(t.dim()), key=lambda d: (-strides[d], d))
        sizes = [_rows(self.now, layout), *t.shape[1:]]
        whole = t.new_full([sizes[d] for d in order], 0.5 if t.is_floating_point() else 0)
        whole = whole.permute([order.index(d) for d in range(t.dim())])
        copies, each = layout
        whole.unflatten(0, (copies, self.now.shard.n, each))[:, self.now.shard.rows].copy_(
            t.detach().unflatten(0, (copies, self.now.shard.length, each))
        )
        return whole


def _rows(now: Passing, layout: tuple[int, int]) -> int:
    return layout[0] * now.shard.n * layout[1]


def _spans(given: Any, rows: int) -> bool:
    """Whether an argument has one entry for each of the rows."""
    return isinstance(given, Tensor) and given.dim() > 0 and len(given) == rows


@contextmanager
def _by_hand(now: Passing) -> Iterator[None]:
    """Inside, random numbers are those of the full batch already."""
    before, now.by_hand = now.by_hand, True
    try:
        yield
    finally:
        now.by_hand = before


@contextmanager
def caught(model: nn.Module, now: Passing) -> Iterator[Catching]:
    """Inside, random operations are intercepted; the network's forward passes record the lengths of their inputs."""

    def before(_: nn.Module, given: tuple[Any, ...]) -> None:
        now.inputs.append(len(given[0]) if given and isinstance(given[0], Tensor) and given[0].dim() else 0)

    def after(*_: Any) -> None:
        now.inputs.pop()

    hooks = [model.register_forward_pre_hook(before), model.register_forward_hook(after, always_call=True)]
    try:
        with Catching(now) as catching:
            yield catching
    finally:
        for hook in hooks:
            hook.remove()
