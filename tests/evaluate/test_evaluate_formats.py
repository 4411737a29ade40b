"""What an evaluation writes: its JSON, and the outcome of every sample."""

import json
import math

import pytest
import torch
from cascades import RISING, Nearest

from atent.attacks import FGSM, PGD
from atent.data.described import spans, unspan
from atent.evaluate import Evaluation, evaluate
from atent.evaluate.outcomes import per_sample
from atent.runs import dumps
from atent.threat import Threat


def test_the_result_is_plain_json(conv_net, batch):
    x, y = batch(12, torch.float32)
    got = evaluate(conv_net(torch.float32), x, y, [PGD(Threat("linf", "8/255")), FGSM(Threat("l2", 1))])
    plain = json.loads(dumps(got.to_json()))
    assert plain["n"] == 12
    assert plain["attacks"]["FGSM l2 1"]["threat"] == {"norm": "l2", "eps": 1.0, "box": [0.0, 1.0]}
    assert set(plain["attacks"]["FGSM l2 1"]) == {
        "attack", "threat", "settings", "attacked", "robust", "fooled", "distance", "forwards", "backwards", "seconds",
    }  # fmt: skip


def test_the_outcome_of_every_sample_is_reported(conv_net, batch):
    x, y = batch(40)
    ids = torch.cat([5 + torch.arange(20), 100 + torch.arange(20)])
    got = evaluate(conv_net(), x, y, RISING, ids=ids)
    assert got.outcomes["ids"] == "5-24 100-119"
    rows = per_sample(json.loads(dumps(got.to_json()))["outcomes"])
    assert [row["id"] for row in rows] == ids.tolist()
    assert [row["id"] for row in rows if not row["right"]] == got.wrong
    for name, result in got.attacks.items():
        reported = [row["attacks"][name] for row in rows]
        assert [row["id"] for row in rows if row["attacks"][name] == "fooled"] == result["fooled"]
        assert reported.count("not tried") == 40 - result["attacked"]
        assert reported.count("robust") == result["robust"]["k"]
    assert set(got.outcomes["attacks"]["pgd"]) == {"f", "s", "-"}


@pytest.mark.parametrize(
    ("numbers", "text"),
    [([], ""), ([3], "3"), ([0, 1, 2, 7, 5, 6], "0-2 7 5-6"), ([4, 3, 2], "4 3 2"), ([1, 1], "1 1")],
)
def test_spans_are_read_back(numbers, text):
    assert spans(numbers) == text
    assert unspan(text) == numbers


def test_an_endless_threat_becomes_json(conv_net, batch):
    x, y = batch(12)
    got = evaluate(conv_net(), x, y, {"nearest": Nearest(Threat("linf", "inf"))})
    reported = json.loads(dumps(got.to_json()))["attacks"]["nearest"]["threat"]
    assert reported == {"norm": "linf", "eps": "inf", "box": [0.0, 1.0]}
    assert Threat(**reported).eps == math.inf


def test_a_result_comes_back_from_json(conv_net, batch):
    x, y = batch(6, torch.float32)
    found = evaluate(conv_net(torch.float32), x, y, [FGSM(Threat("linf", 0.1))])
    content = json.loads(json.dumps(found.to_json()))
    again = Evaluation.from_json(content | {"run": "r", "provenance": {}})
    assert json.loads(json.dumps(again.to_json())) == content
    assert again.schema_version == 2
    with pytest.raises(ValueError, match="version 7, not 2"):
        Evaluation.from_json(content | {"schema_version": 7})
    with pytest.raises(ValueError, match="has no worst"):
        Evaluation.from_json({key: value for key, value in content.items() if key != "worst"})
