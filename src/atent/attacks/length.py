"""How long attacks take at most, and the refusal of those that would not end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress

from atent.attacks.base import Attack

LONGEST = 1_000_000
"""Passes through the network for one image, beyond which an attack runs only where that is asked for.

SAPF takes 60,080, the most of the attacks at their defaults, and AutoAttack 9,721. At 10,000 passes a second, the rate
of a small network on one core, this many take 100 s for one image and more than a day for a thousand: what is longer is
mostly a digit too many.
"""
LONGEST_INNER = 10_000
"""Steps of a training's adversary for one batch, beyond which a method trains only where that is asked for."""


def check_length(attacks: Mapping[str, Attack], *, allowed: bool, option: str = "--allow-long") -> None:
    """ValueError, in one line with the estimate, for an attack of more than `LONGEST` passes an image, unless
    ``allowed``; ``option`` is what allows it."""
    if allowed:
        return
    for name, attack in attacks.items():
        passes = 0
        # An attack of the user's own need not say what it costs.
        with suppress(TypeError):
            passes = attack.passes
        if passes > LONGEST:
            hours = passes / 10_000 / 3600
            raise ValueError(
                f"{name} takes up to {passes:.3g} passes an image, about {hours:.3g} h for each at 10,000 a second, and"
                f" {LONGEST:,} are allowed: lower its steps or restarts ({option} to run it all the same)"
            )
