"""Registries of attacks, methods, models, data sets, optimizers and certifiers: built-in, installed, or user-defined.

There are four kinds of names. A built-in: a module of the subpackage registers it by a decorator. An entry point of an
installed package, in the group of the kind (`atent.attacks`, `atent.methods`, `atent.models`, `atent.data`,
`atent.optimizers`, `atent.certifiers`). "module:Thing", imported from the current directory or the installed packages
if `atent.trust` permits it: only `load_object` turns a name into code. And "foolbox:LinfPGD", with a prefix known to
the registry: an object of another package, found by a module of this one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.metadata
import os
import pkgutil
import sys
import textwrap
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, cast, overload

from atent import trust
from atent.contracts import kind_of
from atent.docstrings import Documented
from atent.messages import nearest, unknown
from atent.origins import announced, announcers, defined_here, leads_to, target, version_of

__all__ = ["Plugin", "Registry", "load_object"]

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """Name -> object, for one ``kind`` of objects, such as "attack".

    Parameters
    ----------
    kind
        Name of the kind in errors.
    package
        The package whose modules register the built-in objects: all are imported at the first look-up.
    group
        The entry point group of installed packages.
    fits
        Whether an object of a plug-in is of this kind.
    wanted
        Description of the kind, for errors.
    others
        Prefixes of names with their own finder, and the module whose function ``find`` it is. Such a name can refer
        only to what that finder knows, so it needs no trust. Default: none.
    flaw
        Returns the error, in one line, for an object of the user that lacks what its kind needs, else None. Default: no
        check.
    page
        The page of the documentation that describes the kind, for errors. Default: docs/extending.md.

    Examples
    --------
    >>> from atent.attacks import ATTACKS
    >>> ATTACKS.find("PGD").__name__, ATTACKS.origin("PGD"), "no such attack" in ATTACKS
    ('PGD', 'built-in', False)
    """

    def __init__(
        self, kind: str, package: str, group: str, fits: Callable[[Any], bool], wanted: str,
        others: Mapping[str, str] = MappingProxyType({}), *, flaw: Callable[[Any], str | None] | None = None,
        page: str = "docs/extending.md",
    ) -> None:  # fmt: skip
        self.kind, self.package, self.group, self.fits, self.wanted = kind, package, group, fits, wanted
        self.flaw, self.page = flaw, page
        self.others = others
        self._built_in: dict[str, T] = {}
        self._installed: dict[str, T] | None = None
        self._complete = False

    # ---- registering

    @overload
    def register(self, entry: T) -> T: ...
    @overload
    def register(self, entry: str) -> Callable[[T], T]: ...

    def register(self, entry: Any) -> Any:
        """Decorator: a built-in by its own name, or ``register("name")`` by another. ValueError for a name in use."""
        if isinstance(entry, str):
            return lambda thing: self._add(entry, thing)
        return self._add(entry.__name__, entry)

    def _add(self, name: str, entry: T) -> T:
        before = self._built_in.get(name)
        # A module that is imported again replaces its entries.
        if before is not None and where(before) != where(entry):
            raise ValueError(f"{self.kind} {name!r} is registered by {where(before)} already: choose another name")
        self._built_in[name] = entry
        return entry

    def _discover(self) -> dict[str, T]:
        if not self._complete:
            self._complete = True
            try:
                package = importlib.import_module(self.package)
                for found in sorted(pkgutil.iter_modules(package.__path__), key=lambda m: m.name):
                    importlib.import_module(f"{self.package}.{found.name}")
            except BaseException:
                self._complete = False
                raise
            self._built_in = dict(sorted(self._built_in.items(), key=lambda item: item[0].lower()))
        return self._built_in

    def _entries(self) -> dict[str, list[importlib.metadata.EntryPoint]]:
        """Entry points by name, several where packages announce different objects; a built-in keeps its name."""
        return {name: points for name, points in announced(self.group).items() if name not in self._discover()}

    # ---- looking up

    def find(self, name: str) -> T:
        """The object called ``name``; ValueError, in one line, if there is none or it cannot be imported."""
        if name in self._discover():
            entry = self._built_in[name]
            return entry if self._is_own(entry) else self._checked(entry, name)
        if self.delegates(name):
            return self._checked(importlib.import_module(self.others[name.partition(":")[0]]).find(name), name)
        if ":" in name:
            return self._checked(referred(self.kind, name), name)
        points = self._entries().get(name, [])
        if not points:
            if (own := defined_here(name)) is not None:
                raise ValueError(f"unknown {self.kind} {name!r}: did you mean {own!r}?")
            listed = f"atent list {self.group.rpartition('.')[2]}"
            raise ValueError(unknown(self.kind, name, self.names(), listed))
        point = points[0]
        if len(points) > 1:
            raise ValueError(f"{self.kind} {name!r} is announced by {announcers(points)}: write it as {target(point)}")
        try:
            found = point.load()
        except (Exception, SystemExit) as error:
            package = point.dist.name if point.dist else point.value
            raise ValueError(f"{self.kind} {name!r} of {package} cannot be imported: {first_line(error)}") from error
        return self._checked(found, name)

    def _checked(self, found: Any, name: str) -> T:
        if not self.fits(found):
            raise ValueError(f"{self.kind} {name!r} is {kind_of(found)}, not {self.wanted} (see {self.page})")
        if self.flaw is not None and (flaw := self.flaw(found)) is not None:
            raise ValueError(f"{self.kind} {name!r}: {flaw} (see {self.page})")
        if dataclasses.is_dataclass(found):
            # The defaults of trusted code are trusted.
            trust.grant([each.default for each in dataclasses.fields(found)])
        return cast(T, found)

    # As a mapping it contains the known names only; references are resolved by `find` only, since a membership test
    # must not import code.
    def __getitem__(self, name: str) -> T:
        if name not in self:
            raise KeyError(name)
        return self.find(name)

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (name in self._discover() or name in self._entries())

    def names(self) -> list[str]:
        """The known names, also of objects that cannot be imported, which is not tried."""
        return [*self._discover(), *self._entries()]

    def delegates(self, name: str) -> bool:
        """Whether ``name`` has a prefix with its own finder."""
        prefix, colon, _ = name.partition(":")
        return bool(colon) and prefix in self.others

    def is_built_in(self, name: str) -> bool:
        """Whether ``name`` is one of the package's own."""
        return name in self._discover() and self._is_own(self._built_in[name])

    def _is_own(self, entry: Any) -> bool:
        """Whether the package defines ``entry``; user modules may register others by the decorator."""
        module = getattr(entry, "__module__", self.package)
        return f"{module}.".startswith(f"{self.package.partition('.')[0]}.")

    def __iter__(self) -> Iterator[str]:
        yield from self._discover()
        for name in self._entries():
            try:
                self.find(name)
            except ValueError as error:
                # One broken package must not hide the others.
                warnings.warn(str(error), stacklevel=2)
            else:
                yield name

    def __len__(self) -> int:
        return sum(1 for _ in self)

    # ---- names of objects

    def name_of(self, entry: Any) -> str:
        """The name by which `find` returns ``entry``; its bare name if there is none, as for an object that is defined
        in a script or a function."""
        for name, known in self._discover().items():
            if known is entry and self._is_own(entry):
                return name
        alone = ((n, points[0]) for n, points in self._entries().items() if len(points) == 1)
        installed = next((n for n, point in alone if leads_to(point, entry)), None)
        if installed is not None:
            return installed
        importable = entry.__module__ != "__main__" and "<" not in entry.__qualname__
        return where(entry) if importable else str(entry.__name__)

    def reference(self, name: str) -> str:
        """The reference module:Thing of ``name``, which is not built in."""
        if ":" in name:
            return name
        if name in self._discover():
            return where(self._built_in[name])
        return target(self._entries()[name][0])

    def origin(self, name: str) -> str:
        """The origin of ``name``: "built-in", the package and version, or the module."""
        if self.is_built_in(name):
            return "built-in"
        package = self._entries()[name][0].dist if name in self._entries() else None
        if package is not None:
            return f"{package.name} {package.version}"
        module = self.reference(name).partition(":")[0]
        return version_of(module) or module


