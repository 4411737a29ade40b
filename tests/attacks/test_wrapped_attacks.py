"""Attacks around an attack: what they do not override is that of the attack inside."""

import contextlib
import copy
import dataclasses
import json
import threading
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import nn

from atent import Threat
from atent.attacks import ATTACKS, DDN, PGD, Attack, EoT, Transfer
from atent.attacks.oracle import Oracle
from atent.attacks.spec import label, parse
from atent.attacks.wrapper import Wrapper, nest
from atent.evaluate import evaluate
from atent.evaluate.ledger import code_of_attack
from atent.losses import margin
from atent.testing import check_attack


@dataclass(frozen=True)
class Halved(Attack):
    """The smallest adversarial one of some points along the gradient; it has every part of the contract."""

    threat: Threat
    tries: int = 6

    minimum_norm = True
    aims = True
    norms = ("l2",)
    loss: ClassVar[str] = "margin"

    @property
    def stream(self):
        return "Halved's own"

    @property
    def passes(self):
        return 2 + self.tries + 1

    def remarks(self, classes):
        return [f"halves on {classes} classes"]

    def search(self, oracle, x, y, streams):
        grad, _, logits = oracle.gradient(x, y, oracle.aimed(margin))
        way = grad / grad.flatten(1).norm(dim=1).clamp_min(1e-12).reshape(-1, *[1] * (x.dim() - 1))
        way = way * (1 + 1e-3 * streams.uniform(x, use="length")[:, :1])
        best, found = x, oracle.fooled(logits, y)
        for k in range(self.tries):
            z = self.threat.clamp(x + 2.0 ** (k - self.tries + 2) * way)
            fooled = oracle.fooled(oracle.logits(z, y), y) & ~found
            best = torch.where(fooled.reshape(-1, *[1] * (x.dim() - 1)), z, best)
            found = found | fooled
        return best


@dataclass(frozen=True)
class Tally(Attack):
    """Counts the samples that it meets."""

    threat: Threat
    passes = 1
    needs_gradient = False

    def __post_init__(self):
        object.__setattr__(self, "count", [])

    def search(self, oracle, x, y, streams):
        self.count.append(len(x))
        return x

    def remarks(self, classes):
        return [f"{sum(self.count)} samples"]


INSIDE = "test_wrapped_attacks:Halved"
FREE = Threat("l2", "inf")


def net(dtype=torch.float64):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, 24), nn.ReLU(), nn.Linear(24, 3)).to(dtype)


def around(name, threat, text, model):
    given = {"EoT": {"samples": 1}, "Transfer": {"source": model}}[name]
    return ATTACKS[name](threat, attack=text, **given)


