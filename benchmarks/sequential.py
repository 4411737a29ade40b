"""The sequential test of one radius beside all n noise samples: verdicts and noise samples on the test images of a run.

`python benchmarks/sequential.py runs/mnist5k-l2-gaussian --radius 0.25 0.549 --limit 60 --out sequential.json`

The run is certified with all n samples and by the test at each radius (`certify_folder`, so an interrupted command
resumes), with the same noise; the verdicts are compared image by image. Beside it, without a network, the mean numbers
of samples and the power of three tests at the same thresholds, computed exactly for classes of known share: the
spending of alpha by exact probabilities that `atent.certify.sequential` does, alpha divided evenly over the same
analyses (union bound), and a mixture of likelihood ratios over the shares above the threshold, checked at the same
analyses (Ville's inequality). All three have the same early analyses and the same rule of futility.
"""

from __future__ import annotations

import argparse
import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
from atent_step import positive
from scipy.special import betainc, betaln

from atent.certify.rows import Row
from atent.certify.sequential import Plan, binomial, plan, threshold
from atent.experiments.certificate import certify_folder
from atent.runs import provenance, write_json


def verdict(row: Row, radius: float) -> str:
    if row.predict < 0 or row.radius < radius:
        return "abstained"
    return "certified" if row.correct else "certified_wrong"


def compared(fixed: list[Row], tested: list[Row], radius: float, n0: int, n: int) -> dict[str, object]:
    """What the test says of the same images, and what it took."""
    pairs = [(verdict(a, radius), verdict(b, radius)) for a, b in zip(fixed, tested, strict=True)]
    assert [a.idx for a in fixed] == [b.idx for b in tested]
    samples = np.array([row.samples for row in tested])
    kinds = ("certified", "certified_wrong", "abstained")
    return {
        "radius": radius,
        "images": len(pairs),
        "verdicts_of_all_samples": {kind: sum(a == kind for a, _ in pairs) for kind in kinds},
        "verdicts_of_the_test": {kind: sum(b == kind for _, b in pairs) for kind in kinds},
        "same_verdict": sum(a == b for a, b in pairs),
        "differ": [{"idx": r.idx, "all": a, "test": b} for r, (a, b) in zip(fixed, pairs, strict=True) if a != b],
        "samples_mean": float(samples.mean()),
        "samples_median": float(np.median(samples)),
        "samples_most": int(samples.max()),
        "times_fewer": (n0 + n) / float(samples.mean()),
    }


# ---- three tests, exactly


def divided(test: Plan, share: float, alpha: float) -> Plan:
    """Alpha divided evenly over the analyses that full agreement can pass: exact binomial tails, union bound."""
    able = [analysis for analysis in test.analyses if share**analysis <= alpha / len(test.analyses)]
    bounds = []
    for analysis in test.analyses:
        low, mass = binomial(analysis, 1 - share, 1e-25)
        count = int(np.searchsorted(np.cumsum(mass), alpha / max(len(able), 1), side="right"))
        bounds.append(low + count - 1 if count and analysis in able else -1)
    return replace(test, certify=tuple(bounds))


def mixed(test: Plan, share: float, alpha: float) -> Plan:
    """The mean likelihood ratio over a uniform share in (threshold, 1): at least 1 / alpha with probability alpha."""

    def log_ratio(failures: int, analysis: int) -> float:
        a, b = analysis - failures + 1, failures + 1
        above = 1 - betainc(a, b, share)
        if above <= 0:
            return -math.inf
        top = betaln(a, b) + math.log(above) - math.log(1 - share)
        return float(top - (analysis - failures) * math.log(share) - failures * math.log(1 - share))

    bounds = []
    for analysis in test.analyses:
        count = -1
        while count < analysis and log_ratio(count + 1, analysis) >= math.log(1 / alpha):
            count += 1
        bounds.append(count)
    return replace(test, certify=tuple(bounds))


def outcome(test: Plan, share: float) -> tuple[float, float]:
    """P(certified) and the mean number of samples for a class of this share."""
    low, mass, before, found, samples = 0, np.ones(1), 0, 0.0, 0.0
    for analysis, certify, abandon in zip(test.analyses, test.certify, test.abandon, strict=True):
        samples += (analysis - before) * float(mass.sum())
        start, more = binomial(analysis - before, 1 - share, 1e-25)
        low, mass, before = low + start, np.convolve(mass, more), analysis
        failures = low + np.arange(len(mass))
        found += float(mass[failures <= certify].sum())
        kept = np.flatnonzero((failures > certify) & (failures < abandon))
        if not len(kept):
            break
        low, mass = low + int(kept[0]), mass[kept[0] : kept[-1] + 1]
    return found, samples


def tests(radius: float, sigma: float, n: int, alpha: float) -> dict[str, object]:
    share = threshold(radius, sigma)
    spending = plan(share, n, alpha)
    kinds = {"spending": spending, "union": divided(spending, share, alpha), "mixture": mixed(spending, share, alpha)}
    spread = math.sqrt(share * (1 - share) / n)
    shares = [share, *(share + k * spread for k in (3, 4, 5, 7)), *(1 - f * (1 - share) for f in (0.5, 0.1, 0.001))]
    rows = [
        {"share": p, **{name: dict(zip(("power", "samples"), outcome(test, p))) for name, test in kinds.items()}}
        for p in shares
    ]
    return {"radius": radius, "threshold": share, "detectable": spending.detectable, "shares": rows}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", help="run folder of a network that was trained under noise")
    parser.add_argument("--radius", type=float, nargs="+", default=[0.25, 0.549], help="l2 radii to decide")
    parser.add_argument("--limit", type=positive, default=60, help="test images, by the data subset rule")
    parser.add_argument("--n", type=positive, default=10_000, help="noise samples, the most that the test takes")
    parser.add_argument("--n0", type=positive, default=100, help="noise samples that choose the class")
    parser.add_argument("--alpha", type=float, default=0.001, help="error per image")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    how = {"n": args.n, "n0": args.n0, "alpha": args.alpha, "limit": args.limit, "device": "cpu", "threads": 1}
    _, content, fixed = certify_folder(args.run, radii=args.radius, sequential=False, **how)
    results = []
    for radius in args.radius:
        _, _, tested = certify_folder(args.run, radii=[radius], sequential=True, **how)
        results.append(compared(list(fixed.rows), list(tested.rows), radius, args.n0, args.n))
        print({k: v for k, v in results[-1].items() if k != "differ"})
    sigma = content.sampling["sigma"]
    exact = [tests(radius, sigma, args.n, args.alpha) for radius in args.radius]
    for of in exact:
        for row in of["shares"]:
            cells = (f"{k} {row[k]['power']:.3f} {row[k]['samples']:.0f}" for k in ("spending", "union", "mixture"))
            print(f"radius {of['radius']:g}, share {row['share']:.5f}:", ", ".join(cells))
    if args.out:
        images = {"text": content.images.text, "ids": content.images.ids}
        made = {"benchmark": "sequential", "run": content.run, "trained": content.trained, "images": images}
        write_json(
            args.out,
            {
                **made,
                "sampling": content.sampling,
                "clean": content.to_json()["clean"],
                "results": results,
                "tests": exact,
                "provenance": provenance(seed=0, device="cpu"),
            },
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
