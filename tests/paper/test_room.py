"""The paper room is above the library: of the other rooms, only the command line imports it."""

import ast
from pathlib import Path

import atent

SOURCE = Path(atent.__file__).parent
ALLOWED = {"paper", "cli"}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_command_line_alone_imports_the_paper():
    files = list(SOURCE.rglob("*.py"))
    using = {
        f.relative_to(SOURCE).parts[0] for f in files if any(f"{n}.".startswith("atent.paper.") for n in imported(f))
    }
    assert "cli" in using
    assert using <= ALLOWED
