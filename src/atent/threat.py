"""Threat models: the perturbations that an adversary may apply, and the geometry that every attack shares."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, cast, get_args

import torch
from torch import Tensor

from atent.docstrings import Documented
from atent.fields import as_norm, mistyped, shown
from atent.geometry import l0, l1, patch
from atent.geometry.blocks import Blocks
from atent.geometry.l0 import Group
from atent.geometry.patch import Inner
from atent.geometry.samples import l2_norm, per_sample, unit
from atent.geometry.values import Box, Eps, Radii, as_box, as_eps, check_counts, radius, rounding

__all__ = [
    "COUNTS", "EXTRA", "NORMS", "Box", "Eps", "Group", "Inner", "Norm", "Radii", "Threat", "l2_norm", "per_sample",
    "radius", "unit",
]  # fmt: skip

Norm = Literal["linf", "l2", "l1", "l0", "patch"]
NORMS: tuple[str, ...] = get_args(Norm)
COUNTS = ("l0", "patch")
"""The norms that count changes: their eps is a number of elements, pixels or patches."""
EXTRA = ("group", "side", "inner", "inner_eps")
"""The fields of a threat that apply to l0 and patch only."""
# Their defaults.
_ELSEWHERE = ("element", None, "free", None)


@dataclass(frozen=True)
class Threat(metaclass=Documented):
    """The ball ``{x' : ||x' - x|| <= eps}`` in a norm, intersected with the box of legal inputs.

    In l0 at most eps = k elements of a sample differ, or with ``group="pixel"`` k pixels, whose channels change
    together. ``Threat("patch", K, side=p)`` changes at most K squares of p x p pixels of the grid that tiles the image,
    freely, or with ``inner="linf"`` by at most ``inner_eps`` in each element.

    Inputs are in pixel units, that is in ``box`` (images: [0, 1]); a model normalises inside itself.
    A tensor or a sequence as ``eps`` gives each sample its own radius, in the order of the attacked batch; it is stored
    as a tuple of numbers, and `take` selects those of some samples. A ``box`` of two sequences gives each channel (the
    first dimension of a sample) its own bounds: ``((0.0, -1.0), (1.0, 1.0))`` for two channels.

    Raises
    ------
    ValueError
        For an unknown norm, an ``eps`` that is negative or not a number (l0, patch: not an integer of at least 1),
        an empty box, or a field that belongs to another norm.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> threat = Threat("linf", "8/255")
    >>> x = torch.full((2, 3, 4, 4), 0.5)
    >>> x_adv = threat.project(x + 0.1, x)
    >>> threat.contains(x_adv, x)
    tensor([True, True])
    >>> Threat("l0", 6, group="pixel").distance(x_adv, x)
    tensor([16., 16.], dtype=torch.float64)
    """

    INFINITE: ClassVar[tuple[str, ...]] = ("eps",)

    norm: Norm
    """Norm of the perturbation: linf, l2, l1, l0 or patch, in any case; it is stored in lower case."""
    eps: Eps
    """Radius in pixel units, a number or a fraction such as 8/255; l0, patch: the largest number of elements, pixels or
    patches that change. "inf": no limit, for minimum-norm attacks."""
    box: Box = (0.0, 1.0)
    """Smallest and largest legal value of an input coordinate, or a sequence of each with one value per channel."""
    allow_large_eps: bool = field(default=False, compare=False, repr=False)
    """Accept an eps that covers the entire box, which is otherwise refused where it is used: see `check_eps`."""
    group: Group = "element"
    """l0: the unit that is counted, element, or pixel with all its channels."""
    side: int | None = None
    """patch: side of a patch in pixels; it divides both sides of the image."""
    inner: Inner = "free"
    """patch: the constraint inside a patch: free (any value of the box) or linf."""
    inner_eps: float | str | None = None
    """patch with inner linf: largest change of an element in pixel units."""

    def __post_init__(self) -> None:
        # RobustBench writes Linf and L2.
        object.__setattr__(self, "norm", as_norm(self.norm, Norm))
        object.__setattr__(self, "inner", as_norm(self.inner, Inner))
        if not isinstance(self.norm, str) or self.norm not in NORMS:
            hint, norm = "", as_norm(self.eps, Norm)
            if isinstance(norm, str) and norm in NORMS:
                hint = f"did you mean Threat({norm!r}, {shown(self.norm)})? "
            raise ValueError(f"unknown norm {shown(self.norm)}: {hint}use one of {', '.join(NORMS)}")
        # The other fields have parsers of their own.
        wrong = mistyped(Threat, {name: getattr(self, name) for name in ("allow_large_eps", *EXTRA[:3])})
        if wrong:
            raise ValueError(wrong)
        if isinstance(self.eps, bool):
            raise ValueError(f"eps must be a number, got {self.eps}")
        if self.norm in COUNTS and isinstance(self.eps, int | float) and self.eps < 0:
            check_counts(self.norm, self.eps)
        if self.inner_eps is not None:
            object.__setattr__(self, "inner_eps", radius(self.inner_eps, "inner_eps"))
        object.__setattr__(self, "eps", as_eps(self.eps))
        object.__setattr__(self, "box", as_box(self.box))
        if self.norm in COUNTS or (self.group, self.side, self.inner, self.inner_eps) != _ELSEWHERE:
            self._check_fields()

    def _check_fields(self) -> None:
        """ValueError for a count that is not an integer, and for fields that contradict each other."""
        if self.norm in COUNTS:
            check_counts(self.norm, cast("float | Radii", self.eps))
        for name, norm, unset in zip(EXTRA, ("l0", *["patch"] * 3), _ELSEWHERE):
            if self.norm != norm and getattr(self, name) != unset:
                got = shown(getattr(self, name))
                raise ValueError(f"{name} is for a {norm} threat, got {name} {got} with {self.norm}")
        if self.norm != "patch":
            return
        if self.side is None or self.side < 1:
            raise ValueError(
                f"a patch threat needs side, its width in pixels, an integer of at least 1, got {self.side!r}"
            )
        if self.inner == "free" and self.inner_eps is not None:
            raise ValueError(f"inner_eps {self.inner_eps} needs inner 'linf', got inner 'free'")
        if self.inner == "linf" and self.inner_eps is None:
            raise ValueError("inner 'linf' needs inner_eps, the largest change of an element, such as 16/255")

    def __repr__(self) -> str:
        shown = {"norm": self.norm, "eps": self.eps, "box": self.box}
        fields = ", ".join(f"{name}={value!r}" for name, value in {**shown, **self.extra()}.items())
        return f"Threat({fields})"

    def extra(self) -> dict[str, Any]:
        """The fields of `EXTRA` that are set."""
        if self.norm not in COUNTS:
            return {}
        return {k: getattr(self, k) for k, unset in zip(EXTRA, _ELSEWHERE) if getattr(self, k) != unset}

    @cached_property
    def width(self) -> float:
        """Width of the box, that of the widest channel: the unit of lengths that are not in pixel units."""
        low, high = self.box
        return float(high - low if type(low) is float else max(b - a for a, b in zip(low, high)))

    @property
    def leap(self) -> float:
        """The step of gradient attacks in l0 and for patches, 10 widths of the box: see `ascent`."""
        return 10 * self.width

    @property
    def span(self) -> tuple[float, float]:
        """The smallest and the largest legal value of all channels."""
        low, high = self.box
        return (low, high) if type(low) is float else (min(low), max(high))

    def edges(self, x: Tensor, of: Callable[[Any, Any], tuple[Any, Any]] = lambda low, high: (low, high)) -> Any:
        """``of(low, high)`` as numbers, or for a box per channel as tensors in the dtype of ``x`` that broadcast to it.

        ``of`` computes in float64. ValueError if the number of channels of ``x`` (n, c, ...) differs from the box's.
        """
        if type(self.box[0]) is float:
            return of(*self.box)
        self.check_channels(x.shape[1:])
        shape = (1, -1, *[1] * (x.dim() - 2)) if x.shape[1] == len(self.box[0]) else (1, *x.shape[1:])
        return tuple(v.to(x).view(shape) for v in of(*(torch.tensor(v, dtype=torch.float64) for v in self.box)))

    def check_channels(self, shape: Sequence[int]) -> None:
        """ValueError if samples of ``shape`` do not have the number of channels of a box per channel.

        A box with one entry per element of a sample fits too, so that vectors may be viewed as images.
        """
        if type(self.box[0]) is not float and len(self.box[0]) not in (shape[0], math.prod(shape)):
            raise ValueError(
                f"the threat's box is for {len(self.box[0])} channels, got inputs of {shape[0]}: give one pair for all,"
                f" or {shape[0]} smallest and {shape[0]} largest values"
            )

    def blocks(self, shape: Sequence[int]) -> Blocks:
        """The units that l0 and patch count in samples of ``shape`` (no batch dimension); ValueError if none fit."""
        return l0.blocks(shape, self.group) if self.norm == "l0" else patch.blocks(shape, cast(int, self.side))

    def scaled(self, factor: float) -> Threat:
        """The same threat with ``factor * eps``; a count is rounded down and is at least 1."""

        def scale(eps: float) -> float:
            made = eps * factor
            # 100 * 0.29 is a little less than 29.
            return max(1.0, math.floor(made + 1e-9)) if self.norm in COUNTS and math.isfinite(made) else made

        if isinstance(self.eps, Radii):
            return replace(self, eps=Radii(scale(eps) for eps in self.eps))
        return replace(self, eps=scale(float(self.eps)))

    def take(self, index: Tensor | None) -> Threat:
        """The threat for the samples at ``index``: the same object if all share one eps, or for None."""
        if index is None or not isinstance(self.eps, Radii):
            return self
        return replace(self, eps=Radii(self.eps.tensor[index.cpu()].tolist()))

    def radii(self, like: Tensor, of: Callable[[Any], Any] | None = None) -> Any:
        """eps, or ``of(eps)``, as a number, or for an eps per sample as a tensor (n,) of the dtype of ``like``."""
        if type(self.eps) is float:
            return self.eps if of is None else of(self.eps)
        eps = cast(Radii, self.eps).tensor
        return (eps if of is None else of(eps)).to(like)

    def lengths(self, x: Tensor, of: Callable[[Any], Any] | None = None) -> Any:
        """As `radii`, with tensors of shape (n, 1, ...), which broadcasts over the samples of ``x``."""
        if type(self.eps) is float:
            return self.eps if of is None else of(self.eps)
        return per_sample(self.radii(x, of), x)

    def check_samples(self, n: int) -> None:
        """ValueError if the threat has an eps per sample, for another number of samples than ``n``."""
        if isinstance(self.eps, Radii) and len(self.eps) != n:
            raise ValueError(f"the threat has an eps for each of {len(self.eps)} samples, got {n} samples: give {n}")

    def plain(self) -> dict[str, Any]:
        """The fields as plain values, from which `Threat` can be rebuilt: norm, eps, box and those that are set."""
        allowed = {"allow_large_eps": True} if self.allow_large_eps else {}
        return {"norm": self.norm, "eps": self.eps, "box": self.box, **allowed, **self.extra()}

    def check_eps(self, shape: Sequence[int]) -> None:
        """ValueError, in one line, for an eps that covers the entire box of samples of ``shape`` (no batch dimension).

        That is a linf eps of at least the box width, an l2 or l1 eps of at least the box diagonal in that norm, or as
        many elements, pixels or free patches as a sample has: any sample may become any other, usually because 8 was
        written for 8/255. An infinite eps, which only minimum-norm attacks accept, and threats with ``allow_large_eps``
        pass. For l0 and patch also ValueError for samples without such pixels or patches, and for more patches than a
        sample has.
        """
        if type(self.box[0]) is not float:
            self.check_channels(shape)
        eps = max(self.eps, default=0.0) if isinstance(self.eps, Radii) else float(self.eps)
        if self.norm in COUNTS:
            self._check_count(eps, self.blocks(shape).count)
            return
        name, limit = "width", self.width
        power = {"l2": 2, "l1": 1}.get(self.norm)
        if power and type(self.box[0]) is float:
            name, limit = "diagonal", math.prod(shape) ** (1 / power) * limit
        elif power:
            lengths = [(b - a) ** power for a, b in zip(*self.box)]
            name, limit = "diagonal", (math.prod(shape) / len(lengths) * math.fsum(lengths)) ** (1 / power)
        # The caller may have computed the diagonal in another order of operations.
        if self.allow_large_eps or math.isinf(eps) or eps < limit * (1 - 1e-12):
            return
        levels = eps * self.width
        plain = self.norm == "l1" or levels / 255 >= limit
        guess = "give a smaller one" if plain else f"did you mean {levels:g}/255?"
        raise ValueError(
            f"{self.norm} eps must be below the box {name} {limit:g}, got {eps:g}: {guess}"
            " (--allow-large-eps to insist; in Python Threat(..., allow_large_eps=True))"
        )

    def _check_count(self, eps: float, count: int) -> None:
        """ValueError, in one line, for a count that covers samples of ``count`` elements, pixels or patches."""
        bounded = self.norm == "patch" and self.inner == "linf"
        if self.allow_large_eps or math.isinf(eps) or (eps <= count if bounded else eps < count):
            if bounded and not self.allow_large_eps and float(cast(float, self.inner_eps)) >= self.width:
                raise ValueError(
                    f"inner_eps must be below the box width {self.width:g}, got {self.inner_eps}: give a smaller one,"
                    " or inner 'free'"
                )
            return
        raise ValueError(
            f"{self.norm} eps must be {'at most' if bounded else 'below'} the number of {self.units} of a sample,"
            f" {count}, got {eps:g}: give a smaller one (--allow-large-eps to insist; in Python Threat(...,"
            " allow_large_eps=True))"
        )

    @property
    def units(self) -> str:
        """The unit that eps counts: elements, pixels or patches; "" for linf, l2 and l1."""
        return {"l0": f"{self.group}s", "patch": "patches"}.get(self.norm, "")

    def clamp(self, x: Tensor) -> Tensor:
        """Nearest point of the box."""
        return x.clamp(*(self.box if type(self.box[0]) is float else self.edges(x)))

    def project_ball(self, x_adv: Tensor, x: Tensor, eps: Tensor | None = None) -> Tensor:
        """Nearest point of the ball around ``x``, ignoring the box; ``eps`` (n,) gives each sample its own radius."""
        if self.norm == "l1":
            return self._project_l1(x_adv, x, eps, boxed=False)
        if self.norm in COUNTS:
            return self._project_count(x_adv, x, eps, boxed=False)
        d = x_adv - x
        if self.norm == "linf":
            own = self.eps if type(self.eps) is float else self.lengths(d)
            limit: Any = own if eps is None else per_sample(eps.to(d.dtype), x)
            return x + d.clamp(-limit, limit)
        # The floor keeps 0/0 away: a zero perturbation stays zero, and eps = 0 gives x bit for bit.
        norm = l2_norm(d).clamp_min(torch.finfo(d.dtype).tiny)
        # torch divides a number by a tensor as reciprocal times number; so do radii per sample, for the same bits.
        shrink = (self.radii(d) * norm.reciprocal() if eps is None else eps.to(d.dtype) / norm).clamp_max(1.0)
        return x + d * per_sample(shrink, d)

    def project(self, x_adv: Tensor, x: Tensor, eps: Tensor | None = None) -> Tensor:
        """Projection of ``x_adv`` onto the intersection of ball and box, for ``x`` in the box; shapes (n, ...).

        linf, l1, l0, patch: the nearest point of the intersection. l2: the nearest point of the ball, then that of the
        box, which stays in the ball.
        """
        if self.norm == "l1":
            return self._project_l1(x_adv, x, eps, boxed=True)
        if self.norm in COUNTS:
            return self._project_count(x_adv, x, eps, boxed=True)
        return self.clamp(self.project_ball(x_adv, x, eps))

    def _project_l1(self, z: Tensor, x: Tensor, eps: Tensor | None, *, boxed: bool) -> Tensor:
        # In float64, so that only the rounding of the result's coordinates affects its distance.
        wide = x.double()
        v = z.double() - wide
        room = None
        if boxed:
            low, high = self.edges(wide)
            room = torch.where(v < 0, wide - low, high - wide).clamp_min(0).flatten(1)
        limit = self.radii(wide) if eps is None else eps.to(wide)
        d = l1.project(v.flatten(1), room, limit[:, None] if isinstance(limit, Tensor) else limit).view_as(x)
        near = torch.where(d == 0, x, (wide + d).to(x.dtype))
        return self.clamp(near) if boxed else near

    def _project_count(self, z: Tensor, x: Tensor, eps: Tensor | None, *, boxed: bool) -> Tensor:
        inside = z
        if self.inner_eps is not None:
            limit = float(self.inner_eps)
            inside = x + (z - x).clamp(-limit, limit)
        inside = self.clamp(inside) if boxed else inside
        return self.blocks(x.shape[1:]).project(z, inside, x, self.radii(x.double()) if eps is None else eps)

    def step(self, z: Tensor, grad: Tensor, length: Any) -> Tensor:
        """``z`` moved along the steepest ascent by ``length``, a number or (n, 1, ...); not projected.

        ``z + length * ascent(grad)``. In l1, where a single coordinate would leave the box, the steepest ascent inside
        the box: coordinates move to its faces in order of decreasing gradient, until the length is used up.
        """
        if self.norm != "l1":
            far: Tensor = z + length * (grad.sign() if self.norm == "linf" else self.ascent(grad))
            return far
        low, high = self.edges(z)
        room = torch.where(grad > 0, high - z, z - low).clamp_min(0).flatten(1)
        budget = length.flatten(1) if isinstance(length, Tensor) else room.new_full((len(z), 1), length)
        size = grad.flatten(1).abs()
        return z + grad.sign() * l1.filled(size, torch.where(size > 0, room, 0), budget).view_as(z)

    def ascent(self, grad: Tensor) -> Tensor:
        """Direction of steepest ascent of unit length for gradients (n, ...); a zero gradient gives zero, not NaN.

        linf: the sign. l2: g / ||g||_2. l1: the sign of the largest coordinate, all others 0. l0, patch: g divided by
        its largest entry, since a count does not bound a length: the magnitudes decide which elements or patches
        `project` keeps. After a long step these are the ones with the largest ``|g_i|`` times the distance to the face
        of the box, the best ones to first order.
        """
        if self.norm == "linf":
            return grad.sign()
        if self.norm == "l1":
            return l1.ascent(grad)
        return unit(grad, math.inf if self.norm in COUNTS else 2)

    def distance(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Norm of each perturbation, computed in float64, shape (n,); l0, patch: the number of units that differ."""
        if self.norm in COUNTS:
            return self.blocks(x.shape[1:]).changed(x_adv, x)
        d = (x_adv.double() - x.double()).flatten(1)
        size: Tensor = torch.linalg.vector_norm(d, {"linf": math.inf, "l2": 2, "l1": 1}[self.norm], dim=1)
        return size

    def contains(self, x_adv: Tensor, x: Tensor) -> Tensor:
        """Per sample: whether it is in the box and within ``eps`` up to float32 rounding, shape (n,), bool.

        Tolerance, computed in float64, for a box within [-1, 1]: 6e-8 per pixel (linf), a relative 1e-6 plus 6e-8
        sqrt(dim) (l2), a relative 1e-6 plus 6e-8 for each element that differs (l1), 6e-8 for an element inside a
        patch; none for a count. In a box that does not reach to 1, or beyond it, 6e-8 is multiplied by its largest
        absolute value, or by the sample's, at least 1, and a radius per pixel has a relative 6e-8 too.
        """
        low, high = self.edges(x_adv)
        inside = ((x_adv >= low) & (x_adv <= high)).flatten(1).all(1)
        eps = self.radii(x.double())
        share, pixel = rounding(self.span, x_adv, x)
        limit = eps
        if self.norm == "linf":
            limit = eps * (1 + share) + pixel
        elif self.norm == "l2":
            limit = eps * (1 + 1e-6) + pixel * math.sqrt(x[:1].numel())
        elif self.norm == "l1":
            limit = eps * (1 + 1e-6) + pixel * (x_adv != x).flatten(1).sum(1)
        elif self.inner_eps is not None:
            far = (x_adv.double() - x.double()).flatten(1).abs().amax(1) > float(self.inner_eps) * (1 + share) + pixel
            inside = inside & ~far
        found: Tensor = inside & (self.distance(x_adv, x) <= limit)
        return found
