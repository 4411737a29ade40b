"""Settings of the optimizer of the weights."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Literal

import torch
from torch import nn

from atent.checks import Settings, check_number
from atent.contracts import Member, flaw, kind_of
from atent.messages import once, report_idle, unknown
from atent.optim.entropy_sgd import EntropySGD
from atent.optim.remembered import outside
from atent.optim.sgld import SGLD
from atent.registry import Registry, first_line

OPTIMIZERS: Registry[Callable[..., torch.optim.Optimizer]] = Registry(
    "optimizer", "atent.optim", "atent.optimizers", callable, "a torch.optim.Optimizer, or a function that makes one",
    page="docs/add-network.md",
)  # fmt: skip
"""Name -> function (settings, parameters, seed) of a built-in optimizer, whose other parameters are those of
``Optimizer.args``, or (parameters, lr, ...) of another."""

_MEMBERS = (Member("step", "step(self, closure), which calls closure() for the loss and its gradient", 1, needed=True),)


@dataclass(frozen=True)
class Walk(metaclass=Settings):
    """The Langevin walk of Entropy-SGD around the weights, by default that of the supplement's Algorithm 1.

    Steps and gamma are those of its section A.1, inner_lr and noise those of Chaudhari et al.'s code, and alpha that
    of their paper.

    Examples
    --------
    >>> from atent.optim import Optimizer, Walk
    >>> Optimizer("EntropySGD", walk=Walk(inner_steps=20, scale="none")).walk.inner_steps
    20
    """

    inner_steps: int = 5
    """L: Langevin steps per step of the weights; 0 is SGD."""
    gamma: float = 1e-3
    """gamma of the quadratic penalty on the distance from the initial weights of the walk."""
    scoping: float = 0.0
    """Growth of gamma: gamma (1 + scoping)^t after t steps."""
    inner_lr: float = 0.1
    """eta': length of a Langevin step."""
    inner_momentum: float = 0.0
    """Nesterov momentum inside the walk, 0.9 in Chaudhari's code."""
    noise: float = 1e-4
    """Thermal noise, the square root of the temperature."""
    alpha: float = 0.75
    """Weight of the newest point in the exponential average."""
    average: Literal["exponential", "ergodic"] = "exponential"
    """Average of the walk: exponential, or the ergodic mean."""
    scale: Literal["gamma", "none"] = "gamma"
    """Outer gradient: gamma (w - mu) as Algorithm 1, or w - mu as the published code (none)."""
    inner_batches: Literal["same", "next"] = "same"
    """Batches of the walk: the same one L times (Algorithm 1), or the next L (Chaudhari)."""
    momentum_start: Literal["zero", "gradient"] = "zero"
    """Initial buffer of the outer momentum: zero, or the loss's gradient (the published code)."""

    def __post_init__(self) -> None:
        report_idle(self, "optimizer.walk.", [
            ("alpha", "set average to exponential", self.average == "exponential"),
            ("scoping", "set gamma above 0", self.gamma > 0),
        ])  # fmt: skip


