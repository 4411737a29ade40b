"""evaluation.json as a type."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from atent.evaluate.evaluation import SCHEMA_VERSION
from atent.experiments.results.base import Adversary, EvaluatedSamples, Result, Share, strict
from atent.experiments.results.studies import BandReport, CorruptionReport, FlipReport, FourierReport
from atent.experiments.results.union import UnionReport

EVALUATION_VERSION = SCHEMA_VERSION


@strict
@dataclass(frozen=True)
class Part:
    """The result of one part of an attack, or of the complete attack."""

    attacked: int
    """Samples that it met."""
    robust: Share
    """Samples that remain correctly classified after it."""
    fooled: list[int]
    distance: dict[str, float | str] | None
    """Quantiles over the fooled samples, in the threat's norm."""
    forwards: int
    backwards: int
    seconds: float


@strict
@dataclass(frozen=True, kw_only=True)
class AttackResult(Part):
    """The result of one attack."""

    attack: str
    """The attack, written as a call."""
    threat: Adversary
    settings: dict[str, Any]
    code: list[str] = field(default_factory=list)
    """Hashes of the files that define an attack of the user."""
    remarks: list[str] = field(default_factory=list)
    parts: dict[str, Part] = field(default_factory=dict)


@strict
@dataclass(frozen=True)
class Robust:
    """The robust accuracy under one attack at the last epoch."""

    robust: Share


@strict
@dataclass(frozen=True)
class LastEpoch:
    """The accuracies of the last epoch's weights, where another epoch is the best."""

    epoch: int
    clean: Share
    attacks: dict[str, Robust]
    worst: Share


@strict
@dataclass(frozen=True)
class ClassResult:
    """The accuracies of one class."""

    label: Annotated[int, Field(alias="class")]
    n: int
    """Its samples."""
    clean: Share
    worst: Share


@strict
@dataclass(frozen=True)
class FooledAs:
    """How often attacks turn samples of one class into another."""

    label: Annotated[int, Field(alias="class")]
    predicted: int
    """Class of the adversarial input of the first attack that fools a sample."""
    k: int
    n: int
    """Samples of the class."""


@strict
@dataclass(frozen=True)
class SweepRow:
    """The robust accuracy under one attack at one radius."""

    attack: str
    """The attack's name."""
    norm: str
    radius: float
    threat: str
    """Norm and radius as text."""
    clean: Share
    robust: Share
    """Samples that remain correctly classified at this radius."""
    monotone: Share
    """Samples that remain so at this and at every smaller radius."""
    seconds: float | None = None
    remarks: list[str] = field(default_factory=list)
    """Those of the attack at this radius."""
    hint: str | None = None
    """That of the sweep."""


@strict
@dataclass(frozen=True)
class CheckResult:
    """One check for masked gradients and weak attacks."""

    name: str
    passed: bool
    figure: str
    """The measured quantity, as text."""
    why: str
    """The meaning of a failure."""


@strict
@dataclass(frozen=True, kw_only=True)
class EvaluationFile(Result):
    """evaluation.json."""

    schema_version: int
    data: EvaluatedSamples
    n: int
    seed: int
    clean: Share
    worst: Share
    attacks: dict[str, AttackResult]
    wrong: list[int]
    cascade: bool | Literal["threat"]
    search_dtype: str | None
    hint: str | None
    outcomes: dict[str, Any]
    per_class: list[ClassResult]
    provenance: dict[str, Any]
    fooled_as: list[FooledAs] = field(default_factory=list)
    """Pairs of classes, most frequent first; samples that are misclassified without an attack are in no pair."""
    folded: int = 0
    """Batch norms that were folded in the copy of the network that was searched."""
    run: str | None = None
    weights: str | None = None
    """"best", "last" or a file; None where training itself evaluated its best weights."""
    model: str | None = None
    input: dict[str, Any] | None = None
    """The input convention of an external network: mean, std (in pixel units) and bgr."""
    epoch: int | None = None
    """None if the weights do not say."""
    average: bool | None = None
    stopped: Any = None
    last: LastEpoch | None = None
    sweep: list[SweepRow] = field(default_factory=list)
    checks: list[CheckResult] = field(default_factory=list)
    bands: BandReport | None = None
    corruptions: CorruptionReport | None = None
    flips: FlipReport | None = None
    fourier: FourierReport | None = None
    union: UnionReport | None = None

    @property
    def threats(self) -> list[str]:
        """The distinct threats of the attacks, as text."""
        return list(dict.fromkeys(attack.threat.text for attack in self.attacks.values()))

    @property
    def of_best(self) -> bool:
        """Whether the weights of the best epoch were evaluated."""
        return self.weights in (None, "best")
