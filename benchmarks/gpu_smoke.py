"""Checks in minutes that a GPU agrees with the CPU: each is a function of the device that returns its measurements.

A check that fails raises; `Skipped` where it does not apply. None needs data that are not in the package.
"""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any
from unittest import mock

import gpu_counts
import torch
from torch import Tensor, nn

from atent import Threat, load, signals
from atent.attacks import ATTACKS
from atent.attacks.spec import parse
from atent.certify import METHODS as BOUNDS
from atent.certify import Smoothed, bounds, verified
from atent.data import DataSettings
from atent.data import load as load_data
from atent.methods import ATENT, AWP, METHODS, PGDAT, TRADES, Free, Method, Standard
from atent.models import build
from atent.precision import full_precision
from atent.rng import Batch, PerSample
from atent.testing import networks
from atent.train import TrainSettings, fit, kernels
from atent.train.callbacks import Callback, Progress
from atent.train.graphs import WARM, Graphs, record
from atent.train.interrupt import Interrupted

Found = dict[str, Any]
Check = Callable[[torch.device], Found]
THREATS = {
    "linf": Threat("linf", 0.1), "l2": Threat("l2", 0.6), "l1": Threat("l1", 1.5), "l0": Threat("l0", 2),
    "patch": Threat("patch", 1, side=2),
}  # fmt: skip
SHORT = {"steps": 20, "queries": 20, "final_steps": 20, "search_steps": 2}
"""What shortens an attack, where it has the field."""
UNBATCHED = ("CROWNIBP", "Dual")
"""Methods that refuse batch-norm."""


class Skipped(Exception):
    """The check does not apply to this device."""


class Failed(Exception):
    """The device gives another answer; the message has the figure and its limit."""


def checks() -> dict[str, Check]:
    """All, in the order in which they are made: the cheap and the fundamental first."""
    found: dict[str, Check] = {"random words": words, "float32 rounding": tf32}
    found |= {f"method {name}": partial(method, name) for name in METHODS if name != "ACL"}
    found |= {f"method AWP {name}": partial(method, name, awp=True) for name in ("PGDAT", "ATENT")}
    found |= {f"autocast {name}": partial(autocast, name) for name in ("Standard", "PGDAT", "ATENT", "TRADES", "AWP")}
    found |= {f"graph {name}": partial(graph, name) for name in GRAPHS}
    found |= {f"bounds {name}": partial(bound, name) for name in BOUNDS}
    found |= {f"attack {name} {norm}": partial(attack, name, norm) for name in ATTACKS for norm in _norms(name)}
    found |= {"smoothing": smoothing, "resume": resume}
    found |= {f"launches {name}": partial(launches, name) for name in COUNTS}
    found["compile"] = compiled
    return found


# ---- the same numbers on both ------------------------------------------------------------------------------


@contextmanager
def cpu_draws() -> Iterator[None]:
    """Inside, the streams of training draw from one generator of the CPU, so that two devices see the same noise.

    The generator of a step is on its device: attacks accept no other.
    """
    here = Batch(torch.Generator().manual_seed(11))

    def moved(draw: Callable[..., Tensor]) -> Callable[..., Tensor]:
        return lambda self, like, **given: draw(here, like.cpu(), **given).to(like.device)

    def integers(self: Batch, *given: Any, **named: Any) -> Tensor:
        return whole(here, *given, **named).to(self.rng.device)

    whole = Batch.integers
    with mock.patch.multiple(Batch, uniform=moved(Batch.uniform), normal=moved(Batch.normal), integers=integers):
        yield


def words(device: torch.device) -> Found:
    """The counter-based streams of evaluation give the CPU's words on every device."""
    x = torch.empty(64, 33, dtype=torch.float64)
    a, b = (PerSample(3, torch.arange(64, device=d), "smoke").uniform(x.to(d)).cpu() for d in ("cpu", device))
    return limited(different=float((a != b).double().mean()), most=0.0)


def tf32(device: torch.device) -> Found:
    """`full_precision` turns TF32 off: a convolution in it agrees with the CPU's to float32's rounding."""
    torch.manual_seed(0)
    conv, x = nn.Conv2d(64, 64, 3), torch.randn(8, 64, 16, 16)
    with torch.no_grad(), full_precision(device):
        far = copy.deepcopy(conv).to(device)(x.to(device)).cpu()
        near = conv.double()(x.double())
    return limited(relative=float((far - near).norm() / near.norm()), most=1e-5)


