"""The public suites: what breaks a promise is named in one line, and what keeps them passes."""

import dataclasses
import doctest
import functools
from dataclasses import dataclass
from importlib import import_module

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from atent import Threat
from atent.attacks import DDN, FGSM, PGD, Attack
from atent.certify import ABSTAIN, CERTIFIERS, Smoothed, bounds, verified
from atent.methods import PGDAT, Method
from atent.testing import ContractError, check_attack, check_certifier, check_method, networks

LINF = Threat("linf", 0.1)


def broken(check, *given, promise, parts=(), **keywords):
    """The one line of a check that fails, on the promise whose text begins so."""
    with pytest.raises(ContractError) as error:
        check(*given, **keywords)
    line = str(error.value)
    assert "\n" not in line
    assert error.value.promise.startswith(promise), line
    assert error.value.promise in line
    assert all(part in line for part in (type(given[0]).__name__[:4], *parts)), line


# ---- attacks


@dataclass(frozen=True)
class Corner(Attack):
    """A random corner of the ball; it keeps the contract, and the wrong ones change one thing in it."""

    threat: Threat

    @property
    def passes(self):
        return 3

    def direction(self, oracle, x, streams):
        return streams.normal(x, use="start").sign()

    def length(self):
        return self.threat.eps

    def inside(self, x_adv, x):
        return self.threat.project(x_adv, x)

    def search(self, oracle, x, y, streams):
        gradient, _, _ = oracle.gradient(x, y, lambda z, y: F.cross_entropy(z, y, reduction="none"))
        noise = self.direction(oracle, x, streams)
        return self.inside(x + self.length() * torch.where(gradient == 0, noise, noise.abs() * gradient.sign()), x)


class LeavesBall(Corner):
    def length(self):
        return 2 * self.threat.eps

    def inside(self, x_adv, x):
        return self.threat.clamp(x_adv)


class LeavesBox(Corner):
    def inside(self, x_adv, x):
        return x_adv


class LeavesEval(Corner):
    def run(self, model, *given, **keywords):
        model.eval()
        return super().run(model, *given, **keywords)


class MovesBuffers(Corner):
    def run(self, model, *given, **keywords):
        out = super().run(model, *given, **keywords)
        for b in model.buffers():
            b.add_(1)
        return out


class SwallowsExceptions(Corner):
    def run(self, model, x, y, **keywords):
        try:
            return super().run(model, x, y, **keywords)
        except ArithmeticError:
            return None


class StaysEvalAfterAnException(Corner):
    def run(self, model, x, y, **keywords):
        modes = [m.training for m in model.modules()]
        model.train()
        out = super().run(model, x, y, **keywords)
        for m, training in zip(model.modules(), modes):
            m.training = training
        return out


class GlobalGenerator(Corner):
    def direction(self, oracle, x, streams):
        return torch.from_numpy(np.random.randn(*x.shape)).to(x).sign()  # noqa: NPY002


class OwnGenerator(Corner):
    def direction(self, oracle, x, streams):
        return torch.from_numpy(np.random.default_rng().standard_normal(x.shape)).to(x).sign()


class MovesGlobalGenerator(Corner):
    def run(self, *given, **keywords):
        torch.rand(1)
        return super().run(*given, **keywords)


class IgnoresIds(Corner):
    def direction(self, oracle, x, streams):
        return torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)

    def length(self):
        return 0.5 * self.threat.eps


class WrongSuccess(Corner):
    def run(self, *given, **keywords):
        out = super().run(*given, **keywords)
        return out._replace(success=torch.ones_like(out.success))


class WrongNorm(Corner):
    def run(self, *given, **keywords):
        out = super().run(*given, **keywords)
        return out._replace(norm=0.5 * out.norm)


class HidesPasses(Corner):
    def run(self, *given, **keywords):
        out = super().run(*given, **keywords)
        return out._replace(forwards=torch.ones_like(out.forwards))


class ChangesInputs(Corner):
    def run(self, model, x, y, **keywords):
        out = super().run(model, x, y, **keywords)
        x.add_(1e-3)
        return out


class TakesAnything(Corner):
    def run(self, model, x, y, **keywords):
        return super().run(model, x.nan_to_num(), y, **keywords)

    def __call__(self, model, x, y, **keywords):
        return super().__call__(model, x.nan_to_num(), y, **keywords)


class MovesForNothing(Corner):
    minimum_norm = True


class FindsAndKeepsMoving(DDN):
    def bounded(self, oracle, x, y, streams):
        return self.threat.project(x + 1e-3, x)


@dataclass
class NotFrozen:
    threat: Threat


