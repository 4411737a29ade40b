"""One network in one of the formats, checked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent.experiments.target import Target
from atent.export.card import card_of, results_of
from atent.export.checks import Check, Inputs, Run, compared, inputs_of
from atent.export.hub import write_folder
from atent.export.programs import INPUT, OPSET, OUTPUT, write_onnx, write_program
from atent.export.robustbench import BY_HAND, entry
from atent.export.vnnlib import NETWORK, check_threat, write_properties
from atent.export.weights import loaded, write_weights
from atent.geometry.values import intervals
from atent.messages import quoted


@dataclass(frozen=True)
class Exported:
    """The result of an export."""

    lines: list[str]
    """Report lines for the terminal."""
    check: Check | None
    """None if no network was written."""
    found: dict[str, Any] = field(default_factory=dict)
    """The report as data."""

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        check = None if self.check is None else {**asdict(self.check), "passed": self.check.passed}
        return {**self.found, "check": check}


def write(
    target: Target, format: str, place: Path, *, timeout: int = 100, license: str | None = None, repo: str | None = None
) -> Exported:
    """Write a network in one of the formats of `atent export` to a new file or folder, and check it.

    Parameters
    ----------
    target
        The network, from `load_target`; its test images are used to check the file.
    format
        The name of the format.
    place
        The file or folder.
    timeout
        vnnlib: seconds for one property.
    license, repo
        hub: licence of the weights, and the repository that the card names.

    Returns
    -------
    Exported
        The lines for the terminal, and the check of the file.

    Raises
    ------
    ValueError, ImportError
        In one line: if the format cannot represent the network or its threat, or needs an extra that is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from atent.experiments.target import load_target
    >>> from atent.export.write import write
    >>> target = load_target("zoo:digits-linf-crown-ibp", limit=20)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     write(target, "safetensors", Path(folder) / "net.safetensors").check.passed
    True
    """
    if format == "vnnlib":
        return _vnnlib(target, place, timeout)
    if format == "hub":
        return _hub(target, place, license, repo)
    if format == "robustbench":
        return _robustbench(target, place)
    writer, line = _FILES[format]
    run = writer(target, place)
    return Exported([f"{format}: {line(target)}"], _check(target, run))


def _onnx(target: Target) -> str:
    shape = " x ".join(map(str, target.data.shape))
    return (
        f"opset {OPSET}, {INPUT} of shape batch x {shape} with values in {intervals(target.data.box)}, {OUTPUT} of"
        f" shape batch x {target.data.classes}, normalisation inside"
    )


_FILES: dict[str, tuple[Callable[[Target, Path], Run], Callable[[Target], str]]] = {
    "safetensors": (write_weights, lambda target: "weights, and the settings of their network"),
    "torch-export": (write_program, lambda target: "a program with a dynamic batch, normalisation inside"),
    "onnx": (write_onnx, _onnx),
}


def _check(target: Target, run: Run) -> Check:
    inputs = inputs_of(target)
    return compared(target.model, run, inputs, _sizes(target, inputs))


def _sizes(target: Target, inputs: Inputs) -> tuple[int, int]:
    """Batches of one input, and of all inputs, at most the batch size of an evaluation."""
    return 1, min(len(inputs.all), target.settings.batch)


def _vnnlib(target: Target, place: Path, timeout: int) -> Exported:
    check_threat(target.threat)
    folder.create(place)
    (place / NETWORK).parent.mkdir(exist_ok=True)
    run, inputs = write_onnx(target, place / NETWORK), inputs_of(target)
    check = compared(target.model, run, inputs, _sizes(target, inputs))
    made = write_properties(target, inputs, run, place, timeout)
    counts = {"properties": len(made.properties), "misclassified": made.misclassified}
    return Exported([f"vnnlib: {made.text}"], check, {**counts, "counterexamples": made.counterexamples})


def _hub(target: Target, place: Path, license: str | None, repo: str | None) -> Exported:
    results = results_of(target)
    name = repo.partition("/")[2] if repo else place.name
    card = card_of(target, results, name=name, license=license)
    write_folder(target, card, results, place, repo)
    lines = [f"{f.name} {f.share.text}, n = {f.share.n:,}, {f.under or 'no attack'} ({f.file})" for f in card.figures]
    return Exported(
        [*lines, *(f"limit: {line}" for line in card.limits)], _check(target, loaded(place, target)), card.to_json()
    )


def _robustbench(target: Target, place: Path) -> Exported:
    made, where = entry(target, results_of(target))
    folder.write_json(place, made)
    lines = [f"robustbench: for {where}; fill in {', '.join(BY_HAND)}"]
    lines += [
        f"{key} is missing: `atent evaluate {quoted(target.name)} --attacks AutoAttack --limit all` measures it"
        for key in ("clean_acc", "autoattack_acc")
        if made[key] is None
    ]
    return Exported(lines, None, {"entry": made})