@pytest.fixture
def case():
    model, x = net(), torch.rand(12, 1, 6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("name", ["EoT", "Transfer"])
def test_the_facts_of_the_attack_inside_are_kept(name, case):
    model = case[0]
    inner, outer = Halved(FREE), around(name, FREE, INSIDE, model)
    for fact in ("threat", "minimum_norm", "aims", "stream"):
        assert getattr(outer, fact) == getattr(inner, fact), fact
    assert outer.remarks(3) == inner.remarks(3)
    outer.check_aims()
    assert label(outer).startswith(f"{name} {label(inner)}")
    assert list(map(type, nest(outer))) == [ATTACKS[name], Halved]
    # Of the class nothing is known before an attack is inside.
    assert (ATTACKS[name].minimum_norm, ATTACKS[name].aims) == (False, False)
    plain = around(name, Threat("l2", 0.1), "PGD(steps=2)", model)
    assert (plain.minimum_norm, plain.aims) == (False, PGD.aims)
    with pytest.raises(ValueError, match="FAB takes no targets"):
        around(name, Threat("l2", 0.1), "FAB", model).check_aims()


@pytest.mark.parametrize("name", ["EoT", "Transfer"])
@pytest.mark.parametrize("eps", ["inf", 0.2])
def test_one_around_it_gives_the_same_bits(name, eps, case):
    model, x, y = case
    threat = Threat("l2", eps)
    inner, outer = Halved(threat), around(name, threat, INSIDE, model)
    for targeted, labels in ((False, y), (True, (y + 1) % 3)):
        a, b = (each.run(model, x, labels, seed=3, targeted=targeted) for each in (inner, outer))
        assert torch.equal(a.x_adv, b.x_adv)
        assert torch.equal(a.success, b.success)
    assert a.success.any()


@pytest.mark.parametrize("name", ["EoT", "Transfer"])
def test_it_keeps_the_contract_of_a_minimum_norm_attack(name, case):
    made = around(name, Threat("l2", 0.5), "DDN(steps=8)", case[0])
    if name == "EoT":  # a transfer has another source for each network
        assert any("minimum-norm" in promise for promise in check_attack(made))
        assert copy.deepcopy(made) == made
    assert dataclasses.replace(made) == made


@pytest.mark.parametrize("text", ["EoT(attack=DDN, samples=2)", "Transfer(attack='CarliniWagner', source='mine:net')"])
def test_it_needs_no_radius(text):
    assert parse(text, FREE, ATTACKS).minimum_norm
    with pytest.raises(ValueError, match=r"PGD.* needs a finite eps, got inf"):
        parse(text.replace("DDN", "PGD").replace("'CarliniWagner'", "PGD"), FREE, ATTACKS)


class Seen(nn.Module):
    """Records the precision of its first layer where gradients are taken."""

    def __init__(self):
        super().__init__()
        self.body, self.kinds = net(torch.float32), []

    def forward(self, x):
        z = self.body[:2](x)
        if z.requires_grad:
            self.kinds.append(z.dtype)
        return self.body[2:](z)


@pytest.mark.parametrize(
    ("inside", "kinds"),
    [("DDN(steps=3)", {torch.float32}), ("PGD(steps=3)", {torch.bfloat16}), ("AutoAttack(steps=3)", {torch.float32})],
)
def test_the_precision_of_a_search_is_that_of_the_attack_inside(inside, kinds):
    """Also at every depth: an ensemble with a minimum-norm part, and a transfer of an average."""
    source, x = Seen(), torch.rand(8, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    y = source.body(x).argmax(1)
    other = nn.Sequential(nn.Flatten(), nn.Linear(36, 3))
    made = [Transfer(Threat("l2", 0.3), attack=inside, source=source)]
    if "Auto" not in inside:
        made += [EoT(Threat("l2", 0.3), attack=inside, samples=2)]
        made += [Transfer(Threat("l2", 0.3), attack=f"EoT(attack='{inside}', samples=2)", source=source)]
    for attack in made:
        source.kinds.clear()
        evaluate(source if isinstance(attack, EoT) else other, x, y, [attack], search_dtype="bfloat16", folding=False)
        # Samples that end near the boundary are attacked again, on the network itself.
        assert kinds <= set(source.kinds) <= kinds | {torch.float32}, attack


def test_the_source_has_the_memory_format_of_the_search():
    formats = []

    class Convolved(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Conv2d(2, 3, 3)

        def forward(self, x):
            formats.append(x.is_contiguous(memory_format=torch.channels_last))
            return self.layer(x).mean((2, 3))

    x, y = torch.rand(4, 2, 6, 6), torch.arange(4) % 3
    model = Convolved()
    attack = Transfer(Threat("linf", 0.1), attack="PGD(steps=2)", source=Convolved())
    out = attack.run(model, x, y, channels_last=True)
    assert sum(formats) >= 2 + 2
    assert torch.equal(attack.run(model, x, y).x_adv, out.x_adv)


class Counted(Wrapper):
    """One pass more than the attack inside."""

    @property
    def passes(self):
        return self.inner.passes + 1

    def search(self, oracle, x, y, streams):
        oracle.logits(x, y)
        return self.inner.bounded(oracle, x, y, streams)


def test_the_base_serves_the_users_own(case):
    model, x, y = case
    threat = Threat("l2", 0.5)
    made = Counted(threat, attack="DDN(steps=5)")
    assert made.minimum_norm
    assert label(made) == "Counted DDN-5"
    assert torch.equal(made(model, x, y), DDN(threat, steps=5)(model, x, y))
    assert "a minimum-norm attack" in json.dumps(check_attack(made))


def test_a_transfer_within_an_ensemble_has_the_radii_of_its_samples(case):
    """Its search is on a part of the samples, each with an eps of its own."""
    model, x, y = case
    eps = torch.linspace(0.05, 0.4, len(x), dtype=torch.float64)
    threat = Threat("l2", eps)

    class Some(PGD):
        def search(self, oracle, x, y, streams):
            rows = torch.arange(0, len(x), 3)
            inner = Transfer(self.threat, attack="PGD(steps=3)", source=model)
            found = inner.search(oracle.take(rows), x[rows], y[rows], streams.take(rows))
            return x.index_copy(0, rows, found)

    out = Some(threat).run(model, x, y)
    assert (out.norm <= eps * (1 + 1e-6) + 1e-12).all()
    assert (out.norm[::3] > 0.9 * eps[::3]).all()


def test_remarks_are_those_of_the_attack_that_ran(case):
    model, x, y = case
    made = Transfer(Threat("l2", 0.1), attack="test_wrapped_attacks:Tally", source=model)
    made(model, x, y)
    assert made.remarks(3) == [f"{len(x)} samples"]


def test_the_code_of_the_users_attack_counts_at_every_depth(case):
    threat = Threat("l2", 0.1)
    one = code_of_attack(Halved(threat))
    assert len(one) == 1
    text = f"EoT(attack='{INSIDE}', samples=2)"
    assert code_of_attack(EoT(threat, attack=INSIDE)) == one
    assert code_of_attack(Transfer(threat, attack=text, source=case[0])) == one


class Confident(nn.Module):
    """The cross-entropy of its logits is constant in float32, and their difference is not."""

    def forward(self, x):
        x = x.flatten(1)
        z = 1000 * (x[:, :1] - 0.5).sign() + x.sum(1, keepdim=True)
        return torch.cat([z, 0 * z], 1)


@pytest.mark.parametrize(("loss", "hint"), [("ce", True), ("margin", False)])
def test_a_zero_gradient_is_that_of_the_loss_inside(loss, hint):
    x = torch.rand(30, 1, 6, 6, generator=torch.Generator().manual_seed(1))
    y = (x[:, 0, 0, 0] < 0.5).long()
    attack = EoT(Threat("l2", 0.1), attack=f"PGD(steps=2, loss={loss})", samples=2)
    found = evaluate(Confident(), x, y, [attack]).hint
    assert ("input gradient of the cross-entropy is exactly zero" in (found or "")) == hint


def linear():
    loads.append(1)
    torch.manual_seed(4)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, 3))


loads = []


def test_a_source_given_as_text_is_loaded_once():
    """With an eps per sample each batch has an attack of its own, which loaded its source again."""
    loads.clear()
    x, y, model = torch.rand(12, 3, 2, 2), torch.arange(12) % 3, linear()
    attack = Transfer(Threat("linf", torch.linspace(0.05, 0.1, 12)), "PGD(steps=2)", f"{__name__}:linear")
    loads.clear()
    found = evaluate(model, x, y, [attack], batch=3)
    assert len(loads) == 1
    one = Transfer(Threat("linf", torch.linspace(0.05, 0.1, 12)), "PGD(steps=2)", linear())
    expected = evaluate(model, x, y, [one], batch=3).outcomes["attacks"]
    assert list(found.outcomes["attacks"].values()) == list(expected.values())


@pytest.mark.parametrize("text", ["PGD(steps=3, keep=best)", "APGD(steps=6)", "DeepFool(steps=3)", "FAB(steps=2)"])
def test_the_passes_of_an_expectation_are_a_bound(text, monkeypatch):
    """Per-class gradients in several groups have forwards of their own, which the page of the attack names."""
    x, samples, classes = torch.rand(4, 3, 2, 2), 3, 5
    torch.manual_seed(1)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 20), nn.ReLU(), nn.Linear(20, classes))
    attack = EoT(Threat("linf", 0.01), text, samples)

    def spent():
        out = attack.run(model, x, model(x).argmax(1))
        return int((out.forwards + out.backwards).max())

    together = spent()
    assert together <= attack.passes
    calls, slopes = [], Oracle.slopes
    monkeypatch.setattr(Oracle, "slopes", lambda *given: [calls.append(1), slopes(*given)][1])
    monkeypatch.setattr("atent.attacks.oracle._MOST", 1)
    # One group for each of the other classes, in place of one for all.
    assert spent() == together + len(calls) * samples * (classes - 2)
    assert bool(calls) == text.startswith(("DeepFool", "FAB"))


def test_two_threads_that_attack_each_others_models_do_not_wait_for_ever(monkeypatch):
    """Each had the lock of its model, and waited for that of the other's."""
    x, y, nets = torch.rand(4, 3, 2, 2), torch.arange(4) % 3, (linear(), linear())
    meeting, search, done = threading.Barrier(2), Transfer.search, []

    def together(*given):
        with contextlib.suppress(threading.BrokenBarrierError):
            meeting.wait(1.0)  # in vain where one thread waits for the other
        return search(*given)

    def attack(model, source):
        done.append(Transfer(Threat("linf", 0.1), "PGD(steps=2)", source)(model, x, y))

    monkeypatch.setattr(Transfer, "search", together)
    threads = [threading.Thread(target=attack, args=pair, daemon=True) for pair in (nets, nets[::-1])]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(done) == 2
