"""certificate.json as types, one of smoothing and one of bounds, and the table that several of them make."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self, cast

from pydantic import TypeAdapter

from atent.experiments.results.base import Adversary, Result, Samples, Share, strict
from atent.registry import Plugin

CERTIFICATE_VERSION = 2
CERTIFIED_VERSION = 1


@strict
@dataclass(frozen=True)
class Certified:
    """The certified accuracy of smoothing at one l2 radius."""

    radius: float
    linf_radius: float
    """Radius of the largest linf ball inside."""
    share: Share


@strict
@dataclass(frozen=True)
class Verified:
    """The verified accuracy of bounds under one threat."""

    threat: Adversary
    share: Share
    verified: list[int]
    """Numbers of the verified samples."""
    seconds_per_image: float


@strict
@dataclass(frozen=True, kw_only=True)
class CertificateFile(Result):
    """A finished certificate.json: a `SmoothingFile`, a `SequentialFile` or a `BoundsFile`, by how it was made."""

    schema_version: int
    run: str
    trained: str | None
    images: Samples
    method: str
    n: int
    clean: Share
    provenance: dict[str, Any]
    made: dict[str, Any]
    complete: bool
    weights: str | None = None
    model: str | None = None
    input: dict[str, Any] | None = None
    """The input convention of an external network: mean, std (in pixel units) and bgr."""
    epoch: int | None = None
    certifier: Plugin | None = None
    """Where the method is not built in: its module, name and version."""

    @property
    def fingerprint(self) -> str | None:
        """Hash of the weights and buffers that were certified; None in files of the first versions."""
        found: str | None = self.made.get("about", self.made).get("weights")
        return found

    @property
    def invalid(self) -> str | None:
        """The hint of smoothing: why no certificate is valid, None where nothing was found."""
        return self.hint if isinstance(self, SmoothingFile | SequentialFile) else None

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Self:
        """As `Result.from_json`, as the type that it is: only smoothing has noise samples, and only a sequential test
        has one radius among their settings."""
        if "sampling" not in content:
            return cast(Self, TypeAdapter(BoundsFile).validate_python(content))
        kind = SequentialFile if "radius" in content["sampling"] else SmoothingFile
        return cast(Self, TypeAdapter(kind).validate_python(content))

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """The JSON Schema of all three."""
        return TypeAdapter(SmoothingFile | SequentialFile | BoundsFile).json_schema()


@strict
@dataclass(frozen=True, kw_only=True)
class SmoothingFile(CertificateFile):
    """A certificate by randomised smoothing."""

    norm: str
    sampling: dict[str, Any]
    """Settings of the noise samples: sigma, n0, n, alpha, seed."""
    smoothed: Share
    certified: list[Certified]
    abstained: Share
    radius_mean: float
    """Of the radii, 0 where the class is not the correct one."""
    radius_median: float
    """Of these radii; of an even number the lower of the two in the middle."""
    largest_radius: float
    """The largest radius that this number of samples can certify."""
    hint: str | None
    seconds_per_image: float
    shard: str | None


@strict
@dataclass(frozen=True, kw_only=True)
class SequentialFile(CertificateFile):
    """A certificate by randomised smoothing at one radius, decided by a sequential test."""

    norm: str
    sampling: dict[str, Any]
    """Settings of the noise samples: sigma, n0, n (the most that the test takes), alpha, seed, radius."""
    certified: list[Certified]
    """The one radius: images whose correct class is certified."""
    certified_wrong: Share
    """Images for which another class is certified."""
    abstained: Share
    samples_mean: float
    """Noise samples per image, those of the selection included."""
    samples_median: int
    """Of an even number the lower of the two in the middle."""
    samples_most: int
    hint: str | None
    seconds_per_image: float
    shard: str | None


@strict
@dataclass(frozen=True, kw_only=True)
class BoundsFile(CertificateFile):
    """A certificate by bounds on the network's outputs."""

    certified: list[Verified]


@strict
@dataclass(frozen=True)
class CertifiedEntry:
    """The certified accuracy of one row of the table at one radius."""

    norm: str
    radius: float
    l2: float
    """The l2 radius in which linf balls and l2 balls are compared: for smoothing its own, whose ball holds the linf
    ball of radius l2 / sqrt(d); for bounds in linf, eps sqrt(d)."""
    share: Share
    seconds: float
    """Per image."""


@strict
@dataclass(frozen=True)
class CertifiedRow:
    """One certificate of one run."""

    run: str
    """Its name, or its path where the table has runs of this name in several folders."""
    trained: str | None
    how: str
    """The method and its settings, as text."""
    images: Samples
    clean: Share
    smoothed: Share | None
    """None for bounds."""
    certified: list[CertifiedEntry]
    provenance: dict[str, Any]
    folder: str | None = None
    """Hash of the place of the certificate relative to the table; None in tables of earlier versions."""
    hint: str | None = None
    """Why no certificate is valid, as certificate.json says; None where nothing was found."""


@strict
@dataclass(frozen=True)
class CertifiedTable(Result):
    """The file beside the table that `atent certify --table` writes."""

    schema_version: int
    rows: list[CertifiedRow]
