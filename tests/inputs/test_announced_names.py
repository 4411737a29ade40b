"""Names that installed packages announce: of two packages, of an object of another module, of partials."""

import functools
import importlib
import json
import sys

import pytest
import torch
from torch import nn

import atent
from atent import Threat
from atent import runs as folder
from atent.attacks import ATTACKS
from atent.attacks.spec import parse, spell
from atent.certify import CERTIFIERS, Sampling, Smoothed, certify_run, smooths
from atent.certify.certificate import identity
from atent.data import from_tensors
from atent.experiments.code_named import code_named
from atent.methods import METHODS, Standard
from atent.models import ModelSettings, make
from atent.optim import Optimizer, Schedule
from atent.registry import where
from atent.train import TrainSettings
from atent.train.builders import Builders
from atent.train.describe import describe
from atent.train.fingerprint import completed, difference, fingerprint, started

ATTACK = """
import dataclasses

from atent.attacks import Attack


@dataclasses.dataclass(frozen=True)
class {name}(Attack):
    passes = 1
    needs_gradient = False

    def search(self, oracle, x, y, streams):
        return x
"""


@pytest.fixture
def announce(tmp_path, monkeypatch):
    """announce(package, group, names, **modules): install a package with the source of its modules."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    monkeypatch.syspath_prepend(str(tmp_path / "source"))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    (tmp_path / "source").mkdir()
    written = []

    def install(package, group, names, *, editable=False, **modules):
        about = tmp_path / "site" / f"{package}-0.3.dist-info"
        about.mkdir(parents=True, exist_ok=True)
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 0.3\n")
        (about / "top_level.txt").write_text("\n".join(modules))
        lines = [f"{name} = {target}" for name, target in names.items()]
        (about / "entry_points.txt").write_text("\n".join([f"[{group}]", *lines, ""]))
        for name, text in modules.items():
            (tmp_path / ("source" if editable else "site") / f"{name}.py").write_text(text)
            sys.modules.pop(name, None)
            written.append(name)
        importlib.invalidate_caches()

    yield install
    for name in written:
        sys.modules.pop(name, None)


def test_a_name_of_two_packages_is_refused(announce):
    """Before: the package that is found last had the name."""
    for package in ("first_of_two", "second_of_two"):
        announce(package, "atent.attacks", {"Shift": f"{package}:Shift"}, **{package: ATTACK.format(name="Shift")})
    both = r"'Shift' is announced by .*first_of_two 0\.3 \(first_of_two:Shift\).*: write it as \w+:Shift$"
    with pytest.raises(ValueError, match=both):
        ATTACKS.find("Shift")
    with pytest.warns(UserWarning, match="announced by"):
        assert "Shift" not in list(ATTACKS)
    threat = Threat("linf", 0.1)
    for package in ("first_of_two", "second_of_two"):
        own = parse(f"{package}:Shift", threat, ATTACKS)
        assert spell(own) == f"{package}:Shift"
        assert parse(spell(own), threat, ATTACKS) == own


def test_a_name_of_two_packages_for_one_object_is_found(announce):
    announce("theirs_once", "atent.attacks", {"Shift": "theirs_once:Shift"}, theirs_once=ATTACK.format(name="Shift"))
    announce("theirs_again", "atent.attacks", {"Shift": "theirs_once:Shift"})
    assert ATTACKS.name_of(ATTACKS.find("Shift")) == "Shift"
    assert ATTACKS.origin("Shift").endswith(" 0.3")


def test_an_announced_object_of_another_module_has_its_name(announce):
    """Before: a package that imports its attack from a module of its own had it stored by that module."""
    announce(
        "facade", "atent.attacks", {"Shift": "facade:Shift", "Absent": "facade:Absent"},
        facade="from facade_core import Shift\n", facade_core=ATTACK.format(name="Shift"),
    )  # fmt: skip
    found = ATTACKS.find("Shift")
    assert where(found) == "facade_core:Shift"
    assert ATTACKS.name_of(found) == "Shift"
    assert spell(parse("facade_core:Shift", Threat("linf", 0.1), ATTACKS)) == "Shift"


def test_a_training_that_stored_the_module_of_its_method_resumes(announce, monkeypatch):
    """A run that an earlier version began stored the name by which `where` refers to the method."""
    text = "from dataclasses import dataclass\nfrom atent.methods import Standard\n\n"
    text += "@dataclass(frozen=True)\nclass Mine(Standard):\n    pass\n"
    announce(
        "facade", "atent.methods", {"Mine": "facade:Mine"}, facade="from facade_core import Mine\n", facade_core=text
    )
    method = METHODS.find("Mine")()

    def saved(name):
        return folder.dumps({"method": {"name": name}, "model": {}, "train": {}, "data": {}, "files": None})

    assert METHODS.name_of(type(method)) == "Mine"
    now = {"config": saved("Mine"), "code": {}, "samples": None, "split": None}
    assert json.loads(completed(saved("facade_core:Mine"), saved("Mine"), method))["method"]["name"] == "Mine"
    assert difference({**now, "config": saved("facade_core:Mine")}, now, method) is None
    assert "method.name" in difference({**now, "config": saved("other:Mine")}, now, method)


BUILDERS = """
import torch
from torch import nn


