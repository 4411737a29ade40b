"""Networks whose answer for a sample depends on its batch are found, and others are not."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import ZOO, Attending, Batched, Twin, data, made, quietly

from atent import Threat
from atent.certify import Smoothed
from atent.certify.certificate import Sampling, certify_run
from atent.evaluate import evaluate, masking_checks
from atent.independence import dependence


@pytest.mark.parametrize("kind", [Batched, Attending])
def test_dependence_on_the_batch_is_reported_by_evaluate_certify_and_the_checks(kind):
    net, (x, y) = made(kind), data(12)
    says = "depends on the other samples of its batch"
    assert says in evaluate(net, x, y, {}).hint
    assert says in quietly(certify_run, net, x[:2], y[:2], Sampling(0.25, 20, 100, 0.05)).to_json()["hint"]
    with pytest.warns(UserWarning, match=says):
        Smoothed(net, 0.25).certify(x[:2], n0=20, n=100, alpha=0.05)
    with pytest.warns(UserWarning, match=says):
        Smoothed(net, 0.25).predict(x[:2], n=100)
    found = dependence(net, x)
    assert found.dtype == torch.float64
    assert found.change > 1e-3


def test_dependence_is_the_difference_in_closed_form():
    """z - mean/2 over the batch: alone z/2, so that the difference is (mean - z)/2."""

    class Centred(nn.Module):
        def forward(self, x):
            z = x.flatten(1)
            return z - z.mean(0) / 2

    x = torch.eye(4)
    found = dependence(Centred(), x)
    batch = torch.cat([x, x.flip(0), x.flip(-1) / 2, torch.zeros(1, 4)]).double()
    beside = batch - batch.mean(0) / 2
    fewer = batch - batch[:-1].mean(0) / 2
    rows = [0, 1, 2, 3, 8]  # the samples, and an altered copy
    expected = max((z - batch / 2)[rows].abs().max() for z in (beside, fewer)) / beside.abs().max()
    assert found.change == pytest.approx(float(expected), rel=1e-12)
    assert (found.n, found.size) == (5, 13)


class Largest(Twin):
    """Divides by the largest value of the batch: 1 for whole images."""

    def forward(self, z):
        return super().forward(z / z.max())


class Parity(Twin):
    def forward(self, z):
        return super().forward(z if len(z) % 2 else 1.5 * z)


class Beyond(Twin):
    """Depends on its batch only where noise goes beyond the box."""

    def forward(self, z):
        return super().forward(z / z.max().clamp(min=1.2))


@pytest.mark.parametrize("kind", [Largest, Parity])
def test_dependence_that_whole_images_or_odd_batches_hide_is_found(kind):
    x = data(12)[0]
    x[:, :, 0, 0] = 1.0  # as in most images of digits: every sample's largest value is the batch's
    assert dependence(made(kind), x).found  # before: no


def test_dependence_that_only_noise_shows_is_found():
    (x, y), net = data(12), made(Beyond)
    assert evaluate(net, x, y, {}).hint is None
    assert (
        "of its batch" in certify_run(net, x[:2], y[:2], Sampling(0.5, 20, 100, 0.05)).to_json()["hint"]
    )  # before: None
    with pytest.warns(UserWarning, match="of its batch"):
        Smoothed(net, 0.5).certify(x[:2], n0=20, n=100, alpha=0.05)


class Crowded(Twin):
    """Depends on its batch only where that holds more than 100 images."""

    def forward(self, z):
        return super().forward(z - z.mean(0) if len(z) > 100 else z)


def test_dependence_that_begins_in_large_batches_is_found_where_there_are_such():
    net, (x, y) = made(Crowded), data(120)
    says = "in a batch of 120"
    assert says in evaluate(net, x, y, {}, batch=250).hint
    assert evaluate(net, x, y, {}, batch=100).hint is None
    assert evaluate(made(Twin), x, y, {}, batch=250).hint is None
    sampling = Sampling(0.25, 20, 100, 0.05)
    assert "in a batch of 200" in certify_run(net, x[:2], y[:2], sampling).to_json()["hint"]
    assert certify_run(net, x[:2], y[:2], sampling, batch=100).hint is None
    with pytest.warns(UserWarning, match="in a batch of 200"):
        Smoothed(net, 0.25).certify(x[:2], n0=20, n=100, alpha=0.05)
    (failed,) = [c for c in masking_checks(net, x, net(x).argmax(1), Threat("linf", 0.1)) if c.name == "independent"]
    assert not failed.passed


@pytest.mark.parametrize("name", ["arithmetic in place", "spectral norm", "squeezes inside", "traced", "compiled"])
def test_no_dependence_where_there_is_none(name):
    """Rounding is not dependence: below half of the digits."""
    found = dependence(ZOO[name][0](), data()[0])
    assert not found.found


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_cancelling_sums_and_random_layers_are_not_dependence(scale):
    torch.manual_seed(2)
    big = nn.Linear(36, 256)
    big.bias.data += 1e3 * scale
    net = nn.Sequential(nn.Flatten(), big, nn.ReLU(), nn.Linear(256, 3))
    x, _ = data()
    assert not dependence(net.eval(), x).found

    class Noisy(Twin):
        def forward(self, z):
            return super().forward(z + 0.1 * torch.randn_like(z))

    assert not dependence(made(Noisy), x).found


def test_a_layer_that_lowers_its_precision_is_not_dependence():
    class Low(Twin):
        def forward(self, z):
            z = self.features((z - 0.3) / 0.4).flatten(1)
            return F.linear(z.float(), self.lin.weight.float(), self.lin.bias.float()).type_as(z)

    assert not dependence(made(Low), data()[0]).found


def test_batch_norm_that_takes_no_sample_alone_is_compared_in_pairs():
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 3))
    x, y = data(12)
    assert dependence(net.eval(), x).found
    assert "batch" in evaluate(net.eval(), x, y, {}).hint
