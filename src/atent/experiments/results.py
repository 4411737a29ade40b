"""The result files as types: what evaluation.json, certificate.json and comparison.json hold.

`from_json` takes a file of the current version; `atent.experiments.migrate` brings older files to it first. An unknown
key is an error, so that no part of a file is lost without notice.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Annotated, Any, Self, cast

from pydantic import ConfigDict, Field, TypeAdapter, with_config

from atent import stats
from atent.attacks.spec import show
from atent.data import described
from atent.threat import Norm, Threat

EVALUATION_VERSION = 1
CERTIFICATE_VERSION = 1
COMPARISON_VERSION = 1

whole = with_config(ConfigDict(extra="forbid", allow_inf_nan=False))


class Result:
    """A result file: a dataclass that is read from plain values and gives them back."""

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """The result that ``content``, the content of a file of the current version, describes.

        Raises
        ------
        pydantic.ValidationError
            A ValueError, for a missing or unknown key, and for a value of another type.
        """
        return TypeAdapter(cls).validate_python(content)

    def to_json(self) -> dict[str, Any]:
        """Plain values, as JSON has them; `from_json` reads them."""
        found: dict[str, Any] = TypeAdapter(type(self)).dump_python(self, mode="json", by_alias=True)
        return found

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """The JSON Schema of the file."""
        return TypeAdapter(cls).json_schema()


@whole
@dataclass(frozen=True)
class Share:
    """k of n samples, with the exact 95 % interval."""

    value: float
    low: float
    high: float
    k: int
    n: int

    @property
    def text(self) -> str:
        """For people: "98.2 % [96.6, 99.2]"."""
        return stats.percent(asdict(self))


@whole
@dataclass(frozen=True)
class Spread:
    """A value over seeds; one seed has no standard deviation."""

    mean: float
    sd: float | None
    low: float | None
    high: float | None


@whole
@dataclass(frozen=True)
class Adversary:
    """A threat as plain values; JSON has no infinity, so an unlimited eps is "inf"."""

    norm: str
    eps: float | str
    box: tuple[float, float]
    allow_large_eps: bool = False

    def threat(self) -> Threat:
        """The threat itself."""
        return Threat(cast(Norm, self.norm), self.eps, self.box, self.allow_large_eps)

    @property
    def text(self) -> str:
        """For people: "linf 8/255"."""
        return show(self.threat())


@whole
@dataclass(frozen=True)
class Samples:
    """Which samples of a data set were measured."""

    name: str
    split: str
    n: int
    of: int
    """All that this part of the data has."""
    subset: str
    """The rule that chose them."""
    subset_seed: int | None = None
    ids: str | None = None
    """Their numbers, as `atent.data.described.spans` writes them; None where an older file does not say."""
    shape: tuple[int, ...] | None = None
    class_names: list[Any] | None = None

    @property
    def text(self) -> str:
        """Which samples, for people: "all 500", "a stratified sample of 100 of 500 (seed 0)"."""
        return described.words(asdict(self))


@whole
@dataclass(frozen=True)
class Part:
    """What one part of an attack, or the whole of it, did."""

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


@whole
@dataclass(frozen=True, kw_only=True)
class AttackResult(Part):
    """What one attack did."""

    attack: str
    """The attack, written as a call."""
    threat: Adversary
    settings: dict[str, Any]
    remarks: list[str] = field(default_factory=list)
    parts: dict[str, Part] = field(default_factory=dict)


@whole
@dataclass(frozen=True)
class Robust:
    """The robust accuracy under one attack at the last epoch."""

    robust: Share


@whole
@dataclass(frozen=True)
class LastEpoch:
    """The accuracies of the last epoch's weights, where another epoch is the best."""

    epoch: int
    natural: Share
    attacks: dict[str, Robust]
    worst: Share


@whole
@dataclass(frozen=True)
class ClassResult:
    """The accuracies of one class."""

    label: Annotated[int, Field(alias="class")]
    n: int
    """Its samples."""
    natural: Share
    worst: Share


