import json
import math
from dataclasses import dataclass

import pytest
import torch
from torch import nn

from atent.attacks import FGSM, PGD, Attack, AutoAttack, Langevin
from atent.attacks.spec import label
from atent.data.described import spans, unspan
from atent.evaluate import Evaluation, evaluate, masking_checks, predict, rounds, samples, sweep
from atent.evaluate.craft import craft
from atent.evaluate.hints import adapted
from atent.evaluate.outcomes import per_sample
from atent.models import Normalize
from atent.precision import Lowered
from atent.runs import dumps
from atent.stats import share
from atent.threat import Threat


@pytest.fixture
def known(two_class):
    """A linear model, 24 samples of which 4 have the other label, and the distances of the rest."""
    model, x, y, distance = two_class()
    wrong = [2, 3, 11, 20]
    y[wrong] = 1 - y[wrong]
    return model, x, y, {k: v.clone() for k, v in distance.items()}, wrong


def between(values, rank):
    """A radius between two of the sorted distances: ``rank`` samples are nearer."""
    ordered = sorted(values)
    return math.sqrt(ordered[rank - 1] * ordered[rank])


def test_shares_match_counts_by_hand(known):
    model, x, y, distance, wrong = known
    right = [i for i in range(24) if i not in wrong]
    ids = 500 + 3 * torch.arange(24)
    linf, l2 = (between([distance[k][i].item() for i in right], r) for k, r in (("linf", 7), ("l2", 11)))
    fooled = {
        "a": [i for i in right if distance["linf"][i] < linf],
        "b": [i for i in right if distance["l2"][i] < l2],
    }
    assert [len(v) for v in fooled.values()] == [7, 11]
    attacks = {"a": FGSM(Threat("linf", linf)), "b": PGD(Threat("l2", l2), steps=30, step_size=2 * l2)}
    got = evaluate(model, x, y, attacks, ids=ids, seed=8, cascade=False)
    assert (got.n, got.seed) == (24, 8)
    assert got.clean == share(20, 24)
    assert got.wrong == ids[wrong].tolist()
    for name, hit in fooled.items():
        assert sorted(got.attacks[name]["fooled"]) == ids[hit].tolist()
        assert got.attacks[name]["robust"] == share(20 - len(hit), 24)
    assert got.worst == share(20 - len({*fooled["a"], *fooled["b"]}), 24)
    # one forward and one backward for each correctly classified sample, and one forward for the verdict
    assert (got.attacks["a"]["forwards"], got.attacks["a"]["backwards"]) == (40, 20)
    assert (got.attacks["b"]["forwards"], got.attacks["b"]["backwards"]) == (31 * 20, 30 * 20)
    assert got.attacks["a"]["attacked"] == got.attacks["b"]["attacked"] == 20
    reached = sorted(distance["linf"][i].item() for i in fooled["a"])
    assert got.attacks["a"]["distance"]["median"] == pytest.approx(linf, rel=1e-9)
    assert reached[-1] < linf
    assert got.attacks["b"]["threat"] == {"norm": "l2", "eps": l2, "box": (0.0, 1.0)}
    assert got.attacks["b"]["settings"]["steps"] == 30
    assert got.attacks["a"]["attack"] == "FGSM"
    for found in (got.clean, got.worst):
        assert found["low"] < found["value"] < found["high"]


@dataclass(frozen=True)
class Half(Attack):
    """FGSM, on the samples whose first pixels are bright, or on the others."""

    threat: Threat
    bright: bool

    def search(self, oracle, x, y, streams):
        chosen = (x.flatten(1)[:, :20].mean(1) > 0.28) == self.bright
        return torch.where(chosen[:, None, None, None], FGSM(self.threat).search(oracle, x, y, streams), x)

    @property
    def passes(self):
        return 3


