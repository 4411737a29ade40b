"""The numbers that the paper's settings imply, against simulations and closed forms, and the judges of its claims."""

import json
import math
from dataclasses import asdict

import pytest
import torch

from atent.attacks import FGSM, sampler
from atent.data import DataSettings, load
from atent.methods import ATENT, PGDAT, TRADES, Standard
from atent.paper import claims, facts, verdicts
from atent.paper.claims import run_claims
from atent.run import read_json, share
from atent.threat import Threat

WIDE = (-1e3, 1e3)


@pytest.fixture(scope="module")
def found():
    return facts.facts()


# --- the chain ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("steps", "pull"), [(1, 0.05), (10, 0.05), (10, 0.0), (7, 0.4)])
def test_accumulated_noise_is_that_of_the_chain(steps, pull):
    chain = sampler(Threat("l2", 0.435, WIDE), steps=steps, step_size=0.02175, gamma=pull, noise=0.577, start="zero")
    sd = facts.noise_after(steps, 0.02175, pull, 0.577)
    seen = facts.simulated(chain, dim=400, samples=400, aligned=False)
    # 160,000 draws: the standard deviation is known to a relative 1 / sqrt(320,000).
    assert float(seen.std()) == pytest.approx(sd, rel=0.01)
    slow = 0.0
    for _ in range(steps):
        slow = (1 - pull) ** 2 * slow + 2 * 0.02175 * 0.577**2
    assert sd == pytest.approx(math.sqrt(slow), rel=1e-12)


@pytest.mark.parametrize("pull", [0.05, 0.08])
def test_aligned_distance_is_that_of_the_chain(pull):
    chain = sampler(Threat("l2", 1.0, WIDE), steps=10, step_size=0.2, gamma=pull, noise=0.0)
    seen = facts.simulated(chain, dim=20_000, samples=50).double().norm(dim=1)
    assert float(seen.mean()) == pytest.approx(facts.distance_after(10, 0.2, pull, 1.0, aligned=True), rel=0.01)


def test_distance_at_right_angles_is_that_of_orthogonal_steps():
    # One new axis for each step, and one for the start.
    d = torch.zeros(11, dtype=torch.float64)
    d[10] = 1.0
    for k in range(10):
        d = 0.95 * d
        d[k] += 0.2
    assert facts.distance_after(10, 0.2, 0.05, 1.0, aligned=False) == pytest.approx(float(d.norm()), rel=1e-12)


def test_known_numbers(found):
    """Of the settings that the supplement prints; each was also worked out by hand."""
    assert found["noise"].values["eta' 0.02175 (0.5 eps2 / 10)"] == pytest.approx(0.1203, abs=5e-5)
    assert found["noise"].values["eta' 0.02"] == pytest.approx(0.1154, abs=5e-5)
    assert found["noise"].values["eps for 0.12 at eta' 0.02"] == pytest.approx(0.6)
    assert found["accumulated"].values["standard deviation per value"] == pytest.approx(0.309, abs=5e-4)
    assert found["distance"].values["gamma 0.05, gradients aligned"] == pytest.approx(1.71, abs=5e-3)
    assert found["distance"].values["gamma 0.08, gradients aligned"] == pytest.approx(1.48, abs=5e-3)
    assert found["distance"].values["gamma 0.08, gradients at right angles"] == pytest.approx(0.63, abs=5e-3)
    assert found["noisy-distance"].values["without the clamp"] == pytest.approx(0.3087 * math.sqrt(3072), rel=0.01)
    assert found["gamma"].values == {"eta' 0.2": pytest.approx(0.25), "eta' 0.02175": pytest.approx(2.2989, abs=1e-4)}
    assert found["weights"].values["sum"] == pytest.approx(1 - 0.1**10, rel=1e-14)
    assert found["weights"].values["variance within the chain that it sees"] == pytest.approx(
        1 - 0.81 * (1 - 0.01**10) / 0.99, rel=1e-12
    )
    assert found["certificate"].values["draws that 0.435 needs, all agreeing"] == 47_808
    assert found["drift"].values["linf CIFAR-10"] == pytest.approx(0.094)
    assert found["radii"].values["0.031 in 1/255"] == pytest.approx(7.905)
    assert found["walk"].values["difference"] == 0.0
    assert found["architecture"].values["parameters of ResNet-20"] == 272_474
    assert all(math.isfinite(v) for fact in found.values() for v in fact.values.values())


