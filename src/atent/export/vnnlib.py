"""Local robustness as VNN-LIB properties, one for each image, beside the ONNX network and the list of instances.

The layout is that of the VNN competitions: ``onnx/``, ``vnnlib/`` and ``instances.csv``, whose rows are network,
property and timeout. A property is satisfiable if some input in the box (X) is not classified as its label: another
logit (Y) is at least as large. The version is VNN-LIB 1.0.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import torch
from torch import Tensor

from atent.attacks.spec import show
from atent.experiments.target import Target
from atent.export.checks import Inputs, Run
from atent.runs import write_atomic
from atent.threat import Threat

NETWORK = "onnx/model.onnx"
INSTANCES = "instances.csv"
_SAMPLES = 20
_CONSTRAINT = re.compile(r"\(\s*(<=|>=)\s+([XY]_\d+)\s+(\S+?)\s*\)")


@dataclass(frozen=True)
class Property:
    """The box of inputs, and the label that another class must not reach."""

    low: Tensor
    """float64, flattened."""
    high: Tensor
    label: int
    classes: int

    def contains(self, x: Tensor) -> Tensor:
        """Whether each input of shape (n, ...) is in the box."""
        flat = x.flatten(1).double()
        return ((self.low <= flat) & (flat <= self.high)).all(1)

    def violated(self, logits: Tensor) -> Tensor:
        """Whether each row of logits satisfies the condition on the outputs: the label is not the only largest."""
        others = logits.clone()
        others[:, self.label] = -torch.inf
        return others.max(1).values >= logits[:, self.label]


@dataclass(frozen=True)
class Written:
    """The written properties, and how they were checked."""

    properties: dict[int, Path]
    """Path of each property, by the number of the image."""
    misclassified: int
    """Number of images without a property, since the network misclassifies them without a perturbation."""
    counterexamples: tuple[int, ...]
    """Images for which PGD found an input that violates the property."""

    @property
    def text(self) -> str:
        """One line."""
        return (
            f"{len(self.properties)} properties (images misclassified, without one: {self.misclassified}), read back"
            f" and evaluated by onnxruntime on {_SAMPLES} points of each box; PGD violates {len(self.counterexamples)}"
        )


def check_threat(threat: Threat | None) -> Threat:
    """The threat; ValueError, in one line, unless a property can express it."""
    if threat is None:
        raise ValueError("a property needs a threat: give --norm linf and --eps")
    if threat.norm != "linf":
        raise ValueError(
            f"VNN-LIB properties are boxes, and {show(threat)} is not one: give --norm linf with its --eps"
        )
    if threat.eps == math.inf:
        raise ValueError("a property needs a finite eps, got inf: give --eps")
    return threat


def write_properties(target: Target, inputs: Inputs, run: Run, place: Path, timeout: int) -> Written:
    """Write a property for each of the images that ``run``, the ONNX network, classifies correctly, and check it.

    ValueError, in one line, as `check_threat`, and if a file does not read back as it was written.
    """
    threat = check_threat(target.threat)
    correct = run(inputs.clean).argmax(1) == inputs.labels
    (place / "vnnlib").mkdir(parents=True, exist_ok=True)
    written: dict[int, Path] = {}
    found: list[int] = []
    for i in correct.nonzero().flatten().tolist():
        number, label = int(inputs.ids[i]), int(inputs.labels[i])
        path = place / "vnnlib" / f"image_{number}.vnnlib"
        x = inputs.clean[i : i + 1].double()
        low, high = threat.clamp(x - float(threat.eps)), threat.clamp(x + float(threat.eps))
        wanted = Property(low.flatten(), high.flatten(), label, target.data.classes)
        head = f"{target.name}: image {number} of {target.data.name} (test), label {label}, {show(threat)}"
        write_atomic(path, spelled(wanted, head))
        if _checked(path, wanted, inputs, i, run):
            found.append(number)
        written[number] = path
    rows = "".join(f"{NETWORK},{path.relative_to(place).as_posix()},{timeout}\n" for path in written.values())
    write_atomic(place / INSTANCES, rows)
    return Written(written, int((~correct).sum()), tuple(found))


def spelled(wanted: Property, head: str) -> str:
    """A property as VNN-LIB: declarations, the box, and the disjunction of the other classes."""
    lines = [f"; {' '.join(head.split())}", ""]
    lines += [f"(declare-const X_{i} Real)" for i in range(len(wanted.low))]
    lines += [f"(declare-const Y_{j} Real)" for j in range(wanted.classes)]
    lines.append("")
    for i, (low, high) in enumerate(zip(wanted.low.tolist(), wanted.high.tolist())):
        lines += [f"(assert (>= X_{i} {_decimal(low)}))", f"(assert (<= X_{i} {_decimal(high)}))"]
    others = (j for j in range(wanted.classes) if j != wanted.label)
    lines += ["", "(assert (or", *(f"    (and (>= Y_{j} Y_{wanted.label}))" for j in others), "))"]
    return "\n".join(lines) + "\n"


def _decimal(value: float) -> str:
    """The shortest decimal that reads back as the number, without an exponent, which some readers do not support."""
    return f"{Decimal(repr(value)):f}"


def read(path: Path) -> Property:
    """The property in a file as `spelled` writes it; ValueError, in one line, for another form."""
    text = re.sub(r";.*", "", path.read_text(encoding="utf-8"))
    inputs, classes = len(re.findall(r"declare-const\s+X_\d+", text)), len(re.findall(r"declare-const\s+Y_\d+", text))
    low, high = torch.full((2, inputs), torch.nan, dtype=torch.float64)
    larger: set[int] = set()
    labels: set[int] = set()
    for relation, name, other in _CONSTRAINT.findall(text):
        number = int(name[2:])
        if name.startswith("X_") and number < inputs:
            (low if relation == ">=" else high)[number] = float(other)
        elif relation == ">=" and other.startswith("Y_"):
            larger.add(number)
            labels.add(int(other[2:]))
    label = next(iter(labels), -1)
    if len(labels) != 1 or larger != set(range(classes)) - labels or bool((low.isnan() | high.isnan()).any()):
        raise ValueError(f"{path} is not a property of local robustness: one box, and every other class against one")
    return Property(low, high, label, classes)


def _checked(path: Path, wanted: Property, inputs: Inputs, i: int, run: Run) -> bool:
    """Whether PGD violates the property in a file, which is evaluated on points of its box; ValueError unless the
    file contains the ``wanted`` property."""
    found = read(path)
    if (
        found.label != wanted.label
        or not torch.equal(found.low, wanted.low)
        or not torch.equal(found.high, wanted.high)
    ):
        raise ValueError(f"{path} does not read back as it was written")
    x = inputs.clean[i : i + 1]
    generator = torch.Generator().manual_seed(int(inputs.ids[i]))
    share = torch.rand(_SAMPLES, len(found.low), generator=generator, dtype=torch.float64)
    points = (found.low + share * (found.high - found.low)).reshape(_SAMPLES, *x.shape[1:])
    # Clamped to the box, since rounding to single precision may leave it.
    low, high = (_inside(side, x.dtype, up).reshape(x.shape) for side, up in ((found.low, True), (found.high, False)))
    tried = torch.cat([x, inputs.adversarial[i : i + 1], points.to(x.dtype)])
    tried = torch.minimum(torch.maximum(tried, low), high)
    logits = run(tried)
    violated = found.violated(logits)
    top = logits.topk(2, dim=1).values
    clear = top[:, 0] > top[:, 1]
    if not bool(found.contains(tried).all()) or bool((violated != (logits.argmax(1) != found.label))[clear].any()):
        raise ValueError(f"{path}: its constraints disagree with the predictions of the network")
    return bool(violated[1])


def _inside(side: Tensor, dtype: torch.dtype, up: bool) -> Tensor:
    """A side of the box, rounded inwards to a type."""
    near = side.to(dtype)
    out = near.double() < side if up else near.double() > side
    towards = torch.full_like(near, torch.inf if up else -torch.inf)
    return torch.where(out, torch.nextafter(near, towards), near)
