"""The processes of one job, as each of them sees it: its rank, its rows of a batch, sums and values of all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Lost(RuntimeError):
    """Another rank did not answer: it ended, or the way to it broke, or it was late beyond the timeout."""


@dataclass
class Traffic:
    """What this process has added up with others, or shown to them, so far."""

    messages: int = 0
    """How many."""
    bytes: int = 0
    """Of the tensors that this process gave to them."""

    def count(self, given: Tensor) -> None:
        """One more message."""
        self.messages += 1
        self.bytes += given.numel() * given.element_size()


traffic = Traffic()
"""Of this process; `World.add` and `World.stacked` count here."""
_FEW = 2**14
"""Bytes up to which the ranks on CPUs exchange numbers to add them up."""


@dataclass(frozen=True)
class World:
    """This process among ``size`` processes; each function that communicates is called by all ranks, in one order."""

    rank: int = 0
    """The number of this process, from 0."""
    size: int = 1
    """How many processes there are."""

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and lines."""
        return self.rank == 0

    def rows(self, n: int, rank: int | None = None) -> slice:
        """The rows of a batch of ``n`` that a rank has, by default this one: in order, their numbers differ by at most
        one, and where n < size some have none."""
        rank = self.rank if rank is None else rank
        return slice(rank * n // self.size, (rank + 1) * n // self.size)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, in place: one message for each dtype and device."""
        if self.size == 1:
            return
        kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for tensor in tensors:
            kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
        for group in kinds.values():
            flat = self._sum(torch.cat([tensor.detach().reshape(-1) for tensor in group]))
            for tensor, part in zip(group, flat.split([tensor.numel() for tensor in group]), strict=True):
                tensor.detach().copy_(part.view_as(tensor))

    def _sum(self, flat: Tensor) -> Tensor:
        """The sum of a vector over the ranks, with the same bits on each."""
        import torch.distributed as dist

        # The ring of an all-reduce takes twice as many turns as that of an all-gather, which counts where the numbers
        # are few. NCCL has other ways for these.
        if flat.device.type == "cpu" and flat.numel() * flat.element_size() <= _FEW:
            return self.stacked(flat).sum(0)
        with speaking():
            dist.all_reduce(flat)
        traffic.count(flat)
        return flat

    def stacked(self, tensor: Tensor) -> Tensor:
        """(ranks, ...): the tensor of each rank, all of one shape, by rank; one message."""
        if self.size == 1:
            return tensor[None]
        import torch.distributed as dist

        found = tensor.new_empty(self.size, *tensor.shape)
        with speaking():
            dist.all_gather(list(found.unbind()), tensor.contiguous())
        traffic.count(tensor)
        return found

    def most(self, numbers: list[float]) -> list[float]:
        """The largest of each number over the ranks: one small message, which waits for no device."""
        if self.size == 1:
            return numbers
        import torch.distributed as dist

        cpu = "cpu" in str(dist.get_backend_config())
        held = torch.tensor(numbers, dtype=torch.float64, device="cpu" if cpu else "cuda")
        with speaking():
            dist.all_reduce(held, op=dist.ReduceOp.MAX)
        found: list[float] = held.tolist()
        return found

    def gather(self, value: Any) -> list[Any]:
        """The value of each rank, which can be pickled, by rank; every rank gets the list."""
        if self.size == 1:
            return [value]
        import torch.distributed as dist

        found: list[Any] = [None] * self.size
        with speaking():
            dist.all_gather_object(found, value)
        return found

    def shared(self, value: Any) -> Any:
        """The value of rank 0, on every rank."""
        if self.size == 1:
            return value
        import torch.distributed as dist

        held = [value]
        with speaking():
            dist.broadcast_object_list(held, src=0)
        return held[0]

    def wait(self) -> None:
        """Until every rank is here: those that `launch.run` began wait as long as the others are alive, others up to
        the timeout of the process group. Call it before `gather` and `shared` where ranks come at different times."""
        if self.size == 1:
            return
        if _meeting is not None:
            _meeting()
            return
        import torch.distributed as dist

        with speaking():
            dist.barrier()


SINGLE = World()
"""One process alone."""
_current = SINGLE
_meeting: Callable[[], None] | None = None
"""What waits for all ranks without a timeout."""


def current() -> World:
    """The world of this process: `SINGLE` unless a job of several has begun."""
    return _current


@contextmanager
def within(world: World) -> Iterator[World]:
    """``world`` is the current one inside the block."""
    global _current
    before, _current = _current, world
    try:
        yield world
    finally:
        _current = before


@contextmanager
def meeting(wait: Callable[[], None]) -> Iterator[None]:
    """Inside, `World.wait` is ``wait``."""
    global _meeting
    before, _meeting = _meeting, wait
    try:
        yield
    finally:
        _meeting = before


@contextmanager
def speaking() -> Iterator[None]:
    """Inside, which is one message, an error of the communication is `Lost`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise Lost(f"another rank did not answer ({' '.join(str(error).split())[:200]})") from error
