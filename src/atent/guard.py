"""Access to a user's model: its state is restored, and it receives copies of tensors, which it may overwrite."""

from __future__ import annotations

import random
import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal, cast, get_args
from weakref import WeakValueDictionary

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from atent.contracts import kind_of
from atent.fields import shown
from atent.torch_errors import cause_of, misfit

Mode = Literal["eval", "train", "as-is"]
MODES: tuple[str, ...] = get_args(Mode)


def ask(model: nn.Module, x: Tensor) -> Tensor:
    """The model's logits (n, classes) for a private copy of ``x`` (n, ...); gradients reach ``x`` through the copy.

    Networks may overwrite their inputs (normalisation and activations in place), and some return a tensor that their
    next call overwrites: both are copied, the logits to the device of ``x``. A network that squeezes the batch
    dimension of a single sample gets two copies of it.

    ValueError, in one line, for an output other than (n, classes) with at least 2 classes, and for the failures of a
    forward pass that `explain` recognises.
    """
    try:
        logits: Any = model(x.clone()) if len(x) != 1 else _single(model, x)
    except RuntimeError as error:
        explain(model, x, error)
        if not isinstance(error, torch.OutOfMemoryError) and (cause := misfit(str(error), x)):
            raise ValueError(cause) from error
        raise
    if not (isinstance(logits, Tensor) and logits.dim() == 2 and len(logits) == len(x) and logits.shape[1] > 1):
        check_shape(logits, len(x))
    if logits.is_complex():
        raise ValueError(f"the model must return real logits, got {logits.dtype}")
    # Scores may be integers, such as votes, and on the device of the last layer of a network on several.
    copied: Tensor = logits.clone() if logits.is_floating_point() else logits.double()
    return copied if copied.device == x.device else copied.to(x.device)


def _single(model: nn.Module, x: Tensor) -> Any:
    """The output for one sample, also of a model that squeezes its batch dimension."""
    failed: Exception | None = None
    try:
        logits: Any = model(x.clone())
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, IndexError) as error:
        failed = error
    if failed is None and not (isinstance(logits, Tensor) and logits.dim() < 2):
        return logits
    try:
        both = model(torch.cat([x, x]))
    except (RuntimeError, IndexError) as error:
        raise failed or error from None
    if not isinstance(both, Tensor) or both.shape[:1] != (2,):
        check_shape(both, 2)
    return both[:1]


def check_shape(logits: Any, n: int) -> None:
    """ValueError, in one line, unless ``logits`` is a tensor (n, classes) with at least 2 classes."""
    if not isinstance(logits, Tensor):
        raise ValueError(f"the model must return logits (n, classes), got a {type(logits).__name__}{wrapping(logits)}")
    if logits.dim() == 1 and len(logits) == n:
        raise ValueError(_one_output("one output for each sample"))
    if logits.dim() != 2 or len(logits) != n:
        raise ValueError(f"the model must return logits (n, classes), got shape {tuple(logits.shape)} for {n} inputs")
    check_classes(logits.shape[1])


def wrapping(answer: Any) -> str:
    """The remedy in the error for an output object that contains the logits."""
    if hasattr(answer, "logits"):
        return ": wrap the model by atent.models.transformers_logits(net)"
    if isinstance(answer, dict):
        keys = ", ".join(map(repr, list(answer)[:6]))
        return f": return the logits alone from its forward(), one of {keys}"
    return ": return the logits alone from its forward()" if isinstance(answer, tuple | list) else ""


def check_classes(classes: int) -> None:
    """ValueError for a model with fewer than two outputs, whose argmax is always 0."""
    if classes < 2:
        raise ValueError(_one_output(f"{classes} output{'' if classes == 1 else 's'}"))


def _one_output(given: str) -> str:
    return (
        f"the model must return logits for 2 classes or more, got {given}: for a network with one sigmoid logit use"
        " atent.models.binary_logits(net)"
    )


@contextmanager
def explained(model: nn.Module, x: Tensor, y: Tensor | None = None) -> Iterator[None]:
    """Convert failures of a forward or backward pass with a known cause into a one-line ValueError.

    ``y`` are the labels of a loss, one of which may not be an output of the model.
    """
    try:
        yield
    except IndexError as error:
        _check_output(model, x, y, error)
        raise
    except RuntimeError as error:
        _check_output(model, x, y, error)
        explain(model, x, error, y)
        raise


# What torch's losses and lookups say of a label that is not an output of the network.
_OUT_OF_BOUNDS = re.compile(r"(?:Target|index) (-?\d+) is out of bounds")


