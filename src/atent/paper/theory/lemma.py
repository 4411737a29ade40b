"""Checks of Lemma B.1 and the normaliser: smoothness, dissipativity (T1, T2), integrability (T3)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atent.losses import cross_entropy
from atent.paper.theory.constants import Constants, kinks, zoom
from atent.paper.theory.density import Entropic, gradients
from atent.paper.theory.rows import Row, bounded

SMOOTH = "F is (beta + gamma)-smooth where the loss is beta-smooth in its input"
DISSIPATIVE = "<grad F(x'), x'> >= gamma/4 ||x'||^2 - (L^2/gamma + gamma/2 ||x||^2) for all x'"
SHARPER = "the same with the smallest b for this m: b = (L + gamma ||x||)^2 / (3 gamma)"
INTEGRABLE = "Z is finite exactly for gamma > 0 where the loss is Lipschitz and bounded below"


def dissipativity(gamma: float, lipschitz: float, norm: Tensor) -> tuple[float, Tensor]:
    """(m, b) of Lemma B.1, part 2; ``norm`` is ||x||."""
    return gamma / 4, lipschitz**2 / gamma + gamma / 2 * norm**2


def sharper(gamma: float, lipschitz: float, norm: Tensor, m: float | None = None) -> tuple[float, Tensor]:
    """(m, b) with the least b that L alone allows, (L + gamma ||x||)^2 / (4 (gamma - m)), for any m in [0, gamma)."""
    m = gamma / 4 if m is None else m
    return m, (lipschitz + gamma * norm) ** 2 / (4 * (gamma - m))


@dataclass(frozen=True)
class Sampled:
    """The largest ratios to the claimed bounds over samples, and the violations."""

    n: int
    smooth: float
    """Ratio of ||grad F(u) - grad F(v)|| to (beta + gamma) ||u - v||; nan without a beta."""
    steep: float
    """Ratio of ||grad L|| to L."""
    dissipative: float
    """Ratio of m ||u||^2 - <grad F(u), u> to b."""
    sharp: float
    """The same for the smaller b."""
    violations: dict[str, int]
    """Violations of smooth, steep, dissipative, sharp."""
    ratios: Tensor
    """Each pair's ratio to (beta + gamma) ||u - v||, (n / 2,); empty without a beta."""


