"""Checkpoints of a run: weights as safetensors, and the complete state for an exact resume."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atent import runs as folder
from atent.guard import guard
from atent.messages import quoted
from atent.runs import answers, manifest
from atent.runs.foreign import is_safetensors, read_foreign
from atent.runs.match import match
from atent.runs.metadata import metadata_of
from atent.runs.names import BEST, LAST, PREVIOUS, STATE, WEIGHTS
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

__all__ = ["PREVIOUS", "STATE"]

_PARTS = {"mark", "model", "optimizer", "method", "meter"}
"""Keys of the checkpoints of every version."""


def save_weights(
    path: Path, model: nn.Module | dict[str, Tensor], about: dict[str, Any], start: Snapshot | None = None
) -> None:
    """Parameters and buffers as safetensors, ``about`` (plain JSON) in the metadata; written atomically.

    Tied weights are stored once, extra state that is JSON in the metadata, and names are those of the network inside
    `torch.compile`. With ``start``, the training's `Snapshot`, also buffers that have been added, resized, or changed
    without being persistent. In a run folder the file's hash is added to the manifest. ValueError for values that such
    a file cannot store.
    """
    with manifest.seal(path) as temporary:
        fill(temporary, model, about, start)


def fill(
    temporary: Path, model: nn.Module | dict[str, Tensor], about: dict[str, Any], start: Snapshot | None = None
) -> None:
    """`save_weights` into the temporary file of an atomic write."""
    _fill(temporary, *_packed(model, start), _known(model, about, start))


def held(model: nn.Module, about: dict[str, Any], start: Snapshot) -> Callable[[Path], None]:
    """A snapshot of the weights; the returned function writes it later, as `fill` does."""
    tensors, notes = _packed(model, start)
    tensors = {name: tensor.clone() for name, tensor in tensors.items()}
    known = _known(model, about, start)
    return lambda temporary: _fill(temporary, tensors, notes, known)


def _known(model: nn.Module | dict[str, Tensor], about: dict[str, Any], start: Snapshot | None) -> dict[str, Any]:
    """The metadata, of a training with outputs of the network."""
    return answers.recorded(model, about) if start is not None and isinstance(model, nn.Module) else about


def _packed(model: nn.Module | dict[str, Tensor], start: Snapshot | None) -> tuple[dict[str, Tensor], Notes]:
    own = start.own(model) if start is not None and isinstance(model, nn.Module) else []
    tensors, notes = pack(whole(model, own) if isinstance(model, nn.Module) else model)
    return tensors, notes | ({"own": own} if own else {})


def _fill(temporary: Path, tensors: dict[str, Tensor], notes: Notes, about: dict[str, Any]) -> None:
    from safetensors.torch import save_file

    metadata = {"atent": json.dumps(folder.plain(about))}
    if notes:
        metadata["state"] = json.dumps(notes)
    save_file(tensors, temporary, metadata=metadata)


def read_weights(path: Path) -> tuple[dict[str, Any], State, Notes]:
    """The metadata, the state and its notes, of a .safetensors file.

    Raises
    ------
    FileNotFoundError, ValueError
        The file is absent, incomplete, damaged according to the manifest of its run folder, or of another run.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise _absent(path)
    _check_sum(path)
    try:
        with safe_open(path, framework="pt") as file:
            about, notes = metadata_of(path, file.metadata() or {}, file.keys())
            state = unpack({name: file.get_tensor(name) for name in file.keys()}, notes)  # noqa: SIM118
    except SafetensorError as error:
        raise folder.Damaged(f"{path} is not a complete safetensors file ({error}): copy it again") from None
    _check_run(path, about)
    return about, state, notes


def read_states(path: Path) -> tuple[dict[str, Any], dict[str, State], Notes]:
    """`read_weights` of a file of any format: the networks in it by key (see `read_foreign`); only files written by
    training here have metadata and notes."""
    if not is_safetensors(path):
        return {}, read_foreign(path), {}
    about, state, notes = read_weights(path)
    return about, {"": state}, notes


def check_best(run: Path) -> None:
    """Check the best weights of a run folder without loading them, for displays of their results.

    Raises
    ------
    ValueError
        They are damaged according to the manifest, incomplete, of another run, or missing. Not raised for a run without
        any weights so far.
    """
    path = run / BEST
    if not path.is_file():
        if BEST in (manifest.sums(run) or {}):
            raise folder.Damaged(str(_absent(path)))
        return
    _check_sum(path)
    _check_run(path, _about(path))


