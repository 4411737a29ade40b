"""Networks that an evaluation cannot measure as they are: each has a hint or an error of one line with a remedy."""

import threading

import pytest
import torch
from torch import nn
from zoo import LINF, Dropping, Twin, data, made, quietly, refused

from atent import Threat
from atent.attacks import APGD, DDN, PGD, SAPF, DeepFool, EoT, Square
from atent.certify import Smoothed, bounds, verified
from atent.certify.certificate import Sampling, certify_run
from atent.data import from_tensors
from atent.evaluate import evaluate, predict
from atent.guard import guard
from atent.methods import AWP, PGDAT, Standard
from atent.optim import Optimizer, Walk
from atent.train import TrainSettings, fit

PGD_3 = PGD(LINF, steps=3)


class Drifting(Twin):
    """A state of Python that changes with every call."""

    calls = 0

    def forward(self, z):
        self.calls += 1
        return super().forward(z) * (1 if self.calls % 2 else -1)


class OwnNoise(Twin):
    """Random numbers of a generator of its own, which no seed reaches."""

    def __init__(self):
        super().__init__()
        self.rng = torch.Generator().manual_seed(0)

    def forward(self, z):
        return super().forward(z + 0.1 * torch.randn(z.shape, generator=self.rng))


@pytest.mark.parametrize("kind", [Dropping, Drifting, OwnNoise])
def test_a_network_that_is_not_a_fixed_function_gets_a_hint(kind):
    net, (x, y) = made(kind), data(12)
    for attacks in ([PGD_3], [Square(LINF, queries=3)], {}):
        assert "two passes over the same batch" in evaluate(net, x, y, attacks).hint
    # An attack that averages over the random numbers gets no hint.
    for averaged in (EoT(LINF, attack="PGD(steps=2)", samples=2), APGD(LINF, steps=2, eot=2)):
        assert "two passes" not in str(evaluate(net, x, y, [averaged]).hint)
    for single in (EoT(LINF, attack="PGD(steps=2)", samples=1), APGD(LINF, steps=2)):
        assert "two passes over the same batch" in evaluate(net, x, y, [single]).hint


class Observing(Twin):
    """Scales its input by the largest value that it has seen, as an observer of quantisation does."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.ones(()))

    def forward(self, z):
        self.seen = torch.maximum(self.seen, 4 * z.detach().abs().max())
        return super().forward(z / self.seen)


class Updating(Observing):
    """As Observing, by a buffer that is changed in place."""

    def forward(self, z):
        self.seen.mul_(1.25)
        return Twin.forward(self, z + self.seen.log())


@pytest.mark.parametrize("kind", [Observing, Updating])
def test_a_verdict_is_of_the_network_before_the_attack(kind):
    """Before: it was of the network whose buffers the passes of the attack had changed."""
    net, (x, y) = made(kind), data(12)
    for attack in (PGD_3, DeepFool(Threat("l2", 1.0), steps=3), Square(LINF, queries=20)):
        found = attack.run(net, x, y)
        with guard(net), torch.no_grad():
            assert torch.equal(found.success, net(found.x_adv.clone()).argmax(1) != y)


@pytest.mark.parametrize("kind", [Drifting, OwnNoise, Updating])
def test_no_certificate_of_a_network_with_a_state(kind):
    """Before: nothing reported that votes depend on the passes before."""
    net, (x, y) = made(kind), data(12)
    with pytest.warns(UserWarning, match="keeps a state in eval mode"):
        Smoothed(net, 0.25).certify(x[:2], n0=10, n=100, alpha=0.05)
    found = certify_run(net, x[:2], y[:2], Sampling(0.25, n0=10, n=100, alpha=0.05))
    assert "no certificate is valid" in found.hint


def test_a_network_with_seeded_random_numbers_has_no_state():
    found = certify_run(made(Dropping), *(t[:2] for t in data(12)), Sampling(0.25, n0=10, n=100, alpha=0.05))
    assert found.hint is None


class Rounding(Twin):
    def forward(self, z):
        return super().forward((z * 255).round() / 255)


class Sharp(Twin):
    """Its softmax is 0 or 1 in float32: the cross-entropy has no gradient, the margin has."""

    def forward(self, z):
        return 1e5 * super().forward(z)


@pytest.mark.parametrize(
    ("kind", "attack", "hinted"),
    [
        (Rounding, PGD_3, True),
        (Rounding, DeepFool(Threat("l2", 0.5)), True),
        (Rounding, Square(LINF, queries=3), False),
        (Sharp, PGD_3, True),
        (Sharp, PGD(LINF, steps=3, loss="margin"), False),
        (Sharp, DDN(Threat("l2", 0.5), steps=3), True),
        (Sharp, SAPF(Threat("l0", 2), steps=2, final_steps=2, search_steps=1), False),
        (Sharp, EoT(LINF, attack="PGD(steps=2)", samples=2), True),
        (Sharp, EoT(LINF, attack="PGD(steps=2, loss=margin)", samples=2), False),
        (Twin, PGD_3, False),
    ],
)
def test_gradients_of_zero_get_a_hint(kind, attack, hinted):
    """Before: PGD reported every sample of these networks as robust, without a word."""
    net, (x, _) = made(kind), data(12)
    found = evaluate(net, x, net(x).argmax(1), [attack])
    k = found.worst["k"]
    assert (f"exactly zero at {k} of {k} samples" in str(found.hint)) == hinted
    assert k or not hinted
    both = evaluate(net, x, net(x).argmax(1), [attack, Square(LINF, queries=4)])
    assert "exactly zero" not in str(both.hint)


def test_gradients_of_zero_of_one_loss_do_not_stop_an_attack_on_another():
    """Before: the hint said that no gradient-based attack moves where only the cross-entropy's gradient is zero."""
    net, (x, _), near = made(Sharp), data(12), Threat("linf", 1e-6)
    found = evaluate(net, x, net(x).argmax(1), [PGD(near, steps=3), PGD(near, steps=3, loss="margin")])
    assert found.worst["k"]
    assert "exactly zero" not in str(found.hint)


