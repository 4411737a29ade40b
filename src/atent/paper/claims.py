"""The paper's claims, judged by what was measured here, and what its text and its code disagree on, in numbers.

    python -m atent.paper.claims results docs/paper.md

writes claims.json and claims.md into results, and the same tables between the marks of the page.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent import stats
from atent.markdown import table as markdown_table
from atent.paper import verdicts
from atent.paper.evidence import Results, as_printed, measured
from atent.paper.published import value
from atent.paper.verdicts import NOT_YET, Judged

NAME = "claims"
COMMAND = f"atent reproduce {NAME}"
BEGIN, END = "<!-- generated: claims -->", "<!-- end of generated -->"


@dataclass(frozen=True)
class Claim:
    """A sentence of the supplement that asserts something about a number."""

    where: str
    says: str
    """In our words."""
    printed: str
    """The figures that it rests on, as printed."""
    command: str
    """What measures ours."""
    judge: Callable[[Results], Judged]
    rule: str
    """When it is called true."""
    table: str | None = None
    """The result that it is judged by; None: the settings alone."""


@dataclass(frozen=True)
class Discrepancy:
    """Where text, tables and code disagree, and a number depends on it."""

    what: str
    """In our words."""
    facts: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """Numbers that show it: key of `FACTS`, and the names of its values; none: all."""
    shown: Callable[[Results], str] | None = None
    """A measured number that shows it."""
    command: str = COMMAND


def run_claims(out: str | Path, page: str | Path | None = None) -> dict[str, Any]:
    """Judge every claim by the result files in ``out``, and write claims.json and claims.md there; the content of the
    former. With ``page``, a Markdown file with the two marks, the tables between them are written anew.

    What no file in ``out`` has measured says "not measured yet"; nothing is filled in by hand. Numbers that need no
    trained network are computed at each call, in some seconds. Raises ValueError where the page lacks a mark.
    """
    found = measured(out)
    printed = as_printed(found.facts)
    claims = [_told(found, printed, claim) for claim in CLAIMS]
    made = {
        "name": NAME,
        "title": "What the supplement claims, and what its text and code disagree on",
        "command": COMMAND,
        "claims": claims,
        "discrepancies": [_shown(found, one) for one in DISCREPANCIES],
        "facts": {key: asdict(fact) for key, fact in found.facts.items()},
        "results": {
            name: {"scale": table.get("scale"), "complete": table.get("complete")}
            for name, table in found.tables.items()
        },
        "provenance": folder.provenance(seed=0, device="cpu"),
    }
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    folder.write_json(out / f"{NAME}.json", made)
    content: dict[str, Any] = folder.read_json(out / f"{NAME}.json")
    folder.write_atomic(out / f"{NAME}.md", markdown(content))
    if page is not None:
        fill(Path(page), content)
    return content


def fill(page: Path, content: Mapping[str, Any]) -> None:
    """Write the tables of ``content`` between the marks of the page; ValueError, in one line, where one is missing."""
    text = page.read_text()
    head, begin, rest = text.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} lacks the line {BEGIN if not begin else END}: put it where the tables belong")
    folder.write_atomic(page, f"{head}{begin}\n\n{tables(content)}\n{end}{tail}")


def markdown(content: Mapping[str, Any]) -> str:
    """claims.md: both tables, and where they come from."""
    made = content["provenance"]
    changed = " with changes" if made["dirty"] else ""
    return (
        f"# {content['title']}\n\n{tables(content)}\natent {made['version']}, commit {made['commit']}{changed}, torch"
        f" {made['torch']}, {made['device_name']}; `{content['command']}`\n"
    )


def tables(content: Mapping[str, Any]) -> str:
    """Both tables as Markdown."""
    rows = []
    for claim in content["claims"]:
        scale = f" (scale {claim['scale']})" if claim["scale"] else ""
        cells = [claim["where"], claim["says"], claim["printed"], claim["by_its_own"] or "-"]
        cells += [f"**{claim['verdict']}**", claim["ours"] + scale]
        rows.append([*cells, f"`{claim['command']}`"])
    heads = ["where", "the paper says", "printed", "by that", "verdict", "ours", "command"]
    lines = markdown_table(heads, rows, left=7)
    lines += ["", "True is called:", ""]
    lines += [f"- {claim['says']}: {claim['rule']}." for claim in content["claims"]]
    heads = ["where text, tables and code disagree", "printed", "ours", "command"]
    found = [[one["what"], one["printed"], one["ours"], f"`{one['command']}`"] for one in content["discrepancies"]]
    lines += ["", *markdown_table(heads, found, left=4)]
    return "\n".join([*lines, ""])


def _told(found: Results, printed: Results, claim: Claim) -> dict[str, Any]:
    judged = claim.judge(found)
    # A claim about settings has one verdict: there is no printed figure to judge.
    own = claim.judge(printed).verdict if claim.table else NOT_YET
    table = found.tables.get(claim.table or "")
    return {
        "where": claim.where, "says": claim.says, "printed": claim.printed,
        "by_its_own": own if own != NOT_YET else None, "verdict": judged.verdict,
        "ours": judged.ours, "scale": table.get("scale") if table and judged.verdict != NOT_YET else None,
        "rule": claim.rule, "command": claim.command,
    }  # fmt: skip


def _shown(found: Results, one: Discrepancy) -> dict[str, str]:
    printed, ours = [], []
    for key, names in one.facts:
        fact = found.facts[key]
        printed.append(fact.printed)
        ours += [f"{name}: {_number(fact.values[name])}" for name in names or fact.values]
    if one.shown is not None:
        ours.append(one.shown(found))
    return {
        "what": one.what, "printed": "; ".join(printed) or "-", "ours": "; ".join(ours), "command": one.command,
    }  # fmt: skip


def _print(table: str, *places: tuple[str, str]) -> str:
    return ", ".join(str(value(table, row, column)) for row, column in places)


def _number(v: float) -> str:
    return f"{v:,.0f}" if float(v).is_integer() and abs(v) < 1e15 else f"{v:.4g}"


# ---- the claims --------------------------------------------------------------------------------------------

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
        _print("table-s2", ("atent-smoothing", "natural"), ("atent-smoothing", "certified")) + " (radius 0, 0.435)",
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


# ---- the discrepancies -------------------------------------------------------------------------------------


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
        f"{name}: {100 * rows[name]['grid']['mean']:.1f} mended, {100 * rows[f'{name}-unit']['grid']['mean']:.1f} as"
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
    Discrepancy("Eq. 7 multiplies the pull by the step size, the code does not", (("gamma", ()),)),
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
        " far more draws than the code makes", (("certificate", ()),), _certified_gap, "atent reproduce table-s2",
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


if __name__ == "__main__":
    words = sys.argv[1:]
    if len(words) not in (1, 2):
        sys.exit("usage: python -m atent.paper.claims RESULTS [PAGE.md]")
    told = [claim["verdict"] for claim in run_claims(*words)["claims"]]
    print(json.dumps({v: told.count(v) for v in dict.fromkeys(told)}))
