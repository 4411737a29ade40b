"""ONNX and VNN-LIB files, run by onnxruntime; where the extra is not installed, these tests are skipped."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kit import instances
from torch import nn

import atent
from atent.cli import main
from atent.experiments.target import load_target
from atent.export import checks, programs, vnnlib
from atent.models import build

REASON = "needs the extra onnx: pip install 'atent[onnx]'"
onnx = pytest.importorskip("onnx", reason=REASON)
pytest.importorskip("onnxscript", reason=REASON)
pytest.importorskip("onnxruntime", reason=REASON)


def test_an_onnx_file_is_the_network(short_run, capsys):
    """Any batch, the network's logits within its rounding, and what the inputs are inside the file."""
    assert main(["export", "run", "--format", "onnx", "--limit", "12", "--quiet", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    path = Path(found["written"])
    assert path == Path("run/model.onnx")
    assert found["check"]["passed"]
    model, run = atent.load("run"), programs.runtime(path)
    for n in (1, 2, 5):
        x = torch.rand(n, 1, 8, 8)
        assert torch.allclose(run(x), model(x), atol=checks.tolerance(model, x), rtol=0)
    (about,) = [json.loads(each.value) for each in onnx.load(path).metadata_props if each.key == "atent"]
    assert (about["shape"], about["box"], about["classes"]) == ([1, 8, 8], [0.0, 1.0], 10)
    assert about["data"] == "digits"
    (opset,) = [each.version for each in onnx.load(path).opset_import if each.domain == ""]
    assert opset == programs.OPSET


def test_the_normalisation_of_a_file_from_elsewhere_is_inside(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    net = build("digits_cnn").eval()
    torch.save({"state_dict": net.state_dict()}, "weights.pt")
    words = (
        "export weights.pt --model digits_cnn --data digits --mean 0.3 --std 0.4 --format onnx --out net.onnx --quiet"
    )
    assert main([*words.split(), "--bgr", "--limit", "5"]) == 0
    x = torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        wanted = net((x - 0.3) / 0.4)
    assert torch.allclose(programs.runtime(Path("net.onnx"))(x), wanted, atol=checks.tolerance(net, x), rtol=0)
    assert programs.onnx_about(Path("net.onnx"))["input"] == {
        "mean": [pytest.approx(0.3)],
        "std": [pytest.approx(0.4)],
        "bgr": True,
    }


def test_properties_and_network_agree(short_run, capsys):
    """Every property is of an image that is classified correctly; a counterexample that PGD knows is one in the box."""
    words = [
        "export",
        "run",
        "--format",
        "vnnlib",
        "--eps",
        "0.3",
        "--limit",
        "12",
        "--timeout",
        "30",
        "--quiet",
        "--json",
    ]
    assert main(words) == 0
    found = json.loads(capsys.readouterr().out)
    place = Path(found["written"])
    assert place == Path("run/vnnlib")
    rows = instances(place)
    assert found["properties"] == len(rows) == 12 - found["misclassified"]
    # So large a radius that PGD succeeds on some.
    assert found["counterexamples"]
    target = load_target("run", attacks=(), limit=12, eps="0.3")
    inputs = checks.inputs_of(target)
    at = {int(number): i for i, number in enumerate(inputs.ids)}
    for network, path, timeout in rows:
        assert timeout == 30
        wanted, run = vnnlib.read(path), programs.runtime(network)
        i = at[int(path.stem.removeprefix("image_"))]
        assert wanted.label == int(inputs.labels[i])
        assert bool(wanted.contains(inputs.clean[i : i + 1]))
        assert not bool(wanted.violated(run(inputs.clean[i : i + 1])))
        assert torch.allclose(wanted.high, target.threat.clamp(inputs.clean[i].double() + 0.3).flatten(), atol=1e-12)


class Eigenvalues(nn.Module):
    """An operation that ONNX does not have."""

    def forward(self, x):
        return torch.linalg.eigvals(x[:, 0]).real @ torch.ones(8, 10)


def test_an_operator_without_a_form_is_named(short_run):
    target = load_target("run", attacks=(), limit=4)
    own = SimpleNamespace(name="own", model=Eigenvalues(), data=target.data, about={}, threat=None)
    with pytest.raises(ValueError, match=r"own cannot be exported to ONNX, opset 18: aten\.linalg_eig") as error:
        programs.write_onnx(own, Path("own.onnx"))
    assert "\n" not in str(error.value)
    assert not Path("own.onnx").exists()
    Path("bad.onnx").write_bytes(b"\x08\x01")
    with pytest.raises(ValueError, match=r"cannot run bad\.onnx"):
        programs.runtime(Path("bad.onnx"))


NAMES = ["small_cnn", "resnet20", "preact_resnet18", "vit_tiny"]


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_built_in_networks_can_be_exported(name, tmp_path):
    """Untrained networks of several families, with normalisation, in two sizes of batches."""
    from atent.data import from_tensors

    shape = atent.models.native_shape(name)
    torch.manual_seed(0)
    normalize = ([0.4] * shape[0], [0.2] * shape[0])
    model = atent.models.build(name, normalize=normalize).eval()
    x, y = torch.rand(20, *shape), torch.arange(20) % 10
    data = from_tensors(x, y, x, y, validation=10)
    target = SimpleNamespace(name=name, model=model, data=data, about={}, threat=None)
    run = programs.write_onnx(target, tmp_path / "model.onnx")
    inputs = checks.Inputs(x, y, torch.arange(20), 1 - x, "their negatives")
    assert checks.compared(model, run, inputs, (1, 40)).passed
