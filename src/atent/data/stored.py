"""Samples that stay on disk until a batch needs them, and the thread that prefetches the next batches."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

_AHEAD = 2
"""Number of batches that are prefetched: one that is ready, and one that is being read."""


class Pixels(Protocol):
    """The samples of a part of a data set, read by their position in it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one sample."""
        ...

    @property
    def workers(self) -> int:
        """Threads that may read; 0: no prefetching."""
        ...

    def __len__(self) -> int: ...

    def read(self, at: np.ndarray) -> np.ndarray:
        """The samples at the positions (b,) int64, as uint8 (b, ...); ValueError, in one line, if one is missing."""
        ...


@dataclass(frozen=True)
class Rows:
    """The rows of a ``.npy`` file of uint8, read on demand.

    The file is read rather than mapped into memory: mapped pages count as memory of the process until the system
    reclaims them, and if another process truncates a mapped file, this process dies without a message.
    """

    path: Path
    shape: tuple[int, ...]
    length: int
    offset: int
    """Position of the first row, in bytes."""
    stamp: tuple[int, int]
    """Size and modification time of the file when it was opened first."""
    workers: int = 1

    @classmethod
    def of(cls, path: Path, workers: int = 1, part: tuple[int, int] | None = None) -> Rows:
        """The rows of a file, or of the bytes ``part`` (from, number) of it.

        ValueError, in one line, for anything but a complete ``.npy`` file of uint8 in C order.
        """
        try:
            with open(path, "rb") as file:
                file.seek(part[0] if part else 0)
                version = np.lib.format.read_magic(file)
                if version != (1, 0):
                    raise ValueError(f"version {version} of the format, wanted (1, 0), as numpy.save writes it")
                shape, fortran, dtype = np.lib.format.read_array_header_1_0(file)
                if dtype != np.uint8 or fortran or len(shape) < 2:
                    raise ValueError(f"{dtype} {shape}{' in Fortran order' if fortran else ''}, wanted uint8 (n, ...)")
                offset, found = file.tell(), os.fstat(file.fileno())
        except (OSError, ValueError, EOFError) as error:
            raise ValueError(f"{path}: not a readable .npy file ({' '.join(str(error).split())})") from error
        end = sum(part) if part else found.st_size
        if end != offset + math.prod(shape) or end > found.st_size:
            raise ValueError(f"{path}: {end:,} bytes, its header says {offset + math.prod(shape):,}")
        return cls(path, tuple(shape[1:]), shape[0], offset, (found.st_size, found.st_mtime_ns), workers)

    def __len__(self) -> int:
        return self.length

    def read(self, at: np.ndarray) -> np.ndarray:
        """The rows at these positions; ValueError, in one line, if the file has changed since it was opened."""
        size = math.prod(self.shape)
        out = np.empty((len(at), size), np.uint8)
        try:
            # Opened for each batch: an open file has one position, shared by all threads and forked processes.
            with open(self.path, "rb", buffering=0) as file:
                found = os.fstat(file.fileno())
                if (found.st_size, found.st_mtime_ns) != self.stamp:
                    raise ValueError(f"{self.path} has changed since it was first read: start the command again")
                for row, position in zip(out, at.tolist(), strict=True):
                    file.seek(self.offset + position * size)
                    if file.readinto(row.data) != size:
                        raise ValueError(f"{self.path} ends before row {position}: start the command again")
        except OSError as error:
            reason = f"{self.path} can no longer be read ({error.strerror}): start the command again"
            raise ValueError(reason) from error
        return out.reshape(len(at), *self.shape)


class Stored:
    """The ``x`` of a `Split` whose samples stay on disk: the part of the tensor interface that `Split` uses.

    pixels: source of the samples. at: int64 (n,) on the CPU, their positions there. device: of the batches.
    """

    dtype = torch.uint8

    def __init__(self, pixels: Pixels, at: Tensor, device: torch.device | str = "cpu") -> None:
        self.pixels, self.at, self.device = pixels, at, torch.device(device)
        self.shape = torch.Size((len(at), *pixels.shape))
        self._order: Tensor | None = None
        self._parts: list[np.ndarray] = []
        self._number: dict[tuple[int, int], int] = {}
        self._coming: dict[int, Future[Tensor]] = {}
        self._reader: ThreadPoolExecutor | None = None

    def __len__(self) -> int:
        return len(self.at)

    def __reduce__(self) -> tuple[Any, ...]:
        # A thread cannot be copied, and the prefetched batches need not be.
        return Stored, (self.pixels, self.at, self.device)

    def dim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    def to(self, device: torch.device | str) -> Stored:
        """The same samples with batches on ``device``; nothing is read."""
        return Stored(self.pixels, self.at, device)

    def take(self, index: Tensor | slice) -> Stored:
        """The samples at ``index``, in that order; nothing is read."""
        return Stored(self.pixels, self.at[index if isinstance(index, slice) else index.cpu()], self.device)

    def index_select(self, dim: int, index: Tensor) -> Tensor:
        """The samples at ``index``, uint8 on the device: read now, or prefetched if `expect` announced them."""
        number = self._announced(index)
        if number is None:
            return self._read(self.at[index.cpu()].numpy()).to(self.device)
        for passed in [k for k in self._coming if k < number]:
            self._coming.pop(passed).cancel()
        for k in range(number, min(number + _AHEAD + 1, len(self._parts))):
            if k not in self._coming:
                self._coming[k] = self._pool().submit(self._read, self._parts[k])
        return self._coming[number].result().to(self.device, non_blocking=True)

    def expect(self, order: Tensor, parts: Sequence[slice]) -> None:
        """Announce that ``order[part]`` is read next, for each of ``parts``; this replaces an earlier announcement.

        The slices of this tensor are recognised by their place in memory, which needs no device synchronisation.
        """
        for future in self._coming.values():
            future.cancel()
        self._coming, self._order = {}, None
        if (
            not self.pixels.workers
            or order.device.type != self.device.type
            or order.dtype != torch.int64
            or order.dim() != 1
        ):
            return
        places = self.at[order.cpu()].numpy()
        self._order = order.contiguous()
        spans = [part.indices(len(order))[:2] for part in parts]
        self._parts = [places[begin:end] for begin, end in spans]
        self._number = {span: number for number, span in enumerate(spans)}
        for k in range(min(_AHEAD, len(self._parts))):
            self._coming[k] = self._pool().submit(self._read, self._parts[k])

    def _announced(self, index: Tensor) -> int | None:
        """The number of the announced part that ``index`` is; None if it was not announced."""
        order = self._order
        if order is None or not len(index) or order.untyped_storage().data_ptr() != index.untyped_storage().data_ptr():
            return None
        begin = int(index.storage_offset()) - int(order.storage_offset())
        return self._number.get((begin, begin + len(index))) if index.stride() == (1,) else None

    def _pool(self) -> ThreadPoolExecutor:
        self._reader = self._reader or ThreadPoolExecutor(1, "atent-batches")
        return self._reader

    def _read(self, at: np.ndarray) -> Tensor:
        found = torch.from_numpy(self.pixels.read(at))
        # Only from pinned memory does a copy overlap with the work of the device.
        return found.pin_memory() if self.device.type == "cuda" else found


def chosen(x: Tensor | Stored, index: Tensor | slice) -> Any:
    """The samples at ``index``, of the type of ``x``."""
    if isinstance(x, Stored):
        return x.take(index)
    return x[index] if isinstance(index, slice) else x.index_select(0, index)
