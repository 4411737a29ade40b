"""Randomised smoothing: coverage of intervals, known radii, invariance, files that resume, and refusals."""

import json
import math
import re
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from atent import Threat, plots
from atent.certify import ABSTAIN, Certificate, Sampling, Smoothed, certify_run, largest_radius, merge, samples_needed
from atent.certify.certificate import certified_network
from atent.certify.limits import linf_radius
from atent.certify.noise import Noise, address, device_seed
from atent.certify.rows import Row, read_rows
from atent.certify.smoothing import certificates, predictions
from atent.cli import main
from atent.experiments import certificate
from atent.experiments.certificate import certify_folder
from atent.experiments.certificate_lines import layout
from atent.folded import Folded
from atent.models import build
from atent.stats import interval

SIGMA = 0.5


class Half(nn.Module):
    """Class 1 where w . x > 0: under noise its probability is Phi(w . x / sigma), its exact radius |w . x|."""

    def __init__(self, dim):
        super().__init__()
        w = torch.randn(dim, generator=torch.Generator().manual_seed(1))
        self.w = nn.Parameter(w / w.norm())

    def forward(self, x):
        z = x @ self.w
        return torch.stack([-z, z], 1)

    def points(self, margins):
        """Points at the given signed distances from the boundary, elsewhere at random along it."""
        x = torch.randn(len(margins), len(self.w), generator=torch.Generator().manual_seed(2))
        w = self.w.detach()
        return x - (x @ w)[:, None] * w + margins[:, None] * w


# ---- coverage


def test_wrong_certificates_are_as_rare_as_alpha_promises():
    """One point, 5,000 trials: its true radius is known, and a valid bound at alpha exceeds it in alpha of them."""
    trials, alpha, margin = 5000, 0.05, 0.4
    model = Half(2)
    x = model.points(torch.tensor([margin])).expand(trials, 2).contiguous()
    classes, radii = Smoothed(model, SIGMA).certify(x, n0=20, n=100, alpha=alpha, batch=20_000)
    wrong = int(((classes == 0) | (radii > margin)).sum())
    assert wrong <= stats.binom.ppf(0.999, trials, alpha)
    # Nor is it conservative: the exact interval at n = 100 misses in 3 % to 5 % of the trials.
    assert wrong >= 0.02 * trials
    assert (classes == 1).double().mean() > 0.98


def test_the_radius_of_a_linear_model_is_never_exceeded_by_more_than_alpha_and_nearly_reached():
    n, alpha = 1000, 0.01
    model = Half(16)
    margins = torch.linspace(0.8, 2.0, 400) * SIGMA
    margins[::2] *= -1
    classes, radii = Smoothed(model, SIGMA).certify(model.points(margins), n0=50, n=n, alpha=alpha, batch=20_000)
    exact = margins.abs().double()
    wrong = (classes != (margins > 0).long()) | (radii > exact)
    assert int(wrong.sum()) <= stats.binom.ppf(0.999, len(margins), alpha)
    allowed = exact.clamp_max(largest_radius(n, alpha, SIGMA))
    assert (radii / allowed).median() >= 0.85


def test_an_attack_inside_the_radius_does_not_change_the_prediction(conv_net, batch):
    x, _ = batch(24, torch.float32)
    smoothed = Smoothed(conv_net(torch.float32), SIGMA)
    classes, radii = smoothed.certify(x, n0=50, n=1000, alpha=0.001)
    sure = (classes != ABSTAIN) & (radii > 0.1)
    assert int(sure.sum()) >= 8
    x, classes, radii = x[sure], classes[sure], radii[sure].float()

    def attacked(limit):
        rng, z = torch.Generator().manual_seed(3), x.clone()
        for _ in range(25):
            z.requires_grad_()
            copies = z.repeat_interleave(32, 0)
            noisy = copies + SIGMA * torch.randn(copies.shape, generator=rng)
            p = smoothed.model(noisy).softmax(1).unflatten(0, (len(z), 32)).mean(1)
            (grad,) = torch.autograd.grad(-p.gather(1, classes[:, None]).log().sum(), z)
            step = grad / grad.flatten(1).norm(dim=1).clamp_min(1e-12).view(-1, 1, 1, 1)
            d = z.detach() + 0.2 * limit.view(-1, 1, 1, 1) * step - x
            z = x + d * (limit / d.flatten(1).norm(dim=1)).clamp_max(1.0).view(-1, 1, 1, 1)
        return smoothed.predict(z.detach(), 2000, 0.001, seed=9)

    inside, far = attacked(0.999 * radii), attacked(6 * radii)
    assert int(((inside != classes) & (inside != ABSTAIN)).sum()) == 0
    assert int(((far != classes) & (far != ABSTAIN)).sum()) >= len(x) // 4


