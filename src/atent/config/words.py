"""The words of a command line, read by tyro into a dataclass; every mistake is one line."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import re
import sys
import typing
from typing import Any

import tyro

from atent.config.recipes import UsageError, method_type
from atent.messages import unknown


def seconds(text: str, option: str) -> float:
    """A time such as 10m, 90s or 1h30m (a bare number is seconds) in seconds, above 0; UsageError in one line."""
    parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", text.strip())
    total = sum(int(n or 0) * unit for n, unit in zip(parts.groups(), (3600, 60, 1))) if parts else 0
    if total < 1:
        raise UsageError(f"{option} {text!r} is no time: write it as 10m, 90s or 1h30m")
    return float(total)


_SHORT = {f"--{s}": f"--{s}.name" for s in ("method", "model", "data", "optimizer")}


# The field cannot have the name of the function that it asks for.
_SHORT["--method.calibrate"] = "--method.calibrated"


# Where "none" is one of the names to choose from.
_NAMED_NONE = ("--train.average", "--optimizer.walk.scale")


# No limit means all; as an option's value, None would mean its default.
_LIMIT = re.compile(r"--([a-z_]+[.])?([a-z]+[_-])?limit")


def spelled(args: list[str], short: dict[str, str] = _SHORT) -> list[str]:
    """Bare section names mean their `name`, and values are spelled as Python has them."""
    words = {"true": "True", "false": "False", "none": "None", "null": "None"}
    everything = {"none": "all", "null": "all", "None": "all"}
    out: list[str] = []
    for a in args:
        head, eq, tail = a.partition("=") if a.startswith("--") else (a, "", "")
        for word in (head, tail) if eq else (a,):
            named = bool(out) and out[-1] in _NAMED_NONE
            if out and _LIMIT.fullmatch(out[-1]):
                word = everything.get(word, word)
            out.append(word if named else words.get(short.get(word, word), short.get(word, word)))
    return out


def switched(tables: dict[str, Any], args: list[str]) -> list[str]:
    """Handle --method.name: another method keeps the recipe's fields that it knows; returns the other arguments."""
    if "--method.name" not in args:
        return args
    from atent.methods import METHODS

    at = args.index("--method.name")
    if at + 1 == len(args):
        raise UsageError(f"--method.name needs a value: one of {', '.join(METHODS)}")
    name = args[at + 1]
    if name not in METHODS:
        raise UsageError(f"--method.name: {unknown('method', name, METHODS)}")
    known = {f.name for f in dataclasses.fields(method_type(name))}
    old = tables["method"]
    if name != old["name"]:
        dropped = [k for k in old if k not in known and k != "name"]
        if dropped:
            print(f"atent: {name} has no {', '.join(dropped)}: left out of the recipe's method", file=sys.stderr)
        tables["method"] = {"name": name, **{k: v for k, v in old.items() if k in known}}
    return args[:at] + args[at + 2 :]


def read_words(cls: type, args: list[str], prog: str, description: str, default: Any = None) -> Any:
    """Parse by tyro; what it prints of an error in a box is raised as one line instead."""
    caught = io.StringIO()
    try:
        with contextlib.redirect_stderr(caught):
            parsed, left = tyro.cli(
                cls, args=args, prog=prog, description=description, use_underscores=True,
                return_unknown_args=True, **({} if default is None else {"default": default}),
            )  # fmt: skip
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UsageError(_one_line(caught.getvalue())) from None
    for word in left:
        if word.startswith("-"):
            raise UsageError(unknown("option", word.partition("=")[0], _options(cls)))
    if left:
        raise UsageError(f"{left[0]!r} is one argument too many: options begin with --")
    return parsed


def _options(cls: type, prefix: str = "--") -> list[str]:
    """Every option of a command, for suggestions."""
    out = []
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        kind = hints[f.name]
        out += (
            _options(typing.cast(type, kind), f"{prefix}{f.name}.")
            if dataclasses.is_dataclass(kind)
            else [prefix + f.name]
        )
    return out


def _one_line(box: str) -> str:
    """The first sentence of tyro's error box."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", box)
    lines = [line.strip("│╭╮╰╯─ \t") for line in text.splitlines()]
    body = [line for line in lines[1:] if line]
    ends = (i for i, line in enumerate(body) if line.startswith(("Argument helptext", "For full helptext")))
    return " ".join(body[: next(ends, len(body))]).removeprefix("Error parsing ")
