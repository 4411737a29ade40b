"""Every statement of the theory on one network and its data: the content of theory.json."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from atent import checks
from atent.attacks.langevin import Sampler
from atent.checks import check_number, check_seed
from atent.guard import ask
from atent.losses import cross_entropy
from atent.paper.theory import equivalence, gradient, lemma, local_entropy, sampler, thermodynamic
from atent.paper.theory.constants import Constants, estimated, kinks, of_chain, without_curvature
from atent.paper.theory.density import Entropic
from atent.paper.theory.network import dense, prepared
from atent.paper.theory.rows import Row, skipped
from atent.rng import narrow
from atent.threat import Box

Say = Callable[[str], None]
Recipes = Callable[[], Mapping[str, tuple[Sampler, bool]]]


@dataclass(frozen=True)
class Settings(metaclass=checks.Settings):
    """The settings of the checks."""

    gamma: float = 10.0
    """gamma of the density on images, in the paper's scaling; above 0."""
    temperature: float | None = None
    """T of the density on images; default: gamma radius^2 / d, where the Gaussian part alone reaches the radius."""
    radius: float = 1.0
    """l2 radius that samples should reach, in pixel units."""
    samples: int = 20_000
    """Points at which the lemma is checked."""
    chains: int = 12
    """Chains per mean; at least 3."""
    steps: int = 500
    """Recorded steps of each Metropolis chain; the unadjusted chains take six times as many."""
    k: int = 10
    """K, the number of steps of the recipe, for how far it is from mixing."""
    seed: int = 0
    """Seed of all random numbers."""

    def __post_init__(self) -> None:
        check_number("radius", self.radius, 0, above=True)
        check_number("samples", self.samples, 2, whole=True)
        check_number("chains", self.chains, 3, whole=True)
        check_number("steps", self.steps, 20, whole=True)
        check_number("k", self.k, 1, whole=True)
        check_seed(self.seed)

    def density(self, dim: int) -> Entropic:
        """gamma and T; ValueError for gamma <= 0, as there is no density then."""
        t = self.gamma * self.radius**2 / dim if self.temperature is None else self.temperature
        return Entropic(self.gamma, t)


def check(
    model: nn.Module, x: Tensor, y: Tensor, settings: Settings, *, name: str = "the network",
    box: Box = (0.0, 1.0), recipes: Recipes | None = None,
    say: Say = lambda _text: None,
) -> dict[str, Any]:  # fmt: skip
    """The table and the curves, as plain values.

    ``model`` (a float64 copy is used, in eval mode), ``x`` (n, ...) images in the box and labels ``y`` (n,), n >= 4.
    ``recipes()`` gives {name: (its resolved chain, whether its network is smooth)} for T12; ``say`` is called with each
    part that starts. ValueError for fewer than four images, gamma <= 0, and derivatives that are not finite.
    """
    if len(x) < 4:
        raise ValueError(f"the checks need at least 4 images, got {len(x)}: raise --limit")
    density = settings.density(x[0].numel())
    net, x = prepared(model), x.detach().cpu().double()
    y = y.detach().cpu()
    bare = dense(net, tuple(x.shape[1:]))
    # The streams of its parts are torch's, of 32 bits: a few dozen of them, two alike with probability 1e-7.
    settings = replace(settings, seed=narrow(settings.seed))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        table = _Table(say)
        warnings = _lemma(table, net, bare, x, y, density, settings, name)
        _objectives(table, net, x, y, density, settings, name)
        _samplers(table, net, bare, x, y, density, settings, name, recipes)
        seed = settings.seed
        table.add(
            "Entropy-SGD",
            lambda: [
                *local_entropy.local(seed), *local_entropy.algorithm(seed=seed), *local_entropy.grad_p(seed=seed)
            ],
        )  # fmt: skip
        part = slice(0, min(len(x), 64))
        table.add(
            "PGD and batches",
            lambda: [
                *equivalence.without_noise(
                    bare, x[part], y[part], gamma=density.gamma, eps=settings.radius, box=box, steps=settings.k
                ),
                *equivalence.batches(
                    net, x[part], y[part], gamma=density.gamma, steps=settings.k, step_size=0.5 / density.gamma
                ),
            ],
        )
    return {
        "settings": {**asdict(settings), "temperature": density.temperature},
        "n": len(x),
        "dim": x[0].numel(),
        "warnings": warnings,
        "constants": table.facts,
        "rows": [{**asdict(row), "note": row.note} for row in sorted(table.rows, key=_number)],
        "curves": table.curves,
        "seconds": table.seconds,
    }