def _absent(path: Path) -> FileNotFoundError:
    """The error for missing weights."""
    place = manifest.home(path)
    if place is None:
        return FileNotFoundError(f"no weights at {path}: give a run folder or a weights file")
    return FileNotFoundError(
        f"{place[0]} has no {place[1]}: `atent train --resume {quoted(place[0])}` creates or restores it if possible,"
        " else copy it from a backup"
    )


def _about(path: Path) -> dict[str, Any]:
    """The metadata of a weights file; ValueError if the file is incomplete."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return metadata_of(path, file.metadata() or {}, file.keys())[0]
    except SafetensorError as error:
        raise folder.Damaged(f"{path} is not a complete safetensors file ({error}): copy it again") from None


def _check_sum(path: Path) -> None:
    """`manifest.check_file`, with a specific error for weights of another run."""
    try:
        manifest.check_file(path)
    except folder.Damaged:
        try:
            about = _about(path)
        except ValueError:
            about = None
        if about and about.get("run"):
            _check_run(path, about)
        raise


def _check_run(path: Path, about: dict[str, Any]) -> None:
    """ValueError for weights in the folder of another run."""
    place = manifest.home(path)
    own = manifest.run_id(place[0]) if place else None
    if place and own is not None and about.get("run") != own:
        made = f"run {about['run']}" if about.get("run") else "a run without id"
        raise ValueError(f"{path} is of {made}, and {place[0]} is run {own}: restore the run's own file")


def check_architecture(
    model: nn.Module, state: Mapping[str, Any], path: Path, about: dict[str, Any], own: Collection[str] = ()
) -> None:
    """ValueError unless the ``state`` of ``path`` fits ``model``, except for the buffers ``own``.

    Lazy layers are initialised here by a forward pass.
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
            f"{path} has another architecture: {mismatch[0]}{more}; build the model of its training{described}"
        )


def load_weights(model: nn.Module, path: str | Path, *, which: str = "best", key: str | None = None) -> dict[str, Any]:
    """Load weights from a run folder or a weights file.

    Parameters
    ----------
    model
        The network. Lazy layers are initialised here by a forward pass. Networks whose class maps the names of other
        libraries (vision transformers: timm, transformers) accept their files.
    path
        A run folder, a .safetensors file, or a file of `torch.save`, which is read without executing code. float16 is
        converted to the model's dtype; in files that were not written by training here, prefixes of wrappers and the
        names of published code are mapped, and counters are ignored (see `atent.models.layouts`).
    which
        best, last, or, for a run that averages its weights, the best epoch of each kind: raw, ema or swa.
    key
        The key of the network in a file that contains several, such as ema or state_dict.

    Returns
    -------
    dict
        The metadata of the file; empty for files of other libraries.

    Raises
    ------
    FileNotFoundError, ValueError
        In one line: the file is absent, damaged, of another architecture, or contains several networks that fit.

    Examples
    --------
    >>> import tempfile
    >>> from atent.train import load_weights
    >>> path = f"{tempfile.mkdtemp()}/weights.pt"
    >>> torch.save({"state_dict": torch.nn.Linear(4, 2).state_dict()}, path)
    >>> load_weights(torch.nn.Linear(4, 2), path)
    {}
    """
    path = weights_file(Path(path), which)
    about, states, notes = read_states(path)
    put_states(model, states, path, about, notes, key)
    return about


def put_states(
    model: nn.Module, states: Mapping[str, State], path: Path, about: dict[str, Any], notes: Notes,
    key: str | None = None, name: str | None = None,
) -> None:  # fmt: skip
    """Load the result of `read_states`; ValueError as `load_weights`."""
    states = {place: translated(model, state) for place, state in states.items()}
    if not about and not notes:
        put(model, fitted(visible(model), match(model, states, path, key, name)))
        return
    if key is not None:
        raise ValueError(f"--key {key} has no effect on {path}, which has one network: omit it")
    own = notes.get("own", [])
    check_architecture(model, states[""], path, about, own)
    put(model, fitted(visible(model), states[""]), own)
    answers.compare(model, about, path)


def weights_file(path: Path, which: str) -> Path:
    """The weights of a run folder, or the file itself; an exported folder has one file of weights."""
    if not path.is_dir():
        return path
    if which == "best" and not (path / BEST).exists() and (path / WEIGHTS).is_file():
        return path / WEIGHTS
    return path / (f"{LAST}/{WEIGHTS}" if which == "last" else f"{which}.safetensors")


