"""Smoothing certificates of many samples: a file that grows row by row, its shards, and what the rows add up to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atent.certify.group import clean_logits, made_by, name_of, rows_of
from atent.certify.noise import NOISE
from atent.certify.rows import (
    Row,
    absorb,
    append,
    claim,
    claimed_as,
    made,
    of_rank,
    read_rows,
    removed,
    resumed,
    sums,
    write_rows,
)
from atent.certify.sequential import TEST
from atent.certify.shards import shard_rows
from atent.certify.smoothing import (
    ABSTAIN,
    Smoothed,
    check_radius,
    check_sampling,
    forward_size,
    largest_radius,
    linf_radius,
    noisy,
)
from atent.checks import Settings, as_samples, check_batch, check_labels, check_number, check_seed, numbered
from atent.distributed import SINGLE, World
from atent.distributed.shards import Shard
from atent.folded import Folded, fold
from atent.independence import dependence_hint
from atent.progress import Advance
from atent.runs import manifest
from atent.runs.locks import held, lock_of
from atent.stats import share

# Images whose sequential tests share forward passes; an interruption loses that many at most.
_TOGETHER = 50
_ONE = "the sequential test decided radius {:g} alone: certify without a radius to estimate that of each sample"


@dataclass(frozen=True)
class Sampling(metaclass=Settings):
    """What a certificate costs and promises; ValueError for numbers that can never certify."""

    sigma: float
    """Standard deviation of the noise, in pixel units."""
    n0: int = 100
    """Noise samples that choose the class."""
    n: int = 100_000
    """Noise samples that estimate its share."""
    alpha: float = 0.001
    """Probability, per sample, that the certificate is wrong."""
    seed: int = 0
    """Seed of the noise."""
    radius: float | None = None
    """The one l2 radius that a sequential test of n noise samples at most decides; default: the largest radius of each
    sample is estimated from all n."""

    def __post_init__(self) -> None:
        check_number("sigma", self.sigma, 0, above=True)
        check_sampling(self.n0, self.n, self.alpha, self.sigma)
        check_seed(self.seed)
        if self.radius is not None:
            check_radius(self.radius, self.n, self.alpha, self.sigma)

    def to_json(self) -> dict[str, Any]:
        """The settings as files hold them; without a radius, as they did before there was one."""
        return {key: value for key, value in asdict(self).items() if key != "radius" or value is not None}


@dataclass(frozen=True)
class Certificate:
    """The certificates of n samples of ``dim`` values each."""

    rows: tuple[Row, ...]
    sampling: Sampling
    dim: int
    hint: str | None = None
    """One line where the model's answers depend on the batch, so that no row holds."""

    def certified(self, radius: float) -> dict[str, Any]:
        """Share of the samples whose class is right and certified within the l2 ``radius``, with a 95 % interval.

        The interval is for the sampling of the test set. Each certificate may besides be wrong with probability
        alpha, so of n certificates alpha n at most are expected to be. ValueError for another radius than the one that
        a sequential test decided.
        """
        if self.sampling.radius not in (None, radius):
            raise ValueError(f"radius {radius:g} was not tested, {_ONE.format(self.sampling.radius)}")
        return share(sum(r.correct and r.radius >= radius for r in self.rows), len(self.rows))

    def to_json(self, radii: Sequence[float] | None = None) -> dict[str, Any]:
        """The content of certificate.json; ``radii`` default: 0 and the multiples of sigma that n samples reach.

        Three accuracies, which the literature calls by one name: ``clean`` of the base model without noise;
        ``smoothed``, the smoothed model's own, abstentions counted as wrong (PREDICT); ``certified``, at l2 radii.
        """
        sampling, rows = self.sampling, self.rows
        if sampling.radius is not None:
            return self._decided(sampling.radius, radii)
        most = largest_radius(sampling.n, sampling.alpha, sampling.sigma)
        if radii is None:
            radii = [k * sampling.sigma for k in range(int(most / sampling.sigma) + 1)]
        for radius in radii:
            check_radius(radius, sampling.n, sampling.alpha, sampling.sigma, dim=self.dim)
        reached = sorted(r.radius if r.correct else 0.0 for r in rows)
        return {
            "method": "smoothing",
            "norm": "l2",
            "n": len(rows),
            "sampling": sampling.to_json(),
            "clean": share(sum(r.clean == r.label for r in rows), len(rows)),
            "smoothed": share(sum(r.smoothed == r.label for r in rows), len(rows)),
            "certified": [self._at(float(r)) for r in radii],
            "abstained": share(sum(r.predict == ABSTAIN for r in rows), len(rows)),
            "radius_mean": sum(reached) / len(rows),
            "radius_median": reached[(len(rows) - 1) // 2],
            "largest_radius": most,
            "hint": self.hint,
            "seconds_per_image": sum(r.time for r in rows) / len(rows),
        }

    def _at(self, radius: float) -> dict[str, Any]:
        return {"radius": radius, "linf_radius": linf_radius(radius, self.dim), "share": self.certified(radius)}

    def _decided(self, radius: float, radii: Sequence[float] | None) -> dict[str, Any]:
        """`to_json` of a sequential test; ValueError for other ``radii``."""
        rows, taken = self.rows, [r.samples for r in self.rows]
        return {
            "method": "smoothing",
            "norm": "l2",
            "n": len(rows),
            "sampling": self.sampling.to_json(),
            "clean": share(sum(r.clean == r.label for r in rows), len(rows)),
            "certified": [self._at(float(r)) for r in (radii or [radius])],
            "certified_wrong": share(sum(r.predict not in (ABSTAIN, r.label) for r in rows), len(rows)),
            "abstained": share(sum(r.predict == ABSTAIN for r in rows), len(rows)),
            "samples_mean": sum(taken) / len(rows),
            "samples_median": sorted(taken)[(len(rows) - 1) // 2],
            "samples_most": max(taken),
            "hint": self.hint,
            "seconds_per_image": sum(r.time for r in rows) / len(rows),
        }

    def radii(self) -> list[float]:
        """The radius of each sample whose class is right, -1 for the others: what `plots.certified` draws.

        ValueError after a sequential test, which decides one radius: there is no curve.
        """
        if self.sampling.radius is not None:
            raise ValueError(f"there is no curve over radii, {_ONE.format(self.sampling.radius)}")
        return [r.radius if r.correct else -1.0 for r in self.rows]


def certify_run(
    model: nn.Module,
    x: Tensor,
    y: Tensor | None,
    sampling: Sampling,
    *,
    ids: Tensor | None = None,
    path: str | Path | None = None,
    about: dict[str, Any] | None = None,
    shard: tuple[int, int] = (0, 1),
    batch: int | None = None,
    channels_last: bool | None = None,
    certifier: Callable[[nn.Module, float], Any] = Smoothed,
    network: Folded | None = None,
    world: World = SINGLE,
    advance: Advance | None = None,
) -> Certificate:
    """Certify samples one group after the other, and resume where an earlier call stopped.

    ``x`` (n, ...) and true labels ``y`` (n,), tensors or arrays, or a DataLoader as ``x`` and None as ``y``; sample
    numbers ``ids`` (n,), each once. ``path``: a file to which every finished row is appended (tabs between columns, a
    header), beside a .json that says how it was made; the rows that it holds already are taken as they are, so the same
    call continues an interrupted one, and gives the same rows but for ``time``. ``about``: plain values that must agree
    as well, such as the model's fingerprint. ``shard`` (i, k) takes every k-th group from the i-th on, of those
    that share forward passes, so that its rows are bit for bit those of all samples: with n above 4,000 a group is one
    sample, in a sequential test 50 of them. Where there are fewer groups than shards it takes the samples i::k, the
    same up to rounding. Each shard has a file of its own, see `merge`. ``world``: the ranks that share the groups, as
    `atent.distributed.current` gives them, each with a file of its own beside ``path`` until all are done; each gets
    all rows. ``batch``, ``channels_last`` and ``advance`` as in `Smoothed`. ``certifier``: another class, called
    with the model and sigma, whose ``certify`` gives what that of `Smoothed` gives; the class that it certifies stands
    for the smoothed model's prediction. ``network``: that of `certified_network`, default: it is made here, unless the
    file at ``path`` was begun without it; the file says how many batch norms were folded. With ``sampling.radius`` each
    sample is certified at that radius or not, see `Smoothed.certify_at`; that takes `Smoothed` itself. ValueError for
    inputs that cannot be certified, for labels beyond the model's outputs, for a file that was made another way, and
    for a certifier that raises or gives something else.
    """
    x, y = as_samples(x, y, model)
    if sampling.radius is not None and certifier is not Smoothed:
        raise ValueError(f"the sequential test is that of smoothing, not of {name_of(certifier)}: leave the radius out")
    if not len(x):
        raise ValueError("no samples to certify: give at least one")
    check_batch(x, y, (-math.inf, math.inf))
    ids = numbered(ids, len(x), "cpu")
    if len(ids.unique()) != len(ids):
        raise ValueError("ids must be different sample numbers: two equal ones would share their noise and their row")
    mine = shard_rows(shard, len(x), _group(sampling, batch))
    if network is None and path is not None and claimed_as(Path(path), made_of(sampling, about or {})):
        network = Folded(model, 0, None)
    if network is None:
        network = certified_network(model, x, sampling, certifier)
    x, y, ids = x[mine.to(x.device)], y[mine.to(y.device)], ids[mine]
    smoothed = made_by(certifier, network.network, sampling.sigma, channels_last)
    if path is None:
        return _certified(smoothed, model, x, y, ids, sampling, None, batch, world, advance)
    with _claimed(Path(path), made_of(sampling, about or {}, network.layers), world):
        return _certified(smoothed, model, x, y, ids, sampling, Path(path), batch, world, advance)


@contextmanager
def _claimed(path: Path, wanted: dict[str, Any], world: World) -> Iterator[None]:
    """Inside, this rank's file of rows is its own; what an earlier job of ranks left is in that of the first."""
    own = of_rank(path, world.rank)
    if not world.first:
        world.wait()
    with held(lock_of(own), "certify"):
        claim(own, wanted)
        if world.first:
            absorb(path)
            world.wait()
        yield


def certified_network(
    model: nn.Module, x: Tensor, sampling: Sampling, certifier: Callable[[nn.Module, float], Any] = Smoothed
) -> Folded:
    """The network that the noise samples of ``x`` (n, ...) pass through: ``model`` with its batch norms folded.

    It is the same function in exact arithmetic and is checked on a few noisy samples (`atent.folded.fold`): a vote
    differs only where two logits tie to rounding. The model itself where it cannot be folded, and for a ``certifier``
    from outside.
    """
    if certifier is not Smoothed:
        return Folded(model, 0, None)
    return fold(model, noisy(x, sampling.sigma, sampling.seed))


def _certified(
    smoothed: Any, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, sampling: Sampling, path: Path | None,
    batch: int | None, world: World, advance: Advance | None,
) -> Certificate:  # fmt: skip
    """The certificate of samples, with the rows that the file at ``path`` holds."""
    done: dict[int, Row] = {}
    if path is not None:
        most = largest_radius(sampling.n, sampling.alpha, sampling.sigma)
        labels = dict(zip(ids.tolist(), y.tolist()))
        for rows in world.gather(list(resumed(of_rank(path, world.rank), labels, most).values())):
            done |= {row.idx: row for row in rows}
        manifest.forget_file(of_rank(path, world.rank))  # it grows
    check_labels(y, clean_logits(model, x[:1], sampling.seed).shape[1])
    size = min(forward_size(x, batch), sampling.n * len(x))
    hint = dependence_hint(model, noisy(x, sampling.sigma, sampling.seed), seed=sampling.seed, size=size)
    left = [i for i, number in enumerate(ids.tolist()) if number not in done]
    if advance and len(left) < len(ids):
        advance((len(ids) - len(left)) * (sampling.n0 + sampling.n), "")
    groups = torch.tensor(left, dtype=torch.int64).split(_group(sampling, batch)) if left else ()
    made: list[Row] = []
    for part in Shard(world.rank, world.size).of(groups):
        rows = rows_of(smoothed, model, x[part.to(x.device)], y[part.to(y.device)], ids[part], sampling, batch, advance)
        if path is not None:
            append(of_rank(path, world.rank), rows)
        made += rows
    world.wait()
    done |= {row.idx: row for rows in world.gather(made) for row in rows}
    if path is not None and world.size > 1:
        _whole(path, [done[i] for i in dict.fromkeys([*ids.tolist(), *done])], world)
    return Certificate(tuple(done[i] for i in sorted(ids.tolist())), sampling, math.prod(x.shape[1:]), hint)


def _whole(path: Path, rows: list[Row], world: World) -> None:
    """All rows in the one file of rank 0, the other ranks' files gone."""
    if world.first:
        write_rows(path, rows)
        sums(path).unlink(missing_ok=True)
    world.wait()
    if not world.first:
        removed(of_rank(path, world.rank))


def _group(sampling: Sampling, batch: int | None) -> int:
    """How many samples share forward passes."""
    # As many samples at once as fill a few forwards, and no more, so that little is lost by an interruption.
    # A sequential test takes few noise samples of most images.
    return _TOGETHER if sampling.radius is not None else max(1, 4 * (batch or 1000) // sampling.n)


def merge(paths: Sequence[str | Path], dim: int, ids: Iterable[int] | None = None) -> Certificate:
    """One certificate from the files of several shards, made alike.

    ValueError where the files were made differently, two of them disagree on a sample, or one of ``ids`` is missing.
    """
    if not paths:
        raise ValueError("no shards to merge: give the files that `--shard i/k` wrote")
    first = made(Path(paths[0]))
    rows: dict[int, Row] = {}
    for path in map(Path, paths):
        if made(path) != first:
            raise ValueError(f"{path} was made otherwise than {paths[0]}: merge shards of one command only")
        for row in read_rows(path):
            if row.idx in rows and row._replace(time=0.0) != rows[row.idx]._replace(time=0.0):
                raise ValueError(
                    f"{path} says another thing of sample {row.idx} than an earlier shard: certify it again"
                )
            rows[row.idx] = row
    wanted = sorted(rows if ids is None else ids)
    missing = [i for i in wanted if i not in rows]
    if missing or not wanted:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} samples are in no shard, such as {missing[:3]}: run the shards that are"
            " not finished"
        )
    return Certificate(tuple(rows[i] for i in wanted), Sampling(**first["draws"]), dim)


def made_of(sampling: Sampling, about: dict[str, Any], folded: int = 0) -> dict[str, Any]:
    """What the rows of one file share: the settings, the noise's streams, and what is certified.

    ``folded``: batch norms that are folded in the network that is certified. 0: the network itself, as in the files of
    versions that folded none.
    """
    test = {} if sampling.radius is None else {"test": TEST}
    network = {"network": {"batch_norms_folded": folded}} if folded else {}
    return {"draws": sampling.to_json(), "about": about, "noise": NOISE, **test, **network}
