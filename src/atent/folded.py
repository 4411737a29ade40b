"""The network used for evaluation: batch norm folded into convolutions and linear layers, with frozen weights."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.passes.shape_prop import ShapeProp

from atent.guard import ask, check_module, dtype_of, guard
from atent.precision import full_precision, twin

_SAMPLES = 4
# In float64 the folded network is the same function up to rounding, which the layers amplify.
_EXACT = 1e-10
# In the network's own dtype the error of the folded form, relative to float64, may be this many times that of the
# unfolded one: both round product chains of the same length, in different ways.
_TIMES = 8.0
# Units near zero change sign under rounding, which changes their contribution to an input gradient.
_KINKS = 2.0**-6
# The batch norm of each layer, and the dimensions of what lies between the two: BatchNorm1d normalises the second
# dimension, and a Linear layer computes the last.
_KINDS: dict[type[nn.Module], tuple[Any, int]] = {
    nn.Linear: (nn.BatchNorm1d, 2), nn.Conv1d: (nn.BatchNorm1d, 3), nn.Conv2d: (nn.BatchNorm2d, 4),
    nn.Conv3d: (nn.BatchNorm3d, 5),
}  # fmt: skip
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True, eq=False)
class Folded:
    """The result of `fold`: a network for searches, and the number of folded batch norms."""

    network: nn.Module
    """In eval mode, with frozen parameters; the original network if nothing was folded."""
    layers: int
    """Number of batch norms folded into the layer before or after them; 0: ``network`` is the original."""
    reason: str | None
    """Why the network was not folded; None if it was, and if it has no batch norm."""


def has_batch_norm(model: nn.Module) -> bool:
    """Whether a network has a batch norm of a kind that can be folded; depends on the types of its modules only."""
    check_module(model)
    return any(type(m) in _NORMS for m in model.modules())


def fold(model: nn.Module, x: Tensor, *, channels_last: bool = False) -> Folded:
    """A copy of ``model`` in eval mode with batch norms folded into adjacent layers, and frozen weights.

    Folded are ``Conv1d``, ``Conv2d`` and ``Conv3d`` followed by the batch norm of their dimensions, ``Linear`` followed
    by ``BatchNorm1d``, and a batch norm followed by such a layer without padding (padded zeros are not normalised).
    Weights are computed in float64. In exact arithmetic the copy is the same function, which is checked on a few
    samples of ``x`` (n, ...) in float64 (logits and input gradients agree to 1e-10) and in the network's own dtype (at
    most 8 times the network's own error relative to float64). ``channels_last`` converts the copy's kernels to that
    format. `torch.utils.mkldnn` packs weights further, but its layers have no input gradient, so attacks cannot use
    them.

    ``model`` is not changed. It is returned itself, with the reason, if it cannot be traced by `torch.fx`, has hooks,
    parametrizations, random numbers, cannot be copied, or a check fails.
    """
    if not has_batch_norm(model):
        return Folded(model, 0, None)
    some = x[:_SAMPLES].detach()
    reason = _obstacle(model)
    if reason is None and not len(some):
        reason = "no samples to check it on"
    if reason is not None:
        return Folded(model, 0, reason)
    try:
        network, layers = _folded(model, some)
        if not layers:
            return Folded(model, 0, "no batch norm is adjacent to a layer into which it can be folded")
        if channels_last and some.dim() == 4:
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        reason = _disagreement(model, network, some)
    except Exception as error:  # whatever a user's forward or copy raises under tracing
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return Folded(model, 0, reason) if reason is not None else Folded(network, layers, None)


def _obstacle(model: nn.Module) -> str | None:
    """A property of the network that prevents folding."""
    for name, module in model.named_modules():
        where = f" ({name})" if name else ""
        if isinstance(module, torch.jit.ScriptModule):
            return f"scripted{where}"
        if any(getattr(module, hooks, None) for hooks in _HOOKS):
            return f"hooks{where}"
        if "forward" in vars(module):
            return f"a forward of its own instance{where}"
        if nn.utils.parametrize.is_parametrized(module):
            return f"parametrized weights{where}"
    return None


def _folded(model: nn.Module, x: Tensor) -> tuple[fx.GraphModule, int]:
    """A folded copy, and the number of its batch norms that are folded."""
    with guard(model, mode="eval", seed=0), torch.no_grad(), full_precision(x.device):
        own = copy.deepcopy(model)
        ask(model, x)  # ShapeProp prints a traceback of what fails
    own.eval()
    own.requires_grad_(False)
    traced = fx.symbolic_trace(own)
    with torch.no_grad(), full_precision(x.device):
        ShapeProp(traced).propagate(x.clone())
    single = _single(traced)
    done = 0
    for before, after in list(_pairs(traced)):
        if before.op != "call_module" or not single >= {before.target, after.target}:
            continue
        first, second = (traced.get_submodule(str(node.target)) for node in (before, after))
        made = _into_layer_before(first, second, before) or _into_layer_after(first, second, after)
        if made is None:
            continue
        norm, other = (after, before) if type(second) in _NORMS else (before, after)
        _replace(traced, str(other.target), made)
        norm.replace_all_uses_with(norm.all_input_nodes[0])
        traced.graph.erase_node(norm)
        single -= {norm.target}
        done += 1
    traced.graph.lint()
    traced.recompile()
    traced.delete_all_unused_submodules()
    return traced.eval().requires_grad_(False), done


def _single(traced: fx.GraphModule) -> set[str]:
    """Names of the modules that are called once and share no weights with others."""
    calls = Counter(str(node.target) for node in traced.graph.nodes if node.op == "call_module")
    owners = Counter(id(p) for _, p in traced.named_parameters(remove_duplicate=False))
    used = {str(node.target) for node in traced.graph.nodes if node.op == "get_attr"}
    return {
        name
        for name, count in calls.items()
        if count == 1
        and all(owners[id(p)] == 1 for p in traced.get_submodule(name).parameters())
        and not any(target.startswith(f"{name}.") for target in used)
    }


def _pairs(traced: fx.GraphModule) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Calls of two modules in which only the second reads the output of the first."""
    for node in traced.graph.nodes:
        # The code may name the argument, as in `self.norm(input=z)`.
        if node.op == "call_module" and len(node.args) + len(node.kwargs) == 1 and node.all_input_nodes:
            before = node.all_input_nodes[0]
            if len(before.users) == 1:
                yield before, node


