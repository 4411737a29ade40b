"""The contract of a training method."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from atent.checks import Settings, check_number
from atent.fields import shown
from atent.guard import explained
from atent.registry import Registry
from atent.rng import fresh
from atent.threat import Threat

if TYPE_CHECKING:
    from atent.data import Data

Metrics = dict[str, Tensor]
State = dict[str, Tensor]


@dataclass(frozen=True)
class Method(metaclass=Settings):
    """A frozen dataclass of settings with functions; a concrete method overrides what it needs.

    In a training loop of your own ``loss, metrics = method(model, x, y)`` is the loss with its graph, and
    ``metrics = method.backward(model, x, y)`` adds its gradient, at the least cost in time and memory; both draw from
    torch's global random numbers where no ``rng`` is given.

    All see a batch ``x`` (n, ...) in pixel units and labels ``y`` (n,). ``progress`` runs from 0 to 1 over the
    training; ``rng`` is the batch's own generator; ``ids`` are the samples' numbers in the training set; ``state`` is
    what `init` made. Metrics are tensors on the device: a scalar is a mean over the batch, a vector (n,) one value per
    sample (the loop gives its quantiles). Nothing here waits for the device.

    ``replays`` is how often in a row the loop brings each batch, with an optimizer's step each time. ``single_step``
    says that the adversary takes one gradient per batch: such methods may overfit catastrophically, and the loop
    watches them (`atent.train.watch`). ``divisible`` says that the loss of a batch is the mean over its samples: parts
    of it, each with its share as ``weight``, add up to its gradient, so that the loop may take micro-batches, and
    several processes share a batch. ``gathers`` says that a loss which is not divisible gathers from all processes what
    couples samples (`atent.distributed.gathered`); without it each process computes the whole batch. ``alike`` are
    beginnings of the names in the state whose values every process computes for the whole batch; what a step changes in
    others is brought together after it. ``shardable`` says that the gradient is left by ``backward()`` and nothing
    reads a weight outside a forward pass, so that the processes may share the weights (`train.shard`). ``labelled``
    says that the loss classifies: embedding regularisation goes around no other method. `AWP` goes around every method
    that leaves `backward` as it is here: it calls `attack_and_descend` and `descend` in its place.

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

    # Without annotations: no fields of the dataclasses that inherit them.
    replays = 1
    single_step = False
    divisible = True
    gathers = False
    alike: ClassVar[tuple[str, ...]] = ()
    labelled = True
    shardable = False
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    """The norms of the threats that it takes: it is refused, in one line, where it is made with another."""

    @classmethod
    def able(cls, norm: str) -> list[str]:
        """The names of the methods with an adversary in a norm."""
        return [name for name, kind in METHODS.items() if _has_threat(kind) and norm in kind.norms]

    if TYPE_CHECKING:

        @property
        def threat(self) -> Threat | None:
            """The threat that the network is trained for, the first field; None for a method without an adversary."""

    else:

        def __getattr__(self, name: str) -> None:
            # A class attribute would be the default of a subclass's field.
            if name == "threat":
                return None
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")

    @property
    def is_one_loss(self) -> bool:
        """Whether `adversary` and `loss` are all that a step needs, so that the method may be called."""
        return type(self).backward is Method.backward

    def init(self, n_train: int, shape: tuple[int, ...], device: torch.device) -> State:
        """Running or per-sample state, saved with the checkpoint; none by default."""
        return {}

    def prepare(self, data: Data) -> State:
        """More of the state, for which the training samples must be seen; called once, before the first step of a
        training that is not resumed. None by default."""
        return {}

    def rows(self, state: State, x: Tensor, part: slice) -> State:
        """The state that a part of the batch ``x`` sees; a method that keeps something by position in the batch gives
        views of these positions. By default ``state`` itself."""
        return state

    def adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator,
        ids: Tensor | None = None, progress: float = 1.0, state: State | None = None,
    ) -> Any:  # fmt: skip
        """What the loss needs to know of the adversary; the model comes back as it was found."""
        return None

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """The scalar to descend, and metrics."""
        raise TypeError(f"{type(self).__name__} has no loss: define loss(model, x, y, aux), see the contract Method")

    def __call__(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator | None = None, ids: Tensor | None = None,
        progress: float = 1.0, state: State | None = None,
    ) -> tuple[Tensor, Metrics]:  # fmt: skip
        """The scalar to descend, with its graph, and metrics: `adversary`, then `loss`, in one call.

        It is for loops that call ``loss.backward()`` themselves. The model trains in the mode in which it is given.

        Raises
        ------
        ValueError
            For a method whose gradient is not that of one loss at the present weights (AWP, Free): use `backward`.
        """
        if not self.is_one_loss:
            name = type(self).__name__
            raise ValueError(
                f"{name} has no loss to descend alone, its backward does more: call {name}(...).backward(model, x, y)"
            )
        rng = fresh(x.device) if rng is None else rng
        with explained(model, x):
            aux = self.adversary(model, x, y, rng=rng, ids=ids, progress=progress, state=state)
            return self.loss(model, x, y, aux, progress=progress, state=state)

    def backward(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator | None = None, ids: Tensor | None = None,
        progress: float = 1.0, weight: float = 1.0, state: State | None = None,
    ) -> Metrics:  # fmt: skip
        """Add ``weight`` times the gradient of the loss to each parameter's ``.grad``.

        Without ``rng`` the adversary draws from a generator that is seeded from torch's global one.
        """
        rng = fresh(x.device) if rng is None else rng
        with explained(model, x):
            return self._backward(model, x, y, rng=rng, ids=ids, progress=progress, weight=weight, state=state)

    def _backward(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator, ids: Tensor | None = None,
        progress: float = 1.0, weight: float = 1.0, state: State | None = None,
    ) -> Metrics:  # fmt: skip
        """`attack_and_descend` for those who want the gradient alone: what the adversary found need not be kept."""
        return self.attack_and_descend(
            model, x, y, rng=rng, ids=ids, progress=progress, weight=weight, state=state
        )[1]  # fmt: skip

    def points(self, x: Tensor, aux: Any) -> Tensor | None:
        """The inputs (m, ...) beside ``x`` that the loss sees at ``aux``, for terms around the method; None: there are
        none. By default ``aux`` itself, where it is a batch of the shape of ``x``."""
        return aux if isinstance(aux, Tensor) and aux.shape == x.shape else None

    def settings_at(self, progress: float) -> Hashable:
        """What of the settings is in force at ``progress``, for CUDA graphs (`train.cuda_graphs`): steps with equal
        answers, batches of one shape and the same memory launch the same kernels. None: a step cannot be recorded, or,
        by default, nothing is known of it. The answer is that of one class: a class that inherits from it defines its
        own (see `in_force`)."""
        return None

    def diverged(self, state: State | None) -> str | None:
        """One line on what in ``state`` has diverged and what to change; None: nothing has. It may wait for the
        device."""
        return None

    def descend(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, weight: float = 1.0,
        state: State | None = None,
    ) -> Metrics:  # fmt: skip
        """`backward` from where the adversary has been: ``weight`` times the gradient of the loss at ``aux``."""
        loss, metrics = self.loss(model, x, y, aux, progress=progress, state=state)
        (loss * weight).backward()
        return {"loss": loss.detach(), **metrics}

    def attack_and_descend(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator, ids: Tensor | None = None,
        progress: float = 1.0, weight: float = 1.0, state: State | None = None,
    ) -> tuple[Any, Metrics]:  # fmt: skip
        """`backward`, and what the adversary found, for those who want the gradient there again."""
        aux = self.adversary(model, x, y, rng=rng, ids=ids, progress=progress, state=state)
        return aux, self.descend(model, x, y, aux, progress=progress, weight=weight, state=state)


