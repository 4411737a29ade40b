"""Attacks as text: ``PGD(steps=40, step_size=0.01, restarts=5)``, in recipes, on the command line and in results."""

from __future__ import annotations

import ast
import dataclasses
from typing import Any

from atent.attacks.base import Attack
from atent.run import unknown
from atent.threat import Threat

_SYNTAX = "write it as a call, such as PGD(steps=40, step_size=0.01, restarts=5) or FGSM"


def parse(text: str, threat: Threat | None, attacks: dict[str, type[Attack]]) -> Attack:
    """The attack that ``text`` names, against ``threat``; ``norm=`` and ``eps=`` in the text replace its own.

    ValueError, in one line, for bad syntax, an unknown attack or field, or a value out of range.
    """
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except SyntaxError:
        raise ValueError(f"attack {text!r} is not understood: {_SYNTAX}") from None
    name, keywords = (tree.func, tree.keywords) if isinstance(tree, ast.Call) else (tree, [])
    if not isinstance(name, ast.Name) or (isinstance(tree, ast.Call) and tree.args):
        raise ValueError(f"attack {text!r} is not understood: {_SYNTAX}")
    if name.id not in attacks:
        raise ValueError(unknown("attack", name.id, attacks))
    cls = attacks[name.id]
    known = [f.name for f in dataclasses.fields(cls) if f.name != "threat"]
    values = {}
    for keyword in keywords:
        if keyword.arg not in (*known, "norm", "eps"):
            raise ValueError(unknown(f"field of {name.id}", str(keyword.arg), [*known, "norm", "eps"]))
        values[keyword.arg] = _value(keyword.value, text)
    norm, eps = values.pop("norm", threat and threat.norm), values.pop("eps", threat and threat.eps)
    if norm is None or eps is None:
        raise ValueError(f"attack {text!r} has no threat: add norm='linf' (or 'l2') and eps=...")
    box = threat.box if threat else (0.0, 1.0)
    try:
        return cls(threat=Threat(norm, eps, box), **values)
    except TypeError as error:
        raise ValueError(f"attack {text!r}: {error}") from None
    except ValueError as error:
        raise ValueError(f"attack {text!r}: {error}") from None


def _value(node: ast.expr, text: str) -> Any:
    """A literal, a bare word (taken as text) or a fraction of two numbers; no code is run."""
    if isinstance(node, ast.Name):
        return {"true": True, "false": False, "none": None}.get(node.id, node.id)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
        return f"{ast.unparse(node.left)}/{ast.unparse(node.right)}"
    try:
        return ast.literal_eval(node)
    except ValueError:
        raise ValueError(f"attack {text!r}: {ast.unparse(node)} is not a plain value: {_SYNTAX}") from None


def spell(attack: Attack) -> str:
    """The text of an attack: its name and every field that differs from the default, the threat left out."""
    fields = [
        f"{f.name}={getattr(attack, f.name)}"
        for f in dataclasses.fields(attack)
        if f.name != "threat" and getattr(attack, f.name) != f.default
    ]
    return type(attack).__name__ + (f"({', '.join(fields)})" if fields else "")
