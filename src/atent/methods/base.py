"""The contract of a training method."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from atent.checks import Settings, as_inputs, as_labels, check_batch, check_number, numbered
from atent.contracts import kind_of
from atent.fields import LARGEST, shown
from atent.guard import explained
from atent.methods.contract import LOSS, check_finite, check_trainable, checked_loss, lacking
from atent.methods.contract import Metrics as Metrics
from atent.methods.contract import State as State
from atent.registry import Registry
from atent.rng import check_rng, fresh
from atent.threat import Box, Threat

if TYPE_CHECKING:
    from atent.data import Data


@dataclass(frozen=True)
class Method(metaclass=Settings):
    """A frozen dataclass of settings with functions; a concrete method overrides what it needs.

    In a custom training loop ``loss, metrics = method(model, x, y)`` is the loss with its graph, and ``metrics =
    method.backward(model, x, y)`` accumulates its gradient, at the least cost in time and memory; both use torch's
    global random numbers if no ``rng`` is given.

    All functions take a batch ``x`` (n, ...) in pixel units and labels ``y`` (n,). ``progress`` runs from 0 to 1 over
    the training; ``rng`` is the batch's own generator; ``ids`` are the samples' indices in the training set; ``state``
    is the result of `init`. Metrics are tensors on the device: a scalar is a mean over the batch, a vector (n,) one
    value per sample (the loop logs its quantiles). With ``rng`` nothing here synchronises with the device.

    ``replays`` is the number of times that the loop passes each batch in succession, with an optimizer step each time.
    ``single_step``: the adversary takes one gradient per batch; such methods may overfit catastrophically, and the loop
    monitors them (`atent.train.watch`). ``divisible``: the loss of a batch is the mean over its samples, so the
    gradients of its parts, each with its share as ``weight``, sum to its gradient; the loop may use micro-batches, and
    several processes may share a batch. ``gathers``: a loss that is not divisible gathers from all processes what
    couples samples (`atent.distributed.gathered`); otherwise each process computes the full batch. ``alike``: prefixes
    of the names in the state whose values every process computes for the full batch; the changes of a step to other
    values are merged after it. ``shardable``: the gradient is computed by ``backward()`` and no weight is read outside
    a forward pass, so the processes may shard the weights (`train.shard`). ``labelled``: the loss classifies; embedding
    regularisation supports no other method. `AWP` supports every method that does not override `backward`: it calls
    `attack_and_descend` and `descend` instead.

    Examples
    --------
    >>> import torch
    >>> from dataclasses import dataclass
    >>> from atent.losses import cross_entropy
    >>> from atent.methods import Method
    >>> from atent.models import build
    >>> @dataclass(frozen=True)
    ... class Noisy(Method):
    ...     sigma: float = 0.1
    ...
    ...     def adversary(self, model, x, y, *, rng, ids=None, progress=1.0, state=None):
    ...         return x + self.sigma * torch.randn(x.shape, generator=rng)
    ...
    ...     def loss(self, model, x, y, aux, *, progress=1.0, state=None):
    ...         return cross_entropy(model(aux), y).mean(), {}
    >>> net = build("digits_cnn", shape=(1, 8, 8))
    >>> sorted(Noisy(0.2).backward(net, torch.rand(8, 1, 8, 8), torch.arange(8)))
    ['loss']
    """

    # Class attributes without annotations are not fields of the dataclasses that inherit them.
    replays = 1
    single_step = False
    divisible = True
    gathers = False
    alike: ClassVar[tuple[str, ...]] = ()
    labelled = True
    shardable = False
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    """The supported norms of threats; any other raises ValueError, in one line, at construction."""

    @classmethod
    def able(cls, norm: str) -> list[str]:
        """The names of the methods with an adversary in ``norm``."""
        return [name for name, kind in METHODS.items() if _has_threat(kind) and norm in kind.norms]

    if TYPE_CHECKING:

        @property
        def threat(self) -> Threat | None:
            """The threat of the training, the first field; None for a method without an adversary."""

    else:

        def __getattr__(self, name: str) -> None:
            # A class attribute would be the default of a subclass's field.
            if name == "threat":
                return None
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def is_one_loss(self) -> bool:
        """Whether a step consists of `adversary` and `loss` alone, so that the method may be called."""
        return type(self).backward is Method.backward

    def init(self, n_train: int, shape: tuple[int, ...], device: torch.device) -> State:
        """Running or per-sample state, saved with the checkpoint; none by default."""
        return {}

    def prepare(self, data: Data) -> State:
        """Further state that depends on the training samples; called once, before the first step of a training that is
        not resumed. None by default."""
        return {}

    def rows(self, state: State, x: Tensor, part: slice) -> State:
        """The state for a part of the batch ``x``; a method with state by position in the batch returns views of these
        positions. By default ``state`` itself."""
        return state

    def adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator,
        ids: Tensor | None = None, progress: float = 1.0, state: State | None = None,
    ) -> Any:  # fmt: skip
        """The adversary's result for `loss`, such as adversarial inputs; the state of the model is restored."""
        return None

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """The scalar to minimise, and metrics."""
        raise TypeError(f"{type(self).__name__} has no loss: define {LOSS}, see atent.methods.Method")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator | None = None, ids: Tensor | None = None,
        progress: float = 1.0, state: State | None = None,
    ) -> tuple[Tensor, Metrics]:  # fmt: skip
        """The scalar to minimise, with its graph, and metrics: `adversary`, then `loss`, in one call.

        For loops that call ``loss.backward()`` themselves. The mode of the model is not changed.

        Raises
        ------
        ValueError
            For a method whose gradient is not that of one loss at the current weights (AWP, Free): use `backward`.
            Without ``rng``, for a batch that is not in the box of the threat, or labels that are not integers from 0.
        """
        if not self.is_one_loss:
            name = type(self).__name__
            raise ValueError(
                f"{name} is not given by one loss at the current weights: call {name}(...).backward(model, x, y)"
            )
        if not (isinstance(rng, torch.Generator) and type(progress) is float):
            x, y, rng, ids = begun(self, model, x, y, rng, ids, progress=progress, state=state)
        with explained(model, x, y):
            aux = self.adversary(model, x, y, rng=rng, ids=ids, progress=progress, state=state)
            return checked_loss(self, self.loss(model, x, y, aux, progress=progress, state=state), x)

    def backward(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator | None = None, ids: Tensor | None = None,
        progress: float = 1.0, weight: float = 1.0, state: State | None = None,
    ) -> Metrics:  # fmt: skip
        """Add ``weight`` times the gradient of the loss to each parameter's ``.grad``.

        Without ``rng`` the adversary uses a generator seeded from torch's global one, and the batch is checked, which
        synchronises with the device. ValueError, in one line, for arguments of another type.
        """
        if not (isinstance(rng, torch.Generator) and type(progress) is type(weight) is float):
            x, y, rng, ids = begun(self, model, x, y, rng, ids, progress=progress, weight=weight, state=state)
        with explained(model, x, y):
            return self._backward(model, x, y, rng=rng, ids=ids, progress=progress, weight=weight, state=state)

    def _backward(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator, ids: Tensor | None = None,
        progress: float = 1.0, weight: float = 1.0, state: State | None = None,
    ) -> Metrics:  # fmt: skip
        """`attack_and_descend` for the gradient alone: the adversarial inputs need not be kept."""
        return self.attack_and_descend(
            model, x, y, rng=rng, ids=ids, progress=progress, weight=weight, state=state
        )[1]  # fmt: skip

    def points(self, x: Tensor, aux: Any) -> Tensor | None:
        """The inputs (m, ...) other than ``x`` at which the loss is evaluated for ``aux``, for additional terms; None:
        no others. Several for each sample are copies of the batch, one after the other. By default ``aux`` itself, if
        it is a batch of the shape of ``x``."""
        return aux if isinstance(aux, Tensor) and aux.shape == x.shape else None

    def settings_at(self, progress: float) -> Hashable:
        """The effective settings at ``progress``, for CUDA graphs (`train.cuda_graphs`): steps with equal values,
        batches of one shape and the same memory launch the same kernels. None (the default): a step cannot be recorded,
        or it is not known. The value is not inherited: a subclass defines its own (see `in_force`)."""
        return None

    def diverged(self, state: State | None) -> str | None:
        """One line on what in ``state`` has diverged and what to change; None if nothing has. It may synchronise with
        the device."""
        return None

    def descend(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, weight: float = 1.0,
        state: State | None = None,
    ) -> Metrics:  # fmt: skip
        """`backward` after the adversary: add ``weight`` times the gradient of the loss at ``aux``.

        ValueError for a loss without a gradient.
        """
        loss, metrics = checked_loss(self, self.loss(model, x, y, aux, progress=progress, state=state), x)
        if not loss.requires_grad:
            check_trainable(model)
            raise ValueError(
                f"{type(self).__name__}.loss has no gradient with respect to the weights: do not detach it"
            )
        (loss * weight).backward()
        return {"loss": loss.detach(), **metrics}

    def attack_and_descend(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator, ids: Tensor | None = None,
        progress: float = 1.0, weight: float = 1.0, state: State | None = None,
    ) -> tuple[Any, Metrics]:  # fmt: skip
        """`backward`; also returns what `adversary` returns, for further gradients there."""
        aux = self.adversary(model, x, y, rng=rng, ids=ids, progress=progress, state=state)
        return aux, self.descend(model, x, y, aux, progress=progress, weight=weight, state=state)


