"""Certificates: randomised smoothing against the usual loop and bare forwards, and bounds against bare forwards."""

from __future__ import annotations

from functools import partial
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from atent.bench.passes import problem
from atent.bench.plan import Case, Omitted, Plan, Section
from atent.bench.timing import Effort, Work, interleaved
from atent.certify import Smoothed, verified
from atent.experiments.results.bench import BenchCase
from atent.progress import Advance
from atent.stats import lower_limit
from atent.threat import Threat

TITLE = "certificates: seconds over those of forwards alone"
SIGMA, ALPHA, CHOOSE = 0.25, 0.001, 100
BOUNDS: tuple[Literal["ibp", "crown-ibp", "crown"], ...] = ("ibp", "crown-ibp", "crown")
_FORWARDS = "forwards alone"
# Batch sizes of the published code and of its experiments.
_USUAL = (1000, 400)
_OWN = 200


def usual(model: nn.Module, x: Tensor, sigma: float, n0: int, n: int, batch: int) -> list[tuple[int, float, float]]:
    """(class, radius, share of the class) of each image, in the structure of Cohen et al.'s published code.

    Per image, per batch of samples the image is repeated, noise of a global stream is added, the argmax goes to numpy
    and is counted there.
    """
    from scipy.special import ndtri

    def sample(image: Tensor, samples: int) -> np.ndarray:
        counts = np.zeros(10, dtype=int)
        with torch.no_grad():
            while samples > 0:
                size = min(batch, samples)
                samples -= size
                copies = image.repeat((size, 1, 1, 1))
                guesses = model(copies + torch.randn_like(copies) * sigma).argmax(1)
                counts += np.bincount(guesses.cpu().numpy(), minlength=10)
        return counts

    out = []
    for image in x:
        top = int(sample(image, n0).argmax())
        k = int(sample(image, n)[top])
        low = lower_limit(k, n, ALPHA)
        out.append((top, sigma * float(ndtri(low)), k / n) if low > 0.5 else (-1, 0.0, k / n))
    return out


def _forwards(model: nn.Module, x: Tensor, samples: int) -> Work:
    """As many samples as the certificate sees, in its own batches, through the network and nothing else."""
    batches = [_OWN] * (samples // _OWN) + ([samples % _OWN] if samples % _OWN else [])
    pool = torch.cat([x] * -(-_OWN // len(x)))[:_OWN].clone()

    def run() -> None:
        with torch.no_grad():
            for size in batches:
                model(pool[:size])

    return run


def section(plan: Plan) -> Section:
    """Smoothing on each network, bounds on networks that they are used for: CROWN's cost grows with the units."""
    smoothed = dict.fromkeys(("digits_cnn", *plan.nets))
    bounded = ("digits_cnn",) if plan.quick else ("digits_cnn", "kw_small")
    cases = [Case(f"smoothing, {name}", partial(_smoothing, plan, name)) for name in smoothed]
    cases += [Case(f"bounds, {name}", partial(_bounds, plan, name)) for name in bounded]
    return Section(TITLE, cases)


def _smoothing(plan: Plan, name: str, effort: Effort, advance: Advance) -> BenchCase:
    model, x, _ = problem(name, 2, device=plan.device)
    model.eval()
    smoothed, n = Smoothed(model, SIGMA), plan.size.samples
    samples = len(x) * (CHOOSE + n)
    works: dict[str, Work] = {
        _FORWARDS: _forwards(model, x, samples),
        "atent": lambda: smoothed.certify(x, CHOOSE, n, ALPHA),
        **{f"usual loop, batch {b}": partial(usual, model, x, SIGMA, CHOOSE, n, b) for b in _USUAL},
    }
    with torch.random.fork_rng(devices=[x.device] if x.is_cuda else []):
        found = interleaved(works, effort, pairs={w: _FORWARDS for w in works if w != _FORWARDS}, advance=advance)
    rows = [found.row(w, figures={"samples_per_second": found.per_second(w, samples)}) for w in works]
    settings = {"network": name, "images": len(x), "n0": CHOOSE, "n": n, "sigma": SIGMA}
    return BenchCase(f"smoothing, {name}", settings, rows)


def _bounds(plan: Plan, name: str, effort: Effort, advance: Advance) -> BenchCase:
    """Margins against the true class, all classes of a batch in one call."""
    model, x, y = problem(name, plan.size.images, device=plan.device)
    model.eval()
    threat = Threat("linf", 0.01)
    works: dict[str, Work] = {_FORWARDS: _forwards(model, x, len(x))}
    refused: dict[str, str] = {}
    for method in BOUNDS:
        try:
            with torch.no_grad():
                verified(model, x[:1], y[:1], threat, method)
        except ValueError as error:
            refused[method] = str(error)
            continue
        works[method] = partial(verified, model, x, y, threat, method)
    if len(works) == 1:
        raise Omitted(next(iter(refused.values())))
    with torch.no_grad():
        found = interleaved(works, effort, pairs={w: _FORWARDS for w in works if w != _FORWARDS}, advance=advance)
    rows = [found.row(w, figures={"images_per_second": found.per_second(w, len(x))}) for w in works]
    settings = {"network": name, "images": len(x), "norm": "linf", "eps": 0.01, "refused": refused}
    return BenchCase(f"bounds, {name}", settings, rows)
