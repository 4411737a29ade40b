"""The numbers that the paper's settings imply, against simulations and closed forms, and the rules for its claims."""

import json
import math
import random
import statistics
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from atent.attacks import FGSM, sampler
from atent.data import DataSettings, load
from atent.methods import ATENT, PGDAT, TRADES, Standard
from atent.paper import claims, derivations, evidence, facts, timing, verdicts
from atent.paper.claims import run_claims
from atent.paper.discrepancies import DISCREPANCIES
from atent.paper.result import read_result
from atent.paper.statements import CLAIMS
from atent.runs import read_json
from atent.stats import share
from atent.threat import Threat

WIDE = (-1e3, 1e3)


@pytest.fixture(scope="module")
def found():
    return facts.facts()


# --- the chain ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "weight"), [(1, 0.05), (10, 0.05), (10, 0.0), (7, 0.4)])
def test_accumulated_noise_is_that_of_the_chain(steps, weight):
    chain = sampler(Threat("l2", 0.435, WIDE), steps=steps, step_size=0.02175, gamma=weight, noise=0.577, start="zero")
    sd = derivations.noise_after(steps, 0.02175, weight, 0.577)
    seen = derivations.simulated(chain, dim=400, samples=400, aligned=False)
    # 160,000 samples: the standard deviation is known to a relative 1 / sqrt(320,000).
    assert float(seen.std()) == pytest.approx(sd, rel=0.01)
    slow = 0.0
    for _ in range(steps):
        slow = (1 - weight) ** 2 * slow + 2 * 0.02175 * 0.577**2
    assert sd == pytest.approx(math.sqrt(slow), rel=1e-12)


@pytest.mark.parametrize("weight", [0.05, 0.08])
def test_aligned_distance_is_that_of_the_chain(weight):
    chain = sampler(Threat("l2", 1.0, WIDE), steps=10, step_size=0.2, gamma=weight, noise=0.0)
    seen = derivations.simulated(chain, dim=20_000, samples=50).double().norm(dim=1)
    assert float(seen.mean()) == pytest.approx(derivations.distance_after(10, 0.2, weight, 1.0, aligned=True), rel=0.01)


def test_distance_at_right_angles_is_that_of_orthogonal_steps():
    # One new axis for each step, and one for the start.
    d = torch.zeros(11, dtype=torch.float64)
    d[10] = 1.0
    for k in range(10):
        d = 0.95 * d
        d[k] += 0.2
    assert derivations.distance_after(10, 0.2, 0.05, 1.0, aligned=False) == pytest.approx(float(d.norm()), rel=1e-12)


def test_known_numbers(found):
    """Of the settings that the supplement prints; each was also worked out by hand."""
    assert found["noise"].values["eta' 0.02175 (0.5 eps2 / 10)"] == pytest.approx(0.1203, abs=5e-5)
    assert found["noise"].values["eta' 0.02"] == pytest.approx(0.1154, abs=5e-5)
    assert found["noise"].values["eps for 0.12 at eta' 0.02"] == pytest.approx(0.6)
    assert found["accumulated"].values["standard deviation per value"] == pytest.approx(0.309, abs=5e-4)
    assert found["distance"].values["gamma 0.05, gradients aligned"] == pytest.approx(1.71, abs=5e-3)
    assert found["distance"].values["gamma 0.08, gradients aligned"] == pytest.approx(1.48, abs=5e-3)
    assert found["distance"].values["gamma 0.08, orthogonal gradients"] == pytest.approx(0.63, abs=5e-3)
    assert found["noisy-distance"].values["without the clamp"] == pytest.approx(0.3087 * math.sqrt(3072), rel=0.01)
    assert found["gamma"].values == {"eta' 0.2": pytest.approx(0.25), "eta' 0.02175": pytest.approx(2.2989, abs=1e-4)}
    assert found["weights"].values["sum"] == pytest.approx(1 - 0.1**10, rel=1e-14)
    assert found["weights"].values["share of the variance within the chain"] == pytest.approx(
        1 - 0.81 * (1 - 0.01**10) / 0.99, rel=1e-12
    )
    assert found["certificate"].values["samples needed at 0.435 if all agree"] == 47_808
    assert found["drift"].values["linf CIFAR-10"] == pytest.approx(0.094)
    assert found["radii"].values["0.031 in 1/255"] == pytest.approx(7.905)
    assert found["walk"].values["difference"] == 0.0
    assert found["architecture"].values["parameters of ResNet-20"] == 272_474
    assert all(math.isfinite(v) for fact in found.values() for v in fact.values.values())