def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3))


def steps(params, lr):
    return torch.optim.SGD(params, lr)
"""


@pytest.mark.parametrize("part", ["model", "optimizer"])
def test_an_edited_builder_that_is_announced_counts(announce, part):
    """Before: only one that was named as module:function did."""
    group, name = {"model": ("atent.models", "net"), "optimizer": ("atent.optimizers", "steps")}[part]
    announce("announced", group, {name: f"announced:{name}"}, editable=True, announced=BUILDERS)
    x, y = torch.rand(12, 1, 4, 4), torch.arange(12) % 3
    data, model = from_tensors(x, y, x, y, validation=3), nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    settings = TrainSettings(epochs=1, device="cpu")
    config = describe(model, data, Standard(), Optimizer(), Schedule(), settings, "none")
    config = {**config, part: {**config[part], "name": name}}
    position = started(config, data, Standard(), model, torch.optim.SGD(model.parameters(), 0.1), {})
    assert list(position["code"]) == ["announced"]
    assert fingerprint(config) == position["config"]


INSTANCE = """
import functools
import torch
from torch import nn

torch.manual_seed(0)
NET = nn.Sequential(nn.Flatten(), nn.Linear(16, {width}), nn.ReLU(), nn.Linear({width}, 3))
"""


def test_an_edited_module_counts_whatever_it_names(announce):
    """A network of torch's layers and a partial do not show the file that made them."""
    settings = {"model": {"name": "of_the_user:NET"}, "sizes": [1, None], "others": ("theirs:NET", "linf")}
    found = []
    for width in (4, 5, 4):
        announce("other", "atent.models", {}, editable=True, of_the_user=INSTANCE.format(width=width))
        found.append(code_named(settings))
    first, second, again = found
    assert list(first) == list(second) == ["of_the_user"]
    assert first == again != second


@pytest.mark.parametrize("name", ["of_the_user:NET", "NET"])
def test_networks_that_a_name_gives_share_no_weights(announce, name):
    """Before: a file that was loaded into such a network replaced the weights of the one that was loaded before it, and
    a second training, such as that of the baseline, began with the weights of the first."""
    announce("named", "atent.models", {"NET": "of_the_user:NET"}, editable=True, of_the_user=INSTANCE.format(width=4))
    x, task = torch.rand(5, 1, 4, 4), {"classes": 3, "shape": (1, 4, 4)}
    states = []
    for seed in (1, 2):
        net = make(ModelSettings(name), **task)
        torch.manual_seed(seed)
        with torch.no_grad():
            for p in net.parameters():  # stands for a training
                p.copy_(torch.randn(p.shape))
        states.append(net.state_dict())
        torch.save(net.state_dict(), f"{seed}.pt")
    one, other = (atent.load(f"{seed}.pt", model=name, **task) for seed in (1, 2))
    for net, state in zip((one, other), states):
        assert all(torch.equal(value, state[key]) for key, value in net.state_dict().items())
    assert not torch.equal(one(x), other(x))
    own = sys.modules["of_the_user"].NET
    again = make(ModelSettings(name), **task)
    assert again is not own
    assert all(torch.equal(a, b) for a, b in zip(again.parameters(), own.parameters()))
    assert not any(torch.equal(a, b) for a, b in zip(again.parameters(), one.parameters()))


