"""Attacks as text: ``PGD(steps=40, step_size=0.01, restarts=5)``, in recipes, on the command line and in results."""

from __future__ import annotations

import ast
import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from atent import trust
from atent.attacks.base import ATTACKS, Attack
from atent.fields import shown, with_norms
from atent.messages import shared_settings, unknown
from atent.origins import defined_here, without_addresses
from atent.registry import Registry
from atent.threat import COUNTS, EXTRA, NORMS, Radii, Threat

_SYNTAX = "write it as a call, such as PGD(steps=40, step_size=0.01, restarts=5) or FGSM"


# Names such as "auto-attack standard" and "AutoAttack (linf)", in lower case without punctuation and spaces.
_STANDARD = re.compile(r"(standard|full)?autoattack(standard|full|linf|l2|l1)*")
_APGD = {"ce": "APGD-CE", "dlr": "APGD-DLR", "dlr-targeted": "APGD-T", "margin": "APGD-margin"}


_THREAT = ("norm", "eps", "allow_large_eps", *EXTRA)


# Python's parser crashes on some longer texts.
_LONGEST = 10_000
# An attack may be a class in the user's files, module:Class.
_REFERENCE = re.compile(r"\s*([\w.]+:[\w.]+)\s*(\(.*)?", re.DOTALL)


def as_attack(attack: Any) -> Attack:
    """The attack; ValueError, in one line, for its class, its text or anything else."""
    if not isinstance(attack, Attack):
        raise ValueError(f"attack must be an attack, got {shown(attack)}: write PGD(threat)")
    return attack


def parse(
    text: str, threat: Threat | None, attacks: Registry[type[Attack]], *, allow_large_eps: bool = False
) -> Attack:
    """The attack described by ``text``, for ``threat``; fields of a threat in the text (``norm=``, ``eps=``, ``group=``
    and others) replace those of ``threat``, and ``allow_large_eps`` accepts a large eps in any text.

    ValueError, in one line, for invalid syntax, an unknown attack or field, or a value out of range.
    """
    if not isinstance(text, str) or len(text) > _LONGEST:
        raise ValueError(f"attack {shown(text, 200)} is not valid: {_SYNTAX}")
    reference = _REFERENCE.fullmatch(text)
    call = f"reference{reference[2] or ''}" if reference else text.strip()
    try:
        tree = ast.parse(call, mode="eval").body
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        raise ValueError(f"attack {shown(text, 200)} is not valid: {_SYNTAX}") from None
    name, keywords = (tree.func, tree.keywords) if isinstance(tree, ast.Call) else (tree, [])
    if not isinstance(name, ast.Name):
        own = defined_here(ast.unparse(name)) if isinstance(name, ast.Attribute) else None
        if own is not None:
            raise ValueError(f"attack {shown(text, 200)} is not valid: did you mean {own!r}?")
        raise ValueError(f"attack {shown(text, 200)} is not valid: {_SYNTAX}")
    called = reference[1] if reference else name.id
    cls = attacks.find(called)
    known = [f.name for f in dataclasses.fields(cls) if f.name != "threat"]
    if isinstance(tree, ast.Call) and tree.args:
        raise ValueError(f"attack {shown(text, 200)} is not valid: {_named(called, tree, known)}")
    values: dict[str, Any] = {}
    for keyword in keywords:
        field = str(keyword.arg)
        # The class itself reports a former name as deprecated.
        if field not in (*known, *_THREAT, *getattr(cls, "FORMER", {})):
            raise ValueError(unknown(f"field of {called}", field, [*known, *_THREAT]))
        if field in values:
            raise ValueError(f"attack {shown(text, 200)} gives {field} twice")
        values[field] = _value(keyword.value, text)
    against = {} if threat is None else threat.plain()
    # A field of the attack takes precedence over one of the threat.
    changes = with_norms(Threat, {k: values.pop(k) for k in _THREAT if k in values and k not in known})
    if changes.get("norm", against.get("norm")) != against.get("norm"):
        if against and changes["norm"] in NORMS and "eps" not in changes:
            raise ValueError(f"attack {shown(text, 200)} has norm {changes['norm']} without its eps: add eps=...")
        against = {name: value for name, value in against.items() if name not in EXTRA}
    if isinstance(changes.get("eps"), list | tuple):
        raise ValueError(f"attack {shown(text, 200)} has several eps: write one; a sample's own is given in Python")
    against |= changes
    if against.get("norm") is None or against.get("eps") is None:
        raise ValueError(f"attack {shown(text, 200)} has no threat: add norm='linf' (or 'l2') and eps=...")
    against["allow_large_eps"] = bool(against.get("allow_large_eps")) or allow_large_eps
    try:
        made = cls(threat=Threat(**against), **values)
    except trust.Untrusted:
        raise
    except ValueError as error:
        raise ValueError(f"attack {shown(text, 200)}: {error}") from None
    if made.threat.eps == math.inf and not made.minimum_norm:
        small = ", ".join(each for each, kind in attacks.items() if kind.minimum_norm)
        raise ValueError(f"attack {shown(text, 200)} needs a finite eps, got inf: add eps=..., or use one of {small}")
    return made


