"""What the user says about the data."""

from dataclasses import dataclass
from typing import Literal, get_args

from atent.checks import Settings

Rule = Literal["stratified", "first"]
"""Rule that selects a subset: a seeded, class-stratified sample, or the first samples."""

READING = ("root", "resident", "cache", "workers")
"""The fields of `DataSettings` that say where data are stored and how they are read; batches do not depend on them."""

Limit = int | Literal["all"] | None
"""A number of samples, or all of them: "all" or None."""


def everything(limit: Limit) -> int | None:
    """A limit on the number of samples, with None for "all".

    Parameters
    ----------
    limit
        A number of samples, "all" or None.

    Returns
    -------
    int or None
        The number; None: no limit.

    Raises
    ------
    ValueError
        For a string other than "all".

    Examples
    --------
    >>> from atent.data import everything
    >>> everything(100), everything("all"), everything(None)
    (100, None, None)
    """
    if isinstance(limit, str) and limit != "all":
        raise ValueError(f"a limit is an integer or 'all', got {limit!r}")
    return None if limit == "all" else limit


def check_rule(rule: str) -> None:
    """ValueError for an unknown rule."""
    if rule not in get_args(Rule):
        raise ValueError(f"subset {rule!r} is not known: use {' or '.join(get_args(Rule))}")


@dataclass(frozen=True)
class DataSettings(metaclass=Settings):
    """Which data set, where it is stored, how it is split and augmented. Checked by `atent.data.load`.

    Examples
    --------
    >>> from atent.data import DataSettings, load
    >>> settings = DataSettings("digits", validation=100, limit=500, augment="crop-flip")
    >>> load(settings)
    Data('digits', 10 classes, shape (1, 8, 8), 500 train, 100 validation, 500 test)
    """

    name: str = "digits"
    """Data set: digits, mnist, fashion-mnist, cifar10, cifar100, svhn, tiny-imagenet, imagenet, moons, two-class
    (MNIST's 5 and 8 in the plane, by t-SNE), npz (your arrays), folder (your images), table (your CSV file), hf:NAME
    (of the Hugging Face Hub) or hf:/PATH, or your own, as module:function that returns Data, as `from_tensors` does, or
    a pair (train, test) of torch Datasets, or as module:pair."""

    root: str | None = None
    """Folder of the data (npz: the file itself; two-class: that of MNIST, or the file of the points). Default:
    $ATENT_DATA_ROOT, else ./data."""

    validation: int | None = None
    """Number of training samples that are set aside to select models. Default: 200 for digits, 1000 for MNIST,
    Fashion-MNIST and CIFAR-10, otherwise 10 % of the training set and at most 1000."""

    split_seed: int = 0
    """Seed of the validation split, of the subset of `limit`, and of every stratified subset for evaluation."""

    subset: Rule = "stratified"
    """How subsets are selected: stratified, each class by its share, seeded by split_seed; or first, the first samples
    in source order, which cover few classes if the source is sorted by class."""

    limit: Limit = None
    """Train on at most this many samples, stratified by class, apart from the validation set; all: no limit."""

    test_limit: Limit = None
    """Keep at most this many test samples, selected as subset says; all: no limit."""

    augment: str = "none"
    """Training augmentation: none, flip, crop-flip (zero padding of 4) or rotate-flip (within 5 degrees)."""

    resident: bool | Literal["auto"] = "auto"
    """Keep the images in memory. false: those of folder and npz stay on disk, with the same batches; auto: true, except
    for a folder whose images need more than half of the free memory."""

    cache: str | None = None
    """Folder for the decoded images with data.resident false. Default: .atent-cache in the data folder; off: decode at
    each use, which needs no disk space."""

    size: int | None = None
    """Side in pixels to which the images of a folder are resized, after a crop to their central square. Default: no
    resizing; all must have the same size."""

    workers: int | None = None
    """Threads that decode images. Default: one per CPU core, at most 8; 0: no prefetching."""

    generated: str | None = None
    """File of generated images, .npz with image (uint8, channels last) and label, for a share of each batch."""

    generated_share: float | None = None
    """Share of each batch that is generated. Default: 0.7 with `generated`."""

    label: str | None = None
    """Name of the class column of a table. Default: label, class, target or y."""

    box: str | None = None
    """Range of all columns of a table, as min..max. Default: the range of each column in the training rows."""

    units: Literal["range", "spread"] = "range"
    """Unit of eps for a table: the range of each column, or its standard deviation in the training rows."""

    def __post_init__(self) -> None:
        for name in ("limit", "test_limit"):
            object.__setattr__(self, name, everything(getattr(self, name)))
