"""A box for each channel: bounds, recipes, options, result files, and data that bring their own."""

import io
import json
import math
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from bound_networks import METHOD, NORM, encloses, ending, inputs, shuffled
from matplotlib import image
from torch import nn

from atent import Threat, load, plots
from atent.attacks import PGD, AutoAttack, Square
from atent.certify import Smoothed, bounds, margins, verified
from atent.certify.region import region
from atent.certify.rounding import Arithmetic
from atent.cli import main
from atent.cli.jobs import recipe_job
from atent.data import from_tensors
from atent.experiments.recipe_files import UsageError
from atent.experiments.recipes import job
from atent.experiments.results.base import Adversary
from atent.experiments.target import load_target
from atent.methods import CROWNIBP, PGDAT, Standard
from atent.models import Normalize
from atent.paper.theory.equivalence import without_noise
from atent.report.collect import read
from atent.report.commands import certified_by
from atent.report.samples import gallery
from atent.report.words import threat as told
from atent.testing import check_attack
from atent.train import TrainSettings, fit

BOXES = (0.0, -1.0, 0.25), (1.0, 2.0, 0.5)  # float32 numbers, and so are their widths: `Normalize` keeps those
EPS = {"linf": 0.05, "l2": 0.3}


def sides(x, boxes=BOXES):
    """The boxes' sides in the form of x."""
    return (torch.tensor(side, dtype=x.dtype).view(1, 3, 1, 1) for side in boxes)


def scaled(net, boxes):
    """A network of inputs in [0, 1] that takes inputs of the boxes."""
    low, high = boxes
    return nn.Sequential(Normalize(low, [b - a for a, b in zip(low, high)]), net).double().eval()


def coloured():
    """A float64 network for three channels of 4 x 4, and inputs in [0, 1] of which some are at its ends."""
    return shuffled(ending(nn.Conv2d(3, 4, 3), nn.ReLU(), width=16)), inputs((3, 4, 4))


def near(a, b):
    """Equal to the rounding that the bounds allow for, far below any change of a formula."""
    return torch.allclose(a, b, rtol=1e-9, atol=1e-9)


@NORM
@METHOD
def test_bounds_in_shifted_boxes_are_those_of_the_shifted_network(norm, method):
    boxes = (0.0, -1.0, 0.25), (1.0, 0.0, 1.25)
    net, unit = coloured()
    low, _ = sides(unit, boxes)
    for eps in (EPS[norm], 0.9):
        found = bounds(scaled(net, boxes), unit + low, Threat(norm, eps, boxes), method)
        assert all(map(near, found, bounds(net, unit, Threat(norm, eps), method)))


@METHOD
def test_a_ball_that_covers_every_box_bounds_the_whole_network(method):
    net, unit = coloured()
    low, high = sides(unit)
    wide = Threat("linf", 9.0, BOXES, allow_large_eps=True)
    found = bounds(scaled(net, BOXES), low + unit * (high - low), wide, method)
    assert all(map(near, found, bounds(net, unit, Threat("linf", 9.0, allow_large_eps=True), method)))


@NORM
@METHOD
def test_bounds_enclose_what_attacks_find_in_the_boxes(norm, method):
    net, unit = coloured()
    low, high = sides(unit)
    x = torch.minimum(torch.maximum(low + unit * (high - low), low), high)
    encloses(scaled(net, BOXES), x, Threat(norm, EPS[norm], BOXES), method, random=40)


def test_a_linear_network_has_a_closed_form_in_its_boxes():
    net, unit = shuffled(nn.Sequential(nn.Flatten(), nn.Linear(48, 3))), coloured()[1]
    low, high = sides(unit)
    x = torch.minimum(torch.maximum(low + unit * (high - low), low), high)
    lower, upper = bounds(net, x, Threat("linf", 0.3, BOXES), "ibp")
    least, most = (torch.maximum(x - 0.3, low)).flatten(1), (torch.minimum(x + 0.3, high)).flatten(1)
    w, b = net[1].weight, net[1].bias
    assert near(lower, least @ w.clamp(min=0).T + most @ w.clamp(max=0).T + b)
    assert near(upper, most @ w.clamp(min=0).T + least @ w.clamp(max=0).T + b)


