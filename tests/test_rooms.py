"""No room imports one that stands above it, so there are no circles between rooms."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "atent"

# From the ground up; a room may import those of earlier lines.
ORDER = [
    ["contracts", "fields", "origins"],
    ["docstrings", "extras", "geometry", "heap", "markdown", "messages", "progress", "signals", "threads", "torchrun"],
    ["distributed"],
    ["losses", "rng", "sgld", "torch_errors", "zoo"],
    ["stats", "trust"],
    ["threat", "guard", "registry", "memory"],
    ["checks", "precision"],
    ["probe", "folded"],
    ["independence", "models", "optim"],
    ["runs"],
    ["data"],
    ["attacks", "plots"],
    ["certify"],
    ["methods", "evaluate"],
    ["train"],
    ["integrations", "experiments"],
    ["testing", "report", "bench"],
    ["export", "paper"],
    ["cli"],
    ["__main__"],
]
LEVEL = {room: i for i, rooms in enumerate(ORDER) for room in rooms}


def rooms_that(path):
    """The rooms that a file imports, also inside its functions; names of `atent` itself are of no room."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            room = rest.partition(".")[0]
            if top == "atent" and room in LEVEL:
                yield room


def test_every_room_has_its_place():
    found = {p.stem if p.is_file() else p.name for p in SOURCE.iterdir() if p.suffix == ".py" or p.is_dir()}
    assert found - {"__init__", "__pycache__", "recipes", "py.typed"} == set(LEVEL)


def test_no_import_points_up():
    wrong = []
    for path in SOURCE.rglob("*.py"):
        own = path.relative_to(SOURCE).parts[0].removesuffix(".py")
        if own in ("__init__", "recipes"):
            continue
        wrong += [
            f"{path.relative_to(SOURCE)} imports {r}" for r in rooms_that(path) if r != own and LEVEL[r] >= LEVEL[own]
        ]
    assert not wrong


def modules_that(path, known):
    """The modules that a file imports outside of its functions, for their types alone too."""
    nodes = list(ast.parse(path.read_text(encoding="utf-8")).body)
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield whole if whole in known else node.module
        elif isinstance(node, ast.If | ast.Try):
            nodes += node.body


def test_no_module_needs_one_that_needs_it():
    """A type that two modules need is in a module of its own, or in the lower one."""
    known = {
        ".".join(("atent", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): path
        for path in SOURCE.rglob("*.py")
    }
    graph = {name: set(modules_that(path, known)) & known.keys() - {name} for name, path in known.items()}
    assert len(list(TopologicalSorter(graph).static_order())) == len(known)


def test_files_are_read_in_one_sitting():
    long = {str(p.relative_to(SOURCE)): n for p in SOURCE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 400}
    assert not long


def longer_than_a_screen(path):
    """The functions of a file that have more than 60 lines of code, their docstrings apart."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = node.end_lineno - node.lineno + 1
            if ast.get_docstring(node) is not None:
                lines -= node.body[0].end_lineno - node.body[0].lineno + 1
            if lines > 60:
                yield node.name


def test_functions_fit_a_screen():
    found = {
        f"{p.relative_to(SOURCE).as_posix()}:{name}" for p in SOURCE.rglob("*.py") for name in longer_than_a_screen(p)
    }
    assert not found