def test_certificates_and_predictions_are_those_of_the_paper():
    """Against a transcription with scipy.stats: the beta quantile, and the two-sided binomial test."""
    rng = np.random.default_rng(0)
    counts = rng.multinomial(300, [0.5, 0.4, 0.06, 0.04], size=60)
    counts[0], counts[1], counts[2] = (300, 0, 0, 0), (0, 0, 0, 300), (150, 150, 0, 0)
    chosen = rng.multinomial(20, [0.6, 0.3, 0.1, 0.0], size=60)
    chosen[1] = (0, 0, 0, 20)
    classes, radii = certificates(torch.tensor(chosen), torch.tensor(counts), 0.3, 0.02)
    voted = predictions(torch.tensor(counts), 0.02)
    seen = set()
    for i in range(60):
        top = int(np.argmax(chosen[i]))
        k = int(counts[i, top])
        low = float(stats.beta.ppf(0.02, k, 300 - k + 1)) if k else 0.0
        want = (top, 0.3 * stats.norm.ppf(low)) if low > 0.5 else (ABSTAIN, 0.0)
        assert int(classes[i]) == want[0]
        assert float(radii[i]) == pytest.approx(want[1], rel=1e-9, abs=1e-12)
        order = np.argsort(-counts[i], kind="stable")
        a, b = (int(counts[i, j]) for j in order[:2])
        test = stats.binomtest(a, a + b, 0.5).pvalue
        assert int(voted[i]) == (int(order[0]) if test <= 0.02 else ABSTAIN)
        seen |= {want[0] == ABSTAIN, test <= 0.02}
    assert seen == {True, False}
    assert (classes.dtype, radii.dtype) == (torch.int64, torch.float64)


def test_it_abstains_where_the_samples_do_not_decide():
    model = Half(3)
    x = model.points(torch.tensor([0.0, 3.0]))
    smoothed = Smoothed(model, SIGMA)
    classes, radii = smoothed.certify(x, n0=30, n=200)
    assert classes.tolist() == [ABSTAIN, 1]
    assert radii[0] == 0
    assert float(radii[1]) == pytest.approx(largest_radius(200, 0.001, SIGMA))
    assert smoothed.predict(x, 200).tolist() == [ABSTAIN, 1]


def test_the_choice_and_the_estimate_have_different_samples():
    """CERTIFY chooses the class by other noise samples: with the same ones the estimate would be biased upwards."""
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x.clone())
            return x

    Smoothed(Spy(), 1.0).two_votes(torch.zeros(1, 3), 100, 200)  # certify also tests the dependence on the batch
    first, *rest = seen
    rest = torch.cat(rest)
    assert len(first) == 100
    assert len(rest) == 200
    assert not any((row == rest).all(1).any() for row in first)


# ---- noise


def test_the_noise_is_gaussian_of_the_right_size_and_never_the_same():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x.clone())
            return x

    Smoothed(Spy(), 0.25).votes(torch.full((20, 8), 0.5), 1000, batch=700)
    z = (torch.cat(seen).double() - 0.5) / 0.25
    assert z.shape == (20_000, 8)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-3
    assert torch.corrcoef(z.T).triu(1).abs().max() < 0.04
    assert len(z.unique(dim=0)) == len(z)


def test_no_two_blocks_of_a_seed_share_a_key():
    """The lower half of a counter counts within a block: blocks differ where the upper halves, (block, id), do."""
    key, counter = address(3, 7, 11)
    assert (key.dtype, counter.dtype) == (np.uint64, np.uint64)
    assert counter.tolist() == [0, 0, 11, 7]
    assert address(-1, 2**48 - 1, 2**32 - 1)[1].tolist() == [0, 0, 2**32 - 1, 2**48 - 1]
    keys = [address(seed, 0, 0)[0].tolist() for seed in (0, 1, 2**32, 2**32 + 1, 2**63, -1)]
    assert len({tuple(k) for k in keys}) == len(keys)


@pytest.mark.slow
def test_the_seeds_of_an_accelerator_do_not_coincide():
    """10,000 images of 1,001 blocks: with 64 bits two are equal with probability 3e-6, with 32 bits 11,600 pairs."""
    seeds = [
        device_seed(5, torch.arange(first, first + 500)[:, None], torch.tensor([*range(1000), 2**31])).flatten()
        for first in range(0, 10_000, 500)
    ]
    full = torch.cat(seeds)
    assert len(full.unique()) == len(full) == 10_010_000
    # Scalars and tensors agree, as unsigned and as signed 64 bits.
    assert device_seed(5, 500, 2**31) % 2**64 == int(seeds[1][1000]) % 2**64
    assert 0 <= device_seed(-3, 2**48 - 1, 2**32 - 1) < 2**64
    assert len({device_seed(seed, 0, 0) for seed in (0, 2**32, 2**63, -1)}) == 4


