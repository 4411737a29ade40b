"""Certified training by the dual of the linear relaxation (Wong and Kolter 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atent.attacks.base import check_number
from atent.certify.bounds import margins
from atent.certify.graph import Graph
from atent.certify.projection import estimated_margins
from atent.methods.base import Method, Metrics, State, check_budget, check_warmup, warm
from atent.methods.certified import check_share, mixed_loss
from atent.threat import Threat


@dataclass(frozen=True)
class Dual(Method):
    """(1 - kappa) CE(-J, y) + kappa CE(f(x), y), J the dual bound of the margins (Wong and Kolter 2018, Theorem 2).

    J (n, classes) comes from the dual network of a feasible point: each ReLU between its bounds l < 0 < u lies
    between two lines of slope u / (u - l), and l and u come from the same bound of the layers before. So CE(-J, y) is
    at least the cross-entropy under any attack within eps, which grows linearly from 0 over the first ``eps_warmup``
    of the training. Deviations: the ball is cut to the box; eps starts at 0, in their code at 0.01 (CIFAR-10:
    0.001, growing by a factor per epoch); their code also clips gradients on CIFAR-10.

    Every hidden unit that is not of the first layer is bounded by a backward pass of its own: kw_small on MNIST has
    1,668 of them. With ``projections`` k the l1 norms that this takes are estimated by k Cauchy vectors, at the cost of
    k + 1 forwards (Wong et al. 2018, section 3.2; `atent.certify.projection`). Then CE(-J, y) is an estimate too, and
    so is the metric ``verified``: certify with bounds that are exact.

    The network must be a fixed function in train mode, without batch-norm and dropout: ValueError otherwise, and for
    layers that `atent.certify.read` does not know. Keep the last epoch (``select = "last"``).

    Metrics: clean accuracy (``natural``) and the share of the batch with J above 0 at the current eps (``verified``).
    """

    threat: Threat
    """Ball to verify: linf or l2; linf with projections."""
    eps_warmup: float = 0.0
    """Share of the training over which eps grows linearly from 0."""
    kappa: float = 0.0
    """Weight of the plain cross-entropy, in [0, 1]; published: 0."""
    projections: int | None = None
    """Number of random projections, 10 to 50 as published; left out: exact norms."""

    def __post_init__(self) -> None:
        check_warmup(self.eps_warmup)
        check_share("kappa", self.kappa)
        if self.projections is not None:
            check_number("projections", self.projections, 1, whole=True)
            if self.threat.norm != "linf":
                raise ValueError(
                    f"projections estimate the dual norms of linf, got a threat in {self.threat.norm}: leave them out"
                )
        check_budget(self.threat)

    def adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator,
        ids: Tensor | None = None, progress: float = 1.0, state: State | None = None,
    ) -> Tensor | None:  # fmt: skip
        """The seed of the projections, a scalar; None without them."""
        if self.projections is None:
            return None
        return torch.randint(2**62, (), generator=rng, device=rng.device)

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        threat = self.threat.scaled(warm(self.eps_warmup, progress))

        def bound(graph: Graph) -> Tensor:
            if self.projections is None:
                return margins(graph, x, y, threat, "dual", check=False, rounding=False)
            rng = torch.Generator(x.device).manual_seed(int(aux))
            return estimated_margins(graph, x, y, threat, self.projections, rng)

        return mixed_loss(model, x, y, self.kappa, bound if float(threat.eps) > 0 else None)
