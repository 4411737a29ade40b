"""Check a reported robust accuracy: evaluate a `.pt` file and compare the result with the claim.

    python check_a_claim.py weights.pt digits_cnn 0.85

Without arguments it checks its own claim: the accuracy of a network by standard training under PGD with 2 short steps.
"""

import sys
import tempfile
from pathlib import Path

import torch

import atent
from atent import Threat
from atent.attacks import PGD, AutoAttack
from atent.data import DataSettings, load
from atent.evaluate import evaluate, masking_checks
from atent.methods import Standard
from atent.models import build
from atent.stats import percent
from atent.train import TrainSettings, fit

DATA, THREAT = DataSettings("digits"), Threat("linf", 0.1)


def published(place: Path, epochs: int) -> tuple[str, str, float]:
    """A file of weights, the name of its network, and the claimed robust accuracy."""
    data = load(DATA)
    torch.manual_seed(0)
    fitted = fit(build("digits_cnn"), data, Standard(), settings=TrainSettings(epochs=epochs), progress=False)
    torch.save({"state_dict": fitted.model.state_dict()}, place)
    weak = PGD(THREAT, steps=2, step_size=0.005, start="zero")
    x, y = data.sample("test", 100).batch(range(100))
    return str(place), "digits_cnn", evaluate(fitted.model, x, y, attacks=[weak]).worst["value"]


def main(file: str = "", network: str = "", claim: float = 0.0, epochs: int = 10, images: int = 100) -> bool:
    """Whether the claim is at most the upper limit of the 95 % interval of the measured robust accuracy."""
    with tempfile.TemporaryDirectory() as folder:
        if not file:
            file, network, claim = published(Path(folder) / "weights.pt", epochs)
        model = atent.load(file, model=network)
    x, y = load(DATA).sample("test", images).batch(range(images))
    found = evaluate(model, x, y, attacks=[PGD(THREAT, steps=20), AutoAttack(THREAT)])
    supported = float(claim) <= found.worst["high"]
    print(f"claimed robust accuracy {float(claim):.1%}:", "supported" if supported else "refuted")
    print(f"measured {percent(found.worst)}, n = {images}")
    for check in masking_checks(model, x, y, THREAT):
        if not check.passed:
            print(f"warning, {check.name}: {check.figure}")
    return supported


if __name__ == "__main__":
    main(*sys.argv[1:])