@pytest.mark.slow
def test_sampled_blocks_do_not_coincide():
    """Of 200,000 blocks with seeds of 32 bits, 4.7 pairs would be the same in the mean, and none in 1 of 105 trials."""
    noise = Noise(torch.zeros(1, 2), 0)
    # Two float32 normals as one word: different streams agree in both with probability below 1e-12.
    begins = torch.cat([noise.draw(i, b, 1).view(torch.int64).clone() for i in range(1000) for b in range(200)])
    assert len(begins.unique()) == len(begins) == 200_000


def test_the_noise_is_what_it_says():
    """Other ids, blocks and seeds, also those that agree in their low 32 bits, give other noise; the same give the same
    numbers whatever their count."""
    x = torch.zeros(1, 3, 5)
    noise = Noise(x, 9)
    full = noise.draw(4, 2, 100).clone()
    assert full.shape == (100, 3, 5)
    assert torch.equal(noise.draw(4, 2, 37), full[:37])
    stream = np.random.Generator(np.random.Philox(key=[9, 0x736D6F6F7468696E], counter=[0, 0, 2, 4]))
    assert np.array_equal(stream.standard_normal((100, 3, 5), dtype=np.float32), full.numpy())
    others = [(9, 4, 3), (9, 5, 2), (9, 4 + 2**32, 2), (9 + 2**32, 4, 2), (9 - 2**33, 4, 2), (9, 2, 4)]
    drawn = [full, *(Noise(x, seed).draw(i, b, 100).clone() for seed, i, b in others)]
    correlations = torch.corrcoef(torch.stack(drawn).flatten(1))
    # Independent normals correlate by N(0, 1/1500): five standard deviations.
    assert correlations.triu(1).abs().max() < 5 / 1500**0.5
    assert Noise(x.double(), 9).draw(4, 2, 100).dtype == torch.float64


def test_the_tails_of_the_noise_are_gaussian():
    noise = Noise(torch.zeros(1, 1000), 1)
    z = torch.cat([noise.draw(0, b, 100).clone().flatten() for b in range(40)])
    for level in (2.0, 3.0, 4.0):
        expected = len(z) * float(2 * stats.norm.sf(level))
        assert abs(int((z.abs() > level).sum()) - expected) < 5 * expected**0.5


@pytest.mark.parametrize("size", [37, 100, 250, 10_000])
def test_counts_do_not_depend_on_batch_order_or_shard(conv_net, batch, size):
    x, _ = batch(6, torch.float32)
    ids = torch.tensor([5, 9, 2**40, 0, 77, 3])
    smoothed = Smoothed(conv_net(torch.float32, norm=True), SIGMA)
    full = smoothed.votes(x, 330, seed=4, ids=ids)
    assert (full.sum(1) == 330).all()
    assert torch.equal(smoothed.votes(x, 330, seed=4, ids=ids, batch=size), full)
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    assert torch.equal(smoothed.votes(x[order], 330, seed=4, ids=ids[order], batch=size), full[order])
    shards = [smoothed.votes(x[i::2], 330, seed=4, ids=ids[i::2], batch=size) for i in range(2)]
    assert torch.equal(torch.stack(shards, 1).flatten(0, 1), full)
    # The samples of a small n are the first of a larger one, and other keys give other samples.
    assert (smoothed.votes(x, 130, seed=4, ids=ids, batch=size) <= full).all()
    assert not torch.equal(smoothed.votes(x, 330, seed=5, ids=ids), full)
    assert not torch.equal(smoothed.votes(x, 330, seed=4, ids=ids + 1), full)


def test_a_model_in_train_mode_is_evaluated_in_eval_mode_and_comes_back_as_it_was(batch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Dropout(0.5), nn.Linear(144, 10))
    x, _ = batch(4, torch.float32)
    want = Smoothed(model.eval(), SIGMA).votes(x, 200)
    model.train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    state = torch.get_rng_state()
    assert torch.equal(Smoothed(model, SIGMA).votes(x, 200), want)
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)


# ---- what a number of noise samples can certify


def test_the_arithmetic_of_the_paper():
    assert samples_needed(0.435, 0.12, 0.001) == 47_808
    reach = [largest_radius(n, 0.001, 0.12) for n in (100_000, 10_000, 1000)]
    assert [round(r, 3) for r in reach] == [0.457, 0.384, 0.296]
    assert round(255 * linf_radius(0.435, 3072), 2) == 2.0
    assert samples_needed(0, 0.12, 0.001) == 10
    assert largest_radius(9, 0.001, 0.12) == 0 < largest_radius(10, 0.001, 0.12)
    # At alpha = 2^-k, k samples give exactly 1/2, and abstain.
    assert largest_radius(5, 2.0**-5, 1.0) == 0
    assert samples_needed(0, 1.0, 2.0**-5) == 6


