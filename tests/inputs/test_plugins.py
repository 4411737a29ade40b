"""Things from outside: in the user's files, and announced by installed packages; none of it needs a line of ours."""

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from torch import nn

import atent
from atent import Threat
from atent.attacks import ATTACKS
from atent.attacks.spec import parse, spell
from atent.cli import main
from atent.methods import AWP, METHODS
from atent.models import MODELS, build
from atent.registry import Registry, plugin_of

MODULE = """
import dataclasses
import functools
import math
import torch
from torch import nn
from atent import Threat
from atent.attacks import Attack
from atent.certify import Smoothed, bounds
from atent.data import from_tensors
from atent.methods import Method


@dataclasses.dataclass(frozen=True)
class Noise(Attack):
    '''Random corners of the ball.'''
    threat: Threat
    tries: int = 2

    @property
    def passes(self):
        return self.tries + 1

    def search(self, oracle, x, y, streams):  # streams, by a name of its own
        best = x
        for k in range(self.tries):
            step = self.threat.eps * streams.normal(x, use="start", restart=k).sign()
            candidate = self.threat.project(x + step, x)
            wrong = oracle.logits(candidate, y).argmax(1) != y
            best = torch.where(wrong.view(-1, *[1] * (x.dim() - 1)), candidate, best)
        return best


@dataclasses.dataclass(frozen=True)
class MyAT(Method):
    '''Training on one random corner.'''
    threat: Threat
    strength: float = 1.0

    def __post_init__(self):
        if self.strength < 0:
            raise ValueError(f"strength must be at least 0, got {self.strength}")

    def adversary(self, model, x, y, *, rng, ids=None, progress=1.0, state=None):
        noise = torch.randn(x.shape, generator=rng, device=x.device).sign()
        return self.threat.project(x + self.strength * self.threat.eps * noise, x)

    def loss(self, model, x, y, aux, *, progress=1.0, state=None):
        logits = model(aux)
        return nn.functional.cross_entropy(logits, y), {"accuracy": (logits.argmax(1) == y).double().mean()}


class Lion(torch.optim.Optimizer):
    '''Signs of a running mean (Chen et al. 2023).'''

    def __init__(self, params, lr, beta=0.9):
        super().__init__(params, {"lr": lr, "beta": beta})

    def step(self, closure=None):
        loss = None if closure is None else closure()
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is None:
                        continue
                    mean = self.state[p].setdefault("mean", torch.zeros_like(p))
                    mean.mul_(group["beta"]).add_(p.grad, alpha=1 - group["beta"])
                    p.sub_(mean.sign(), alpha=group["lr"])
        return loss


def blobs():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(240) % 3
    x = (0.3 + 0.2 * y.view(-1, 1, 1, 1) + 0.05 * torch.randn(240, 1, 4, 4, generator=generator)).clamp(0, 1)
    return from_tensors(x[:180], y[:180], x[180:], y[180:], validation=30, name="blobs")


def net():
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))


def sized(classes, shape):
    return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], classes))


def nothing():
    return 3


def intervals(model, x, threat):
    '''Intervals from layer to layer.'''
    return bounds(model, x, threat, "ibp")


tight = functools.partial(bounds, method="crown")


def unsound(model, x, threat):
    logits = model(x)
    return torch.zeros_like(logits), torch.full_like(logits, -1.0)


class Halved:
    '''Half of the radii of randomised smoothing.'''

    def __init__(self, model, sigma):
        self.model, self.sigma = model, sigma

    def certify(self, x, n0, n, alpha, *, seed, ids):
        classes, radii = Smoothed(self.model, self.sigma).certify(x, n0, n, alpha, seed=seed, ids=ids)
        return classes, radii / 2


class Boundless(Halved):
    def certify(self, x, n0, n, alpha, *, seed, ids):
        return torch.zeros(len(x)).long(), torch.full((len(x),), 9.0)
"""