def test_the_worst_case_is_the_union_over_attacks(conv_net, batch):
    x, y = batch(60)
    threat = Threat("linf", 0.05)
    attacks = {"bright": Half(threat, True), "dark": Half(threat, False)}
    full = evaluate(conv_net(), x, y, {"fgsm": FGSM(threat)})
    got = evaluate(conv_net(), x, y, attacks, cascade=False)
    every = [r["robust"]["k"] for r in got.attacks.values()]
    fooled = set(got.wrong).union(*(r["fooled"] for r in got.attacks.values()))
    assert got.worst["k"] == 60 - len(fooled)
    assert got.worst["k"] < min(every)
    assert max(every) < got.clean["k"] < 60
    assert got.worst == full.worst == full.attacks["fgsm"]["robust"]
    for result in got.attacks.values():
        assert not set(result["fooled"]) & set(got.wrong)


def without_time(evaluation):
    plain = json.loads(dumps(evaluation.to_json()))
    for result in plain["attacks"].values():
        assert result.pop("seconds") >= 0
        # the last bits may depend on the batch size
        result["distance"] = result["distance"] and {k: f"{v:.9g}" for k, v in result["distance"].items()}
    return plain


def test_the_batch_size_and_the_order_do_not_matter(conv_net, batch):
    x, y = batch(30)
    linf, l2 = Threat("linf", 0.05), Threat("l2", 0.4)
    attacks = [PGD(linf, steps=3, restarts=2), Langevin(l2, steps=3, noise=0.2)]
    ids = 9 * torch.arange(30)
    full = without_time(evaluate(conv_net(), x, y, attacks, ids=ids))
    for size in (1, 7, 30):
        assert without_time(evaluate(conv_net(), x, y, attacks, ids=ids, batch=size)) == full
    order = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    mixed = evaluate(conv_net(), x[order], y[order], attacks, ids=ids[order])
    assert sorted(mixed.wrong) == full["wrong"]
    for name, result in mixed.attacks.items():
        assert sorted(result["fooled"]) == full["attacks"][name]["fooled"]
    other = evaluate(conv_net(), x, y, attacks, ids=ids, seed=1)
    assert other.outcomes["attacks"] != full["outcomes"]["attacks"]


def test_a_list_is_named_by_its_label_and_two_threats_do_not_collide(known):
    model, x, y, _, _ = known
    a, b, c = PGD(Threat("linf", 0.01), steps=3), PGD(Threat("l2", 0.02), steps=3), FGSM(Threat("l2", 0.02))
    got = evaluate(model, x, y, [a, b, c], cascade=False)
    first, second, third = got.attacks
    assert first == "PGD-3 linf 0.01"
    assert second == "PGD-3 l2 0.02"
    assert third == "FGSM l2 0.02"
    assert [r["threat"]["norm"] for r in got.attacks.values()] == ["linf", "l2", "l2"]
    with pytest.raises(ValueError, match=r"attack PGD\(steps=3, norm=linf, eps=0.01\) is listed twice"):
        evaluate(model, x, y, [a, a])


def test_the_model_is_evaluated_in_eval_mode_and_comes_back_as_found(conv_net, batch):
    x, y = batch(20)
    model = conv_net(norm=True)
    expected = model(x).argmax(1)
    model.train()
    model[0].eval()
    modes = [m.training for m in model.modules()]
    buffers = [b.clone() for b in model.buffers()]
    model[0].weight.grad = torch.ones_like(model[0].weight)
    rng = torch.get_rng_state()
    assert torch.equal(predict(model, x, y), expected)
    got = evaluate(model, x, y, [PGD(Threat("linf", 0.05), steps=3)])
    assert got.wrong == (expected != y).nonzero().squeeze(1).tolist()
    assert [m.training for m in model.modules()] == modes
    assert all(torch.equal(a, b) for a, b in zip(model.buffers(), buffers))
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    assert [p.grad is None for p in model.parameters()] == [False] + [True] * 5
    assert all(p.requires_grad for p in model.parameters())
    assert torch.equal(torch.get_rng_state(), rng)


