"""Checks of a robust accuracy that detect masked gradients, weak attacks and broken set-ups.

After Carlini et al. 2019 (On Evaluating Adversarial Robustness), Tramer et al. 2020 (On Adaptive Attacks to
Adversarial Example Defenses) and the flags of AutoAttack (Croce and Hein 2020).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from atent.attacks import FGSM, PGD, Attack, Langevin, SparsePGD, SparseRS, Square
from atent.attacks.spec import label
from atent.checks import check_threat
from atent.docstrings import Documented
from atent.evaluate import gradients
from atent.evaluate.samples import Checked
from atent.evaluate.subject import Subject, gained, subject, weaker
from atent.precision import without_callers_modes
from atent.progress import Advance
from atent.threat import COUNTS, Threat

QUERIES = 200
"""Queries of the black-box attack."""
COSTLY = 2500
"""Passes per sample above which the checked attack is not run again."""


@dataclass(frozen=True)
class Check(metaclass=Documented):
    """One check of gradient masking: its result, and what a failure means.

    Examples
    --------
    >>> from atent.evaluate import CHECKS, Check
    >>> check = Check("logits", False, "outputs lie in [0, 1] (n = 50)", CHECKS["logits"][1])
    >>> print(f"{check.name}: {check.why}")
    logits: probabilities flatten every loss: remove the softmax or sigmoid, attacks need logits
    """

    name: str
    """Its key in `CHECKS`."""
    passed: bool
    """False: do not trust the robust accuracy before the cause is found."""
    figure: str
    """The measured number, as text, with n."""
    why: str
    """The meaning of a failure and the remedy, in one line."""


def _tally(verdicts: list[Tensor]) -> str:
    return f"{' / '.join(str(int(v.sum())) for v in verdicts)} of {len(verdicts[0])} robust"


def _never_rises(verdicts: list[Tensor]) -> bool:
    return not any(weaker(after, before) for before, after in itertools.pairwise(verdicts))


def eps_zero(p: Subject) -> gradients.Verdict:
    """Without a budget the attack changes nothing: every correctly classified sample remains so."""
    # A count cannot be 0; a ball of linf 0 allows no change either.
    robust = p.robust(
        PGD(Threat("linf", 0.0, p.threat.box) if p.threat.norm in COUNTS else p.threat.scaled(0), steps=1)
    )
    return bool(robust.all()), f"{_tally([robust])} at eps 0"


def eps_whole_box(p: Subject) -> gradients.Verdict:
    """With the entire box as budget at most half of chance accuracy remains."""
    width, dim = p.threat.width, p.x[0].numel()
    eps = {"linf": width, "l2": width * math.sqrt(dim), "l1": width * dim}.get(p.threat.norm, 0.0)
    # A count covers the entire box where all elements may change: that is linf with the width of the box.
    whole = replace(p.threat, eps=eps, allow_large_eps=True) if eps else Threat("linf", width, p.threat.box, True)
    robust = p.robust(PGD(whole, steps=40))
    return int(robust.sum()) <= p.n / (
        2 * p.logits.shape[1]
    ), f"{_tally([robust])} at eps {eps or width:.3g}, the whole box"


def eps_monotone(p: Subject) -> gradients.Verdict:
    """A larger eps fools at least as many samples."""
    threat = replace(p.threat, allow_large_eps=True)
    threats = [threat.scaled(factor) for factor in (0.5, 1, 2)]
    verdicts = [p.robust(PGD(each)) for each in threats]
    # A count is rounded: half of 1 is 1.
    counts = " / ".join(f"{float(each.eps):g}" for each in threats)
    radii = f"{counts} {threat.units}" if threat.norm in COUNTS else "0.5 / 1 / 2 eps"
    return _never_rises(verdicts), f"{_tally(verdicts)} at {radii}"


def steps_monotone(p: Subject) -> gradients.Verdict:
    """More steps fool at least as many samples."""
    verdicts = [p.robust(PGD(p.threat, steps=steps)) for steps in (5, 20, 50)]
    return _never_rises(verdicts), f"{_tally(verdicts)} after 5 / 20 / 50 steps"


def restarts(p: Subject) -> gradients.Verdict:
    """More restarts fool at least as many samples, and not many more: on a smooth loss the start has little effect."""
    one, more = (p.robust(PGD(p.threat, restarts=count)) for count in (1, 3))
    return not weaker(more, one) and not gained(one, more)[1], f"{_tally([one, more])} after 1 / 3 restarts"


def iterative(p: Subject) -> gradients.Verdict:
    """Many steps are at least as strong as one."""
    one, many = p.robust(FGSM(p.threat)), p.robust(PGD(p.threat))
    return not weaker(many, one), f"{_tally([one, many])} under FGSM / PGD-20"


def black_box(p: Subject) -> gradients.Verdict:
    """An attack with gradients is at least as strong as one without."""
    pair: tuple[Attack, Attack] | None = None
    if p.threat.norm in Square.norms:
        pair = Square(p.threat, queries=QUERIES), PGD(p.threat)
    elif p.threat.norm in SparseRS.norms:
        pair = SparseRS(p.threat, queries=QUERIES), SparsePGD(p.threat, steps=20)
    if pair is None:
        return True, f"not measured: no attack without gradients supports {p.threat.norm}"
    names = f"{type(pair[0]).__name__} with {QUERIES} queries / {type(pair[1]).__name__}-20"
    without, with_gradients = map(p.robust, pair)
    return not weaker(with_gradients, without), f"{_tally([without, with_gradients])} under {names}"


def loss(p: Subject) -> gradients.Verdict:
    """The cross-entropy, which depends on the scale of the logits, is as strong a loss as the margin, which does not
    saturate."""
    ce, margin = (p.robust(PGD(p.threat, loss=name)) for name in ("ce", "margin"))
    return not weaker(ce, margin), f"{_tally([ce, margin])} under PGD-20 on the cross-entropy / the margin"


def step_budget(p: Subject) -> gradients.Verdict:
    """Steps x step size cross the ball, and the robust samples were moved by at least half of eps."""
    name, length = label(p.attack), step_of(p.attack)
    if length is None or p.threat.norm in COUNTS:
        return True, f"{name} has no steps of a fixed length: nothing to check"
    steps, eps = _stepping(p.attack).steps, float(p.threat.eps)  # type: ignore[attr-defined]
    path = steps * length / eps
    robust, distance = p.run(p.attack)
    reached = float(distance[robust].median()) / eps if bool(robust.any()) else None
    text = f"{steps} steps of {length:.3g} make {path:.3g} eps"
    if reached is not None:
        text += f"; the median robust sample was moved {reached:.2f} eps (n = {int(robust.sum())})"
    return path >= 1 - 1e-9 and (reached is None or reached >= 0.5), text


def step_of(attack: Attack) -> float | None:
    """Length of a step in the threat's norm, or None for an attack whose steps have no fixed length."""
    attack = _stepping(attack)
    if isinstance(attack, Langevin):
        return None if attack.sampler.gradient == "raw" else attack.sampler.step_size
    return getattr(attack, "resolved_step", None) if hasattr(attack, "steps") else None