# --- attacks and costs --------------------------------------------------------------------------------------


def test_share_of_the_budget_is_the_attacks():
    for step, printed in ((0.25, 0.97), (0.05, 0.42)):
        reported = derivations.share_of_budget(10, step, math.sqrt(3072 / 3))
        assert reported == pytest.approx(printed, abs=0.005)
        assert derivations.attacked(10, step, samples=50) == pytest.approx(reported, abs=0.01)
    # Without a start across, a path of half the budget is half the budget.
    assert derivations.share_of_budget(10, 0.05, 0.0) == pytest.approx(0.5)
    assert derivations.share_of_budget(10, 0.25, 0.0) == 1.0


def test_passes_are_counted():
    threat = Threat("linf", 0.1)
    assert derivations.passes(Standard()) == (1, 1)
    assert derivations.passes(PGDAT(threat, 3)) == (4, 4)
    assert derivations.passes(ATENT(threat, 4)) == (5, 5)
    assert derivations.passes(TRADES(threat, 4)) == (7, 6)


def test_labels_left_out_raise_the_count(found):
    values = found["labels"].values
    assert values["robust, true labels"] < values["robust, predicted labels"] <= values["clean"]
    data = load(DataSettings("moons"))
    x, y = data.train.batch(range(len(data.train)))
    ones = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    w = torch.linalg.lstsq(ones, (2 * y - 1).double()[:, None]).solution[:, 0]

    class Linear(torch.nn.Module):
        def forward(self, x):
            score = x.double() @ w[:2] + w[2]
            return torch.stack([-score, score], 1)

    x, y = data.test.batch(range(len(data.test)))
    attack = FGSM(Threat("linf", 0.2, data.box))
    x = x.double()
    guess = Linear()(x).argmax(1)
    for labels, name in ((y, "robust, true labels"), (guess, "robust, predicted labels")):
        right = Linear()(attack(Linear(), x, labels)).argmax(1) == y
        assert float(right.double().mean()) == pytest.approx(values[name], abs=0.0015)


# --- the rules ----------------------------------------------------------------------------------------------


def cell(k, n=1000):
    """A cell of one network."""
    return share(k, n)


def seeded(*counts, n=1000):
    """A cell of one network for each seed, without outcomes by image."""
    value = sum(counts) / len(counts) / n
    return {
        "value": value,
        "low": 0.0,
        "high": 1.0,
        "n": n,
        "each": [k / n for k in counts],
        "seeds": [*range(len(counts))],
    }


def pictured(*texts, ids="0-9"):
    """A cell of the outcomes of each image, a string of 1 and 0 for each seed."""
    n = len(texts[0])
    return {**seeded(*(text.count("1") for text in texts), n=n), "outcomes": {"ids": ids, "each": list(texts)}}


def table(**rows):
    """A result file with these rows: {key: {column: cell}}."""
    made = [{"key": key, "cells": {c: {"ours": v} for c, v in cells.items()}} for key, cells in rows.items()]
    return {"scale": "laptop", "complete": True, "blocks": [{"rows": made}]}


def verdict_of(found, says, **tables):
    (claim,) = (c for c in CLAIMS if c.says == says)
    return claim.evaluate(evidence.Results(tables, found)).verdict


def test_words_for_several_answers():
    assert [verdicts.every(a) for a in ([True, True], [True, False, None], [True, None])] == [
        "true", "false", "not decided",
    ]  # fmt: skip
    several = ([True, True], [False, False], [True, False, None], [True, None], [None])
    assert [verdicts.settings(a) for a in several] == ["true", "false", "partly", "not decided", "not decided"]