def test_the_result_is_plain_json(conv_net, batch):
    x, y = batch(12, torch.float32)
    got = evaluate(conv_net(torch.float32), x, y, [PGD(Threat("linf", "8/255")), FGSM(Threat("l2", 1))])
    plain = json.loads(dumps(got.to_json()))
    assert plain["n"] == 12
    assert plain["attacks"]["FGSM l2 1"]["threat"] == {"norm": "l2", "eps": 1.0, "box": [0.0, 1.0]}
    assert set(plain["attacks"]["FGSM l2 1"]) == {
        "attack", "threat", "settings", "attacked", "robust", "fooled", "distance", "forwards", "backwards", "seconds",
    }  # fmt: skip


def test_nothing_right_is_a_result_too(known):
    model, x, y, _, wrong = known
    got = evaluate(model, x[wrong], y[wrong], [FGSM(Threat("linf", 0.1))])
    plain = json.loads(dumps(got.to_json()))
    assert plain["clean"] == plain["worst"] == plain["attacks"]["FGSM"]["robust"] == share(0, 4)
    assert plain["attacks"]["FGSM"]["fooled"] == []
    assert plain["attacks"]["FGSM"]["distance"] is None
    assert plain["outcomes"] == {"ids": "0-3", "clean": "0000", "attacks": {"FGSM": "----"}}
    assert plain["attacks"]["FGSM"]["forwards"] == 0


def test_no_attacks_is_clean_accuracy(known):
    model, x, y, _, _ = known
    got = evaluate(model, x, y, [])
    assert got.clean == got.worst == share(20, 24)
    assert got.attacks == {}


def test_progress_is_reported_with_the_running_robust_accuracy(known):
    model, x, y, _, _ = known
    attacks = {"one": FGSM(Threat("linf", 0.02)), "two": FGSM(Threat("l2", 0.5))}
    for cascade in (False, True):
        reported: list[tuple[int, str]] = []
        got = evaluate(model, x, y, attacks, batch=8, cascade=cascade, advance=lambda *said: reported.append(said))  # noqa: B023
        assert sum(n for n, _ in reported) == 48 == 24 * rounds(attacks)
        first = [text for _, text in reported if text.startswith("one ")]
        # the four misclassified samples are not attacked, the other twenty in batches
        assert [n for n, _ in reported][:4] == [4, 8, 8, 4]
        assert first[0] == "one 83.3 %"
        assert first[-1] == f"one {100 * got.attacks['one']['robust']['value']:.1f} %"
        assert first == sorted(first, reverse=True)
        begun = next(text for _, text in reported if text.startswith("two "))
        assert begun == ("two" + first[-1][3:] if cascade else "two 83.3 %")


@pytest.mark.parametrize(("change", "text"), [
    ({"x": lambda x: x[:0], "y": lambda y: y[:0]}, "no samples to evaluate"),
    ({"x": lambda x: x * 255}, r"inputs lie in .* outside the box \[0, 1\]"),
    ({"x": lambda x: x * math.nan}, "NaN or infinity"),
    ({"y": lambda y: y[:3]}, "labels must be 24 integers"),
    ({"y": lambda y: y + 7}, "label 8 is out of range: the model has 2 outputs"),
    ({"ids": torch.arange(3)}, "ids must be 24 int64"),
    ({"batch": 0}, "batch must be at least 1, got 0"),
    ({"batch": -5}, "batch must be at least 1, got -5"),
    ({"model": lambda m: nn.Sequential(m, nn.Softmax(1))}, "returns probabilities"),
])  # fmt: skip
@pytest.mark.parametrize("attacks", [[FGSM(Threat("linf", 0.1))], []], ids=["attacked", "clean"])
def test_what_cannot_be_evaluated_is_refused_in_one_line(change, text, attacks, known):
    if not attacks and "outside the box" in text:
        attacks = [PGD(Threat("l2", 0.1, (0, 2)))]  # without an attack there is no box: use another one
        text = r"outside the box \[0, 2\]"
    model, x, y, _, _ = known
    x, y, model = (change.get(k, lambda v: v)(v) for k, v in (("x", x), ("y", y), ("model", model)))
    with pytest.raises(ValueError, match=text) as error:
        evaluate(model, x, y, attacks, **{k: v for k, v in change.items() if k in ("ids", "batch")})
    assert "\n" not in str(error.value)


