"""Bands, corruptions, flips, the Fourier map and transfer: identities, resuming, and answers that do not depend on the
batch."""

import math

import pytest
import torch
from torch import nn

from atent import Threat
from atent.attacks import FGSM, PGD
from atent.data.corruptions.sequences import SEQUENCES
from atent.evaluate import (
    fourier_basis,
    fourier_map,
    measure_bands,
    measure_corruptions,
    measure_flips,
    measure_transfer,
    split_bands,
)
from atent.evaluate.bands import BANDS, FULL, band_masks, dct, inverse_dct
from atent.evaluate.craft import craft
from atent.evaluate.fewest import fewest
from atent.stats import mean_of_ratios

THREAT = Threat("linf", 0.15)


class Counting(nn.Module):
    """A network that stops the run at a call."""

    def __init__(self, net, last=math.inf):
        super().__init__()
        self.net, self.calls, self.last = net, 0, last

    def forward(self, x):
        self.calls += 1
        if self.calls > self.last:
            raise KeyboardInterrupt
        return self.net(x)


class Constant(nn.Module):
    """Every input is of class 0."""

    def forward(self, x):
        return torch.tensor([3.0, *[1.0] * 9], dtype=x.dtype).expand(len(x), -1) + 0 * x.flatten(1)[:, :1]


# ---- bands ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("shape", "cut"), [((3, 1, 28, 28), None), ((2, 3, 32, 20), 5), ((2, 1, 8, 8), 1)])
def test_bands_sum_to_the_perturbation_and_share_its_norm(shape, cut):
    d = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    parts = split_bands(d, cut)
    assert tuple(parts) == BANDS
    # Two products of matrices of side 32 or less whose rows have unit norm, there and back: 4 * 32 * 2^-53 of the norm.
    bound = 4 * 32 * 2**-53 * float(d.flatten(1).norm(dim=1).max())
    assert (sum(parts.values()) - d).abs().max() < bound
    squares = sum(part.square().flatten(1).sum(1) for part in parts.values())
    full = d.square().flatten(1).sum(1)
    assert ((squares - full).abs() < 16 * 32 * 2**-53 * full).all()
    assert (inverse_dct(dct(d)) - d).abs().max() < bound


def test_a_constant_is_in_the_low_band_and_stripes_in_a_mixed_one():
    level = torch.full((1, 3, 28, 28), 0.3, dtype=torch.float64)
    parts = split_bands(level)
    assert (parts["low"] - level).abs().max() < 1e-14
    assert max(float(parts[name].abs().max()) for name in ("high", "horizontal", "vertical")) < 1e-14
    # Stripes along the columns of pixels vary along the rows alone.
    stripes = torch.tensor([1.0, -1.0], dtype=torch.float64).repeat(14).expand(1, 1, 28, 28)
    assert (split_bands(stripes, 1)["horizontal"] - stripes).abs().max() < 1e-12
    assert (split_bands(stripes.mT, 1)["vertical"] - stripes.mT).abs().max() < 1e-12
    assert sum(mask.int() for mask in band_masks(6, 9, 2).values()).eq(1).all()


def test_a_linear_models_change_is_the_sum_over_bands():
    torch.manual_seed(2)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4)).double()
    x, d = torch.rand(5, 1, 8, 8).double(), torch.randn(5, 1, 8, 8).double()
    with torch.no_grad():
        parts = sum(net(x + part) - net(x) for part in split_bands(d).values())
        assert (parts - (net(x + d) - net(x))).abs().max() < 1e-12


def test_the_report_on_bands_is_what_its_parts_do(conv_net, batch):
    net, (x, y) = conv_net(), batch(24)
    attack = PGD(THREAT, steps=5)
    found = measure_bands(net, x, y, attack, batch=7)
    ids = torch.arange(24)
    d = attack(net, x, y, ids=ids) - x
    with torch.no_grad():
        right = net(x).argmax(1) == y
        assert torch.equal(found.right, right)
        assert torch.equal(found.robust[FULL], right & (net(x + d).argmax(1) == y))
        for name, part in split_bands(d).items():
            assert torch.equal(found.robust[name], right & (net((x + part).clamp(0, 1)).argmax(1) == y))
            assert (found.energy[name] - right * part.square().flatten(1).sum(1)).abs().max() < 1e-9
    assert found.spectrum.sum() == pytest.approx(1)
    shares = found.shares()
    assert torch.allclose(sum(shares.values()), torch.ones(int(right.sum()), dtype=torch.float64))
    # The spectrum's blocks are the means of the shares.
    for name, mask in band_masks(8, 8, 2).items():
        assert float(found.spectrum[mask].sum()) == pytest.approx(float(shares[name].mean()))
    assert sum(found.white.values()) == pytest.approx(1)


