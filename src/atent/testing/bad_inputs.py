"""Invalid inputs, labels, ids, seeds and networks for attacks, and invalid values for settings.

The checks verify that each is refused in one line.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from atent.attacks.base import Attack
from atent.fields import mistyped
from atent.testing.contract import ContractError, require
from atent.testing.networks import Snapshot, Through
from atent.threat import Threat


@dataclass(frozen=True)
class Bad:
    """A call with one invalid argument."""

    says: str
    """A word that the error must contain, so that it names what was given."""
    x: Callable[[Tensor, tuple[float, float]], Tensor] = lambda x, _box: x
    y: Callable[[Tensor, int], Tensor] = lambda y, _classes: y
    """From the labels and the number of classes."""
    model: Callable[[nn.Module], nn.Module] = lambda m: m
    given: Callable[[int], dict[str, Any]] = lambda n: {}
    """Further keyword arguments, from the number of samples."""


def _first(value: float) -> Callable[[Tensor], Tensor]:
    def change(t: Tensor) -> Tensor:
        t = t.clone()
        t.view(-1)[0] = value
        return t

    return change


def _after(change: Callable[[Tensor], Any]) -> Callable[[nn.Module], nn.Module]:
    return lambda model: Through(model, after=change)


BAD: dict[str, Bad] = {
    "bytes": Bad("uint8", x=lambda x, _: (x * 255).to(torch.uint8)),
    "raw pixels": Bad("outside the box", x=lambda x, box: x * 255 + box[1]),
    "a value above the box": Bad("outside the box", x=lambda x, b: _first(b[1] + 0.1 * (b[1] - b[0]))(x)),
    "a value below the box": Bad("outside the box", x=lambda x, b: _first(b[0] - 0.1 * (b[1] - b[0]))(x)),
    "NaN": Bad("NaN", x=lambda x, _: _first(math.nan)(x)),
    "infinity": Bad("infinity", x=lambda x, _: _first(math.inf)(x)),
    "inputs without coordinates": Bad("shape", x=lambda x, _: x.flatten(1)[:, 0]),
    "a single number": Bad("shape", x=lambda x, _: x.flatten()[0]),
    "labels of floats": Bad("float", y=lambda y, _: y.double()),
    "labels of bools": Bad("bool", y=lambda y, _: y > 1),
    "one-hot labels": Bad("shape", y=lambda y, n: nn.functional.one_hot(y.long(), n)),
    "too few labels": Bad("shape", y=lambda y, _: y[:2]),
    "a negative label": Bad("-1", y=lambda y, _: _first(-1)(y)),
    "a label that is no class": Bad("range", y=lambda y, n: _first(n)(y)),
    "too few ids": Bad("ids", given=lambda n: {"ids": torch.arange(n - 1)}),
    "ids of floats": Bad("ids", given=lambda n: {"ids": torch.arange(float(n))}),
    "negative ids": Bad("ids", given=lambda n: {"ids": torch.arange(n) - 1}),
    "ids of 2^48 and more": Bad("ids", given=lambda n: {"ids": torch.arange(n) + 2**48}),
    "a seed of 0.5": Bad("seed", given=lambda _: {"seed": 0.5}),
    "a seed of 2^64": Bad("seed", given=lambda _: {"seed": 2**64}),
    "probabilities": Bad("probabilities", model=_after(lambda z: z.softmax(1))),
    "NaN logits": Bad("NaN", model=_after(lambda z: z * math.nan)),
    "one output for each sample": Bad("output", model=_after(lambda z: z[:, 0])),
    "logits of one sample": Bad("shape", model=_after(lambda z: z[:1])),
    "a tuple of logits": Bad("tuple", model=_after(lambda z: (z, z))),
}
"""Name of the invalid argument -> how it is made from a valid call."""


def check_refused(kind: str, attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """`Broken` unless the attack refuses this kind in one line that names it, and leaves the network unchanged."""
    bad = BAD[kind]
    with torch.no_grad():
        classes = int(model(x[:2].clone()).shape[1])
    x, y = bad.x(x, attack.threat.box), bad.y(y, classes)
    keywords = bad.given(len(x) if x.dim() else 1)
    model = bad.model(copy.deepcopy(model)).train()
    found = Snapshot(model)
    try:
        attack(model, x, y, **keywords)
    except ValueError as error:
        require("\n" not in str(error), f"an error of several lines for {kind}", "one line")
        require(bad.says in str(error), f"for {kind} the error {str(error)!r}", f"one that contains {bad.says!r}")
    except Exception as error:
        require(False, f"{type(error).__name__} for {kind}", "ValueError")
    else:
        require(False, f"a result for {kind}", "ValueError")
    found.check(f" after {kind}")


# ---- values of settings --------------------------------------------------------------------------------------


def _nested(depth: int) -> list[Any]:
    made: list[Any] = []
    for _ in range(depth):
        made = [made]
    return made


ODD: dict[str, Any] = {
    "zero": 0, "one": 1, "two": 2, "minus one": -1, "2^31": 2**31, "2^63": 2**63, "-2^63": -(2**63), "2^64": 2**64,
    "10^30": 10**30, "10^400": 10**400, "-10^400": -(10**400), "10^5000": 10**5000,
    "0.5": 0.5, "-0.0": -0.0, "1.0": 1.0, "-0.5": -0.5, "1e308": 1e308, "-1e308": -1e308, "1e38": 1e38,
    "a denormal": 5e-324, "1e-46": 1e-46, "inf": math.inf, "-inf": -math.inf, "nan": math.nan,
    "true": True, "false": False, "none": None,
    "an empty string": "", "a string": "x", "a number as a string": "5", "a fraction": "8/255",
    "inf as a string": "inf", "nan as a string": "nan", "a division by zero": "1/0", "a string with NUL": "a\0b",
    "a string of lines": "a\nb",
    "a lone surrogate": "\ud800", "a long text": "x" * 100_000, "a path up": "../x", "digits": "9" * 5000,
    "code": "__import__('os').getcwd()", "a reference": "nowhere:thing", "an odd reference": "os:",
    "bytes": b"ab", "a list": [1, 2], "an empty list": [], "a deep list": _nested(5000), "a list of strings": ["a"],
    "a tuple": (0.5, 0.5), "a tuple of nan": (math.nan, 1.0), "a dict": {"a": 1}, "an empty dict": {}, "a set": {1},
    "complex": 1j, "an object": object(), "a class": int, "a function": len,
    "numpy float": np.float32(0.5), "numpy int": np.int64(3), "numpy bool": np.bool_(True),
    "numpy nan": np.float64("nan"),
    "numpy text": np.str_("x"), "an array": np.zeros(3), "an array of no dimensions": np.array(2),
    "a tensor": torch.zeros(3), "a number in a tensor": torch.tensor(0.25), "a tensor of 2^40": torch.tensor(2**40),
    "a complex tensor": torch.zeros(2, dtype=torch.complex64),
}  # fmt: skip
"""Name -> value, for every type of JSON, Python, numpy and torch."""


class Verdict(NamedTuple):
    """The outcome for one value."""

    kind: str
    """refused, accepted or wrong."""
    says: str
    """The error; "" for an accepted value."""


def tried(make: Callable[[], Any], *names: str, works: Callable[[Any], Any] = lambda made: None) -> Verdict:
    """Whether ``make`` raises a one-line ValueError that contains one of ``names``, or its result passes ``works``.

    ``works`` may raise ValueError too, for values that are invalid only with data; any other exception is wrong.
    """
    try:
        made = make()
        works(made)
    except ValueError as error:
        text = str(error)
        if "\n" in text or not text:
            return Verdict("wrong", f"an error of several lines: {text!r}")
        if len(text) > 1000:
            return Verdict("wrong", f"an error of {len(text)} characters: {text[:200]}")
        if names and not any(re.search(rf"\b{re.escape(name)}\b", text) for name in names):
            return Verdict("wrong", f"an error that names none of {', '.join(names)}: {text}")
        return Verdict("refused", text)
    except Exception as error:
        return Verdict("wrong", f"{type(error).__name__}: {str(error)[:200]}")
    return Verdict("accepted", "")


def settings_tried(
    cls: Any, good: dict[str, Any], *, works: Callable[[Any], Any] = lambda made: None
) -> Iterator[tuple[str, str, Verdict]]:
    """For each field of a dataclass of settings and each odd value: the field, the value's name and the verdict.

    ``good`` are the other arguments. An accepted value must be of the field's type and pass ``works``.
    """

    def right(made: Any) -> None:
        values = {f.name: getattr(made, f.name) for f in dataclasses.fields(made)}
        if isinstance(made, Threat) and isinstance(made.eps, tuple):
            values.pop("eps")  # one per sample
        wrong = mistyped(type(made), values)
        if wrong:
            raise TypeError(f"accepted, though {wrong}")
        works(made)

    for field in dataclasses.fields(cls):
        for what, value in ODD.items():
            given = {**good, field.name: value}
            yield field.name, what, tried(partial(cls, **given), field.name, cls.__name__.lower(), works=right)


def check_settings(cls: Any, **good: Any) -> list[str]:
    """Check that every field of a dataclass of settings accepts or refuses values of every type in one line.

    Parameters
    ----------
    cls
        The dataclass, such as an attack or a training method.
    good
        Its required arguments, such as ``threat``.

    Returns
    -------
    list of str
        The fields that were checked.

    Raises
    ------
    ContractError
        For the first value that raises an exception other than ValueError, an error of several lines or without the
        field's name, or that is accepted although it is not of the field's type.

    Examples
    --------
    >>> from atent import Threat
    >>> from atent.attacks import PGD
    >>> from atent.testing import check_settings
    >>> "step_size" in check_settings(PGD, threat=Threat("linf", 0.1))
    True
    """
    for field, what, verdict in settings_tried(cls, good):
        if verdict.kind == "wrong":
            raise ContractError(f"{cls.__name__}({field}={what})", "works, or is refused in one line", verdict.says)
    return [field.name for field in dataclasses.fields(cls)]
