"""The base of attacks around another attack, and the attacks of which one consists."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from torch import Tensor

from atent.attacks.base import Attack
from atent.attacks.spec import nested
from atent.threat import NORMS, Threat

# What is read of an attack before it runs and is a constant of most classes; not `Attack.needs_gradient`, since the
# attacked model may be another than the one that is searched.
_FACTS = ("minimum_norm", "aims", "sources")


@dataclass(frozen=True)
class Wrapper(Attack):
    """An attack around another: what a subclass does not override is taken from ``inner``.

    A subclass defines ``passes`` and ``search``, which calls `bounded` of ``inner``. It declares ``attack`` again, with
    a default and a docstring of its own.
    """

    norms: ClassVar[tuple[str, ...]] = NORMS

    threat: Threat
    attack: str = "PGD(steps=20)"
    """The attack inside, as text."""

    def __post_init__(self) -> None:
        for fact in _FACTS:
            object.__setattr__(self, fact, getattr(self.inner, fact))

    # Kept, since an attack may count what it meets and report it in its remarks.
    @cached_property
    def inner(self) -> Attack:
        """The attack inside."""
        return nested(self.attack, self.threat)

    def of(self, rows: Tensor) -> Attack:
        part = super().of(rows)
        if part is not self:
            # What it has loaded or counted is that of all batches.
            object.__setattr__(part, "inner", self.inner.of(rows))
        return part

    @property
    def stream(self) -> str:
        return self.inner.stream

    @property
    def saturates(self) -> bool:
        return self.inner.saturates

    def remarks(self, classes: int) -> list[str]:
        return self.inner.remarks(classes)

    def check_aims(self) -> None:
        self.inner.check_aims()


def inside(attack: Attack) -> list[Attack]:
    """The attacks that an attack runs itself: its parts, or the one that it wraps; none for a single search."""
    inner = getattr(attack, "inner", None)
    return [*attack.parts().values(), *([inner] if isinstance(inner, Attack) else [])]


def nest(attack: Attack) -> Iterator[Attack]:
    """An attack and, at every depth, those that it runs."""
    yield attack
    for each in inside(attack):
        yield from nest(each)