def _number(row: Row) -> int:
    return int(row.statement[1:])


class _Table:
    """The results of each part."""

    def __init__(self, say: Say) -> None:
        self.say = say
        self.rows: list[Row] = []
        self.curves: dict[str, dict[str, Any]] = {}
        self.seconds: dict[str, float] = {}
        self.facts: dict[str, Any] = {}

    def add(self, part: str, make: Callable[[], list[Row]]) -> None:
        self.say(part)
        start = time.perf_counter()
        self.rows += make()
        self.seconds[part] = round(time.perf_counter() - start, 2)


def _lemma(
    table: _Table, net: nn.Module, bare: nn.Module, x: Tensor, y: Tensor, density: Entropic, settings: Settings,
    name: str,
) -> list[str]:  # fmt: skip
    """T1 to T3; returns the warnings."""
    gamma, seed = density.gamma, settings.seed
    found = kinks(net, x[:2])
    warnings = []
    if found:
        named = ", ".join(f"{layer} ({op})" for layer, op in found.items())
        warnings.append(
            f"{name} has kinks, in {named}: its loss is not smooth, so no beta exists and T1 does not apply; train with"
            " --model.activation softplus or tanh"
        )

    def make() -> list[Row]:
        out, _, zoomed = lemma.kink_rows(net, x, y, seed=seed)
        out.append(lemma.counter_example())
        classes = int(max(int(y.max()) + 1, ask(bare, x[:1]).shape[1]))
        linear, sampled = lemma.linear_softmax(x, y, classes, gamma, n=settings.samples, seed=seed)
        out += linear
        ratios = {"linear-softmax, certified": sampled.ratios}
        rng = torch.Generator().manual_seed(seed)
        spread = math.sqrt(density.temperature / gamma)
        clouds = torch.cat([x, x + spread * torch.randn(x.shape, generator=rng, dtype=x.dtype)])
        kinds: list[Constants] = [estimated(bare, clouds, torch.cat([y, y]), seed=seed)]
        try:
            kinds.append(of_chain(net, tuple(x.shape[1:])))
        except ValueError as error:
            out.append(skipped("T1", lemma.SMOOTH, f"{name}, certified constants", str(error)))
        table.facts["scale"] = kinds[0].smooth
        for constants in kinds:
            constants = without_curvature(constants) if found else constants
            kind = "certified" if constants.certified else "estimated"
            table.facts[kind] = asdict(constants)
            seen = lemma.sample(bare, x, y, gamma, constants, n=settings.samples, seed=seed)
            out += lemma.rows(seen, constants, gamma, name)
            if len(seen.ratios):
                ratios[f"{name}, {kind}"] = seen.ratios
        table.curves["ratios"] = {
            "title": "T1: how near the samples come to the bound", "x": "||grad F(u) - grad F(v)|| / bound",
            "y": "share of the pairs above", "log": "xy",
            "lines": {label: _tail(values) for label, values in ratios.items()},
        }  # fmt: skip
        table.curves["zoom"] = {
            "title": "T1: difference quotient of the gradient, zoomed in", "x": "length of the segment",
            "y": "||grad L(a) - grad L(b)|| / ||a - b||", "log": "xy",
            "lines": {name: list(zoomed), "one ReLU unit on the line": list(lemma.relu_quotients())},
        }  # fmt: skip
        return out

    table.add("Lemma B.1", make)
    table.add("integrability", lambda: lemma.integrability(seed))
    return warnings


