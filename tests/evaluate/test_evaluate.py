"""Evaluation: counts, the worst case, invariance and refusals."""

import json
import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from atent.attacks import FGSM, PGD, Attack, Langevin
from atent.evaluate import evaluate, masking_checks, predict, rounds, samples, sweep
from atent.evaluate.craft import craft
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


@pytest.mark.parametrize("cascade", [True, False, "threat"])
def test_an_evaluation_prints_its_accuracies(cascade, conv_net, batch):
    attacks = [PGD(Threat("linf", eps), steps=2) for eps in (0.02, 0.1)]
    found = evaluate(conv_net(), *batch(n=12), attacks, cascade=cascade)
    first, *lines = str(found).splitlines()
    cell = []
    found._repr_pretty_(SimpleNamespace(text=cell.append), False)  # of a notebook
    assert cell == [str(found)]
    assert f"{found.n}" in first
    shown = [found.clean, *(attack["robust"] for attack in found.attacks.values())]
    after = "after " if cascade is True else ""
    names = ["clean", *(after + name for name in found.attacks)]
    if cascade is not True:
        names, shown = [*names, "worst of these"], [*shown, found.worst]
    assert [line.split("  ")[0] for line in lines[: len(names)]] == names
    for line, value in zip(lines, shown):
        low, high = (f"{100 * value[end]:.1f}" for end in ("low", "high"))
        assert line.endswith(f"  {100 * value['value']:.1f} % [{low}, {high}]")
    assert lines[len(names) :] == ([f"hint: {found.hint}"] if found.hint else [])


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