def test_differences_are_paired_by_seed():
    """Seeds that move both sides alike leave the difference: one point, though each side spreads over five."""
    a, b = seeded(712, 762, 662), seeded(702, 751, 653)
    found = evidence.difference(a, b)
    assert found.inside(0) is True
    assert "3 seeds, on the same 1,000 images" in found.basis
    assert evidence.difference(b, a).inside(0) is False
    # The same shares, of other seeds, are not paired: nor are those of other images.
    moved = {**b, "seeds": [5, 6, 7]}
    assert evidence.difference(a, moved).found is None
    assert evidence.difference(a, {**b, "n": 500}).found is None
    shuffled = {**b, "seeds": [2, 0, 1], "each": [b["each"][i] for i in (2, 0, 1)]}
    assert evidence.difference(a, shuffled).found == found.found
    assert evidence.difference(pictured("1100", "1000"), pictured("1100", "1000", ids="4-7")).found is None


def test_one_training_of_each_decides_nothing():
    assert evidence.difference(cell(900), cell(500)).inside(0) is None
    # Of one network under two attacks the images decide, where their outcomes are kept.
    weak, strong = pictured("1" * 90 + "0" * 10), pictured("1" * 50 + "0" * 50)
    assert evidence.difference(weak, strong).inside(0) is None
    assert evidence.difference(weak, strong, same_networks=True).inside(0) is True
    assert evidence.difference(cell(900), cell(500), same_networks=True).inside(0) is None


def test_outcomes_by_image_are_paired():
    """The same shares with and without agreement of the images: what both get right says nothing of either."""
    base = "1" * 140 + "0" * 60
    more = "1" * 160 + "0" * 40
    apart = "0" * 40 + "1" * 160
    close, far = (evidence.difference(pictured(t, t, t), pictured(base, base, base)) for t in (more, apart))
    assert close.found.value == far.found.value == pytest.approx(0.1)
    assert close.inside(0) is True
    assert far.inside(0) is None
    assert "200 images" in close.basis
    # 20 images against none, and 60 against 40: the exact test over the images.
    assert close.p == pytest.approx(2 / 2**20)
    assert far.p == pytest.approx(0.0569, abs=1e-4)


def test_a_failed_training_leaves_the_ranks():
    """All three below all three by far: the t-interval over three seeds with one failure says nothing."""
    failed, sound = seeded(639, 126, 678), seeded(907, 905, 910)
    assert evidence.difference(failed, sound).inside(0) is False
    assert evidence.difference(sound, failed).inside(0) is True
    # Two networks of each are too few, and one that comes near enough leaves it open.
    assert evidence.difference(seeded(639, 126), seeded(907, 905)).inside(0) is None
    assert evidence.difference(seeded(890, 126, 678), sound).inside(0) is None
    # Nor do ranks make attacks on the same networks differ: they are not two samples.
    assert evidence.difference(failed, sound, same_networks=True).inside(0) is None


def test_alike_is_an_equivalence(found):
    def s1(*each):
        return {"table-s1": table(**{k: {"half-published": c} for k, c in zip(("pgdat", "mma", "atent"), each)})}

    says = "at half the radius the three methods have similar accuracy"
    assert verdict_of(found, says, **s1(seeded(900, 905, 910), seeded(901, 904, 911), seeded(902, 906, 910))) == "true"
    assert verdict_of(found, says, **s1(seeded(900, 905, 910), seeded(901, 904, 911), seeded(952, 956, 960))) == "false"
    # Intervals that merely meet: three networks that differ by 10 points each time are not shown to be alike.
    wide = s1(seeded(850, 900, 950), seeded(950, 850, 900), seeded(900, 950, 850))
    assert verdict_of(found, says, **wide) == "not decided"
    assert verdict_of(found, says, **s1(cell(900), cell(900), cell(900))) == "not decided"
    # Few images that agree are no equivalence either.
    assert verdict_of(found, says, **s1(*[seeded(45, 45, 45, n=50)] * 3)) == "not decided"