def _check_output(model: nn.Module, x: Tensor, y: Tensor | None, error: Exception) -> None:
    """Raise a one-line ValueError for a loss that failed because of a label."""
    found = _OUT_OF_BOUNDS.search(str(error))
    if y is None or not found or not bool((y == int(found[1])).any()):
        return
    if int(found[1]) < 0:
        raise ValueError(f"labels must be 0 or more, got {found[1]}") from error
    try:
        with guard(model), torch.no_grad():
            outputs = ask(model, x[:1]).shape[1]
    except Exception:  # an index in the code of the model, which is a label by chance
        return
    if int(found[1]) >= outputs:
        raise ValueError(
            f"label {found[1]} is not an output of the model: give its last layer one output per class"
        ) from error


def explain(model: nn.Module, x: Tensor, error: RuntimeError, y: Tensor | None = None) -> None:
    """Raise a one-line ValueError for a failed forward or backward pass with a known cause; ``y``: labels of a loss."""
    known = not isinstance(error, torch.OutOfMemoryError)
    if known and (cause := cause_of(str(error), dtype_of(model), next(model.parameters(), None), x, y)):
        raise ValueError(cause) from error


def dtype_of(model: nn.Module) -> torch.dtype | None:
    """The dtype of the model's first floating-point parameter; None without one."""
    return next((p.dtype for p in model.parameters() if p.is_floating_point()), None)


def outside_inference(t: Tensor) -> Tensor:
    """The tensor, or a copy that autograd can use if it was created under ``torch.inference_mode``."""
    with torch.inference_mode(False), torch.no_grad():
        return t.clone() if t.is_inference() else t


def check_module(model: Any) -> nn.Module:
    """The model; ValueError, in one line, for what is not a torch module, such as a path, a state dict or a class."""
    if isinstance(model, nn.Module):
        return model
    given, fix = kind_of(model), "build or load the network first"
    if isinstance(model, str | Path):
        given, fix = shown(str(model)), f"load it by atent.load({shown(str(model))})"
    elif isinstance(model, Mapping):
        fix = "load it into a network by load_state_dict"
    elif isinstance(model, type):
        fix = f"construct it, {model.__name__}(...)"
    elif callable(model):
        fix = "call it in the forward() of a module"
    raise ValueError(f"the model must be a torch.nn.Module, got {given}: {fix}")


def check_weights(model: nn.Module) -> None:
    """ValueError for weights or buffers created under ``torch.inference_mode``, which autograd never accepts, or
    on the meta device."""
    for named in (model.named_parameters(), model.named_buffers()):
        for name, t in named:
            if t.is_meta:
                raise ValueError(
                    f"the model's {name} is on the meta device, without values: build it on another device"
                )
            if not is_lazy(t) and t.is_inference():
                raise ValueError(
                    f"the model's {name} was made under torch.inference_mode: make or load the model outside (for no"
                    " gradients use torch.no_grad)"
                )


_ENTERING = threading.Lock()
_IN_USE: WeakValueDictionary[int, Any] = WeakValueDictionary()
"""Lock of each model that a thread uses, by the model's id."""


