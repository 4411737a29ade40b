"""A zoo of networks as people write them, beside their well-behaved twins, and the entry points that take them."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from atent import Threat
from atent.attacks import DDN, FGSM, PGD, DeepFool, Langevin, Square
from atent.certify import Smoothed, bounds, verified
from atent.certify.certificate import Sampling, certify_run
from atent.data import from_tensors
from atent.evaluate import evaluate, predict, sweep
from atent.evaluate.craft import craft
from atent.guard import ask
from atent.methods import ATENT, AWP, MART, MMA, PGDAT, TRADES, Free, SmoothAdv, Standard
from atent.optim import Optimizer
from atent.report.samples import _predicted
from atent.train import TrainSettings, fit

LINF, L2 = Threat("linf", 0.1), Threat("l2", 0.5)
CLASSES, SIDE = 3, 6


class Twin(nn.Module):
    """The well-behaved network; the others change its ways and keep its weights."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 32, 3, padding=1)
        self.wide = nn.Conv2d(32, 4, 3, padding=1)
        self.lin = nn.Linear(4 * SIDE * SIDE, CLASSES)

    def features(self, z):
        return self.wide(self.conv(z).relu()).relu()

    def forward(self, z):
        return self.lin(self.features((z - 0.3) / 0.4).flatten(1))


class Arithmetic(Twin):
    def forward(self, z):
        z -= 0.3
        z /= 0.4
        return self.lin(self.features(z).flatten(1))


class Activation(Twin):
    """Its twin is `Clipped`."""

    def forward(self, z):
        return super().forward(F.relu_(F.hardtanh_(z, 0.2, 0.7)))


class Clipped(Twin):
    def forward(self, z):
        return super().forward(F.relu(F.hardtanh(z, 0.2, 0.7)))


class Assignment(Twin):
    """Its twin is `Blackened`."""

    def forward(self, z):
        z[:, :, 0] = 0.0
        return super().forward(z)


class Blackened(Twin):
    def forward(self, z):
        return super().forward(torch.cat([torch.zeros_like(z[:, :, :1]), z[:, :, 1:]], 2))


class Counting(Twin):
    """Writes buffers in eval mode, in place and by a new one."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, z):
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * z.detach().mean()
        return super().forward(z)


class Recycling(Twin):
    """Answers with a buffer that the next call overwrites, where no gradient is asked for."""

    def __init__(self):
        super().__init__()
        self.out = torch.zeros(0)

    def forward(self, z):
        logits = super().forward(z)
        if logits.requires_grad:
            return logits
        if self.out.shape != logits.shape or self.out.dtype != logits.dtype:
            self.out = torch.empty_like(logits)
        return self.out.copy_(logits)


class Requiring(Twin):
    def forward(self, z):
        z.requires_grad_()
        return super().forward(z)


class Hooked(Twin):
    """A pre-hook overwrites the input, another hook looks on."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.register_forward_pre_hook(lambda _module, inputs: (inputs[0].clamp_(0.2, 0.7),))
        self.register_forward_hook(lambda _module, _inputs, output: self.seen.append(tuple(output.shape)))

    def forward(self, z):
        return super().forward(F.relu(z))


class Viewing(Twin):
    """Flattens by view, behind a convolution that gains by channels-last."""

    def forward(self, z):
        z = self.features((z - 0.3) / 0.4)
        return self.lin(z.view(z.size(0), -1))


class Tied(Twin):
    """Two names for one weight; its twin uses the layer twice."""

    def __init__(self):
        super().__init__()
        self.again = nn.Conv2d(1, 32, 3, padding=1)
        self.again.weight, self.again.bias = self.conv.weight, self.conv.bias

    def forward(self, z):
        z = (z - 0.3) / 0.4
        return self.lin(self.wide((self.conv(z) + self.again(z)).relu()).relu().flatten(1))


class Twice(Twin):
    def forward(self, z):
        z = (z - 0.3) / 0.4
        return self.lin(self.wide((self.conv(z) + self.conv(z)).relu()).relu().flatten(1))


class Stateful(Twin):
    """Carries a state that is no tensor."""

    def get_extra_state(self):
        return {"version": 2}

    def set_extra_state(self, state):
        pass


class Squeezing(Twin):
    """Takes one sample for none: the batch dimension goes."""

    def forward(self, z):
        return super().forward(z).squeeze()


