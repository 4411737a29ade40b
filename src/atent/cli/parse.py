"""Parses the arguments of a command from its signature and docstring.

A command is a function: its positional parameters, its keywords and their NumPy-style docstring become the command line
and its help (by tyro). Parameters that are dataclasses marked `Flat` give their fields as options of the command.
"""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import os
import re
import textwrap
import typing
from collections.abc import Callable, Iterator
from typing import Annotated, Any

import tyro

from atent.cli.width import terminal_width, wrapped
from atent.cli.words import help_wanted, is_hidden, negated, options_of, spelled
from atent.docstrings import field_docs, written
from atent.experiments.recipe_files import UsageError
from atent.fields import shown
from atent.messages import unknown

Flat: object = tyro.conf.OmitArgPrefixes
"""Marker of a dataclass whose fields are options of the command itself."""


def arg(metavar: str) -> Any:
    """The placeholder of an option's value in the help."""
    return tyro.conf.arg(metavar=metavar)


Text = Annotated[str | None, arg("TEXT")]
Name = Annotated[str | None, arg("NAME")]
Place = Annotated[str | None, arg("PATH")]
Number = Annotated[int | None, arg("N")]
Real = Annotated[float | None, arg("X")]
Limit = Annotated[int | typing.Literal["all"] | None, arg("N|all")]
Threads = Annotated[int | typing.Literal["auto"] | None, arg("N|auto")]
Subset = Annotated[typing.Literal["stratified", "first"] | None, arg("{stratified,first}")]
Norm = Annotated[typing.Literal["linf", "l2"] | None, arg("{linf,l2}")]
AnyNorm = Annotated[typing.Literal["linf", "l2", "l1", "l0", "patch"] | None, arg("{linf,l2,l1,l0,patch}")]
Group = Annotated[typing.Literal["element", "pixel"] | None, arg("{element,pixel}")]
Inner = Annotated[typing.Literal["free", "linf"] | None, arg("{free,linf}")]
Which = typing.Literal["best", "last", "raw", "ema", "swa"]
Tristate = Annotated[bool | None, arg("")]
Format = Annotated[typing.Literal["auto", "contiguous", "channels_last"] | None, arg("{auto,contiguous,channels_last}")]
Precision = Annotated[
    typing.Literal["float32", "auto", "bfloat16", "float16", "tf32"] | None,
    arg("{float32,auto,bfloat16,float16,tf32}"),
]


def read(
    command: Callable[..., Any],
    words: list[str],
    prog: str,
    *,
    renamed: dict[str, str] | None = None,
    meant: dict[str, str] | None = None,
    refused: dict[str, str] | None = None,
) -> dict[str, Any]:
    """Parse the words of a command line into keyword arguments of a command.

    ``renamed``: former spellings of options. ``meant``: options of other commands, with the equivalent option of this
    one. ``refused``: options of other commands that this one does not support, with the reason. Raises UsageError for
    words that the command does not accept.
    """
    known = options_of(command)
    hints = typing.get_type_hints(command, include_extras=True)
    signature = inspect.signature(command)
    parameters = [p.replace(annotation=hints[p.name]) for p in signature.parameters.values()]

    def held(*args: Any, **kwargs: Any) -> dict[str, Any]:
        return dict(signature.bind(*args, **kwargs).arguments)

    held.__name__, held.__annotations__ = command.__name__, hints
    held.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    held.__doc__ = _joined(inspect.getdoc(command) or "")
    words = spelled(words, known, renamed=renamed)
    if {"--name", "--runs"} <= known.keys():
        meant = {"--run": "--name", **(meant or {})}
    classes = [kind for kind in typing.get_type_hints(command).values() if dataclasses.is_dataclass(kind)]
    with documented(typing.cast("list[type]", classes)) if help_wanted(words) else contextlib.nullcontext():
        given = parsed(held, words, prog, known, meant=meant or {}, refused=refused or {})
    return {name: value for name, value in given.items() if not is_hidden(hints[name])}


