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
"""The attacks under a threat that names none, by norm."""

_SYNTAX = 'write NORM EPS and what else it has, such as "linf 8/255", "l0 6 group pixel" or "patch 1 side 4"'
_FIELDS = ("group", "side", "inner", "inner_eps")
# As `show` writes them: "l0 6 pixels", "patch 1 of 4x4 linf 8/255".
_SHOWN = (
    (re.compile(r"\b(element|pixel)s?$"), r"group \1"),
    (re.compile(r"\bof (\d+)x\1\b"), r"side \1"),
    (re.compile(r"(?<!inner )\blinf (\S+)$"), r"inner linf inner_eps \1"),
)


def parse_threat(text: str, box: Box = (0.0, 1.0), *, allow_large_eps: bool = False) -> Threat:
    """The threat that ``text`` names: norm, eps, and pairs of a field and its value, or as `show` writes it.

    ValueError, in one line, for what is not understood, and for what `Threat` refuses.
    """
    norm, _, rest = text.strip().partition(" ")
    eps, _, more = rest.strip().partition(" ")
    if not eps:
        raise ValueError(f"threat {shown(text, 200)} is not understood: {_SYNTAX}")
    for pattern, pairs in _SHOWN:
        more = pattern.sub(pairs, more)
    words = re.sub(r"\bgroup group\b", "group", more).split()
    fields: dict[str, Any] = dict(zip(words[::2], words[1::2]))
    if len(words) % 2 or len(fields) < len(words) // 2 or not set(fields) <= {*_FIELDS}:
        raise ValueError(f"threat {shown(text, 200)} is not understood: {_SYNTAX}")
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
        A threat each, as `parse_threat` reads it; after a colon its attacks, with commas between them. Default: those
        of `USUAL` for its norm.
    box
        Of all threats.
    shape
        Of one sample, (channels, height, width): threats that do not fit are refused.
    allow_large_eps
        Permit an eps that covers the whole box.

    Raises
    ------
    ValueError
        In one line, for fewer than two threats, for one twice, for one without a limit, and for an attack that is not
        understood or has no form for the norm.
    """
    made: list[Attack] = []
    seen: dict[Threat, str] = {}
    for text in texts:
        named, _, attacks = text.partition(":")
        threat = parse_threat(named, box, allow_large_eps=allow_large_eps)
        if threat in seen:
            both = f"{shown(seen[threat])} and {shown(text)}"
            raise ValueError(f"threat {show(threat)} is given twice, as {both}: leave one out")
        if threat.eps == float("inf"):
            raise ValueError(f"threat {shown(text, 200)} has no limit: give a finite eps")
        if shape is not None:
            threat.check_eps(shape)
        seen[threat] = text
        for each in _split(attacks) or USUAL[threat.norm]:
            attack = parse(each, threat, ATTACKS, allow_large_eps=allow_large_eps)
            if attack.threat != threat:
                raise ValueError(
                    f"attack {shown(each)} of threat {shown(text)} has a threat of its own: leave its norm and eps out"
                )
            made.append(attack)
    if len(seen) < 2:
        raise ValueError(
            f"a union needs two threats or more, got {', '.join(map(shown, texts)) or 'none'}: add another"
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
