"""The content of a weights file: its networks, their tensors, and the matching built-in network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from atent.runs import manifest
from atent.runs.checkpoint import read_states
from atent.runs.foreign import is_safetensors
from atent.runs.match import nearest, recorded
from atent.runs.weights import State


@dataclass(frozen=True)
class Key:
    """One tensor."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True)
class Network:
    """One network of a file."""

    place: str
    """Where it lies, as --key takes it; "" for the file itself."""
    numbers: int
    """The number of values in all tensors, including counters and statistics."""
    keys: tuple[Key, ...]


@dataclass(frozen=True)
class WeightsFile:
    """A weights file."""

    file: str
    sha256: str
    bytes: int
    format: str
    """safetensors or torch.save."""
    architecture: str
    """Which network of this library the tensors are of, and how that is known."""
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None
    """The mean and the standard deviation among the tensors."""
    networks: tuple[Network, ...]


def described(path: Path) -> WeightsFile:
    """The content of a weights file; no code of it is run, and no network is built with its values.

    FileNotFoundError, ValueError: in one line, as `atent.runs.checkpoint.read_states`.
    """
    about, states, _ = read_states(path)
    pair, bare = recorded(states)
    known = (about.get("model") or {}).get("name")
    summed = manifest.sum_of(path)
    return WeightsFile(
        str(path),
        summed["sha256"],
        summed["bytes"],
        "safetensors" if is_safetensors(path) else "torch.save",
        f"the file says {known}" if known else nearest(bare),
        pair,
        tuple(_network(place, state) for place, state in states.items()),
    )


def _network(place: str, state: State) -> Network:
    tensors = {name: value for name, value in state.items() if isinstance(value, Tensor)}
    keys = (Key(name, tuple(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in tensors.items())
    return Network(place, sum(value.numel() for value in tensors.values()), tuple(keys))