def limited(*, most: float, **measured: float) -> Found:
    """The measured values; Failed if one exceeds the limit."""
    worst = {name: value for name, value in measured.items() if not value <= most}
    if worst:
        name, value = next(iter(worst.items()))
        raise Failed(f"{name} {value:.3g}, at most {most:g}")
    return {**measured, "limit": most}


# ---- methods -----------------------------------------------------------------------------------------------


def made(name: str) -> Method:
    """A method with a small budget."""
    names = {f.name for f in dataclasses.fields(METHODS[name])}
    given: dict[str, Any] = {"steps": 3} if "steps" in names else {}
    if "threat" in names:
        able = [norm for norm in THREATS if norm in METHODS[name].norms]
        given["threat"] = THREATS["l2" if "l2" in able else able[0]]
    return METHODS[name](**given)


def step(
    how: Method, model: nn.Module, x: Tensor, y: Tensor, device: torch.device, low: bool = False
) -> tuple[float, Tensor]:  # fmt: skip
    """The loss of one `backward` on a copy of the network, and its gradient, on the CPU."""
    model, x, y = copy.deepcopy(model).to(device), x.to(device), y.to(device)
    state = how.init(len(x), tuple(x.shape[1:]), device)
    rng, ids = torch.Generator(device).manual_seed(11), torch.arange(len(x), device=device)
    with cpu_draws(), torch.autocast(device.type, torch.bfloat16, enabled=low):
        metrics = how.backward(model, x, y, rng=rng, ids=ids, state=state)
    grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return float(metrics["loss"]), torch.cat(grads).cpu()


def method(name: str, device: torch.device, awp: bool = False) -> Found:
    """Loss and gradient of a step, in float64, and in float32 without TF32, where a sign may fall the other way."""
    how: Method = AWP(made(name), 0.01) if awp else made(name)
    model = networks.network(batch_norm=name not in UNBATCHED)
    x, y = networks.inputs(16), torch.arange(16) % networks.CLASSES
    out: Found = {}
    for dtype, most in ((torch.float64, 1e-8), (torch.float32, 5e-2)):
        given = (how, model.to(dtype), x.to(dtype), y)
        near = step(*given, torch.device("cpu"))
        with full_precision(device):
            far = step(*given, device)
        kind = str(dtype).removeprefix("torch.")
        distance = float((far[1] - near[1]).norm() / near[1].norm().clamp_min(1e-30))
        out[kind] = limited(loss=abs(far[0] - near[0]) / max(1e-30, abs(near[0])), gradient=distance, most=most)
    return out


def autocast(name: str, device: torch.device) -> Found:
    """bfloat16 on the device beside float32 there: the loss to 5 %, and AWP's second pass at the moved weights."""
    how: Method = AWP(PGDAT(THREATS["l2"], steps=3), 0.01) if name == "AWP" else made(name)
    model, x, y = networks.network().float(), networks.inputs(64).float(), torch.arange(64) % networks.CLASSES
    exact, low = (step(how, model, x, y, device, low)[0] for low in (False, True))
    return {"float32": exact, "bfloat16": low} | limited(relative=abs(low - exact) / exact, most=0.05)


# ---- CUDA graphs -------------------------------------------------------------------------------------------

GRAPHS: dict[str, tuple[Callable[[], Method], float, bool]] = {
    "Standard": (Standard, 0.0, False),
    "ATENT l2": (lambda: ATENT(THREATS["l2"], steps=3, noise=0.1), 0.0, False),
    "ATENT linf": (lambda: ATENT(THREATS["linf"], steps=3), 0.0, False),
    "ATENT dropout": (lambda: ATENT(THREATS["l2"], steps=3, noise=0.1), 0.3, False),
    "ATENT bfloat16": (lambda: ATENT(THREATS["l2"], steps=3, noise=0.1), 0.0, True),
    "ATENT kl": (lambda: ATENT(THREATS["l2"], steps=3, noise=0.1, outer_loss="kl"), 0.0, False),
    "Free": (lambda: Free(THREATS["linf"], replays=1), 0.0, False),
    "AWP ATENT": (lambda: AWP(ATENT(THREATS["l2"], steps=3), 0.01), 0.0, False),
    "AWP ATENT bfloat16": (lambda: AWP(ATENT(THREATS["l2"], steps=3), 0.01), 0.0, True),
}
"""Method, dropout, bfloat16."""