def parsed(
    target: Any, words: list[str], prog: str, known: dict[str, Any], *, meant: dict[str, str] | None = None,
    refused: dict[str, str] | None = None, **more: Any,
) -> Any:  # fmt: skip
    """Parse the words with tyro; UsageError for invalid and for unexpected arguments.

    Raises SystemExit after help.
    """
    from tyro import _errors

    def refuse(event: Any) -> None:
        raise UsageError(_reason(event))

    shows = help_wanted(words)
    # For texts that only help shows, tyro would read and parse the source of each dataclass: a third of the time.
    quick = () if shows else (tyro.conf.HelptextFromCommentsOff,)
    with _width(), _errors.on_parse_error(refuse), _help() if shows else contextlib.nullcontext():
        result, left = tyro.cli(target, args=words, prog=prog, return_unknown_args=True, config=quick, **more)
    for word in left:
        if word.startswith("-"):
            option = word.partition("=")[0]
            if meant and option in meant:
                raise UsageError(f"unknown option {option!r}: did you mean {meant[option]!r}?")
            if refused and option in refused:
                raise UsageError(f"{option} is not an option of this command: {refused[option]}")
            raise UsageError(unknown("option", option, known))
    if left:
        before = words[words.index(left[0]) - 1] if left[0] in words[1:] else ""
        if known.get(before) is bool:
            raise UsageError(f"{before} takes no value, got {shown(left[0])}: write {before}, or {negated(before)}")
        raise UsageError(f"unexpected argument {shown(left[0])}: options begin with --")
    return result


def boxes() -> tyro.constructors.ConstructorRegistry:
    """Parses the box of a threat: ``0 1``, or the smallest and the largest value of each channel, ``0,-1 1,1``."""
    from atent.threat import Box

    def side(word: str) -> float | tuple[float, ...]:
        try:
            numbers = tuple(float(part) for part in word.strip("[]()").removesuffix(",").split(","))
        except ValueError:
            raise ValueError(
                f"box must be two numbers, or two lists such as 0,-1 1,1 for two channels, got {word!r}"
            ) from None
        return numbers if "," in word else numbers[0]

    def written(value: Any) -> str:
        if isinstance(value, tuple):
            return ",".join(f"{number:g}" for number in value) + ("," if len(value) == 1 else "")
        return f"{value:g}"

    registry = tyro.constructors.ConstructorRegistry()

    @registry.primitive_rule
    def rule(info: Any) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
        if info.type != Box:
            return None
        return tyro.constructors.PrimitiveConstructorSpec(
            nargs=2, metavar="LOW HIGH", instance_from_str=lambda words: tuple(map(side, words)),
            is_instance=lambda value: isinstance(value, tuple) and len(value) == 2,
            str_from_instance=lambda value: [written(end) for end in value],
        )  # fmt: skip

    return registry


# What a placeholder stands for, of options of a command and of fields of a recipe.
_KINDS = {"N": "an integer", "X": "a number", "INT": "an integer", "FLOAT": "a number"}
_SEVERAL = {"X ...": "numbers", "[INT [INT ...]]": "integers", "[FLOAT [FLOAT ...]]": "numbers"}


def _reason(event: Any) -> str:
    """A one-line message for a failure of the parser; an unknown kind of failure is named by its class."""
    kind = type(event).__name__
    if kind == "MissingArgs":
        names = [_shown(context.arg) for context in event.missing_arguments]
        return f"{', '.join(names)} is missing: see `{event.prog} --help`"
    if kind == "InvalidChoice":
        # A set, whose order differs from run to run.
        choices = ", ".join(sorted(choice for choice in event.choices if choice != "None"))
        return f"{event.argument.display_name()} must be one of {choices}, got {shown(str(event.value))}"
    if kind == "BadValue":
        return f"{event.argument.display_name()} needs a value: see `{event.prog} --help`"
    if kind == "InstantiationFailure":
        text = " ".join(str(event.message).split())
        # The parser tries the types of a union in order and reports each failure.
        tried = re.match(
            r"(?:no type matching .+? could be instantiated from|Could not find valid parse for arguments:)"
            r" \['(.*?)'\]", text,
        )  # fmt: skip
        if tried:
            metavar = str(event.argument.lowered.metavar).replace("{None}|", "")
            wanted = _SEVERAL.get(metavar) or " or ".join(_KINDS.get(part, part) for part in metavar.split("|"))
            got = tried[1].replace("', '", " ")
            return f"{event.argument.display_name()} must be {wanted}, got {shown(got)}"
        name = event.argument.display_name() if event.argument is not None else ""
        literal = re.search(r"(invalid literal for int\(\)|could not convert string to float).*?: (.*)$", text)
        if literal:
            wanted = "an integer" if "int()" in literal[1] else "a number"
            return f"{name} must be {wanted}, got {_short(literal[2])}"
        return _short(text, 400) if name and name in text else f"{name}: {_short(text, 400)}".removeprefix(": ")
    return f"invalid command line ({kind}): see `{event.prog} --help`"


