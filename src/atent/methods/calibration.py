"""Calibration of ATENT's gamma or noise to a median distance of its samples."""

from __future__ import annotations

from dataclasses import Field, dataclass, replace
from typing import Any, ClassVar, Generic, Literal, Protocol, TypeVar, get_args

import torch
from torch import Tensor, nn

from atent.attacks.langevin import Sampler
from atent.checks import as_samples, check_batch, check_choice, check_number, check_seed
from atent.sgld import noise_for
from atent.threat import Threat

Setting = Literal["gamma", "noise"]


class Walking(Protocol):
    """A method whose adversary is a Langevin chain: a dataclass with the fields of `ATENT`."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]

    @property
    def threat(self) -> Threat:
        """The threat of the chain."""

    @property
    def chains(self) -> int:
        """Number of chains per sample."""

    def chain(self, progress: float = 1.0) -> Sampler:
        """The resolved chain."""

    def adversary(self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator) -> Any:
        """The iterates of the chain, for a free-energy objective as a list."""


M = TypeVar("M", bound=Walking)

# Relative tolerance of the median distance.
_TOLERANCE = 0.01


@dataclass(frozen=True)
class Calibration(Generic[M]):
    """The result of `ATENT.calibrate`. Distances are ||x^K - x|| in the threat's norm, one per sample and chain."""

    method: M
    """The method with the calibrated value."""
    setting: Setting
    """The calibrated setting: gamma or noise."""
    value: float
    """The calibrated value."""
    target: float
    """The target of the median distance."""
    median: float
    """Median distance that the value achieves, within 1 % of the target."""
    q10: float
    """10 % quantile of the distances."""
    q90: float
    """90 % quantile of the distances."""
    n: int
    """Number of inputs of the calibration."""

    def describe(self) -> dict[str, object]:
        """All fields except the method, as plain values."""
        names = ("setting", "value", "target", "median", "q10", "q90", "n")
        return {name: getattr(self, name) for name in names}

    def __str__(self) -> str:
        return (
            f"{self.setting} {self.value:.4g}: median distance {self.median:.3g}"
            f" (10 % {self.q10:.3g}, 90 % {self.q90:.3g}) for a radius of {self.target:g}, on {self.n} images"
        )


def calibrate(
    method: M, model: nn.Module, x: Tensor, y: Tensor, target: float | None = None, *,
    setting: Setting = "gamma", batch: int = 256, seed: int = 0,
) -> Calibration[M]:  # fmt: skip
    """See `ATENT.calibrate`."""
    check_choice("setting", setting, get_args(Setting))
    x, y = as_samples(x, y, model)
    batch, seed = check_number("batch", batch, 1, whole=True), check_seed(seed)
    target = check_number("target", float(method.threat.eps) if target is None else target, 0, above=True)
    if len(x) == 0:
        raise ValueError("calibration needs inputs, got none: give x of shape (n, ...) with n at least 1")
    check_batch(x, y, method.threat.box)
    method = replace(method, calibrated=False)
    chain = _movable(method, setting, target)

    def quantiles(value: float) -> tuple[float, float, float]:
        found = _quantiles(_with(method, setting, value), model, x, y, batch, seed)
        if not found[0] <= found[1] <= found[2] < float("inf"):
            raise ValueError(f"with {setting} {value:g} the chain's distances are not finite: check the model's losses")
        return found

    # Above a weight of 1 per step the chain overshoots its anchor; noise as wide as the box destroys the image.
    per_gamma = replace(method, gamma=1e-3).chain().anchor_weight / 1e-3
    top = 1.0 / per_gamma if setting == "gamma" else noise_for(chain.step_size, chain.threat.width)
    # The value is top s^4: bisection in s finds small values as well as large ones.
    ends = (0.01, 1.0)
    medians = [quantiles(top * s**4)[1] for s in ends]
    if not min(medians) <= target <= max(medians):
        other = "noise" if setting == "gamma" else "gamma"
        raise ValueError(
            f"no {setting} gives a median distance of {target:g}: it ranges from {medians[0]:.3g} at {setting}"
            f" {top * ends[0] ** 4:.2g} to {medians[1]:.3g} at {top:.3g}; change steps, step_size, start or {other}"
        )
    grows = medians[1] > medians[0]
    inner, outer = ends
    for _ in range(40):
        middle = (inner + outer) / 2
        value = top * middle**4
        found = quantiles(value)
        if abs(found[1] - target) <= _TOLERANCE * target:
            return Calibration(
                _with(method, setting, value), setting, value, float(target), found[1], found[0], found[2], len(x)
            )
        if (found[1] < target) == grows:
            inner = middle
        else:
            outer = middle
    raise ValueError(
        f"the median distance jumps past {target:g} at {setting} {value:.3g}, to {found[1]:.3g}: use more inputs, or"
        " another step_size"
    )


def _movable(method: Walking, setting: Setting, target: float) -> Sampler:
    """The method's chain; ValueError if the setting cannot reach the target."""
    given = getattr(method, setting)
    if isinstance(given, str):
        raise ValueError(f"{setting} {given!r} is a schedule: set a number, or omit it")
    chain = method.chain()
    if chain.projection != "never" and target >= float(chain.threat.eps):
        raise ValueError(
            f"projection {chain.projection!r} projects the samples to eps {chain.threat.eps:g}, so the radius"
            f" {target:g} cannot be calibrated: use projection 'never', or a smaller radius"
        )
    if chain.step_size == 0:
        raise ValueError("step_size 0 does not move the samples: set a step_size above 0")
    return chain


def _with(method: M, setting: Setting, value: float) -> M:
    """The method with the given gamma or noise."""
    if setting == "gamma":
        return replace(method, gamma=value)
    return replace(method, noise=value, effective_noise=None, temperature=None)


def _quantiles(method: M, model: nn.Module, x: Tensor, y: Tensor, batch: int, seed: int) -> tuple[float, float, float]:
    """10 %, 50 % and 90 % quantiles of the chain's distances."""
    # The same random numbers at each call, so that the median depends on the method alone.
    rng = torch.Generator(x.device).manual_seed(seed)
    found = []
    for part, labels in zip(torch.split(x, batch), torch.split(y, batch), strict=True):
        # Both objectives have the same chain; this one does not record losses.
        walk = replace(method, objective="free-energy").adversary(model, part, labels, rng=rng)
        found.append(method.threat.distance(walk[-1], torch.cat([part] * method.chains)))
    distances = torch.cat(found)
    levels = torch.tensor([0.1, 0.5, 0.9], dtype=distances.dtype, device=x.device)
    low, median, high = torch.quantile(distances, levels).tolist()
    return low, median, high
