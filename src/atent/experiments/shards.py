"""Shards of a measurement in separate files, and their merge."""

from __future__ import annotations

import glob
import hashlib
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent.distributed.shards import Shard
from atent.evaluate import evaluate_shard, sweep_shard
from atent.evaluate.evaluation import costs, radii_costs
from atent.evaluate.lines import ShardFile
from atent.experiments.evaluation import Request, about_evaluation, chain, check_request, how, network_of, samples
from atent.experiments.partial_files import beside, family, unfinished
from atent.experiments.studies import study_shard
from atent.experiments.target import Target
from atent.progress import bar
from atent.runs import manifest

VERSION = 1
"""Version of the files of shards."""
_SUM = "sum"
_WORDS = {"model": "weights", "inputs": "images", "ids": "sample numbers", "batch": "batch size"}


class Incomplete(ValueError):
    """The files of shards are not those of one measurement."""


def shard_file(place: Path, shard: Shard) -> Path:
    """The file of one shard of the result ``place``."""
    return place.with_name(f"{place.stem}.{shard.name}{place.suffix}")


def gathered(
    place: Path, wanted: Mapping[str, Any], read: Callable[[Path], dict[str, Any]]
) -> list[dict[str, Any]]:  # fmt: skip
    """The values of ``read`` for the files of all shards of the result ``place``, in order.

    Parameters
    ----------
    place
        The file of the result.
    wanted
        What every shard must be of, as its "of" says.
    read
        The content of a file: "shard", "of" and further keys.

    Raises
    ------
    Incomplete
        Which names the file: one is missing, damaged, of another shard than its name says, of another
        number of shards, or of another measurement.
    """
    form = re.compile(rf"{re.escape(place.stem)}\.shard-(\d+)-of-(\d+){re.escape(place.suffix)}")
    files = sorted(place.parent.glob(f"{glob.escape(place.stem)}.shard-*-of-*{place.suffix}"))
    counts = {int(found[2]): file for file in files if (found := form.fullmatch(file.name))}
    if not counts:
        raise Incomplete(
            f"{place.parent} has no shard of {place.name}: give the same command with --shard 1/k to --shard k/k first"
        )
    if len(counts) > 1:
        some = " and ".join(f"{count} ({file.name})" for count, file in sorted(counts.items()))
        raise Incomplete(f"{place.parent} has shards of {some}: move those of the other measurement away")
    return [_one(place, shard, wanted, read) for shard in Shard(0, next(iter(counts))).each()]


def _one(
    place: Path, shard: Shard, wanted: Mapping[str, Any], read: Callable[[Path], dict[str, Any]]
) -> dict[str, Any]:  # fmt: skip
    file = shard_file(place, shard)
    if not file.is_file():
        raise Incomplete(f"shard {shard.text} is missing: {file} does not exist; run --shard {shard.text}")
    try:
        content = read(file)
        text, of = content["shard"], content["of"]
    except Exception as error:
        raise Incomplete(f"{file} is damaged: remove it and run --shard {shard.text} again") from error
    if text != shard.text:
        raise Incomplete(f"{file} is shard {text}: shard {shard.text} is missing, run --shard {shard.text}")
    check_same(file, of, wanted)
    return content