def test_a_constant_network_with_a_one_hot_bias_gives_logits(known):
    """Its rows are >= 0 and sum to 1, as probabilities do; a network whose rows differ is refused all the same."""
    _, x, y, _, _ = known
    net = nn.Linear(x[0].numel(), 2)
    nn.init.zeros_(net.weight)
    net.bias.data = torch.tensor([0.0, 1.0])
    constant = nn.Sequential(nn.Flatten(), net).to(x.dtype)
    found = evaluate(constant, x, y, [PGD(Threat("linf", 0.1), steps=2)])
    assert found.clean["k"] == found.worst["k"] == int((y == 1).sum())
    sure = Through(lambda z: nn.functional.one_hot((z.flatten(1).sum(1) > z.mean() * z[0].numel()).long(), 2).to(z))
    with pytest.raises(ValueError, match="returns probabilities"):
        predict(sure, x, y)


class Through(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.forward = function


def test_predict_of_nothing():
    assert predict(nn.Linear(3, 2), torch.zeros(0, 3), torch.zeros(0).long()).shape == (0,)


# ---- the cascade


THREAT = Threat("linf", 0.05)
RISING = {  # in order of decreasing cost, which the evaluation reverses
    "chain": Langevin(THREAT, steps=4, noise=0.2, restarts=2),
    "pgd": PGD(THREAT, steps=4),
    "fgsm": FGSM(Threat("linf", 0.02)),
}


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


# ---- composite attacks


@dataclass(frozen=True)
class Twofold(Attack):
    """A composite of a random chain, a minimum-norm attack and a short PGD."""

    threat: Threat

    def parts(self):
        return {
            "chain": Langevin(self.threat, steps=2, noise=0.3),
            "nearest": Nearest(Threat(self.threat.norm, "inf")),
            "pgd": PGD(self.threat, steps=3),
        }

    @property
    def passes(self):
        return 100

    def search(self, oracle, x, y, streams):
        x_adv, fooled = x, oracle.logits(x, y).argmax(1) != y
        for part in self.parts():
            rows = (~fooled).nonzero().squeeze(1)
            if not len(rows):
                break
            some = oracle.take(rows)
            found = self.search_part(part, some, x[rows], y[rows], streams.take(rows))
            found = torch.where(self.threat.contains(found, x[rows])[:, None, None, None], found, x[rows])
            x_adv = x_adv.index_copy(0, rows, found)
            fooled = fooled.index_copy(0, rows, some.logits(found, y[rows]).argmax(1) != y[rows])
        return x_adv


@dataclass(frozen=True)
class Nearest(Attack):
    """A minimum-norm attack with an infinite eps: FGSM at 0.03."""

    threat: Threat
    minimum_norm = True

    @property
    def passes(self):
        return 3

    def search(self, oracle, x, y, streams):
        return FGSM(Threat("linf", 0.03)).search(oracle, x, y, streams)


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


def test_an_endless_threat_becomes_json(conv_net, batch):
    x, y = batch(12)
    got = evaluate(conv_net(), x, y, {"nearest": Nearest(Threat("linf", "inf"))})
    reported = json.loads(dumps(got.to_json()))["attacks"]["nearest"]["threat"]
    assert reported == {"norm": "linf", "eps": "inf", "box": [0.0, 1.0]}
    assert Threat(**reported).eps == math.inf


# ---- interruption and resumption


class Killed(Exception):
    pass


def killed_after(batches, *args, **kwargs):
    """Evaluate until so many calls of an attack are done."""
    original, calls = Attack.run, []

    def stopping(self, *a, **k):
        if len(calls) == batches:
            raise Killed
        calls.append(1)
        return original(self, *a, **k)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attack, "run", stopping)
        with pytest.raises(Killed):
            evaluate(*args, **kwargs)


