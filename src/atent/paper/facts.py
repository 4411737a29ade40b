"""What the supplement's own settings imply: numbers that need no trained network, in closed form or by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atent.attacks import PGD, sampler
from atent.attacks.langevin import Sampler
from atent.certify.smoothing import draws_needed, largest_radius
from atent.data import DataSettings
from atent.data import load as load_data
from atent.methods import ATENT, PGDAT, TRADES, Method
from atent.models import build
from atent.optim import EntropySGD
from atent.paper.published import value
from atent.rng import Batch
from atent.sgld import effective_noise, noise_for
from atent.stats import interval
from atent.threat import Threat

DIM = 3 * 32 * 32
"""Values of one CIFAR-10 image."""
_WIDE = (-1e3, 1e3)


@dataclass(frozen=True)
class Fact:
    """A number that the settings imply, beside what is printed."""

    about: str
    """Which statement it belongs to."""
    printed: str
    """What the paper, or its authors' code, says."""
    values: dict[str, float]
    """Ours, by name."""


# ---- the chain -------------------------------------------------------------------------------------------


def noise_after(steps: int, step_size: float, pull: float, noise: float) -> float:
    """Standard deviation per value of the noise that ``steps`` steps leave, without projection and clamp.

    Each step adds N(0, s^2), s = noise sqrt(2 step_size), and the pull shrinks what was there by 1 - pull: the variance
    is s^2 (1 + r + .. + r^(steps - 1)), r = (1 - pull)^2.
    """
    return effective_noise(step_size, noise) * math.sqrt(_geometric((1 - pull) ** 2, steps))


def distance_after(steps: int, step_size: float, pull: float, start: float, *, aligned: bool) -> float:
    """||x^K - x|| after unit-gradient steps without noise, from a random direction at distance ``start``.

    ``aligned``: all gradients are one direction, as of a linear loss; otherwise each is at right angles to all that was
    before, the least that unit steps can go. The start is at right angles to all of them, as it nearly is in many
    dimensions.
    """
    rest = start * (1 - pull) ** steps
    walked = step_size * (_geometric(1 - pull, steps) if aligned else math.sqrt(_geometric((1 - pull) ** 2, steps)))
    return math.hypot(walked, rest)


def simulated(chain: Sampler, *, dim: int = DIM, samples: int = 50, aligned: bool = True, seed: int = 0) -> Tensor:
    """x^K - x (samples, dim) of the chain itself on a linear loss, or on one without a gradient (``aligned`` false)."""
    draws = Batch(torch.Generator().manual_seed(seed))
    x = torch.rand(samples, dim, generator=torch.Generator().manual_seed(seed + 1))
    x = x if chain.threat.box == (0.0, 1.0) else torch.zeros(samples, dim)
    grad = torch.zeros_like(x)
    if aligned:
        grad[:, 0] = 1.0
    z = chain.begin(x, draws)
    for k in range(chain.steps):
        z = chain.move(z, x, grad, k, draws)
    return z - x


def share_of_budget(steps: int, step: float, start: float = 1.0) -> float:
    """How far along the gradient of a linear loss l2 PGD comes, as a share of eps; ``step`` and ``start`` in eps.

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

    attack = PGD(Threat("l2", 1.0, _WIDE), steps=steps, step_size=step, start="cube", loss="margin")
    x = torch.zeros(samples, dim)
    x_adv = attack(Linear(), x, torch.zeros(samples, dtype=torch.int64), seed=seed)
    return float(x_adv[:, 0].double().mean())


def _geometric(ratio: float, terms: int) -> float:
    return float(terms) if ratio == 1 else (1 - ratio**terms) / (1 - ratio)


def _smoothing(box: tuple[float, float]) -> Sampler:
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
    """Natural and robust accuracy of a linear classifier on the half-moons, exactly, and what an attack counts that
    takes the classifier's answers for the labels.

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
        "natural": float((margin > 0).double().mean()),
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


# ---- all of them -------------------------------------------------------------------------------------------


def facts() -> dict[str, Fact]:
    """Every number, by key; some seconds of one core."""
    return {key: make() for key, make in FACTS.items()}


def _printed(table: str, row: str, column: str) -> float:
    found = value(table, row, column)
    assert found is not None
    return found.value


def _noise() -> Fact:
    return Fact(
        "noise of one step, sqrt(2 eta') eps, at eps 0.577",
        "0.12, with eta' = 0.5 eps2 / K in one paragraph and 0.02 in the next",
        {
            "eta' 0.02175 (0.5 eps2 / 10)": effective_noise(0.02175, 0.577),
            "eta' 0.02": effective_noise(0.02, 0.577),
            "eta' 0.010875 (K = 20, the script)": effective_noise(0.010875, 0.577),
            "eps for 0.12 at eta' 0.02": noise_for(0.02, 0.12),
        },
    )


