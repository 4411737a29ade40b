"""What is exported is the network: files are read back and compared; cards say what the files say."""

import dataclasses
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kit import instances, own
from torch import nn

import atent
from atent.cli import main
from atent.data import from_tensors
from atent.experiments.results import Share
from atent.experiments.target import load_target
from atent.export import checks, programs, robustbench, vnnlib
from atent.export.card import Results, card_of, results_of
from atent.runs import read_json
from atent.threat import Threat

ROOT = Path(__file__).parents[2]


def exported(capsys, *words):
    status = main(["export", *words, "--limit", "12", "--quiet"])
    return status, capsys.readouterr()


def line_of_error(capsys, *words):
    assert main(list(words)) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line


def all_shares(content):
    """Every share inside plain values."""
    if isinstance(content, dict):
        if {"value", "low", "high", "k", "n"} <= content.keys():
            yield content
        for value in content.values():
            yield from all_shares(value)
    elif isinstance(content, list):
        for value in content:
            yield from all_shares(value)


# ---- single files


def test_safetensors_and_torch_export_are_the_network(short_run, capsys):
    """Both files compute the same logits as the run, and the check says so; one is loaded in a new network."""
    status, printed = exported(capsys, "run", "--format", "safetensors", "--json")
    assert status == 0, printed.err
    found = json.loads(printed.out)
    assert found["written"] == "run/model.safetensors"
    assert found["check"]["passed"]
    words = ("evaluate", "run/model.safetensors", "--data", "digits", "--norm", "linf", "--eps", "0.1", "--quiet")
    assert main([*words, "--attacks", "FGSM", "--limit", "5"]) == 0
    status, printed = exported(capsys, "run", "--format", "torch-export", "--out", "net.pt2")
    assert status == 0, printed.err
    program = torch.export.load("net.pt2").module()
    model = atent.load("run")
    for n in (1, 3, 7):
        x = torch.rand(n, 1, 8, 8)
        assert torch.allclose(program(x), model(x), atol=checks.tolerance(model, x), rtol=0)
    assert exported(capsys, "run", "--format", "torch-export", "--out", "net.pt2")[0] == 2  # never overwritten


def test_a_check_finds_another_network(short_run, capsys, monkeypatch):
    """A file that computes something else is reported, stays, and the command exits with 1."""
    target = load_target("run", attacks=(), limit=12)
    inputs = checks.inputs_of(target)
    other = atent.load("run")
    with torch.no_grad():
        next(other.parameters()).add_(1e-2)
    found = checks.compared(target.model, lambda x: other(x).detach(), inputs, (1, 24))
    assert not found.passed
    assert found.difference > found.tolerance
    broken = checks.compared(target.model, lambda x: target.model(x).detach() * torch.nan, inputs, (24,))
    assert not broken.passed
    from atent.export import write as room

    monkeypatch.setitem(
        room._FILES, "safetensors", (lambda _target, path: lambda x: other(x).detach(), lambda _target: "weights")
    )
    status, printed = exported(capsys, "run", "--format", "safetensors", "--out", "other.safetensors")
    assert status == 1
    assert "differs from the network" in printed.err


class Branching(nn.Module):
    """A forward pass that depends on the values of its input."""

    def forward(self, x):
        out = x.flatten(1) @ torch.ones(64, 10)
        return out if x.sum() > 0 else -out