@pytest.mark.parametrize("cascade", [True, False])
@pytest.mark.parametrize("batches", [0, 1, 4, 8])
def test_a_killed_evaluation_goes_on(batches, cascade, conv_net, batch, tmp_path):
    x, y = batch(40)
    ids = 3 * torch.arange(40)
    attacks = {**RISING, "two": Twofold(THREAT)}
    settings = {"seed": 2, "ids": ids, "batch": 9, "cascade": cascade}
    full = evaluate(conv_net(), x, y, attacks, **settings)
    path = tmp_path / "part.jsonl"
    killed_after(batches, conv_net(), x, y, attacks, **settings, resume=path)
    assert len(path.read_text().splitlines() if batches else [0]) == 1 + batches
    with open(path, "a") as file:
        file.write('{"attack": "torn')
    counted, original = [], Attack.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attack, "run", lambda self, *a, **k: counted.append(1) or original(self, *a, **k))
        got = evaluate(conv_net(), x, y, attacks, **settings, resume=path)
        total = len(path.read_text().splitlines()) - 1
        assert len(counted) == total - batches > 0
        again = evaluate(conv_net(), x, y, attacks, **settings, resume=path)
        assert len(counted) == total - batches
    assert plain(got) == plain(full) == plain(again)
    if not batches:
        return
    # another batch size resumes too
    path.unlink()
    killed_after(batches, conv_net(), x, y, attacks, **settings, resume=path)
    other = evaluate(conv_net(), x, y, attacks, **{**settings, "batch": 14}, resume=path)
    assert other.outcomes == full.outcomes


def plain(evaluation):
    found = json.loads(dumps(evaluation.to_json()))
    for result in found["attacks"].values():
        for reported in (result, *result.get("parts", {}).values()):
            reported.pop("seconds")
    return found


@pytest.mark.parametrize(("change", "text"), [
    ({"model": True}, "other model"),
    ({"x": lambda x: x * 0.999}, "other inputs"),
    ({"y": lambda y: (y + 1) % 10}, "other labels"),
    ({"ids": 1 + torch.arange(12)}, "other ids"),
    ({"seed": 1}, "other seed"),
    ({"cascade": False}, "other cascade"),
    ({"attacks": [PGD(THREAT, steps=3)]}, "other attacks"),
    ({"attacks": [PGD(Threat("linf", 0.06), steps=2)]}, "other attacks"),
    ({"seed": 1, "ids": 1 + torch.arange(12)}, "other ids, seed"),
])  # fmt: skip
def test_a_file_of_another_evaluation_is_refused(change, text, conv_net, batch, tmp_path):
    x, y = batch(12)
    path = tmp_path / "part.jsonl"
    evaluate(conv_net(), x, y, [PGD(THREAT, steps=2)], ids=torch.arange(12), resume=path)
    before = path.read_bytes()
    x, y = (change.get(k, lambda v: v)(v) for k, v in (("x", x), ("y", y)))
    attacks = change.get("attacks", [PGD(THREAT, steps=2)])
    settings = {"ids": torch.arange(12), **{k: v for k, v in change.items() if k in ("ids", "seed", "cascade")}}
    with pytest.raises(ValueError, match=f"{text}.*: give another file to resume from") as error:
        evaluate(conv_net(norm="model" in change), x, y, attacks, resume=path, **settings)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before


def test_a_file_of_another_kind_is_refused(conv_net, batch, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"epoch": 1}\n')
    with pytest.raises(ValueError, match="is not the file of an unfinished evaluation"):
        evaluate(conv_net(), *batch(4), [FGSM(THREAT)], resume=path)
    assert path.read_text() == '{"epoch": 1}\n'


# ---- precision


