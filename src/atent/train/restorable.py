"""Whether a checkpoint's states of a method and an optimizer can be read again, by code that runs nothing of theirs."""

from __future__ import annotations

import io
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from atent.contracts import kind_of
from atent.registry import first_line

_PARTS = ("method", "optimizer")
_TENSORS = (Tensor, nn.Parameter)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.Size, torch.dtype, torch.device)


def check(state: Mapping[str, Any]) -> None:
    """ValueError, in one line, unless a file can restore the states of the method and of the optimizer in ``state``.

    A checkpoint is read without running code, so that it contains tensors, plain values and collections of these. An
    optimizer creates its state in its first step, and a method may extend it: each checkpoint is checked before it
    replaces an earlier one. Tensors are omitted, so that no size matters.
    """
    for part in _PARTS:
        content = _without_tensors(state[part])
        try:
            buffer = io.BytesIO()
            torch.save(content, buffer)
            torch.load(io.BytesIO(buffer.getvalue()), weights_only=True)
        except Exception as error:  # of the code of the user, which may raise anything
            found = next(_odd(content, ""), first_line(error))
            raise ValueError(
                f"the {part}'s state cannot be restored from a checkpoint ({found}): use tensors, numbers, texts, and"
                " lists, tuples and dicts of these"
            ) from error


def _without_tensors(value: Any) -> Any:
    """The value with one empty tensor in place of each tensor."""
    if type(value) in _TENSORS:
        return _EMPTY
    if type(value) in (dict, OrderedDict):
        return {key: _without_tensors(each) for key, each in value.items()}
    if type(value) in (list, tuple):
        return type(value)(map(_without_tensors, value))
    return value


_EMPTY = torch.empty(0, device="cpu")


def _odd(value: Any, place: str) -> Iterator[str]:
    """The entries of other types, such as "state.0.recent is a deque"."""
    if type(value) is dict:
        for key, each in value.items():
            yield from _odd(each, f"{place}.{key}" if place else str(key))
    elif type(value) in (list, tuple):
        for number, each in enumerate(value):
            yield from _odd(each, f"{place}.{number}" if place else str(number))
    elif type(value) not in (*_TENSORS, *_PLAIN):
        yield f"{place} is {kind_of(value)}"
