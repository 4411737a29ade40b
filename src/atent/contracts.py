"""What the user's own classes and functions must define: each omission is described in one line.

Registries check an object of the user when they find it, before anything runs.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


@dataclass(frozen=True)
class Member:
    """A function that a class may or must define."""

    name: str
    call: str
    """How it is called, for the error, such as ``search(oracle, x, y, streams)``."""
    positional: int
    """Number of positional arguments without ``self``."""
    keywords: tuple[str, ...] = ()
    needed: bool = False
    """Whether a class without it has no use."""


def paired(kind: str, pair: Any) -> tuple[Any, Any]:
    """The input and the label of an item that an iterable of type ``kind`` yields; ValueError unless it is a pair."""
    if isinstance(pair, tuple | list) and len(pair) == 2:
        return pair[0], pair[1]
    what, remedy = f"a {type(pair).__name__}", "convert each item to a pair"
    if isinstance(pair, tuple | list):
        what, remedy = f"{len(pair)} items", "drop the other items"
    elif hasattr(pair, "keys"):
        keys = ", ".join(map(repr, list(pair.keys())[:6]))
        what, remedy = f"{what} with {keys}", 'take two of them, ((b["image"], b["label"]) for b in loader)'
    raise ValueError(f"a {kind} must yield pairs (x, y), got {what}: {remedy}")


def unlike(loader: Any, x: Any) -> list[str]:
    """Lines on samples of a loader that are missing in ``x``, the inputs that it yielded, or there several times."""
    return [line for line in (_dropped(loader, len(x)), _repeated(loader, x)) if line is not None]


def _dropped(loader: Any, n: int) -> str | None:
    """A line for a loader that yielded ``n`` samples and drops an incomplete last batch; None for others."""
    # A sampler may choose some samples of a data set.
    source = next((s for s in (getattr(loader, name, None) for name in ("sampler", "dataset")) if _has_length(s)), None)
    total = n if source is None else len(source)
    if not (getattr(loader, "drop_last", False) and n < total):
        return None
    return (
        f"the {type(loader).__name__} drops its last batch: {n} of {total} samples are used (drop_last=False uses all)"
    )


def _repeated(loader: Any, x: Any) -> str | None:
    """A line for a loader whose settings repeat samples among those that it yielded, ``x``; None for others."""
    from torch.utils.data import IterableDataset

    name, workers = type(loader).__name__, getattr(loader, "num_workers", 0)
    if getattr(getattr(loader, "sampler", None), "replacement", False):
        return (
            f"the {name} samples with replacement: some samples are in the data several times, and others not at all"
            " (without a sampler each is there once)"
        )
    # Each worker yields all samples of a stream, unless the stream shares them among the workers.
    if workers > 1 and isinstance(getattr(loader, "dataset", None), IterableDataset):
        # Hashes: the samples themselves would be in memory twice more.
        found = len({hash(each.float().numpy(force=True).tobytes()) for each in x})
        if found * workers == len(x):
            return (
                f"each of the {name}'s {workers} workers yields all {found} samples: they are in the data {workers}"
                " times (num_workers=0 yields them once)"
            )
    return None


def _has_length(value: Any) -> bool:
    try:
        len(value)
    except (TypeError, NotImplementedError):
        return False
    return True


def check_default_device() -> None:
    """ValueError if torch creates tensors without values."""
    import torch

    if torch.get_default_device().type == "meta":
        raise ValueError("torch's default device is meta, without values: use torch.set_default_device('cpu')")


def check_dense(name: str, value: Any) -> None:
    """ValueError for a tensor or an array without a plain value at each place: sparse, nested, quantized, masked, or on
    the meta device."""
    check_default_device()
    if getattr(value, "is_sparse", False) or getattr(value, "is_sparse_csr", False):
        raise ValueError(f"{name} is a sparse tensor, a dense one is required: use .to_dense()")
    if getattr(value, "is_nested", False):
        raise ValueError(f"{name} is a nested tensor, a dense one is required: use torch.stack(x.unbind())")
    if getattr(value, "is_quantized", False):
        raise ValueError(f"{name} is a quantized tensor, a plain one is required: use .dequantize()")
    if getattr(value, "is_meta", False):
        raise ValueError(f"{name} is on the meta device, without values: create it on another device")
    if (layout := str(getattr(value, "layout", "torch.strided"))) != "torch.strided":
        raise ValueError(f"{name} has the layout {layout}, a dense tensor is required: use .to_dense()")
    if getattr(getattr(value, "mask", None), "any", bool)():
        raise ValueError(f"{name} is a masked array with masked values: replace them by .filled(value)")


def in_units(low: float, high: float, first: float, last: float, verb: str = "attack") -> str:
    """How to bring inputs that run from ``low`` to ``high`` into the box from ``first`` to ``last``.

    ``verb``: what the caller does with the inputs.
    """
    if last == 1 and low >= 0 and 2 < high <= 65535:
        levels = 255 if high <= 255 else 65535
        return f"divide pixels by {levels}"
    slack = 0.05 * (last - first)
    if low >= first - slack and high <= last + slack:
        return f"clip values that interpolation moves outside by x.clip({decimal(first)}, {decimal(last)})"
    return f"{verb} raw pixels and let the model normalise them (atent.models.Normalize as its first layer)"


def decimal(value: float) -> str:
    """The shortest decimal that reads back as the number."""
    return repr(float(value)).removesuffix(".0")


def float_remedy(dtype: str) -> str:
    """How to convert inputs of a dtype, such as "torch.uint8", that are no floats."""
    return "use x.real" if "complex" in dtype else "use x.float()" if "bool" in dtype else "divide pixels by 255"


def label_remedy(y: np.ndarray) -> str:
    """How to convert labels of a common kind to integers from 0; empty for others."""
    if y.ndim == 1 and y.dtype.kind in "US":
        return (
            ": number them by names, y_train = np.unique(y_train, return_inverse=True), np.searchsorted(names, y_test)"
        )
    if y.dtype.kind not in "iufb":
        return ""
    if y.ndim == 2 and y.shape[1] == 1:
        return ": drop the second axis by y.squeeze(1)"
    if y.ndim == 2 and ((y == 0) | (y == 1)).all() and (y.sum(1) == 1).all():
        return ": one-hot rows become classes by y.argmax(1)"
    if y.ndim == 1 and y.dtype.kind in "fb" and np.isfinite(y).all() and (y == np.floor(y)).all():
        return ": convert them by y.astype(np.int64), or y.long() for a tensor"
    return ""


def masked_class(logits: Any) -> int | None:
    """The first class that is masked by -inf in logits (n, classes), a tensor; None if none is, or if others are not
    finite."""
    masked, finite = logits == -math.inf, logits - logits == 0
    if not (bool(masked.any()) and bool((masked | finite).all()) and bool(finite.any(1).all())):
        return None
    return int(masked.any(0).nonzero()[0])


def not_finite(logits: Any = None) -> str:
    """The error for logits (n, classes), a tensor, that are not all finite."""
    masked = None if logits is None else masked_class(logits)
    if masked is None:
        return "the model returned NaN or infinite logits: check its weights and its input range"
    return f"the model returned -inf as a logit of class {masked}: mask a class by a finite logit such as -1e9"


def owned(entry: Any) -> bool:
    """Whether the user or another package defines a class or function, not this package."""
    return (getattr(entry, "__module__", None) or "").partition(".")[0] != "atent"


@functools.cache
def undeclared(cls: type) -> str | None:
    """The error for a subclass of a dataclass that is written without the decorator, which ignores its settings, or
    that makes a setting of what describes the class; None for a valid class. A subclass without annotations and
    ``__init__`` needs no decorator."""
    if "__dataclass_fields__" in vars(cls):
        return _fixed(cls)
    names = [name for name, hint in inspect.get_annotations(cls).items() if _is_setting(cls, name, hint)]
    if names:
        what = f"declares {', '.join(names)} and is not a dataclass, so its settings would be ignored"
    elif "__init__" in vars(cls) and not _extends(cls):
        what = "defines __init__ and is not a dataclass: its settings are fields"
    else:
        return None
    return f"{cls.__name__} {what}: write @dataclass(frozen=True) above the class"


def _fixed(cls: type) -> str | None:
    """The error for an own class with an annotated attribute, hence a field, where a base has a ClassVar."""
    if not owned(cls):
        return None
    fields = {each.name for each in dataclasses.fields(cls)}
    for base in cls.__mro__[1:]:
        for name, hint in inspect.get_annotations(base).items():
            if _of_class(hint) and name in fields:
                value = f" = {getattr(cls, name)!r}" if hasattr(cls, name) else " = ..."
                return (
                    f"{cls.__name__} annotates {name}, which makes it a setting; it describes the class: write"
                    f" {name}{value} without annotation"
                )
    return None


def _is_setting(cls: type, name: str, hint: Any) -> bool:
    """Whether an annotated name would be a field: not a ClassVar, a private name without a value, or an attribute of
    a base that is no field there, such as ``passes``."""
    if _of_class(hint) or (name.startswith("_") and name not in vars(cls)):
        return False
    known = {each.name for each in dataclasses.fields(cls)}
    return name in known or not any(hasattr(base, name) for base in cls.__bases__)


def _extends(cls: type) -> bool:
    """Whether an own ``__init__`` takes the fields, no more, and calls that of the base."""
    function = cls.__init__  # type: ignore[misc]
    names = {each.name for each in dataclasses.fields(cls) if each.init}
    taken = [each for each in inspect.signature(function).parameters.values() if each.kind not in _VARIADIC][1:]
    calls = "__init__" in getattr(getattr(function, "__code__", None), "co_names", ())
    return calls and names.issuperset(each.name for each in taken) and accepts(function, 1, names)


def _of_class(hint: Any) -> bool:
    """Whether an annotation is a ClassVar, which is no field."""
    return "ClassVar" in (hint if isinstance(hint, str) else str(hint)).partition("[")[0]


def flaw(cls: type, base: type, members: Iterable[Member]) -> str | None:
    """The error for a class that does not define what instances of ``base`` need; None for a valid class."""
    if dataclasses.is_dataclass(base) and (line := undeclared(cls)) is not None:
        return line
    if inspect.isabstract(cls) or getattr(cls, "__abstractmethods__", None):
        missing = ", ".join(sorted(cls.__abstractmethods__))  # type: ignore[attr-defined]
        return f"{cls.__name__} is abstract: define {missing}"
    for member in members:
        found, inherited = (inspect.unwrap(inspect.getattr_static(each, member.name, None)) for each in (cls, base))
        if found is inherited:
            if member.needed:
                return f"{cls.__name__} has no {member.name}: define {member.call}"
        elif not callable(found) and not hasattr(found, "__get__"):
            return f"{member.name} of {cls.__name__} is a {type(found).__name__}: define {member.call}"
        elif (line := _uncallable(cls, member)) is not None:
            return line
    return None


def _uncallable(cls: type, member: Member) -> str | None:
    found, function = inspect.getattr_static(cls, member.name), getattr(cls, member.name)
    # Instances are an argument of functions only, not of a partial or another callable object.
    bound = isinstance(found, staticmethod | classmethod) or not hasattr(found, "__get__")
    if accepts(function, member.positional + (not bound), member.keywords):
        return None
    names = list(inspect.signature(function).parameters)[0 if bound else 1 :]
    return f"{cls.__name__}.{member.name} takes ({', '.join(names)}): define {member.call}"


def accepts(function: Callable[..., Any], positional: int, keywords: Iterable[str] = ()) -> bool:
    """Whether a function can be called with so many positional arguments and these keywords; True if its signature is
    not known, as that of a compiled one."""
    try:
        inspect.signature(function).bind(*range(positional), **dict.fromkeys(keywords))
    except TypeError:
        return False
    except ValueError:
        return True
    return True


def kind_of(value: Any) -> str:
    """A value by its type, for errors: "None", "a Tensor", "the class Net", "the function net"."""
    if value is None:
        return "None"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if inspect.isfunction(value) or inspect.ismethod(value) or inspect.isbuiltin(value):
        return f"the function {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"
