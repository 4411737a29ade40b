"""Inputs, labels, ids, seeds and networks that no attack can use, and the check that they are refused."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atent.attacks.base import Attack
from atent.testing.contract import require
from atent.testing.networks import Found, Through


@dataclass(frozen=True)
class Bad:
    """One thing that is wrong with a call."""

    says: str
    """A word that the error must hold, so that it names what was given."""
    x: Callable[[Tensor, tuple[float, float]], Tensor] = lambda x, _box: x
    y: Callable[[Tensor, int], Tensor] = lambda y, _classes: y
    """From the labels and the number of classes."""
    model: Callable[[nn.Module], nn.Module] = lambda m: m
    given: Callable[[int], dict[str, Any]] = lambda n: {}
    """Further keywords, from the number of samples."""


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
"""What is given -> how it is made of a good call."""


def check_refused(kind: str, attack: Attack, model: nn.Module, x: Tensor, y: Tensor) -> None:
    """`Broken` unless the attack refuses this kind in one line that names it, and leaves the network as found."""
    bad = BAD[kind]
    with torch.no_grad():
        classes = int(model(x[:2].clone()).shape[1])
    x, y = bad.x(x, attack.threat.box), bad.y(y, classes)
    keywords = bad.given(len(x) if x.dim() else 1)
    model = bad.model(copy.deepcopy(model)).train()
    found = Found(model)
    try:
        attack(model, x, y, **keywords)
    except ValueError as error:
        require("\n" not in str(error), f"an error of several lines for {kind}", "one line")
        require(bad.says in str(error), f"for {kind} the error {str(error)!r}", f"one that says {bad.says!r}")
    except Exception as error:
        require(False, f"{type(error).__name__} for {kind}", "ValueError")
    else:
        require(False, f"a result for {kind}", "ValueError")
    found.check(f" after {kind}")
