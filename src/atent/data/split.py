"""A labelled set of samples as three tensors, and a data set as three such sets."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor

from atent.checks import check_choice
from atent.data.settings import Limit, Rule, check_rule, everything
from atent.data.stored import Stored, chosen
from atent.docstrings import Documented
from atent.threat import Box

Part = Literal["train", "validation", "test"]

# Stream number of split_seed for subsets; 0 and 1 are those of the validation set and the limited training set.
SUBSET = 2


@dataclass(frozen=True, eq=False, repr=False)
class Split(metaclass=Documented):
    """Labelled samples in compact form, on any device or on disk, until `batch` converts them to floats.

    Raises
    ------
    ValueError
        If lengths, dimensions or types disagree.

    Examples
    --------
    >>> from atent.data import DataSettings, load
    >>> train = load(DataSettings("digits")).train
    >>> train
    Split(1,097 samples of shape (1, 8, 8), uint8 on cpu)
    >>> x, y = train.batch([0, 1, 2])
    >>> x.shape, x.dtype, y.shape
    (torch.Size([3, 1, 8, 8]), torch.float32, torch.Size([3]))
    """

    x: Tensor | Stored
    """uint8 (n, c, h, w) with a ``scale``; float32 (n, c, h, w) or (n, d) with ``scale=None``; or `Stored` samples,
    uint8 on disk, of which `take`, `first`, `sample` and `to` read nothing."""
    y: Tensor
    """Classes from 0, int64 (n,)."""
    ids: Tensor
    """Sample numbers, int64 (n,): the position of each sample in its source, in the order of the train or test files.
    Splitting, limiting and shuffling keep them, so they may exceed ``len(self) - 1``."""
    scale: float | None
    """Divisor of ``x`` that gives pixel units: 255 for images, 16 for digits. None: ``x`` is in pixel units."""

    def __post_init__(self) -> None:
        wanted = torch.float32 if self.scale is None else torch.uint8
        if self.x.dtype != wanted:
            raise ValueError(f"x is {self.x.dtype}; with scale={self.scale} it must be {wanted}")
        if self.x.dim() not in (2, 4):
            raise ValueError(f"x has shape {tuple(self.x.shape)}; allowed are (n, d) and (n, c, h, w)")
        for name, values in (("y", self.y), ("ids", self.ids)):
            if values.dtype != torch.int64 or values.shape != self.x.shape[:1]:
                raise ValueError(f"{name} is {values.dtype} {tuple(values.shape)}; wanted torch.int64 ({len(self.x)},)")

    def __len__(self) -> int:
        return len(self.y)

    def __repr__(self) -> str:
        kind = str(self.x.dtype).removeprefix("torch.")
        return f"Split({len(self):,} samples of shape {tuple(self.x.shape[1:])}, {kind} on {self.x.device})"

    def to(self, device: torch.device | str) -> "Split":
        """The same samples on `device`."""
        return replace(self, x=self.x.to(device), y=self.y.to(device), ids=self.ids.to(device))

    def batch(self, index: Tensor | Sequence[int]) -> tuple[Tensor, Tensor]:
        """Samples at `index` ((b,) int64) as float32 (b, ...) in pixel units and int64 (b,), on x's device.

        Every value is the float32 quotient of float32(x) and scale, bit for bit, on every device.
        An index that is already on the device needs no host synchronisation.
        """
        index = self._index(index)
        x, y = self.x.index_select(0, index), self.y.index_select(0, index)
        if self.scale is None:
            return x, y
        # CUDA kernels turn division by a Python number into multiplication by its rounded reciprocal, which
        # can differ from the quotient by a bit; by a tensor on the device they divide exactly, and cast as well.
        return x / torch.full((), self.scale, dtype=torch.float32, device=x.device), y

    def expect(self, order: Tensor, parts: Sequence[slice]) -> None:
        """Announce that the next calls of `batch` ask for ``order[part]``, for each of ``parts``: samples on disk are
        read during the preceding step. No value changes; for samples in memory it has no effect."""
        if isinstance(self.x, Stored):
            self.x.expect(order, parts)

    def take(self, index: Tensor | Sequence[int] | np.ndarray) -> "Split":
        """The samples at `index` ((b,) int64), in that order."""
        index = self._index(index)
        parts = {name: chosen(getattr(self, name), index) for name in ("x", "y", "ids")}
        return replace(self, **parts)

    def first(self, n: int) -> "Split":
        """The first n samples in the order of the split, or all if there are fewer. In a source sorted by class they
        cover few classes; `sample` covers all. Raises ValueError if n is negative."""
        if n < 0:
            raise ValueError(f"cannot take the first {n} samples; n must be 0 or more")
        return replace(self, **{name: chosen(getattr(self, name), slice(n)) for name in ("x", "y", "ids")})

    def sample(self, n: int, seed: Sequence[int]) -> "Split":
        """A class-stratified sample of n, in the order of `spread`; the split itself if it has at most n samples.

        The selection depends on ids, labels and ``seed``, not on the order of the split, and a smaller sample is a
        prefix of a larger one. Raises ValueError if n is negative.
        """
        if n < 0:
            raise ValueError(f"cannot take a sample of {n}; n must be 0 or more")
        return self if n >= len(self) else self.take(spread(self.y.cpu().numpy(), seed, self.ids.cpu().numpy())[:n])

    def _index(self, index: Tensor | Sequence[int] | np.ndarray) -> Tensor:
        found = torch.as_tensor(index, device=self.x.device)
        # A mask would be read as the positions 0 and 1, and 2.9 as 2.
        if found.dtype is torch.bool or (found.is_floating_point() and found.numel()):
            fix = "for a mask use mask.nonzero()[:, 0]" if found.dtype is torch.bool else "convert it by .long()"
            raise ValueError(f"index must be integers, got {found.dtype} of shape {tuple(found.shape)}: {fix}")
        return found.long()


@dataclass(frozen=True, eq=False, repr=False)
class Data(metaclass=Documented):
    """A data set ready for training: three disjoint splits, what they contain, and where they come from.

    Examples
    --------
    >>> from atent.data import DataSettings, load
    >>> data = load(DataSettings("digits"))
    >>> data
    Data('digits', 10 classes, shape (1, 8, 8), 1,097 train, 200 validation, 500 test)
    >>> sorted(data.sample("test", 10).y.tolist())
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    """

    name: str
    """Name of the data set in `SOURCES`, or its module:function."""
    classes: int
    """Number of classes."""
    shape: tuple[int, ...]
    """Shape of one sample, without the batch: (c, h, w) or (d,)."""
    box: Box
    """Lowest and highest value of a coordinate, in pixel units, or one such value per channel in each place."""
    train: Split
    """Samples to train on."""
    validation: Split
    """Samples to select models on, taken from the source's training part."""
    test: Split
    """Samples of the final evaluation."""
    about: dict[str, Any]
    """Provenance, as plain JSON values: source, files with their SHA-256 and whether these are the known ones, counts,
    split, class names, and what is missing."""
    subset: Rule = "stratified"
    """Rule that selects subsets, see `sample`."""
    seed: int = 0
    """The ``split_seed``, which seeds stratified subsets."""
    generated: int = 0
    """Number of generated training samples; they are the last ones of ``train``."""
    share: float = 0.0
    """Share of each batch that is generated, in [0, 1)."""
    augment: str = "none"
    """Training augmentation, a name of `atent.data.augment`."""

    @property
    def epoch(self) -> int:
        """Number of samples of an epoch: the training samples that are not generated."""
        return len(self.train) - self.generated

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(getattr(self, part)):,} {part}" for part in get_args(Part))
        return f"Data({self.name!r}, {self.classes} classes, shape {self.shape}, {sizes})"

    def sample(self, part: Part, n: Limit, rule: Rule | None = None) -> Split:
        """n samples of the part "train", "validation" or "test", by the data's rule or ``rule``; all if n is "all",
        None, or at least their number.

        "stratified": each class has its share (see `spread`), sampled by the data's split_seed: the same samples for
        every model, method and training seed. "first": the first n in the order of the part. ValueError for another
        part or limit.
        """
        check_choice("part", part, get_args(Part))
        return subset(getattr(self, part), n, rule or self.subset, self.seed)

    def to(self, device: torch.device | str) -> "Data":
        """The same data with its three splits on `device`."""
        moved = {name: getattr(self, name).to(device) for name in get_args(Part)}
        return replace(self, **moved)


