"""bfloat16 on a CPU: measured, refused where it does not pay, no property of a run. Times come from a fake clock."""

import json
import sys
from contextlib import contextmanager, nullcontext

import kit
import pytest
import torch
from torch import nn

from atent import Threat, precision, probe
from atent import runs as folder
from atent.attacks import DDN, FAB, FMN, PGD, DeepFool
from atent.certify import Smoothed
from atent.certify.certificate import Sampling, certify_run
from atent.data import DataSettings, load
from atent.evaluate import masking_checks
from atent.methods import ATENT, AWP, METHODS, PGDAT, Standard, objectives
from atent.optim import EntropySGD, Optimizer
from atent.probe import Timing, bfloat16_pays
from atent.runs.checkpoint import STATE
from atent.train import TrainSettings, fit, trainer
from atent.train.interrupt import Interrupted


class Clock:
    """Seconds that only the passes of a network move: ``low`` under autocast, ``exact`` outside, per sample."""

    def __init__(self, exact=1e-6, low=1e-7):
        self.exact, self.low, self.now, self.seen = exact, low, 0.0, []

    def __call__(self):
        return self.now

    def spend(self, samples):
        low = torch.is_autocast_enabled("cpu")
        self.seen.append((samples, low))
        self.now += samples * (self.low if low else self.exact)


class Net(nn.Module):
    def __init__(self, clock=None, offset=0.0):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(64, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 10))
        self.clock, self.offset = clock, offset

    def forward(self, x):
        if self.clock:
            self.clock.spend(len(x))
        return self.body(x + self.offset)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(probe, "perf_counter", clock)
    return clock


@pytest.fixture(scope="module")
def digits():
    return load(DataSettings(limit=192, validation=60))


def network(clock=None, offset=0.0):
    torch.manual_seed(0)
    return Net(clock, offset)


def train(data, model, path=None, resume=False, epochs=1, **changes):
    settings = TrainSettings(epochs=epochs, batch_size=64, validate_limit=40, device="cpu", **changes)
    return fit(
        model, data, Standard(), optimizer=Optimizer(lr=0.05), settings=settings, run=path, progress=False,
        resume=resume,
    )  # fmt: skip


# ---- the measurement


def test_the_probe_reports_the_times_of_the_passes(clock):
    timing = bfloat16_pays(network(clock), (1, 8, 8), "cpu", batch=40)
    assert timing.samples == 40
    # 40 samples at 1e-6 and 1e-7 s each; the clock's sums round by less than 1e-12
    assert timing.float32 == pytest.approx(4e-5, rel=1e-6)
    assert timing.bfloat16 == pytest.approx(4e-6, rel=1e-6)
    assert (timing.faster, timing.agrees, timing.pays) == (True, True, True)
    timed = [low for samples, low in clock.seen if samples == 40][-2 * probe._REPEATS :]
    assert timed == [False, True] * probe._REPEATS  # interleaved


def test_a_slower_bfloat16_does_not_pay(clock):
    clock.low = 1.5e-6
    timing = bfloat16_pays(network(clock), (1, 8, 8), "cpu")
    assert (timing.faster, timing.agrees, timing.pays) == (False, True, False)


def test_a_hopeless_bfloat16_is_left_after_two_passes(clock):
    clock.exact, clock.low = 1e-3, 0.5
    timing = bfloat16_pays(network(clock), (1, 8, 8), "cpu")
    assert [low for _, low in clock.seen].count(True) == 2
    assert (timing.samples, timing.bfloat16) == (2, pytest.approx(1.0))
    assert clock.now < 3


def test_a_first_pass_that_prepares_kernels_decides_nothing(clock):
    net = network(clock)
    spend = clock.spend

    def first_is_slow(samples):
        prepared = not torch.is_autocast_enabled("cpu") or any(low for _, low in clock.seen)
        spend(samples)
        clock.now += 0 if prepared else 1e-3

    clock.spend = first_is_slow
    assert bfloat16_pays(net, (1, 8, 8), "cpu").faster


