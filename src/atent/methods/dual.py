"""Certified training by the dual of the linear relaxation (Wong and Kolter 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atent.certify.bounds import margins
from atent.certify.graph import Graph
from atent.certify.projection import estimated_margins
from atent.checks import check_number
from atent.messages import report_idle
from atent.methods.base import Method, Metrics, State, check_budget, check_warmup, method, warm
from atent.methods.certified import mixed_loss
from atent.rng import seed_from
from atent.threat import Threat

# Each projection is a vector of every layer's size for every sample.
_PROJECTIONS = 10_000


@method
@dataclass(frozen=True)
class Dual(Method):
    """(1 - kappa) CE(-J, y) + kappa CE(f(x), y), J the dual bound of the margins (Wong and Kolter 2018).

    J (n, classes) comes from the dual network of a feasible point: each ReLU between its bounds l < 0 < u lies
    between two lines of slope u / (u - l), and l and u come from the same bound of the previous layers. So CE(-J, y) is
    at least the cross-entropy under any attack within eps, which grows linearly from ``eps_first`` over the first
    ``eps_warmup`` of the training.

    Deviations from their code (locuslab/convex_adversarial). The ball is intersected with the box, which theirs does in
    linf for MNIST and not for CIFAR-10, nor in l2. Their eps is constant within an epoch and grows in equal steps over
    ``schedule_length`` epochs; here it grows at each step and is full at the end of the last of them. Theirs starts at
    0.01 for MNIST, and for CIFAR-10 at 0.001 in units of inputs divided by 0.225; here it starts at 0 by default. Their
    CIFAR-10 runs clip the gradient to norm 1 (``optimizer.clip_norm``). They continue with a cascade: further networks,
    each trained on the samples that the previous ones do not verify; this is the first network.

    Every hidden unit after the first layer is bounded by a separate backward pass: kw_small on MNIST has 1,668 of them.
    With ``projections`` k the l1 norms in these bounds are estimated by k Cauchy vectors, at the cost of k + 1 forwards
    (Wong et al. 2018, "Scaling provable adversarial defenses"; deviations: `atent.certify.projection`). Then CE(-J, y)
    and the metric ``verified`` are estimates too: certify with exact bounds.

    The network must be a fixed function in train mode, without batch-norm and dropout: ValueError otherwise, and for
    layers that `atent.certify.read` does not support. Select the last epoch (``select = "last"``).

    Metrics: clean accuracy (``clean``) and the share of the batch with J above 0 at the current eps (``verified``).

    References
    ----------
    Wong and Kolter 2018, "Provable defenses against adversarial examples via the convex outer adversarial polytope",
    ICML, arXiv 1711.00851.

    Wong, Schmidt, Metzen and Kolter 2018, "Scaling provable adversarial defenses", NeurIPS, arXiv 1805.12514.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.methods import Dual
    >>> from atent.models import build
    >>> x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    >>> net = build("digits_cnn", shape=(1, 8, 8))
    >>> metrics = Dual(Threat("linf", 0.02), projections=10).backward(net, x, y)  # leaves the gradient in .grad
    >>> sorted(metrics)
    ['clean', 'loss', 'verified']
    """

    threat: Threat
    """Ball to verify: linf or l2; linf with projections."""
    eps_warmup: float = 0.0
    """Share of the training over which eps grows linearly from eps_first."""
    eps_first: float = 0.0
    """Eps at the start of its growth, in pixel units, at most the threat's."""
    kappa: float = 0.0
    """Weight of the clean cross-entropy, in [0, 1]; published: 0."""
    projections: int | None = None
    """Number of random projections, 10 to 50 as published; default: exact norms."""

    def __post_init__(self) -> None:
        check_warmup(self.eps_warmup)
        check_number("kappa", self.kappa, 0, 1)
        if self.projections is not None:
            check_number("projections", self.projections, 1, whole=True)
            if self.projections > _PROJECTIONS:
                raise ValueError(f"projections must be at most {_PROJECTIONS:,}, got {self.projections}: use 10 to 50")
            if self.threat.norm != "linf":
                raise ValueError(
                    f"projections estimate the dual norms of linf, got a threat in {self.threat.norm}: omit them"
                )
        check_budget(self.threat)
        check_number("eps_first", self.eps_first, 0)
        eps = float(self.threat.eps)
        if self.eps_first > eps:
            raise ValueError(f"eps_first must be at most the threat's eps {eps:g}, got {self.eps_first:g}")
        report_idle(self, "Dual.", [("eps_first", "set eps_warmup", self.eps_warmup > 0)])

    def at(self, progress: float) -> Threat:
        """The threat whose ball is bounded at ``progress``."""
        eps = float(self.threat.eps)
        grown = self.eps_first + warm(self.eps_warmup, progress) * (eps - self.eps_first)
        return self.threat.scaled(grown / eps) if eps else self.threat

    def adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator,
        ids: Tensor | None = None, progress: float = 1.0, state: State | None = None,
    ) -> int | None:  # fmt: skip
        """The seed of the projections; None without them."""
        if self.projections is None:
            return None
        return seed_from(rng)

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        threat = self.at(progress)

        def bound(graph: Graph) -> Tensor:
            if self.projections is None:
                return margins(graph, x, y, threat, "dual", check=False, rounding=False)
            rng = torch.Generator(x.device).manual_seed(aux)
            return estimated_margins(graph, x, y, threat, self.projections, rng)

        return mixed_loss(model, x, y, self.kappa, bound if float(threat.eps) > 0 else None)
