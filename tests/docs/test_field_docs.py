"""The docstring of a dataclass has a Parameters section from the docstrings of its fields, made when it is read."""

import inspect
import json
import pydoc
import subprocess
import sys
from dataclasses import dataclass, field, fields

import pytest

from atent import Threat
from atent.attacks import PGD, Attack
from atent.cli.parse import documented
from atent.docstrings import Documented, field_docs, with_parameters, written


@dataclass(frozen=True)
class Plain(metaclass=Documented):
    """A class of numbers.

    More of it.

    Examples
    --------
    >>> 1 + 1
    2
    """

    first: int
    """The first number,
    which has two lines."""
    second: float | None = None
    """The second one. Default: the first."""
    third: tuple[int, ...] = (1, 2)
    """More."""
    rest: list[int] = field(default_factory=list)
    """The others."""
    inside: int = field(default=3, init=False)
    """No argument."""


@dataclass(frozen=True)
class Less(Plain):
    """Fewer numbers."""

    second: float | None = 0.5


@dataclass(frozen=True)
class Written(metaclass=Documented):
    """A class with a section of its own.

    Parameters
    ----------
    value
        As written.
    """

    value: int
    """Not this."""


TEXT = """A class of numbers.

More of it.

Parameters
----------
first : int
    The first number, which has two lines.
second : float | None, optional
    The second one. Default: the first.
third : tuple[int, ...], default: (1, 2)
    More.
rest : list[int], optional
    The others.

Examples
--------
>>> 1 + 1
2"""


def test_the_section_precedes_the_others():
    assert inspect.getdoc(Plain) == Plain.__doc__ == TEXT
    assert "second : float | None, default: 0.5\n    The second one. Default: the first." in Less.__doc__
    assert Less.__doc__.startswith("Fewer numbers.\n\nParameters\n----------\nfirst : int\n")
    assert "Not this" not in Written.__doc__
    assert Plain(1).second is None


@pytest.mark.parametrize("cls", [PGD, Threat, Plain])
def test_help_shows_it(cls):
    def words(text):
        return " ".join(text.replace("|", " ").split())

    text = words(pydoc.plain(pydoc.render_doc(cls)))
    docs = field_docs(cls)
    assert [each.name for each in fields(cls) if words(docs[each.name]) not in text and each.init] == []


def test_a_class_of_the_user_has_it_too():
    @dataclass(frozen=True)
    class Mine(Attack):
        """Mine."""

        steps: int = 3
        """How many."""

    assert Mine.__doc__.splitlines()[0] == "Mine."
    assert Mine.__doc__.endswith("steps : int, default: 3\n    How many.")
    # Without source code, as in a terminal, the fields have no text.
    space = {"__name__": "nowhere", "Attack": Attack, "dataclass": dataclass}
    exec("@dataclass(frozen=True)\nclass Typed(Attack):\n    'Typed.'\n    steps: int = 3", space)
    assert space["Typed"].__doc__.endswith("steps : int, default: 3")


def test_metaclasses_have_their_own():
    assert Documented.__doc__.startswith("Metaclass of dataclasses whose")
    assert type(PGD).__doc__.startswith("Metaclass of dataclasses of settings")


def test_it_may_be_set():
    before = written(Plain)
    Plain.__doc__ = "Other."
    try:
        assert with_parameters(Plain).startswith("Other.\n\nParameters")
    finally:
        Plain.__doc__ = before
    assert Plain.__doc__ == TEXT
    with documented([Plain]):
        assert Plain.__doc__.startswith("A class of numbers.\n\nParameters\n----------\nfirst\n    The first")
    assert written(Plain) == before


def test_an_import_reads_no_source():
    code = (
        "import json, sys, atent.attacks, atent.methods, atent.train, atent.evaluate, atent.certify\n"
        "list(atent.attacks.ATTACKS), list(atent.methods.METHODS)\n"
        "from atent.docstrings import _own\nprint(json.dumps(_own.cache_info().misses), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stderr.splitlines()[-1]) == 0