@pytest.mark.parametrize("exact", [1e-4, 1e-3, 1e-2, 0.1])
@pytest.mark.parametrize("ratio", [0.3, 1.5, 3.0])
def test_the_probe_takes_less_than_three_seconds(clock, exact, ratio):
    clock.exact, clock.low = exact, exact * ratio
    timing = bfloat16_pays(network(clock), (1, 8, 8), "cpu", batch=4096)
    assert clock.now < 3
    assert timing.faster is (ratio < 1)


def test_rounding_that_hides_the_input_disagrees(clock):
    """At 1e4 bfloat16 numbers are 64 apart: pixels of [0, 1] vanish beside such an offset."""
    timing = bfloat16_pays(network(clock, offset=1e4), (1, 8, 8), "cpu")
    assert (timing.faster, timing.agrees, timing.pays) == (True, False, False)


def test_agreement_has_the_values_of_its_formulas():
    """The logits' means over classes are 2 and 4, and of what is left over samples 0: ||a||^2 = 4, ||b - a||^2 = 1."""
    logits, grads = torch.tensor([[1.0, 3.0], [5.0, 3.0]]), torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 2.0]])
    low = torch.tensor([[1.5, 2.5], [4.5, 3.5]]), torch.tensor([[1.0, 1.0], [0.0, 0.0], [0.0, 0.0]])
    relative, cosine = probe._agreement([logits, grads], list(low))
    assert relative == pytest.approx(1 / 2, rel=1e-12)
    assert cosine == pytest.approx((0.5**0.5 + 1 + 0) / 3, rel=1e-12)
    nan = [torch.full((2, 2), torch.nan), grads]
    assert not Timing(1, 1.0, 0.5, *probe._agreement([logits, grads], nan)).agrees
    assert not Timing(1, 1.0, 0.5, *probe._agreement(nan, nan)).agrees


def test_a_last_layer_of_zeros_agrees(clock):
    net = network(clock)
    nn.init.zeros_(net.body[-1].weight)
    nn.init.zeros_(net.body[-1].bias)
    assert bfloat16_pays(net, (1, 8, 8), "cpu").agrees


def test_the_model_comes_back_as_it_was(clock):
    net = nn.Sequential(nn.BatchNorm2d(1), network(clock)).train()
    before, drawn = {k: v.clone() for k, v in net.state_dict().items()}, torch.get_rng_state()
    bfloat16_pays(net, (1, 8, 8), "cpu")
    assert net.training
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_a_network_that_changes_its_input_keeps_its_batch(clock):
    class InPlace(Net):
        def forward(self, x):
            x -= 0.3
            return super().forward(x)

    x = torch.rand(8, 1, 8, 8)
    before = x.clone()
    assert bfloat16_pays(InPlace(clock), (1, 8, 8), "cpu", x=x).agrees
    assert torch.equal(x, before)


def test_what_cannot_be_measured_is_one_line(clock):
    class Typed(Net):
        def forward(self, x):
            logits = super().forward(x)
            if logits.dtype != torch.float32:
                raise TypeError("want float32\nnot this")
            return logits

    with pytest.raises(ValueError, match=r"is for a float32 model, this one is torch\.float64") as caught:
        bfloat16_pays(network().double(), (1, 8, 8), "cpu")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="fails under bfloat16 autocast") as caught:
        bfloat16_pays(Typed(clock), (1, 8, 8), "cpu")
    assert "\n" not in str(caught.value)


# ---- in a training


def test_fit_trains_where_bfloat16_pays(digits, clock):
    row = train(digits, network(clock), precision="bfloat16").history[0]
    assert (row["precision"], row["channels_last"]) == ("bfloat16", False)
    assert train(digits, network()).history[0]["precision"] == "float32"


