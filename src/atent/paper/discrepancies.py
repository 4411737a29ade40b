"""Discrepancies between the supplement's text, tables and code that affect a number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from atent import stats
from atent.paper import verdicts
from atent.paper.evidence import Results
from atent.paper.statements import COMMAND
from atent.paper.verdicts import NOT_YET


@dataclass(frozen=True)
class Discrepancy:
    """A discrepancy between text, tables and code that affects a number."""

    what: str
    """The discrepancy, paraphrased."""
    facts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Numbers that show it: key of `FACTS`, and the names of its values; none: all."""
    shown: Callable[[Results], str] | None = None
    """A measured number that shows it."""
    command: str = COMMAND


def _steps_differ(found: Results) -> str:
    words = []
    for row, column in (("atent", "half"), ("atent", "full"), ("atent-smoothing", "small")):
        cells = found.cells("table-s1", *((row, f"{column}-{kind}") for kind in ("published", "weak", "autoattack")))
        if cells is not None:
            words.append(f"{row}, {column}: {' / '.join(verdicts.percent(c) for c in cells)}")
    return "published step / released step / AutoAttack: " + ("; ".join(words) or NOT_YET)


def _clamp(found: Results) -> str:
    table = found.tables.get("figure-1", {})
    rows = {row["name"]: row["ours"] for row in table.get("rows", ()) if row["ours"]}
    words = [
        f"{name}: {100 * rows[name]['grid']['mean']:.1f} corrected, {100 * rows[f'{name}-unit']['grid']['mean']:.1f} as"
        " released"
        for name in ("trades", "pgdat")
        if name in rows and f"{name}-unit" in rows
    ]
    if not words:
        return NOT_YET
    away = table["out_of_reach"]
    return (
        f"robust accuracy, exhaustive search: {'; '.join(words)}; {stats.percent(away)} of the training points have no"
        f" point of their ball inside the clamp (scale {table['scale']})"
    )


def _decay(found: Results) -> str:
    return (
        f"our recipe decays at epoch {found.tables['figure-s1']['decay']}" if "figure-s1" in found.tables else NOT_YET
    )


def _certified_gap(found: Results) -> str:
    return verdicts.clean_or_certified(found).ours


DISCREPANCIES: tuple[Discrepancy, ...] = (
    Discrepancy(
        "gamma is 0.08 in one sentence and 0.05 in the next; the code has 0.05, 0.01 and 0 in places. It sets how far"
        " the chain goes", (("distance", ()),),
    ),
    Discrepancy("Eq. 7 multiplies the anchor term by the step size, the code does not", (("gamma", ()),)),
    Discrepancy(
        "Eq. 7 takes the gradient as it is, the code its sign (linf) or its direction (l2): step lengths then do not"
        " depend on the loss, and the chain samples no density of the loss",
        (("distance", ("gamma 0.05, gradients aligned",)),), None,
        "atent train cifar10-l2-atent --method.variant published",
    ),
    Discrepancy(
        "three step sizes: 2 eps2 / K, 0.5 eps2 / K, and 0.02; with the last, eps 0.577 is not noise 0.12",
        (("noise", ()),),
    ),
    Discrepancy("the noise of one step is called the effective noise; ten steps add up", (("accumulated", ()),)),
    Discrepancy("so the perturbation of that network is nowhere near eps2", (("noisy-distance", ()),)),
    Discrepancy(
        "the step with noise eps samples at temperature eps squared, not 1, and 0.001 is plain ascent",
        (("temperature", ()),),
    ),
    Discrepancy(
        "the loss is averaged over the chain with weights that leave nothing but its end", (("weights", ()),),
    ),
    Discrepancy("the l2 network is another than the text says", (("architecture", ()),)),
    Discrepancy(
        "the projection that the text leaves out in l2 is made at every step on MNIST; in linf at the last step only,"
        " so earlier iterates leave the ball", (("drift", ()),), None, "atent train cifar10-linf-atent",
    ),
    Discrepancy(
        "the published attack takes steps of 2.5 eps2 / 10, the notebook behind 64.53 a fifth of that",
        (("budget", ()),), _steps_differ, "atent reproduce table-s1",
    ),
    Discrepancy("8/255 is 0.031, and SmoothAdv's 0.435 is 0.431", (("radii", ()),)),
    Discrepancy("the released MNIST notebook is not the one that trained the reported network", (("epochs", ()),)),
    Discrepancy(
        "Entropy-SGD as compared has no Langevin steps: it is Nesterov SGD", (("walk", ()),), None,
        "atent train mnist-entropy-sgd --optimizer.walk.inner_steps 0",
    ),
    Discrepancy(
        "the l2 TRADES baseline on MNIST is trained in linf, at eps 2, where the ball holds every image",
        (("vacuous", ()),), None, "atent train mnist-l2-trades",
    ),
    Discrepancy(
        "in the plane, PGD and TRADES are trained with points clamped to [0, 1], ATENT is not", (), _clamp,
        "atent reproduce figure-1",
    ),
    Discrepancy(
        "some attacks were run without labels: against the model's own answers, so that a wrong point may be pushed"
        " right and count as robust", (("labels", ()),),
    ),
    Discrepancy(
        "certified accuracy is defined as the clean accuracy of the smoothed classifier; a certificate at 0.435 takes"
        " far more samples than the code makes", (("certificate", ()),), _certified_gap, "atent reproduce table-s2",
    ),
    Discrepancy(
        "one training and one attack each: differences below the interval of 10,000 images say nothing, such as 60.5"
        " printed by the notebook and 59.69 by Table S3", (("samples", ()),),
    ),
    Discrepancy(
        "the rate is decayed at epoch 76 in the text, from 75 on in the code, and the epoch is chosen on the test set",
        (), _decay, "atent reproduce figure-s1",
    ),
    Discrepancy(
        "the printed times: TRADES is slower on the small l2 network than on the large linf one, though ATENT as"
        " released takes more passes", (("times", ()), ("cost", ())), None, "atent reproduce table-s4",
    ),
)  # fmt: skip
