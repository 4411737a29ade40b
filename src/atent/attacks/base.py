"""The contract of an attack, and what a call does around the search."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, is_dataclass, replace
from functools import partial, partialmethod
from numbers import Integral
from types import FunctionType
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from atent.attacks.oracle import UNDEFINED, Oracle, Undefined
from atent.attacks.watch import Callback, Watch
from atent.checks import NotFinite, Settings, as_inputs, as_labels, check_batch, check_seed, numbered
from atent.contracts import Member, flaw, kind_of
from atent.fields import check_flag, shown
from atent.guard import Mode, guard, kept_buffers, outside_inference
from atent.messages import once
from atent.precision import Lowered, SearchDtype, full_precision, images_last
from atent.registry import Registry
from atent.rng import Batch, PerSample, Streams, narrow, seed_from
from atent.threat import Threat, per_sample

_PAGE = "docs/add-attack.md"
_PASSES = "define the most forwards and backwards of one sample, such as passes = 10 or a property"


class Outcome(NamedTuple):
    """The result of an attack on n samples.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import PGD
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> outcome = PGD(Threat("linf", 0.1), steps=3).run(model, x, y)
    >>> bool((outcome.norm < 0.1 + 1e-6).all()), outcome.success.shape
    (True, torch.Size([2]))
    """

    x_adv: Tensor
    """Adversarial inputs, the shape of x."""
    success: Tensor
    """bool (n,): the model misclassifies x_adv, or predicts its target; recomputed on the returned tensor."""
    norm: Tensor
    """float64 (n,): distance to x in the threat's norm."""
    forwards: Tensor
    """int64 (n,): number of forward passes of each sample."""
    backwards: Tensor
    """int64 (n,): number of backward passes of each sample."""

    @property
    def robust(self) -> float:
        """The share of the samples on which the attack fails; without targets the robust accuracy."""
        return 1 - self.success.double().mean().item()