def exported(registry: Registry[Any], module: str, name: str, others: Sequence[str]) -> Any:
    """The module attribute ``name`` of the package ``module``, looked up in the registry.

    ``others`` are the package's other public names, for ``import *``. AttributeError for an unknown name.
    """
    if name == "__all__":
        return [*others, *(known for known in registry if registry.is_built_in(known))]
    if name in registry:
        return registry[name]
    raise AttributeError(f"module {module!r} has no attribute {name!r}")


@dataclass(frozen=True)
class Plugin(metaclass=Documented):
    """A user-defined or installed object, as recorded in a run.

    Examples
    --------
    >>> from atent.registry import Plugin
    >>> Plugin("attack", "mine:Shift", module="mine", qualname="Shift", version=None).name
    'mine:Shift'
    """

    kind: str
    """What it is, such as attack."""
    name: str
    """The name that finds it."""
    module: str
    """Its module."""
    qualname: str
    """Its name in the module."""
    version: str | None
    """Distribution and version, if it was installed."""


def plugin_of(registry: Registry[Any], entry: Any) -> Plugin | None:
    """The record of a plug-in; None for a built-in."""
    if entry.__module__.partition(".")[0] == "atent":
        return None
    module = entry.__module__
    return Plugin(registry.kind, registry.name_of(entry), module, entry.__qualname__, version_of(module))