@pytest.mark.parametrize(
    ("low", "offset", "why"),
    [(2e-6, 0.0, "is not faster than float32 on this cpu"), (1e-7, 1e4, "disagrees with float32 on this cpu")],
)
def test_fit_refuses_before_anything_is_written(digits, clock, tmp_path, low, offset, why):
    clock.low = low
    with pytest.raises(
        ValueError, match=f"precision bfloat16 {why}.*take .* ms in bfloat16 and .* ms in flo"
    ) as caught:
        train(digits, network(clock, offset), tmp_path / "run", precision="bfloat16")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_a_run_resumes_under_another_precision_and_says_so(digits, clock, tmp_path, monkeypatch):
    answers = iter([False] * 6 + [True] * 9)  # the loop asks after each of the 3 steps of an epoch, up to two times
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "stop_requests", lambda: nullcontext(lambda: next(answers)))
        with pytest.raises(Interrupted):
            train(digits, network(), tmp_path / "run", epochs=2)
    resumed = train(
        digits, network(clock), tmp_path / "run", resume=True, epochs=2, precision="bfloat16", channels_last=True
    )
    seen = [(row["precision"], row["channels_last"]) for row in resumed.history]
    assert seen == [("float32", False), ("bfloat16", True)]
    assert folder.read_jsonl(tmp_path / "run" / folder.METRICS) == resumed.history


def test_a_run_of_an_earlier_version_resumes(digits, tmp_path):
    """Its fingerprint holds precision and channels_last."""
    train(digits, network(), tmp_path / "run")
    path = kit.unsealed(tmp_path / "run") / folder.LAST / STATE
    state = torch.load(path, weights_only=True)
    parts = json.loads(state["mark"]["config"])
    parts["train"] |= {"precision": "float32", "channels_last": False}
    state["mark"]["config"] = json.dumps(parts, sort_keys=True)
    torch.save(state, path)
    assert len(train(digits, network(), tmp_path / "run", resume=True).history) == 1


# ---- searches, votes and perturbed weights