@whole
@dataclass(frozen=True)
class SweepRow:
    """The robust accuracy under one attack at one radius."""

    attack: str
    """The attack's name."""
    norm: str
    radius: float
    threat: str
    """Norm and radius as text."""
    natural: Share
    robust: Share
    """Samples that remain correctly classified at this radius."""
    monotone: Share
    """Samples that remain so at this and at every smaller radius."""
    seconds: float | None = None


@whole
@dataclass(frozen=True)
class CheckResult:
    """One check for masked gradients and weak attacks."""

    name: str
    passed: bool
    figure: str
    """What was measured, in words."""
    why: str
    """What a failure means."""


@whole
@dataclass(frozen=True, kw_only=True)
class EvaluationFile(Result):
    """evaluation.json."""

    schema_version: int
    data: Samples
    n: int
    seed: int
    natural: Share
    worst: Share
    attacks: dict[str, AttackResult]
    wrong: list[int]
    cascade: bool
    search_dtype: str | None
    hint: str | None
    outcomes: dict[str, Any]
    per_class: list[ClassResult]
    provenance: dict[str, Any]
    run: str | None = None
    weights: str | None = None
    """"best", "last" or a file; None where training itself evaluated its best weights."""
    model: str | None = None
    epoch: int | None = None
    average: bool | None = None
    stopped: Any = None
    last: LastEpoch | None = None
    sweep: list[SweepRow] = field(default_factory=list)
    checks: list[CheckResult] = field(default_factory=list)

    @property
    def threats(self) -> list[str]:
        """The different threats of the attacks, as people write them."""
        return list(dict.fromkeys(attack.threat.text for attack in self.attacks.values()))

    @property
    def of_best(self) -> bool:
        """Whether the weights of the best epoch were evaluated."""
        return self.weights in (None, "best")


@whole
@dataclass(frozen=True, kw_only=True)
class Certified:
    """The certified accuracy at one radius, of smoothing (radius) or of bounds (threat)."""

    share: Share
    radius: float | None = None
    linf_radius: float | None = None
    threat: Adversary | None = None
    verified: list[int] | None = None
    seconds_per_image: float | None = None


@whole
@dataclass(frozen=True, kw_only=True)
class CertificateFile(Result):
    """A finished certificate.json."""

    schema_version: int
    run: str
    trained: str | None
    images: Samples
    method: str
    n: int
    natural: Share
    certified: list[Certified]
    provenance: dict[str, Any]
    made: dict[str, Any]
    complete: bool
    weights: str | None = None
    model: str | None = None
    epoch: int | None = None
    norm: str | None = None
    draws: dict[str, Any] | None = None
    smoothed: Share | None = None
    abstained: Share | None = None
    radius_mean: float | None = None
    radius_median: float | None = None
    largest_radius: float | None = None
    hint: str | None = None
    seconds_per_image: float | None = None
    shard: str | None = None


@whole
@dataclass(frozen=True)
class SeedResult:
    """One training of a comparison."""

    seed: int
    run: str
    natural: Share
    attacks: dict[str, Share]
    worst: Share
    last: Share | None
    seconds_per_epoch: float
    memory_mb: float | None
    best_epoch: int
    passes: float | None
    """Passes over the training samples; None in a file that does not say."""
    minutes: float | None
    provenance: dict[str, Any]


@whole
@dataclass(frozen=True)
class RecipeResult:
    """One recipe of a comparison, over its seeds."""

    recipe: str
    method: str
    threat: Adversary | None
    natural: Spread
    attacks: dict[str, Spread]
    worst: Spread
    last: Spread | None
    seconds_per_epoch: Spread
    memory_mb: Spread | None
    best_epoch: Spread
    passes: Spread | None
    minutes: Spread | None
    best: dict[str, Any]
    """Which figures lie above every other recipe's for certain."""
    seeds: list[SeedResult]


@whole
@dataclass(frozen=True)
class ComparisonFile(Result):
    """comparison.json."""

    schema_version: int
    command: str
    data: Samples
    model: str
    epochs: int
    minutes: float | None
    batch_size: int
    seeds: list[int]
    threats: list[str]
    at_once: int
    interval: str
    caveat: str | None
    rows: list[RecipeResult]
    provenance: dict[str, Any]