@pytest.mark.parametrize("sigma", [0.12, 1.0])
@pytest.mark.parametrize("share", [0.0, 0.1, 1.0, 2.5, 3.6])
def test_samples_needed_is_the_smallest_number(share, sigma):
    n = samples_needed(share * sigma, sigma, 0.01)
    assert largest_radius(n, 0.01, sigma) >= share * sigma
    assert n == 1 or largest_radius(n - 1, 0.01, sigma) < share * sigma or largest_radius(n - 1, 0.01, sigma) == 0


def test_what_cannot_be_certified_is_refused_with_the_numbers():
    smoothed, x = Smoothed(Half(3), 0.12), torch.zeros(1, 3)
    with pytest.raises(ValueError, match=r"0\.435 cannot be certified: n = 1,000 .* 0\.2956 .* n >= 47,808"):
        smoothed.certify(x, n=1000, radius=0.435)
    with pytest.raises(ValueError, match=r"larger sigma$"):
        smoothed.certify(x, n=1000, radius=1.0)
    with pytest.raises(ValueError, match=r"n = 9 .* 0\.4642, not above 1/2; give n >= 10"):
        smoothed.certify(x, n0=5, n=9)
    with pytest.raises(ValueError, match=r"n = 10 noise samples always abstain .* give n >= 11"):
        smoothed.predict(x, 10)
    assert smoothed.predict(x + 5, 11).shape == (1,)
    with pytest.raises(ValueError, match="give sigma >= "):
        samples_needed(1.0, 0.12, 0.001)
    # Radii that can be certified pass, as numbers, fractions and threats.
    for radius in (0.29, "1/4", Threat("l2", 0.29)):
        smoothed.certify(x, n=1000, radius=radius)


@pytest.mark.parametrize(
    ("call", "says"),
    [
        (lambda s, x: Smoothed(s.model, 0.0), "sigma must be above 0, got 0"),
        (lambda s, x: Smoothed(s.model, -1.0), "sigma must be above 0, got -1"),
        (lambda s, x: Smoothed(s.model, math.nan), "sigma must be a finite number, got nan"),
        (lambda s, x: s.certify(x, alpha=0.0), "alpha must be above 0, got 0"),
        (lambda s, x: s.certify(x, alpha=1.0), r"alpha must lie in \(0, 1\), got 1"),
        (lambda s, x: s.predict(x, alpha=2.0), r"alpha must lie in \(0, 1\), got 2"),
        (lambda s, x: s.certify(x, n0=100, n=99), "n must be at least n0, got n = 99 and n0 = 100: give a larger n"),
        (lambda s, x: s.certify(x, n0=0), "n0 must be at least 1, got 0"),
        (lambda s, x: s.certify(x, n=1e5), "n must be an integer, got 100000.0"),
        (lambda s, x: s.certify(x, radius=Threat("linf", 0.1)), r"certifies in l2, got a radius in linf: .* 0\.1732"),
        (lambda s, x: s.certify(x, radius=-1), "radius must be finite and at least 0"),
        (lambda s, x: s.votes(x, 5, batch=0), "batch must be at least 1"),
        (lambda s, x: s.votes(x, 5, seed=0.5), "seed must be an integer"),
        (lambda s, x: s.votes(x, 5, ids=torch.tensor([1, 2])), "ids must be 1 int64"),
        (lambda s, x: s.votes(x.int(), 5), "inputs must be floats"),
        (lambda s, x: s.votes(x / 0, 5), "NaN"),
        (lambda s, x: s.votes(x[:0], 5), "no samples"),
        (lambda s, x: Smoothed(nn.Flatten(0), 1.0).votes(x, 5), r"logits \(n, classes\), got shape \(15,\)"),
        (lambda s, x: Smoothed(Nan(), 1.0).votes(x, 5), "NaN or infinite logits"),
    ],
)
def test_bad_input_is_refused_in_one_line(call, says):
    with pytest.raises(ValueError, match=says) as error:
        call(Smoothed(Half(3), 0.5), torch.zeros(1, 3))
    assert "\n" not in str(error.value)


class Nan(nn.Module):
    def forward(self, x):
        return x * math.nan


# ---- files


SAMPLING = Sampling(SIGMA, n0=20, n=150, alpha=0.01, seed=3)


def same(a, b):
    """Compare two lists of rows without the seconds."""
    return [r._replace(time=0) for r in a] == [r._replace(time=0) for r in b]


@pytest.fixture
def task(conv_net, batch):
    x, y = batch(11, torch.float32)
    return conv_net(torch.float32), x, y, torch.arange(100, 111)