def graph(name: str, device: torch.device) -> Found:
    """Steps by a CUDA graph give the weights of steps without, with kernels that repeat."""
    if device.type != "cuda":
        raise Skipped("needs CUDA")
    make, dropout, low = GRAPHS[name]
    how, said = make(), []
    graphs = Graphs(how, record, said.append)
    with kernels.chosen(TrainSettings(deterministic=True), device):
        plain = _steps(how, how.backward, dropout, low, device)
        by_graph = _steps(how, graphs.backward, dropout, low, device)
    if graphs.graph is None:
        raise Failed(said[0] if said else "no step was recorded")
    return limited(difference=float((plain - by_graph).abs().max()), most=0.0 if not low else 1e-6)


def _steps(how: Method, backward: Callable[..., Any], dropout: float, low: bool, device: torch.device) -> Tensor:
    """The weights after steps of SGD, the fourth from the end of a shorter batch."""
    model = networks.network(dropout=dropout).float().to(device)
    optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
    x, y = networks.inputs(32).float().to(device), torch.arange(32, device=device) % networks.CLASSES
    state, rng = how.init(32, tuple(x.shape[1:]), device), torch.Generator(device)
    for k in range(WARM + 8):
        n = 20 if k == WARM + 4 else 32
        optimizer.zero_grad()
        rng.manual_seed(k)
        torch.manual_seed(k)
        with torch.autocast(device.type, torch.bfloat16, enabled=low):
            backward(model, x[:n], y[:n], rng=rng, ids=torch.arange(n, device=device), state=state)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


# ---- attacks, bounds, certificates -------------------------------------------------------------------------


@cache
def digits() -> tuple[nn.Module, Tensor, Tensor]:
    """A network trained on scikit-learn's digits for a second, in float64, and images that it has not seen."""
    data = load_data(DataSettings("digits"))
    x, y = (t[:600] for t in data.train.batch(torch.arange(len(data.train))))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(5)
        layers = [nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)]
        model = nn.Sequential(*layers).double()
    optimizer = torch.optim.Adam(model.parameters(), 0.03)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x.double()), y).backward()
        optimizer.step()
    seen, labels = data.test.batch(torch.arange(64))
    return model.eval(), seen.double(), labels


def _norms(name: str) -> list[str]:
    return [norm for norm in THREATS if norm in ATTACKS[name].norms]


def attack(name: str, norm: str, device: torch.device) -> Found:
    """The verdicts in float64 are the CPU's, but for images that rounding decides; in float32 as well."""
    model, x, y = digits()
    x, y = x[:24], y[:24]
    if name == "Transfer":
        raise Skipped("needs another network")
    how = parse("EoT(attack=FGSM)" if name == "EoT" else name, THREATS[norm], ATTACKS)
    short = {key: most for key, most in SHORT.items() if isinstance(getattr(how, key, None), int)}
    how = dataclasses.replace(how, **short)
    out: Found = {}
    for dtype in (torch.float64, torch.float32):
        near = how.run(copy.deepcopy(model).to(dtype), x.to(dtype), y)
        far = how.run(copy.deepcopy(model).to(device, dtype), x.to(device, dtype), y.to(device))
        other = float((near.success != far.success.cpu()).double().sum())
        out[str(dtype).removeprefix("torch.")] = limited(other_verdicts=other, most=1.0) | {
            "pixels": float((near.x_adv - far.x_adv.cpu()).abs().max()), "fooled": int(near.success.sum()),
        }  # fmt: skip
    return out


def bound(name: str, device: torch.device) -> Found:
    """Bounds agree to rounding and verify the same images."""
    model, x, y = digits()
    x, y, threat, out = x[:16], y[:16], Threat("linf", 0.01), {}
    for dtype, most in ((torch.float64, 1e-9), (torch.float32, 1e-3)):
        near, far = copy.deepcopy(model).to(dtype), copy.deepcopy(model).to(device, dtype)
        a = torch.stack(bounds(near, x.to(dtype), threat, name)).detach()
        b = torch.stack(bounds(far, x.to(device, dtype), threat, name)).detach().cpu()
        same = verified(near, x.to(dtype), y, threat, name) == verified(
            far, x.to(device, dtype), y.to(device), threat, name
        ).cpu()  # fmt: skip
        out[str(dtype).removeprefix("torch.")] = limited(difference=float((a - b).abs().max()), most=most)
        limited(other_verdicts=float((~same).double().sum()), most=0.0 if dtype == torch.float64 else 1.0)
    return out


