"""The outputs of a network on fixed inputs: whether the code that computes them is that of its training.

Weights do not determine a network: other code may have tensors of the same names and shapes. The files of a training
therefore record a few outputs of a network that the user's code builds, and a load compares them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atent.guard import guard
from atent.independence import unmasked
from atent.messages import once
from atent.precision import full_precision
from atent.runs.weights import unwrapped

KEY = "answers"
"""The name of the outputs in the metadata of a file."""
# The largest difference that rounding explains, relative to the largest output: another device, with other kernels and
# products of ten bits (TF32), and the same one.
_ELSEWHERE, _HERE = 5e-3, 1e-3


def recorded(model: nn.Module, about: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata ``about`` with the outputs on fixed inputs; without them for a built-in network by name, one that is
    random in eval mode and one without finite outputs."""
    known = {key: value for key, value in about.items() if key != KEY}
    x = _inputs(model, about)
    name = (about.get("model") or {}).get("name")
    if x is None or (name is not None and ":" not in name):
        return known
    one, again = outputs_of(model, x), outputs_of(model, x, seed=1)
    if one is None or again is None or _apart(one, again, _HERE) or not bool(one.isfinite().all()):
        return known
    return {**known, KEY: one.tolist()}


def compare(model: nn.Module, about: Mapping[str, Any], path: Path) -> None:
    """Report on stderr a network, with the weights of ``path``, whose outputs are not those in ``about``."""
    x = _inputs(model, about) if about.get(KEY) else None
    found = None if x is None else outputs_of(model, x)
    if found is not None and _apart(torch.tensor(about[KEY], dtype=torch.float64), found.cpu(), _ELSEWHERE):
        once(
            f"{path}: the network has other outputs than the one that was trained: its code has changed since, or what"
            " it draws at random is not in the file. Its figures are those of the present code"
        )


def differ(model: nn.Module, other: nn.Module, x: Tensor) -> bool:
    """Whether the outputs of two networks on one device differ by more than rounding; not for outputs that differ
    between two calls, and not for those that are no finite numbers."""
    one, again, two = outputs_of(model, x), outputs_of(model, x), outputs_of(other, x)
    if one is None or again is None or two is None or not bool(one.isfinite().all()):
        return False
    return not _apart(one, again, _HERE) and _apart(one, two, _HERE)


def outputs_of(model: nn.Module, x: Tensor, *, seed: int = 0) -> Tensor | None:
    """The outputs in eval mode, float64, for one sequence of random numbers; None for a network that cannot take ``x``,
    which other checks report."""
    net = unwrapped(model)
    try:
        # The caller's autocast, or TF32, would round by more than what is compared.
        with guard(net, mode="eval", seed=seed), torch.no_grad(), full_precision(x.device):
            out = net(x.clone())
    except Exception:  # a network may raise any error
        return None
    return out.double() if isinstance(out, Tensor) and out.is_floating_point() else None


def _apart(one: Tensor, other: Tensor, share: float) -> bool:
    """Whether outputs differ by more than a ``share`` of the largest one; that of a masked class counts for its own
    class alone."""
    if one.shape != other.shape:
        return True
    if not one.numel():
        return False
    rows, others = (t.reshape(len(t) if t.dim() else 1, -1) for t in (one, other))
    most = share * rows.abs().amax(0).clamp_min(float(unmasked(rows).abs().max()))
    return bool(((rows - others).abs().nan_to_num(nan=torch.inf) > most).any())


def _inputs(model: nn.Module, about: Mapping[str, Any]) -> Tensor | None:
    """Two fixed inputs of the shape in ``about``, in [0, 1]; None without a shape."""
    if not about.get("shape"):
        return None
    x = torch.rand(2, *about["shape"], generator=torch.Generator().manual_seed(0), device="cpu")
    like = next((p for p in model.parameters() if p.is_floating_point()), x)
    return x.to(like.device, like.dtype)
