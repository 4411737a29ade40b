"""A robust classifier of handwritten digits: train with ATENT, evaluate with PGD and AutoAttack."""

import torch

from atent import Threat
from atent.attacks import PGD, AutoAttack
from atent.data import DataSettings, load
from atent.evaluate import evaluate
from atent.methods import ATENT
from atent.models import build
from atent.stats import percent
from atent.train import TrainSettings, fit


def main(epochs: int = 40, images: int = 200) -> float:
    """Train and evaluate; return the robust accuracy under both attacks."""
    torch.manual_seed(0)
    data, threat = load(DataSettings("digits")), Threat("linf", 0.15)
    fitted = fit(build("digits_cnn"), data, ATENT(threat, steps=10), settings=TrainSettings(epochs=epochs))
    x, y = data.sample("test", images).batch(range(images))
    found = evaluate(fitted.model, x, y, attacks=[PGD(threat, steps=20), AutoAttack(threat)])
    print(f"robust accuracy {percent(found.worst)}, n = {images}")
    return found.worst["value"]


if __name__ == "__main__":
    main()
