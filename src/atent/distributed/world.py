"""The processes of a job: rank, rows of a batch, sums and values over all ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


class Lost(RuntimeError):
    """Another rank did not answer: it ended, its connection failed, or it exceeded the timeout."""


@dataclass
class Traffic:
    """Messages of this process to others so far."""

    messages: int = 0
    """Number of messages."""
    bytes: int = 0
    """Bytes of the tensors in them, on this process."""

    def count(self, given: Tensor) -> None:
        """Count a message."""
        self.messages += 1
        self.bytes += given.numel() * given.element_size()


traffic = Traffic()
"""Traffic of this process by `World.add` and `World.stacked`."""
_FEW = 2**14
"""Maximum bytes for which ranks on CPUs compute a sum by an all-gather."""


@dataclass(frozen=True)
class World:
    """This process among ``size`` processes; all ranks call functions that communicate, in the same order."""

    rank: int = 0
    """Rank of this process, from 0."""
    size: int = 1
    """Number of processes."""

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which writes files and output."""
        return self.rank == 0

    def rows(self, n: int, rank: int | None = None) -> slice:
        """The rows of a rank, by default this one, in a batch of ``n``: in order of ranks, with lengths that differ by
        at most one; if n < size some have none."""
        rank = self.rank if rank is None else rank
        return slice(rank * n // self.size, (rank + 1) * n // self.size)

    def add(self, tensors: Iterable[Tensor]) -> None:
        """Replace each tensor by its sum over the ranks, in place, with one message for each dtype and device."""
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
        """The sum of a vector over the ranks, bitwise equal on each."""
        import torch.distributed as dist

        # A ring all-reduce takes twice as many rounds as an all-gather, which dominates for small messages. NCCL has
        # other algorithms for these.
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
        """The maximum of each number over the ranks: one small message without device synchronisation."""
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
        """The values of all ranks, which must be picklable, by rank; every rank gets the list."""
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
        """Wait for every rank: in jobs of `launch.run` as long as the others are alive, otherwise up to the timeout of
        the process group. Call it before `gather` and `shared` if ranks arrive at different times."""
        if self.size == 1:
            return
        if _meeting is not None:
            _meeting()
            return
        import torch.distributed as dist

        with speaking():
            dist.barrier()


SINGLE = World()
"""A single process."""
_current = SINGLE
_meeting: Callable[[], None] | None = None
"""The function that waits for all ranks without a timeout."""


def current() -> World:
    """The world of this process: `SINGLE` unless it is in a job of several processes."""
    return _current


@contextmanager
def within(world: World) -> Iterator[World]:
    """Context in which ``world`` is the current one."""
    global _current
    before, _current = _current, world
    try:
        yield world
    finally:
        _current = before


@contextmanager
def meeting(wait: Callable[[], None]) -> Iterator[None]:
    """Context in which `World.wait` calls ``wait``."""
    global _meeting
    before, _meeting = _meeting, wait
    try:
        yield
    finally:
        _meeting = before


@contextmanager
def speaking() -> Iterator[None]:
    """Convert an error of the communication inside, which is one message, to `Lost`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        raise Lost(f"another rank did not answer ({' '.join(str(error).split())[:200]})") from error
