"""Intervals and tests against closed forms, enumeration, scipy, and their coverage in simulations."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats as reference

from atent import stats
from atent.stats import Estimate, inside


def test_where_an_interval_lies():
    assert inside(Estimate(0.0, -0.01, 0.01), -0.02, 0.02) is True
    assert inside(Estimate(0.03, 0.021, 0.04), -0.02, 0.02) is False
    assert inside(Estimate(-0.03, -0.04, -0.021), -0.02, 0.02) is False
    # Wide intervals decide nothing, whether or not they hold the margin.
    assert inside(Estimate(0.0, -0.5, 0.5), -0.02, 0.02) is None
    assert inside(Estimate(0.015, 0.005, 0.025), -0.02, 0.02) is None
    # An end on the bound is neither.
    assert inside(Estimate(0.01, 0.0, 0.02), 0.0, math.inf) is None
    assert inside(Estimate(-0.01, -0.02, 0.0), 0.0, math.inf) is None


def test_the_t_interval_is_students():
    values = [0.3, 0.5, 0.4, 0.9]
    found = stats.t_interval(values)
    low, high = reference.t.interval(0.95, 3, np.mean(values), reference.sem(values))
    assert (found.value, found.low, found.high) == pytest.approx((0.525, low, high), rel=1e-12)
    # Counts of 1,000 images that happen to agree: t(2) x 0.001 / sqrt(3).
    found = stats.t_interval([0.7, 0.7, 0.7], resolution=1e-3)
    assert found.high - 0.7 == pytest.approx(4.302652729911275e-3 / math.sqrt(3), rel=1e-9)
    # Wider than what a share can be: 0.4 +- 0.64.
    assert stats.t_interval([0, 0, 0.1, 0.9, 1], within=(0, 1)) == stats.Estimate(pytest.approx(0.4), 0, 1)
    with pytest.raises(ValueError, match="two values"):
        stats.t_interval([0.5])


def test_the_sign_test_is_the_binomial_one():
    for more, fewer in itertools.product(range(12), repeat=2):
        expected = reference.binomtest(more, more + fewer, 0.5, alternative="greater").pvalue if more + fewer else 1
        assert stats.sign_test(more, fewer) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_by_enumeration():
    """Of all assignments of the pairs that differ to the two sides, the share that is at least as uneven."""
    for n in range(10):
        sums = [sum(signs) for signs in itertools.product((1, -1), repeat=n)]
        for one in range(n + 1):
            gap = abs(2 * one - n)
            assert stats.mcnemar(one, n - one) == sum(abs(s) >= gap for s in sums) / len(sums)


def test_the_error_over_images_is_bonett_and_prices():
    """One pair of networks: p12 = (b + 1) / (n + 2), p21 = (c + 1) / (n + 2), by their formula."""
    for b, c, n in ((0, 0, 50), (7, 2, 40), (30, 30, 1000)):
        p, q = (b + 1) / (n + 2), (c + 1) / (n + 2)
        expected = math.sqrt((p + q - (p - q) ** 2) / (n + 2))
        assert stats.image_error([1.0] * b + [-1.0] * c + [0.0] * (n - b - c)) == pytest.approx(expected, rel=1e-12)


def test_outcomes_are_paired_image_by_image():
    assert stats.by_image(["1100", "1000"], ["1010", "0000"]) == [0.5, 0.5, -0.5, 0.0]
    for sides in ((["10"], ["1"]), (["10", "11"], ["10"])):
        with pytest.raises(ValueError, match="same"):
            stats.by_image(*sides)


def test_pairing_sees_what_two_intervals_do_not():
    """Seeds that differ by far more than the sides do: each pair is one point apart."""
    found = stats.paired([0.712, 0.762, 0.662], [0.702, 0.751, 0.653], 1000)
    assert found.value == pytest.approx(0.01)
    assert 0 < found.low < 0.01 < found.high < 0.02
    # One pair of networks with outcomes is an interval over the images; without, there is none.
    one = stats.paired([0.5], [0.25], 4, (["1100"], ["1000"]))
    half = reference.t.ppf(0.975, 5) * stats.image_error([0, 1, 0, 0])
    assert (one.low, one.high) == pytest.approx((0.25 - half, 0.25 + half))
    # Gaps that agree by chance are known to one image only: t(1) x 0.01 / sqrt(2).
    # Of one image the difference of two shares is known no better than to lie where such differences do.
    alone = stats.paired([1.0], [0.0], 1, (["1"], ["0"]))
    assert (alone.value, alone.high) == (1.0, 1.0)
    assert -1 <= alone.low < 1
    equal = stats.paired([0.5, 0.6], [0.4, 0.5], 100)
    assert equal.high - 0.1 == pytest.approx(reference.t.ppf(0.975, 1) * 0.01 / math.sqrt(2))
    with pytest.raises(ValueError, match="outcomes by image"):
        stats.paired([0.5], [0.25], 4)
    with pytest.raises(ValueError, match="of each side"):
        stats.paired([0.5, 0.6], [0.25], 4)


def planted(rng, gap, seeds=5, images=300, spread=0.02):
    """Outcomes of two methods on images of unlike difficulty, ``gap`` apart on average over seeds and images."""
    hard = 0.2 + 0.6 * rng.random(images)
    mean = hard + np.array([[[gap / 2]], [[-gap / 2]]]) + rng.normal(0, spread, (2, seeds, 1))
    return (rng.random((2, seeds, images)) < mean).astype(int)


def test_paired_intervals_cover_and_equivalence_errs_at_its_level():
    """300 comparisons of methods without a difference, trainings and images drawn anew: the interval misses 0 at most
    as often as 5 % allows (28 of 300 happen with 1e-3). Methods that differ by the margin itself pass for equivalent at
    most at 2.5 % (17 of 300 happen with 2e-3), and those without a difference pass mostly."""
    rng = np.random.default_rng(0)
    missed, passed = 0, {0.0: 0, 0.1: 0}
    for _ in range(300):
        for gap in passed:
            bits = planted(rng, gap)
            found = stats.paired(*bits.mean(2), 300, tuple(["".join(map(str, row)) for row in side] for side in bits))
            passed[gap] += inside(found, -0.1, 0.1) is True
            missed += not gap and not found.low <= 0 <= found.high
    assert missed < 28
    assert passed[0.1] < 17
    assert passed[0.0] > 150


def test_equivalence_is_the_two_one_sided_tests():
    """Both one-sided t-tests against the margin reject at 2.5 % exactly where the interval lies within it."""
    rng = np.random.default_rng(1)
    seen = set()
    for _ in range(200):
        gaps = rng.normal(0.005, 0.01, 5)
        above = reference.ttest_1samp(gaps, -0.02, alternative="greater").pvalue
        below = reference.ttest_1samp(gaps, 0.02, alternative="less").pvalue
        found = inside(stats.t_interval(gaps), -0.02, 0.02)
        assert (found is True) == (max(above, below) < 0.025)
        seen.add(found)
    assert {True, None} <= seen


def test_extremes_cover_as_often_as_the_ranks_say():
    """By enumeration of the orders of six values: the shift 0 lies outside in 2 of C(6, 3) = 20."""
    outside = 0
    for places in itertools.combinations(range(6), 3):
        low, high = stats.extremes(places, [i for i in range(6) if i not in places])
        outside += not low <= 0 <= high
    assert outside == 2
    # Two of each are too few for 90 %, three for 95 %.
    assert stats.extremes([1, 2], [5, 6]) == (-math.inf, math.inf)
    assert stats.extremes([1, 2, 3], [5, 6, 7], level=0.95) == (-math.inf, math.inf)
    assert stats.extremes([1, 2, 3, 4], [5, 6, 7, 8], level=0.95) == (-7, -1)


def test_a_ratio_is_paired_by_round():
    """Rounds that are slow as a whole cancel."""
    slow = [1.0, 3.0, 0.5, 2.0]
    found = stats.ratio([2 * s * e for s, e in zip(slow, (1.01, 0.99, 1.0, 1.0))], slow)
    assert 1.9 < found.low < found.value < found.high < 2.1
    assert found.value == pytest.approx(2 * (1.01 * 0.99) ** 0.25)
    for sides in (([1.0, 2.0], [1.0]), ([1.0, 0.0], [1.0, 1.0])):
        with pytest.raises(ValueError, match="positive"):
            stats.ratio(*sides)


def test_a_mean_of_shares_is_students_or_that_of_a_share():
    """Student's where the values differ; of equal outcomes Clopper and Pearson's, which no value changes by much."""
    values = [0.2, 0.25, 0.9, 1.0, 0.4] * 4
    low, high = reference.t.interval(0.9, 19, np.mean(values), reference.sem(values))
    assert stats.bounded_mean(values, level=0.9) == Estimate(*map(pytest.approx, (0.55, low, high)))
    for n in (1, 2, 10, 1000):
        for k in (0, n):
            found = stats.bounded_mean([k / n] * n)
            assert (found.low, found.high) == pytest.approx(stats.interval(k, n), abs=1e-12)
    found = stats.bounded_mean([0.25] * 40)
    rare = 1 - 0.025 ** (1 / 40)
    assert (found.low, found.high) == pytest.approx((0.25 * (1 - rare), 0.25 + 0.75 * rare))
    # 0.03 +- 0.05 and the like are cut to what a mean of shares can be.
    assert stats.bounded_mean([0.0] * 9 + [0.3]).low == 0
    assert stats.bounded_mean([1.0] * 9 + [0.7]).high == 1
    for bad in ([], [1.1], [math.nan]):
        with pytest.raises(ValueError, match=r"in \[0, 1\]"):
            stats.bounded_mean(bad)


@pytest.mark.parametrize(("n", "p"), [(20, 0.1), (100, 0.01), (100, 0.03), (1000, 0.002), (100, 0.5), (100, 0.99)])
def test_means_of_shares_cover_rare_values(n, p):
    """The share of samples whose interval contains the mean, summed over the binomial numbers of 1 among n values."""
    covered = 0.0
    for k in range(n + 1):
        found = stats.bounded_mean([1.0] * k + [0.0] * (n - k))
        covered += reference.binom.pmf(k, n, p) * (found.low <= p <= found.high)
    assert covered >= 0.93


def test_a_mean_of_ratios_has_the_error_of_the_infinitesimal_jackknife():
    """The influence of a sample is the derivative by its weight, here a difference quotient."""
    rng = np.random.default_rng(3)
    top, bottom = rng.integers(0, 6, (3, 40)), rng.integers(0, 6, (3, 40))
    bottom[1] = 0  # a row without a ratio

    def value(weights):
        return np.mean([(weights * top[i]).sum() / (weights * bottom[i]).sum() for i in (0, 2)])

    found = stats.mean_of_ratios(top, bottom)
    assert found.value == pytest.approx(value(np.ones(40)), rel=1e-12)
    steps = 1e-6 * np.eye(40)
    influence = 40 * np.array([(value(1 + s) - value(1 - s)) / 2e-6 for s in steps])
    half = reference.t.ppf(0.975, 39) * influence.std(ddof=1) / math.sqrt(40)
    # The quotient's error is of the order of 1e-16 / 1e-6.
    assert (found.value - found.low, found.high - found.value) == pytest.approx((half, half), rel=1e-6)
    assert stats.mean_of_ratios(top, 0 * bottom) is None
    for bad in (([[6, -1]], [[1, 1]]), ([[0, 1]], [[1, -1]]), ([[0, 0]], [[1, math.nan]])):
        with pytest.raises(ValueError, match="at least 0"):
            stats.mean_of_ratios(*bad)


def test_equal_samples_leave_a_mean_of_ratios_uncertain():
    """No error in ten images says little of other images; neither do the same errors on both sides."""
    half = [2] * 5 + [0] * 5
    none, same = stats.mean_of_ratios([[0] * 10], [half]), stats.mean_of_ratios([half], [half])
    every = stats.mean_of_ratios([[1] * 10], [[1] * 10])
    # A share of errors that ten images lack with a probability of 2.5 %, against one of a half in the others.
    rare = 1 - 0.025**0.1
    more = rare / ((1 - rare) * 0.5)
    assert none == Estimate(0, 0, pytest.approx(more))
    assert same == Estimate(1, pytest.approx(1 / (1 + more)), pytest.approx(1 + more))
    assert every == Estimate(1, pytest.approx(1 - rare), pytest.approx(1 / (1 - rare)))


# ---- growth


K = (2, 5, 10, 15, 20)


def costs(rng, b, fixed, rounds=5, noise=0.03):
    """Rounds of unlike speed, with noise in each cost."""
    means = fixed + np.array(K, dtype=float) ** b
    return means * np.exp(rng.normal(0, 0.3, (rounds, 1)) + rng.normal(0, noise, (rounds, len(K))))


@pytest.mark.parametrize("b", [0.7, 1.0, 1.1, 1.3, 2.0])
@pytest.mark.parametrize("fixed", [0.0, 0.8])
def test_exact_powers_are_found(b, fixed):
    found = stats.exponent(K, costs(np.random.default_rng(0), b, fixed, noise=0.0))
    # The grid of b has steps of 0.005, that of the fixed cost of 5.5 %.
    assert found.value == pytest.approx(b, abs=0.02)
    assert found.low <= b + 0.01
    assert found.high >= b - 0.01


def test_a_power_that_a_straight_line_fits_is_distinguished_from_a_line():
    """K^1.3 has R^2 above 0.99 against a straight line; its exponent is not 1."""
    rng = np.random.default_rng(0)
    bent, straight = (costs(rng, b, a) for b, a in ((1.3, 0.0), (1.0, 0.8)))
    assert np.corrcoef(K, bent.mean(0))[0, 1] ** 2 > 0.99
    assert inside(stats.exponent(K, bent), 0.9, 1.1) is False
    assert inside(stats.exponent(K, straight), 0.9, 1.1) is True
    # Noise that hides the exponent hides the verdict.
    assert inside(stats.exponent(K, costs(rng, 1.0, 0.8, noise=0.3)), 0.9, 1.1) is None


def test_exponents_are_covered():
    """60 experiments of each kind: 95 % intervals miss at most 8 (9 or more happen with 3e-3)."""
    rng = np.random.default_rng(2)
    for b, fixed in ((1.0, 0.8), (1.3, 0.3)):
        found = [stats.exponent(K, costs(rng, b, fixed)) for _ in range(60)]
        assert sum(not f.low <= b <= f.high for f in found) <= 8


def test_exponents_need_data():
    for steps, rounds in (((1, 2, 3), [[1, 2, 3]] * 2), (K, [[1, 2, 3, 4, 5]]), (K, [[1, 2, 3]] * 2)):
        with pytest.raises(ValueError, match="two rounds or more"):
            stats.exponent(steps, rounds)
    with pytest.raises(ValueError, match="positive"):
        stats.exponent(K, [[1, 2, 3, 4, 0]] * 2)
