"""A labelled set of samples as three tensors, and a data set as three such sets."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from atent.data.settings import Limit, Rule, everything
from atent.data.stored import Stored, chosen
from atent.threat import Box

Part = Literal["train", "validation", "test"]

# The stream of a split_seed that draws subsets; 0 and 1 draw the validation set and the limited training set.
SUBSET = 2


@dataclass(frozen=True, eq=False, repr=False)
class Split:
    """Samples that stay in their compact form, on any device or on disk, until a batch is asked for.

    x: uint8 (n, c, h, w) with a `scale`, or float32 (n, c, h, w) / (n, d) with `scale=None`; or `Stored` samples, uint8
        on disk, of which `take`, `first`, `sample` and `to` read nothing.
    y: int64 (n,), classes from 0.
    ids: int64 (n,), the position of each sample in its source (order of the train or test files). They
        survive splitting, limiting and shuffling, so they may exceed len(self) - 1.
    scale: a pixel is x / scale: 255 for images, 16 for digits; None where x is already in pixel units.

    Raises ValueError where lengths, dimensions or types disagree.
    """

    x: Tensor | Stored
    y: Tensor
    ids: Tensor
    scale: float | None

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
        An index that already lies on the device costs no host sync.
        """
        index = self._index(index)
        x, y = self.x.index_select(0, index), self.y.index_select(0, index)
        if self.scale is None:
            return x, y
        # CUDA kernels turn division by a Python number into multiplication by its rounded reciprocal, which
        # can miss the quotient by a bit; by a tensor on the device they truly divide, and cast on the way.
        return x / torch.full((), self.scale, dtype=torch.float32, device=x.device), y

    def expect(self, order: Tensor, parts: Sequence[slice]) -> None:
        """Announce that `batch` is asked for ``order[part]`` next, for each of ``parts``: samples on disk are read
        while the step before runs. It changes no value, and costs nothing where the samples are in memory."""
        if isinstance(self.x, Stored):
            self.x.expect(order, parts)

    def take(self, index: Tensor | Sequence[int] | np.ndarray) -> "Split":
        """The samples at `index` ((b,) int64), in that order."""
        index = self._index(index)
        parts = {name: chosen(getattr(self, name), index) for name in ("x", "y", "ids")}
        return replace(self, **parts)

    def first(self, n: int) -> "Split":
        """The first n samples in the order of the split, or all where there are fewer; of a source that is sorted by
        class, those are samples of few classes: `sample` takes all. Raises ValueError where n is negative."""
        if n < 0:
            raise ValueError(f"cannot take the first {n} samples; n must be 0 or more")
        return replace(self, **{name: chosen(getattr(self, name), slice(n)) for name in ("x", "y", "ids")})

    def sample(self, n: int, seed: Sequence[int]) -> "Split":
        """A class-stratified sample of n, in the order of `spread`; the split itself where it has no more than n.

        The choice depends on ids, labels and ``seed`` alone, not on the order of the split, and a smaller sample is the
        beginning of a larger one. Raises ValueError where n is negative.
        """
        if n < 0:
            raise ValueError(f"cannot take a sample of {n}; n must be 0 or more")
        return self if n >= len(self) else self.take(spread(self.y.cpu().numpy(), seed, self.ids.cpu().numpy())[:n])

    def _index(self, index: Tensor | Sequence[int] | np.ndarray) -> Tensor:
        return torch.as_tensor(index, dtype=torch.int64, device=self.x.device)


@dataclass(frozen=True, eq=False, repr=False)
class Data:
    """A data set ready for training.

    name: its key in `SOURCES`. classes: number of labels. shape: of one sample, without the batch.
    box: lowest and highest value a coordinate may take, in pixel units, or those of each channel.
    train, validation, test: disjoint; validation was carved from the source's training part.
    about: plain JSON: source, files with sha256 and whether they are the known ones, counts, split, class
        names and what is missing.
    subset: how fewer samples than there are get chosen, see `sample`. seed: the split_seed, which draws them.
    generated: how many of the training samples, the last ones, were generated. share: of each batch that they make up.
    """

    name: str
    classes: int
    shape: tuple[int, ...]
    box: Box
    train: Split
    validation: Split
    test: Split
    about: dict[str, Any]
    subset: Rule = "stratified"
    seed: int = 0
    generated: int = 0
    share: float = 0.0

    @property
    def epoch(self) -> int:
        """Number of samples of an epoch: those of the training set that were not generated."""
        return len(self.train) - self.generated

    def __repr__(self) -> str:
        sizes = ", ".join(f"{len(getattr(self, part)):,} {part}" for part in ("train", "validation", "test"))
        return f"Data({self.name!r}, {self.classes} classes, shape {self.shape}, {sizes})"

    def sample(self, part: Part, n: Limit, rule: Rule | None = None) -> Split:
        """n samples of the part "train", "validation" or "test", by the data's rule or ``rule``; all where n is "all",
        None, or at least their number.

        "stratified": every class gives its share (see `spread`), drawn by the data's split_seed: the same samples for
        every model, method and training seed. "first": the first n in the order of the part.
        """
        return subset(getattr(self, part), n, rule or self.subset, self.seed)

    def to(self, device: torch.device | str) -> "Data":
        """The same data with its three splits on `device`."""
        moved = {name: getattr(self, name).to(device) for name in ("train", "validation", "test")}
        return replace(self, **moved)


