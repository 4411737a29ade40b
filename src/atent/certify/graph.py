"""A network as a list of nodes in the order of evaluation, read once by symbolic tracing."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from atent.certify import affine, arguments, copies
from atent.certify.arguments import dims, option
from atent.certify.operators import DROPOUTS, LAYERS, NORMS, Fork, Kind, Known, function, times
from atent.certify.tracing import AUGMENTED, Tracer, check_readable, known_layer, owner
from atent.docstrings import Documented
from atent.guard import check_module, guard

SUPPORTED = (
    "Linear, convolutions, BatchNorm, pooling, ReLU, LeakyReLU, clamp, sigmoid, tanh, SiLU, GELU, ELU, slices, padding,"
    " cat, sums, and constants that are added or multiplied"
)


@dataclass(frozen=True)
class Node:
    """One step of the network."""

    kind: Kind
    """The kind of operation; a sum has two inputs, a cat at least one, the input none, every other kind one."""
    name: str
    """The layer's name in the model, for messages."""
    inputs: tuple[int, ...]
    """Positions of the nodes that are its inputs, all before its own."""
    op: Any = None
    """`Affine` for affine nodes, the ``nn.MaxPool2d`` for max-pooling, the `Smooth` function, a cat's dimension."""


@dataclass(frozen=True)
class Graph(metaclass=Documented):
    """The nodes of a network, as `read` gives them; node 0 is the input.

    It refers to the layers, not to copies of their weights: training changes both.

    Examples
    --------
    >>> import torch
    >>> from atent.certify import read
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    >>> graph = read(model)
    >>> [node.kind for node in graph.nodes], graph.output
    (['input', 'affine', 'relu', 'affine'], 3)
    """

    model: nn.Module
    """The network that was read."""
    nodes: tuple[Node, ...]
    """In the order of evaluation."""
    output: int
    """Position of the logits."""
    training: bool = False
    """Whether the model may be in train mode: see `read`."""

    def cached(self) -> Graph:
        """The same network with a cache of what is computed from its weights, for one call of the bounds."""
        nodes = (replace(n, op=n.op.cached()) if n.kind == "affine" and n.op.cached else n for n in self.nodes)
        return replace(self, nodes=tuple(nodes))


class _Shape:
    """A size that the network's code reads, which may only be used to reshape."""


@dataclass(frozen=True)
class _Constant:
    get: Callable[[], Tensor]


Found = dict[fx.Node, int | _Shape | _Constant]
"""The result of each step so far: the position of its node, a size, or a constant."""


def read(model: nn.Module, *, training: bool = False) -> Graph:
    """The nodes of a network, from its forward pass traced with ``torch.fx``; no data flows and nothing is copied.

    Parameters
    ----------
    model
        Network in eval mode whose forward pass does not branch on its input.
    training
        For certified training: the model may be in train mode if that changes nothing, that is without batch-norm and
        dropout.

    Returns
    -------
    Graph
        What `bounds`, `margins` and `verified` take in place of the model.

    Raises
    ------
    ValueError
        In one line, for a model in train mode otherwise, a layer or an operation that is not supported, a layer with a
        hook, a scripted or parallel model, lazy layers, and a forward pass that branches on its input.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.certify import read, verified
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    >>> graph, x = read(model), torch.rand(5, 4)
    >>> y = model(x).argmax(1)
    >>> [verified(graph, x, y, Threat("linf", eps)).shape for eps in (0.01, 0.1)]
    [torch.Size([5]), torch.Size([5])]
    """
    model = getattr(model, "_orig_mod", model)  # compiled: the same code
    check_module(model)
    check_readable(model)
    refuse_training(model, allowed=training)
    # A single layer would be traced into its own forward pass; in a Sequential it is a leaf.
    root = nn.Sequential(model)
    try:
        with guard(model, mode="as-is"):  # a forward pass may write buffers
            traced = Tracer().trace(root)
    except Exception as error:
        layer = _unsupported(model)
        if layer:
            raise ValueError(f"{layer} is not supported by bounds: use {SUPPORTED}") from None
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise ValueError(f"bounds cannot read the network's forward pass, which must not branch on x: {why}") from None
    nodes: list[Node] = []
    found: Found = {}
    # The steps that share memory with each step: an in-place change of one changes all.
    shared: dict[fx.Node, list[fx.Node]] = {}
    output = -1
    for step in traced.nodes:
        arguments.order(step)
        shared[step] = _memory(step, root, shared)
        if step.op == "placeholder":
            nodes.append(Node("input", "input", ()))
            found[step] = 0
        elif step.op == "get_attr":
            found[step] = _Constant(_fetch(root, str(step.target)))
        elif step.op == "output":
            output = _position(step.args[0], found, "the output")
        else:
            found[step] = _translate(step, root, nodes, found, shared)
    return Graph(model, tuple(nodes), output, training)


