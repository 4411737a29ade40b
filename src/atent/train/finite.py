"""Detection of values that are not finite in a training, before they are saved, and of their origin."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from atent.checks import NotFinite
from atent.data import Data
from atent.distributed.sharding import is_sharded, local
from atent.optim import Average
from atent.rng import fold
from atent.train.meter import Meter
from atent.train.result import Diverged
from atent.train.settings import TrainSettings

MOST_SKIPPED = 50
"""Maximum number of consecutive skipped steps; after them the training ends."""


class Skipped(Exception):
    """A step with a gradient or loss that is not finite, raised before the optimizer's update."""


class Finite:
    """Records on the device the first step with a loss or gradient that is not finite, and checks the values to save.

    `see` does not synchronise and stores one number per tensor; `problem` checks those of all steps since its last
    call, with two synchronisations if all are finite, and determines the names otherwise. Values that are not finite at
    the start, such as a mask of minus infinity, are ignored.
    """

    def __init__(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, average: Average | None, settings: TrainSettings,
        run: Path | None,
    ) -> None:  # fmt: skip
        if settings.on_nonfinite == "rollback" and run is None:
            raise ValueError("on_nonfinite rollback needs a checkpoint: give run=..., or use on_nonfinite skip")
        self.model, self.optimizer, self.average = model, optimizer, average
        self.skips = settings.on_nonfinite == "skip"
        self.parameters = list(model.named_parameters())
        self.leaves = [p for _, p in self.parameters]
        self.sharded = is_sharded(self.leaves)
        self.ignored = {name for name, value in _named(model) if not finite([value])}
        self.reset()

    def reset(self) -> None:
        """Clear the records, for a rollback to a finite state."""
        self.seen: list[tuple[int, Tensor]] = []
        self.first: tuple[int, list[bool]] | None = None

    def see(self, step: int, losses: Sequence[Tensor]) -> None:
        """Record the sums of a step's losses and gradients. With on_nonfinite skip, Skipped is raised for a step that
        is not finite, which synchronises with the device."""
        loss = losses[0] if len(losses) == 1 else torch.stack(list(losses)).sum()
        # Detached: the loss of a plug-in may have a graph.
        grads = [p.grad for p in self.leaves]
        if self.sharded:  # each rank checks its part, and `problem` is called on all ranks
            grads = [None if grad is None else local(grad) for grad in grads]
        sums = _sums([loss, *grads]).detach()
        if not self.skips:
            self.seen.append((step, sums))
        elif not bool(sums.isfinite().all()):
            raise Skipped

    def _settle(self) -> None:
        """Find the first step that is not finite since the last call, in one transfer from the device."""
        if self.seen and self.first is None:
            flags = torch.stack([sums for _, sums in self.seen]).isfinite().tolist()
            bad = ((step, row) for (step, _), row in zip(self.seen, flags, strict=True) if not all(row))
            self.first = next(bad, None)
        self.seen.clear()

    def problem(self, steps: int) -> str | None:
        """What is not finite and its origin, as the beginning of a line; None if all is finite.

        ``steps``: the number of steps per epoch, for the position of a step.
        """
        self._settle()
        if self.first is not None:
            step, sound = self.first
            at = f"epoch {step // steps + 1}, step {step % steps + 1}"
            if not sound[0]:
                return f"the loss is not finite at {at}"
            return f"the gradient of {self.parameters[sound.index(False) - 1][0]} is not finite at {at}, the loss is"
        groups = self._groups()
        if finite([value for _, values in groups for _, value in values]):
            return None
        kind, name = next((kind, name) for kind, values in groups for name, v in values if not finite([v]))
        return f"the {kind} {name} is not finite, and every loss and gradient is"

    def _groups(self) -> list[tuple[str, list[tuple[str, Tensor]]]]:
        """The values to save, the likely origin first."""
        groups = [
            (kind, [(name, value) for name, value in values if name not in self.ignored])
            for kind, values in (("weight", self.parameters), ("buffer", list(self.model.named_buffers())))
        ]
        names = {id(p): name for name, p in self.parameters}
        state = [
            (f"{key} of {names.get(id(p), 'a parameter')}", value)
            for p, values in self.optimizer.state.items()
            for key, value in values.items()
            if isinstance(value, Tensor)
        ]
        groups.append(("optimizer's", state))
        if self.average and self.average.count:
            # The average also contains a mask of minus infinity.
            means = [(f"number {i}", v) for i, v in enumerate(self.average.state()["mean"])]
            groups.append(("averaged weight", [] if self.ignored else means))
        return groups