@dataclass(frozen=True, eq=False)
class Source(metaclass=Documented):
    """What a loader in `SOURCES` returns: the training and test parts as in its files, before the validation split.

    Examples
    --------
    >>> from atent.data import SOURCES
    >>> source = SOURCES["digits"]()
    >>> len(source.train), len(source.test), source.validation
    (1297, 500, 200)
    """

    classes: int
    """Number of classes."""
    train: Split
    """Training part; `load` takes the validation samples from it."""
    test: Split
    """Test part."""
    validation: int
    """Default number of validation samples."""
    box: Box = (0.0, 1.0)
    """Lowest and highest value of a coordinate, in pixel units, or one such value per channel in each place."""
    about: dict[str, Any] = field(default_factory=dict)
    """Provenance, as plain JSON values; ``files`` maps each file to its SHA-256. `load` adds counts and split."""


def subset(samples: Split, n: Limit, rule: Rule, seed: int) -> Split:
    """n samples of a split by the rule, see `Data.sample`; ValueError for an unknown rule or a limit that is not a
    number or "all"."""
    check_rule(rule)
    count = everything(n)
    if count is not None and (isinstance(count, bool) or not isinstance(count, Integral)):
        raise ValueError(f"a limit is an integer or 'all', got {count!r}")
    if count is None or count >= len(samples):
        return samples
    return samples.first(count) if rule == "first" else samples.sample(count, (seed, SUBSET))