_ANY: Box = (-LARGEST, LARGEST)
_UNWEIGHTED = object()
"""The weight of a call that computes a loss, and no gradient."""


def begun(
    method: Method, model: nn.Module, x: Tensor, y: Tensor, rng: object, ids: Tensor | None, *, progress: object,
    weight: object = _UNWEIGHTED, state: object = None,
) -> tuple[Tensor, Tensor, torch.Generator, Tensor | None]:  # fmt: skip
    """The batch, the generator and the sample numbers of a call, which need not have a generator.

    A call without one is from a training loop of the user's own, whose batch nobody has checked: outside the threat's
    box an adversary would train on saturated images. Its state moves to the device of the model, as the batch does.
    ValueError, in one line, for such a batch, for arguments of another type, and where gradients are disabled, unless
    ``weight`` is `_UNWEIGHTED`.
    """
    check_finite("progress", progress)
    if weight is not _UNWEIGHTED:
        check_finite("weight", weight)
    if state is not None and not isinstance(state, dict):
        raise ValueError(f"state must be the dict that init returns, or None, got {kind_of(state)}")
    if isinstance(rng, torch.Generator):
        return x, y, rng, ids
    if rng is not None:
        check_rng(rng)
    if weight is not _UNWEIGHTED and not torch.is_grad_enabled():
        raise ValueError("gradients are disabled: call backward outside torch.no_grad and torch.inference_mode")
    x = as_inputs(x, model).detach()
    if not len(x):
        raise ValueError("the batch is empty: skip it")
    ids = None if ids is None else numbered(ids, len(x), x.device)
    if state is not None:
        # In the caller's dict: methods update the tensors of their state in place.
        state.update({k: v.to(x.device) for k, v in state.items() if isinstance(v, Tensor) and v.device != x.device})
    box = method.threat.box if method.threat is not None else _ANY if x.is_floating_point() else (0.0, 1.0)
    if not method.labelled:
        check_batch(x, torch.zeros(len(x), dtype=torch.long), box)
        return x, _optional(y, x.device), fresh(x.device), ids
    y = as_labels(y).to(x.device)
    check_batch(x, y, box)
    return x, y.long(), fresh(x.device), ids