def _sums(values: Sequence[Tensor | None]) -> Tensor:
    """A number per tensor, on the device: finite if and only if all values of the tensor are, 0 for None.

    On a CPU it is the sum, which is ten times faster than a maximum and overflows only near the largest float.
    """
    if all([v is not None and v.dtype is torch.float32 and v.is_cpu for v in values]):
        return torch.stack([v.sum() for v in cast("Sequence[Tensor]", values)])  # the common case, at each step
    plain = [None if v is None else _plain(v) for v in values]
    known = [v for v in plain if v is not None]
    if not known:
        return torch.zeros(len(values))
    if known[0].is_cuda and len({v.dtype for v in known}) == 1:
        tops = list(torch._foreach_norm(known, float("inf")))
    else:
        tops = [v.sum() if v.dtype.itemsize > 2 else v.sum(dtype=torch.float32) for v in known]
    if len(known) < len(values):
        left, zero = iter(tops), known[0].new_zeros(())
        tops = [zero if v is None else next(left) for v in plain]
    return torch.stack(tops)


@torch.no_grad()
def finite(values: Sequence[Tensor]) -> bool:
    """Whether all values are finite: one pass over them, and one synchronisation per device."""
    places: dict[torch.device, list[Tensor]] = {}
    for value in map(local, values):
        places.setdefault(value.device, []).append(value)
    return all(bool(_sums(some).isfinite().all()) for some in places.values())


def _plain(value: Tensor) -> Tensor | None:
    """The floating-point values of a tensor; None if it has none."""
    if value.is_quantized or not value.numel():
        return None
    if value.layout != torch.strided:
        value = value.coalesce().values() if value.layout == torch.sparse_coo else value.values()
    if value.is_complex():
        value = torch.view_as_real(value.resolve_conj())
    return value if value.is_floating_point() and value.numel() else None


def _named(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    return itertools.chain(model.named_parameters(), model.named_buffers())


def line_of(problem: str | None, meter: Meter, lr: float) -> str | None:
    """The line with which the training ends; None if it continues."""
    if problem is not None:
        return f"{problem}: lower optimizer.lr (now {lr:g}), set eps_warmup, or see train.on_nonfinite"
    if meter.in_a_row >= MOST_SKIPPED:
        return f"{meter.in_a_row} consecutive steps had no finite loss and gradient: lower optimizer.lr (now {lr:g})"
    return None


@contextmanager
def finite_logits(epoch: int, lr: float, run: Path | None) -> Iterator[None]:
    """Inside, logits that are not finite end the training by `Diverged`: finite weights may still overflow in a
    forward pass."""
    try:
        yield
    except NotFinite:
        line = f"the logits are not finite in the validation of epoch {epoch}: lower optimizer.lr (now {lr:g})"
        raise Diverged(line, run) from None


# ---- the order of the batches --------------------------------------------------------------------------------------


def ordered(data: Data, seed: int, epoch: int, rng: torch.Generator, position: Mapping[str, Any]) -> Tensor:
    """`order_of` the training samples, at a position of the training."""
    return order_of(seed, epoch, data.epoch, rng, position.get("rollbacks", ()), (data.generated, data.share))


def order_of(
    seed: int,
    epoch: int,
    n: int,
    rng: torch.Generator,
    rollbacks: Sequence[dict[str, Any]],
    generated: tuple[int, float] = (0, 0.0),
) -> Tensor:
    """The order of the n samples in an epoch: a function of the seed and of the position of rollbacks.

    Epochs after a rollback have another order; in the epoch of a rollback, the samples before ``taken``, which were
    used before the checkpoint, keep their order, and those after it are shuffled again. ``generated`` samples (their
    number, with indices after the n, and their share) are spread evenly, so that their number in every batch matches
    the share to one sample.
    """
    before = sum(mark["epoch"] < epoch for mark in rollbacks)
    found = _mixed(n, rng, seed, "order", epoch, *([before] if before else []))
    count, share = generated
    made = _generated(int(n * share), count, rng, seed, epoch, before)
    for number, mark in enumerate(rollbacks, 1):
        if mark["epoch"] == epoch:
            taken = mark["taken"]
            rest = found[taken:]
            found = torch.cat([found[:taken], rest[_mixed(len(rest), rng, seed, "order", epoch, "rollback", number)]])
            if made is not None:
                again = _generated(len(made), count, rng, seed, epoch, before, "rollback", number)
                made = torch.cat([made[: int(taken * share)], again[int(taken * share) :]])  # type: ignore[index]
    if made is None:
        return found
    place = torch.arange(n + 1, device=found.device, dtype=torch.float64)
    found[(place * share).floor().diff() > 0] = n + made
    return found


def _generated(n: int, m: int, rng: torch.Generator, *keys: int | str) -> Tensor | None:
    """n of m generated samples, shuffled, each used k times before any is used k + 1 times; None for m = 0."""
    rounds = [_mixed(m, rng, *keys, "generated", number) for number in range(-(-n // m))] if m else []
    return torch.cat(rounds)[:n] if rounds else None


def _mixed(n: int, rng: torch.Generator, *keys: int | str) -> Tensor:
    rng.manual_seed(fold(*keys))
    return torch.randperm(n, generator=rng, device=rng.device)
