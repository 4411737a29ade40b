"""The model as an attack sees it: logits and input gradients, each pass counted per sample."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atent.attacks.watch import Watch
from atent.checks import check_logits
from atent.contracts import kind_of
from atent.guard import ask, explain
from atent.losses import margin
from atent.messages import deprecated
from atent.precision import Lowered, images_last
from atent.torch_errors import NO_GRADIENT

Loss = Callable[[Tensor, Tensor], Tensor]

UNDEFINED = "met {}, so its failures do not show robustness"
"""What a result says of an attack whose search met one of `CAUSES`."""

CAUSES = {
    "": "",
    "NaN or infinite input gradients": "correct the backward pass (sqrt or log at 0, masked by where), or use an attack"
    " without gradients, such as Square",
    "NaN or infinite logits": "correct the forward pass (division by 0, log or sqrt of a negative number, overflow)",
    "NaN or infinite points of its own": "its steps overflow, use smaller settings",
}
"""What a search may meet that is not finite, with the remedy."""
GRADIENTS, LOGITS, POINTS = range(1, 4)
"""The positions in `CAUSES`."""

# Largest number of elements of per-class gradients in memory: 64 MiB in float32.
_MOST = 2**24


def _not_per_sample(values: Any, n: int) -> ValueError:
    """The error for a loss without one value per sample, with the line of the user's code that gave it."""
    got = f"shape {tuple(values.shape)}" if isinstance(values, Tensor) else kind_of(values)
    caller = sys._getframe(2)
    own = caller.f_globals.get("__name__", "").partition(".")[0] != "atent"
    at = f" ({Path(caller.f_code.co_filename).name}, line {caller.f_lineno})" if own else ""
    return ValueError(
        f"the loss must have one value per sample, {n}, got {got}: use a loss of atent.losses, such as cross_entropy or"
        f" margin, or do not average it{at}"
    )


class Undefined(list[tuple[Tensor, int]]):
    """What a search met that is not finite: sums that are NaN where something was not, with its position in `CAUSES`.

    Empty on a CPU while all was finite.
    """

    def note(self, values: Tensor, cause: int) -> None:
        """Add ``values`` unless they are known to be finite."""
        values = values.detach()
        # The host does not wait for another device: it reads the sums once, after the search.
        if not values.is_cpu or not values.isfinite().all():
            self.append(((values * 0).sum(dtype=torch.float32), cause))

    def first(self) -> int:
        """The position in `CAUSES` of what was the first not to be finite, 0 for nothing."""
        if not self:
            return 0
        sums, causes = zip(*self)
        lost = torch.stack([each.to(sums[0].device) for each in sums]).isnan().tolist()
        return int(causes[lost.index(True)]) if any(lost) else 0


