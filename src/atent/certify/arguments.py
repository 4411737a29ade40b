"""The arguments of a step of a traced network, whichever of them its code names."""

from __future__ import annotations

import inspect
import math
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from atent.certify import names
from atent.certify.affine import Affine, inner
from atent.certify.copies import within
from atent.certify.tracing import owner


@dataclass(frozen=True)
class Constant:
    """A weight, a buffer or a number, or entries of one."""

    get: Callable[[], Tensor]
    like: bool = False
    """Whether it has the dtype or the shape of an activation, which may round it: sums and products count that."""
    expanded: bool = False
    """Whether the network's code expands it to the shape of an activation: `get` gives it as it is before."""


@dataclass(frozen=True)
class Size:
    """A size that the network's code reads."""

    of: int | None
    """The position of the node whose size it is; None: of a constant."""
    dim: int | slice | None = None
    """The dimension, or several; None: all of them, or a number that is computed from some."""
    value: Callable[[Tensor], int] | None = None
    """The number that is computed, for the node's value (n, ...)."""

    @property
    def number(self) -> bool:
        """Whether it is one number, of a node."""
        return self.of is not None and (type(self.dim) is int or self.value is not None)

    @property
    def samples(self) -> bool:
        """Whether it is the number of samples, which all nodes share."""
        return self.of is not None and self.dim == 0

    def side(self, z: Tensor) -> int:
        """The number, for the node's value (n, ...). ValueError where it is that of the samples."""
        if self.value is not None:
            return self.value(z)
        assert isinstance(self.dim, int)
        return z.shape[inner([self.dim], z.dim())[0]]


@dataclass(frozen=True)
class Like:
    """The dtype or the device that the network's code reads, of a constant or of an activation."""

    name: str
    of: Constant | None

    def dtype(self) -> torch.dtype | None:
        """The dtype; None: the device, or the dtype of the network itself."""
        return self.of.get().dtype if self.of and self.name == "dtype" else None


@dataclass(frozen=True)
class Parts:
    """Several slices of a node along a dimension, as `torch.chunk` gives them."""

    of: int
    """The position of the node."""
    dim: int
    slices: Callable[[Tensor], Sequence[Tensor]]

    def part(self, number: int) -> Affine:
        """The map from the node to one of the slices. ValueError for slices along the samples."""
        return within(lambda z: self.slices(z)[number], [self.dim])


Found = dict[fx.Node, "int | Parts | Size | Like | Constant"]
"""The result of each step so far: the position of its node, its parts, a size, a dtype or a device, or a constant."""

# What torch calls the arguments that are read by their place, and the names of numpy that it takes too.
_PLACES = {"input": 0, "other": 1, "size": 1, "shape": 1}
_RENAMED = {"axis": "dim", "keepdims": "keepdim", "axis0": "dim0", "axis1": "dim1"}
# What neither computes nor rounds but as the network itself does, and what takes the dtype or the shape of another.
_COPIES = ("view", "reshape", "getitem", "unsqueeze", "squeeze", "expand", "flatten", "permute", "transpose", "t", "T",
           "mT", "clone", "contiguous", "detach", "float", "double", "to", "type", "type_as", "expand_as")  # fmt: skip
_LIKE = ("to", "type", "type_as", "expand_as")
# What keeps the shape.
_ENTRYWISE = ("clone", "contiguous", "detach", "float", "double", "to", "type", "type_as")


def order(step: fx.Node) -> None:
    """Move the arguments that are read by their place before all others: `torch.add(input=x, other=y)` is
    `torch.add(x, y)`, and `torch.rsub(x, y)` is the difference y - x."""
    if step.op not in ("call_function", "call_method"):
        return
    step.kwargs = {_RENAMED.get(name, name): value for name, value in step.kwargs.items()}
    for name, place in _PLACES.items():
        if name in step.kwargs and len(step.args) == place:
            rest = dict(step.kwargs)
            step.args = (*step.args, rest.pop(name))
            step.kwargs = rest
    if names.named(step)[0] == "rsub":
        step.args = step.args[::-1]


