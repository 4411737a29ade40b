"""Validation and conversion of arguments: numbers of numpy and torch, arrays, data loaders, and fields of settings."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from numbers import Integral, Real
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from atent.contracts import check_dense, float_remedy, in_units, label_remedy, not_finite, paired, undeclared, unlike
from atent.docstrings import Documented
from atent.fields import LARGEST, brief, check_complete, defaults, fitting, mistyped, shown
from atent.guard import check_module, check_shape
from atent.messages import deprecated, once, unknown
from atent.threat import Box, Threat

__all__ = [
    "NotFinite", "Settings", "as_inputs", "as_labels", "as_samples", "as_tensor", "check_batch", "check_choice",
    "check_ids", "check_labels", "check_logits", "check_norm", "check_number", "check_seed", "check_threat", "collect",
    "mistyped", "numbered", "plain",
]  # fmt: skip

_OWN = frozenset({int, float, str, bool, type(None), tuple, Threat})
_NARROW = {d for d in vars(torch).values() if isinstance(d, torch.dtype) and d.is_floating_point and d.itemsize < 4}


def plain(value: Any) -> Any:
    """A scalar of numpy or torch as a Python number; any other value unchanged."""
    if type(value) in _OWN:
        return value
    single = isinstance(value, np.generic) or (isinstance(value, np.ndarray | Tensor) and value.ndim == 0)
    return value.item() if single else value


class Settings(Documented):
    """Metaclass of dataclasses of settings: converts values to Python types, and reports misuse in one line.

    A scalar of numpy or torch becomes a Python number, so that files and comparisons do not depend on its origin, and a
    list becomes the tuple that a field takes. ValueError for an unknown field, for a value that is not of the type of
    its field (`mistyped`), for something other than a `Threat` or a method where the first field is one, and for a
    threat in a norm that is not in ``norms``.
    """

    @property
    def __signature__(cls) -> inspect.Signature:
        """The fields as parameters, for `help` and editors, in place of those of ``__call__`` below."""
        parameters = list(inspect.signature(cast(Any, cls).__init__).parameters.values())
        return inspect.Signature(parameters[1:], return_annotation=None)

    def __call__(cls, *args: Any, **given: Any) -> Any:
        if not (_OWN.issuperset(map(type, args)) and _OWN.issuperset(map(type, given.values()))):
            args, given = tuple(map(plain, args)), {name: plain(value) for name, value in given.items()}
        # Attacks are constructed for every batch of training: the common case is fast.
        threat = args[0] if args else given.get("threat")
        fields = defaults(cls)
        if (line := undeclared(cls)) is not None:
            raise ValueError(line)
        if type(threat) is not Threat or "threat" not in fields or not given.keys() <= fields.keys():
            given = _current(cls, given)
            _refuse(cls, args, given)
        elif threat.norm not in getattr(cls, "norms", (threat.norm,)):
            check_norm(cls, threat.norm)
        if len(args) > len(fields):
            raise ValueError(f"{cls.__name__} has {len(fields)} fields, got {len(args)} values")
        named = given if not args else dict(zip(fields, args)) | given
        if len(named) < len(args) + len(given):
            twice = next(name for name in list(fields)[: len(args)] if name in given)
            raise ValueError(f"{cls.__name__} is given {twice} twice: give it once")
        wrong = mistyped(cls, named := fitting(cls, _present(cls, named)))
        if wrong:
            raise ValueError(wrong)
        check_complete(cls, named)
        return super().__call__(**named)


def _current(cls: type, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments under the present names of fields; a former name, in ``FORMER`` of the class, is reported once."""
    former: dict[str, str] = getattr(cls, "FORMER", {})
    for old, new in former.items():
        if old in given and new in given:
            raise ValueError(f"{cls.__name__}: {old} and {new} are the same setting: keep {new}")
        if old in given:
            deprecated(f"{old} of {cls.__name__}", new)
    return {former.get(name, name): value for name, value in given.items()}


def _present(cls: type, given: dict[str, Any]) -> dict[str, Any]:
    """The arguments with the present spelling of their values; a former one, in ``FORMER_VALUES``, is reported once."""
    for name, spellings in getattr(cls, "FORMER_VALUES", {}).items():
        value = given.get(name)
        if isinstance(value, str) and value in spellings:
            deprecated(f"{name} {value}", spellings[value])
            given = {**given, name: spellings[value]}
    return given


