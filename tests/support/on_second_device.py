"""What a child process finds on the second device: `python on_second_device.py LIBRARY CASES` prints it as JSON."""

import json
import sys

import gpu_smoke
import second_device
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from atent import Threat
from atent.attacks import DDN, PGD, AutoAttack, SparseRS, Square, Transfer
from atent.certify import Sampling, Smoothed, certify_run, margins, verified
from atent.data import from_tensors
from atent.evaluate import evaluate, masking_checks, measure_bands, measure_flips, measure_transfer, predict
from atent.evaluate.fewest import fewest
from atent.methods import METHODS, MMA, PGDAT, TRADES, Free, Standard
from atent.testing import check_attack, check_method
from atent.train import TrainSettings, fit

LINF, L2 = Threat("linf", 0.05), Threat("l2", 0.4)


def net(batch_norm=True):
    torch.manual_seed(1)
    norm = [nn.BatchNorm2d(4)] if batch_norm else []
    return nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), *norm, nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)).eval()


class Constant(nn.Module):
    """Normalises by a tensor that .to() does not move."""

    def __init__(self):
        super().__init__()
        self.body, self.mean = net(), torch.full((1, 8, 8), 0.5)

    def forward(self, x):
        return self.body(x - self.mean)


class Split(nn.Module):
    """Its last layer is on another device than its first."""

    def __init__(self, device):
        super().__init__()
        self.first, self.last = net()[:4], net()[4].to(device)

    def forward(self, x):
        return self.last(self.first(x).to(self.last.weight.device))


def batch(n=12):
    torch.manual_seed(0)
    return torch.rand(n, 1, 8, 8), torch.arange(n) % 3


def smoke():
    """The checks of the GPU queue: what each method, attack and bound computes on the device and on the CPU."""
    found = {}
    for name, check in gpu_smoke.checks().items():
        try:
            check(torch.device(second_device.NAME, 0))
        except gpu_smoke.Skipped as error:
            found[name] = f"skipped: {error}"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
        else:
            found[name] = "agrees"
    return found


def updated(method, model, x, y):
    """The state, begun on the CPU, after a step of a loop of one's own."""
    state = method.init(len(x), tuple(x.shape[1:]), torch.device("cpu"))
    method.backward(model, x, y, ids=torch.arange(len(x)), state=state)
    return state


