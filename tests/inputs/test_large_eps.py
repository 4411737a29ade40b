"""An eps that covers the whole box is refused where it is used, in one line that guesses what was meant."""

import copy
import dataclasses
import math
from functools import partial

import pytest
import torch
from commands import compare_jobs, given, train_job
from kit import threat_in
from torch import nn

from atent.attacks import ALMA, ATTACKS, DDN, FGSM, FMN, IFGS, PGD, DeepFool, Langevin
from atent.attacks.spec import parse, spell
from atent.certify import verified
from atent.cli import jobs
from atent.data import from_tensors
from atent.evaluate import evaluate, masking_checks, sweep
from atent.evaluate.craft import craft
from atent.experiments import recipes
from atent.experiments.compare import compare
from atent.experiments.plan import Plan, agree
from atent.methods import ATENT, AWP, FGSMRS, MART, PGDAT, TRADES, Free, Standard
from atent.methods.awp import plain
from atent.threat import Threat
from atent.train import TrainSettings, fit

SHAPE = (3, 32, 32)
DIAGONAL = math.sqrt(3 * 32 * 32)


def line(threat, shape=SHAPE):
    with pytest.raises(ValueError, match="eps must be below") as error:
        threat.check_eps(shape)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize(
    ("norm", "eps", "box", "text"),
    [
        ("linf", 8, (0, 1), "linf eps must be below the box width 1, got 8: did you mean 8/255? (--allow-large-eps to"),
        ("linf", 1, (0, 1), "did you mean 1/255?"),
        ("linf", "16", (0, 1), "did you mean 16/255?"),
        ("linf", 300, (0, 1), "got 300: give a smaller one"),
        ("linf", 8, (-1, 1), "the box width 2, got 8: did you mean 16/255?"),
        ("linf", 255, (0, 255), "the box width 255, got 255: give a smaller one"),
        ("l2", 128, (0, 1), "l2 eps must be below the box diagonal 55.4256, got 128: did you mean 128/255?"),
        ("l2", DIAGONAL, (0, 1), "l2 eps must be below the box diagonal"),
    ],
)
def test_the_error_guesses_what_was_meant(norm, eps, box, text):
    assert text in line(Threat(norm, eps, box))
    Threat(norm, eps, box, allow_large_eps=True).check_eps(SHAPE)
    Threat(norm, eps, box, allow_large_eps=True).scaled(0.999).check_eps(SHAPE)


def test_what_is_smaller_than_the_box_passes():
    for threat in (
        Threat("linf", "8/255"), Threat("linf", 0.999), Threat("linf", 8, (0, 255)), Threat("l2", 1), Threat("l2", 2),
        Threat("l2", 0.999 * DIAGONAL), Threat("l2", 128, (0, 255)), Threat("l2", "inf"), Threat("linf", "inf"),
    ):  # fmt: skip
        threat.check_eps(SHAPE)
    # the diagonal depends on the dimension
    assert "diagonal 1.41421" in line(Threat("l2", 2), (2,))


def test_the_permission_is_no_part_of_the_threat():
    plainly, allowed = Threat("linf", 8), Threat("linf", 8, allow_large_eps=True)
    assert plainly == allowed
    assert repr(plainly) == repr(allowed)
    assert plainly.plain() == {"norm": "linf", "eps": 8.0, "box": (0.0, 1.0)}
    assert Threat(**allowed.plain()).allow_large_eps
    # so that runs made before it existed resume
    assert "allow_large_eps" not in plain(PGDAT(Threat("linf", 0.1)))["threat"]
    assert plain(PGDAT(allowed))["threat"]["allow_large_eps"] is True


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 10)).double().eval()


HUGE = {"linf": 8.0, "l2": 8.0, "l0": 64, "patch": 16}


