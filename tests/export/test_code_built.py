"""Exports of networks that code of the user builds."""

from pathlib import Path

from atent.cli import main


def test_a_file_of_weights_is_refused_for_a_network_that_code_builds(tmp_path, monkeypatch, capsys):
    """Before it is written: a file that nothing could load would be left."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights_mine.py").write_text(
        "from torch import nn\n\n\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    words = ["--model.name", "weights_mine:net", "--train.epochs", "1", "--method.steps", "1", "--data.limit", "80"]
    words += ["--evaluate.attacks", "FGSM", "--evaluate.limit", "20", "--no-baseline", "--quiet"]
    assert main(["train", "digits-linf-pgdat", "--name", "own", *words]) == 0
    capsys.readouterr()
    assert main(["export", "runs/own", "--format", "safetensors", "--out", "own.safetensors"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "is built by weights_mine:net: use --format hub" in line
    assert not Path("own.safetensors").exists()