def _named(called: str, call: ast.Call, known: Sequence[str]) -> str:
    """What to write for a call with positional arguments: these with the names of the first settings."""
    free = [name for name in known if name not in [each.arg for each in call.keywords]]
    if len(call.args) > len(free) or any(isinstance(each, ast.Starred) for each in call.args):
        return f"{called} has the settings {', '.join(known)}" if known else f"{called} has no settings"
    words = [f"{name}={_source(node)}" for name, node in zip(free, call.args)]
    words += [f"{each.arg}={_source(each.value)}" for each in call.keywords]
    return f"its settings are named, write {called}({', '.join(words)})"


def nested(text: str, threat: Threat) -> Attack:
    """The attack described by ``text``, as part of another attack for ``threat``; ValueError for another threat."""
    attack = parse(text, threat, ATTACKS)
    if attack.threat != threat:
        raise ValueError(
            f"attack {shown(text, 200)} has a threat of its own: give norm and eps to the attack around it"
        )
    return attack


def _value(node: ast.expr, text: str) -> Any:
    """A literal, a bare word or two with a dash (read as text), or a fraction of two numbers; no code is executed."""
    if isinstance(node, ast.Name):
        return {"true": True, "false": False, "none": None}.get(node.id, node.id)
    try:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Sub):
            return "-".join(word.id for word in (node.left, node.right))  # type: ignore[attr-defined]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div):
            return ast.literal_eval(node.left) / ast.literal_eval(node.right)
        return ast.literal_eval(node)
    except (ValueError, TypeError, ArithmeticError, AttributeError, RecursionError):
        raise ValueError(f"attack {shown(text, 200)}: {_source(node)} is not a plain value: {_SYNTAX}") from None


def _source(node: ast.expr) -> str:
    try:
        return shown(ast.unparse(node)).strip("'")
    except (RecursionError, ValueError):
        return "one of its values"


def _written(value: Any) -> str:
    """A value as `_value` parses it; a module, which text cannot express, by the name of its class."""
    if isinstance(value, str):
        return value if value.isidentifier() else repr(value)
    return _named_value(value)


def _named_value(value: Any) -> str:
    """A value without the address of an object: a module by its class, a function by its name."""
    if hasattr(value, "forward"):
        return type(value).__name__
    named = callable(value) and hasattr(value, "__qualname__")
    return str(value.__qualname__) if named else without_addresses(str(value))


def plain(attack: Attack) -> dict[str, Any]:
    """The fields of an attack except its threat, as plain values: a module by the name of its class."""
    fields = ((f.name, getattr(attack, f.name)) for f in dataclasses.fields(attack) if f.name != "threat")
    return {name: _written(value) if hasattr(value, "forward") else value for name, value in fields}