@pytest.mark.parametrize("name", ATTACKS)
def test_every_attack_refuses_it_and_takes_permission(name, net, batch):
    x, y = batch(3)
    norm = next(norm for norm in HUGE if norm in ATTACKS[name].norms)
    few = {
        "steps": 2, "queries": 2, "search_steps": 1, "final_steps": 2, "targets": 1, "attack": "FGSM", "source": net,
        "samples": 1, "levels": None,
    }  # fmt: skip
    known = {f.name for f in dataclasses.fields(ATTACKS[name])}
    settings = {k: v for k, v in few.items() if k in known}
    with pytest.raises(ValueError, match=r"did you mean 8/255|eps must be below the number of") as error:
        ATTACKS[name](threat=threat_in(norm, HUGE[norm]), **settings)(net, x, y)
    assert "\n" not in str(error.value)
    allowed = ATTACKS[name](threat=threat_in(norm, HUGE[norm], allow_large_eps=True), **settings)
    assert allowed(net, x, y).shape == x.shape


@pytest.mark.parametrize("attack", [DDN, FMN, ALMA, DeepFool])
def test_no_limit_is_not_a_large_one(attack, net, batch):
    x, y = batch(3)
    assert attack(Threat("l2", "inf"), steps=3).run(net, x, y).norm.isfinite().all()


def test_every_entry_point_refuses_it_before_any_work(net, batch, all_digits):
    x, y = batch(12)
    images, labels = all_digits[0][:100].float(), all_digits[1][:100]
    huge, fine = Threat("linf", 8), Threat("linf", 0.1)
    seen = []
    net.register_forward_hook(lambda *_: seen.append(1))  # before the copy, which has it too
    data, single = from_tensors(images, labels, images[:10], labels[:10]), copy.deepcopy(net).float()
    settings = TrainSettings(epochs=1, device="cpu")
    calls = {
        "evaluate": lambda: evaluate(net, x, y, [PGD(fine), FGSM(huge)]),
        "sweep": lambda: sweep(net, x, y, [PGD(fine)], [0.1, 8]),
        "checks": lambda: masking_checks(net, x, y, huge),
        "bounds": lambda: verified(net, x, y, huge),
        "training": lambda: fit(single, data, PGDAT(huge), settings=settings, progress=False),
        "AWP": lambda: fit(single, data, AWP(PGDAT(huge), 0.01), settings=settings, progress=False),
        "validation": lambda: fit(single, data, Standard(), threat=huge, settings=settings, progress=False),
        "its attack": lambda: fit(
            single, data, PGDAT(fine), progress=False,
            settings=TrainSettings(epochs=1, device="cpu", validate_attack="PGD(eps=8)"),
        ),
    }  # fmt: skip
    for name, call in calls.items():
        seen.clear()
        with pytest.raises(ValueError, match="did you mean 8/255") as error:
            call()
        assert "\n" not in str(error.value), name
        assert len(seen) <= 2, name  # fit looks once at what the network gives back
    allowed = Threat("linf", 8, allow_large_eps=True)
    assert evaluate(net, x, y, [PGD(allowed, steps=2)]).attacks["PGD-2"]["threat"]["allow_large_eps"]


def test_the_checks_themselves_may_cover_the_box(net, batch):
    x = batch(12)[0]
    names = [check.name for check in masking_checks(net, x, net(x).argmax(1), Threat("linf", 0.7))]
    assert len(names) > 10


def test_permission_in_the_text_of_an_attack():
    text = "PGD(norm=linf, eps=8, allow_large_eps=true)"
    attack = parse(text, None, ATTACKS)
    assert attack.threat.allow_large_eps
    assert parse(spell(attack, threat=True), None, ATTACKS).threat.allow_large_eps
    assert not parse("PGD(norm=linf, eps=8)", None, ATTACKS).threat.allow_large_eps
    assert parse("PGD(norm=linf, eps=8)", None, ATTACKS, allow_large_eps=True).threat.allow_large_eps
    assert parse("PGD(eps=8)", Threat("l2", 1, allow_large_eps=True), ATTACKS).threat.allow_large_eps


def test_the_commands_have_the_flag():
    flag = "--allow-large-eps"
    assert given("evaluate", "run", flag)["target"].keywords()["allow_large_eps"]
    assert not given("evaluate", "run")["target"].keywords()["allow_large_eps"]
    assert given("attack", "run", flag)["target"].keywords()["allow_large_eps"]
    assert given("certify", "run", "--method", "ibp", flag)["allow_large_eps"]
    job = train_job("digits-linf-pgdat", "--method.threat.eps", "8", flag)
    assert job.method.threat.allow_large_eps
    assert job.evaluate.allow_large_eps
    again = recipes.job({k: v for k, v in job.sections().items() if k != "recipe"}, "digits-linf-pgdat")
    assert again.method.threat.allow_large_eps
    job = train_job("digits-linf-pgdat")
    assert not job.method.threat.allow_large_eps
    jobs = compare_jobs("digits-linf-pgdat", "digits-linf-standard", flag)
    assert all(job.evaluate.allow_large_eps for job in jobs.values())


