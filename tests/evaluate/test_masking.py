"""Planted defects must be found by the check that names them, and clean models must pass every check."""

import copy
import math
import os
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import atent
from atent.attacks import FGSM, PGD, EoT, Langevin, SparsePGD, Square, TokenAttack, Transfer
from atent.evaluate import CHECKS, Check, masking_checks
from atent.evaluate.masking import step_of
from atent.evaluate.subject import Subject, gained, subject, weaker
from atent.models import build
from atent.threat import Threat

LINF, L2 = Threat("linf", 0.2), Threat("l2", 1.0)
BOTH = pytest.mark.parametrize("threat", [LINF, L2], ids=["linf", "l2"])
REPOSITORY = Path(__file__).parents[2]


def trained(x, y, attack, epochs):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = build("digits_cnn", shape=(1, 8, 8))
        rng = torch.Generator().manual_seed(1)
        step = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(epochs):
            for rows in torch.randperm(len(x), generator=rng).split(50):
                z = attack(net, x[rows], y[rows], rng=rng) if attack else x[rows]
                step.zero_grad()
                nn.functional.cross_entropy(net(z), y[rows]).backward()
                step.step()
    return net.eval()


@pytest.fixture(scope="session")
def digits(all_digits):
    x, y = all_digits
    return x.float(), y


@pytest.fixture(scope="session")
def robust(digits):
    """PGD adversarial training for some seconds; shared, not to be modified."""
    x, y = digits
    return trained(x[:1200], y[:1200], PGD(Threat("linf", 0.1), steps=3), epochs=5)


@pytest.fixture(scope="session")
def plain(digits):
    """Standard training; shared, not to be modified."""
    x, y = digits
    return trained(x[:1200], y[:1200], None, epochs=8)


@pytest.fixture
def test_set(digits):
    x, y = digits
    return x[1200:1260], y[1200:1260]


def failed(checks):
    return {c.name: c.figure for c in checks if not c.passed}


def verdict(name, model, x, y, threat, attack=None):
    """One check alone."""
    return CHECKS[name][0](subject(model, x, y, threat, attack or PGD(threat), 0, None, 250))


class Around(nn.Module):
    """``before`` the body on the inputs, ``after`` it on the logits."""

    def __init__(self, body, before=lambda x: x, after=lambda z: z):
        super().__init__()
        self.body, self.before, self.after = body, before, after

    def forward(self, x):
        return self.after(self.body(self.before(x)))


class AlwaysTraining(Around):
    """Batch-norm with the statistics of the batch, in every mode."""

    def forward(self, x):
        self.body.train()
        return self.body(x)


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return (16 * x).round() / 16

    @staticmethod
    def backward(ctx, grad):
        return grad


def shattered(x):
    # almost the identity, with a slope of 1 + 20 cos(2000 x)
    return x + 0.01 * torch.sin(2000 * x)


def quantised(x):
    return (8 * x).round() / 8


def noisy(x):
    # generated so that a sample's noise depends on the size of the batch, also with one seed
    return x + 0.1 * torch.randn(*x.shape[1:], len(x), dtype=x.dtype).movedim(-1, 0)


# defect -> (the checks that name it, those that would name another one, the wrapper)
DEFECTS = {
    "shattered gradient": (
        ("finite-differences", "black-box"),
        ("zero-gradient", "saturation", "repeatable", "independent"),
        lambda m: Around(m, before=shattered),
    ),
    "saturated logits": (
        ("saturation", "loss"),
        ("zero-gradient", "finite-differences", "repeatable", "independent"),
        lambda m: Around(m, after=lambda z: 1000 * z),
    ),
    "random layer": (
        ("repeatable",),
        ("zero-gradient", "saturation", "independent", "black-box"),
        lambda m: Around(m, before=noisy),
    ),
    "quantised input": (
        ("zero-gradient", "black-box"),
        ("saturation", "repeatable", "independent"),
        lambda m: Around(m, before=quantised),
    ),
}
PLANTED = pytest.mark.parametrize("defect", DEFECTS)


