"""What a CUDA graph does, on a CPU: operations are recorded with the memory they work on, and done again there."""

from __future__ import annotations

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

from atent.train.graphs import Recorded

WAITS = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2")


class Tape(TorchDispatchMode):
    """Records every operation inside, below autograd; `replay` does them again without the Python that led to them.

    As on CUDA an operation that waits for the device ends the recording with a RuntimeError, and each operation draws
    anew from its generator. Not as there, the operations are done while they are recorded: `forget` undoes that for
    tensors that live on.
    """

    def __init__(self):
        super().__init__()
        self.done, self.replays = [], 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func.overloadpacket.__name__ in WAITS:
            raise RuntimeError(f"{func} waits for the device, which a recording does not permit")
        if any(t.dtype == torch.bool for index in args[1:2] for t in _tensors(index) if "index" in func.name()):
            raise RuntimeError(f"{func} has a shape that depends on values")
        out = func(*args, **kwargs)
        given = {t.untyped_storage().data_ptr() for t in _tensors((args, kwargs))}
        fresh = [t.untyped_storage().data_ptr() not in given for t in _tensors(out)]
        if func._schema.is_mutable or all(fresh):
            kept = tree_map_only(torch.Tensor, torch.Tensor.detach, (args, kwargs, out))
            self.done.append((func, kept, func._schema.is_mutable))
        return out

    def replay(self):
        """Do all of it again, each result in the memory of the first."""
        self.replays += 1
        with torch.no_grad():
            for func, (args, kwargs, out), changes in self.done:
                new = func(*args, **kwargs)
                if not changes:
                    for place, value in zip(_tensors(out), _tensors(new), strict=True):
                        place.copy_(value)


def _tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


class Recorder:
    """`atent.train.graphs.record` by tapes; ``kept`` gives the tensors that a recording must leave as they were."""

    def __init__(self, kept):
        self.kept, self.tapes = kept, []

    def __call__(self, body, rng):
        tape = Tape()
        before = [(t, t.detach().clone()) for t in self.kept()]
        state = torch.get_rng_state()
        try:
            with tape:
                metrics = body()
        finally:
            torch.set_rng_state(state)
            with torch.no_grad():
                for t, value in before:
                    t.copy_(value)
        self.tapes.append(tape)
        return Recorded(metrics, tape.replay)
