"""Checks of two remarks of the supplement: PGD as ATENT without noise (T11), and per-batch chains (T13)."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from atent.attacks.langevin import sampler
from atent.guard import ask
from atent.paper.theory.density import loss_field
from atent.paper.theory.rows import Row, agree, skipped
from atent.rng import Batch
from atent.threat import Box, Threat

SOFT = "PGD whose projection is the soft anchor term, x + (1 - eta' gamma)(x' - x), is ATENT without noise"
HARD = "PGD with projection onto the l2 ball is ATENT without noise (B.4)"
BATCHES = "chains batch by batch sample the same p as chains over all data (B.3)"


def without_noise(
    model: nn.Module, x: Tensor, y: Tensor, *, gamma: float, eps: float, box: Box, steps: int = 10
) -> list[Row]:
    """T11: the published variant's chain, noise 0, beside PGD written out, with the soft anchor term and the hard ball;
    from x itself, ``gamma`` in the paper's scaling, both clamped to the box."""
    threat = Threat("l2", eps, box)
    eta = min(2 * eps / steps, 0.9 / gamma)
    chain = sampler(
        threat, variant="published", steps=steps, step_size=eta, gamma=gamma, noise=0.0, start="zero"
    )  # fmt: skip
    field = loss_field(model, y)
    streams = Batch(torch.Generator())
    walked = chain.begin(x, streams)
    soft, hard = x.clone(), x.clone()
    for k in range(steps):
        walked = chain.move(walked, x, field(walked)[1], k, streams)
        soft = threat.clamp(x + (1 - eta * gamma) * (soft - x) + eta * field(soft)[1])
        ahead = hard + eta * field(hard)[1] - x
        length = ahead.flatten(1).norm(dim=1).clamp_min(1e-300).view(-1, *[1] * (x.dim() - 1))
        hard = threat.clamp(x + ahead * (eps / length).clamp(max=1.0))
    sizes = [(part - x).flatten(1).norm(dim=1).median() for part in (walked, hard)]
    case = f"{len(x)} images, {steps} steps of {eta:.4g} with raw gradients, gamma {gamma:.4g}, eps {eps:g}, no noise"
    reach = f"median ||x' - x|| {float(sizes[0]):.4f} under the anchor term, {float(sizes[1]):.4f} under the projection"
    return [
        agree(
            "T11", SOFT, case, float((walked - soft).abs().max()), 1e-12, n=len(x), basis="exact",
            what="largest difference of a pixel",
        ),
        agree(
            "T11", HARD, case, float((walked - hard).flatten(1).norm(dim=1).median()), 1e-12, n=len(x), basis="exact",
            what="median ||difference||", reason=reach,
        ),
    ]  # fmt: skip


def batches(
    model: nn.Module, x: Tensor, y: Tensor, *, gamma: float, steps: int = 10, step_size: float = 0.1
) -> list[Row]:
    """T13: the same chain for one image among different others, in eval mode and with train-mode batch-norm.

    A network without batch-norm gets it for the second: layers that change nothing in eval mode (`with_batchnorm`).
    """
    half = len(x) // 2
    if half < 2:
        return [skipped("T13", BATCHES, "one image among others", "it needs four images at least")]
    case = (
        f"one image among {half} and among {half} others, {steps} noise-free steps of {step_size:g}, gamma {gamma:.4g}"
    )
    out = [
        agree(
            "T13", f"{BATCHES}: samples independent given the weights", f"this network in eval mode: {case}",
            _moved(model, x, y, half, gamma, steps, step_size), 1e-9, n=half, basis="exact",
            what="||difference of the ends|| / ||x' - x||", reason="exact but for the rounding of another batch",
        )
    ]  # fmt: skip
    coupled = copy.deepcopy(model)
    normed = [m for m in coupled.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if not normed:
        coupled = with_batchnorm(model, x)
        normed = [m for m in coupled.modules() if isinstance(m, nn.BatchNorm2d)]
        if not normed:
            return [
                *out,
                skipped("T13", f"{BATCHES}: train-mode batch-norm", case, "no convolution to normalise after"),
            ]
        whose = "the same network with batch-norm after each convolution, which changes nothing in eval mode"
    else:
        whose = "this network"
    still = _moved(coupled, x, y, half, gamma, steps, step_size)
    for layer in normed:
        layer.train()
    off = _moved(coupled, x, y, half, gamma, steps, step_size)
    out.append(
        agree(
            "T13", f"{BATCHES}: train-mode batch-norm", f"{whose}, in train mode: {case}", off, 1e-9, n=half,
            basis="exact", what="||difference of the ends|| / ||x' - x||",
            reason=f"batch statistics couple the samples; in eval mode the same network moves by {still:.1e}",
        )
    )  # fmt: skip
    return out


def _moved(
    model: nn.Module, x: Tensor, y: Tensor, half: int, gamma: float, steps: int, step_size: float
) -> float:  # fmt: skip
    """Where image 0's chain ends among the first half of the batch and among the second, apart; relative."""
    second = torch.cat([torch.zeros(1, dtype=torch.long), torch.arange(half + 1, min(2 * half, len(x)))])
    ends = []
    for rows in (torch.arange(half), second):
        z, field = x[rows], loss_field(model, y[rows])
        for _ in range(steps):
            z = z + step_size * (field(z)[1] + gamma * (x[rows] - z))
        ends.append(z[0])
    return float((ends[1] - ends[0]).norm() / (ends[0] - x[0]).norm().clamp_min(1e-300))


def with_batchnorm(model: nn.Module, x: Tensor) -> nn.Module:
    """A copy with batch-norm after each convolution, whose weights undo its stored statistics (those of ``x``): in eval
    mode the same function, in train mode one that couples samples."""
    out = copy.deepcopy(model).eval()
    seen: dict[str, Tensor] = {}
    hooks = [
        m.register_forward_hook(lambda _m, _a, o, name=name: seen.__setitem__(name, o.detach()))
        for name, m in out.named_modules()
        if isinstance(m, nn.Conv2d)
    ]
    with torch.no_grad():
        ask(out, x)
    for hook in hooks:
        hook.remove()
    for name, values in seen.items():
        layer = nn.BatchNorm2d(values.shape[1]).to(values.dtype).eval().requires_grad_(False)
        var, centre = torch.var_mean(values, (0, 2, 3), correction=0)
        assert layer.running_mean is not None
        assert layer.running_var is not None
        layer.running_mean.copy_(centre)
        layer.running_var.copy_(var)
        layer.bias.copy_(centre)
        layer.weight.copy_((var + layer.eps).sqrt())
        parent = out.get_submodule(name.rpartition(".")[0])
        setattr(parent, name.rpartition(".")[2], nn.Sequential(out.get_submodule(name), layer))
    return out
