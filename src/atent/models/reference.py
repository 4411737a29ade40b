"""The user's own network: found by name, and checked before anything trains on it."""

from collections.abc import Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from atent import trust
from atent.guard import check_classes, check_weights, dtype_of, explained, guard, wrapping
from atent.registry import current_directory_on_path, first_line, load_object

T = TypeVar("T")


def from_reference(reference: str, args: Mapping[str, Any] | None = None) -> nn.Module:
    """The network that `reference`, written "module:function", names.

    The module is looked for in the current directory first, as `python -m` does; `sys.path` is afterwards
    as it was. The part after the colon may be dotted. An nn.Module is taken as it is; anything else is
    called with the keywords `args` and must return one. Its input is (n, c, h, w) in [0, 1], its output (n,
    classes) logits.

    Raises ValueError, in one line, where the colon is missing, the module or the attribute does not
    exist, the import or the call raises (the cause is chained), or the result is not an nn.Module.
    """
    return resolve(reference, nn.Module, "an nn.Module", args)


def resolve(reference: str, kind: type[T], wanted: str, args: Mapping[str, Any] | None = None) -> T:
    """What `reference`, written "module:function", names or, called with the keywords `args`, gives.

    It must be a `kind`, which is called `wanted`. Raises ValueError, in one line, as `from_reference`.
    """
    found = load_object(reference)
    with current_directory_on_path(), trust.lifted():
        if isinstance(found, kind):
            if args:
                raise ValueError(f"{reference} is {wanted} itself, and takes no arguments: got {', '.join(args)}")
            return found
        if not callable(found):
            raise ValueError(f"{reference} is {_kind(found)}, want {wanted} or a function giving it")
        try:
            made = found(**(args or {}))
        # a script that leaves by sys.exit must not take the command line with it
        except (Exception, SystemExit) as error:
            raise ValueError(f"{reference} raised {first_line(error)}") from error
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
        raise ValueError(f"the model cannot take inputs of shape {tuple(shape)}: {first_line(error)}") from error
    if not isinstance(output, torch.Tensor):
        raise ValueError(
            f"the model gives {_kind(output)}, want a tensor of logits of shape (2, {classes}){wrapping(output)}"
        )
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


def _kind(value: object) -> str:
    return "None" if value is None else f"{'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}"