def test_the_lead_at_the_full_radius(found):
    def s1(atent, others, strong):
        rows = {"atent": (atent, strong), "pgdat": (others, others), "mma": (others, others)}
        return {"table-s1": table(**{k: {"full-published": a, "full-autoattack": b} for k, (a, b) in rows.items()})}

    says, base = "at the full radius ATENT is best", seeded(500, 510, 490)
    above, below = seeded(700, 715, 695), seeded(300, 312, 290)
    assert verdict_of(found, says, **s1(above, base, above)) == "true"
    assert verdict_of(found, says, **s1(below, base, below)) == "false"
    # What the published attack shows and AutoAttack takes back.
    assert verdict_of(found, says, **s1(above, base, below)) == "false"
    assert verdict_of(found, says, **s1(above, base, seeded(505, 500, 495))) == "not decided"
    assert verdict_of(found, says, **s1(cell(700), cell(500), cell(700))) == "not decided"


def test_all_of_s1(found):
    def s1(atent, smoothing):
        others, columns = seeded(500, 510, 490), ("half-published", "full-published", "small-published")
        rows = {
            "atent": atent,
            "pgdat": others,
            "mma": others,
            "atent-smoothing": smoothing,
            "trades-smoothing": others,
        }
        return {"table-s1": table(**{k: dict.fromkeys(columns, v) for k, v in rows.items()})}

    above, below, level = seeded(700, 715, 695), seeded(300, 312, 290), seeded(505, 500, 495)
    both = "ATENT is more robust than every baseline of Table S1"
    smoothing = "trained for smoothing, ATENT is more robust than TRADES"
    assert [verdict_of(found, both, **s1(*c)) for c in ((above, above), (above, below), (above, level))] == [
        "true", "false", "not decided",
    ]  # fmt: skip
    tables = [s1(above, c)["table-s1"] for c in (above, below, level)]
    for found_table in tables:
        for row in found_table["blocks"][0]["rows"]:
            row["cells"]["small-autoattack"] = row["cells"]["small-published"]
    assert [verdict_of(found, smoothing, **{"table-s1": t}) for t in tables] == ["true", "false", "not decided"]


def test_a_smaller_network_needs_two_networks(found):
    def s1(net, atent):
        rows = {"atent": atent, "pgdat": seeded(500, 510, 490), "mma": seeded(500, 510, 490)}
        made = table(**{k: {"full-published": v} for k, v in rows.items()})
        for row in made["blocks"][0]["rows"]:
            row["made"] = {"network": net if row["key"] == "atent" else "wide"}
        return {"table-s1": made}

    says = "ATENT is best even with a smaller network"
    for atent, verdict in (((700, 715, 695), "true"), ((300, 312, 290), "false"), ((505, 500, 495), "not decided")):
        assert verdict_of(found, says, **s1("small", seeded(*atent))) == verdict
        assert verdict_of(found, says, **s1("wide", seeded(*atent))) == "not measured yet"


def test_certificates_are_competitive_within_five_points(found):
    def s2(ours, one, other):
        rows = {"atent-smoothing": ours, "smoothadv": one, "trades-smoothing": other}
        return {"table-s2": table(**{k: {"certified": c} for k, c in rows.items()})}

    says, rival = "ATENT's certified accuracy is competitive", seeded(900, 905, 910)
    assert verdict_of(found, says, **s2(seeded(880, 884, 890), rival, rival)) == "true"
    assert verdict_of(found, says, **s2(seeded(639, 126, 678), rival, rival)) == "false"
    assert verdict_of(found, says, **s2(seeded(880, 884, 890), rival, seeded(960, 966, 968))) == "partly"
    # Far below on average, but not for certain; near, but one training of each.
    assert verdict_of(found, says, **s2(seeded(920, 126, 678), rival, rival)) == "not decided"
    assert verdict_of(found, says, **s2(cell(880), cell(900), cell(900))) == "not decided"