RECIPE = """
[data]
name = "{p}{data}"
[model]
name = "{p}net"
[method]
name = "{p}{method}"
threat = {{ norm = "linf", eps = 0.05 }}
strength = 0.5
[optimizer]
name = "{p}{optimizer}"
lr = 0.01
args = {{ beta = 0.5 }}
[train]
epochs = 2
batch_size = 32
validate_attack = "{p}{attack}(tries=1)"
device = "cpu"
[evaluate]
attacks = ["FGSM", "{p}{attack}(tries=3)"]
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module in the current directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    (tmp_path / "mine.py").write_text(MODULE)
    text = RECIPE.format(p="mine:", data="blobs", method="MyAT", optimizer="Lion", attack="Noise")
    (tmp_path / "blobs.toml").write_text(text)
    yield tmp_path
    sys.modules.pop("mine", None)


@pytest.fixture
def installed(mine, monkeypatch):
    """The same module as an installed package that announces itself, beside a broken one."""
    place = mine / "site"
    (place / "theirs-1.2.dist-info").mkdir(parents=True)
    (place / "theirs.py").write_text(MODULE)
    (place / "theirs-1.2.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: theirs\nVersion: 1.2\n")
    (place / "theirs-1.2.dist-info" / "RECORD").write_text("theirs.py,,\n")
    (place / "theirs-1.2.dist-info" / "top_level.txt").write_text("theirs\n")
    (place / "theirs-1.2.dist-info" / "entry_points.txt").write_text(
        textwrap.dedent("""
        [atent.attacks]
        Noise = theirs:Noise
        PGD = theirs:Noise
        Broken = theirs_absent:Noise
        [atent.methods]
        MyAT = theirs:MyAT
        [atent.data]
        blobs = theirs:blobs
        [atent.models]
        net = theirs:net
        sized = theirs:sized
        [atent.optimizers]
        Lion = theirs:Lion
        [atent.certifiers]
        intervals = theirs:intervals
    """)
    )
    monkeypatch.syspath_prepend(str(place))
    # A comparison trains in processes of its own.
    monkeypatch.setenv("PYTHONPATH", f"{place}:{os.environ.get('PYTHONPATH', '')}")
    text = RECIPE.format(p="", data="blobs", method="MyAT", optimizer="Lion", attack="Noise")
    (mine / "blobs.toml").write_text(text)
    yield mine
    sys.modules.pop("theirs", None)


def run(capsys, *words):
    status = main(list(words))
    out, err = capsys.readouterr()
    assert status == 0, err
    return out


def the_whole_way(place, capsys, name, version):
    run(capsys, "train", "blobs.toml", "--name", "a", "--quiet")
    config = json.loads((place / "runs/a/config.json").read_text())
    assert config["method"]["name"] == name
    plugins = {(p["kind"], p["qualname"]): p for p in config["about"]["plugins"]}
    kinds = ("attack", "Noise"), ("method", "MyAT"), ("optimizer", "Lion"), ("data set", "blobs"), ("model", "net")
    for kind, qualname in kinds:
        assert plugins[kind, qualname]["version"] == version
    found = json.loads((place / "runs/a/evaluation.json").read_text())
    assert [a["attack"] for a in found["attacks"].values()] == ["FGSM", f"{name.replace('MyAT', 'Noise')}(tries=3)"]
    # Resumed after its first epoch it ends at the same bits.
    run(capsys, "train", "blobs.toml", "--name", "b", "--train.epochs", "2", "--quiet")
    a, b = (atent.load(place / "runs" / n).state_dict() for n in "ab")
    assert all(torch.equal(a[k], b[k]) for k in a)
    run(capsys, "train", "--resume", "runs/a", "--quiet")
    run(
        capsys,
        "evaluate",
        "runs/a",
        "--attacks",
        f"{name.replace('MyAT', 'Noise')}(tries=2)",
        "PGD(steps=2)",
        "--quiet",
    )
    run(capsys, "report", "runs/a", "--images", "2", "--quiet")
    assert "MyAT" in (place / "runs/a/report.html").read_text()


@pytest.mark.slow
def test_installed_packages_are_compared(installed, capsys):
    (installed / "other.toml").write_text('extends = "blobs.toml"\n[method]\nstrength = 1.0\n')
    out = run(capsys, "compare", "blobs.toml", "other.toml", "--seeds", "1", "--train.epochs", "1", "--quiet")
    assert "other" in out


@pytest.mark.slow
def test_in_the_users_files(mine, capsys):
    the_whole_way(mine, capsys, "mine:MyAT", None)


def test_installed_packages_announce_themselves(installed, capsys):
    the_whole_way(installed, capsys, "MyAT", "theirs 1.2")


def test_an_installed_network_takes_no_arguments_or_those_of_the_built_in_ones(installed, capsys):
    """Before: a KeyError for a network without the parameter `shape`, a TypeError for one without its default."""
    assert [layer.out_features for layer in build("net") if isinstance(layer, nn.Linear)] == [8, 3]
    assert build("sized", classes=4, shape=(1, 5, 5))[1].weight.shape == (4, 25)
    with pytest.raises(ValueError, match="sized has no default shape: give the shape of one input"):
        build("sized")
    with pytest.raises(ValueError, match="are for other networks: set them inside net"):
        build("net", dropout=0.5)
    for name in ("net", "sized"):
        torch.save(build(name, classes=3, shape=(1, 4, 4)).state_dict(), "weights.pt")
        task = {} if name == "net" else {"classes": 3, "shape": (1, 4, 4)}
        assert atent.load("weights.pt", model=name, **task)(torch.rand(2, 1, 4, 4)).shape == (2, 3)
        given = ["--model", name, "--data", "blobs", "--norm", "linf", "--eps", "0.1", "--attacks", "FGSM"]
        run(capsys, "evaluate", "weights.pt", *given, "--limit", "20", "--quiet", "--out", f"{name}.json")


def test_a_built_in_keeps_its_name_and_a_broken_package_takes_no_other_with_it(installed):
    assert ATTACKS.find("PGD").__module__ == "atent.attacks.pgd"
    assert ATTACKS.origin("Noise") == "theirs 1.2"
    with pytest.warns(UserWarning, match="'Broken' of theirs cannot be imported"):
        names = list(ATTACKS)
    assert "Noise" in names
    assert "Broken" not in names
    with pytest.raises(ValueError, match="'Broken' of theirs cannot be imported: ModuleNotFoundError"):
        ATTACKS.find("Broken")


def test_what_is_missing_is_said_in_one_line(mine, capsys):
    run(capsys, "train", "blobs.toml", "--name", "a", "--quiet")
    (mine / "mine.py").unlink()
    sys.modules.pop("mine", None)
    for words in (["train", "--resume", "runs/a"], ["evaluate", "runs/a", "--quiet"]):
        assert main(words) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert "no module named 'mine'" in line


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--method", "mine:Nothing"], ["method mine:Nothing: module 'mine' has no attribute 'Nothing'"]),
        (["--method", "mine:nothing"], ["not a dataclass that inherits from atent.methods.Method"]),
        (["--method.strength", "-1"], ["strength must be at least 0, got -1"]),
        (["--optimizer", "mine:nothing"], ["optimizer mine:nothing raised TypeError"]),
        (["--data", "mine:nothing"], ["returned an int", "want Data"]),
        (["--evaluate.attacks", "mine:MyAT"], ["attack 'mine:MyAT' is the class MyAT", "atent.attacks.Attack"]),
        (["--evaluate.attacks", "mine:Noise(trys=2)"], ["did you mean 'tries'"]),
        (["--evaluate.attacks", "absent:Noise"], ["attack absent:Noise: no module named 'absent'"]),
    ],
)
def test_mistakes_are_one_line(mine, words, parts, capsys):
    assert main(["train", "blobs.toml", *words, "--quiet"]) == 2
    err = capsys.readouterr().err.strip().splitlines()
    line = err[-1]
    assert all(p in line for p in parts), err
    assert not (mine / "runs").exists()


def test_text_comes_back(mine):
    threat = Threat("linf", 0.1)
    for text in ("mine:Noise(tries=5)", "mine:Noise", " mine:Noise ( tries = 5 ) "):
        made = parse(text, threat, ATTACKS)
        assert parse(spell(made), threat, ATTACKS) == made
    inside = parse('EoT(attack="mine:Noise(tries=3)")', threat, ATTACKS)
    assert inside.inner.tries == 3 if hasattr(inside, "inner") else True


def test_awp_goes_around_it(mine):
    method = METHODS.find("mine:MyAT")(Threat("linf", 0.05))
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    before = [p.detach().clone() for p in model.parameters()]
    x, y = torch.rand(6, 1, 4, 4), torch.arange(6) % 3
    metrics = AWP(method, 0.01).backward(model, x, y, rng=torch.Generator().manual_seed(0))
    assert float(metrics["sharpness"]) > 0
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters()))


def test_to_ask_for_a_name_imports_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    assert "trap:net" not in MODELS
    with pytest.raises(KeyError):
        MODELS["trap:net"]


def test_a_new_file_is_all_that_a_built_in_needs(tmp_path, monkeypatch):
    """A package of two files, of which nobody lists the second."""
    package = tmp_path / "menagerie"
    package.mkdir()
    (package / "__init__.py").write_text(
        "from atent.registry import Registry\n"
        "ZOO = Registry('beast', 'menagerie', 'menagerie.beasts', callable, 'a beast')\n"
    )
    (package / "lion.py").write_text("from menagerie import ZOO\n@ZOO.register\ndef lion(): return 'roar'\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import menagerie

    assert isinstance(menagerie.ZOO, Registry)
    assert list(menagerie.ZOO) == ["lion"]
    assert menagerie.ZOO.find("lion")() == "roar"
    assert menagerie.ZOO.name_of(menagerie.ZOO["lion"]) == "lion"
    with pytest.raises(ValueError, match="did you mean 'lion'"):
        menagerie.ZOO.find("lino")
    with pytest.raises(ValueError, match=r"registered by menagerie\.lion:lion already"):
        menagerie.ZOO.register("lion")(test_text_comes_back)


def test_a_built_in_is_no_plug_in():
    assert plugin_of(ATTACKS, ATTACKS["PGD"]) is None
    assert ATTACKS.name_of(ATTACKS["PGD"]) == "PGD"
    assert ATTACKS.origin("PGD") == "built-in"


# ---- certifiers


@pytest.fixture
def begun(mine, capsys):
    """A run of one epoch that hardly moves, so that it gets images wrong."""
    run(capsys, "train", "blobs.toml", "--name", "a", "--train.epochs", "1", "--optimizer.lr", "1e-6", "--quiet")
    return mine


def certified(capsys, *words):
    return json.loads(run(capsys, "certify", "runs/a", "--limit", "12", "--quiet", "--json", *words))


def test_bounds_from_outside_certify_as_the_built_in_ones(installed, capsys):
    run(capsys, "train", "blobs.toml", "--name", "a", "--quiet")
    ours = certified(capsys, "--method", "ibp", "--radius", "0.005")
    assert ours["certified"][0]["share"]["k"] > 0
    assert "certifier" not in ours
    for name, module, version in (("intervals", "theirs", "theirs 1.2"), ("mine:intervals", "mine", None)):
        found = certified(capsys, "--method", name, "--radius", "0.005")
        # Margins are tighter than differences of bounds, so it verifies no more.
        assert set(found["certified"][0]["verified"]) <= set(ours["certified"][0]["verified"])
        assert found["method"] == name
        wanted = {"kind": "certifier", "name": name, "module": module, "qualname": "intervals", "version": version}
        assert found["certifier"] == found["made"]["certifier"] == wanted
    # A partial has no name of its own: the record is of what was written.
    found = certified(capsys, "--method", "mine:tight", "--radius", "0.005", "--table", "t.md")
    assert (found["certifier"]["module"], found["certifier"]["qualname"]) == ("mine", "tight")
    assert "mine:tight" in (installed / "t.md").read_text()
    rows = json.loads(run(capsys, "list", "certifiers", "--json"))
    assert {"name": "intervals", "about": "Intervals from layer to layer", "origin": "theirs 1.2"} in rows
    run(capsys, "report", "runs/a", "--images", "2", "--quiet")
    assert "mine:tight" in (installed / "runs/a/report.html").read_text()


def test_smoothing_from_outside_is_resumed_and_never_mixed(begun, capsys):
    how = ("--sigma", "0.2", "--n", "200", "--n0", "20", "--radius", "0.05")
    ours = certified(capsys, *how, "--sequential", "False")
    found = certified(capsys, *how, "--method", "mine:Halved")
    assert found["certifier"]["qualname"] == "Halved"
    assert 0 < found["radius_mean"] == pytest.approx(ours["radius_mean"] / 2)
    rows = begun / "runs/a/certificate-2.csv"
    before = rows.read_text()
    assert certified(capsys, *how, "--method", "mine:Halved")["certified"] == found["certified"]
    assert rows.read_text() == before


def test_a_certifier_that_cannot_be_is_refused_in_one_line(begun, capsys):
    noise = ["--sigma", "0.2", "--n", "100"]
    for words, parts in (
        (["crwn"], ["certifier 'crwn'", "did you mean 'crown'"]),
        (["mine:absent"], ["no attribute 'absent'"]),
        (["mine:Noise"], ["is the class Noise, not a function of (model, x, threat)", "a method certify"]),
        (["mine:nothing"], ["mine:nothing raised TypeError"]),
        (["mine:unsound"], ["that the model misclassifies", "check_certifier"]),
        (["mine:Boundless", *noise], ["radii of 9 to 9", "certify 0 to"]),
        (["mine:Halved", *noise, "--batch-size", "5"], ["--batch-size has no effect"]),
    ):
        assert main(["certify", "runs/a", "--limit", "30", "--quiet", "--method", *words]) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert all(p in line for p in parts), line


# ---- new files of the library itself

DROPPED = """
from dataclasses import dataclass
from atent.attacks.base import Attack, attack
from atent.threat import Threat

