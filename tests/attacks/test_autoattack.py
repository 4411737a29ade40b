"""AutoAttack: its parts, who is attacked by which, and what it refuses; attacks that transfer."""

from pathlib import Path

import pytest
import torch
from kit import BALLS, Recorded
from torch import nn

from atent.attacks import APGD, FAB, PGD, AutoAttack, Square, Transfer
from atent.attacks.loops import all_targets
from atent.attacks.spec import label, plain, spell
from atent.evaluate import evaluate
from atent.experiments.comparison import remarks
from atent.experiments.results import AttackResult
from atent.runs.loading import load
from atent.threat import Threat

NORM = pytest.mark.parametrize("norm", BALLS)
EPS = {"linf": 0.08, "l2": 0.5}
SMALL = {"steps": 10, "targets": 4, "queries": 60}


@NORM
def test_the_parts_are_the_published_ones(norm):
    threat = Threat(norm, EPS[norm])
    assert AutoAttack(threat).parts() == {
        "APGD-CE": APGD(threat, 100, 1, "ce"),
        "APGD-T": APGD(threat, 100, 1, "dlr-targeted", targets=9),
        "FAB-T": FAB(threat, 100, 1, targets=9, stop_at_eps=True),
        "Square": Square(threat, 5000, p_init=0.8, schedule="absolute", restarts=1),
    }
    assert list(AutoAttack(threat).parts()) == ["APGD-CE", "APGD-T", "FAB-T", "Square"]
    assert AutoAttack(threat, "rand").parts() == {
        "APGD-CE": APGD(threat, 100, 1, "ce", eot=20),
        "APGD-DLR": APGD(threat, 100, 1, "dlr", eot=20),
    }
    for name, value in {"alpha_max": 0.1, "eta": 1.05, "beta": 0.9}.items():
        assert getattr(AutoAttack(threat).parts()["FAB-T"], name) == value
    sparse = Threat("l1", 1.0)
    assert AutoAttack(sparse).parts() == {
        "APGD-CE": APGD(sparse, 100, 5, "ce", radii="shrinking"),
        "APGD-T": APGD(sparse, 100, 1, "dlr-targeted", targets=5, radii="shrinking"),
        "FAB-T": FAB(sparse, 100, 1, targets=9, stop_at_eps=True),
        "Square": Square(sparse, 5000, p_init=0.8, schedule="absolute", restarts=1),
    }
    assert [label(AutoAttack(threat)), label(AutoAttack(threat, "rand"))] == ["AutoAttack", "AutoAttack rand"]


@pytest.mark.slow
@NORM
def test_the_published_budgets(norm, conv_net, batch):
    net, (x, _) = conv_net(torch.float32), batch(4, torch.float32)
    y, attack = net(x).argmax(1), AutoAttack(Threat(norm, 1e-6))
    # each part's forwards, its verdict among them, and its gradients: one forward more than gradients in a run of APGD,
    # for targets the clean logits, and an evaluation after the first and after the others; two forwards per FAB step
    budgets = {"APGD-CE": (101 + 1, 100), "APGD-T": (1 + 9 * 101 + 2 + 1, 900), "FAB-T": (1 + 1800 + 1, 900)}
    for name, budget in budgets.items():
        out = attack.run(net, x, y, part=name)
        assert not out.success.any()
        assert {*zip(out.forwards.tolist(), out.backwards.tolist())} == {budget}
    square = attack.run(net, x, y, part="Square").forwards
    # a query that would change nothing need not be asked: on 64 pixels that is most of them
    assert 100 < int(square.min()) <= int(square.max()) <= 5000 + 1 + 1
    whole = attack.run(net, x, y)
    # and the clean logits; the evaluation after a part replaces its verdict, and there is one at the end
    assert whole.forwards.tolist() == (square + 102 + 913 + 1802 + 2).tolist()
    assert set(whole.backwards.tolist()) == {1900}
    assert attack.passes == 102 + 913 + 1802 + 5002 + 1900 + 2


