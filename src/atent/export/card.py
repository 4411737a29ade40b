"""The model card: a network, its measured accuracies, under which attack or certificate, and from which file."""

from __future__ import annotations

import functools
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from atent.attacks.spec import show
from atent.experiments import migrate
from atent.experiments.comparison import caveat_of, remarks
from atent.experiments.gate import certificates
from atent.experiments.interrupted import note_unfinished
from atent.experiments.results import BoundsFile, CertificateFile, EvaluationFile, SequentialFile, Share, SmoothingFile
from atent.experiments.target import Target
from atent.geometry.values import intervals
from atent.report import words
from atent.report.collect import leading
from atent.runs import provenance
from atent.runs.names import results_in
from atent.runs.weights import fingerprint

CARD_VERSION = 1
CARD = "card.json"
README = "README.md"


@dataclass(frozen=True)
class Figure:
    """One measured accuracy."""

    name: str
    share: Share
    samples: str
    """The test images, in words."""
    under: str
    """Attack and threat, or the certificate; "" for the clean accuracy."""
    file: str
    """The file in the folder that contains the figure."""


@dataclass(frozen=True)
class Results:
    """The results of a network, by file."""

    evaluations: dict[Path, EvaluationFile]
    certificates: dict[Path, CertificateFile]

    @property
    def headline(self) -> Path | None:
        """The evaluation whose robust accuracy may be claimed, which a report leads with."""
        named = {str(path): found for path, found in self.evaluations.items()}
        best = leading(named)
        return None if best is None else Path(best)


@dataclass(frozen=True)
class Card:
    """A model card as data; `card.json` is its fields."""

    name: str
    about: str
    """How it was trained, in a sentence."""
    architecture: str
    parameters: int
    data: str
    shape: tuple[int, ...]
    classes: int
    box: Any
    threat: str | None
    """The threat of the training, or the intended one."""
    figures: list[Figure]
    attacks: list[Figure]
    """Robust accuracy under each attack, from the evaluation with the robust accuracy of ``figures``."""
    limits: list[str]
    license: str
    citation: str
    version: str
    schema_version: int = CARD_VERSION
    sha256: dict[str, str] = field(default_factory=dict)
    """SHA-256 sums of the other files."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def results_of(target: Target) -> Results:
    """The finished results of the target's weights, from the same folder."""
    wanted = target.about.get("weights")
    place, stem = (target.place, target.stem) if target.origin is None else (target.origin, "")
    read = {path: migrate.read(path, EvaluationFile) for path in results_in(place, f"{stem}evaluation")}
    own = {path: f for path, f in read.items() if f.weights == wanted or (wanted == "best" and f.weights is None)}
    known = fingerprint(target.model)
    certified = certificates(place, stem)
    # Those of the first versions do not record their weights, and belong to the best ones.
    mine = {path: f for path, f in certified.items() if f.fingerprint in (None, known)}
    return Results(own, mine)


def card_of(target: Target, found: Results, *, name: str | None = None, license: str | None = None) -> Card:
    """The card of a target from its results; ``name`` is that of the card, default: the target's."""
    config, threat = target.config, target.threat
    method = str((config.get("method") or {}).get("name") or "")
    network = str((config.get("model") or {}).get("name") or target.about.get("model") or type(target.model).__name__)
    figures, attacks = figures_of(found)
    return Card(
        name=name or target.name, about=words.method(method) if method else "", architecture=network,
        parameters=sum(p.numel() for p in target.model.parameters()), data=target.data.name,
        shape=tuple(target.data.shape), classes=target.data.classes, box=target.data.box,
        threat=None if threat is None else show(threat), figures=figures, attacks=attacks,
        limits=_limits(target, found), license=license or "unknown", citation=_citation(method),
        version=str(provenance()["version"]),
    )  # fmt: skip


def figures_of(found: Results) -> tuple[list[Figure], list[Figure]]:
    """The ``figures`` and ``attacks`` of a card."""
    figures: list[Figure] = []
    attacks: list[Figure] = []
    best = found.headline
    if best is not None:
        each = found.evaluations[best]
        at = {"samples": each.data.text, "file": best.name}
        figures.append(Figure("clean accuracy", each.clean, under="", **at))
        if each.attacks:
            under = f"{', '.join(each.attacks)}; {', '.join(each.threats)}"
            figures.append(Figure("robust accuracy", each.worst, under=under, **at))
        attacks = [
            Figure(name, a.robust, under=f"{a.attack}; {a.threat.text}", **at) for name, a in each.attacks.items()
        ]
    for path, certificate in found.certificates.items():
        figures += _certified(certificate, path.name)
    return figures, attacks


