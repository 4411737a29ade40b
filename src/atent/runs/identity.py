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
from torch.fx import GraphModule
from torch.nn.parameter import is_lazy

from atent.origins import code_of, source_of, without_addresses
from atent.runs.weights import is_wrapper, plain_name

LENGTH = 16
"""Number of characters of a hash."""
# The settings of a layer that are longer are recorded by a hash.
_LONGEST = 160


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


def layers_of(model: nn.Module, *, named: bool = False) -> dict[str, str]:
    """What the outputs of a network depend on beside its state and the code of the user: the type of each module, the
    settings of a layer, and its functions and hooks, as text by its name. Of a built-in one that is ``named`` in the
    settings, hooks and replaced forward passes. Numbers among the attributes do not count, which a training may change,
    and `torch.compile` changes nothing."""
    found = {}
    for name, module in model.named_modules():
        if is_wrapper(module):
            continue
        text = _settings(module, built_in=named, numbers=False)[0].replace(" []", "")
        if not named:
            text = f"{type(module).__qualname__} {text}"
        text = " ".join(text.split())
        if text:
            short = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}... {digest(text)}"
            found[plain_name(model, name)] = short
    return found


def functions_of(model: nn.Module) -> list[Any]:
    """The functions and objects that a network calls: its hooks, and attributes of its modules."""
    return [call for module in model.modules() if not is_wrapper(module) for call in _settings(module)[1]]


def _contents(model: nn.Module) -> Iterator[str | Tensor]:
    for name, module in model.named_modules():
        yield f"{name} {type(module).__qualname__}"
    yield from code_of({type(module) for module in model.modules()})
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        yield name
        yield tensor
    built_in = is_built_in(model)
    for name, module in model.named_modules():
        text, calls = _settings(module, built_in=built_in)
        if text:
            yield f"{name} {text}"
        yield from code_of(calls)


def function_of(value: Any) -> list[str]:
    """What identifies a function, or an object that is called like one; [] for other values."""
    if not (isinstance(value, _FUNCTIONS) or _is_called(value)):
        return []
    calls: list[Any] = []
    return [without_addresses(str(_written(value, calls))), *code_of(calls)]


def is_built_in(model: nn.Module) -> bool:
    """Whether all code of a network is of this package, so that its name in a recipe or a file identifies it."""
    packages = {type(module).__module__.partition(".")[0] for module in model.modules()}
    return "atent" in packages and packages <= {"atent", "torch"}


def _settings(module: nn.Module, *, built_in: bool = False, numbers: bool = True) -> tuple[str, list[Any]]:
    """What the parameters and the code of a module do not show: the settings of a layer, numbers, strings and functions
    that it has as attributes, its hooks, and the program of a compiled one; with the functions. Of a ``built_in`` one
    only hooks and a replaced forward pass; without ``numbers`` only functions count among the attributes. "" if there
    is nothing."""
    calls: list[Any] = []
    if isinstance(module, torch.jit.ScriptModule):
        return _program(module), calls
    given = {key: value for key, value in vars(module).items() if key != "training" and not key.startswith("_")}
    if built_in:
        given = {key: value for key, value in given.items() if key == "forward"}
    if not numbers:
        given = {key: value for key, value in given.items() if isinstance(value, _FUNCTIONS)}
    # None may be a cache before the first pass, whose tensor is no setting.
    own = _known({key: _written(value, calls) for key, value in given.items() if value is not None})
    hooks = [_written(h, calls, hook=True) for each in _HOOKS for h in getattr(module, each, {}).values()]
    layer = "" if built_in else module.extra_repr()
    if isinstance(module, GraphModule):
        layer += module.code
    if not (own or hooks or layer):
        return "", calls
    return without_addresses(f"{layer} {sorted(own.items())} {hooks}"), calls


def _program(module: torch.jit.ScriptModule) -> str:
    """The code of a compiled module, with its constants, such as the weights of a frozen one."""
    try:
        code, constants = module.code_with_constants
    except (AttributeError, RuntimeError):  # a container
        return ""
    values = {name: getattr(module, name, None) for name in dict.fromkeys(_OF_SELF.findall(code))}
    own = _known({name: _written(value, []) for name, value in values.items()})
    # Constants are tensors, and numbers that are no literals, such as infinity.
    tensors = [digest(c if isinstance(c, Tensor) else repr(c)) for _, c in sorted(constants.const_mapping.items())]
    # Names of types are numbered in the order in which a process compiled them.
    return f"{_MANGLED.sub('', code)} {sorted(own.items())} {tensors}"


