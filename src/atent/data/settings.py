"""What the user says about the data."""

from dataclasses import dataclass

from atent.checks import Settings


@dataclass(frozen=True)
class DataSettings(metaclass=Settings):
    """Which data set, where it lies, how it is split and augmented. Checked by `atent.data.load`."""

    name: str = "digits"
    """Data set: digits, mnist, fashion-mnist, cifar10, moons, two-class (MNIST's 5 and 8 in the plane, by t-SNE),
    npz (your arrays), folder (your images) or your own, as module:function that gives what `from_tensors` gives."""

    root: str | None = None
    """Folder that holds the data (npz: the file itself; two-class: that of MNIST, or the file of the points). Default:
    $ATENT_DATA_ROOT, else ./data."""

    validation: int | None = None
    """Images carved from the training set to select models on. Default: 200 for digits, 1000 for MNIST,
    Fashion-MNIST and CIFAR-10, otherwise 10 % of the training set and at most 1000."""

    split_seed: int = 0
    """Seed of the validation split and of the choice made by `limit`. It never touches the test set."""

    limit: int | None = None
    """Train on at most this many images, chosen by class share after the validation set was carved."""

    test_limit: int | None = None
    """Keep at most this many test images, the first ones in source order."""

    augment: str = "none"
    """Training augmentation: none, flip, crop-flip (zero padding of 4) or rotate-flip (within 5 degrees)."""
