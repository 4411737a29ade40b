"""The noise that a run was trained with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Thermal noise below one intensity level does not prepare a network for smoothing.
_GREY_LEVEL = 1 / 255


def sigma_of(config: dict[str, Any], name: str | Path) -> float:
    """The noise that the run of this configuration was trained with; ValueError if there was none to smooth by."""
    if not config:
        raise ValueError(f"{name} does not record its training noise: give --sigma")
    trained = (config.get("method") or {}).get("sigma") or 0.0
    chain = (config.get("about") or {}).get("chain") or {}
    found = float(trained or chain.get("effective_noise") or 0.0)
    if found < _GREY_LEVEL:
        raise ValueError(
            f"{name} was trained without noise: give --sigma; expect a low certified accuracy of a network that never"
            " saw noise"
        )
    return found