class Ranged(Twin):
    """Checks the range of its inputs."""

    def forward(self, z):
        assert z.min() >= 0
        assert z.max() <= 1
        return super().forward(z)


class Looked(nn.Module):
    """Looks values up in a table of 256."""

    def __init__(self):
        super().__init__()
        self.table, self.lin = nn.Embedding(256, 2), nn.Linear(72, 3)

    def forward(self, z):
        return self.lin(self.table((z * 255).long().flatten(1)).flatten(1))


@pytest.mark.parametrize("kind", [Ranged, Looked])
def test_a_network_that_takes_pixels_only_is_evaluated(kind):
    """Before: the hint on normalised inputs gave it standardised images, and its error ended the evaluation."""
    torch.manual_seed(0)
    net, (x, y) = kind().eval(), data(12)
    found = evaluate(net, x, y, [Square(LINF, queries=3)])
    assert found.clean["k"] == int((net(x).argmax(1) == y).sum())


@pytest.mark.parametrize(
    ("model", "says"),
    [
        (lambda z: z, "got the function <lambda>: call it in the forward() of a module"),
        (Twin, "got the class Twin: construct it, Twin(...)"),
        ("runs/mine", "got 'runs/mine': load it by atent.load('runs/mine')"),
        ({}, "got a dict: load it into a network by load_state_dict"),
        (None, "got None: build or load"),
    ],
)
def test_what_is_not_a_module_is_refused_in_one_line(model, says):
    x, y = data(12)
    calls = [
        lambda: evaluate(model, x, y, [PGD_3]),
        lambda: evaluate(model, x.numpy(), y, {}),
        lambda: predict(model, x, y),
        lambda: PGD_3(model, x, y),
        lambda: Smoothed(model, 0.25),
        lambda: certify_run(model, x, y, Sampling(0.25, 20, 100, 0.05)),
        lambda: verified(model, x, y, LINF),
        lambda: bounds(model, x, LINF, "ibp"),
        lambda: fit(model, from_tensors(x, y, x, y, validation=3), PGDAT(LINF), progress=False),
    ]
    for call in calls:
        assert says in refused(call)


def test_weights_without_values_are_refused_in_one_line():
    with torch.device("meta"):
        net = Twin().eval()
    x, y = data()
    for call in (
        lambda: evaluate(net, x, y, [PGD_3]),
        lambda: PGD_3(net, x, y),
        lambda: quietly(Smoothed(net, 0.25).certify, x, n0=20, n=100, alpha=0.05),
        lambda: verified(net, x, y, LINF),
    ):
        assert "conv.weight is on the meta device" in refused(call)