def _refuse(cls: type, args: tuple[Any, ...], given: dict[str, Any]) -> None:
    """ValueError, in one line, for arguments that do not fit ``cls``."""
    fields = list(defaults(cls))
    first = fields[0] if fields else ""
    odd = next((name for name in given if name not in fields), None)
    if odd == "awp" and first == "threat":
        raise ValueError(
            f"{cls.__name__} has no field awp: wrap the method, AWP({_example(cls, first)}, gamma=0.005); a recipe"
            " writes awp = { gamma = 0.005 }"
        )
    if first in ("threat", "method"):
        value = args[0] if args else given.get(first, getattr(cls, first, None) if first == "threat" else None)
        fits = isinstance(value, Threat) if first == "threat" else isinstance(type(value), Settings)
        if not fits or odd in ("eps", "epsilon", "norm"):
            written = ", ".join([*map(brief, args), *(f"{name}={brief(value)}" for name, value in given.items())])
            name, wanted = cls.__name__, first.title()
            raise ValueError(f"{name} takes a {wanted} first, got {name}({written}): write {_example(cls, first)}")
    if "threat" not in fields and any(type(value) is Threat for value in (*args, *given.values())):
        known = f": its fields are {', '.join(fields)}" if fields else ""
        raise ValueError(f"{cls.__name__} takes no Threat{known}")
    if odd is not None:
        raise ValueError(unknown(f"field of {cls.__name__}", odd, fields))


def check_norm(cls: Any, norm: str) -> None:
    """ValueError, in one line, if an attack or a training method does not support ``norm``."""
    if norm not in cls.norms:
        able = cls.able(norm)
        instead = f", or use one of {', '.join(able)}" if able else ""
        raise ValueError(f"{cls.__name__} has no form for {norm}: give a threat in {' or '.join(cls.norms)}{instead}")


def _example(cls: type, first: str) -> str:
    """An example call of the class with a valid threat."""
    if first == "method":
        return f'{cls.__name__}(PGDAT(Threat("linf", 8/255)))'
    for norm, eps, text in (("linf", 8 / 255, "8/255"), ("l2", 0.5, "0.5")):
        try:
            cls(Threat(norm, eps))  # type: ignore[arg-type]
        except (ValueError, TypeError):
            continue
        return f'{cls.__name__}(Threat("{norm}", {text}))'
    return f'{cls.__name__}(Threat("linf", 8/255), ...)'