@NORM
def test_the_region_holds_what_a_float32_attack_may_return(norm):
    x = torch.rand(50, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    # 0.2 and 0.7 are no float32 numbers: what an attack clamps to lies beyond one of them.
    boxes = (0.2, -1.0, 0.0), (0.7, 2.0, 0.1)
    threat = Threat(norm, 0.4, boxes)
    x = threat.clamp(3 * x - 1)
    place = region(x, threat, Arithmetic(torch.float32))
    moved = threat.project(x + torch.where(x > 0.3, 1.0, -1.0), x)
    assert threat.contains(moved, x).all()
    assert ((place.lower <= moved.double()) & (moved.double() <= place.upper)).all()
    low, high = sides(place.lower, boxes)
    assert (place.lower >= low - 1e-7).all()
    assert (place.upper <= high + 1e-7).all()


def test_bounds_of_other_channels_are_refused_in_one_line():
    net, x = coloured()
    with pytest.raises(ValueError, match=r"^the threat's box is for 2 channels, got inputs of 3: [^\n]*$"):
        bounds(net, x, Threat("linf", 0.1, ((0.0, 0.0), (1.0, 1.0))))


def test_the_public_check_takes_one_box_for_all_channels():
    with pytest.raises(ValueError, match=r"^check_attack needs a threat with one box[^\n]*$"):
        check_attack(PGD(Threat("linf", 0.1, BOXES)))


def test_the_walk_without_noise_stays_in_the_boxes():
    net, unit = coloured()
    low, high = sides(unit)
    x = low + unit * (high - low)
    model = scaled(net, BOXES)
    rows = without_noise(model, x, model(x).argmax(1), gamma=0.5, eps=0.5, box=BOXES)
    assert rows[0].verdict == "holds"


# ---- settings, options, files


def test_a_recipe_and_an_option_give_a_box_for_each_channel():
    tables = {"method": {"name": "PGDAT", "threat": {"norm": "linf", "eps": 0.1, "box": [list(s) for s in BOXES]}}}
    assert job(tables, None).method.threat.box == BOXES
    for words, box in (
        (["0,-1,0.25", "1,2,0.5"], BOXES), (["-1,-2", "0,0"], ((-1.0, -2.0), (0.0, 0.0))), (["-2", "3"], (-2.0, 3.0)),
        (["0,", "1,"], ((0.0,), (1.0,))),
    ):  # fmt: skip
        made, _ = recipe_job("digits-linf-pgdat", ["--method.threat.box", *words], prog="atent train")
        assert made.method.threat.box == box
    for words in (["a", "1"], ["0"], ["0,1", "1"], []):
        with pytest.raises((UsageError, ValueError)) as caught:
            recipe_job("digits-linf-pgdat", ["--method.threat.box", *words], prog="atent train")
        assert "\n" not in str(caught.value)
    for box in ([0.0], ["a", 1.0], [[0.0, 1.0], 1.0], [[0.0], [1.0, 2.0]], [1.0, 0.0]):
        tables["method"]["threat"]["box"] = box
        with pytest.raises(UsageError, match=r"^method.threat"):
            job(tables, None)


def test_a_result_file_keeps_the_boxes():
    threat = Threat("l2", 0.5, BOXES)
    content = json.loads(json.dumps(threat.plain()))
    kept = Adversary(**content)
    assert kept.threat() == threat
    assert "each channel in its own range" in told(content)
    assert "each channel" not in told(Threat("l2", 0.5).plain())


def coloured_data():
    """Three classes of 3 x 6 x 6 images, each brighter in one channel, in their boxes."""
    g, y = torch.Generator().manual_seed(0), torch.arange(90) % 3
    x = 0.3 * torch.rand(90, 3, 6, 6, generator=g)
    x[torch.arange(90), y, 2:5, 2:5] += 0.6
    low, high = sides(x)
    x = torch.minimum(torch.maximum(low + x * (high - low), low), high)
    return from_tensors(x[:60], y[:60], x[60:], y[60:], box=BOXES)


def network(classes=3, shape=(3, 6, 6)):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 12), nn.ReLU(), nn.Linear(12, classes))


