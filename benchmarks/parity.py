"""Compares this library's attacks with those of installable packages, on the same images at equal budgets.

    pip install '.[bench]'
    python benchmarks/parity.py RUN [RUN ...] --out results/parity.json

Each run is a folder that `atent train` left; its own threat and test images of its own data serve, by its data.subset.
Every result is evaluated here: in the box, within the radius (with a tolerance of 1e-5 for the peer),
misclassified, by true labels. Budget attacks are compared by robust accuracy, minimum-norm attacks by the median norm,
both on the same images: an attack of ours counts as weaker where a one-sided sign test over the images on which the two
differ falls below 2.5 %. FMN and ALMA are compared with DDN at the same number of forward passes.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import atent
from atent import Threat
from atent.attacks import ALMA, APGD, DDN, FAB, FMN, PGD, AutoAttack, CarliniWagner, DeepFool, Square
from atent.attacks.base import Attack
from atent.attacks.spec import label, spell
from atent.bench.rivals import Peer, art, autoattack, foolbox, norms_of
from atent.data import DataSettings
from atent.data import load as load_data
from atent.data.described import described
from atent.guard import guard
from atent.progress import bar
from atent.runs import provenance, read_config, write_json
from atent.stats import share, sign_test


def versus(threat: Threat) -> list[tuple[Attack, str, Peer]]:
    """(ours, the peer's name, the peer's run) for a threat; equal steps, restarts, queries and step sizes."""
    step = 2.5 * float(threat.eps) / 40
    endless = Threat(threat.norm, "inf", threat.box)
    rows: list[tuple[Attack, str, Peer]] = [
        (PGD(threat, steps=40), "foolbox PGD-40",
         foolbox("{norm}PGD", steps=40, abs_stepsize=step, random_start=True)),
        (PGD(threat, steps=40), "ART PGD-40",
         art("ProjectedGradientDescentPyTorch", eps_step=step, max_iter=40, num_random_init=1)),
        (APGD(threat, steps=100, loss="ce"), "pyautoattack APGD-CE", autoattack("ce")),
        (APGD(threat, steps=100, loss="dlr"), "pyautoattack APGD-DLR", autoattack("dlr")),
        (APGD(threat, steps=100, loss="dlr-targeted", targets=9), "pyautoattack APGD-T", autoattack("targeted")),
        (APGD(threat, steps=100, loss="ce"), "ART APGD-CE",
         art("AutoProjectedGradientDescent", eps_step=lambda t: 2 * float(t.eps), max_iter=100, nb_random_init=1,
             loss_type="cross_entropy")),
        (FAB(threat, steps=100), "pyautoattack FAB", autoattack("fab")),
        (FAB(threat, steps=100, targets=9), "pyautoattack FAB-T", autoattack("fab-targeted")),
        (Square(threat, queries=5000, schedule="absolute"), "pyautoattack Square", autoattack("square")),
        (Square(threat, queries=5000), "ART Square", art("SquareAttack", max_iter=5000, nb_restarts=1)),
        (AutoAttack(threat), "pyautoattack AutoAttack", autoattack("whole")),
        (DeepFool(endless, steps=50), "foolbox DeepFool",
         foolbox("{norm}DeepFoolAttack", steps=50, candidates=None)),
        (FMN(endless, steps=200), "foolbox FMN",
         foolbox("L2FMNAttack" if threat.norm == "l2" else "LInfFMNAttack", steps=200)),
    ]  # fmt: skip
    if threat.norm == "l2":
        rows += [
            (CarliniWagner(endless, steps=500, search_steps=9, abort_early=False), "foolbox CW",
             foolbox("L2CarliniWagnerAttack", steps=500, binary_search_steps=9, abort_early=False)),
            (DDN(endless, steps=100), "foolbox DDN", foolbox("DDNAttack", steps=100)),
        ]  # fmt: skip
    return rows


# ---- the evaluation ----------------------------------------------------------------------------------------------


def evaluated(
    model: nn.Module, x: Tensor, y: Tensor, x_adv: Tensor, threat: Threat, slack: float
) -> tuple[Tensor, float]:
    """Norms (n,) of the points that are adversarial, infinite where they are not, and the largest norm seen."""
    return norms_of(model, x, y, x_adv, threat, slack), float(threat.distance(x_adv.detach().to(x.dtype), x).max())


def timed(make: Callable[[], Tensor]) -> tuple[Tensor, float]:
    begun = time.perf_counter()
    return make(), time.perf_counter() - begun


def row(ours: Attack, peer: str, run: Peer, model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Any]:
    threat: Threat = ours.threat  # type: ignore[attr-defined]
    x_ours, s_ours = timed(lambda: ours(model, x, y))
    with guard(model), torch.random.fork_rng():
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        x_peer, s_peer = timed(lambda: run(model, x.clone(), y.clone(), threat))
    (a, far_a), (b, far_b) = (
        evaluated(model, x, y, x_ours, threat, 0.0 if np.isinf(threat.eps) else 1e-6),
        evaluated(model, x, y, x_peer, threat, 1e-5),
    )
    n, minimum = len(x), np.isinf(threat.eps)
    if minimum:
        # A tenth of a percent apart is a tie: rounding, not strength.
        wins, losses = int((a < 0.999 * b).sum()), int((b < 0.999 * a).sum())
        figures: dict[str, Any] = {"ours_median": finite(a.median()), "peer_median": finite(b.median())}
    else:
        hit_a, hit_b = a.isfinite(), b.isfinite()
        wins, losses = int((hit_a & ~hit_b).sum()), int((hit_b & ~hit_a).sum())
        figures = {
            "ours_robust": share(n - int(hit_a.sum()), n), "peer_robust": share(n - int(hit_b.sum()), n),
            "ours_largest": far_a, "peer_largest": far_b,
        }  # fmt: skip
    # How often the peer would win so many, or more, were both equally strong.
    p = sign_test(losses, wins)
    return {
        "ours": label(ours), "settings": spell(ours), "peer": peer, **figures, "ours_better": wins,
        "peer_better": losses, "p": p, "weaker": p < 0.025, "ours_seconds": round(s_ours, 3),
        "peer_seconds": round(s_peer, 3),
    }  # fmt: skip


def finite(value: Tensor) -> float | None:
    return float(value) if value.isfinite() else None


def against_ddn(model: nn.Module, x: Tensor, y: Tensor, threat: Threat) -> list[dict[str, Any]]:
    """Median norm of FMN and ALMA beside DDN's at the same number of steps, l2."""
    endless, rows = Threat(threat.norm, "inf", threat.box), []
    for steps in (100, 300, 1000):
        # ALMA's first step: of 0.05, 0.1, 0.3 and 0.6, the best on the validation images of the digits runs.
        base = DDN(endless, steps=steps).run(model, x, y)
        reference = evaluated(model, x, y, base.x_adv, endless, 0.0)[0]
        for attack in (FMN(endless, steps=steps), ALMA(endless, steps=steps, first_step=0.3)):
            found = attack.run(model, x, y)
            norm = evaluated(model, x, y, found.x_adv, endless, 0.0)[0]
            rows.append({
                "attack": label(attack), "steps": steps, "forwards": int(found.forwards.max()),
                "ddn_forwards": int(base.forwards.max()), "median": finite(norm.median()),
                "ddn_median": finite(reference.median()), "larger": bool(norm.median() > reference.median()),
            })  # fmt: skip
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run folders, two or more per norm")
    parser.add_argument("--n", type=int, default=100, help="test images, by the data.subset of the run")
    parser.add_argument("--only", nargs="+", help="rows whose names hold one of these words")
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    logging.disable(logging.WARNING)
    results = []
    for path in args.runs:
        config = read_config(path / "config.json")
        data = load_data(DataSettings(**config["data"]))
        own = {**(config["method"].get("threat") or {}), "box": data.box}
        own |= {k: config["evaluate"][k] for k in ("norm", "eps") if config["evaluate"].get(k) is not None}
        threat, model = Threat(**own), atent.load(path)
        part = data.sample("test", args.n)
        x, y = part.batch(torch.arange(len(part)))
        todo = [r for r in versus(threat) if not args.only or any(w.lower() in r[1].lower() for w in args.only)]
        rows = []
        with bar(len(todo), path.name) as advance:
            for ours, peer, run in todo:
                rows.append(row(ours, peer, run, model, x, y))
                advance(1, peer)
                show(path.name, rows[-1])
        norms = against_ddn(model, x, y, threat) if threat.norm == "l2" and not args.only else []
        for found in norms:
            print(
                f"{path.name:<24}{found['attack']:<12}{found['median']:.4f}  DDN {found['ddn_median']:.4f}", flush=True
            )
        results.append({
            "run": path.name, "data": data.name, "n": len(x), "samples": described(data, "test", part),
            "norm": threat.norm, "eps": float(threat.eps),
            "rows": rows, "against_ddn": norms,
        })  # fmt: skip
    weaker = [f"{r['run']}: {w['ours']} against {w['peer']}" for r in results for w in r["rows"] if w["weaker"]]
    larger = [f"{r['run']}: {w['attack']}" for r in results for w in r["against_ddn"] if w["larger"]]
    print(f"weaker than a peer: {', '.join(weaker) or 'none'}; norms larger than DDN's: {', '.join(larger) or 'none'}")
    if args.out:
        write_json(args.out, {
            "benchmark": "parity", "results": results, "weaker": weaker, "larger": larger,
            "provenance": provenance(seed=0, device="cpu"),
        })  # fmt: skip
    return int(bool(weaker or larger))


def show(run: str, found: dict[str, Any]) -> None:
    figures = (
        f"{found['ours_median'] or float('nan'):.4f} / {found['peer_median'] or float('nan'):.4f}"
        if "ours_median" in found
        else f"{100 * found['ours_robust']['value']:.1f} / {100 * found['peer_robust']['value']:.1f} %"
    )
    print(
        f"{run:<24}{found['ours']:<16}{found['peer']:<26}{figures:<20}{found['ours_better']:>3}:{found['peer_better']:<3}"
        f" p {found['p']:.3f}  {found['ours_seconds']:.1f} / {found['peer_seconds']:.1f} s"
        + ("  WEAKER" if found["weaker"] else ""),
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(main())