class Wide(nn.Module):
    """Records the dtype of its convolution, also under autocast."""

    def __init__(self, body):
        super().__init__()
        self.body, self.seen = body, []

    def forward(self, x):
        z = self.body[0](x)
        self.seen.append((z.dtype, z.requires_grad))
        return self.body[1:](z)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_search_may_be_in_half_precision_and_the_verdict_never_is(dtype, conv_net, batch):
    x, y = batch(60, torch.float32)
    model = Wide(conv_net(torch.float32))
    full = evaluate(model, x, y, [PGD(THREAT, steps=5)])
    assert {kind for kind, _ in model.seen} == {torch.float32}
    model.seen.clear()
    # an outer autocast does not affect the verdict either
    with torch.autocast("cpu", dtype=torch.bfloat16):
        got = evaluate(model, x, y, [PGD(THREAT, steps=5)], search_dtype=str(dtype).removeprefix("torch."))
    searching = [kind for kind, gradient in model.seen if gradient]
    verdicts = [kind for kind, gradient in model.seen if not gradient]
    assert searching[:5] == [dtype] * 5
    assert set(searching[5:]) <= {torch.float32}  # samples that end near the boundary are attacked again
    assert set(verdicts) == {torch.float32}
    assert got.clean == full.clean
    assert got.search_dtype == str(dtype).removeprefix("torch.")
    assert abs(got.worst["k"] - full.worst["k"]) <= 3
    assert got.worst["k"] < got.clean["k"]
    out = PGD(THREAT, steps=5).run(model, x, y, search_dtype=got.search_dtype)
    with torch.no_grad():
        assert torch.equal(out.success, model(out.x_adv).argmax(1) != y)
    assert out.x_adv.dtype == torch.float32


def test_float16_keeps_gradients_that_it_cannot_hold(conv_net, batch):
    x, y = batch(40, torch.float32)
    model = conv_net(torch.float32)

    def gradient(logits, inputs):
        values = 1e-8 * nn.functional.cross_entropy(logits, y, reduction="none")
        return torch.autograd.grad(values.sum(), inputs)[0].flatten(1)

    inputs = x.clone().requires_grad_()
    exact = gradient(model(inputs), inputs)
    with torch.autocast("cpu", dtype=torch.float16):
        logits = model(inputs).float()
    assert gradient(logits, inputs).abs().max() == 0
    found = gradient(Lowered(model, "float16")(inputs), inputs)
    sure = exact.norm(dim=1) > 1e-6 * exact.norm(dim=1).max()  # beyond, float32 itself has rounded
    assert sure.sum() > 20
    assert nn.functional.cosine_similarity(1e8 * exact, 1e8 * found, eps=0)[sure].min() > 0.99
    assert torch.allclose(found.norm(dim=1)[sure], exact.norm(dim=1)[sure], rtol=0.1)


def test_what_cannot_be_searched_in_half_is_refused(conv_net, batch):
    with pytest.raises(ValueError, match=r"search_dtype bfloat16 is for a float32 model, this one is torch\.float64"):
        evaluate(conv_net(), *batch(4), [FGSM(THREAT)], search_dtype="bfloat16")
    with pytest.raises(ValueError, match="search_dtype 'int8' is not known: use one of bfloat16, float16"):
        evaluate(conv_net(torch.float32), *batch(4, torch.float32), [FGSM(THREAT)], search_dtype="int8")


# ---- hints


def test_a_model_of_normalised_inputs_is_noticed(conv_net, batch):
    x, y = batch(200)
    mean, std = x.mean(), x.std(correction=0)
    inner = conv_net()
    wants = nn.Sequential(Scaled(float(std), float(mean)), inner)  # the inner network gets standardised inputs
    got = evaluate(wants, x, y, [])
    assert got.clean["value"] < 0.8
    raw, standardised = (round(100 * v) for v in (got.clean["value"], evaluate(inner, x, y, []).clean["value"]))
    assert f"{raw} % on raw pixels, {standardised} % on standardised ones; put atent.models.Normalize" in got.hint
    assert f"[{mean:.3g}] and [{std:.3g}]" in got.hint
    assert "\n" not in got.hint
    corrected = nn.Sequential(Normalize([float(mean)], [float(std)]), wants).double()
    assert evaluate(corrected, x, y, []).hint is None
    assert evaluate(wants, x, y, [], check_inputs=False).hint is None