def test_what_is_smoothed_and_what_is_certified(found):
    def s2(clean, certified):
        return {"table-s2": table(**{"atent-smoothing": {"clean": clean, "certified": certified}})}

    says = "certified robust accuracy is the accuracy of the smoothed classifier"
    assert verdict_of(found, says, **s2(seeded(600, 500), seeded(600, 500))) == "true"
    assert verdict_of(found, says, **s2(seeded(600, 500), seeded(600, 499))) == "false"
    assert verdict_of(found, says, **s2(seeded(20, 20, n=50), seeded(20, 20, n=50))) == "not decided"


def test_the_loss_of_fine_tuning(found):
    def tuned(scratch, atent):
        return {"finetune": table(scratch={"robust": scratch}, atent={"robust": atent})}

    says = "fine-tuning loses about 5 points against training from scratch"
    assert verdict_of(found, says, **tuned(seeded(600, 601, 602), seeded(550, 550, 553))) == "true"
    assert verdict_of(found, says, **tuned(seeded(700, 701, 702), seeded(550, 550, 553))) == "false"
    assert verdict_of(found, says, **tuned(seeded(600, 601, 602), seeded(595, 596, 596))) == "false"
    # A failed training from scratch decides nothing, whatever the mean; nor does one training of each.
    assert verdict_of(found, says, **tuned(seeded(850, 270, 815), seeded(735, 720, 750))) == "not decided"
    assert verdict_of(found, says, **tuned(cell(570), cell(520))) == "not decided"


def test_fine_tuned_networks_are_paired(found):
    def tuned(atent, pgdat):
        return {"finetune": table(atent={"robust": atent}, pgdat={"robust": pgdat})}

    says = "a standard-trained network fine-tuned by ATENT is slightly more robust than one fine-tuned by PGD-AT"
    assert verdict_of(found, says, **tuned(seeded(712, 762, 662), seeded(702, 751, 653))) == "true"
    assert verdict_of(found, says, **tuned(seeded(702, 751, 653), seeded(712, 762, 662))) == "false"
    assert verdict_of(found, says, **tuned(seeded(733, 719, 752), seeded(734, 729, 768))) == "not decided"


def test_attacks_of_s3(found):
    def s3(*langevin, pgd=(600, 602, 598)):
        radii = ("2", "4", "8", "12")
        rows = {"pgd": dict.fromkeys(radii, seeded(*pgd)), "langevin": dict(zip(radii, langevin))}
        return {"table-s3": table(**rows)}

    says = "ATENT's attacks are about as strong as PGD's"
    near, far, unclear = seeded(605, 606, 604), seeded(700, 702, 701), seeded(600, 640, 760)
    assert verdict_of(found, says, **s3(near, near, near, near)) == "true"
    assert verdict_of(found, says, **s3(far, far, far, far)) == "false"
    assert verdict_of(found, says, **s3(near, near, near, far)) == "partly"
    assert verdict_of(found, says, **s3(near, near, unclear, near)) == "not decided"
    assert verdict_of(found, says, **s3(*[cell(605)] * 4, pgd=(600,))) == "not decided"


def test_one_image_refutes_the_worst_attack(found):
    def s3(auto, same):
        rows = {"pgd": seeded(600, 600), "autoattack": {**auto, "same_images": {"attack": "PGD-20", **same}}}
        return {"table-s3": table(**{k: dict.fromkeys(("2", "4", "8", "12"), c) for k, c in rows.items()})}

    says = "PGD is the worst possible attack"
    # Fewer images may be easier ones: what PGD leaves of the same ones counts.
    assert verdict_of(found, says, **s3(cell(45, 50), {"value": 0.92})) == "false"
    assert verdict_of(found, says, **s3(cell(45, 50), {"value": 0.9})) == "not decided"
    # Seeds whose mean hides the one image, and an image that the counts hide.
    assert verdict_of(found, says, **s3(seeded(45, 47, n=50), seeded(46, 46, n=50))) == "false"
    many = "1" * 300 + "0" * 20
    assert verdict_of(found, says, **s3(pictured("0" + many[1:-1] + "1"), pictured(many))) == "false"
    assert verdict_of(found, says, **s3(pictured(many), pictured(many))) == "true"
    # 298 images would not show a share of one in a hundred; nor do counts that agree show that the images do.
    assert verdict_of(found, says, **s3(pictured(many[:298]), pictured(many[:298]))) == "not decided"
    assert verdict_of(found, says, **s3(seeded(300, n=320), seeded(300, n=320))) == "not decided"


