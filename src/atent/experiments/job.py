"""The definition of a run: what a recipe and the command line say."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from atent.data import DataSettings
from atent.experiments.recipe_files import SECTIONS
from atent.experiments.target import EvaluateSettings
from atent.methods import Method
from atent.methods.awp import plain
from atent.models import ModelSettings
from atent.optim import Optimizer, Schedule
from atent.train.settings import TrainSettings
from atent.train.step import apart, around, title


@dataclass(frozen=True)
class Job:
    """The definition of a run, from a recipe and the command line."""

    recipe: str | None
    method: Method
    data: DataSettings = field(default_factory=DataSettings)
    model: ModelSettings = field(default_factory=ModelSettings)
    optimizer: Optimizer = field(default_factory=Optimizer)
    schedule: Schedule = field(default_factory=Schedule)
    train: TrainSettings = field(default_factory=TrainSettings)
    evaluate: EvaluateSettings = field(default_factory=EvaluateSettings)
    recipe_file: dict[str, Any] | None = None
    """The .toml file that it comes from, as `atent.experiments.recipe_changes.file_of` records it."""

    def __post_init__(self) -> None:
        # `AWP(method)` says the same as train.awp.
        method, train = apart(self.method, self.train)
        around(method, train)
        object.__setattr__(self, "method", method)
        object.__setattr__(self, "train", train)

    @property
    def title(self) -> str:
        """The name of what trains, for tables."""
        return title(self.method, self.train)

    def sections(self) -> dict[str, Any]:
        """The settings as plain values, in a recipe's form."""
        sections = {name: asdict(getattr(self, name)) for name in SECTIONS if name != "method"}
        return {"recipe": self.recipe, "method": plain(self.method), **sections}