def test_what_cannot_be_exported_is_one_line(short_run, capsys, monkeypatch):
    target = load_target("run", attacks=(), limit=4)
    with pytest.raises(ValueError, match=r"line \d+.*branch on values") as error:
        programs.write_program(SimpleNamespace(name="own", model=Branching(), data=target.data), Path("net.pt2"))
    assert "\n" not in str(error.value)
    assert not Path("net.pt2").exists()
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    error = line_of_error(capsys, "export", "run", "--format", "onnx", "--limit", "4")
    assert "pip install 'atent[onnx]'" in error
    assert not list(short_run.glob("*.onnx"))  # the name is given back
    assert "no effect on onnx" in line_of_error(capsys, "export", "run", "--format", "onnx", "--push", "a/b")
    assert "user/name" in line_of_error(capsys, "export", "run", "--format", "hub", "--push", "name")
    assert "--push" in line_of_error(capsys, "export", "run", "--format", "hub", "--private")
    error = line_of_error(capsys, "export", "run", "--format", "vnnlib", "--norm", "l2", "--eps", "1")
    assert "l2 1 is not one" in error
    error = line_of_error(capsys, "export", "run", "--format", "vnnlib", "--norm", "linf", "--eps", "inf")
    assert "a property needs a finite eps" in error
    assert "RobustBench has" in line_of_error(capsys, "export", "run", "--format", "robustbench")


# ---- VNN-LIB


def linear_target():
    """A linear network of 3 classes on 2 inputs, whose properties are decided by hand."""
    x = torch.tensor([[0.9, 0.1], [0.55, 0.45], [0.1, 0.9], [0.5, 0.2]])
    y = torch.tensor([0, 0, 1, 2])
    net = nn.Linear(2, 3)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0]]))
        net.bias.zero_()
    data = from_tensors(x.repeat(5, 1), y.repeat(5), x, y, validation=4)
    return net.eval(), data, x, y


def test_properties_say_what_the_ball_says(tmp_path):
    """The box is the ball inside the box of inputs, the outputs those of a misclassification, and PGD decides."""
    net, data, x, y = linear_target()
    threat = Threat("linf", 0.1)
    target = SimpleNamespace(name="two\nlines", data=data, threat=threat)
    inputs = checks.Inputs(x, y, torch.arange(4), threat.clamp(x + 0.1 * torch.tensor([-1.0, 1.0])), "by hand")
    found = vnnlib.write_properties(target, inputs, lambda x: net(x).detach(), tmp_path, 60)
    # 0.9 - 0.1 stays above 0.1 + 0.1; 0.55 - 0.1 falls below 0.45 + 0.1; the last image is misclassified as 0.
    assert found.misclassified == 1
    assert found.counterexamples == (1,)
    rows = instances(tmp_path)
    assert [(row[1].name, row[2]) for row in rows] == [(f"image_{i}.vnnlib", 60.0) for i in range(3)]
    read = vnnlib.read(rows[0][1])
    assert read.label == 0
    assert read.low.tolist() == pytest.approx([0.8, 0.0], abs=1e-7)
    assert read.high.tolist() == pytest.approx([1.0, 0.2], abs=1e-7)
    logits = torch.tensor([[1.0, 0.0, 0.5], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]])
    assert read.violated(logits).tolist() == [False, True, True]
    assert not re.search(r"\de", rows[0][1].read_text())
    # A file that says something else is refused.
    rows[1][1].write_text(rows[1][1].read_text().replace("(>= Y_1 Y_0)", "(>= Y_1 Y_2)"))
    with pytest.raises(ValueError, match="not a property"):
        vnnlib.read(rows[1][1])


