"""Attacks of other packages as attacks of ours: the contract is checked on what they return; and ours in their drivers.

The first half runs on a package that is written here, in the form of torchattacks; the second on those that are
installed, and skips with the reason for each that is not.
"""

import copy
import pickle
import random
import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from kit import stream
from torch import nn

from atent import Threat
from atent.attacks import ATTACKS, DDN, FMN, PGD, EoT
from atent.attacks.spec import label, parse, spell
from atent.cli import main
from atent.evaluate import evaluate
from atent.experiments.evaluation import evaluate_target
from atent.experiments.target import load_target
from atent.integrations import art, foolbox, packages, peers, torchattacks
from atent.threat import Radii

THREAT = Threat("linf", 0.1)


def linear(classes=3, features=16):
    """A linear network, whose smallest adversarial change is known, and inputs far from the walls of the box."""
    rng = stream(3)
    model = nn.Sequential(nn.Flatten(), nn.Linear(features, classes))
    with torch.no_grad():
        model[1].weight.copy_(torch.randn(classes, features, generator=rng))
        model[1].bias.copy_(-0.5 * model[1].weight.sum(1))
    x = 0.4 + 0.2 * torch.rand(24, 1, 4, 4, generator=rng)
    return model.eval(), x, model(x).argmax(1)


# ---- a package of our own ----------------------------------------------------------------------------------


def package():
    module, base = ModuleType("torchattacks"), ModuleType("torchattacks.attack")

    class Attack:
        def __init__(self, name, model):
            self.model, self.device = model, None

        def set_device(self, device):
            self.device = device

        def __call__(self, images, labels):
            return self.forward(images, labels)

    class Step(Attack):
        def __init__(self, model, eps=8 / 255, alpha=0.5, steps=2, mode="in", norm="Linf", seed=0):
            super().__init__("Step", model)
            self.eps, self.alpha, self.steps, self.mode, self.norm = eps, alpha, steps, mode, norm

        def forward(self, x, y):
            assert self.model.training is False
            x.requires_grad_()
            (grad,) = torch.autograd.grad(nn.functional.cross_entropy(self.model(x), y), x)
            far = {"in": self.eps, "out": 2 * self.eps, "odd": self.eps}[self.mode]
            step = far * grad.sign()
            if self.mode == "odd":  # one beyond eps, one not a number, one outside the box
                step[0] *= 2
                step[1] = float("nan")
                step[2] = 2.0
            return (x + step).detach().clamp(0, 3 if self.mode == "odd" else 1)

    class Noise(Attack):
        def __init__(self, model, eps=0.1, std=1.0):
            super().__init__("Noise", model)
            self.eps = eps

        def forward(self, x, y):
            drawn = np.random.rand() + random.random() + torch.rand(x.shape)  # noqa: NPY002
            return (x + self.eps * (drawn / 1.5 - 1)).clamp(0, 1)

    class Broken(Attack):
        def __init__(self, model, eps=0.1):
            raise KeyError("nothing here")

    class Smallest(Attack):
        def __init__(self, model, steps=3):
            super().__init__("Smallest", model)

        def forward(self, x, y):
            print("chatter")
            return x + torch.linspace(0, 0.4, len(x)).view(-1, 1, 1, 1)

    class Greedy(Attack):
        def __init__(self, model, eps=0.1, steps=1):
            super().__init__("Greedy", model)

        def forward(self, x, y):
            for _ in range(9):
                self.model(x)
            return x

    base.Attack = Attack
    module.attack = base
    for kind in (Step, Noise, Broken, Smallest, Greedy):
        setattr(module, kind.__name__, kind)
    return {"torchattacks": module, "torchattacks.attack": base}


@pytest.fixture
def made(monkeypatch):
    for name, module in package().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(peers, "found", lambda name: ("1.2", ""))
    peers.find.cache_clear()
    yield
    peers.find.cache_clear()