def smoothing(device: torch.device) -> Found:
    """Votes under noise: other noise than the CPU's, so shares agree within 5 standard deviations of 2,000 samples."""
    model, x, _ = digits()
    near, far = (Smoothed(copy.deepcopy(model).float().to(d), 0.25) for d in ("cpu", device))
    a, b = near.votes(x[:8].float(), 2000), far.votes(x[:8].float().to(device), 2000).cpu()
    p = (a + b) / 4000
    sigmas = ((a - b).abs() / 2000) / (2 * p * (1 - p) / 2000).sqrt().clamp_min(1e-3)
    return limited(sigmas=float(sigmas.max()), most=5.0)


# ---- a training --------------------------------------------------------------------------------------------


class _Stop(Callback):
    """Asks the loop to stop inside the second epoch, as the end of a slice does."""

    def step(self, progress: Progress) -> None:
        if progress.epoch == 2 and progress.step == 3:
            signals.request()


def resume(device: torch.device) -> Found:
    """A training that is interrupted inside an epoch and resumed has the unbroken one's weights, bit for bit."""
    data = load_data(DataSettings("digits"))
    settings = TrainSettings(
        epochs=3, batch_size=128, device=str(device), deterministic=True, validate_limit=50, average="ema",
        cuda_graphs=device.type == "cuda",
    )  # fmt: skip

    def run(place: Path, **given: Any) -> None:
        torch.manual_seed(0)
        net = build("digits_cnn", classes=10, shape=data.shape)
        fit(
            net, data, ATENT(Threat("l2", 0.5), steps=3), settings=settings, run=place, progress=False,
            builder="digits_cnn", **given,
        )  # fmt: skip

    with tempfile.TemporaryDirectory() as place:
        whole, broken = Path(place, "whole"), Path(place, "broken")
        run(whole)
        try:
            run(broken, callbacks=[_Stop()])
        except Interrupted:
            run(broken, resume=True)
        else:
            raise Failed("the training was not interrupted")
        a, b = (torch.cat([p.flatten() for p in load(run).parameters()]) for run in (whole, broken))
    return limited(difference=float((a - b).abs().max()), most=0.0)


COUNTS: dict[str, tuple[Callable[[], Method], int]] = {
    "Standard": (Standard, 0),
    "ATENT linf": (lambda: ATENT(Threat("linf", 8 / 255)), 0),
    "ATENT l2": (lambda: ATENT(Threat("l2", 0.5)), 0),
    "PGDAT": (lambda: PGDAT(Threat("linf", 8 / 255)), 1),
    "TRADES": (lambda: TRADES(Threat("linf", 8 / 255)), 1),
}
"""Methods of 10 steps, and how often a step may make the host wait."""


def launches(name: str, device: torch.device) -> Found:
    """Launches and host waits of one step on ResNet-20, batch 128 (a CPU: 8)."""
    make, most = COUNTS[name]
    how, n = make(), 128 if device.type == "cuda" else 8
    model = build("resnet20", classes=10, shape=(3, 32, 32)).to(device).train()
    x, y = torch.rand(n, 3, 32, 32, device=device), torch.arange(n, device=device) % 10
    rng, ids = torch.Generator(device), torch.arange(n, device=device)

    def once() -> None:
        model.zero_grad()
        how.backward(model, x, y, rng=rng, ids=ids, state=how.init(n, (3, 32, 32), device))

    once()
    with gpu_counts.Counted(device) as seen:
        once()
    found = seen.found()
    limited(waits=found["waits"], most=most)
    return found


def compiled(device: torch.device) -> Found:
    """A network under `torch.compile` gives the step's gradient."""
    if device.type != "cuda":
        raise Skipped("needs CUDA")
    model, x, y = networks.network(batch_norm=False).float(), networks.inputs(32).float(), torch.arange(32) % 5
    how = ATENT(THREATS["l2"], steps=3, start="zero", noise=0.0)
    plain = step(how, model, x, y, device)[1]
    other = copy.deepcopy(model).to(device)
    other.compile()
    return limited(gradient=float((step(how, other, x, y, device)[1] - plain).norm() / plain.norm()), most=5e-2)
