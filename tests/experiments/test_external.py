"""What `atent evaluate` and `atent attack` are pointed at: a run folder, a .safetensors file, module:function."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from kit import unsealed
from safetensors.torch import save_file
from torch import nn

from atent.attacks import ATTACKS, PGD
from atent.experiments.evaluation import Request, evaluate_target
from atent.experiments.target import STRONG, load_target
from atent.models import build

NET = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

def wide():
    return build().double()

def half():
    return build().half()

def seven():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 7))

def nothing():
    return None

def three():
    from atent.data import from_tensors
    x, y = torch.rand(30, 1, 8, 8), torch.arange(30) % 3
    return from_tensors(x, y, x, y)

number = 3
"""
ASK = {"data": "digits", "norm": "linf", "eps": "1/10", "attacks": ["FGSM"]}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "strange.py").write_text(NET)
    return tmp_path


@pytest.fixture
def kept(here):
    """Weights of a house network, without and with its normalisation."""
    torch.manual_seed(1)
    plain = build("digits_cnn", classes=10, shape=(1, 8, 8))
    save_file(plain.state_dict(), here / "plain.safetensors")
    scaled = build("digits_cnn", classes=10, shape=(1, 8, 8), normalize=((0.3,), (0.4,)))
    save_file({k: v.contiguous() for k, v in scaled.state_dict().items()}, here / "scaled.safetensors")
    return {"plain": plain.eval(), "scaled": scaled.eval()}


def test_your_own_network(here):
    found = load_target("strange:build", **ASK, limit=20)
    assert not found.model.training
    assert (found.name, found.about, found.stem) == ("strange:build", {"model": "strange:build"}, "strange-build-")
    assert (found.threat.norm, found.threat.eps) == ("linf", 0.1)
    assert list(found.attacks) == ["FGSM"]
    x, y, ids = found.test()
    assert x.shape == (20, 1, 8, 8)
    content = evaluate_target(found, progress=False).to_json()
    torch.manual_seed(0)
    same = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    assert content["clean"]["k"] == int((same(x).argmax(1) == y).sum())
    assert content["model"] == "strange:build"
    reported = {"name": "digits", "split": "test", "n": 20, "of": 500, "subset": "stratified", "subset_seed": 0}
    assert content["data"].items() >= reported.items()
    assert sorted(y.tolist()) == [label for label in range(10) for _ in range(2)]
    assert len(ids) == 20


def test_a_model_in_float64_is_evaluated_in_float64(here):
    x, _, _ = load_target("strange:wide", **ASK).test()
    assert x.dtype == torch.float64
    assert evaluate_target(load_target("strange:wide", **ASK, limit=10), progress=False).n == 10
    with pytest.raises(ValueError, match=r"the model is torch.float16: evaluate it in float32"):
        load_target("strange:half", **ASK).test()


@pytest.mark.parametrize("name", ["plain", "scaled"])
def test_a_file_of_weights(name, here, kept):
    found = load_target(f"{name}.safetensors", model="digits_cnn", **ASK, limit=30)
    assert found.stem == f"{name}-"
    x, _, _ = found.test()
    with torch.no_grad():
        assert torch.equal(found.model(x), kept[name](x))
    assert found.about == {"weights": f"{name}.safetensors", "model": "digits_cnn", "epoch": None}


def test_a_file_may_say_what_it_holds_but_not_whose_code_to_run(here, kept):
    from atent.runs.checkpoint import save_weights

    save_weights(here / "told.safetensors", kept["plain"], {"epoch": 4, "model": {"name": "digits_cnn"}})
    assert load_target("told.safetensors", **ASK).about["epoch"] == 4
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    save_weights(here / "own.safetensors", net, {"model": {"name": "strange:build"}})
    with pytest.raises(ValueError, match="does not record its architecture"):
        load_target("own.safetensors", **ASK)
    found = load_target("own.safetensors", model="strange:build", **ASK)
    assert torch.equal(found.model[1].weight.cpu(), net[1].weight)


