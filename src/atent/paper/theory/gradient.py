"""The gradients of the two objectives (T4, T6) and the bound (T5), by quadrature on small problems."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from atent.paper.theory.density import Entropic
from atent.paper.theory.quadrature import (
    Grid,
    Loss,
    Moments,
    central,
    data_entropy,
    free_energy,
    moments,
    probabilities,
)
from atent.paper.theory.rows import Row, agree, bounded

UPDATE = "ATENT's update E[grad L] is the gradient of the free energy T log Z_T(w)"
EXACT = "grad L_DE = E[grad L] + Cov(L, grad L) / T"
PRINTED = "grad L_DE = E[grad L (1 + L)], as the supplement prints it"
BOUND = "||grad L_DE|| <= Lbar (R + 1) where 0 <= L <= R and ||grad L|| <= Lbar"
SHARPENED = "||grad L_DE|| <= Lbar (1 + R/2)"
LEAST = "||grad L_DE|| <= Lbar (a + 1/(4a)) for a = R/(2T) >= 1/2, and Lbar below: the least such bound"
GIBBS = "T log Z = max over q of E_q[L - gamma/2 ||x' - x||^2] + T H(q), reached by p alone"


@dataclass(frozen=True, eq=False)
class Problem:
    """A loss in few dimensions, which can be integrated."""

    name: str
    loss: Loss
    w: Tensor
    x: Tensor
    lipschitz: float
    """Lipschitz constant of the loss in x' at ``w``; determines the grid."""


def logistic(w: Tensor, points: Tensor) -> Tensor:
    """log(1 + exp(-(w_0 x' + w_1))) on the line."""
    return F.softplus(-(points[:, 0] * w[0] + w[1]))


def softmax3(w: Tensor, points: Tensor) -> Tensor:
    """Cross-entropy of class 0 for softmax(W x') with three classes in the plane; 6 weights."""
    z = points @ w.view(2, 3)
    return z.logsumexp(1) - z[:, 0]


def tanh_net(w: Tensor, points: Tensor) -> Tensor:
    """Log-loss of a network with four tanh units in the plane; 17 weights."""
    hidden = torch.tanh(points @ w[:8].view(2, 4) + w[8:12])
    return F.softplus(-(hidden @ w[12:16] + w[16]))


def problems(seed: int = 0) -> list[Problem]:
    """A logistic loss on the line, a linear-softmax and a small tanh network in the plane."""
    rng = torch.Generator().manual_seed(seed)

    def draw(n: int, scale: float) -> Tensor:
        return scale * torch.randn(n, generator=rng, dtype=torch.float64)

    line = torch.tensor([1.7, -0.4], dtype=torch.float64)
    plane, net = draw(6, 1.0), draw(17, 1.0)
    return [
        Problem("logistic loss, 1-D", logistic, line, torch.tensor([0.6], dtype=torch.float64), 1.7),
        Problem("linear-softmax, 2-D", softmax3, plane, draw(2, 0.7), float(plane.norm()) * math.sqrt(2)),
        Problem("tanh network, 2-D", tanh_net, net, draw(2, 0.7), float(net[:8].norm() * net[12:16].norm())),
    ]


def identities(density: Entropic, seed: int = 0) -> list[Row]:
    """T4 and T6 at one gamma and temperature: each formula against central differences of its own objective."""
    out = []
    where = f"gamma {density.gamma:g}, T {density.temperature:g}"
    for problem in problems(seed):
        grid = Grid.around(problem.x, density, problem.lipschitz)
        w, loss = problem.w, problem.loss
        m = moments(loss, w, density, grid)
        case = f"{problem.name}, {where}: quadrature against central differences"
        n = len(grid.points)
        free = central(lambda v: free_energy(loss, v, density, grid), w)  # noqa: B023
        entropy = central(lambda v: data_entropy(loss, v, density, grid), w)  # noqa: B023
        fine = Grid.around(problem.x, density, problem.lipschitz, points=2 * round(n ** (1 / problem.x.numel())) - 1)
        away = abs(float(free_energy(loss, w, density, fine) - free_energy(loss, w, density, grid)))
        out.append(
            agree(
                "T6", "T log Z by quadrature is right", f"{problem.name}, {where}: the grid against one twice as fine",
                away, 1e-8, n=n, what="absolute difference",
            )
        )  # fmt: skip
        out.append(agree("T6", UPDATE, case, off(m.plain(), free), 1e-6, n=n))
        out.append(agree("T4", EXACT, case, off(m.exact(density.temperature), entropy), 1e-6, n=n))
        out.append(agree("T4", PRINTED, case, off(m.printed(), entropy), 1e-6, n=n))
    return out


def off(found: Tensor, true: Tensor) -> float:
    """||found - true|| / ||true||."""
    return float((found - true).norm() / true.norm())


