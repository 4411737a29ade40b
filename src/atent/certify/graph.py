"""A network as a list of nodes in the order of evaluation, read once by symbolic tracing."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from atent.certify import arguments, copies, functions, names, sharing
from atent.certify.arguments import Constant, Found, Like, Parts, Size
from atent.certify.operators import LAYERS, NORMS, Cast, Fork, Kind, Known, times
from atent.certify.tracing import Tracer, check_readable, known_layer, owner
from atent.docstrings import Documented
from atent.guard import check_module, guard

SUPPORTED = (
    "Linear, convolutions, BatchNorm, pooling, ReLU, LeakyReLU, PReLU, clamp, sigmoid, tanh, SiLU, GELU, ELU, Softplus,"
    " slices, padding, cat, sums, and constants that are added or multiplied"
)
SPREAD = (
    "divides by the spread of its own input, which bounds do not cover: use batch-norm, or certify by smoothing"
    " (`--method smoothing`)"
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
    dtype: torch.dtype | None = None
    """The only dtype of weights in which the casts of the network's code change nothing; None: no casts."""

    def cached(self) -> Graph:
        """The same network with a cache of what is computed from its weights, for one call of the bounds."""
        nodes = (replace(n, op=n.op.cached()) if n.kind == "affine" and n.op.cached else n for n in self.nodes)
        return replace(self, nodes=tuple(nodes))


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
    reading, output = _Reading(root), -1
    for step in _traced(model, root).nodes:
        arguments.order(step)
        sharing.share(step, root, reading.shared)
        if step.op == "placeholder":
            reading.nodes.append(Node("input", "input", ()))
            reading.found[step] = 0
        elif step.op == "get_attr":
            reading.found[step] = Constant(_fetch(root, str(step.target)))
        elif step.op == "output":
            output = reading.position(step.args[0], "the output")
        else:
            reading.found[step] = reading.layer(step) if step.op == "call_module" else reading.function(step)
            # Numbers, as `Size`, have no memory.
            if type(reading.found[step]) is int and sharing.alone(step, root):
                reading.found[step.all_input_nodes[0]] = reading.found[step]
    if len(reading.casts) > 1:
        dtypes = " and ".join(sorted(map(str, reading.casts)))
        raise ValueError(f"the network casts to {dtypes}: bounds need one dtype")
    return Graph(model, tuple(reading.nodes), output, training, next(iter(reading.casts), None))


def _traced(model: nn.Module, root: nn.Module) -> fx.Graph:
    try:
        with guard(model, mode="as-is"):  # a forward pass may write buffers
            return Tracer().trace(root)
    except Exception as error:
        layer = _unsupported(model)
        if layer:
            raise ValueError(f"{layer} is not supported by bounds: use {SUPPORTED}") from None
        why = (str(error).strip().splitlines() or [type(error).__name__])[0].partition(". ")[0]
        rule = ", which must not branch on x" if isinstance(error, fx.proxy.TraceError) else ""
        raise ValueError(f"bounds cannot read the network's forward pass{rule}: {why}") from None


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


