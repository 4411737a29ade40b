"""Data sets, their splits, and augmentation on the device.

    data = load(DataSettings(name="digits")).to("cpu")
    x, y = data.train.batch(torch.randperm(len(data.train))[:128])
    x = augment("crop-flip")(x, generator)

A new source is one file with a loader `(root) -> Source`, and one line in `SOURCES`.
"""

from collections.abc import Callable

import numpy as np

from atent.data import checks
from atent.data.augmentation import AUGMENTATIONS, augment
from atent.data.cifar import cifar10
from atent.data.digits import digits
from atent.data.folder import folder
from atent.data.mnist import fashion_mnist, mnist
from atent.data.moons import moons
from atent.data.npz import npz
from atent.data.settings import DataSettings
from atent.data.split import Data, Source, Split, stratified

__all__ = ["AUGMENTATIONS", "SOURCES", "Data", "DataSettings", "Source", "Split", "augment", "load"]

SOURCES: dict[str, Callable[[str | None], Source]] = {
    "digits": digits,
    "mnist": mnist,
    "fashion-mnist": fashion_mnist,
    "cifar10": cifar10,
    "moons": moons,
    "npz": npz,
    "folder": folder,
}

# Streams of one split_seed that must not be the same numbers.
_VALIDATION, _LIMIT = 0, 1


def load(settings: DataSettings) -> Data:
    """The data set that the settings describe, on the CPU.

    The validation set is drawn from the training part by class share, seeded by `split_seed`; then `limit`
    draws from what is left, so that it never moves the validation set; `test_limit` keeps the first test
    samples. Samples stay in source order.

    Raises ValueError for unknown names, numbers out of range and damaged or inconsistent files, and
    FileNotFoundError for absent ones: one line each, with what was seen and what is allowed.
    """
    loader = checks.lookup(SOURCES, settings.name, "data set")
    augment(settings.augment)
    for name in ("validation", "limit", "test_limit"):
        checks.count(name, getattr(settings, name))
    if not 0 <= settings.split_seed < 2**32:
        raise ValueError(f"data.split_seed is {settings.split_seed}; it must be 0 to 2**32 - 1")
    source = loader(settings.root)
    shape = tuple(source.train.x.shape[1:])
    if settings.augment != "none" and len(shape) != 3:
        raise ValueError(f"data.augment is {settings.augment!r}; {settings.name} has no images: use 'none'")

    y = source.train.y.numpy()
    n = source.validation if settings.validation is None else settings.validation
    # Every class keeps a training sample.
    if not 1 <= n <= len(y) - source.classes:
        most = len(y) - source.classes
        raise ValueError(f"data.validation is {n}; with {len(y)} training samples it must be 1 to {most}")
    carved = stratified(y, n, (settings.split_seed, _VALIDATION), keep=1)
    left = np.setdiff1d(np.arange(len(y)), carved)
    if settings.limit is not None and settings.limit < len(left):
        left = left[stratified(y[left], settings.limit, (settings.split_seed, _LIMIT))]
    train, validation = source.train.take(left.tolist()), source.train.take(carved.tolist())
    test = source.test if settings.test_limit is None else source.test.first(settings.test_limit)
    return Data(
        name=settings.name,
        classes=source.classes,
        shape=shape,
        box=source.box,
        train=train,
        validation=validation,
        test=test,
        about={
            "name": settings.name,
            "missing": None,
            "class_names": None,
            **source.about,
            "verified": all(file["verified"] for file in source.about["files"].values()),
            "available": {"train": len(y), "test": len(source.test)},
            "counts": {"train": len(train), "validation": len(validation), "test": len(test)},
            "split": {"seed": settings.split_seed, "validation": n, "stratified": True},
            "limit": settings.limit,
            "test_limit": settings.test_limit,
        },
    )
