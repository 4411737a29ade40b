"""A short training whose best epoch is known, its folder, and damage to its files."""

import shutil

import pytest
import torch
from torch import nn

from atent import runs as folder
from atent.data import from_tensors
from atent.methods import Standard
from atent.runs import manifest
from atent.train import TrainSettings, fit

CPU = torch.device("cpu")
STATE, PREVIOUS = "last/state.pt", "last/previous.pt"
BEST_EPOCH, EPOCHS, STEPS = 2, 4, 3


def data():
    """Images whose first pixel is their class."""
    rng = torch.Generator().manual_seed(1)

    def part(n):
        x, y = torch.rand(n, 1, 3, 3, generator=rng), torch.arange(n) % 3
        x[:, 0, 0, 0] = y / 2
        return x, y

    return from_tensors(*part(32 * STEPS), *part(30), validation=30)


class Peaks(nn.Module):
    """Right on every image after `BEST_EPOCH` epochs, and at no other time."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(9, 3)
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x):
        self.steps += self.training
        peak = -10 * (2 * x[:, 0, 0, :1] - torch.arange(3)).square()
        constant = torch.tensor([[10.0, 0.0, 0.0]])
        return torch.where(self.steps == BEST_EPOCH * STEPS, peak, constant) + 1e-3 * self.linear(x.flatten(1)).tanh()


def net(seed=0):
    torch.manual_seed(seed)
    return Peaks()


def trained(path, *, resume=False, epochs=EPOCHS, seed=0, callbacks=(), said=None, **more):
    # An hour: by default a checkpoint is left out where a slow disk makes it expensive.
    how = {"batch_size": 32, "validate_limit": 30, "device": "cpu", "save_minutes": 60} | more
    settings = TrainSettings(epochs=epochs, seed=seed, **how)
    lines = [] if said is None else said
    return fit(
        net(9 if resume else 0), data(), Standard(), settings=settings, run=path, resume=resume, progress=False,
        callbacks=callbacks, say=lines.append,
    )  # fmt: skip


def flip(path, bit):
    """The file with one bit changed."""
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


def content(run):
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}


def finished(path):
    """A training to its end with an evaluation, and its folder."""
    fitted = trained(path)
    manifest.write_json(path / folder.EVALUATION, {"accuracy": 0.5})
    return fitted, path


# Modules that import these fixtures have them as `whole` and `run`.
@pytest.fixture(scope="module", name="whole")
def whole_run(tmp_path_factory):
    """A training to its end, and its folder."""
    return finished(tmp_path_factory.mktemp("manifest") / "whole")


@pytest.fixture(name="run")
def run_to_change(whole, tmp_path):
    """A copy of that folder to change."""
    shutil.copytree(whole[1], tmp_path / "copy")
    return tmp_path / "copy"
