"""Consequences of the supplement's settings for chains, attacks, costs and evaluation, in closed form or simulated."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from atent.attacks import PGD, sampler
from atent.attacks.langevin import Sampler
from atent.data import DataSettings
from atent.data import load as load_data
from atent.methods import Method
from atent.models import build
from atent.optim import EntropySGD
from atent.rng import Batch
from atent.sgld import effective_noise
from atent.threat import Threat

DIM = 3 * 32 * 32
"""Values of one CIFAR-10 image."""
WIDE = (-1e3, 1e3)


# ---- the chain -------------------------------------------------------------------------------------------


def noise_after(steps: int, step_size: float, weight: float, noise: float) -> float:
    """Standard deviation per value of the noise that ``steps`` steps leave, without projection and clamp.

    Each step adds N(0, s^2), s = noise sqrt(2 step_size), and the anchor term shrinks what was there by 1 - weight: the
    variance is s^2 (1 + r + .. + r^(steps - 1)), r = (1 - weight)^2.
    """
    return effective_noise(step_size, noise) * math.sqrt(_geometric((1 - weight) ** 2, steps))


def distance_after(steps: int, step_size: float, weight: float, start: float, *, aligned: bool) -> float:
    """||x^K - x|| after unit-gradient steps without noise, from a random direction at distance ``start``.

    ``aligned``: all gradients are one direction, as of a linear loss; otherwise each is at right angles to all that was
    before, the least that unit steps can go. The start is at right angles to all of them, as it nearly is in many
    dimensions.
    """
    rest = start * (1 - weight) ** steps
    walked = step_size * (_geometric(1 - weight, steps) if aligned else math.sqrt(_geometric((1 - weight) ** 2, steps)))
    return math.hypot(walked, rest)


def simulated(chain: Sampler, *, dim: int = DIM, samples: int = 50, aligned: bool = True, seed: int = 0) -> Tensor:
    """x^K - x (samples, dim) of the chain itself on a linear loss, or on one without a gradient (``aligned`` false)."""
    streams = Batch(torch.Generator().manual_seed(seed))
    x = torch.rand(samples, dim, generator=torch.Generator().manual_seed(seed + 1))
    x = x if chain.threat.box == (0.0, 1.0) else torch.zeros(samples, dim)
    grad = torch.zeros_like(x)
    if aligned:
        grad[:, 0] = 1.0
    z = chain.begin(x, streams)
    for k in range(chain.steps):
        z = chain.move(z, x, grad, k, streams)
    return z - x


def share_of_budget(steps: int, step: float, start: float = 1.0) -> float:
    """Progress of l2 PGD along the gradient of a linear loss, as a share of eps; ``step`` and ``start`` in eps.

    The start lies at right angles to the gradient, as a random one nearly does in many dimensions. After each step the
    point is brought back to the sphere, which takes from both parts alike.
    """
    along, across = 0.0, start
    for _ in range(steps):
        along += step
        norm = math.hypot(along, across)
        if norm > 1:
            along, across = along / norm, across / norm
    return along


def attacked(steps: int, step: float, *, dim: int = DIM, samples: int = 50, seed: int = 0) -> float:
    """The mean of the same share, by the PGD attack itself, from its published start in the cube."""

    class Linear(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([-x[:, 0], x[:, 0]], 1)

    attack = PGD(Threat("l2", 1.0, WIDE), steps=steps, step_size=step, start="cube", loss="margin")
    x = torch.zeros(samples, dim)
    x_adv = attack(Linear(), x, torch.zeros(samples, dtype=torch.int64), seed=seed)
    return float(x_adv[:, 0].double().mean())


def _geometric(ratio: float, terms: int) -> float:
    return float(terms) if ratio == 1 else (1 - ratio**terms) / (1 - ratio)


def smoothing_chain(box: tuple[float, float]) -> Sampler:
    """The chain that trains the supplement's network for smoothing."""
    return sampler(Threat("l2", 0.435, box), steps=10, step_size=0.02175, gamma=0.05, noise=0.577)


# ---- costs -----------------------------------------------------------------------------------------------


def passes(method: Method, shape: tuple[int, ...] = (2,)) -> tuple[int, int]:
    """Forwards and backwards of one batch, counted on a small network."""
    model = build("two_class", classes=2, shape=shape)
    counts = [0, 0]

    def back(grad: Tensor) -> None:
        counts[1] += 1

    def seen(module: nn.Module, inputs: Any, out: Tensor) -> None:
        counts[0] += 1
        if out.requires_grad:
            out.register_hook(back)

    model.register_forward_hook(seen)
    x, y = torch.tensor([[0.2, 0.7], [0.6, 0.4]]), torch.tensor([0, 1])
    with torch.random.fork_rng(devices=[]):
        method.backward(model, x, y, rng=torch.Generator().manual_seed(0))
    return counts[0], counts[1]


# ---- mistakes of evaluation --------------------------------------------------------------------------------


def by_predicted_labels(eps: float = 0.2) -> dict[str, float]:
    """Exact clean and robust accuracy of a linear classifier on the half-moons, and the count of an attack that uses
    the classifier's predictions as labels.

    The classifier is least squares on the training points. Under linf eps its margin y f(x) falls by eps ||w||_1 for
    the true label; an attack on the predicted label pushes a wrong point towards its true class, and it counts as
    robust where it gets there.
    """
    data = load_data(DataSettings("moons"))
    x, y = (t.double() for t in data.train.batch(range(len(data.train))))
    ones = torch.cat([x, torch.ones(len(x), 1, dtype=torch.float64)], 1)
    w = torch.linalg.lstsq(ones, (2 * y - 1)[:, None]).solution[:, 0]
    x, y = (t.double() for t in data.test.batch(range(len(data.test))))
    margin = (2 * y - 1) * (x @ w[:2] + w[2])
    reach = eps * float(w[:2].abs().sum())
    return {
        "clean": float((margin > 0).double().mean()),
        "robust, true labels": float((margin > reach).double().mean()),
        "robust, predicted labels": float(((margin > reach) | ((margin <= 0) & (margin > -reach))).double().mean()),
    }


def walk_of_no_steps(steps: int = 20) -> float:
    """Greatest difference between the weights of Entropy-SGD with no Langevin steps and of Nesterov SGD."""
    ends = []
    for make in (
        lambda p: EntropySGD(p, 0.01, momentum=0.9, nesterov=True, inner_steps=0),
        lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True),
    ):
        w = nn.Parameter(torch.linspace(-1, 1, 8, dtype=torch.float64))
        optimizer = make([w])
        for _ in range(steps):

            def closure(w: nn.Parameter = w) -> Tensor:
                w.grad = None
                loss = (w**4).sum() + w.cos().sum()
                loss.backward()
                return loss

            optimizer.step(closure)
        ends.append(w.detach())
    return float((ends[0] - ends[1]).abs().max())