def _tail(values: Tensor) -> list[list[float]]:
    """(value, share of the values at or above it) at 60 places."""
    ordered = values.sort(descending=True).values.clamp_min(1e-12)
    places = torch.logspace(0, math.log10(len(ordered)), min(60, len(ordered))).long().unique() - 1
    return [ordered[places].tolist(), ((places + 1) / len(ordered)).tolist()]


def _objectives(
    table: _Table, net: nn.Module, x: Tensor, y: Tensor, density: Entropic, settings: Settings, name: str
) -> None:
    """T4 to T6."""
    seed = settings.seed

    def small() -> list[Row]:
        out = []
        for setting in (Entropic(1.0, 1.0), Entropic(2.0, 0.05)):
            out += gradient.identities(setting, seed)
            out += gradient.shifts(setting, seed=seed)
        out += gradient.temperature_matters(Entropic(1.0, 0.05), seed)
        return [
            *out, *gradient.variational(Entropic(1.0, 0.5), seed=seed), *gradient.bounds(seed=seed),
            *gradient.monte_carlo(Entropic(1.0, 0.5), seed=seed),
        ]  # fmt: skip

    def large() -> list[Row]:
        with torch.no_grad():
            losses = cross_entropy(ask(net, x), y)
        # neither trivially correct nor hopeless
        i = int(losses.argsort()[len(losses) // 2])
        bound = None
        if "certified" in table.facts:
            bound = lemma.free_energy_bound(
                density, float(losses[i]), table.facts["certified"]["lipschitz"], x[0].numel()
            )  # fmt: skip
        found = thermodynamic.compare(
            net, x[i : i + 1], y[i : i + 1], density, chains=settings.chains, steps=settings.steps,
            burn=settings.steps // 2, curvature=_curvature(table), seed=seed,
        )  # fmt: skip
        lams, means, errors = zip(*found.losses, strict=True)
        table.curves["ladder"] = {
            "title": "T6: thermodynamic integration, the integrand", "x": "lambda", "y": "E[L] at lambda", "log": "",
            "lines": {"mean of the chains": [lams, means]}, "error": [1.96 * e for e in errors],
        }  # fmt: skip
        return thermodynamic.rows(found, density, f"{name}, image {i} (the median loss)", bound)

    table.add("gradients by quadrature", small)
    table.add("gradients on images", large)


def _curvature(table: _Table) -> float:
    # Of a network with kinks it bounds nothing, and still sets the scale of a step.
    return float(table.facts["scale"])


def _samplers(
    table: _Table, net: nn.Module, bare: nn.Module, x: Tensor, y: Tensor, density: Entropic, settings: Settings,
    name: str, recipes: Recipes | None,
) -> None:  # fmt: skip
    """T12 and T14."""

    def mixing() -> list[Row]:
        found = sampler.mix(
            bare, x, y, density, chains=max(3, settings.chains // 2), steps=6 * settings.steps,
            curvature=_curvature(table), seed=settings.seed,
        )  # fmt: skip
        if found.converged:
            lags = list(range(len(found.curve)))
            table.curves["autocorrelation"] = {
                "title": f"T12: autocorrelation, K = {settings.k} dotted", "x": "steps",
                "y": "autocorrelation", "log": "",
                "lines": {"||x' - x||^2": [lags, found.curve], "loss": [lags, found.losses]},
                "mark": settings.k,
            }  # fmt: skip
        return sampler.mixing_rows(found, settings.k, name)

    def conditions() -> list[Row]:
        beta, known = _curvature(table), recipes() if recipes else {}
        found = {
            recipe: sampler.conditions(recipe, chain, smooth, beta) for recipe, (chain, smooth) in known.items()
        }  # fmt: skip
        return sampler.convergence_rows(found)

    table.add("stationary laws", lambda: sampler.stationary(seed=settings.seed))
    table.add("mixing", mixing)
    table.add("conditions of convergence", conditions)
