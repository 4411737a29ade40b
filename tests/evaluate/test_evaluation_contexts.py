"""The modes and the random state of torch around an evaluation, a study or a certificate do not change it."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from atent import Threat
from atent.attacks import DDN, FGSM, PGD, AutoAttack, SigmaZero
from atent.certify import Sampling, certify_run, verified
from atent.evaluate import (
    evaluate,
    fourier_map,
    masking_checks,
    measure_bands,
    measure_corruptions,
    measure_flips,
    measure_transfer,
    predict,
    sweep,
)
from atent.evaluate.craft import craft

LINF, L2 = Threat("linf", 0.05), Threat("l2", 0.5)
rng = torch.Generator().manual_seed(0)
X = torch.rand(12, 1, 8, 8, generator=rng)
Y = torch.arange(12) % 3


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()


OTHER = network()


def passed(net):
    return [check.passed for check in masking_checks(net, X, Y, LINF)]


WORK = {
    "evaluate": lambda net: evaluate(net, X, Y, [FGSM(LINF), PGD(LINF, steps=3)], cascade=False).outcomes,
    "AutoAttack": lambda net: evaluate(net, X, Y, [AutoAttack(LINF, version="rand", steps=4, eot=2)]).outcomes,
    "minimum norm": lambda net: evaluate(net, X, Y, [DDN(L2, steps=5)]).outcomes,
    "sweep": lambda net: [row["robust"] for row in sweep(net, X, Y, [PGD(LINF, steps=2)], [0.01, 0.1])],
    "masking": passed,
    "craft": lambda net: craft(net, X, Y, PGD(LINF, steps=2))["x_adv"].tolist(),
    "bands": lambda net: measure_bands(net, X, Y, FGSM(LINF), cut=3).robust["low"].tolist(),
    "corruptions": lambda net: measure_corruptions(net, X, Y, names=["contrast"]).wrong.tolist(),
    "flips": lambda net: measure_flips(net, X, Y, names=["brightness"]).rates.tolist(),
    "fourier": lambda net: fourier_map(net, X, Y).errors.tolist(),
    "transfer": lambda net: measure_transfer({"a": net, "b": OTHER}, X, Y, FGSM(LINF)).robust.tolist(),
    "smoothing": lambda net: [
        r.radius for r in certify_run(net, X[:3], Y[:3], Sampling(0.25, n0=10, n=50, alpha=0.05)).rows
    ],
    "bounds": lambda net: verified(net, X, Y, Threat("linf", 0.001)).tolist(),
}
MODES = {
    "no_grad": torch.no_grad,
    "inference": torch.inference_mode,
    "autocast": partial(torch.autocast, "cpu", torch.bfloat16),
}


@pytest.mark.parametrize("work", WORK)
def test_the_modes_of_the_caller_do_not_change_what_is_measured(work):
    expected = WORK[work](network())
    for name, mode in MODES.items():
        net = network()
        with mode():
            assert WORK[work](net) == expected, name


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
@pytest.mark.parametrize(
    "attack", [SigmaZero(Threat("l0", 5), steps=40, threshold_rate=0.3), PGD(LINF, steps=3), DDN(L2, steps=5)]
)
def test_the_default_dtype_of_the_caller_does_not_change_an_attack(attack, dtype):
    """Before: the threshold of Sigma-Zero changed by steps of torch's default dtype."""
    net = network()
    expected = attack(net, X, Y)
    torch.set_default_dtype(dtype)
    try:
        found = attack(net, X, Y)
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, expected)


class Noting(nn.Module):
    """Notes the precision in which a CPU computes products of float32."""

    def __init__(self):
        super().__init__()
        self.net, self.seen = network(), set()

    def forward(self, z):
        self.seen |= {kind.fp32_precision for kind in CPU}
        return self.net(z)


CPU = (torch.backends.mkldnn.matmul, torch.backends.mkldnn.conv, torch.backends.mkldnn.rnn)


@pytest.mark.parametrize("work", ["evaluate", "minimum norm", "transfer", "smoothing"])
def test_products_on_a_cpu_are_in_float32(work):
    """Before: in bfloat16 after ``torch.set_float32_matmul_precision("medium")``, on processors that have it."""
    before, expected, net = torch.get_float32_matmul_precision(), WORK[work](network()), Noting().eval()
    torch.set_float32_matmul_precision("medium")
    try:
        inside = [kind.fp32_precision for kind in CPU]
        assert WORK[work](net) == expected
        assert [kind.fp32_precision for kind in CPU] == inside
    finally:
        torch.set_float32_matmul_precision(before)
    assert net.seen <= {"ieee", "none"}


class Random(nn.Module):
    """Random numbers of torch, numpy and Python in eval mode, over the network."""

    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, z):
        noise = torch.from_numpy(np.random.randn(*z.shape)).to(z)  # noqa: NPY002
        return self.net(nn.functional.dropout(z * random.random(), 0.5) + 0.3 * noise)


@pytest.mark.parametrize("work", ["evaluate", "minimum norm", "bands", "corruptions", "flips", "fourier", "transfer"])
def test_a_random_network_draws_from_the_seed_of_the_call(work):
    """Before: its predictions without an attack drew from the global generator of torch, and passes of a network with
    random numbers of numpy or Python from theirs."""
    found = []
    for state in (1, 2):
        net = Random().eval()
        torch.manual_seed(state)
        np.random.seed(state)  # noqa: NPY002
        random.seed(state)
        found.append(WORK[work](net))
    assert found[0] == found[1]


def test_predictions_of_a_random_network_depend_on_their_seed():
    net = Random().eval()
    x = X.repeat(20, 1, 1, 1)
    first, again, other = (predict(net, x, Y.repeat(20), seed=seed) for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
