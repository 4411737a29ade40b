"""What identifies a network and an image in the files from which a measurement resumes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import math
import re
from collections.abc import Iterator
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
        given = {key: value for key, value in vars(module).items() if key != "training" and not key.startswith("_")}
        if built_in:
            given = {key: value for key, value in given.items() if key == "forward"}
        calls: list[Any] = []
        # None may be a cache before the first pass, whose tensor is no setting.
        own = _known({key: _written(value, calls) for key, value in given.items() if value is not None})
        hooks = [getattr(h, "__qualname__", "") for each in _HOOKS for h in getattr(module, each).values()]
        layer = "" if built_in else module.extra_repr()
        if own or hooks or layer:
            # Another process has the same objects at other addresses.
            yield _ADDRESS.sub("", f"{name} {layer} {sorted(own.items())} {hooks}")
        yield from code_of(calls)


_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType, functools.partial)
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")
_UNKNOWN = object()
"""What `_written` gives for a value that is not a setting."""


def _written(value: Any, calls: list[Any], inside: tuple[int, ...] = (), *, fixed: bool = False) -> Any:
    """An attribute as plain values if it is a setting: a float, word, switch, None or function, or a sequence or a
    mapping of these; else `_UNKNOWN`. The functions are appended to ``calls``.

    Integers are counters of calls and limits as well, which a repeated call may have at other values, unless they are
    ``fixed``; and tensors are caches. ``inside``: the ids of the values that contain this one.
    """
    if id(value) in inside:
        return _UNKNOWN
    inside = (*inside, id(value))
    if isinstance(value, _FUNCTIONS):
        calls.append(value)
        given = ((name, part, kept) for name, part, kept in _bound(value) if kept or part is not None)
        bound = _known({name: _written(part, calls, inside, fixed=kept) for name, part, kept in given})
        return f"function {_name(value)}" + (f" {bound}" if bound else "")
    if isinstance(value, dict):
        # In the order of the keys: that of a mapping made from a set differs between processes.
        plain = all(isinstance(key, str | int | float | None) for key in value)
        ordered = sorted(value.items(), key=lambda item: str(item[0])) if plain else []
        found = {key: _written(part, calls, inside, fixed=fixed) for key, part in ordered}
        return found if found and len(found) == len(_known(found)) else _UNKNOWN
    if isinstance(value, tuple | list):
        parts = [_written(part, calls, inside, fixed=fixed) for part in value]
        if not parts or any(part is _UNKNOWN for part in parts):
            return _UNKNOWN
        return tuple(parts) if isinstance(value, tuple) else parts
    known = isinstance(value, bool | str | None) or (isinstance(value, float) and math.isfinite(value))
    return value if known or (fixed and isinstance(value, int)) else _UNKNOWN


def _known(found: dict[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in found.items() if value is not _UNKNOWN}


def _name(function: Any) -> str:
    """The name of a function, of a partial that of its function."""
    function = function.func if isinstance(function, functools.partial) else function
    function = function if hasattr(function, "__qualname__") else type(function)
    return f"{function.__module__}.{function.__qualname__}"


def _bound(function: Any) -> Iterator[tuple[str, Any, bool]]:
    """The values that a function has beside its code, with their names: the arguments of a partial and defaults, which
    are fixed, and variables of the function in which it was defined."""
    if isinstance(function, functools.partial):
        yield "func", function.func, False
        yield from ((str(place), part, True) for place, part in enumerate(function.args))
        yield from ((name, part, True) for name, part in function.keywords.items())
    function = getattr(function, "__func__", function)
    # Those of torch's own functions are of its implementation.
    if isinstance(function, FunctionType) and not f"{function.__module__}.".startswith("torch."):
        yield from ((str(place), part, True) for place, part in enumerate(function.__defaults__ or ()))
        yield from ((name, part, True) for name, part in (function.__kwdefaults__ or {}).items())
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
            with contextlib.suppress(ValueError):  # a variable without a value yet
                yield name, cell.cell_contents, False