def _stepping(attack: Attack) -> Attack:
    """The attack that takes the steps: the one inside EoT or Transfer, or the attack itself."""
    inner: Attack = getattr(attack, "inner", attack)
    return inner


def attack_strength(p: Subject) -> gradients.Verdict:
    """The checked attack misses few of the samples that the attacks of the other checks fool within the same threat."""
    name = label(p.attack)
    if p.attack.passes > COSTLY:
        return True, f"{name} takes up to {p.attack.passes} passes per sample: not run again"
    robust = p.robust(p.attack)
    lost, many = gained(robust, p.robust_to_all())
    return not many, f"{_tally([robust])} under {name}; other attacks of these checks fool {lost} of them"


CHECKS: dict[str, tuple[Callable[[Subject], gradients.Verdict], str]] = {
    "logits": (
        gradients.logits,
        "probabilities flatten every loss: remove the softmax or sigmoid, attacks need logits",
    ),
    "repeatable": (
        gradients.repeatable,
        "the model is random: average gradients and verdicts over many samples (EOT), or certify it by smoothing",
    ),
    "independent": (
        gradients.independent,
        "a sample's verdict depends on the other samples, as with batch-norm in train mode: use running statistics",
    ),
    "zero-gradient": (
        gradients.zero_gradient,
        "gradient attacks fail there: replace rounding layers in the backward pass (BPDA), or use Square",
    ),
    "saturation": (
        gradients.saturation,
        "float32 rounds the cross-entropy's gradient to zero: attack with the margin or DLR loss, or rescale logits",
    ),
    "finite-differences": (
        gradients.finite_differences,
        "autograd does not describe how the model changes (staircase, sawtooth, false backward): use Square or BPDA",
    ),
    "eps-zero": (
        eps_zero,
        "accuracy changes without an attack: the model is random or differs between calls; fix this first",
    ),
    "eps-whole-box": (
        eps_whole_box,
        "an attack without limits fails, so it is broken or its gradients are masked: do not trust its robust accuracy",
    ),
    "eps-monotone": (
        eps_monotone,
        "a larger ball contains the smaller one, so the attack is too weak: use more steps, other losses, Square",
    ),
    "steps-monotone": (
        steps_monotone,
        "more steps make the attack weaker: its gradients mislead; use attacks without gradients and keep='best'",
    ),
    "restarts": (
        restarts,
        "the verdict depends on the starting point: use many restarts and AutoAttack",
    ),
    "iterative": (
        iterative,
        "one step is stronger than many: gradients are masked; report the lowest accuracy and use Square",
    ),
    "black-box": (
        black_box,
        "an attack without gradients is stronger than one with them: gradients are masked; use Square and AutoAttack",
    ),
    "loss": (
        loss,
        "the margin is stronger than the cross-entropy: logits may be saturated; attack with the margin or DLR loss",
    ),
    "step-budget": (
        step_budget,
        "the attack cannot cross the ball: raise steps or step_size to steps x step_size = 2.5 eps",
    ),
    "attack-strength": (
        attack_strength,
        "the robust accuracy is too high: add steps, restarts and the margin loss, or use AutoAttack",
    ),
}
"""Name -> check, and the meaning of a failure; in the order in which they are run."""