@dataclass(frozen=True)
class Optimizer(metaclass=Settings):
    """Settings of the optimizer; ValueError for values out of range.

    Examples
    --------
    >>> from atent.optim import Optimizer
    >>> Optimizer("Adam", lr=1e-3).weight_decay
    0.0
    >>> Optimizer("Adam", lr=-1.0)
    Traceback (most recent call last):
    ...
    ValueError: lr must be above 0, got -1.0
    """

    name: str = "SGD"
    """SGD, Adam, EntropySGD, SGLD, LARS, or a custom optimizer as module:Class: a `torch.optim.Optimizer`, or a
    function that returns one, called with the parameters, lr, and args. The schedule multiplies the rate of each of its
    parameter groups."""
    lr: float = 0.1
    """Learning rate at the start, before the schedule."""
    momentum: float = 0.9
    """Momentum of SGD, EntropySGD and LARS."""
    nesterov: bool = False
    """Nesterov momentum (SGD, EntropySGD)."""
    weight_decay: float = 0.0
    """L2 penalty added to the gradient."""
    clip_norm: float | None = None
    """Maximum l2 norm of the gradient of all weights, before weight decay, as in `torch.nn.utils.clip_grad_norm_`;
    default: no clipping."""
    args: dict[str, int | float | bool | str | tuple[int | float | bool | str, ...]] = field(default_factory=dict)
    """Further keywords of LARS (trust) and of a custom optimizer; a list becomes a tuple."""
    walk: Walk = field(default_factory=Walk)
    """The walk of EntropySGD; SGLD uses its noise."""

    def __post_init__(self) -> None:
        try:
            build_one = OPTIMIZERS.find(self.name)
        except ValueError as error:
            if ":" not in self.name and self.name in _of_torch():
                raise ValueError(f"unknown optimizer {self.name!r}: write torch.optim:{self.name}") from None
            raise ValueError(f"name: {error}" if ":" in self.name else str(error)) from error
        check_number("lr", self.lr, 0, above=True)
        check_number("momentum", self.momentum, 0, 1, below=True)
        check_number("weight_decay", self.weight_decay, 0)
        if self.clip_norm is not None:
            check_number("clip_norm", self.clip_norm, 0, above=True)
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum above 0: set momentum, such as 0.9")
        if self.nesterov and self.name not in ("SGD", "EntropySGD"):
            raise ValueError(f"nesterov is for SGD and EntropySGD, not for {self.name}: remove it")
        if self.momentum != Optimizer.momentum and self.name not in ("SGD", "EntropySGD", "LARS"):
            own = "" if OPTIMIZERS.origin(self.name) == "built-in" else ", or set it in optimizer.args"
            raise ValueError(f"momentum is for SGD, EntropySGD and LARS, not for {self.name}: remove it{own}")
        _check_args(build_one, self)
        if self.name not in ("EntropySGD", "SGLD") and self.walk != Walk():
            raise ValueError(f"optimizer.walk is for EntropySGD and SGLD, not for {self.name}: remove it")
        if self.name == "SGLD" and self.walk != Walk(noise=self.walk.noise):
            raise ValueError("SGLD takes only the noise of optimizer.walk: remove the rest, or use EntropySGD")
        report_idle(self.walk, "optimizer.walk.", [("momentum_start", "set momentum above 0", self.momentum > 0)])
        # Errors of the optimizer itself are raised here, before the training begins.
        _made(build_one, self, [nn.Parameter(torch.zeros(1))], 0)

    @cached_property
    def takes_sparse(self) -> bool:
        """Whether its steps support sparse gradients; two are tried."""
        p = nn.Parameter(torch.zeros(2, 1))
        try:
            with torch.random.fork_rng(devices=[]):
                made = _made(OPTIMIZERS.find(self.name), self, [p], 0)
                for _ in range(2):
                    p.grad = torch.sparse_coo_tensor(
                        torch.tensor([[0]]), torch.ones(1, 1), (2, 1), check_invariants=False
                    )
                    made.step(lambda: torch.zeros(()))  # type: ignore[arg-type,return-value]
        except Exception:  # the code of a custom optimizer may raise anything
            return False
        return True


def _of_torch() -> list[str]:
    """Names of the optimizers of torch."""
    return [name for name, kind in vars(torch.optim).items() if isinstance(kind, type)]


def _check_args(entry: Callable[..., torch.optim.Optimizer], settings: Optimizer) -> None:
    """ValueError for keywords that a built-in optimizer does not have."""
    if not settings.args or OPTIMIZERS.origin(settings.name) != "built-in":
        return
    known = list(inspect.signature(entry).parameters)[3:]
    if not known:
        raise ValueError(f"optimizer.args is for a custom optimizer, not for {settings.name}: remove it")
    odd = next((key for key in settings.args if key not in known), None)
    if odd is not None:
        raise ValueError(unknown(f"argument of {settings.name}", odd, known))


Parameters = Iterable[nn.Parameter]


