"""Weights that other code saved: read without running anything, put under the right names, behind the right input."""

import io
import json
import os
import pickle
import shutil
import struct
import zipfile
from argparse import Namespace
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from kit import unsealed
from safetensors.torch import save_file
from torch import nn

import atent
from atent.cli import main
from atent.experiments.conventions import FIRST, REST, USUAL, check_convention
from atent.experiments.target import load_target
from atent.models import build
from atent.models.convention import Convention, Reversed, parts
from atent.runs.checkpoint import load_weights
from atent.runs.foreign import read_foreign
from atent.runs.pretrained import load_start

ASK = {"data": "digits", "norm": "linf", "eps": "1/10", "attacks": ["FGSM"], "limit": 40}


def network(seed=0, name="digits_cnn", **settings):
    torch.manual_seed(seed)
    return build(name, **settings).eval()


def prefixed(prefix, state):
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def net():
    return network()


@pytest.fixture
def state(net):
    return net.state_dict()


def saved(held, **settings):
    torch.save(held, "weights.pt", **settings)
    return Path("weights.pt")


def same(model, net, shape=(1, 8, 8)):
    x = torch.rand(3, *shape)
    with torch.no_grad():
        return torch.equal(model(x), net(x))


def refused(*parts, call=lambda: atent.load("weights.pt", model="digits_cnn")):
    """The one line that a file is refused with."""
    with pytest.raises((ValueError, FileNotFoundError)) as error:
        call()
    text = str(error.value)
    assert "\n" not in text
    assert "weights_only" not in text
    assert len(text) < 400
    for part in parts:
        assert part in text
    return text


# ---- what a file may be


def mixed(state):
    """Prefixes as DDP, compile and an average leave them, differing from entry to entry."""
    heads = ["module.", "_orig_mod.module.", "module.model.", "", "model._orig_mod."]
    return {f"{heads[i % len(heads)]}{name}": value for i, (name, value) in enumerate(state.items())}


WRAPPED = {
    "bare": lambda s: s,
    "state_dict": lambda s: {"state_dict": s, "epoch": 3, "best_prec1": 91.7},
    "model and optimizer": lambda s: {"model": s, "optimizer": {"state": {0: {"exp_avg": s}}, "param_groups": []}},
    "net": lambda s: {"net": prefixed("module.", s), "acc": torch.tensor(0.9)},
    "deep": lambda s: {"checkpoint": {"nets": [{"params": prefixed("backbone.", s)}]}},
    "mixed": mixed,
    "average": lambda s: {"ema_state_dict": prefixed("module._orig_mod.", s), "optimizer_states": [s]},
    "counters": lambda s: {**s, "total_ops": torch.zeros(1), "conv1.total_params": torch.zeros(1)},
    "an unknown name": lambda s: prefixed("classifier_under_test.", s),
    "NumPy beside": lambda s: {"model": s, "acc": np.float64(0.5), "curve": np.arange(3.0), "args": Namespace(lr=0.1)},
    "the same twice": lambda s: {"model": s, "ema": {name: value.clone() for name, value in s.items()}},
    "numbers among them": lambda s: {**s, "epoch": 4, "name": "x"},
    "ordered": OrderedDict,
}  # fmt: skip


@pytest.mark.parametrize("form", WRAPPED)
def test_wrappings_are_undone(form, here, net, state):
    saved(WRAPPED[form](state))
    assert same(atent.load("weights.pt", model="digits_cnn"), net)


@pytest.mark.parametrize("ending", ["pt", "pth", "th", "ckpt", "tar", "bin", "pkl", "safetensors"])
def test_the_first_bytes_say_the_format(ending, here, net, state):
    path = here / f"weights.{ending}"
    if ending in ("pkl", "th"):
        torch.save(state, path, _use_new_zipfile_serialization=False)
    elif ending in ("bin", "safetensors"):
        save_file(prefixed("module.", state), path)
    else:
        torch.save(state, path)
    assert same(atent.load(path, model="digits_cnn"), net)