def spell(attack: Attack, *, threat: bool = False) -> str:
    """The text of an attack: its name and each field that differs from the default; with ``threat`` also the fields of
    its threat except the box."""
    fields = [
        f"{f.name}={_written(getattr(attack, f.name))}"
        for f in dataclasses.fields(attack)
        if f.name != "threat" and getattr(attack, f.name) != f.default
    ]
    if threat:
        against: Threat = attack.threat
        eps = f"{against.eps:g}" if against.norm in COUNTS and isinstance(against.eps, float) else against.eps
        fields += [f"norm={against.norm}", f"eps={eps}", *(f"{k}={_written(v)}" for k, v in against.extra().items())]
        fields += ["allow_large_eps=True"] if against.allow_large_eps else []
    return _called(type(attack)) + (f"({', '.join(fields)})" if fields else "")


def _called(cls: type[Attack]) -> str:
    """The name of an attack in texts; the names of this package's attacks are reserved for their classes."""
    name = ATTACKS.name_of(cls)
    return f"{cls.__module__}:{name}" if ATTACKS.is_built_in(name) and cls is not ATTACKS.find(name) else name


def label(attack: Attack) -> str:
    """A short name for tables: PGD-20, PGD-40 x 5 (restarts), PGD-100 margin (loss), PGD-10 momentum 1, FGSM, ATENT-20
    for Langevin, APGD-CE, APGD-T, APGD-DLR-50 (steps other than 100), AutoAttack rand, EoT PGD-20, Transfer PGD-40,
    CW-9x1000 for CarliniWagner.

    Every other field that differs from its default follows in brackets, since it may change the strength: PGD-40
    (step_size 0.01), AutoAttack (steps 10, queries 100). The bare name AutoAttack means the standard settings.
    """
    name, said = _name(attack)
    more = [
        f"{f.name} {_shown(value)}"
        for f in dataclasses.fields(attack)
        if f.name not in said and (value := getattr(attack, f.name)) != f.default
    ]
    return name + (f" ({', '.join(more)})" if more else "")


def _name(attack: Attack) -> tuple[str, set[str]]:
    """A label without its brackets, and the fields that it shows."""
    cls = type(attack).__name__
    if cls.lower() == "autoattack" or (ATTACKS.is_built_in(cls) and type(attack) is not ATTACKS.find(cls)):
        cls = _called(type(attack))  # bare names are reserved for one class each
    inner = getattr(attack, "inner", None)
    if isinstance(inner, Attack):
        return f"{cls} {label(inner)}", {"threat", "attack"}
    said = {"threat"}
    if attack.parts():
        version = getattr(attack, "version", "standard")
        return cls + ("" if version == "standard" else f" {version}"), {*said, "version"}
    name = {"Langevin": "ATENT", "CarliniWagner": "CW"}.get(cls, cls)
    # A user-defined class may lack these fields; those that the label shows are not repeated in brackets.
    count = next((f for f in ("steps", "queries") if hasattr(attack, f)), "")
    steps, restarts = getattr(attack, count, None), getattr(attack, "restarts", None) or 1
    loss, usual = getattr(attack, "loss", "ce"), getattr(type(attack), "loss", "ce")
    if restarts > 1:
        said.add("restarts")
    if cls == "APGD":
        name = _APGD[loss] + (f"-{steps}" if steps != 100 else "")
        return name + (f" x {restarts}" if restarts > 1 else ""), {*said, "steps", "loss"}
    if cls == "FAB" and getattr(attack, "targets", None):
        name += "-T"
        said |= {"targets"} if getattr(attack, "targets", None) == 9 else set()
    searches = getattr(attack, "search_steps", None)
    if steps:
        name += f"-{searches}x{steps}" if searches else f"-{steps}"
        said |= {count, "search_steps"} if searches else {count}
    name += (f" x {restarts}" if restarts > 1 else "") + (f" {loss}" if loss != usual else "")
    momentum = getattr(attack, "momentum", None)
    if isinstance(momentum, float) and momentum != getattr(type(attack), "momentum", None):
        name, said = f"{name} momentum {momentum:g}", {*said, "momentum"}
    return name, {*said, "loss"}