@pytest.mark.parametrize("method", [PGDAT, CROWNIBP])
def test_data_with_boxes_are_trained_on_evaluated_and_verified(method, tmp_path):
    data = coloured_data()
    threat = Threat("linf", 0.02, BOXES)
    settings = TrainSettings(epochs=1, batch_size=20, validate_attack="PGD(steps=2)")
    fit(network(), data, method(threat), settings=settings, run=tmp_path / "run", progress=False)
    who = load_target(
        str(tmp_path / "run"), model=f"{__name__}:network", data=f"{__name__}:coloured_data", attacks=("FGSM",)
    )
    assert who.threat == threat
    x, y, _ = who.test()
    sure = verified(who.model, x, y, who.threat)
    for attack in who.attacks.values():
        assert not attack.run(who.model, x, y).success[sure].any()
    below = margins(who.model, x, y, replace(threat, box=(-1.0, 2.0)))
    assert (margins(who.model, x, y, threat) >= below - 1e-5).all()
    assert len(Smoothed(who.model, 0.25).predict(x[:2], n=20, alpha=0.1)) == 2


def test_a_report_shows_the_images_in_their_boxes(tmp_path):
    """Each channel between its own ends is 0 to 255; with one scale for all of them no white pixel would be white."""
    data = coloured_data()
    settings = TrainSettings(epochs=1, batch_size=20, validate_attack="none")
    fit(network(), data, PGDAT(Threat("linf", 0.02, BOXES)), settings=settings, run=tmp_path / "run", progress=False)
    run = read(tmp_path / "run", model=f"{__name__}:network", data=f"{__name__}:coloured_data")
    shown = gallery(run, 3, progress=False)
    low, high = sides(data.test.x)
    for sample in shown.samples:
        x = data.test.x[data.test.ids == sample.number]
        wanted = (255 * (x - low) / (high - low)).round()[0].permute(1, 2, 0)
        found = torch.from_numpy(image.imread(io.BytesIO(sample.original.png))[..., :3] * 255).round()
        assert (wanted - found).abs().max() <= 1
    assert certified_by(run) == ("--sigma", "0.75")


