"""Names that installed packages announce: of two packages, of an object of another module, of partials."""

import functools
import importlib
import json
import sys

import pytest
import torch
from torch import nn

from atent import Threat
from atent import runs as folder
from atent.attacks import ATTACKS
from atent.attacks.spec import parse, spell
from atent.certify import CERTIFIERS, Sampling, Smoothed, certify_run, smooths
from atent.certify.certificate import identity
from atent.data import from_tensors
from atent.methods import METHODS, Standard
from atent.optim import Optimizer, Schedule
from atent.registry import where
from atent.train import TrainSettings
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
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)), torch.rand(4, 1, 2, 2), torch.zeros(4).long()
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