def split(x: np.ndarray | Stored, y: np.ndarray, scale: float | None, ids: np.ndarray | None = None) -> Split:
    """A Split from numpy arrays (n, ...) and (n,); ids count from 0 by default."""
    ids = np.arange(len(y)) if ids is None else ids
    if isinstance(x, np.ndarray):
        kind = np.float32 if scale is None else np.uint8
        pixels: Tensor | Stored = torch.from_numpy(np.require(x, kind, ["C", "W"]))
    else:
        pixels = x
    y, ids = (np.require(values, np.int64, ["C", "W"]) for values in (y, ids))
    return Split(pixels, torch.from_numpy(y), torch.from_numpy(ids), scale)


def stratified(y: np.ndarray, n: int, seed: Sequence[int], keep: int = 0, least: int = 0) -> np.ndarray:
    """Positions, ascending, of n random samples in which each class has its share, to within one sample.

    y: (N,) labels from 0. n: at most N minus `keep` per class. seed: numbers in [0, 2**32).
    keep: samples of each class that are not selected. Shares are rounded by largest remainders; ties go to lower
    classes.
    least: 1 gives one sample to each class whose share rounds to 0, taken from the largest quotas, as far as n
    suffices; 0 keeps the shares as they are.
    """
    # The stream of RandomState is frozen across numpy releases; that of the newer Generator is not.
    random = np.random.RandomState(seed)
    spare = np.maximum(np.bincount(y) - keep, 0)
    quota, rest = np.divmod(n * spare, spare.sum())
    quota[np.argsort(-rest, kind="stable")[: n - quota.sum()]] += 1
    for label in np.flatnonzero((quota == 0) & (spare > 0))[: n if least else 0]:
        if quota.max() > 1:
            quota[quota.argmax()] -= 1
            quota[label] = 1
    chosen = [random.permutation(np.flatnonzero(y == label))[:k] for label, k in enumerate(quota)]
    return np.sort(np.concatenate(chosen))


def spread(y: np.ndarray, seed: Sequence[int], ids: np.ndarray | None = None) -> np.ndarray:
    """Positions of all N samples in a random order of which each prefix is a class-stratified sample.

    The first n samples contain one of every class if n is at least the number of classes. Beyond that, each class has
    its share n n_c / N, to about one sample (the divisor method of Webster and Sainte-Lague). If n is less than the
    number of classes, the samples are of n different classes, larger classes first. Ties between classes are broken at
    random.

    Parameters
    ----------
    y
        Labels (N,), integers.
    seed
        Integers in [0, 2**32), the seed of the order.
    ids
        Sample numbers (N,). The order within a class depends on them and the seed, not on the order of ``y``. Default:
        the positions.

    Returns
    -------
    np.ndarray
        A permutation of 0 .. N - 1, int64 (N,).

    Examples
    --------
    >>> import numpy as np
    >>> from atent.data import spread
    >>> y = np.array([0] * 6 + [1] * 3)
    >>> order = spread(y, seed=(0,))
    >>> np.bincount(y[order[:3]])
    array([2, 1])
    """
    by_id = np.argsort(np.arange(len(y)) if ids is None else ids, kind="stable")
    rank = np.empty(len(y), np.int64)
    rank[by_id] = np.random.RandomState(seed).permutation(len(y))
    _, label, size = np.unique(y, return_inverse=True, return_counts=True)
    order = np.lexsort((rank, label))
    place = np.empty(len(y), np.int64)
    place[order] = np.arange(len(y)) - (np.cumsum(size) - size)[label[order]]
    return np.lexsort((rank, (2 * place + 1) / size[label], place > 0))


def halves(x: np.ndarray, y: np.ndarray, scale: float | None, test: int, seed: int) -> tuple[Split, Split]:
    """Train and test parts of a source that has no official ones, stratified, with `test` test samples.

    The seed is a constant of the source, so that no setting changes the test set.
    """
    return parted(split(x, y, scale), test, seed)


def parted(samples: Split, test: int, seed: int) -> tuple[Split, Split]:
    """As `halves`, for samples that are already a split."""
    chosen_test = stratified(samples.y.numpy(), test, (seed,), keep=1)
    return samples.take(np.setdiff1d(np.arange(len(samples)), chosen_test)), samples.take(chosen_test)
