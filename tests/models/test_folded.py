"""Batch norm folded into the layers beside it: the same function, or the network itself with the reason."""

import copy

import pytest
import torch
from torch import nn

from atent import Threat, evaluate
from atent.attacks import FGSM, PGD, DeepFool
from atent.evaluate.search import Search
from atent.folded import fold
from atent.models import build

THREAT = Threat("linf", 0.05)
NORMS = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


def lived(net, shape=(3, 16, 16), dtype=torch.float64):
    """The network with statistics and affine weights as training leaves them: of every sign and size."""
    torch.manual_seed(1)
    for m in net.modules():
        if isinstance(m, NORMS):
            nn.init.normal_(m.running_mean) if m.running_mean is not None else None
            nn.init.uniform_(m.running_var, 0.5, 2) if m.running_var is not None else None
            if m.affine:
                nn.init.normal_(m.weight)
                nn.init.normal_(m.bias)
    return net.to(dtype), torch.rand(6, *shape, dtype=dtype)


def pair(*layers):
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.LazyLinear(4))


class Small(nn.Module):
    """A batch norm before an unpadded convolution, one behind a grouped one, and one behind a linear layer."""

    def __init__(self):
        super().__init__()
        self.first, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 6, 3, groups=2)
        self.grouped, self.second = nn.Conv2d(6, 6, 3, padding=1, groups=3, bias=False), nn.BatchNorm2d(6)
        self.fc, self.third = nn.Linear(6, 5), nn.BatchNorm1d(5, affine=False)
        self.last = nn.Linear(5, 4)

    def forward(self, x):
        x = self.conv(self.first(x))
        x = torch.relu(self.second(self.grouped(x))).mean((2, 3))
        return self.last(torch.relu(self.third(self.fc(x))))


class Named(Small):
    def forward(self, x):
        x = self.conv(input=self.first(input=x))
        x = torch.relu(self.second(input=self.grouped(x))).mean((2, 3))
        return self.last(torch.relu(self.third(self.fc(input=x))))


def signals(conv, norm, places):
    """A batch norm before an unpadded grouped convolution, and one behind a padded one."""
    return nn.Sequential(
        norm(4), conv(4, 6, 3, groups=2), nn.ReLU(), conv(6, 3, 3, padding=1, bias=False), norm(3), nn.ReLU(),
        nn.Flatten(), nn.Linear(3 * places, 4),
    )  # fmt: skip


def answers(net, x):
    leaf = x.clone().requires_grad_()
    logits = net(leaf)
    return logits.detach(), torch.autograd.grad(logits.square().sum(), leaf)[0]


@pytest.mark.parametrize(
    ("make", "shape", "layers"),
    [
        (Small, (4, 9, 9), 3),
        (Named, (4, 9, 9), 3),
        (lambda: signals(nn.Conv1d, nn.BatchNorm1d, 7), (4, 9), 2),
        (lambda: signals(nn.Conv3d, nn.BatchNorm3d, 27), (4, 5, 5, 5), 2),
        (lambda: build("resnet8", classes=4, shape=(3, 16, 16)), (3, 16, 16), 9),
        # Of the two norms of a block, that behind its first convolution; those before a ReLU stay.
        (lambda: build("wrn_28_4", classes=4, shape=(3, 8, 8)), (3, 8, 8), 13),
    ],
)
def test_the_folded_network_is_the_same_function(make, shape, layers):
    """To 1e-10 in float64, logits and input gradients; the batch is another than the one that folding checks."""
    net, x = lived(make(), shape)
    found = fold(net, torch.rand(4, *shape, dtype=torch.float64))
    assert (found.layers, found.reason) == (layers, None)
    kinds = [m for m in found.network.modules() if isinstance(m, NORMS)]
    assert len(kinds) == sum(isinstance(m, NORMS) for m in net.modules()) - layers
    for a, b in zip(answers(net.eval(), x), answers(found.network, x)):
        assert (a - b).norm() <= 1e-10 * a.norm()
    assert not any(p.requires_grad for p in found.network.parameters())


