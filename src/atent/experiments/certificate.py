"""From a run folder to its certificate: model and test images in, certificate.csv and certificate.json out."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from atent import runs as folder
from atent import stats
from atent.certify import (
    CERTIFIERS,
    METHODS,
    Certificate,
    Sampling,
    certify_run,
    merge,
    smooths,
    verified,
    verified_by,
)
from atent.certify.certificate import TOGETHER, certified_network, identity, made_of
from atent.certify.limits import check_radius
from atent.certify.rows import (
    Row,
    check_images,
    claimed,
    free,
    images_of,
    made_alike,
    read_rows,
    sidecar,
    sums,
    write_rows,
)
from atent.certify.shards import check_complete, check_shard
from atent.data import Limit, Rule
from atent.data.described import spans
from atent.distributed import alone, current, entered
from atent.distributed.shards import Shard
from atent.evaluate import predict
from atent.experiments.noise import sigma_of
from atent.experiments.results import (
    CERTIFICATE_VERSION,
    BoundsFile,
    CertificateFile,
    SequentialFile,
    SmoothingFile,
)
from atent.experiments.target import Target, load_target
from atent.fields import as_norm
from atent.memory import Batches
from atent.models.convention import Convention
from atent.progress import Advance, bar, checked
from atent.registry import Plugin, plugin_named
from atent.runs import manifest
from atent.runs.identity import digest
from atent.runs.locks import held, lock_of
from atent.runs.weights import fingerprint
from atent.signals import computed, resumed_by
from atent.threads import Threads
from atent.threat import Norm, Threat, radius
from atent.train.compiling import compiler_missing
from atent.train.settings import pick_device

CERTIFICATE = "certificate.csv"
Smoothing = SmoothingFile | SequentialFile
Check = Callable[[], object] | None

# Images whose bounds are computed together.
_VERIFIED = 50
_N0, _N, _ALPHA = 100, 100_000, 0.001


def certify_folder(
    target: str | Path,
    *,
    model: str | None = None,
    data: str | None = None,
    method: str = "smoothing",
    sigma: float | None = None,
    n0: int = _N0,
    n: int = _N,
    alpha: float = _ALPHA,
    seed: int = 0,
    limit: Limit = 200,
    subset: Rule | None = None,
    radii: Sequence[float | str] | None = None,
    sequential: bool | None = None,
    norm: Norm | None = None,
    allow_large_eps: bool = False,
    shard: str | None = None,
    merged: bool = False,
    which: str = "best",
    root: str | None = None,
    device: str = "auto",
    threads: Threads = None,
    batch: int | None = None,
    compiled: bool = False,
    channels_last: bool | None = None,
    progress: bool = True,
    trust_code: bool = False,
    convention: Convention | None = None,
    key: str | None = None,
    check: Check = None,
) -> tuple[Path, Smoothing | BoundsFile, Certificate | None]:
    """Certify ``limit`` test images of a run ("all": every one): the .json written, its content, and the rows of
    smoothing.

    They are chosen by ``subset``, "stratified" or "first", default as the run.

    ``target``, ``model``, ``data``, ``convention`` and ``key`` as `load_target` takes them: also a file of weights, or
    the user's own network.

    ``method`` is a name of `CERTIFIERS`, or module:Thing: "smoothing", and a class of the user's own, draw noise
    (`certify_run`); "ibp", "crown-ibp", "crown", "alpha-crown" and "dual" compute bounds (`verified`), and so does a
    function (`verified_by`), within ``radii`` under the run's norm or ``norm``, default: the run's eps. The same call
    resumes where an earlier one stopped, and takes more images when ``limit`` grows; another budget, seed or set of
    weights gets the next free name. ``sequential``: decide the one radius of ``radii`` by a sequential test with ``n``
    noise samples at most (`Smoothed.certify_at`); default: if exactly one radius is requested of smoothing. ``shard``
    "i/k", with i from 1, certifies every k-th group of images into a separate file (see `certify_run`), ``merged``
    joins the shards. Ranks that call this together share the groups. ``compiled``: smoothing with the network fused by
    ``torch.compile``, ``channels_last``: that of `Smoothed`; both the same up to rounding.
    ``check`` is called between forward passes, and may raise to end the work; the same call resumes it (bounds: starts
    again). ``trust_code`` as `load_target`. Raises ValueError and FileNotFoundError.
    """
    norm = as_norm(norm, Norm)
    noisy, plugin = smooths(method), plugin_named(CERTIFIERS, method)
    who = load_target(
        str(target), model=model, data=data, root=root, attacks=(), which=which, device=device, threads=threads,
        subset=subset, allow_large_eps=allow_large_eps, trust_code=trust_code, convention=convention, key=key,
    )  # fmt: skip
    who = replace(who, settings=replace(who.settings, limit=limit))
    goals = None if radii is None else [radius(r, "radius") for r in radii]
    if not noisy:
        if sequential:
            raise ValueError(f"method {method} uses no noise samples, so it has no sequential test: omit --sequential")
        unused = {
            "sigma": sigma is not None, "n0": n0 != _N0, "n": n != _N, "alpha": alpha != _ALPHA, "seed": seed != 0,
            "shard": shard, "merge": merged, "batch-size": batch is not None, "compile": compiled,
            "channels-last": channels_last is not None,
        }  # fmt: skip
        _check_unused(method, [f"--{name}" for name, given in unused.items() if given])
        own = entered(lambda: _alone(who, method, plugin, norm, goals, limit))
        with own, resumed_by("repeating the command starts again"):
            return *_bounded(who, method, plugin, _threats(who, norm, goals), progress, check), None
    noise = sigma_of(who.config, who.name) if sigma is None else sigma
    sampling = Sampling(noise, n0, n, alpha, seed, _tested(goals, sequential, plugin))
    how = _How(method, plugin, sampling, goals, batch, compiled, channels_last)
    _check(how, norm, device)
    own = entered(lambda: _alone(who, method, plugin, sampling, shard, merged))
    with own, resumed_by("repeating the command resumes"):
        return _smoothed(who, how, shard, merged, progress, check)


def _tested(goals: list[float] | None, sequential: bool | None, plugin: Plugin | None) -> float | None:
    """The radius of a sequential test; None for a certificate of all noise samples."""
    one = goals is not None and len(goals) == 1
    if sequential is None:
        sequential = plugin is None and one
    if not sequential:
        return None
    if goals is None or not one:
        given = "none" if goals is None else ", ".join(f"{goal:g}" for goal in goals)
        raise ValueError(f"a sequential test needs one radius, got {given}: give one --radius, or --sequential False")
    return goals[0]


@contextmanager
def _alone(who: Target, *request: Any) -> Iterator[None]:
    """Hold the lock of this certificate only: others of the same run may be computed concurrently."""
    key = digest(folder.dumps([fingerprint(who.model), *request]))
    with held(lock_of(who.place / f"{who.stem}certificate.{key}"), "certify"):
        yield


def _check_unused(method: str, options: list[str]) -> None:
    """ValueError for options of sampling with a method that samples no noise."""
    if options:
        *more, last = options
        given = f"{', '.join(more)} and {last}" if more else last
        raise ValueError(f"method {method} uses no noise samples: omit {given}")


@dataclass(frozen=True)
class _How:
    """The settings of a certificate by smoothing."""

    method: str
    plugin: Plugin | None
    sampling: Sampling
    goals: list[float] | None
    batch: int | None
    compiled: bool
    channels_last: bool | None


def _check(how: _How, norm: Norm | None, device: str) -> None:
    """Raise ValueError, before the computation, for settings that smoothing does not support."""
    if norm not in (None, "l2"):
        raise ValueError(f"Gaussian smoothing certifies in l2, not in {norm}: omit --norm, or use a --method of bounds")
    if how.plugin is not None:
        for option, value in (("--batch-size", how.batch), ("--channels-last", how.channels_last)):
            if value is not None:
                raise ValueError(f"{option} has no effect on {how.method}: set it inside that class")
    sampling = how.sampling
    for goal in how.goals or ():
        check_radius(goal, sampling.n, sampling.alpha, sampling.sigma)
    if how.compiled and compiler_missing(pick_device(device)):
        raise ValueError("--compile needs a C++ compiler on the CPU, such as g++: install one, or omit it")


def _about(who: Target, plugin: Plugin | None) -> dict[str, Any]:
    """The identity of a certificate, independent of its numbers of images and noise samples."""
    about = {"data": who.data.name, "split": "test"}
    if plugin is None:
        return identity(who.model) | about
    return identity(who.model, CERTIFIERS.find(plugin.name)) | about | {"certifier": asdict(plugin)}


def _head(who: Target, method: str, plugin: Plugin | None, ids: Sequence[int], shape: Sequence[int]) -> dict[str, Any]:
    images = {**who.samples(), "n": len(ids), "ids": spans(ids), "shape": list(shape)}
    return {
        "schema_version": CERTIFICATE_VERSION,
        "run": who.name,
        **who.about,
        "trained": (who.config.get("method") or {}).get("name"),
        "images": images,
        "method": method,
        "certifier": None if plugin is None else asdict(plugin),
    }


def _smoothed(
    who: Target, how: _How, shard: str | None, merged: bool, progress: bool, check: Check
) -> tuple[Path, Smoothing, Certificate]:
    x, y, ids = who.test()
    sampling, about, certifier = how.sampling, _about(who, how.plugin), CERTIFIERS.find(how.method)
    known: tuple[set[int], dict[str, Any]] = (set(), {})
    part = None if shard is None else Shard.parse(shard)
    network = certified_network(who.model, x, sampling, certifier)
    made = made_of(sampling, about, network.layers)
    if merged:
        table = free(who.place / f"{who.stem}{CERTIFICATE}", made)
        shards = who.place.glob(f"{who.stem}certificate*.shard-*-of-*.csv")
        files = [f for f in sorted(shards) if made_alike(f, made)]
        if not table.exists():
            check_complete(files, who.place)
        found = merge([*files, *([table] if table.exists() else [])], x[0].numel(), ids.tolist())
        check_images(table, found.rows, images_of(ids, x))
        _check_labels(table, found.rows, ids, y)
        table, order = claimed(table, made), {number: place for place, number in enumerate(ids.tolist())}
        write_rows(table, sorted(found.rows, key=lambda row: order[row.idx]))
    else:
        index = (part.index, part.count) if part else (0, 1)
        mine = range(*check_shard(index, len(x)))
        name = CERTIFICATE if part is None else f"certificate.{part.name}.csv"
        table = alone(lambda: claimed(who.place / f"{who.stem}{name}", made))
        known = _finished(table)
        if how.compiled:
            network = replace(network, network=cast(nn.Module, torch.compile(network.network)))
        each = sampling.n0 + sampling.n
        group = 0 if sampling.radius is None else min(TOGETHER, len(mine)) * each
        with bar(len(mine) * each, who.name, enabled=progress, group=group) as advance:
            found = certify_run(
                who.model, x, y, sampling, ids=ids, path=table, about=about, shard=index, batch=how.batch,
                channels_last=how.channels_last, certifier=certifier, network=network, world=current(),
                advance=checked(advance, check),
            )  # fmt: skip
    head = _head(who, how.method, how.plugin, [row.idx for row in found.rows], x.shape[1:])
    # A command that only reads the rows did not make them.
    read = {row.idx for row in found.rows} <= known[0]
    provenance = known[1] if read else folder.provenance(seed=sampling.seed, device=x.device)
    content = cast(Smoothing, CertificateFile.from_json({
        **found.to_json(how.goals), **head, "shard": shard,
        "provenance": provenance, "made": made, "complete": True,
    }))  # fmt: skip

    def finished() -> None:
        manifest.record_file(table)
        sums(table).unlink(missing_ok=True)
        manifest.write_json(sidecar(table), content.to_json())

    alone(finished)
    return sidecar(table), content, found


def _finished(table: Path) -> tuple[set[int], dict[str, Any]]:
    """The numbers of the rows of a complete certificate, and its provenance; none of another."""
    content = manifest.read_json(sidecar(table))
    if not (content.get("complete") and content.get("provenance")):
        return set(), {}
    return {row.idx for row in read_rows(table)}, content["provenance"]


def _check_labels(table: Path, rows: Sequence[Row], ids: Tensor, y: Tensor) -> None:
    """ValueError where the data have changed a label since its row was written."""
    labels = dict(zip(ids.tolist(), y.tolist()))
    changed = next((row for row in rows if row.label != labels[row.idx]), None)
    if changed is not None:
        raise ValueError(
            f"the shards of {table} have label {changed.label} for sample {changed.idx}, the data have"
            f" {labels[changed.idx]}: run the shards again"
        )


def _threats(who: Target, norm: Norm | None, goals: list[float] | None) -> list[Threat]:
    own = who.threat
    kind = norm or (own.norm if own else None)
    if goals is None and own is not None and own.norm == kind:
        goals = [float(own.eps)]
    if kind is None or goals is None:
        missing = "--norm and --radius" if kind is None else f"--radius, such as --norm {kind} --radius 8/255"
        raise ValueError(f"{who.name} has no default radius in {kind or 'any norm'}: give {missing}")
    allowed = who.settings.allow_large_eps or (own is not None and own.allow_large_eps)
    more = own.extra() if own is not None and own.norm == kind else {}
    return [Threat(kind, r, who.data.box, allowed, **more) for r in goals]


def _bounded(
    who: Target, method: str, plugin: Plugin | None, threats: list[Threat], progress: bool, check: Check
) -> tuple[Path, BoundsFile]:
    x, y, ids = who.test()
    for threat in threats:
        threat.check_eps(x.shape[1:])
    clean = predict(who.model, x, y) == y
    results = []
    with bar(len(x) * len(threats), who.name, enabled=progress) as advance:
        for threat in threats:
            begun = time.perf_counter()
            certain = _verified(who.model, x, y, threat, method, checked(advance, check))
            results.append(
                {
                    "threat": threat.plain(),
                    "share": stats.share(int(certain.sum()), len(x)),
                    "verified": ids[certain].tolist(),
                    "seconds_per_image": (time.perf_counter() - begun) / len(x),
                }
            )
    about = _about(who, plugin) | {"method": method, "threats": [t.plain() for t in threats], "n": len(x)}
    if who.data.subset != "first" and len(x) < len(who.data.test):
        about["ids"] = who.samples()["ids"]
    content = BoundsFile.from_json({
        **_head(who, method, plugin, ids.tolist(), x.shape[1:]), "n": len(x),
        "clean": stats.share(int(clean.sum()), len(x)), "certified": results,
        "provenance": folder.provenance(device=x.device), "made": about, "complete": True,
    })  # fmt: skip

    def written() -> Path:
        out = sidecar(claimed(who.place / f"{who.stem}{CERTIFICATE}", about))
        manifest.write_json(out, content.to_json())
        return out

    with computed(content):
        return alone(written), content


def _verified(model: nn.Module, x: Tensor, y: Tensor, threat: Threat, method: Any, advance: Advance) -> Tensor:
    def part(rows: slice) -> Tensor:
        if method not in METHODS:
            return verified_by(method, model, x[rows], y[rows], threat)
        with torch.no_grad():
            return verified(model, x[rows], y[rows], threat, method)

    world, out = current(), {}
    batches = Batches("the verification")
    for begin in Shard(world.rank, world.size).of(range(0, len(x), _VERIFIED)):
        size = min(_VERIFIED, len(x) - begin)

        def chosen(rows: slice, begin: int = begin) -> Tensor:
            return part(slice(begin + rows.start, begin + rows.stop))

        for rows, found in batches.over(size, size, chosen):
            out[begin + rows.start] = found.cpu()
            advance(rows.stop - rows.start, f"{method} {threat.norm} {float(threat.eps):g}")
    world.wait()
    every = {begin: found for each in world.gather(out) for begin, found in each.items()}
    return torch.cat([every[begin] for begin in sorted(every)]).to(x.device)
