"""The sequential test of one radius: is the share of the class above a threshold, with an error of alpha in total?

docs/certification.md states the test and proves its error. It counts failures: noise samples whose class is not the
chosen one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from torch import Tensor

from atent.certify.votes import Votes
from atent.docstrings import Documented

TEST = "alpha-spending-1"
"""The name of this test in files: rows of different tests are never mixed."""

# Shares of alpha that are spent up to the first interim analysis that can certify and up to the last but one.
_FIRST, _BEFORE_LAST = 1 / 3, 1 / 2
# Loss of power by stopping for futility where the last analysis alone would certify with probability 1 - _FUTILITY.
_FUTILITY = 0.01
_RATIO, _EARLY_RATIO, _EARLIEST = 1.25, 1.5, 24
# Bounds the rounding of the threshold and of the probabilities, and the tails that are not summed.
_RESERVE, _TAIL = 1e-6, 1e-15


@dataclass(frozen=True)
class CertifiedAt(metaclass=Documented):
    """The result of `atent.certify.Smoothed.certify_at` on n samples at one radius.

    Examples
    --------
    >>> import torch
    >>> from atent.certify import Smoothed
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> found = Smoothed(model, sigma=0.25).certify_at(torch.rand(4, 1, 4, 4), radius=0.1, n0=10, n=100)
    >>> found.classes.shape, bool((found.samples <= 110).all())
    (torch.Size([4]), True)
    """

    radius: float
    """The l2 radius."""
    classes: Tensor
    """The class that is certified within the radius, or `atent.certify.ABSTAIN`; int64 (n,)."""
    chosen: Tensor
    """Noise samples that chose the class; int64 (n,)."""
    tested: Tensor
    """Noise samples that the test took; int64 (n,)."""

    @property
    def samples(self) -> Tensor:
        """All noise samples; int64 (n,)."""
        return self.chosen + self.tested


@dataclass(frozen=True)
class Plan:
    """The analyses of a test, and its decision by the number of failures at each."""

    analyses: tuple[int, ...]
    """Noise samples taken up to each analysis, in ascending order; the last is the maximum."""
    certify: tuple[int, ...]
    """The largest number of failures that certifies; -1: none."""
    abandon: tuple[int, ...]
    """The smallest number of failures that ends the test without a certificate."""
    detectable: float
    """The smallest share of the class that is certified with a probability of at least 98 %."""


def threshold(radius: float, sigma: float) -> float:
    """The share of the class above which the l2 ``radius`` is certified under Gaussian noise: Phi(radius / sigma).

    Other noise needs its own threshold and the same test.
    """
    from scipy.special import ndtr

    return float(ndtr(radius / sigma))


@lru_cache(maxsize=32)
def plan(share: float, n: int, alpha: float) -> Plan:
    """The test of "the share of the class is at most ``share``" with at most ``n`` noise samples and error ``alpha``.

    Parameters
    ----------
    share
        The threshold p0 in [1/2, 1).
    n
        The largest number of noise samples; at least log(alpha) / log(share), so that no failure certifies.
    alpha
        Probability, for every true share up to ``share``, that the test certifies.
    """
    from scipy.special import betaincinv

    first = min(n, math.ceil(math.log(_FIRST * alpha) / math.log(share)))
    analyses = _analyses(first, n)
    spent = _spending(analyses, first, alpha)
    certify = _certifying(analyses, spent, 1 - share, alpha)
    last = certify[-1]
    # P(at most `last` of n fail) = 1 - _FUTILITY; where n barely suffices the reserve may prevent a certificate.
    rate = float(betaincinv(last + 1, n - last, _FUTILITY)) if last >= 0 else 0.0
    return Plan(analyses, certify, _futile(analyses, max(certify), rate), 1 - rate)


def choose(votes: Votes, n0: int, first: int) -> tuple[np.ndarray, np.ndarray]:
    """The class (n,) that is most frequent among ``n0`` noise samples of each input, and how many of them were taken.

    Only half of them where its lead is larger than the other half could reverse. ``first``: number of the first block
    of noise.
    """
    half = n0 // 2 + 1
    counts = votes.count(range(len(votes.x)), 0, half, first=first).cpu().numpy()
    votes.check()
    ranked = np.sort(counts, axis=1)
    left = np.flatnonzero(ranked[:, -1] - ranked[:, -2] <= n0 - half)
    if half < n0 and len(left):
        counts[left] += votes.count(left.tolist(), half, n0, first=first).cpu().numpy()
    taken = np.full(len(counts), half)
    taken[left] = n0
    return counts.argmax(1), taken


def decide(votes: Votes, top: np.ndarray, test: Plan) -> tuple[np.ndarray, np.ndarray]:
    """Whether the test certifies class ``top`` (n,) of each input, and how many noise samples it took.

    All undecided inputs share forward passes, and the host waits for the device once at each analysis.
    """
    failures, taken = np.zeros(len(top), np.int64), np.zeros(len(top), np.int64)
    certified, left, before = np.zeros(len(top), bool), np.arange(len(top)), 0
    for analysis, certify, abandon in zip(test.analyses, test.certify, test.abandon, strict=True):
        counts = votes.count(left.tolist(), before, analysis).cpu().numpy()
        votes.check()
        failures[left] += analysis - before - counts[np.arange(len(left)), top[left]]
        taken[left], before = analysis, analysis
        certified[left] = failures[left] <= certify
        left = left[~certified[left] & (failures[left] < abandon)]
        if not len(left):
            break
    return certified, taken


def _analyses(first: int, n: int) -> tuple[int, ...]:
    """Geometric numbers up to ``n``: analyses before ``first`` cannot certify, but can stop a test for futility."""
    out, size = [], float(_EARLIEST)
    while size < first:
        out.append(int(size))
        size *= _EARLY_RATIO
    size = float(first)
    while size < n:
        out.append(int(size))
        size = max(size * _RATIO, size + 1)
    # An analysis just before the last one has little effect.
    if out and first < out[-1] and out[-1] > n / (1 + (_RATIO - 1) / 2):
        out.pop()
    return (*out, n)


def _spending(analyses: tuple[int, ...], first: int, alpha: float) -> list[float]:
    """The cumulative part of alpha that is spent up to each analysis."""
    within = sum(analysis >= first for analysis in analyses[:-1])
    rises = np.linspace(_FIRST, _BEFORE_LAST, within) if within > 1 else np.full(within, _FIRST)
    shares = [0.0] * (len(analyses) - 1 - within) + [float(s) for s in rises] + [1.0]
    return [alpha * (1 - _RESERVE) * s for s in shares]


def _certifying(analyses: tuple[int, ...], spent: list[float], rate: float, alpha: float) -> tuple[int, ...]:
    """The largest number of failures that certifies at each analysis; a sample fails at the ``rate`` of the threshold.

    The probability of a certificate up to an analysis is computed exactly, over all paths of failures, and is at most
    the alpha spent up to it. Stopping for futility is not used in it.
    """
    out: list[int] = []
    used = 0.0

    def decide(low: int, mass: np.ndarray, analysis: int) -> slice:
        nonlocal used
        total = used + np.cumsum(mass)
        count = int(np.searchsorted(total, spent[analysis], side="right"))
        if count:
            used = float(total[count - 1])
        # Paths with as few failures as an earlier analysis certifies have ended.
        out.append(low + count - 1 if count else max(out, default=-1))
        return slice(count, None)

    _distributions(analyses, rate, alpha * _TAIL, decide)
    return tuple(out)


def _futile(analyses: tuple[int, ...], most: int, rate: float) -> tuple[int, ...]:
    """The smallest number of failures that ends the test at each analysis.

    A class that fails at ``rate`` reaches one of these numbers with probability `_FUTILITY` at most, or more than
    ``most`` failures, which no analysis certifies.
    """
    out: list[int] = []
    used = 0.0

    def decide(low: int, mass: np.ndarray, analysis: int) -> slice:
        nonlocal used
        total = used + np.cumsum(mass[::-1])
        allowed = _FUTILITY * (analysis + 1) / len(analyses)
        count = int(np.searchsorted(total, allowed, side="right"))
        if count:
            used = float(total[count - 1])
        out.append(min(low + len(mass) - count, most + 1))
        return slice(0, len(mass) - count)

    _distributions(analyses[:-1], rate, _FUTILITY * _TAIL, decide)
    # The last analysis ends the test.
    return (*out, 0)


def _distributions(
    analyses: tuple[int, ...], rate: float, tail: float, decide: Callable[[int, np.ndarray, int], slice]
) -> None:
    """The distribution of the failures at each analysis, of the paths that no earlier analysis decided.

    ``decide(low, mass, analysis)`` gets mass[i], the probability of low + i failures, and returns the part that
    continues.
    """
    low, mass, before = 0, np.ones(1), 0
    for i, analysis in enumerate(analyses):
        start, more = binomial(analysis - before, rate, tail)
        low, mass, before = low + start, np.convolve(mass, more), analysis
        kept = decide(low, mass, i)
        low, mass = low + (kept.start or 0), mass[kept]
        if not len(mass):
            mass = np.zeros(1)


def binomial(n: int, rate: float, tail: float) -> tuple[int, np.ndarray]:
    """(low, mass): mass[i] is the probability of low + i of n, each at ``rate``.

    Tails below about ``tail`` are omitted, and the rest is scaled to 1.
    """
    mode, size = min(n, int((n + 1) * rate)), math.log(1 / tail)
    # Bernstein's inequality.
    reach = math.ceil(math.sqrt(2 * n * rate * (1 - rate) * size) + size) + 2
    low, high = max(0, mode - reach), min(n, mode + reach)
    odds = rate / (1 - rate) if rate < 1 else math.inf
    below, above = np.arange(mode, low, -1.0), np.arange(mode, high, 1.0)
    down = np.cumprod(below / (n - below + 1) / odds)[::-1] if odds else below
    up = np.cumprod((n - above) / (above + 1) * odds)
    mass = np.concatenate([down, [1.0], up])
    kept = np.flatnonzero(mass >= tail)
    mass = mass[kept[0] : kept[-1] + 1]
    return low + int(kept[0]), mass / mass.sum()
