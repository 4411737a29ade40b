"""Certification at one radius by a sequential test: error and power, samples, files and command."""

import itertools
import json
import re

import numpy as np
import pytest
import torch
from command_line import gaussian_run
from scipy import stats
from torch import nn

from atent.certify import ABSTAIN, Certificate, Sampling, Smoothed, certify_run, merge
from atent.certify.rows import Row, read_rows
from atent.certify.sequential import Plan, binomial, choose, decide, plan, threshold
from atent.certify.smoothing import _SELECTION
from atent.cli import main

SIGMA = 0.5


class Coin(nn.Module):
    """Class 1 where the first value is above 0: at x = m it has the share Phi(m / sigma) and the exact radius m."""

    def forward(self, x):
        return torch.stack([-x[:, 0], x[:, 0]], 1)


def trials(margin, count):
    return torch.full((count, 1), margin, dtype=torch.float64)


class Given:
    """Votes for given classes: (n, samples)."""

    def __init__(self, classes, of):
        self.x, self.of = torch.as_tensor(classes), of

    def count(self, rows, start, stop, *, first=0):
        return torch.stack([torch.bincount(self.x[row, start:stop], minlength=self.of) for row in rows])

    def check(self):
        pass


@pytest.mark.parametrize("n0", [1, 2, 5, 6])
def test_the_class_is_that_of_all_votes(n0):
    """By enumeration: half of the noise samples are enough only where the others could not change the class."""
    every = np.array(list(itertools.product(range(3), repeat=n0)))
    top, taken = choose(Given(every, 3), n0, 0)
    assert top.tolist() == [int(np.bincount(votes, minlength=3).argmax()) for votes in every]
    for votes, count in zip(every, taken):
        ranked = np.sort(np.bincount(votes[: n0 // 2 + 1], minlength=3))
        assert count == (n0 // 2 + 1 if ranked[-1] - ranked[-2] > n0 - n0 // 2 - 1 else n0)


def test_the_test_ends_at_the_first_analysis_that_decides():
    test = plan(0.8, 400, 0.01)
    rng = np.random.default_rng(0)
    shares = np.repeat([0.5, 0.7, 0.78, 0.82, 0.9, 0.99], 40)
    wins = (rng.random((len(shares), 400)) < shares[:, None]).astype(int)
    certified, taken = decide(Given(wins, 2), np.ones(len(shares), int), test)
    ends = set()
    for row, (sure, count) in enumerate(zip(certified, taken)):
        for analysis, most, least in zip(test.analyses, test.certify, test.abandon):
            failures = analysis - wins[row, :analysis].sum()
            if failures <= most or failures >= least or analysis == 400:
                break
        assert (bool(sure), int(count)) == (failures <= most, analysis)
        ends.add((bool(sure), int(count) < 400, failures in (most, least)))
    # Both decisions, early ones, and some on the edge of each.
    assert {(True, True, True), (False, True, True), (False, True, False)} <= ends


# ---- the error, exactly


def outcome(test: Plan, share: float, *, futility: bool = True):
    """P(certified) and the mean number of samples, one sample after the other: no window, no convolution."""
    reach = np.zeros(test.analyses[-1] + 2)
    reach[0], certified, samples, failures = 1.0, 0.0, 0.0, np.arange(test.analyses[-1] + 2)
    for number in range(1, test.analyses[-1] + 1):
        samples += reach.sum()
        reach[1:], reach[0] = share * reach[1:] + (1 - share) * reach[:-1], share * reach[0]
        if number in test.analyses:
            i = test.analyses.index(number)
            certified += reach[failures <= test.certify[i]].sum()
            reach[failures <= test.certify[i]] = 0
            if futility:
                reach[failures >= test.abandon[i]] = 0
    return certified, samples


CASES = [(0.5, 200, 0.05), (0.8413, 600, 0.001), (0.986, 1500, 0.01), (0.9, 66, 0.001)]


@pytest.mark.parametrize(("share", "n", "alpha"), CASES)
def test_the_error_is_alpha_in_total_for_every_share_up_to_the_threshold(share, n, alpha):
    test = plan(share, n, alpha)
    errors = [outcome(test, p, futility=False)[0] for p in (share, share - 0.02, share - 0.2)]
    assert errors[0] <= alpha
    assert errors[0] > errors[1] > errors[2]
    # Alpha is used, as far as integer numbers of failures allow.
    assert errors[0] >= 0.7 * alpha
    assert test.analyses[-1] == n
    assert sorted(set(test.analyses)) == list(test.analyses)
    assert sorted(test.certify) == list(test.certify)


@pytest.mark.parametrize(("share", "n", "alpha"), CASES[:3])
def test_futility_costs_two_per_cent_of_power_at_most_where_a_share_is_detectable(share, n, alpha):
    test = plan(share, n, alpha)
    for p in (test.detectable, (1 + test.detectable) / 2):
        found, samples = outcome(test, p)
        assert found >= 0.98
        assert samples < n
    # Low shares end early, and high ones are certified with few samples.
    assert outcome(test, share - 0.2)[1] < n / 3
    assert outcome(test, 1 - 1e-6)[1] < 2 * np.log(alpha) / np.log(share) + 1


def test_full_agreement_certifies_with_as_few_samples_as_without_looks():
    """alpha^(1/n) is the largest share that n samples certify; only the last analysis can."""
    n = 66  # 0.9^66 = 0.00096
    assert 0.9**n <= 0.001 < 0.9 ** (n - 1)
    test = plan(0.9, n, 0.001)
    assert (test.certify[-1], test.analyses[-1]) == (0, n)


@pytest.mark.parametrize(("n", "rate"), [(1, 0.3), (40, 0.01), (1000, 0.5), (3000, 0.0)])
def test_the_probabilities_are_binomial(n, rate):
    low, mass = binomial(n, rate, 1e-18)
    want = stats.binom.pmf(np.arange(low, low + len(mass)), n, rate)
    np.testing.assert_allclose(mass, want, rtol=1e-9, atol=1e-17)
    assert 1 - want.sum() < 1e-12


# ---- the error, on a network


@pytest.mark.parametrize("margin", [0.2, 0.5])
def test_false_certificates_are_at_most_alpha_on_coins_of_known_share(margin):
    """At the threshold itself, where errors are the most frequent, for the sequential test and for all n samples.

    Of 1,500 trials more than the bound are wrong with probability 1e-6 if the error is alpha.
    """
    count, n, alpha = 1500, 200, 0.05
    bound = stats.binom.ppf(1 - 1e-6, count, alpha)
    smoothed, x = Smoothed(Coin(), SIGMA), trials(margin, count)
    at = smoothed.certify_at(x, margin, n0=20, n=n, alpha=alpha, batch=20_000)
    assert (at.classes == 1).sum() <= bound
    exact = outcome(plan(threshold(margin, SIGMA), n, alpha), threshold(margin, SIGMA))[0]
    assert (at.classes == 1).sum() >= stats.binom.ppf(1e-6, count, 0.95 * exact)
    assert at.tested.double().mean() < 0.75 * n
    # All n samples: a radius beyond the margin is false.
    _, radii = smoothed.certify(x, n0=20, n=n, alpha=alpha, batch=20_000)
    assert (radii > margin).sum() <= bound


def test_far_coins_are_certified_with_few_samples_and_hopeless_ones_left():
    smoothed = Smoothed(Coin(), SIGMA)
    x = torch.cat([trials(m, 50) for m in (1.5, -1.5, 0.05)])
    at = smoothed.certify_at(x, 0.5, n=10_000)
    assert at.radius == 0.5
    assert (at.classes[:50] == 1).all()
    assert (at.classes[50:100] == 0).all()
    assert (at.classes[100:] == ABSTAIN).all()
    assert at.tested[:100].double().mean() < 100
    assert at.tested[100:].double().mean() < 200
    assert torch.equal(at.samples, at.chosen + at.tested)
    # Half of n0 decides where it leads by more than the rest.
    assert set(at.chosen.tolist()) == {51, 100}
    assert (at.chosen[100:] == 100).any()


# ---- the samples


def test_the_test_takes_the_first_samples_of_certify(conv_net, batch):
    """Against the votes of full prefixes: the choice, each analysis, and the number of samples."""
    x, _ = batch(12, torch.float32)
    ids = torch.arange(40, 52)
    smoothed, n0, n, alpha, goal = Smoothed(conv_net(torch.float32), SIGMA), 30, 400, 0.01, 0.2
    at = smoothed.certify_at(x, goal, n0, n, alpha, seed=3, ids=ids)
    top = smoothed.votes(x, n0, seed=3, ids=ids, first=_SELECTION).argmax(1)
    test = plan(threshold(goal, SIGMA), n, alpha)
    classes, tested = torch.full((12,), -2), torch.zeros(12, dtype=torch.int64)
    for analysis, certify, abandon in zip(test.analyses, test.certify, test.abandon, strict=True):
        failures = analysis - smoothed.votes(x, analysis, seed=3, ids=ids).gather(1, top[:, None])[:, 0]
        left = classes == -2
        tested[left] = analysis
        classes = torch.where(left & (failures <= certify), top, classes)
        classes = torch.where(left & (failures > certify) & (failures >= abandon), ABSTAIN, classes)
    assert torch.equal(at.classes, classes)
    assert torch.equal(at.tested, tested)
    assert len(tested.unique()) > 1


@pytest.mark.parametrize("size", [37, 100, 1000])
def test_decisions_do_not_depend_on_batch_order_or_shard(conv_net, batch, size):
    x, _ = batch(6, torch.float32)
    ids = torch.tensor([5, 9, 2**40, 0, 77, 3])
    smoothed = Smoothed(conv_net(torch.float32, norm=True), SIGMA)

    def decided(rows, **given):
        at = smoothed.certify_at(x[rows], 0.2, 30, 400, 0.01, seed=4, ids=ids[rows], **given)
        return torch.stack([at.classes, at.chosen, at.tested], 1)

    full = decided(slice(None))
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert torch.equal(decided(order, batch=size), full[order])
    assert torch.equal(torch.cat([decided(slice(i, i + 1)) for i in range(6)]), full)


def test_progress_counts_saved_samples_too():
    seen = []
    Smoothed(Coin(), SIGMA).certify_at(
        trials(1.5, 3), 0.2, n0=50, n=500, alpha=0.01, advance=lambda k, text: seen.append(k)
    )
    assert sum(seen) == 3 * 550


def test_what_cannot_be_certified_is_refused_in_one_line():
    smoothed, x = Smoothed(Coin(), 0.12), trials(1.0, 1)
    with pytest.raises(ValueError, match=r"0\.435 cannot be certified: n = 1,000 .* n >= 47,808"):
        smoothed.certify_at(x, 0.435, n=1000)
    with pytest.raises(ValueError, match="alpha must lie"):
        smoothed.certify_at(x, 0.1, alpha=1.0)
    with pytest.raises(ValueError, match="cannot be certified"):
        Sampling(0.12, n=1000, radius=0.435)

    class Broken(Coin):
        def forward(self, x):
            return super().forward(x) * float("nan")

    with pytest.raises(ValueError, match="NaN"):
        Smoothed(Broken(), 0.12).certify_at(x, 0.1)


@pytest.mark.parametrize(("shape", "size"), [((1, 8, 8), 200), ((1, 28, 28), 100), ((3, 32, 32), 100)])
def test_the_default_batch_on_the_cpu_fits_the_cache(shape, size):
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(len(x))
            return x.flatten(1)[:, :2]

    Smoothed(Spy(), SIGMA).votes(torch.zeros(2, *shape), 400)
    assert set(seen) == {size}


# ---- files


SAMPLING = Sampling(SIGMA, n0=20, n=300, alpha=0.01, seed=3, radius=0.2)


@pytest.fixture
def task(conv_net, batch):
    x, y = batch(11, torch.float32)
    return conv_net(torch.float32), x, y, torch.arange(100, 111)


def untimed(rows):
    return [row._replace(time=0.0) for row in rows]


def test_rows_record_their_samples_resume_and_merge(task, tmp_path):
    model, x, y, ids = task
    path = tmp_path / "c.csv"
    certify_run(model, x[:4], y[:4], SAMPLING, ids=ids[:4], path=path)
    kept = read_rows(path)
    found = certify_run(model, x, y, SAMPLING, ids=ids, path=path)
    assert list(found.rows[:4]) == kept
    assert read_rows(path) == list(found.rows)
    assert path.read_text().splitlines()[0].split("\t")[-2:] == ["samples", "image"]
    at = Smoothed(model, SIGMA).certify_at(x, 0.2, 20, 300, 0.01, seed=3, ids=ids)
    assert [row.predict for row in found.rows] == at.classes.tolist()
    assert [row.samples for row in found.rows] == at.samples.tolist()
    assert {row.radius for row in found.rows} <= {0.0, 0.2}
    parts = [tmp_path / f"{i}.csv" for i in range(3)]
    for i, part in enumerate(parts):
        certify_run(model, x, y, SAMPLING, ids=ids, path=part, shard=(i, 3))
    merged = merge(parts, 64, ids.tolist())
    assert untimed(merged.rows) == untimed(found.rows)
    assert merged.sampling == SAMPLING


def test_rows_of_all_samples_and_of_the_test_do_not_mix(task, tmp_path):
    model, x, y, ids = task
    path, fixed = tmp_path / "c.csv", Sampling(SIGMA, 20, 300, 0.01, seed=3)
    certify_run(model, x[:2], y[:2], fixed, ids=ids[:2], path=path)
    # A file of all samples has the columns and settings of earlier versions.
    assert "samples" not in path.read_text()
    made = json.loads(path.with_suffix(".json").read_text())["made"]
    assert (set(made), set(made["draws"])) == ({"draws", "about", "noise"}, {"sigma", "n0", "n", "alpha", "seed"})
    with pytest.raises(ValueError, match="choose another file") as error:
        certify_run(model, x, y, SAMPLING, ids=ids, path=path)
    assert "\n" not in str(error.value)

    class Other(Smoothed):
        pass

    with pytest.raises(ValueError, match="not for Other"):
        certify_run(model, x, y, SAMPLING, ids=ids, certifier=Other)


def test_the_summary_counts_right_wrong_and_abstained():
    rows = [(1, 1, 0.2, 60), (1, 0, 0.2, 70), (1, ABSTAIN, 0.0, 300), (0, 0, 0.2, 50)]
    made = tuple(Row(i, a, b, r, int(a == b), 2.0, a, b, k) for i, (a, b, r, k) in enumerate(rows))
    certificate = Certificate(made, SAMPLING, dim=64)
    found = certificate.to_json()
    (at,) = found["certified"]
    assert (at["radius"], at["linf_radius"], at["share"]["k"]) == (0.2, 0.025, 2)
    assert (found["certified_wrong"]["k"], found["abstained"]["k"], found["clean"]["k"]) == (1, 1, 4)
    assert (found["samples_mean"], found["samples_median"], found["samples_most"]) == (120, 60, 300)
    assert found["sampling"]["radius"] == 0.2
    with pytest.raises(ValueError, match=r"no curve over radii, the sequential test certifies at radius 0\.2 only"):
        certificate.radii()
    with pytest.raises(ValueError, match=r"radius 0\.1 was not tested"):
        certificate.certified(0.1)


# ---- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return gaussian_run(tmp_path_factory.mktemp("runs"))


def test_the_command_decides_one_radius(run, capsys, tmp_path):
    from atent.report import report

    def said(*args):
        status = main(["certify", str(run), "--n", "400", "--n0", "20", *args, "--quiet", "--device", "cpu"])
        out, err = capsys.readouterr()
        name = re.search(r"written: (\S*certificate\S*\.json)", out)
        return status, out, err, json.loads(open(name[1]).read()) if name else None

    table = tmp_path / "t.md"
    status, out, err, found = said("--limit", "9", "--radius", "0.125", "--table", str(table))
    assert status == 0, err
    assert "certified at l2 0.125" in out
    assert found["sampling"]["radius"] == 0.125
    assert found["samples_mean"] < 420
    assert sum(found[k]["k"] for k in ("certified_wrong", "abstained")) + found["certified"][0]["share"]["k"] == 9
    assert "sequential at 0.125" in table.read_text()
    # More images resume the same file; all samples, and several radii, have another.
    before = read_rows(run / "certificate.csv")
    assert said("--limit", "12", "--radius", "1/8")[3]["n"] == 12
    assert read_rows(run / "certificate.csv")[:9] == before
    fixed = said("--limit", "9", "--radius", "0.125", "--sequential", "False", "--table", str(table))[3]
    assert ("samples_mean" in fixed, "radius" in fixed["sampling"], "radius_mean" in fixed) == (False, False, True)
    several = said("--limit", "9", "--radius", "0.1", "0.125")[3]
    assert several["made"] == fixed["made"]
    assert "sequential test:" in report([run], images=0, progress=False)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--radius", "0.1", "--plot", "x.png"], "sequential test decides only one --radius: add --sequential False"),
        (["--radius", "0.1", "0.2", "--sequential", "True"], "needs one radius, got 0.1, 0.2"),
        (["--sequential", "True"], "needs one radius, got none"),
        (["--method", "crown", "--radius", "0.1", "--sequential", "True"], "no sequential test"),
    ],
)
def test_the_command_refuses_in_one_line(run, capsys, args, says):
    assert main(["certify", str(run), "--n", "300", *args, "--quiet"]) == 2
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert re.search(says, err)
