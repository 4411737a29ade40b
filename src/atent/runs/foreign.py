"""Weights files of other libraries: what `torch.save` wrote, read without running code, and the networks in it."""

from __future__ import annotations

import re
import struct
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from atent.runs.weights import State

SUFFIXES = (".safetensors", ".pt", ".pth", ".th", ".ckpt", ".pkl", ".bin", ".tar")
"""The names of weights files end so; what a file is, its first bytes say."""

_HARMLESS = (
    "argparse.Namespace",
    "numpy.core.multiarray._reconstruct", "numpy.core.multiarray.scalar", "numpy._core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar", "numpy._core.numeric._frombuffer", "numpy.dtype", "numpy.ndarray",
)  # fmt: skip
"""Types of non-weight values in many files, such as a best accuracy or script options; replaced by `Opaque`."""

_OTHERS = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run `git lfs pull` in its repository"),
    (b"<", "a web page, not weights: download the file itself"),
    (b"\x1f\x8b", "compressed with gzip: unpack it first"),
    (b"\x89HDF", "an HDF5 file: convert it to a state dict by torch.save(model.state_dict(), ...)"),
    (b"\x93NUMPY", "a NumPy array: convert it to a state dict by torch.save(model.state_dict(), ...)"),
)
_SAFETENSORS, _ZIP = "safetensors", "zip"
_MOST_ENTRIES, _DEEPEST = 10_000, 8
_TRAINING = re.compile(r"(^|_)(optim\w*|opt|sched\w*|scaler|amp|exp_avg\w*)(_|\d|$)", re.IGNORECASE)
_CONVERT = (
    "in the project that made it, where you trust the file, run torch.save(model.state_dict(), 'weights.pt') and give"
    " that file"
)


class Opaque:
    """A value that is no weight, such as a NumPy number: nothing of it is kept."""

    def __new__(cls, *_args: Any, **_kwargs: Any) -> Opaque:
        return object.__new__(cls)

    def __setstate__(self, state: Any) -> None:
        """Drop the state: an object without this method would keep it as attributes."""


def is_weights(path: str | Path) -> bool:
    """Whether the name is that of a weights file."""
    return Path(path).suffix.lower() in SUFFIXES


def begins_with_file(config: Mapping[str, Any]) -> bool:
    """Whether the training of this configuration begins with the weights of a file, whose network may expect other
    inputs than those of the data. A run folder has a network of this library, which sees the data's own inputs."""
    model = config.get("model")
    weights = model.get("weights") if isinstance(model, Mapping) else None
    return weights is not None and is_weights(weights)


def is_safetensors(path: Path) -> bool:
    """Whether the file is of the safetensors format, whatever its name; a missing or broken one is by its name."""
    if path.is_file() and path.suffix.lower() != ".safetensors":
        return _kind(path) == _SAFETENSORS
    return True