def test_rows_are_those_of_certify_and_predict(task, tmp_path):
    model, x, y, ids = task
    found = certify_run(model, x, y, SAMPLING, ids=ids, path=tmp_path / "certificate.csv")
    smoothed = Smoothed(model, SIGMA)
    classes, radii = smoothed.certify(x, 20, 150, 0.01, seed=3, ids=ids)
    plain = smoothed.predict(x, 150, 0.01, seed=3, ids=ids)
    for i, row in enumerate(found.rows):
        assert (row.idx, row.label, row.predict, row.radius) == (100 + i, int(y[i]), int(classes[i]), float(radii[i]))
        assert row.correct == int(row.predict == row.label)
        assert (row.smoothed, row.clean) == (int(plain[i]), int(model(x[i : i + 1]).argmax()))
    assert read_rows(tmp_path / "certificate.csv") == list(found.rows)
    head = (tmp_path / "certificate.csv").read_text().splitlines()[0]
    assert head.split("\t")[:6] == ["idx", "label", "predict", "radius", "correct", "time"]


def test_an_interrupted_run_goes_on_to_the_same_rows(task, tmp_path):
    model, x, y, ids = task
    want = certify_run(model, x, y, SAMPLING, ids=ids, batch=100).rows

    class Stop(Exception):
        pass

    path, drawn = tmp_path / "certificate.csv", 0

    def advance(amount, text):
        nonlocal drawn
        drawn += amount
        if drawn > 7 * 170:
            raise Stop

    with pytest.raises(Stop):
        certify_run(model, x, y, SAMPLING, ids=ids, path=path, batch=100, advance=advance)
    kept = read_rows(path)
    assert 0 < len(kept) < len(x)
    with open(path, "a") as file:
        file.write("107\t3\t3\t0.1")
    calls = []
    found = certify_run(model, x, y, SAMPLING, ids=ids, path=path, advance=lambda n, text: calls.append(n))
    assert same(found.rows, want)
    assert list(found.rows[: len(kept)]) == kept
    assert sum(calls) == len(x) * 170
    assert len(read_rows(path)) == len(x)
    # More images continue the file, other settings and another model do not.
    with pytest.raises(ValueError, match=r"made with draws\.seed 3, not 4"):
        certify_run(model, x, y, Sampling(SIGMA, 20, 150, 0.01, seed=4), ids=ids, path=path)
    with pytest.raises(ValueError, match=r"made with about\.weights None, not abc"):
        certify_run(model, x, y, SAMPLING, ids=ids, path=path, about={"weights": "abc"})


@pytest.fixture
def normed():
    """A network with batch norms, images, and the settings of a certificate with clear decisions."""
    torch.manual_seed(0)
    net = build("resnet8", shape=(1, 8, 8), classes=3)
    with torch.no_grad():
        for m in net.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_(std=0.1)
                m.running_var.uniform_(0.5, 2)
    return net.eval(), torch.rand(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])


def test_a_network_with_batch_norms_is_certified_folded_and_the_file_says_so(normed, tmp_path):
    net, x, y = normed
    path = tmp_path / "c.csv"
    network = certified_network(net, x, SAMPLING)
    assert network.layers == sum(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    found = certify_run(net, x, y, SAMPLING, path=path)
    made = json.loads(path.with_suffix(".json").read_text())["made"]
    assert made["network"] == {"batch_norms_folded": network.layers}
    classes, radii = Smoothed(network.network, SIGMA).certify(x, 20, 150, 0.01, seed=3)
    assert [(r.predict, r.radius) for r in found.rows] == list(zip(classes.tolist(), radii.tolist()))
    # In float64 no two logits tie to rounding, so that the folded network has the votes of the network itself.
    net, x = net.double(), x.double()
    folded = certified_network(net, x, SAMPLING)
    assert folded.layers
    assert torch.equal(Smoothed(folded.network, SIGMA).votes(x, 200), Smoothed(net, SIGMA).votes(x, 200))


def test_a_file_begun_without_folding_ends_without_it(normed, tmp_path):
    net, x, y = normed
    path = tmp_path / "c.csv"
    first = certify_run(net, x[:2], y[:2], SAMPLING, path=path, network=Folded(net, 0, None))
    assert "network" not in json.loads(path.with_suffix(".json").read_text())["made"]
    found = certify_run(net, x, y, SAMPLING, path=path)
    assert list(found.rows[:2]) == list(first.rows)
    assert "network" not in json.loads(path.with_suffix(".json").read_text())["made"]
    with pytest.raises(ValueError, match=r"batch_norms_folded"):
        certify_run(net, x, y, SAMPLING, path=path, network=certified_network(net, x, SAMPLING))


def test_rows_of_older_noise_are_not_continued(task, tmp_path):
    """A file of an earlier version, whose sidecar does not record the noise, is not changed."""
    model, x, y, _ = task
    path = tmp_path / "c.csv"
    certify_run(model, x[:2], y[:2], SAMPLING, path=path)
    made = json.loads(path.with_suffix(".json").read_text())
    assert made["made"].pop("noise")
    path.with_suffix(".json").write_text(json.dumps(made))
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"noise of another version .* choose another file") as error:
        certify_run(model, x, y, SAMPLING, path=path)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before
    new = tmp_path / "d.csv"
    certify_run(model, x[:2], y[:2], SAMPLING, path=new)
    with pytest.raises(ValueError, match="made with other settings"):
        merge([path, new], x[0].numel())


