"""SAPF: a sparse attack that factorises the perturbation into magnitudes and a mask."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor

from atent.attacks.base import Attack, attack
from atent.attacks.oracle import Oracle
from atent.attacks.regions import grid, superpixels, visibility
from atent.attacks.smallest import beyond, keep_smaller, next_weight
from atent.attacks.sparse import counts
from atent.checks import check_number
from atent.fields import LARGEST
from atent.geometry.blocks import largest
from atent.messages import report_idle
from atent.rng import Streams
from atent.threat import Threat, l2_norm, per_sample

# Largest weight of the loss.
_MOST = 100.0
# Penalties of the constraints (box, sphere, regions, count): initial and largest values; they grow by 1 % per step.
_RHO = ((5e-3, 20.0), (5e-3, 20.0), (5e-3, 100.0), (1e-4, 1e-2))
# Bisection steps between x and a success, which a step of the descent may overshoot.
_HALVINGS = 12
# Largest step size: larger steps overflow float32.
_STEP = 1e6


class _Problem(NamedTuple):
    """The data of one descent for n samples: all tensors have n rows."""

    x: Tensor
    y: Tensor
    k: Tensor
    weight: Tensor
    """Weight of the loss, (n,)."""
    visible: Tensor | None
    """Weight of the change of each unit, (n, u); None: 1."""
    regions: Tensor | None
    """Index of the region of each unit, int64 (n, u); None: no regions."""

    def take(self, rows: Tensor) -> _Problem:
        return _Problem(*(None if t is None else t[rows] for t in self))  # type: ignore[arg-type]


@attack
@dataclass(frozen=True)
class SAPF(Attack):
    """The smallest l2 perturbation of at most k elements or pixels, by perturbation factorisation (SAPF).

    The perturbation is e * G, magnitudes times a mask. Minimises ||e * G * W||_2^2 + c max(0, z_y - max other logit +
    confidence) + region_weight sum_B ||G_B||_2 over e and binary G with k ones. G is binary where it lies both in the
    box [0, 1] and on the sphere ||G - 1/2||^2 = u / 4; each constraint has its own ADMM variable. From e = 0 and G = 1,
    ``steps`` gradient steps update e, as many update G (and both again in each further round); then G is rounded to
    its k largest entries and e takes ``final_steps`` more. Step sizes decay by a tenth every 50 steps, down to 1e-3.

    This is repeated for ``search_steps`` weights c: ten times the last one, at most 100, until a success, then the
    midpoint of the largest failure and the smallest success; a weight without a success at G = 1 is a failure. The
    smallest success is returned; x where the network misclassifies it, and without a success the last point. The
    attack is deterministic.

    Deviations from the authors' code: G is rounded to its k largest entries, so that at most k units change, in place
    of those above 1/2; the smallest success is returned, not the last; G is not updated for a weight without a success
    at G = 1; a step of G is no longer than its curvature allows; step sizes and penalties begin again in every descent
    (there they continue from round to round, so that the last steps are of about 1e-3); 12 bisection steps shorten each
    success towards x; samples are batched, each with its own c. Magnitudes are in widths of the box. ``Threat("l0", k,
    group="pixel")`` shares G among the channels of a pixel.

    References
    ----------
    Fan, Wu, Li, Zhang, Li, Li and Yang 2020, "Sparse adversarial attack via perturbation factorization", ECCV.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import SAPF
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> outcome = SAPF(Threat("l0", 4), steps=5, final_steps=5, search_steps=2).run(model, x, y)
    >>> bool((outcome.norm <= 4).all())
    True
    """

    aims: ClassVar[bool] = True
    norms: ClassVar[tuple[str, ...]] = ("l0",)

    threat: Threat
    """l0 only; at most eps units change."""
    steps: int = 2000
    """Steps of the magnitudes, and as many of the mask, per round."""
    rounds: int = 1
    """Number of rounds of both."""
    final_steps: int = 1000
    """Steps of the magnitudes with the mask fixed."""
    search_steps: int = 6
    """Number of weights c."""
    step_size: float = 0.1
    """First step size of both descents; above 0, at most 1e6."""
    initial_const: float = 1e-3
    """The first c, in squared widths of the box per logit; above 0, at most 100."""
    confidence: float = 0.0
    """Margin of logits by which the result must be misclassified."""
    regions: Literal["none", "grid", "superpixels"] = "none"
    """Groups of the group sparsity: none, grid (squares of `region_side`) or superpixels (SLIC, needs scikit-image)."""
    region_weight: float = 1e-3
    """Weight of the group sparsity, at least 0; no effect with regions none."""
    region_side: int = 4
    """Side of a square of the grid, in pixels."""
    visibility: bool = False
    """Weight changes by 1 / (local standard deviation + 1e-4), scaled to [0, 1], to favour regions that vary; of the
    mean channel, in the authors' code of each channel."""

    def __post_init__(self) -> None:
        for name in ("steps", "rounds", "final_steps", "search_steps", "region_side"):
            check_number(name, getattr(self, name), 1, whole=True)
        check_number("step_size", self.step_size, 0, above=True)
        if self.step_size > _STEP:
            raise ValueError(f"step_size must be at most {_STEP:g}, got {self.step_size:g}: the weights leave float32")
        check_number("initial_const", self.initial_const, 0, _MOST, above=True)
        check_number("confidence", self.confidence, 0)
        if self.threat.width**2 > LARGEST:
            low, high = self.threat.span
            raise ValueError(
                f"SAPF weighs squared widths of the box, and that of [{low:g}, {high:g}] leaves float32: give the range"
                " of the data"
            )
        check_number("region_weight", self.region_weight, 0)
        report_idle(self, "SAPF.", [
            ("region_weight", "set regions to grid or superpixels", self.regions != "none"),
            ("region_side", "set regions to grid", self.regions == "grid"),
        ])  # fmt: skip

    @property
    def saturates(self) -> bool:
        return False

    @property
    def passes(self) -> int:
        return self.search_steps * (2 * (2 * self.rounds * self.steps + self.final_steps) + 1 + _HALVINGS) + 2

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        logits = oracle.logits(x, y)
        open_ = (~oracle.fooled(logits, y)).nonzero().squeeze(1)
        if not len(open_):
            return x
        threat, part = self.threat.take(oracle.rows).take(open_), oracle.doubting(logits, y).take(open_)
        return x.index_copy(0, open_, self._weights(threat, part, x[open_], y[open_]))

    def _weights(self, threat: Threat, oracle: Oracle, x: Tensor, y: Tensor) -> Tensor:
        """The smallest success over all weights; the last point if there is none."""
        c = torch.full(y.shape, self.initial_const, dtype=x.dtype, device=x.device)
        lower, upper = torch.zeros_like(c), torch.full_like(c, math.inf)
        best, smallest, last = x, torch.full_like(c, math.inf), x
        seen = visibility(threat, x) if self.visibility else None
        regions = self._regions(threat, x)
        for _ in range(self.search_steps):
            problem = _Problem(x, y, counts(threat, x), c, seen, regions)
            last, z, norm = self._factorise(threat, oracle, problem)
            success = norm.isfinite()
            best, smallest = keep_smaller(best, smallest, z, norm, success)
            c, lower, upper = next_weight(c, lower, upper, success, _MOST)
        return torch.where(per_sample(smallest.isfinite(), x), best, last)

    def _regions(self, threat: Threat, x: Tensor) -> Tensor | None:
        if self.regions == "none" or self.region_weight == 0:
            return None
        return grid(threat, x, self.region_side) if self.regions == "grid" else superpixels(threat, x)

    def _factorise(self, threat: Threat, oracle: Oracle, problem: _Problem) -> tuple[Tensor, Tensor, Tensor]:
        """For one weight per sample: the last point, the smallest success, and its norm (inf without a success)."""
        blocks = threat.blocks(problem.x.shape[1:])
        e, places = torch.zeros_like(problem.x), problem.x.new_ones(len(problem.x), blocks.count)
        e, met = self._dense(threat, oracle, problem, e, places)
        last = self._sparse_point(threat, problem, e, blocks.pool(e**2))
        best, smallest = problem.x, torch.full_like(problem.weight, math.inf)
        # A sparse mask is harder: a weight that fails with the full mask is too small.
        rows = met.nonzero().squeeze(1)
        if len(rows):
            some = self._few(threat.take(rows), oracle.take(rows), problem.take(rows), e[rows], places[rows])
            last, best = last.index_copy(0, rows, some[0]), best.index_copy(0, rows, some[1])
            smallest = smallest.index_copy(0, rows, some[2])
        return last, best, smallest

    def _few(
        self, threat: Threat, oracle: Oracle, problem: _Problem, e: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `_factorise`, from the magnitudes of the full mask."""
        for round_ in range(self.rounds):
            if round_:
                e, _ = self._dense(threat, oracle, problem, e, places)
            places = self._places(threat, oracle, problem, e, places)
        places = largest(places.abs(), problem.k).to(e.dtype)
        best, smallest = problem.x, torch.full_like(problem.weight, math.inf)
        for step in range(self.final_steps):
            e, z, logits = self._magnitudes(threat, oracle, problem, e, places, step)
            norm = self._size(threat, problem, z)
            best, smallest = keep_smaller(best, smallest, z, norm, self._fooled(oracle, logits, problem.y))
        last = threat.clamp(self._point(threat, problem.x, e, places))
        best, smallest = self._keep_last(threat, oracle, problem, last, best, smallest)
        return last, *self._shorten(threat, oracle, problem, best, smallest)

    def _dense(
        self, threat: Threat, oracle: Oracle, problem: _Problem, e: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The magnitudes after `steps` steps, and bool (n,): whether any iterate was a success."""
        met = torch.zeros_like(problem.y, dtype=torch.bool)
        for step in range(self.steps):
            e, _, logits = self._magnitudes(threat, oracle, problem, e, places, step)
            met |= self._fooled(oracle, logits, problem.y)
        return e, met

    def _sparse_point(self, threat: Threat, problem: _Problem, e: Tensor, scores: Tensor) -> Tensor:
        return threat.clamp(self._point(threat, problem.x, e, largest(scores, problem.k).to(e.dtype)))

    def _keep_last(
        self, threat: Threat, oracle: Oracle, problem: _Problem, last: Tensor, best: Tensor, smallest: Tensor
    ) -> tuple[Tensor, Tensor]:
        fooled = self._fooled(oracle, oracle.logits(last, problem.y), problem.y)
        return keep_smaller(best, smallest, last, self._size(threat, problem, last), fooled)

    def _shorten(
        self, threat: Threat, oracle: Oracle, problem: _Problem, best: Tensor, smallest: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The successes, moved towards x as far as they remain successful."""
        change, found = best - problem.x, smallest.isfinite()
        short, long = torch.zeros_like(smallest), torch.ones_like(smallest)
        for _ in range(_HALVINGS):
            middle = (short + long) / 2
            z = threat.clamp(problem.x + per_sample(middle, change) * change)
            success = self._fooled(oracle, oracle.logits(z, problem.y), problem.y) & found
            best = torch.where(per_sample(success, z), z, best)
            short, long = torch.where(success, short, middle), torch.where(success, middle, long)
        return best, torch.where(found, self._size(threat, problem, best), smallest)

    def _fooled(self, oracle: Oracle, logits: Tensor, y: Tensor) -> Tensor:
        return beyond(oracle, logits, y, self.confidence)

    def _size(self, threat: Threat, problem: _Problem, z: Tensor) -> Tensor:
        change = z - problem.x
        return l2_norm(change if problem.visible is None else change * _spread(threat, problem.visible, change))

    def _point(self, threat: Threat, x: Tensor, e: Tensor, places: Tensor) -> Tensor:
        return x + threat.width * e * _spread(threat, places, x)

    def _slope(
        self, threat: Threat, oracle: Oracle, problem: _Problem, e: Tensor, places: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Gradient of the weighted loss with respect to e * G, the evaluated point, and its logits."""
        point = self._point(threat, problem.x, e, places)
        z = threat.clamp(point)

        def hinge(logits: Tensor, y: Tensor) -> Tensor:
            return (self.confidence - oracle.margin(logits, y)).clamp_min(0)

        grad, _, logits = oracle.gradient(z, problem.y, hinge)
        # Where the box clips the point, a longer perturbation has no effect.
        slope = torch.where(z == point, grad, 0) * threat.width
        return per_sample(problem.weight, slope) * slope, z, logits

    def _magnitudes(
        self, threat: Threat, oracle: Oracle, problem: _Problem, e: Tensor, places: Tensor, step: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The magnitudes after a step, and the point before the step with its logits."""
        slope, z, logits = self._slope(threat, oracle, problem, e, places)
        seen = places if problem.visible is None else places * problem.visible
        cost, open_ = _spread(threat, seen**2, e), _spread(threat, places, e)
        return e - self._rate(step) * (2 * e * cost + slope * open_), z, logits

    def _rate(self, step: int) -> float:
        return max(self.step_size * 0.9 ** (step // 50), min(1e-3, self.step_size))

    def _places(self, threat: Threat, oracle: Oracle, problem: _Problem, e: Tensor, places: Tensor) -> Tensor:
        """The mask after `steps` steps of ADMM."""
        box, sphere, region = (torch.zeros_like(places) for _ in range(3))
        blocks, k = threat.blocks(e.shape[1:]), problem.k.to(e.dtype)[:, None]
        total = torch.zeros_like(k)
        cost = 2 * blocks.pool(e**2) * (1 if problem.visible is None else problem.visible**2)
        rho = [first for first, _ in _RHO]
        for step in range(self.steps):
            slope, *_ = self._slope(threat, oracle, problem, e, places)
            inside = onto_box(places + box / rho[0])
            round_ = onto_sphere(places + sphere / rho[1])
            grouped = places
            if problem.regions is not None:
                grouped = shrink(places + region / rho[2], problem.regions, self.region_weight / rho[2])
            excess = places.sum(1, keepdim=True) - k
            grad = (
                places * cost + blocks.pool(slope * e) + box + sphere + region + total + rho[0] * (places - inside)
                + rho[1] * (places - round_) + rho[2] * (places - grouped) + rho[3] * excess
            )  # fmt: skip
            curvature = cost.amax(1, keepdim=True) + sum(rho[:3]) + rho[3] * places.shape[1]
            places = places - curvature.reciprocal().clamp_max(self._rate(step)) * grad
            box, sphere = box + rho[0] * (places - inside), sphere + rho[1] * (places - round_)
            if problem.regions is not None:
                region = region + rho[2] * (places - grouped)
            total = total + rho[3] * (places.sum(1, keepdim=True) - k)
            rho = [min(1.01 * r, most) for r, (_, most) in zip(rho, _RHO)]
        return places


def _spread(threat: Threat, values: Tensor, like: Tensor) -> Tensor:
    """Values (n, u) per unit, expanded to their elements in a shape that broadcasts over ``like``."""
    return threat.blocks(like.shape[1:]).spread(values)


def onto_box(v: Tensor) -> Tensor:
    """The nearest point of [0, 1]^u."""
    return v.clamp(0, 1)


def onto_sphere(v: Tensor) -> Tensor:
    """The nearest point of the sphere ||v - 1/2||^2 = u / 4, the vector of ones if v is its centre. Shape (n, u)."""
    away = v - 0.5
    norm = torch.linalg.vector_norm(away, dim=1, keepdim=True)
    away, norm = torch.where(norm > 0, away, 1.0), torch.where(norm > 0, norm, math.sqrt(v.shape[1]))
    return 0.5 + 0.5 * math.sqrt(v.shape[1]) * away / norm


def shrink(v: Tensor, regions: Tensor, by: float) -> Tensor:
    """The minimiser of by * sum_B ||g_B|| + ||g - v||^2 / 2: group soft-thresholding by ``by``. Shape (n, u)."""
    # The number of regions is at most the number of entries.
    norm = torch.zeros_like(v).scatter_add(1, regions, v**2).sqrt()
    keep = torch.where(norm > by, 1 - by / norm.clamp_min(torch.finfo(v.dtype).tiny), 0.0)
    return v * keep.gather(1, regions)