def test_nothing_is_evaluated_without_a_measure(found):
    empty = evidence.Results({}, found)
    for claim in CLAIMS:
        reported = claim.evaluate(empty)
        assert (reported.verdict == "not measured yet") == (claim.table is not None), claim.says
        assert reported.ours
    s1 = table(atent={"full-published": cell(500), "full-autoattack": cell(480)}, pgdat={"full-published": cell(400)})
    assert verdict_of(found, "at the full radius ATENT is best", **{"table-s1": s1}) == "not measured yet"


def curves(*epochs, decay=3, kept=True):
    """Figure S1 with these counts of each seed at each epoch."""
    rows = []
    for i, counts in enumerate(epochs):
        cell = seeded(*counts)
        row = {"epoch": i + 1, "test_robust": cell["value"], "test_robust_sd": statistics.stdev(cell["each"])}
        rows.append({**row, **({"test": cell} if kept else {})})
    return {"figure-s1": {"scale": "laptop", "decay": decay, "epochs": rows, "seeds": [0, 1, 2]}}


@pytest.mark.parametrize("kept", [True, False], ids=["each seed", "their spread alone"])
def test_curves_of_s1(found, kept):
    spike = "robust accuracy spikes after the first decay of the learning rate"
    fall = "robust accuracy falls immediately after that spike"
    before, low = (300, 300, 303), (400, 402, 401)
    for after, last, rises, sinks in (
        ((500, 503, 501), (440, 441, 439), "true", "true"),
        ((500, 503, 501), (498, 502, 501), "true", "false"),
        ((403, 402, 401), (560, 561, 563), "false", "false"),
        ((350, 410, 490), (300, 420, 480), "not decided", "not decided"),
        # A rise, and a fall, of two points is where the margin is.
        ((418, 424, 422), (398, 404, 400), "not decided", "not decided"),
    ):
        tables = curves(before, low, after, (480, 481, 482), last, kept=kept)
        assert (verdict_of(found, spike, **tables), verdict_of(found, fall, **tables)) == (rises, sinks)
    # Nothing follows the first epoch at the lower rate.
    assert verdict_of(found, fall, **curves(before, low, low, kept=kept)) == "not decided"


def test_a_curve_is_not_decided_by_its_peak(found):
    """Epochs that waver at random: the highest of many is above the last by the choice alone."""
    epochs = [(500, 500, 500)] * 3 + [(500 + d, 500 - d, 500 + d) for d in (3, -3, 40, -2, 3)] + [(500, 501, 499)]
    assert verdict_of(found, "robust accuracy falls immediately after that spike", **curves(*epochs)) == "false"


def s4(seed=0, noise=0.02, rounds=5, power=1.0, of="cpu_seconds", **costs):
    """Table S4: what each row costs, with rounds that are slow as a whole; the clock says something else."""
    rng = random.Random(seed)
    slow = [rng.uniform(0.7, 1.5) for _ in range(rounds)]
    rows = {f"atent-{k}": (k**power + 1) * costs["atent"] / (10**power + 1) for k in timing.K} | costs
    timings = {}
    for norm in timing.NORMS:
        kept = {
            name: {"cpu_seconds": [s * c * math.exp(rng.gauss(0, noise)) for s in slow], "seconds": [1.0] * rounds}
            for name, c in rows.items()
        }
        timings[norm] = {"of": of, "rounds": rounds, "rows": kept}
    wall = {k: {n: {"value": 1.0} for n in timing.NORMS} for k in ("atent-10", "pgdat", "trades")}
    return {"table-s4": {**table(**wall), "timings": timings}}


