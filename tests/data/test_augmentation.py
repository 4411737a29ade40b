"""Augmentations: in the box, from the generator alone, and equal to slow transcriptions."""

import numpy as np
import pytest
import torch

from atent.data import AUGMENTATIONS, augment

# --- augmentation ------------------------------------------------------------------------------------------


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("shape", [(7, 1, 8, 8), (5, 3, 6, 9), (1, 3, 4, 4)])
def test_augmentation_keeps_shape_type_range_and_repeats(name, shape):
    x = torch.rand(shape)
    before = x.clone()
    a, b = (augment(name)(x, generator()) for _ in range(2))
    assert a.shape == x.shape
    assert a.dtype == x.dtype
    assert torch.equal(a, b)
    assert torch.equal(x, before)
    assert bool(((a >= 0) & (a <= 1)).all())


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "none"])
def test_augmentation_draws_per_image_and_from_the_generator_alone(name):
    x = torch.rand(1, 1, 8, 8).repeat(64, 1, 1, 1)
    state = torch.random.get_rng_state()
    out = augment(name)(x, generator())
    assert torch.equal(torch.random.get_rng_state(), state)
    assert len(out.unique(dim=0)) > 1
    assert not torch.equal(out, augment(name)(x, generator(1)))
    torch.manual_seed(0)
    assert augment(name)(x, None).shape == x.shape
    for bad in (x[0], (255 * x).to(torch.uint8)):
        with pytest.raises(ValueError, match="augmentation got"):
            augment(name)(bad, generator())


def test_none_is_the_identity():
    x = torch.rand(2, 2)
    assert augment("none")(x, None) is x


def test_flip_mirrors_half_of_the_images():
    x = torch.rand(2000, 1, 3, 4)
    out = augment("flip")(x, generator())
    mirrored = (out == x.flip(3)).flatten(1).all(1)
    kept = (out == x).flatten(1).all(1)
    assert bool((mirrored ^ kept).all())
    # Five standard deviations of a fair coin.
    assert abs(int(mirrored.sum()) - 1000) < 5 * 500**0.5


@pytest.mark.parametrize("shape", [(300, 3, 8, 8), (300, 1, 5, 7)])
def test_crop_flip_equals_its_slow_transcription(shape):
    x = torch.rand(shape)
    out = augment("crop-flip")(x, generator(3))
    draws = generator(3)
    n, c, h, w = shape
    offsets = torch.randint(9, (n, 2), generator=draws).tolist()
    coins = torch.randint(2, (n,), generator=draws).tolist()
    for i in range(n):
        big = np.zeros((c, h + 8, w + 8), np.float32)
        big[:, 4 : 4 + h, 4 : 4 + w] = x[i].numpy()
        top, left = offsets[i]
        image = big[:, top : top + h, left : left + w]
        assert np.array_equal(out[i].numpy(), image[:, :, ::-1] if coins[i] else image)
    seen = {(top, left, coin) for (top, left), coin in zip(offsets, coins, strict=True)}
    assert len(seen) > 100


def test_crop_flip_reaches_every_offset_and_both_flips_evenly():
    n, size = 8100, 12
    # One bright pixel off the centre of a wide enough image tells offset and flip apart.
    x = torch.zeros(n, 1, size, 2 * size)
    x[:, :, 6, 6], x[:, :, 6, 7] = 1.0, 0.5
    out = augment("crop-flip")(x, generator())
    bright = (out == 1).flatten(1).int().argmax(1)
    row, column = bright // (2 * size), bright % (2 * size)
    mirrored = column > size
    top = 6 + 4 - row
    left = torch.where(mirrored, 6 + 4 - (2 * size - 1 - column), 6 + 4 - column)
    cells = torch.bincount((top * 9 + left) * 2 + mirrored.long(), minlength=162)
    assert bool((out == 1).flatten(1).any(1).all())
    assert len(cells) == 162
    assert bool((cells > 0).all())
    # Chi-square with 161 degrees of freedom: mean 161, standard deviation 18.
    chi = float(((cells - n / 162) ** 2 / (n / 162)).sum())
    assert abs(chi - 161) < 5 * 18


def test_rotation_turns_by_at_most_five_degrees_both_ways():
    h, w = 41, 61
    columns = torch.arange(w) - 30.0
    # The image is a plane, which bilinear sampling reproduces exactly: its slopes give the angle.
    x = (0.5 + 0.01 * columns).expand(500, 1, h, w).clone()
    out = augment("rotate-flip")(x, generator())
    inner = out[:, 0, 15:26, 20:41]
    across = inner.diff(dim=2).mean((1, 2)) / 0.01
    down = inner.diff(dim=1).mean((1, 2)) / 0.01
    assert torch.allclose(across**2 + down**2, torch.ones(500), atol=1e-3)
    assert 0.4 < float((across < 0).float().mean()) < 0.6
    degrees = torch.rad2deg(torch.atan2(-down, across.abs()))
    assert float(degrees.abs().max()) <= 5.01
    assert float(degrees.max()) > 4.8
    assert float(degrees.min()) < -4.8
    assert abs(float(degrees.mean())) < 5 * (5 / 3**0.5) / 500**0.5


def test_rotation_fills_with_zeros_and_stays_in_the_box():
    out = augment("rotate-flip")(torch.ones(50, 1, 32, 32), generator())
    assert float(out.max()) <= 1.0
    assert float(out[:, :, 0, 0].min()) < 0.5
    assert torch.allclose(out[:, :, 8:24, 8:24], torch.ones(()))


def test_rotation_by_a_known_angle_equals_bilinear_sampling_by_hand():
    x = torch.rand(4, 2, 7, 9, dtype=torch.float64)
    out = augment("rotate-flip")(x, generator(5))
    draws = generator(5)
    angles = (2 * torch.rand(4, generator=draws, dtype=torch.float64) - 1) * np.deg2rad(5)
    coins = torch.randint(2, (4,), generator=draws)
    for i in range(4):
        cos, sin = np.cos(float(angles[i])), np.sin(float(angles[i]))
        image = x[i].numpy()
        image = np.pad(image, ((0, 0), (2, 2), (2, 2)))
        expected = np.zeros((2, 7, 9))
        for r in range(7):
            for c in range(9):
                u, v = c - 4.0, r - 3.0
                column, row = cos * u - sin * v + 4 + 2, sin * u + cos * v + 3 + 2
                a, b = int(np.floor(row)), int(np.floor(column))
                s, t = row - a, column - b
                expected[:, r, c] = (1 - s) * ((1 - t) * image[:, a, b] + t * image[:, a, b + 1]) + s * (
                    (1 - t) * image[:, a + 1, b] + t * image[:, a + 1, b + 1]
                )
        if coins[i]:
            expected = expected[:, :, ::-1]
        assert np.allclose(out[i].numpy(), expected, atol=1e-12)
