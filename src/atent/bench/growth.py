"""How the cost grows: in the steps K, the batch, the width of the network and the number of images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import nn

from atent import stats
from atent.attacks import PGD
from atent.bench.methods import radius, step_of
from atent.bench.passes import problem
from atent.bench.plan import Case, Plan, Section
from atent.bench.timing import Effort, Work, interleaved
from atent.evaluate import evaluate
from atent.experiments.results.bench import BenchCase, Growth
from atent.methods import ATENT
from atent.progress import Advance
from atent.threat import Threat

TITLE = "growth: the exponent b of a cost a + c v^b"


def section(plan: Plan) -> Section:
    """A case for each quantity; width has a network of its own."""
    name = plan.nets[0]
    short = plan.quick
    threat = Threat("linf", radius(name, "linf"))
    batch = plan.size.batch // 4

    def in_steps(k: int) -> Work:
        return step_of(ATENT(threat, steps=k), *problem(name, batch, device=plan.device))

    def in_batch(n: int) -> Work:
        return step_of(ATENT(threat, steps=3), *problem(name, n, device=plan.device))

    def in_width(width: int) -> Work:
        model, (_, x, y) = convolutions(width).to(plan.device), problem("digits_cnn", batch, device=plan.device)
        return step_of(ATENT(threat, steps=3), model, x, y)

    def in_images(n: int) -> Work:
        model, x, _ = problem(name, n, device=plan.device)
        with torch.no_grad():
            # What is misclassified without an attack is not attacked: here every image is.
            y = model.eval()(x).argmax(1)
        attack = {"PGD": PGD(threat, steps=5)}
        return lambda: evaluate(model, x, y, attack, batch=batch)

    def case(what: str, values: Sequence[int], make: Callable[[int], Work], about: str) -> Case:
        return Case(what, partial(_measure, what, values, make, about))

    return Section(TITLE, [
        case("K", (2, 4, 8, 16) if short else (2, 4, 8, 16, 32), in_steps, f"a step of ATENT on {name}, batch {batch}"),
        case("batch", (4, 8, 16, 32) if short else (8, 16, 32, 64, 128), in_batch, f"a step of ATENT on {name}, K = 3"),
        case("width", (16, 32, 64, 128), in_width, f"a step of ATENT on four convolutions, K = 3, batch {batch}"),
        case("images", (8, 16, 32, 64) if short else (32, 64, 128, 256), in_images,
             f"evaluation by PGD-5 on {name}, batch {batch}"),
    ])  # fmt: skip


def convolutions(width: int) -> nn.Module:
    """Four 3x3 convolutions of ``width`` channels and a linear layer, for images of 8 x 8 pixels and ten classes."""
    layers: list[nn.Module] = [nn.Conv2d(1, width, 3, padding=1), nn.ReLU()]
    for _ in range(3):
        layers += [nn.Conv2d(width, width, 3, padding=1), nn.ReLU()]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64 * width, 10))


def _measure(
    what: str, values: Sequence[int], make: Callable[[int], Work], about: str, effort: Effort, advance: Advance
) -> BenchCase:
    names = {f"{what} {value}": value for value in values}
    works = {name: make(value) for name, value in names.items()}
    largest = list(works)[-1]
    pairs = {name: largest for name in works if name != largest}
    found = interleaved(works, effort, pairs=pairs, advance=advance)
    costs = list(zip(*(found.counted[name] for name in works)))
    b = stats.exponent(values, costs)
    rows = [found.row(name, figures={"value": float(value)}) for name, value in names.items()]
    return BenchCase(what, {"of": about, "values": list(values)}, rows, Growth(b.value, b.low, b.high))
