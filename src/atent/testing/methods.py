"""`check_method`: the contract of a training method as a suite of checks."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from atent.methods.awp import AWP, may_perturb
from atent.methods.base import Method, Metrics, State
from atent.testing import networks
from atent.testing.contract import Suite, require
from atent.testing.networks import Snapshot, same
from atent.threat import Threat

# Two ways to compute one float64 gradient differ by rounding and by the order of sums: below 5e-12 of the sums of
# absolute values for networks of ten layers and attacks of ten steps; cancellation may reduce these sums to a tenth. A
# wrong factor or term causes a much larger difference.
ROUNDING = 5e-11
# Value of all gradients before: `backward` adds to them.
_BEFORE = -3.0


@dataclass
class Case:
    """A method, with the networks and the batch on which it is checked."""

    method: Method
    model: nn.Module
    """float64, in train mode; it may have dropout and batch statistics."""
    plain: nn.Module
    """float64, in train mode, deterministic."""
    x: Tensor
    y: Tensor

    @property
    def ids(self) -> Tensor:
        return torch.arange(len(self.x))

    def state(self) -> State:
        return self.method.init(len(self.x), tuple(self.x.shape[1:]), self.x.device)

    def run(
        self, model: nn.Module, *, method: Method | None = None, grad: float | None = None, **given: Any
    ) -> tuple[Metrics, Tensor]:
        """Metrics and gradient of one `backward` on a copy of the network; dropout masks are the same each time."""
        model = copy.deepcopy(model)
        for p in model.parameters():
            p.grad = None if grad is None else torch.full_like(p, grad)
        if "state" not in given:
            given["state"] = self.state()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(21)
            metrics = (method or self.method).backward(
                model, self.x.clone(), self.y, rng=_stream(self.x), ids=self.ids, **given
            )
        return metrics, _gradient(model)


def _stream(x: Tensor) -> torch.Generator:
    return torch.Generator(x.device).manual_seed(11)


def _gradient(model: nn.Module) -> Tensor:
    found = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    require(found, "no .grad after backward", "weight times the gradient of the loss")
    return torch.cat(found)


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


_suite: Suite[Case] = Suite()
promise = _suite.promise


def check_method(
    method: Method, *, model: nn.Module | None = None, x: Tensor | None = None, y: Tensor | None = None
) -> list[str]:
    """Check that a training method satisfies the contract of `atent.methods.Method`.

    Parameters
    ----------
    method
        The method, with the settings to check; few steps make the checks quick.
    model, x, y
        A network that gives logits, inputs (n, ...) and their labels; it is checked in float64. Default: a small
        convolutional network with batch-norm and dropout, or without them for a method that refuses them, and 8 inputs
        of shape (1, 6, 6). The network must be deterministic in train mode: otherwise the checks that compute the same
        gradient in two ways fail.

    Returns
    -------
    list of str
        The promises that were checked, in order. Those that do not apply are absent, such as that of AWP for a method
        with a `backward` of its own.

    Raises
    ------
    ContractError
        For the first broken promise: one line with the promise, what was found and what is allowed.
    ValueError
        For something other than a method, and if only some of model, x and y are given.

    Examples
    --------
    >>> from atent import Threat
    >>> from atent.methods import PGDAT
    >>> "metrics are tensors on the device" in check_method(PGDAT(Threat("linf", 0.1), steps=3))
    True
    """
    networks.check_instance("check_method", "PGDAT", method, "backward")
    own = networks.given(model, x, y)
    if own is None:
        plain, labels = networks.network(batch_norm=False), torch.arange(8) % networks.CLASSES
        case = Case(method, networks.network(dropout=0.3), plain, networks.inputs(8), labels)
        if _refuses(case):
            case.model = plain
    else:
        network, batch, labels = own
        case = Case(method, network.train(), network, batch, labels)
    return _suite.run(type(method).__name__, case)


def _refuses(case: Case) -> bool:
    """Whether the method accepts only the deterministic network, as certified training does."""
    try:
        case.run(case.model)
    except ValueError:
        return True
    except Exception:
        return False  # reported by the check in which it occurs
    return False


# ---- type and signatures ---------------------------------------------------------------------------------


@promise("it is a frozen dataclass whose first field is the threat, where it has one")
def _frozen(case: Case) -> None:
    kind = type(case.method)
    frozen = dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    require(frozen, f"{kind.__name__} without @dataclass(frozen=True)", "a frozen dataclass")
    names = [f.name for f in dataclasses.fields(kind)]
    require("threat" not in names or names[0] == "threat", f"fields {', '.join(names)}", "threat first")
    threat = getattr(case.method, "threat", None)
    require(
        threat is None or isinstance(threat, Threat), f"a threat of type {type(threat).__name__}", "an atent.Threat"
    )
    twin = copy.deepcopy(case.method)
    require(case.method == twin and hash(case.method) == hash(twin), "a copy that is not equal", "equality by settings")


@promise("its functions take the arguments of the contract")
def _signatures(case: Case) -> None:
    for name in ("init", "adversary", "loss", "backward"):
        ours, wanted = (inspect.signature(getattr(kind, name)).parameters for kind in (type(case.method), Method))
        kinds = {p.kind for p in ours.values()}
        for key, parameter in wanted.items():
            other = ours.get(key)
            more = parameter.VAR_KEYWORD if parameter.kind is parameter.KEYWORD_ONLY else parameter.VAR_POSITIONAL
            if other is None and more in kinds:
                continue
            require(other is not None, f"{name} without {key}", f"{name}({', '.join(wanted)})")
            assert other is not None
            # The training loop always passes a generator; a default is optional.
            defaults = (parameter.default, parameter.empty) if key == "rng" else (parameter.default,)
            kept = other.kind == parameter.kind and other.default in defaults
            require(kept, f"{name}({other})", f"{parameter}, {parameter.kind.description}")


@promise("metrics are tensors on the device")
def _metrics(case: Case) -> None:
    metrics, _ = case.run(case.model)
    require(isinstance(metrics, dict), f"a {type(metrics).__name__} of metrics", "a dict")
    require("loss" in metrics, f"metrics {', '.join(metrics) or 'none'}", "loss among them")
    n = len(case.x)
    for name, value in metrics.items():
        require(isinstance(value, Tensor), f"a {type(value).__name__} as {name}", "a tensor, without .item()")
        require(value.device == case.x.device, f"{name} on {value.device}", f"{case.x.device}, as x")
        shapes = ((),) if name == "loss" else ((), (n,))
        require(value.shape in shapes, f"{name} of shape {tuple(value.shape)}", f"() or, but for loss, ({n},)")
        require(not value.requires_grad, f"{name} with a graph", "detached metrics")
        require(bool(torch.isfinite(value).all()), f"{name} that is not finite", "finite values")


# ---- backward --------------------------------------------------------------------------------------------


@promise("backward adds weight times the gradient to .grad")
def _weighted(case: Case) -> None:
    metrics, full = case.run(case.model)
    size = float(full.norm())
    require(0 < size < float("inf"), f"a gradient of norm {size:g}", "one above 0 and finite")
    for weight in (1.0, 0.25):
        again, found = case.run(case.model, grad=_BEFORE, weight=weight)
        off = _distance(found - _BEFORE, weight * full)
        why = "as if .grad had been overwritten" if _distance(found, weight * full) <= ROUNDING else ""
        observed = f"at weight {weight:g} a change of .grad that is off by {off:.2g} of it {why}"
        require(off <= ROUNDING, observed.strip(), f"{ROUNDING:g}")
        moved, level = abs(float(again["loss"] - metrics["loss"])), abs(float(metrics["loss"]))
        require(moved <= ROUNDING * level, f"a loss that weight {weight:g} moves by {moved:.2g}", "the same")


@promise("the same state of the generator gives the same bits, whatever the global random states")
def _repeats(case: Case) -> None:
    (a, one), (b, two) = _twice(lambda: case.run(case.model))
    require(same(one, two), "another gradient", "the same bits")
    require(same(a, b), "other metrics", "the same bits")

    def unseeded() -> Tensor:
        model = copy.deepcopy(case.plain)
        case.method.backward(model, case.x.clone(), case.y, rng=_stream(case.x), ids=case.ids, state=case.state())
        return _gradient(model)

    if case.plain is not case.model or not _is_random(case.plain, case.x):
        one, two = _twice(unseeded)
        require(same(one, two), "another gradient after the global generators moved", "random numbers from rng only")


def _twice(call: Callable[[], Any]) -> tuple[Any, Any]:
    first = call()
    networks.move_global_generators()
    return first, call()


def _is_random(model: nn.Module, x: Tensor) -> bool:
    with torch.no_grad():
        one, two = (copy.deepcopy(model)(x.clone()) for _ in range(2))
    return not same(one, two)


@promise("backward leaves modes, weights, buffers other than batch-norm statistics, and inputs unchanged")
def _left(case: Case) -> None:
    model, x, y = copy.deepcopy(case.model), case.x.clone(), case.y.clone()
    found = Snapshot(model, statistics=False, gradients=False, streams=False)
    case.method.backward(model, x, y, rng=_stream(case.x), ids=case.ids, state=case.state())
    found.check(" after backward")
    require(same(x, case.x) and same(y, case.y), "another x or y after backward", "the batch as it was given")
    require(not x.requires_grad, "x that requires a gradient", "x as it was given")


@promise("backward computes the gradient of the loss that adversary and loss define")
def _two_ways(case: Case) -> None:
    model, state = copy.deepcopy(case.plain), case.state()
    aux = case.method.adversary(model, case.x.clone(), case.y, rng=_stream(case.x), ids=case.ids, state=state)
    loss, metrics = case.method.loss(model, case.x.clone(), case.y, aux, state=state)
    require(loss.shape == (), f"a loss of shape {tuple(loss.shape)}", "a scalar")
    parameters = [p for p in model.parameters() if p.requires_grad]
    grads = torch.autograd.grad(loss, parameters, allow_unused=True)
    wanted = torch.cat([g.flatten() for g in grads if g is not None])
    found, full = case.run(case.plain)
    require(full.shape == wanted.shape, "gradients of other parameters", "those of loss")
    off = _distance(full, wanted)
    require(off <= ROUNDING, f"a gradient that is off by {off:.2g} of it", f"{ROUNDING:g}")
    for name, value in metrics.items():
        require(name in found, f"backward without the metric {name} of loss", "its metrics, and loss")
        near = torch.allclose(found[name].double(), value.double(), rtol=ROUNDING, atol=ROUNDING)
        require(near, f"another {name} in backward than in loss", "the same to rounding")


# ---- the adversary ---------------------------------------------------------------------------------------


@promise("adversary leaves the network and the global random states unchanged, also if the network raises")
def _guest(case: Case) -> None:
    for fails_at in (None, 1, 2):
        model = networks.mid_training(case.model, case.x)
        calls: list[int] = []

        def count(_module: nn.Module, _given: Any, calls: list[int] = calls, last: int | None = fails_at) -> None:
            calls.append(1)
            if len(calls) == last:
                raise ArithmeticError("the network broke")

        handle = model.register_forward_pre_hook(count)
        x, state, raised = case.x.clone(), case.state(), False
        found = Snapshot(model)
        try:
            case.method.adversary(model, x, case.y, rng=_stream(case.x), ids=case.ids, state=state)
        except ArithmeticError:
            raised = True
        handle.remove()
        if fails_at is not None and len(calls) >= fails_at:
            require(raised, "a result although the network raised", "the network's exception")
        found.check(f" after an exception at call {fails_at}" if raised else " after adversary")
        require(same(x, case.x) and not x.requires_grad, "another x after adversary", "x as it was given")


@promise("adversary takes random numbers from rng only")
def _own_stream(case: Case) -> None:
    model = copy.deepcopy(case.model)

    def found() -> Any:
        return case.method.adversary(
            model, case.x.clone(), case.y, rng=_stream(case.x), ids=case.ids, state=case.state()
        )  # fmt: skip

    one, two = _twice(found)
    require(same(one, two), "another result after the global generators moved", "the same bits")


# ---- state, progress, the device ----------------------------------------------------------------------------


@promise("all that a method remembers is in the state that init returns")
def _remembers(case: Case) -> None:
    first, second = case.state(), case.state()
    require(isinstance(first, dict), f"init() gave a {type(first).__name__}", "a dict of tensors")
    for name, value in first.items():
        require(isinstance(value, Tensor), f"a {type(value).__name__} as state {name!r}", "tensors")
        require(value is not second[name], f"one tensor {name!r} in two states", "a new one at each init()")
    before = {name: repr(value) for name, value in vars(case.method).items()}
    _, one = case.run(case.plain, state=first)
    after = {name: repr(value) for name, value in vars(case.method).items()}
    changed = [name for name in {**before, **after} if before.get(name) != after.get(name)]
    require(not changed, f"{', '.join(changed)} of the method changed by backward", "changes of the state alone")
    require(same(case.run(case.plain, state=second)[1], one), "another gradient with a fresh state", "the same bits")
    # Resumed by another process, which has the settings and the state, the second step is the same.
    saved = {name: value.clone() for name, value in first.items()}
    _, onward = case.run(case.plain, state=first)
    _, resumed = case.run(case.plain, method=copy.deepcopy(case.method), state=saved)
    require(same(onward, resumed), "another second step from a saved state", "the same bits")


@promise("progress from 0 to 1 is accepted, and arguments with a default may be omitted")
def _progress(case: Case) -> None:
    for progress in (0.0, 0.5, 1.0):
        metrics, grad = case.run(case.model, progress=progress)
        finite = bool(torch.isfinite(grad).all()) and bool(torch.isfinite(metrics["loss"]).all())
        require(finite, f"a loss or gradient that is not finite at progress {progress}", "finite ones")
    case.method.backward(copy.deepcopy(case.model), case.x.clone(), case.y, rng=_stream(case.x))


@promise("backward waits for the device once at most")
def _syncs(case: Case) -> None:
    with _Waits() as waits:
        case.run(case.model)
    found = f"{len(waits.seen)} operations that wait ({', '.join(sorted(set(waits.seen)))})"
    # The one allowed synchronisation seeds the network's own random numbers within an attack.
    require(len(waits.seen) <= 1, found, "1, and none per step: no .item(), no boolean index")


class _Waits(TorchDispatchMode):
    """Records the operations that make a GPU's host wait."""

    _NAMES = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in self._NAMES:
            self.seen.append(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@promise("AWP wraps it and restores the weights", lambda case: may_perturb(type(case.method)))
def _perturbed(case: Case) -> None:
    around = AWP(case.method, 0.01)
    model = copy.deepcopy(case.model)
    found = Snapshot(model, statistics=False, gradients=False, streams=False)
    metrics = around.backward(model, case.x.clone(), case.y, rng=_stream(case.x), ids=case.ids, state=case.state())
    found.check(" after AWP's backward")
    require("sharpness" in metrics, f"metrics {', '.join(metrics)}", "sharpness among them")
    size = float(_gradient(model).norm())
    require(0 < size < float("inf"), f"a gradient of norm {size:g}", "one above 0 and finite")


PROMISES = _suite.texts
"""The promises of a method, including those that apply to some methods only."""