def _accumulated() -> Fact:
    chain = _smoothing(_WIDE)
    sd = noise_after(chain.steps, chain.step_size, chain.pull, chain.noise)
    clamped = simulated(_smoothing((0.0, 1.0)), aligned=False)
    return Fact(
        "noise that training for smoothing adds up to over its 10 steps",
        "0.12, the noise of one step",
        {
            "standard deviation per value": sd,
            "times that of one step": sd / chain.effective_noise,
            "after the clamp, values uniform in [0, 1]": float(clamped.std()),
        },
    )


def _distance() -> Fact:
    values = {}
    for pull in (0.05, 0.08):
        values[f"gamma {pull}, gradients aligned"] = distance_after(10, 0.2, pull, 1.0, aligned=True)
        values[f"gamma {pull}, gradients at right angles"] = distance_after(10, 0.2, pull, 1.0, aligned=False)
        values[f"gamma {pull}, in the limit of many steps"] = 0.2 / pull
    return Fact("||X'^K - X|| at eps2 = 1, K = 10, eta' = 0.2, without noise", "about eps2 = 1", values)


def _noisy_distance() -> Fact:
    free, clamped = (simulated(_smoothing(box)).double().norm(dim=1) for box in (_WIDE, (0.0, 1.0)))
    return Fact(
        "||X'^K - X|| of the network for smoothing, 3 x 32 x 32 values",
        "about eps2 = 0.435",
        {
            "without the clamp": float(free.mean()),
            "with it, values uniform in [0, 1]": float(clamped.mean()),
            "times eps2, with it": float(clamped.mean()) / 0.435,
        },
    )


def _temperature() -> Fact:
    return Fact(
        "temperature of the sampled density, exp(-F / T), T = eps^2",
        "exp(-F), temperature 1",
        {
            "T at eps 0.001": 0.001**2,
            "T at eps 0.577": 0.577**2,
            "sd per value that T = 1 and gamma 0.05 leave without a loss": 1 / math.sqrt(0.05),
            "gamma for a radius of 1 at T = 1, 3 x 32 x 32 values": DIM / 1.0**2,
        },
    )


def _gamma() -> Fact:
    return Fact(
        "gamma of Eq. 7 that the code's 0.05, which no step size multiplies, stands for: 0.05 / eta'",
        "0.05 (0.08 in one sentence)",
        {"eta' 0.2": 0.05 / 0.2, "eta' 0.02175": 0.05 / 0.02175},
    )


def _weights() -> Fact:
    chain = ATENT(Threat("linf", 0.031), 10, alpha=0.9)
    c = chain.weights()[1:]
    return Fact(
        "share of each iterate's loss in the average, alpha 0.9, K = 10",
        "an average over the chain",
        {
            "last": c[-1], "second to last": c[-2], "third to last": c[-3], "sum": sum(c),
            "variance within the chain that it sees": 1 - sum(v * v for v in c),
        },
    )  # fmt: skip


def _budget() -> Fact:
    start = math.sqrt(DIM / 3)
    return Fact(
        "share of eps2 that PGD-10 gains along the gradient of a linear loss",
        "step 2.5 eps2 / 10 in the text, 0.5 eps2 / 10 in the notebook that printed 64.55",
        {
            "step 2.5 eps2 / 10": share_of_budget(10, 0.25, start),
            "step 0.5 eps2 / 10": share_of_budget(10, 0.05, start),
            "radius that the shorter step reaches of 0.435": 0.435 * share_of_budget(10, 0.05, start),
            "step 2.5 eps2 / 10, by the attack": attacked(10, 0.25),
            "step 0.5 eps2 / 10, by the attack": attacked(10, 0.05),
        },
    )


def _certificate() -> Fact:
    return Fact(
        "what sigma 0.12 and alpha 0.001 certify",
        "certificates at l2 0.435; 1,000 draws in the code",
        {
            "draws that 0.435 needs, all agreeing": draws_needed(0.435, 0.12, 0.001),
            **{f"largest radius of {n:,} draws": largest_radius(n, 0.001, 0.12) for n in (1_000, 10_000, 100_000)},
            "l2 radius of linf 2/255 on 3 x 32 x 32 values": 2 / 255 * math.sqrt(DIM),
        },
    )


def _radii() -> Fact:
    return Fact(
        "radii as used", "8/255; 2/255",
        {"0.031 in 1/255": 0.031 * 255, "SmoothAdv's 0.431 as a share of 0.435": 0.431 / 0.435},
    )  # fmt: skip


