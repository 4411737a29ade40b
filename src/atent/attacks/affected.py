"""The part of each layer of a known network that depends on a window of the input."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

# A layer counts as partly affected if the affected part is at most this share of it.
_SHARE = 0.5
SLIDING = (nn.Conv2d, nn.MaxPool2d, nn.AvgPool2d)
_POINTWISE = (
    nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.GELU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Identity, nn.Dropout,
    nn.BatchNorm2d,
)  # fmt: skip
_RELUS: tuple[Any, ...] = (F.relu, torch.relu)
_SUMS: tuple[Any, ...] = (operator.add, torch.add)
_ARITHMETIC: tuple[Any, ...] = (operator.add, operator.sub, operator.mul, operator.truediv)


@dataclass
class Span:
    """Along one side of a layer: the affected interval, for each position of the window in the image."""

    first: Tensor
    """Start of the interval, one entry per position."""
    length: int
    """Length of the interval, the same for all positions."""
    size: int
    """Length of the side."""

    def through(self, kernel: int, stride: int, pad: int, size: int) -> Span:
        """The affected interval of the output of a sliding layer, whose side has length ``size``."""
        first = (-((kernel - 1 - pad - self.first) // stride)).clamp_min(0)
        last = ((self.first + self.length - 1 + pad) // stride).clamp_max(size - 1)
        length = max(1, int((last - first).max()) + 1)
        return Span(first.clamp_max(size - length), length, size)

    def joined(self, other: Span) -> Span:
        """The union with another interval, for a sum of two layers."""
        first = torch.minimum(self.first, other.first)
        length = int((torch.maximum(self.first + self.length, other.first + other.length) - first).max())
        return Span(first.clamp_max(self.size - length), length, self.size)

    def same(self, other: Span) -> bool:
        return self.length == other.length and torch.equal(self.first, other.first)


Spans = tuple[Span, Span]


@dataclass
class Affected:
    """The parts of a network that windows of ``side`` pixels affect."""

    graph: fx.GraphModule
    side: int
    spans: dict[fx.Node, Spans]
    """The partly affected layers, in order, and their affected part: rows and columns."""
    shapes: dict[fx.Node, torch.Size]
    """Shapes of all layers, for one image."""

    @property
    def slides(self) -> list[fx.Node]:
        """The partly affected convolutions and pools."""
        return [node for node in self.spans if isinstance(layer(self.graph, node), SLIDING)]

    @property
    def ends(self) -> list[fx.Node]:
        """The partly affected layers that the remaining network reads."""
        return [node for node in self.spans if any(user not in self.spans for user in node.users)]

    def borders(self) -> dict[fx.Node, int]:
        """The layers that are read beyond their affected part, and the width of the zero padding that each needs."""
        borders = dict.fromkeys(self.ends, 0)
        for node, own in self.spans.items():
            given = [arg for arg in node.args if isinstance(arg, fx.Node) and arg in self.spans]
            slide = layer(self.graph, node)
            if isinstance(slide, SLIDING):
                border = max(pad for _, _, pad in sliding(slide))
                borders[given[0]] = max(border, borders.get(given[0], 0))
                continue
            for arg in given:
                if not all(a.same(b) for a, b in zip(self.spans[arg], own)):
                    borders.setdefault(arg, 0)
        return borders

    def values(self, x: Tensor) -> Iterator[tuple[fx.Node, Tensor]]:
        """The full values of the partly affected layers, for images ``x``."""
        found: dict[fx.Node, Tensor] = {}
        for node in self.spans:
            if node.op == "placeholder":
                found[node] = x.clone()
            else:
                args = [a if not isinstance(a, fx.Node) else found.get(a, constant(self.graph, a)) for a in node.args]
                found[node] = apply(self.graph, node, args)
            yield node, found[node]

    def rest(self) -> fx.GraphModule:
        """The network from `ends` to its output."""
        made = fx.Graph()
        copied = {node: made.placeholder(f"layer_{i}") for i, node in enumerate(self.ends)}
        for node in self.graph.graph.nodes:
            if node not in self.spans:
                copied[node] = made.node_copy(node, lambda n: copied[n])
        return fx.GraphModule(self.graph, made)


def graph_of(model: nn.Module) -> fx.GraphModule | None:
    """The graph of a network in eval mode of known layers: traced by torch.fx, or of this library's and torch's layers.

    None for any other network: tracing unknown code could have side effects.
    """
    from atent.models.normalize import Normalize

    modules, traced = list(model.modules()), isinstance(model, fx.GraphModule)
    if not traced and not all(type(m).__module__.startswith(("torch.nn.modules.", "atent.models.")) for m in modules):
        return None
    # A scripted module lacks some of these.
    if any(getattr(m, name, None) for m in modules for name in ("training", "_forward_hooks", "_forward_pre_hooks")):
        return None
    if not isinstance(model, fx.GraphModule):

        class Tracer(fx.Tracer):
            def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
                return isinstance(m, Normalize) or super().is_leaf_module(m, module_qualified_name)

        try:
            model = fx.GraphModule(model, Tracer().trace(model))
        except Exception:  # control flow that depends on the input's values cannot be traced
            return None
    inputs = [node for node in model.graph.nodes if node.op == "placeholder"]
    return model if len(inputs) == 1 else None


def affected(graph: fx.GraphModule, x: Tensor, side: int) -> Affected | None:
    """What windows of ``side`` affect for images like ``x`` (n, c, h, w); None if no layer is partly affected."""
    found = Affected(graph, side, {}, _shapes(graph, x[:1]))
    for node in graph.graph.nodes:
        span = _span(found, node)
        if span is not None:
            found.spans[node] = span
    return found if found.slides else None


def layer(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    """The module that a node calls; None for other nodes."""
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def apply(graph: fx.GraphModule, node: fx.Node, args: list[Any]) -> Tensor:
    """The output of the node for ``args``."""
    module = layer(graph, node)
    call: Any = node.target if module is None else module
    made: Tensor = call(*args)
    return made


def constant(graph: fx.GraphModule, node: fx.Node) -> Any:
    """The tensor of a node that fetches one from the network; None for other nodes."""
    found: Any = graph
    for name in str(node.target).split(".") if node.op == "get_attr" else ():
        found = getattr(found, name)
    return found if node.op == "get_attr" else None


def sliding(slide: nn.Module) -> list[tuple[int, int, int]]:
    """Kernel, stride and padding of a convolution or pool, vertically and horizontally."""
    kernel, stride, pad = (_pair(getattr(slide, name)) for name in ("kernel_size", "stride", "padding"))
    wide = _pair(getattr(slide, "dilation", 1))
    return [(d * (k - 1) + 1, s, p) for k, s, p, d in zip(kernel, stride, pad, wide)]


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


def _slides(slide: nn.Module | None) -> bool:
    """Whether it is a convolution with zero padding, or a pool without padding."""
    if isinstance(slide, nn.Conv2d):
        return slide.padding_mode == "zeros" and not isinstance(slide.padding, str)
    if isinstance(slide, nn.MaxPool2d | nn.AvgPool2d):
        return _pair(slide.padding) == (0, 0) and not slide.ceil_mode and not getattr(slide, "return_indices", False)
    return False


def _pointwise(graph: fx.GraphModule, node: fx.Node) -> bool:
    """Whether each element of the layer depends only on its own position, and no other layer is overwritten."""
    from atent.models.normalize import Normalize

    given = [arg for arg in node.args if isinstance(arg, fx.Node) and arg.op != "get_attr"]
    module = layer(graph, node)
    if node.kwargs.get("inplace", getattr(module, "inplace", False)) and len(given[0].users) > 1:
        return False
    if node.op == "call_module":
        return isinstance(module, (*_POINTWISE, Normalize)) and not node.kwargs
    if node.op != "call_function":
        return False
    if node.target in _RELUS:
        return len(node.args) == 1
    if node.kwargs:
        return False
    if node.target in _SUMS and len(given) == 2:
        return True
    return node.target in _ARITHMETIC and all(_per_channel(graph, arg) for arg in node.args[1:])


def _per_channel(graph: fx.GraphModule, arg: Any) -> bool:
    """Whether an operand is a number, or a tensor with one number per channel."""
    value = constant(graph, arg) if isinstance(arg, fx.Node) else arg
    if isinstance(value, Tensor):
        return 3 <= value.dim() <= 4 and value.shape[-2:] == (1, 1)
    return isinstance(value, int | float)


def _span(found: Affected, node: fx.Node) -> Spans | None:
    """The affected part of a layer; None if the entire layer counts as affected."""
    spans, shape = found.spans, found.shapes.get(node)
    if shape is None or len(shape) != 4:
        return None
    if node.op == "placeholder":
        down, across = (Span(torch.arange(size - found.side + 1), found.side, size) for size in shape[2:])
        return down, across
    given = [arg for arg in node.args if isinstance(arg, fx.Node) and arg.op != "get_attr"]
    if not given or any(arg not in spans for arg in given):
        return None
    slide = layer(found.graph, node)
    if slide is not None and _slides(slide):
        sides = zip(spans[given[0]], sliding(slide), shape[2:])
        down, across = (span.through(*how, size) for span, how, size in sides)
        share = down.length * across.length / (down.size * across.size)
        return (down, across) if share <= _SHARE else None
    if not _pointwise(found.graph, node) or any(found.shapes[arg] != shape for arg in given):
        return None
    down, across = spans[given[0]]
    for arg in given[1:]:
        down, across = down.joined(spans[arg][0]), across.joined(spans[arg][1])
    return down, across


def _shapes(graph: fx.GraphModule, x: Tensor) -> dict[fx.Node, torch.Size]:
    """The shape of every layer."""
    shapes: dict[fx.Node, torch.Size] = {}

    class Shapes(fx.Interpreter):
        def run_node(self, n: fx.Node) -> Any:
            value = super().run_node(n)
            if isinstance(value, Tensor):
                shapes[n] = value.shape
            return value

    Shapes(graph).run(x.clone())
    return shapes