def as_samples(x: Any, y: Any, model: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """Inputs and labels as tensors, from tensors, arrays, or with ``y`` None from a loader as ``x`` (`collect`).

    ``x`` is converted as by `as_inputs`; integer labels of an array become int64. ValueError, in one line, for values
    that are not numeric.
    """
    if y is None:
        if hasattr(x, "__array__"):  # tensors have it too
            raise ValueError("labels are missing: give y, one integer per input; a DataLoader of (x, y) gives both")
        x, y = collect(x)
    return as_inputs(x, model), as_labels(y)


def as_inputs(x: Any, model: nn.Module | None = None) -> Tensor:
    """``x`` as a tensor. An array is moved to the device and, if floating point, to the dtype of ``model``; half
    precision becomes the model's dtype, or float32, since 16 bits are too coarse for a ball.

    ValueError for a loader, for values that are not numeric, and for half precision with a model in half precision.
    """
    without_values = torch.get_default_device().type == "meta"
    if isinstance(x, Tensor) and not (
        without_values or x.dtype in _NARROW or x.layout != torch.strided or x.is_nested or x.is_quantized or x.is_meta
    ):
        return x
    check_dense("x", x)
    own = None if model is None else next((p for p in check_module(model).parameters() if p.is_floating_point()), None)
    wide = torch.float32 if own is None else own.dtype
    if not isinstance(x, Tensor):
        made: Tensor = as_tensor("x", x)
        made = made.to(wide) if made.is_floating_point() and wide not in _NARROW else made
        return made if own is None else made.to(own.device)
    if wide in _NARROW:
        raise ValueError(f"inputs are {x.dtype}, the model is {wide}: use float32 for both, x.float(), model.float()")
    return x.to(wide)


def as_labels(y: Any) -> Tensor:
    """``y`` as a tensor; the integers of an array, and wide unsigned ones, as int64. ValueError for None."""
    check_dense("y", y)
    if isinstance(y, Tensor):
        if y.is_complex():
            raise ValueError(f"labels must be integers, got {y.dtype}: use y.real.long()")
        if y.dtype in _NARROW:
            return y.float()
        return y.long() if y.dtype in (torch.uint16, torch.uint32, torch.uint64) else y
    if y is None:
        raise ValueError("labels are missing: give y, one integer per input")
    labels: Tensor = as_tensor("y", y)
    return labels if labels.is_floating_point() or labels.dtype == torch.bool else labels.long()


def collect(batches: Iterable[Any]) -> tuple[Tensor, Tensor]:
    """All inputs and labels of a DataLoader, a Dataset or any other iterable of pairs (x, y), in its order.

    A loader that shuffles gives another order, and therefore other sample numbers, each time.

    Parameters
    ----------
    batches
        Iterable of batches, x (b, ...) with y (b,), or of single samples, x (...) with one label.

    Returns
    -------
    tuple of Tensor
        x (n, ...) and y (n,), concatenated.

    Raises
    ------
    ValueError
        In one line: for anything else than such an iterable, for no pairs, and for inputs of different shapes.

    Examples
    --------
    >>> import torch
    >>> from torch.utils.data import DataLoader, TensorDataset
    >>> from atent.data import collect
    >>> loader = DataLoader(TensorDataset(torch.rand(20, 3, 8, 8), torch.arange(20) % 2), batch_size=6)
    >>> x, y = collect(loader)
    >>> x.shape, y.shape
    (torch.Size([20, 3, 8, 8]), torch.Size([20]))
    """
    if isinstance(batches, str | bytes | dict) or not (hasattr(batches, "__iter__") or hasattr(batches, "__getitem__")):
        raise ValueError(f"a DataLoader or an iterable of pairs (x, y) is required, got a {type(batches).__name__}")
    xs, ys, kind = [], [], type(batches).__name__
    # A Dataset ends with its length; iteration would rely on an IndexError.
    numbered = not hasattr(batches, "__iter__") and hasattr(batches, "__len__")
    for pair in (batches[k] for k in range(len(batches))) if numbered else batches:  # type: ignore[arg-type,index]
        first, label = paired(kind, pair)
        x, y = as_tensor("x", first), as_labels(label)
        if not (single := y.ndim == 0) and x.shape[:1] != y.shape[:1]:
            raise ValueError(f"inputs {tuple(x.shape)} come with labels {tuple(y.shape)}: yield one label per input")
        xs.append(x[None] if single else x)
        ys.append(y[None] if single else y)
    if not xs:
        raise ValueError(f"the {kind} yields no pairs (x, y)")
    shapes = {tuple(x.shape[1:]) for x in xs}
    if len(shapes) > 1:
        raise ValueError(f"the {kind} yields inputs of shapes {min(shapes)} and {max(shapes)}: resize them")
    for line in unlike(batches, inputs := torch.cat(xs)):
        once(line)
    return inputs, torch.cat(ys)


def as_tensor(name: str, value: Any) -> Tensor:
    """A tensor from a tensor (unchanged), an array, a number or nested lists of numbers; ValueError for others."""
    check_dense(name, value)
    if isinstance(value, Tensor):
        return value
    if not hasattr(value, "__array__") and not isinstance(value, int | float | list | tuple):
        raise ValueError(
            f"{name} is a {type(value).__name__}, a tensor or an array is required: for a DataLoader use"
            " x, y = atent.data.collect(loader)"
        )
    try:
        if (array := np.asarray(value)).dtype.kind in "cmMSU":
            raise ValueError(f"they are {array.dtype}")
        if array.dtype.kind not in "fiub":
            # bfloat16 is not a numpy type, but its arrays convert to float32.
            array = array.astype(np.float32)
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = " ".join(str(error).split())
        words = name[0] == "y" and np.iterable(value) and all(isinstance(each, str) for each in value)
        fix = label_remedy(np.asarray(value)) if words else ""
        raise ValueError(f"{name} cannot be read as numbers ({reason}){fix or ': give a tensor or an array'}") from None


def check_number(
    name: str, value: float, low: float, high: float | None = None, *, above: bool = False, below: bool = False,
    whole: bool = False,
) -> Any:  # fmt: skip
    """The value as a Python number; ValueError unless finite, >= ``low`` (> ``low`` with ``above``), <= ``high``
    (< ``high`` with ``below``), and an integer if ``whole``."""
    if type(value) is not int and (whole or type(value) is not float):
        value = plain(value)
        if not isinstance(value, Integral if whole else Real):
            raise ValueError(f"{name} must be {'an integer' if whole else 'a number'}, got {shown(value)}")
    if isinstance(value, bool) or not low <= value < math.inf or (above and value == low):
        raise ValueError(f"{name} must be {'above' if above else 'at least'} {low:g}, got {shown(value)}")
    if high is not None and (value > high or (below and value == high)):
        interval = f"{'(' if above else '['}{low:g}, {high:g}{')' if below else ']'}"
        raise ValueError(f"{name} must lie in {interval}, got {shown(value)}")
    if value > LARGEST:
        raise ValueError(f"{name} must be at most {LARGEST:.2g}, the largest of float32, got {shown(value)}")
    return value


def check_choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    """ValueError unless ``value`` is one of ``allowed``."""
    if not isinstance(value, str) or value not in allowed:
        raise ValueError(f"{name} {shown(value)} is not known: use one of {', '.join(allowed)}")


def check_threat(threat: Any) -> None:
    """ValueError unless ``threat`` is a `Threat`."""
    if not isinstance(threat, Threat):
        raise ValueError(f'threat must be a Threat, got {shown(threat)}: write Threat("linf", 8/255)')


def check_seed(seed: int) -> int:
    """The seed as a plain integer; ValueError unless an integer in [-2^63, 2^64), what torch's generators take."""
    seed = plain(seed)
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not -(2**63) <= seed < 2**64:
        raise ValueError(f"seed must be an integer of at most 64 bits, got {shown(seed)}")
    return int(seed)


def numbered(ids: Tensor | None, n: int, device: torch.device | str) -> Tensor:
    """Sample numbers (n,) on ``device``, default 0 .. n-1; ValueError as `check_ids`."""
    if ids is None:
        return torch.arange(n, device=device)
    usual = isinstance(ids, Tensor) and ids.layout == torch.strided and not (ids.is_nested or ids.is_meta)
    numbers: Tensor = ids if usual else as_tensor("ids", ids)
    if not isinstance(ids, Tensor) and not numbers.is_floating_point() and numbers.dtype != torch.bool:
        numbers = numbers.long()
    check_ids(numbers.to(device), n)
    return numbers.to(device)


def check_ids(ids: Tensor, n: int) -> None:
    """ValueError unless ``ids`` are n integers in [0, 2^48)."""
    if ids.shape != (n,) or ids.dtype != torch.int64:
        raise ValueError(f"ids must be {n} int64 sample numbers, got {ids.dtype} of shape {tuple(ids.shape)}")
    if n and (int(ids.min()) < 0 or int(ids.max()) >= 2**48):
        raise ValueError(f"ids must lie in [0, 2^48), got {int(ids.min())} to {int(ids.max())}")


def check_batch(x: Tensor, y: Tensor, box: Box) -> None:
    """ValueError, in one line, for inputs or labels that are invalid for attacks."""
    for name, t in (("x", x), ("y", y)):
        if t.layout != torch.strided or t.is_nested or t.is_quantized or t.is_meta:
            check_dense(name, t)
    if not x.is_floating_point():
        interval = f" in [{box[0]:g}, {box[1]:g}]" if isinstance(box[0], float) else ""
        raise ValueError(f"inputs must be floats{interval}, got {x.dtype}: {float_remedy(str(x.dtype))}")
    if x.dim() < 2:
        raise ValueError(f"inputs must be (n, d) or (n, c, h, w), got shape {tuple(x.shape)}")
    if y.shape != x.shape[:1] or y.is_floating_point() or y.dtype == torch.bool:
        shape, fix = tuple(y.shape), label_remedy(np.asarray(y.tolist()))
        raise ValueError(f"labels must be {len(x)} integers, one per input, got {y.dtype} of shape {shape}{fix}")
    if not len(x):
        return
    if not torch.isfinite(x).all():
        raise ValueError("inputs contain NaN or infinity: clean the data first")
    if isinstance(box[0], tuple):
        Threat("linf", 0.0, box).check_channels(x.shape[1:])
        for channel, (first, last) in enumerate(zip(*box)):
            part = x[:, channel] if len(box[0]) == x.shape[1] else x.flatten(1)[:, channel]
            _check_range(part, first, last, f"inputs of channel {channel}")
    else:
        _check_range(x, *box, "inputs")
    if int(y.min()) < 0:
        raise ValueError(f"labels must be 0 or more, got {int(y.min())}")


def _check_range(x: Tensor, first: float, last: float, what: str) -> None:
    low, high = float(x.detach().min()), float(x.detach().max())
    slack = 1e-5 * (last - first)
    if low < first - slack or high > last + slack:
        where = f"[{low:.4g}, {high:.4g}], outside the box [{first:g}, {last:g}]"
        raise ValueError(f"{what} lie in {where}: {in_units(low, high, first, last)}")


def check_labels(y: Tensor, classes: int) -> None:
    """ValueError for a label that is not one of the model's ``classes`` outputs."""
    if len(y) and int(y.max()) >= classes:
        raise ValueError(f"label {int(y.max())} is out of range: the model has {classes} outputs (0 to {classes - 1})")


class NotFinite(ValueError):
    """The model returned ``logits`` that are NaN or infinite."""

    def __init__(self, logits: Tensor | None = None) -> None:
        super().__init__(not_finite(logits))


def check_logits(logits: Tensor, y: Tensor) -> None:
    """ValueError, in one line, for a model output that is not valid logits for these labels."""
    check_shape(logits, len(y))
    check_labels(y, logits.shape[1])
    z = logits.detach().float()
    if not torch.isfinite(z).all():
        raise NotFinite(z)
    # Equal one-hot rows come from a network that ignores its input, such as one with a bias only.
    constant = bool((z == z[:1]).all()) and bool(((z == 0) | (z == 1)).all())
    if not constant and bool((z >= 0).all()) and bool(((z.sum(1) - 1).abs() < 1e-4).all()):
        raise ValueError(
            "the model returns probabilities (each row is >= 0 and sums to 1): remove its softmax, attacks need logits"
        )
