"""Smoothing certificates of many samples: a file that grows row by row, its shards, and what the rows add up to."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atent.certify.group import clean_logits, made_by, name_of, rows_of
from atent.certify.limits import largest_radius
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
from atent.certify.smoothing import Smoothed, forward_size, noisy
from atent.certify.summary import Certificate, Sampling
from atent.checks import as_samples, check_batch, check_labels, numbered
from atent.distributed import SINGLE, World
from atent.distributed.shards import Shard
from atent.folded import Folded, fold
from atent.independence import dependence_hint
from atent.progress import Advance
from atent.runs import manifest
from atent.runs.locks import held, lock_of

# Images whose sequential tests share forward passes; an interruption loses that many at most.
_TOGETHER = 50


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
