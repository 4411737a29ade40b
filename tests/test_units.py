"""Every attack is the same in a box of any width: 255 times the box and eps give 255 times the result."""

import math

import pytest
import torch
from kit import threat_in
from torch import nn

from atent.attacks import ATTACKS
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


class Shrink(nn.Module):
    """The network for inputs in another box."""

    def __init__(self, body, box):
        super().__init__()
        self.body, (self.low, self.high) = body, box

    def forward(self, x):
        return self.body((x - self.low) / (self.high - self.low))


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


@pytest.mark.parametrize(
    ("name", "settings", "norm", "eps"), [pytest.param(*case, id=" ".join(map(str, case))) for case in cases()]
)
@pytest.mark.parametrize("box", BOXES, ids=str)
def test_a_box_is_a_unit_of_length(name, settings, norm, eps, box, conv_net, batch):
    model, (x, y) = conv_net(), batch(6)
    width = box[1] - box[0]
    wide_model = Shrink(model, box)

    # A coordinate at a wall of the box is at the wall of the other, to the bit.
    scaled = torch.where(x == 1, box[1], box[0] + width * x)
    far = eps if norm in COUNTS else eps * width
    small = made(name, settings, threat_in(norm, eps), model).run(model, x, y)
    wide = made(name, settings, threat_in(norm, far, box=box), wide_model).run(wide_model, scaled, y)
    assert torch.equal(wide.success, small.success)
    moved = (wide.x_adv - box[0]) / width
    # Rounding in the two boxes differs by some 1e-16 of a coordinate, and no search here multiplies it by 1e8.
    assert float((moved - small.x_adv).abs().max()) <= 1e-8
    assert torch.equal(wide.forwards, small.forwards)
