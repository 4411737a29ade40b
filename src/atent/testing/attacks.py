"""`check_attack`: the contract of an attack as a suite of checks."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor, nn

from atent.attacks.base import Attack, Outcome
from atent.testing import networks
from atent.testing.attack_case import Case, lengths, under, within
from atent.testing.bad_inputs import BAD, check_refused
from atent.testing.contract import Suite, require
from atent.testing.networks import Snapshot, same
from atent.threat import Radii, Threat

_suite: Suite[Case] = Suite()
promise = _suite.promise


def check_attack(
    attack: Attack, *, model: nn.Module | None = None, x: Tensor | None = None, y: Tensor | None = None, seed: int = 0
) -> list[str]:
    """Check that an attack satisfies the contract of `atent.attacks.Attack`.

    The strength of the attack is not checked. With the built-in network and batch the checks of an attack of ten steps
    take a fraction of a second; use few steps.

    Parameters
    ----------
    attack
        The attack, with the settings to check. Its threat has one eps for all samples.
    model, x, y
        A network in float32 or float64 that gives logits, inputs (n, ...) in the box of the threat, n at least 4, and
        their labels. Default: a small convolutional network with batch-norm, and 9 inputs of shape (1, 6, 6).
    seed
        Seed of the attack.

    Returns
    -------
    list of str
        The promises that were checked, in order. Those that do not apply are absent, such as that of minimum-norm
        attacks.

    Raises
    ------
    ContractError
        For the first broken promise: one line with the promise, what was found and what is allowed.
    ValueError
        For something other than an attack, a threat with an eps per sample or a box per channel, and an invalid model,
        x or y.

    Examples
    --------
    >>> from atent import Threat
    >>> from atent.attacks import PGD
    >>> "the result is in the box" in check_attack(PGD(Threat("linf", 0.1), steps=3))
    True
    """
    networks.check_instance("check_attack", "PGD", attack, "run")
    threat = getattr(attack, "threat", None)
    box = threat.box if isinstance(threat, Threat) else (0.0, 1.0)
    if isinstance(threat, Threat) and isinstance(threat.eps, Radii):
        raise ValueError("check_attack needs a threat with one eps for all samples: give a number")
    if isinstance(box[0], tuple):
        raise ValueError("check_attack needs a threat with one box for all channels: give a pair of numbers")
    own = networks.given(model, x, y)
    if own is None:
        low, high = box
        # The network's inputs are in [0, 1] for any box.
        network: nn.Module = networks.Through(networks.network(), before=lambda v: (v - low) / (high - low))
        batch = low + (high - low) * networks.inputs(9)
        labels = network.eval()(batch).argmax(1)
    else:
        network, batch, labels = own
    if len(batch) < 4:
        raise ValueError(f"check_attack needs at least 4 samples, got {len(batch)}")
    with torch.no_grad():
        logits = network.eval()(batch.clone())
    # One sample is misclassified.
    labels[0] = (logits[0].argmax() + 1) % logits.shape[1]
    return _suite.run(type(attack).__name__, Case(attack, network, batch, labels, seed))


# ---- type and outcome ------------------------------------------------------------------------------------


@promise("it is a frozen dataclass whose first field is the threat")
def _frozen(case: Case) -> None:
    kind = type(case.attack)
    frozen = dataclasses.is_dataclass(kind) and kind.__dataclass_params__.frozen  # type: ignore[attr-defined]
    require(frozen, f"{kind.__name__} without @dataclass(frozen=True)", "a frozen dataclass")
    names = [f.name for f in dataclasses.fields(kind)]
    require(names[:1] == ["threat"], f"fields {', '.join(names) or 'none'}", "threat first")
    require(isinstance(case.threat, Threat), f"a threat of type {type(case.threat).__name__}", "an atent.Threat")
    require(case.attack == copy.deepcopy(case.attack), "a copy that is not equal", "equality by settings")


@promise("the outcome has the shapes and types of the contract")
def _shapes(case: Case) -> None:
    for dtype, (_, x, out) in case.outcomes.items():
        require(isinstance(out, tuple) and len(out) == 5, f"run() gave a {type(out).__name__}", "an Outcome")
        require(out.x_adv.shape == x.shape, f"x_adv of shape {tuple(out.x_adv.shape)}", f"{tuple(x.shape)}")
        require(out.x_adv.dtype == dtype, f"x_adv of {out.x_adv.dtype}", f"{dtype}, as x")
        wanted = {
            "success": torch.bool,
            "norm": torch.float64,
            "forwards": torch.int64,
            "backwards": torch.int64,
        }
        for name, kind in wanted.items():
            value = getattr(out, name)
            require(
                value.shape == (len(x),) and value.dtype == kind,
                f"{name} of {value.dtype} and shape {tuple(value.shape)}",
                f"{kind} of shape ({len(x)},)",
            )
        require(not any(t.requires_grad for t in out), "a tensor that requires a gradient", "none")


@promise("the result is in the box")
def _box(case: Case) -> None:
    low, high = case.threat.box
    for dtype, (_, _, out) in case.outcomes.items():
        least, most = float(out.x_adv.min()), float(out.x_adv.max())
        inside = low <= least and most <= high  # False for NaN
        require(inside, f"values from {least:.9g} to {most:.9g} in {dtype}", f"[{low:g}, {high:g}]")


@promise("the result is within the radius, measured in float64")
def _radius(case: Case) -> None:
    eps = float(case.threat.eps)
    for dtype, (_, x, out) in case.outcomes.items():
        within(case.threat, out.x_adv, x, eps, f" in {dtype}")


# ---- state of the network --------------------------------------------------------------------------------


@promise("modes, .grad, buffers and global random states are restored on success")
def _restored(case: Case) -> None:
    _as_found(case, None)


@promise("modes, .grad, buffers and global random states are restored where the network raises")
def _restored_after_an_exception(case: Case) -> None:
    for fails_at in (1, 2):
        _as_found(case, fails_at)


def _as_found(case: Case, fails_at: int | None) -> None:
    model = networks.mid_training(networks.Restless(case.model), case.x)
    assert isinstance(model, networks.Restless)
    for mode in ("eval", "train"):
        model.seen, model.fails_at = 0, fails_at
        found, raised = Snapshot(model), False
        try:
            case.run(model, case.x, mode=mode)
        except ArithmeticError:
            raised = True
        if fails_at is not None and model.seen >= fails_at:
            require(raised, "a result although the network raised", "the network's exception")
        found.check(f" after an exception at call {fails_at}" if raised else "")


# ---- random numbers --------------------------------------------------------------------------------------


@promise("the same seed and ids give the same bits, whatever the global random states")
def _repeats(case: Case) -> None:
    for model, x, out in case.outcomes.values():
        networks.move_global_generators()
        require(all(map(same, case.run(model, x), out)), "another outcome", "the same bits")
        numbered = case.run(model, x, ids=torch.arange(len(x)))
        require(same(numbered.x_adv, out.x_adv), "another result with ids 0, 1, ..., n-1", "the default's bits")


@promise("a random network gives the same bits at each call")
def _random_network(case: Case) -> None:
    model = networks.Through(case.model, after=lambda z: z + 1e-2 * torch.randn_like(z))
    first = case.run(model, case.x)
    networks.move_global_generators()
    require(all(map(same, case.run(model, case.x), first)), "another outcome", "the same bits")


@promise("batch size, order and shard do not matter: random numbers depend on seed and id only")
def _batches(case: Case) -> None:
    n = len(case.x)
    ids = 100 + torch.arange(n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(1))
    for model, x, _ in case.outcomes.values():
        whole = case.run(model, x, ids=ids)
        for rows, size in ((order, n), (torch.arange(n), n - 2), (order[:4], 1)):
            parts = [case.run(model, x[r], case.y[r], ids=ids[r]) for r in rows.split(size)]
            found = {name: torch.cat([getattr(p, name) for p in parts]) for name in Outcome._fields}
            _agree(found, {name: getattr(whole, name)[rows] for name in Outcome._fields}, f" in batches of {size}")


def _agree(found: dict[str, Tensor], wanted: dict[str, Tensor], where: str) -> None:
    if wanted["x_adv"].dtype == torch.float32:
        # Kernels round with the batch size: one sample in a thousand may change its verdict.
        changed = int((found["success"] != wanted["success"]).sum())
        require(
            changed <= len(wanted["success"]) / 1000, f"{changed} other verdicts{where} in float32", "0.1 % of them"
        )
        return
    for name, value in wanted.items():
        off = float((found[name].double() - value.double()).abs().max())
        require(off <= (1e-9 if value.is_floating_point() else 0), f"{name} off by {off:.3g}{where}", "1e-9 in float64")


@promise("with rng, the state of the generator decides the result, within box and radius")
def _one_stream(case: Case) -> None:
    def attacked() -> Tensor:
        return case.attack(case.model, case.x, case.y, rng=torch.Generator(case.x.device).manual_seed(6))

    first = attacked()
    networks.move_global_generators()
    require(same(attacked(), first), "another result", "the same bits")
    low, high = case.threat.box
    require(bool(((first >= low) & (first <= high)).all()), "values outside the box", f"[{low:g}, {high:g}]")
    within(case.threat, first, case.x, float(case.threat.eps))


# ---- reported results ------------------------------------------------------------------------------------


@promise("success is recomputed on the returned tensor, with true labels")
def _success(case: Case) -> None:
    for dtype, (model, _, out) in case.outcomes.items():
        with torch.no_grad():
            wrong = model(out.x_adv.clone()).argmax(1) != case.y
        off = (out.success != wrong).nonzero().flatten().tolist()
        if off:
            said = f"success {bool(out.success[off[0]])} of sample {off[0]}, which the network classifies"
            right = "incorrectly" if wrong[off[0]] else "correctly"
            require(False, f"{said} {right} in {dtype}", "the network's prediction")


@promise("norm is the distance to x in the threat's norm, in float64")
def _norm(case: Case) -> None:
    for _, x, out in case.outcomes.values():
        wanted = lengths(case.threat, out.x_adv, x)
        off = float((out.norm - wanted).abs().max())
        require(off <= 1e-12 * (1 + float(wanted.max())), f"a norm that is off by {off:.3g}", "rounding")


@promise("the call returns what run returns")
def _call(case: Case) -> None:
    model, x, out = case.outcomes[torch.float64]
    require(same(case.attack(model, x, case.y, seed=case.seed), out.x_adv), "another result", "the same bits")


@promise("x and y are not changed")
def _inputs(case: Case) -> None:
    model, x = case.at(torch.float64)
    given, labels = x.clone(), case.y.clone()
    case.attack.run(model, given, labels, seed=case.seed)
    require(same(given, x), "another x after the attack", "x as it was given")
    require(same(labels, case.y), "another y after the attack", "y as it was given")


@promise("a network that changes its input in place gives the same result")
def _in_place(case: Case) -> None:
    width = case.threat.box[1] - case.threat.box[0]
    kind = case.model
    plain = networks.Through(kind, before=lambda v: v - 0.25 * width)
    moved = networks.Through(kind, before=lambda v: v.sub_(0.25 * width))
    a, b = case.run(plain, case.x), case.run(moved, case.x)
    require(all(map(same, a, b)), "another outcome", "the same bits: the network gets a copy of its input")


@promise("disabled gradients, or x that requires a gradient, have no effect")
def _without_gradients(case: Case) -> None:
    model, x, out = case.outcomes[torch.float64]
    with torch.no_grad():
        require(same(case.run(model, x).x_adv, out.x_adv), "another result under torch.no_grad", "the same bits")
    again = case.run(model, x.clone().requires_grad_())
    require(same(again.x_adv, out.x_adv), "another result for x that requires a gradient", "the same bits")
    require(not again.x_adv.requires_grad, "a result that requires a gradient", "none")


# ---- radii ------------------------------------------------------------------------------------------------


@promise("eps = 0 returns x clamped to the box, bit for bit", lambda case: case.harmless is not None)
def _nothing(case: Case) -> None:
    assert case.harmless is not None
    low, high = case.threat.box
    for model, x, _ in case.outcomes.values():
        outside = x + 1e-7 * (high - low) * torch.where(x > (low + high) / 2, 1.0, -1.0).to(x.dtype)
        for start in (x, outside):
            out = case.harmless.run(model, start, case.y, seed=case.seed)
            off = float((out.x_adv - start.clamp(low, high)).abs().max())
            require(same(out.x_adv, start.clamp(low, high)), f"values off by {off:.3g}", "x clamped, to the bit")
            require(not out.norm.any(), f"norm {float(out.norm.max()):.3g}", "0")


@promise("x outside the box by rounding is clamped first")
def _clamped(case: Case) -> None:
    low, high = case.threat.box
    slack = 1e-7 * (high - low)
    x = case.x
    outside = torch.where(x == low, low - slack, torch.where(x == high, high + slack, x))
    wanted = case.outcomes[torch.float64][2]
    require(all(map(same, case.run(case.model, outside), wanted)), "another outcome", "that of x clamped to the box")


@promise(
    "a minimum-norm attack returns a misclassified point, or x where the network misclassifies x or the norm would"
    " exceed eps",
    lambda case: case.attack.minimum_norm,
)
def _smallest(case: Case) -> None:
    free = under(case.attack, dataclasses.replace(case.threat, eps="inf"))
    model, x = case.model, case.x
    with torch.no_grad():
        wrong = model(x).argmax(1) != case.y
    for attack in (case.attack, free):
        out = attack.run(model, x, case.y, seed=case.seed)
        moved = (out.x_adv != x).flatten(1).any(1)
        for row in (moved & (wrong | ~out.success)).nonzero().flatten().tolist():
            state = "was misclassified at x" if wrong[row] else "remains correctly classified"
            require(False, f"a change of sample {row}, which {state}, at eps {attack.threat.eps:g}", "x itself")


# ---- cost and invalid arguments --------------------------------------------------------------------------


@promise("passes are counted")
def _counters(case: Case) -> None:
    model = networks.Counting(case.model)
    out = case.run(model, case.x)
    for name in ("forwards", "backwards"):
        said, seen = int(getattr(out, name).sum()), getattr(model, name)
        require(said == seen, f"{said} {name} reported where the network saw {seen}", "those of the network")
    require(bool((out.forwards > 0).all()), "a sample without a forward", "at least one, for the verdict")
    most, limit = int((out.forwards + out.backwards).max()), case.attack.passes
    require(most <= limit, f"{most} passes of one sample", f"at most passes = {limit}")


@promise("an empty batch gives an empty outcome")
def _empty(case: Case) -> None:
    out = case.run(case.model, case.x[:0], case.y[:0])
    shapes = [tuple(t.shape) for t in out]
    require(shapes == [(0, *case.x.shape[1:]), *[(0,)] * 4], f"shapes {shapes}", "no samples in each")


@promise("labels may be of any integer type")
def _labels(case: Case) -> None:
    found = case.run(case.model, case.x, case.y.to(torch.int32)).x_adv
    require(same(found, case.outcomes[torch.float64][2].x_adv), "another result for int32 labels", "the same bits")


@promise("invalid inputs, labels, ids, seeds and model outputs raise a ValueError of one line")
def _refuses(case: Case) -> None:
    for kind in BAD:
        check_refused(kind, case.attack, case.model, case.x, case.y)


@promise("a network without an input gradient is refused", lambda case: case.attack.needs_gradient)
def _detached(case: Case) -> None:
    cut = networks.Through(case.model, after=lambda z: z.detach())
    try:
        case.run(cut, case.x)
    except ValueError as error:
        require("\n" not in str(error), "an error of several lines", "one line")
    else:
        require(False, "a result", "ValueError, or needs_gradient = False where an attack uses no gradients")


PROMISES = _suite.texts
"""The promises of an attack, including those that apply to some attacks only."""