# --- attacks and costs --------------------------------------------------------------------------------------


def test_share_of_the_budget_is_the_attacks():
    for step, printed in ((0.25, 0.97), (0.05, 0.42)):
        told = facts.share_of_budget(10, step, math.sqrt(3072 / 3))
        assert told == pytest.approx(printed, abs=0.005)
        assert facts.attacked(10, step, samples=50) == pytest.approx(told, abs=0.01)
    # Without a start across, a path of half the budget is half the budget.
    assert facts.share_of_budget(10, 0.05, 0.0) == pytest.approx(0.5)
    assert facts.share_of_budget(10, 0.25, 0.0) == 1.0


def test_passes_are_counted():
    threat = Threat("linf", 0.1)
    assert facts.passes(Standard()) == (1, 1)
    assert facts.passes(PGDAT(threat, 3)) == (4, 4)
    assert facts.passes(ATENT(threat, 4)) == (5, 5)
    assert facts.passes(TRADES(threat, 4)) == (7, 6)


def test_labels_left_out_raise_the_count(found):
    values = found["labels"].values
    assert values["robust, true labels"] < values["robust, predicted labels"] <= values["natural"]
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


# --- the judges ---------------------------------------------------------------------------------------------


def cell(k, n=1000):
    return share(k, n)


def table(**rows):
    """A result file with these rows: {key: {column: cell}}."""
    made = [{"key": key, "cells": {c: {"ours": v} for c, v in cells.items()}} for key, cells in rows.items()]
    return {"scale": "laptop", "complete": True, "blocks": [{"rows": made}]}


def judged(found, says, **tables):
    (claim,) = (c for c in claims.CLAIMS if c.says == says)
    return claim.judge(verdicts.Results(tables, found)).verdict


def test_order_is_by_intervals():
    assert [verdicts.order(cell(a), cell(b)) for a, b in ((700, 600), (600, 700), (610, 600))] == [
        "above", "below", "level",
    ]  # fmt: skip
    assert verdicts.all_above(cell(700), [cell(600), cell(500)]) == "true"
    assert verdicts.all_above(cell(700), [cell(800), cell(500)]) == "false"
    assert verdicts.all_above(cell(700), [cell(690), cell(500)]) == "partly"
    assert verdicts.all_above(cell(700), [cell(690)]) == "not decided"


def seeded(*counts, n=1000):
    """A cell of several networks, its interval that of three seeds that disagree: it says nothing."""
    return {"value": sum(counts) / len(counts) / n, "low": 0.0, "high": 1.0, "n": n, "each": [k / n for k in counts]}


def test_networks_that_are_all_apart_are_told_apart_though_one_failed():
    failed, sound = seeded(639, 126, 678), seeded(907, 905, 910)
    assert verdicts.order(failed, sound) == "below"
    assert verdicts.order(sound, failed) == "above"
    # Two networks each are too few, and one that comes near enough leaves it open.
    assert verdicts.order(seeded(639, 126), seeded(907, 905)) == "level"
    assert verdicts.order(seeded(890, 126, 678), sound) == "level"


def test_certificates_are_competitive_within_five_points(found):
    def s2(ours, others):
        rows = {"atent-smoothing": ours, "smoothadv": others, "trades-smoothing": others}
        return {"table-s2": table(**{k: {"certified": c} for k, c in rows.items()})}

    says = "ATENT's certificate is competitive"
    assert judged(found, says, **s2(cell(880), cell(900))) == "true"
    assert judged(found, says, **s2(seeded(639, 126, 678), seeded(907, 905, 910))) == "false"
    # Far below on average, but not for certain.
    assert judged(found, says, **s2(seeded(920, 126, 678), seeded(907, 905, 910))) == "not decided"


