"""Which commands several processes of torchrun do together, and what the others do under it."""

from __future__ import annotations

import sys

TOGETHER = frozenset({"train", "pretrain", "evaluate", "certify", "attack"})
"""The commands whose work all ranks share; under torchrun the others run on rank 0 alone."""
_LONG = frozenset({"compare", "sweep", "reproduce", "bench"})


def meant(args: list[str]) -> bool:
    """Whether the words are a command that the ranks do together; a help text is not."""
    return name_of(args) in TOGETHER and not {"-h", "--help"} & set(args)


def hint(args: list[str], size: int) -> None:
    """Say on stderr that a long command uses one of the processes."""
    name = name_of(args)
    if name in _LONG:
        print(f"atent: {name} runs on rank 0 alone, the other {size - 1} of {size} processes end", file=sys.stderr)


def name_of(args: list[str]) -> str | None:
    """The name of the command among the words, which options may precede."""
    words = iter(args)
    for word in words:
        if word == "--plugin":
            next(words, None)
        elif not word.startswith("-"):
            return word
    return None