def _short(text: str, most: int = 80) -> str:
    return text if len(text) <= most else f"{text[:most]}..."


def _shown(argument: Any) -> str:
    """The name of an argument in the help: a positional argument by its placeholder."""
    return str(argument.lowered.metavar if argument.is_positional() else argument.display_name())


# ---- help --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _width() -> Iterator[None]:
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(min(terminal_width(), 120))
    try:
        yield
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before


@contextlib.contextmanager
def _help() -> Iterator[None]:
    """Print the help of the parser as `_tidy` leaves it."""
    text = io.StringIO()
    try:
        with contextlib.redirect_stdout(text):
            yield
    finally:
        if text.getvalue():
            print(_tidy(text.getvalue()), end="")
            print("\n" + wrapped("also: --plugin MODULE, --trust-code, --debug, explained by `atent --help`", 0))


def _tidy(text: str) -> str:
    """Remove uninformative defaults from the help and wrap its paragraphs.

    A default of None, of an empty list or of False is omitted: the text of the option states what its absence means.
    """
    text = re.sub(r"\s*\(default:\s*(None|False|)\)", "", text)
    text = re.sub(r"\{None\}\|(.*?)(?=  |$)", r"\1       ", text, flags=re.MULTILINE)
    text = text.replace("{None,", "{")
    # The keys and values of a table, whose types fill two lines.
    text = re.sub(r"(--\S+) \[STR (?!\[)(?:(?!\n    )[\s\S])*", r"\1 KEY VALUE ...", text)
    lines = [line.rstrip() for line in text.splitlines()]
    width = int(os.environ["COLUMNS"])
    out: list[str] = []
    for line in lines:
        inset = "    " if line.startswith("usage:") else ""
        is_prose = len(line) > width and not line.startswith(" ")
        out += textwrap.wrap(line, width, subsequent_indent=inset, break_on_hyphens=False) if is_prose else [line]
    return "\n".join(out).rstrip() + "\n"


def _joined(doc: str) -> str:
    """Join each paragraph of a NumPy-style docstring into one line, so that the help can rewrap it."""
    lines: list[str] = []
    for line in doc.splitlines():
        indent = len(line) - len(line.lstrip())
        previous = lines[-1] if lines else ""
        same = previous.strip() and line.strip() and indent == len(previous) - len(previous.lstrip())
        rule = set(line.strip()) == {"-"} or set(previous.strip()) == {"-"}
        if same and not rule and (indent or not _is_heading(doc, line)):
            lines[-1] = f"{previous} {line.strip()}"
        else:
            lines.append(line)
    return "\n".join(lines)


def _is_heading(doc: str, line: str) -> bool:
    """Whether an unindented line is a section heading or a parameter name."""
    _, found, below = doc.partition("\nParameters\n")
    return line == "Parameters" or (bool(found) and line in below.splitlines())


@contextlib.contextmanager
def documented(classes: list[type]) -> Iterator[None]:
    """Give the classes docstrings with one line per field, from which tyro takes their help."""
    before = {cls: written(cls) for cls in _all_of(classes)}
    try:
        for cls, doc in before.items():
            first = " ".join((doc or "").split("\n\n")[0].split())
            fields = "".join(f"{name}\n    {text}\n" for name, text in field_docs(cls).items())
            cls.__doc__ = f"{first}\n\nParameters\n----------\n{fields}"
        yield
    finally:
        for cls, doc in before.items():
            cls.__doc__ = doc


def _all_of(classes: list[type]) -> list[type]:
    """The dataclasses, and recursively the dataclasses of their fields."""
    out: list[type] = []
    for cls in classes:
        inside = [k for k in typing.get_type_hints(cls).values() if isinstance(k, type) and dataclasses.is_dataclass(k)]
        out += [c for c in (cls, *_all_of(inside)) if c not in out]
    return out