def test_an_attack_of_a_package_is_an_attack(made):
    """Its arguments are fields, the threat gives norm and eps, and its text makes it again."""
    text = "torchattacks:Step(steps=3, alpha=0.25)"
    attack = peers.attack(text, THREAT)
    assert (attack.steps, attack.alpha, attack.mode, attack.threat) == (3, 0.25, "in", THREAT)
    assert spell(attack) == "torchattacks:Step(alpha=0.25, steps=3)"
    assert parse(spell(attack), THREAT, ATTACKS) == attack
    assert pickle.loads(pickle.dumps(attack)) == attack == copy.deepcopy(attack)
    assert label(attack) == "torchattacks:Step-3 (alpha 0.25)"
    assert parse("torchattacks:Step(eps=0.2)", THREAT, ATTACKS).threat.eps == 0.2
    assert peers.attack("torchattacks:Step(norm=l2, eps=1)").threat == Threat("l2", 1.0)
    assert attack.passes < peers.attack("torchattacks:Step(steps=300)", THREAT).passes
    assert "torchattacks:Step" not in ATTACKS


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("torchattacks:Stepp", "did you mean 'Step'"),
        ("torchattacks:Step(stepz=1)", "did you mean 'steps'"),
        ("torchattacks:Step(mode=1)", "mode must be a string"),
        ("torchattacks:Step(norm=l1, eps=1)", "has no form for l1"),
        ("torchattacks:Step(eps=inf)", "needs a finite eps"),
        ("pyautoattack:apgd", "known: standard, plus"),
    ],
)
def test_what_a_package_does_not_have_is_one_line(made, text, said):
    with pytest.raises(ValueError, match=r"torchattacks|pyautoattack|unknown") as error:
        peers.attack(text, THREAT)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_what_it_returns_is_checked(made, capsys):
    """Three of the results are no inputs that the adversary may show: they do not count, and one line says so."""
    model, x, y = linear()
    whole = peers.attack("torchattacks:Step", THREAT).run(model, x, y)
    assert whole.success.float().mean() > 0.5
    assert torch.equal(whole.success, model(whole.x_adv).argmax(1) != y)
    odd = peers.attack("torchattacks:Step(mode=odd)", THREAT)
    out = odd.run(model, x, y)
    assert THREAT.contains(out.x_adv, x).all()
    assert torch.equal(out.x_adv[:3], x[:3])
    assert torch.equal(out.x_adv[3:], whole.x_adv[3:])
    assert not out.success[:3].any()
    assert torch.equal(out.success[3:], whole.success[3:])
    # One look to check the logits, one forward and backward of the package.
    assert (int(out.forwards[0]), int(out.backwards[0])) == (3, 1)
    lines = capsys.readouterr().err.splitlines()
    assert [line for line in lines if "3 of 24 results are outside linf 0.1" in line] == lines
    assert len(lines) == 1


def test_an_evaluation_counts_what_does_not_count(made, capsys):
    """Over all batches, in the file; on stderr there is one line."""
    model, x, y = linear()
    found = evaluate(model, x, y, [peers.attack("torchattacks:Step(mode=out)", THREAT)], batch=10)
    (result,) = found.attacks.values()
    assert result["attack"] == "torchattacks:Step(mode=out)"
    assert result["robust"]["value"] == 1.0
    assert result["remarks"] == [
        "run by torchattacks 1.2", "24 of 24 results are outside linf 0.1 or the box, and do not count",
    ]  # fmt: skip
    assert capsys.readouterr().err.count("results are outside") == 1


def test_the_estimate_of_its_passes_is_not_checked(made, capsys):
    """Before: the user was asked to correct the number of passes of the package's attack."""
    model, x, y = linear()
    (result,) = evaluate(model, x, y, [peers.attack("torchattacks:Greedy", THREAT)]).attacks.values()
    assert result["forwards"] > peers.attack("torchattacks:Greedy", THREAT).passes * len(x)
    assert capsys.readouterr().err == ""