def sample(
    model: nn.Module, x: Tensor, y: Tensor, gamma: float, constants: Constants, *, n: int = 20_000, seed: int = 0,
    chunk: int = 500,
) -> Sampled:  # fmt: skip
    """``n`` points in pairs: around images at log-uniform distances from 1e-3 to 30, on rays through the origin, and
    steps along the gradient, where curvature shows. All of R^d, as the lemma says, and not the box alone."""
    rng = torch.Generator().manual_seed(seed)
    worst = dict.fromkeys(("smooth", "steep", "dissipative", "sharp"), -math.inf)
    count = dict.fromkeys(worst, 0)
    kept = []
    done = 0
    column = (-1, *[1] * (x.dim() - 1))

    def unit(like: Tensor) -> Tensor:
        v = torch.randn(like.shape, generator=rng, dtype=x.dtype)
        length: Tensor = v.flatten(1).norm(dim=1)
        return v / length.view(column)

    def length(count: int, high: float) -> Tensor:
        share = torch.rand(count, generator=rng, dtype=x.dtype)
        return (math.log(1e-3) + share * math.log(high / 1e-3)).exp().view(column)

    while done < n:
        m = min(chunk, max((n - done) // 2, 1))
        pick = torch.randint(len(x), (m,), generator=rng)
        base, label = x[pick], y[pick]
        on_ray = (torch.rand(m, generator=rng) < 0.5).view(column)
        scale = 1.5 * torch.rand(m, generator=rng, dtype=x.dtype).view(column)
        u = torch.where(on_ray, scale * base, base) + length(m, 30.0) * unit(base)
        gu = gradients(model, u, label, chunk)
        size = gu.flatten(1).norm(dim=1)
        along = (torch.rand(m, generator=rng) < 0.5).view(column) & (size > 0).view(column)
        ahead = torch.where(along, gu / size.clamp_min(1e-300).view(column), unit(base))
        v = u + length(m, 10.0) * ahead
        gv = gradients(model, v, label, chunk)
        energy = [-gu + gamma * (u - base), -gv + gamma * (v - base)]
        norm = base.flatten(1).norm(dim=1)
        ratio = {}
        if constants.smooth is not None:
            far = (v - u).flatten(1).norm(dim=1)
            ratio["smooth"] = (energy[1] - energy[0]).flatten(1).norm(dim=1) / ((constants.smooth + gamma) * far)
            kept.append(ratio["smooth"])
        ratio["steep"] = torch.cat([size, gv.flatten(1).norm(dim=1)]) / constants.lipschitz
        for name, rule in (("dissipative", dissipativity), ("sharp", sharper)):
            slope, b = rule(gamma, constants.lipschitz, norm)
            ratio[name] = torch.cat(
                [
                    (slope * p.flatten(1).square().sum(1) - (g * p).flatten(1).sum(1)) / b
                    for p, g in zip((u, v), energy, strict=True)
                ]
            )
        for name, values in ratio.items():
            worst[name] = max(worst[name], float(values.max()))
            count[name] += int((values > 1 + 1e-9).sum())
        done += 2 * m
    if constants.smooth is None:
        worst["smooth"] = math.nan
    ratios = torch.cat(kept) if kept else torch.empty(0)
    return Sampled(
        done, worst["smooth"], worst["steep"], worst["dissipative"], worst["sharp"], count, ratios
    )  # fmt: skip


def rows(found: Sampled, constants: Constants, gamma: float, named: str) -> list[Row]:
    """The lemma's lines for one network and one pair of constants."""
    kind = "certified" if constants.certified else "estimated"
    beta = "" if constants.smooth is None else f", beta {constants.smooth:.4g}"
    case = f"{named}, {kind} constants ({constants.how}): L {constants.lipschitz:.4g}{beta}, gamma {gamma:g}"
    low = "" if constants.certified else "estimates are lower bounds, so violations do not refute the lemma"
    out = []
    if constants.smooth is not None:
        out.append(
            _verdict(
                "T1", SMOOTH, case, found.smooth, found.violations["smooth"], found.n // 2, constants.certified, low
            )
        )
    for name, claim in (("dissipative", DISSIPATIVE), ("sharp", SHARPER)):
        ratio = getattr(found, name)
        out.append(_verdict("T2", claim, case, ratio, found.violations[name], found.n, constants.certified, low))
    return out


def _verdict(
    statement: str, claim: str, case: str, ratio: float, violations: int, n: int, certified: bool, low: str
) -> Row:  # fmt: skip
    row = bounded(statement, claim, case, ratio, violations, n, reason=low)
    if certified or not violations:
        return row
    # The premise fails: the constant is too small.
    return Row(
        statement, claim, case, "not applicable", row.what, row.value, None, n, "sampled",
        f"{violations} of {n:,} exceed it: the estimate is too low for the premise; {low}",
    )  # fmt: skip


# ---- networks with kinks -----------------------------------------------------------------------------------


def relu_quotients() -> tuple[list[float], list[float]]:
    """Lengths 2t and |L'(t) - L'(-t)| / 2t of L(x) = log(1 + exp(-relu(x))), t from 0.1 to 1e-8."""
    step = torch.logspace(-1, -8, 8, dtype=torch.float64)
    # The slope is 0 on the left of 0 and -1/2 on its right.
    quotient = torch.sigmoid(-step) / (2 * step)
    return (2 * step).tolist(), quotient.tolist()


def counter_example() -> Row:
    """A ReLU network of one unit on the line, in closed form: no beta bounds it."""
    quotients = relu_quotients()[1]
    return Row(
        "T1", SMOOTH, "L(x) = log(1 + exp(-relu(x))) across 0: |L'(t) - L'(-t)| / 2t for t from 0.1 to 1e-8",
        "not applicable", "quotient at t = 1e-8", quotients[-1], None, len(quotients), "exact",
        "a ReLU network is not smooth: the slope jumps by 1/2 at 0, so the quotient grows as 1/(4t) without bound",
    )  # fmt: skip


def kink_rows(
    model: nn.Module, x: Tensor, y: Tensor, *, seed: int = 0
) -> tuple[list[Row], dict[str, str], tuple[list[float], list[float]]]:
    """(rows, kinks by layer, lengths and quotients of `constants.zoom`): whether the network is smooth at all."""
    found = kinks(model, x[:2])
    rng = torch.Generator().manual_seed(seed)
    far = x[:1] + 2 * torch.randn(x[:1].shape, generator=rng, dtype=x.dtype) / math.sqrt(x[:1].numel())
    lengths, quotients = zoom(lambda z: gradients(model, z, y[:1]), x[:1], far)
    growth = quotients[-1] / quotients[len(quotients) // 2]
    checked = (
        f"this network: a segment at an image, halved {len(lengths)} times towards where its gradient changes most"
    )
    if not found:
        row = Row(
            "T1", "the network's loss is smooth", checked, "holds" if growth < 8 else "fails",
            "last difference quotient", quotients[-1], None, len(lengths), "sampled",
            "no layer with a kink, and the quotient settles" if growth < 8 else "the quotient grows without bound",
        )  # fmt: skip
        return [row], found, (lengths, quotients)
    named = ", ".join(f"{layer} ({op})" for layer, op in found.items())
    row = Row(
        "T1", "the network's loss is smooth", checked, "not applicable", "last difference quotient", quotients[-1],
        None, len(lengths), "sampled",
        f"it has kinks, in {named}: no beta exists; the quotient grew {growth:.3g}-fold over the last"
        f" {len(lengths) - len(lengths) // 2} halvings. Train with activation softplus or tanh to check smoothness",
    )  # fmt: skip
    return [row], found, (lengths, quotients)


# ---- the normaliser ----------------------------------------------------------------------------------------


def free_energy_bound(density: Entropic, loss_at_x: float, lipschitz: float, dim: int) -> float:
    """Upper bound of T log Z - T log Z_0, where Z_0 is that of the loss 0; the lower one is 0 since the loss is >= 0.

    L(x') <= L(x) + L ||x' - x||, and of a Gaussian of variance T / gamma per coordinate E exp(a ||d||) <=
    exp(a sqrt(d T / gamma) + a^2 T / (2 gamma)), since the norm is 1-Lipschitz.
    """
    t, gamma = density.temperature, density.gamma
    return loss_at_x + lipschitz * math.sqrt(dim * t / gamma) + lipschitz**2 / (2 * gamma)


def integrability(seed: int = 0) -> list[Row]:
    """T3 on the line, by quadrature: log-loss of a logistic model, with and without an anchor term."""
    rng = torch.Generator().manual_seed(seed)
    cases = 200
    slope = torch.randn(cases, generator=rng, dtype=torch.float64) * 3
    offset = torch.randn(cases, generator=rng, dtype=torch.float64)
    gamma = torch.empty(cases, dtype=torch.float64).uniform_(0.05, 5, generator=rng)
    t = torch.empty(cases, dtype=torch.float64).uniform_(0.05, 2, generator=rng)
    reach = slope.abs() / gamma + 14 * (t / gamma).sqrt()
    grid = torch.linspace(-1, 1, 20_001, dtype=torch.float64)
    z = reach[:, None] * grid
    loss = torch.nn.functional.softplus(slope[:, None] * z + offset[:, None])
    exponent = (loss - gamma[:, None] / 2 * z.square()) / t[:, None]
    log_z = exponent.logsumexp(1) + (reach * 2 / 20_000).log()
    measured = t * (log_z - 0.5 * (2 * math.pi * t / gamma).log())
    above = torch.tensor(
        [
            free_energy_bound(Entropic(float(g), float(u)), float(torch.nn.functional.softplus(o)), float(s.abs()), 1)
            for g, u, o, s in zip(gamma, t, offset, slope, strict=True)
        ]
    )
    ratio = measured / above
    wrong = int(((ratio > 1 + 1e-9) | (measured < -1e-9)).sum())
    first = bounded(
        "T3", INTEGRABLE,
        f"{cases} logistic losses on the line: 0 <= T log(Z/Z_0) <= L(x) + L sqrt(dT/gamma) + L^2/(2 gamma)",
        float(ratio.max()), wrong, cases, basis="quadrature",
    )  # fmt: skip
    # Without an anchor term: the integral over [-R, R] grows at least as 2R.
    sizes = torch.tensor([10.0, 100.0, 1000.0], dtype=torch.float64)
    totals = []
    for size in sizes:
        z = torch.linspace(-float(size), float(size), 200_001, dtype=torch.float64)
        totals.append(float(torch.trapezoid(torch.nn.functional.softplus(z - 1).clamp_max(5).exp(), z)))
    grown = min(total / (2 * float(size)) for total, size in zip(totals, sizes, strict=True))
    second = Row(
        "T3", "without an anchor term (gamma = 0) there is no density",
        "a logistic loss cut at 5: the integral of exp(L) over"
        " [-R, R] against 2R, R = 10, 100, 1000", "holds" if grown >= 1 else "fails", "smallest integral / 2R", grown,
        None, len(sizes), "quadrature", "cross-entropy is at least 0, so exp(L/T) >= 1 and Z the volume",
    )  # fmt: skip
    return [first, second]


def linear_softmax(
    x: Tensor, y: Tensor, classes: int, gamma: float, *, n: int = 20_000, seed: int = 0
) -> tuple[list[Row], Sampled]:
    """T1 and T2 for a linear-softmax model fitted to ``x``, with its closed-form constants."""
    from atent.paper.theory.constants import of_linear_softmax

    weight, bias = fit_linear(x, y, classes)
    last = nn.Linear(weight.shape[1], classes).double()
    model = nn.Sequential(nn.Flatten(), last)
    with torch.no_grad():
        last.weight.copy_(weight)
        last.bias.copy_(bias)
    out = []
    for name, (slope, beta) in of_linear_softmax(weight).items():
        how = {"norm": "sqrt(2)||W||, ||W||^2/2", "diameter": "D, D^2/4 with D the diameter of the rows"}[name]
        constants = Constants(slope, beta, True, how)
        found = sample(model, x, y, gamma, constants, n=n, seed=seed, chunk=2000)
        out += rows(found, constants, gamma, "linear-softmax fitted to the images")
    return out, found


def fit_linear(x: Tensor, y: Tensor, classes: int, decay: float = 1e-3) -> tuple[Tensor, Tensor]:
    """Weights (classes, d) and biases of a softmax regression with weight decay, by L-BFGS; the same on every call."""
    flat = x.flatten(1).double()
    weight = torch.zeros(classes, flat.shape[1], dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> float:
        with torch.enable_grad():
            optimizer.zero_grad()
            loss = cross_entropy(flat @ weight.T + bias, y).mean() + decay * weight.square().sum()
            loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    return weight.detach(), bias.detach()
