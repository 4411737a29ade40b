"""Small networks in float64 for the tests of ATENT's step, and the inputs that they see."""

from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

EPS = {"l2": 1.0, "linf": 0.3}


class Residual(nn.Module):
    """Stem, one residual block, mean, linear; ``momentum`` "no" leaves batch-norm out."""

    def __init__(self, momentum=0.1, dropout=0.0, channels=1, width=6):
        super().__init__()

        def norm():
            return nn.Identity() if momentum == "no" else nn.BatchNorm2d(width, momentum=momentum)

        self.stem, self.norm0 = nn.Conv2d(channels, width, 3, padding=1), norm()
        self.conv1, self.norm1 = nn.Conv2d(width, width, 3, padding=1), norm()
        self.conv2, self.norm2 = nn.Conv2d(width, width, 3, padding=1), norm()
        self.drop = nn.Dropout(dropout) if dropout else nn.Identity()
        self.fc = nn.Linear(4 * width, 5)

    def forward(self, x):
        x = F.relu(self.norm0(self.stem(x)))
        x = F.relu(x + self.norm2(self.conv2(F.relu(self.norm1(self.conv1(x))))))
        return self.fc(self.drop(F.adaptive_avg_pool2d(x, 2).flatten(1)))


class Mlp(nn.Sequential):
    def __init__(self, dropout=0.0, norm=False):
        super().__init__(
            nn.Flatten(),
            nn.Linear(36, 24),
            nn.BatchNorm1d(24) if norm else nn.Identity(),
            nn.Tanh(),
            nn.Dropout(dropout),
            nn.Linear(24, 5),
        )


NETWORKS = {
    "residual": lambda: Residual("no"),
    "residual-bn": lambda: Residual(0.1),
    "residual-bn-0.37": lambda: Residual(0.37),
    "residual-bn-none": lambda: Residual(None),
    "mlp-bn": lambda: Mlp(norm=True),
}


def network(make, seed=3):
    torch.manual_seed(seed)
    model = make().double().train()
    # Not the first batch of its life: the cumulative average of momentum=None must have a past.
    with torch.no_grad():
        for _ in range(3):
            model(torch.rand(8, 1, 6, 6, dtype=torch.float64))
    return model


def batch(n=8, seed=5):
    rng = torch.Generator().manual_seed(seed)
    x = torch.rand(n, 1, 6, 6, generator=rng, dtype=torch.float64)
    return x, torch.randint(5, (n,), generator=rng)


@contextmanager
def recorded(model):
    """The inputs that the model sees."""
    seen = []
    handle = model.register_forward_pre_hook(lambda _, args: seen.append(args[0].detach().clone()))
    try:
        yield seen
    finally:
        handle.remove()
