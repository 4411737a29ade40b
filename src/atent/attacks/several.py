"""Several threats at once as text, each with its attacks: ``l0 6 group pixel: SparsePGD, SparseRS(queries=500)``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from atent.attacks.base import ATTACKS, Attack
from atent.attacks.spec import labelled, parse, show
from atent.fields import shown
from atent.threat import Box, Threat

USUAL: dict[str, tuple[str, ...]] = {
    "linf": ("AutoAttack",),
    "l2": ("AutoAttack",),
    "l1": ("AutoAttack",),
    # The three parts of the sparse AutoAttack of Zhong, Huang and Liu 2024.
    "l0": ("SparsePGD", "SparsePGD(gradient=projected)", "SparseRS"),
    "patch": ("TokenAttack", "TokenAttack(score=greedy)"),
}
"""Default attacks of a threat, by norm."""

_SYNTAX = 'write NORM EPS and its other fields, such as "linf 8/255", "l0 6 group pixel" or "patch 1 side 4"'
_FIELDS = ("group", "side", "inner", "inner_eps")
# As `show` writes them: "l0 6 pixels", "patch 1 of 4x4 linf 8/255".
_SHOWN = (
    (re.compile(r"\b(element|pixel)s?$"), r"group \1"),
    (re.compile(r"\bof (\d+)x\1\b"), r"side \1"),
    (re.compile(r"(?<!inner )\blinf (\S+)$"), r"inner linf inner_eps \1"),
)


def parse_threat(text: str, box: Box = (0.0, 1.0), *, allow_large_eps: bool = False) -> Threat:
    """The threat described by ``text``: norm, eps, and pairs of field and value, or the form that `show` writes.

    ValueError, in one line, for invalid syntax, and for values that `Threat` refuses.
    """
    norm, _, rest = text.strip().partition(" ")
    eps, _, more = rest.strip().partition(" ")
    if not eps:
        raise ValueError(f"threat {shown(text, 200)} is not valid: {_SYNTAX}")
    for pattern, pairs in _SHOWN:
        more = pattern.sub(pairs, more)
    words = re.sub(r"\bgroup group\b", "group", more).split()
    fields: dict[str, Any] = dict(zip(words[::2], words[1::2]))
    if len(words) % 2 or len(fields) < len(words) // 2 or not set(fields) <= {*_FIELDS}:
        raise ValueError(f"threat {shown(text, 200)} is not valid: {_SYNTAX}")
    if re.fullmatch(r"[0-9]{1,9}", fields.get("side", "")):
        fields["side"] = int(fields["side"])
    try:
        return Threat(norm.lower(), eps, box, allow_large_eps, **fields)  # type: ignore[arg-type]
    except (TypeError, ValueError) as error:
        raise ValueError(f"threat {shown(text, 200)}: {error}") from None


def several(
    texts: Sequence[str], box: Box = (0.0, 1.0), *, shape: Sequence[int] | None = None, allow_large_eps: bool = False
) -> dict[str, Attack]:
    """The attacks of all ``texts`` by name, for `atent.evaluate.evaluate` with ``cascade="threat"``.

    Parameters
    ----------
    texts
        One threat each, in the syntax of `parse_threat`; after a colon its attacks, separated by commas. Default
        attacks: those of `USUAL` for its norm.
    box
        Box of all threats. Default: [0, 1].
    shape
        Shape of one sample, (channels, height, width): threats that do not fit are refused. Default: not checked.
    allow_large_eps
        Accept an eps that covers the entire box. Default: False.

    Returns
    -------
    dict of str to Attack
        The attacks by label.

    Raises
    ------
    ValueError
        In one line, for fewer than two threats, for a repeated one, for an infinite eps, and for an attack with invalid
        syntax or without support for the norm.
    """
    made: list[Attack] = []
    seen: dict[Threat, str] = {}
    for text in texts:
        named, _, attacks = text.partition(":")
        threat = parse_threat(named, box, allow_large_eps=allow_large_eps)
        if threat in seen:
            both = f"{shown(seen[threat])} and {shown(text)}"
            raise ValueError(f"threat {show(threat)} is given twice, as {both}: omit one")
        if threat.eps == float("inf"):
            raise ValueError(f"threat {shown(text, 200)} has an infinite eps: give a finite one")
        if shape is not None:
            threat.check_eps(shape)
        seen[threat] = text
        for each in _split(attacks) or USUAL[threat.norm]:
            attack = parse(each, threat, ATTACKS, allow_large_eps=allow_large_eps)
            if attack.threat != threat:
                raise ValueError(
                    f"attack {shown(each)} of threat {shown(text)} has a threat of its own: omit its norm and eps"
                )
            made.append(attack)
    if len(seen) < 2:
        raise ValueError(
            f"a union needs at least two threats, got {', '.join(map(shown, texts)) or 'none'}: add another"
        )
    return labelled(made)


def _split(text: str) -> list[str]:
    """The parts between commas outside brackets."""
    parts, depth = [""], 0
    for letter in text:
        depth += (letter in "([{") - (letter in ")]}")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return [part.strip() for part in parts if part.strip()]
