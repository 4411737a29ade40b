"""Data sets, their splits, and augmentation on the device.

    data = load(DataSettings(name="digits")).to("cpu")
    x, y = data.train.batch(torch.randperm(len(data.train))[:128])
    x = augment("crop-flip")(x, generator)

A new source is one file with a loader `(root) -> Source` and the decorator `dataset`.
"""

import inspect
import itertools
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, fields, replace
from typing import Any, cast

import numpy as np
from torch import Tensor

from atent import trust
from atent.checks import collect, plain
from atent.contracts import kind_of
from atent.data import checks
from atent.data.augmentation import AUGMENTATIONS, augment
from atent.data.augmentation import check as check_augmentation
from atent.data.generated import check as check_generated
from atent.data.generated import mixed
from atent.data.own import dataset_source, tensor_source
from atent.data.reading import Reading
from atent.data.reading import check as check_reading
from atent.data.settings import DataSettings, Limit, Rule, everything
from atent.data.sources import SOURCES, dataset, is_pair
from atent.data.split import SUBSET, Data, Source, Split, spread, stratified, subset
from atent.data.table import Columns
from atent.data.table import check as check_columns
from atent.registry import current_directory_on_path, first_line
from atent.threat import Box, Threat

__all__ = [
    "AUGMENTATIONS", "SOURCES", "Data", "DataSettings", "Limit", "Rule", "Source", "Split", "augment", "collect",
    "dataset", "everything", "from_dataset", "from_tensors", "load", "spread",
]  # fmt: skip

_DEFAULTS = {field.name: field.default for field in fields(DataSettings)}
_TAKEN = {
    "root": ("root",), "reading": tuple(field.name for field in fields(Reading)), "columns": ("label", "box", "units"),
}  # fmt: skip
"""The settings that a loader gets by a parameter."""

# Stream numbers of split_seed, all different; `SUBSET` is another.
_VALIDATION, _LIMIT = 0, 1


def load(settings: DataSettings) -> Data:
    """The data set that the settings describe, on the CPU, in three disjoint splits.

    The validation set is sampled from the training part, stratified by class and seeded by ``split_seed``. ``limit``
    then samples from the remaining training samples, so that it never changes the validation set; ``test_limit``
    selects test samples by ``subset``. Training and test samples keep the order of the source. Validation samples and
    a stratified subset of the test samples are in the order of `spread`, so that each prefix covers all classes; with
    subset "first" everything is in source order.

    Parameters
    ----------
    settings
        Name, folder, splits and augmentation of the data set. A name "module:function" calls a function of your own,
        which returns `Data` or a pair (train, test) of torch Datasets.

    Returns
    -------
    Data
        The training, validation and test splits, with the provenance in ``about``.

    Raises
    ------
    ValueError
        In one line: for an unknown name or augmentation, a number out of range, a setting that has no effect for this
        data set, damaged or inconsistent files, and an error inside a function of your own.
    FileNotFoundError
        If the files of the data set are absent; the message names the folder and how to get them.

    Examples
    --------
    >>> from atent.data import DataSettings, load
    >>> load(DataSettings("digits"))
    Data('digits', 10 classes, shape (1, 8, 8), 1,097 train, 200 validation, 500 test)
    >>> load(DataSettings("digits", limit=100, test_limit=20))
    Data('digits', 10 classes, shape (1, 8, 8), 100 train, 200 validation, 20 test)
    """
    if not isinstance(settings, DataSettings):
        more = f": write load(DataSettings({settings!r}))" if isinstance(settings, str) else ""
        raise ValueError(f"settings must be DataSettings(...), got a {type(settings).__name__}{more}")
    augment(settings.augment)
    loader = SOURCES.find(settings.name)
    for name in ("validation", "limit", "test_limit"):
        checks.count(name, everything(getattr(settings, name)))
    _check_seed(settings)
    root = str(settings.root or "")
    if (
        root.endswith(".npz")
        and settings.name not in ("npz", "table", "two-class")
        and SOURCES.is_built_in(settings.name)
    ):
        raise ValueError(
            f"data.root {root} is a file of arrays, and data.name {settings.name} takes a folder: set data.name to npz"
            " (--data npz)"
        )
    _check_taken(loader, settings)
    made = _loaded(loader, settings)
    check_generated(settings)
    data = carve(made, settings) if isinstance(made, Source) else _own(made, settings)
    data = mixed(data, settings)
    if ":" not in settings.name:
        return data
    # Where no registry knows the name, `about` keeps what loads the data again.
    return replace(data, about={**data.about, "settings": asdict(settings)})


