"""Random number streams for attacks: one stream per sample for evaluation, one stream per batch for training.

``PerSample`` is counter-based: each number is a function of (seed, sample id, attack, use, restart, step) and of its
index in the sample, computed by Philox-4x32-10 (Salmon et al. 2011). It is stateless, so results do not depend on batch
size, order, sharding or resumption. ``Batch`` uses one ``torch.Generator`` at full speed.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from atent.contracts import kind_of
from atent.distributed import batch_shard
from atent.distributed.batch_rng import sampled

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF
# The offset of a GPU generator is a multiple of four.
_OFFSET = 4


class Streams(Protocol):
    """The interface of random number streams: numbers in the shape, dtype and device of ``like`` (n, ...)."""

    def uniform(self, like: Tensor, *, use: str = "", restart: int = 0, step: int = 0) -> Tensor: ...
    def normal(self, like: Tensor, *, use: str = "", restart: int = 0, step: int = 0) -> Tensor: ...
    def integers(
        self, high: int, shape: tuple[int, ...], *, use: str = "", restart: int = 0, step: int = 0
    ) -> Tensor: ...
    def take(self, index: Tensor) -> Streams: ...
    def named(self, name: str) -> Streams: ...


Draws = Streams
"""The former name, for user-defined attacks."""


def philox(counter: Any, key: tuple[Any, Any]) -> Any:
    """Philox-4x32-10: four words of 32 bits from four counter words and two keys.

    Words are int64 tensors, or plain integers, in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # int64 products wrap modulo 2^64, which keeps both 32-bit halves correct.
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = (
            ((p1 >> 32) & _LOW) ^ c1 ^ k0,
            p1 & _LOW,
            ((p0 >> 32) & _LOW) ^ c3 ^ k1,
            p0 & _LOW,
        )
        k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
    return c0, c1, c2, c3


