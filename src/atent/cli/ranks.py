"""Which commands run on all ranks of torchrun; the others run on rank 0 alone."""

from __future__ import annotations

import sys

TOGETHER = frozenset({"train", "pretrain", "evaluate", "certify", "attack"})
"""The commands whose work is shared by all ranks; under torchrun the others run on rank 0 alone."""
_LONG = frozenset({"compare", "sweep", "reproduce", "bench"})


def meant(args: list[str]) -> bool:
    """Whether the words are a command that all ranks share, and not a request for help."""
    return name_of(args) in TOGETHER and not {"-h", "--help"} & set(args)


def hint(args: list[str], size: int) -> None:
    """Report on stderr that a long command uses only one of the processes."""
    name = name_of(args)
    if name in _LONG:
        print(f"atent: {name} runs on rank 0 only; the other {size - 1} of {size} processes exit", file=sys.stderr)


def name_of(args: list[str]) -> str | None:
    """The name of the command among the words; options may precede it."""
    words = iter(args)
    for word in words:
        if word == "--plugin":
            next(words, None)
        elif not word.startswith("-"):
            return word
    return None