@pytest.mark.parametrize(("target", "change", "parts"), [
    ("nowhere", {}, ["nowhere is not a run folder", "module:function"]),
    ("nowhere:build", {}, ["no module named 'nowhere'"]),
    ("strange:absent", {}, ["no attribute 'absent'"]),
    ("strange:number", {}, ["an int"]),
    ("strange:nothing", {}, ["returned None"]),
    ("strange:seven", {}, ["7 outputs", "10 classes"]),
    ("strange:", {}, ["module:function"]),
    ("strange:build", {"data": None}, ["--data is missing", "strange:build", "digits, fashion-mnist"]),
    ("strange:build", {"data": "digitz"}, ["did you mean 'digits'"]),
    ("strange:build", {"norm": None}, ["--norm missing", "--norm linf --eps 8/255"]),
    ("strange:build", {"norm": None, "eps": None}, ["--norm and --eps missing"]),
    ("strange:build", {"eps": "8/x"}, ["eps '8/x' is not a number"]),
    ("strange:build", {"model": "resnet20"}, ["--model resnet20 has no effect on strange:build"]),
    ("strange:build", {"which": "last"}, ["--which last has no effect", "run folder"]),
    ("strange:build", {"weights": "a.safetensors"}, ["--weights a.safetensors has no effect"]),
    ("strange:build", {"limit": 0}, ["limit must be at least 1, got 0"]),
    ("strange:build", {"attacks": ["PDG"]}, ["did you mean 'PGD'"]),
    ("strange:build", {"device": "cuda:77"}, ["device 'cuda:77'"]),
    ("absent.safetensors", {"model": "resnet20"}, ["no weights at absent.safetensors"]),
    ("plain.safetensors", {}, ["does not record its architecture", "those of digits_cnn", "--model"]),
    ("plain.safetensors", {"model": "resnt20"}, ["did you mean 'resnet20'"]),
    ("plain.safetensors", {"model": "lenet5"}, ["has another architecture than lenet5"]),
    ("plain.safetensors", {"model": "small_cnn"}, ["small_cnn"]),
    ("plain.safetensors", {"model": "digits_cnn", "data": "strange:three"}, ["has 10 classes, the model has 3"]),
    ("torn.safetensors", {"model": "digits_cnn"}, ["not a complete safetensors file"]),
])  # fmt: skip
def test_mistakes_are_one_line(target, change, parts, here, kept):
    (here / "torn.safetensors").write_bytes((here / "plain.safetensors").read_bytes()[:100])
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        load_target(target, **{**ASK, **change})
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value)


def test_attacks_may_bring_their_own_threats(here):
    found = load_target("strange:build", data="digits", attacks=["PGD(steps=3, norm=l2, eps=0.5)"])
    assert found.threat is None
    assert found.attacks["PGD-3"].threat.norm == "l2"
    with pytest.raises(ValueError, match="the checks need a threat"):
        evaluate_target(found, Request(checks=True), progress=False)


def test_default_attacks_are_strong_ones(here):
    found = load_target("strange:build", **{**ASK, "attacks": None})
    assert found.settings.attacks == STRONG["linf"]
    first, second = found.attacks.values()
    assert isinstance(first, PGD)
    assert isinstance(second, ATTACKS["AutoAttack"])
    assert first.passes < second.passes


@pytest.mark.parametrize("more", [{"norm": "l0", "eps": 5, "group": "element"}, {"norm": "patch", "eps": 1, "side": 2}])
def test_default_attacks_have_a_form_for_the_norm(more, here):
    ask = {**ASK, **more, "attacks": None}
    found = load_target("strange:build", **ask)
    assert found.settings.attacks == STRONG[more["norm"]]
    assert {attack.threat.norm for attack in found.attacks.values()} == {more["norm"]}
    old = Path(__file__).parents[1] / "files" / "before_subsets"
    run, data = here / "run", {"root": str(old / "sorted.npz"), "data": None}
    shutil.copytree(old / "finished", run)
    config = json.loads((run / "config.json").read_text())
    config["evaluate"]["attacks"] = ["AutoAttack"]
    (unsealed(run) / "config.json").write_text(json.dumps(config))
    assert load_target(str(run), **{**ask, **data}, trust_code=True).settings.attacks == STRONG[more["norm"]]
    with pytest.raises(ValueError, match="AutoAttack has no form for"):
        load_target("strange:build", **{**ask, "attacks": ["AutoAttack"]})
