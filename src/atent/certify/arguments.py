"""The arguments of a step of a traced network, whichever of them its code names."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from atent.certify.tracing import owner

# What torch calls the arguments that are read by their place, and the names of numpy that it takes too.
_PLACES = {"input": 0, "other": 1, "size": 1, "shape": 1}
# What neither computes nor rounds.
_COPIES = ("view", "reshape", "getitem", "unsqueeze", "squeeze", "expand", "flatten", "permute", "transpose", "t")
READ = {
    "flatten": "flatten(1)", "view": "view(n, -1) or fixed sides", "reshape": "reshape(n, -1) or fixed sides",
    "mean": "the mean over height and width", "adaptive_avg_pool2d": "output size 1",
}  # fmt: skip
"""The form in which bounds read a function that they do not read in every form."""
_RENAMED = {"axis": "dim", "keepdims": "keepdim"}


def order(step: fx.Node) -> None:
    """Move the arguments that are read by their place before all others: `torch.add(input=x, other=y)` is
    `torch.add(x, y)`."""
    if step.op not in ("call_function", "call_method"):
        return
    step.kwargs = {_RENAMED.get(name, name): value for name, value in step.kwargs.items()}
    for name, place in _PLACES.items():
        if name in step.kwargs and len(step.args) == place:
            rest = dict(step.kwargs)
            step.args = (*step.args, rest.pop(name))
            step.kwargs = rest


def of_layer(step: fx.Node, module: nn.Module, name: str) -> Any:
    """The input of a layer. ValueError, in one line, for a call with anything else."""
    try:
        bound = inspect.signature(type(module).forward).bind(module, *step.args, **step.kwargs)
    except TypeError as error:
        raise ValueError(f"{name} is called with other arguments than its own: {error}") from None
    (_, (_, value), *more) = bound.arguments.items()
    given = [argument for argument, setting in more if setting is not None]
    if given:
        raise ValueError(f"{name} is called with {' and '.join(given)}, which bounds cannot read: give its input alone")
    return value


def copied(step: fx.Node, constants: Callable[[fx.Node], Callable[[], Any]]) -> Callable[[], Any]:
    """The value of a step that copies entries of weights and buffers; ValueError, in one line, for any other one."""
    target = step.target
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    if name not in _COPIES:
        raise ValueError(
            f"{name} in the code of {owner(step)} computes with weights or buffers alone, which bounds cannot read:"
            " compute it in __init__"
        )

    def get() -> Any:
        args, kwargs = fx.node.map_arg((step.args, step.kwargs), lambda source: constants(source)())
        return getattr(args[0], target)(*args[1:], **kwargs) if isinstance(target, str) else target(*args, **kwargs)

    return get


def option(step: fx.Node, place: int, name: str, default: Any) -> Any:
    """The argument at a place, or of a name."""
    return step.args[place] if len(step.args) > place else step.kwargs.get(name, default)


def factor(step: fx.Node, name: str) -> float:
    """The number by which a sum, a difference, a product or a quotient multiplies its second operand: -1 of a
    difference, and ``alpha`` where it is given. ValueError, in one line, for any other option."""
    options = dict(step.kwargs)
    alpha: Any = options.pop("alpha", 1)
    if not isinstance(alpha, (int, float)):
        options["alpha"] = alpha
    if options:
        raise ValueError(
            f"{name} in the code of {owner(step)} has {' and '.join(options)}, which bounds cannot read: give the"
            " two operands alone"
        )
    return -float(alpha) if "sub" in name else float(alpha)


def dims(dim: Any) -> tuple[int, ...]:
    """One dimension or several, as a tuple."""
    return (dim,) if isinstance(dim, int) else tuple(dim)