def test_the_loss_of_fine_tuning_is_judged_with_its_interval(found):
    def tuned(scratch, atent):
        return {"finetune": table(scratch={"robust": scratch}, atent={"robust": atent})}

    says = "fine-tuning loses some 5 points"
    assert judged(found, says, **tuned(cell(570), cell(520))) == "true"
    assert judged(found, says, **tuned(cell(570), cell(560))) == "false"
    assert judged(found, says, **tuned(seeded(600, 601, 602), seeded(550, 550, 553))) == "true"
    # A failed training from scratch decides nothing, whatever the mean.
    assert judged(found, says, **tuned(seeded(850, 270, 815), seeded(735, 720, 750))) == "not decided"
    assert judged(found, says, **tuned(seeded(700, 701, 702), seeded(550, 550, 553))) == "false"


def test_one_image_refutes_the_worst_attack(found):
    def s3(auto, same):
        strong = {**cell(auto, 50), "same_images": {"attack": "PGD-20", "value": same / 50}}
        rows = {"pgd": cell(600), "autoattack": strong}
        return {"table-s3": table(**{k: dict.fromkeys(("2", "4", "8", "12"), c) for k, c in rows.items()})}

    says = "PGD is the worst possible attack"
    # Fewer images may be easier ones: what PGD leaves of the same ones counts.
    assert judged(found, says, **s3(45, 45)) == "true"
    assert judged(found, says, **s3(45, 46)) == "false"


def test_nothing_is_judged_without_a_measure(found):
    empty = verdicts.Results({}, found)
    for claim in claims.CLAIMS:
        told = claim.judge(empty)
        assert (told.verdict == "not measured yet") == (claim.table is not None), claim.says
        assert told.ours
    s1 = table(atent={"full-published": cell(500), "full-autoattack": cell(480)}, pgdat={"full-published": cell(400)})
    assert judged(found, "at the full radius ATENT is best", **{"table-s1": s1}) == "not measured yet"


def test_robust_rows_of_s1_are_judged(found):
    def s1(atent, others, strong):
        rows = {"atent": (atent, strong), "pgdat": (others, others), "mma": (others, others)}
        return {
            "table-s1": table(
                **{k: {"full-published": cell(a), "full-autoattack": cell(b)} for k, (a, b) in rows.items()}
            )
        }

    says = "at the full radius ATENT is best"
    assert judged(found, says, **s1(700, 500, 700)) == "true"
    assert judged(found, says, **s1(300, 500, 300)) == "false"
    # What the published attack shows and AutoAttack takes back.
    assert judged(found, says, **s1(700, 500, 300)) == "false"


def test_attacks_of_s3_are_judged(found):
    def s3(langevin, auto):
        rows = {"pgd": [600] * 4, "langevin": langevin, "autoattack": auto}
        return {"table-s3": table(**{k: dict(zip(("2", "4", "8", "12"), map(cell, v))) for k, v in rows.items()})}

    alike, worst = "ATENT's attacks are about as strong as PGD's", "PGD is the worst possible attack"
    assert judged(found, alike, **s3([600, 605, 610, 590], [600] * 4)) == "true"
    assert judged(found, alike, **s3([600, 600, 600, 700], [600] * 4)) == "partly"
    assert judged(found, worst, **s3([600] * 4, [600] * 4)) == "true"
    assert judged(found, worst, **s3([600] * 4, [500] * 4)) == "false"


def test_curves_of_s1_are_judged(found):
    def curve(values, decay=3):
        rows = [
            {"epoch": i + 1, "test_robust": v, "test_robust_low": v - 0.02, "test_robust_high": v + 0.02}
            for i, v in enumerate(values)
        ]
        peak = max(rows, key=lambda r: r["test_robust"])
        return {"figure-s1": {"scale": "laptop", "decay": decay, "epochs": rows, "peak": peak, "last": rows[-1]}}

    spike, fall = "robust accuracy spikes after the first decay of the rate", "and then falls at once"
    assert judged(found, spike, **curve([0.3, 0.4, 0.5, 0.45])) == "true"
    assert judged(found, spike, **curve([0.3, 0.4, 0.39, 0.38])) == "false"
    assert judged(found, fall, **curve([0.3, 0.4, 0.5, 0.44])) == "true"
    assert judged(found, fall, **curve([0.3, 0.4, 0.5, 0.49])) == "not decided"


