"""The votes of a smoothed network: classes of the noisy copies of many inputs, counted in full batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from atent.certify.noise import BLOCK, Noise
from atent.checks import NotFinite
from atent.guard import ask, guard
from atent.memory import Batches
from atent.precision import full_precision
from atent.progress import Advance
from atent.rng import narrow


class Votes:
    """Counts the noisy copies of ``x`` by class; made by `counting`, which keeps the model in eval mode."""

    def __init__(
        self, model: nn.Module, x: Tensor, sigma: float, numbers: Sequence[int], seed: int, batch: int,
        layout: torch.memory_format, forwards: Batches, advance: Advance | None,
    ) -> None:  # fmt: skip
        self.model, self.x, self.sigma, self.numbers = model, x, sigma, numbers
        self.batch, self.layout, self.forwards, self.advance = batch, layout, forwards, advance
        # The noise is generated in contiguous order: its bits do not depend on the memory format of the model's inputs.
        self.noise = Noise(x, seed)
        self.largest = x.new_zeros(())
        self.tally = torch.zeros(0)
        self.inputs = x.new_empty(0)
        self.owner = torch.empty(0, dtype=torch.int64)

    def count(self, rows: Sequence[int], start: int, stop: int, *, first: int = 0) -> Tensor:
        """Counts by class of the noise samples ``start`` to ``stop`` of each of ``rows``: int64 (len(rows), classes).

        The result is on x's device, and the host does not wait for it. ``first``: number of the first block of noise.
        """
        pieces = _pieces(start, stop)
        room = min(max(1, self.batch // BLOCK) * BLOCK, len(rows) * sum(high - low for _, low, high in pieces))
        self._reserve(max(room, max(high - low for _, low, high in pieces)))
        self.tally, filled = torch.zeros(0), 0
        for place, row in enumerate(rows):
            for block, low, high in pieces:
                size = high - low
                if filled + size > len(self.inputs):
                    self._ask(filled, len(rows))
                    filled = 0
                noise = self.noise.draw(self.numbers[row], first + block, high)[low:]
                torch.add(self.x[row], noise, alpha=self.sigma, out=self.inputs[filled : filled + size])
                self.owner[filled : filled + size] = place
                filled += size
        self._ask(filled, len(rows))
        return self.tally.view(len(rows), -1)

    def check(self) -> None:
        """NotFinite where a logit was NaN or infinite; waits for the device."""
        if not torch.isfinite(self.largest):
            # A masked class is masked without noise too.
            raise NotFinite(ask(self.model, self.x[:1]))

    def _reserve(self, room: int) -> None:
        if room != len(self.inputs):
            self.inputs = torch.empty(
                (room, *self.x.shape[1:]), dtype=self.x.dtype, device=self.x.device, memory_format=self.layout
            )
            self.owner = torch.empty(room, dtype=torch.int64, device=self.x.device)

    def _ask(self, filled: int, rows: int) -> None:
        """Count the classes of the first ``filled`` inputs."""
        # The parts that memory allows: the counts do not depend on them, up to the rounding of kernels.
        for part, logits in self.forwards.over(filled, self.batch, lambda some: ask(self.model, self.inputs[some])):
            whose, classes = self.owner[part], logits.shape[1]
            if not len(self.tally):
                self.tally = torch.zeros(rows * classes, dtype=torch.int64, device=self.x.device)
            # The maximum propagates a NaN, and costs less than a test of each logit.
            self.largest = torch.maximum(self.largest, logits.abs().amax())
            self.tally.index_add_(0, whose * classes + logits.argmax(1), torch.ones_like(whose))
        if self.advance:
            self.advance(filled, "")


def _pieces(start: int, stop: int) -> list[tuple[int, int, int]]:
    """The noise samples ``start`` to ``stop`` as (block, first, end) within each block."""
    blocks = range(start // BLOCK, -(-stop // BLOCK))
    return [(b, max(start - b * BLOCK, 0), min(stop - b * BLOCK, BLOCK)) for b in blocks]


@contextmanager
def counting(
    model: nn.Module, x: Tensor, sigma: float, numbers: Sequence[int], *, seed: int, batch: int,
    layout: torch.memory_format, forwards: Batches, advance: Advance | None,
) -> Iterator[Votes]:  # fmt: skip
    """`Votes` of checked inputs ``x`` with sample ``numbers``; afterwards the model is as it was before."""
    with torch.no_grad(), guard(model, mode="eval", seed=narrow(seed)), full_precision(x.device):
        yield Votes(model, x, sigma, numbers, seed, batch, layout, forwards, advance)
