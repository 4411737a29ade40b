"""Transfer attacks: adversarial inputs of one model, evaluated on another."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from atent import trust
from atent.attacks.base import Attack, attack
from atent.attacks.oracle import Oracle
from atent.attacks.wrapper import Wrapper
from atent.guard import guard
from atent.rng import Streams
from atent.runs.loading import load
from atent.threat import Threat


@attack
@dataclass(frozen=True)
class Transfer(Wrapper):
    """Adversarial inputs crafted on a ``source`` model and evaluated on the attacked one, which is not queried before.

    With the attacked model as the source the result equals that of the attack itself, bit for bit. The source runs in
    eval mode and is restored; its passes are not counted. A search in low precision is one on the source. A source
    given as text is loaded at the first use and moved to the device and dtype of the inputs; a module is used as it is,
    on its own device. The points of a minimum-norm attack are the smallest adversarial ones of the source.

    Raises
    ------
    ValueError
        Without a source, for a source that is neither text nor a module, and for an attack under another threat.

    References
    ----------
    Papernot, McDaniel and Goodfellow 2016, "Transferability in machine learning: from phenomena to black-box attacks
    using adversarial samples", arXiv 1605.07277.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import Transfer
    >>> source, model = (torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(48, 3)) for _ in range(2))
    >>> x, y = torch.rand(2, 3, 4, 4), torch.tensor([0, 1])
    >>> Transfer(Threat("linf", 0.1), attack="PGD(steps=3)", source=source).run(model, x, y).forwards
    tensor([1, 1])
    """

    needs_gradient: ClassVar[bool] = False

    threat: Threat
    attack: str = "PGD(steps=40)"
    """The attack on the source, as text."""
    source: str | nn.Module = ""
    """The source model: a run folder or module:function, or from Python a module."""

    def __post_init__(self) -> None:
        if not isinstance(self.source, str | nn.Module) or self.source == "":
            raise ValueError("Transfer needs a source: a run folder, module:function or, from Python, a module")
        # It is loaded later, outside the fence in which the reference was given.
        if isinstance(self.source, str) and ":" in self.source and not Path(self.source).is_dir():
            trust.check(self.source)
        super().__post_init__()
        if isinstance(self.source, nn.Module):
            object.__setattr__(self, "sources", (*self.sources, self.source))

    def of(self, rows: Tensor) -> Attack:
        part = super().of(rows)
        if part is not self:
            # A source given as text is loaded once for all batches.
            object.__setattr__(part, "model", self.model)
        return part

    @property
    def passes(self) -> int:
        return 1

    @cached_property
    def model(self) -> nn.Module:
        """The source, loaded."""
        return load_source(self.source) if isinstance(self.source, str) else self.source

    def search(self, oracle: Oracle, x: Tensor, y: Tensor, streams: Streams) -> Tensor:
        model = self.model.to(x) if isinstance(self.source, str) else self.model
        own = next(model.parameters(), None)
        model = model if own is None or own.device == x.device else _Elsewhere(model, own.device)
        with guard(model):
            return self.inner.bounded(oracle.on(model, x), x, y, streams)


class _Elsewhere(nn.Module):
    """A network that gets its inputs on its own device."""

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        super().__init__()
        self.model, self.device = model, device

    def forward(self, x: Tensor) -> Any:
        return self.model(x.to(self.device))


def load_source(text: str) -> nn.Module:
    """The model of a run folder, or of ``module:function``; ValueError, in one line, for neither, and for a run folder
    that would execute code which the user does not trust."""
    if Path(text).is_dir():
        return load(text)
    if ":" in text:
        from atent.models import from_reference

        return from_reference(text)
    raise ValueError(f"source {text!r} is neither a run folder nor module:function: give one of them")