@attack
@dataclass(frozen=True)
class Dropped(Attack):
    'The input itself.'
    threat: Threat
    needs_gradient = False

    @property
    def passes(self):
        return 2

    def search(self, oracle, x, y, streams):
        oracle.logits(x, y)
        return x
"""
DROPPED_METHOD = """
from dataclasses import dataclass
from torch.nn.functional import cross_entropy
from atent.methods.base import Method, method

@method
@dataclass(frozen=True)
class DroppedAT(Method):
    'Training on the input itself.'

    def adversary(self, model, x, y, *, rng, ids=None, progress=1.0, state=None):
        return x

    def loss(self, model, x, y, aux, *, progress=1.0, state=None):
        return cross_entropy(model(aux), y), {}
"""
LOOK = """
import importlib.util, json, sys
from atent import Threat
import atent.attacks, atent.methods
from atent.attacks import Dropped
from atent.methods import DroppedAT
from atent.cli import main
from atent.testing import check_attack, check_method

star = {}
exec("from atent.attacks import *", star)
spec = importlib.util.spec_from_file_location("conf", sys.argv[1])
conf = importlib.util.module_from_spec(spec)
spec.loader.exec_module(conf)
assert main(["list", "attacks"]) == main(["list", "methods"]) == 0
print(json.dumps({
    "where": Dropped.__module__, "star": "Dropped" in star and "PGD" in star, "dir": "DroppedAT" in dir(atent.methods),
    "docs": ["Dropped" in conf.known_table("attacks"), "DroppedAT" in conf.known_table("methods")],
    "kept": [len(check_attack(Dropped(Threat("linf", 0.1)))) > 5, len(check_method(DroppedAT())) > 5],
}))
"""


def test_a_file_dropped_into_the_library_needs_no_second_line(tmp_path):
    import atent

    source = Path(atent.__file__).parent
    shutil.copytree(source, tmp_path / "atent", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "atent/attacks/dropped.py").write_text(DROPPED)
    (tmp_path / "atent/methods/dropped.py").write_text(DROPPED_METHOD)
    conf = Path(__file__).parents[2] / "docs" / "conf.py"
    done = subprocess.run(
        [sys.executable, "-c", LOOK, str(conf)], env={**os.environ, "PYTHONPATH": str(tmp_path)}, cwd=tmp_path,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *listed, last = done.stdout.splitlines()
    assert any("Dropped " in line and "The input itself" in line for line in listed)
    assert any("DroppedAT " in line and "Training on the input itself" in line for line in listed)
    found = json.loads(last)
    assert found == {
        "where": "atent.attacks.dropped", "star": True, "dir": True, "docs": [True, True], "kept": [True, True],
    }  # fmt: skip
