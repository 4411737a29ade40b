"""What the tests of the training methods share: small float64 networks, batches, streams and distances."""

import csv
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from atent import runs as folder
from atent.data import DataSettings, load
from atent.runs import manifest
from atent.runs.checkpoint import add_state
from atent.threat import Threat

N, CLASSES = 8, 5

BALLS = ("linf", "l2")
"""The norms of bounds, and of every attack and method unless it says otherwise."""

# Two ways to compute one float64 quantity through the tests' networks differ by rounding alone, and by the order of
# sums that a processor's kernels choose: at most 10 steps of 8 layers, forwards and backwards, each of sums of up to
# 2^8 products, round by 10 * 16 * 2^8 * 2^-53 < 5e-12 of the sums of absolute values, and of those cancellation leaves
# a tenth or more. A wrong formula is off by 1e-6 and more.
ROUNDING = 5e-11


def instances(place):
    """The rows of the instances.csv of VNN-LIB properties: network, property, timeout in seconds."""
    with open(place / "instances.csv", newline="", encoding="utf-8") as file:
        return [(place / network, place / prop, float(timeout)) for network, prop, timeout in csv.reader(file)]


def save_state(run, state):
    """Make ``state`` the newest checkpoint of a run."""
    with manifest.sealed(run) as files:
        add_state(files, state)


def network(norm=False, dropout=0.0, seed=3):
    """A small convolutional network that has seen three batches, in train mode; ``norm`` gives it batch-norm."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1),
        nn.BatchNorm2d(6) if norm else nn.Identity(),
        nn.ReLU(),
        nn.Conv2d(6, 6, 3, stride=2),
        nn.ReLU(),
        nn.Flatten(),
        nn.Dropout(dropout),
        nn.Linear(24, CLASSES),
    ).double()
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(N, 1, 6, 6, dtype=torch.float64))
    return model.train()


def learnt(x, y, labels, *, steps, classes, seed=3, dropout=0.0):
    """A small float64 network with batch-norm, in train mode, after ``steps`` of Adam on the first ``labels`` of a
    batch of 5 x 5 images."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(1, 5, 3, padding=1), nn.BatchNorm2d(5), nn.Softplus(), nn.Flatten(),
        nn.Dropout(dropout), nn.Linear(125, classes),
    ).double()  # fmt: skip
    step = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(steps):
        step.zero_grad()
        nn.functional.cross_entropy(model(x)[:labels], y[:labels]).backward()
        step.step()
    step.zero_grad()
    return model.train()


def batch(n=N, seed=5, side=6, classes=CLASSES):
    """Inputs in [0, 1] of shape (n, 1, side, side), and labels."""
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, side, side, generator=rng, dtype=torch.float64)
    return x, torch.randint(classes, (n,), generator=rng)


def stream(seed=11):
    """The generator of a step."""
    return torch.Generator().manual_seed(seed)


def fails(error, *parts, **settings):
    """Loading data by these settings raises `error`, in one line that holds all of `parts`; the message is returned."""
    with pytest.raises(error) as caught:
        load(DataSettings(**settings))
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message
    return message


def unsealed(run):
    """A run folder without its sums, as earlier versions left it: its files may be changed."""
    (Path(run) / "manifest.json").unlink(missing_ok=True)
    return run


def gradient(model):
    """The gradients of all parameters that have one, in one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def distance(a, b):
    """||a - b|| / ||b||."""
    return float((a - b).norm() / b.norm())


class Syncs(TorchDispatchMode):
    """Counts the operations that make a GPU's host wait; tensors say that they are not on the CPU."""

    WAIT = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2")

    def __init__(self):
        super().__init__()
        self.seen = []

    def __enter__(self):
        torch.Tensor.is_cpu = False
        return super().__enter__()

    def __exit__(self, *error):
        del torch.Tensor.is_cpu
        super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        # To gather by a mask is to count it first.
        masked = name.startswith("index") and any(
            i is not None and i.dtype in (torch.bool, torch.uint8)
            for i in (args[1] if isinstance(args[1], list) else [])
        )
        if masked or name in self.WAIT:
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class Live(TorchDispatchMode):
    """The most bytes of the tensors that operations inside have made and that are alive at once."""

    def __init__(self):
        super().__init__()
        self.known, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        self.known = {key: (ref, size) for key, (ref, size) in self.known.items() if not ref.expired()}
        for t in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(t, torch.Tensor) and not func.is_view:
                storage = t.untyped_storage()
                self.known[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.most = max(self.most, sum(size for _, size in self.known.values()))
        return out


def threat_in(norm, eps=None, **more):
    """A threat of a norm that suits images of 6 x 6 and 8 x 8 pixels."""
    usual = {"linf": 0.1, "l2": 0.6, "l1": 1.5, "l0": 2, "patch": 1}
    form = {"side": 2} if norm == "patch" else {}
    return Threat(norm, usual[norm] if eps is None else eps, **form, **more)


def own(run):
    """A run folder of an earlier version, signed as one that this user made."""
    path = run / folder.CONFIG
    folder.write_json(path, folder.signed(folder.read_json(path)))
    return run


class Recorded(nn.Module):
    """Keeps every input that it is shown."""

    def __init__(self, body):
        super().__init__()
        self.body, self.seen = body, []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        return self.body(x)


def without_times(rows):
    """The rows of a history without what differs from one training to the same once more."""
    return [{k: v for k, v in row.items() if k not in ("seconds", "memory_mb")} for row in rows]
