"""The method of a training's steps: the method itself, and what the settings put around it."""

from __future__ import annotations

from dataclasses import replace

from atent.methods import Method, awp, embedding
from atent.methods.inner import InnerPrecision, lowered
from atent.train.settings import TrainSettings


def around(method: Method, settings: TrainSettings, inner: InnerPrecision | None = None) -> Method:
    """The method with the terms and perturbations that the settings ask for; itself where they ask for none.

    ``inner`` is the precision of its inner chain that was chosen where the settings leave it open; default: theirs.

    ValueError, in one line, for a method that they do not go around.
    """
    method = lowered(method, inner or settings.inner_precision)
    return awp.perturbed(embedding.regularised(method, settings.embedding), settings.awp)


def apart(method: Method, settings: TrainSettings) -> tuple[Method, TrainSettings]:
    """The method inside an `AWP` and an `EmbeddingRegularised`, and the settings that say the same; the method and
    the settings as they are without these. ValueError where both ask for one."""
    method, perturbation = awp.apart(method, settings.awp)
    method, term = embedding.apart(method, settings.embedding)
    return method, replace(settings, awp=perturbation, embedding=term)


def title(method: Method, settings: TrainSettings) -> str:
    """The name of what trains, for tables: TRADES, TRADES-ER, TRADES-AWP, TRADES-ER-AWP."""
    er, perturbed = "-ER" if settings.embedding.weight else "", "-AWP" if settings.awp.gamma else ""
    return f"{type(method).__name__}{er}{perturbed}"