def test_another_reader_reads_the_same_property(tmp_path):
    """The reader of VNN-LIB 1 on the package index: the box, and matrices of which A y <= 0 is a misclassification."""
    compat = pytest.importorskip("vnnlib.compat", reason="needs vnnlib below version 1")
    wanted = vnnlib.Property(torch.tensor([0.1, 1e-9]).double(), torch.tensor([0.3, 1.0]).double(), 1, 3)
    path = tmp_path / "one.vnnlib"
    path.write_text(vnnlib.spelled(wanted, "one"))
    ((box, conditions),) = compat.read_vnnlib_simple(str(path), 2, 3)
    assert box == torch.stack([wanted.low, wanted.high], 1).tolist()
    for logits in torch.tensor([[0.0, 1.0, 0.5], [1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [-1.0, -0.5, -2.0]]):
        found = any((torch.as_tensor(a).float() @ logits <= torch.as_tensor(b).float()).all() for a, b in conditions)
        assert found == bool(wanted.violated(logits[None]))


def test_a_number_is_written_as_it_is_read():
    for value in (0.1, 1e-9, 1 / 3, 5e-324, 1.0, 0.0, 0.15000000596046448):
        assert float(vnnlib._decimal(value)) == value
        assert "e" not in vnnlib._decimal(value)


# ---- the Hub


def test_a_folder_for_the_hub_is_a_run_with_a_card(short_run, capsys):
    assert main(["certify", "run", "--method", "ibp", "--radius", "0.01", "--norm", "linf", "--limit", "20"]) == 0
    # Shards are parts of a result, and no results themselves.
    shard = ["--attacks", "FGSM", "--limit", "5", "--batch-size", "2", "--shard", "1/2", "--quiet"]
    assert main(["evaluate", "run", *shard]) == 0
    assert list(Path("run").glob("evaluation*.shard-1-of-2.json"))
    config = read_json("run/config.json")
    assert config["signature"]
    status, printed = exported(capsys, "run", "--format", "hub", "--out", "mine", "--license", "mit")
    assert status == 0, printed.err
    place = Path("mine")
    assert {p.name for p in place.iterdir()} == {
        "README.md", "card.json", "certificate.json", "config.json", "evaluation.json", "manifest.json",
        "model.safetensors",
    }  # fmt: skip
    # Nothing of this machine's places.
    text = (place / "config.json").read_text() + (place / "README.md").read_text() + (place / "card.json").read_text()
    assert "signature" not in text
    assert str(Path.cwd()) not in text
    # Every figure is in the file that it names, and the page has no other.
    card = read_json(place / "card.json")
    assert {figure["name"] for figure in card["figures"]} == {"clean accuracy", "robust accuracy", "verified accuracy"}
    for figure in (*card["figures"], *card["attacks"]):
        assert figure["share"] in list(all_shares(read_json(place / figure["file"])))
    page = (place / "README.md").read_text()
    assert "| input | 1 x 8 x 8, values in [0, 1] |" in page
    shown = {
        f"{100 * f['share']['value']:.1f} % [{100 * f['share']['low']:.1f}, {100 * f['share']['high']:.1f}]"
        for f in (*card["figures"], *card["attacks"])
    }
    assert set(re.findall(r"\d+\.\d % \[[\d., ]+\]", page)) == shown
    assert 'license: "mit"' in page
    assert any("Not measured by AutoAttack" in line for line in card["limits"])
    # It is loaded, evaluated and exported again as a run is.
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(atent.load(place)(x), atent.load("run")(x))
    assert main(["evaluate", "mine", "--attacks", "FGSM", "--limit", "5", "--quiet"]) == 0
    assert main(["show", "mine"]) == 0
    # A changed file is found.
    (place / "model.safetensors").write_bytes((place / "model.safetensors").read_bytes()[:-1] + b"\x01")
    with pytest.raises(ValueError, match="damaged"):
        atent.load(place)


@pytest.mark.parametrize("how", ["--method ibp --norm linf", "--sigma 0.1 --n 100 --n0 10"])
def test_results_of_other_weights_are_not_claimed(how, short_run, capsys):
    """The last epoch's weights have no evaluation of their own, nor has a certificate of others' a place."""
    assert main(["certify", "run", *how.split(), "--radius", "0.01", "--limit", "5"]) == 0
    (path,) = short_run.glob("certificate*.json")
    path.write_text(re.sub(r'"weights": "[0-9a-f]{16}"', '"weights": "0000000000000000"', path.read_text()))
    (short_run / "manifest.json").unlink()
    target = load_target("run", attacks=(), which="last", limit=4)
    assert not results_of(target).evaluations
    found = results_of(load_target("run", attacks=(), limit=4))
    assert len(found.evaluations) == 1
    assert not found.certificates
    card = card_of(target, results_of(target))
    assert not card.figures
    assert "nothing is known" in card.limits[0]


def test_a_card_claims_what_a_report_leads_with(short_run):
    """AutoAttack on few images counts before PGD on many, whose upper limit is lower."""
    (found,) = results_of(load_target("run", attacks=(), limit=4)).evaluations.values()
    (entry,) = found.attacks.values()

    def by(attack, k, n):
        left = Share.of(k, n)
        return dataclasses.replace(
            found, n=n, worst=left, attacks={attack: dataclasses.replace(entry, attack=attack, robust=left)}
        )

    files = {Path("evaluation.json"): by("PGD", 430, 500), Path("evaluation-2.json"): by("AutoAttack", 17, 20)}
    assert Results(files, {}).headline == Path("evaluation-2.json")


def test_weights_in_a_file_become_a_folder(short_run, capsys, monkeypatch):
    """A file of a built-in network: its data and threat are those of the options."""
    shutil.copy(short_run / "best.safetensors", "net.safetensors")
    words = ("net.safetensors", "--data", "digits", "--norm", "linf", "--eps", "0.05")
    status, printed = exported(capsys, *words, "--format", "hub", "--out", "mine")
    assert status == 0, printed.err
    x = torch.rand(3, 1, 8, 8)
    assert torch.equal(atent.load("mine")(x), atent.load("run")(x))
    target = load_target("mine", limit=4)
    assert (target.threat.norm, float(target.threat.eps)) == ("linf", 0.05)
    assert target.data.name == "digits"
    Path("mine_net.py").write_text(
        "import torch\ndef build():\n    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(".")
    words = ("export", "mine_net:build", "--data", "digits", "--norm", "linf", "--eps", "0.1", "--format", "hub")
    assert "no code" in line_of_error(capsys, *words)


def test_the_hub_reads_the_card(short_run, capsys):
    """The Hub's own parser finds the results in the head of the page."""
    client = pytest.importorskip("huggingface_hub", reason="needs the extra hub: pip install 'atent[hub]'")
    assert exported(capsys, "run", "--format", "hub", "--out", "mine", "--license", "mit")[0] == 0
    read = client.ModelCard.load("mine/README.md").data
    card = read_json("mine/card.json")
    assert [each.metric_value for each in read.eval_results] == [each["share"]["value"] for each in card["figures"]]
    assert (read.license, read.library_name, read.datasets) == ("mit", "atent", ["digits"])


def test_a_run_of_your_own_network_keeps_its_code_to_itself(tmp_path, monkeypatch, capsys):
    """The folder holds its weights; whoever loads it must have the code, and say that he trusts it."""
    before = ROOT / "tests" / "files" / "before_subsets"
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "support"))
    shutil.copytree(before / "finished", "run")
    own(Path("run"))
    words = ("run", "--root", str(before / "sorted.npz"), "--format", "hub", "--out", "mine")
    status, printed = exported(capsys, *words)
    assert status == 0, printed.err
    assert "small_net:build, which is not in this folder" in Path("mine/README.md").read_text()
    with pytest.raises(ValueError, match="small_net:build"):
        atent.load("mine")
    x = torch.rand(2, 1, 4, 4)
    assert torch.equal(atent.load("mine", trust_code=True)(x), atent.load("run")(x))