def _unsupported(model: nn.Module) -> str | None:
    """The first layer of torch that bounds do not support, for the error about a forward pass that cannot be traced."""
    for name, module in model.named_modules():
        own = type(module).__module__.startswith("torch.nn.") and not isinstance(module, _CONTAINERS)
        if own and known_layer(module) is None:
            return f"{name or 'the model'} ({type(module).__name__})"
    return None


_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)


def refuse_training(model: nn.Module, *, allowed: bool = False) -> None:
    """ValueError where any part of the model is in train mode: its dropout and batch-norm are not fixed functions.

    ``allowed``: only where dropout or batch-norm is in train mode.
    """
    for name, module in model.named_modules():
        if not module.training or (allowed and not _changes(module)):
            continue
        part = f"{name} ({type(module).__name__})" if name else "the model"
        if allowed:
            raise ValueError(
                f"{part} is not a fixed function in train mode, so bounds cannot train it: use one without batch-norm"
                " and dropout, such as digits_cnn, kw_small, kw_resnet, dm_large, or small_cnn with dropout 0"
            )
        raise ValueError(f"{part} is in train mode, bounds are for eval mode: call model.eval() first")


def _changes(module: nn.Module) -> bool:
    """Whether the layer's output in train mode depends on random numbers or on the other samples."""
    dropout = isinstance(module, nn.modules.dropout._DropoutNd) and module.p > 0
    random = dropout or (isinstance(module, nn.RReLU) and module.lower < module.upper)
    return random or isinstance(module, nn.modules.batchnorm._BatchNorm)


def _memory(step: fx.Node, root: nn.Module, shared: dict[fx.Node, list[fx.Node]]) -> list[fx.Node]:
    """The steps so far whose results may share their memory with this one's, itself among them."""
    if step.op == "call_module":
        module = root.get_submodule(str(step.target))
        alias = getattr(module, "inplace", False) or isinstance(module, _VIEWS)
    else:
        name = step.target if isinstance(step.target, str) else getattr(step.target, "__name__", "")
        alias = name.endswith("_") or name in (*_VIEWING, *AUGMENTED) or step.kwargs.get("inplace", False)
    sources = step.all_input_nodes[:1] if alias else []
    group = shared[sources[0]] if sources else []
    group.append(step)
    return group


# In eval mode dropout returns its input.
_VIEWS = (nn.Flatten, nn.Unflatten, nn.Identity, nn.modules.dropout._DropoutNd)
_VIEWING = ("flatten", "view", "reshape", "unflatten", "getitem", "contiguous", *DROPOUTS)
_SUMS = ("add", "iadd", "sub", "isub")
_PRODUCTS = ("mul", "imul", "div", "truediv", "itruediv")