def shifts(density: Entropic, c: float = 1.0, seed: int = 0) -> list[Row]:
    """L -> L + c moves L_DE by c and leaves its gradient: which formulas know it."""
    claims = {
        "exact": f"{EXACT}: unchanged by L -> L + c",
        "printed": f"{PRINTED}: unchanged by L -> L + c",
    }
    worst = dict.fromkeys(claims, 0.0)
    predicted = 0.0
    n = 0
    for problem in problems(seed):
        grid = Grid.around(problem.x, density, problem.lipschitz)
        n += len(grid.points)
        before, after = (moments(problem.loss, problem.w, density, grid, shift=s) for s in (0.0, c))
        exact = [m.exact(density.temperature) for m in (before, after)]
        size = float(exact[0].norm())
        worst["exact"] = max(worst["exact"], float((exact[1] - exact[0]).norm()) / size)
        moved = after.printed() - before.printed()
        worst["printed"] = max(worst["printed"], float(moved.norm()) / size)
        predicted = max(predicted, float((moved - c * before.slope).norm() / moved.norm()))
    case = f"the three problems, c = {c:g}, gamma {density.gamma:g}, T {density.temperature:g}"
    reason = f"it moves by c E[grad L], to {predicted:.1e}"
    return [
        agree("T4", claims["exact"], case, worst["exact"], 1e-9, n=n, what="largest relative change"),
        agree(
            "T4", claims["printed"], case, worst["printed"], 1e-9, n=n, what="largest relative change", reason=reason
        ),
    ]


def temperature_matters(density: Entropic, seed: int = 0) -> list[Row]:
    """The corrected formula with the T = 1 covariance at another temperature: wrong, so T belongs in it."""
    problem = problems(seed)[0]
    grid = Grid.around(problem.x, density, problem.lipschitz)
    true = central(lambda v: data_entropy(problem.loss, v, density, grid), problem.w)
    m = moments(problem.loss, problem.w, density, grid)
    return [
        agree(
            "T4", "grad L_DE = E[grad L] + Cov(L, grad L), without the temperature",
            f"{problem.name}, gamma {density.gamma:g}, T {density.temperature:g}: quadrature, central differences",
            off(m.exact(1.0), true), 1e-6, n=len(grid.points),
        )
    ]  # fmt: skip


def variational(density: Entropic, trials: int = 500, seed: int = 0) -> list[Row]:
    """T6, the other half: no Gaussian q beats p in Gibbs' functional, on the line and for the discretised q."""
    problem = problems(seed)[0]
    grid = Grid.around(problem.x, density, problem.lipschitz)
    rng = torch.Generator().manual_seed(seed)
    t = density.temperature
    energy = problem.loss(problem.w, grid.points) - density.anchor_term(grid.points, grid.x)
    top = float(free_energy(problem.loss, problem.w, density, grid))

    def functional(log_q: Tensor) -> float:
        q = log_q.softmax(0)
        entropy = -(torch.special.xlogy(q, q / grid.cell)).sum()
        return float((q * energy).sum() + t * entropy)

    width = math.sqrt(t / density.gamma)
    best, wrong = -math.inf, 0
    for _ in range(trials):
        centre = problem.x + (problem.lipschitz / density.gamma) * torch.randn(1, generator=rng, dtype=torch.float64)
        scale = width * math.exp(float(torch.randn((), generator=rng)))
        value = functional(-0.5 * ((grid.points[:, 0] - centre) / scale) ** 2)
        best, wrong = max(best, value), wrong + (value > top + 1e-9)
    p = probabilities(problem.loss, problem.w, density, grid)
    at_p = abs(functional(p.clamp_min(1e-300).log()) - top)
    return [
        Row(
            "T6", GIBBS, f"{trials} random Gaussian q on the line; the gap at p itself is {at_p:.1e}",
            "holds" if not wrong and at_p < 1e-8 else "fails", "smallest gap T log Z - functional(q)", top - best, None,
            trials, "quadrature", f"{wrong} of {trials} violate it",
        )
    ]  # fmt: skip


# ---- the bound ---------------------------------------------------------------------------------------------


def least_bound(highest: float, temperature: float = 1.0) -> float:
    """The least c with ||grad L_DE|| <= c Lbar for every loss in [0, R]: a + 1/(4a) with a = R/(2T), 1 where a <= 1/2.

    E[g (1 + (L - E L)/T)] is at most E|1 + (L - E L)/T|, convex in the law of L at a given mean, so a law on {0, R}
    with mass q at R is the worst: 2q - 1 + 4 a q (1 - q), greatest at q = 1/2 + 1/(4a).
    """
    a = highest / (2 * temperature)
    return 1.0 if a <= 0.5 else a + 1 / (4 * a)


