"""Whether the samples of a source are kept in memory, and how they are read."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

from atent.data.settings import DataSettings
from atent.threads import cores

OFF = "off"
"""Value of data.cache for no cache."""
_MOST_WORKERS = 8


@dataclass(frozen=True)
class Reading:
    """The fields of `DataSettings` for a loader with a parameter ``reading``."""

    resident: bool | Literal["auto"] = "auto"
    """Keep the samples in memory; auto: if they need at most half of the free memory."""
    cache: str | None = None
    """Folder for decoded images, or `OFF`; None: in the data folder."""
    size: int | None = None
    """Side in pixels that images are cropped and resized to."""
    workers: int | None = None
    """Threads that decode; None: one per core, at most 8."""

    @classmethod
    def of(cls, settings: DataSettings) -> Reading:
        """From the settings."""
        return cls(*(getattr(settings, field.name) for field in fields(cls)))

    def threads(self) -> int:
        """The number of threads that read or decode."""
        return min(_MOST_WORKERS, cores()) if self.workers is None else self.workers


MEMORY = Reading(resident=True)
"""All samples in memory."""


def check(settings: DataSettings, taken: bool) -> None:
    """ValueError, in one line, for numbers out of range, and for settings that have no effect.

    ``taken``: whether the data set's loader takes a `Reading`.
    """
    for name, least, most in (("size", 1, 2**14), ("workers", 0, 2**10)):
        value = getattr(settings, name)
        if value is not None and not least <= value <= most:
            raise ValueError(f"data.{name} is {value}; it must be {least} to {most}")
    given = [each.name for each in fields(Reading) if getattr(settings, each.name) != each.default]
    if not taken and given and (given, settings.resident) != (["resident"], True):
        raise ValueError(
            f"data.{given[0]} has no effect for {settings.name}, which is kept in memory: it is for data.name folder"
            " and npz"
        )
    if settings.name == "npz" and (settings.cache, settings.size) != (None, None):
        raise ValueError("data.cache and data.size have no effect for npz: they are for the images of a folder")
    if settings.resident is True and settings.cache is not None:
        raise ValueError(f"data.cache {settings.cache} has no effect with data.resident true: set data.resident false")
