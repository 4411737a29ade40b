"""Discrepancies between the supplement's text, tables and code that affect a number."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from atent import stats
from atent.paper import verdicts
from atent.paper.evidence import Results
from atent.paper.names import RADII, ROWS
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
            name = f"{ROWS[row]}, {RADII[column]}"
            words.append(f"{name}: {' / '.join(verdicts.percent(c) for c in cells)}")
    return "published step / released step / AutoAttack: " + ("; ".join(words) or NOT_YET)


def _clamp(found: Results) -> str:
    table = found.tables.get("figure-1", {})
    rows = {row["name"]: row["ours"] for row in table.get("rows", ()) if row["ours"]}
    words = [
        f"{ROWS[name]}: {100 * rows[name]['grid']['mean']:.1f} corrected,"
        f" {100 * rows[f'{name}-unit']['grid']['mean']:.1f} as released"
        for name in ("trades", "pgdat")
        if name in rows and f"{name}-unit" in rows
    ]
    if not words:
        return NOT_YET
    away = table["out_of_reach"]
    return (
        f"robust accuracy (%) by exhaustive search: {'; '.join(words)}; the balls of {stats.percent(away)} of the"
        f" training points lie entirely outside the clamp's range (scale {table['scale']})"
    )


def _decay(found: Results) -> str:
    return (
        f"decay of this recipe: epoch {found.tables['figure-s1']['decay']}" if "figure-s1" in found.tables else NOT_YET
    )


def _certified_gap(found: Results) -> str:
    return verdicts.clean_or_certified(found).ours


DISCREPANCIES: tuple[Discrepancy, ...] = (
    Discrepancy(
        "gamma is 0.08 in one sentence and 0.05 in the next; the code uses 0.05, 0.01 and 0. It determines the length"
        " of the perturbation", (("distance", ()),),
    ),
    Discrepancy("Eq. 7 multiplies the anchor term by the step size; the code does not", (("gamma", ()),)),
    Discrepancy(
        "Eq. 7 uses the raw gradient; the code uses its sign (linf) or the normalised gradient (l2). Step lengths are"
        " then independent of the loss, and the chain does not sample a density of the loss",
        (("distance", ("gamma 0.05, gradients aligned",)),), None,
        "atent train cifar10-l2-atent --method.variant published",
    ),
    Discrepancy(
        "three step sizes are stated: 2 eps2 / K, 0.5 eps2 / K and 0.02; with 0.02, eps 0.577 does not give noise 0.12",
        (("noise", ()),),
    ),
    Discrepancy(
        "the noise of one step is called the effective noise; the noise of the ten steps adds up",
        (("accumulated", ()),),
    ),
    Discrepancy("the perturbation in the training of that network is much longer than eps2", (("noisy-distance", ()),)),
    Discrepancy(
        "the step with noise eps samples at temperature eps^2, not 1; eps 0.001 is practically gradient ascent",
        (("temperature", ()),),
    ),
    Discrepancy(
        "the weights of the average of the loss over the chain are concentrated on its last iterate",
        (("weights", ()),),
    ),
    Discrepancy("the l2 network is not the one that the text states", (("architecture", ()),)),
    Discrepancy(
        "the text has no projection in l2, and the code projects at every step on MNIST; in linf the code projects at"
        " the last step only, so that earlier iterates leave the ball", (("drift", ()),), None,
        "atent train cifar10-linf-atent",
    ),
    Discrepancy(
        "the published attack takes steps of 2.5 eps2 / 10; the notebook that produced 64.53 takes steps of a fifth of"
        " that",
        (("budget", ()),), _steps_differ, "atent reproduce table-s1",
    ),
    Discrepancy("the radius 8/255 is 0.031 in the code, and the radius 0.435 is 0.431 for SmoothAdv", (("radii", ()),)),
    Discrepancy("the released MNIST notebook is not the one that trained the reported network", (("epochs", ()),)),
    Discrepancy(
        "Entropy-SGD as it is compared has no Langevin steps, and is therefore Nesterov SGD", (("walk", ()),), None,
        "atent train mnist-entropy-sgd --optimizer.walk.inner_steps 0",
    ),
    Discrepancy(
        "the l2 TRADES baseline on MNIST is trained in linf at eps 2, where the ball contains every image",
        (("vacuous", ()),), None, "atent train mnist-l2-trades",
    ),
    Discrepancy(
        "in the plane, PGD and TRADES are trained with points clamped to [0, 1]; ATENT is not", (), _clamp,
        "atent reproduce figure-1",
    ),
    Discrepancy(
        "some attacks ran without labels, against the model's own predictions: a misclassified point can be pushed to"
        " its true class and is then counted as robust", (("labels", ()),),
    ),
    Discrepancy(
        "certified accuracy is defined as the clean accuracy of the smoothed classifier; a certificate at 0.435 needs"
        " far more samples than the code draws", (("certificate", ()),), _certified_gap, "atent reproduce table-s2",
    ),
    Discrepancy(
        "each figure is of one training and one attack: differences within the interval of 10,000 images, such as 60.5"
        " in the notebook and 59.69 in Table S3, are not significant", (("samples", ()),),
    ),
    Discrepancy(
        "the learning rate decays at epoch 76 in the text and from epoch 75 on in the code; the epoch is chosen on the"
        " test set",
        (), _decay, "atent reproduce figure-s1",
    ),
    Discrepancy(
        "in the printed times TRADES is slower on the small l2 network than on the large linf network, although ATENT"
        " as released needs more passes", (("times", ()), ("cost", ())), None, "atent reproduce table-s4",
    ),
)  # fmt: skip