@NORM
def test_each_part_sees_what_the_ones_before_left(norm, conv_net, batch):
    net, (x, y) = conv_net(), batch(60)
    y[3] = (net(x[3:4]).argmax() + 1) % 10
    attack = AutoAttack(Threat(norm, EPS[norm]), **SMALL)
    out = attack.run(net, x, y, seed=1, ids=100 + torch.arange(60))
    stand, passes = net(x).argmax(1) == y, torch.ones(60).long()
    fooled = {"clean": ~stand}
    for name in attack.parts():
        rows = stand.nonzero().squeeze(1)
        part = attack.run(net, x[rows], y[rows], seed=1, ids=100 + rows, part=name)
        stand[rows[part.success]] = False
        fooled[name] = part.success
        passes[rows] += part.forwards + part.backwards
        assert torch.allclose(out.x_adv[rows[part.success]], part.x_adv[part.success], rtol=0, atol=1e-9)
    assert torch.equal(out.success, ~stand)
    assert torch.equal(out.forwards + out.backwards, passes + 1)
    assert fooled["clean"][3]
    assert torch.equal(out.x_adv[fooled["clean"]], x[fooled["clean"]])
    assert out.forwards[fooled["clean"]].tolist() == [2] * int(fooled["clean"].sum())
    assert 5 < int(fooled["APGD-CE"].sum()) < 55
    assert stand.any()
    evaluated = evaluate(net, x, y, {"AA": attack}, seed=1, ids=100 + torch.arange(60))
    assert evaluated.worst["k"] == int(stand.sum())


def test_later_parts_find_what_earlier_ones_miss(batch):
    class Masked(nn.Module):
        """Its gradient points nowhere near the flaw, which Square's stripes hit."""

        def forward(self, x):
            z = 0.01 * x.flatten(1)[:, :5] - 1
            flaw = (x[:, 0, :, 0] > 0.09).all(1).to(x.dtype).detach()
            return z + nn.functional.one_hot(torch.zeros(len(x)).long(), 5) * (1 - 3 * flaw[:, None])

    x, y = torch.full((30, 1, 8, 8), 0.0, dtype=torch.float64), torch.zeros(30).long()
    attack = AutoAttack(Threat("linf", 0.1), **SMALL)
    found = {name: attack.run(Masked(), x, y, part=name).success for name in attack.parts()}
    assert not found["FAB-T"].any()
    assert found["Square"].sum() > found["APGD-T"].sum()
    whole = attack.run(Masked(), x, y).success
    for success in found.values():
        assert whole[success].all()


def test_fab_counts_within_eps_only(conv_net, batch):
    net, (x, y) = conv_net(), batch(30)
    threat = Threat("l2", 0.3)
    attack = AutoAttack(threat, **SMALL)
    far = FAB(Threat("l2", "inf"), 10, targets=4).run(net, x, y)
    assert (far.norm > 0.3).any()
    out = attack.run(net, x, y, part="FAB-T")
    assert (out.norm <= 0.3 * (1 + 1e-6) + 1e-6).all()
    assert (out.norm[~out.success] == 0).all()
    assert 0 < int(out.success.sum()) < 30


def few(classes):
    g = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, classes).double())
    with torch.no_grad():
        net[1].weight.copy_(torch.randn(classes, 64, generator=g))
    return Recorded(net)