def _into_layer_before(layer: Any, norm: nn.Module, node: fx.Node) -> nn.Module | None:
    """``layer`` with the following batch norm folded in; None if they do not fit."""
    affine = _affine(layer, norm, node)
    if affine is None:
        return None
    scale, shift = affine
    weight = layer.weight.double()
    made = copy.deepcopy(layer)
    bias = shift if layer.bias is None else layer.bias.double() * scale + shift
    return _with(made, weight * scale.reshape(-1, *[1] * (weight.dim() - 1)), bias)


def _into_layer_after(norm: nn.Module, layer: Any, node: fx.Node) -> nn.Module | None:
    """``layer``, without padding, with the preceding batch norm folded in; None if they do not fit."""
    if type(layer) in _CONVOLUTIONS and (isinstance(layer.padding, str) or any(layer.padding)):
        return None
    affine = _affine(layer, norm, node)
    if affine is None:
        return None
    scale, shift = affine
    weight = layer.weight.double()
    groups = layer.groups if isinstance(layer, _CONVOLUTIONS) else 1
    # Each group of output channels has its own input channels.
    each = len(weight) // groups
    scale, shift = (v.view(groups, -1).repeat_interleave(each, 0) for v in (scale, shift))
    form = (*scale.shape, *[1] * (weight.dim() - 2))
    bias = (weight * shift.reshape(form)).flatten(1).sum(1)
    if layer.bias is not None:
        bias = bias + layer.bias.double()
    return _with(copy.deepcopy(layer), weight * scale.reshape(form), bias)


def _affine(layer: nn.Module, norm: Any, node: fx.Node) -> tuple[Tensor, Tensor] | None:
    """Scale and shift, in float64, of a batch norm adjacent to a layer; None if they do not fit.

    ``node`` is the first or second call, whose output has as many dimensions as the tensor between the two.
    """
    kind, dims = _KINDS.get(type(layer), (None, 0))
    if kind is None or type(norm) is not kind or norm.running_mean is None or norm.running_var is None:
        return None
    if len(node.meta["tensor_meta"].shape) != dims:
        return None
    scale = (norm.running_var.double() + norm.eps).rsqrt()
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


def _with(layer: Any, weight: Tensor, bias: Tensor) -> nn.Module:
    """The layer with these weights, in its own dtype."""
    dtype = layer.weight.dtype
    layer.weight = nn.Parameter(weight.to(dtype), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(dtype), requires_grad=False)
    return cast(nn.Module, layer)


def _replace(traced: fx.GraphModule, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(traced.get_submodule(parent), last, module)


def _disagreement(model: nn.Module, network: nn.Module, x: Tensor) -> str | None:
    """A description of how the folded network differs from ``model`` on ``x``; None if only by rounding."""
    logits, grads = _pass(model, x, 0)
    if not torch.equal(logits, _pass(model, x, 1)[0]):
        return "random numbers in its forward pass"
    double, dtype = twin(model, x)
    if dtype != torch.float64:
        return "no float64 form to check it against"
    reference = _pass(double, x.double(), 0)
    exact, _ = _folded(double, x.double())
    for what, a, b in zip(("logits", "input gradients"), reference, _pass(exact, x.double(), 0)):
        if not _far(b, a) <= _EXACT * float(a.norm()):
            return f"the {what} differ by {_far(b, a) / float(a.norm()):.1e} in float64"
    if dtype_of(model) == torch.float64:
        return None
    unit = torch.finfo(x.dtype).eps
    for what, own, a, b, floor in zip(
        ("logits", "input gradients"), (logits, grads), reference, _pass(network, x, 0), (16 * unit, _KINKS)
    ):
        if not _far(b, a) <= _TIMES * _far(own, a) + floor * float(a.norm()):
            return f"the {what} differ by {_far(b, a) / float(a.norm()):.1e}, beyond rounding"
    return None


def _pass(model: nn.Module, x: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Logits, and the input gradient of the sum of their squares."""
    with guard(model, mode="eval", seed=seed), full_precision(x.device), torch.enable_grad():
        leaf = x.clone().requires_grad_()
        logits = ask(model, leaf)
        (grads,) = torch.autograd.grad(logits.square().sum(), leaf)
    return logits.detach(), grads


def _far(a: Tensor, b: Tensor) -> float:
    """Euclidean distance, in float64; NaN if a value is NaN."""
    return float((a.double() - b.double()).norm())