# ---- corruptions and flips ---------------------------------------------------------------------------------------


def test_the_mce_of_the_reference_is_one(conv_net, batch):
    net, (x, y) = conv_net(), batch(30)
    found = measure_corruptions(net, x, y, reference=net, names=["fog", "contrast"])
    mce = found.mce()
    assert found.wrong.any()
    assert mce.value == 1
    assert mce.low < 1 < mce.high
    assert set(found.ratios()) <= {1.0, None}
    flips = measure_flips(net, x, y, reference=net, names=["translate"])
    assert flips.mean_flip_rate().value == 1


def test_errors_are_counted_on_the_corrupted_images(conv_net, batch):
    from atent.data.corruptions import corrupt

    net, (x, y) = conv_net(), batch(20)
    ids = torch.arange(20) + 100
    found = measure_corruptions(net, x, y, names=["fog"], ids=ids, seed=3, batch=6)
    for j, severity in enumerate((1, 2, 3, 4, 5)):
        changed = corrupt(x, "fog", severity, ids=ids, seed=3)
        with torch.no_grad():
            assert torch.equal(found.wrong[0, j], net(changed).argmax(1) != y)
        assert float(found.distance[0, j]) == pytest.approx(float((changed - x).flatten(1).norm(dim=1).mean()))
    with pytest.raises(ValueError, match="reference"):
        found.mce()


def test_a_reference_without_errors_leaves_no_ratio(batch):
    x, _ = batch(6)
    y = torch.zeros(6, dtype=torch.int64)
    found = measure_corruptions(Constant(), x, y, reference=Constant(), names=["fog"])
    assert (found.ratios(), found.mce()) == ([None], None)


def test_the_interval_of_a_mean_error_is_one_of_a_share(batch):
    x, _ = batch(6)
    right, wrong = (
        measure_corruptions(Constant(), x, torch.full((6,), label), names=["fog"]).mean_error() for label in (0, 1)
    )
    assert (right.value, right.low, wrong.value, wrong.high) == (0, 0, 1, 1)
    # The largest share of errors that leaves six images without one with a probability of 2.5 %.
    most = 1 - 0.025 ** (1 / 6)
    assert (right.high, wrong.low) == pytest.approx((most, 1 - most))


def test_a_constant_classifier_never_flips(batch):
    x, _ = batch(6)
    found = measure_flips(Constant(), x, torch.zeros(6, dtype=torch.int64))
    assert found.names == tuple(SEQUENCES)
    assert not found.rates.any()
    for rate in (found.mean_rate(), found.rate(0)):
        assert (rate.value, rate.low) == (0, 0)
        assert rate.high == pytest.approx(1 - 0.025 ** (1 / 6))


def test_the_interval_of_a_mean_of_ratios_covers():
    rng = torch.Generator().manual_seed(5)
    inside = 0
    for _ in range(300):
        u = torch.rand(2, 200, generator=rng)
        a, b = (u < torch.tensor([[0.3], [0.1]])).double(), (u < torch.tensor([[0.2], [0.2]])).double()
        found = mean_of_ratios(a.tolist(), b.tolist())
        inside += found.low <= 1.0 <= found.high
    # Of 300 samples with a share of at least 0.93 fewer than 260 remain with a probability below 1e-4.
    assert inside >= 260


