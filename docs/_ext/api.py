"""The API's pages: one for each room, with a table of its public names and an entry of each, from their docstrings."""

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parent.parent
# Stands for a colon while napoleon reads a docstring.
COLON = "\ue000"

ROOMS = {
    "atent": ("The package", "What `import atent` gives, and threats.", ["atent", "atent.threat"]),
    "attacks": ("Attacks", "Each attack, and the class that all share.", ["atent.attacks"]),
    "methods": (
        "Training methods",
        "Each method, and the class that all share.",
        ["atent.methods", "atent.models.contrastive"],
    ),
    "train": ("Training", "The training loop, its settings and callbacks.", ["atent.train", "atent.train.callbacks"]),
    "optim": ("Optimizers", "Optimizers, schedules and averages of weights.", ["atent.optim"]),
    "evaluate": (
        "Evaluation",
        "Robust accuracy, bands, corruptions and checks for masked gradients.",
        ["atent.evaluate"],
    ),
    "certify": ("Certificates", "Certificates by smoothing and by bounds.", ["atent.certify"]),
    "data": ("Data", "Data sets, splits, augmentation and views.", ["atent.data"]),
    "models": ("Networks", "Networks and their weights.", ["atent.models"]),
    "testing": ("Contract checks", "Checks of attacks, methods and certifiers of your own.", ["atent.testing"]),
    "losses": ("Losses", "Losses per sample, from logits and labels.", ["atent.losses"]),
    "runs": ("Run folders", "Their files, names and configurations.", ["atent.runs"]),
    "packages": ("Other packages", "scikit-learn, other attack libraries, export and comparisons.", []),
    "plugins": (
        "Plug-ins and trust",
        "How names are found, and which may become code.",
        ["atent.registry", "atent.trust"],
    ),
}
"""Each page with its title, what it holds, and the modules whose public names it documents."""

NAMES = {
    "atent.models.contrastive": ["atent.models.contrastive.Contrastive", "atent.models.contrastive.Frozen"],
    "atent.train.callbacks": ["atent.train.callbacks.Progress", "atent.train.callbacks.Report"],
    "data": ["atent.data.corruptions.corrupt", "atent.data.views.Views"],
    "models": ["atent.models.vit.VisionTransformer", "atent.runs.pretrained.load_start"],
    "packages": [
        "atent.integrations.sklearn.RobustClassifier",
        "atent.integrations.peers.attack",
        "atent.integrations.foolbox.attack",
        "atent.integrations.torchattacks.attack",
        "atent.integrations.art.attack",
        "atent.export.write.write",
        "atent.export.hub.push",
        "atent.experiments.finished.compare_runs",
    ],
}
"""Public names of modules that export no list, and those beside a room's own."""

MEMBERS = {
    "atent.integrations.sklearn.RobustClassifier": "fit, predict, predict_proba, robust_score, certify",
    "atent.attacks.Attack": "__call__, run, search",
    "atent.data.views.Views": "__call__",
}
"""Classes that document other members than all those with a docstring."""


def value_of(name: str) -> Any:
    """What a dotted name means."""
    module, _, last = name.rpartition(".")
    return getattr(importlib.import_module(module), last)


def exported(module: str) -> Iterator[str]:
    """The classes and functions of this library that a module exports."""
    if module in NAMES:
        yield from NAMES[module]
        return
    found = importlib.import_module(module)
    for name in getattr(found, "__all__", None) or dir(found):
        value = getattr(found, name)
        own = getattr(value, "__module__", "").startswith("atent")
        if not name.startswith("_") and own and (inspect.isclass(value) or inspect.isfunction(value)):
            yield f"{module}.{name}"


def listed() -> dict[str, list[str]]:
    """The names that each page documents, each once."""
    seen, pages = set(), {}
    for page, (_, _, modules) in ROOMS.items():
        pages[page] = []
        for name in [*(name for module in modules for name in exported(module)), *NAMES.get(page, [])]:
            if value_of(name) not in seen:
                seen.add(value_of(name))
                pages[page].append(name)
    return pages