def test_a_smallest_change_counts_within_eps(made, capsys):
    """Without a radius of its own an attack looks for the smallest change; what it prints is not printed."""
    model, x, y = linear()
    out = peers.attack("torchattacks:Smallest", THREAT).run(model, x, y)
    assert peers.attack("torchattacks:Smallest", THREAT).minimum_norm
    shift = torch.linspace(0, 0.4, len(x))
    assert torch.equal(out.norm > 0, (shift > 0) & (shift <= 0.1))
    free = peers.attack("torchattacks:Smallest", Threat("linf", "inf"))
    # The largest shift leads to at most 1, within rounding of the sum.
    assert (free.run(model, x, y).norm - shift).abs().max() < 1e-6
    assert capsys.readouterr() == ("", "")


def test_random_numbers_are_those_of_the_seed_and_the_batch(made):
    model, x, y = linear()
    noise = peers.attack("torchattacks:Noise", THREAT)
    torch.manual_seed(5)
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    one = noise(model, x, y, seed=1)
    assert torch.equal(one, noise(model, x, y, seed=1))
    assert not torch.equal(one, noise(model, x, y, seed=2))
    assert not torch.equal(one, noise(model, x, y, seed=1, ids=torch.arange(24) + 7))
    # Sample 10 is in another batch, and has other random numbers.
    assert not torch.equal(one[10:], noise(model, x[10:], y[10:], seed=1, ids=torch.arange(10, 24)))
    assert torch.equal(noise(model, x, y, rng=stream()), noise(model, x, y, rng=stream()))
    after = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()  # noqa: NPY002
    assert before[:2] == after[:2]
    assert torch.equal(before[2], after[2])


def test_what_cannot_be_done_is_one_line(made):
    model, x, y = linear()
    step = "torchattacks:Step"

    def refused(match, call):
        with pytest.raises(ValueError, match=match) as error:
            call()
        assert "\n" not in str(error.value)

    refused("takes one eps", lambda: peers.find(step)(Threat("linf", Radii([0.1] * 24))))
    refused(r"takes inputs in \[0, 1\]", lambda: peers.find(step)(Threat("linf", 0.1, box=(-1, 1))))
    refused("no callback", lambda: peers.attack(step, THREAT)(model, x, y, callback=print))
    refused("no averaged gradients", lambda: EoT(THREAT, attack=step)(model, x, y))
    refused("takes no targets", lambda: peers.attack(step, THREAT)(model, x, y, targeted=True))
    refused("torchattacks:Broken failed: KeyError", lambda: peers.attack("torchattacks:Broken", THREAT)(model, x, y))
    assert torch.equal(peers.attack(step, Threat("linf", 0.0))(model, x, y), x)


