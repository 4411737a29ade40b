"""Smoothing certificates of many samples: a file that grows row by row, shards of it, and their union."""

from __future__ import annotations

import functools
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
    hint_of,
    images_of,
    made,
    note_hint,
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
from atent.messages import deprecated
from atent.origins import code_of
from atent.progress import Advance
from atent.runs import manifest
from atent.runs.identity import function_of, identity_of
from atent.runs.locks import held, lock_of
from atent.runs.weights import fingerprint

TOGETHER = 50
"""Images whose sequential tests share forward passes; an interruption loses that many at most."""


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
    """Certify samples by smoothing, group by group, and resume where an earlier call stopped.

    Parameters
    ----------
    model
        From inputs to (n, classes) logits; it is evaluated in eval mode and comes back as it was.
    x, y
        Inputs (n, ...) and true labels (n,), tensors or arrays, or a DataLoader as ``x`` and None as ``y``.
    sampling
        Noise, numbers of noise samples and error. With ``sampling.radius`` each sample is certified at that radius or
        not, see `Smoothed.certify_at`; that requires `Smoothed` as ``certifier``.
    ids
        Sample numbers (n,), all different, which key the noise; default: 0 .. n-1.
    path
        File to which every finished row is appended (a header, tabs between columns), beside a .json that describes how
        it was made. Rows that it contains already are not computed again, so the same call resumes an interrupted
        one, with the same rows except for ``time``. Default: no file.
    about
        Plain values that must agree for a file to be resumed. Default: `identity`. ``{}``: no values. The images must
        agree in any case.
    shard
        (i, k), 0 <= i < k <= n: every k-th group of samples that share forward passes, from the i-th on, so that the
        rows are bit for bit those of a run without shards. A group is one sample with n above 4,000, and 50 samples in
        a sequential test. Where there are fewer groups than shards, the samples i::k, the same up to rounding. Each
        shard has a file of its own, see `merge`.
    batch
        Noisy inputs in one forward pass; default as in `Smoothed.certify`.
    channels_last
        As in `Smoothed`.
    certifier
        Another class, called with the model and sigma, whose ``certify`` has the arguments and the result of that of
        `Smoothed`; the class that it certifies counts as the smoothed model's prediction.
    network
        Network that the noise samples pass through, as ``certified_network`` gives it; default: it is made here,
        unless the file at ``path`` was begun without it. The file records how many batch norms were folded.
    world
        The ranks that share the groups, as `atent.distributed.current` gives them. Each has a file of its own beside
        ``path`` until all are done, and each gets all rows.
    advance
        Called with the number of noise samples that are done, n0 + n for each input, and a string.

    Returns
    -------
    Certificate
        The rows of the samples, in the order of their numbers.

    Raises
    ------
    ValueError
        In one line, for inputs that cannot be certified, for labels beyond the model's outputs, for a file that was
        made with other settings or images, and for a certifier that raises or returns something else.

    Examples
    --------
    >>> import torch
    >>> from atent.certify import Sampling, certify_run
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> x, y = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    >>> found = certify_run(model, x, y, Sampling(sigma=0.25, n0=10, n=100))
    >>> [row.idx for row in found.rows], len(found.radii())
    ([0, 1, 2, 3], 4)
    """
    x, y = as_samples(x, y, model)
    if sampling.radius is not None and certifier is not Smoothed:
        raise ValueError(f"the sequential test is for smoothing, not for {name_of(certifier)}: omit the radius")
    if not len(x):
        raise ValueError("no samples to certify: give at least one")
    check_batch(x, y, (-math.inf, math.inf))
    ids = numbered(ids, len(x), "cpu")
    if len(ids.unique()) != len(ids):
        raise ValueError("ids must be different sample numbers: two equal ones would share their noise and their row")
    mine = shard_rows(shard, len(x), _group(sampling, batch))
    about = identity(model, certifier) if about is None and path is not None else about
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


def identity(model: nn.Module, certifier: Callable[[nn.Module, float], Any] = Smoothed) -> dict[str, Any]:
    """What identifies a network, and a certifier other than `Smoothed`, in the file of a certificate."""
    found = {"weights": fingerprint(model), "model": identity_of(model)}
    if certifier is Smoothed:
        return found
    code = code_of([certifier])
    # The arguments of a partial may be in another file than what it calls.
    given = {"settings": function_of(certifier)} if isinstance(certifier, functools.partial) else {}
    return {**found, "certifier": name_of(certifier), **({"code": code} if code else {}), **given}


