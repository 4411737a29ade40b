"""The base class of result files, and the values that they share."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

from pydantic import ConfigDict, TypeAdapter, with_config

from atent import stats
from atent.attacks.spec import show
from atent.data import described
from atent.threat import Box, Threat

strict = with_config(ConfigDict(extra="forbid", allow_inf_nan=False))


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
        """Plain values, as JSON has them, without the optional ones at their defaults; `from_json` reads them."""
        adapter = TypeAdapter(type(self))
        found: dict[str, Any] = adapter.dump_python(self, mode="json", by_alias=True, exclude_defaults=True)
        return found

    @classmethod
    def schema(cls) -> dict[str, Any]:
        """The JSON Schema of the file."""
        return TypeAdapter(cls).json_schema()


@strict
@dataclass(frozen=True)
class Share:
    """k of n samples, with the exact 95 % interval."""

    value: float
    low: float
    high: float
    k: int
    n: int

    @classmethod
    def of(cls, k: int, n: int) -> Share:
        """k of n; ValueError as `atent.stats.interval`."""
        found = stats.share(k, n)
        return cls(found["value"], found["low"], found["high"], int(k), int(n))

    @property
    def text(self) -> str:
        """As text: "98.2 % [96.6, 99.2]"."""
        return stats.percent(asdict(self))


@strict
@dataclass(frozen=True)
class Adversary:
    """A threat as plain values; JSON has no infinity, so an unlimited eps is "inf"."""

    norm: str
    eps: float | str
    box: Box
    allow_large_eps: bool = False
    group: str = "element"
    """l0: what eps counts."""
    side: int | None = None
    """patch: side of a patch."""
    inner: str = "free"
    inner_eps: float | None = None

    @classmethod
    def of(cls, threat: Threat) -> Adversary:
        """From a threat with one eps for all samples."""
        eps = float(threat.eps)
        return cls(**{**threat.plain(), "eps": "inf" if eps == math.inf else eps})

    def threat(self) -> Threat:
        """The threat itself."""
        return Threat(**asdict(self))

    @property
    def text(self) -> str:
        """As text: "linf 8/255"."""
        return show(self.threat())


@strict
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
    """Their numbers, as `atent.data.described.spans` writes them; None if an older file does not say."""
    shape: tuple[int, ...] | None = None

    @property
    def text(self) -> str:
        """Which samples, as text: "all 500", "a stratified sample of 100 of 500 (seed 0)"."""
        return described.words(asdict(self))


@strict
@dataclass(frozen=True, kw_only=True)
class EvaluatedSamples(Samples):
    """The samples of an evaluation."""

    class_names: list[Any] | None
    """None if the data name no classes."""