@PLANTED
def test_planted_defects_are_named(defect, robust, test_set):
    names, others, wrap = DEFECTS[defect]
    found = failed(masking_checks(wrap(robust), *test_set, LINF))
    assert set(names) <= set(found), found
    assert not set(others) & set(found), found


@PLANTED
def test_planted_defects_are_named_in_l2(defect, robust, test_set):
    names, others, wrap = DEFECTS[defect]
    for name in names + others:
        passed, figure = verdict(name, wrap(robust), *test_set, L2)
        assert passed == (name in others), (name, figure)


@BOTH
def test_batch_norm_in_train_mode_is_named(threat, conv_net, test_set):
    body = conv_net(torch.float32, norm=True)
    passed, figure = verdict("independent", AlwaysTraining(body), *test_set, threat)
    assert not passed, figure
    before = {k: v.clone() for k, v in body.state_dict().items()}
    # a model in train mode is evaluated in eval mode, which is not a defect
    passed, figure = verdict("independent", body.train(), *test_set, threat)
    assert passed, figure
    assert body.training
    assert all(torch.equal(v, before[k]) for k, v in body.state_dict().items())


@BOTH
def test_a_short_step_is_named(threat, robust, test_set):
    short = PGD(threat, steps=10, step_size=0.05 * float(threat.eps))
    passed, figure = verdict("step-budget", robust, *test_set, threat, short)
    assert not passed
    assert "make 0.5 eps" in figure
    assert verdict("step-budget", robust, *test_set, threat, replace(short, step_size=None))[0]


@pytest.mark.parametrize("kind", [EoT, Transfer])
def test_the_steps_of_an_attack_inside_another_are_checked(kind, robust, test_set):
    """Before: not measured, as EoT and Transfer have no number of steps themselves."""
    more = {"samples": 1} if kind is EoT else {"source": robust}
    passed, figure = verdict("step-budget", robust, *test_set, L2, kind(L2, attack="PGD(steps=4)", **more))
    assert "4 steps of 0.625 make 2.5 eps" in figure
    assert passed
    assert (
        "make 0.4 eps"
        in verdict("step-budget", robust, *test_set, L2, kind(L2, attack="PGD(steps=4, step_size=0.1)", **more))[1]
    )


def test_an_attack_that_never_leaves_is_named_by_the_distance(robust, test_set):
    # enough steps, but no gradient
    flat = Around(robust, before=quantised)
    passed, figure = verdict("step-budget", flat, *test_set, L2, PGD(L2, start="zero"))
    assert "make 2.5 eps" in figure
    assert "moved 0.00 eps" in figure
    assert not passed


def test_no_gradient_is_a_reason_and_no_crash(robust, test_set):
    checks = masking_checks(Around(robust, before=lambda x: x.detach()), *test_set, LINF)
    assert [c.name for c in checks] == list(CHECKS)
    found = failed(checks)
    assert found["zero-gradient"].startswith("not measured: the model has no gradient with respect to its input")
    assert not {"logits", "repeatable", "independent"} & set(found)


@BOTH
@pytest.mark.parametrize("kind", ["robust", "plain"])
def test_clean_models_pass_everything(kind, threat, request, test_set):
    model = request.getfixturevalue(kind)
    if kind == "plain":
        threat = threat.scaled(0.25)
    checks = masking_checks(model, *test_set, threat)
    assert failed(checks) == {}
    assert all(isinstance(c, Check) and c.figure and "\n" not in c.why for c in checks)


def test_the_robust_model_is_robust_and_the_standard_one_is_not(robust, plain, test_set):
    robust_counts = [int((~PGD(Threat("linf", 0.15)).run(m, *test_set).success).sum()) for m in (robust, plain)]
    assert robust_counts[0] > 35
    assert robust_counts[1] < 20