@pytest.mark.parametrize("version", ["standard", "rand"])
@pytest.mark.parametrize("classes", [2, 3, 4])
def test_few_classes_are_attacked_by_the_targets_that_exist(version, classes, batch):
    # Of a linear model the distance is known: |z_y - z_k| / ||w_y - w_k||_1 to the nearest wrong class k, in linf.
    model = few(classes)
    x = 0.4 + 0.2 * batch(30)[0]
    weight, logits = model.body[1].weight.detach(), model(x).detach()
    y = logits.argmax(1)
    gap = logits.gather(1, y[:, None]) - logits
    far = gap / (weight[y][:, None] - weight[None]).abs().sum(2)
    distance = far.scatter(1, y[:, None], torch.inf).amin(1)
    eps = float(distance.median()) * (1 + 1e-3)
    attack = AutoAttack(Threat("linf", eps), version, steps=10, queries=50, eot=2)
    clear = (distance / eps - 1).abs() > 1e-2
    assert eps < 0.2  # the box is out of the way
    for part in (None, *attack.parts()):
        if part != "Square":
            found = attack.run(model, x, y, part=part).success
            assert torch.equal(found[clear], (distance < eps)[clear]), part
    reported = "; ".join(attack.remarks(classes))
    assert ("APGD-T maximises the difference of logits" in reported) == (version == "standard" and classes < 4)
    assert ("APGD-DLR maximises the difference of logits" in reported) == (version == "rand" and classes < 3)
    assert (f"FAB-T {all_targets(classes)}" in reported) == (version == "standard")


def test_nothing_is_remarked_on_ten_classes():
    for version in ("standard", "rand"):
        assert AutoAttack(Threat("linf", 0.1), version).remarks(10) == []


@pytest.mark.parametrize("classes", [2, 3])
def test_an_evaluation_says_what_ran_on_few_classes(classes, batch):
    model, x = few(classes), batch(8)[0]
    found = evaluate(model, x, model(x).argmax(1), [AutoAttack(Threat("linf", 0.05), steps=3, queries=5)])
    ((name, result),) = found.attacks.items()
    assert list(result["parts"]) == ["APGD-CE", "APGD-T", "FAB-T", "Square"]
    assert "APGD-T maximises the difference of logits, as the targeted DLR loss needs 4 classes" in result["remarks"]
    (line,) = remarks({name: AttackResult(**result)})
    assert line.startswith(f"{name}: APGD-T maximises")


@NORM
def test_flat_inputs(norm):
    g = torch.Generator().manual_seed(1)
    net, x = nn.Linear(9, 5).double(), torch.rand(12, 9, generator=g, dtype=torch.float64)
    y = net(x).argmax(1)
    out = AutoAttack(Threat(norm, 0.05), **SMALL).run(net, x, y)
    assert out.x_adv.shape == (12, 9)
    assert (out.norm <= 0.05 * (1 + 1e-6) + 1e-6).all()


# -- transfer


@pytest.fixture
def other(all_digits):
    """A network unlike `conv_net`: two layers, no convolution."""
    x, y = (t[:600] for t in all_digits)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        net = nn.Sequential(nn.Flatten(), nn.Linear(64, 40), nn.ReLU(), nn.Linear(40, 10)).double()
    step = torch.optim.Adam(net.parameters(), lr=0.02)
    for _ in range(80):
        step.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        step.step()
    return net.eval()


@NORM
def test_transfer_is_weaker_than_seeing_the_model(norm, conv_net, other, batch):
    net, (x, y) = conv_net(), batch(80)
    threat, source = Threat(norm, 2 * EPS[norm]), Recorded(other)
    white = PGD(threat, steps=40).run(net, x, y, seed=5)
    out = Transfer(threat, source=source).run(net, x, y, seed=5)
    # the points are the source's, the verdicts the attacked model's
    assert torch.equal(out.x_adv, PGD(threat, steps=40)(other, x, y, seed=5))
    assert torch.equal(out.success, net(out.x_adv).argmax(1) != y)
    clean = int((net(x).argmax(1) != y).sum())
    assert clean < int(out.success.sum()) < int(white.success.sum())
    assert len(source.seen) == 40
    assert out.forwards.tolist() == [1] * 80
    assert out.backwards.tolist() == [0] * 80