def test_a_command_takes_them(made, tmp_path, monkeypatch):
    """The file of the evaluation names the attack, the package and its version."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine_too.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef net():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))\n"
    )
    ask = ["--data", "digits", "--norm", "linf", "--eps", "0.1", "--limit", "50", "--quiet"]
    assert main(["evaluate", "mine_too:net", *ask, "--attacks", "torchattacks:Step(steps=3)", "FGSM"]) == 0
    target = load_target("mine_too:net", data="digits", norm="linf", eps=0.1, limit=50, attacks=["torchattacks:Step"])
    found = evaluate_target(target, progress=False).to_json()
    assert found["attacks"]["torchattacks:Step-2"]["remarks"] == ["run by torchattacks 1.2"]


def test_a_package_that_is_missing_is_one_line_with_what_to_do(monkeypatch, capsys):
    missing = packages.Package("no-such-distribution", "no_such_module", "pip install 'atent[peers]'")
    for name in packages.PACKAGES:
        monkeypatch.setitem(packages.PACKAGES, name, missing)
    packages.found.cache_clear()
    peers.find.cache_clear()
    ours = PGD(THREAT)
    model, _, _ = linear()
    try:
        for call in (
            lambda: peers.attack("foolbox:LinfPGD", THREAT), lambda: foolbox.attack(ours),
            lambda: torchattacks.attack(model, ours), lambda: art.attack(None, ours),
        ):  # fmt: skip
            with pytest.raises(ValueError, match=r"not installed: pip install 'atent\[peers\]'") as error:
                call()
            assert "\n" not in str(error.value)
    finally:
        packages.found.cache_clear()
        peers.find.cache_clear()


# ---- the packages that are installed -----------------------------------------------------------------------


def needs(package):
    version, reason = packages.found(package)
    if version is None:
        pytest.skip(f"{package}: {reason}")


def exact(model, x, y):
    """The smallest linf change that fools a linear network, where no wall of the box is near."""
    w, b = model[1].weight, model[1].bias
    logits = x.flatten(1) @ w.T + b
    gap = logits.gather(1, y[:, None]) - logits
    length = (w[y][:, None] - w[None]).abs().sum(2)
    return torch.where(torch.arange(len(w)) == y[:, None], torch.inf, gap / length).amin(1).detach()


LINF = [
    "foolbox:LinfPGD(steps=20, rel_stepsize=0.2)", "foolbox:LinfDeepFoolAttack", "foolbox:LInfFMNAttack(steps=100)",
    "torchattacks:PGD(steps=20, alpha=0.02)", "torchattacks:APGD", "torchattacks:AutoAttack",
    "art:ProjectedGradientDescent(max_iter=20, eps_step=0.02)", "art:AutoProjectedGradientDescent(max_iter=20)",
    "pyautoattack:apgd_ce", "pyautoattack:apgd_t", "pyautoattack:fab", "pyautoattack:square", "pyautoattack:standard",
    "adv_lib:pgd_linf(steps=100)", "adv_lib:fmn(steps=100)",
]  # fmt: skip


@pytest.mark.parametrize("text", LINF)
def test_they_find_what_is_known_of_a_linear_network(text):
    """Each attack fools nearly all samples whose distance is clearly below eps (by random search most), and none of
    those clearly above it."""
    needs(text.partition(":")[0])
    # The ratio of logits with targets takes four classes or more; with few, the cross-entropy climbs to the nearest.
    several = text in ("torchattacks:AutoAttack", "pyautoattack:apgd_t", "pyautoattack:standard")
    model, x, y = linear(classes=10 if several else 3)
    distance = exact(model, x, y)
    threat = Threat("linf", float(distance.median()))
    attack = peers.attack(text, threat)
    state = copy.deepcopy(model.state_dict())
    out = attack.run(model, x, y)
    assert threat.contains(out.x_adv, x).all()
    assert torch.equal(out.success, model(out.x_adv).argmax(1) != y)
    assert not out.success[distance > threat.eps * 1.001].any()
    near = distance < threat.eps * 0.9
    assert out.success[near].double().mean() >= (0.5 if "square" in text else 0.9)
    assert out.forwards.min() > 1
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    again = attack.run(model, x, y)
    assert torch.equal(out.x_adv, again.x_adv)
    assert any("run by" in line and packages.found(attack.package)[0] in line for line in attack.remarks(10))
    assert pickle.loads(pickle.dumps(attack)) == attack


@pytest.mark.parametrize(
    "text",
    ["foolbox:L2PGD", "foolbox:DDNAttack(steps=50)", "torchattacks:PGDL2(alpha=0.1)", "torchattacks:CW(steps=20)",
     "art:ProjectedGradientDescent(eps_step=0.1)", "pyautoattack:apgd_ce", "adv_lib:ddn(steps=50)"],
)  # fmt: skip
def test_they_find_some_in_l2(text):
    needs(text.partition(":")[0])
    model, x, y = linear()
    threat = Threat("l2", 0.5)
    out = peers.attack(text, threat).run(model, x, y)
    assert out.success.any()
    assert threat.contains(out.x_adv, x).all()


def test_float64_and_flat_inputs():
    needs("foolbox")
    model, x, y = linear()
    x = x.flatten(1).double()
    out = peers.attack("foolbox:LinfPGD(steps=3)", THREAT).run(model.double(), x, y)
    assert out.x_adv.dtype == torch.float64
    assert THREAT.contains(out.x_adv, x).all()


# ---- ours in their drivers ---------------------------------------------------------------------------------


def test_ours_in_foolbox():
    """foolbox's driver clips, measures and counts what ours returns: the same points, at several epsilons."""
    needs("foolbox")
    import foolbox as fb

    model, x, y = linear()
    ours = PGD(THREAT, steps=5)
    driven = fb.PyTorchModel(model, bounds=(0, 1))
    raw, clipped, success = foolbox.attack(ours)(driven, x, y, epsilons=[0.05, 0.1])
    for i, eps in enumerate((0.05, 0.1)):
        own = PGD(Threat("linf", eps), steps=5).run(model, x, y)
        assert torch.equal(raw[i], own.x_adv)
        # foolbox adds the clipped difference to x again.
        assert (clipped[i] - own.x_adv).abs().max() < 1e-7
        assert torch.equal(success[i], own.success)
    target = fb.criteria.TargetedMisclassification((y + 1) % 3)
    hit = foolbox.attack(ours)(driven, x, target, epsilons=0.3)[2]
    assert torch.equal(hit, PGD(Threat("linf", 0.3), steps=5).run(model, x, (y + 1) % 3, targeted=True).success)
    smallest = DDN(Threat("l2", "inf"), steps=20)
    points, _, found = foolbox.attack(smallest)(driven, x, y, epsilons=None)
    assert torch.equal(points, smallest(model, x, y))
    assert found.all()
    repeated = foolbox.attack(FMN(Threat("l2", "inf"), steps=5)).repeat(2)
    assert repeated(driven, x, y, epsilons=[10.0])[2].shape == (1, 24)
    with pytest.raises(ValueError, match="takes labels or target classes"):
        foolbox.attack(ours)(driven, x, _Odd(fb), epsilons=0.1)
    with pytest.raises(ValueError, match="foolbox measures no l0 of groups"):
        foolbox.attack(PGD(Threat("l0", 2, group="pixel")))