def _loaded(loader: Any, settings: DataSettings) -> Source | Data:
    """What the loader returns, a pair of Datasets as a `Source`; ValueError, in one line, for anything else."""
    if isinstance(loader, Data):
        return loader
    if SOURCES.delegates(settings.name) or SOURCES.origin(settings.name) == "built-in":
        return cast(Source, loader(**_given(loader, settings)))
    try:
        with _nearby(settings), trust.lifted():
            made = loader if is_pair(loader) else loader(**_given(loader, settings))
    except (Exception, SystemExit) as error:
        raise ValueError(f"{settings.name} raised {first_line(error)}") from error
    if is_pair(made):
        try:
            with _nearby(settings), trust.lifted():
                return dataset_source(*made)
        except ValueError as error:
            raise ValueError(f"{settings.name}: {error}") from error
    if not isinstance(made, Source | Data):
        raise ValueError(
            f"{settings.name} returned {kind_of(made)}, want Data, such as atent.data.from_tensors returns, or a pair"
            " (train, test) of torch Datasets"
        )
    return made


def _nearby(settings: DataSettings) -> AbstractContextManager[None]:
    """The current directory on the import path for "module:function"; installed packages do not need it."""
    return current_directory_on_path() if ":" in settings.name else nullcontext()


def _given(loader: Any, settings: DataSettings) -> dict[str, Any]:
    """The arguments of a loader: those listed at `SOURCES` for which it has parameters."""
    known = {"root": settings.root, "reading": Reading.of(settings), "columns": Columns.of(settings)}
    return {name: value for name, value in known.items() if _takes(loader, name)}


def _takes(loader: Any, name: str) -> bool:
    """Whether a loader has a parameter of that name."""
    return callable(loader) and name in inspect.signature(loader).parameters


def _check_taken(loader: Any, settings: DataSettings) -> None:
    """ValueError, in one line, for settings that are for parameters which the loader does not have, and for invalid
    ones."""
    own = SOURCES.origin(settings.name) != "built-in" and not SOURCES.delegates(settings.name)
    for part, names in _TAKEN.items():
        given = [name for name in names if getattr(settings, name) != _DEFAULTS[name]]
        if given and not _takes(loader, part) and (own or part == "root"):
            fix = "set it inside that function" if own else "omit it"
            value = getattr(settings, given[0])
            raise ValueError(f"data.{given[0]} {value} has no effect for {settings.name}: {fix}")
    check_reading(settings, _takes(loader, "reading"))
    check_columns(settings, _takes(loader, "columns"))


def _own(made: Data, settings: DataSettings) -> Data:
    """The data of the user's own function, with their own splits, under the name of that function."""
    taken = ("name", "augment", "generated", "generated_share", *itertools.chain(*_TAKEN.values()))
    for name, default in _DEFAULTS.items():
        value = getattr(settings, name)
        if name not in taken and value != default:
            raise ValueError(f"data.{name} {value} has no effect for {settings.name}: set it inside that function")
    augment = made.augment if settings.augment == "none" else settings.augment
    check_augmentation(augment, made.shape, made.box, settings.name)
    return replace(made, name=settings.name, about={**made.about, "name": settings.name}, augment=augment)


def _check_seed(settings: DataSettings) -> None:
    if not 0 <= settings.split_seed < 2**32:
        raise ValueError(f"data.split_seed is {settings.split_seed}; it must be 0 to 2**32 - 1")


