"""Attacks and training are the same in a box of any width, and in boxes of the same width for each channel."""

import math

import pytest
import torch
from kit import distance, gradient, stream, threat_in
from torch import nn

from atent.attacks import ATTACKS
from atent.methods import METHODS
from atent.threat import COUNTS, NORMS

# Few steps: differences of rounding grow along a search.
SETTINGS = {
    "FGSM": [{}],
    "IFGS": [{}],
    "PGD": [
        {"steps": 5},
        {"steps": 5, "start": "gaussian", "loss": "kl"},
        {"steps": 5, "momentum": 1.0, "keep": "best"},
    ],
    "Langevin": [{"steps": 5}, {"steps": 5, "variant": "published"}, {"steps": 4, "gradient": "raw", "anchor": "free"}],
    "APGD": [{"steps": 10}, {"steps": 10, "loss": "dlr-targeted", "targets": 3}],
    "FAB": [{"steps": 10, "restarts": 2}, {"steps": 10, "targets": 3}],
    "Square": [{"queries": 60}],
    "AutoAttack": [{"steps": 5, "targets": 2, "queries": 20}],
    "EoT": [{"attack": "PGD(steps=3)", "samples": 2}],
    "Transfer": [{"attack": "DDN(steps=10)"}, {"attack": "PGD(steps=3)"}],
    "CarliniWagner": [{"steps": 40, "search_steps": 4, "abort_early": True}],
    "DeepFool": [{}],
    "DDN": [{"steps": 30}, {"steps": 20, "levels": 256}],
    "FMN": [{"steps": 30}, {"steps": 30, "projection": "ball"}],
    "ALMA": [{"steps": 30}, {"steps": 30, "penalty": "p3", "constraint": "margin"}],
    "SAPF": [{"steps": 25, "final_steps": 15, "search_steps": 3, "initial_const": 0.1}],
    "SigmaZero": [{"steps": 30}],
    "SparsePGD": [{"steps": 10}],
    "SparseRS": [{"queries": 30}],
    "TokenAttack": [{"steps": 8}],
}
BOXES = [(0.0, 255.0), (-0.003, 0.001)]
# Of each channel its own, all of one width: eps is one length for all of them.
CHANNELS = (-1.0, 0.5), (3.0, 4.5)


def sides(box):
    """The ends of the box in the form of images, and its width."""
    low, high = (torch.tensor(side, dtype=torch.float64).view(1, -1, 1, 1) for side in box)
    return low, high, float((high - low).mean())


class Shrink(nn.Module):
    """The network for inputs in another box."""

    def __init__(self, body, box):
        super().__init__()
        self.body, (self.low, self.high, _) = body, sides(box)

    def forward(self, x):
        return self.body((x - self.low) / (self.high - self.low))


class TwoChannels(nn.Module):
    """A network for one channel, of a weighted sum of two."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body(0.6 * x[:, :1] + 0.4 * x[:, 1:])


def both(x):
    """Images of two channels, which differ."""
    return torch.cat([x, x.flip(3)], 1)


def cases():
    for name, cls in ATTACKS.items():
        for settings in SETTINGS[name]:
            for norm in NORMS:
                eps = float(threat_in(norm).eps)
                for radius in (eps, math.inf) if cls.minimum_norm else (eps,):
                    try:
                        made(name, settings, threat_in(norm, radius), nn.Identity())
                    except ValueError:  # the attack, with these settings, has no form for the norm
                        continue
                    yield name, settings, norm, radius


def made(name, settings, threat, source):
    return ATTACKS[name](threat=threat, **settings, **({"source": source} if name == "Transfer" else {}))


def same(name, settings, norm, eps, box, model, x, y):
    """The attack finds the same in the box as in [0, 1]."""
    low, high, width = sides(box)
    wide_model = Shrink(model, box)
    # A coordinate at a wall of the box is at the wall of the other, to the bit.
    scaled = torch.where(x == 1, high, low + width * x)
    far = eps if norm in COUNTS else eps * width
    small = made(name, settings, threat_in(norm, eps), model).run(model, x, y)
    wide = made(name, settings, threat_in(norm, far, box=box), wide_model).run(wide_model, scaled, y)
    assert torch.equal(wide.success, small.success)
    moved = (wide.x_adv - low) / width
    # Rounding in the two boxes differs by some 1e-16 of a coordinate, and no search here multiplies it by 1e8.
    assert float((moved - small.x_adv).abs().max()) <= 1e-8
    assert torch.equal(wide.forwards, small.forwards)


def marks(case, box):
    """The first box takes every case quickly; in the others, which differ from it in numbers, a case is slow unless it
    is of the first settings of its attack, within a radius."""
    name, settings, _, eps = case
    quick = box == BOXES[0] or (settings is SETTINGS[name][0] and math.isfinite(eps))
    return [] if quick else [pytest.mark.slow]


@pytest.mark.parametrize(
    ("name", "settings", "norm", "eps", "box"),
    [
        pytest.param(*case, box, id=" ".join(map(str, (box, *case))), marks=marks(case, box))
        for box in BOXES
        for case in cases()
    ],
)
def test_a_box_is_a_unit_of_length(name, settings, norm, eps, box, conv_net, batch):
    same(name, settings, norm, eps, box, conv_net(), *batch(6))


@pytest.mark.parametrize(
    ("name", "settings", "norm", "eps"),
    [pytest.param(*case, id=" ".join(map(str, case)), marks=marks(case, CHANNELS)) for case in cases()],
)
def test_boxes_of_one_width_move_each_channel(name, settings, norm, eps, conv_net, batch):
    x, y = batch(6)
    same(name, settings, norm, eps, CHANNELS, TwoChannels(conv_net()), both(x), y)


# Settings in pixel units whose defaults do not follow the box, by method and norm.
LENGTHS = {
    "MART": {"start_noise": 0.001},
    "MMA": {"eps_min": 0.02},
    "SmoothAdv": {"sigma": 0.12},
    "TRADES": {"start_noise": 0.001},
    "TRADESSmoothing": {"sigma": 0.12, "start_noise": 0.001},
}


def trainings():
    for name, cls in METHODS.items():
        # ACL's views are of pixels in [0, 1]; DistilledTRADES without a teacher is TRADES.
        if "threat" in cls.__dataclass_fields__ and name not in ("ACL", "DistilledTRADES"):
            for norm in cls.norms:
                yield pytest.param(name, norm, id=f"{name} {norm}")


@pytest.mark.parametrize(("name", "norm"), list(trainings()))
def test_training_has_the_same_gradient_in_boxes_of_one_width(name, norm, conv_net, batch):
    x, y = both(batch(8)[0]), batch(8)[1]
    low, high, width = sides(CHANNELS)
    eps, lengths = float(threat_in(norm).eps), LENGTHS.get(name, {})
    found = []
    for threat, scale, images, wrap in (
        (threat_in(norm), 1.0, x, lambda net: net),
        (
            threat_in(norm, eps if norm in COUNTS else eps * width, box=CHANNELS),
            width,
            torch.where(x == 1, high, low + width * x),
            lambda net: Shrink(net, CHANNELS),
        ),
    ):
        method = METHODS[name](threat, **{k: v * scale for k, v in lengths.items()})
        model = wrap(TwoChannels(conv_net()))
        state = method.init(8, tuple(x.shape[1:]), x.device)
        # The second pass of a method with a state begins where the first one ended.
        for seed in (1, 2):
            model.zero_grad()
            method.backward(model, images, y, rng=stream(seed), ids=torch.arange(8), state=state)
        found.append(gradient(model))
    assert distance(found[1], found[0]) <= 1e-8
