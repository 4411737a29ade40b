"""The fifteen corruptions: keyed by seed and sample, in the box, ordered by severity, and each what its name says."""

import math
from itertools import pairwise

import pytest
import torch

from atent.data.corruptions import CORRUPTIONS, corrupt, suited
from atent.data.corruptions.noise import _searched, poisson
from atent.data.corruptions.sampling import gaussian_blur, padded, plasma
from atent.data.corruptions.sequences import SEQUENCES, flips, framed
from atent.rng import PerSample

# The ladders of CIFAR-10-C in which l2 distance falls with severity: these two blur more while they move less.
UNORDERED = ("glass_blur", "elastic_transform", "frost")


def pictures(n=24, c=3, side=32, dtype=torch.float64):
    """Smooth images with edges, in [0, 1], on a scale of 255."""
    draws = PerSample(4, torch.arange(n))
    parts = [plasma(torch.zeros(n, 1, side, side, dtype=torch.float64), draws.named(str(i)), 1.6) for i in range(c)]
    x = torch.cat(parts, 1)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    centre = side / 4 + side / 2 * draws.uniform(torch.zeros(n, 2, dtype=torch.float64), use="centre")
    disc = (rows - centre[:, :1, None]) ** 2 + (columns - centre[:, 1:, None]) ** 2 < (side / 5) ** 2
    x = torch.where(disc[:, None], 0.9, x)
    return (255 * x).round().div(255).to(dtype)


def distance(a, b):
    return float((a - b).flatten(1).norm(dim=1).mean())


def test_there_are_fifteen_in_the_order_of_the_benchmark():
    assert list(CORRUPTIONS) == [
        "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur",
        "snow", "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
    ]  # fmt: skip
    assert suited((1, 28, 28)) == suited((3, 32, 32)) == list(CORRUPTIONS)
    assert set(CORRUPTIONS) - set(suited((1, 8, 8))) == {
        "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow", "frost", "pixelate",
    }  # fmt: skip


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_independent_of_the_batch_and_determined_by_the_seed(name):
    x, ids = pictures(5), torch.tensor([7, 3, 11, 2, 900])
    whole = corrupt(x, name, 3, seed=1, ids=ids)
    assert torch.equal(whole, corrupt(x, name, 3, seed=1, ids=ids))
    order = torch.tensor([3, 0])
    # Kernels sum a few hundred products of numbers below 1 in an order that may depend on the batch: 1e-12 is far above
    # their rounding in float64, and far below any other random number.
    assert (corrupt(x[order], name, 3, seed=1, ids=ids[order]) - whole[order]).abs().max() < 1e-12
    assert whole.shape == x.shape
    assert whole.dtype == x.dtype
    assert float(whole.min()) >= 0
    assert float(whole.max()) <= 1
    if name not in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"):
        assert not torch.equal(whole, corrupt(x, name, 3, seed=2, ids=ids))


@pytest.mark.parametrize("side", [28, 32])
@pytest.mark.parametrize("name", CORRUPTIONS)
def test_severity_orders_the_mean_distance(name, side):
    x = pictures(8, 1 if side == 28 else 3, side)
    far = [distance(corrupt(x, name, severity), x) for severity in (1, 2, 3, 4, 5)]
    assert min(far) > 0
    if name not in UNORDERED:
        # From severity 3 to 4 motion blur widens its kernel where its weights are below e^-18.
        assert all(b > a - 1e-6 for a, b in pairwise(far)), far


def test_a_box_of_each_channel_is_only_a_change_of_units():
    x = pictures(3)
    low, high = torch.tensor([-1.0, 0.0, 2.0]).double(), torch.tensor([1.0, 3.0, 6.0]).double()
    edges = low.view(1, 3, 1, 1), high.view(1, 3, 1, 1)
    moved = corrupt(edges[0] + (edges[1] - edges[0]) * x, "fog", 2, box=(tuple(low.tolist()), tuple(high.tolist())))
    found = (moved - edges[0]) / (edges[1] - edges[0])
    assert (found - corrupt(x, "fog", 2)).abs().max() < 1e-12


@pytest.mark.parametrize(
    ("shape", "name", "severity", "what"),
    [
        ((2, 1, 8, 8), "snow", 1, "16 pixels"),
        ((2, 64), "fog", 1, "images"),
        ((2, 1, 28, 28), "fogg", 1, "not known"),
        ((2, 1, 28, 28), "fog", 6, "severity"),
    ],
)
def test_what_cannot_be_corrupted_is_refused_in_one_line(shape, name, severity, what):
    with pytest.raises(ValueError, match=what) as error:
        corrupt(torch.rand(shape), name, severity)
    assert "\n" not in str(error.value)


# ---- each by itself ----------------------------------------------------------------------------------------


def test_poisson_quantiles_are_those_of_scipy():
    from scipy.special import pdtr

    rates = torch.tensor([0.0, 0.01, 0.7, 3.0, 50.0, 123.4, 500.0]).double()
    u = torch.tensor([1e-7, 0.01, 0.3, 0.5, 0.77, 0.999, 1 - 1e-7]).double()
    mean, u = (t.flatten() for t in torch.meshgrid(rates, u, indexing="ij"))
    for found in (poisson(mean, u), _searched(mean, u, 800)):
        k, m = found.numpy(), mean.numpy()
        assert (pdtr(k, m) >= u.numpy()).all()
        assert ((pdtr(k - 1, m) < u.numpy()) | (k == 0)).all()