def bounds(trials: int = 2000, seed: int = 0) -> list[Row]:
    """T5 on random laws: losses in [0, R] with gradients of norm at most Lbar, worst cases among them.

    The bound is about L and grad L under p alone, so it is looked at for random discrete p: any p, any temperature.
    """
    rng = torch.Generator().manual_seed(seed)
    worst = dict.fromkeys((BOUND, SHARPENED, LEAST), 0.0)
    count = dict.fromkeys(worst, 0)
    for i in range(trials):
        high = math.exp(3 * float(torch.rand((), generator=rng)) - 1)
        t = 1.0 if i % 2 == 0 else math.exp(2 * float(torch.rand((), generator=rng)) - 2)
        steep = math.exp(float(torch.randn((), generator=rng)))
        k = int(torch.randint(2, 12, (), generator=rng))
        p = torch.rand(k, generator=rng, dtype=torch.float64).pow(2)
        p = p / p.sum()
        values = torch.rand(k, generator=rng, dtype=torch.float64) * high
        slopes = torch.randn(k, 3, generator=rng, dtype=torch.float64)
        slopes = steep * slopes / slopes.norm(dim=1, keepdim=True)
        if i % 3 == 0:
            # near the worst case: all the mass on the ends, the gradient along the sign of the coefficient
            a = high / (2 * t)
            q = 0.5 + 1 / (4 * a) if a > 0.5 else 1.0
            q = min(1.0, max(0.0, q + 0.05 * float(torch.randn((), generator=rng))))
            p, values = torch.tensor([1 - q, q], dtype=torch.float64), torch.tensor([0.0, high], dtype=torch.float64)
            sign = torch.sign(1 + (values - (p * values).sum()) / t)
            slopes = steep * sign[:, None] * torch.nn.functional.normalize(slopes[:1], dim=1)
        m = Moments((p * values).sum(), p @ slopes, (p * values) @ slopes, steep, high)
        size = float(m.exact(t).norm()) / steep
        for claim, bound in ((BOUND, 1 + high / t), (SHARPENED, 1 + high / (2 * t)), (LEAST, least_bound(high, t))):
            worst[claim] = max(worst[claim], size / bound)
            count[claim] += size > bound * (1 + 1e-9)
    case = (
        f"{trials} random laws of (L, grad L), half of them at another T than 1 (R becomes R/T), a third near the worst"
    )
    out = [bounded("T5", claim, case, worst[claim], count[claim], trials) for claim in worst]
    grid_rows = []
    for t in (1.0, 0.2):
        density = Entropic(2.0, t)
        ratio, wrong, n = {c: 0.0 for c in worst}, dict.fromkeys(worst, 0), 0
        for problem in problems(seed):
            grid = Grid.around(problem.x, density, problem.lipschitz)
            m = moments(problem.loss, problem.w, density, grid)
            n += 1
            size = float(m.exact(t).norm()) / m.steepest
            for claim, bound in (
                (BOUND, 1 + m.highest / t), (SHARPENED, 1 + m.highest / (2 * t)), (LEAST, least_bound(m.highest, t)),
            ):  # fmt: skip
                ratio[claim] = max(ratio[claim], size / bound)
                wrong[claim] += size > bound * (1 + 1e-9)
        grid_rows += [
            bounded("T5", claim, f"the three small problems, T {t:g}, R and Lbar over the grid", ratio[claim],
                    wrong[claim], n, basis="quadrature")
            for claim in worst
        ]  # fmt: skip
    return out + grid_rows


def monte_carlo(density: Entropic, n: int = 20_000, seed: int = 0) -> list[Row]:
    """Quadrature beside plain Monte Carlo: ``n`` independent samples of p on the line, by inverting its
    distribution."""
    problem = problems(seed)[0]
    grid = Grid.around(problem.x, density, problem.lipschitz, points=40_001)
    p = probabilities(problem.loss, problem.w, density, grid)
    rng = torch.Generator().manual_seed(seed)
    pick = torch.multinomial(p, n, replacement=True, generator=rng)
    points = grid.points[pick]
    values = problem.loss(problem.w, points)
    slopes = torch.func.jacfwd(lambda v: problem.loss(v, points))(problem.w)
    t = density.temperature
    true = moments(problem.loss, problem.w, density, grid)
    out = []
    centred = values - values.mean()
    each = {
        UPDATE: (slopes[:, 0], float(true.plain()[0])),
        EXACT: (slopes[:, 0] + centred * (slopes[:, 0] - slopes[:, 0].mean()) / t, float(true.exact(t)[0])),
    }
    for claim, (terms, expected) in each.items():
        error = 1.96 * float(terms.std()) / math.sqrt(n)
        away = abs(float(terms.mean()) - expected)
        # 3.3 standard errors: a true identity is called false once in a thousand times.
        out.append(
            Row(
                claim=claim, statement="T6" if claim == UPDATE else "T4",
                checked=f"{problem.name}, gamma {density.gamma:g}, T {t:g}: {n:,} samples of p against quadrature"
                f" ({expected:.5f})",
                verdict="holds" if away <= error * 3.3 / 1.96 else "fails", what="first component, Monte Carlo",
                value=float(terms.mean()), error=error, n=n, basis="sampled",
            )
        )  # fmt: skip
    return out
