"""The constants of Lemma B.1: how steep and how curved the loss is in its input, estimated or certified."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode

from atent.guard import ask
from atent.losses import cross_entropy
from atent.models import Normalize

# Of operations, as torch dispatches them: those whose first derivative jumps.
_KINKS = (
    "relu", "relu_", "leaky_relu", "leaky_relu_", "prelu", "_prelu_kernel", "rrelu", "rrelu_with_noise", "hardtanh",
    "hardtanh_", "hardswish", "hardswish_", "hardsigmoid", "hardsigmoid_", "threshold", "threshold_", "abs", "abs_",
    "clamp", "clamp_", "clamp_min", "clamp_min_", "clamp_max", "max", "amax", "maximum", "minimum", "sign",
    "max_pool2d_with_indices", "max_pool2d", "max_pool1d", "adaptive_max_pool2d", "floor", "round",
)  # fmt: skip

# Greatest |f'| and |f''|; the second is None where f' jumps.
_CURVES: dict[type[nn.Module], Callable[[Any], tuple[float, float | None]]] = {
    nn.Tanh: lambda m: (1.0, 4 / (3 * math.sqrt(3))),
    nn.Sigmoid: lambda m: (0.25, 1 / (6 * math.sqrt(3))),
    nn.Softplus: lambda m: (1.0, float(m.beta) / 4),
    nn.ReLU: lambda m: (1.0, None),
    nn.LeakyReLU: lambda m: (max(1.0, abs(float(m.negative_slope))), None),
}


@dataclass(frozen=True)
class Constants:
    """Lipschitz constants of the loss as a function of its input."""

    lipschitz: float
    """L: ||grad L|| is at most this."""
    smooth: float | None
    """beta: the gradient's own Lipschitz constant; None if there is none, or none is known."""
    certified: bool
    """Whether these are upper bounds; estimates are lower bounds."""
    how: str
    """Where they come from."""


# ---- certified ---------------------------------------------------------------------------------------------


def of_linear_softmax(weight: Tensor) -> dict[str, tuple[float, float]]:
    """(L, beta) of the cross-entropy of softmax(W x + b), W (classes, d), in closed form.

    ``norm``: L = sqrt(2) ||W||, beta = ||W||^2 / 2, by the operator norm of W. ``diameter``: with D the greatest
    distance between two rows of W, L = D and beta = D^2 / 4. The gradient is sum_k p_k (W_k - W_y), and the Hessian is
    the covariance of the rows under p, whose variance in any direction is at most a quarter of the squared range
    (Popoviciu); D is at most sqrt(2) ||W||, so these are never worse.
    """
    w = weight.detach().double()
    norm = _up(float(torch.linalg.matrix_norm(w, 2)))
    diameter = _up(float((w[:, None] - w[None]).square().sum(2).max().sqrt()))
    return {"norm": (math.sqrt(2) * norm, norm**2 / 2), "diameter": (diameter, diameter**2 / 4)}