WRONG_ATTACKS = [
    (LeavesBall, "the result is within the radius", ["linf distance 0.2", "allowed: at most 0.1"]),
    (LeavesBox, "the result is in the box", ["allowed: [0, 1]"]),
    (LeavesEval, "modes, .grad, buffers and global random states are restored on success", ["in eval mode"]),
    (MovesBuffers, "modes, .grad, buffers and global random states are restored on success", ["another buffer of"]),
    (SwallowsExceptions, "modes, .grad, buffers and global random states are restored where", ["network raised"]),
    (StaysEvalAfterAnException, "modes, .grad, buffers and global random states are restored where", ["train mode"]),
    (OwnGenerator, "the same seed and ids give the same bits", []),
    # The seed of the call is that of the global generators too.
    (GlobalGenerator, "batch size, order and shard do not matter", ["off by"]),
    (MovesGlobalGenerator, "modes, .grad, buffers and global random states are restored", ["torch"]),
    (IgnoresIds, "batch size, order and shard do not matter", ["off by"]),
    (WrongSuccess, "success is recomputed", ["success True of sample"]),
    (WrongNorm, "norm is the distance", ["off by"]),
    (HidesPasses, "passes are counted", ["forwards reported"]),
    (ChangesInputs, "x and y are not changed", ["another x"]),
    (TakesAnything, "invalid inputs, labels, ids, seeds and model outputs", ["a result for NaN"]),
    (MovesForNothing, "a minimum-norm attack returns a misclassified point", ["a change of sample"]),
]


@pytest.mark.parametrize(("kind", "promise", "parts"), WRONG_ATTACKS, ids=lambda v: getattr(v, "__name__", ""))
def test_a_wrong_attack_is_named_in_one_line(kind, promise, parts):
    # Sequences of one draw and one gradient: a radius at which some samples remain correctly classified.
    threat = Threat("linf", 0.02) if kind in (MovesForNothing, WrongSuccess) else LINF
    broken(check_attack, kind(threat), promise=promise, parts=parts)


def test_what_is_no_attack_is_named_in_one_line():
    broken(check_attack, NotFrozen(LINF), promise="it is a frozen dataclass")
    broken(check_attack, FindsAndKeepsMoving(Threat("l2", 0.3)), promise="a minimum-norm attack")


@pytest.mark.parametrize(
    "threat", [LINF, Threat("l2", 0.5), Threat("linf", 0.2, box=(-1, 1)), Threat("linf", 20.0, box=(0, 255))], ids=str
)
def test_a_right_attack_keeps_every_promise(threat):
    checked = check_attack(Corner(threat))
    assert len(checked) == len(set(checked)) > 20
    assert "passes are counted" in checked
    assert not any(text.startswith("a minimum-norm attack") for text in checked)
    assert any(text.startswith("a minimum-norm attack") for text in check_attack(DDN(Threat("l2", 0.5), steps=5)))


def test_the_users_own_network_and_batch():
    g = torch.Generator().manual_seed(2)
    model = nn.Linear(7, 3)
    with torch.no_grad():
        model.weight.copy_(torch.randn(3, 7, generator=g))
    x = torch.rand(5, 7, generator=g)
    y = model(x).argmax(1)
    before = {k: v.clone() for k, v in model.state_dict().items()}, x.clone(), y.clone()
    assert check_attack(PGD(LINF, steps=2), model=model, x=x, y=y)
    assert check_method(PGDAT(LINF, steps=2), model=model, x=x, y=y)
    assert networks.same(before, (model.state_dict(), x, y))
    assert model.weight.grad is None
    for given in ({"model": model}, {"x": x, "y": y}):
        with pytest.raises(ValueError, match="required together"):
            check_attack(FGSM(LINF), **given)
        with pytest.raises(ValueError, match="required together"):
            check_method(PGDAT(LINF), **given)
    with pytest.raises(ValueError, match="at least 4 samples, got 3"):
        check_attack(FGSM(LINF), model=model, x=x[:3], y=y[:3])
    with pytest.raises(ValueError, match="one eps for all samples"):
        check_attack(FGSM(Threat("linf", [0.1, 0.2])))


def test_the_global_generators_and_modes_stay():
    random_state = torch.get_rng_state()
    networks.network()
    assert torch.equal(torch.get_rng_state(), random_state)


# ---- methods


@dataclass(frozen=True)
class Noisy(Method):
    """Training on a random corner; it keeps the contract, and the wrong ones change one thing in it."""

    threat: Threat

    def adversary(self, model, x, y, *, rng, ids=None, progress=1.0, state=None):
        noise = torch.randn(x.shape, generator=rng, dtype=x.dtype, device=x.device).sign()
        return self.threat.project(x + progress * self.threat.eps * noise, x)

    def loss(self, model, x, y, aux, *, progress=1.0, state=None):
        logits = model(aux)
        return F.cross_entropy(logits, y), {"right": (logits.detach().argmax(1) == y).double().mean()}