@contextmanager
def guard(
    model: nn.Module, *, mode: Mode = "eval", seed: int | None = None, also: Iterable[nn.Module] = ()
) -> Iterator[nn.Module]:
    """Context in which a model's parameters are frozen and it is in ``mode``; its state is restored at the end.

    Restored on success and on exception, each independently of the others: the mode of each module, each parameter's
    ``requires_grad`` and ``.grad``, each buffer (including batch-norm statistics), the global random states (Python,
    numpy, torch, the model's CUDA devices), and torch's gradient mode and default dtype. ``seed`` seeds the
    generators of torch, Python and numpy inside, so that a random model gives the same results at each call. Autograd
    works inside also if the caller is in inference mode. Another thread that uses the same model waits; ``also`` are
    the other models that are guarded inside.

    ValueError for a model that is not a torch module, was created under ``torch.inference_mode``, or is on the meta
    device, and for an unknown mode.
    """
    if not isinstance(model, nn.Module):
        check_module(model)
    if mode not in MODES:
        raise ValueError(f"mode {shown(mode)} is not known: use one of {', '.join(MODES)}")
    # Traversing a deep network takes time: each traversal is done once.
    modules, parameters, buffers = list(model.modules()), list(model.parameters()), list(model.buffers())
    tensors: list[Tensor] = [*parameters, *buffers]
    # Code is traced as it is, without values.
    if any([(t.is_meta and mode != "as-is") or (not is_lazy(t) and t.is_inference()) for t in tensors]):
        check_weights(model)
    devices = sorted({t.device for t in tensors if t.device.type == "cuda"}, key=str)
    with ExitStack() as stack:
        # Of two threads the second would store the frozen state of the first, and restore that.
        with _ENTERING:
            # In one order: two threads that attack each other's models would wait for each other.
            locks = [_IN_USE.setdefault(each, threading.RLock()) for each in sorted(map(id, (model, *also)))]
        for lock in locks:
            stack.enter_context(lock)
        # Restored in reverse order: the random states, whose restoration cannot fail, come first.
        stack.callback(_restore, Buffers(modules, buffers), [(p, p.requires_grad, p.grad) for p in parameters])
        for m in modules:
            if hasattr(m, "training"):
                stack.callback(setattr, m, "training", m.training)
        stack.callback(random.setstate, random.getstate())
        stack.callback(np.random.set_state, np.random.get_state())  # noqa: NPY002
        stack.callback(torch.set_rng_state, torch.get_rng_state())
        for d in devices:
            stack.callback(torch.cuda.set_rng_state, torch.cuda.get_rng_state(d), d)
        # A forward pass may change process-wide settings.
        stack.callback(torch.set_grad_enabled, torch.is_grad_enabled())
        stack.callback(torch.set_default_dtype, torch.get_default_dtype())
        if torch.is_inference_mode_enabled():
            # Only in inference mode: the context would enable gradients.
            stack.enter_context(torch.inference_mode(False))
        # A frozen script has a fixed mode.
        if mode != "as-is" and hasattr(model, "training"):
            try:
                model.train(mode == "train")
            except NotImplementedError as error:
                raise ValueError(
                    "the model cannot be put into eval mode, as a program of torch.export cannot: give the network"
                    " itself"
                ) from error
        # Frozen parameters accumulate no gradients, even if a user's forward calls backward().
        for p in parameters:
            if not is_lazy(p):  # a parameter created by the first forward pass has no gradient yet
                p.requires_grad_(False)
        if seed is not None:
            # Not torch.manual_seed, which would seed devices that are not restored.
            torch.default_generator.manual_seed(seed)
            random.seed(seed)
            np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
            for d in devices:
                with torch.cuda.device(d):
                    torch.cuda.manual_seed(seed)
        yield model


@contextmanager
def kept_buffers(model: nn.Module) -> Iterator[None]:
    """Context inside `guard` whose passes leave no trace in the buffers, as of a network that observes its inputs."""
    kept = Buffers(model.modules(), model.buffers())
    try:
        yield
    finally:
        kept.restore()


def random_states(device: torch.device) -> tuple[Any, ...]:
    """The global random states (Python, numpy, torch, the CUDA device), for comparison."""
    own = torch.cuda.get_rng_state(device).tolist() if device.type == "cuda" else None
    kind, keys, *rest = cast("tuple[Any, ...]", np.random.get_state())  # noqa: NPY002
    return random.getstate(), (kind, keys.tobytes(), *rest), torch.get_rng_state().tolist(), own


def seed_all(seed: int, device: torch.device) -> tuple[Any, ...]:
    """Seed the global random states, inside `guard` only; returns them as `random_states`."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)
    return random_states(device)


class Buffers:
    """The buffers of a model at one moment: the tensors that its modules have, since a forward pass may assign new
    ones, and their values."""

    def __init__(self, modules: Iterable[nn.Module], buffers: Iterable[Tensor]) -> None:
        self.registered = [(m, dict(m._buffers.items())) for m in modules]
        self.tensors = tensors = [b for b in buffers if not is_lazy(b)]
        # Fused copies support strided real tensors only.
        plain = all([t.layout is torch.strided and not t.is_quantized and not t.is_complex() for t in tensors])
        with torch.no_grad():
            self.values = [torch.empty_like(t) if plain else t.detach().clone() for t in tensors]
            if plain and tensors:
                torch._foreach_copy_(self.values, tensors)
        self._together = plain and bool(tensors)

    def restore(self) -> None:
        """Register the tensors again, and write their values back."""
        for m, before in self.registered:
            if isinstance(m, torch.jit.ScriptModule):
                # Its table of buffers is a read-only view.
                for name, b in before.items():
                    if m._buffers[name] is not b:
                        setattr(m, name, b)
            else:
                m._buffers.clear()
                m._buffers.update(before)
        # Batch norm updates its statistics without a new tensor version, so all are restored; through .data, since a
        # live graph may have saved the tensors and would detect a new version.
        places = [t.data for t in self.tensors]
        if self._together:
            torch._foreach_copy_(places, self.values)
        else:
            for place, value in zip(places, self.values, strict=True):
                place.copy_(value)
        for b in self.tensors:
            if b.grad_fn is not None:  # written with a graph
                b.detach_()


def _restore(buffers: Buffers, parameters: list[tuple[nn.Parameter, bool, Tensor | None]]) -> None:
    """Restore the parameters and, also if that fails, the buffers."""
    try:
        for p, requires_grad, grad in parameters:
            if not is_lazy(p):
                p.requires_grad_(requires_grad)
                p.grad = grad
    finally:
        buffers.restore()