def test_false_derivatives_are_found_at_one_step_size_or_the_other(robust, test_set):
    # autograd agrees at the step of an attack and not at a tiny one
    passed, figure = verdict("finite-differences", Around(robust, before=StraightThrough.apply), *test_set, LINF)
    assert not passed
    assert "100.0 % at a step of 0.0001" in figure
    # and the other way round
    passed, figure = verdict("finite-differences", Around(robust, before=shattered), *test_set, LINF)
    assert not passed
    assert float(figure.split("disagree by ")[1].split(" %")[0]) < 2

    class Upside(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, grad):
            return -grad

    assert not verdict("finite-differences", Around(robust, before=Upside.apply), *test_set, LINF)[0]


def test_derivatives_below_the_rounding_of_differences_are_no_disagreement(robust, test_set):
    """Binary inputs on the plateaus of a steep sigmoid, whose derivatives are of the order of 1e-12."""
    x, y = (test_set[0] > 0.5).to(test_set[0]), test_set[1]
    smooth = Around(robust, before=lambda z: torch.sigmoid(60 * (z - 0.5)))
    right = smooth(x).argmax(1) == y
    assert int(right.sum()) >= 10
    passed, figure = verdict("finite-differences", smooth, x[right], y[right], LINF)
    assert passed, figure
    # A false derivative of the same size as the true one is still found.
    steep = Around(robust, before=lambda z: torch.sigmoid(60 * (StraightThrough.apply(z) - 0.5)))
    assert not verdict("finite-differences", steep, *test_set, LINF)[0]


def test_differences_work_in_float32_where_the_model_fixes_its_type(robust, test_set):
    def single(x):
        assert x.dtype == torch.float32
        return x

    for model, type_ in ((robust, "float64"), (Around(robust, before=single), "float32")):
        passed, figure = verdict("finite-differences", model, *test_set, LINF)
        assert passed, figure
        assert figure.endswith(f"{type_})")
    assert not verdict(
        "finite-differences", Around(robust, before=lambda x: StraightThrough.apply(single(x))), *test_set, LINF
    )[0]


@pytest.mark.parametrize("squash", [lambda z: z.softmax(1), torch.sigmoid], ids=["softmax", "sigmoid"])
def test_probabilities_are_named(squash, robust, test_set):
    x, y = test_set
    found = failed(masking_checks(Around(robust, after=squash), x[:20], y[:20], LINF))
    assert "logits" in found
    assert re.fullmatch(r"outputs lie in \[.*, .*\] \(n = \d+\)", found["logits"])


def test_a_costly_attack_is_not_run_again(robust, test_set):
    costly = PGD(LINF, steps=2000)
    passed, figure = verdict("attack-strength", robust, *test_set, LINF, costly)
    assert passed
    assert "not run again" in figure


def test_a_weak_attack_is_named(plain, test_set):
    sample = subject(plain, *test_set, LINF, PGD(LINF, steps=1, step_size=0.01, start="zero"), 0, None, 250)
    sample.robust(PGD(LINF))
    passed, figure = CHECKS["attack-strength"][0](sample)
    assert not passed, figure


def test_step_lengths():
    assert step_of(PGD(LINF, steps=10)) == pytest.approx(0.05)
    assert step_of(PGD(L2, step_size=0.3)) == 0.3
    assert step_of(Langevin(L2, steps=10)) == pytest.approx(0.2)
    assert step_of(Langevin(L2, variant="published")) is None  # the raw gradient has no fixed length
    assert step_of(FGSM(LINF)) is None
    assert step_of(Square(LINF)) is None