@without_callers_modes()
def masking_checks(
    model: nn.Module,
    x: Tensor | Checked,
    y: Tensor | None,
    threat: Threat,
    *,
    attack: Attack | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    batch: int = 250,
    advance: Advance | None = None,
) -> list[Check]:
    """Run all `CHECKS` of gradient masking, weak attacks and broken set-ups on a model; a failed one is a warning.

    At most 100 samples are used, stratified by class, and of these the ones that are classified correctly. Comparisons
    of attacks are paired by sample: a check fails where the p-value of a sign test on the samples that differ is below
    1 %, or where a stronger attack fools more than a further 5 % at the lower end of the 95 % interval. A check that
    raises, such as where the model has no gradient, fails with the reason as its figure.

    Parameters
    ----------
    model
        From inputs to logits (n, classes); it is evaluated in eval mode and comes back as it was.
    x, y
        Inputs (n, ...) in the threat's box and true labels (n,), or `Checked` samples and None.
    threat
        The threat of the attacks; its eps is finite and above 0.
    attack
        The attack to check, under the same threat: "step-budget" and "attack-strength" check it, all others check the
        model with attacks of their own. Default: PGD with 20 steps.
    seed, ids
        They key the random numbers; sample numbers (n,), default: 0 .. n-1.
    batch
        Samples attacked at a time, 1 or more.
    advance
        Called with the number of checks that are done, ``len(CHECKS)`` in all, and a string.

    Returns
    -------
    list of Check
        In the order of `CHECKS`.

    Raises
    ------
    ValueError
        In one line, for inputs or labels that cannot be evaluated, for an eps of 0 or infinity, for an attack under
        another threat, and for a model that classifies no sample correctly.

    References
    ----------
    Carlini et al. 2019, "On evaluating adversarial robustness", arXiv 1902.06705.

    Tramer, Carlini, Brendel and Madry 2020, "On adaptive attacks to adversarial example defenses", NeurIPS, arXiv
    2002.08347.

    Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", ICML, arXiv 2003.01690.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.evaluate import masking_checks
    >>> model, x = torch.nn.Linear(2, 2), torch.rand(4, 2)
    >>> found = masking_checks(model, x, model(x).argmax(1), Threat("linf", 0.1))
    >>> [check.name for check in found][:3], len(found)
    (['logits', 'repeatable', 'independent'], 16)
    """
    check_threat(threat)
    sample = subject(model, x, y, threat, PGD(threat) if attack is None else attack, seed, ids, batch)
    results = []
    for name, (check, why) in CHECKS.items():
        if advance:
            advance(0, name)
        try:
            passed, figure = check(sample)
        except torch.OutOfMemoryError:  # not a property of the model
            raise
        except Exception as error:  # a user's forward may raise anything; the other checks remain valid
            reason = str(error).partition("\n")[0] or type(error).__name__
            passed, figure = False, f"not measured: {reason}"
        results.append(Check(name, passed, figure, why))
        if advance:
            advance(1, name)
    return results
