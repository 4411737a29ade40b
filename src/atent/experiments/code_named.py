"""The user's code that defines the trainings of a comparison or a sweep."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from atent import trust
from atent.attacks import ATTACKS
from atent.certify import CERTIFIERS
from atent.data import SOURCES
from atent.methods import METHODS
from atent.models import MODELS
from atent.optim import OPTIMIZERS
from atent.origins import sources_in, sources_of
from atent.registry import Registry, load_object

_KINDS: tuple[Registry[Any], ...] = (METHODS, MODELS, OPTIMIZERS, SOURCES, ATTACKS, CERTIFIERS)


def code_named(settings: Any) -> dict[str, str]:
    """The hashes of the user's files that some settings name, as module:Thing or by the name of a plug-in, by module.

    ``settings`` are strings in nested lists and tables. ValueError for a plug-in that cannot be imported.
    """
    names = {text.partition("(")[0].strip() for text in _texts(settings)}
    plugins: list[Any] = [kind.find(name) for kind in _KINDS for name in sorted(names.intersection(kind.names()))]
    modules = []
    for reference in trust.references(settings):
        with contextlib.suppress(ValueError):  # an attack of another package, or what a training reports
            plugins.append(load_object(reference))
            modules.append(reference.partition(":")[0])
    return {**sources_of(plugins), **sources_in(modules)}


def _texts(value: Any) -> Iterator[str]:
    """The strings in nested lists and tables."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list | tuple):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)