def scripted(n=100, **counts):
    """A subject for which, by check and attack, the first so many samples are robust."""
    runs = {
        "eps-zero": [PGD(LINF.scaled(0), steps=1)],
        "eps-whole-box": [PGD(Threat("linf", 1.0), steps=40)],
        "eps-monotone": [PGD(LINF.scaled(f)) for f in (0.5, 1, 2)],
        "steps-monotone": [PGD(LINF, steps=s) for s in (5, 20, 50)],
        "restarts": [PGD(LINF, restarts=r) for r in (1, 3)],
        "iterative": [FGSM(LINF), PGD(LINF)],
        "black-box": [Square(LINF, queries=200), PGD(LINF)],
        "loss": [PGD(LINF, loss="margin"), PGD(LINF)],
    }
    (name, robust_counts), = counts.items()  # fmt: skip
    name = name.replace("_", "-")
    assert len(robust_counts) == len(runs[name])
    done = {repr(a): (a, torch.arange(n) < k, torch.zeros(n)) for a, k in zip(runs[name], robust_counts)}
    x = torch.zeros(n, 1, 8, 8)
    sample = Subject(
        nn.Identity(), LINF, PGD(LINF), x, torch.zeros(n).long(), torch.arange(n), x.view(n, -1)[:, :10], 0, 9
    )
    sample._done.update(done)
    return CHECKS[name][0](sample)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("eps-zero", [100], [99]),
        ("eps-whole-box", [5], [6]),
        # seven samples against none is the smallest significant difference of a sign test at 1 %
        ("eps-monotone", [90, 50, 56], [90, 50, 57]),
        ("eps-monotone", [50, 56, 56], [50, 57, 56]),
        ("steps-monotone", [80, 78, 84], [80, 78, 85]),
        ("restarts", [80, 86], [80, 87]),
        ("restarts", [80, 70], [80, 69]),
        ("iterative", [60, 66], [60, 67]),
        ("black-box", [60, 66], [60, 67]),
        ("loss", [60, 66], [60, 67]),
    ],
)
def test_thresholds(name, good, bad):
    assert scripted(**{name: good})[0]
    passed, figure = scripted(**{name: bad})
    assert not passed
    assert all(str(k) in figure for k in bad)
    assert "of 100" in figure


def test_only_samples_that_differ_count():
    attack, rival = torch.zeros(1000).bool(), torch.zeros(1000).bool()
    attack[:7] = True
    assert weaker(attack, rival)
    assert not weaker(rival, attack)
    rival[500:502] = True  # 7 to 2: p = 0.09
    assert not weaker(attack, rival)


def test_the_smallest_differences_that_the_page_names_are_significant():
    """docs/evaluation.md gives two pairs of counts of the sign test; one sample less is not significant."""
    page = " ".join((Path(__file__).parents[2] / "docs" / "evaluation.md").read_text("utf-8").split())
    (pairs,) = re.findall(r"sign test at 1 %: (\d+ to \d+, \d+ to \d+)\)", page)
    for pair in pairs.split(", "):
        more, fewer = map(int, pair.split(" to "))
        attack, rival = torch.zeros(100).bool(), torch.zeros(100).bool()
        attack[:more], rival[50 : 50 + fewer] = True, True
        assert weaker(attack, rival), pair
        attack[0] = False
        assert not weaker(attack, rival), pair


def test_what_more_attacks_may_gain():
    before = torch.ones(100).bool()
    assert gained(before, torch.arange(100) >= 10) == (10, False)
    assert gained(before, torch.arange(100) >= 11) == (11, True)


def test_deterministic_and_the_model_as_found(robust, test_set):
    x, y = (t[:20] for t in test_set)
    model = copy.deepcopy(Around(robust, before=noisy)).train()
    weights = {k: v.clone() for k, v in model.state_dict().items()}
    seen = []
    torch.manual_seed(1)
    random = torch.get_rng_state()
    first = masking_checks(model, x, y, LINF, seed=3, advance=lambda k, name: seen.append((k, name)))
    assert torch.equal(torch.get_rng_state(), random)
    assert seen == [(k, name) for name in CHECKS for k in (0, 1)]
    torch.manual_seed(2)
    assert masking_checks(model, x, y, LINF, seed=3) == first
    assert masking_checks(model, x, y, LINF, seed=4) != first
    assert all(m.training for m in model.modules())
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


