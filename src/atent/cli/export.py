"""`atent export`: exports a network and checks the result against the original."""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from atent.cli import output
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
# Sufficient for the check; `--limit all` uses all images.
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
    """Export a network to another format and check the result against the original.

    The check compares logits on clean test images and on adversarial images of PGD-20, in batches of 1 and of all
    images. Exit status: 0 success, 1 failure, also of the check (the file is kept), 2 invalid usage or a network that
    the format cannot represent.

    Parameters
    ----------
    format
        safetensors: weights for `atent.load` and other readers; torch-export: a torch.export program; onnx: an ONNX
        network (extra onnx); vnnlib: a folder for verification tools, with a linf local-robustness property for each
        correctly classified test image (extra onnx); hub: a Hugging Face Hub repository folder, with the results stored
        beside the weights and a model card; robustbench: a model entry.
    out
        File or folder to write. Default: a file such as model.onnx, or a folder named after the format, in the run
        folder, beside the weights file, or in the current folder; a number is appended if it exists.
    timeout
        vnnlib: timeout per property in instances.csv, in seconds. Default: 100.
    license
        hub: licence identifier of the weights on the Hub, such as mit. Default: unknown.
    push
        hub: also push the folder to this repository; uses the token of `hf auth login`.
    private
        With --push: create a private repository.
    json
        Print the written files and the check to standard output as a single JSON document; an error leaves it empty.
    """
    from atent.experiments.target import load_target
    from atent.export import hub
    from atent.export.write import write

    _check_target(target, format)
    _for_format(format, {"vnnlib": {"--timeout": timeout}, "hub": {"--license": license, "--push": push}})
    if private and push is None:
        raise UsageError("--private has no effect without --push")
    # Missing packages are reported before the computation.
    client = None if push is None else hub.client_for(push)
    keywords = {**target.keywords(), "limit": _IMAGES if target.limit is None else target.limit}
    with output.json_alone(json) as emit, output.own(out=Path(out) if out else None):
        subject = load_target(**keywords, attacks=())
        output.threads(target.threads)
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
        output.warn(f"the check failed: {place} differs from the network{'; not pushed' if push else ''}")
    return 1 if failed else 0


def _check_target(target: Target, format: str) -> None:
    """Raise UsageError for an evaluation option that the export does not use."""
    idle = ["channels_last", "memory_format", "precision", "folding", "allow_long"]
    if format == "robustbench":
        # A model entry reports existing evaluations; the network does not run.
        idle += ["limit", "subset", "seed", "batch_size", "threads"]
    for name in idle:
        if getattr(target, name) not in (None, False):
            raise UsageError(f"--{name.replace('_', '-')} has no effect on an export to {format}: omit it")
    if target.folding is False or target.channels_last is False:
        raise UsageError(f"--no-{'folding' if target.folding is False else 'channels-last'} has no effect on an export")


def _for_format(format: str, options: dict[str, dict[str, Any]]) -> None:
    """Raise UsageError for an option of another format."""
    for own, given in options.items():
        for option, value in given.items():
            if value is not None and format != own:
                raise UsageError(f"{option} is for --format {own}, and has no effect on {format}")


@contextlib.contextmanager
def _place(subject: Subject, format: str, out: str | None) -> Iterator[Path]:
    """The output path: that of the option, or a reserved new file, which is removed if nothing is written, or a new
    folder."""
    from atent.runs import free_name

    if out is not None or format not in _FILES:
        yield Path(out) if out is not None else free_name(subject.place, f"{subject.stem}{format}")
        return
    with output.free_file(subject.place / f"{subject.stem}{_FILES[format]}") as path:
        yield path
