"""Stochastic gradient Langevin dynamics on the weights (Welling and Teh 2011): an optimizer that samples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from atent.checks import check_number
from atent.rng import fold
from atent.sgld import langevin_move_

Closure = Callable[[], Tensor]


class SGLD(torch.optim.Optimizer):
    """Each step is theta <- theta + lr grad log p(theta) + sqrt(2 lr) noise N(0, I).

    The closure stores the gradient of -log p in ``.grad``, so the loss is a negative log likelihood: the sum over the
    data, or the batch mean times the size of the training set; the mean alone has the same target at ``noise`` = 1 /
    sqrt(size). ``weight_decay`` is the precision of a Gaussian prior around 0, ``gamma`` that of one around the weights
    before the first step. The chain samples

        exp(-(-log p + weight_decay/2 ||theta||^2 + gamma/2 ||theta - start||^2) / noise^2)

    up to a bias of order lr; on a Gaussian of total precision a its variance is (noise^2 / a) / (1 - lr a / 2). Welling
    and Teh use lr = epsilon / 2, which decreases: the loop's schedule sets ``group["lr"]``. Eq. S3 of the supplement of
    Jagatap et al. has the gradient of p instead of that of log p; this implementation uses log p.

    The noise is a function of (seed, step), and the step is in the state dict: a resumed chain equals an uninterrupted
    one, and the global random state is unchanged.

    Parameters
    ----------
    params
        Tensors or groups, as for any torch optimizer.
    lr
        Step size, above 0.
    noise
        Square root of the temperature, at least 0; 0 is gradient descent.
    gamma
        Precision of a Gaussian prior around the initial weights, at least 0.
    weight_decay
        Precision of a Gaussian prior around 0, at least 0.
    seed
        Key of the noise.

    Raises
    ------
    ValueError
        For values out of range.

    References
    ----------
    Welling and Teh 2011, "Bayesian learning via stochastic gradient Langevin dynamics", ICML.

    Examples
    --------
    Samples of a standard Gaussian in 1,000 dimensions:

    >>> import torch
    >>> from atent.optim import SGLD
    >>> theta = torch.nn.Parameter(torch.zeros(1000))
    >>> optimizer = SGLD([theta], lr=0.1)
    >>> for _ in range(100):
    ...     optimizer.zero_grad()
    ...     (theta**2 / 2).sum().backward()
    ...     _ = optimizer.step()
    >>> 0.9 < float(theta.detach().std()) < 1.15
    True
    """

    def __init__(
        self, params: Iterable[Any], lr: float, *, noise: float = 1.0, gamma: float = 0.0, weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:  # fmt: skip
        super().__init__(
            params, {"lr": lr, "noise": noise, "gamma": gamma, "weight_decay": weight_decay, "seed": seed, "t": 0}
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        merge_group(self, param_group, shared=("seed", "t"))
        check_number("lr", param_group["lr"], 0, above=True)
        for name in ("noise", "gamma", "weight_decay"):
            check_number(name, param_group[name], 0)
        check_number("seed", param_group["seed"], 0, whole=True)
        keep = param_group["lr"] * (param_group["gamma"] + param_group["weight_decay"])
        if keep >= 2:
            raise ValueError(f"lr * (gamma + weight_decay) must be below 2, or the chain diverges, got {keep:g}")
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor | None:  # type: ignore[override]
        """One step from the gradients that the closure leaves, or from those in place; the closure's loss."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        first = self.param_groups[0]
        samples = normals(self.param_groups, first["seed"], "sgld", first["t"])
        for group in self.param_groups:
            lr, gamma, noise = group["lr"], group["gamma"], group["noise"]
            noises = {p: next(samples) for p in group["params"]}
            moving = [p for p in group["params"] if p.grad is not None]
            for p in moving:
                if gamma and "anchor" not in self.state[p]:
                    self.state[p]["anchor"] = p.clone()
            if moving:
                slopes = torch._foreach_add([p.grad for p in moving], moving, alpha=group["weight_decay"])
                langevin_move_(
                    moving, torch._foreach_neg(slopes), [self.state[p]["anchor"] for p in moving] if gamma else None,
                    step_size=lr, weight=lr * gamma, noise=noise,
                    normals=[n for p in moving if (n := noises[p]) is not None],
                )  # fmt: skip
            group["t"] += 1
        return loss


def normals(groups: list[dict[str, Any]], *keys: int | str) -> Iterator[Tensor | None]:
    """Standard normal samples for each parameter of each group, as a function of the keys alone.

    None where the group has no noise. A parameter's samples do not depend on which others have a gradient.
    """
    streams: dict[torch.device, torch.Generator] = {}
    for group in groups:
        for p in group["params"]:
            if not group["noise"]:
                yield None
                continue
            if p.device not in streams:
                # 32 bits of seed on a CPU: of 400,000 steps about 18 pairs have the same noise, at other weights.
                streams[p.device] = torch.Generator(p.device).manual_seed(fold(*keys))
            yield torch.randn(p.shape, generator=streams[p.device], dtype=p.dtype, device=p.device)


def merge_group(optimizer: torch.optim.Optimizer, group: dict[str, Any], *, shared: tuple[str, ...]) -> None:
    """Fill a new group's settings from the first group's and the defaults; ValueError where a shared one differs.

    A group that joins later takes the steps counted so far.
    """
    if not isinstance(group, dict):
        raise ValueError(f"a parameter group must be a dict, got {type(group).__name__}")
    first = optimizer.param_groups[0] if optimizer.param_groups else optimizer.defaults
    for name, value in optimizer.defaults.items():
        group.setdefault(name, first[name] if name in shared else value)
    for name in shared:
        if group[name] != first[name]:
            raise ValueError(f"{name} is one for all parameter groups: got {group[name]!r} and {first[name]!r}")