def test_costs_of_s4(found):
    same = "ATENT costs as much as PGD and TRADES"
    inner = "ATENT's time per epoch lies between those of PGD and TRADES"
    reported = [
        (s4(atent=10, pgdat=9, trades=11), "true", "true"),
        (s4(atent=10, pgdat=4, trades=30), "false", "true"),
        (s4(atent=10, pgdat=11, trades=30), "partly", "false"),
        (s4(atent=10, pgdat=5, trades=6), "false", "false"),
        # At the margin, and level with PGD.
        (s4(atent=10, pgdat=8, trades=8), "not decided", "false"),
        (s4(atent=10, pgdat=10, trades=30, noise=0.05), "partly", "not decided"),
        (s4(atent=10, pgdat=9, trades=11, noise=1.0), "not decided", "not decided"),
        (s4(atent=10, pgdat=9, trades=11, rounds=1), "not decided", "not decided"),
    ]
    for tables, cost, place in reported:
        assert (verdict_of(found, same, **tables), verdict_of(found, inner, **tables)) == (cost, place)
    # On an accelerator the clock counts; it says that all cost the same.
    clock = s4(atent=10, pgdat=4, trades=30, of="seconds")
    assert verdict_of(found, same, **clock) == "true"


def test_a_cost_is_linear_by_its_exponent(found):
    says = "ATENT's time is linear in K"
    costs = {"atent": 10, "pgdat": 9, "trades": 11}
    assert verdict_of(found, says, **s4(**costs)) == "true"
    for power in (1.3, 1.2, 0.7, 2.0):
        assert verdict_of(found, says, **s4(power=power, **costs)) == "false", power
    assert verdict_of(found, says, **s4(power=1.1, **costs)) == "not decided"
    assert verdict_of(found, says, **s4(noise=0.3, **costs)) == "not decided"
    assert verdict_of(found, says, **s4(rounds=1, **costs)) == "not decided"


def test_leads_in_the_plane(found):
    def plane(**rows):
        reported = [
            {"name": name, "seeds": [{"seed": s, "grid": share(k, 500)} for s, k in enumerate(counts)]}
            for name, counts in rows.items()
        ]
        return {"figure-1": {"scale": "laptop", "rows": reported}}

    says, ours = "in the plane ATENT is the most robust of four methods", (400, 404, 402, 398)
    low = [k - 10 + (k % 3) for k in ours]
    assert verdict_of(found, says, **plane(atent=ours, trades=low, pgdat=low, standard=low)) == "true"
    assert verdict_of(found, says, **plane(atent=low, trades=low, pgdat=ours, standard=low)) == "false"
    assert verdict_of(found, says, **plane(atent=ours, trades=low, pgdat=ours[::-1], standard=low)) == "not decided"
    assert (
        verdict_of(found, says, **plane(atent=ours[:1], trades=low[:1], pgdat=low[:1], standard=low[:1]))
        == "not decided"
    )


def test_settings_have_no_noise(found):
    """What follows from the settings is true, false or in part, and never open."""
    for says, key in (
        ("noise eps 0.577 gives an effective noise of 0.12", "noise"),
        ("gamma is chosen so that the perturbation has a norm of about eps2", "distance"),
    ):
        (claim,) = (c for c in CLAIMS if c.says == says)
        assert claim.evaluate(evidence.Results({}, found)).verdict == "partly"
        other = "accumulated" if key == "noise" else "noisy-distance"
        for value, verdict in ((0.12 if key == "noise" else 1.0, "true"), (9.0, "false")):
            planted = {k: replace(found[k], values=dict.fromkeys(found[k].values, value)) for k in (key, other)}
            assert claim.evaluate(evidence.Results({}, {**found, **planted})).verdict == verdict


