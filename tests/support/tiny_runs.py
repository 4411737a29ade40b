"""Short trainings of small networks on few images."""

import dataclasses

import torch
from torch import nn

from atent.data import from_tensors
from atent.methods import Standard
from atent.optim import Optimizer
from atent.train import TrainSettings, fit

N, CLASSES = 24, 3


def images(n=N, classes=CLASSES):
    rng = torch.Generator().manual_seed(3)
    x, y = torch.rand(40, 1, 4, 4, generator=rng), torch.arange(40) % classes
    data = from_tensors(x, y, x[:9], y[:9], validation=9)
    return dataclasses.replace(data, train=data.train.first(n))


def train(model, path=None, data=None, method=None, resume=False, **changes):
    settings = {"epochs": 2, "batch_size": 8, "device": "cpu", "validate_attack": "FGSM", **changes}
    torch.manual_seed(0)
    return fit(
        model, data or images(), method or Standard(), optimizer=Optimizer(lr=0.1), settings=TrainSettings(**settings),
        run=path, progress=False, resume=resume,
    )  # fmt: skip


def make(kind, seed=0):
    torch.manual_seed(seed)
    return kind()


def answers(model):
    with torch.no_grad():
        return model.eval()(torch.linspace(0, 1, 48).view(3, 1, 4, 4))


class Body(nn.Module):
    """What the networks share: 16 pixels in, 3 logits out."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(16, 8), nn.Linear(8, CLASSES)

    def forward(self, x):
        return self.last(self.first(x.flatten(1)).relu())


class Adds(Body):
    """A buffer that the first training pass makes, and one that grows."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cache", None)
        self.register_buffer("bank", torch.zeros(0))

    def forward(self, x):
        if self.training:
            if not hasattr(self, "mean"):
                self.register_buffer("mean", torch.zeros(()))
            self.mean = 0.9 * self.mean + 0.1 * x.mean()
            self.cache = x.mean((0, 1))
            if len(self.bank) < 20:
                self.bank = torch.cat([self.bank, x.mean()[None]])
        extra = self.mean + self.bank.sum() if hasattr(self, "mean") else 0.0
        return super().forward(x) * (1 + extra)


def same(a, b):
    assert a.keys() == b.keys()
    for k in a:
        if isinstance(a[k], torch.Tensor):
            torch.testing.assert_close(a[k], b[k], rtol=0, atol=0, equal_nan=True)
        else:
            assert a[k] == b[k]