@dataclass(frozen=True)
class Attack(metaclass=Settings):
    """Base class of all attacks: a frozen dataclass of settings whose subclasses implement ``search``.

    A subclass declares its own fields after ``threat``. Calling an attack returns adversarial inputs; `run` returns an
    `Outcome` with success, distance and passes per sample. The model, its gradients, buffers and modes, and the global
    random state are left as they were.

    Examples
    --------
    >>> import torch
    >>> from dataclasses import dataclass
    >>> from atent import Threat
    >>> from atent.attacks import Attack
    >>> @dataclass(frozen=True)
    ... class RandomSign(Attack):
    ...     def search(self, oracle, x, y, streams):
    ...         return self.threat.project(x + self.threat.eps * streams.normal(x, use="start").sign(), x)
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> RandomSign(Threat("linf", 0.1)).run(model, x, y).forwards
    tensor([1, 1])
    """

    threat: Threat
    """The threat model: norm, eps and box of the perturbation."""

    minimum_norm: ClassVar[bool] = False
    """The attack minimises the norm: ``search`` returns the smallest adversarial point that it found, x if it found
    none, and the threat's eps may be infinite; x is returned where the norm exceeds eps."""
    needs_gradient: ClassVar[bool] = True
    """The attack differentiates the model."""
    counts_passes: ClassVar[bool] = True
    """`passes` is a bound, which is checked; False: an estimate."""
    aims: ClassVar[bool] = False
    """The attack supports ``targeted=True``."""
    norms: ClassVar[tuple[str, ...]] = ("linf", "l2")
    """The norms that the attack supports; constructing it with another raises ValueError."""

    sources: ClassVar[tuple[nn.Module, ...]] = ()
    """Models beside the attacked one that the attack uses."""

    @classmethod
    def able(cls, norm: str) -> list[str]:
        """The names of the attacks for a norm."""
        return [name for name, kind in ATTACKS.items() if norm in kind.norms]

    @property
    def stream(self) -> str:
        """The name that keys the attack's random numbers."""
        return type(self).__name__

    @property
    def saturates(self) -> bool:
        """Whether the gradient that is followed vanishes where a softmax rounds to 0 or 1: the cross-entropy's does."""
        return getattr(self, "loss", "margin" if self.minimum_norm else "ce") in ("ce", "kl")

    @property
    def passes(self) -> int:
        """The largest number of forwards plus backwards per sample, including the forward that decides success."""
        raise TypeError(f"{type(self).__name__} has no passes: {_PASSES} (see {_PAGE})")

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        """Adversarial inputs for ``x`` in the box; the caller freezes the model and restores it."""
        raise TypeError(
            f"{type(self).__name__} has no search: define search(self, oracle, x, y, streams) (see {_PAGE})"
        )

    def of(self, rows: Tensor) -> Attack:
        """The attack for the samples ``rows``: the same object if all share one eps."""
        threat: Threat = self.threat
        part = threat.take(rows)  # the settings were checked for all samples, by their largest eps
        return self if part is threat else replace(self, threat=replace(part, allow_large_eps=True))

    def parts(self) -> dict[str, Attack]:
        """The attacks of an ensemble by name, each run on the samples robust to those before; {} otherwise."""
        return {}

    def remarks(self, classes: int) -> list[str]:
        """Deviations from the standard form on a model with this number of classes, one clause each."""
        return []

    def check_aims(self) -> None:
        """ValueError, in one line, for an attack that does not support targets."""
        if not self.aims:
            able = ", ".join(name for name, kind in ATTACKS.items() if kind.aims)
            raise ValueError(f"{type(self).__name__} takes no targets: use one of {able}, or targeted=False")

    def _checked(self, found: Any, x: Tensor) -> Tensor:
        """The result of a search; ValueError unless its shape and dtype are those of ``x``."""
        if isinstance(found, Tensor) and found.shape == x.shape and found.dtype == x.dtype:
            return found
        got = f"{found.dtype} of shape {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        wanted = f"adversarial inputs, {x.dtype} of shape {tuple(x.shape)}"
        raise ValueError(f"{type(self).__name__}.search must return {wanted}, got {got}")

    def search_part(self, part: str, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        """The result of the named part of an ensemble; x where a minimum-norm part finds nothing within eps.

        ``streams`` are the ensemble's; the part derives its own streams from them, so that its result is the same in
        the ensemble's ``search`` and alone.
        """
        if part not in (parts := self.parts()):
            raise ValueError(f"{type(self).__name__} has no part {shown(part)}; parts: {', '.join(parts) or 'none'}")
        return parts[part].bounded(oracle, x, y, streams.named(part))

    def bounded(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        """`search`, but x where a minimum-norm attack finds nothing within eps."""
        x_adv = self._checked(self.search(oracle, x, y, streams), x)
        if not self.minimum_norm:
            return x_adv
        threat: Threat = self.threat.take(oracle.rows)
        return torch.where(per_sample(threat.contains(x_adv, x), x), x_adv, x)

    def __call__(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None = None,
        *,
        seed: int = 0,
        ids: Tensor | None = None,
        rng: torch.Generator | None = None,
        mode: Mode = "eval",
        targeted: bool = False,
        callback: Callback | None = None,
    ) -> Tensor:
        """Adversarial inputs for a batch.

        Parameters
        ----------
        model
            A network from inputs to logits (n, classes).
        x
            Inputs in the box, shape (n, d) or (n, c, h, w), floating point; arrays become tensors, and inputs on
            another device than the model are moved to it, see `atent.checks.as_inputs`.
        y
            True labels, integers of shape (n,); with ``targeted`` the target classes.
        seed, ids
            Seed, and sample numbers (n,), default 0 .. n-1: each sample has its own random number stream.
        rng
            One generator for the entire batch, in place of ``seed`` and ``ids``; inputs are then not checked, as in
            training. Default: None.
        mode
            Mode of the model during the attack: eval (default), train or as-is.
        targeted
            Whether the attack makes the model predict ``y``. Default: False.
        callback
            ``callback(k, x_adv, loss)`` receives every point whose loss is computed, see `atent.attacks.watch.Watch`.

        Returns
        -------
        Tensor
            Adversarial inputs, the shape of ``x``, on the device of the model.

        Raises
        ------
        ValueError
            For invalid inputs, labels, ids, seed or model output, and for ``targeted`` where it is not supported.
        """
        return self._guarded(model, x, y, seed, ids, rng, mode, targeted, callback)[0]

    def run(
        self,
        model: nn.Module,
        x: Tensor,
        y: Tensor | None = None,
        *,
        seed: int = 0,
        ids: Tensor | None = None,
        rng: torch.Generator | None = None,
        mode: Mode = "eval",
        part: str | None = None,
        search_dtype: SearchDtype | None = None,
        channels_last: bool = False,
        targeted: bool = False,
        callback: Callback | None = None,
        remark: Callable[[str], None] | None = None,
    ) -> Outcome:
        """As the call, with success, distance and number of passes of each sample.

        Parameters
        ----------
        model, x, y, seed, ids, rng, mode, targeted, callback
            As for the call.
        part
            Run this part of an ensemble only. Default: the entire attack.
        search_dtype
            Search under autocast in this dtype (float32 models). Default: no autocast.
        channels_last
            Pass images in that memory format: equal up to rounding, and faster or slower depending on network and
            machine. A model that does not support it gets the usual format, with a warning. Default: False.
        remark
            ``remark(clause)`` is called with a clause that describes NaN or infinite logits, input gradients or points,
            if the search meets any. One line on stderr reports them in any case. Default: None.

        Returns
        -------
        Outcome
            Success is recomputed on the returned tensor in the model's own precision, without autocast and TF32.
            Without ``rng`` and ``search_dtype`` the search has that precision too: the points of a minimum-norm attack
            lie on the decision boundary, where rounding matters.

        Raises
        ------
        ValueError
            As for the call.
        """
        check_flag("channels_last", channels_last)
        if rng is None:
            x = as_inputs(x, model)
        x_adv, success, forwards, backwards = self._guarded(
            model, x, y, seed, ids, rng, mode, targeted, callback, part, search_dtype, channels_last, remark,
            verdict=True,
        )  # fmt: skip
        threat: Threat = self.threat
        return Outcome(x_adv, success, threat.distance(x_adv, threat.clamp(x.detach())), forwards, backwards)

    def _guarded(
        self, model: nn.Module, x: Tensor, y: Tensor | None, seed: int, ids: Tensor | None,
        rng: torch.Generator | None, mode: Mode, targeted: bool, callback: Callback | None, part: str | None = None,
        search_dtype: SearchDtype | None = None, channels_last: bool = False,
        remark: Callable[[str], None] | None = None, *, verdict: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
        """`run` without the distances; ``success`` is empty without ``verdict``."""
        threat: Threat = self.threat
        streams: Streams
        if targeted is not False:
            check_flag("targeted", targeted)  # classes given here would be ignored
            self.check_aims()
        if rng is None:
            x, seed = as_inputs(x, model), check_seed(seed)
        x, y = x.detach(), y if isinstance(y, Tensor) and y.dtype == torch.int64 else as_labels(y)
        if x.is_inference() or y.is_inference():
            x, y = outside_inference(x), outside_inference(y)
        if not self.minimum_norm and threat.eps == math.inf:
            raise ValueError(
                f"{type(self).__name__} needs a finite eps, got inf: only minimum-norm attacks work without a budget"
            )
        if rng is None:
            check_batch(x, y, threat.box)
        threat.check_eps(x.shape[1:])
        if type(threat.eps) is not float:
            threat.check_samples(len(x))
        n, y = len(x), y.to(x.device, torch.int64)
        if rng is None:
            streams, inner = PerSample(seed, numbered(ids, n, x.device), self.stream), narrow(seed)
        else:
            streams, inner = Batch(rng), seed_from(rng, x.device)
        if n == 0:
            counters = torch.zeros(2, 0, dtype=torch.int64, device=x.device)
            return x.clone(), torch.zeros(0, dtype=torch.bool, device=x.device), *counters
        precise = full_precision(x.device) if rng is None and search_dtype is None else nullcontext()
        with guard(model, mode=mode, seed=inner, also=self.sources), precise:
            counters, clean = torch.zeros(2, n, dtype=torch.int64, device=x.device), threat.clamp(x)
            seen = model if search_dtype is None else Lowered(model, search_dtype)
            last = channels_last and images_last(model, clean)
            watch = None if callback is None else Watch(callback, clean)
            undefined = Undefined() if rng is None else None
            oracle = Oracle(
                seen, *counters, check=rng is None, channels_last=last, targeted=targeted, watch=watch,
                undefined=undefined,
            )  # fmt: skip
            search = self.bounded if self.minimum_norm else self.search
            search = search if part is None else partial(self.search_part, part)
            # The verdict is that of the model as it was given.
            with kept_buffers(model) if verdict else nullcontext():
                found = search(oracle, clean, y, streams)
            x_adv = self._checked(found, clean).detach()
            if undefined:
                self._report(oracle, remark)
            if not verdict:
                return x_adv, torch.empty(0), *counters
            # The logits are checked as those of the first pass: NaN would count as misclassified.
            oracle.model, oracle.check = model, rng is None
            with full_precision(x.device):
                return x_adv, oracle.fooled(self._final(oracle, x_adv, y), y), *counters

    def _report(self, oracle: Oracle, remark: Callable[[str], None] | None) -> None:
        """Say what the search met that is not finite."""
        what, fix = oracle.met()
        if not what:
            return
        once(f"{type(self).__name__} {UNDEFINED.format(what)}: {fix}")
        if remark is not None:
            remark(UNDEFINED.format(what))

    def _final(self, oracle: Oracle, x_adv: Tensor, y: Tensor) -> Tensor:
        """The logits that decide success; ValueError for a result that is not finite."""
        try:
            return oracle.logits(x_adv, y)
        except NotFinite:
            if torch.isfinite(x_adv).all():
                raise
            what, fix = oracle.met()
            since = f", since it met {what}: {fix}" if what else ""
            raise ValueError(f"{type(self).__name__}.search returned NaN or infinite inputs{since}") from None


_MEMBERS = (
    Member("search", "search(self, oracle, x, y, streams)", 4, needed=True),
    Member("remarks", "remarks(self, classes)", 1),
    Member("parts", "parts(self)", 0),
)
# Descriptors that give a function, not a number.
_METHODS = (FunctionType, staticmethod, classmethod, partialmethod)


def _flaw(cls: type[Attack]) -> str | None:
    """The error for an attack of the user that lacks what an evaluation needs; None for a valid class."""
    line = flaw(cls, Attack, _MEMBERS)
    passes = inspect.getattr_static(cls, "passes")
    if line is None and passes is inspect.getattr_static(Attack, "passes"):
        return f"{cls.__name__} has no passes: {_PASSES}"
    counted = isinstance(passes, Integral) or (hasattr(passes, "__get__") and not isinstance(passes, _METHODS))
    if line is None and not counted:
        return f"passes of {cls.__name__} is {kind_of(passes)}: {_PASSES}"
    return line


def _is_attack(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, Attack) and is_dataclass(found)


_PEERS = dict.fromkeys(("foolbox", "torchattacks", "adv_lib", "art", "pyautoattack"), "atent.integrations.peers")

ATTACKS: Registry[type[Attack]] = Registry(
    "attack", "atent.attacks", "atent.attacks", _is_attack, "a dataclass that inherits from atent.attacks.Attack",
    _PEERS, flaw=_flaw, page=_PAGE,
)  # fmt: skip
"""Name -> class; recipes, the command line and the contract tests read it."""

attack = ATTACKS.register
"""Decorator that registers an attack under the name of its class."""