def test_the_network_comes_back_as_it_was():
    net, x = lived(Small(), (4, 9, 9), torch.float32)
    net.train()
    net.fc.weight.grad = torch.ones_like(net.fc.weight)
    before, drawn = copy.deepcopy(net.state_dict()), torch.get_rng_state()
    found = fold(net, x, channels_last=True)
    assert found.layers == 3
    assert found.network.grouped.weight.is_contiguous(memory_format=torch.channels_last)
    assert all(m.training for m in net.modules())
    assert all(p.requires_grad for p in net.parameters())
    assert torch.equal(net.fc.weight.grad, torch.ones_like(net.fc.weight))
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    mine = {p.data_ptr() for p in net.parameters()}
    assert not mine & {p.data_ptr() for p in found.network.parameters()}


class Branch(Small):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class Drawn(Small):
    def forward(self, x):
        return super().forward(x + 0.1 * torch.rand(x.shape[1:], dtype=x.dtype))


class Twice(nn.Module):
    """One convolution under two norms."""

    def __init__(self):
        super().__init__()
        self.conv, self.a, self.b = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return (self.a(self.conv(x)) + self.b(self.conv(x))).mean((2, 3))


class Padded(nn.Module):
    """A norm before zeros that the convolution pads."""

    def __init__(self):
        super().__init__()
        self.norm, self.conv = nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.conv(self.norm(x)).mean((2, 3))


class Tokens(nn.Module):
    """BatchNorm1d over the tokens (n, tokens, features): not over what the linear layer computes."""

    def __init__(self):
        super().__init__()
        self.fc, self.norm = nn.Linear(9, 4), nn.BatchNorm1d(36)

    def forward(self, x):
        return self.norm(self.fc(x.flatten(1, 2))).mean(1)


class Stored(Small):
    """Statistics of the batch in eval mode too."""

    def __init__(self):
        super().__init__()
        self.first = self.second = nn.BatchNorm2d(4, track_running_stats=False)
        self.second = nn.BatchNorm2d(6, track_running_stats=False)
        self.third = nn.BatchNorm1d(5, track_running_stats=False)


def hooked():
    net = Small()
    net.conv.register_forward_hook(lambda module, args, out: 2 * out)
    return net


def parametrized():
    net = Small()
    nn.utils.parametrizations.weight_norm(net.conv)
    return net


def patched():
    net = Small()
    net.conv.forward = lambda x: net.grouped(x)[:, :, 1:]
    return net


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (Branch, "TraceError"),
        (Drawn, "random numbers"),
        (hooked, "hooks"),
        (parametrized, "parametrized"),
        (patched, "forward of its own"),
        (Twice, "no batch norm is adjacent"),
        (Padded, "no batch norm is adjacent"),
        (Tokens, "no batch norm is adjacent"),
        (Stored, "no batch norm is adjacent"),
    ],
)
def test_what_cannot_be_folded_stays_with_a_reason(make, reason):
    net, x = lived(make(), (4, 9, 9))
    found = fold(net, x)
    assert found.network is net
    assert found.layers == 0
    assert reason in found.reason


def test_a_script_and_a_network_without_norms_stay():
    net, x = lived(Small(), (4, 9, 9))
    assert "scripted" in (fold(torch.jit.trace(net.eval(), x), x).reason or "scripted")
    plain = nn.Sequential(nn.Flatten(), nn.Linear(324, 4)).double()
    assert (fold(plain, x).network, fold(plain, x).reason) == (plain, None)


def test_a_fold_that_disagrees_is_refused(monkeypatch):
    """Statistics that a forward pass reads elsewhere: the copy has them, the fold does not."""
    from atent import folded

    net, x = lived(Small(), (4, 9, 9))
    true = folded._affine

    def wrong(layer, norm, node):
        found = true(layer, norm, node)
        return found and (found[0] * (1 + 1e-8), found[1])

    monkeypatch.setattr(folded, "_affine", wrong)
    assert "differ" in fold(net, x).reason