# ---- Fourier -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("h", "w"), [(8, 8), (7, 6)])
def test_the_basis_is_orthonormal_and_each_image_of_one_frequency(h, w):
    basis = fourier_basis(h, w).reshape(h * w, h * w)
    assert (basis @ basis.T - torch.eye(h * w, dtype=torch.float64)).abs().max() < 1e-13
    images = basis.view(h, w, h, w)
    assert (images[h // 2, w // 2] - 1 / math.sqrt(h * w)).abs().max() < 1e-15
    spectrum = torch.fft.fft2(images[h // 2 + 2, w // 2 + 1]).abs()
    loud = {tuple(place) for place in (spectrum > 1e-9).nonzero().tolist()}
    assert loud == {(2, 1), (h - 2, w - 1)}


def test_a_model_of_the_mean_errs_in_the_centre_alone():
    """A linear model of the mean of an image is fooled only by the constant frequency."""

    class Mean(nn.Module):
        def forward(self, x):
            m = x.mean((1, 2, 3))
            return torch.stack((0.5 - m, m - 0.5), 1)

    x = torch.full((6, 1, 8, 8), 0.45, dtype=torch.float64)
    # Twice as far as the threshold, and small enough that no pixel leaves the box.
    found = fourier_map(Mean(), x, torch.zeros(6, dtype=torch.int64), eps=0.8)
    assert not found.clean_wrong.any()
    assert found.errors[4, 4] > 0
    found.errors[4, 4] = 0
    assert not found.errors.any()


# ---- transfer --------------------------------------------------------------------------------------------------


def test_the_diagonal_is_the_white_box_attack(conv_net, batch):
    nets, (x, y) = {"a": conv_net(), "b": conv_net(norm=True)}, batch(20)
    attack = FGSM(THREAT)
    found = measure_transfer(nets, x, y, attack, batch=6)
    for i, source in enumerate(nets.values()):
        x_adv = attack(source, x, y)
        for j, net in enumerate(nets.values()):
            with torch.no_grad():
                right = net(x).argmax(1) == y
                assert torch.equal(found.right[j], right)
                assert torch.equal(found.robust[i, j], right & (net(x_adv).argmax(1) == y))
    with pytest.raises(ValueError, match="two networks"):
        measure_transfer({"a": nets["a"]}, x, y, attack)


# ---- all of them ------------------------------------------------------------------------------------------------

STUDIES = {
    "bands": lambda net, x, y, **how: measure_bands(net, x, y, PGD(THREAT, steps=2), **how),
    "corruptions": lambda net, x, y, **how: measure_corruptions(net, x, y, names=["fog", "contrast"], **how),
    "flips": lambda net, x, y, **how: measure_flips(net, x, y, names=["rotate", "gaussian_noise"], **how),
    "fourier": lambda net, x, y, **how: fourier_map(net, x, y, **how),
    "transfer": lambda net, x, y, **how: measure_transfer({"a": net, "b": Constant()}, x, y, FGSM(THREAT), **how),
}


def tensors(found):
    """All results of a study, by name."""
    flat = {}
    for name, value in vars(found).items():
        flat |= {f"{name} {key}": v for key, v in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def same(one, other, rounding=0.0):
    for name, value in tensors(one).items():
        twin = tensors(other)[name]
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            assert (value - twin).abs().max() <= rounding, name
        else:
            assert torch.equal(value, twin) if isinstance(value, torch.Tensor) else value == twin, name


@pytest.mark.parametrize("study", STUDIES)
def test_the_batch_does_not_matter(study, conv_net, batch):
    net, (x, y) = conv_net(), batch(8)
    # Energies and distances are sums of up to 64 squares of numbers below 1, in another order.
    same(STUDIES[study](net, x, y, batch=8), STUDIES[study](net, x, y, batch=5), 1e-9)


@pytest.mark.parametrize("study", STUDIES)
def test_a_killed_study_resumes(study, conv_net, batch, tmp_path):
    net, (x, y) = conv_net(), batch(6)
    full = Counting(net)
    wanted = STUDIES[study](full, x, y, batch=3)
    file = tmp_path / "study.jsonl"
    with pytest.raises(KeyboardInterrupt):
        STUDIES[study](Counting(net, full.calls * 2 // 3), x, y, batch=3, resume=file)
    rest = Counting(net)
    same(STUDIES[study](rest, x, y, batch=3, resume=file), wanted)
    assert rest.calls < full.calls
    with pytest.raises(ValueError, match="other seed") as error:
        STUDIES[study](rest, x, y, batch=3, resume=file, seed=1)
    assert "\n" not in str(error.value)


def test_a_study_of_other_definitions_of_the_corruptions_is_not_resumed(conv_net, batch, tmp_path, monkeypatch):
    net, (x, y) = conv_net(), batch(4)
    monkeypatch.setattr("atent.evaluate.corruptions.DEFINITIONS", 1)
    STUDIES["corruptions"](net, x, y, resume=tmp_path / "study.jsonl")
    monkeypatch.undo()
    with pytest.raises(ValueError, match="other definitions"):
        STUDIES["corruptions"](net, x, y, resume=tmp_path / "study.jsonl")


@pytest.mark.parametrize("study", STUDIES)
def test_bad_samples_are_refused_in_one_line(study, conv_net, batch):
    net, (x, y) = conv_net(), batch(4)
    bad = [(x[:1], y[:1], "two samples"), (x * 2, y, "outside the box"), (x, y[:3], "labels")]
    if study != "transfer":
        bad.append((x.flatten(1), y, "images"))
    for inputs, labels, what in bad:
        with pytest.raises(ValueError, match=what) as error:
            STUDIES[study](net, inputs, labels)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        (lambda net, x, y: measure_bands(net, x, y, FGSM(THREAT), cut=8), "1 to 7"),
        (lambda net, x, y: measure_bands(net, x, y, FGSM(Threat("linf", 8))), "box width"),
        (lambda net, x, y: measure_corruptions(net, x, y, names=["snow"]), "snow"),
        (lambda net, x, y: measure_corruptions(net, x, y, names=[]), "empty"),
        (lambda net, x, y: measure_corruptions(net, x, y, names=["fog", "contrast", "fog"]), "'fog' is given twice"),
        (lambda net, x, y: measure_flips(net, x, y, names=["tilt", "tilt"]), "'tilt' is given twice"),
        (lambda net, x, y: measure_flips(net, x, y, names=["tilt"]), "tilt"),
        (lambda net, x, y: fourier_map(net, x, y, eps=0.0), "above 0"),
    ],
)
def test_bad_settings_are_refused_in_one_line(call, what, conv_net, batch):
    with pytest.raises(ValueError, match=what) as error:
        call(conv_net(), *batch(4))
    assert "\n" not in str(error.value)


# ---- arguments that are close to what is wanted


def refused(call, *parts):
    with pytest.raises(ValueError, match=r".") as caught:
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert [part for part in parts if part not in text] == [], text


def small():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), torch.rand(6, 1, 8, 8), torch.arange(6) % 3


def test_names_are_a_list():
    """Before: the letters of a text were looked up, "corruption 'f' is not known"."""
    net, x, y = small()
    refused(lambda: measure_corruptions(net, x, y, names="fog"), "names must be a list of corruptions", "['fog']")
    refused(lambda: measure_flips(net, x, y, names="rotate"), "names must be a list of sequences", "['rotate']")
    refused(lambda: measure_flips(net, x, y, names=3), "names must be a list")
    for measure in (measure_corruptions, measure_flips):
        refused(lambda measure=measure: measure(net, x, y, names=[]), "names is empty")
    assert measure_flips(net, x, y, names=iter(["rotate"])).names == ("rotate",)


@pytest.mark.parametrize("attack", [FGSM, "FGSM", None])
def test_the_attack_of_a_study_is_an_attack(attack):
    """Before: AttributeError, no attribute 'threat'."""
    net, x, y = small()
    parts = "attack must be an attack", "write PGD(threat)"
    refused(lambda: measure_bands(net, x, y, attack), *parts)
    refused(lambda: measure_transfer({"a": net, "b": net}, x, y, attack), *parts)
    refused(lambda: craft(net, x, y, attack), *parts)
    refused(lambda: fewest(net, x, y, attack), *parts)
    refused(lambda: measure_transfer([net, net], x, y, FGSM(THREAT)), "networks by name", "a list")


def test_an_eps_of_the_fourier_map_is_a_number_or_a_fraction():
    net, x, y = small()
    assert fourier_map(net, x, y, eps="8/255").eps == 8 / 255
    for eps in (-1, 0, math.nan, "much"):
        refused(lambda eps=eps: fourier_map(net, x, y, eps=eps), "fourier eps")