@dataclass
class _Reading:
    """What has been read of a network so far."""

    root: nn.Module
    nodes: list[Node] = field(default_factory=list)
    found: Found = field(default_factory=dict)
    shared: sharing.Shared = field(default_factory=dict)
    casts: set[torch.dtype] = field(default_factory=set)

    def seen(self, argument: Any) -> Any:
        """What an argument is: the result of a step, a number as a constant, or itself."""
        if isinstance(argument, fx.Node):
            return self.found[argument]
        if isinstance(argument, (int, float)) and not isinstance(argument, bool):
            number = float(argument)
            # A tensor without dimensions on the CPU combines with any device and any dtype.
            return Constant(lambda: torch.tensor(number, dtype=torch.float64))
        return argument

    def position(self, argument: Any, name: str) -> int:
        place = self.seen(argument)
        if type(place) is not int:
            raise ValueError(f"{name} must be one tensor of logits that depends on the input, got {argument}")
        return place

    def layer(self, step: fx.Node) -> int:
        """Append the nodes of a layer; the position of the last one."""
        module = self.root.get_submodule(str(step.target))
        name = f"{str(step.target).partition('.')[2] or 'the model'} ({type(module).__name__})"
        known = _layer(module, name)
        before = self.seen(arguments.of_layer(step, module, name))
        if type(before) is not int:
            raise ValueError(f"{name} does not act on the network's activations: bounds support {SUPPORTED}")
        return self.appended(step, name, before, known)

    def function(self, step: fx.Node) -> int | Parts | Size | Like | Constant:
        """Append the nodes of a function, a method or an operator; the position of the last one, or what it reads."""
        name, meaning = names.named(step)
        operands = [self.seen(argument) for argument in step.args]
        first = operands[0] if operands else None
        size = arguments.size(step, name, first) or arguments.computed(step, meaning, self.found)
        if size is not None:
            return size
        if isinstance(first, Parts) and name == "getitem" and type(step.args[1]) is int:
            return self.appended(step, name, first.of, [("affine", first.part(step.args[1]))])
        if isinstance(first, Parts):
            raise ValueError(f"{name} in the code of {owner(step)} reads several parts at once: use x.chunk(2, 1)[0]")
        if meaning in names.SUMS and len(operands) == 2 and all(type(operand) is int for operand in operands):
            return self.summed(step, name, meaning, operands)
        if meaning in ("cat", "hstack", "stack"):
            return self.joined(step, name, meaning)
        copied = arguments.copied(step, name, self.found)
        if copied is not None:
            sharing.refuse_change(step, name, self.root, self.found, self.shared)
            return copied
        sources = [self.found[source] for source in step.all_input_nodes]
        places = [source for source in sources if type(source) is int]
        if any(isinstance(source, Size) for source in sources) and not (places and meaning in names.SIZED):
            raise ValueError(
                f"{name} in the code of {owner(step)} computes with a size of its input: use a fixed number"
            )
        if not places:
            raise ValueError(f"{name} does not act on the network's activations: bounds support {SUPPORTED}")
        known = self.known(step, name, meaning, operands)
        return known if isinstance(known, Parts) else self.appended(step, name, places[0], known)

    def known(self, step: fx.Node, name: str, meaning: str, operands: list[Any]) -> Known | Parts:
        """The nodes of a function of one activation."""
        where = f"{name} in the code of {owner(step)}"
        constants = [operand.get for operand in operands if isinstance(operand, Constant)]
        known: Known | Parts | None = None
        if len(operands) == 2 and len(constants) == 1 and meaning in (*names.SUMS, *names.PRODUCTS):
            first = isinstance(operands[0], Constant)
            factor = arguments.factor(step, meaning)
            known = functions.arithmetic(meaning, constants[0], factor, constant_first=first)
        else:
            try:
                known = functions.function(meaning, *arguments.given(step, self.found))
            except ValueError as error:
                raise ValueError(f"{where} has {error}") from None
        if meaning in names.NORMS:
            raise ValueError(f"{where} {SPREAD}")
        if known is None:
            raise ValueError(f"{where} is not supported by bounds: use {SUPPORTED}")
        return known

    def appended(self, step: fx.Node, name: str, before: int, known: Known) -> int:
        """Append the nodes that ``known`` lists after the node ``before``; the position of the last one."""
        if known:  # dropout may say that it works in place, and returns its input
            sharing.refuse_change(step, name, self.root, self.found, self.shared)
        for each in known:
            if isinstance(each, Cast):
                self.casts.add(each.dtype)
                continue
            if isinstance(each, Fork):
                ends = self.appended(step, name, before, each.one), self.appended(step, name, before, each.other)
                self.nodes.append(Node("sum", name, ends))
            else:
                self.nodes.append(Node(each[0], name, (before,), each[1]))
            before = len(self.nodes) - 1
        return before

    def summed(self, step: fx.Node, name: str, meaning: str, operands: list[int]) -> int:
        """Append the sum or the difference of two activations; its position."""
        one, other = operands
        factor = arguments.factor(step, meaning)
        other = self.appended(step, name, other, [] if factor == 1 else [times(factor)])
        sharing.refuse_change(step, name, self.root, self.found, self.shared)
        self.nodes.append(Node("sum", name, (one, other)))
        return len(self.nodes) - 1

    def joined(self, step: fx.Node, name: str, meaning: str) -> int:
        """Append the node of a `torch.cat`, or of what is one; its position."""
        tensors: Any = arguments.option(step, 0, "tensors", ())
        places = [self.seen(part) for part in (() if isinstance(tensors, fx.Node) else tensors)]
        dim = 1 if meaning == "hstack" else arguments.option(step, 1, "dim", 0)
        others = set(step.kwargs) - {"tensors", "dim"}
        if not places or not all(type(place) is int for place in places) or not isinstance(dim, int) or others:
            raise ValueError(
                f"{name} in the code of {owner(step)} joins other things than activations, which bounds cannot read"
            )
        if dim == 0:
            raise ValueError(f"{name} along the samples: bounds treat each sample separately")
        if meaning == "stack":
            new = copies.within(lambda z: z.unsqueeze(dim), [dim], more=1)
            places = [self.appended(step, name, place, [("affine", new)]) for place in places]
        self.nodes.append(Node("cat", name, tuple(places), dim))
        return len(self.nodes) - 1


def _layer(module: nn.Module, name: str) -> Known:
    if module._forward_hooks or module._forward_pre_hooks:
        raise ValueError(f"{name} has a forward hook, which bounds cannot read: remove it")
    kind = known_layer(module)
    if isinstance(module, NORMS):
        raise ValueError(f"{name} {SPREAD}")
    if kind is None:
        raise ValueError(f"{name} is not supported by bounds: use {SUPPORTED}")
    try:
        return LAYERS[kind](module)
    except ValueError as error:
        raise ValueError(f"{name} has {error}") from None


def _fetch(root: nn.Module, path: str) -> Callable[[], Tensor]:
    def get() -> Any:
        try:
            return operator.attrgetter(path)(root)
        except AttributeError:
            raise ValueError(f"bounds cannot read {path[2:]}, which a forward pass adds: add it in __init__") from None

    return get