def _first_pass(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Initialise lazy layers by a forward pass; other errors are raised later."""
    first = next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(0))
    with contextlib.suppress(Exception), guard(model, mode="eval"), torch.no_grad():
        model(torch.zeros(2, *shape, dtype=first.dtype, device=first.device))


def export(run: str | Path, out: str | Path) -> Path:
    """A small copy of a run: configuration, metrics, and the best weights in float16.

    The copy is a run folder for `load` and `atent evaluate`; it cannot be resumed. Batch-norm counters and other
    integers are unchanged.

    Parameters
    ----------
    run
        The run folder.
    out
        The folder of the copy, which must not exist or be empty.

    Returns
    -------
    Path
        ``out``.

    Raises
    ------
    FileNotFoundError
        If ``run`` is not a run folder.
    FileExistsError
        If ``out`` is not empty.
    ValueError
        If a weight overflows float16, or a file is damaged.

    Examples
    --------
    >>> import tempfile
    >>> from atent.data import DataSettings, load
    >>> from atent.methods import Standard
    >>> from atent.train import TrainSettings, export, fit
    >>> folder = tempfile.mkdtemp()
    >>> data = load(DataSettings("digits", limit=64, validation=50))
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> settings = TrainSettings(epochs=1)
    >>> fitted = fit(net, data, Standard(), settings=settings, run=f"{folder}/run", progress=False)
    >>> sorted(path.name for path in export(fitted.run, f"{folder}/copy").iterdir())
    ['best.safetensors', 'config.json', 'manifest.json', 'metrics.jsonl']
    """
    run = Path(run)
    if not (run / folder.CONFIG).is_file():
        raise FileNotFoundError(f"{folder.no_run(run)}: give the path printed by training")
    about, state, notes = read_weights(run / BEST)
    tensors, packed = pack(state)
    exact = packed.get("complex", ())
    halves = {k: v.half() if v.is_floating_point() and k not in exact else v for k, v in tensors.items()}
    floats = [k for k, v in halves.items() if v.is_floating_point()]
    lost = next((k for k in floats if (tensors[k].isfinite() & ~halves[k].isfinite()).any()), None)
    if lost:
        raise ValueError(f"{lost} is too large for float16: use {run / BEST} itself")
    kept = (folder.CONFIG, folder.METRICS)
    manifest.check(run, *kept)
    out = folder.create(out)
    with manifest.sealed(out, manifest.run_id(run)) as files:
        for name in kept:
            files.write(name, (run / name).read_bytes())
        with files.add(BEST) as temporary:
            # float16 rounds the outputs too.
            _fill(temporary, halves, {**notes, **packed}, {k: v for k, v in about.items() if k != answers.KEY})
    return out


# ---- checkpoints


def add_state(files: manifest.Sealed, state: dict[str, Any]) -> None:
    """Write the complete state for a resume, as one of several files; the previous checkpoint is kept."""
    (files.run / LAST).mkdir(exist_ok=True)
    files.keep(f"{LAST}/{STATE}", f"{LAST}/{PREVIOUS}")
    with files.add(f"{LAST}/{STATE}") as temporary:
        torch.save(state, temporary)


def load_state(run: Path, device: torch.device) -> dict[str, Any]:
    """The newest complete state of `add_state`; raises as `find_state`."""
    return find_state(run, device)[0]


def find_state(run: Path, device: torch.device) -> tuple[dict[str, Any], str | None]:
    """The newest complete checkpoint of a run, and a one-line reason if it is the previous one.

    Raises
    ------
    FileNotFoundError
        There is no checkpoint.
    Damaged
        No checkpoint is complete. No file is changed.
    """
    newest, previous = (run / LAST / name for name in (STATE, PREVIOUS))
    if not newest.exists() and not previous.exists():
        raise FileNotFoundError(f"nothing to resume in {run}: it has no {LAST}/{STATE}")
    manifest.sums(run)  # a damaged manifest is reported as such
    state = _whole_state(newest, device)
    if state is not None:
        return state, None
    what = "is damaged" if newest.exists() else "is missing"
    state = _whole_state(previous, device)
    if state is None:
        other = f", and so is {PREVIOUS}" if previous.exists() else ""
        raise folder.Damaged(f"{newest} {what}{other}: copy it from a backup, or train again under another name")
    mark = state["mark"]
    return state, f"{newest} {what}: resuming from the checkpoint before it, epoch {mark['epoch']}, step {mark['step']}"


def _whole_state(path: Path, device: torch.device) -> dict[str, Any] | None:
    """A checkpoint; None if it is absent, differs from its sum, or cannot be read."""
    if not path.is_file() or not manifest.is_whole(path):
        return None
    try:
        state = torch.load(path, map_location=device, weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception:  # for any damaged file torch suggests an unsafe load
        return None
    if not isinstance(state, dict) or not state.keys() >= _PARTS or not isinstance(state["mark"], dict):
        return None
    return state if {"config", "epoch", "step"} <= state["mark"].keys() else None