def plugin_named(registry: Registry[Any], name: str) -> Plugin | None:
    """The record of the object called ``name``, also if it has no name itself, such as a `functools.partial`; None for
    a built-in."""
    if registry.is_built_in(name):
        return None
    module, _, qualname = registry.reference(name).partition(":")
    return Plugin(registry.kind, name, module, qualname, version_of(module))


def plugin_found(registry: Registry[Any], name: str) -> Plugin | None:
    """The record of the object called ``name``: by its own name, or by ``name`` if it has none."""
    entry = registry.find(name)
    return plugin_of(registry, entry) if hasattr(entry, "__qualname__") else plugin_named(registry, name)


def where(entry: Any) -> str:
    """The reference module:name of an object."""
    return f"{entry.__module__}:{entry.__qualname__}"


def load_object(reference: str) -> Any:
    """The object that a reference names.

    The current directory is searched first, as by `python -m`; `sys.path` is restored. Untrusted, before anything is
    imported, for a reference that `atent.trust` does not permit.

    Parameters
    ----------
    reference
        "module:name"; the name may be dotted.

    Returns
    -------
    object
        What the module has under this name.

    Raises
    ------
    ValueError
        In one line: if the colon is missing, the module or the name does not exist, or the import raises (the cause is
        chained).

    Examples
    --------
    >>> from atent.registry import load_object
    >>> load_object("torch.nn:Linear").__name__
    'Linear'
    """
    name, colon, path = reference.partition(":")
    if not (name and colon and path) or name.startswith("."):
        raise ValueError(f"a reference reads module:function, got {reference!r}")
    trust.check(reference)
    found = load_module(name, reference)
    *before, last = path.split(".")
    for i, part in enumerate([*before, last]):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            public = [each for each in getattr(found, "__dict__", {}) if not each.startswith("_")]
            near = nearest(part, public)
            meant = f": did you mean {f'{name}:' + '.'.join([*before[:i], near])!r}?" if near else ""
            raise ValueError(f"{reference}: module {name!r} has no attribute {path!r}{meant}") from error
    return found


def referred(kind: str, reference: str) -> Any:
    """As `load_object`; errors begin with the ``kind`` of setting that the reference was given for."""
    try:
        return load_object(reference)
    except ValueError as error:
        if type(error) is not ValueError:
            raise
        between = " " if str(error).startswith(reference) else ": "
        raise ValueError(f"{kind}{between}{error}") from error.__cause__


def load_module(name: str, asked: str) -> Any:
    """The module ``name``, which the user trusts, searched as by `load_object`; errors begin with ``asked``."""
    # A file written since the last import may otherwise be hidden by the cached directory listing.
    importlib.invalidate_caches()
    try:
        with current_directory_on_path(), trust.lifted():
            return importlib.import_module(name)
    except (Exception, SystemExit) as error:
        # A missing import inside the module is a different error.
        if isinstance(error, ModuleNotFoundError) and error.name and f"{name}.".startswith(f"{error.name}."):
            meant = f": write {name.removesuffix('.py')!r} without .py" if name.endswith(".py") else ""
            raise ValueError(f"{asked}: no module named {error.name!r} here or installed{meant}") from error
        raise ValueError(f"{asked}: importing {name} raised {first_line(error)}{_place(error, name)}") from error


def _place(error: BaseException, name: str) -> str:
    """The last line of the module ``name`` before an error of its import, and the fix of a frequent one."""
    if isinstance(error, SyntaxError):
        return ""
    lines = [
        f" ({Path(frame.f_code.co_filename).name}, line {number})"
        for frame, number in traceback.walk_tb(error.__traceback__)
        if frame.f_globals.get("__name__") == name
    ]
    frozen = isinstance(error, TypeError) and "cannot inherit non-frozen dataclass from a frozen one" in str(error)
    return (lines[-1] if lines else "") + (": write @dataclass(frozen=True)" if frozen else "")


@contextlib.contextmanager
def current_directory_on_path() -> Iterator[None]:
    """Context in which the current directory is searched first by imports."""
    before = list(sys.path)
    sys.path.insert(0, os.getcwd())
    try:
        yield
    finally:
        sys.path[:] = before


_LONGEST = 240


def first_line(error: BaseException) -> str:
    """The class and the first line of an exception, of at most 240 characters; the second too, shortened, if the first
    only announces it."""
    first, *rest = [line.strip() for line in str(error).strip().splitlines() if line.strip()] or [""]
    more = f" {textwrap.shorten(rest[0], 160, placeholder=' ...')}" if rest and first.endswith(":") else ""
    first = first if len(first) <= _LONGEST else f"{first[:_LONGEST]} ..."
    return f"{type(error).__name__}: {first}{more}".rstrip(": ")