class Overwrites(Noisy):
    def backward(self, model, x, y, *, rng, ids=None, progress=1.0, weight=1.0, state=None):
        for p in model.parameters():
            p.grad = None
        return super().backward(model, x, y, rng=rng, ids=ids, progress=progress, weight=weight, state=state)


class IgnoresWeight(Noisy):
    def backward(self, model, x, y, *, rng, ids=None, progress=1.0, weight=1.0, state=None):
        return super().backward(model, x, y, rng=rng, ids=ids, progress=progress, state=state)


class AdversaryInEval(Noisy):
    def adversary(self, model, x, y, **keywords):
        model.eval()
        return super().adversary(model, x, y, **keywords)

    def loss(self, model, x, y, aux, **keywords):
        model.train()
        return super().loss(model, x, y, aux, **keywords)


class EndsInEval(Noisy):
    def backward(self, model, *given, rng, ids=None, progress=1.0, weight=1.0, state=None):
        found = super().backward(model, *given, rng=rng, ids=ids, progress=progress, weight=weight, state=state)
        model.eval()
        return found


class AdversaryFillsGradients(Noisy):
    def adversary(self, model, x, y, **keywords):
        F.cross_entropy(model(x), y).backward()
        return super().adversary(model, x, y, **keywords)


class Remembers(Noisy):
    seen = [0]  # noqa: RUF012

    def loss(self, model, x, y, aux, *, progress=1.0, state=None):
        self.seen[0] += 1
        loss, metrics = super().loss(model, x, y, aux)
        return loss * (1 + 1e-3 * self.seen[0]), metrics


class OneStateForAll(Noisy):
    shared = torch.zeros(8)

    def init(self, n_train, shape, device):
        return {"mean": self.shared}


class FloatMetrics(Noisy):
    def loss(self, model, x, y, aux, *, progress=1.0, state=None):
        loss, metrics = super().loss(model, x, y, aux)
        return loss, {"right": float(metrics["right"])}


class Waits(Noisy):
    def adversary(self, model, x, y, **keywords):
        x_adv = super().adversary(model, x, y, **keywords)
        for _ in range(3):
            assert x_adv.amax().item() <= 1
        return x_adv


class GlobalNoise(Noisy):
    def adversary(self, model, x, y, **keywords):
        return self.threat.project(x + self.threat.eps * torch.randn_like(x).sign(), x)


class FailsAtTheStart(Noisy):
    def loss(self, model, x, y, aux, *, progress=1.0, state=None):
        loss, metrics = super().loss(model, x, y, aux)
        return loss / progress, metrics


class NoState(Noisy):
    def adversary(self, model, x, y, *, rng):
        return x


WRONG_METHODS = [
    (Overwrites, "backward adds weight times the gradient", ["as if .grad had been overwritten"]),
    (IgnoresWeight, "backward adds weight times the gradient", ["at weight 0.25"]),
    (AdversaryInEval, "adversary leaves the network", ["in eval mode"]),
    (EndsInEval, "backward leaves modes", ["in eval mode after backward"]),
    (AdversaryFillsGradients, "backward adds weight times", ["off by"]),
    (Remembers, "", []),
    (OneStateForAll, "all that a method remembers is in the state", ["one tensor 'mean' in two states"]),
    (FloatMetrics, "metrics are tensors on the device", ["right", "a float"]),
    (Waits, "backward waits for the device once at most", ["_local_scalar_dense"]),
    (GlobalNoise, "the same state of the generator", ["random numbers from rng only"]),
    (FailsAtTheStart, "progress from 0 to 1 is accepted", ["not finite at progress 0"]),
    (NoState, "its functions take the arguments of the contract", ["adversary without ids"]),
]


@pytest.mark.parametrize(("kind", "promise", "parts"), WRONG_METHODS, ids=lambda v: getattr(v, "__name__", ""))
def test_a_wrong_method_is_named_in_one_line(kind, promise, parts):
    broken(check_method, kind(Threat("linf", 0.05)), promise=promise, parts=parts)


def test_a_right_method_keeps_every_promise():
    checked = check_method(Noisy(LINF))
    assert len(checked) == len(set(checked)) > 10
    assert "AWP wraps it and restores the weights" in checked


# ---- certifiers


@dataclass(frozen=True)
class Sure(Smoothed):
    """Never abstains, and says a radius that its samples do not show."""

    def certify(self, x, n0=100, n=1000, alpha=0.001, *, seed=0, ids=None):
        counts = self.votes(x, n, seed=seed, ids=ids)
        return counts.argmax(1), torch.full((len(x),), 0.4 * self.sigma, dtype=torch.float64)