def carve(source: Source, settings: DataSettings) -> Data:
    """The three splits of a source by the settings, see `load`, with its errors; the name is only recorded."""
    _check_seed(settings)
    shape = tuple(source.train.x.shape[1:])
    check_augmentation(settings.augment, shape, source.box, settings.name)

    y = source.train.y.numpy()
    n = source.validation if settings.validation is None else settings.validation
    if len(y) <= source.classes:
        raise ValueError(
            f"{settings.name} has {len(y)} training samples of {source.classes} classes: give at least"
            f" {source.classes + 1}, one of each class to train on and one to validate on"
        )
    # Every class keeps a training sample.
    if not 1 <= n <= len(y) - source.classes:
        most = len(y) - source.classes
        raise ValueError(f"data.validation is {n}; with {len(y)} training samples it must be 1 to {most}")
    rule, seed, limit = settings.subset, settings.split_seed, everything(settings.limit)
    # Each subset contains a sample of each rare class; "first" reproduces the splits of earlier versions.
    least = int(rule == "stratified")
    carved = stratified(y, n, (seed, _VALIDATION), keep=1, least=least)
    left = np.setdiff1d(np.arange(len(y)), carved)
    if limit is not None and limit < len(left):
        left = left[stratified(y[left], limit, (seed, _LIMIT), least=least)]
    if rule == "stratified":
        carved = carved[spread(y[carved], (seed, SUBSET), source.train.ids.numpy()[carved])]
    train, validation = source.train.take(left), source.train.take(carved)
    test = subset(source.test, settings.test_limit, rule, seed)
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
            "split": {"seed": seed, "validation": n, "stratified": True},
            "limit": settings.limit,
            "test_limit": settings.test_limit,
        },
        subset=rule,
        seed=seed,
        augment=settings.augment,
    )


def from_tensors(
    x_train: Tensor | np.ndarray,
    y_train: Tensor | np.ndarray,
    x_test: Tensor | np.ndarray,
    y_test: Tensor | np.ndarray,
    *,
    validation: int | None = None,
    split_seed: int = 0,
    subset: Rule = "stratified",
    box: Box = (0.0, 1.0),
    name: str = "tensors",
) -> Data:
    """A data set of your own tensors or arrays; of DataLoaders: ``from_tensors(*collect(train), *collect(test))``.

    Parameters
    ----------
    x_train, x_test
        (n, c, h, w) or (n, d): uint8 (divided by 255), or floats in ``box``, which become float32.
    y_train, y_test
        (n,) integers from 0, each class present in training.
    validation
        Samples carved from the training set by class share. Default: 10 % of it, at most 1000.
    split_seed
        Seed of the validation split.
    subset
        Rule that selects subsets, see `Data.sample`.
    box
        A pair of numbers, or of sequences with one number for each channel.
    name
        Name of the data set.

    Returns
    -------
    Data
        The three splits, on the CPU.

    Raises
    ------
    ValueError
        In one line: for invalid shapes, types, labels or values.

    Examples
    --------
    >>> import torch
    >>> from atent.data import from_tensors
    >>> x, y = torch.linspace(0, 1, 80).view(20, 4), torch.arange(20) % 2
    >>> from_tensors(x, y, x, y, validation=4)
    Data('tensors', 2 classes, shape (4,), 16 train, 4 validation, 20 test)
    """
    given = {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}
    source = tensor_source(given, Threat("linf", 0.0, box).box)
    return _carved(source, name, validation, split_seed, subset)


def from_dataset(
    train: Any,
    test: Any,
    *,
    validation: int | None = None,
    split_seed: int = 0,
    subset: Rule = "stratified",
    box: Box = (0.0, 1.0),
    name: str = "dataset",
) -> Data:
    """A data set of your own `torch.utils.data.Dataset`; its items are read once, in order, and kept in memory.

    Parameters
    ----------
    train, test
        Map-style Datasets of pairs (x, y): x a tensor or an array, (c, h, w) or (d,), uint8 (divided by 255) or floats
        in the box; y an integer from 0. Names of classes are taken from the attribute ``classes`` of ``train``.
    validation, split_seed, subset, box, name
        See `from_tensors`.

    Returns
    -------
    Data
        Its ``about`` contains a SHA-256 over the items of each part, by which a run detects changed contents.

    Raises
    ------
    ValueError
        In one line: for iterable Datasets, items that cannot be used or raise, items that differ when they are read
        again (random transforms; ``data.augment`` augments instead), and as `from_tensors`.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import TensorDataset
    >>> from atent.data import from_dataset
    >>> part = TensorDataset(torch.linspace(0, 1, 80).view(20, 4), torch.arange(20) % 2)
    >>> from_dataset(part, part, validation=4)
    Data('dataset', 2 classes, shape (4,), 16 train, 4 validation, 20 test)
    """
    source = dataset_source(train, test, Threat("linf", 0.0, box).box)
    return _carved(source, name, validation, split_seed, subset)


def _carved(source: Source, name: str, validation: int | None, split_seed: int, subset: Rule) -> Data:
    settings = DataSettings(name=name, validation=plain(validation), split_seed=plain(split_seed), subset=subset)
    return carve(source, settings)
