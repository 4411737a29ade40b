"""Weights files from elsewhere beyond an evaluation: shown, exported, reported, in transfer matrices and theory."""

import json
from pathlib import Path

import pytest
import torch

import atent
from atent.cli import main
from atent.models import build
from atent.paper.theory import command
from atent.runs.manifest import sum_of

MEAN, STD = 0.3, 0.4
ZOO = "zoo:digits-linf-crown-ibp"
EXPORT = ["export", "weights.pt", "--model", "digits_cnn", "--data", "digits", "--limit", "5", "--quiet"]
INPUTS = ["--mean", str(MEAN), "--std", str(STD)]


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return build("digits_cnn").eval()


@pytest.fixture
def here(net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"epoch": 3, "state_dict": {f"module.{k}": v for k, v in net.state_dict().items()}}, "weights.pt")
    return tmp_path


def line(capsys, *words):
    assert main(list(words)) == 2
    (found,) = capsys.readouterr().err.strip().splitlines()
    return found


def test_a_file_is_shown(here, net, capsys):
    torch.save({"net": {**net.state_dict(), "mu": torch.tensor([MEAN]), "sigma": torch.tensor([STD])}}, "other.pt")
    assert main(["show", "other.pt", "--json"]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert found["sha256"] == sum_of(Path("other.pt"))["sha256"]
    assert found["architecture"].startswith("its tensors are those of digits_cnn")
    assert found["normalisation"] == [[pytest.approx(MEAN)], [pytest.approx(STD)]]
    (network,) = found["networks"]
    assert network["place"] == "net"
    shapes = {key["name"]: key["shape"] for key in network["keys"]}
    assert shapes["fc1.bias"] == list(net.fc1.bias.shape)
    assert "fc1.bias" in printed.err
    assert network["numbers"] == 2 + sum(value.numel() for value in net.state_dict().values())
    assert "--accept has no effect on weights.pt" in line(capsys, "show", "weights.pt", "--accept", "x")


def test_a_network_by_name_is_shown(here, capsys):
    assert main(["show", ZOO, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["run"] == ZOO
    assert {entry["state"] for entry in found["files"]} == {"whole"}
    assert "--accept has no effect" in line(capsys, "show", ZOO, "--accept", "config.json")


@pytest.mark.parametrize("format", ["safetensors", "torch-export", "hub"])
def test_the_normalisation_goes_with_the_network(format, here, net, capsys):
    assert main([*EXPORT, *INPUTS, "--format", format, "--out", "out.pt2" if format == "torch-export" else "out"]) == 0
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        wanted = net((x - MEAN) / STD)
        found = torch.export.load("out.pt2").module() if format == "torch-export" else atent.load(file_or_folder())
        torch.testing.assert_close(found(x), wanted)
    if format == "hub":
        assert main(["report", "out", "--quiet"]) == 0


def file_or_folder():
    """A file must end as one of weights does."""
    if Path("out").is_file():
        Path("out").rename("out.safetensors")
        return "out.safetensors"
    return "out"


def test_a_report_on_a_file_says_how(here, capsys):
    assert "`atent export weights.pt --format hub" in line(capsys, "report", "weights.pt")


@pytest.mark.parametrize(
    ("format", "words", "part"),
    [
        ("onnx", ["--precision", "bfloat16"], "--precision has no effect on an export"),
        ("onnx", ["--no-folding"], "--no-folding has no effect"),
        ("hub", ["--memory-format", "channels_last"], "--memory-format has no effect"),
        ("hub", ["--allow-long"], "--allow-long has no effect"),
        ("robustbench", ["--seed", "1"], "--seed has no effect on an export to robustbench"),
        ("hub", ["--bgr"], "use --format onnx or torch-export"),
        ("safetensors", ["--bgr"], "use --format onnx or torch-export"),
    ],
)
def test_an_option_is_honoured_or_refused(format, words, part, here, capsys):
    asked = [word for word in EXPORT if word not in ("--limit", "5")] if format == "robustbench" else EXPORT
    assert part in line(capsys, *asked, "--format", format, "--out", "out.safetensors", *words)
    assert not Path("out.safetensors").exists()


def test_a_transfer_matrix_takes_files_from_elsewhere(here, capsys):
    words = ["transfer", ZOO, "weights.pt", "--norm", "linf", "--eps", "0.1", "--attack", "FGSM", "--limit", "20"]
    assert main([*words, "--model", "digits_cnn", *INPUTS, "--quiet", "--json"]) == 0
    networks = json.loads(capsys.readouterr().out)["networks"]
    assert [network["about"].get("input", {}).get("std") for network in networks] == [None, [pytest.approx(STD)]]
    for option, given in (("--mean", INPUTS), ("--model", ["--model", "digits_cnn"])):
        said = line(capsys, "transfer", ZOO, "zoo:mnist-linf-atent", *given)
        assert f"{option} has no effect" in said


def test_the_theory_is_checked_on_the_network_behind_its_normalisation(here, net, monkeypatch):
    class Reached(Exception):
        """The network is there, and nothing is measured."""

    def caught(*given, **_named):
        (model,) = (each for each in given if isinstance(each, torch.nn.Module))
        x = torch.rand(2, 1, 8, 8)
        with torch.no_grad():
            torch.testing.assert_close(model(x), net((x - MEAN) / STD))
        raise Reached

    monkeypatch.setattr(command, "check", caught)
    convention = atent.models.convention.Convention((MEAN,), (STD,))
    with pytest.raises(Reached):
        command.of_run("weights.pt", model="digits_cnn", data="digits", convention=convention, limit=4)