# A backward hook changes the gradient that an attack follows.
_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")
_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType, functools.partial)
_MANGLED = re.compile(r"\.?___torch_mangle_\d+")
_OF_SELF = re.compile(r"\bself\.(\w+)")
_UNKNOWN = object()
"""What `_written` gives for a value that is not a setting."""


def _written(
    value: Any, calls: list[Any], inside: tuple[int, ...] = (), *, fixed: bool = False, hook: bool = False
) -> Any:
    """An attribute as plain values if it is a setting: a float, word, switch, None or function, or a sequence or a
    mapping of these; else `_UNKNOWN`. The functions are appended to ``calls``.

    Integers are counters of calls and limits as well, which a repeated call may have at other values, unless they are
    ``fixed``; and tensors are caches. A ``hook`` records into lists and mappings. ``inside``: the ids of the values
    that contain this one.
    """
    if id(value) in inside:
        return _UNKNOWN
    inside = (*inside, id(value))
    if isinstance(value, _FUNCTIONS) or _is_called(value):
        calls.append(value)
        given = ((name, part, kept) for name, part, kept in _bound(value) if kept or part is not None)
        bound = _known({name: _written(part, calls, inside, fixed=kept, hook=hook) for name, part, kept in given})
        source = source_of(value)
        named = _name(value) if source is None else f"{_name(value)} {digest(source)}"
        return f"function {named}" + (f" {bound}" if bound else "")
    if isinstance(value, dict | list) and hook and not fixed:
        return _UNKNOWN
    if isinstance(value, dict):
        # In the order of the keys: that of a mapping made from a set differs between processes.
        plain = all(isinstance(key, str | int | float | None) for key in value)
        ordered = sorted(value.items(), key=lambda item: str(item[0])) if plain else []
        found = {key: _written(part, calls, inside, fixed=fixed, hook=hook) for key, part in ordered}
        return found if found and len(found) == len(_known(found)) else _UNKNOWN
    if isinstance(value, tuple | list):
        parts = [_written(part, calls, inside, fixed=fixed, hook=hook) for part in value]
        if not parts or any(part is _UNKNOWN for part in parts):
            return _UNKNOWN
        return tuple(parts) if isinstance(value, tuple) else parts
    known = isinstance(value, bool | str | None) or (isinstance(value, float) and math.isfinite(value))
    return value if known or (fixed and isinstance(value, int)) else _UNKNOWN


def _known(found: dict[Any, Any]) -> dict[Any, Any]:
    return {key: value for key, value in found.items() if value is not _UNKNOWN}


def _is_called(value: Any) -> bool:
    """Whether a value is an object that is called like a function; modules are compared by themselves."""
    return callable(value) and not isinstance(value, type | nn.Module) and hasattr(value, "__dict__")


def _name(function: Any) -> str:
    """The name of a function, of a partial that of its function, of another object that of its type."""
    function = function.func if isinstance(function, functools.partial) else function
    function = function if hasattr(function, "__qualname__") else type(function)
    return f"{function.__module__}.{function.__qualname__}"


def _bound(function: Any) -> Iterator[tuple[str, Any, bool]]:
    """The values that a function has beside its code, with their names: the arguments of a partial and defaults, which
    are fixed, attributes of an object, and variables of the function in which it was defined."""
    if isinstance(function, functools.partial):
        yield "func", function.func, False
        yield from ((str(place), part, True) for place, part in enumerate(function.args))
        yield from ((name, part, True) for name, part in function.keywords.items())
    elif not isinstance(function, _FUNCTIONS):
        yield from _attributes(function)
    if isinstance(function, MethodType) and not isinstance(function.__self__, type | nn.Module):
        yield from _attributes(function.__self__)
    function = getattr(function, "__func__", function)
    # Those of torch's own functions are of its implementation.
    if isinstance(function, FunctionType) and not f"{function.__module__}.".startswith("torch."):
        yield from ((str(place), part, True) for place, part in enumerate(function.__defaults__ or ()))
        yield from ((name, part, True) for name, part in (function.__kwdefaults__ or {}).items())
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or ()):
            with contextlib.suppress(ValueError):  # a variable without a value yet
                yield name, cell.cell_contents, False


def _attributes(value: Any) -> Iterator[tuple[str, Any, bool]]:
    """The attributes of an object that are not private."""
    given = getattr(value, "__dict__", {})
    yield from ((name, part, False) for name, part in given.items() if not name.startswith("_"))