class SqueezingInside(Twin):
    """The same before its last layer, so that one sample alone fails."""

    def forward(self, z):
        z = self.features((z - 0.3) / 0.4).squeeze()
        return self.lin(z.flatten(1))


class Checkpointed(Twin):
    reentrant = False

    def forward(self, z):
        z = self.conv((z - 0.3) / 0.4).relu()
        z = checkpoint(self.wide, z, use_reentrant=self.reentrant).relu()
        return self.lin(z.flatten(1))


class Reentrant(Checkpointed):
    reentrant = True


class Listing(Twin):
    def forward(self, z):
        return super().forward(z), z


class Naming(Twin):
    def forward(self, z):
        return {"logits": super().forward(z)}


class Detaching(Twin):
    def forward(self, z):
        return super().forward(z.requires_grad_(False))


class Batched(Twin):
    """Batch statistics in eval mode."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def features(self, z):
        return self.norm(super().features(z))


class Attending(Twin):
    """Subtracts the mean of the batch's logits."""

    def forward(self, z):
        z = super().forward(z)
        return z - 0.5 * z.mean(0)


class Dropping(Twin):
    """Dropout that ignores eval mode."""

    def forward(self, z):
        return super().forward(F.dropout(z, 0.5))


class OneLogit(Twin):
    def forward(self, z):
        return super().forward(z)[:, :1]


class OneNumber(Twin):
    def forward(self, z):
        return super().forward(z)[:, 0]


def made(kind, seed=0):
    """A network of the kind in eval mode, with the weights of its twins."""
    torch.manual_seed(seed)
    net = kind()
    for p in net.parameters():
        p.data.mul_(1.5)
    return net.eval()


def normed(wrap):
    def build():
        net = made(Twin)
        wrap(net.lin)
        return net.eval()

    return build


def folded(wrap):
    """The plain network with the weight that the parametrised one computes."""

    def build():
        other = normed(wrap)()
        net = made(Twin)
        net.lin.weight.data = other.lin.weight.detach().clone()
        net.lin.bias.data = other.lin.bias.detach().clone()
        return net

    return build


def scripted():
    return torch.jit.script(made(Arithmetic))


def traced():
    return torch.jit.trace(made(Arithmetic), torch.rand(2, 1, SIDE, SIDE), check_trace=False)


def compiled():
    return torch.compile(made(Arithmetic), backend="eager")


def of(kind):
    return lambda: made(kind)


weight_norm = nn.utils.parametrizations.weight_norm
spectral_norm = nn.utils.parametrizations.spectral_norm


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


# name: (the network, its well-behaved twin)
ZOO = {
    "arithmetic in place": (of(Arithmetic), of(Twin)),
    "activation in place": (of(Activation), of(Clipped)),
    "assignment": (of(Assignment), of(Blackened)),
    "buffers": (of(Counting), of(Twin)),
    "recycled output": (of(Recycling), of(Twin)),
    "requires_grad_": (of(Requiring), of(Twin)),
    "hooks": (of(Hooked), of(Clipped)),
    "view": (of(Viewing), of(Twin)),
    "tied": (of(Tied), of(Twice)),
    "extra state": (of(Stateful), of(Twin)),
    "squeezes": (of(Squeezing), of(Twin)),
    "squeezes inside": (of(SqueezingInside), of(Twin)),
    "checkpoint": (of(Checkpointed), of(Twin)),
    "weight norm": (normed(weight_norm), folded(weight_norm)),
    "spectral norm": (normed(spectral_norm), folded(spectral_norm)),
    "old weight norm": (normed(old_weight_norm), folded(old_weight_norm)),
    "compiled": (compiled, of(Twin)),
    "scripted": (scripted, of(Twin)),
    "traced": (traced, of(Twin)),
}
# The ways in which networks differ most; the others are tried where time allows.
FIRST = ("arithmetic in place", "hooks", "view", "recycled output", "scripted")


def names(keep, of=tuple(ZOO)):
    """The networks as parameters, those that are not in ``keep`` as slow tests."""
    return pytest.mark.parametrize("name", [n if n in keep else pytest.param(n, marks=pytest.mark.slow) for n in of])


PLAIN = pytest.mark.parametrize("name", ZOO)


def data(n=7, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, SIDE, SIDE, generator=rng), torch.arange(n) % CLASSES


def shares(found):
    return {"clean": found.clean, "worst": found.worst, "outcomes": found.outcomes, "hint": found.hint}