def _Odd(fb):
    class Odd(fb.criteria.Criterion):
        def __repr__(self):
            return "Odd()"

        def __call__(self, perturbed, outputs):
            return outputs

    return Odd()


def test_ours_in_torchattacks():
    needs("torchattacks")
    model, x, y = linear()
    ours = PGD(THREAT, steps=5)
    attack = torchattacks.attack(model, ours)
    assert torch.equal(attack(x, y), ours(model, x, y))
    attack.set_mode_targeted_by_label(quiet=True)
    assert torch.equal(attack(x, (y + 1) % 3), ours(model, x, (y + 1) % 3, targeted=True))
    # Behind a normalisation the ball is in pixel units: the normalised points differ by eps over the deviation.
    normalised = torchattacks.attack(model, ours)
    normalised.set_normalization_used(mean=[0.5], std=[0.25])
    z = (x - 0.5) / 0.25
    moved = (normalised(z, model(z).argmax(1)) - z).abs().max()
    assert abs(float(moved) - 0.1 / 0.25) < 1e-6
    untargeted = torchattacks.attack(model, parse("DeepFool", THREAT, ATTACKS))
    with pytest.raises(ValueError, match="not supported"):
        untargeted.set_mode_targeted_by_label()


def test_ours_in_art():
    needs("art")
    from art.estimators.classification import PyTorchClassifier

    model, x, y = linear()
    ours = PGD(THREAT, steps=5)

    def classifier(**given):
        shape = {"model": model, "loss": nn.CrossEntropyLoss(), "input_shape": (1, 4, 4), "nb_classes": 3}
        return PyTorchClassifier(**shape | {"clip_values": (0, 1)} | given)

    attack = art.attack(classifier(), ours, batch_size=10)
    own = ours(model, x, y).numpy()
    # Batches of ten: matrix products round otherwise than those of 24, and a sign of a gradient near 0 may turn.
    made = attack.generate(x.numpy(), y.numpy())
    assert (np.abs(made - own) < 1e-6).mean() > 0.99
    assert np.array_equal(made, attack.generate(x.numpy(), np.eye(3)[y.numpy()]))
    assert np.array_equal(made, attack.generate(x.numpy()))
    attack.set_params(seed=3)
    assert not np.array_equal(made, attack.generate(x.numpy()))
    for given, said in (
        ({"preprocessing": (0.5, 0.5)}, "put it inside"),
        ({"clip_values": (0, 255)}, "are not the threat's box"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            art.attack(classifier(**given), ours)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="PyTorchClassifier is needed"):
        art.attack(model, ours)