def _certified(found: CertificateFile, file: str) -> list[Figure]:
    at = {"samples": found.images.text, "file": file}
    if isinstance(found, BoundsFile):
        return [
            Figure("verified accuracy", e.share, under=f"bounds ({found.method}); {e.threat.text}", **at)
            for e in found.certified
        ]
    if isinstance(found, SmoothingFile | SequentialFile):
        how = f"randomised smoothing, sigma {found.sampling['sigma']:g}, of the smoothed network"
        return [Figure("certified accuracy", e.share, under=f"{how}; l2 {e.radius:g}", **at) for e in found.certified]
    return []


def _limits(target: Target, found: Results) -> list[str]:
    """The limitations of the figures."""
    out = []
    if target.origin is not None and note_unfinished(target.origin):
        out.append("The training of these weights was interrupted: they are from the epochs before the interruption.")
    best = found.headline
    if best is None:
        out.append("The folder of these weights has no evaluation: nothing is known of their accuracy.")
    else:
        each = found.evaluations[best]
        out += [line for line in (caveat_of(each), each.hint, *remarks(each.attacks)) if line]
        out += [f"The check {c.name!r} warns: {c.figure}. {c.why}" for c in each.checks if not c.passed]
        if each.n < each.data.of:
            out.append(f"Measured on {each.data.text} test images.")
        if each.threats:
            out.append(
                f"Measured under {' and '.join(each.threats)}: nothing is known of other norms and larger radii."
            )
    out += [f"{path.name}: {each.invalid}" for path, each in found.certificates.items() if each.invalid]
    code = built_by(target.config) if target.config else None
    if code:
        out.append(f"The network is built by {code}, which is not in this folder and runs with trust_code=True alone.")
    out.append("Inputs are in the box above, without normalisation, which is inside the network.")
    return out


def built_by(config: dict[str, Any]) -> str | None:
    """The code outside this library that builds the network of a configuration, or a description of it; None for a
    built-in network."""
    model = config.get("model") or {}
    name = model.get("name") or model.get("builder") or "code of its own"
    return None if model.get("name") and ":" not in name else str(name)


def _citation(method: str) -> str:
    entries = [_SOFTWARE]
    if "ATENT" in method:
        entries.append(_PAPER)
    return "\n\n".join(entries)


_SOFTWARE = """@software{atent,
  title = {atent: adversarial training by entropic regularisation},
  author = {{The atent developers}}
}"""
_PAPER = """@article{jagatap2022adversarially,
  title = {Adversarially Robust Learning via Entropic Regularization},
  author = {Jagatap, Gauri and Joshi, Ameya and Chowdhury, Animesh Basak and Garg, Siddharth and Hegde, Chinmay},
  journal = {Frontiers in Artificial Intelligence},
  volume = {4},
  pages = {780843},
  year = {2022}
}"""


# ---- as a page -----------------------------------------------------------------------------------------------


def markdown(card: Card, repo: str | None = None) -> str:
    """The card as the README.md of a Hub repository; the Hub reads the results in its header as model-index."""
    return str(_environment().get_template("card.md").render(card=card, repo=repo, tags=_tags(card)))


def _tags(card: Card) -> list[str]:
    norm = [card.threat.split()[0]] if card.threat else []
    return ["adversarial-robustness", "image-classification", "pytorch", *norm]


@functools.cache
def _environment() -> Any:
    from jinja2 import Environment, PackageLoader, StrictUndefined

    made = Environment(
        loader=PackageLoader("atent.export"), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        autoescape=False, keep_trailing_newline=True,
    )  # fmt: skip
    made.filters |= {"yaml": _scalar, "cell": _cell, "intervals": intervals}
    return made


def _scalar(value: Any) -> str:
    """A value as YAML, in its JSON form."""
    return json.dumps(value, ensure_ascii=False)


def _cell(text: str) -> str:
    """Text inside a table of Markdown: one line, with the characters escaped that end a cell or begin HTML."""
    return " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("`", "\\`")