def test_costs_of_s4_are_judged(found):
    def s4(atent, pgd, trades, r2=0.999):
        rows = {"atent-10": atent, "pgdat": pgd, "trades": trades}
        made = table(**{k: {n: {"value": v, "low": v, "high": v} for n in ("l2", "linf")} for k, v in rows.items()})
        fit = {"slope": 1.0, "intercept": 0.1, "r2": r2}
        return {"table-s4": {**made, "fit": {"l2": fit, "linf": fit}}}

    assert judged(found, "ATENT costs as much as PGD and TRADES", **s4(10, 9, 11)) == "true"
    assert judged(found, "ATENT costs as much as PGD and TRADES", **s4(10, 4, 30)) == "false"
    assert judged(found, "its time per epoch is between those of PGD and TRADES", **s4(10, 4, 30)) == "true"
    assert judged(found, "its time per epoch is between those of PGD and TRADES", **s4(10, 11, 30)) == "false"
    assert judged(found, "its time is linear in K", **s4(10, 9, 11)) == "true"
    assert judged(found, "its time is linear in K", **s4(10, 9, 11, r2=0.9)) == "false"


def test_paper_by_its_own_figures(found):
    printed = {blurred: verdicts.as_printed(found, blurred=blurred) for blurred in (False, True)}
    assert printed[False].cell("table-s1", "atent", "half-published")["value"] == pytest.approx(0.6512)
    told = {c.says: c.judge(printed[c.blurred]).verdict for c in claims.CLAIMS if c.table}
    # 65.12 lies below 66.69 and 66.81.
    assert told["ATENT is more robust than every baseline of Table S1"] == "false"
    assert told["at half the radius the three networks are alike"] == "true"
    assert told["at the full radius ATENT is best"] == "true"
    # 59.69 and 47.53 against 57.23 and 39.37 at the two larger radii.
    assert told["ATENT's attacks are about as strong as PGD's"] == "partly"
    assert told["ATENT's certificate is competitive"] == "false"
    assert told["ATENT costs as much as PGD and TRADES"] == "partly"
    assert told["its time per epoch is between those of PGD and TRADES"] == "true"
    assert told["fine-tuning loses some 5 points"] == "true"


# --- the files ----------------------------------------------------------------------------------------------


def test_files_and_page_are_written(tmp_path, found, monkeypatch):
    monkeypatch.setattr(verdicts, "FACTS", {key: (lambda fact=fact: fact) for key, fact in found.items()})
    rows = {k: {"robust": cell(v)} for k, v in {"scratch": 600, "atent": 550, "pgdat": 300}.items()}
    (tmp_path / "finetune.json").write_text(json.dumps(table(**rows)))
    page = tmp_path / "page.md"
    page.write_text(f"before\n{claims.BEGIN}\nan earlier table\n{claims.END}\nafter\n")
    content = run_claims(tmp_path, page)
    assert read_json(tmp_path / "claims.json") == content
    told = {c["says"]: c for c in content["claims"]}
    assert told["fine-tuning loses some 5 points"]["verdict"] == "true"
    assert told["fine-tuning loses some 5 points"]["scale"] == "laptop"
    assert "5.0 points" in told["fine-tuning loses some 5 points"]["ours"]
    assert told["at the full radius ATENT is best"]["ours"] == "not measured yet"
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

    told = {}
    monkeypatch.setattr(claims, "run_claims", lambda out: told.setdefault("out", out))
    assert main(["reproduce", "claims", "--out", str(tmp_path)]) == 0
    assert told["out"] == tmp_path
    assert "claims.json" in capsys.readouterr().out


def test_every_discrepancy_has_a_number_and_a_command(found):
    empty = verdicts.Results({}, found)
    for one in claims.DISCREPANCIES:
        assert one.command.startswith("atent ")
        assert one.facts or one.shown, one.what
        for key, names in one.facts:
            assert set(names) <= set(found[key].values)
        if one.shown:
            assert "not measured yet" in one.shown(empty)