class Late(Twin):
    """Adds a buffer in its first forward pass."""

    def forward(self, z):
        if "shift" not in self._buffers:
            self.register_buffer("shift", torch.zeros(1))
        return super().forward(z) + self.shift


def test_bounds_refuse_what_they_cannot_read():
    x, y = data()
    assert "cannot read shift" in refused(lambda: verified(made(Late), x, y, LINF))
    frozen = quietly(torch.jit.freeze, quietly(torch.jit.script, made(Twin)))
    assert "TorchScript" in refused(lambda: verified(frozen, x, y, LINF))


def test_a_second_thread_waits_for_the_model():
    """Before: it took the weights that the first had frozen for frozen ones, and left them so."""
    net, entered, inside, together = made(Twin), threading.Event(), threading.Event(), []

    def first():
        with guard(net):
            entered.set()
            together.append(inside.wait(0.3))

    def second():
        entered.wait()
        with guard(net), guard(net):
            inside.set()

    threads = [threading.Thread(target=each) for each in (first, second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together == [False]
    assert inside.is_set()
    assert all(p.requires_grad for p in net.parameters())


def test_threads_find_what_one_finds():
    net, (x, y) = made(Twin), data(12)
    wanted, found = evaluate(net, x, y, [PGD_3]).outcomes, []
    threads = [threading.Thread(target=lambda: found.append(evaluate(net, x, y, [PGD_3]).outcomes)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [wanted] * 3
    assert all(p.requires_grad for p in net.parameters())


def test_flattened_logits_are_not_taken_for_one_sigmoid():
    """Before: for a single sample the error was that of a network with one sigmoid logit."""

    class Flat(Twin):
        def forward(self, z):
            return super().forward(z).flatten()

    x, y = data()
    for n in (1, 3):
        assert "got shape" in refused(lambda n=n: PGD_3(made(Flat), x[:n], y[:n]))


class Looked(nn.Module):
    """A network with an embedding, whose gradient may be sparse."""

    def __init__(self, sparse):
        super().__init__()
        torch.manual_seed(0)
        self.table, self.last = nn.Embedding(4, 4, sparse=sparse), nn.Linear(12, 3)

    def forward(self, x):
        kinds = (4 * x.flatten(1).mean(1)).long().clamp(0, 3)
        return self.last(x.flatten(1) + self.table(kinds).repeat(1, 3))


@pytest.mark.parametrize(
    ("optimizer", "takes"),
    [
        (Optimizer("SGD"), True),
        (Optimizer("SGD", weight_decay=1e-3), False),
        (Optimizer("SGD", clip_norm=0.1), True),
        (Optimizer("Adam", lr=0.01), False),
        (Optimizer("LARS", lr=0.01), False),
        (Optimizer("SGLD", lr=0.01, walk=Walk(noise=1e-4)), False),
        (Optimizer("torch.optim:Adagrad", lr=0.01), True),
        (Optimizer("torch.optim:RMSprop", lr=0.01), False),
    ],
    ids=lambda value: str(value) if isinstance(value, bool) else f"{value.name} {value.weight_decay} {value.clip_norm}",
)
@pytest.mark.parametrize("method", [Standard(), AWP(Standard(), gamma=0.01)], ids=["standard", "awp"])
def test_sparse_gradients_are_those_of_dense_ones(method, optimizer, takes):
    """Weight decay, clipping, AWP and other optimizers ended in tracebacks of torch."""
    assert optimizer.takes_sparse is takes
    x, y = torch.rand(40, 12, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 3
    data, nets = from_tensors(x, y, x[:9], y[:9], validation=8), [Looked(sparse) for sparse in (False, True)]
    for net in nets:
        fit(
            net, data, method, optimizer=optimizer, progress=False,
            settings=TrainSettings(epochs=1, batch_size=8, device="cpu", select="last", validate_limit=8),
        )  # fmt: skip
    # Four steps: a few roundings of each weight.
    for dense, sparse in zip(*(net.parameters() for net in nets), strict=True):
        torch.testing.assert_close(sparse, dense, rtol=1e-4, atol=1e-5)


def test_an_optimizer_for_sparse_gradients_gets_them():
    assert Optimizer("torch.optim:SparseAdam", lr=0.01).takes_sparse