def _optional(y: Any, device: torch.device) -> Any:
    """The labels of a method that trains without them, whose probe may use them: integers as int64, others as given."""
    if y is None:
        return None
    y = (y if isinstance(y, Tensor) else as_labels(y)).to(device)
    return y if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool else y.long()


def _has_threat(kind: type[Method]) -> bool:
    return any(f.name == "threat" for f in fields(kind))


def _is_method(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, Method) and is_dataclass(found)


METHODS: Registry[type[Method]] = Registry(
    "method", "atent.methods", "atent.methods", _is_method, "a dataclass that inherits from atent.methods.Method",
    flaw=lambda cls: lacking(cls, Method), page="docs/add-method.md",
)  # fmt: skip
"""Registry of the methods by name, for recipes, the command line and the contract tests."""

method = METHODS.register
"""Decorator that registers a method under its class's name."""


def in_force(method: Method, progress: float) -> Hashable:
    """`Method.settings_at`, if the method's own class defines it; an inherited value may omit new settings."""
    return method.settings_at(progress) if "settings_at" in vars(type(method)) else None


def correct(logits: Tensor, y: Tensor) -> Tensor:
    """The accuracy, a scalar on the device."""
    return (logits.detach().argmax(1) == y).double().mean()


def check_budget(threat: Threat) -> None:
    """ValueError unless the threat's eps is finite."""
    if math.isinf(float(threat.eps)):
        raise ValueError("a training method needs a finite eps, got inf: give the radius to train for")


def check_reach(threat: Threat, length: float, what: str) -> None:
    """ValueError for a length that is lost in float32 for the larger half of the box's values; 0 is allowed."""
    top = max(map(abs, threat.span))
    # Half the spacing of float32 numbers above top / 2: adding a smaller number does not change them.
    if 0 < length < 2.0**-25 * top:
        raise ValueError(f"{what} {length:.3g} is lost in float32 for a pixel of {top:g}: increase it")


def check_warmup(eps_warmup: float) -> None:
    """ValueError unless ``eps_warmup`` is a share of the training, in [0, 1]."""
    check_number("eps_warmup", eps_warmup, 0)
    if eps_warmup > 1:
        raise ValueError(f"eps_warmup is a share of the training, in [0, 1], got {eps_warmup}")


def warm(eps_warmup: float, progress: float) -> float:
    """The factor of eps at ``progress``: linear from 0 to 1 over the first ``eps_warmup`` share of the training."""
    return ramp(progress, 0.0, eps_warmup)


def ramp(progress: float, start: float = 0.0, end: float = 1.0) -> float:
    """Linear from 0 at ``start`` to 1 at ``end``, constant outside; a jump if they are equal."""
    return float(progress >= end) if start == end else min(1.0, max(0.0, (progress - start) / (end - start)))


def scheduled(name: str, value: float | str, progress: float) -> float:
    """A setting at ``progress``: a number is constant; "0.5..0.1" is linear from 0.5 to 0.1 over the training, and
    "0.5..0.1@0.3" over its first 30 %. ValueError for other strings."""
    if not isinstance(value, str):
        return value
    ways, _, share = value.partition("@")
    first, dots, last = ways.partition("..")
    try:
        low, high, end = float(first), float(last), float(share) if "@" in value else 1.0
    except ValueError:
        dots = ""
    if not dots or not 0 < end <= 1:
        raise ValueError(
            f"{name} {shown(value)} is not a valid schedule: write a number, START..END such as 0.5..0.1, or"
            " 0.5..0.1@0.3 to reach END after 30 % of the training"
        )
    return low + ramp(progress, 0.0, end) * (high - low)