def test_shards_merge_into_the_complete_certificate(task, tmp_path):
    model, x, y, ids = task
    want = certify_run(model, x, y, SAMPLING, ids=ids).rows
    paths = [tmp_path / f"{i}.csv" for i in range(3)]
    for i, path in enumerate(paths):
        part = certify_run(model, x, y, SAMPLING, ids=ids, path=path, shard=(i, 3))
        assert [row.idx for row in part.rows] == ids[i::3].tolist()
    assert same(merge(paths, 64).rows, want)
    assert same(merge(paths, 64, ids.tolist()).rows, want)
    with pytest.raises(ValueError, match="4 of 11 samples are missing in all shards"):
        merge(paths[1:], 64, ids.tolist())
    other = tmp_path / "other.csv"
    certify_run(model, x, y, Sampling(SIGMA, 20, 160, 0.01), ids=ids, path=other, shard=(0, 3))
    with pytest.raises(ValueError, match="made with other settings"):
        merge([*paths, other], 64)
    text = paths[0].read_text().replace("100\t", "101\t", 1)
    paths[0].write_text(text)
    with pytest.raises(ValueError, match="disagrees with an earlier shard on sample 101"):
        merge(paths, 64)
    paths[0].write_text(text.replace("101\t", "x\t", 1))
    with pytest.raises(ValueError, match="line 2: not a row"):
        merge(paths, 64)
    for shard in ((3, 3), (-1, 3), (0, 12)):
        with pytest.raises(ValueError, match="shard"):
            certify_run(model, x, y, SAMPLING, ids=ids, shard=shard)


def test_the_summary_separates_three_accuracies():
    sampling = Sampling(0.5, n0=10, n=1000, alpha=0.001)
    rows = [
        # label, predict, radius, clean, smoothed
        (1, 1, 0.6, 1, 1),
        (1, 1, 0.2, 0, 1),
        (1, -1, 0.0, 1, 1),
        (1, 0, 0.9, 1, 0),
        (1, -1, 0.0, 0, -1),
    ]
    made = tuple(Row(i, a, b, r, int(a == b), 2.0, c, d) for i, (a, b, r, c, d) in enumerate(rows))
    found = Certificate(made, sampling, dim=64).to_json([0, 0.2, 0.5])
    assert (found["clean"]["k"], found["smoothed"]["k"], found["abstained"]["k"]) == (3, 3, 2)
    assert [c["share"]["k"] for c in found["certified"]] == [2, 2, 1]
    low, high = interval(1, 5)
    assert found["certified"][2] == {
        "radius": 0.5, "linf_radius": 0.0625, "share": {"value": 0.2, "low": low, "high": high, "k": 1, "n": 5},
    }  # fmt: skip
    assert found["radius_mean"] == pytest.approx(0.16)
    assert (found["radius_median"], found["seconds_per_image"], found["n"]) == (0.0, 2.0, 5)
    assert found["sampling"] == {"sigma": 0.5, "n0": 10, "n": 1000, "alpha": 0.001, "seed": 0}
    with pytest.raises(ValueError, match=r"radius 1\.3 cannot be certified"):
        Certificate(made, sampling, dim=64).to_json([1.3])
    assert [c["radius"] for c in Certificate(made, sampling, dim=64).to_json()["certified"]] == [0, 0.5, 1.0]


# ---- the figure


def test_the_figure_falls_just_beyond_each_radius():
    figure = plots.certified({"a": [0.1, 0.3, -1.0, 0.3], "b": [-1.0, -1.0]}, marks={0.2: "l2 0.2"})
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("certified l2 radius (pixel units)", "certified accuracy (%)")
    line = axes.get_lines()[0]
    places, values = line.get_xdata(), line.get_ydata()
    assert line.get_drawstyle() == "steps-pre"

    def at(r):
        # steps-pre: a value applies after the previous position up to and including its own
        return values[int(np.searchsorted(places, r))]

    for r, want in ((0.0, 75), (0.05, 75), (0.1, 75), (0.1001, 50), (0.3, 50)):
        assert at(r) == want
    assert values[-1] == 0
    assert set(axes.get_lines()[1].get_ydata()) == {0}
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert texts == ["a (n = 4)", "b (n = 2)"]
    for bad in ({}, {"a": []}, {"a": [math.nan]}):
        with pytest.raises(ValueError, match=r"radii|certificates"):
            plots.certified(bad)


