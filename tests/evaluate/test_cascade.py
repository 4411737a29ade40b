"""The cascade of an evaluation, and composite attacks in parts."""

import pytest
import torch
from cascades import RISING, THREAT, Twofold

from atent.attacks import FGSM, PGD, AutoAttack
from atent.attacks.spec import label
from atent.evaluate import evaluate, predict, rounds
from atent.stats import share
from atent.threat import Threat

# ---- the cascade


def test_a_cascade_is_the_worst_of_its_attacks_alone(conv_net, batch):
    x, y = batch(60)
    ids = 7 + torch.arange(60)
    alone = evaluate(conv_net(), x, y, RISING, ids=ids, seed=3, cascade=False)
    got = evaluate(conv_net(), x, y, RISING, ids=ids, seed=3)
    assert list(alone.attacks) == list(RISING)
    assert list(got.attacks) == ["fgsm", "pgd", "chain"]
    assert (alone.cascade, got.cascade) == (False, True)
    assert got.worst == alone.worst == got.attacks["chain"]["robust"]
    fallen, remaining = set(alone.wrong), got.clean["k"]
    for name, result in got.attacks.items():
        new = set(alone.attacks[name]["fooled"]) - fallen
        assert set(result["fooled"]) == new
        assert result["attacked"] == remaining
        remaining -= len(new)
        fallen |= new
        assert result["robust"] == share(remaining, 60)
        assert alone.attacks[name]["attacked"] == got.clean["k"]
    assert 0 < len(got.attacks["pgd"]["fooled"]) < got.clean["k"]
    assert got.attacks["chain"]["forwards"] < alone.attacks["chain"]["forwards"]


def test_attacks_of_equal_cost_keep_their_order(conv_net, batch):
    x, y = batch(20)
    attacks = {"b": PGD(THREAT, steps=2), "a": PGD(THREAT, steps=2, start="zero"), "c": FGSM(THREAT)}
    assert list(evaluate(conv_net(), x, y, attacks).attacks) == ["c", "b", "a"]


# ---- composite attacks


def test_a_composite_attack_in_parts_is_the_attack_as_one(conv_net, batch):
    x, y = batch(60)
    ids = 11 + torch.arange(60)
    attack, model = Twofold(THREAT), conv_net()
    right = predict(model, x, y) == y
    full = attack.run(model, x[right], y[right], seed=4, ids=ids[right])
    got = evaluate(model, x, y, [attack], seed=4, ids=ids, batch=16)
    result = got.attacks["Twofold"]
    assert result["fooled"] != sorted(result["fooled"])  # by part
    assert sorted(result["fooled"]) == ids[right][full.success].tolist()
    assert result["robust"] == share(int((~full.success).sum()), 60) == got.worst
    assert list(result["parts"]) == ["chain", "nearest", "pgd"]
    met, remaining = int(right.sum()), int(right.sum())
    assert result["attacked"] == met
    for part in result["parts"].values():
        assert part["attacked"] == remaining
        assert len(part["fooled"]) > 0
        remaining -= len(part["fooled"])
        assert part["robust"] == share(remaining, 60)
    for key in ("forwards", "backwards", "seconds"):
        assert result[key] == pytest.approx(sum(part[key] for part in result["parts"].values()), abs=0.01)
    # a part uses the composite's stream, not that of the same attack alone
    lone = evaluate(model, x, y, {"chain": attack.parts()["chain"]}, seed=4, ids=ids)
    assert lone.attacks["chain"]["fooled"] != result["parts"]["chain"]["fooled"]
    assert rounds([attack, FGSM(THREAT)]) == 4


def test_autoattack_in_parts_is_autoattack_as_one(conv_net, batch):
    x, y = batch(40)
    ids, model = 5 + torch.arange(40), conv_net()
    attack = AutoAttack(Threat("linf", 0.06), steps=3, targets=2, queries=6)
    right = predict(model, x, y) == y
    full = attack.run(model, x[right], y[right], seed=1, ids=ids[right])
    got = evaluate(model, x, y, [attack], seed=1, ids=ids, batch=11).attacks[label(attack)]
    assert sorted(got["fooled"]) == ids[right][full.success].tolist()
    assert 0 < len(got["fooled"]) < int(right.sum())
    assert list(got["parts"]) == list(attack.parts())
    assert got["parts"]["Square"]["robust"] == got["robust"]