@pytest.mark.parametrize(
    "words",
    [["--method.threat.eps", "8"], ["--evaluate.eps", "8"], ["--evaluate.attacks", "PGD(steps=2, norm=linf, eps=8)"]],
)
def test_a_comparison_refuses_a_large_eps_before_it_makes_a_folder(words, tmp_path):
    recipe = ("digits-linf-pgdat", "digits-linf-trades")
    with pytest.raises(ValueError, match=r"^digits-linf-pgdat: linf eps must be below the box width 1, got 8[^\n]*$"):
        compare(Plan(compare_jobs(*recipe, *words), (0,), (), ""), runs=tmp_path, build=recipes.job)
    assert not list(tmp_path.iterdir())
    agree(compare_jobs(*recipe, *words, "--allow-large-eps"))
    agree(compare_jobs(*recipe))


# ---- the length of a step


STEPPING = [PGD, IFGS, Langevin, PGDAT, TRADES, ATENT, MART, Free, FGSMRS]


@pytest.mark.parametrize("kind", STEPPING, ids=lambda kind: kind.__name__)
def test_a_signed_step_across_the_box_is_refused(kind):
    """Before: every step ended in a corner of the ball, and the attack was weaker than it seemed."""
    near = Threat("linf", 8 / 255)
    with pytest.raises(ValueError, match=r"step_size must be below the box width 1, got 2: did you mean 2/255\?"):
        kind(near, step_size=2.0)
    with pytest.raises(ValueError, match=r"box width 255, got 300: give a smaller one"):
        kind(Threat("linf", 8.0, (0.0, 255.0)), step_size=300.0)
    for threat, length in (
        (near, 0.99),
        (Threat("linf", 8.0, (0.0, 255.0)), 2.0),
        (Threat("linf", 0.6), 1.2),
        (Threat("linf", 8 / 255, allow_large_eps=True), 2.0),
        (Threat("linf", [0.0, 0.6]), 1.2),
    ):
        if kind in (PGD, IFGS) or isinstance(threat.eps, float):
            assert kind(threat, step_size=length).step_size == length


def test_a_step_across_the_box_is_allowed_on_the_command_line():
    """The method was made, and refused its step, before it had the permission."""
    words = ["--method.step-size", "2"]
    for name in ("PGDAT", "TRADES"):
        job, _ = jobs.recipe_job(
            "digits-linf-pgdat", [*words, "--method.name", name], prog="atent train", allow_large_eps=True
        )  # fmt: skip
        assert job.method.step_size == 2.0
        assert job.method.threat.allow_large_eps
    with pytest.raises(ValueError, match=r"did you mean 2/255\? \(--allow-large-eps to insist; in Python Threat"):
        jobs.recipe_job("digits-linf-pgdat", words, prog="atent train")


@pytest.mark.parametrize("kind", [PGD, IFGS, partial(Langevin, gradient="sign")], ids=["PGD", "IFGS", "Langevin"])
def test_a_step_is_checked_for_the_largest_eps_alone(kind):
    """The samples of a batch, or of one eps, were refused a step that was accepted for all."""
    x, y = torch.rand(4, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(4) % 3
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    attack = kind(Threat("linf", [0.01, 0.01, 0.6, 0.6]), steps=2, step_size=1.2)
    assert bool((attack.run(net, x, y).norm <= torch.tensor([0.01, 0.01, 0.6, 0.6]) + 1e-6).all())
    assert len(craft(net, x, y, attack, batch=2)["norm"]) == 4


def test_other_steps_have_other_units():
    assert PGD(Threat("l2", 0.5), step_size=2.0).step_size == 2.0
    assert PGD(Threat("l0", 3), step_size=20.0).step_size == 20.0
    assert Langevin(Threat("linf", 0.1), gradient="raw", step_size=2.0).step_size == 2.0