def _drift() -> Fact:
    return Fact(
        "distance of iterates that are projected at the last step only, before that step",
        "eps 0.031 (linf, CIFAR-10); eps 1 (two classes in the plane)",
        {"linf CIFAR-10": 0.031 + 9 * 0.007, "in the plane": 39 * 0.1},
    )


def _cost() -> Fact:
    threat = Threat("linf", 0.1)
    ours: dict[str, tuple[Method, Callable[[int], tuple[int, int]]]] = {
        "ATENT": (ATENT(threat, 10), lambda k: (2 * k + 1, 2 * k)),
        "TRADES": (TRADES(threat, 10), lambda k: (2 * k + 3, k + 3)),
        "PGD": (PGDAT(threat, 10), lambda k: (k + 1, k + 1)),
    }
    values: dict[str, float] = {}
    for name, (method, _) in ours.items():
        forwards, backwards = passes(method)
        values |= {f"{name}, forwards": forwards, f"{name}, backwards": backwards}
    for name in ("ATENT", "TRADES"):
        forwards, backwards = ours[name][1](10)
        values |= {f"{name} as the authors wrote it, forwards": forwards, f"{name} as written, backwards": backwards}
    five = passes(ATENT(threat, 5))
    return Fact(
        "passes per batch at K = 10",
        "ATENT, TRADES and PGD cost alike",
        {**values, "ATENT, K = 10 by K = 5, forwards": values["ATENT, forwards"] / five[0]},
    )


def _architecture() -> Fact:
    with torch.device("meta"):
        large, small = (sum(p.numel() for p in build(name).parameters()) for name in ("resnet18", "resnet20"))
    return Fact(
        "the l2 network: the notebook that printed 72.1 and 64.55 loads a ResNet-18",
        "ResNet-20",
        {"parameters of ResNet-18": large, "parameters of ResNet-20": small, "times as many": large / small},
    )


def _samples() -> Fact:
    values: dict[str, float] = {}
    for text in (57.23, 59.69, 65.12):
        low, high = interval(round(100 * text), 10_000)
        values |= {f"{text}, lower end": 100 * low, f"{text}, upper end": 100 * high}
    return Fact("95 % interval of one figure on 10,000 test images", "one run each, no interval", values)


def _labels() -> Fact:
    return Fact(
        "an attack that takes the model's answers for the labels",
        "TRADES 63.07 under PGD-20 with 10 restarts, without labels; 53-56 elsewhere",
        by_predicted_labels(),
    )


def _walk() -> Fact:
    return Fact(
        "Entropy-SGD with L = 0 against Nesterov SGD, greatest difference of a weight after 20 steps",
        "5 Langevin steps in the text, L = 0 in the notebook",
        {"difference": walk_of_no_steps()},
    )


def _vacuous() -> Fact:
    return Fact(
        "the l2 TRADES baseline on MNIST, trained in linf at eps 2 for want of an argument",
        "l2, eps 2",
        {"linf diameter of [0, 1]^784": 1.0, "l2 diameter of [0, 1]^784": math.sqrt(784)},
    )


def _epochs() -> Fact:
    return Fact(
        "epochs that the released MNIST linf notebook trains, range(41, 31)", "99.45 / 96.4 after 23 of 30 epochs",
        {"epochs": len(range(41, 31))},
    )  # fmt: skip


def _times() -> Fact:
    s4 = {
        (row, norm): _printed("table-s4", row, norm)
        for row in ("atent-10", "atent-5", "trades", "pgdat")
        for norm in ("l2", "linf")
    }
    return Fact(
        "ratios of the printed seconds per epoch",
        "linear in K; between PGD and TRADES",
        {
            "ATENT, K = 10 by K = 5, l2": s4["atent-10", "l2"] / s4["atent-5", "l2"],
            "ATENT, K = 10 by K = 5, linf": s4["atent-10", "linf"] / s4["atent-5", "linf"],
            "ATENT by PGD, l2": s4["atent-10", "l2"] / s4["pgdat", "l2"],
            "ATENT by PGD, linf": s4["atent-10", "linf"] / s4["pgdat", "linf"],
            "TRADES, l2 by linf": s4["trades", "l2"] / s4["trades", "linf"],
        },
    )


FACTS: dict[str, Callable[[], Fact]] = {
    "noise": _noise, "accumulated": _accumulated, "distance": _distance, "noisy-distance": _noisy_distance,
    "temperature": _temperature, "gamma": _gamma, "weights": _weights, "budget": _budget,
    "certificate": _certificate, "radii": _radii, "drift": _drift, "cost": _cost, "architecture": _architecture,
    "samples": _samples, "labels": _labels, "walk": _walk, "vacuous": _vacuous, "epochs": _epochs, "times": _times,
}  # fmt: skip
"""By key, what computes it."""