DRAWN = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("drawn", torch.randn(16, 16), persistent=False)
        self.last = nn.Linear(16, 3)

    def forward(self, x):
        return self.last(x.flatten(1) @ self.drawn)


NET = Net()
"""


@pytest.mark.parametrize("given", ["builder", "settings"])
def test_what_a_named_network_draws_is_stored(announce, given):
    """Another process that imports its module draws other values. Before: not for a copy, as `fit` may be given."""
    announce("named", "atent.models", {}, editable=True, of_the_user=DRAWN)
    name, (x, y) = "of_the_user:NET", (torch.rand(12, 1, 4, 4), torch.arange(12) % 3)
    data = from_tensors(x, y, x, y, validation=3)
    builders = Builders(model=name if given == "builder" else None)
    own = importlib.import_module("of_the_user").NET
    for model in (own, make(ModelSettings(name), classes=3, shape=(1, 4, 4))):
        assert builders.check(model, data, {"model": {"name": name}}) == ["drawn"]


def test_a_network_without_a_copy_is_refused_where_a_name_gives_it(announce):
    text = INSTANCE.format(width=4) + "\nNET.extra = (None for _ in range(2))  # a generator\n"
    announce("named", "atent.models", {}, editable=True, of_the_user=text)
    with pytest.raises(ValueError, match=r"of_the_user:NET is a network that cannot be copied .*: name a function"):
        make(ModelSettings("of_the_user:NET"), classes=3, shape=(1, 4, 4))


class Scaled:
    """A share of the radii of randomised smoothing."""

    def __init__(self, model, sigma, share=1.0):
        self.model, self.sigma, self.share = model, sigma, share

    def certify(self, x, n0, n, alpha, *, seed, ids):
        classes, radii = Smoothed(self.model, self.sigma).certify(x, n0, n, alpha, seed=seed, ids=ids)
        return classes, self.share * radii


half = functools.partial(Scaled, share=0.5)
quarter = functools.partial(half, share=0.25)
nothing = functools.partial(nn.Identity)


def test_a_partial_of_a_class_certifies_by_noise(tmp_path):
    """Before: it was called as a function of (model, x, threat)."""
    name = f"{__name__}:half"
    assert smooths(name)
    assert smooths(f"{__name__}:quarter")
    with pytest.raises(ValueError, match="not a function of"):
        CERTIFIERS.find(f"{__name__}:nothing")
    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.rand(4, 1, 2, 2), torch.zeros(4).long()
    with torch.no_grad():
        model[1].bias.copy_(torch.tensor([9.0, -9.0]))
    sampling = Sampling(0.25, 10, 100)

    def radii(certifier, **given):
        return torch.tensor(certify_run(model, x, y, sampling, certifier=certifier, **given).radii())

    whole = radii(Smoothed)
    assert whole.max() > 0
    torch.testing.assert_close(radii(CERTIFIERS.find(name)), whole / 2)
    # Rows of other arguments are not taken for these.
    kinds = [Scaled, half, quarter, functools.partial(Scaled, share=0.25)]
    assert len({json.dumps(identity(model, kind)) for kind in kinds}) == 3
    radii(half, path=tmp_path / "rows.csv")
    torch.testing.assert_close(radii(half, path=tmp_path / "rows.csv"), whole / 2)
    with pytest.raises(ValueError, match=r"rows\.csv was made with"):
        radii(quarter, path=tmp_path / "rows.csv")
