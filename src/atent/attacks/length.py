"""Limits on the number of passes of attacks, which refuse settings that would run for days."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from atent.attacks.base import Attack

LONGEST = 1_000_000
"""Largest number of passes per image that an attack may take without an explicit option.

SAPF takes 60,080, the most of all attacks at their defaults, and AutoAttack 9,721. At 10,000 passes per second, the
rate of a small network on one core, this limit means 100 s for one image and more than a day for a thousand; more is
usually a mistyped digit.
"""
LONGEST_INNER = 10_000
"""Largest number of adversary steps per batch that a training method may take without an explicit option."""


def check_length(attacks: Mapping[str, Attack], *, allowed: bool, option: str = "--allow-long") -> None:
    """ValueError, in one line with the estimated time, for an attack of more than `LONGEST` passes per image, unless
    ``allowed``; ``option`` is the option that allows it."""
    if allowed:
        return
    for name, attack in attacks.items():
        passes = 0
        # A user-defined attack need not define its passes.
        with suppress(TypeError):
            passes = attack.passes
        if passes > LONGEST:
            hours = passes / 10_000 / 3600
            raise ValueError(
                f"{name} takes up to {passes:.3g} passes an image, about {hours:.3g} h for each at 10,000 a second, and"
                f" {LONGEST:,} are allowed: lower its steps or restarts ({option} to run it anyway)"
            )