def read_foreign(path: Path) -> dict[str, State]:
    """The networks in a file of `torch.save`: the tensors of each by name, under its place in the file.

    Only tensors and plain containers are read (`torch.load(weights_only=True)`). The place of a state dict that is the
    file itself is "", of one inside it the keys that lead to it, such as state_dict or ema.model. What optimizers,
    schedules and scalers keep is left aside.

    Raises
    ------
    FileNotFoundError, ValueError
        The file is absent, truncated, of another format, holds pickled objects, or no weights.
    """
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}: give a run folder or a file ({', '.join(SUFFIXES)})")
    if path.stat().st_size == 0:
        raise ValueError(f"{path} is empty: copy it again")
    if _kind(path) == _ZIP:
        _check_archive(path)
    try:
        with torch.serialization.safe_globals([(Opaque, name) for name in _HARMLESS]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            held = torch.load(path, map_location="cpu", weights_only=True)
    except (MemoryError, torch.OutOfMemoryError):
        raise ValueError(f"{path} needs more memory than available: it is damaged or mislabelled") from None
    except Exception as error:  # for any damaged file torch advises to load it unsafely
        raise ValueError(f"{path} {_reason(str(error))}") from None
    states = dict(_states(held))
    if not states:
        raise ValueError(f"{path} holds no weights, but {_outline(held)}: give a file of a state dict")
    return states


def _kind(path: Path) -> str:
    """safetensors, zip or legacy; ValueError for what is recognised as neither."""
    with path.open("rb") as file:
        head = file.read(64)
    for magic, what in _OTHERS:
        if head.lstrip().startswith(magic):
            raise ValueError(f"{path} is {what}")
    if head.startswith(b"PK"):
        return _ZIP
    if len(head) > 9 and head[8:9] == b"{" and struct.unpack("<Q", head[:8])[0] < path.stat().st_size:
        return _SAFETENSORS
    return "legacy"


def _check_archive(path: Path) -> None:
    """ValueError for a zip file that `torch.save` did not write, or that unpacks to more than it is."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError):
        raise ValueError(f"{path} is truncated or damaged: copy it again") from None
    # torch.save stores without compression, so that the parts are no larger than the file.
    if sum(entry.file_size for entry in entries) > path.stat().st_size:
        raise ValueError(f"{path} unpacks to more than its own size: torch.save does not write such a file")
    names = [entry.filename for entry in entries]
    if any(name.endswith("/constants.pkl") for name in names):
        raise ValueError(f"{path} is a TorchScript program, which is code: {_CONVERT}")
    if not any(name == "data.pkl" or name.endswith("/data.pkl") for name in names):
        what = "NumPy arrays" if any(name.endswith(".npy") for name in names) else "a zip archive without data.pkl"
        raise ValueError(f"{path} holds {what}, want what torch.save writes: {_CONVERT}")


def _reason(error: str) -> str:
    """Why a file could not be read, and what to do."""
    named = re.search(r"(?:GLOBAL|class|instantiate|call) ([\w.]*\w)", error)
    if named and ("Unsupported" in error or "not an allowed" in error or "Trying to" in error):
        return f"holds pickled objects ({named[1]}), which loading would run as code: {_CONVERT}"
    if "can't allocate memory" in error or "out of memory" in error:
        return "needs more memory than available: it is damaged or mislabelled"
    return "is truncated, damaged or not a file of torch.save: copy it again"


def _states(held: Any) -> Iterator[tuple[str, State]]:
    """The state dicts inside, in order, each once."""
    queue: list[tuple[str, Any, int]] = [("", held, 0)]
    seen: set[int] = set()
    given: set[frozenset[tuple[str, int]]] = set()
    while queue and len(seen) < _MOST_ENTRIES:
        place, item, depth = queue.pop(0)
        if id(item) in seen or depth > _DEEPEST or not isinstance(item, Mapping | list | tuple):
            continue
        seen.add(id(item))
        if isinstance(item, Mapping):
            if "param_groups" in item:
                continue
            tensors = {key: value for key, value in item.items() if isinstance(key, str) and isinstance(value, Tensor)}
            same = frozenset((key, id(value)) for key, value in tensors.items())
            if any(value.ndim and not _TRAINING.search(key) for key, value in tensors.items()) and same not in given:
                given.add(same)
                yield place, tensors
            inner = [(str(key), value) for key, value in item.items() if isinstance(value, Mapping | list | tuple)]
        else:
            inner = [(str(number), value) for number, value in enumerate(item[:_MOST_ENTRIES])]
        queue += [(f"{place}.{key}".lstrip("."), value, depth + 1) for key, value in inner if not _TRAINING.search(key)]


def _outline(held: Any) -> str:
    """A short description of the content of a file."""
    if not isinstance(held, Mapping):
        return f"a {'value of no known kind' if isinstance(held, Opaque) else type(held).__name__}"
    keys = [str(key)[:40] for key in list(held)[:8]]
    return f"entries {', '.join(keys)}{' ...' if len(held) > 8 else ''}" if keys else "an empty dict"