def tf32(x):
    """Rounded to the 10 bits of mantissa that TF32 has."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x0FFF + ((bits >> 13) & 1)) & ~0x1FFF).view(torch.float32)


class Rounded(torch.autograd.Function):
    """The identity on TF32 numbers, both ways."""

    @staticmethod
    def forward(ctx, x):
        return tf32(x)

    @staticmethod
    def backward(ctx, grad):
        return tf32(grad)


@pytest.fixture
def emulated_tf32(monkeypatch):
    """Convolutions as a GPU computes them by default, and in float32 inside every `full_precision`."""
    exact = [0]
    convolve, inside = nn.Conv2d._conv_forward, precision.full_precision

    def rounded(self, x, weight, bias):
        if exact[0]:
            return convolve(self, x, weight, bias)
        return Rounded.apply(convolve(self, Rounded.apply(x), Rounded.apply(weight), bias))

    @contextmanager
    def full(device):
        exact[0] += 1
        try:
            with inside(device):
                yield
        finally:
            exact[0] -= 1

    monkeypatch.setattr(nn.Conv2d, "_conv_forward", rounded)
    for module in [m for name, m in sys.modules.items() if name.startswith("atent.")]:
        if getattr(module, "full_precision", None) is inside:
            monkeypatch.setattr(module, "full_precision", full)


BOX = Threat("l2", "inf"), Threat("linf", "inf")


@pytest.mark.parametrize(
    "attack",
    [FMN(BOX[0], steps=30), FMN(BOX[1], steps=30), DDN(BOX[0], steps=30), DeepFool(BOX[0]), FAB(BOX[0], steps=10)],
    ids=lambda attack: f"{type(attack).__name__}-{attack.threat.norm}",
)
def test_a_search_is_as_precise_as_its_verdict(attack, conv_net, batch, request):
    """Points on the boundary are found in the arithmetic that judges them: TF32 outside changes no bit."""
    (x, y), model = batch(60, torch.float32), conv_net(torch.float32)
    exact = attack.run(model, x, y)
    request.getfixturevalue("emulated_tf32")
    assert not torch.equal(model(x), tf32(model(x)))  # and the last layer is in float32
    found = attack.run(model, x, y)
    assert torch.equal(found.x_adv, exact.x_adv)
    assert int(found.success.sum()) == int(exact.success.sum()) > 50


def test_the_callers_autocast_reaches_no_search(conv_net, batch):
    (x, y), model, attack = batch(20, torch.float32), conv_net(torch.float32), FMN(BOX[0], steps=20)
    exact = attack.run(model, x, y)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(attack.run(model, x, y).x_adv, exact.x_adv)


def test_a_training_search_keeps_the_callers_precision(conv_net, batch):
    x, y = batch(20, torch.float32)
    seen = []
    model = conv_net(torch.float32)
    model[0].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    with torch.autocast("cpu", torch.bfloat16):
        PGD(Threat("linf", 0.1), steps=2)(model, x, y, rng=torch.Generator().manual_seed(0))
    assert set(seen) == {torch.bfloat16}


def test_votes_clean_pass_and_checks_are_in_full_precision(conv_net, batch):
    x, y = batch(20, torch.float32)
    seen = []
    model = conv_net(torch.float32)
    model[0].register_forward_hook(
        lambda module, inputs, output: seen.append((output.dtype, torch.is_autocast_enabled("cpu")))
    )
    expected = Smoothed(model, 0.25).votes(x, 200)
    seen.clear()
    with torch.autocast("cpu", torch.bfloat16):
        votes = Smoothed(model, 0.25).votes(x, 200)
        certify_run(model, x, y, Sampling(0.25, n0=100, n=100, alpha=0.01))
        masking_checks(model, x, y, Threat("linf", 0.1), attack=PGD(Threat("linf", 0.1), steps=2))
    assert torch.equal(votes, expected)
    assert set(seen) == {(torch.float32, False), (torch.float64, False)}  # float64: the twin of the derivatives' check


@pytest.mark.parametrize("name", ["PGDAT", "TRADES", "MART", "ATENT"])
def test_weights_are_perturbed_under_autocast(name):
    """Autocast keeps cast copies of the weights: with copies that outlive a change the sharpness is exactly 0. The
    right value is that of an autocast that keeps none; two passes that share a copy sum their gradients in it, so that
    the direction v moves by some 2^-8 of its length."""
    model, (x, y) = kit.network().float(), kit.batch()
    method = AWP(METHODS[name](Threat("linf", 0.2), steps=2), gamma=0.5)
    found = []
    for kept in (True, False):
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=kept):
            found.append(method.backward(model, x.float(), y, rng=kit.stream(), ids=torch.arange(len(x))))
    assert found[0]["sharpness"] > 0.05
    assert float(found[0]["sharpness"]) == pytest.approx(float(found[1]["sharpness"]), rel=5 * 2**-8)


def test_the_weights_are_back_for_autocast_too():
    model, (x, y) = kit.network().float(), kit.batch()
    method = AWP(PGDAT(Threat("linf", 0.2), steps=2), gamma=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        model.eval()
        before = model(x.float())
        method.backward(model, x.float(), y, rng=kit.stream(), ids=torch.arange(len(x)))
        assert torch.equal(model(x.float()), before)


def test_entropy_sgd_walks_under_an_autocast_around_its_step():
    """Each call of the closure sees the weights of its own inner step."""
    torch.manual_seed(0)
    net, (x, y) = nn.Sequential(nn.Flatten(), nn.Linear(36, 5)), kit.batch()
    optimizer = EntropySGD(net.parameters(), lr=0.1, inner_steps=3, inner_lr=1.0, noise=0.0)
    losses = []

    def closure():
        optimizer.zero_grad()
        losses.append(nn.functional.cross_entropy(net(x.float()), y))
        losses[-1].backward()
        return losses[-1]

    with torch.autocast("cpu", torch.bfloat16):
        optimizer.step(closure)
    assert losses[0] > losses[1] > losses[2]


def test_atent_sums_the_clean_answers_gradients_in_float32(monkeypatch):
    seen = []
    accumulate = objectives._accumulate

    def spy(targets, grads, share):
        seen.extend((t.dtype, g.dtype) for t, g in zip(targets, grads) if g is not None)
        accumulate(targets, grads, share)

    monkeypatch.setattr(objectives, "_accumulate", spy)
    model, (x, y) = kit.network().float(), kit.batch()
    method = ATENT(Threat("linf", 0.2), steps=4, outer_loss="kl")
    with torch.autocast("cpu", torch.bfloat16):
        method.backward(model, x.float(), y, rng=kit.stream())
    assert set(seen) == {(torch.float32, torch.float32)}
