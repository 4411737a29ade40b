"""One step of stochastic gradient Langevin dynamics with an anchor.

The same step moves inputs in ATENT and its attack, and weights in Entropy-SGD and SGLD:

    z' = z + step_size * direction + pull * (anchor - z) + noise * sqrt(2 * step_size) * N(0, I)

With ``direction`` the gradient of log p and pull = step_size * gamma it samples
p(z) ~ exp((log p(z) - gamma/2 ||z - anchor||^2) / noise^2): the temperature is noise squared
(Welling and Teh 2011; supplement of Jagatap et al. 2022, B.2 and B.3).
"""

from __future__ import annotations

import math

from torch import Tensor


def langevin_step(
    z: Tensor,
    direction: Tensor,
    anchor: Tensor | None = None,
    *,
    step_size: float,
    pull: float = 0.0,
    noise: float = 0.0,
    normal: Tensor | None = None,
) -> Tensor:
    """The step above; all tensors have the shape of ``z``.

    ``normal`` holds standard normal draws. ValueError for noise without ``normal`` or a pull without ``anchor``.
    """
    out = z.add(direction, alpha=step_size)
    if pull:
        if anchor is None:
            raise ValueError(f"a pull of {pull:g} needs an anchor")
        out = out.add_(anchor - z, alpha=pull)
    if noise:
        if normal is None:
            raise ValueError(f"noise of {noise:g} needs standard normal draws")
        out = out.add_(normal, alpha=effective_noise(step_size, noise))
    return out


def effective_noise(step_size: float, noise: float) -> float:
    """Standard deviation per coordinate of the noise that one step adds: sqrt(2 step_size) * noise."""
    return math.sqrt(2.0 * step_size) * noise


def noise_for(step_size: float, effective: float) -> float:
    """The ``noise`` whose effective noise is ``effective`` (0.12 at step size 0.02175 is 0.5754).

    ValueError where the step size is 0 and the effective noise is not.
    """
    if effective == 0:
        return 0.0
    if step_size <= 0:
        raise ValueError(f"an effective noise of {effective} needs a step size above 0, got {step_size}")
    return effective / math.sqrt(2.0 * step_size)