@dataclass(frozen=True)
class PerSample:
    """Streams keyed by (seed, id): ``ids`` is int64 (n,), each in [0, 2^48); ``attack`` separates the attacks. The seed
    may be an int64 scalar tensor, which is read without synchronisation.

    Seed, id, restart, step and index use disjoint bits of key and counter, so streams of one use never overlap.
    (attack, use) is hashed to 32 bits: two of the about 100 names of an evaluation collide with probability 1e-6.
    """

    seed: int | Tensor
    ids: Tensor
    attack: str = ""

    def words(self, count: int, *, use: str = "", restart: int = 0, step: int = 0) -> Tensor:
        """Random words in [0, 2^32), int64, shape (n, count)."""
        ids = self.ids[:, None]
        block = torch.arange(-(-count // 4), device=ids.device)[None, :]
        zero = torch.zeros_like(ids) + torch.zeros_like(block)
        counter = (
            block + zero,
            (step & _LOW) + zero,
            (ids & _LOW) + zero,
            (((ids >> 32) & 0xFFFF) | ((restart & 0xFFFF) << 16)) + zero,
        )
        tag = zlib.crc32(f"{self.attack}/{use}".encode())
        key = (self.seed & _LOW, (tag ^ (self.seed >> 32)) & _LOW)
        return torch.stack(philox(counter, key), dim=2).flatten(1)[:, :count]

    def _unit(self, count: int, *, use: str, restart: int, step: int) -> Tensor:
        # 23 bits plus one half: strictly inside (0, 1), also after rounding to float32.
        words = self.words(count, use=use, restart=restart, step=step)
        return ((words >> 9).double() + 0.5) * 2.0**-23

    def uniform(self, like: Tensor, *, use: str = "", restart: int = 0, step: int = 0) -> Tensor:
        """Uniform on (0, 1)."""
        u = self._unit(like[0].numel(), use=use, restart=restart, step=step)
        return u.to(like.dtype).view_as(like)

    def normal(self, like: Tensor, *, use: str = "", restart: int = 0, step: int = 0) -> Tensor:
        """Standard normal, by the Box-Muller transform."""
        count = like[0].numel()
        half = -(-count // 2)
        u = self._unit(2 * half, use=use, restart=restart, step=step).to(like.dtype)
        size, angle = (-2.0 * u[:, :half].log()).sqrt(), (2.0 * math.pi) * u[:, half:]
        z = torch.cat([size * angle.cos(), size * angle.sin()], dim=1)[:, :count]
        return z.reshape(like.shape)

    def integers(self, high: int, shape: tuple[int, ...], *, use: str = "", restart: int = 0, step: int = 0) -> Tensor:
        """Integers in [0, high), int64; ``shape`` begins with n. Bias below high / 2^32."""
        words = self.words(math.prod(shape[1:]), use=use, restart=restart, step=step)
        return ((words * high) >> 32).reshape(shape)

    def take(self, index: Tensor) -> PerSample:
        """The streams of the samples ``index``."""
        return PerSample(self.seed, self.ids[index], self.attack)

    def named(self, name: str) -> PerSample:
        """Separate streams for a part of the attack."""
        return PerSample(self.seed, self.ids, f"{self.attack}/{name}")


@dataclass(frozen=True)
class Batch:
    """One generator for the entire batch: fast, but dependent on the order of the calls.

    A part of a batch, such as that of one rank, gets its rows of the numbers of the full batch (`atent.distributed`).
    """

    rng: torch.Generator

    def uniform(self, like: Tensor, *, use: str = "", restart: int = 0, step: int = 0) -> Tensor:
        """Uniform on [0, 1)."""
        sample = partial(torch.rand, generator=self.rng, dtype=like.dtype, device=like.device)
        return sample(like.shape) if batch_shard.now is None else sampled(like.shape, sample)

    def normal(self, like: Tensor, *, use: str = "", restart: int = 0, step: int = 0) -> Tensor:
        """Standard normal."""
        sample = partial(torch.randn, generator=self.rng, dtype=like.dtype, device=like.device)
        return sample(like.shape) if batch_shard.now is None else sampled(like.shape, sample)

    def integers(self, high: int, shape: tuple[int, ...], *, use: str = "", restart: int = 0, step: int = 0) -> Tensor:
        """Integers in [0, high), int64."""
        sample = partial(torch.randint, high, generator=self.rng, device=self.rng.device)
        return sample(shape) if batch_shard.now is None else sampled(shape, sample)

    def take(self, index: Tensor) -> Batch:
        """The same stream, which has no samples."""
        return self

    def named(self, name: str) -> Batch:
        """The same stream, which serves all parts."""
        return self


def check_rng(rng: Any, device: torch.device | None = None) -> None:
    """ValueError, in one line, unless ``rng`` is a generator of torch, and on ``device`` if one is given."""
    if not isinstance(rng, torch.Generator):
        given, seeded = (str(rng), f".manual_seed({rng})") if type(rng) is int else (kind_of(rng), "")
        given += " of numpy" if isinstance(rng, np.random.Generator) else ""
        raise ValueError(f"rng must be a torch.Generator, got {given}: use torch.Generator(x.device){seeded}")
    if device is not None and (rng.device.type, rng.device.index or 0) != (device.type, device.index or 0):
        raise ValueError(f"rng is on {rng.device}, the inputs on {device}: use torch.Generator(x.device)")


def narrow(seed: int) -> int:
    """A seed for torch's CPU generators, which use the low 32 bits: the seed itself if it fits, otherwise a hash, so
    that 2^32 + 3 and 3 give different numbers."""
    return seed if 0 <= seed <= _LOW else fold(seed)


def seed_from(rng: torch.Generator, device: torch.device | None = None, *, copied: bool = False) -> int:
    """A seed for the random numbers of a network, from the generator of a step, which advances unless it is ``copied``.

    On a CPU it is a random number. On a GPU that would need a synchronisation at each step: there it is a function of
    the generator's seed and offset, which the host knows. ValueError as `check_rng`.
    """
    if not isinstance(rng, torch.Generator) or (device is not None and rng.device != device):
        check_rng(rng, device)
    rng = rng.clone_state() if copied else rng
    if rng.device.type == "cpu":
        return int(torch.randint(2**62, (), generator=rng))
    offset = rng.get_offset()
    rng.set_offset(offset + _OFFSET)
    return fold(rng.initial_seed(), offset, "network")


def fresh(device: torch.device) -> torch.Generator:
    """A generator on ``device``, seeded from torch's global CPU stream, which advances: reproducible after
    `torch.manual_seed`."""
    return torch.Generator(device).manual_seed(int(torch.randint(2**62, ())))


def fold(*keys: int | str) -> int:
    """A 63-bit seed from several keys, the same on every machine.

    A CPU generator uses the low 32 bits, which the hash distributes uniformly: among S such seeds about S^2 / 2^33
    pairs give the same numbers, 6 in a training of 200 epochs of 391 steps with three seeds each. That is acceptable in
    training, whose steps differ in samples and weights, but not for samples that must be independent, which use
    `PerSample` and `atent.certify.noise`.
    """
    seed = 0
    for key in keys:
        word = zlib.crc32(key.encode()) if isinstance(key, str) else int(key)
        counter = tuple(v & _LOW for v in (word, word >> 32, seed, seed >> 32))
        a, b, _, _ = philox(counter, (0x61746E74, 0x666F6C64))
        seed = (a | (b << 32)) & (2**63 - 1)
    return seed
