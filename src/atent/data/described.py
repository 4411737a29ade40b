"""Which samples were evaluated: as a record, and in words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from atent.data import Data, Split
from atent.data.split import Part


def described(data: Data, part: Part, chosen: Split) -> dict[str, Any]:
    """What ``chosen`` samples of a part of the data are, as plain values: name, split, n, of (the size of the part),
    subset (the rule that chose them), subset_seed and ids (as `spans`)."""
    of = len(getattr(data, part))
    if part == "test":  # data.test_limit may have left fewer
        of = data.about.get("available", {}).get("test", of)
    return {
        "name": data.name, "split": part, "n": len(chosen), "of": of, "subset": data.subset,
        "subset_seed": data.seed, "ids": spans(chosen.ids.tolist()),
    }  # fmt: skip


def words(samples: Mapping[str, Any]) -> str:
    """Which samples `described` describes: "all 500", "a stratified sample of 100 of 500 (seed 0)" or "the first 100 of
    500". Results from before subsets were recorded are of the first samples."""
    n, of = f"{samples['n']:,}", f"{samples['of']:,}"
    if samples["n"] == samples["of"]:
        return f"all {n}"
    if samples.get("subset", "first") == "first":
        return f"the first {n} of {of}"
    return f"a stratified sample of {n} of {of} (seed {samples['subset_seed']})"


def spans(numbers: Iterable[int]) -> str:
    """Integers from 0, in their order, with runs of successors abbreviated: 0 1 2 7 5 as "0-2 7 5"."""
    out: list[list[int]] = []
    for number in numbers:
        if out and number == out[-1][1] + 1:
            out[-1][1] = number
        else:
            out.append([number, number])
    return " ".join(str(low) if low == high else f"{low}-{high}" for low, high in out)


def unspan(text: str) -> list[int]:
    """The numbers that `spans` wrote."""
    ends = [word.split("-") for word in text.split()]
    return [number for end in ends for number in range(int(end[0]), int(end[-1]) + 1)]