# ---- in an evaluation


def predicted(net, x):
    with torch.no_grad():
        return net.eval()(x).argmax(1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_evaluation_on_the_folded_network_has_the_verdicts_of_the_network(dtype):
    net, x = lived(build("resnet8", classes=4, shape=(3, 16, 16)), dtype=dtype)
    y = predicted(net, x)
    attacks = [FGSM(THREAT), PGD(THREAT, steps=5), DeepFool(THREAT)]
    found, plain = (evaluate(net, x, y, attacks, cascade=False, folding=folding) for folding in (True, False))
    assert (found.folded, plain.folded) == (9, 0)
    # Not the bits of the points, which round differently, but who is fooled.
    assert found.outcomes == plain.outcomes


def search_of(net, network, dtype=None):
    return Search(net, network, dtype, folded=1)


def test_the_verdict_is_that_of_the_network_on_the_returned_tensor():
    """A searched network that calls everything fooled, and one that calls nothing fooled, change no verdict."""
    net, x = lived(build("resnet8", classes=4, shape=(3, 16, 16)), dtype=torch.float32)
    y = predicted(net, x)

    class Shifted(nn.Module):
        def __init__(self, by):
            super().__init__()
            self.net, self.by = copy.deepcopy(net), by

        def forward(self, z):
            return self.net(z) + self.by * nn.functional.one_hot(y[: len(z)], 4)

    for by in (-1e4, 1e4):
        ids = torch.arange(len(x))
        out = search_of(net, Shifted(by).eval()).attacked(PGD(THREAT, steps=2), x, y, seed=0, ids=ids)
        assert torch.equal(out.success, predicted(net, out.x_adv) != y)
        assert THREAT.contains(out.x_adv, x).all()


class Line(nn.Module):
    """Two classes with the boundary x = 0.5."""

    def __init__(self, sign=1.0):
        super().__init__()
        self.sign = sign

    def forward(self, x):
        z = x.flatten(1)[:, :1] - 0.5
        # The last two classes never win, and have a deviation of 1 for the distance of the rule.
        return torch.cat([self.sign * z, -self.sign * z, torch.full_like(z, -2.0), torch.full_like(z, -2.0)], 1)


def test_what_ends_near_the_boundary_is_searched_again(monkeypatch):
    """A searched network whose gradient points the wrong way, but whose verdicts are right: it fools nothing."""
    from atent.evaluate import search

    class Backwards(nn.Module):
        def forward(self, x):
            return Line()(2 * x.detach() - x)

    x, y, ids = torch.tensor([[0.505], [0.6]]), torch.tensor([0, 0]), torch.arange(2)
    attack, found = PGD(Threat("linf", 0.01), steps=5), search_of(Line(), Backwards())
    # The margins end at 2 (0.515 - 0.5) and 2 (0.61 - 0.5), the deviations from the mean are about 1.
    unit = torch.finfo(torch.float32).eps / 2
    for near, success in ((0.001, [False, False]), (0.1, [True, False])):
        monkeypatch.setattr(search, "NEAR", near / unit)
        assert found.attacked(attack, x, y, seed=0, ids=ids).success.tolist() == success


def test_minimum_norm_attacks_search_in_full_precision():
    net, x = lived(build("resnet8", classes=4, shape=(3, 16, 16)), dtype=torch.float32)
    y = predicted(net, x)
    how = {"cascade": False, "folding": False}
    low = evaluate(net, x, y, [DeepFool(THREAT)], search_dtype="bfloat16", **how)
    full = evaluate(net, x, y, [DeepFool(THREAT)], **how)
    (a,), (b,) = (e.attacks.values() for e in (low, full))
    assert a | {"seconds": 0} == b | {"seconds": 0}
