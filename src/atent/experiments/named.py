"""The options that select a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent.experiments.recipe_files import recipe_names
from atent.models.convention import Convention
from atent.runs.foreign import SUFFIXES, is_weights
from atent.runs.places import is_named
from atent.threat import EXTRA


@dataclass(frozen=True)
class Named:
    """The options that select a network."""

    model: str | None
    which: str
    weights: str | None
    key: str | None
    convention: Convention

    def asked(self, target: str) -> tuple[Path | str | None, ...]:
        """The network that ``target`` and the options name, whatever its weights are; places as full paths."""
        found = None if is_named(target) or not Path(target).exists() else Path(target).resolve()
        weights = None if self.weights is None else Path(self.weights).resolve()
        return found or target, self.model, self.which, weights, self.key, self.convention.options()

    def check_file(self, target: str) -> None:
        """ValueError for options of run folders on a weights file."""
        which = None if self.which == "best" else self.which
        for option, value in {"--which": which, "--weights": self.weights}.items():
            if value is not None:
                raise ValueError(f"{option} {value} has no effect on {target}, which is not a run folder: omit it")

    def check_other(self, target: str) -> None:
        """ValueError for options of weights files on anything else."""
        options = self.convention.options().split() + (["--key"] if self.key and self.weights is None else [])
        if options:
            raise ValueError(f"{options[0]} has no effect on {target}: it is for an external weights file")


def is_own(target: str) -> bool:
    """Whether a target is a weights file or a user's network; FileNotFoundError if it is not a run folder either."""
    path = Path(target)
    own = not path.is_dir() and (is_weights(path) or ":" in target)
    if not own and not (path / folder.CONFIG).is_file():
        train = f"train the recipe first, by `atent train {path.name}`, or " if path.name in recipe_names() else ""
        raise FileNotFoundError(
            f"{folder.no_run(path)}: {train}give the path that training printed, a weights"
            f" file ({', '.join(SUFFIXES)}) or module:function"
        )
    return own


def check_either(
    attacks: Sequence[str] | None, threats: Sequence[str] | None, given: Mapping[str, Any] = {}
) -> None:  # fmt: skip
    """Raise ValueError for attacks, or fields of one threat among the ``given`` options, together with several threats,
    which have their own."""
    option = next((name for name in ("norm", "eps", *EXTRA) if name in given), None)
    if threats and option is not None:
        raise ValueError(
            f"--{option.replace('_', '-')} is for one threat, and there are several, {', '.join(map(repr, threats))}:"
            " omit it, or change it there by --threats"
        )
    if attacks is not None and threats:
        raise ValueError(
            "--attacks is for one threat, and --threats gives several: give the attacks of each after a colon, such as"
            f" {f'{threats[0]}: PGD(steps=40), Square'!r}"
        )