def _has_threat(kind: type[Method]) -> bool:
    return any(f.name == "threat" for f in fields(kind))


def _is_method(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, Method) and is_dataclass(found)


METHODS: Registry[type[Method]] = Registry(
    "method", "atent.methods", "atent.methods", _is_method, "a dataclass that inherits from atent.methods.Method"
)
"""Name -> class; recipes, the command line and the contract tests read it."""

method = METHODS.register
"""Decorator that makes a method known by its class's name."""


def in_force(method: Method, progress: float) -> Hashable:
    """`Method.settings_at`, where the method's own class defines it; an inherited answer may leave out what is new."""
    return method.settings_at(progress) if "settings_at" in vars(type(method)) else None


def correct(logits: Tensor, y: Tensor) -> Tensor:
    """Share of right answers, a scalar on the device."""
    return (logits.detach().argmax(1) == y).double().mean()


def check_budget(threat: Threat) -> None:
    """ValueError unless the threat's eps is finite: an adversary that trains stays in a ball."""
    if math.isinf(float(threat.eps)):
        raise ValueError("a training method needs a finite eps, got inf: give the radius to train for")


def check_reach(threat: Threat, length: float, what: str) -> None:
    """ValueError for a length that float32 loses beside the larger half of the box's values; 0 passes."""
    top = max(map(abs, threat.span))
    # Half the spacing of the numbers from top / 2 on: added to one of them, anything shorter gives the same number.
    if 0 < length < 2.0**-25 * top:
        raise ValueError(f"{what} {length:.3g} is lost in float32 beside a pixel of {top:g}: make it longer")


def check_warmup(eps_warmup: float) -> None:
    """ValueError unless ``eps_warmup`` is a share of the training, in [0, 1]."""
    check_number("eps_warmup", eps_warmup, 0)
    if eps_warmup > 1:
        raise ValueError(f"eps_warmup is a share of the training, in [0, 1], got {eps_warmup}")


def warm(eps_warmup: float, progress: float) -> float:
    """The factor of eps at ``progress``: linear from 0 to 1 over the first ``eps_warmup`` share of the training."""
    return ramp(progress, 0.0, eps_warmup)


def ramp(progress: float, start: float = 0.0, end: float = 1.0) -> float:
    """The share of the way from ``start`` to ``end``, 0 before and 1 after; a jump where the two are one."""
    return float(progress >= end) if start == end else min(1.0, max(0.0, (progress - start) / (end - start)))


def scheduled(name: str, value: float | str, progress: float) -> float:
    """A setting at ``progress``: a number stays; "0.5..0.1" goes linearly from 0.5 to 0.1 over the training, and
    "0.5..0.1@0.3" over its first 30 %. ValueError for other texts."""
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
            " 0.5..0.1@0.3 to be there after 30 % of the training"
        )
    return low + ramp(progress, 0.0, end) * (high - low)
