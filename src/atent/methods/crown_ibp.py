"""Certified training by interval and linear bounds: CROWN-IBP, and IBP as its special case."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

from atent.certify.bounds import margins
from atent.certify.graph import Graph
from atent.checks import check_number
from atent.messages import report_idle
from atent.methods.base import Method, Metrics, State, check_budget, method, ramp
from atent.methods.certified import mixed_loss
from atent.threat import Threat


@method
@dataclass(frozen=True)
class CROWNIBP(Method):
    """kappa CE(f(x), y) + (1 - kappa) CE(-m, y) with m = beta m_CROWN-IBP + (1 - beta) m_IBP (Zhang et al. 2020).

    m (n, classes) bounds the margins z_y - z_j from below over the intersection of the ball of radius eps and the box,
    so the second term is at least the cross-entropy under any attack ("Towards stable and efficient training of
    verifiably robust neural networks"). Both bounds merge the last affine layers with the difference of the classes;
    the relaxations of m_CROWN-IBP use interval bounds.

    Three phases over the training's ``progress``: standard training up to ``eps_start``; up to ``eps_end`` eps grows
    from 0 according to ``eps_growth``, and kappa and beta change from their first to their last values in proportion to
    it; then all are constant. The linear bounds stabilise the beginning, when intervals are loose; with ``beta_end=0``
    the last phase is pure IBP. ``beta_start=0, beta_end=0`` is IBP throughout (Gowal et al. 2018). With
    ``kappa_start=0, kappa_end=0`` the clean cross-entropy ends when eps begins to grow, which the authors' code calls
    "robust"; its "robust_natural" is ``kappa_start=1`` and by default ``kappa_end=0.5``. They train at a larger eps
    than they verify: 0.2 for MNIST's 0.1, 0.4 for 0.3, 1.1 times CIFAR-10's.

    Deviations from their code (huanzhang12/CROWN-IBP). In l2 the region here is the intersection of the ball and the
    box, theirs the ball: for linear bounds the minimum over that region, for the intervals of the first layer the
    better of the ball's, by the l2 norm of each row, and the box's. If the first layer is a convolution, the row of an
    output at the border contains only the weights inside the image; theirs uses the norm of the full kernel everywhere.
    The midpoint of the smoothed growth is at a quarter of its length, theirs at the last full step before it. Their
    loop selects the epoch with the lowest verified error on the test set.

    The network must be a fixed function in train mode, without batch-norm and dropout: ValueError otherwise, and for
    layers that `atent.certify.read` does not support. Passes: a clean forward; if eps > 0, two for the intervals; if
    beta > 0, those of a second call and a backward bound propagation for each class. Select the last epoch (``select =
    "last"``): the accuracy under attack may be highest before eps has grown.

    Metrics: clean accuracy (``clean``) and the share of the batch verified by m at the current eps (``verified``).

    References
    ----------
    Zhang, Chen, Xiao, Gowal, Stanforth, Li, Boning and Hsieh 2020, "Towards stable and efficient training of verifiably
    robust neural networks", ICLR, arXiv 1906.06316.

    Gowal et al. 2018, "On the effectiveness of interval bound propagation for training verifiably robust models", arXiv
    1810.12715.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.methods import CROWNIBP
    >>> from atent.models import build
    >>> x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    >>> net = build("digits_cnn", shape=(1, 8, 8))
    >>> metrics = CROWNIBP(Threat("linf", 0.1)).backward(net, x, y)  # leaves the gradient in .grad
    >>> sorted(metrics)
    ['clean', 'loss', 'verified']
    """

    threat: Threat
    """Ball to verify at the end of the training: linf or l2."""
    eps_start: float = 0.05
    """Share of the training before eps grows, in [0, 1]."""
    eps_end: float = 0.3
    """Share of the training at which eps reaches its full value, at least eps_start; if equal, eps jumps."""
    eps_growth: Literal["linear", "smoothed"] = "linear"
    """How eps grows: linearly, or as the fourth power of the share of the growth for its first quarter and linearly
    after, without a kink (smoothed: the authors' CIFAR-10 runs)."""
    kappa_start: float = 1.0
    """Weight of the clean cross-entropy when eps begins to grow, in [0, 1]; while eps is 0 it is the only loss."""
    kappa_end: float = 0.5
    """Weight of the clean cross-entropy from eps_end on; published: 0 and 0.5."""
    beta_start: float = 1.0
    """Share of the linear bound when eps begins to grow, in [0, 1]."""
    beta_end: float = 0.0
    """Share of the linear bound from eps_end on; published: 0, and 1 for CIFAR-10 at 2/255."""

    def __post_init__(self) -> None:
        for name in ("eps_start", "eps_end", "kappa_start", "kappa_end", "beta_start", "beta_end"):
            check_number(name, getattr(self, name), 0, 1)
        if self.eps_start > self.eps_end:
            raise ValueError(f"eps_end must be at least eps_start {self.eps_start:g}, got {self.eps_end:g}")
        check_budget(self.threat)
        grows = ("set eps_end above eps_start", self.eps_start < self.eps_end)
        report_idle(self, "CROWNIBP.", [(name, *grows) for name in ("eps_growth", "kappa_start", "beta_start")])

    def schedule(self, progress: float) -> tuple[float, float, float]:
        """The factor of eps, kappa and beta at ``progress``."""
        way = ramp(progress, self.eps_start, self.eps_end)
        if self.eps_growth == "smoothed":
            way = smoothed(way)
        kappa = self.kappa_start + way * (self.kappa_end - self.kappa_start)
        return way, kappa, self.beta_start + way * (self.beta_end - self.beta_start)

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        factor, kappa, beta = self.schedule(progress)
        threat = self.threat.scaled(factor)

        def bound(graph: Graph) -> Tensor:
            linear = margins(graph, x, y, threat, "crown-ibp", check=False, rounding=False) if beta > 0 else None
            if linear is not None and beta == 1:
                return linear
            intervals = margins(graph, x, y, threat, "ibp", check=False, rounding=False)
            return intervals if linear is None else beta * linear + (1 - beta) * intervals

        return mixed_loss(model, x, y, kappa, bound if float(threat.eps) > 0 else None)


def smoothed(way: float, middle: float = 0.25, power: float = 4.0) -> float:
    """A growth from 0 to 1 that begins flat: c way^power up to ``middle``, then linear, with a continuous slope.

    Value and slope agree at ``middle``: c (middle^power + power middle^(power - 1) (1 - middle)) = 1.
    """
    c = 1.0 / (middle**power + power * middle ** (power - 1) * (1 - middle))
    grown: float = c * way**power if way < middle else 1.0 - c * power * middle ** (power - 1) * (1.0 - way)
    return grown