# ---- the command


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    root = tmp_path_factory.mktemp("runs")
    args = ["--train.epochs", "2", "--data.limit", "200", "--evaluate.attacks", "FGSM", "--evaluate.limit", "20"]
    quick = ["--runs", str(root), "--train.device", "cpu", "--quiet", "--train.validate_limit", "20"]
    assert main(["train", "digits-l2-gaussian", *args, *quick]) == 0
    return root / "digits-l2-gaussian"


def test_the_command_certifies_resumes_shards_and_merges(run, capsys, tmp_path):
    def said(*args):
        status = main(["certify", str(run), *args, "--quiet", "--device", "cpu"])
        out, err = capsys.readouterr()
        return status, out, err

    common = ["--n", "300", "--n0", "20"]
    figure = tmp_path / "c.png"
    status, out, err = said(*common, "--limit", "6", "--radius", "0.1", "1/8", "--plot", str(figure))
    assert status == 0, err
    assert figure.stat().st_size > 10_000
    assert "clean, base network" in out
    assert "clean, smoothed network" in out
    assert "certified at l2 0.125" in out
    found = json.loads((run / "certificate.json").read_text())
    # the noise that the network was trained with
    assert found["sampling"]["sigma"] == json.loads((run / "config.json").read_text())["method"]["sigma"]
    assert (found["n"], found["complete"], found["provenance"]["seed"]) == (6, True, 0)
    before = read_rows(run / "certificate.csv")

    # More images continue the same file.
    assert said(*common, "--limit", "9")[0] == 0
    rows = read_rows(run / "certificate.csv")
    assert rows[:6] == before
    assert len(rows) == 9

    # Other settings get a file of their own; its shards merge into the same rows.
    other = [*common, "--limit", "9", "--seed", "1"]
    status, _, err = said(*other, "--merge")
    assert (status, err.count("\n")) == (2, 1)
    assert "shard" in err
    for i in (1, 2):
        assert said(*other, "--shard", f"{i}/2")[0] == 0
    assert said(*other, "--merge")[0] == 0
    merged = read_rows(run / "certificate-2.csv")
    assert [r.idx for r in merged] == [r.idx for r in rows]
    assert said(*other)[0] == 0
    assert read_rows(run / "certificate-2.csv") == merged
    assert json.loads((run / "certificate-2.json").read_text())["n"] == 9


