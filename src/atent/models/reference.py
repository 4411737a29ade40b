"""The user's own network: found by name, and checked before anything trains on it."""

import contextlib
import importlib
import os
import sys
from typing import TypeVar

import torch
from torch import nn

from atent.guard import check_classes, check_weights, dtype_of, explained, guard

T = TypeVar("T")


def from_reference(reference: str) -> nn.Module:
    """The network that `reference`, written "module:function", names.

    The module is looked for in the current directory first, as `python -m` does; `sys.path` is afterwards
    as it was. What stands after the colon may be dotted. An nn.Module is taken as it is; anything else is
    called without arguments and must return one. Its input is (n, c, h, w) in [0, 1], its output (n,
    classes) logits.

    Raises ValueError, in one line, where the colon is missing, the module or the attribute does not
    exist, the import or the call raises (the cause is chained), or the result is no nn.Module.
    """
    return resolve(reference, nn.Module, "an nn.Module")


def resolve(reference: str, kind: type[T], wanted: str) -> T:
    """What `reference`, written "module:function", names or, called without arguments, gives.

    It must be a `kind`, which is called `wanted`. Raises ValueError, in one line, as `from_reference`.
    """
    name, colon, path = reference.partition(":")
    if not (name and colon and path) or name.startswith("."):
        raise ValueError(f"a reference reads module:function, got {reference!r}")
    with _current_directory_on_path():
        found = _import(name, reference)
        for part in path.split("."):
            try:
                found = getattr(found, part)
            except AttributeError as error:
                raise ValueError(f"{reference}: module {name!r} has no attribute {path!r}") from error
        if isinstance(found, kind):
            return found
        if not callable(found):
            raise ValueError(f"{reference} is {_kind(found)}, want {wanted} or a function giving it")
        try:
            made = found()
        # a script that leaves by sys.exit must not take the command line with it
        except (Exception, SystemExit) as error:
            raise ValueError(f"{reference} raised {_line(error)}") from error
    if not isinstance(made, kind):
        raise ValueError(f"{reference} returned {_kind(made)}, want {wanted}")
    return made


def check_output(
    model: nn.Module,
    shape: tuple[int, ...],
    classes: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> None:
    """Raise ValueError, in one line, unless `model` maps (2, *shape) to (2, classes).

    One forward pass of zeros of type `dtype` (default: that of the model's weights) on `device`, where the model must
    already be, in eval mode and without gradients. The model comes back as it was, also where the pass raises.
    """
    dtype = dtype or dtype_of(model) or torch.float32
    check_weights(model)
    inputs = torch.zeros(2, *shape, dtype=dtype, device=device)
    try:
        with guard(model, mode="eval"), torch.no_grad(), explained(model, inputs):
            output = model(inputs)
    except Exception as error:
        raise ValueError(f"the model cannot take inputs of shape {tuple(shape)}: {_line(error)}") from error
    if not isinstance(output, torch.Tensor):
        raise ValueError(f"the model gives {_kind(output)}, want a tensor of logits of shape (2, {classes})")
    if output.shape in ((2,), (2, 1)):
        check_classes(1)
    if output.ndim == 2 and len(output) == 2 and output.shape[1] != classes:
        raise ValueError(
            f"the model gives {output.shape[1]} outputs, the data has {classes} classes: "
            f"give its last layer {classes} outputs"
        )
    if output.shape != (2, classes):
        raise ValueError(
            f"the model gives shape {tuple(output.shape)} for 2 inputs, want logits of shape (2, {classes})"
        )


def _import(name, reference):
    # a file written since the last import is otherwise invisible for as long as its folder's time stamp lasts
    importlib.invalidate_caches()
    try:
        return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        # what the module itself imports may be missing too, and that is another mistake
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            raise ValueError(f"{reference}: no module named {error.name!r} here or installed") from error
        raise ValueError(f"{reference}: importing {name} raised {_line(error)}") from error


@contextlib.contextmanager
def _current_directory_on_path():
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


def _line(error: BaseException) -> str:
    return " ".join([f"{type(error).__name__}:", *str(error).strip().splitlines()[:1]]).rstrip(": ")


def _kind(value) -> str:
    return "None" if value is None else f"of type {type(value).__name__}"