@OPTIMIZERS.register("SGD")
def _sgd(settings: Optimizer, parameters: Parameters, seed: int) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum (torch)."""
    return torch.optim.SGD(
        parameters,
        lr=settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
    )


@OPTIMIZERS.register("Adam")
def _adam(settings: Optimizer, parameters: Parameters, seed: int) -> torch.optim.Optimizer:
    """Adam (Kingma and Ba 2015; torch)."""
    return torch.optim.Adam(parameters, lr=settings.lr, weight_decay=settings.weight_decay)


@OPTIMIZERS.register("EntropySGD")
def _entropy_sgd(settings: Optimizer, parameters: Parameters, seed: int) -> torch.optim.Optimizer:
    """Entropy-SGD (Chaudhari et al. 2017): descent on the local entropy, with a Langevin walk around the weights."""
    return EntropySGD(
        parameters,
        settings.lr,
        momentum=settings.momentum,
        nesterov=settings.nesterov,
        weight_decay=settings.weight_decay,
        seed=seed,
        **asdict(settings.walk),
    )


@OPTIMIZERS.register("SGLD")
def _sgld(settings: Optimizer, parameters: Parameters, seed: int) -> torch.optim.Optimizer:
    """Stochastic gradient Langevin dynamics (Welling and Teh 2011): gradient descent with noise."""
    return SGLD(parameters, settings.lr, noise=settings.walk.noise, weight_decay=settings.weight_decay, seed=seed)


def _made(
    entry: Callable[..., torch.optim.Optimizer], settings: Optimizer, parameters: Parameters, seed: int
) -> torch.optim.Optimizer:
    """The optimizer of an entry of `OPTIMIZERS`; ValueError, in one line, if a custom one fails."""
    if OPTIMIZERS.origin(settings.name) == "built-in":
        return entry(settings, parameters, seed, **settings.args)
    given = {"weight_decay": settings.weight_decay} if settings.weight_decay else {}
    twice = next((key for key in ("lr", *given) if key in settings.args), None)
    if twice is not None:
        raise ValueError(f"optimizer.{twice} and optimizer.args.{twice} are the same setting: omit that of args")
    try:
        made = entry(parameters, lr=settings.lr, **given, **settings.args)
    except Exception as error:
        raise ValueError(f"optimizer {settings.name} raised {first_line(error)}") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise ValueError(f"optimizer {settings.name} must be a torch.optim.Optimizer, got {kind_of(made)}")
    if line := flaw(type(made), torch.optim.Optimizer, _MEMBERS):
        raise ValueError(f"optimizer {settings.name}: {line} (see {OPTIMIZERS.page})")
    # A function of the user's has chosen the decay; the default of a class may be unknown to the user.
    own = getattr(made, "defaults", {}).get("weight_decay") if isinstance(entry, type) else None
    if own and not given and "weight_decay" not in settings.args:
        once(
            f"optimizer.weight_decay 0 leaves {settings.name} its own default, {own}: set optimizer.weight_decay, or 0"
            " by optimizer.args"
        )
    return made


def build(settings: Optimizer, model: nn.Module, *, seed: int = 0) -> torch.optim.Optimizer:
    """The optimizer of a model's trainable parameters.

    Parameters
    ----------
    settings
        Name and settings of the optimizer.
    model
        Network; parameters with ``requires_grad`` False are excluded.
    seed
        Key of the optimizer's noise (EntropySGD, SGLD).

    Returns
    -------
    torch.optim.Optimizer
        The optimizer; call ``step(closure)``.

    Raises
    ------
    ValueError
        If no parameter is trainable, or a custom optimizer fails.

    Examples
    --------
    >>> import torch
    >>> from atent.optim import Optimizer, build
    >>> optimizer = build(Optimizer("SGD", lr=0.1, momentum=0.9), torch.nn.Linear(4, 2))
    >>> type(optimizer).__name__, optimizer.param_groups[0]["momentum"]
    ('SGD', 0.9)
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("the model has no trainable parameters: set requires_grad on some of them")
    entry = OPTIMIZERS.find(settings.name)
    if OPTIMIZERS.origin(settings.name) != "built-in":
        _try_step(settings, parameters, seed)
        if names := outside(lambda p: _made(entry, settings, p, seed)):
            once(
                f"optimizer {settings.name} keeps {', '.join(names)} outside its state, so that a resumed training"
                " begins with other values: keep them in self.state or self.param_groups"
            )
    return _made(entry, settings, parameters, seed)


def _try_step(settings: Optimizer, parameters: list[nn.Parameter], seed: int) -> None:
    """ValueError, before a training begins, if a custom optimizer fails in a step of copies of the parameters."""
    copies = [nn.Parameter(p.detach().clone()) for p in parameters]

    def closure() -> torch.Tensor:
        # At each call, as in the training: a step may set the gradients to None and call it again.
        for p in copies:
            p.grad = torch.full_like(p, 0.1)
        return torch.zeros((), device=copies[0].device)

    closure()
    made = _made(OPTIMIZERS.find(settings.name), settings, copies, seed)
    try:
        with torch.random.fork_rng(devices=[]):
            made.step(closure)  # type: ignore[arg-type]
    except Exception as error:  # the code of a custom optimizer may raise anything
        if settings.takes_sparse:
            return  # it may take nothing else, as torch.optim.SparseAdam
        raise ValueError(f"optimizer {settings.name} raised {first_line(error)} in its first step") from error
