"""Builders of the network and the data of a run from Python: named, tried once, and recorded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from atent import runs as folder
from atent.contracts import check_default_device
from atent.data import Data
from atent.data.builder import built as built_data
from atent.models import check_output
from atent.models.reference import gives_itself
from atent.runs.loading import built as built_model
from atent.train import rebuilt
from atent.train.preflight import random_state


@dataclass(frozen=True)
class Builders:
    """The builders given to `fit`, and their keywords; ValueError for keywords that are not JSON values."""

    model: str | None = None
    """A function as module:function, or a network of `atent.models.MODELS`; None: not given."""
    model_args: Mapping[str, Any] = field(default_factory=dict)
    """Its keywords."""
    data: str | None = None
    """A function as module:function, or a data set by name; None: not given."""
    data_args: Mapping[str, Any] = field(default_factory=dict)
    """Its keywords."""

    def __post_init__(self) -> None:
        for name, option in (("model", "builder"), ("data", "data_builder")):
            object.__setattr__(self, f"{name}_args", _plain(option, getattr(self, name), getattr(self, f"{name}_args")))

    def check(self, model: nn.Module, data: Data, config: Mapping[str, Any] | None) -> list[str]:
        """The buffers of ``model`` to store though they are not persistent: those that its builder, or the name in
        ``config``, gives with other values.

        ValueError, in one line, unless the builders give ``model``, but for its weights, and the samples of ``data``,
        and if torch creates tensors without values.
        """
        check_default_device()
        made: nn.Module | None
        name = f"builder {self.model}"
        with random_state():
            if self.model is not None:
                made = built_model(self.model, self.model_args, classes=data.classes, shape=data.shape)
                # A network may have lazy layers.
                check_output(made, data.shape, data.classes, next((p.device for p in made.parameters()), "cpu"))
            else:
                made, name = rebuilt.named(config or {}, data)
            reference = name.removeprefix("builder ")
            itself = made is not None and ":" in reference and gives_itself(reference)
            drawn = rebuilt.kept(model, made, data, name, itself=itself)
            if self.data is not None:
                _check_data(self.data, built_data(self.data, self.data_args), data)
        return drawn

    def record(self, config: dict[str, Any]) -> dict[str, Any]:
        """A run's configuration with the builders."""
        out = dict(config)
        for section, name, args in (("model", self.model, self.model_args), ("data", self.data, self.data_args)):
            if name is not None:
                out[section] = {**config[section], "builder": name, "builder_args": args}
        return out


def _plain(option: str, name: Any, args: Any) -> dict[str, Any]:
    """The keywords as JSON values."""
    if name is not None and not isinstance(name, str):
        raise ValueError(f"{option} must be a string such as 'module:function', got a {type(name).__name__}")
    if args and name is None:
        raise ValueError(f"{option}_args needs {option}: give the function that takes them")
    if not isinstance(args, Mapping) or not all(isinstance(key, str) for key in args):
        raise ValueError(f"{option}_args must be a dictionary of keywords, got a {type(args).__name__}")
    try:
        plain: dict[str, Any] = folder.plain(dict(args))
    except ValueError as error:
        raise ValueError(f"{option}_args must be numbers, strings, lists and dictionaries: {error}") from None
    return plain


def _check_data(name: str, made: Data, data: Data) -> None:
    for what in ("classes", "shape", "box"):
        if getattr(made, what) != getattr(data, what):
            raise ValueError(
                f"data_builder {name} gives {what} {getattr(made, what)}, the data have {getattr(data, what)}: give the"
                " function that built the data, and its data_builder_args"
            )
    for part in ("train", "validation", "test"):
        one, other = (getattr(d, part).to("cpu") for d in (made, data))
        if not all(torch.equal(getattr(one, k), getattr(other, k)) for k in ("x", "y", "ids")):
            raise ValueError(
                f"data_builder {name} gives other {part} samples than the data: fix its seed, or give another"
            )
