"""Checks whether a search in low precision fools the same images: bfloat16 against float32, and against another seed.

    python benchmarks/search.py RUN --out results/search-mnist.json [--limit 2000]

Attacks the same test images three times with PGD (20 steps) and APGD-CE (20 steps), each alone: in float32, in bfloat16
with the same seed, and in float32 with another seed, which shows the noise of seeds. A killed measurement resumes. The
file holds robust accuracies with intervals, how often the verdicts differ (paired, with the sign test), the gradients'
CPU seconds, and how many images were searched again.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch

from atent import runs, stats
from atent.attacks import APGD, PGD
from atent.evaluate import evaluate, search
from atent.experiments.target import load_target

ARMS: dict[str, dict[str, Any]] = {
    "float32": {"seed": 0, "search_dtype": None},
    "bfloat16": {"seed": 0, "search_dtype": "bfloat16"},
    "float32, seed 1": {"seed": 1, "search_dtype": None},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--limit", type=int, default=2000)
    parser.add_argument("--arm", choices=ARMS, help="measure this one only, for a later call to join")
    given = parser.parse_args()
    who = load_target(given.run, attacks=(), limit=given.limit)
    assert who.threat is not None
    x, y, ids = who.test()
    attacks = {"PGD-20": PGD(who.threat, steps=20), "APGD-CE-20": APGD(who.threat, steps=20, loss="ce")}
    found = {}
    for name in [given.arm] if given.arm else ARMS:
        found[name] = measured(
            who.model, x, y, ids, attacks, given.out.with_suffix(f".{name.replace(', ', '-')}.json"), name
        )
    if given.arm is None:
        runs.write_json(
            given.out,
            {
                **content(found, attacks),
                "run": who.name,
                "samples": who.samples(),
                "threat": who.threat.plain(),
                "provenance": runs.provenance(seed=0, device=x.device),
            },
        )


def measured(model, x, y, ids, attacks, path: Path, name: str) -> dict[str, Any]:
    """An arm's verdicts and CPU seconds; kept in a file, so that a call that was killed takes up where it was."""
    if path.is_file():
        return runs.read_json(path)
    again = [0]
    plain = search.attacked

    def counted(attack, network, z, *args, **how):
        # A second search is asked for after a low one, and never has a precision of its own.
        again[0] += len(z) if how.get("search_dtype") is None and ARMS[name]["search_dtype"] else 0
        return plain(attack, network, z, *args, **how)

    search.attacked = counted
    begun = time.process_time()
    result = evaluate(model, x, y, attacks, ids=ids, cascade=False, **ARMS[name])
    search.attacked = plain
    row = {
        "cpu_seconds": time.process_time() - begun,
        "again": again[0],
        "n": result.n,
        "clean": result.clean,
        "robust": {k: v["robust"] for k, v in result.attacks.items()},
        "worst": result.worst,
        "outcomes": result.outcomes["attacks"],
        "folded": result.folded,
    }
    runs.write_json(path, row)
    return row


def content(found: dict[str, dict[str, Any]], attacks) -> dict[str, Any]:
    arms = {name: {k: v for k, v in row.items() if k != "outcomes"} for name, row in found.items()}
    base, pairs = found["float32"]["outcomes"], {}
    for name in list(ARMS)[1:]:
        other = found[name]["outcomes"]
        for attack in attacks:
            lost = sum(a == "f" and b == "s" for a, b in zip(base[attack], other[attack]))
            won = sum(a == "s" and b == "f" for a, b in zip(base[attack], other[attack]))
            pairs[f"{name}: {attack}"] = {
                "only_float32_fools": lost,
                "only_this_fools": won,
                "p": min(1.0, 2 * stats.sign_test(max(lost, won), min(lost, won))),
            }
    return {"arms": arms, "paired_with_float32": pairs, "near": search.NEAR, "torch_threads": torch.get_num_threads()}


if __name__ == "__main__":
    main()
