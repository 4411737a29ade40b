"""What a run keeps on disk: weights as safetensors, and everything that an exact resume needs."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atent import runs as folder
from atent.guard import guard
from atent.runs.metadata import metadata_of
from atent.runs.weights import (
    Notes,
    Snapshot,
    State,
    differences,
    fitted,
    pack,
    put,
    translated,
    unpack,
    visible,
    whole,
)

STATE = "state.pt"


def save_weights(
    path: Path, model: nn.Module | dict[str, Tensor], about: dict[str, Any], start: Snapshot | None = None
) -> None:
    """Parameters and buffers as safetensors, ``about`` (plain JSON) in the metadata; written atomically.

    Tied weights are kept once, extra state that is JSON in the metadata, and names are those of the network inside
    `torch.compile`. With ``start``, the training's `Snapshot`, also buffers that have been added, resized, or changed
    without being persistent. ValueError, in one line, for what such a file cannot hold.
    """
    own = start.own(model) if start is not None and isinstance(model, nn.Module) else []
    tensors, notes = pack(whole(model, own) if isinstance(model, nn.Module) else model)
    _write(path, tensors, notes | ({"own": own} if own else {}), about)


def _write(path: Path, tensors: dict[str, Tensor], notes: Notes, about: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    metadata = {"atent": json.dumps(folder.plain(about))}
    if notes:
        metadata["state"] = json.dumps(notes)
    with folder.atomic(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)


def read_weights(path: Path) -> tuple[dict[str, Any], State, Notes]:
    """The metadata, the state and its notes, of a .safetensors file; FileNotFoundError or ValueError in one line."""
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: give a run folder or a .safetensors file")
    try:
        with safe_open(path, framework="pt") as file:
            about, notes = metadata_of(path, file.metadata() or {}, file.keys())
            return about, unpack({name: file.get_tensor(name) for name in file.keys()}, notes), notes  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a whole safetensors file ({error}): copy it again") from None


def check_architecture(
    model: nn.Module, state: Mapping[str, Any], path: Path, about: dict[str, Any], own: Collection[str] = ()
) -> None:
    """ValueError, in one line, unless the ``state`` of ``path`` fits ``model``, but for the buffers ``own``.

    A network that makes layers in its first forward pass makes them here.
    """
    mismatch = differences(visible(model), dict(state), own)
    if mismatch and about.get("shape"):
        _first_pass(model, tuple(about["shape"]))
        mismatch = differences(visible(model), dict(state), own)
    if mismatch:
        more = f" and {len(mismatch) - 1} more" if len(mismatch) > 1 else ""
        made = (about.get("model") or {}).get("name")
        described = f" ({made}, {about.get('classes')} classes, inputs {tuple(about.get('shape', ()))})" if made else ""
        raise ValueError(
            f"{path} holds another architecture: {mismatch[0]}{more}; build the model it was made with{described}"
        )


def load_weights(model: nn.Module, path: str | Path, *, which: str = "best") -> dict[str, Any]:
    """Load weights from a run folder or a .safetensors file; returns its metadata. ``which``: best, last, or of a run
    that averages its weights the best epoch of each kind, raw, ema or swa.

    float16 files are raised to the model's own type; either may be of a network inside `torch.compile`. A network that
    makes layers in its first forward pass makes them here, and one whose class knows the names of other libraries
    (vision transformers: timm, transformers) takes their files. FileNotFoundError or ValueError, in one line, where the
    file is absent, damaged, or of another architecture.
    """
    path = weights_file(Path(path), which)
    about, state, notes = read_weights(path)
    state = translated(model, state)
    own = notes.get("own", [])
    check_architecture(model, state, path, about, own)
    put(model, fitted(visible(model), state), own)
    return about


def weights_file(path: Path, which: str) -> Path:
    """The weights of a run folder, or the file itself."""
    if not path.is_dir():
        return path
    return path / (f"{folder.LAST}/model.safetensors" if which == "last" else f"{which}.safetensors")


def _first_pass(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Let layers that are made in the first forward pass come into being; what else goes wrong shows later."""
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
    with contextlib.suppress(Exception), guard(model, mode="eval"), torch.no_grad():
        model(torch.zeros(2, *shape, dtype=first.dtype, device=first.device))


def export(run: str | Path, out: str | Path) -> Path:
    """A small copy of a run to keep or to send: configuration, metrics, and the best weights as float16.

    The copy is a run folder for `load` and `atent evaluate`; it cannot be resumed. Batch-norm counters and other
    integers stay as they are. FileExistsError where ``out`` is in use, ValueError where a weight overflows float16.
    """
    run = Path(run)
    if not (run / folder.CONFIG).is_file():
        raise FileNotFoundError(f"{run} is not a run folder (no {folder.CONFIG}): give the path that training printed")
    about, state, notes = read_weights(run / folder.BEST)
    tensors, packed = pack(state)
    exact = packed.get("complex", ())
    halves = {k: v.half() if v.is_floating_point() and k not in exact else v for k, v in tensors.items()}
    floats = [k for k, v in halves.items() if v.is_floating_point()]
    lost = next((k for k in floats if (tensors[k].isfinite() & ~halves[k].isfinite()).any()), None)
    if lost:
        raise ValueError(f"{lost} is too large for float16: keep {run / folder.BEST} itself")
    out = folder.create(out)
    for name in (folder.CONFIG, folder.METRICS):
        folder.write_atomic(out / name, (run / name).read_bytes())
    _write(out / folder.BEST, halves, {**notes, **packed}, about)
    return out


def save_state(run: Path, state: dict[str, Any]) -> None:
    """Everything of a resume in one file, so that no crash leaves half of it."""
    (run / folder.LAST).mkdir(exist_ok=True)
    with folder.atomic(run / folder.LAST / STATE) as temporary:
        torch.save(state, temporary)


def load_state(run: Path, device: torch.device) -> dict[str, Any]:
    """What `save_state` wrote; FileNotFoundError or ValueError in one line."""
    path = run / folder.LAST / STATE
    if not path.is_file():
        raise FileNotFoundError(f"nothing to resume in {run}: it has no {folder.LAST}/{STATE}")
    try:
        state: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
        return state
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path} is damaged ({reason}): start the training again under another name") from None