@dataclass(eq=False)
class Oracle:
    """The model as an attack sees it: logits and input gradients, each pass counted per sample."""

    model: nn.Module
    forwards: Tensor
    """int64 (n,): number of forward passes of each sample, updated here."""
    backwards: Tensor
    """int64 (n,): number of backward passes of each sample, updated here."""
    _: KW_ONLY
    check: bool
    """Whether the next pass is the first, whose logits are checked."""
    samples: int = 1
    """Above 1 every gradient is averaged over this number of passes: expectation over transformation, for random models
    (Athalye et al. 2018)."""
    channels_last: bool = False
    """Whether images are passed in that memory format."""
    targeted: bool = False
    """Whether labels are targets: `margin` and `fooled` refer to them, and `aimed` negates a loss."""
    watch: Watch | None = None
    """Receives every loss."""
    rows: Tensor | None = None
    """Indices of the current samples among all counted ones; None: all, each once."""
    seen: Tensor | int = 1
    """Number of rows of a pass per counted sample, (n,)."""
    doubt: Tensor | None = None
    """The largest margin (n,) of the current samples that rounding may explain; None: no limit. See `doubting`."""
    least: tuple[int, str] = (0, "")
    """The smallest number of classes that the first pass accepts, and the error for fewer."""
    undefined: Undefined | None = None
    """What was the first to be NaN or infinite, updated here; None: not checked, as in training."""

    def take(self, rows: Tensor) -> Oracle:
        """The same model and counters, for the samples ``rows``."""
        doubt = None if self.doubt is None else self.doubt[rows]
        rows = rows if self.rows is None else self.rows[rows]
        seen = torch.zeros_like(self.forwards).index_add_(0, rows, torch.ones_like(rows, dtype=self.forwards.dtype))
        return replace(self, check=False, least=(0, ""), doubt=doubt, rows=rows, seen=seen)

    def on(self, model: nn.Module, x: Tensor) -> Oracle:
        """The same samples and the same way of search on another model, whose passes are not counted; its first pass is
        checked. ``x``: inputs of the model, for its memory format."""
        last = self.channels_last and images_last(model, x)
        forwards, backwards = torch.zeros_like(self.forwards), torch.zeros_like(self.backwards)
        if isinstance(self.model, Lowered):
            model = Lowered(model, self.model.search_dtype)
        return replace(self, model=model, forwards=forwards, backwards=backwards, check=True, channels_last=last)

    def averaging(self, samples: int) -> Oracle:
        """The same model and counters, every gradient averaged over ``samples`` passes."""
        return replace(self, samples=samples)

    def demanding(self, classes: int, why: str) -> Oracle:
        """The same model and counters; the first pass raises ValueError, beginning with ``why``, for fewer classes."""
        return replace(self, least=(classes, why))

    def doubting(self, logits: Tensor, y: Tensor) -> Oracle:
        """The same model and counters; at most 1/16 of the margins at x, of these ``logits``, counts as rounding.

        Where all logits have a large number in common, their rounding is estimated to be as large as their differences.
        """
        return replace(self, doubt=self.margin(logits, y).abs() / 16)

    def margin(self, logits: Tensor, y: Tensor) -> Tensor:
        """The margin by which each sample is misclassified, or has its target, (n,): positive for a success."""
        return -margin(logits, y) if self.targeted else margin(logits, y)

    def fooled(self, logits: Tensor, y: Tensor) -> Tensor:
        """bool (n,): the sample is misclassified, or has its target."""
        return (logits.argmax(1) == y) if self.targeted else (logits.argmax(1) != y)

    def met(self) -> tuple[str, str]:
        """What was the first to be NaN or infinite, "" if nothing was, and what the user can do."""
        return list(CAUSES.items())[0 if self.undefined is None else self.undefined.first()]

    def aimed(self, loss: Loss) -> Loss:
        """The loss to maximise: ``loss``, or its negative if labels are targets."""
        return (lambda logits, y: -loss(logits, y)) if self.targeted else loss

    def report(self, x: Tensor, values: Tensor) -> None:
        """Report the losses ``values`` (n,) at ``x`` to the watch."""
        if self.watch is not None:
            self.watch.see(self.model, self.rows, x, values)

    def _forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Logits (n, classes), counted, and checked in the first pass."""
        if self.channels_last and x.dim() == 4:
            x = x.to(memory_format=torch.channels_last)
        logits = ask(self.model, x)
        if self.check:
            check_logits(logits, y)
            least, why = self.least
            if logits.shape[1] < least:
                raise ValueError(f"{why}, got {logits.shape[1]} classes")
            self.check = False
        self.forwards += self.seen
        # A sum is far less work than a test of each number; those of large numbers overflow.
        if self.undefined is not None and not (x.is_cpu and math.isfinite(x.detach().sum() + logits.detach().sum())):
            self.undefined.note(x, POINTS)
            self.undefined.note(logits, LOGITS)
        return logits

    def _slope(self, values: Tensor, x: Tensor, *, again: bool = False) -> Tensor:
        """The gradient of the sum of ``values`` (n,) with respect to ``x``, counted; ``again`` retains the graph."""
        if not values.requires_grad:
            raise ValueError(NO_GRADIENT)
        try:
            (grad,) = torch.autograd.grad(values.sum(), x, retain_graph=again)
        except RuntimeError as error:
            explain(self.model, x, error)
            raise
        self.backwards += self.seen
        if self.undefined is not None and not (grad.is_cpu and math.isfinite(grad.sum())):
            self.undefined.note(grad, GRADIENTS)
        return grad

    @torch.no_grad()
    def logits(self, x: Tensor, y: Tensor) -> Tensor:
        """Logits (n, classes) without a graph."""
        return self._forward(x, y)

    @torch.no_grad()
    def value(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """Each sample's loss (n,) and logits (n, classes) without a graph, averaged as gradients are; ValueError for a
        loss without one value per sample."""
        logits = self._forward(x, y)
        values = loss(logits, y)
        if not isinstance(values, Tensor) or values.shape != x.shape[:1]:
            raise _not_per_sample(values, len(x))
        for _ in range(1, self.samples):
            z = self._forward(x, y)
            values, logits = values + loss(z, y), logits + z
        if self.samples > 1:
            values, logits = values / self.samples, logits / self.samples
        self.report(x, values)
        return values, logits

    def gradient(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """Input gradient of each sample's loss (summed over the batch), the losses (n,) and logits (n, classes).

        ValueError for a loss that is not a function or has not one value per sample, and for logits without a gradient
        with respect to ``x``.
        """
        if not callable(loss):
            raise ValueError(f"loss must be a function of (logits, y) such as atent.losses.margin, got {loss!r}")
        found: tuple[Tensor, Tensor, Tensor] | None = None
        for _ in range(self.samples):
            z = x.detach().requires_grad_()
            with torch.enable_grad():
                logits = self._forward(z, y)
                values = loss(logits, y)
                if not isinstance(values, Tensor) or values.shape != x.shape[:1]:
                    raise _not_per_sample(values, len(x))
                grad = self._slope(values, z)
            seen = grad, values.detach(), logits.detach()
            found = seen if found is None else (found[0] + seen[0], found[1] + seen[1], found[2] + seen[2])
        assert found is not None, "samples is at least 1"
        if self.samples > 1:
            found = found[0] / self.samples, found[1] / self.samples, found[2] / self.samples
        if self.watch is not None:
            self.report(x, found[1])
        return found

    def look(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """The former name of `gradient`."""
        deprecated("oracle.look", "oracle.gradient")
        return self.gradient(x, y, loss)

    def slopes(self, x: Tensor, y: Tensor, classes: Tensor, see: Callable[[Tensor, Tensor, int], None]) -> Tensor:
        """Pass the input gradients of z_k - z_y for ``classes`` k (n, m) to ``see`` in groups; returns logits (n, C).

        ``see(grads, differences, first)`` receives the gradients (n, k, ...) and the differences (n, k) of the columns
        of ``classes`` from ``first`` on; k is limited by `_MOST` elements, and at least 1, so that memory does not grow
        with the number of classes. One forward, and one backward per column; with ``samples`` above 1 each group of
        columns has its own forwards.
        """
        columns = range(classes.shape[1])
        size = max(1, _MOST // max(1, x.numel()))
        groups = [columns[i : i + size] for i in range(0, len(columns), size)]
        if self.samples == 1:
            return self._reported(x, y, self._slopes(x, y, classes, groups, see))
        logits = []
        for group in groups:
            passes = [self._shown(x, y, classes, group) for _ in range(self.samples)]
            grads, differences, z = (sum(part[1:], part[0]) / self.samples for part in zip(*passes))
            see(grads, differences, group.start)
            logits.append(z)
        return self._reported(x, y, sum(logits[1:], logits[0]) / len(logits))

    def _reported(self, x: Tensor, y: Tensor, logits: Tensor) -> Tensor:
        if self.watch is not None:
            self.report(x, margin(logits, y))
        return logits

    def _shown(self, x: Tensor, y: Tensor, classes: Tensor, group: range) -> tuple[Tensor, Tensor, Tensor]:
        """The gradients, differences and logits of a single pass for one group of columns."""
        found: list[Tensor] = []
        logits = self._slopes(x, y, classes, [group], lambda grads, values, _: found.extend((grads, values)))
        return found[0], found[1], logits

    def _slopes(
        self, x: Tensor, y: Tensor, classes: Tensor, groups: list[range], see: Callable[[Tensor, Tensor, int], None]
    ) -> Tensor:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = self._forward(x, y)
            differences = logits.gather(1, classes) - logits.gather(1, y[:, None])
            last = groups[-1][-1]
            for group in groups:
                grads: list[Tensor] = []
                for k in group:
                    grads.append(self._slope(differences[:, k], x, again=k < last))
                stacked, shown = torch.stack(grads, 1), differences[:, group.start : group.stop].detach()
                grads.clear()
                with torch.no_grad():
                    see(stacked, shown, group.start)
                del stacked
        return logits.detach()