class Client:
    """A stand-in for `huggingface_hub.HfApi`, with the two calls that are used of it."""

    def __init__(self):
        self.calls = []

    def create_repo(self, repo_id, *, private, exist_ok):
        self.calls.append(("create", repo_id, private, exist_ok))

    def upload_folder(self, *, repo_id, folder_path, commit_message):
        self.calls.append(("upload", repo_id, sorted(p.name for p in Path(folder_path).iterdir())))


def test_pushing_and_loading_by_name(short_run, capsys, monkeypatch):
    """The Hub's package is replaced by an object with the calls that are used: nothing is sent anywhere."""
    client, asked = Client(), []

    def download(repo, *, revision, allow_patterns):
        asked.append((repo, revision))
        return "mine"

    fake = SimpleNamespace(HfApi=lambda: client, snapshot_download=download)
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    status, printed = exported(capsys, "run", "--format", "hub", "--out", "mine", "--push", "user/net", "--private")
    assert status == 0, printed.err
    assert client.calls[0] == ("create", "user/net", True, True)
    assert "README.md" in client.calls[1][2]
    assert "huggingface.co/user/net" in printed.out
    assert 'atent.load("hub:user/net")' in Path("mine/README.md").read_text()
    x = torch.rand(2, 1, 8, 8)
    assert torch.equal(atent.load("hub:user/net@v1")(x), atent.load("run")(x))
    assert asked == [("user/net", "v1")]
    # Results of a network that is not the user's own folder go to the folder of work.
    assert main(["evaluate", "hub:user/net", "--attacks", "FGSM", "--limit", "5", "--quiet"]) == 0
    assert Path("hub-user-net-evaluation.json").is_file()
    assert read_json("hub-user-net-evaluation.json")["run"] == "hub:user/net"
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'atent[hub]'" in line_of_error(capsys, "evaluate", "hub:user/net")
    assert "hub:user/name" in line_of_error(capsys, "evaluate", "hub:user")
    assert "pip install 'atent[hub]'" in line_of_error(capsys, "export", "run", "--format", "hub", "--push", "a/b")
    # A repository of another library.
    Path("theirs").mkdir()
    Path("theirs/config.json").write_text('{"model_type": "resnet"}')
    monkeypatch.setattr(fake, "snapshot_download", lambda *_args, **_given: "theirs")
    monkeypatch.setitem(sys.modules, "huggingface_hub", fake)
    assert "not a network of atent" in line_of_error(capsys, "evaluate", "hub:user/theirs")
    # What fails its check stays here.
    from atent.export import write as room

    before = len(client.calls)
    monkeypatch.setattr(room, "loaded", lambda *_args: lambda x: torch.zeros(len(x), 10))
    status, printed = exported(capsys, "run", "--format", "hub", "--out", "broken", "--push", "user/net")
    assert status == 1
    assert "not pushed" in printed.err
    assert len(client.calls) == before