def check_same(file: Path, of: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """`Incomplete` if the shard in a file is of another measurement than that of this command."""
    wanted = folder.plain(dict(wanted))
    differs = [_WORDS.get(key, key) for key in dict.fromkeys((*wanted, *of)) if wanted.get(key) != of.get(key)]
    if differs:
        raise Incomplete(
            f"{file} was made with other {', '.join(differs)} than this command: give the same options, or another"
            " --out"
        )


# ---- an evaluation


def evaluation_shard(
    target: Target,
    place: Path,
    shard: Shard,
    request: Request,
    *,
    progress: bool = True,
) -> Path:
    """Do one shard of an evaluation, and write the file that `merging` reads.

    A shard is every k-th block of the samples that are right without an attack: a block is a batch of the first attack.
    Measurements before a kill are reused. An existing shard of the same evaluation is kept.

    Raises
    ------
    ValueError
        As `evaluate_target`, and for more shards than batches; `Incomplete` if the file is there and of
        another evaluation.
    """
    check_request(target, request)
    of, file = _of(target, request), shard_file(place, shard)
    with unfinished(file, "evaluation", of, network=network_of(target, file)) as partial:
        if file.exists():
            check_same(file, _read(file)["of"], of)
            return file
        clean = _measured(target, shard, partial, request, progress=progress)
        parts = {name: path.read_text().splitlines() for name, path in _parts(partial).items()}
        content = {
            "schema_version": VERSION, "kind": "atent evaluation, one shard", "shard": shard.text, "of": of,
            "clean": clean, "parts": parts, "provenance": folder.provenance(seed=target.settings.seed),
        }  # fmt: skip
        manifest.write_json(file, {**content, _SUM: _sum(content)})
    return file


def _measured(target: Target, shard: Shard, partial: Path, request: Request, *, progress: bool) -> str:
    known, attacks, radii = samples(target, False), target.attacks, request.radii
    given = how(target.settings) | {"search_dtype": request.search_dtype}
    cascaded = chain(target, request.cascade)
    each = costs(attacks, cascaded)
    with bar(len(known.x), f"shard {shard.text}", enabled=progress, costs=each) as advance:
        clean = evaluate_shard(
            target.model, known, None, attacks, shard, cascade=cascaded, resume=partial, advance=advance,
            **given,
        )  # fmt: skip
    if radii:
        each = radii_costs(attacks, radii)
        with bar(len(known.x), "radii", enabled=progress, costs=each) as advance:
            resume = beside(partial, "sweep")
            sweep_shard(target.model, known, attacks, radii, shard, resume=resume, advance=advance, **given)
    for name in request.studies.chosen:
        study_shard(request.studies, name, target, known, ShardFile(beside(partial, name), shard), progress=progress)
    return clean


@contextmanager
def merging(target: Target, place: Path, request: Request) -> Iterator[Path]:
    """The ``partial`` of `evaluate_target` with this request and ``blocks``, with all that the shards measured.

    Raises
    ------
    Incomplete
        As `gathered`, and where two shards differ in their predictions without an attack.
    """
    of = _of(target, request)
    found = gathered(place, of, _read)
    for content in found:
        if content["clean"] != found[0]["clean"]:
            raise Incomplete(
                f"shard {content['shard']} of {place.name} classifies other images correctly than shard"
                f" {found[0]['shard']}: make all shards on machines of one kind"
            )
    more = {"merged": len(found), "checks": request.checks, "network": network_of(target, place)}
    with unfinished(place, "evaluation", of, **more) as partial:
        for name in dict.fromkeys(name for content in found for name in content["parts"]):
            each = [content["parts"][name] for content in found if name in content["parts"]]
            # The first line identifies the measurement, and is the same in all.
            lines = [each[0][0], *(row for lines in each for row in lines[1:])]
            folder.write_atomic(beside(partial, name), "".join(f"{line}\n" for line in lines))
        yield partial


def _of(target: Target, request: Request) -> dict[str, Any]:
    """The inputs that a shard of an evaluation depends on; the checks are made of the whole, at the merge."""
    about = about_evaluation(target, replace(request, checks=False))
    radii = [str(r) for r in request.radii]
    more = {"batch": target.settings.batch, "radii": radii, **request.studies.about}
    plain: dict[str, Any] = folder.plain({**about, **more})
    return plain


def _parts(partial: Path) -> dict[str, Path]:
    """The files of a measurement by the names of its parts, "" for the measurement itself."""
    return {file.name.removeprefix(partial.stem)[: -len(partial.suffix)].lstrip("."): file for file in family(partial)}


def _read(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = manifest.read_json(file)
    if content["schema_version"] != VERSION or content.pop(_SUM) != _sum(content):
        raise Incomplete(f"{file} is damaged, or of another version of atent: remove it and run its shard again")
    return content


def _sum(content: Mapping[str, Any]) -> str:
    kept = {key: value for key, value in content.items() if key != _SUM}
    return hashlib.sha256(folder.dumps(kept).encode()).hexdigest()