def test_random_numbers_depend_on_ids_and_samples_are_stratified(robust, digits):
    x, y = digits
    sample = subject(robust, x[:250], y[:250], LINF, PGD(LINF), 0, 1000 + torch.arange(250), 250)
    assert sample.n <= 100
    # the same samples in every order
    turned = torch.arange(249, -1, -1)
    again = subject(robust, x[turned], y[turned], LINF, PGD(LINF), 0, 1000 + turned, 250)
    assert torch.equal(again.ids, sample.ids)
    assert torch.equal(sample.x, x[sample.ids - 1000])
    assert torch.equal(sample.y, y[sample.ids - 1000])
    still = PGD(LINF, steps=1, step_size=0)  # moved only by the random start
    assert torch.equal(sample.run(still)[1], still.run(robust, sample.x, sample.y, ids=sample.ids).norm)
    part = subject(robust, x[:250][25:50], y[:250][25:50], LINF, PGD(LINF), 0, 1025 + torch.arange(25), 4)
    shared = [i for i, j in enumerate(part.ids.tolist()) if j in sample.ids.tolist()]
    among = [sample.ids.tolist().index(part.ids[i]) for i in shared]
    assert len(shared) > 5
    assert torch.equal(part.robust(PGD(LINF))[shared], sample.robust(PGD(LINF))[among])


def test_what_cannot_be_evaluated_is_refused(robust, test_set):
    x, y = test_set
    for threat in (Threat("linf", 0.0), Threat("l2", "inf")):
        with pytest.raises(ValueError, match="finite eps above 0"):
            masking_checks(robust, x, y, threat)
    with pytest.raises(ValueError, match="give both the same"):
        masking_checks(robust, x, y, LINF, attack=PGD(L2))
    with pytest.raises(ValueError, match="no samples"):
        masking_checks(robust, x[:0], y[:0], LINF)
    with pytest.raises(ValueError, match="outside the box"):
        masking_checks(robust, 255 * x, y, LINF)
    with pytest.raises(ValueError, match="NaN or infinite logits"):
        masking_checks(Around(robust, after=lambda z: z * math.nan), x, y, LINF)
    wrong = (robust(x).argmax(1) + 1) % 10
    with pytest.raises(ValueError, match=f"none of {len(x)} samples correctly"):
        masking_checks(robust, x, wrong, LINF)


@pytest.mark.slow
def test_the_mnist_network_passes_everything():
    from atent.data import DataSettings, load

    run = REPOSITORY / "results" / "mnist-linf-atent-laptop"
    root = os.environ.get("ATENT_DATA_ROOT")
    if not root or not (Path(root) / "mnist").exists():
        pytest.skip("MNIST is not under ATENT_DATA_ROOT")
    x, y = load(DataSettings("mnist")).test.batch(torch.arange(100))[:2]
    assert failed(masking_checks(atent.load(run), x, y, Threat("linf", 0.3))) == {}


@pytest.mark.parametrize("order", ["sorted", "periodic", "rare"])
def test_the_samples_are_of_every_class_whatever_the_order(order):
    """Every tenth of 1000 samples whose classes alternate would be of one class."""
    y = torch.arange(1000)
    y = {"sorted": y // 100, "periodic": y % 10, "rare": torch.where(y < 10, y, 0)}[order]
    x = torch.nn.functional.one_hot(y, 10).float()
    sample = subject(torch.nn.Identity(), x, y, LINF, PGD(LINF), 0, None, 250)
    shares = sample.y.bincount(minlength=10).tolist()
    assert shares == ([91] + [1] * 9 if order == "rare" else [10] * 10)


def test_counts_have_a_check_without_gradients(conv_net, batch):
    model, (x, y) = conv_net(torch.float32), batch(60, torch.float32)
    threat = Threat("l0", 1)
    checks = {check.name: check for check in masking_checks(model, x, y, threat, attack=SparsePGD(threat, steps=5))}
    assert "SparseRS" in checks["black-box"].figure
    assert "1 / 1 / 2 elements" in checks["eps-monotone"].figure
    patch = Threat("patch", 1, side=2)
    checks = {c.name: c for c in masking_checks(model, x, y, patch, attack=TokenAttack(patch, steps=5))}
    assert checks["black-box"].figure.startswith("not measured")
