"""What identifies a network and an image in the files from which a measurement resumes."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator
from types import BuiltinFunctionType, FunctionType, MethodType
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
    """What the parameters and the code of a network do not show: the settings of its layers, numbers, strings and
    functions that its modules have as attributes, and its hooks. Of the built-in models, which are identified by their
    names, only hooks and replaced forward passes."""
    packages = {type(module).__module__.partition(".")[0] for module in model.modules()}
    built_in = "atent" in packages and packages <= {"atent", "torch"}
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        given = {key: value for key, value in vars(module).items() if key[0] != "_" and key != "training"}
        if built_in:
            given = {key: value for key, value in given.items() if key == "forward"}
        own = {key: text for key, value in given.items() if (text := _written(value)) is not None}
        hooks = [getattr(h, "__qualname__", "") for each in _HOOKS for h in getattr(module, each).values()]
        layer = "" if built_in else module.extra_repr()
        if own or hooks or layer:
            yield f"{name} {layer} {sorted(own.items())} {hooks}"
        yield from code_of(value for value in given.values() if isinstance(value, _FUNCTIONS))


_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)


def _written(value: Any) -> Any:
    """An attribute as plain values if it is a setting: a float, word, switch or function, or a sequence or mapping of
    these; else None. Integers are counters of calls and limits as well, which a repeated call may have at other values,
    and tensors are caches."""
    if isinstance(value, _FUNCTIONS):
        return f"function {value.__module__}.{value.__qualname__}"
    if isinstance(value, dict):
        found = dict(zip(map(str, value), _each(value.values())))
        return found if found and None not in found.values() else None
    if isinstance(value, tuple | list):
        parts = _each(value)
        return None if None in parts or not parts else tuple(parts) if isinstance(value, tuple) else parts
    return value if isinstance(value, bool | str) or (isinstance(value, float) and math.isfinite(value)) else None


def _each(values: Iterable[Any]) -> list[Any]:
    return ["none" if value is None else _written(value) for value in values]
