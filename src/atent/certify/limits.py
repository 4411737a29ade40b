"""What a number of noise samples can certify: the largest radius, the samples that a radius needs, and checks."""

from __future__ import annotations

import math

from atent.checks import check_number
from atent.stats import lower_limit
from atent.threat import Threat
from atent.threat import radius as as_radius


def largest_radius(n: int, alpha: float, sigma: float) -> float:
    """The largest l2 radius that n noise samples certify: the one where all agree, sigma * Phi^-1(alpha^(1/n)).

    Parameters
    ----------
    n
        Noise samples, 1 or more.
    alpha
        Probability of a wrong certificate, in (0, 1).
    sigma
        Standard deviation of the noise, in pixel units, above 0.

    Returns
    -------
    float
        In pixel units; 0 where n noise samples always abstain.

    Raises
    ------
    ValueError
        In one line, for a number outside its range.

    Examples
    --------
    >>> from atent.certify import largest_radius
    >>> round(largest_radius(100_000, alpha=0.001, sigma=0.25), 3)
    0.953
    >>> largest_radius(5, alpha=0.001, sigma=0.25)
    0.0
    """
    from scipy.special import ndtri

    check_number("n", n, 1, whole=True)
    check_alpha(alpha)
    check_number("sigma", sigma, 0, above=True)
    low = lower_limit(n, n, alpha)
    return float(sigma * ndtri(low)) if low > 0.5 else 0.0


def samples_needed(radius: float | str, sigma: float, alpha: float) -> int:
    """The smallest number of noise samples that, all agreeing, certify an l2 radius.

    Parameters
    ----------
    radius
        l2 radius in pixel units, a number or a fraction such as "128/255"; 0: the samples do not abstain.
    sigma
        Standard deviation of the noise, in pixel units, above 0.
    alpha
        Probability of a wrong certificate, in (0, 1).

    Returns
    -------
    int
        The smallest n with ``largest_radius(n, alpha, sigma) >= radius``.

    Raises
    ------
    ValueError
        In one line, for a number outside its range, and for a radius above 6 sigma, which takes billions of noise
        samples: there float64 no longer separates n from n + 1.

    Examples
    --------
    >>> from atent.certify import samples_needed
    >>> samples_needed(0, sigma=0.25, alpha=0.001), samples_needed(0.5, sigma=0.25, alpha=0.001)
    (10, 301)
    """
    from scipy.special import log_ndtr

    goal = as_radius(radius, "radius")
    check_alpha(alpha)
    check_number("sigma", sigma, 0, above=True)
    if goal > 6 * sigma:
        raise ValueError(
            f"radius {goal:g} is {goal / sigma:.3g} sigma, above the 6 sigma that noise samples can certify: give sigma"
            f" >= {goal / 4:.2g}"
        )
    n = max(1, math.floor(math.log(alpha) / float(log_ndtr(goal / sigma))) - 1)
    while largest_radius(n, alpha, sigma) < goal or largest_radius(n, alpha, sigma) == 0:
        n += max(1, n // 10**8)
    return n


def linf_radius(radius: float, dim: int) -> float:
    """The linf radius of the largest cube in an l2 ball: r / sqrt(d).

    Parameters
    ----------
    radius
        l2 radius r.
    dim
        Number of values d of a sample.

    Returns
    -------
    float
        The radius within which a certificate in l2 is one in linf.

    Raises
    ------
    ValueError
        In one line, for a number outside its range.

    Examples
    --------
    >>> from atent.certify import linf_radius
    >>> linf_radius(1.0, dim=784) == 1 / 28
    True
    """
    return as_radius(radius, "radius") / math.sqrt(check_number("dim", dim, 1, whole=True))


def check_sampling(n0: int, n: int, alpha: float, sigma: float) -> None:
    """ValueError, with the arithmetic, for numbers of noise samples that CERTIFY cannot use."""
    check_number("n0", n0, 1, whole=True)
    check_number("n", n, 1, whole=True)
    check_alpha(alpha)
    if n < n0:
        raise ValueError(f"n must be at least n0, got n = {n} and n0 = {n0}: give a larger n or a smaller n0")
    if largest_radius(n, alpha, sigma) == 0:
        raise ValueError(
            f"n = {n} noise samples always abstain at alpha {alpha:g}: where all agree they show a share of"
            f" alpha^(1/n) = {alpha ** (1 / n):.4f}, not above 1/2; give n >= {samples_needed(0, sigma, alpha)}"
        )


def check_radius(radius: float | str | Threat, n: int, alpha: float, sigma: float, *, dim: int | None = None) -> float:
    """The l2 radius as a number; ValueError, with the arithmetic, where n noise samples at sigma cannot certify it."""
    if isinstance(radius, Threat):
        if radius.norm not in ("linf", "l2"):
            raise ValueError(f"Gaussian smoothing certifies in l2, got a threat in {radius.norm}: give an l2 radius")
        if radius.norm != "l2":
            size = "eps * sqrt(d)" if dim is None else f"{float(radius.eps) * math.sqrt(dim):.4g} (eps * sqrt({dim}))"
            raise ValueError(
                f"Gaussian smoothing certifies in l2, got a radius in {radius.norm}: give the l2 radius {size},"
                " whose ball contains the cube"
            )
        radius = float(radius.eps)
    goal = as_radius(radius, "radius")
    most = largest_radius(n, alpha, sigma)
    if goal > most:
        fix = "give a larger sigma"
        if goal <= 6 * sigma:
            fix = f"give n >= {samples_needed(goal, sigma, alpha):,}, or a larger sigma"
        raise ValueError(
            f"radius {goal:g} cannot be certified: n = {n:,} noise samples at sigma {sigma:g} and alpha {alpha:g} reach"
            f" {most:.4g} at most, where all agree; {fix}"
        )
    return goal


def check_alpha(alpha: float) -> None:
    check_number("alpha", alpha, 0, above=True)
    if alpha >= 1:
        raise ValueError(f"alpha must lie in (0, 1), got {alpha}: it is the probability of a wrong certificate")
