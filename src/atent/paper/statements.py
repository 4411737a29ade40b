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


_ABOVE = (
    "the 95 % interval of ATENT's lead over each other method, paired by seed and image, lies above 0; `false`: one"
    " lies below 0"
)
_BOTH = f"{_ABOVE}; attacks: the published one and AutoAttack"


def _points(share: float) -> str:
    return f"{100 * share:g} points"


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "A.2", "ATENT is more robust than every baseline of Table S1",
        "at l2 0.5: " + _print("table-s1", ("atent", "half"), ("pgdat", "half"), ("mma", "half"))
        + " (ATENT, PGD-AT, MMA); at 1: "
        + _print("table-s1", ("atent", "full"), ("pgdat", "full"), ("mma", "full")),
        "atent reproduce table-s1", verdicts.all_of_s1, f"{_ABOVE}; attack: the published one", "table-s1",
    ),
    Claim(
        "A.2", "at half the radius the three methods have similar accuracy",
        _print("table-s1", ("pgdat", "half"), ("mma", "half"), ("atent", "half")), "atent reproduce table-s1",
        verdicts.alike,
        f"for each pair the 95 % interval of the difference lies within -{_points(verdicts.ALIKE)} and"
        f" +{_points(verdicts.ALIKE)}; `false`: one lies outside",
        "table-s1",
    ),
    Claim(
        "A.2", "at the full radius ATENT is best",
        _print("table-s1", ("atent", "full"), ("pgdat", "full"), ("mma", "full")), "atent reproduce table-s1",
        lambda found: verdicts.best_of_s1(found, ("full-published", "full-autoattack"), ("pgdat", "mma")),
        _BOTH, "table-s1",
    ),
    Claim(
        "A.2", "ATENT is best even with a smaller network", "ResNet-20 against WideResNet-28-4",
        "atent reproduce table-s1 --scale paper", verdicts.smaller_network,
        f"{_ABOVE}; evaluated only where the networks differ", "table-s1",
    ),
    Claim(
        "A.2", "noise eps 0.577 gives an effective noise of 0.12", "0.12", COMMAND, verdicts.smoothing_noise,
        "the noise of one step and that of the whole chain are both within 5 % of 0.12; `partly`: one of them is",
    ),
    Claim(
        "A.2", "gamma is chosen so that the perturbation has a norm of about eps2", "about eps2", COMMAND,
        verdicts.near_eps, "the norm is within a factor 2 of eps2 in both experiments",
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
        "A.2", "certified robust accuracy is the accuracy of the smoothed classifier",
        _print("table-s2", ("atent-smoothing", "clean"), ("atent-smoothing", "certified")) + " (radius 0, 0.435)",
        "atent reproduce table-s2", verdicts.clean_or_certified,
        "no image is correctly classified and not certified (`true` needs 299 images); the accuracy of the smoothed"
        " classifier is its clean accuracy, and a certificate has a radius",
        "table-s2",
    ),
    Claim(
        "A.2", "ATENT's certified accuracy is competitive",
        _print("table-s2", ("atent-smoothing", "certified"), ("smoothadv", "certified"),
               ("trades-smoothing", "certified")) + " (ATENT, SmoothAdv, TRADES)",
        "atent reproduce table-s2", verdicts.competitive,
        f"the 95 % interval of ATENT's difference to each other method lies above -{_points(verdicts.ABOUT)}; `partly`:"
        " above it for one and below it for the other", "table-s2",
    ),
    Claim(
        "A.3", "robust accuracy spikes after the first decay of the learning rate", "decayed at epoch 76",
        "atent reproduce figure-s1", verdicts.spike,
        f"the 95 % interval of the rise from the last epoch before the decay to the first after it lies above"
        f" {_points(verdicts.ALIKE)}; `false`: below", "figure-s1",
    ),
    Claim(
        "A.3", "robust accuracy falls immediately after that spike", "the peak is the last epoch shown as trained",
        "atent reproduce figure-s1", verdicts.falls,
        f"the 95 % interval of the fall from the first epoch at the lower learning rate to the last epoch lies above"
        f" {_points(verdicts.ALIKE)}; `false`: below", "figure-s1",
    ),
    Claim(
        "A.3", "ATENT's attacks are about as strong as PGD's",
        _print("table-s3", ("langevin", "2"), ("langevin", "4"), ("langevin", "8"), ("langevin", "12")) + " and "
        + _print("table-s3", ("pgd", "2"), ("pgd", "4"), ("pgd", "8"), ("pgd", "12")),
        "atent reproduce table-s3", verdicts.as_strong,
        f"the 95 % interval of the accuracy under ATENT-20 minus that under PGD-20, of the same networks and images,"
        f" lies below {_points(verdicts.ABOUT)} at each radius; `partly`: at some radii, and above at others",
        "table-s3",
    ),
    Claim(
        "A.3", "PGD is the worst possible attack", _print("table-s3", ("pgd", "8")), "atent reproduce table-s3",
        verdicts.worst_attack,
        "at no radius does AutoAttack succeed on an image on which PGD-20 fails, on the same networks; `true` needs 299"
        " images with stored outcomes", "table-s3",
    ),
    Claim(
        "A.3", "ATENT costs as much as PGD and TRADES",
        "l2 " + _print("table-s4", ("atent-10", "l2"), ("pgdat", "l2"), ("trades", "l2")) + "; linf "
        + _print("table-s4", ("atent-10", "linf"), ("pgdat", "linf"), ("trades", "linf")) + " s",
        "atent reproduce table-s4", verdicts.same_cost,
        "the 95 % interval of the ratio of CPU seconds, paired by round, lies within {:g} and {:g}, for both methods"
        " and both norms; `partly`: for some, and outside for others".format(*verdicts.COST), "table-s4",
    ),
    Claim(
        "A.3", "ATENT's time per epoch lies between those of PGD and TRADES", "as above", "atent reproduce table-s4",
        verdicts.between,
        "the 95 % interval of the ratio lies above 1 for one of the two methods and below 1 for the other, in both"
        " norms", "table-s4",
    ),
    Claim(
        "A.3", "ATENT's time is linear in K",
        "K = 10 and 5: l2 " + _print("table-s4", ("atent-10", "l2"), ("atent-5", "l2")) + "; linf "
        + _print("table-s4", ("atent-10", "linf"), ("atent-5", "linf")) + " s",
        "atent reproduce table-s4", verdicts.linear,
        "the 95 % interval of the exponent b of a + c K^b, fitted to five values of K, lies within {:g} and {:g}, in"
        " both norms".format(
            *verdicts.LINEAR
        ), "table-s4",
    ),
    Claim(
        "A.3", "a standard-trained network fine-tuned by ATENT is slightly more robust than one fine-tuned by PGD-AT",
        _print("finetune", ("atent", "robust"), ("pgdat", "robust")) + " (another network)",
        "atent reproduce finetune", verdicts.finetuned_better, _ABOVE, "finetune",
    ),
    Claim(
        "A.3", "fine-tuning loses about 5 points against training from scratch",
        _print("finetune", ("scratch", "robust"), ("atent", "robust")),
        "atent reproduce finetune", verdicts.finetune_loss,
        "the 95 % interval of the loss against training from scratch, paired by seed, lies within 3 and 7 points",
        "finetune",
    ),
    Claim(
        "Fig. 1", "in the plane ATENT is the most robust of four methods",
        _print("figure-1", *((row, "robust") for row in ("atent", "trades", "pgdat", "standard"))),
        "atent reproduce figure-1", verdicts.in_the_plane,
        f"{_ABOVE}; attack: the exhaustive search", "figure-1",
    ),
)  # fmt: skip