@NORM
@pytest.mark.parametrize("inner", ["PGD(steps=40)", "APGD(steps=8, loss='dlr')", "FAB(steps=8)", "Square(queries=50)"])
def test_from_the_model_itself_it_is_the_attack_itself(norm, inner, conv_net, batch):
    from atent.attacks import ATTACKS
    from atent.attacks.spec import parse

    net, (x, y), threat = conv_net(), batch(20), Threat(norm, EPS[norm])
    alone = parse(inner, threat, ATTACKS).run(net, x, y, seed=2)
    out = Transfer(threat, inner, net).run(net, x, y, seed=2)
    for field in ("x_adv", "success", "norm"):
        assert torch.equal(getattr(out, field), getattr(alone, field)), field
    first = Transfer(threat, inner, net)(net, x, y, rng=torch.Generator().manual_seed(1))
    assert torch.equal(first, parse(inner, threat, ATTACKS)(net, x, y, rng=torch.Generator().manual_seed(1)))


def test_the_source_comes_back_as_found(conv_net, batch):
    net, source, (x, y) = conv_net(), conv_net(norm=True).train(), batch(6)
    source(x).sum().backward()
    before = {k: v.clone() for k, v in source.state_dict().items()}
    grads = [p.grad.clone() for p in source.parameters()]
    attack = Transfer(Threat("linf", 0.1), "PGD(steps=3)", source)
    attack(net, x, y)
    assert all(m.training for m in source.modules())
    assert all(p.requires_grad for p in source.parameters())
    assert all(torch.equal(p.grad, g) for p, g in zip(source.parameters(), grads))
    assert all(torch.equal(before[k], v) for k, v in source.state_dict().items())

    class Broken(nn.Module):
        def forward(self, x):
            raise ArithmeticError("broke")

    broken = Broken().train()
    with pytest.raises(ArithmeticError, match="broke"):
        Transfer(Threat("linf", 0.1), "PGD(steps=3)", broken)(net, x, y)
    assert broken.training


def test_a_source_of_other_classes_is_refused(conv_net, batch):
    x, y = batch(6)
    y[0] = 9
    with pytest.raises(ValueError, match="label 9 is out of range: the model has 4 outputs"):
        Transfer(Threat("linf", 0.1), "PGD(steps=3)", few(4))(conv_net(), x, y)


def test_a_run_folder_is_a_source(tmp_path):
    run = Path(__file__).parents[2] / "results" / "mnist-linf-atent-laptop"
    net = nn.Sequential(nn.Flatten(), nn.Linear(784, 10)).double()
    x, y = torch.rand(4, 1, 28, 28, generator=torch.Generator().manual_seed(0)).double(), torch.arange(4)
    attack = Transfer(Threat("linf", 0.1), "PGD(steps=3)", str(run))
    expected = PGD(Threat("linf", 0.1), steps=3)(load(run).double(), x, y)
    assert torch.equal(attack(net, x, y), expected)
    with pytest.raises(ValueError, match="neither a run folder nor module:function") as error:
        Transfer(Threat("linf", 0.1), source=str(tmp_path / "absent"))(net, x, y)
    assert "\n" not in str(error.value)


def test_a_function_is_a_source(tmp_path, monkeypatch, conv_net, batch):
    (tmp_path / "somewhere_else.py").write_text(
        "import torch\nfrom torch import nn\n\ndef build():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    x, y = batch(6)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        source = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double()
    got = Transfer(Threat("linf", 0.1), "PGD(steps=3)", "somewhere_else:build")(conv_net(), x, y)
    assert torch.equal(got, PGD(Threat("linf", 0.1), steps=3)(source, x, y))


def test_how_it_is_written_down(conv_net):
    threat = Threat("linf", 0.1)
    module, path = Transfer(threat, source=conv_net()), Transfer(threat, "APGD", "runs/mine")
    assert spell(module) == "Transfer(source=Sequential)"
    assert spell(path) == "Transfer(attack=APGD, source='runs/mine')"
    assert plain(module) == {"attack": "PGD(steps=40)", "source": "Sequential"}
    assert plain(path) == {"attack": "APGD", "source": "runs/mine"}
    names = ["Transfer PGD-40 (source Sequential)", "Transfer APGD-CE (source runs/mine)"]
    assert [label(module), label(path)] == names