def _translate(
    step: fx.Node, root: nn.Module, nodes: list[Node], found: Found, shared: dict[fx.Node, list[fx.Node]]
) -> int | _Shape | _Constant:
    if step.op == "call_module":
        module = root.get_submodule(str(step.target))
        name = f"{str(step.target).partition('.')[2] or 'the model'} ({type(module).__name__})"
        known = _layer(module, name)
        operands: list[Any] = [_seen(arguments.of_layer(step, module, name), found)]
        in_place = getattr(module, "inplace", False)
    else:
        target = step.target
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        in_place = bool(name.endswith("_") or name in AUGMENTED or step.kwargs.get("inplace", False))
        name = name.rstrip("_")
        if name == "getattr" and step.args[1] in ("shape", "ndim"):
            return _Shape()
        if name == "size" or (name == "getitem" and isinstance(_seen(step.args[0], found), _Shape)):
            return _Shape()
        operands = [_seen(a, found) for a in step.args]
        if in_place:
            _refuse_change(name, step, operands, shared)
        if name in _SUMS and len(operands) == 2 and all(type(o) is int for o in operands):
            one, other = operands
            factor = arguments.factor(step, name)
            if factor != 1:
                other = _appended(nodes, name, other, [times(factor)])
            nodes.append(Node("sum", name, (one, other)))
            return len(nodes) - 1
        if name in ("cat", "concat", "concatenate"):
            nodes.append(_joined(name, step, found))
            return len(nodes) - 1
        sources = [found[source] for source in step.all_input_nodes]
        if sources and all(isinstance(source, _Constant) for source in sources):
            return _Constant(arguments.copied(step, lambda source: cast(_Constant, found[source]).get))
        known = _operation(name, operands, step, found)
    # Arithmetic may have its constant first.
    before = next((operand for operand in operands if type(operand) is int), None)
    if before is None:
        raise ValueError(f"{name} does not act on the network's activations: bounds support {SUPPORTED}")
    if in_place and step.op == "call_module" and known:
        _refuse_change(name, step, [before], shared)
    return _appended(nodes, name, before, known)


def _joined(name: str, step: fx.Node, found: Found) -> Node:
    """The node of a `torch.cat`."""
    tensors: Any = option(step, 0, "tensors", ())
    places = [_seen(part, found) for part in (() if isinstance(tensors, fx.Node) else tensors)]
    dim = option(step, 1, "dim", 0)
    if not places or not all(type(place) is int for place in places) or not isinstance(dim, int):
        raise ValueError(
            f"{name} in the code of {owner(step)} joins other things than activations, which bounds cannot read"
        )
    if dim == 0:
        raise ValueError(f"{name} along the samples: bounds treat each sample separately")
    return Node("cat", name, tuple(places), dim)


def _appended(nodes: list[Node], name: str, before: int, known: Known) -> int:
    """Append the nodes that ``known`` lists after the node ``before``; the position of the last one."""
    for each in known:
        if isinstance(each, Fork):
            ends = _appended(nodes, name, before, each.one), _appended(nodes, name, before, each.other)
            nodes.append(Node("sum", name, ends))
        else:
            nodes.append(Node(each[0], name, (before,), each[1]))
        before = len(nodes) - 1
    return before


def _refuse_change(
    name: str, step: fx.Node, operands: list[Any], shared: dict[fx.Node, list[fx.Node]]
) -> None:  # fmt: skip
    """ValueError where the step changes memory in place that is read again: another result's, or a weight's."""
    if operands and isinstance(operands[0], _Constant):
        raise ValueError(f"{name} changes a weight or a buffer in place in the forward pass: bounds need fixed weights")
    others = (node for source in step.all_input_nodes[:1] for node in shared[source] if node is not step)
    if any(user > step for node in others for user in node.users):
        raise ValueError(f"{name} changes in place what the network reads again later: use inplace=False")


def _layer(module: nn.Module, name: str) -> Known:
    if module._forward_hooks or module._forward_pre_hooks:
        raise ValueError(f"{name} has a forward hook, which bounds cannot read: remove it")
    kind = known_layer(module)
    if isinstance(module, NORMS):
        raise ValueError(
            f"{name} divides by the spread of its own input, which bounds do not cover: use batch-norm, or certify by"
            " smoothing (`--method smoothing`)"
        )
    if kind is None:
        raise ValueError(f"{name} is not supported by bounds: use {SUPPORTED}")
    try:
        return LAYERS[kind](module)
    except ValueError as error:
        raise ValueError(f"{name} has {error}") from None


