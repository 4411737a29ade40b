"""`atent export`: a network for other programs, checked against the network that it was made from."""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from atent.cli import show
from atent.cli.parse import Flat, Place, arg
from atent.cli.target import Target
from atent.experiments.recipe_files import UsageError

if typing.TYPE_CHECKING:
    from atent.experiments.target import Target as Subject

Kind = typing.Literal["safetensors", "torch-export", "onnx", "vnnlib", "hub", "robustbench"]
_FILES = {
    "safetensors": "model.safetensors",
    "torch-export": "model.pt2",
    "onnx": "model.onnx",
    "robustbench": "robustbench.json",
}
# Enough for a check; all of them is `--limit all`.
_IMAGES = 100


def export(
    target: Annotated[Target, Flat],
    *,
    format: Annotated[Kind, arg("{safetensors,torch-export,onnx,vnnlib,hub,robustbench}")],
    out: Place = None,
    timeout: Annotated[int | None, arg("SECONDS")] = None,
    license: Annotated[str | None, arg("NAME")] = None,
    push: Annotated[str | None, arg("USER/NAME")] = None,
    private: bool = False,
    json: bool = False,
) -> int:
    """Write a network for other programs, and check that it still is the network.

    The file is run on clean test images and on adversarial ones that PGD-20 finds, in batches of 1 and of all, and its
    logits are compared with those of the network. Exit status: 0 done, 1 failed or the check did (the file stays), 2
    not understood, or a network that the format cannot hold.

    Parameters
    ----------
    format
        safetensors: weights for `atent.load` and any reader; torch-export: a program of torch.export; onnx: an ONNX
        network (extra onnx); vnnlib: a folder for verification tools, with a property of local robustness for each of
        the test images that are classified correctly, in linf (extra onnx); hub: the folder of a Hugging Face Hub
        repository, with the results that lie beside the weights and a model card of them; robustbench: a model entry.
    out
        File or folder to write. Default: model.onnx and the like, or a folder named after the format, in the run
        folder, beside the file, or in this folder, numbered where it is taken.
    timeout
        vnnlib: seconds that instances.csv gives a tool for one property. Default: 100.
    license
        hub: licence of the weights, as the Hub writes it, such as mit. Default: unknown.
    push
        hub: also push the folder to this repository, with the token of `hf auth login`.
    private
        With --push: make a private repository.
    json
        Print what was written and the check as JSON to standard output, and nothing else there.
    """
    from atent.experiments.target import load_target
    from atent.export import hub
    from atent.export.write import write

    _check_target(target, format)
    _for_format(format, {"vnnlib": {"--timeout": timeout}, "hub": {"--license": license, "--push": push}})
    if private and push is None:
        raise UsageError("--private has no effect without --push")
    # What is missing shows before the work.
    client = None if push is None else hub.client_for(push)
    keywords = {**target.keywords(), "limit": _IMAGES if target.limit is None else target.limit}
    with show.json_alone(json) as emit, show.own(out=Path(out) if out else None):
        subject = load_target(**keywords, attacks=())
        show.threads(target.threads)
        with _place(subject, format, out) as place:
            made = write(subject, format, place, timeout=timeout or 100, license=license, repo=push)
        print("\n".join(made.lines))
        if made.check is not None:
            print(f"check: {made.check.text}")
        failed = made.check is not None and not made.check.passed
        pushed = None if client is None or push is None or failed else hub.push(place, push, client, private=private)
        if pushed is not None:
            print(f"pushed: {pushed}")
        print(f"written: {place}")
        emit({"format": format, "written": str(place), "pushed": pushed, **made.to_json()})
    if failed:
        show.warn(f"{place} does not compute what the network does, see the check{': not pushed' if push else ''}")
    return 1 if failed else 0


def _check_target(target: Target, format: str) -> None:
    """UsageError for an option of an evaluation that no export makes use of."""
    idle = ["channels_last", "memory_format", "precision", "folding", "allow_long"]
    if format == "robustbench":
        # An entry says what evaluations measured; no network is run.
        idle += ["limit", "subset", "seed", "batch_size", "threads"]
    for name in idle:
        if getattr(target, name) not in (None, False):
            raise UsageError(f"--{name.replace('_', '-')} has no effect on an export to {format}: omit it")
    if target.folding is False or target.channels_last is False:
        raise UsageError(f"--no-{'folding' if target.folding is False else 'channels-last'} has no effect on an export")


def _for_format(format: str, options: dict[str, dict[str, Any]]) -> None:
    """UsageError for an option of another format."""
    for own, given in options.items():
        for option, value in given.items():
            if value is not None and format != own:
                raise UsageError(f"{option} is for --format {own}, and has no effect on {format}")


@contextlib.contextmanager
def _place(subject: Subject, format: str, out: str | None) -> Iterator[Path]:
    """Where to write: what the option says, a file that is claimed, and given back where nothing was written, or a
    folder that is not there."""
    from atent.runs import free_name

    if out is not None or format not in _FILES:
        yield Path(out) if out is not None else free_name(subject.place, f"{subject.stem}{format}")
        return
    path = show.free_file(subject.place / f"{subject.stem}{_FILES[format]}")
    try:
        yield path
    finally:
        if path.stat().st_size == 0:
            path.unlink()
