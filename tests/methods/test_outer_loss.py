"""What ATENT descends beside its defaults: the divergence from the clean answer, smoothed labels, and schedules."""

import copy
import dataclasses

import pytest
import torch
from commands import train_job
from kit import ROUNDING, batch, distance, gradient, network, stream
from torch.nn import functional as F

from atent import Threat
from atent.experiments.recipes import job, read_recipe
from atent.losses import cross_entropy
from atent.methods import ATENT, METHODS, PGDAT, TRADES, Standard
from atent.methods.base import ramp, scheduled

pytestmark = pytest.mark.usefixtures("seeded")


def divergence(answer, reference):
    p = F.softmax(reference, 1)
    return (p * (p.log() - F.softmax(answer, 1).log())).sum(1)


def smoothed(logits, y, s):
    """Cross-entropy with a target vector, written out."""
    target = torch.full_like(logits, s / logits.shape[1])
    target[torch.arange(len(y)), y] += 1 - s
    return -(target * F.log_softmax(logits, 1)).sum(1)


# -- outer_loss = "kl"


@pytest.mark.parametrize("batchnorm", [False, True], ids=["plain", "bn"])
@pytest.mark.parametrize("given", [{}, {"dropout": "fresh"}, {"mode": "eval"}, {"burn_in": 1, "chains": 2}], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_kl_equals_a_slow_transcription(batchnorm, given, smoothing):
    """The free energy of the divergence, with all graphs alive, and TRADES' sum around it."""
    model, (x, y) = network(batchnorm), batch()
    theirs = copy.deepcopy(model)
    method = ATENT(
        Threat("l2", 1.0), 3, variant="published", noise=0.1, gamma=2.0, outer_loss="kl", beta=4.0,
        label_smoothing=smoothing, **given,
    )  # fmt: skip
    metrics = method.backward(model, x, y, rng=stream(), weight=0.5)
    chains = given.get("chains", 1)
    chain, rng = method.chain(), stream()
    sampled = copy.deepcopy(theirs).train(given.get("mode") != "eval")
    held = sampled(x).detach()
    many = torch.cat([x] * chains)
    u = torch.randn(many.shape, generator=rng, dtype=x.dtype)
    z, iterates = many + u / u.flatten(1).norm(dim=1).view(-1, 1, 1, 1), []
    for _ in range(3):
        z = z.detach().requires_grad_()
        (g,) = torch.autograd.grad(divergence(sampled(z), torch.cat([held] * chains)).sum(), z)
        drawn = torch.randn(many.shape, generator=rng, dtype=x.dtype)
        z = z + chain.step_size * (g + 2.0 * (many - z)) + 0.1 * (2 * chain.step_size) ** 0.5 * drawn
        z = z.detach().clamp(0, 1)
        iterates.append(z)
    clean = theirs(x)
    gaps = [divergence(theirs(z), torch.cat([clean] * chains)).mean() for z in iterates]
    mu = sum(gaps[1:]) / 2 if "burn_in" in given else 0.9 * gaps[2] + 0.09 * gaps[1] + 0.009 * gaps[0]
    fit = smoothed(clean, y, smoothing).mean()
    (0.5 * (fit + 4.0 * mu)).backward()
    assert distance(gradient(model), gradient(theirs)) <= 1e-9
    for name, value in {"loss": fit + 4.0 * mu, "clean_loss": fit, "robust_loss": mu}.items():
        assert float(metrics[name]) == pytest.approx(value.item(), rel=1e-9), name
    assert float(metrics["clean"]) == float((clean.argmax(1) == y).double().mean())


@pytest.mark.parametrize("objective", ["free-energy", "data-entropy"])
@pytest.mark.parametrize("mode", ["train", "eval"])
def test_kl_equals_adversary_and_loss(objective, mode):
    given = {"objective": objective, "mode": mode, "variant": "published", "noise": 0.2, "gamma": 2.0}
    ours, (x, y) = network(True), batch()
    theirs = copy.deepcopy(ours)
    method = ATENT(Threat("l2", 1.0), 4, outer_loss="kl", chains=2, **given)
    a = method.backward(ours, x, y, rng=stream())
    loss, metrics = method.loss(theirs, x, y, method.adversary(theirs, x, y, rng=stream()))
    loss.backward()
    assert distance(gradient(ours), gradient(theirs)) <= 1e-10
    assert float(a.pop("loss")) == pytest.approx(loss.item(), rel=ROUNDING)
    assert a.keys() == metrics.keys()
    for name in a:
        torch.testing.assert_close(a[name], metrics[name], rtol=1e-10, atol=ROUNDING)


def test_one_projected_step_of_kl_is_trades_at_that_point():
    """alpha 1 and one step: TRADES' loss at the last iterate, whoever found it."""
    ours, (x, y) = network(), batch()
    theirs, threat = copy.deepcopy(ours), Threat("linf", 0.1)
    method = ATENT(threat, 1, outer_loss="kl", alpha=1.0, beta=3.0)
    (last,) = method.adversary(ours, x, y, rng=stream())
    method.backward(ours, x, y, rng=stream())
    TRADES(threat, beta=3.0).descend(theirs, x, y, last)
    assert distance(gradient(ours), gradient(theirs)) <= ROUNDING


def test_kl_needs_a_start_that_has_a_gradient():
    with pytest.raises(ValueError, match="no gradient at the clean input: use a start other than 'zero'"):
        ATENT(Threat("l2", 1.0), outer_loss="kl", start="zero")
    ATENT(Threat("l2", 1.0), outer_loss="kl", start="zero", gradient="raw", noise=0.1)


# -- label smoothing


def test_smoothed_cross_entropy_is_that_of_the_spread_target():
    logits = torch.randn(6, 5, generator=stream(), dtype=torch.float64)
    y = torch.arange(6) % 5
    for s in (0.0, 0.1, 0.7):
        torch.testing.assert_close(cross_entropy(logits, y, s), smoothed(logits, y, s))


@pytest.mark.parametrize("cls", [Standard, PGDAT, TRADES, ATENT])
def test_smoothing_reaches_the_loss(cls):
    given = {} if cls is Standard else {"threat": Threat("l2", 0.8), "steps": 2}
    model, (x, y) = network(), batch()
    hard = cls(**given)
    soft = cls(**given, label_smoothing=0.3)
    aux = soft.adversary(model, x, y, rng=stream())
    loss, _ = soft.loss(model, x, y, aux)
    plain, _ = hard.loss(model, x, y, aux)
    at = {Standard: lambda: [(x, 1.0)], PGDAT: lambda: [(aux, 1.0)], TRADES: lambda: [(x, 1.0)],
          ATENT: lambda: [(aux[0], 0.09), (aux[1], 0.9)]}[cls]()  # fmt: skip
    moved = sum(c * (smoothed(model(z), y, 0.3) - smoothed(model(z), y, 0.0)).mean() for z, c in at)
    assert (loss - plain).item() == pytest.approx(moved.item(), rel=1e-9)
    # ATENT's chain climbs what is averaged; the others attack the label
    same = torch.equal(torch.stack(aux), torch.stack(hard.adversary(model, x, y, rng=stream()))) if cls is ATENT else (
        aux is None or torch.equal(aux, hard.adversary(model, x, y, rng=stream()))
    )  # fmt: skip
    assert same == (cls is not ATENT)
    for bad in (-0.1, 1.0, float("nan")):
        with pytest.raises(ValueError, match=r"label_smoothing must (lie in \[0, 1\)|be a finite number)"):
            cls(**given, label_smoothing=bad)


# -- schedules


def test_schedules_are_linear_and_arrive():
    assert [scheduled("gamma", "0.5..0.1", p) for p in (0.0, 0.5, 1.0)] == pytest.approx([0.5, 0.3, 0.1])
    assert [scheduled("gamma", "1..3@0.25", p) for p in (0.0, 0.125, 0.25, 1.0)] == [1.0, 2.0, 3.0, 3.0]
    assert scheduled("noise", 1e-3, 0.3) == 1e-3
    assert scheduled("noise", "1e-1..1e-3", 1.0) == pytest.approx(1e-3)
    assert [ramp(p, 0.2, 0.6) for p in (0.0, 0.2, 0.4, 0.6, 1.0)] == pytest.approx([0, 0, 0.5, 1, 1])


@pytest.mark.parametrize("name", ["gamma", "noise", "effective_noise", "temperature"])
def test_the_chain_follows_its_schedules(name):
    threat = Threat("l2", 1.0)
    method = ATENT(threat, variant="published", **{name: "0.4..0.2@0.5"})
    for progress, value in ((0.0, 0.4), (0.25, 0.3), (0.5, 0.2), (1.0, 0.2)):
        constant = ATENT(threat, variant="published", **{name: value}).chain()
        for field in dataclasses.fields(constant):
            found, wanted = (getattr(c, field.name) for c in (method.chain(progress), constant))
            assert found == (pytest.approx(wanted) if isinstance(wanted, float) else wanted), field.name


def test_a_schedule_reaches_backward():
    model, (x, y) = network(), batch()
    method = ATENT(Threat("l2", 1.0), 3, variant="published", gamma="0.5..2", noise="0.1..0.3", eps_warmup=0.3)
    for progress, gamma, noise in ((0.0, 0.5, 0.1), (1.0, 2.0, 0.3)):
        found = method.backward(model, x, y, rng=stream(), progress=progress)["distance"]
        constant = dataclasses.replace(method, gamma=gamma, noise=noise)
        expected = constant.backward(model, x, y, rng=stream(), progress=progress)["distance"]
        torch.testing.assert_close(found, expected, rtol=ROUNDING, atol=0)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gamma": "0.5"}, "gamma '0.5' is not a valid schedule: write a number, START..END"),
        ({"gamma": "0.5..x"}, "is not a valid schedule"),
        ({"gamma": "0.5..0.1@"}, "is not a valid schedule"),
        ({"noise": "0.5..0.1@0"}, "is not a valid schedule"),
        ({"noise": "0.5..0.1@1.5"}, "is not a valid schedule"),
        ({"noise": "-0.1..0.5"}, "noise must be at least 0, got -0.1"),
        ({"noise": "0.5..nan"}, "noise must be"),
        ({"gamma": "0.1..2.5"}, "an anchor term of weight 2.5 per step makes the chain diverge"),
        ({"temperature": "0.1..0.2", "noise": 0.1}, "exclude each other"),
    ],
    ids=str,
)
def test_bad_schedules_are_refused_in_one_line(given, said):
    with pytest.raises(ValueError, match=said) as error:
        ATENT(Threat("l2", 1.0), **given)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 200


def test_the_command_line_takes_them():
    words = "digits-l2-atent --method.gamma 0.5..0.1@0.3 --method.temperature 0.1 --method.outer_loss kl"
    made = train_job(*words.split())
    assert (made.method.gamma, made.method.temperature, made.method.outer_loss) == ("0.5..0.1@0.3", 0.1, "kl")
    tables = read_recipe("digits-l2-atent")
    tables["method"] |= {"gamma": "0.5..0.1", "label_smoothing": 0.1}
    assert job(tables, None).method.gamma == "0.5..0.1"


def test_every_method_with_smoothing_names_it_alike():
    having = {name for name, cls in METHODS.items() if "label_smoothing" in {f.name for f in dataclasses.fields(cls)}}
    assert {"Standard", "PGDAT", "TRADES", "ATENT"} <= having
