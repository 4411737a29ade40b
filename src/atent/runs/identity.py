"""What identifies a network and an image in the files from which a measurement resumes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from atent.origins import code_of

LENGTH = 16
"""Number of characters of a hash."""


def identity_of(model: nn.Module) -> str:
    """A hash of what the outputs of a network depend on: the types of its modules, with their source and settings where
    they are the user's, its parameters and its buffers."""
    return digest(*_contents(model))


def digest(*parts: str | Tensor) -> str:
    """A hash of texts and of tensors: their dtype, shape and values."""
    found = hashlib.sha256()
    for part in parts:
        if not isinstance(part, Tensor):
            found.update(part.encode() + b"\0")
        elif is_lazy(part):
            found.update(repr(part).encode())
        else:
            found.update(f"{part.dtype} {tuple(part.shape)}".encode())
            plain = part.dequantize() if part.is_quantized else part
            found.update(plain.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()[:LENGTH]


def _contents(model: nn.Module) -> Iterator[str | Tensor]:
    for name, module in model.named_modules():
        yield f"{name} {type(module).__qualname__}"
    yield from code_of({type(module) for module in model.modules()})
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield name
        yield tensor
    yield from _settings_of(model)


def _settings_of(model: nn.Module) -> Iterator[str]:
    """What the parameters and the code of a user's network do not show: the settings of its layers, numbers and strings
    that its modules have as attributes, and its hooks. Nothing for the built-in models, which are identified by their
    names."""
    packages = {type(module).__module__.partition(".")[0] for module in model.modules()}
    if "atent" in packages and packages <= {"atent", "torch"}:
        return
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        own = {key: value for key, value in vars(module).items() if key != "training" and _is_setting(key, value)}
        hooks = [getattr(h, "__qualname__", "") for each in _HOOKS for h in getattr(module, each).values()]
        if own or hooks or module.extra_repr():
            yield f"{name} {module.extra_repr()} {sorted(own.items())} {hooks}"


_HOOKS = ("_forward_pre_hooks", "_forward_hooks")


def _is_setting(key: str, value: Any) -> bool:
    """Whether an attribute is a setting: a public float, word, switch, or sequence of these. Integers are counters of
    calls and limits as well, which a repeated call may have at other values."""
    if isinstance(value, tuple | list):
        return bool(value) and all(_is_setting(key, each) for each in value)
    return key[0] != "_" and (
        isinstance(value, bool | str | None) or (isinstance(value, float) and math.isfinite(value))
    )
