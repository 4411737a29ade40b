"""The definition of a run: what a recipe and the command line say."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any

from atent.data import DataSettings
from atent.experiments.recipe_files import SECTIONS
from atent.experiments.target import EvaluateSettings
from atent.methods import Method
from atent.methods.awp import plain
from atent.models import ModelSettings
from atent.optim import Optimizer, Schedule
from atent.threat import Box, Threat
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

    def within(self, box: Box) -> Job:
        """The job with its threat in ``box``, that of its data, where no setting can give it: in units of the spread it
        follows from the training rows. A box that the recipe gives is kept."""
        own: Threat | None = getattr(self.method, "threat", None)
        if self.data.units != "spread" or own is None or own.box != Threat("linf", 0.0).box:
            return self
        method: Any = self.method
        return replace(self, method=replace(method, threat=replace(own, box=box)))

    def sections(self) -> dict[str, Any]:
        """The settings as plain values, in a recipe's form."""
        sections = {name: asdict(getattr(self, name)) for name in SECTIONS if name != "method"}
        return {"recipe": self.recipe, "method": plain(self.method), **sections}