def _operation(name: str, operands: list[Any], step: fx.Node, found: Found) -> Known:
    """A function or a tensor's method in the network's code."""
    options: dict[str, Any] = dict(step.kwargs)
    if name not in ("view", "reshape") and any(isinstance(found[part], _Shape) for part in step.all_input_nodes):
        raise ValueError(f"{name} in the code of {owner(step)} computes with a size of its input: use a fixed number")
    constants = [o.get for o in operands if isinstance(o, _Constant)]
    if len(operands) == 2 and len(constants) == 1 and name in (*_SUMS, *_PRODUCTS):
        factor = arguments.factor(step, name)
        known = _arithmetic(name, constants[0], factor, constant_first=isinstance(operands[0], _Constant))
        if known:
            return known
    rest: tuple[Any, ...] = tuple(step.args[1:])
    if name == "relu" and not rest:
        return [("relu", None)]

    def given(argument: Any) -> Any:
        seen = found[argument] if isinstance(argument, fx.Node) else argument
        # The position of an activation would be read as a number.
        return seen.get if isinstance(seen, _Constant) else argument

    try:
        known = function(name, [*operands[:1], *map(given, rest)], {k: given(v) for k, v in options.items()})
    except TypeError:
        raise ValueError(f"{name} in the code of {owner(step)} has arguments that bounds cannot read") from None
    except ValueError as error:
        raise ValueError(f"{name} in the code of {owner(step)} has {error}") from None
    if known is not None:
        return known
    if name == "flatten" and option(step, 1, "start_dim", 0) == 1 and option(step, 2, "end_dim", -1) == -1:
        return [("affine", affine.flatten())]
    if name in ("view", "reshape"):
        sizes = rest[0] if len(rest) == 1 and isinstance(rest[0], (tuple, list)) else rest
        if len(sizes) == 2 and isinstance(sizes[1], int):
            rows, width = _seen(sizes[0], found), None if sizes[1] == -1 else sizes[1]
            if isinstance(rows, _Shape) or (sizes[0] == -1 and width):
                return [("affine", affine.flatten(width))]
        fixed = len(sizes) > 2 and all(isinstance(side, int) for side in sizes[1:])
        if fixed and (isinstance(_seen(sizes[0], found), _Shape) or (sizes[0] == -1 and min(sizes[1:]) > 0)):
            return [("affine", copies.reshaped(sizes[1:]))]
    if name == "mean" and dims(option(step, 1, "dim", ())) in ((2,), (-1,)):
        return [("affine", affine.mean(bool(option(step, 2, "keepdim", False)), over=1))]
    if name == "mean" and sorted(d % 4 for d in dims(option(step, 1, "dim", ()))) == [2, 3]:
        return [("affine", affine.mean(bool(option(step, 2, "keepdim", False))))]
    if name == "adaptive_avg_pool2d" and option(step, 1, "output_size", None) in (1, (1, 1), [1, 1]):
        return [("affine", affine.mean(True))]
    if name in ("avg_pool2d", "max_pool2d"):
        layer: Any = nn.AvgPool2d if name == "avg_pool2d" else nn.MaxPool2d
        return _layer(layer(*rest, **options), name)
    form = arguments.READ.get(name)
    why = (
        f"has arguments that bounds cannot read: use {form}" if form else f"is not supported by bounds: use {SUPPORTED}"
    )
    raise ValueError(f"{name} in the code of {owner(step)} {why}")


def _arithmetic(name: str, constant: Callable[[], Tensor], factor: float, *, constant_first: bool) -> Known | None:
    if name in _SUMS and constant_first:
        return [*([] if factor == 1 else [times(factor)]), ("affine", affine.shifted(constant))]
    if name in _SUMS:
        return [("affine", affine.shifted(constant if factor == 1 else lambda: factor * constant()))]
    if name in ("mul", "imul"):
        return [("affine", affine.scaled(constant))]
    return None if constant_first else [("affine", affine.scaled(constant, divided=True))]


def _fetch(root: nn.Module, path: str) -> Callable[[], Tensor]:
    def get() -> Any:
        try:
            return operator.attrgetter(path)(root)
        except AttributeError:
            raise ValueError(f"bounds cannot read {path[2:]}, which a forward pass adds: add it in __init__") from None

    return get


def _seen(argument: Any, found: Found) -> Any:
    if isinstance(argument, fx.Node):
        return found[argument]
    if isinstance(argument, (int, float)) and not isinstance(argument, bool):
        number = float(argument)
        # A tensor without dimensions on the CPU combines with any device and any dtype.
        return _Constant(lambda: torch.tensor(number, dtype=torch.float64))
    return argument


def _position(argument: Any, found: Found, name: str) -> int:
    place = _seen(argument, found)
    if type(place) is not int:
        raise ValueError(f"{name} must be one tensor of logits that depends on the input, got {argument}")
    return place
