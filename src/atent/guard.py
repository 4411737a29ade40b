"""The context that hands a model back as it was found."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import numpy as np
import torch
from torch import nn

Mode = Literal["eval", "train", "as-is"]


def _cuda_devices(model: nn.Module) -> list[torch.device]:
    tensors = [*model.parameters(), *model.buffers()]
    return sorted({t.device for t in tensors if t.device.type == "cuda"}, key=str)


@contextmanager
def guard(model: nn.Module, *, mode: Mode = "eval", seed: int | None = None) -> Iterator[nn.Module]:
    """Lend a model out: inside, its parameters are frozen and it is in ``mode``; after, it is as before.

    Restored on success and on exception: the mode of each module, each parameter's ``requires_grad`` and
    ``.grad``, each buffer (batch-norm statistics included), and the global random states (Python, numpy,
    torch, the model's CUDA devices). ``seed`` seeds the torch generators inside, so that a random model
    behaves the same at each call.
    """
    modes = [(m, m.training) for m in model.modules()]
    parameters = [(p, p.requires_grad, p.grad) for p in model.parameters()]
    registered = [(m, dict(m._buffers)) for m in model.modules()]
    buffers = [(b, b.detach().clone()) for b in model.buffers()]
    devices = _cuda_devices(model)
    python, legacy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = [torch.cuda.get_rng_state(d) for d in devices]
    try:
        if mode != "as-is":
            model.train(mode == "train")
        # Frozen parameters cannot collect gradients, also where somebody's forward calls backward().
        for p, _, _ in parameters:
            p.requires_grad_(False)
        if seed is not None:
            # Not torch.manual_seed: it would seed devices that are not restored.
            torch.default_generator.manual_seed(seed)
            for d in devices:
                with torch.cuda.device(d):
                    torch.cuda.manual_seed(seed)
        yield model
    finally:
        for m, training in modes:
            m.training = training
        for p, requires_grad, grad in parameters:
            p.requires_grad_(requires_grad)
            p.grad = grad
        for m, before in registered:
            m._buffers.clear()
            m._buffers.update(before)
        # Batch-norm moves its statistics without a new version, so all are written back; through .data, because a
        # graph that is still alive may have saved them and would see a new version.
        for b, value in buffers:
            b.data.copy_(value)
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        for d, state in zip(devices, cuda):
            torch.cuda.set_rng_state(state, d)
