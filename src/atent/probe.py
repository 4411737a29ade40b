"""Measured cost of precisions and memory formats for a network and machine, and their agreement with float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from time import perf_counter
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from atent.guard import dtype_of, guard
from atent.precision import SearchDtype, full_precision, under
from atent.threads import choose

Auto = Literal["auto"]
AUTO: Auto = "auto"
"""The value of a setting that `probe` decides."""

# Relative error of the centred logits. bfloat16 has 8 bits, so a layer rounds by up to 2^-8 of its largest values; the
# built-in networks, untrained and on noise, have errors up to 0.24, a network that rounds its input away has 1.
_LOGITS = 0.5
# Mean cosine of the input gradients. Units near zero change sign under rounding, so that an untrained network of 110
# layers has 0.91; a network whose rounding hides the input has about 0.
_COSINE = 0.8
_SECONDS = 3.0
_REPEATS = 7
# A first pass this many times slower than in float32 is measured only once more.
_HOPELESS = 8.0
# A choice must save a tenth of the time, in the median and in three quarters of the rounds: timing noise is smaller.
_GAIN = 0.9
_ROUNDS = 0.75

Kind = tuple[str, bool]
"""Precision, and whether images are in the channels-last memory format."""


@dataclass(frozen=True)
class Timing:
    """Time of a forward pass and input gradient in float32 and under bfloat16 autocast, and the agreement of both."""

    samples: int
    """Number of samples in the measured batch."""
    float32: float
    """Seconds, the median of the repeats."""
    bfloat16: float
    """Seconds, the median of the repeats."""
    logits: float
    """||b - a|| / ||a|| of the logits, centred over classes and samples, with a in float32; may be NaN or inf."""
    cosine: float
    """Mean over the samples of the cosine between the two input gradients; 1 where both are zero."""

    @property
    def faster(self) -> bool:
        """Whether bfloat16 takes less time than float32."""
        return self.bfloat16 < self.float32

    @property
    def agrees(self) -> bool:
        """Whether logits differ by at most 50 % and input gradients have a mean cosine of at least 0.8."""
        return self.within(self.logits, self.cosine)

    @staticmethod
    def within(logits: float, cosine: float) -> bool:
        """`agrees` for a given error of logits and cosine of input gradients."""
        return logits <= _LOGITS and cosine >= _COSINE  # false for NaN

    @property
    def pays(self) -> bool:
        """Whether bfloat16 is faster and agrees."""
        return self.faster and self.agrees

    def __str__(self) -> str:
        return (
            f"forward pass and input gradient at batch {self.samples} take {1e3 * self.bfloat16:.3g} ms in bfloat16 and"
            f" {1e3 * self.float32:.3g} ms in float32; logits differ by {self.logits:.1%}, input gradients have cosine"
            f" {self.cosine:.2f}"
        )


def bfloat16_pays(
    model: nn.Module,
    shape: tuple[int, ...],
    device: torch.device | str,
    *,
    batch: int = 64,
    x: Tensor | None = None,
    channels_last: bool = False,
) -> Timing:
    """Measure whether ``model`` (float32, on ``device``) is faster under bfloat16 autocast, and agrees with float32.

    Times are medians of interleaved passes in eval mode, forward and input gradient of the cross-entropy, over ``x``
    (n, c, h, w) or (n, d), default: ``batch`` samples of uniform noise in [0, 1] of sample shape ``shape``. The total
    time is below 3 s if a pass of two samples takes less than 0.25 s: a slow network gets fewer samples, and a much
    slower bfloat16 is measured twice only. The model and the random state are restored.

    Raises ValueError for a model of another dtype than float32, and if the network fails under autocast.
    """
    own = dtype_of(model)
    if own not in (None, torch.float32):
        raise ValueError(f"precision bfloat16 is for a float32 model, this one is {own}: use precision float32")
    device, end = torch.device(device), perf_counter() + _SECONDS
    if x is None:
        x = torch.rand(batch, *shape, generator=torch.Generator().manual_seed(0))
    exact, low = ("float32", channels_last), ("bfloat16", channels_last)
    found = _measure(model, x.detach().to(device), [exact, low], end)
    if low in found.failed:
        raise ValueError(found.failed[low])
    return Timing(found.samples, found.seconds(exact), found.seconds(low), *found.agreement(low))


@dataclass(frozen=True)
class Choice:
    """The choice of `probe`, and its measurements."""

    precision: str
    """float32, bfloat16 or tf32."""
    channels_last: bool
    """Whether images are in the channels-last memory format."""
    samples: int
    """Number of samples in the measured batch."""
    times: dict[Kind, float]
    """Median seconds of a forward pass and input gradient; the first kind is the baseline of the comparison."""
    disagree: tuple[Kind, ...] = ()
    """Faster kinds whose logits or input gradients disagree with float32."""

    @property
    def search_dtype(self) -> SearchDtype | None:
        """The precision as an argument of `evaluate`."""
        return None if self.precision == "float32" else cast("SearchDtype", self.precision)

    def __str__(self) -> str:
        listed = ", ".join(f"{_named(kind)} {1e3 * seconds:.3g} ms" for kind, seconds in self.times.items())
        refused = f"; {', '.join(map(_named, self.disagree))} disagrees with float32" if self.disagree else ""
        return f"{_named((self.precision, self.channels_last))} (batch {self.samples}: {listed}{refused})"


def _named(kind: Kind) -> str:
    return f"{kind[0]} {'channels_last' if kind[1] else 'contiguous'}"


def probe(
    model: nn.Module, x: Tensor, *, precisions: Sequence[str] | None = None, formats: Sequence[bool] | None = None
) -> Choice:
    """Choose the precision and the memory format in which ``model`` (float32, on its device) is fastest on ``x``.

    Candidates are ``precisions`` (default: float32 and bfloat16, on CUDA also tf32) in each of ``formats`` (channels
    last or not; default: both for images); the first precision in the first format is the baseline. Forward passes and
    input gradients in eval mode are measured, interleaved. The choice is the fastest candidate whose logits and input
    gradients agree with float32, see `Timing.agrees`, and which saves a tenth of the time in the median and in three of
    four rounds; otherwise the baseline. The total time is below 3 s if a pass of two samples takes less than 0.15 s; a
    slower network is compared on fewer candidates. The model and the random state are restored. ValueError if the
    network fails in float32.
    """
    end, device = perf_counter() + _SECONDS, x.device
    if precisions is None:
        low = ["bfloat16", *(["tf32"] if device.type == "cuda" else [])]
        precisions = ["float32", *(low if dtype_of(model) == torch.float32 else [])]
    if x.dim() != 4:
        formats = [False]
    elif formats is None:
        formats = [False, True]
    kinds = [(precision, last) for precision in precisions for last in formats]
    # float32 is measured even if it is not a candidate: the others must agree with it.
    base = ("float32", formats[0])
    found = _measure(model, x.detach(), [base, *(k for k in kinds if k != base)], end)
    agreeing = {k: Timing.within(*found.agreement(k)) for k in found.times}
    baseline, best = kinds[0], kinds[0]
    for kind in kinds[1:]:
        if baseline in found.times and agreeing.get(kind) and found.saves(kind, baseline):
            best = kind if best == baseline or found.seconds(kind) < found.seconds(best) else best
    refused = tuple(k for k in found.times if not agreeing[k] and found.saves(k, base))
    return Choice(*best, found.samples, {k: found.seconds(k) for k in found.times}, refused)


@dataclass
class _Measured:
    """Passes of several kinds over the same samples; the first kind is the base."""

    samples: int
    times: dict[Kind, list[float]] = field(default_factory=dict)
    answers: dict[Kind, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """Logits and input gradients."""
    failed: dict[Kind, str] = field(default_factory=dict)

    def seconds(self, kind: Kind) -> float:
        return median(self.times[kind])

    def agreement(self, kind: Kind) -> tuple[float, float]:
        return _agreement(list(self.answers[next(iter(self.answers))]), list(self.answers[kind]))

    def saves(self, kind: Kind, other: Kind) -> bool:
        """Whether a kind takes a tenth less time than another, in the median and in most rounds."""
        pairs = [a < b for a, b in zip(self.times[kind], self.times[other])]
        return self.seconds(kind) <= _GAIN * self.seconds(other) and sum(pairs) >= _ROUNDS * len(pairs)


def _measure(model: nn.Module, x: Tensor, kinds: Sequence[Kind], end: float) -> _Measured:
    """Pass the samples through the model in each of the kinds, until ``end``; ValueError if the first one fails."""
    with guard(model, mode="eval", seed=0), full_precision(x.device):
        base, *others = kinds
        failed: dict[Kind, str] = {}
        n = min(2, len(x))
        while True:
            found, hopeless = _first_passes(model, x[:n], base, others, failed, end)
            others = [k for k in others if k in found.times and k not in hopeless]
            total = sum(found.times[k][0] for k in (base, *others))
            # The remaining time must suffice for the larger batch: first passes, a counted round, and one in reserve.
            larger = min(len(x), 8 * n, int(n * (end - perf_counter()) / (4 * max(total, 1e-9))))
            if not others or larger < min(2 * n, len(x)) or larger == n:
                break
            n = larger
        for kind in others:
            _pass(model, x[:n], kind)
        rounds: dict[Kind, list[float]] = {k: [] for k in (base, *others)} if others else {}
        while rounds and len(rounds[base]) < _REPEATS:
            if rounds[base] and perf_counter() + sum(kept[-1] for kept in rounds.values()) >= end:
                break
            for kind, kept in rounds.items():
                kept.append(_pass(model, x[:n], kind)[0])
        found.times |= rounds
        return found


def _first_passes(
    model: nn.Module, x: Tensor, base: Kind, others: Sequence[Kind], failed: dict[Kind, str], end: float
) -> tuple[_Measured, set[Kind]]:
    """One pass of each kind, as far as time allows, and the set of hopeless kinds."""
    found, hopeless = _Measured(len(x), failed=failed), set[Kind]()
    # The first pass of a shape initialises kernels and memory.
    _pass(model, x, base)
    seconds, *answer = _pass(model, x, base)
    found.times[base], found.answers[base] = [seconds], (answer[0], answer[1])
    for kind in others:
        if len(found.times) > 1 and (perf_counter() + 2 * seconds > end or any(k[0] == kind[0] for k in hopeless)):
            continue
        try:
            took, *answer = _pass(model, x, kind)
            if took > _HOPELESS * seconds:
                took = _pass(model, x, kind)[0]
        except ValueError as error:
            failed[kind] = str(error)
            continue
        if took > _HOPELESS * seconds:
            hopeless.add(kind)
        found.times[kind], found.answers[kind] = [took], (answer[0], answer[1])
    return found, hopeless


def _pass(model: nn.Module, x: Tensor, kind: Kind) -> tuple[float, Tensor, Tensor]:
    """Seconds, logits and input gradients of one pass."""
    precision, last = kind
    # A network may change its input in place. Not contiguous(), which does not copy images with one channel.
    layout = torch.channels_last if last and x.dim() == 4 else torch.contiguous_format
    leaf = x.clone(memory_format=layout).requires_grad_()
    begun = _now(x.device)
    with torch.enable_grad(), under(precision, x.device):
        try:
            logits = model(leaf.clone()).float()
            labels = torch.arange(len(x), device=x.device) % logits.shape[1]
            (grad,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum"), leaf)
        except Exception as error:
            reason = " ".join([type(error).__name__ + ":", *str(error).strip().splitlines()[:1]])
            how = "under bfloat16 autocast" if precision == "bfloat16" else f"in {precision}"
            raise ValueError(
                f"the network fails {how} where precision is measured ({reason}): use precision float32"
            ) from error
    seconds = _now(x.device) - begun
    return seconds, logits.detach(), grad.flatten(1)


def gaining(model: nn.Module, x: Tensor, *, low: bool = False) -> int:
    """The number of CPU threads that speeds up a forward pass and input gradient on ``x``, see `atent.threads.choose`.

    A slow network gets fewer samples, so that one pass takes at most about half a second.
    """
    with guard(model, mode="eval", seed=0):
        few = x[:2]
        kind = ("bfloat16" if low else "float32", False)
        _pass(model, few, kind)
        seconds = _pass(model, few, kind)[0] / len(few)
        n = max(1, min(len(x), int(0.5 / max(seconds, 1e-9))))
        return choose(lambda: _pass(model, x[:n], kind))


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return perf_counter()


def _agreement(exact: list[Tensor], rounded: list[Tensor]) -> tuple[float, float]:
    """The relative error of the logits, and the mean cosine of the gradients, in float64."""
    (logits, grads), (low, low_grads) = ([t.double() for t in pair] for pair in (exact, rounded))
    # Softmax is invariant to shifts, and what all samples share does not distinguish them.
    logits, low = (z - z.mean(1, keepdim=True) for z in (logits, low))
    if len(logits) > 1:
        logits, low = (z - z.mean(0) for z in (logits, low))
    size, error = float(logits.norm()), float((low - logits).norm())
    # The last layer of an untrained network may be zero.
    relative = error / size if size else (float("inf") if error else 0.0)
    both = grads.norm(dim=1) * low_grads.norm(dim=1)
    none = (grads == 0).all(1) & (low_grads == 0).all(1)
    cosines = torch.where(none, torch.ones_like(both), (grads * low_grads).sum(1) / both)
    return relative, float(cosines.nan_to_num(0.0).mean())
