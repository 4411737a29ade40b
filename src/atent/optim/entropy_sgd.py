"""Entropy-SGD: descent on the local entropy of the loss, sampled by Langevin steps on the weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.optim.sgd import sgd

from atent.checks import check_choice, check_number
from atent.optim.sgld import Closure, merge_group, normals
from atent.sgld import langevin_move_

# One walk updates all parameters, so these cannot differ between groups; the other settings can.
_SHARED = ("inner_steps", "average", "scale", "inner_batches", "seed", "t")


class EntropySGD(torch.optim.Optimizer):
    """SGD on the local entropy -T log int exp(-(L(w') + gamma/2 ||w - w'||^2) / T) dw', with T = noise^2.

    Its gradient is E[gamma (w - w')]. One outer step is Algorithm 1 of the supplement of Jagatap et al. 2022 (Chaudhari
    et al. 2017), with w' = mu = w at its start, ``inner_steps`` times

        w' <- w' + inner_lr (-grad L(w') + gamma_t (w - w')) + sqrt(2 inner_lr) noise N(0, I)
        mu <- (1 - alpha) mu + alpha w'

    then a step of torch's SGD (momentum, Nesterov, weight decay) at w with gradient gamma_t (w - mu). Two misprints of
    line 6 are corrected: the gradient is taken at w', and the anchor term attracts w' to w. With ``average="ergodic"``
    mu is sum eta'_k w'_k / sum eta'_k, which is the arithmetic mean, since eta' is constant within an outer step.
    ``inner_steps=0`` is torch.optim.SGD itself, bit for bit.

    Scale: line 11 has the factor gamma, and ``scale="gamma"`` keeps it. A short walk moves by about inner_lr times the
    gradient, so a step then has the size lr gamma inner_lr: lr = 0.1 at gamma = 1e-3 barely trains. The PyTorch code
    that Chaudhari et al. published (ucla-vision/entropy-sgd), and that Jagatap et al. ran, steps along w - mu:
    ``scale="none"``. That code further has weight 0.25 on the newest w' (``alpha=0.25``; their paper says 0.75),
    Nesterov momentum in the walk (``inner_momentum=0.9``, reset at each outer step), an outer momentum whose buffer is
    initially a copy of the loss's gradient, not zero (``momentum_start="gradient"``), and a constant gamma, since t
    remains 0 (``scoping=0``). Not implemented here: weight decay in the walk, and an additional closure call per step,
    at w before the walk, of whose gradients only the first is used, to initialise that buffer. Here the buffer is
    initialised with the gradient of the walk's first call, which is at w too: the same gradient if the closure uses one
    batch for the entire step, as that of Jagatap et al. does, and that of another batch with ``inner_batches="next"``.
    Without inner steps their buffer is initialised in the same way; here that is torch's SGD, whose buffer is
    initialised with the first gradient. Their paper's noise lacks the factor sqrt(2); their code and this one include
    it.

    Scoping: gamma_t = gamma (1 + scoping)^t, t counting outer steps, at most 1 / inner_lr. At this value the anchor
    term of a step returns to the anchor and gamma (w - w') is the gradient of the loss; above twice this value the walk
    diverges.

    Batches: the closure zeroes ``.grad``, computes the gradient and returns the loss; one outer step calls it
    `calls_per_step` times. The loop provides the batches: ``inner_batches`` states whether each call needs the same
    batch or the next one, and `batches_per_step` how many one step consumes. `step` returns the loss of the first call,
    the one at w. After it ``.grad`` is the outer gradient.

    The noise is a function of (seed, t, inner step), and t and the seed are in the state dict: a resumed run equals an
    uninterrupted one, and the global random state is unchanged. If the closure raises, weights, momentum and t are
    restored. A parameter without gradient in a call is not changed by that call.

    Parameters
    ----------
    params
        Tensors or groups, as for any torch optimizer.
    lr
        Rate of the outer step, above 0.
    momentum, nesterov, weight_decay
        Settings of the outer step, as `torch.optim.SGD`.
    inner_steps
        L: Langevin steps per outer step; 0 is `torch.optim.SGD`.
    gamma
        Weight of the anchor term, at least 0.
    scoping
        Growth of gamma per outer step, at least 0.
    inner_lr
        eta': size of a Langevin step, above 0.
    inner_momentum
        Nesterov momentum of the walk, in [0, 1).
    noise
        Square root of the temperature, at least 0.
    alpha
        Weight of the newest point in the exponential average, in (0, 1].
    average
        "exponential", or the "ergodic" mean.
    scale
        Outer gradient: gamma (w - mu), or w - mu for "none".
    inner_batches
        Batches that the walk needs: the "same" one, or the "next" ones.
    momentum_start
        Initial outer momentum: "zero", or the "gradient" of the loss.
    seed
        Key of the noise.

    Raises
    ------
    ValueError
        For values out of range, and for settings that differ between groups but apply to all.

    References
    ----------
    Chaudhari et al. 2017, "Entropy-SGD: biasing gradient descent into wide valleys", ICLR, arXiv 1611.01838.

    Jagatap, Joshi, Chowdhury, Garg and Hegde 2022, "Adversarially robust learning via entropic regularization",
    Frontiers in Artificial Intelligence 4, arXiv 2008.12338.

    Examples
    --------
    >>> import torch
    >>> from atent.optim import EntropySGD
    >>> net, x, y = torch.nn.Linear(4, 2), torch.randn(16, 4), torch.arange(16) % 2
    >>> optimizer = EntropySGD(net.parameters(), lr=0.1, inner_steps=3, scale="none")
    >>> def closure():
    ...     optimizer.zero_grad()
    ...     loss = torch.nn.functional.cross_entropy(net(x), y)
    ...     loss.backward()
    ...     return loss
    >>> loss = optimizer.step(closure)  # the loss before the step
    >>> optimizer.calls_per_step
    3
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        *,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        inner_steps: int = 5,
        gamma: float = 1e-3,
        scoping: float = 0.0,
        inner_lr: float = 0.1,
        inner_momentum: float = 0.0,
        noise: float = 1e-4,
        alpha: float = 0.75,
        average: Literal["exponential", "ergodic"] = "exponential",
        scale: Literal["gamma", "none"] = "gamma",
        inner_batches: Literal["same", "next"] = "same",
        momentum_start: Literal["zero", "gradient"] = "zero",
        seed: int = 0,
    ) -> None:
        super().__init__(
            params,
            {
                "lr": lr, "momentum": momentum, "nesterov": nesterov, "weight_decay": weight_decay,
                "inner_steps": inner_steps, "gamma": gamma, "scoping": scoping, "inner_lr": inner_lr,
                "inner_momentum": inner_momentum, "noise": noise, "alpha": alpha, "average": average, "scale": scale,
                "inner_batches": inner_batches, "momentum_start": momentum_start, "seed": seed, "t": 0,
            },
        )  # fmt: skip

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        merge_group(self, param_group, shared=_SHARED)
        _check(param_group)
        super().add_param_group(param_group)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A state saved by torch.optim.SGD has only the momentum: the other settings are those of this optimizer.
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    @property
    def calls_per_step(self) -> int:
        """Number of closure calls per `step`: ``inner_steps``, and 1 if that is 0."""
        steps: int = self.param_groups[0]["inner_steps"]
        return max(1, steps)

    @property
    def batches_per_step(self) -> int:
        """Number of batches per `step`: 1 for ``inner_batches="same"``, else one per call."""
        return self.calls_per_step if self.param_groups[0]["inner_batches"] == "next" else 1

    @torch.no_grad()
    def step(self, closure: Closure | None = None) -> Tensor:  # type: ignore[override]
        """One outer step; the loss at the weights before it. ValueError without a closure."""
        if closure is None:
            raise ValueError("EntropySGD.step needs a closure, got None: it evaluates the gradient at several points")
        if self.param_groups[0]["inner_steps"]:
            loss = self._walk(closure)
        else:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._descend(group)
            group["t"] += 1
        return loss

    def _walk(self, closure: Closure) -> Tensor:
        """Walk by Langevin steps, return to the anchor, and store the outer gradient in ``.grad``."""
        groups, first = self.param_groups, self.param_groups[0]
        gammas = [scoped(g["gamma"], g["scoping"], g["t"], g["inner_lr"]) for g in groups]
        anchors = {p: p.clone() for g in groups for p in g["params"]}
        means: dict[Tensor, Tensor] = {}
        speeds: dict[Tensor, Tensor] = {}
        losses: list[Tensor] = []
        plain: dict[Tensor, Tensor] = {}
        try:
            for k in range(first["inner_steps"]):
                with torch.enable_grad():
                    losses.append(closure().detach())
                samples = normals(groups, first["seed"], "entropy-sgd", first["t"], k)
                for group, gamma in zip(groups, gammas):
                    eta, noises = group["inner_lr"], {p: next(samples) for p in group["params"]}
                    moving = [p for p in group["params"] if p.grad is not None]
                    for p in moving:
                        means.setdefault(p, anchors[p].clone())
                        if k == 0 and self._starts(p, group):
                            plain[p] = p.grad.clone()
                    if moving:
                        langevin_move_(
                            moving, torch._foreach_neg(_ahead(moving, speeds, group["inner_momentum"])),
                            [anchors[p] for p in moving], step_size=eta, weight=eta * gamma, noise=group["noise"],
                            normals=[n for p in moving if (n := noises[p]) is not None],
                        )  # fmt: skip
                    moved = [p for p in group["params"] if p in means]
                    share = group["alpha"] if group["average"] == "exponential" else 1 / (k + 1)
                    torch._foreach_lerp_([means[p] for p in moved], moved, share)
                # Under the caller's autocast the next call would use the cached weights before this step.
                torch.clear_autocast_cache()
        finally:
            torch._foreach_copy_(list(anchors), list(anchors.values()))
            torch.clear_autocast_cache()
        for group, gamma in zip(groups, gammas):
            for p in group["params"]:
                if p in plain:
                    self.state[p]["momentum_buffer"] = plain[p]
            moved = [p for p in group["params"] if p in means]
            if moved:
                slopes = torch._foreach_sub(moved, [means[p] for p in moved])
                torch._foreach_mul_(slopes, gamma if group["scale"] == "gamma" else 1.0)
                for p, slope in zip(moved, slopes, strict=True):
                    p.grad = slope
        return losses[0]

    def _starts(self, p: Tensor, group: dict[str, Any]) -> bool:
        """Whether to initialise the outer momentum of ``p`` with the loss's gradient."""
        fresh = "momentum_buffer" not in self.state.get(p, {})
        return fresh and group["momentum"] > 0 and group["momentum_start"] == "gradient"

    def _descend(self, group: dict[str, Any]) -> None:
        # torch's function, so that without inner steps the result equals torch.optim.SGD's exactly on every device.
        params = [p for p in group["params"] if p.grad is not None]
        heavy = group["momentum"] != 0
        buffers = [self.state[p].get("momentum_buffer") if heavy else None for p in params]
        sgd(
            params, [p.grad for p in params], buffers, weight_decay=group["weight_decay"], momentum=group["momentum"],
            lr=group["lr"], dampening=0.0, nesterov=group["nesterov"], maximize=False,
            has_sparse_grad=any(p.grad.is_sparse for p in params),
        )  # fmt: skip
        if heavy:
            for p, buffer in zip(params, buffers):
                self.state[p]["momentum_buffer"] = buffer


def _ahead(params: list[Tensor], speeds: dict[Tensor, Tensor], inertia: float) -> list[Tensor]:
    """The gradients with Nesterov momentum; ``speeds`` is updated."""
    grads = [p.grad for p in params if p.grad is not None]
    if not inertia:
        return grads
    old = [p for p in params if p in speeds]
    if old:
        torch._foreach_mul_([speeds[p] for p in old], inertia)
        torch._foreach_add_([speeds[p] for p in old], [p.grad for p in old if p.grad is not None])
    speeds.update({p: p.grad.clone() for p in params if p not in speeds and p.grad is not None})
    return list(torch._foreach_add(grads, [speeds[p] for p in params], alpha=inertia))


def scoped(gamma: float, scoping: float, t: int, inner_lr: float) -> float:
    """gamma (1 + scoping)^t, at most 1 / inner_lr."""
    # The exponent is bounded to avoid an overflow of math.exp; the maximum applies far below.
    grown = gamma * math.exp(min(700.0, t * math.log1p(scoping)))
    return min(grown, max(gamma, 1 / inner_lr))


def _check(group: dict[str, Any]) -> None:
    """ValueError for settings out of range."""
    for name in ("lr", "inner_lr"):
        check_number(name, group[name], 0, above=True)
    check_number("alpha", group["alpha"], 0, 1, above=True)
    for name in ("momentum", "inner_momentum"):
        check_number(name, group[name], 0, 1, below=True)
    for name in ("weight_decay", "gamma", "scoping", "noise"):
        check_number(name, group[name], 0)
    for name in ("inner_steps", "seed"):
        check_number(name, group[name], 0, whole=True)
    if not isinstance(group["nesterov"], bool):
        raise ValueError(f"nesterov must be true or false, got {group['nesterov']!r}")
    if group["nesterov"] and not group["momentum"]:
        raise ValueError("nesterov needs a momentum above 0: set momentum, such as 0.9")
    check_choice("average", group["average"], ("exponential", "ergodic"))
    check_choice("scale", group["scale"], ("gamma", "none"))
    check_choice("inner_batches", group["inner_batches"], ("same", "next"))
    check_choice("momentum_start", group["momentum_start"], ("zero", "gradient"))
    if group["inner_steps"] and group["scale"] == "gamma" and not group["gamma"]:
        raise ValueError("gamma = 0 with scale 'gamma' never moves the weights: set gamma above 0, or scale 'none'")
    if group["gamma"] * group["inner_lr"] > 1:
        raise ValueError(
            f"gamma * inner_lr must be at most 1, since a step would overshoot the anchor,"
            f" got {group['gamma']:g} * {group['inner_lr']:g}"
        )