def run(attack):
    return lambda net, x, y: tuple(attack.run(net, x, y))


# What each entry point gives, in comparable form.
ENTRIES = {
    "ask": lambda net, x, y: ask(net, x).detach(),
    "PGD": run(PGD(LINF, steps=3)),
    "PGD call": lambda net, x, y: PGD(L2, steps=3, restarts=2)(net, x, y),
    "PGD channels-last": lambda net, x, y: quietly(PGD(LINF, steps=3).run, net, x, y, channels_last=True).success,
    "FGSM": run(FGSM(LINF)),
    "Langevin": run(Langevin(L2, steps=3)),
    "DeepFool": run(DeepFool(L2, steps=3)),
    "DDN": run(DDN(L2, steps=5)),
    "Square": run(Square(LINF, queries=5)),
    "evaluate": lambda net, x, y: shares(evaluate(net, x, y, [PGD(LINF, steps=3)], batch=3)),
    "evaluate one by one": lambda net, x, y: shares(evaluate(net, x, y, [FGSM(LINF)], batch=1)),
    "predict": lambda net, x, y: predict(net, x, y, batch=3),
    "sweep": lambda net, x, y: [row["robust"] for row in sweep(net, x, y, [FGSM(LINF)], [0.05, 0.1])],
    "craft": lambda net, x, y: craft(net, x, y, FGSM(LINF), batch=3),
    "certify": lambda net, x, y: quietly(Smoothed(net, 0.25).certify, x[:3], n0=20, n=100, alpha=0.05),
    "certify_run": lambda net, x, y: [
        row._replace(time=0.0) for row in quietly(certify_run, net, x[:3], y[:3], Sampling(0.25, 20, 100, 0.05)).rows
    ],
    "pictures": lambda net, x, y: _predicted(net, x),
}
BOUNDS = {
    "bounds": lambda net, x, y: tuple(t.detach() for t in bounds(net, x[:2], LINF)),
    "verified": lambda net, x, y: verified(net, x, y, Threat("linf", 0.002), "crown-ibp"),
}
CAN_BE_BOUNDED = (
    "arithmetic in place", "activation in place", "view", "tied", "extra state", "checkpoint", "weight norm",
    "spectral norm", "compiled",
)  # fmt: skip


def quietly(function, *args, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return function(*args, **more)


def alike(a, b):
    """Equal, tensors to float32 rounding of values near 1 (another kernel, or a norm computed on the way)."""
    if isinstance(a, torch.Tensor):
        if not a.is_floating_point():
            return torch.equal(a, b)
        return torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    if isinstance(a, float):
        return a == pytest.approx(b, rel=1e-4, abs=1e-5)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(alike, a, b))
    return a == b


def untouched(net, entry, x, y):
    """What the entry gives; the caller's tensors must be as they were, bit for bit."""
    before = x.clone(), y.clone()
    found = entry(net, x, y)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert not x.requires_grad
    return found


METHODS = {
    "Standard": Standard(),
    "PGDAT": PGDAT(LINF, steps=2),
    "TRADES": TRADES(LINF, steps=2),
    "ATENT": ATENT(L2, steps=2),
    "ATENT, kl": ATENT(L2, steps=2, outer_loss="kl"),
    "AWP": AWP(PGDAT(LINF, steps=2)),
    "MART": MART(LINF, steps=2),
    "MMA": MMA(L2, steps=2, bisection=5),
    "Free": Free(LINF, replays=2),
    "SmoothAdv": SmoothAdv(L2, sigma=0.1, steps=2),
}


def trained(net, method, run=None, n=11, **settings):
    x, y = data(n + 4)
    parts = x[:n], y[:n], x[n:], y[n:]
    before = [part.clone() for part in parts]
    given = {"epochs": 1, "batch_size": 5, "validate_attack": "PGD(steps=2)", "watch": "off", **settings}
    found = fit(
        net, from_tensors(*parts, validation=4), method, settings=TrainSettings(**given), run=run, progress=False,
        optimizer=Optimizer(lr=0.1),
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(parts, before))
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "memory_mb")} for row in found.history]
    return rows, [p.detach().clone() for p in found.model.parameters()]


def refused(function, *args, says=None):
    """The one line of the ValueError."""
    with pytest.raises(ValueError, match=says) as caught:
        quietly(function, *args)
    text = str(caught.value)
    assert "\n" not in text
    return text
