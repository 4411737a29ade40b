"""The quantitative claims of the supplement, and how each is evaluated."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from atent.paper import verdicts
from atent.paper.evidence import Results
from atent.paper.published import value
from atent.paper.verdicts import Finding

NAME = "claims"
COMMAND = f"atent reproduce {NAME}"


@dataclass(frozen=True)
class Claim:
    """A quantitative claim of the supplement."""

    where: str
    says: str
    """The claim, paraphrased."""
    printed: str
    """The figures behind it, as printed."""
    command: str
    """The command that measures ours."""
    evaluate: Callable[[Results], Finding]
    rule: str
    """The criterion for true."""
    table: str | None = None
    """The result that it is evaluated by; None: the settings alone."""


def _print(table: str, *places: tuple[str, str]) -> str:
    return ", ".join(str(value(table, row, column)) for row, column in places)


_ABOVE = "paired by seed and image, the 95 % interval of its lead over each is above 0; false: one is below"
_BOTH = f"{_ABOVE}; under the published attack and under AutoAttack"


def _points(share: float) -> str:
    return f"{100 * share:g} points"


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "A.2", "ATENT is more robust than every baseline of Table S1",
        "at l2 0.5: " + _print("table-s1", ("atent", "half"), ("pgdat", "half"), ("mma", "half"))
        + " (ATENT, PGD-AT, MMA); at 1: "
        + _print("table-s1", ("atent", "full"), ("pgdat", "full"), ("mma", "full")),
        "atent reproduce table-s1", verdicts.all_of_s1, f"{_ABOVE}; under the published attack", "table-s1",
    ),
    Claim(
        "A.2", "at half the radius the three networks are alike",
        _print("table-s1", ("pgdat", "half"), ("mma", "half"), ("atent", "half")), "atent reproduce table-s1",
        verdicts.alike,
        f"each pair is less than {_points(verdicts.ALIKE)} apart, by the 95 % interval of the difference; false: one is"
        " more",
        "table-s1",
    ),
    Claim(
        "A.2", "at the full radius ATENT is best",
        _print("table-s1", ("atent", "full"), ("pgdat", "full"), ("mma", "full")), "atent reproduce table-s1",
        lambda found: verdicts.best_of_s1(found, ("full-published", "full-autoattack"), ("pgdat", "mma")),
        _BOTH, "table-s1",
    ),
    Claim(
        "A.2", "ATENT is best even with a smaller network", "ResNet-20 beside WideResNet-28-4",
        "atent reproduce table-s1 --scale paper", verdicts.smaller_network,
        f"{_ABOVE}; only where the networks differ", "table-s1",
    ),
    Claim(
        "A.2", "eps 0.577 makes the effective noise 0.12", "0.12", COMMAND, verdicts.smoothing_noise,
        "both the noise of one step and that of the whole chain are within 5 % of 0.12; partly: one is",
    ),
    Claim(
        "A.2", "gamma is chosen so that the perturbation is about eps2 long", "about eps2", COMMAND, verdicts.near_eps,
        "within a factor 2 of eps2 in both experiments",
    ),
    Claim(
        "A.2", "trained for smoothing, ATENT is more robust than TRADES",
        _print("table-s1", ("atent-smoothing", "small"), ("trades-smoothing", "small")), "atent reproduce table-s1",
        lambda found: verdicts.best_of_s1(
            found, ("small-published", "small-autoattack"), ("trades-smoothing",), "atent-smoothing"
        ),
        _BOTH, "table-s1",
    ),
    Claim(
        "A.2", "certified robust accuracy is the share that the smoothed classifier gets right",
        _print("table-s2", ("atent-smoothing", "clean"), ("atent-smoothing", "certified")) + " (radius 0, 0.435)",
        "atent reproduce table-s2", verdicts.clean_or_certified,
        "no image is correctly classified and not certified (true needs 299 images); that share is the clean accuracy"
        " of the smoothed classifier, a certificate has a radius",
        "table-s2",
    ),
    Claim(
        "A.2", "ATENT's certificate is competitive",
        _print("table-s2", ("atent-smoothing", "certified"), ("smoothadv", "certified"),
               ("trades-smoothing", "certified")) + " (ATENT, SmoothAdv, TRADES)",
        "atent reproduce table-s2", verdicts.competitive,
        f"the 95 % interval of the difference to each lies above -{_points(verdicts.ABOUT)}; partly: above it for one"
        " and below it for the other", "table-s2",
    ),
    Claim(
        "A.3", "robust accuracy spikes after the first decay of the rate", "decayed at epoch 76",
        "atent reproduce figure-s1", verdicts.spike,
        f"the first epoch at the lower rate is more than {_points(verdicts.ALIKE)} above the one before it, by the 95 %"
        " interval; false: less", "figure-s1",
    ),
    Claim(
        "A.3", "and then falls at once", "the peak is the last epoch shown as trained",
        "atent reproduce figure-s1", verdicts.falls,
        f"the last epoch is more than {_points(verdicts.ALIKE)} below the first at the lower rate, by the 95 %"
        " interval; false: less", "figure-s1",
    ),
    Claim(
        "A.3", "ATENT's attacks are about as strong as PGD's",
        _print("table-s3", ("langevin", "2"), ("langevin", "4"), ("langevin", "8"), ("langevin", "12")) + " and "
        + _print("table-s3", ("pgd", "2"), ("pgd", "4"), ("pgd", "8"), ("pgd", "12")),
        "atent reproduce table-s3", verdicts.as_strong,
        f"of the same networks and images less than {_points(verdicts.ABOUT)} more survive ATENT-20 than PGD-20, by the"
        " 95 % interval; partly: at some radii, and more at others",
        "table-s3",
    ),
    Claim(
        "A.3", "PGD is the worst possible attack", _print("table-s3", ("pgd", "8")), "atent reproduce table-s3",
        verdicts.worst_attack,
        "AutoAttack takes no image that PGD-20 leaves, on the same networks, at any radius; true needs 299 images with"
        " their outcomes kept", "table-s3",
    ),
    Claim(
        "A.3", "ATENT costs as much as PGD and TRADES",
        "l2 " + _print("table-s4", ("atent-10", "l2"), ("pgdat", "l2"), ("trades", "l2")) + "; linf "
        + _print("table-s4", ("atent-10", "linf"), ("pgdat", "linf"), ("trades", "linf")) + " s",
        "atent reproduce table-s4", verdicts.same_cost,
        "the 95 % interval of the ratio of CPU seconds, paired by round, lies within {:g} and {:g}, for both and in"
        " both norms; partly: for some, and outside for others".format(*verdicts.COST), "table-s4",
    ),
    Claim(
        "A.3", "its time per epoch is between those of PGD and TRADES", "as above", "atent reproduce table-s4",
        verdicts.between,
        "by the 95 % intervals of the ratios above one of them and below the other, in both norms", "table-s4",
    ),
    Claim(
        "A.3", "its time is linear in K",
        "K = 10 and 5: l2 " + _print("table-s4", ("atent-10", "l2"), ("atent-5", "l2")) + "; linf "
        + _print("table-s4", ("atent-10", "linf"), ("atent-5", "linf")) + " s",
        "atent reproduce table-s4", verdicts.linear,
        "the 95 % interval of b in a + c K^b, over five values of K, lies within {:g} and {:g}, in both norms".format(
            *verdicts.LINEAR
        ), "table-s4",
    ),
    Claim(
        "A.3", "a fine-tuned benign network is a little more robust than PGD-AT's",
        _print("finetune", ("atent", "robust"), ("pgdat", "robust")) + " (another network)",
        "atent reproduce finetune", verdicts.finetuned_better, _ABOVE, "finetune",
    ),
    Claim(
        "A.3", "fine-tuning loses some 5 points", _print("finetune", ("scratch", "robust"), ("atent", "robust")),
        "atent reproduce finetune", verdicts.finetune_loss,
        "the 95 % interval of the difference to training from scratch, paired by seed, lies within 3 and 7 points",
        "finetune",
    ),
    Claim(
        "Fig. 1", "in the plane ATENT is the most robust of four",
        _print("figure-1", *((row, "robust") for row in ("atent", "trades", "pgdat", "standard"))),
        "atent reproduce figure-1", verdicts.in_the_plane,
        f"by the exhaustive search, {_ABOVE}", "figure-1",
    ),
)  # fmt: skip
