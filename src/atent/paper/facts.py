"""Consequences of the supplement's settings: numbers that need no trained network, in closed form or by simulation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from atent.certify.limits import largest_radius, samples_needed
from atent.methods import ATENT, PGDAT, TRADES, Method
from atent.models import build
from atent.paper.derivations import (
    DIM,
    WIDE,
    attacked,
    by_predicted_labels,
    distance_after,
    noise_after,
    passes,
    share_of_budget,
    simulated,
    smoothing_chain,
    walk_of_no_steps,
)  # fmt: skip
from atent.paper.published import value
from atent.sgld import effective_noise, noise_for
from atent.stats import interval
from atent.threat import Threat


@dataclass(frozen=True)
class Fact:
    """A number that follows from the settings, and the printed one."""

    about: str
    """The statement that it belongs to."""
    printed: str
    """The value in the paper or its authors' code."""
    values: dict[str, float]
    """Ours, by name."""


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
    chain = smoothing_chain(WIDE)
    sd = noise_after(chain.steps, chain.step_size, chain.anchor_weight, chain.noise)
    clamped = simulated(smoothing_chain((0.0, 1.0)), aligned=False)
    return Fact(
        "noise that training for smoothing adds up to over its 10 steps",
        "0.12, the noise of one step",
        {
            "standard deviation per value": sd,
            "ratio to one step": sd / chain.effective_noise,
            "after the clamp, values uniform in [0, 1]": float(clamped.std()),
        },
    )


def _distance() -> Fact:
    values = {}
    for weight in (0.05, 0.08):
        values[f"gamma {weight}, gradients aligned"] = distance_after(10, 0.2, weight, 1.0, aligned=True)
        values[f"gamma {weight}, orthogonal gradients"] = distance_after(10, 0.2, weight, 1.0, aligned=False)
        values[f"gamma {weight}, in the limit of many steps"] = 0.2 / weight
    return Fact("||X'^K - X|| at eps2 = 1, K = 10, eta' = 0.2, without noise", "about eps2 = 1", values)


def _noisy_distance() -> Fact:
    free, clamped = (simulated(smoothing_chain(box)).double().norm(dim=1) for box in (WIDE, (0.0, 1.0)))
    return Fact(
        "||X'^K - X|| of the network for smoothing, 3 x 32 x 32 values",
        "about eps2 = 0.435",
        {
            "without the clamp": float(free.mean()),
            "clamped, values uniform in [0, 1]": float(clamped.mean()),
            "ratio to eps2, clamped": float(clamped.mean()) / 0.435,
        },
    )


def _temperature() -> Fact:
    return Fact(
        "temperature of the sampled density, exp(-F / T), T = eps^2",
        "exp(-F), temperature 1",
        {
            "T at eps 0.001": 0.001**2,
            "T at eps 0.577": 0.577**2,
            "standard deviation per value at T = 1, gamma 0.05 and zero loss": 1 / math.sqrt(0.05),
            "gamma for a radius of 1 at T = 1, 3 x 32 x 32 values": DIM / 1.0**2,
        },
    )


def _gamma() -> Fact:
    return Fact(
        "gamma of Eq. 7 that corresponds to the code's 0.05, which no step size multiplies: 0.05 / eta'",
        "0.05 (0.08 in one sentence)",
        {"eta' 0.2": 0.05 / 0.2, "eta' 0.02175": 0.05 / 0.02175},
    )


def _weights() -> Fact:
    chain = ATENT(Threat("linf", 0.031), 10, alpha=0.9)
    c = chain.weights()[1:]
    return Fact(
        "weight of each iterate's loss in the average, alpha 0.9, K = 10",
        "an average over the chain",
        {
            "last": c[-1], "second to last": c[-2], "third to last": c[-3], "sum": sum(c),
            "share of the variance within the chain": 1 - sum(v * v for v in c),
        },
    )  # fmt: skip


def _budget() -> Fact:
    start = math.sqrt(DIM / 3)
    return Fact(
        "progress of PGD-10 along the gradient of a linear loss, as a share of eps2",
        "step 2.5 eps2 / 10 in the text, 0.5 eps2 / 10 in the notebook that printed 64.55",
        {
            "step 2.5 eps2 / 10": share_of_budget(10, 0.25, start),
            "step 0.5 eps2 / 10": share_of_budget(10, 0.05, start),
            "radius that the shorter step reaches at 0.435": 0.435 * share_of_budget(10, 0.05, start),
            "step 2.5 eps2 / 10, by the attack": attacked(10, 0.25),
            "step 0.5 eps2 / 10, by the attack": attacked(10, 0.05),
        },
    )


def _certificate() -> Fact:
    return Fact(
        "what sigma 0.12 and alpha 0.001 certify",
        "certificates at l2 0.435; 1,000 samples in the code",
        {
            "samples needed at 0.435 if all agree": samples_needed(0.435, 0.12, 0.001),
            **{f"largest radius of {n:,} samples": largest_radius(n, 0.001, 0.12) for n in (1_000, 10_000, 100_000)},
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
        values |= {f"{name} as released, forwards": forwards, f"{name} as released, backwards": backwards}
    five = passes(ATENT(threat, 5))
    return Fact(
        "passes per batch at K = 10",
        "ATENT, TRADES and PGD cost alike",
        {**values, "ATENT, K = 10 / K = 5, forwards": values["ATENT, forwards"] / five[0]},
    )


def _architecture() -> Fact:
    with torch.device("meta"):
        large, small = (sum(p.numel() for p in build(name).parameters()) for name in ("resnet18", "resnet20"))
    return Fact(
        "the l2 network: the notebook that printed 72.1 and 64.55 loads a ResNet-18",
        "ResNet-20",
        {"parameters of ResNet-18": large, "parameters of ResNet-20": small, "ratio": large / small},
    )


def _samples() -> Fact:
    values: dict[str, float] = {}
    for text in (57.23, 59.69, 65.12):
        low, high = interval(round(100 * text), 10_000)
        values |= {f"{text}, lower end": 100 * low, f"{text}, upper end": 100 * high}
    return Fact("95 % interval of one figure on 10,000 test images", "one run each, no interval", values)


def _labels() -> Fact:
    return Fact(
        "an attack that uses the model's predictions as labels",
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
        "the l2 TRADES baseline on MNIST, trained in linf at eps 2 because an argument is missing",
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
            "ATENT, K = 10 / K = 5, l2": s4["atent-10", "l2"] / s4["atent-5", "l2"],
            "ATENT, K = 10 / K = 5, linf": s4["atent-10", "linf"] / s4["atent-5", "linf"],
            "ATENT / PGD, l2": s4["atent-10", "l2"] / s4["pgdat", "l2"],
            "ATENT / PGD, linf": s4["atent-10", "linf"] / s4["pgdat", "linf"],
            "TRADES, l2 / linf": s4["trades", "l2"] / s4["trades", "linf"],
        },
    )


FACTS: dict[str, Callable[[], Fact]] = {
    "noise": _noise, "accumulated": _accumulated, "distance": _distance, "noisy-distance": _noisy_distance,
    "temperature": _temperature, "gamma": _gamma, "weights": _weights, "budget": _budget,
    "certificate": _certificate, "radii": _radii, "drift": _drift, "cost": _cost, "architecture": _architecture,
    "samples": _samples, "labels": _labels, "walk": _walk, "vacuous": _vacuous, "epochs": _epochs, "times": _times,
}  # fmt: skip
"""The function that computes each fact, by key."""