@dataclass(frozen=True, eq=False)
class Source:
    """What a loader in `SOURCES` returns: the two parts as their files have them, before any carving.

    validation: the source's default number of validation samples.
    about: plain JSON, completed by `load` with counts and split.
    """

    classes: int
    train: Split
    test: Split
    validation: int
    box: Box = (0.0, 1.0)
    about: dict[str, Any] = field(default_factory=dict)


def subset(whole: Split, n: Limit, rule: Rule, seed: int) -> Split:
    """n samples of a split by the rule, see `Data.sample`."""
    count = everything(n)
    if count is None or count >= len(whole):
        return whole
    return whole.first(count) if rule == "first" else whole.sample(count, (seed, SUBSET))


def split(x: np.ndarray | Stored, y: np.ndarray, scale: float | None, ids: np.ndarray | None = None) -> Split:
    """A Split from numpy arrays (n, ...) and (n,); ids count from 0 where none are given."""
    ids = np.arange(len(y)) if ids is None else ids
    if isinstance(x, np.ndarray):
        kind = np.float32 if scale is None else np.uint8
        pixels: Tensor | Stored = torch.from_numpy(np.require(x, kind, ["C", "W"]))
    else:
        pixels = x
    y, ids = (np.require(values, np.int64, ["C", "W"]) for values in (y, ids))
    return Split(pixels, torch.from_numpy(y), torch.from_numpy(ids), scale)


def stratified(y: np.ndarray, n: int, seed: Sequence[int], keep: int = 0, least: int = 0) -> np.ndarray:
    """Positions, ascending, of n samples drawn at random so that every class gives its share, to one sample.

    y: (N,) labels from 0. n: at most N less `keep` per class. seed: numbers in [0, 2**32).
    keep: samples that every class holds back. Largest remainders round the shares; lower classes win ties.
    least: 1 gives one sample to each class whose share rounds to none, at the cost of the largest quotas, as far as n
    suffices; 0 leaves the shares as they are.
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
    """Positions of all N samples in a random order of which every beginning is a class-stratified sample.

    y: (N,) labels. seed: numbers in [0, 2**32). ids: (N,) sample numbers (default: positions), which alone decide the
    order within a class. The first n samples hold one of every class where n is at least the number of classes; beyond
    that, each class has its share n n_c / N, to about one sample (the divisor method of Webster and Sainte-Lague).
    Where n is less than the number of classes they are of n different classes, larger ones first. Ties between classes
    are drawn.
    """
    by_id = np.argsort(np.arange(len(y)) if ids is None else ids, kind="stable")
    drawn = np.empty(len(y), np.int64)
    drawn[by_id] = np.random.RandomState(seed).permutation(len(y))
    _, label, size = np.unique(y, return_inverse=True, return_counts=True)
    order = np.lexsort((drawn, label))
    turn = np.empty(len(y), np.int64)
    turn[order] = np.arange(len(y)) - (np.cumsum(size) - size)[label[order]]
    return np.lexsort((drawn, (2 * turn + 1) / size[label], turn > 0))


def halves(x: np.ndarray, y: np.ndarray, scale: float | None, test: int, seed: int) -> tuple[Split, Split]:
    """Train and test parts of a source that has no official ones, stratified, with `test` test samples.

    The seed is the source's own constant, so that no setting of the user ever moves the test set.
    """
    return parted(split(x, y, scale), test, seed)


def parted(whole: Split, test: int, seed: int) -> tuple[Split, Split]:
    """As `halves`, of samples that are already a split."""
    there = stratified(whole.y.numpy(), test, (seed,), keep=1)
    return whole.take(np.setdiff1d(np.arange(len(whole)), there)), whole.take(there)