def of_chain(model: nn.Module, shape: tuple[int, ...]) -> Constants:
    """Certified L, and beta if every layer is smooth, of the cross-entropy of a chain of layers on inputs of ``shape``.

    Products of layer norms: through an affine layer A the Lipschitz constant l of the features and s of their Jacobian
    grow by ||A||; through an activation with |f'| <= r and |f''| <= k they become r l and r s + k l m, where m bounds
    the change of one feature (the rows of A). A last linear layer is joined with the cross-entropy, as in
    `of_linear_softmax`.
    Convolutions are bounded on the torus that holds their padded input, over all frequencies.

    ValueError, naming the layer, for a network that is not a chain of Linear, Conv2d, Flatten, Normalize, Identity,
    Dropout, MaxPool2d without overlap, and the activations Tanh, Softplus, Sigmoid, ReLU, LeakyReLU.
    """
    layers = [(name, layer) for name, layer in _leaves(model) if not isinstance(layer, (nn.Identity, nn.Dropout))]
    if not layers:
        raise ValueError("the network has no layers")
    head = layers[-1][1]
    last = head if isinstance(head, nn.Linear) else None
    if last is not None:
        layers.pop()
    size = tuple(shape)
    # l: change of the features per change of the input; m: of any one of them; s: of their Jacobian
    l, m, s = 1.0, 1.0, 0.0  # noqa: E741
    smooth = True
    for name, layer in layers:
        if isinstance(layer, nn.Flatten):
            size = (math.prod(size),)
        elif isinstance(layer, (nn.Linear, nn.Conv2d, Normalize)):
            norm, row, size = _affine(name, layer, size)
            l, m, s = norm * l, min(row, norm) * l, norm * s  # noqa: E741
        elif isinstance(layer, nn.MaxPool2d):
            _disjoint(name, layer)
            size = (*size[:-2], *(side // _pair(layer.kernel_size)[i] for i, side in enumerate(size[-2:])))
            smooth = False
        elif type(layer) in _CURVES:
            first, second = _CURVES[type(layer)](layer)
            smooth = smooth and second is not None
            s = first * s + (second or 0.0) * m * l
            l, m = first * l, first * m  # noqa: E741
        else:
            raise ValueError(f"no bound is known for layer {name} ({type(layer).__name__})")
    if last is not None:
        slope, bend = of_linear_softmax(last.weight)["diameter"]
    else:
        slope, bend = math.sqrt(2), 0.5
    beta = _up(bend * l * l + slope * s) if smooth else None
    return Constants(_up(slope * l), beta, True, "products of layer norms")


def _leaves(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    if type(module) is nn.Sequential:
        for name, child in module.named_children():
            yield from _leaves(child, f"{prefix}.{name}" if prefix else name)
    else:
        yield prefix or type(module).__name__, module


def _affine(name: str, layer: nn.Module, size: tuple[int, ...]) -> tuple[float, float, tuple[int, ...]]:
    """Operator norm, greatest norm of a row, and the size of what comes out."""
    if isinstance(layer, nn.Linear):
        w = layer.weight.detach().double()
        return _up(float(torch.linalg.matrix_norm(w, 2))), _up(float(w.norm(dim=1).max())), (*size[:-1], len(w))
    if isinstance(layer, Normalize):
        scale = _up(float(1 / layer.std.double().min()))
        return scale, scale, size
    assert isinstance(layer, nn.Conv2d)
    if layer.groups != 1 or _pair(layer.dilation) != (1, 1) or layer.padding_mode != "zeros":
        raise ValueError(f"no bound is known for layer {name}: a convolution with groups, dilation or another padding")
    if isinstance(layer.padding, str):
        raise ValueError(f"no bound is known for layer {name}: give its padding as a number")
    w, stride, padding = layer.weight.detach().double(), _pair(layer.stride), _pair(layer.padding)
    out = tuple(
        (side + 2 * pad - k) // step + 1
        for side, pad, k, step in zip(size[-2:], padding, w.shape[2:], stride, strict=True)
    )
    norm = _up(convolution_norm(w, (size[-2], size[-1]), stride, (padding[0], padding[1])))
    return norm, _up(float(w.flatten(1).norm(dim=1).max())), (len(w), *out)


def convolution_norm(
    weight: Tensor, size: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]
) -> float:  # fmt: skip
    """An upper bound of the operator norm of a zero-padded convolution: the norm of the same on a torus.

    ``weight`` (out, in, h, w); ``size`` of the unpadded input. On a torus as large as the padded input, rounded up to
    the stride, no valid output wraps, so the convolution is a part of the circular one. That is diagonal in frequency;
    with a stride, those frequencies are joined which fall on the same one of the output.
    """
    sides = [-(-(side + 2 * pad) // step) * step for side, pad, step in zip(size, padding, stride, strict=True)]
    out, into = weight.shape[:2]
    # out of the kernel's order, which mirrors the frequencies and leaves the norm
    symbol = torch.fft.fft2(weight.double(), s=sides)  # (out, in, H, W)
    folded = symbol.reshape(out, into, stride[0], sides[0] // stride[0], stride[1], sides[1] // stride[1])
    joined = folded.permute(3, 5, 0, 1, 2, 4).reshape(-1, out, into * stride[0] * stride[1])
    gram = joined @ joined.mH
    return math.sqrt(float(torch.linalg.eigvalsh(gram)[:, -1].max()) / (stride[0] * stride[1]))


def _disjoint(name: str, layer: nn.MaxPool2d) -> None:
    kernel, stride = _pair(layer.kernel_size), _pair(layer.stride)
    if kernel != stride or _pair(layer.padding) != (0, 0) or _pair(layer.dilation) != (1, 1) or layer.ceil_mode:
        raise ValueError(f"no bound is known for layer {name}: a max-pooling with overlap or padding")


def _pair(value: int | tuple[int, ...]) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])


def _up(value: float) -> float:
    # An SVD in float64 is good to some 1e-14 of the norm.
    return value * (1 + 1e-9)


# ---- estimated ---------------------------------------------------------------------------------------------


def curvature(
    model: nn.Module, z: Tensor, y: Tensor, *, iterations: int = 30, seed: int = 0
) -> tuple[Tensor, Tensor, Tensor]:
    """(|eigenvalue| (n,), unit vectors (n, ...), input gradients) by power iteration on Hessian-vector products of each
    sample's cross-entropy at ``z``. The first is a lower bound of the Hessian's norm there, and so of beta.

    ValueError if a product is not finite. ``model`` must not couple samples.
    """
    rng = torch.Generator().manual_seed(seed)
    column = (-1, *[1] * (z.dim() - 1))
    with torch.enable_grad():
        point = z.detach().requires_grad_()
        (grad,) = torch.autograd.grad(cross_entropy(ask(model, point), y).sum(), point, create_graph=True)
        v = torch.randn(z.shape, generator=rng, dtype=z.dtype)
        found = torch.zeros(len(z), dtype=z.dtype)
        for _ in range(iterations):
            v = v / v.flatten(1).norm(dim=1).clamp_min(1e-300).view(column)
            if grad.requires_grad:
                (product,) = torch.autograd.grad((grad * v).sum(), point, retain_graph=True, allow_unused=True)
            else:
                product = None
            if product is None:
                # A gradient that does not depend on the input: no curvature at all.
                return found, v, grad.detach()
            size = product.flatten(1).norm(dim=1)
            if not bool(torch.isfinite(size).all()):
                bad = int((~torch.isfinite(size)).sum())
                raise ValueError(
                    f"{bad} of {len(z)} Hessian-vector products are not finite: the loss has no second derivative"
                    " there, or the weights or inputs are not finite"
                )
            found = torch.maximum(found, size)
            v = torch.where((size > 0).view(column), product, v)
    return found, v / v.flatten(1).norm(dim=1).clamp_min(1e-300).view(column), grad.detach()


def estimated(
    model: nn.Module, z: Tensor, y: Tensor, *, iterations: int = 30, seed: int = 0, chunk: int = 100
) -> Constants:
    """L and beta as the greatest that are seen at the points ``z``: lower bounds of the true ones."""
    found = [
        curvature(model, z[i : i + chunk], y[i : i + chunk], iterations=iterations, seed=seed + i)
        for i in range(0, len(z), chunk)
    ]
    beta = max(float(sizes.max()) for sizes, _, _ in found)
    slope = max(float(grad.flatten(1).norm(dim=1).max()) for _, _, grad in found)
    return Constants(slope, beta, False, f"maximum over {len(z)} points, {iterations} power iterations each")


def without_curvature(found: Constants) -> Constants:
    """The same for a network with kinks, whose second derivative does not capture the jumps."""
    return replace(found, smooth=None)


# ---- kinks -------------------------------------------------------------------------------------------------


class _Watch(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inside: list[str] = []
        self.found: dict[str, str] = {}

    def __torch_dispatch__(
        self, func: OpOverload, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        name = func.overloadpacket.__name__
        if name in _KINKS:
            self.found.setdefault(self.inside[-1] if self.inside else "the network", name)
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def kinks(model: nn.Module, x: Tensor) -> dict[str, str]:
    """{layer: operation} of those that make the network's derivative jump, as one forward of ``x`` meets them; the
    layer is the innermost module. Empty for a smooth network."""
    watch, hooks = _Watch(), []
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue  # takes no hooks: its operations go by the module around it
        label = name or type(module).__name__
        hooks.append(module.register_forward_pre_hook(lambda _m, _a, label=label: watch.inside.append(label)))
        hooks.append(module.register_forward_hook(lambda _m, _a, _o: watch.inside.pop() and None))
    try:
        with watch:
            ask(model, x)
    finally:
        for hook in hooks:
            hook.remove()
    return watch.found


def zoom(
    gradient: Callable[[Tensor], Tensor], a: Tensor, b: Tensor, halvings: int = 24
) -> tuple[list[float], list[float]]:
    """Lengths, and ||grad(a) - grad(b)|| / ||a - b||, of a segment that is halved ``halvings`` times, each time to the
    half whose gradient changes more. ``gradient``: points (m, ...) to gradients; ``a``, ``b`` (1, ...).

    A smooth function's quotients stay below beta. Across a kink the gradient jumps by as much however short the segment
    is, so they double at every halving, and no beta bounds them.
    """
    lengths, quotients = [], []
    ga, gb = gradient(a), gradient(b)
    for _ in range(halvings):
        middle = (a + b) / 2
        gm = gradient(middle)
        if float((gm - ga).norm()) >= float((gb - gm).norm()):
            b, gb = middle, gm
        else:
            a, ga = middle, gm
        length = float((b - a).norm())
        lengths.append(length)
        quotients.append(float((gb - ga).norm()) / length)
    return lengths, quotients
