"""Confidence intervals and tests for means, paired figures, ratios and an exponent.

Every interval is two-sided at 95 % unless ``level`` differs. Decisions follow from the position of the interval:
`inside` has three results, so that an inconclusive interval counts neither as equal nor as different. Equivalence
within a margin is the pair of one-sided tests of Schuirmann (1987): the interval lies within the margin.
"""

from __future__ import annotations

import functools
import math
import operator
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Estimate:
    """A figure with its interval."""

    value: float
    low: float
    high: float


def inside(found: Estimate, low: float, high: float) -> bool | None:
    """Whether the figure lies between ``low`` and ``high``: True if its entire interval does, False if the interval
    lies outside on one side, None if it is inconclusive."""
    if low < found.low and found.high < high:
        return True
    return False if found.high < low or found.low > high else None


# ---- shares ----------------------------------------------------------------------------------------------


def interval(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact (Clopper-Pearson, 1934) two-sided interval of a share, from k successes in n trials.

    Each end has (1 - level)/2 outside it, also for k = 0 and k = n, where one end is 0 or 1. Raises
    ValueError unless n > 0, 0 <= k <= n, both are whole, and 0 < level < 1.
    """
    k, n = _whole("k", k), _whole("n", n)
    if n <= 0:
        raise ValueError(f"an interval needs n > 0 samples, not n = {n}")
    if not 0 <= k <= n:
        raise ValueError(f"k must lie in 0..n, not k = {k} with n = {n}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    tail = (1 - level) / 2
    return _lower(k, n, tail), 1 - _lower(n - k, n, tail)


def lower_limit(k: int, n: int, alpha: float) -> float:
    """The exact one-sided lower limit of a share (Clopper-Pearson, 1934): the share lies below it with probability at
    most ``alpha``, from k successes in n trials.

    Raises ValueError unless n > 0, 0 <= k <= n, both are whole, and 0 < alpha < 1.
    """
    k, n = _whole("k", k), _whole("n", n)
    if n <= 0 or not 0 <= k <= n:
        raise ValueError(f"a limit needs n > 0 samples and k in 0..n, not k = {k} with n = {n}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    return _lower(k, n, alpha)


def share(k: int, n: int) -> dict[str, float]:
    """k of n as {"value", "low", "high", "k", "n"}, with the 95 % interval. Raises as `interval`."""
    low, high = interval(k, n)
    k, n = int(k), int(n)
    return {"value": k / n, "low": low, "high": high, "k": k, "n": n}


def percent(share: Mapping[str, Any]) -> str:
    """A share for display: "98.2 % [96.6, 99.2]"."""
    return f"{100 * share['value']:.1f} % [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"


def _lower(k: int, n: int, tail: float) -> float:
    # betaincinv is nan at k = 0
    if k == 0:
        return 0.0
    from scipy.special import betaincinv

    return float(betaincinv(k, n - k + 1, tail))


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be an integer, not {value!r}") from None


# ---- one sample --------------------------------------------------------------------------------------------


def t_interval(
    values: Sequence[float],
    *,
    level: float = 0.95,
    resolution: float = 0.0,
    within: tuple[float, float] = (-math.inf, math.inf),
) -> Estimate:
    """The mean of two or more values with Student's t-interval, which is exact for normal values.

    ``resolution`` is the granularity of the values, such as 1 / n for a share of n samples, and a lower limit of the
    standard deviation: counts that agree by chance would give an interval of zero width. The interval is clipped to
    ``within``, the range of the mean. Raises ValueError for fewer than two values.
    """
    if len(values) < 2:
        raise ValueError(f"a t-interval needs two values or more, got {len(values)}")
    mean, spread = statistics.fmean(values), max(statistics.stdev(values), resolution)
    half = t_quantile(len(values) - 1, level) * spread / math.sqrt(len(values))
    return Estimate(mean, max(mean - half, within[0]), min(mean + half, within[1]))


def t_quantile(df: float, level: float = 0.95) -> float:
    """Half the width, in standard errors, of a two-sided t-interval with ``df`` degrees of freedom (t quantile)."""
    from scipy.special import stdtrit

    return float(stdtrit(df, (1 + level) / 2))


def bounded_mean(values: Sequence[float], *, level: float = 0.95) -> Estimate:
    """The mean of values in [0, 1], one per sample, with its interval over other samples, in [0, 1].

    At each end the wider one of the t-interval and of what an `unseen` kind of samples would make of the mean if all of
    its values were 0, or 1: equal values do not give an error of 0, and for outcomes that are all 0 or all 1 the
    interval is that of a share. ValueError without values, and for a value outside [0, 1].
    """
    n = len(values)
    if not n or not all(0 <= v <= 1 for v in values):
        raise ValueError(f"a mean of shares needs one value or more, all in [0, 1], got {n} values")
    mean, rare = math.fsum(values) / n, unseen(n, level=level)
    half = t_quantile(n - 1, level) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else 0.0
    low, high = min(mean - half, mean * (1 - rare)), max(mean + half, mean + rare * (1 - mean))
    return Estimate(mean, max(0.0, low), min(1.0, high))


def unseen(n: int, *, level: float = 0.95) -> float:
    """The largest share of a kind of samples of which n samples contain none with a probability of (1 - level)/2: the
    upper limit of `interval` for none of n."""
    return 1 - math.pow((1 - level) / 2, 1 / n)


# ---- paired samples ----------------------------------------------------------------------------------------


def sign_test(more: int, fewer: int) -> float:
    """P(at least ``more`` heads in more + fewer tosses of a fair coin): the exact one-sided sign test of paired
    outcomes, from the pairs that differ."""
    n = more + fewer
    found: float = sum(math.comb(n, k) for k in range(more, n + 1)) / 2**n
    return found


def mcnemar(one: int, other: int) -> float:
    """The exact two-sided p-value of McNemar's test (1947): of the pairs that differ, ``one`` favour the first side and
    ``other`` the second; pairs that agree do not count."""
    return min(1.0, 2 * sign_test(max(one, other), min(one, other)))


def image_error(differences: Sequence[float]) -> float:
    """Standard error of the mean difference over images, each in [-1, 1]: one network's outcome (0 or 1) minus the
    other's, averaged over the seeds.

    One image per side is added, as Bonett and Price (2012) do for one pair of networks, so that equal outcomes do not
    give an error of 0. ValueError without images.
    """
    n = len(differences)
    if not n:
        raise ValueError("a difference over images needs one image or more")
    mean = sum(differences) / (n + 2)
    return math.sqrt((((sum(d * d for d in differences) + 2) / (n + 2)) - mean**2) / (n + 2))


def paired(
    a: Sequence[float], b: Sequence[float], n: int, outcomes: tuple[Sequence[str], Sequence[str]] | None = None
) -> Estimate:
    """The difference of two accuracies, ``a`` minus ``b``, of networks that are paired by seed on the same n images.

    ``a``, ``b``: a share of the n images per seed, in the same order; ``outcomes``: per side and seed one character per
    image, "1" or "0". With outcomes the interval covers other images too: half its width is the root of the sum of
    squares of the half-widths of the t-intervals over the seeds and over the images, which counts their interaction
    twice and is therefore conservative. Without them it covers other trainings on these images. With one seed it covers
    other images for these two networks, and needs the outcomes. Raises ValueError for data that determine no interval,
    and if the sides do not match.
    """
    if len(a) != len(b) or not len(a):
        raise ValueError(f"paired figures need one of each side for every seed, got {len(a)} and {len(b)}")
    if len(a) == 1 and outcomes is None:
        raise ValueError("one pair of networks without outcomes by image has no interval")
    gaps = [x - y for x, y in zip(a, b)]
    mean, squares = statistics.fmean(gaps), 0.0
    if len(gaps) > 1:
        squares += (t_interval(gaps, resolution=1 / n).high - mean) ** 2
    if outcomes is not None:
        each = by_image(*outcomes)
        squares += (t_quantile(len(each) + 1) * image_error(each)) ** 2
    half = math.sqrt(squares)
    # Shares of images differ by 1 at most.
    return Estimate(mean, max(-1.0, mean - half), min(1.0, mean + half))


def by_image(a: Sequence[str], b: Sequence[str]) -> list[float]:
    """Per image the mean over the seeds of the outcome of ``a`` minus that of ``b``; one "1"/"0" string per seed.
    ValueError if lengths differ."""
    if len(a) != len(b) or len({len(text) for text in (*a, *b)}) != 1:
        raise ValueError("outcomes by image need the same seeds and the same images on both sides")
    return [sum((p > q) - (p < q) for p, q in zip(one, other)) / len(a) for one, other in zip(zip(*a), zip(*b))]


def mcnemar_by_image(a: Sequence[str], b: Sequence[str]) -> float:
    """`mcnemar` over images, each of which favours the side that is correct on it for more of the seeds; arguments and
    ValueError as `by_image`."""
    gaps = by_image(a, b)
    return mcnemar(sum(g > 0 for g in gaps), sum(g < 0 for g in gaps))


# ---- two samples -------------------------------------------------------------------------------------------


def extremes(a: Sequence[float], b: Sequence[float], *, level: float = 0.9) -> tuple[float, float]:
    """The smallest and the largest difference between a value of ``a`` and one of ``b``: the exact rank-based interval
    of a shift between the two (Hodges and Lehmann 1963), which is robust to outliers.

    The shift lies outside with the probability that all values of one sample exceed all of the other, 2 / C(m + n, m):
    one in ten for three of each. Infinite if that is more than 1 - ``level``.
    """
    if 2 / math.comb(len(a) + len(b), len(a)) > 1 - level + 1e-12:
        return -math.inf, math.inf
    return min(a) - max(b), max(a) - min(b)


def ratio(a: Sequence[float], b: Sequence[float], *, level: float = 0.95) -> Estimate:
    """The geometric mean of a_i / b_i over paired rounds, with the t-interval of the logarithms. ValueError unless all
    are positive and there are at least two rounds."""
    if len(a) != len(b) or min(*a, *b) <= 0:
        raise ValueError("a ratio needs as many positive values on both sides")
    found = t_interval([math.log(x / y) for x, y in zip(a, b)], level=level)
    return Estimate(*(math.exp(v) for v in (found.value, found.low, found.high)))


def mean_of_ratios(
    a: Sequence[Sequence[float]], b: Sequence[Sequence[float]], *, level: float = 0.95
) -> Estimate | None:
    """The mean over rows of sum(a_row) / sum(b_row), with the interval over columns, which are the samples.

    Rows of ``b`` that sum to 0 are omitted; None if no row remains. At each end the interval is the wider one of two:
    that of the delta method, in which each sample contributes its share in the numerators minus that in the
    denominators, and of what an `unseen` kind of samples would make of the ratios if it occurred in the numerators
    alone, or in the denominators alone, with the mean of a row's entries above 0. So equal samples do not give an error
    of 0. ValueError unless both have the same shape, with at least two samples, and no negative entry.
    """
    top, bottom = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    if top.shape != bottom.shape or top.ndim != 2 or top.shape[1] < 2:
        raise ValueError(f"a mean of ratios needs two tables (rows, samples) alike, got {top.shape} and {bottom.shape}")
    if not (top >= 0).all() or not (bottom >= 0).all():
        raise ValueError("a mean of ratios needs entries of at least 0")
    known = bottom.sum(1) > 0
    if not known.any():
        return None
    top, bottom, n = top[known], bottom[known], top.shape[1]
    ratios, each = top.sum(1) / bottom.sum(1), bottom.mean(1)
    moves = ((top - ratios[:, None] * bottom) / each[:, None]).mean(0)
    value, half = float(ratios.mean()), t_quantile(n - 1, level) * float(moves.std(ddof=1)) / math.sqrt(n)
    rare, both = unseen(n, level=level), np.hstack([top, bottom])
    more = rare * both.sum(1) / (both > 0).sum(1) / ((1 - rare) * each)
    low, high = float((ratios / (1 + more)).mean()), float((ratios + more).mean())
    return Estimate(value, max(0.0, min(value - half, low)), max(value + half, high))


# ---- growth ------------------------------------------------------------------------------------------------

_EXPONENTS = np.arange(0.2, 3.0025, 0.005)
_FIXED = np.concatenate([[0.0], np.geomspace(1e-3, 1e4, 300)])


def exponent(steps: Sequence[float], rounds: Sequence[Sequence[float]], *, level: float = 0.95) -> Estimate:
    """The exponent b of a cost a + c K^b, a >= 0, with its interval.

    ``steps``: K, at least four different values; ``rounds``: at least two rounds with a cost at every K. The overall
    speed of a round is removed: the mean of its logarithms is subtracted. The curve is fitted to the means over the
    rounds by least squares, and the interval contains every b whose best fit is within the scatter of the rounds
    (profile, F-test with one degree of freedom); if the curve itself deviates from the means by more than that scatter,
    the deviation replaces it. b is searched from 0.2 to 3 in steps of 0.005. Raises ValueError for fewer steps or
    rounds, and for costs that are not positive.
    """
    costs = np.asarray(rounds, dtype=float)
    if costs.ndim != 2 or costs.shape[0] < 2 or costs.shape[1] != len(steps) or len(set(steps)) < 4:
        raise ValueError("an exponent needs two rounds or more of a cost at four different steps or more")
    if not (costs > 0).all() or min(steps) <= 0:
        raise ValueError("an exponent needs positive steps and costs")
    n, k = costs.shape
    logs = np.log(costs)
    logs -= logs.mean(1, keepdims=True)
    means, df = logs.mean(0), (n - 1) * (k - 1)
    noise = float(((logs - means) ** 2).sum()) / df
    misfit = n * ((means - _curves(tuple(steps))) ** 2).sum(-1).min(1)
    least = float(misfit.min())
    allowed = t_quantile(df, level) ** 2 * max(noise, least / (k - 3))
    fitting = _EXPONENTS[misfit - least <= allowed]
    return Estimate(float(_EXPONENTS[misfit.argmin()]), float(fitting[0]), float(fitting[-1]))


@functools.lru_cache(maxsize=4)
def _curves(steps: tuple[float, ...]) -> np.ndarray:
    """log(a + K^b) minus its mean over K, for every exponent b and fixed cost a: (exponents, fixed costs, K)."""
    curves: np.ndarray = np.log(_FIXED[None, :, None] + np.array(steps, dtype=float) ** _EXPONENTS[:, None, None])
    curves -= curves.mean(-1, keepdims=True)
    return curves
