"""The model as an attack sees it: logits and input gradients, each pass counted per sample."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, replace

import torch
from torch import Tensor, nn

from atent.attacks.watch import Watch
from atent.checks import check_logits
from atent.guard import NO_GRADIENT, ask, explain
from atent.losses import margin
from atent.messages import deprecated

Loss = Callable[[Tensor, Tensor], Tensor]

# Numbers of the gradients that are held at a time where there is one for each class: 64 MiB in float32.
_MOST = 2**24


@dataclass(eq=False)
class Oracle:
    """The model as an attack sees it: logits and input gradients, each pass counted per sample."""

    model: nn.Module
    forwards: Tensor
    """int64 (n,): forward passes of each sample, counted here."""
    backwards: Tensor
    """int64 (n,): backward passes of each sample, counted here."""
    _: KW_ONLY
    check: bool
    """The next pass is the first: its logits are checked."""
    samples: int = 1
    """Above 1 every gradient is averaged over as many passes: expectation over transformation, for random models
    (Athalye et al. 2018)."""
    channels_last: bool = False
    """Images are shown in that memory format."""
    targeted: bool = False
    """Labels are targets: `margin` and `fooled` say how near they are, and `aimed` turns a loss around."""
    watch: Watch | None = None
    """Receives every loss."""
    rows: Tensor | None = None
    """Numbers of the samples that are seen, among those that are counted; None: all, each once."""
    seen: Tensor | int = 1
    """How often a pass sees each of the samples that are counted, (n,)."""
    least: tuple[int, str] = (0, "")
    """The fewest classes that a checked first pass takes, and what it says of fewer."""

    def take(self, rows: Tensor) -> Oracle:
        """The same model and the same counters, for some of the samples."""
        rows = rows if self.rows is None else self.rows[rows]
        seen = torch.zeros_like(self.forwards).index_add_(0, rows, torch.ones_like(rows, dtype=self.forwards.dtype))
        return replace(self, check=False, least=(0, ""), rows=rows, seen=seen)

    def averaging(self, samples: int) -> Oracle:
        """The same model and counters, every gradient averaged over ``samples`` passes."""
        return replace(self, samples=samples)

    def demanding(self, classes: int, why: str) -> Oracle:
        """The same model and counters; a checked first pass raises ValueError with fewer classes, ``why`` in it."""
        return replace(self, least=(classes, why))

    def margin(self, logits: Tensor, y: Tensor) -> Tensor:
        """How far each sample is beyond the boundary that the attack looks for, (n,): above 0 where it is."""
        return -margin(logits, y) if self.targeted else margin(logits, y)

    def fooled(self, logits: Tensor, y: Tensor) -> Tensor:
        """bool (n,): the attack has what it looks for, as verdicts are given."""
        return (logits.argmax(1) == y) if self.targeted else (logits.argmax(1) != y)

    def aimed(self, loss: Loss) -> Loss:
        """The loss to climb: ``loss``, or its negative where labels are targets."""
        return (lambda logits, y: -loss(logits, y)) if self.targeted else loss

    def report(self, x: Tensor, values: Tensor) -> None:
        """Show the watch the losses ``values`` (n,) at ``x``."""
        if self.watch is not None:
            self.watch.see(self.model, self.rows, x, values)

    def _answer(self, x: Tensor, y: Tensor) -> Tensor:
        """Logits (n, classes), checked where they are the first, and counted."""
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
        return logits

    def _slope(self, values: Tensor, x: Tensor, *, again: bool = False) -> Tensor:
        """The counted gradient of the sum of ``values`` (n,) with respect to ``x``; ``again`` keeps the graph."""
        if not values.requires_grad:
            raise ValueError(NO_GRADIENT)
        try:
            (grad,) = torch.autograd.grad(values.sum(), x, retain_graph=again)
        except RuntimeError as error:
            explain(self.model, x, error)
            raise
        self.backwards += self.seen
        return grad

    @torch.no_grad()
    def logits(self, x: Tensor, y: Tensor) -> Tensor:
        """Logits (n, classes) without a graph."""
        return self._answer(x, y)

    @torch.no_grad()
    def value(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """Each sample's loss (n,) and logits (n, classes) without a graph, averaged as gradients are."""
        logits = self._answer(x, y)
        values = loss(logits, y)
        for _ in range(1, self.samples):
            z = self._answer(x, y)
            values, logits = values + loss(z, y), logits + z
        if self.samples > 1:
            values, logits = values / self.samples, logits / self.samples
        self.report(x, values)
        return values, logits

    def gradient(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """Input gradient of each sample's loss (summed over the batch), the losses (n,) and logits (n, classes)."""
        found: tuple[Tensor, Tensor, Tensor] | None = None
        for _ in range(self.samples):
            z = x.detach().requires_grad_()
            with torch.enable_grad():
                logits = self._answer(z, y)
                values = loss(logits, y)
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
        """Show ``see`` the input gradients of z_k - z_y for the ``classes`` k (n, m), a few at a time; logits (n, C).

        ``see(grads, differences, first)`` gets the gradients (n, k, ...) and the differences (n, k) of the columns of
        ``classes`` from ``first`` on; k is as large as `_MOST` numbers allow, and at least 1, so that memory does not
        grow with the number of classes. One forward, and one backward per column; gradients averaged over ``samples``
        passes are so for each group of columns, with forwards of its own.
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
        """The gradients and differences of one group of columns, and the logits, of a single pass."""
        found: list[Tensor] = []
        logits = self._slopes(x, y, classes, [group], lambda grads, values, _: found.extend((grads, values)))
        return found[0], found[1], logits

    def _slopes(
        self, x: Tensor, y: Tensor, classes: Tensor, groups: list[range], see: Callable[[Tensor, Tensor, int], None]
    ) -> Tensor:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = self._answer(x, y)
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
