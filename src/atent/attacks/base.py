"""What every attack shares: the contract, the counting model, the ascent loop, restarts and input checks."""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, is_dataclass
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from atent.checks import (
    Settings,
    as_inputs,
    as_labels,
    check_batch,
    check_logits,
    check_seed,
    numbered,
)
from atent.guard import Mode, ask, explained, guard, outside_inference
from atent.losses import margin
from atent.precision import Lowered, SearchDtype, full_precision, images_last
from atent.registry import Registry
from atent.rng import Batch, Draws, PerSample, narrow
from atent.threat import Threat, per_sample

Loss = Callable[[Tensor, Tensor], Tensor]

# Numbers of the gradients that are held at a time where there is one for each class: 64 MiB in float32.
_MOST = 2**24


class Outcome(NamedTuple):
    """What an attack did to n samples."""

    x_adv: Tensor
    """Adversarial inputs, the shape of x."""
    success: Tensor
    """bool (n,): the model misclassifies x_adv, recomputed on that very tensor with true labels."""
    norm: Tensor
    """float64 (n,): distance to x in the threat's norm."""
    forwards: Tensor
    """int64 (n,): forward passes that each sample took part in."""
    backwards: Tensor
    """int64 (n,): backward passes that each sample took part in."""


class Oracle:
    """The model as an attack sees it: logits and input gradients, each pass counted per sample.

    ``draws`` above 1 averages every gradient over as many passes: expectation over transformation, for random models
    (Athalye et al. 2018).
    """

    def __init__(
        self,
        model: nn.Module,
        forwards: Tensor,
        backwards: Tensor,
        *,
        check: bool,
        draws: int = 1,
        channels_last: bool = False,
    ) -> None:
        self.model, self.check, self.draws, self.channels_last = model, check, draws, channels_last
        self.forwards, self.backwards = forwards, backwards
        self.rows: Tensor | None = None
        self.least: tuple[int, str] = (0, "")

    def take(self, rows: Tensor) -> Oracle:
        """The same model and the same counters, for some of the samples."""
        part = self._like(check=False, draws=self.draws)
        part.rows = rows if self.rows is None else self.rows[rows]
        return part

    def averaging(self, draws: int) -> Oracle:
        """The same model and counters, every gradient averaged over ``draws`` passes."""
        same = self._like(check=self.check, draws=draws)
        same.rows, same.least = self.rows, self.least
        return same

    def _like(self, *, check: bool, draws: int) -> Oracle:
        return Oracle(
            self.model, self.forwards, self.backwards, check=check, draws=draws, channels_last=self.channels_last
        )

    def _pass(self, x: Tensor) -> Tensor:
        if self.channels_last and x.dim() == 4:
            x = x.to(memory_format=torch.channels_last)
        return ask(self.model, x)

    def demanding(self, classes: int, why: str) -> Oracle:
        """The same model and counters; a checked first pass raises ValueError with fewer classes, ``why`` in it."""
        same = self.averaging(self.draws)
        same.least = classes, why
        return same

    def _count(self, counter: Tensor) -> None:
        if self.rows is None:
            counter += 1
        else:
            counter.index_add_(0, self.rows, torch.ones_like(self.rows))

    def _verified(self, logits: Tensor, y: Tensor) -> Tensor:
        if self.check:
            check_logits(logits, y)
            least, why = self.least
            if logits.shape[1] < least:
                raise ValueError(f"{why}, got {logits.shape[1]} classes")
            self.check = False
        self._count(self.forwards)
        return logits

    @torch.no_grad()
    def logits(self, x: Tensor, y: Tensor) -> Tensor:
        """Logits (n, classes) without a graph."""
        return self._verified(self._pass(x), y)

    def gradient(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """Input gradient of each sample's loss (the loss is summed over the batch), and the losses (n,)."""
        grad, values, _ = self.look(x, y, loss)
        return grad, values

    def look(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        """As `gradient`, and the logits (n, classes) of the same passes."""
        grad, values, logits = self._look(x, y, loss)
        for _ in range(1, self.draws):
            more, value, z = self._look(x, y, loss)
            grad, values, logits = grad + more, values + value, logits + z
        if self.draws == 1:
            return grad, values, logits
        return grad / self.draws, values / self.draws, logits / self.draws

    @torch.no_grad()
    def value(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor]:
        """Each sample's loss (n,) and logits (n, classes) without a graph, averaged as gradients are."""
        logits = self.logits(x, y)
        values = loss(logits, y)
        for _ in range(1, self.draws):
            z = self.logits(x, y)
            values, logits = values + loss(z, y), logits + z
        return (values, logits) if self.draws == 1 else (values / self.draws, logits / self.draws)

    def _look(self, x: Tensor, y: Tensor, loss: Loss) -> tuple[Tensor, Tensor, Tensor]:
        x = x.detach().requires_grad_()
        with torch.enable_grad():
            logits = self._verified(self._pass(x), y)
            values = loss(logits, y)
            _check_graph(values)
            with explained(self.model, x):
                (grad,) = torch.autograd.grad(values.sum(), x)
        self._count(self.backwards)
        return grad, values.detach(), logits.detach()

    def slopes(self, x: Tensor, y: Tensor, classes: Tensor, see: Callable[[Tensor, Tensor, int], None]) -> Tensor:
        """Show ``see`` the input gradients of z_k - z_y for the ``classes`` k (n, m), a few at a time; logits (n, C).

        ``see(grads, differences, first)`` gets the gradients (n, k, ...) and the differences (n, k) of the columns of
        ``classes`` from ``first`` on; k is as large as `_MOST` numbers allow, and at least 1, so that memory does not
        grow with the number of classes. One forward, and one backward per column; gradients averaged over ``draws``
        passes are so for each group of columns, with forwards of its own.
        """
        columns = range(classes.shape[1])
        size = max(1, _MOST // max(1, x.numel()))
        groups = [columns[i : i + size] for i in range(0, len(columns), size)]
        if self.draws == 1:
            return self._slopes(x, y, classes, groups, see)
        logits = []
        for group in groups:
            passes = [self._shown(x, y, classes, group) for _ in range(self.draws)]
            grads, differences, z = (sum(part[1:], part[0]) / self.draws for part in zip(*passes))
            see(grads, differences, group.start)
            logits.append(z)
        return sum(logits[1:], logits[0]) / len(logits)

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
            logits = self._verified(self._pass(x), y)
            _check_graph(logits)
            differences = logits.gather(1, classes) - logits.gather(1, y[:, None])
            last = groups[-1][-1]
            for group in groups:
                grads: list[Tensor] = []
                for k in group:
                    with explained(self.model, x):
                        grads += torch.autograd.grad(differences[:, k].sum(), x, retain_graph=k < last)
                    self._count(self.backwards)
                stacked, shown = torch.stack(grads, 1), differences[:, group.start : group.stop].detach()
                grads.clear()
                with torch.no_grad():
                    see(stacked, shown, group.start)
                del stacked
        return logits.detach()


@dataclass(frozen=True)
class Attack(metaclass=Settings):
    """The contract of an attack; a concrete one has a ``threat`` field and a ``search`` method."""

    minimum_norm: ClassVar[bool] = False
    """The attack looks for the smallest change: ``search`` returns the smallest adversarial point that it found, x
    where it found none, and the threat's eps may be infinite; x is returned where the norm exceeds eps."""
    needs_gradient: ClassVar[bool] = True
    """The attack differentiates the model."""

    @property
    def stream(self) -> str:
        """The name that keys the attack's random draws."""
        return type(self).__name__

    @property
    def passes(self) -> int:
        """The most forwards and backwards together that one sample can cost, the verdict's forward included."""
        raise TypeError(f"{type(self).__name__} is a contract: use one of the attacks in atent.attacks")

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        """Adversarial inputs for ``x`` in the box; the model is frozen and guarded by the caller."""
        raise TypeError(f"{type(self).__name__} is a contract: use one of the attacks in atent.attacks")

    def parts(self) -> dict[str, Attack]:
        """The attacks that a composite one runs in turn, by name, each on what stands after those before; {}: none."""
        return {}

    def remarks(self, classes: int) -> list[str]:
        """What the attack does otherwise than its name says on a model of so few classes, a clause each."""
        return []

    def search_part(self, part: str, oracle: Oracle, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        """What the part of that name finds, x where a minimum-norm one finds nothing within eps.

        ``draws`` are the composite's; the part has streams of its own in them, so that it finds the same in the
        composite's ``search`` and alone.
        """
        return self.parts()[part].bounded(oracle, x, y, draws.named(part))

    def bounded(self, oracle: Oracle, x: Tensor, y: Tensor, draws: Draws) -> Tensor:
        """`search`, with x where a minimum-norm attack finds nothing within eps."""
        threat: Threat = self.threat  # type: ignore[attr-defined]
        x_adv = self.search(oracle, x, y, draws)
        return torch.where(per_sample(threat.contains(x_adv, x), x), x_adv, x) if self.minimum_norm else x_adv

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None = None,
        *,
        seed: int = 0,
        ids: Tensor | None = None,
        rng: torch.Generator | None = None,
        mode: Mode = "eval",
    ) -> Tensor:
        """Adversarial inputs (n, ...) for inputs ``x`` in the box and true labels ``y`` (n,).

        With ``seed`` and ``ids`` (sample numbers, default 0 .. n-1) each sample draws from its own stream;
        with ``rng`` one stream serves the batch and the input checks are left out, as in training. The model
        is seen in ``mode`` and comes back as it was found. Arrays become tensors, see `atent.checks.as_inputs`.
        ValueError for inputs that no attack can use.
        """
        return self._guarded(model, x, y, seed, ids, rng, mode, verdict=False)[0]

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None = None,
        *,
        seed: int = 0,
        ids: Tensor | None = None,
        rng: torch.Generator | None = None,
        mode: Mode = "eval",
        part: str | None = None,
        search_dtype: SearchDtype | None = None,
        channels_last: bool = False,
    ) -> Outcome:
        """As the call, with the verdict, the distances and the passes of each sample.

        ``part`` runs that part of a composite attack only. ``search_dtype`` searches under autocast (float32 models);
        the verdict is given in the model's own precision on the returned tensor, without autocast and TF32, and without
        ``rng`` the search too: a minimum-norm attack's points lie on the boundary, where rounding decides.
        ``channels_last`` shows the model images in that memory format: the same numbers to rounding, faster or slower
        as the network and the machine have it; where the model cannot take it, a warning says so, and images stay as
        they are.
        """
        if rng is None:
            x = as_inputs(x, model)
        x_adv, success, forwards, backwards = self._guarded(
            model, x, y, seed, ids, rng, mode, verdict=True, part=part, search_dtype=search_dtype,
            channels_last=channels_last,
        )  # fmt: skip
        threat: Threat = self.threat  # type: ignore[attr-defined]
        return Outcome(x_adv, success, threat.distance(x_adv, threat.clamp(x.detach())), forwards, backwards)

    def _guarded(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None,
        seed: int,
        ids: Tensor | None,
        rng: torch.Generator | None,
        mode: Mode,
        *,
        verdict: bool,
        part: str | None = None,
        search_dtype: SearchDtype | None = None,
        channels_last: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        threat: Threat = self.threat  # type: ignore[attr-defined]
        draws: Draws
        if rng is None:
            x, seed = as_inputs(x, model), check_seed(seed)
        x, y = outside_inference(x.detach()), outside_inference(as_labels(y))
        if not self.minimum_norm and math.isinf(float(threat.eps)):
            raise ValueError(
                f"{type(self).__name__} needs a finite eps, got inf: only minimum-norm attacks work without a budget"
            )
        threat.check_eps(x.shape[1:])
        if rng is None:
            check_batch(x, y, threat.box)
        n, y = len(x), y.long()
        if rng is None:
            draws, inner = PerSample(seed, numbered(ids, n, x.device), self.stream), narrow(seed)
        else:
            draws = Batch(rng)
            inner = int(torch.randint(2**62, (), generator=rng, device=rng.device))
        if n == 0:
            counters = torch.zeros(2, 0, dtype=torch.int64, device=x.device)
            return x.clone(), torch.zeros(0, dtype=torch.bool, device=x.device), *counters
        exact = rng is None and search_dtype is None
        with guard(model, mode=mode, seed=inner), full_precision(x.device) if exact else nullcontext():
            counters = torch.zeros(2, n, dtype=torch.int64, device=x.device)
            seen = model if search_dtype is None else Lowered(model, search_dtype)
            clean = threat.clamp(x)
            last = channels_last and images_last(model, clean)
            oracle = Oracle(seen, *counters, check=rng is None, channels_last=last)
            if part is None:
                x_adv = self.bounded(oracle, clean, y, draws).detach()
            else:
                x_adv = self.search_part(part, oracle, clean, y, draws).detach()
            # The verdict is checked like the first pass: NaN logits would count as fooled.
            oracle.model, oracle.check = model, rng is None
            with full_precision(x.device):
                success = oracle.logits(x_adv, y).argmax(1) != y if verdict else torch.empty(0)
        return x_adv, success, *counters


def _is_attack(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, Attack) and is_dataclass(found)


ATTACKS: Registry[type[Attack]] = Registry(
    "attack", "atent.attacks", "atent.attacks", _is_attack, "a dataclass that inherits from atent.attacks.Attack"
)
"""Name -> class; recipes, the command line and the contract tests read it."""

attack = ATTACKS.register
"""Decorator that makes an attack known by its class's name."""


def ascend(
    oracle: Oracle,
    x_adv: Tensor,
    y: Tensor,
    *,
    steps: int,
    loss: Loss,
    move: Callable[[Tensor, Tensor, int], Tensor],
    keep: str = "last",
) -> Tensor:
    """Climb the loss: ``x_adv = move(x_adv, gradient, k)`` for k = 0 .. steps-1.

    ``keep="best"`` returns for each sample the iterate after the start with the highest loss, at the price of
    one more forward; ``"last"`` returns the last one.
    """
    best = x_adv
    # The losses keep their own precision: rounded to that of x, a smaller one could pass for the larger.
    best_value: Tensor | None = None

    def remember(values: Tensor) -> None:
        nonlocal best, best_value
        if best_value is None:
            best_value = torch.full_like(values, -math.inf)
        better = values > best_value
        best = torch.where(per_sample(better, x_adv), x_adv, best)
        best_value = torch.where(better, values, best_value)

    for k in range(steps):
        grad, values = oracle.gradient(x_adv, y, loss)
        if keep == "best" and k:
            remember(values)
        x_adv = move(x_adv, grad, k)
    if keep == "best":
        remember(loss(oracle.logits(x_adv, y), y))
        return best
    return x_adv


def worst_of(
    restarts: int,
    once: Callable[..., Tensor],
    oracle: Oracle,
    x: Tensor,
    y: Tensor,
    draws: Draws,
    *more: Tensor,
) -> Tensor:
    """Repeat a search on the samples that still stand; per sample the result with the largest margin wins.

    A search is ``once(oracle, x, y, draws, restart, *more)``; ``more`` are further tensors of one row per sample.
    """
    x_adv = once(oracle, x, y, draws, 0, *more)
    if restarts == 1:
        return x_adv
    best = margin(oracle.logits(x_adv, y), y)
    for restart in range(1, restarts):
        rows = (best <= 0).nonzero().squeeze(1)
        if not len(rows):
            break
        part = oracle.take(rows)
        candidate = once(part, x[rows], y[rows], draws.take(rows), restart, *(t[rows] for t in more))
        score = margin(part.logits(candidate, y[rows]), y[rows])
        better = score > best[rows]
        x_adv = x_adv.index_copy(0, rows, torch.where(per_sample(better, x), candidate, x_adv[rows]))
        best = best.index_copy(0, rows, torch.maximum(score, best[rows]))
    return x_adv


def side_by_side(x: Tensor, runs: int) -> int:
    """How many samples may have ``runs`` rows each in one pass: no more rows than ``x`` has, or than 2^16 numbers make.

    So small networks are busy, and large ones see no more rows than the caller's batch.
    """
    return max(1, max(len(x), 2**16 // max(1, x[0].numel())) // max(1, runs))


def all_targets(classes: int) -> str:
    """The remark of an attack that asks for more targets than there are wrong classes."""
    return "aims at the one wrong class" if classes == 2 else f"aims at the {classes - 1} wrong classes that there are"


def restarted(passes: int, restarts: int) -> int:
    """Passes of a search of ``passes`` under `worst_of`, with the verdict's."""
    return passes * restarts + (restarts if restarts > 1 else 0) + 1


def _check_graph(values: Tensor) -> None:
    if not values.requires_grad:
        raise ValueError(
            "the model has no gradient with respect to its input: a layer detaches or rounds it;"
            " use an attack that needs no gradients"
        )