def test_noise_has_the_moments_of_its_law():
    x = torch.full((40, 1, 32, 32), 0.5).double()
    n = x.numel()
    d = corrupt(x, "gaussian_noise", 1) - x
    # Five standard errors of a variance of n normal numbers.
    assert abs(float(d.var()) / 0.04**2 - 1) < 5 * math.sqrt(2 / n)
    d = corrupt(x, "shot_noise", 3) - x
    assert abs(float(d.var()) / (0.5 / 100) - 1) < 5 * math.sqrt(2.1 / n)
    hit = corrupt(x, "impulse_noise", 5) != x
    assert abs(float(hit.double().mean()) - 0.07) < 5 * math.sqrt(0.07 / n)


def test_constant_images_pass_blurs_and_warps():
    x = torch.full((2, 3, 32, 32), 0.3).double()
    for name in ("defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "contrast", "elastic_transform", "pixelate"):
        assert (corrupt(x, name, 5) - x).abs().max() < 1e-12, name


def test_glass_copies_neighbours():
    x = pictures(2, 1)
    # At severity 1 the Gaussian is narrower than a pixel, and a neighbour is above, to the left, or both.
    glass, wide = corrupt(x, "glass_blur", 1), padded(x, 1, 1, "replicate")
    near = torch.stack([wide[:, :, i : i + 32, j : j + 32] for i in (0, 1) for j in (0, 1)])
    assert ((near - glass).abs().amin(0) == 0).all()
    assert not torch.equal(glass, x)


def test_brightness_keeps_hue_and_saturation():
    import colorsys

    x = pictures(1)[0, :, :4, :4]
    bright = corrupt(x[None], "brightness", 2)[0]
    for before, after in zip(x.flatten(1).T.tolist(), bright.flatten(1).T.tolist()):
        h, s, v = colorsys.rgb_to_hsv(*before)
        assert after == pytest.approx(colorsys.hsv_to_rgb(h, s, min(1, v + 0.1)), abs=1e-9)


def test_blurs_are_those_of_scipy():
    from scipy.ndimage import gaussian_filter

    x = pictures(1, 1, 16)
    for border, mode in (("replicate", "nearest"), ("symmetric", "reflect"), ("reflect", "mirror")):
        found = gaussian_blur(x, 3.3, truncate=3, border=border)[0, 0]
        wanted = gaussian_filter(x[0, 0].numpy(), 3.3, mode=mode, truncate=3)
        assert abs(found.numpy() - wanted).max() < 1e-12
    assert padded(x, 40, 0, "reflect").shape == (1, 1, 96, 16)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_and_pixels_are_those_of_pillow(channels):
    image = pytest.importorskip("PIL.Image")
    import io

    import numpy as np

    x = pictures(8, channels, 32)
    arrays = (255 * x).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    if channels == 1:
        arrays = arrays[..., 0]
    jpegs, small = [], []
    for array in arrays:
        file = io.BytesIO()
        image.fromarray(array).save(file, "JPEG", quality=40)
        jpegs.append(np.asarray(image.open(file), dtype=float))
        coarse = image.fromarray(array).resize((20, 20), image.Resampling.BOX).resize((32, 32), image.Resampling.BOX)
        small.append(np.asarray(coarse, dtype=float))

    def gap(name, theirs):
        ours = 255 * corrupt(x, name, 5).permute(0, 2, 3, 1).numpy()
        return abs(ours.reshape(arrays.shape) - theirs)

    # Pillow rounds to whole levels after the rows and after the columns.
    assert gap("pixelate", np.array(small)).max() <= 1 + 1e-9
    # Its cosine transform works in integers, so that a coefficient halfway between two steps may go the other way,
    # which moves a few pixels of its block.
    far = gap("jpeg_compression", np.array(jpegs))
    assert (far <= 2).mean() > 0.9
    assert far.mean() < 0.5 * abs(np.array(jpegs) - arrays).mean()


# ---- sequences -------------------------------------------------------------------------------------------------


def test_flip_rates_by_hand():
    classes = torch.tensor([[1, 1, 2, 1], [3, 3, 3, 3]])
    assert flips(classes, ordered=True).tolist() == [2 / 3, 0]
    assert flips(classes, ordered=False).tolist() == [1 / 3, 0]
    with pytest.raises(ValueError, match="two frames"):
        flips(classes[:, :1], ordered=True)


@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_changes_little_from_frame_to_frame(name):
    x, ids = pictures(3), torch.arange(3)
    frames = list(framed(x, name, seed=0, ids=ids))
    sequence = SEQUENCES[name]
    assert len(frames) == len(sequence.amounts) + (not sequence.ordered)
    assert all(float(f.min()) >= 0 and float(f.max()) <= 1 for f in frames)
    if sequence.ordered:
        steps = [distance(a, b) for a, b in pairwise(frames)]
        assert max(steps) < distance(frames[0], frames[-1])
        assert min(distance(f, x) for f in frames) < 1e-9
    else:
        assert torch.equal(frames[0], x)
        assert not torch.equal(frames[1], frames[2])
    again = list(framed(x[1:], name, seed=0, ids=ids[1:]))
    assert all((a - b[1:]).abs().max() < 1e-12 for a, b in zip(again, frames))
