"""The certifiers by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from atent.certify.bounds import bounds
from atent.certify.smoothing import Smoothed
from atent.checks import NotFinite
from atent.contracts import kind_of, owned
from atent.guard import ask, guard
from atent.origins import called_by
from atent.precision import full_precision
from atent.registry import Registry, first_line
from atent.threat import Threat


def _is_certifier(found: Any) -> bool:
    made = called_by(found)
    return callable(found) and (not isinstance(made, type) or callable(getattr(made, "certify", None)))


CERTIFIERS: Registry[Callable[..., Any]] = Registry(
    "certifier",
    "atent.certify",
    "atent.certifiers",
    _is_certifier,
    "a function of (model, x, threat), or a class with a method certify",
    page="docs/add-certifier.md",
)
"""Name -> class whose objects have ``certify``, as `Smoothed`, or function (model, x, threat) that gives bounds of the
logits, as `bounds`."""

certifier = CERTIFIERS.register
"""Decorator that registers a certifier under its own name, or ``certifier("name")`` under another."""

certifier("smoothing")(Smoothed)


def smooths(name: str) -> bool:
    """Whether a certifier is a class like `Smoothed`, not a function like `bounds`.

    Parameters
    ----------
    name
        Name of a registered certifier (`CERTIFIERS`), or ``module:object``.

    Returns
    -------
    bool
        True for a class, whose objects have ``certify``, also as a `functools.partial`; False for a function that gives
        bounds of the logits.

    Raises
    ------
    ValueError
        In one line, for an unknown name.

    Examples
    --------
    >>> from atent.certify import smooths
    >>> smooths("smoothing"), smooths("crown")
    (True, False)
    """
    return isinstance(called_by(CERTIFIERS.find(name)), type)


def verified_by(name: str, model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> Tensor:
    """Whether a certifier verifies each sample by its bounds of the logits.

    A sample is verified where the lower bound of the logit of its class is above the upper bounds of all other logits.

    Parameters
    ----------
    name
        Name of a certifier that is a function, as `CERTIFIERS` has it, or ``module:function``.
    model
        Network; it is evaluated in eval mode and comes back as it was.
    x, y
        Inputs (n, ...) in the threat's box and true labels (n,), int64.
    threat
        The threat within which the bounds are taken.

    Returns
    -------
    Tensor
        bool (n,): verified.

    Raises
    ------
    ValueError
        In one line, where the certifier raises or returns anything but a pair of bounds, for a sample that it verifies
        and the model misclassifies, which shows that its bounds are wrong, and for logits that are NaN or infinite.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.certify import verified_by
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    >>> x = torch.rand(5, 4)
    >>> verified_by("ibp", model, x, model(x).argmax(1), Threat("linf", 0.5)).shape
    torch.Size([5])
    """
    with guard(model, mode="eval"), full_precision(x.device):
        with torch.no_grad():
            logits = ask(model, x)
        if not logits.isfinite().all():
            raise NotFinite(logits)
        try:
            found = CERTIFIERS.find(name)(model, x, threat)
        except Exception as error:
            raise ValueError(f"{name} raised {first_line(error)}") from error
    shape = tuple(logits.shape)
    if not (isinstance(found, tuple | list) and len(found) == 2 and all(isinstance(t, Tensor) for t in found)):
        raise ValueError(f"{name} returned {kind_of(found)}, not the pair (lower, upper) of tensors of shape {shape}")
    lower, upper = (t.detach() for t in found)
    if lower.shape != logits.shape or upper.shape != logits.shape:
        got = f"{tuple(lower.shape)} and {tuple(upper.shape)}"
        raise ValueError(
            f"{name} returned bounds of shapes {got}, not {shape}: a lower and an upper one for each logit"
        )
    if not (lower.is_floating_point() and upper.is_floating_point()):
        raise ValueError(f"{name} returned bounds of {lower.dtype} and {upper.dtype}, floating point is required")
    undefined = int((lower.isnan() | upper.isnan()).any(1).sum())
    if undefined and owned(CERTIFIERS.find(name)):
        raise ValueError(f"{name} returned NaN bounds for {undefined} of {len(x)} images")
    own = torch.nn.functional.one_hot(y, shape[1]).bool()
    # Comparisons with NaN are false: no sample is verified by one.
    certain: Tensor = (lower.gather(1, y[:, None]) > upper.masked_fill(own, -math.inf)).all(1)
    wrong = int((certain & (logits.argmax(1) != y)).sum())
    if wrong:
        raise ValueError(
            f"{name} verifies {wrong} of {len(x)} images that the model misclassifies, so its bounds are wrong: check"
            " it by atent.testing.check_certifier"
        )
    return certain


@certifier("ibp")
def ibp(model: nn.Module, x: Tensor, threat: Threat, **given: Any) -> tuple[Tensor, Tensor]:
    """Interval arithmetic, layer by layer (Gowal et al. 2018)."""
    return bounds(model, x, threat, "ibp", **given)


@certifier("crown-ibp")
def crown_ibp(model: nn.Module, x: Tensor, threat: Threat, **given: Any) -> tuple[Tensor, Tensor]:
    """Linear bounds of the logits with relaxations from intervals (Zhang et al. 2020)."""
    return bounds(model, x, threat, "crown-ibp", **given)


@certifier("crown")
def crown(model: nn.Module, x: Tensor, threat: Threat, **given: Any) -> tuple[Tensor, Tensor]:
    """Linear bounds of every layer, or intervals where these are tighter (Zhang et al. 2018)."""
    return bounds(model, x, threat, "crown", **given)


@certifier("dual")
def dual(model: nn.Module, x: Tensor, threat: Threat, **given: Any) -> tuple[Tensor, Tensor]:
    """The bound of the dual network (Wong and Kolter 2018)."""
    return bounds(model, x, threat, "dual", **given)


@certifier("alpha-crown")
def alpha_crown(model: nn.Module, x: Tensor, threat: Threat, **given: Any) -> tuple[Tensor, Tensor]:
    """As CROWN, with slopes from 20 steps of gradient ascent for each bound of the logits (Xu et al. 2021)."""
    return bounds(model, x, threat, "alpha-crown", **given)