def _shown(value: Any) -> str:
    """A value for display."""
    if isinstance(value, float):
        return f"{value:.6g}"
    return _named_value(value)


def is_standard(text: str) -> bool:
    """Whether the text of an attack, as written by `spell`, is AutoAttack at its standard settings."""
    return text.strip() in ("AutoAttack", "AutoAttack()")


def check_names(named: Mapping[str, Attack]) -> None:
    """ValueError if the name AutoAttack, in any spelling, is given to another attack, or to AutoAttack at other
    settings, and for a name that is not one line of text."""
    for name, attack in named.items():
        if not isinstance(name, str) or not name.strip() or not name.isprintable():
            raise ValueError(
                f"the name of an attack must be one line of text, got {shown(name)}: name it {label(attack)!r}"
            )
        if _STANDARD.fullmatch(re.sub(r"[\W_]", "", name.lower())) and not is_standard(spell(attack)):
            raise ValueError(
                f"the name {name} is reserved for AutoAttack at its standard settings, got {spell(attack)}: name it"
                f" {label(attack)!r}"
            )


def labelled(attacks: Sequence[Attack]) -> dict[str, Attack]:
    """Attacks by label; with norm and eps if their threats differ, and by their full text if even those agree.

    ValueError for a repeated attack.
    """
    several = len({a.threat for a in attacks}) > 1
    levels = [
        *([] if several else [[label(a) for a in attacks]]),
        [f"{label(a)} {show(a.threat)}" for a in attacks],
        [spell(a, threat=True) for a in attacks],
    ]
    names = []
    for i in range(len(attacks)):
        unique = [level[i] for level in levels if level.count(level[i]) == 1]
        if not unique:
            raise ValueError(f"attack {levels[-1][i]} is listed twice: omit one, or name both in a mapping")
        names.append(unique[0])
    return dict(zip(names, attacks))


def relabelled(attacks: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The ``attacks`` of a stored evaluation by their present labels; unchanged if one is not a valid text of an
    attack, or refers to code that the file is not trusted to run."""
    try:
        with trust.fenced(), shared_settings():
            made = [parse(entry["attack"], Threat(**entry["threat"]), ATTACKS) for entry in attacks.values()]
        return dict(zip(labelled(made), attacks.values()))
    except (KeyError, TypeError, ValueError):
        return dict(attacks)


def show(threat: Threat) -> str:
    """A threat for display: "linf 8/255", "l2 0.5", "l0 100 pixels", "patch 2 of 4x4 linf 8/255"."""
    if isinstance(threat.eps, Radii):
        size = f"{min(threat.eps, default=0):g}..{max(threat.eps, default=0):g}"
    else:
        size = _size(float(threat.eps))
    if threat.norm == "l0":
        size += f" {threat.units.removesuffix('s') if size == '1' else threat.units}"
    elif threat.norm == "patch":
        size += f" of {threat.side}x{threat.side}"
        size += f" linf {_size(float(threat.inner_eps))}" if threat.inner_eps is not None else ""
    return f"{threat.norm} {size}{' per sample' if isinstance(threat.eps, Radii) else ''}"


def _size(eps: float) -> str:
    """A radius for display: in units of 1/255 if it is a small multiple of that."""
    levels = round(255 * eps) if math.isfinite(eps) else 0
    return f"{levels}/255" if 1 <= levels <= 32 and math.isclose(eps, levels / 255, rel_tol=1e-9) else f"{eps:g}"
