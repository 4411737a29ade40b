"""What is to be measured: the plan that the command line gives, and the cases that a section makes of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from atent.bench.timing import Clock, Effort
from atent.checks import check_number
from atent.experiments.results.bench import BenchCase
from atent.messages import unknown
from atent.models import MODELS, native_shape
from atent.progress import Advance

SECTIONS = ("methods", "atent", "attacks", "certify", "growth", "roofline")


@dataclass(frozen=True)
class Sizes:
    """The sizes of the problems; smaller ones are faster and less precise."""

    networks: tuple[str, ...]
    batch: int
    steps: int
    """K of methods and chains."""
    images: int
    """Images that attacks and certificates see."""
    samples: int
    """Noise samples of an estimate by smoothing."""
    most: tuple[int, ...]
    """Edges of the matrices whose product gives the peak."""


FULL = Sizes(("small_cnn", "resnet20"), 64, 10, 64, 2000, (512, 1024, 2048))
QUICK = Sizes(("small_cnn",), 16, 3, 16, 500, (512, 1024))


@dataclass(frozen=True)
class Plan:
    """The plan of `atent bench`."""

    sections: tuple[str, ...] = SECTIONS
    quick: bool = False
    minutes: float | None = None
    """Minutes by the clock for all sections; default: 20, quick 1.5."""
    networks: tuple[str, ...] = ()
    """Networks of every section but the attacks'; default: small_cnn and resnet20, quick small_cnn."""
    device: str = "cpu"
    threads: int = 1
    """CPU threads of torch; with one thread ratios are of CPU seconds, which other work does not stretch."""
    sizes: Sizes | None = None
    """Sizes of the problems; default: by ``quick``."""

    def __post_init__(self) -> None:
        for name in self.sections:
            if name not in SECTIONS:
                raise ValueError(unknown("section", name, SECTIONS))
        for name in self.networks:
            MODELS.find(name)
            if len(native_shape(name)) != 3:
                raise ValueError(f"{name} takes points: bench measures networks for images")
        if self.minutes is not None:
            check_number("minutes", self.minutes, 0, above=True)
        check_number("threads", self.threads, 1, whole=True)

    @property
    def size(self) -> Sizes:
        """The sizes of the problems."""
        return self.sizes or (QUICK if self.quick else FULL)

    @property
    def nets(self) -> tuple[str, ...]:
        """The networks to measure."""
        return self.networks or self.size.networks

    @property
    def seconds(self) -> float:
        """Seconds by the clock for everything."""
        return 60 * (self.minutes or (1.5 if self.quick else 20.0))

    @property
    def settings(self) -> dict[str, Any]:
        """The settings, as files hold them."""
        return {
            "sections": list(self.sections), "quick": self.quick, "minutes": self.seconds / 60,
            "networks": list(self.nets), "batch": self.size.batch, "K": self.size.steps, "threads": self.threads,
        }  # fmt: skip

    @property
    def clock(self) -> Clock:
        """The clock of ratios."""
        return "cpu" if self.device == "cpu" and self.threads == 1 else "wall"


class Omitted(ValueError):
    """A case that cannot be measured here, and why, in one line."""


@dataclass(frozen=True)
class Case:
    """Work that is measured in the same rounds, yet to be done."""

    name: str
    measure: Callable[[Effort, Advance], BenchCase]
    """Measures it; raises `Omitted`."""
    weight: float = 1.0
    """Its share of the time."""


@dataclass(frozen=True)
class Section:
    """One question, and the cases that answer it."""

    title: str
    cases: list[Case]
    omitted: dict[str, str] = field(default_factory=dict)
