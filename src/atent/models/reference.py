"""The user's own network: imported by name, and checked before training."""

import copy
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import nn

from atent import trust
from atent.guard import check_classes, check_weights, dtype_of, explained, guard, wrapping
from atent.registry import current_directory_on_path, first_line, load_object, referred

T = TypeVar("T")


def from_reference(reference: str, args: Mapping[str, Any] | None = None) -> nn.Module:
    """A network of your own by its name "module:function".

    The module is imported from the current directory first, as `python -m` does; `sys.path` is restored afterwards.

    Parameters
    ----------
    reference
        "module:attribute", where the attribute may be dotted. An nn.Module is returned as it is; a function or class
        is called and must return one.
    args
        Keyword arguments of the call. Default: none.

    Returns
    -------
    nn.Module
        From (n, c, h, w) in [0, 1] to logits (n, classes); `check_output` checks the shapes.

    Raises
    ------
    ValueError
        In one line: if the colon is missing, the module or the attribute does not exist, the import or the call raises
        (the cause is chained), arguments are given for an nn.Module, or the result is not an nn.Module.

    Examples
    --------
    >>> from atent.models import from_reference
    >>> from_reference("torch.nn:Linear", {"in_features": 2, "out_features": 3})
    Linear(in_features=2, out_features=3, bias=True)
    """
    return made_of(referred("model", reference), reference, nn.Module, "an nn.Module", args)


def built_anew(reference: str, args: Mapping[str, Any] | None = None) -> nn.Module:
    """As `from_reference`, but a copy of a network that the reference names itself: weights that are loaded into it,
    or trained, are not those of the network of the next call. ValueError where it cannot be copied."""
    found = from_reference(reference, args)
    return copied(found, reference) if gives_itself(reference) else found


def gives_itself(reference: str) -> bool:
    """Whether "module:attribute" is a network, not what builds one."""
    return isinstance(load_object(reference), nn.Module)


def copied(network: nn.Module, name: str) -> nn.Module:
    """A copy of the network that ``name`` gives; ValueError, in one line, for one without."""
    try:
        return copy.deepcopy(network)
    except Exception as error:  # of the user's own, which may raise anything
        raise ValueError(
            f"{name} is a network that cannot be copied ({first_line(error)}): name a function that builds it"
        ) from error


def resolve(reference: str, kind: type[T], wanted: str, args: Mapping[str, Any] | None = None) -> T:
    """The object that `reference`, "module:function", names, or what it returns when called with the keywords `args`.

    It must be a `kind`; errors call it `wanted`. Raises ValueError, in one line, as `from_reference`.
    """
    return made_of(load_object(reference), reference, kind, wanted, args)


def made_of(
    found: object, reference: str, kind: type[T], wanted: str, args: Mapping[str, Any] | None = None
) -> T:  # fmt: skip
    """``found``, which `reference` names, if it is a `kind`, or what it returns when called; otherwise as `resolve`."""
    with current_directory_on_path(), trust.lifted():
        if isinstance(found, kind):
            if args:
                raise ValueError(f"{reference} is {wanted} and takes no arguments: got {', '.join(args)}")
            return found
        if not callable(found):
            raise ValueError(f"{reference} is {_kind(found)}, want {wanted} or a function that returns it")
        lacking = _lacking(found, args or {})
        if lacking:
            called = f"with {', '.join(args)}" if args else "without arguments"
            raise ValueError(f"{reference} is called {called} and needs {', '.join(lacking)}: give them defaults")
        try:
            made = found(**(args or {}))
        # a script that calls sys.exit must not end the command
        except (Exception, SystemExit) as error:
            raise ValueError(f"{reference} raised {first_line(error)}") from error
    if not isinstance(made, kind):
        raise ValueError(f"{reference} returned {_kind(made)}, want {wanted}")
    return made


def _lacking(function: Callable[..., Any], args: Mapping[str, Any]) -> list[str]:
    """The parameters that a call with these keywords leaves without a value; none where the signature is not known.

    None either where a keyword is not one of the parameters: the call itself names that keyword, which may be a
    misspelling of what is missing.
    """
    try:
        # Of a decorated function the decorator's own, which may give arguments that the function inside needs.
        parameters = inspect.signature(function, follow_wrapped=False).parameters.values()
    except (TypeError, ValueError):
        return []
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = {p.name for p in parameters if p.kind not in variadic}
    if args.keys() - named and not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters):
        return []
    return [p.name for p in parameters if p.name in named - args.keys() and p.default is p.empty]


def check_output(
    model: nn.Module,
    shape: tuple[int, ...],
    classes: int,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> None:
    """Check that a model maps inputs (2, *shape) to logits (2, classes).

    One forward pass of zeros, in eval mode and without gradients. The model's mode, buffers and gradients are restored,
    also if the pass raises.

    Parameters
    ----------
    model
        The network to check.
    shape
        Shape of one input, (c, h, w) or (d,).
    classes
        Number of classes of the data.
    device
        Device of the inputs, on which the model must already be.
    dtype
        Type of the inputs. Default: that of the model's weights, or float32 without weights.

    Raises
    ------
    ValueError
        In one line: for weights created under ``torch.inference_mode``, for a model that cannot take such inputs (the
        cause is chained), and for an output that is not a tensor of shape (2, classes).

    Examples
    --------
    >>> import torch
    >>> from atent.models import check_output
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> check_output(model, (1, 8, 8), classes=10)
    >>> check_output(model, (1, 8, 8), classes=3)
    Traceback (most recent call last):
    ValueError: the model has 10 outputs, the data has 3 classes: give its last layer 3 outputs
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
            f"the model returns {_kind(output)}, want a tensor of logits of shape (2, {classes}){wrapping(output)}"
        )
    if output.shape in ((2,), (2, 1)):
        check_classes(1)
    if output.ndim == 2 and len(output) == 2 and output.shape[1] != classes:
        raise ValueError(
            f"the model has {output.shape[1]} outputs, the data has {classes} classes: "
            f"give its last layer {classes} outputs"
        )
    if output.shape != (2, classes):
        raise ValueError(
            f"the model returns shape {tuple(output.shape)} for 2 inputs, want logits of shape (2, {classes})"
        )


def _kind(value: object) -> str:
    return "None" if value is None else f"{'an' if type(value).__name__[0] in 'aeiou' else 'a'} {type(value).__name__}"