def about(value: Any) -> str:
    """The first sentence of a docstring."""
    text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    first = re.split(r"\. (?=[A-Z])", text)[0].removesuffix(".").removesuffix(":")
    return first.replace("``", "`").replace("|", "\\|").replace("*", "\\*")


def table(names: list[str]) -> str:
    """One line for each name, which links to its entry."""
    rows = [f"| {{py:obj}}`~{name}` | {about(value_of(name))} |" for name in names]
    return "\n".join(["| name | what it is |", "|---|---|", *rows, ""])


def entry(name: str) -> str:
    """The directive that documents a name; a class with what its own body documents."""
    value = value_of(name)
    if inspect.isfunction(value):
        return f".. autofunction:: {name}\n"
    text = f".. autoclass:: {name}\n   :members: {MEMBERS.get(name, '')}\n"
    # The fields of a dataclass are the parameters in its docstring.
    fields = (
        [field.name for field in dataclasses.fields(value) if field.init] if dataclasses.is_dataclass(value) else []
    )
    return text + (f"   :exclude-members: {', '.join(fields)}\n" if fields else "")


def _as_text(app, what, name, value, options, lines) -> None:
    """Docstrings are plain text: a bar or a star in one is itself, and a paragraph may hang."""
    code, hangs, underlines = False, False, [i for i, line in enumerate(lines) if re.fullmatch(r"-{3,}", line.strip())]
    for i, line in enumerate(lines):
        code = line.lstrip().startswith(">>>") or (code and bool(line.strip()))
        if code:
            continue
        # A list or an indented paragraph keeps its form.
        hangs = bool(line.strip()) and not re.match(r"\s*([-*]|\d+\.|\.\.) ", line) and (hangs or line[0] != " ")
        if hangs and (not underlines or i < underlines[0] - 1):
            line = line.lstrip()
        parts = re.split(r"(`+[^`]+`+|(?<![\w*])\*\w[\w -]*\*(?![\w*]))", line)
        lines[i] = "".join(p if j % 2 else re.sub(r"([|*])", r"\\\1", p) for j, p in enumerate(parts))
    # napoleon takes what is before the colon of a field's first line for its type.
    if what == "attribute" and lines:
        lines[0] = lines[0].replace(":", COLON)


def _as_written(app, what, name, value, options, lines) -> None:
    lines[:] = [line.replace(COLON, ":") for line in lines]


def _fields(app, what, name, value, options, signature, returns) -> tuple[str, None] | None:
    """The signature of a dataclass is its fields, also where a metaclass stands before it."""
    if what != "class" or not dataclasses.is_dataclass(value):
        return None
    _, *fields = inspect.signature(value.__init__).parameters.values()
    return str(inspect.Signature([field.replace(annotation=field.empty) for field in fields])), None


def write() -> None:
    """Write the pages and the list of them."""
    folder = DOCS / "api"
    folder.mkdir(exist_ok=True)
    overview = []
    for page, names in listed().items():
        title, holds, _ = ROOMS[page]
        entries = "\n".join(entry(name) for name in names)
        text = f"# {title}\n\n{holds}\n\n{table(names)}\n## Entries\n\n```{{eval-rst}}\n{entries}```\n"
        (folder / f"{page}.md").write_text(text, encoding="utf-8")
        overview.append(f"## {title}\n\n{holds} [All entries](api/{page}.md)\n\n{table(names)}")
    (DOCS / "_generated" / "api.md").write_text("\n".join(overview), encoding="utf-8")


def _write(app) -> None:
    (DOCS / "_generated").mkdir(exist_ok=True)
    write()


def setup(app) -> dict[str, bool]:
    app.connect("builder-inited", _write)
    # Before napoleon reads the sections.
    app.connect("autodoc-process-docstring", _as_text, priority=400)
    app.connect("autodoc-process-docstring", _as_written, priority=600)
    app.connect("autodoc-process-signature", _fields)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
