"""Symbolic tracing of a network down to its supported layers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import fx, nn
from torch.nn.parameter import is_lazy

from atent.certify.operators import LAYERS

AUGMENTED = {name: getattr(operator, name) for name in ("iadd", "isub", "imul", "itruediv")}


def known_layer(module: nn.Module) -> type[nn.Module] | None:
    """The supported layer of torch that it is, if any; a subclass with its own forward or convolution is not."""

    def same(kind: type[nn.Module]) -> bool:
        return all(getattr(type(module), name, None) is getattr(kind, name, None) for name in _COMPUTES)

    return next((kind for kind in LAYERS if isinstance(module, kind) and same(kind)), None)


_COMPUTES = ("forward", "_conv_forward")
"""The methods that compute a layer."""


def check_readable(model: nn.Module) -> None:
    """ValueError for a network whose code or layers cannot be read, with what to give in its place."""
    for name, module in model.named_modules():
        part = f"{name} ({type(module).__name__})" if name else f"a {type(module).__name__}"
        if isinstance(module, torch.jit.ScriptModule):
            raise ValueError("bounds read Python code, not TorchScript: give the network itself, not a scripted one")
        if isinstance(module, nn.DataParallel | nn.parallel.DistributedDataParallel):
            raise ValueError(
                f"bounds cannot read {part}: give the network inside, model{f'.{name}' * bool(name)}.module"
            )
        if any(map(is_lazy, [*module.parameters(recurse=False), *module.buffers(recurse=False)])):
            raise ValueError(f"{part} has no weights yet: pass one batch through the network first, model(x)")


class _Proxy(fx.Proxy):
    """Records ``x -= 1`` differently from ``x = x - 1``: the first also changes other references to x."""

    def __len__(self) -> int:
        raise ValueError("len(x) is not traced: use x.shape[0]")

    def __getattr__(self, name: str) -> _Attribute:
        return _Attribute(self, name)


class _Attribute(fx.proxy.Attribute, _Proxy):
    """A method, or a value such as ``x.mT``, which ``x.mT -= 1`` changes as it does any other."""


def _augmented(function: Callable[[Any, Any], Any]) -> Callable[[_Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy("call_function", function, (self, other), {})


for _name, _function in AUGMENTED.items():
    setattr(_Proxy, f"__{_name}__", _augmented(_function))


class Tracer(fx.Tracer):
    """Traces into every module that is neither a layer of torch nor a subclass of a supported one."""

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

    def iter(self, obj: fx.Proxy) -> Iterator[Any]:
        raise ValueError("a loop over sizes or parts of x is not traced: use x.flatten(1), or an index")

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return known_layer(m) is not None or super().is_leaf_module(m, module_qualified_name)


def owner(step: fx.Node) -> str:
    """The module whose forward pass contains the step."""
    stack = list(step.meta.get("nn_module_stack", {}).values())
    path, kind = stack[-1] if stack else ("", nn.Module)
    return f"{path.partition('.')[2] or 'the model'} ({kind.__name__})"