def test_shards_that_an_earlier_version_began_end_without_folding(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    text = "import torch\nfrom atent.models import build\ndef net():\n    torch.manual_seed(0)\n    return build"
    Path("norms_in_it.py").write_text(text + "('resnet8', shape=(1, 8, 8))\n")
    made = {"data": "digits", "sigma": 0.2, "n0": 20, "n": 100, "alpha": 0.01, "limit": 4, "device": "cpu"}
    call = partial(certify_folder, "norms_in_it:net", progress=False, trust_code=True, **made)
    with monkeypatch.context() as before:
        before.setattr(certificate, "certified_network", lambda model, *rest: Folded(model, 0, None))
        _, begun, _ = call(shard="1/2")
    _, ended, _ = call(shard="2/2")
    _, full, found = call(merged=True)
    assert begun.made == ended.made == full.made
    assert "network" not in full.made
    assert len(found.rows) == 4
    (tmp_path / "new").mkdir()
    monkeypatch.chdir(tmp_path / "new")
    _, new, _ = call()
    assert new.made["network"]["batch_norms_folded"] == 9
    assert any("9 batch norms folded" in line for line in layout(new)[2])


@pytest.mark.slow
@pytest.mark.skipif(not any(map(shutil.which, ("c++", "g++", "clang++"))), reason="no C++ compiler")
def test_a_compiled_network_certifies_the_same(run):
    args = ["certify", str(run), "--n", "300", "--n0", "20", "--limit", "5", "--quiet", "--device", "cpu"]
    tables = []
    for more in ([], ["--compile"]):
        for old in run.glob("certificate*"):
            old.unlink()
        assert main([*args, *more]) == 0
        tables.append([row._replace(time=0.0) for row in read_rows(run / "certificate.csv")])
    assert tables[0] == tables[1]


def test_the_command_verifies_by_bounds(run, capsys):
    from atent import load
    from atent.certify import verified
    from atent.data import DataSettings
    from atent.data import load as load_data

    args = ["certify", str(run), "--method", "crown", "--norm", "linf", "--radius", "0.01", "--limit", "40", "--quiet"]
    assert main(args) == 0
    out, _ = capsys.readouterr()
    found = json.loads(Path(re.search(r"written: (.*\.json)", out)[1]).read_text())
    part = load_data(DataSettings("digits")).sample("test", 40)
    x, y = part.batch(range(40))
    with torch.no_grad():
        certain = verified(load(run), x, y, Threat("linf", 0.01), "crown")
    assert 0 < int(certain.sum()) < 40
    assert found["certified"][0]["share"]["k"] == int(certain.sum())
    assert found["certified"][0]["verified"] == part.ids[certain].tolist()
    assert found["certified"][0]["seconds_per_image"] > 0


def test_smoothing_and_bounds_meet_in_one_table(run, capsys, tmp_path):
    table = tmp_path / "t.md"
    common = ["certify", str(run), "--limit", "12", "--table", str(table), "--quiet", "--device", "cpu"]
    assert main([*common, "--n", "300", "--n0", "20", "--radius", "0.05", "0.125"]) == 0
    alone = json.loads(table.with_suffix(".json").read_text())["rows"]
    # On 64 pixels the l2 ball of 1/8 contains the linf ball of 1/64: one column for both.
    assert main([*common, "--method", "crown", "--norm", "linf", "--radius", "1/64"]) == 0
    rows = json.loads(table.with_suffix(".json").read_text())["rows"]
    assert rows[0] == alone[0]
    assert [r["how"].split(",")[0] for r in rows] == ["smoothing", "crown"]
    assert (rows[1]["smoothed"], rows[1]["trained"]) == (None, "Gaussian")
    lines = table.read_text().splitlines()
    assert [h.strip() for h in lines[0].split("|")[5:-2]] == [
        "l2 0.05 = linf 1.59/255 (%)", "l2 0.125 = linf 3.98/255 (%)",
    ]  # fmt: skip
    cells = [[c.strip() for c in line.split("|")[1:-1]] for line in lines[2:4]]
    certain = [r["certified"][-1]["share"] for r in rows]
    assert cells[0][5].startswith(f"{100 * certain[0]['value']:.1f} [")
    assert cells[1][4] == "-"
    assert cells[1][5] == f"{100 * certain[1]['value']:.1f} [{100 * certain[1]['low']:.1f}, " + (
        f"{100 * certain[1]['high']:.1f}] linf only"
    )
    # The same command again replaces its row; another number of images does not mix.
    assert main([*common, "--method", "crown", "--norm", "linf", "--radius", "1/64"]) == 0
    assert len(json.loads(table.with_suffix(".json").read_text())["rows"]) == 2
    before = table.read_text()
    assert main([*common, "--limit", "13", "--method", "ibp", "--norm", "linf", "--radius", "1/64"]) == 2
    err = capsys.readouterr().err
    assert (err.count("\n"), "same --limit" in err) == (1, True)
    assert table.read_text() == before
    assert main(["certify", str(run), "--table", "t.csv", "--limit", "2", "--quiet"]) == 2
    assert "ends in .md" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["--radius", "0.435"], "n >= "),
        (["--sigma", "-1"], "sigma must be above 0"),
        (["--norm", "linf"], "certifies in l2, not in linf"),
        (["--shard", "0/2"], "shard must be i/k.*1/2 to 2/2"),
        (["--shard", "two"], "shard must be i/k, such as 1/4"),
        (["--method", "crown", "--sigma", "0.1"], "uses no noise samples"),
        (["--method", "crown", "--radius", "0.1", "--norm", "l2", "--plot", "x.png"], "omit --plot"),
        (["--method", "crown", "--compile"], "and --compile"),
        (["--limit", "0"], "limit must be at least 1"),
        (["--alpha", "1.5"], r"alpha must lie in \(0, 1\)"),
        (["--metod", "crown"], "did you mean '--method'"),
    ],
)
def test_the_command_refuses_in_one_line(run, capsys, args, says):
    assert main(["certify", str(run), "--n", "300", *args, "--quiet"]) == 2
    _, err = capsys.readouterr()
    assert err.count("\n") == 1
    assert re.search(says, err)


def test_a_run_without_noise_needs_a_sigma(run, tmp_path, capsys):
    config = json.loads((run / "config.json").read_text())
    config["method"] = {"name": "Standard"}
    for name in ("best.safetensors", "metrics.jsonl"):
        (tmp_path / name).write_bytes((run / name).read_bytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    args = ["certify", str(tmp_path), "--n", "100", "--n0", "10", "--limit", "2", "--quiet"]
    assert main(args) == 2
    assert "give --sigma" in capsys.readouterr().err
    assert main([*args, "--sigma", "0.2"]) == 0
