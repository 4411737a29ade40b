"""The Gaussian noise of smoothing: a stream of its own for every block of noise samples of every image."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from atent.rng import philox

NOISE = "philox"
"""The name of these streams in files: rows with different noise are never mixed."""
BLOCK = 100
"""Noise samples of one stream."""

_LONG, _WORD = 2**64 - 1, 2**32 - 1
# "smoothin" in ASCII: separates these streams from others of the same seed.
_TAG = 0x736D6F6F7468696E


class Noise:
    """Standard normal numbers as a function of (seed, id, block) alone; shape, type and device are those of ``x``.

    On the CPU numpy's Philox-4x64-10 (Salmon et al. 2011) has the seed in its key and (id, block) in the upper half of
    its 256-bit counter, which no block of noise reaches from below: two blocks of one seed never share a number. A
    torch generator keeps only 32 bits of its seed on the CPU, which makes about 11,600 pairs out of 10^7 blocks equal.
    Other devices use their own generator, seeded by 64 bits of a hash: of 10^7 blocks two share a seed with probability
    3e-6.

    The noise is the same on all devices of one kind. On the CPU one version of numpy gives the same bits on every
    processor, except for the numbers (1 in 100) that need an exponential or a logarithm, where mathematical libraries
    may round differently. A version of numpy that converts Philox's words into normals in another way gives other
    noise.
    """

    def __init__(self, x: Tensor, seed: int) -> None:
        self.seed = seed
        self.room = x.new_empty(BLOCK, *x.shape[1:])
        self.generator = None if x.device.type == "cpu" else torch.Generator(x.device)

    def draw(self, number: int, block: int, size: int) -> Tensor:
        """The first ``size`` noise samples of a block, valid until the next call; ``number`` is the image's."""
        if self.generator is not None:
            # The numbers of a shorter tensor are not the first numbers of a longer one.
            self.room.normal_(generator=self.generator.manual_seed(device_seed(self.seed, number, block)))
            return self.room[:size]
        key, counter = address(self.seed, number, block)
        part = self.room[:size]
        array = part.numpy()
        stream = np.random.Generator(np.random.Philox(key=key, counter=counter))
        stream.standard_normal(dtype=array.dtype.type, out=array)
        return part


def address(seed: int, number: int, block: int) -> tuple[np.ndarray, np.ndarray]:
    """The key (2,) and the first counter (4,), uint64, of a block's stream on the CPU."""
    return np.array([seed & _LONG, _TAG], np.uint64), np.array([0, 0, block, number], np.uint64)


def device_seed(seed: int, number: int, block: int) -> int:
    """The seed, in [0, 2^64), of a block's generator on an accelerator; also for tensors of numbers and blocks."""
    counter = (block, number & _WORD, number >> 32, 0)
    key = ((seed ^ _TAG) & _WORD, (seed ^ _TAG) >> 32 & _WORD)
    low, high, _, _ = philox(counter, key)
    found: int = low | high << 32
    return found
