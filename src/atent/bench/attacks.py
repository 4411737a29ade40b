"""This library's attacks and those of the installed packages: the same images, network, steps and eps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from atent.attacks import APGD, FMN, PGD, AutoAttack, CarliniWagner
from atent.attacks.base import Attack
from atent.bench import rivals
from atent.bench.methods import Norm
from atent.bench.plan import Case, Omitted, Plan, Section
from atent.bench.rivals import Peer
from atent.bench.timing import Effort, Work, interleaved
from atent.data import DataSettings
from atent.data import load as load_data
from atent.experiments.results.base import Share
from atent.experiments.results.bench import BenchCase
from atent.methods import PGDAT
from atent.models import build
from atent.optim import Optimizer
from atent.progress import Advance
from atent.threat import Threat

TITLE = "attacks: seconds of other packages over this library's, and what remains correctly classified"
OURS = "atent"
NORMS: tuple[Norm, ...] = ("linf", "l2")
EPS = {"linf": 0.15, "l2": 1.0}
# Rounding of the packages' own projections: a part in 10^5 beyond the radius is forgiven.
_SLACK = 1e-5


@dataclass(frozen=True)
class Contest:
    """One attack of this library, and the same of others."""

    name: str
    ours: Attack
    others: dict[str, Peer]
    weight: float = 1.0
    full_only: bool = False
    """A single round of it takes longer than a quick run may."""


def _step(threat: Threat) -> float:
    return 2.5 * float(threat.eps) / 40


def contests(norm: Norm, *, quick: bool) -> list[Contest]:
    """The attacks in a norm, at equal steps, step sizes, restarts and queries."""
    threat = Threat(norm, EPS[norm])
    endless, steps = Threat(norm, "inf"), 50 if quick else 200
    order = float("inf") if norm == "linf" else 2.0
    pgd: dict[str, Peer] = {
        "foolbox": rivals.foolbox("{norm}PGD", steps=40, abs_stepsize=_step, random_start=True),
        "ART": rivals.art("ProjectedGradientDescentPyTorch", eps_step=_step, max_iter=40, num_random_init=1),
        "torchattacks": rivals.torchattacks("PGD" if norm == "linf" else "PGDL2", alpha=_step, steps=40),
    }
    if norm == "linf":
        pgd["adv-lib"] = rivals.adv_lib("pgd_linf", ε=_eps, steps=40, absolute_step_size=_step)
    apgd: dict[str, Peer] = {
        "pyautoattack": rivals.autoattack("ce"),
        "torchattacks": rivals.torchattacks("APGD", norm=_norm, steps=100, loss="ce"),
        "adv-lib": rivals.adv_lib("apgd", eps=_eps, norm=order, n_iter=100, loss_function="ce"),
        "ART": rivals.art(
            "AutoProjectedGradientDescent", eps_step=_double, max_iter=100, nb_random_init=1,
            loss_type="cross_entropy",
        ),
    }  # fmt: skip
    fmn: dict[str, Peer] = {
        "foolbox": rivals.foolbox("L2FMNAttack" if norm == "l2" else "LInfFMNAttack", steps=steps),
        "adv-lib": rivals.adv_lib("fmn", norm=order, steps=steps),
    }
    whole: dict[str, Peer] = {
        "pyautoattack": rivals.autoattack("whole"),
        "torchattacks": rivals.torchattacks("AutoAttack", norm=_norm, version="standard", n_classes=10, seed=0),
    }
    out = [
        Contest("PGD-40", PGD(threat, steps=40), pgd),
        Contest("APGD-100", APGD(threat, steps=100, loss="ce"), apgd),
        Contest(f"FMN-{steps}", FMN(endless, steps=steps), fmn),
        Contest("AutoAttack", AutoAttack(threat), whole, 6.0, full_only=True),
    ]
    if norm == "l2":
        cw: dict[str, Peer] = {
            "foolbox": rivals.foolbox(
                "L2CarliniWagnerAttack", steps=steps, binary_search_steps=4, initial_const=1e-3,
                abort_early=False,
            ),
            "adv-lib": rivals.adv_lib(
                "carlini_wagner_l2", binary_search_steps=4, max_iterations=steps, initial_const=1e-3, abort_early=False
            ),
        }  # fmt: skip
        ours = CarliniWagner(endless, steps=steps, search_steps=4, initial_const=1e-3, abort_early=False)
        out.insert(2, Contest(f"C&W-4x{steps}", ours, cw, 2.0))
    return out


def _eps(threat: Threat) -> float:
    return float(threat.eps)


def _double(threat: Threat) -> float:
    return 2 * float(threat.eps)


def _norm(threat: Threat) -> str:
    return {"linf": "Linf", "l2": "L2"}[threat.norm]


# ---- the network -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Target:
    """A network that is robust to some attacks, and images."""

    model: nn.Module
    x: Tensor
    y: Tensor


def trained(norm: Norm, images: int, *, epochs: int = 6, device: str = "cpu") -> Target:
    """digits_cnn after a short adversarial training on the embedded digits, and a stratified sample of test images."""
    from atent.train import TrainSettings, fit

    data = load_data(DataSettings(name="digits"))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build("digits_cnn")
    settings = TrainSettings(epochs=epochs, batch_size=64, seed=0, device="cpu")
    optimizer = Optimizer("Adam", lr=2e-3)
    threat = Threat(norm, EPS[norm], data.box)
    fit(model, data, PGDAT(threat, steps=5), optimizer=optimizer, settings=settings, progress=False)
    part = data.sample("test", images)
    x, y = part.batch(torch.arange(len(part)))
    return Target(model.eval().to(device), x.to(device), y.to(device))


# ---- the section -------------------------------------------------------------------------------------------


def section(plan: Plan) -> Section:
    """A case for each norm and attack that an installed package has."""
    usable = rivals.installed()
    cases: list[Case] = []
    omitted = {name: rivals.found(name)[1] for name in rivals.NAMES if name not in usable}
    for norm in NORMS:
        made: list[Target] = []

        def target(norm: Norm = norm, made: list[Target] = made) -> Target:
            if not made:
                made.append(trained(norm, plan.size.images, device=plan.device))
            return made[0]

        for contest in contests(norm, quick=plan.quick):
            name = f"{contest.name}, {norm}"
            others = {package: peer for package, peer in contest.others.items() if package in usable}
            if plan.quick and contest.full_only:
                omitted[name] = "one round takes longer than --quick has"
                continue
            work = partial(_measure, target, replace(contest, name=name, others=others))
            cases.append(Case(name, work, contest.weight))
    return Section(TITLE, cases, omitted)


def _measure(target: Callable[[], Target], contest: Contest, effort: Effort, advance: Advance) -> BenchCase:
    known = target()
    model, x, y = known.model, known.x, known.y
    threat: Threat = contest.ours.threat
    last: dict[str, Tensor] = {}
    works: dict[str, Work] = {OURS: lambda: last.update({OURS: contest.ours(model, x, y)})}
    for package, peer in contest.others.items():
        works[package] = _remembered(last, package, peer, model, x, y, threat)
    failed = {}
    for package in contest.others:
        try:
            # On two images: an adapter that its package no longer answers must not cost the other rows.
            rivals.run(contest.others[package], model, x[:2], y[:2], threat)
        except Exception as error:
            failed[package] = " ".join(f"{type(error).__name__}: {error}".split())[:200]
            del works[package]
    if len(works) == 1 and failed:
        raise Omitted("; ".join(f"{package} failed ({why})" for package, why in failed.items()))
    pairs = {package: OURS for package in works if package != OURS}
    found = interleaved(works, effort, pairs=pairs, warm=False, advance=advance)
    radius = EPS[threat.norm]
    rows = []
    for name in works:
        norm = rivals.norms_of(model, x, y, last[name], threat, _SLACK)
        # A smallest change beyond the radius leaves the image robust at that radius.
        robust = int((norm > radius * (1 + _SLACK) + _SLACK).sum())
        figures = {"images_per_second": found.per_second(name, len(x))}
        if contest.ours.minimum_norm and norm.median().isfinite():
            figures["median_norm"] = float(norm.median())
        rows.append(found.row(name, robust=Share.of(robust, len(x)), figures=figures))
    settings = {"network": "digits_cnn", "norm": threat.norm, "eps": radius, "n": len(x), "failed": failed}
    return BenchCase(contest.name, settings, rows)


def _remembered(
    last: dict[str, Tensor], name: str, peer: Peer, model: nn.Module, x: Tensor, y: Tensor, threat: Threat
) -> Work:
    def work() -> None:
        last[name] = rivals.run(peer, model, x, y, threat)

    return work