@contextmanager
def _claimed(path: Path, wanted: dict[str, Any], world: World) -> Iterator[None]:
    """Inside, this rank's file of rows is locked; the first rank's has the rows that an earlier job of ranks left."""
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
    differs only where two logits tie to rounding. The model itself where it cannot be folded, and for an external
    ``certifier``.
    """
    if certifier is not Smoothed:
        return Folded(model, 0, None)
    return fold(model, noisy(x, sampling.sigma, sampling.seed))


def _certified(
    smoothed: Any, model: nn.Module, x: Tensor, y: Tensor, ids: Tensor, sampling: Sampling, path: Path | None,
    batch: int | None, world: World, advance: Advance | None,
) -> Certificate:  # fmt: skip
    """The certificate of the samples; rows that the file at ``path`` contains are not computed again."""
    done: dict[int, Row] = {}
    images = images_of(ids, x)
    if path is not None:
        most = largest_radius(sampling.n, sampling.alpha, sampling.sigma)
        labels = dict(zip(ids.tolist(), y.tolist()))
        for rows in world.gather(list(resumed(of_rank(path, world.rank), labels, most, images).values())):
            done |= {row.idx: row for row in rows}
        manifest.forget_file(of_rank(path, world.rank))  # it grows
    check_labels(y, clean_logits(model, x[:1], sampling.seed).shape[1])
    size = min(forward_size(x, batch), sampling.n * len(x))
    hint = dependence_hint(model, noisy(x, sampling.sigma, sampling.seed), seed=sampling.seed, size=size)
    if path is not None and world.first:
        note_hint(path, hint)
    left = [i for i, number in enumerate(ids.tolist()) if number not in done]
    if advance and len(left) < len(ids):
        advance((len(ids) - len(left)) * (sampling.n0 + sampling.n), "")
    groups = torch.tensor(left, dtype=torch.int64).split(_group(sampling, batch)) if left else ()
    made: list[Row] = []
    for part in Shard(world.rank, world.size).of(groups):
        rows = rows_of(smoothed, model, x[part.to(x.device)], y[part.to(y.device)], ids[part], sampling, batch, advance)
        rows = [row._replace(image=images[row.idx]) for row in rows]
        if path is not None:
            append(of_rank(path, world.rank), rows)
        made += rows
    world.wait()
    done |= {row.idx: row for rows in world.gather(made) for row in rows}
    if path is not None and world.size > 1:
        _write_all(path, [done[i] for i in dict.fromkeys([*ids.tolist(), *done])], world)
    return Certificate(tuple(done[i] for i in sorted(ids.tolist())), sampling, math.prod(x.shape[1:]), hint)


def _write_all(path: Path, rows: list[Row], world: World) -> None:
    """Write all rows to the file of rank 0 and remove the files of the other ranks."""
    if world.first:
        write_rows(path, rows)
        sums(path).unlink(missing_ok=True)
    world.wait()
    if not world.first:
        removed(of_rank(path, world.rank))


def _group(sampling: Sampling, batch: int | None) -> int:
    """How many samples share forward passes."""
    # As many samples at once as fill a few forward passes, so that an interruption loses little.
    # A sequential test takes few noise samples of most images.
    return TOGETHER if sampling.radius is not None else max(1, 4 * (batch or 1000) // sampling.n)


def merge(paths: Sequence[str | Path], dim: int, ids: Iterable[int] | None = None) -> Certificate:
    """One certificate from the files of several shards that were made with the same settings.

    Parameters
    ----------
    paths
        The files that `certify_run` wrote, one for each shard.
    dim
        Number of values of a sample.
    ids
        Sample numbers that the certificate is to have; default: all that the files contain.

    Returns
    -------
    Certificate
        The rows in ascending order of sample numbers, and the first hint of the files.

    Raises
    ------
    ValueError
        In one line, for no files, for files made with different settings, for two that disagree on a sample, and where
        one of ``ids`` is missing.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from atent.certify import Sampling, certify_run, merge
    >>> model, sampling = torch.nn.Linear(2, 3), Sampling(sigma=0.25, n0=10, n=100)
    >>> x, y, files = torch.rand(4, 2), torch.tensor([0, 1, 2, 0]), []
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     for i in range(2):
    ...         files.append(Path(folder) / f"{i}.csv")
    ...         _ = certify_run(model, x, y, sampling, path=files[-1], shard=(i, 2))
    ...     print([row.idx for row in merge(files, dim=2).rows])
    [0, 1, 2, 3]
    """
    if not paths:
        raise ValueError("no shards to merge: give the files that `--shard i/k` wrote")
    first = made(Path(paths[0]))
    rows: dict[int, Row] = {}
    for path in map(Path, paths):
        if made(path) != first:
            raise ValueError(f"{path} was made with other settings than {paths[0]}: merge shards of one command only")
        for row in read_rows(path):
            if row.idx in rows and row._replace(time=0.0) != rows[row.idx]._replace(time=0.0):
                raise ValueError(f"{path} disagrees with an earlier shard on sample {row.idx}: certify it again")
            rows[row.idx] = row
    wanted = sorted(rows if ids is None else ids)
    missing = [i for i in wanted if i not in rows]
    if missing or not wanted:
        raise ValueError(
            f"{len(missing)} of {len(wanted)} samples are missing in all shards, such as {missing[:3]}: run the shards"
            " that are not finished"
        )
    hint = next(filter(None, map(hint_of, map(Path, paths))), None)
    return Certificate(tuple(rows[i] for i in wanted), Sampling(**first["draws"]), dim, hint)


def made_of(sampling: Sampling, about: dict[str, Any], folded: int = 0) -> dict[str, Any]:
    """What the rows of one file have in common: the settings, the noise streams, and what is certified.

    ``folded``: batch norms that are folded in the certified network. 0: the network itself, as in the files of versions
    without folding.
    """
    test = {} if sampling.radius is None else {"test": TEST}
    network = {"network": {"batch_norms_folded": folded}} if folded else {}
    return {"draws": sampling.to_json(), "about": about, "noise": NOISE, **test, **network}


def __getattr__(name: str) -> Any:
    if name == "Draws":
        deprecated(f"{__name__}.Draws", "atent.certify.Sampling")
        return Sampling
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
