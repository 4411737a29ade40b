import os
import shutil
import signal
import sys
from pathlib import Path

from atent.threads import wait_passively

# Before torch is loaded: OpenMP reads it once.
wait_passively()

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from torch import nn  # noqa: E402

CUDA, VISIBLE = torch.cuda.is_available(), os.environ.get("CUDA_VISIBLE_DEVICES")


@pytest.fixture(scope="session", autouse=True)
def no_cuda():
    """Where there is a GPU, `device="auto"` means the CPU in all tests and their children: figures are the CPU's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(scope="session", autouse=True)
def own_key(tmp_path_factory):
    """The key that signs runs is the session's, not that of whoever runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session", autouse=True)
def own_width():
    """Tables have the width of piped output, whatever COLUMNS the shell exports: cells fold on narrower ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("COLUMNS", raising=False)
        yield


@pytest.fixture(autouse=True, scope="session")
def signals_are_not_ignored():
    """Tests send signals, of which a suite in the background, or under nohup, is started with some ignored."""
    for name, handler in (("SIGINT", signal.default_int_handler), ("SIGHUP", signal.SIG_DFL)):
        number = getattr(signal, name, None)
        if number is not None and signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, handler)


@pytest.fixture(autouse=True)
def cuda_where_marked(request, monkeypatch):
    """A test marked `cuda` sees the GPU, and is skipped where there is none."""
    if request.node.get_closest_marker("cuda") is None:
        return
    if not CUDA:
        pytest.skip("needs CUDA")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES")
    if VISIBLE is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", VISIBLE)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Small tensors: more threads than one only get in each other's way; ATENT_TEST_THREADS tries others."""
    before = torch.get_num_threads()
    torch.set_num_threads(int(os.environ.get("ATENT_TEST_THREADS", 1)))
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def modules_of_a_test(tmp_path_factory):
    """A module that a test wrote and imported is not what the next test finds under the same name."""
    before, place = set(sys.modules), str(tmp_path_factory.getbasetemp())
    yield
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", None)).startswith(place):
            del sys.modules[name]


@pytest.fixture
def seeded():
    """The test begins with the same state of torch's global random numbers, alone or after others."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def all_digits():
    """Scikit-learn's digits, float64 (1797, 1, 8, 8) in [0, 1], and labels."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return torch.tensor(bunch.images / 16.0).unsqueeze(1), torch.tensor(bunch.target).long()


@pytest.fixture(scope="session")
def _short_run(tmp_path_factory):
    """A short training on a few digits, evaluated under FGSM."""
    from atent.cli import main

    place = tmp_path_factory.mktemp("short")
    words = (
        "train digits-linf-standard --no_baseline --quiet --train.epochs 2 --train.batch_size 16 --data.limit 640"
        " --train.validate_limit 10 --evaluate.attacks FGSM --evaluate.limit 60 --evaluate.eps 0.05 --train.device cpu"
        " --name run --runs"
    )
    assert main([*words.split(), str(place)]) == 0
    return place / "run"


@pytest.fixture
def short_run(_short_run, tmp_path, monkeypatch):
    """A copy of that run as "run" in the folder of work, which is a new one."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(_short_run, "run")
    return Path("run")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A new folder, which is the current one; ATENT_DATA_ROOT is unset."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ATENT_DATA_ROOT", raising=False)
    return tmp_path


@pytest.fixture
def batch(all_digits):
    """batch(n, dtype): n digits that `conv_net` was not trained on."""

    def make(n=9, dtype=torch.float64):
        x, y = all_digits
        return x[1000 : 1000 + n].to(dtype, copy=True), y[1000 : 1000 + n].clone()

    return make


def _network(norm):
    layers = [nn.Conv2d(1, 8, 3, padding=1), *([nn.BatchNorm2d(8)] if norm else []), nn.ReLU()]
    return nn.Sequential(*layers, nn.AvgPool2d(2), nn.Flatten(), nn.Linear(128, 10)).double()


@pytest.fixture(scope="session")
def _weights(all_digits):
    states = {}
    x, y = (t[:600] for t in all_digits)
    for norm in (False, True):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(5)
            net = _network(norm)
        step = torch.optim.Adam(net.parameters(), lr=0.03)
        for _ in range(40):
            step.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            step.step()
        states[norm] = net.state_dict()
    return states


@pytest.fixture
def conv_net(_weights):
    """conv_net(dtype, norm): a trained small network on digits, a fresh copy, in eval mode."""

    def make(dtype=torch.float64, norm=False):
        net = _network(norm)
        net.load_state_dict(_weights[norm])
        return net.to(dtype).eval()

    return make


@pytest.fixture
def five(conv_net, batch):
    """A network, four digits that it gets right and one that it does not."""
    from minimum_norm import right

    model, (x, y) = conv_net(), batch(20)
    x, y = right(model, x, y, 5)
    y[2] = (y[2] + 1) % 10
    return model, x, y


@pytest.fixture
def two_class():
    """two_class(n, d, dtype): linear model, x well inside [0, 1], labels that it gets right, and by norm each
    sample's exact distance to the decision boundary."""

    def make(n=24, d=10, dtype=torch.float64):
        g = torch.Generator().manual_seed(17)
        w = torch.randn(d, generator=g, dtype=torch.float64)
        x = 0.4 + 0.2 * torch.rand(n, d, generator=g, dtype=torch.float64)
        b = -(x @ w).median()
        x, b = x.to(dtype), b + 1e-3
        net = nn.Linear(d, 2).to(dtype)
        with torch.no_grad():
            net.weight.copy_(torch.stack([-w / 2, w / 2]))
            net.bias.copy_(torch.stack([-b / 2, b / 2]))
        score = x.double() @ w + b
        distance = {
            "linf": score.abs() / w.abs().sum(),
            "l2": score.abs() / w.norm(),
            "l1": score.abs() / w.abs().max(),
        }
        return net, x, (score > 0).long(), distance

    return make


@pytest.fixture(scope="session")
def trained():
    """Two networks trained on 1,000 digits against FGSM, linf 0.08, 90 steps of Adam; float64 and in eval mode.

    Their weights are in a file: those of a training differ between processors in the last bits, and more where a tie of
    max-pooling falls differently.
    """
    from bound_networks import Residual, plain_net

    nets = {}
    with np.load(Path(__file__).parent / "files" / "bounds.npz") as arrays:
        for name, make in (("residual", Residual), ("plain", plain_net)):
            net = make()
            net.load_state_dict({k: torch.tensor(arrays[f"{name}/{k}"]) for k in net.state_dict()})
            nets[name] = net.double().eval()
    return nets