def test_paper_by_its_own_figures(found):
    """At face value: single trainings, without a spread."""
    printed = evidence.as_printed(found)
    assert printed.cell("table-s1", "atent", "half-published")["value"] == pytest.approx(0.6512)
    reported = {c.says: c.evaluate(printed).verdict for c in CLAIMS if c.table}
    # 65.12 lies below 66.69 and 66.81, by less than two points.
    assert reported["ATENT is more robust than every baseline of Table S1"] == "false"
    assert reported["at half the radius the three methods have similar accuracy"] == "true"
    assert reported["at the full radius ATENT is best"] == "true"
    # 59.69 and 47.53 against 57.23 and 39.37 at the two larger radii.
    assert reported["ATENT's attacks are about as strong as PGD's"] == "partly"
    # 55.41 against 60.8 and 58.1.
    assert reported["ATENT's certified accuracy is competitive"] == "partly"
    assert reported["ATENT costs as much as PGD and TRADES"] == "partly"
    assert reported["ATENT's time per epoch lies between those of PGD and TRADES"] == "true"
    assert reported["fine-tuning loses about 5 points against training from scratch"] == "true"
    assert reported["ATENT's time is linear in K"] == "not measured yet"


# --- the files ----------------------------------------------------------------------------------------------


def test_files_and_page_are_written(tmp_path, found, monkeypatch):
    monkeypatch.setattr(evidence, "FACTS", {key: (lambda fact=fact: fact) for key, fact in found.items()})
    counts = {"scratch": (600, 602, 604), "atent": (551, 552, 553), "pgdat": (300, 301, 302)}
    rows = {k: {"robust": seeded(*v)} for k, v in counts.items()}
    (tmp_path / "finetune.json").write_text(json.dumps(table(**rows)))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{claims.BEGIN}\nan earlier table\n{claims.END}\nafter\n")
    content = run_claims(tmp_path, page)
    assert read_json(tmp_path / "claims.json") == content
    reported = {c["says"]: c for c in content["claims"]}
    assert reported["fine-tuning loses about 5 points against training from scratch"]["verdict"] == "true"
    assert reported["fine-tuning loses about 5 points against training from scratch"]["scale"] == "laptop"
    assert (
        "+5.0 [+4.8, +5.2] points lost"
        in reported["fine-tuning loses about 5 points against training from scratch"]["ours"]
    )
    assert reported["at the full radius ATENT is best"]["ours"] == "not measured yet"
    assert content["facts"]["noise"] == asdict(found["noise"])
    text = page.read_text()
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "an earlier table" not in text
    assert text.count("**not measured yet**") == sum(c["verdict"] == "not measured yet" for c in content["claims"])
    (tmp_path / "bare.md").write_text("no marks")
    with pytest.raises(ValueError, match="lacks the line"):
        claims.fill(tmp_path / "bare.md", content)


def test_the_command_writes_the_claims(tmp_path, monkeypatch, capsys):
    from atent.cli import main

    reported = {}
    monkeypatch.setattr(claims, "run_claims", lambda out: reported.setdefault("out", out))
    assert main(["reproduce", "claims", "--out", str(tmp_path)]) == 0
    assert reported["out"] == tmp_path
    assert "claims.json" in capsys.readouterr().out


def test_every_discrepancy_has_a_number_and_a_command(found):
    empty = evidence.Results({}, found)
    for one in DISCREPANCIES:
        assert one.command.startswith("atent ")
        assert one.facts or one.shown, one.what
        for key, names in one.facts:
            assert set(names) <= set(found[key].values)
        if one.shown:
            assert "not measured yet" in one.shown(empty)


def test_the_committed_verdicts_are_those_of_the_committed_files(found, tmp_path):
    """claims.json and the page say what the rules say of the result files beside it."""
    root = Path(__file__).parents[2]
    place = root / "results" / "laptop"
    tables = {path.stem: read_result(path) for path in place.glob("*.json") if path.stem != "claims"}
    kept = read_json(place / "claims.json")
    reported = {claim.says: claim.evaluate(evidence.Results(tables, found)) for claim in CLAIMS}
    assert {c["says"]: (c["verdict"], c["ours"]) for c in kept["claims"]} == {
        says: (verdict_of.verdict, verdict_of.ours) for says, verdict_of in reported.items()
    }
    page = tmp_path / "paper.md"
    page.write_text((root / "docs" / "paper.md").read_text())
    claims.fill(page, kept)
    assert page.read_text() == (root / "docs" / "paper.md").read_text()