def size(step: fx.Node, name: str, first: Any) -> Size | Like | None:
    """The size, the dtype or the device that a step reads of its input ``first``; None for any other step."""
    of = first if type(first) is int else None
    if isinstance(first, Size):
        if name != "getitem":
            return None
        index: Any = step.args[1]
        return Size(first.of, index) if first.dim is None else Size(None)
    if step.target is getattr and name in ("dtype", "device"):
        return Like(name, first if isinstance(first, Constant) else None)
    if name == "size":
        return Size(of, option(step, 1, "dim", None))
    if step.target in ("dim", "ndimension") or (step.target is getattr and name in ("shape", "ndim")):
        return Size(of if name == "shape" else None)
    return None


def computed(step: fx.Node, meaning: str, found: Found) -> Size | None:
    """The number that a step computes from sizes of one node and fixed numbers; None for any other step."""
    operands = [found[each] if isinstance(each, fx.Node) else each for each in step.args]
    sizes = [each for each in operands if isinstance(each, Size) and each.number]
    fixed = [each for each in step.args if type(each) is int]
    first = operands[0] if operands else None
    if step.target in (math.prod, "numel") and isinstance(first, Size) and isinstance(first.dim, slice):
        sides = first.dim
        return Size(first.of, value=lambda z: math.prod(z.shape[d] for d in inner(range(z.dim())[sides], z.dim())))
    if meaning not in _COUNTS or len({each.of for each in sizes}) != 1 or len(sizes) + len(fixed) != len(operands):
        return None
    compute = _COUNTS[meaning]
    return Size(
        sizes[0].of,
        value=lambda z: compute(*(each.side(z) if isinstance(each, Size) else each for each in operands)),
    )


_COUNTS: dict[str, Callable[..., int]] = {
    "add": operator.add, "sub": operator.sub, "mul": operator.mul, "floordiv": operator.floordiv
}  # fmt: skip


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


def copied(step: fx.Node, name: str, found: Found) -> Constant | None:
    """The entries of weights and buffers that a step copies; None for a step whose input is an activation.

    ValueError, in one line, for a step that computes with weights and buffers alone.
    """
    sources = [found[source] for source in step.all_input_nodes]
    constants = [source for source in sources if isinstance(source, Constant)]
    if not sources or not isinstance(sources[0], Constant):
        return None
    if name in _LIKE and len(constants) < len(sources):
        changes = any(not (isinstance(source, Like) and source.name == "device") for source in sources[1:])
        expanded = constants[0].expanded or name == "expand_as"
        return replace(constants[0], like=constants[0].like or changes, expanded=expanded)
    if len(constants) < len(sources):
        return None
    if name not in _COPIES:
        raise ValueError(
            f"{name} in the code of {owner(step)} computes with weights or buffers alone, which bounds cannot read:"
            " compute it in __init__"
        )
    expanded = any(constant.expanded for constant in constants)
    if expanded and name not in _ENTRYWISE:
        raise ValueError(
            f"{name} in the code of {owner(step)} acts on a constant that has the shape of an activation, which bounds"
            " cannot read: call expand_as last"
        )

    def value(source: fx.Node) -> Tensor:
        constant = found[source]
        assert isinstance(constant, Constant)
        return constant.get()

    def get() -> Any:
        target: Any = step.target
        args, kwargs = fx.node.map_arg((step.args, step.kwargs), value)
        return getattr(args[0], target)(*args[1:], **kwargs) if isinstance(target, str) else target(*args, **kwargs)

    return Constant(get, any(constant.like for constant in constants), expanded)


def given(step: fx.Node, found: Found) -> tuple[list[Any], dict[str, Any]]:
    """The arguments of a step for `functions.function`."""

    def seen(value: Any) -> Any:
        if isinstance(value, list | tuple):
            return tuple(map(seen, value))
        result = found[value] if isinstance(value, fx.Node) else None
        if isinstance(result, Constant) and not result.like:
            return result.get
        # The position of a further activation would be read as a number.
        return result if isinstance(result, Size | Like) else value

    args = list(step.args[:1] if step.target is getattr else step.args)
    values = [seen(value) for value in args]
    for number, value in enumerate(args):
        if isinstance(value, fx.Node) and type(found[value]) is int:
            values[number] = found[value]
            break
    return values, {name: seen(value) for name, value in step.kwargs.items()}


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
