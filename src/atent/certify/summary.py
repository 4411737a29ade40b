"""A smoothing certificate of many samples: its settings, its rows, and their summary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import median_low
from typing import Any

from atent.certify.limits import check_radius, check_sampling, largest_radius, linf_radius
from atent.certify.rows import Row
from atent.certify.smoothing import ABSTAIN
from atent.checks import Settings, check_number, check_seed
from atent.docstrings import Documented
from atent.fields import shown
from atent.stats import share
from atent.threat import radius as as_radius

_ONE = "the sequential test certifies at radius {:g} only: certify without a radius to estimate that of each sample"


@dataclass(frozen=True)
class Sampling(metaclass=Settings):
    """What a certificate by smoothing costs and guarantees.

    Raises
    ------
    ValueError
        In one line, for a number outside its range, for n < n0, for an n that always abstains at alpha, and for a
        radius that n noise samples cannot certify.

    Examples
    --------
    >>> from atent.certify import Sampling
    >>> Sampling(sigma=0.25, n0=10, n=500).to_json()
    {'sigma': 0.25, 'n0': 10, 'n': 500, 'alpha': 0.001, 'seed': 0}
    """

    sigma: float
    """Standard deviation of the noise, in pixel units, above 0."""
    n0: int = 100
    """Noise samples that choose the class, 1 or more."""
    n: int = 100_000
    """Noise samples that estimate its share, n0 or more."""
    alpha: float = 0.001
    """Probability, per sample, that the certificate is wrong, in (0, 1)."""
    seed: int = 0
    """Seed of the noise."""
    radius: float | None = None
    """The one l2 radius at which a sequential test of n noise samples at most certifies; default: the largest radius of
    each sample is estimated from all n."""

    def __post_init__(self) -> None:
        check_number("sigma", self.sigma, 0, above=True)
        check_sampling(self.n0, self.n, self.alpha, self.sigma)
        check_seed(self.seed)
        if self.radius is not None:
            check_radius(self.radius, self.n, self.alpha, self.sigma)

    def to_json(self) -> dict[str, Any]:
        """The settings as files store them; ``radius`` only where it is set, as earlier versions have no such key."""
        return {key: value for key, value in asdict(self).items() if key != "radius" or value is not None}


@dataclass(frozen=True)
class Certificate(metaclass=Documented):
    """The certificates of n samples of ``dim`` values each.

    Examples
    --------
    >>> import torch
    >>> from atent.certify import Sampling, certify_run
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> x, y = torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0])
    >>> found = certify_run(model, x, y, Sampling(sigma=0.25, n0=10, n=100))
    >>> found.certified(0.1)["n"], found.to_json()["norm"]
    (4, 'l2')
    """

    rows: tuple[Row, ...]
    """A row for each sample: label, certified class, radius, clean and smoothed prediction."""
    sampling: Sampling
    """The settings of all rows."""
    dim: int
    """Number of values of a sample, which converts l2 radii to linf radii."""
    hint: str | None = None
    """One line where the model's answers depend on the batch, so that no row is valid."""

    def certified(self, radius: float) -> dict[str, Any]:
        """Certified accuracy at the l2 ``radius``, a share with its 95 % interval.

        A sample counts if its class is correct and certified within the radius. The interval is for the sampling of the
        test set. In addition, each certificate may be wrong with probability alpha, so that at most alpha n of n
        certificates are expected to be. ValueError for a value that is not a radius, and for a radius other than the
        one that a sequential test certified.
        """
        radius = as_radius(radius, "radius")
        if self.sampling.radius not in (None, radius):
            raise ValueError(f"radius {radius:g} was not tested, {_ONE.format(self.sampling.radius)}")
        return share(sum(r.correct and r.radius >= radius for r in self.rows), len(self.rows))

    def to_json(self, radii: Sequence[float] | None = None) -> dict[str, Any]:
        """The content of certificate.json; ``radii`` default: 0 and the multiples of sigma that n samples reach.

        Three accuracies, which the literature calls by one name: ``clean``, of the base model without noise;
        ``smoothed``, of the smoothed model, abstentions counted as wrong (PREDICT); ``certified``, at l2 radii.

        ``radius_mean`` and ``radius_median`` are of the radii with 0 where the class is not the correct one. The median
        of an even number of samples is the lower of the two in the middle: the largest radius at which more than half
        of the samples are certified. ``samples_median`` of a sequential test is the lower one too, a number that was
        taken.
        """
        sampling, rows = self.sampling, self.rows
        if radii is not None and (isinstance(radii, str) or not isinstance(radii, Iterable)):
            raise ValueError(f"radii must be a list of numbers, got {shown(radii)}: write [0.25, 0.5]")
        if sampling.radius is not None:
            return self._decided(sampling.radius, radii)
        most = largest_radius(sampling.n, sampling.alpha, sampling.sigma)
        if radii is None:
            radii = [k * sampling.sigma for k in range(int(most / sampling.sigma) + 1)]
        for radius in radii:
            check_radius(radius, sampling.n, sampling.alpha, sampling.sigma, dim=self.dim)
        reached = [r.radius if r.correct else 0.0 for r in rows]
        return {
            "method": "smoothing",
            "norm": "l2",
            "n": len(rows),
            "sampling": sampling.to_json(),
            "clean": share(sum(r.clean == r.label for r in rows), len(rows)),
            "smoothed": share(sum(r.smoothed == r.label for r in rows), len(rows)),
            "certified": [self._at(as_radius(r, "radius")) for r in radii],
            "abstained": share(sum(r.predict == ABSTAIN for r in rows), len(rows)),
            "radius_mean": sum(reached) / len(rows),
            "radius_median": median_low(reached),
            "largest_radius": most,
            "hint": self.hint,
            "seconds_per_image": sum(r.time for r in rows) / len(rows),
        }

    def _at(self, radius: float) -> dict[str, Any]:
        return {"radius": radius, "linf_radius": linf_radius(radius, self.dim), "share": self.certified(radius)}

    def _decided(self, radius: float, radii: Sequence[float] | None) -> dict[str, Any]:
        """`to_json` after a sequential test; ValueError for other ``radii``."""
        rows, taken = self.rows, [r.samples for r in self.rows]
        return {
            "method": "smoothing",
            "norm": "l2",
            "n": len(rows),
            "sampling": self.sampling.to_json(),
            "clean": share(sum(r.clean == r.label for r in rows), len(rows)),
            "certified": [self._at(as_radius(r, "radius")) for r in (radii or [radius])],
            "certified_wrong": share(sum(r.predict not in (ABSTAIN, r.label) for r in rows), len(rows)),
            "abstained": share(sum(r.predict == ABSTAIN for r in rows), len(rows)),
            "samples_mean": sum(taken) / len(rows),
            "samples_median": median_low(taken),
            "samples_most": max(taken),
            "hint": self.hint,
            "seconds_per_image": sum(r.time for r in rows) / len(rows),
        }

    def radii(self) -> list[float]:
        """The radius of each sample whose class is correct, -1 for the others: the input of `plots.certified`.

        ValueError after a sequential test, which certifies at one radius: there is no curve.
        """
        if self.sampling.radius is not None:
            raise ValueError(f"there is no curve over radii, {_ONE.format(self.sampling.radius)}")
        return [r.radius if r.correct else -1.0 for r in self.rows]