def meeting():
    """Each use of a network, inputs and labels of which one is on the second device: "" if equal, or why not."""
    (x, y), device = batch(), second_device.NAME
    uses = {
        "attack": lambda m, x, y: PGD(LINF, steps=3).run(m, x, y).x_adv,
        "minimum-norm attack": lambda m, x, y: DDN(L2, steps=4).run(m, x, y).x_adv,
        "black-box attack": lambda m, x, y: Square(LINF, queries=20).run(m, x, y).x_adv,
        "ensemble": lambda m, x, y: AutoAttack(LINF).run(m, x, y).success,
        "transfer": lambda m, x, y: Transfer(LINF, attack="PGD(steps=3)", source=net()).run(m, x, y).x_adv,
        "evaluate": lambda m, x, y: torch.tensor(
            evaluate(m, x, y, {"pgd": PGD(LINF, steps=3)}).attacks["pgd"]["robust"]["k"]
        ),
        "evaluate a loader": lambda m, x, y: torch.tensor(
            evaluate(m, DataLoader(TensorDataset(x, y), 5), attacks=[PGD(LINF, steps=3)]).clean["k"]
        ),
        "predict": lambda m, x, y: predict(m, x, y),
        "transfer matrix": lambda m, x, y: measure_transfer({"a": m, "b": net()}, x, y, PGD(LINF, steps=3)).robust,
        "frequency bands": lambda m, x, y: measure_bands(m, x, y, PGD(LINF, steps=3)).right,
        "flips": lambda m, x, y: measure_flips(m, x, y).rates,
        "checks": lambda m, x, y: torch.tensor([c.passed for c in masking_checks(m, x, y, LINF)]),
        "fewest pixels": lambda m, x, y: fewest(m, x, y, SparseRS(Threat("l0", 9), queries=20)),
        "verified": lambda m, x, y: verified(m, x, y, LINF, method="crown"),
        "margins": lambda m, x, y: margins(m, x, y, LINF, method="ibp"),
        "smoothing": lambda m, x, y: Smoothed(m, 0.1).predict(x, n=200, alpha=0.01),
        "certificate": lambda m, x, y: torch.tensor(
            [row.predict for row in certify_run(m, x, y, Sampling(sigma=0.1, n0=20, n=100)).rows]
        ),
        "step": lambda m, x, y: Standard().backward(m, x, y)["loss"],
        "adversarial step": lambda m, x, y: PGDAT(LINF, steps=2, start="zero").backward(m, x, y)["loss"],
        "step with a state": lambda m, x, y: updated(MMA(LINF, steps=2, bisection=5, start="zero"), m, x, y)["eps"],
        "step with a state by position": lambda m, x, y: updated(Free(LINF, replays=2), m, x, y)["delta"],
    }
    places = {
        "network there": (net().to(device), x, y), "inputs there": (net(), x.to(device), y),
        "labels there": (net(), x, y.to(device)), "labels here": (net().to(device), x.to(device), y),
        "last layer there": (Split(device).eval(), x, y),
    }  # fmt: skip
    found = {}
    for use, function in uses.items():
        expected = function(net(), x, y).detach()
        for place, given in places.items():
            if place == "last layer there" and use in ("verified", "margins"):
                continue  # bounds are of networks on one device
            try:
                now = function(*given).detach().cpu()
                equal = torch.allclose(now.double(), expected.double(), atol=1e-5)
                found[f"{use}, {place}"] = "" if equal else f"{now} for {expected}"
            except Exception as error:
                found[f"{use}, {place}"] = f"{type(error).__name__}: {error}"
    return found


def refused():
    """The error of each mistake that cannot be repaired."""
    (x, y), device = batch(), second_device.NAME
    there, rng = net().to(device), torch.Generator().manual_seed(0)
    mistakes = {
        "constant": lambda: PGD(LINF, steps=2)(Constant().to(device), x, y),
        "step, network there": lambda: TRADES(LINF, steps=1).backward(there, x, y, rng=rng),
        "step, inputs there": lambda: Standard().backward(net(), x.to(device), y, rng=rng),
        "step, labels here": lambda: Standard().backward(there, x.to(device), y, rng=torch.Generator(device)),
        "generator here": lambda: PGD(LINF, steps=2)(there, x.to(device), y.to(device), rng=rng),
    }
    found = {}
    for name, function in mistakes.items():
        try:
            function()
            found[name] = "nothing was said"
        except Exception as error:
            found[name] = f"{type(error).__name__}: {error}"
    return found


def suites():
    """The contract suites with a network and a batch of the device."""
    (x, y), device, found = batch(9), second_device.NAME, {}
    given = {"x": x.to(device), "y": y.to(device)}
    objects = [PGD(LINF, steps=3), DDN(L2, steps=4), Square(LINF, queries=10), *_methods()]
    for made in objects:
        check = check_attack if isinstance(made, PGD | DDN | Square) else check_method
        plain = type(made).__name__ in gpu_smoke.UNBATCHED or check is check_attack
        try:
            found[type(made).__name__] = "" if check(made, model=net(not plain).to(device), **given) else "no promise"
        except Exception as error:
            found[type(made).__name__] = f"{type(error).__name__}: {error}"
    return found


def _methods():
    return [gpu_smoke.made(name) for name in METHODS]


def trained():
    """The devices of a network after its training there."""
    x, y = batch(60)
    data = from_tensors(x, y, x[:12], y[:12], validation=12)
    settings = TrainSettings(epochs=2, batch_size=16, device=second_device.NAME, average="ema", validate_limit=12)
    model = net()
    fit(model, data, PGDAT(LINF, steps=2), settings=settings, progress=False)
    return {"devices": " ".join(sorted({p.device.type for p in model.parameters()}))}


if __name__ == "__main__":
    second_device.register(sys.argv[1])
    print(json.dumps(globals()[sys.argv[2]]()))