OWN = """
import torch
from torch import nn
from atent.data import from_tensors

def images():
    x, y = 2 * torch.rand(24, 1, 4, 4) - 1, torch.arange(24) % 2
    return from_tensors(x, y, x, y, box=(-1, 1))

def vectors():
    data = images()
    return from_tensors(data.train.x.flatten(1), data.train.y, data.test.x.flatten(1), data.test.y, box=(-1, 1))

def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 2))
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A module of the user's own in the working folder: its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_boxes.py").write_text(OWN)
    yield "own_boxes"
    sys.modules.pop("own_boxes", None)


def test_attack_draws_images_of_another_box(own, capsys):
    """Before: 'images lie in [0, 1], not in [-1, 0.998]', after the attack."""
    words = ["--norm", "linf", "--eps", "0.2", "--attack", "FGSM", "--limit", "4", "--quiet"]
    assert main(["attack", f"{own}:net", "--data", f"{own}:images", *words, "--out", "a.npz", "--png", "a.png"]) == 0
    assert Path("a.png").read_bytes().startswith(b"\x89PNG")
    capsys.readouterr()
    assert main(["attack", f"{own}:net", "--data", f"{own}:vectors", *words, "--out", "b.npz", "--png", "b.png"]) == 2
    assert "--png draws images of 1 or 3 channels" in capsys.readouterr().err
    assert not Path("b.npz").exists()


def test_pixels_are_the_place_in_the_box_of_each_channel():
    x = torch.tensor([[[[0.0]], [[2.0]]], [[[1.0]], [[-1.0]]]])
    assert plots.pixels(x, ((0.0, -1.0), (1.0, 2.0))).flatten().tolist() == [0.0, 1.0, 1.0, 0.0]
    ends = torch.tensor([[[[-0.1]]], [[[0.1]]]])
    assert plots.pixels(ends, (-0.1, 0.1)).flatten().tolist() == [0.0, 1.0]


def test_an_augmentation_of_own_samples_that_are_no_images_is_refused(own, capsys):
    """Before: 'augmentation got torch.float32 (21, 16)', without the setting."""
    words = ["--data.name", f"{own}:vectors", "--model.name", "mlp", "--method.threat.box", "-1", "1"]
    assert main(["train", "own-linf-pgdat", *words]) == 2
    assert "data.augment is 'flip'" in (said := capsys.readouterr().err)
    assert "use 'none'" in said


@pytest.mark.parametrize("box", [(0.2, 1.0), ((-1.0, 0.1), (1.0, 0.9)), (-2.0, -1.0)])
@pytest.mark.parametrize("name", ["crop-flip", "rotate-flip"])
def test_an_augmentation_that_pads_beyond_the_box_is_refused(box, name):
    """Before: the padded zeros were trained on, or clamped to the end of the box by an adversary."""
    threat = Threat("linf", 0.05, box)
    x, y = threat.clamp(4 * torch.rand(24, 2, 4, 4) - 2), torch.arange(24) % 2
    data = from_tensors(x, y, x, y, validation=4, box=box)
    net, settings = nn.Sequential(nn.Flatten(), nn.Linear(32, 2)), TrainSettings(epochs=1, device="cpu")
    with pytest.raises(ValueError, match="pads images with 0, outside the box"):
        fit(net, data, PGDAT(threat, steps=1), settings=settings, augmentation=name, progress=False)
    assert fit(net, data, PGDAT(threat, steps=1), settings=settings, augmentation="flip", progress=False).history
    vectors = from_tensors(x.flatten(1), y, x.flatten(1), y, validation=4, box=(-2.0, 2.0))
    with pytest.raises(ValueError, match="has no images: use 'none'"):
        fit(net, vectors, Standard(), settings=settings, augmentation=name, progress=False)


@pytest.mark.parametrize("shape", [(2, 9), (2, 3, 4, 5)], ids=["signals", "volumes"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.2), ("l2", 1.0), ("l1", 3.0)])
def test_square_searches_samples_that_are_no_images_in_the_box_of_each_channel(shape, norm, eps):
    """Before: 'the threat's box is for 2 channels, got inputs of 1', and the same for AutoAttack."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(math.prod(shape), 3))
    x = 0.3 + 0.4 * torch.rand(5, *shape)
    y = net(x).argmax(1)
    one, same, other = (
        Square(Threat(norm, eps, box), queries=40).run(net, x, y)
        for box in ((-1.0, 2.0), ((-1.0, -1.0), (2.0, 2.0)), ((-1.0, 0.25), (2.0, 0.75)))
    )
    assert torch.allclose(one.x_adv, same.x_adv, atol=1e-6)
    assert other.x_adv[:, 1].min() >= 0.25
    assert other.x_adv[:, 1].max() <= 0.75
    assert AutoAttack(Threat(norm, eps, ((-1.0, 0.0), (2.0, 1.0)))).run(net, x[:2], y[:2]).x_adv.shape == x[:2].shape


def test_a_normalisation_of_weights_for_vectors(own, capsys):
    """Before: mean and std were broadcast as those of images, and an input range was one of [0, 1]."""
    module = import_module(own)
    torch.manual_seed(0)
    made = module.net()
    torch.save(made.state_dict(), "weights.pt")
    model = load("weights.pt", model=f"{own}:net", classes=2, shape=(16,), mean=(0.5,), std=(2.0,))
    x, _ = module.vectors().test.batch(range(24))
    torch.testing.assert_close(model(x), made((x - 0.5) / 2))
    words = ["evaluate", "weights.pt", "--model", f"{own}:net", "--data", f"{own}:vectors", "--norm", "linf"]
    words += ["--eps", "0.1", "--attacks", "FGSM", "--quiet"]
    assert main([*words, "--mean", "0.5", "--std", "2"]) == 0
    capsys.readouterr()
    assert main([*words, "--input-range", "-1..1"]) == 2
    assert "is for pixels in [0, 1], and the data lie in [-1, 1]" in capsys.readouterr().err
