"""docs/training.md: its Python runs, and its commands take the run that it makes."""

import re
import shlex
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

from atent.cli import main

TEXT = (Path(__file__).parents[2] / "docs" / "training.md").read_text()


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    def ignored(*args, **given):
        pass

    fake = ModuleType("torch.utils.tensorboard")
    fake.SummaryWriter = lambda *args, **given: SimpleNamespace(add_scalar=ignored, add_text=ignored, close=ignored)
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    own, *blocks = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    assert own.startswith("# mine.py\n")
    Path("mine.py").write_text(own)
    # Other tests have a module of this name too.
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    names = {}
    try:
        for code in blocks:
            exec(compile(code, "docs/training.md", "exec"), names)
        assert names["perturbed"].history[-1]["sharpness"] > 0
        assert "embedding" in names["regularised"].history[-1]
        assert [row["epoch"] for row in names["again"].history] == [1, 2, 3]
        few = {
            "evaluate": ["--limit", "5", "--quiet"],
            "certify": ["--limit", "1", "--n", "100"],
            "report": ["--images", "0"],
            "train": ["--quiet"],
        }
        (commands,) = re.findall(r"```bash\n(.*?)```", TEXT, re.S)
        for _, verb, *rest in map(shlex.split, commands.splitlines()):
            assert main([verb, *rest, *few.get(verb, [])]) == 0, capsys.readouterr().err
    finally:
        sys.modules.pop("mine", None)