# ---- RobustBench


def test_an_entry_of_robustbench_needs_its_protocol(short_run):
    """Only the standard AutoAttack on all images fills its field; a subset of the images fills none."""
    target = load_target("run", attacks=(), limit=4)
    found = results_of(target)
    (path, evaluation) = next(iter(found.evaluations.items()))
    data = dataclasses.replace(target.data, name="cifar10")
    as_cifar = dataclasses.replace(target, data=data, threat=Threat("linf", 8 / 255))
    entry, place = robustbench.entry(as_cifar, found)
    assert entry["autoattack_acc"] is None
    assert entry["eps"] == "8/255"
    assert place == "model_info/cifar10/Linf/run.json"
    (attack,) = evaluation.attacks.values()
    standard = dataclasses.replace(
        evaluation, n=500, data=dataclasses.replace(evaluation.data, n=500, of=500),
        attacks={"AutoAttack": dataclasses.replace(
            attack, attack="AutoAttack", threat=dataclasses.replace(attack.threat, eps=8 / 255)
        )},
    )  # fmt: skip
    entry, _ = robustbench.entry(as_cifar, dataclasses.replace(found, evaluations={path: standard}))
    assert entry["autoattack_acc"] == f"{100 * evaluation.worst.value:.2f}"
    assert entry["clean_acc"] == f"{100 * evaluation.clean.value:.2f}"
    # Another attack that leaves less is not AutoAttack; whole radii are in 1/255 in linf alone.
    square = dataclasses.replace(standard.attacks["AutoAttack"], attack="Square", robust=Share.of(0, 500))
    both = dataclasses.replace(standard, attacks={**standard.attacks, "Square": square}, worst=Share.of(0, 500))
    entry, _ = robustbench.entry(as_cifar, dataclasses.replace(found, evaluations={path: both}))
    assert entry["autoattack_acc"] == f"{100 * evaluation.worst.value:.2f}"
    in_l2 = dataclasses.replace(as_cifar, threat=Threat("l2", 1.0))
    assert robustbench.entry(in_l2, found)[0]["eps"] == "1"
