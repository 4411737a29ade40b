"""Reports on frequencies, corruptions, flips and transfer as types: parts of evaluation.json, and transfer.json."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from atent.experiments.results.base import Adversary, Result, Samples, Share, strict
from atent.stats import Estimate

BANDS_VERSION = FLIPS_VERSION = TRANSFER_VERSION = 1
FOURIER_VERSION = 2
CORRUPTIONS_VERSION = 3


@strict
@dataclass(frozen=True)
class Mean:
    """A mean over samples with its 95 % interval."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, found: Estimate, most: float = 1.0) -> Mean:
        """From a figure of at least 0 and at most ``most``, to which its interval is cut."""
        return cls(found.value, max(found.low, 0.0), min(found.high, most))

    @property
    def text(self) -> str:
        """As text: "1.08 [1.01, 1.15]"."""
        return f"{self.value:.3g} [{self.low:.3g}, {self.high:.3g}]"

    @property
    def percent(self) -> str:
        """As text, as a percentage: "31.6 % [29.8, 33.4]"."""
        return f"{100 * self.value:.1f} % [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@strict
@dataclass(frozen=True)
class BandResult:
    """One band of the perturbations."""

    band: str
    robust: Share
    """Samples that remain correctly classified under this part alone."""
    energy: Mean | None
    """Share of the squared l2 norm, a mean over the perturbed samples; None with fewer than two of them."""
    white: float
    """Share of the coefficients: what white noise would have."""


@strict
@dataclass(frozen=True, kw_only=True)
class BandReport(Result):
    """Each band of an attack's perturbations alone."""

    schema_version: int
    n: int
    seed: int
    attack: str
    """The attack, written as a call."""
    threat: Adversary
    cut: int
    """The first high frequency of the discrete cosine transform."""
    clean: Share
    """Samples that are correctly classified without an attack."""
    full: Share
    """Samples that remain correctly classified under the full perturbation."""
    bands: list[BandResult]
    perturbed: int
    """Samples with a perturbation, whose energy is meant."""
    spectrum: list[list[float]]
    """Mean share of each coefficient in the squared norm, rows of vertical frequency from 0."""
    seconds: float | None = None
    """Seconds of the command that finished it."""


@strict
@dataclass(frozen=True)
class CorruptionRow:
    """The error under one corruption at one severity."""

    corruption: str
    kind: str
    severity: int
    error: Share
    distance: float
    """Mean l2 distance to the clean image, in pixel units."""
    reference: Share | None = None
    """The error of the reference network on the same images."""


@strict
@dataclass(frozen=True, kw_only=True)
class CorruptionReport(Result):
    """Errors under common corruptions."""

    schema_version: int
    n: int
    seed: int
    definitions: int
    """Version of the definitions of the corruptions; reports of different ones are on different images."""
    clean_error: Share
    """Samples that are misclassified without a corruption."""
    rows: list[CorruptionRow]
    mean: Mean
    """Mean error over corruptions and severities."""
    left_out: list[str] = field(default_factory=list)
    """Corruptions that do not suit images of this size."""
    reference: str | None = None
    """The reference network."""
    ratios: dict[str, float | None] = field(default_factory=dict)
    """By corruption: the sum of errors over severities, divided by the reference's; None if that makes no error."""
    mce: Mean | None = None
    """Mean corruption error: the mean of the ratios that are known."""
    seconds: float | None = None
    """Seconds of the command that finished it."""


@strict
@dataclass(frozen=True)
class FlipRow:
    """The flip rate along one sequence."""

    sequence: str
    ordered: bool
    """Each frame is compared with the one before it; otherwise with the image without noise."""
    comparisons: int
    rate: Mean
    reference: Mean | None = None
    """The flip rate of the reference network along the same sequences."""


@strict
@dataclass(frozen=True, kw_only=True)
class FlipReport(Result):
    """Flip rates along sequences of noise and along ordered ones."""

    schema_version: int
    n: int
    seed: int
    rows: list[FlipRow]
    mean: Mean
    """Mean flip rate over the sequences."""
    reference: str | None = None
    mfr: Mean | None = None
    """Mean over the sequences of the rate divided by the reference's, where that is not 0."""
    seconds: float | None = None
    """Seconds of the command that finished it."""


@strict
@dataclass(frozen=True, kw_only=True)
class FourierReport(Result):
    """Errors under noise of one frequency, for every frequency."""

    schema_version: int
    n: int
    seed: int
    eps: float
    """l2 norm of the noise in one channel, in pixel units."""
    clean_error: Share
    """Samples that are misclassified without noise."""
    errors: list[list[int]]
    """Misclassified samples by vertical and horizontal frequency, the constant image in the centre (h // 2, w // 2)."""
    seconds: float | None = None
    """Seconds of the command that finished it."""


@strict
@dataclass(frozen=True)
class Network:
    """One of the networks between which adversarial images are exchanged."""

    name: str
    about: dict[str, Any]
    """Where it comes from."""
    clean: Share
    """Samples that it classifies correctly without an attack."""
    robust: list[Share]
    """Its robust accuracy under the attack on each of the networks, in their order."""
    right: str
    """By sample: 1 correct without an attack, 0 not."""
    stood: list[str]
    """By network and sample: 1 correct under the attack on that network, 0 not."""


@strict
@dataclass(frozen=True, kw_only=True)
class TransferFile(Result):
    """transfer.json."""

    schema_version: int
    data: Samples
    n: int
    seed: int
    attack: str
    """The attack on each source, written as a call."""
    threat: Adversary
    networks: list[Network]
    seconds: float
    provenance: dict[str, Any]
    search_dtype: str | None = None
    """Precision in which the attacks searched; verdicts are in each network's own."""