class Scaled(nn.Module):
    def __init__(self, factor, shift):
        super().__init__()
        self.factor, self.shift = factor, shift

    def forward(self, x):
        return self.factor * x + self.shift


def test_no_hint_without_reason(conv_net, batch):
    x, y = batch(60)
    assert evaluate(conv_net(), x, y, []).hint is None
    g = torch.Generator().manual_seed(0)
    blind = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    with torch.no_grad():
        blind[1].weight.copy_(torch.randn(10, 64, generator=g))
    assert evaluate(blind, x, y, []).hint is None
    assert evaluate(blind, x, (y + 1) % 10, []).hint is None


class Constant(nn.Module):
    """Logits that are only a bias: a constant class."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(10, dtype=torch.float64).index_fill(0, torch.tensor(7), 3.0))

    def forward(self, x):
        return self.bias + 0 * x.flatten(1)[:, :1]


def test_a_network_that_gives_everything_one_class_is_noticed(batch):
    x, y = batch(60)
    hint = evaluate(Constant(), x, y, []).hint
    assert hint.startswith("the network gives class 7 to all 60 samples")
    assert "optimizer.lr" in hint
    assert "method.eps_warmup" in hint
    assert "\n" not in hint
    names = [f"kind {k}" for k in range(10)]
    assert adapted(hint, names, "") == "the network gives class 'kind 7' to all 60 samples"
    assert adapted(hint, None) == adapted(hint, list("0123456789")) == hint
    assert adapted("all 30 samples are of class 3, so", names) == "all 30 samples are of class 'kind 3', so"
    # a few samples are not evidence
    assert evaluate(Constant(), x[:19], y[:19], []).hint is None
    # on samples of its own class alone the accuracy is 100 %
    praised = evaluate(Constant(), x, torch.full_like(y, 7), [])
    assert praised.clean["value"] == 1.0
    assert praised.hint.startswith("all 60 samples are of class 7")
    assert "stratified" in praised.hint
    assert "\n" not in praised.hint


# ---- radii


def test_a_sweep_is_the_attack_at_each_radius(conv_net, batch):
    x, y = batch(40)
    model, attacks = conv_net(), [PGD(THREAT, steps=3), Langevin(THREAT, steps=3, noise=0.2)]
    rows = sweep(model, x, y, attacks, ["8/255", 0.01, 0.1], seed=5, batch=16)
    assert [(r["attack"], r["radius"]) for r in rows] == [
        (name, radius) for name in ("PGD-3", "ATENT-3 (noise 0.2)") for radius in (0.01, 8 / 255, 0.1)
    ]
    assert rows[1]["threat"] == "linf 8/255"
    assert {r["norm"] for r in rows} == {"linf"}
    for row in rows:
        attack = (PGD if row["attack"] == "PGD-3" else Langevin)(
            Threat("linf", row["radius"]), steps=3, **({} if row["attack"] == "PGD-3" else {"noise": 0.2})
        )
        alone = evaluate(model, x, y, [attack], seed=5)
        assert row["robust"] == alone.worst
        assert row["clean"] == alone.clean
    for name in ("PGD-3", "ATENT-3 (noise 0.2)"):
        counts = [r["monotone"]["k"] for r in rows if r["attack"] == name]
        assert counts == sorted(counts, reverse=True)
        assert counts[0] > counts[-1]


@dataclass(frozen=True)
class Odd(FGSM):
    """FGSM that forgets to attack at large radii."""

    def search(self, oracle, x, y, streams):
        return x if self.threat.eps > 0.08 else super().search(oracle, x, y, streams)


def test_what_a_smaller_radius_fooled_stays_fooled(conv_net, batch):
    x, y = batch(40)
    rows = sweep(conv_net(), x, y, {"odd": Odd(THREAT)}, [0.1, 0.05, 0])
    raw, monotone = ([r[key]["k"] for r in rows] for key in ("robust", "monotone"))
    clean = rows[0]["clean"]["k"]
    assert raw == [clean, raw[1], clean]
    assert raw[1] < clean
    assert monotone == [clean, raw[1], raw[1]]


@pytest.mark.parametrize(("attacks", "radii", "text"), [
    ([FGSM(THREAT)], [], "one attack and one radius at least"),
    ([], [0.1], "one attack and one radius at least"),
    ([FGSM(THREAT)], [0.5, "1/2"], "radius 0.5 is given twice"),
    ([FGSM(THREAT)], [-1], "radius must be finite and at least 0, got -1"),
    ([FGSM(THREAT)], ["8/x"], "radius '8/x' is not a number"),
    ([FGSM(THREAT), FGSM(Threat("l2", 1))], [0.1], "two attacks are called FGSM"),
    ([FGSM(Threat("linf", [0.1] * 4))], [0.1], "a sweep has one radius for all samples, but FGSM has an eps for each"),
])  # fmt: skip
def test_bad_sweeps_are_refused(attacks, radii, text, conv_net, batch):
    with pytest.raises(ValueError, match=text):
        sweep(conv_net(), *batch(4), attacks, radii)


def test_a_killed_sweep_goes_on(conv_net, batch, tmp_path):
    x, y = batch(30)
    path = tmp_path / "part.jsonl"
    args = (conv_net(), x, y, [PGD(THREAT, steps=2), FGSM(THREAT)], [0.02, 0.05])
    full = sweep(*args, batch=10)
    original, calls = Attack.run, []

    def stopping(self, *a, **k):
        calls.append(1)
        if len(calls) == 5:
            raise Killed
        return original(self, *a, **k)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Attack, "run", stopping)
        with pytest.raises(Killed):
            sweep(*args, batch=10, resume=path)
    got = sweep(*args, batch=10, resume=path)
    for row in (*got, *full):
        row.pop("seconds")
    assert got == full


# ---- results and samples


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


def test_checked_samples_are_not_checked_again(conv_net, batch, monkeypatch):
    x, y = batch(40, torch.float32)
    model = conv_net(torch.float32)
    y = predict(model, x, y)
    attacks = [FGSM(Threat("linf", 0.1))]
    plain = evaluate(model, x, y, attacks), sweep(model, x, y, attacks, [0.05])
    seen = []
    check = samples.check_batch
    monkeypatch.setattr(samples, "check_batch", lambda x, y, box: (seen.append(box), check(x, y, box)))
    known = samples.checked(model, x, y, None, {(0.0, 1.0)})
    again = evaluate(model, known, None, attacks), sweep(model, known, None, attacks, [0.05])
    masking_checks(model, known, None, Threat("linf", 0.1))
    assert seen == [(0.0, 1.0)]
    assert without_time(again[0]) == without_time(plain[0])
    assert [{**row, "seconds": 0} for row in again[1]] == [{**row, "seconds": 0} for row in plain[1]]
    # A further box is checked.
    with pytest.raises(ValueError, match="box"):
        evaluate(model, known, None, [FGSM(Threat("linf", 0.1, box=(0.9, 1.0)))])
    assert seen == [(0.0, 1.0), (0.9, 1.0)]


@dataclass(frozen=True)
class Leaves(Attack):
    """Perturbs by twice its eps."""

    norms = ("linf", "l0")

    @property
    def passes(self):
        return 1

    def search(self, oracle, x, y, streams):
        if self.threat.norm == "l0":
            return self.threat.clamp(x + 0.5)
        return self.threat.clamp(x + 2 * self.threat.eps)


@pytest.mark.parametrize("threat", [Threat("linf", 0.1), Threat("l0", 2)], ids=str)
def test_an_attack_that_leaves_its_threat_is_refused(threat, conv_net, batch):
    model, (x, y) = conv_net(), batch(9)
    for measure in (
        lambda: evaluate(model, x, y, [Leaves(threat)]),
        lambda: craft(model, x, y, Leaves(threat)),
    ):
        with pytest.raises(ValueError, match=r"Leaves left its threat: a result has l\w+ distance") as error:
            measure()
        assert "\n" not in str(error.value)