def test_half_precision_and_absent_counters(here):
    net = network(name="resnet8")
    halves = {name: value.half() for name, value in net.state_dict().items() if "num_batches" not in name}
    saved(halves)
    found = atent.load("weights.pt", model="resnet8")
    assert found.conv1.weight.dtype == torch.float32
    torch.testing.assert_close(found.fc.weight, net.fc.weight, rtol=1e-3, atol=1e-4)
    assert found.bn1.num_batches_tracked == 0


def test_classes_and_sides_are_read_off_the_weights(here):
    net = network(name="kw_small", classes=7, shape=(3, 32, 32))
    saved(net.state_dict())
    assert same(atent.load("weights.pt", model="kw_small"), net, (3, 32, 32))


# ---- several networks in one file


def test_several_that_fit_are_listed_and_chosen_by_key(here, net, state):
    other = network(1)
    saved({"state_dict": state, "ema": prefixed("module.", other.state_dict())})
    refused("holds 2 networks that fit, at state_dict, ema", "--key")
    assert same(atent.load("weights.pt", model="digits_cnn", key="ema"), other)
    assert same(atent.load("weights.pt", model="digits_cnn", key="state_dict"), net)
    refused(
        "no state dict at 'emma'",
        "state_dict, ema",
        call=lambda: atent.load("weights.pt", model="digits_cnn", key="emma"),
    )
    saved(prefixed("module.", {**prefixed("student.", state), **prefixed("teacher.", other.state_dict())}))
    refused("at student, teacher", "--key")
    assert same(atent.load("weights.pt", model="digits_cnn", key="teacher"), other)
    saved({"state_dict": [state, other.state_dict()]})
    refused("at state_dict.0, state_dict.1")


def test_the_one_that_fits_is_taken_and_what_lies_beside_it_is_named(here, net, state, capsys):
    saved({"critic": {"weight": torch.ones(3, 3)}, "model": state})
    assert same(atent.load("weights.pt", model="digits_cnn"), net)
    assert capsys.readouterr().err == ""
    saved({**prefixed("model.", state), "criterion.centers": torch.ones(2, 2)})
    assert same(atent.load("weights.pt", model="digits_cnn"), net)
    assert "criterion.centers beside the network at 'model' are ignored" in capsys.readouterr().err


# ---- what is refused


class Trap:
    def __reduce__(self):
        return os.system, ("touch sprung",)


def test_pickled_objects_are_refused_without_running_them(here, net, state):
    saved(net)
    refused("holds pickled objects (torch.nn", "torch.save(model.state_dict(), 'weights.pt')")
    for settings in ({}, {"_use_new_zipfile_serialization": False}):
        saved({"state_dict": state, "hook": Trap()}, **settings)
        refused("holds pickled objects", "system")
    Path("weights.pt").write_bytes(pickle.dumps({"state_dict": Trap()}))
    refused("weights.pt")
    assert not Path("sprung").exists()


