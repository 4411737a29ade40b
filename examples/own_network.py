"""Your network on your images: one folder of images per class, adversarial training, a run folder for the commands.

    python own_network.py PHOTOS      # PHOTOS/train/CLASS/*.png and PHOTOS/test/CLASS/*.png

Without an argument it generates a toy data set of dark and bright images.
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image
from torch import nn

from atent import Threat
from atent.data import DataSettings, load
from atent.methods import PGDAT
from atent.optim import Optimizer
from atent.train import Fitted, TrainSettings, fit


def network(classes: int = 2) -> nn.Module:
    """A network from pixels in [0, 1] to logits, with its normalisation inside. Replace it by your own."""
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(512, classes),
    )  # fmt: skip


def toy(root: Path) -> Path:
    """Write 60 training and 20 test images of each of two classes."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 60), ("test", 20)):
        for name, low in (("night", 0), ("day", 90)):
            place = root / part / name
            place.mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(low, low + 166, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{i:03}.png")
    return root


def main(root: str | None = None, run: str = "runs/own-network", epochs: int = 10) -> Fitted:
    """Train by PGD-AT on the images in ``root``, and write the run folder ``run``."""
    with tempfile.TemporaryDirectory() as folder:
        # Each image is cropped to its central square and resized.
        data = load(DataSettings("folder", root=str(root or toy(Path(folder) / "toy")), size=32))
        settings, optimizer = TrainSettings(epochs=epochs, batch_size=16), Optimizer("Adam", lr=2e-3)
        method = PGDAT(Threat("linf", "8/255"), steps=5)
        # The function that builds the network: with it `atent.load` and the commands can load the run.
        names = {"builder": "own_network:network", "builder_args": {"classes": data.classes}}
        fitted = fit(network(data.classes), data, method, optimizer=optimizer, settings=settings, run=run, **names)
        print(f"validation: clean {fitted.best['validation_clean']}, robust {fitted.best['validation_robust']}")
    return fitted


if __name__ == "__main__":
    main(*sys.argv[1:])
