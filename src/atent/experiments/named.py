"""Which network is meant, by the options that name it."""

from __future__ import annotations

from dataclasses import dataclass

from atent.models.convention import Convention


@dataclass(frozen=True)
class Named:
    """Which network, by the options that name it."""

    model: str | None
    which: str
    weights: str | None
    key: str | None
    convention: Convention

    def check_file(self, target: str) -> None:
        """ValueError for options of run folders on a weights file."""
        which = None if self.which == "best" else self.which
        for option, value in {"--which": which, "--weights": self.weights}.items():
            if value is not None:
                raise ValueError(f"{option} {value} has no effect on {target}: it is for a run folder")

    def check_other(self, target: str) -> None:
        """ValueError for options of weights files on anything else."""
        options = self.convention.options().split() + (["--key"] if self.key and self.weights is None else [])
        if options:
            raise ValueError(f"{options[0]} has no effect on {target}: it is for a weights file from elsewhere")