def bomb(state):
    """An archive that says it holds more than it is."""
    with zipfile.ZipFile("weights.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("weights/data.pkl", b"\0" * 10_000_000)


def program(state):
    torch.jit.script(nn.Linear(2, 2)).save("weights.pt")


def arrays(state):
    with Path("weights.pt").open("wb") as file:
        np.savez(file, w=np.zeros(3))


def whole(state):
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def with_bias(state, change):
    return {**state, "fc1.bias": change(state["fc1.bias"])}


BROKEN = {
    "empty": (lambda s: Path("weights.pt").write_bytes(b""), ["is empty"]),
    "a page": (lambda s: Path("weights.pt").write_bytes(b"\n<!DOCTYPE html>"), ["a web page"]),
    "a pointer": (lambda s: Path("weights.pt").write_bytes(b"version https://git-lfs.github.com/"), ["git lfs pull"]),
    "gzip": (lambda s: Path("weights.pt").write_bytes(b"\x1f\x8b\x08rest"), ["gzip"]),
    "text": (lambda s: Path("weights.pt").write_bytes(b"import torch\n" * 9), ["not a file of torch.save"]),
    "half of it": (lambda s: Path("weights.pt").write_bytes(whole(s)[:9000]), ["truncated or damaged"]),
    "a bomb": (bomb, ["unpacks to more than its own size"]),
    "arrays": (arrays, ["NumPy arrays"]),
    "a program": (program, ["TorchScript program"]),
    "a list": (lambda s: saved([1, [2, [3]]]), ["holds no weights, but a list"]),
    "a tensor": (lambda s: saved(torch.ones(3)), ["no weights, but a Tensor"]),
    "no weights": (lambda s: saved({"epoch": 3, "optimizer": {"state": {}, "param_groups": []}}), ["epoch, optimizer"]),
    "NumPy weights": (lambda s: saved({name: value.numpy() for name, value in s.items()}), ["no weights"]),
    "an endless dict": (lambda s: saved((lambda d: d.update(self=d) or d)({})), ["no weights"]),
    "integers": (lambda s: saved(with_bias(s, torch.Tensor.long)), ["fc1.bias is torch.int64", "save it in"]),
    "complex": (lambda s: saved(with_bias(s, torch.Tensor.cfloat)), ["fc1.bias is torch.complex64"]),
    "sparse": (lambda s: saved(with_bias(s, torch.Tensor.to_sparse)), ["fc1.bias is a sparse", "to_dense"]),
    "without values": (lambda s: saved(with_bias(s, lambda t: t.to("meta"))), ["fc1.bias is on the meta device"]),
    "expanded": (lambda s: saved(with_bias(s, lambda t: t[:1].expand(1 << 40))), ["1099511627776", "(128,)"]),
    "a key less": (lambda s: saved({k: v for k, v in s.items() if k != "fc2.bias"}), ["fc2.bias is missing"]),
    "a key more": (lambda s: saved({**s, "extra": torch.ones(2)}), ["extra is not in the model"]),
    "another case": (lambda s: saved({k.replace("fc2", "FC2"): v for k, v in s.items()}), ["fc2.weight is named FC2."]),
    "merging names": (lambda s: saved({**s, "module.fc2.bias": s["fc2.bias"] + 1}), ["module.fc2.bias is not in"]),
    "another network": (lambda s: saved(network(name="kw_small").state_dict()),
                        ["conv1.weight has shape (16, 1, 4, 4), the model (16, 1, 3, 3)", "give --model kw_small"]),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_what_cannot_be_weights_is_refused_in_one_line(what, here, state):
    make, parts = BROKEN[what]
    make(state)
    refused("weights.pt", *parts)


def test_any_cut_is_refused(here, state):
    for content in (whole(state), whole({"x": torch.ones(3)})):
        for end in np.linspace(1, len(content) - 1, 12).astype(int):
            Path("weights.pt").write_bytes(content[:end])
            refused("weights.pt")


def test_a_storage_larger_than_the_file_is_not_allocated(here):
    held = io.BytesIO()
    torch.save({"w": torch.zeros(4)}, held, _use_new_zipfile_serialization=False)
    # The number of elements is an integer of the pickle: four of them become 2^40.
    huge = held.getvalue().replace(b"K\x04N", b"\x8a\x06" + struct.pack("<Q", 1 << 40)[:6] + b"N")
    assert huge != held.getvalue()
    Path("weights.pt").write_bytes(huge)
    refused("weights.pt")


def test_absent_files_and_names(here, state):
    refused("no weights at gone.pt", ".pth", call=lambda: read_foreign(Path("gone.pt")))
    refused("no weights at gone.pt", call=lambda: atent.load("gone.pt"))
    refused("not a run folder", call=lambda: atent.load("gone"))
    saved(state)
    refused(
        "does not record its architecture: its tensors are those of digits_cnn", call=lambda: atent.load("weights.pt")
    )
    refused("did you mean", call=lambda: atent.load("weights.pt", model="digits_cn"))
    Path("run").mkdir()
    refused("for a weights file", call=lambda: atent.load("run", mean=(0.5,), std=(0.5,)))


# ---- what the network expects of its input


def test_conventions_are_layers(here, net, state):
    saved(state)
    x = torch.rand(2, 1, 8, 8)

    def logits(**given):
        with torch.no_grad():
            return atent.load("weights.pt", model="digits_cnn", **given)(x)

    with torch.no_grad():
        torch.testing.assert_close(logits(mean=(0.3,), std=(0.4,)), net((x - 0.3) / 0.4))
        torch.testing.assert_close(logits(input_range="0..255"), net(255 * x), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(logits(input_range="-1..1"), net(2 * x - 1))
        scaled = net((255 * x - 120) / 60)
        torch.testing.assert_close(logits(mean=(120,), std=(60,), input_range="0..255"), scaled, rtol=1e-4, atol=1e-4)
    inner = nn.Identity()
    both = Convention((0.1, 0.2, 0.3), (1.0, 1.0, 1.0), bgr=True).around(inner, 3)
    y = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(both(y), y.flip(1) - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1))
    assert parts(both)[0] is inner
    assert parts(both)[1].bgr
    assert isinstance(both.reversed, Reversed)


def test_conventions_that_make_no_sense(here, state):
    saved(state)
    for given, part in (
        ({"mean": (0.5,)}, "--mean and --std go together"),
        ({"mean": (0.5, 0.5), "std": (1, 1)}, "2 channels, the images have 1"),
        ({"mean": (0.5,), "std": (0.0,)}, "std above 0"),
        ({"input_range": "255"}, "0..255"),
        ({"input_range": "1..0"}, "a below b"),
        ({"input_range": "0..inf"}, "a..b"),
        ({"input_range": "e..1"}, "a..b"),
    ):
        refused(part, call=lambda given=given: atent.load("weights.pt", model="digits_cnn", **given))


def test_a_normalisation_in_the_file_is_used(here, net, state):
    mean, std = torch.tensor([0.3]), torch.tensor([0.4])
    forms = (
        {**state, "mu": mean.view(1, 1, 1, 1), "sigma": std.view(1, 1, 1, 1)},
        {"0.mean": mean, "0.std": std, **prefixed("1.", state)},
        prefixed("module.", {"normalize.mean": mean, "normalize.std": std, **prefixed("model.", state)}),
    )  # fmt: skip
    x = torch.rand(2, 1, 8, 8)
    for form in forms:
        saved({"state_dict": form})
        found = atent.load("weights.pt", model="digits_cnn")
        with torch.no_grad():
            torch.testing.assert_close(found(x), net((x - 0.3) / 0.4))
    load = lambda: atent.load("weights.pt", model="digits_cnn", mean=(0.5,), std=(0.5,))  # noqa: E731
    refused("has its own normalisation, mean 0.3 and std 0.4", call=load)
    # A network that has the layer already takes the values.
    model = build("digits_cnn", normalize=((0.0,), (1.0,)))
    load_weights(model, "weights.pt")
    assert model.normalize.mean.item() == pytest.approx(0.3)


class Brightness(nn.Module):
    """Class 1 where the image is brighter than the mean of MNIST, which is 0 after its normalisation."""

    passes = 0

    def forward(self, x):
        Brightness.passes += len(x)
        bright = x.mean((1, 2, 3))
        return torch.stack([-bright, bright], 1)


class Redness(nn.Module):
    def forward(self, x):
        red = (x[:, 0] - x[:, 2]).mean((1, 2))
        return torch.stack([-red, red], 1)


def test_a_wrong_normalisation_is_named_with_the_likely_one(capsys):
    levels = torch.linspace(0.03, 0.23, 300)[torch.randperm(300, generator=torch.Generator().manual_seed(0))]
    x = levels.view(-1, 1, 1, 1).expand(-1, 1, 4, 4)
    y = (levels > 0.1307).long()
    Brightness.passes = 0
    line = check_convention("weights.pt", Brightness(), x, y, 2)
    assert line
    assert "100.0% with MNIST's mean and std" in line
    assert "--mean 0.1307 --std 0.3081" in line
    assert line in capsys.readouterr().err
    assert Brightness.passes <= FIRST * (len(USUAL[1]) + 1) + 2 * REST
    right = Convention((0.1307,), (0.3081,)).around(Brightness(), 1)
    assert check_convention("weights.pt", right, x, y, 2) is None
    # Too few images to say so.
    assert check_convention("weights.pt", Brightness(), x[:FIRST], y[:FIRST], 2) is None


def test_reversed_channels_and_chance_are_named():
    x = torch.rand(250, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0].mean((1, 2)) > x[:, 2].mean((1, 2))).long()
    assert check_convention("w.pt", Redness(), x, y, 2) is None
    line = check_convention("w.pt", Redness(), x, 1 - y, 2)
    assert "channels in the order blue, green, red" in line
    assert line.endswith("--bgr")
    many = torch.arange(250) % 10
    constant = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
    nn.init.zeros_(constant[1].weight)
    assert "near chance" in check_convention("w.pt", constant, x, many, 10)


# ---- in use


def test_a_target_is_a_weights_file(here, net, state, capsys):
    saved({"state_dict": prefixed("module.", state)})
    found = load_target("weights.pt", model="digits_cnn", **ASK)
    assert found.foreign
    assert "near chance" in capsys.readouterr().err
    assert found.about == {"weights": "weights.pt", "model": "digits_cnn", "epoch": None}
    convention = Convention((0.5,), (0.25,))
    found = load_target("weights.pt", model="digits_cnn", convention=convention, **ASK)
    assert found.about["input"] == {"mean": [0.5], "std": [0.25]}
    for more, words in (
        ({"which": "last"}, ["--which last has no effect"]),
        ({"weights": "a.pt"}, ["--weights a.pt has no effect"]),
        ({"key": "ema"}, ["no state dict at 'ema'"]),
    ):
        refused(*words, call=lambda more=more: load_target("weights.pt", model="digits_cnn", **{**ASK, **more}))


def test_one_line_from_a_checkpoint_to_its_evaluation(here, state, capsys):
    saved({"net": state, "acc": 12.0})
    words = "evaluate weights.pt --model digits_cnn --data digits --norm linf --eps 1/10 --mean 0.3 --std 0.4 --quiet"
    assert main([*words.split(), "--attacks", "FGSM", "--limit", "40"]) == 0
    found = json.loads(Path("weights-evaluation.json").read_text())
    assert found["weights"] == "weights.pt"
    assert found["input"]["mean"] == pytest.approx([0.3])
    assert found["n"] == 40
    assert main([*words.replace("--model digits_cnn", "--model kw_small").split()]) == 2
    assert capsys.readouterr().err.count("\n") <= 3


def test_options_of_files_have_no_effect_on_runs_and_functions(here):
    shutil.copytree(Path(__file__).parents[1] / "files" / "before_subsets" / "finished", "run")
    unsealed(Path("run"))
    for more, part in (({"key": "ema"}, "--key"), ({"convention": Convention(bgr=True)}, "--bgr")):
        refused(f"{part} has no effect on run", call=lambda more=more: load_target("run", **more))


def test_training_begins_from_published_weights(here, net, state):
    saved({"state_dict": prefixed("module.", state)})
    model = network(5)
    assert load_start(model, "weights.pt") == {}
    assert same(model, net)
    with pytest.raises(ValueError, match="one set of batch-norms"):
        load_start(model, "weights.pt", "n")
