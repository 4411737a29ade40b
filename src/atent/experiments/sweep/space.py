"""The search space of a sweep: lists of values, and ranges."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from atent.experiments.recipe_files import SECTIONS, UsageError
from atent.fields import shown
from atent.messages import unknown

_KEYS = ("low", "high", "log", "step")
# Settings that determine the validation metrics: trials that differ in them cannot be compared.
_MEASURED = ("train.validate_attack", "train.validate_limit", "train.select")
_ELSEWHERE = {
    "train.seed": "give [sweep] seeds and first_seed",
    "train.minutes": "give [sweep] minutes",
    "data.root": "set $ATENT_DATA_ROOT, or give it in [set]",
}


@dataclass(frozen=True)
class Choice:
    """A setting that takes one of several values."""

    name: str
    values: tuple[Any, ...]

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values to validate before training."""
        return self.values

    def plain(self) -> Any:
        """The setting in the form of the file."""
        return list(self.values)


@dataclass(frozen=True)
class Range:
    """A setting that takes numbers from ``low`` to ``high``, both included; integers if both are integers."""

    name: str
    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        """Whether all values are integers."""
        return isinstance(self.low, int) and isinstance(self.high, int)

    @property
    def ends(self) -> tuple[Any, ...]:
        """Values to validate before training; includes a non-integer value unless all values are integers."""
        return (self.low, self.high) if self.whole else (self.low, self.high, self.low + 0.37 * (self.high - self.low))

    def listed(self) -> tuple[Any, ...]:
        """Every value of a range with a step; UsageError for one without."""
        if self.step is None:
            raise UsageError(f"{self.name}: a grid needs listed values, or a step: add step, or use sampler random")
        count = round((self.high - self.low) / self.step)
        return tuple(self.low + i * self.step for i in range(count + 1))

    def plain(self) -> Any:
        """The setting in the form of the file."""
        found: dict[str, Any] = {"low": self.low, "high": self.high}
        return found | ({"log": True} if self.log else {}) | ({} if self.step is None else {"step": self.step})


Parameter = Choice | Range


def spelled(name: str) -> str:
    """A setting by its path in a recipe: ``train.batch-size`` is ``train.batch_size``, ``method`` is
    ``method.name``."""
    name = name.removeprefix("--").replace("-", "_")
    return f"{name}.name" if name in SECTIONS else name


def check_name(name: str) -> None:
    """UsageError for what is not the path of a recipe's field, or is set elsewhere."""
    section, dot, _ = name.partition(".")
    if not dot or section not in SECTIONS:
        raise UsageError(f"{name} is not a field of a recipe: {unknown('section', section, SECTIONS)}")
    if name in _ELSEWHERE and name != "data.root":
        raise UsageError(f"{name} is not allowed in [space] and [set]: {_ELSEWHERE[name]}")


def parameter(name: str, given: Any) -> Parameter:
    """A setting of [space]; UsageError for what cannot be tried."""
    check_name(name)
    section = name.partition(".")[0]
    if name in _ELSEWHERE:
        raise UsageError(f"{name} is not allowed in [space]: {_ELSEWHERE[name]}")
    if section == "evaluate" or (section == "data" and name != "data.augment") or name in _MEASURED:
        raise UsageError(f"{name} changes the validation data or metric, so it cannot be swept: give it in [set]")
    if isinstance(given, list):
        return _choice(name, given)
    if isinstance(given, dict):
        return _range(name, given)
    raise UsageError(f"{name} has a single value, {shown(given)}: give it in [set], or list several as [A, B]")


def _choice(name: str, values: list[Any]) -> Choice:
    if not values:
        raise UsageError(f"{name} has no values: list at least one")
    for i, value in enumerate(values):
        if not isinstance(value, str | int | float):
            raise UsageError(f"{name} takes numbers, strings, true and false, got {shown(value)}")
        if value in values[:i]:  # also 1 beside 1.0 and true
            raise UsageError(f"{name} lists {shown(value)} twice: omit one")
    return Choice(name, tuple(values))


def _range(name: str, given: dict[str, Any]) -> Range:
    for key in given:
        if key not in _KEYS:
            raise UsageError(f"{name}: {unknown('key', key, _KEYS)}")
    for key in ("low", "high"):
        if key not in given:
            raise UsageError(f"{name} has no {key}: a range is {{ low = A, high = B }}")
    for key in ("low", "high", "step"):
        value = given.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise UsageError(f"{name}: {key} must be a finite number, got {shown(value)}")
    log, step = given.get("log", False), given.get("step")
    if not isinstance(log, bool):
        raise UsageError(f"{name}: log must be true or false, got {shown(log)}")
    found = Range(name, given["low"], given["high"], log, step)
    _check(found)
    return found


def _check(found: Range) -> None:
    low, high, step = found.low, found.high, found.step
    if low > high:
        raise UsageError(f"{found.name}: low must be at most high, got {low} and {high}: swap them")
    if low == high:
        raise UsageError(f"{found.name}: low and high are both {low}: give one value in [set]")
    if found.log and low <= 0:
        raise UsageError(f"{found.name}: a log range must begin above 0, got low {low}")
    if step is None:
        return
    if found.log:
        raise UsageError(f"{found.name}: log and step exclude each other: omit one")
    if step <= 0 or (found.whole and not isinstance(step, int)):
        raise UsageError(f"{found.name}: step must be above 0{' and whole' if found.whole else ''}, got {step}")
    count = (high - low) / step
    if abs(count - round(count)) > 1e-9 * max(1.0, count):
        raise UsageError(f"{found.name}: steps of {step} from {low} do not meet high {high}: give another step or high")