class AbstainsWithARadius(Smoothed):
    def certify(self, x, *given, **keywords):
        classes, radii = super().certify(x, *given, **keywords)
        return torch.full_like(classes, ABSTAIN), radii + 0.1


class Boasts(Smoothed):
    def certify(self, *given, **keywords):
        classes, radii = super().certify(*given, **keywords)
        return classes, 2 * radii


class OneNoiseForAll(Smoothed):
    def certify(self, x, *given, seed=0, ids=None):
        return super().certify(x, *given, seed=seed, ids=torch.arange(len(x)))


@pytest.mark.parametrize(
    ("kind", "promise"),
    [
        (Sure, "it abstains"),
        (AbstainsWithARadius, "a radius is never negative, and 0 where the class is ABSTAIN"),
        (Boasts, "no radius exceeds"),
        (OneNoiseForAll, "batch size, order and shard"),
    ],
)
def test_a_wrong_smoothed_classifier_is_named_in_one_line(kind, promise):
    broken(check_certifier, kind(networks.network(), 0.5), promise=promise, n=200)


def tight(model, x, threat):
    """Bounds for a fifth of the radius."""
    return bounds(model, x, threat.scaled(0.2), "crown")


def crossed(model, x, threat):
    lower, upper = bounds(model, x, threat, "ibp")
    return upper, lower


def half(model, x, threat):
    """Intervals for half of the radius, loose enough to contain the logits of a deep network in all of it."""
    return bounds(model, x, threat.scaled(0.5), "ibp")


def training(model, x, threat):
    found = bounds(model.eval(), x, threat, "ibp")
    model.train()
    return found


def frozen(model, x, threat):
    return bounds(model.requires_grad_(False), x, threat, "ibp")


def sure(model, x, y, threat):
    return model(x).argmax(1) == y


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_loose_bounds_of_a_smaller_ball_are_named(norm):
    """Before: the bounds of half of the radius passed, as those of a network with hidden layers are loose."""
    with pytest.raises(ContractError, match=r"^half: the range of a linear network .*: found a logit of sample"):
        check_certifier(half, threat=Threat(norm, 0.05))


@pytest.mark.parametrize(("certifier", "text"), [(training, "train mode"), (frozen, "requires_grad")])
def test_a_state_that_a_certifier_leaves_is_named(certifier, text):
    """Before: the snapshot was taken after earlier calls, which had left that state already."""
    with pytest.raises(ContractError, match=f"are restored: found .*{text}"):
        check_certifier(certifier)


def test_wrong_bounds_are_named_in_one_line():
    with pytest.raises(ContractError, match=r"^tight: a sampled point's logits lie .*: found a logit of sample"):
        check_certifier(tight)
    with pytest.raises(ContractError, match=r"^crossed: it returns"):
        check_certifier(crossed)
    with pytest.raises(ContractError, match="verified is never True where an attack finds an example: found True"):
        check_certifier(bounds, verified=sure, threat=Threat("linf", 0.1))
    with pytest.raises(ValueError, match="a certifier has a method certify"):
        check_certifier(3)
    with pytest.raises(ValueError, match="got the class Smoothed"):
        check_certifier(Smoothed)


@pytest.mark.parametrize("name", [name for name in CERTIFIERS if name != "smoothing"])
@pytest.mark.parametrize("threat", [Threat("linf", 0.05), Threat("l2", 0.3)], ids=str)
def test_the_built_in_bounds_keep_every_promise(name, threat):
    checked = check_certifier(
        CERTIFIERS[name], verified=functools.partial(verified, method=name), threat=threat
    )  # fmt: skip
    assert len(checked) == 7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_smoothing_keeps_every_promise(dtype):
    checked = check_certifier(CERTIFIERS["smoothing"](networks.network().to(dtype), 0.25), n=500)
    assert len(checked) == 8


def test_a_copy_with_another_threat_is_checked_too():
    attack = FGSM(LINF)
    assert check_attack(dataclasses.replace(attack, threat=Threat("l2", 0.5))) == check_attack(attack)


@pytest.mark.parametrize("name", ["attacks", "methods", "certifiers"])
def test_the_examples_of_the_docstrings_run(name):
    failed, tried = doctest.testmod(import_module(f"atent.testing.{name}"))
    assert tried
    assert not failed


# ---- what is no attack or method


@pytest.mark.parametrize(
    ("check", "given", "got"),
    [
        (check_attack, PGD, "got the class PGD"),
        (check_attack, "PGD", "got a str"),
        (check_method, PGDAT, "got the class PGDAT"),
        (check_method, PGD(Threat("linf", 0.1)), "got a PGD"),
    ],
)
def test_what_is_no_instance_of_its_kind_is_one_line(check, given, got):
    with pytest.raises(ValueError, match=got):
        check(given)
