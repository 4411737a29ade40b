"""Logits from kept layers against the network's own, and which networks are seen so."""

import pytest
import torch
from torch import fx, nn

from atent import models
from atent.attacks import Square
from atent.attacks.affected import graph_of
from atent.attacks.windowed import Windowed
from atent.threat import Threat

# Two ways to sum the same products in float64: at most 20 layers of up to 2^10 products, of numbers below 2^10 of the
# largest logit, round by 20 * 2^10 * 2^-53 * 2^10 < 3e-9 of it. A number that is taken from elsewhere is off by 1e-3.
ROUNDING = 3e-9


def pools():
    """Pools of both kinds, a stride and a border that differ along the sides, and a dilation."""
    return nn.Sequential(
        models.normalize.Normalize([0.4, 0.5], [0.2, 0.3]),
        nn.Conv2d(2, 6, (3, 5), stride=(1, 2), padding=(0, 3)),
        nn.BatchNorm2d(6),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2, stride=1),
        nn.Conv2d(6, 6, 3, padding=2, dilation=2, groups=2),
        nn.Softplus(),
        nn.AvgPool2d((3, 1), stride=(2, 1)),
        nn.Flatten(),
        nn.LazyLinear(5),
    )


class Block(nn.Module):
    """A shortcut that reaches less than the way beside it, and arithmetic with numbers and with one per channel."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 4, 2, stride=2)
        self.scale = nn.Parameter(torch.tensor([0.5, 2.0]).view(-1, 1, 1))
        self.last = nn.LazyLinear(5)

    def forward(self, x):
        x = (x - 0.5) * self.scale
        x = torch.relu(self.second(x + self.first(x)) + 1)
        return self.last(x.mean(3).flatten(1))


NETWORKS = {
    "pools": pools,
    "block": lambda: fx.symbolic_trace(Block()),
    "small_cnn": lambda: models.build("small_cnn", shape=(2, 22, 19)),
    "resnet8": lambda: models.build("resnet8", shape=(2, 22, 19)),
}


def network(name):
    torch.manual_seed(1)
    net = NETWORKS[name]().double()
    x = torch.rand(6, 2, 22, 19, dtype=torch.float64)
    with torch.no_grad():
        net.train()(x)
        for p in net.parameters():
            p.add_(0.05 * torch.randn_like(p))
    return net.eval().requires_grad_(False), x


@pytest.mark.parametrize("side", [1, 4])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_logits_are_the_networks(name, side):
    net, best = network(name)
    windowed, rng = Windowed.of(graph_of(net), best, side), torch.Generator().manual_seed(2)
    assert windowed is not None
    assert len(windowed.affected.slides) >= 2
    moved = 0
    for k in range(12):
        n, _, h, w = best.shape
        top, left = (torch.randint(size - side + 1, (n,), generator=rng) for size in (h, w))
        if k < 2:  # a corner
            top, left = k * (h - side) + 0 * top, (1 - k) * (w - side) + 0 * left
        z = best.clone()
        for i, (a, b) in enumerate(zip(top.tolist(), left.tolist())):
            z[i, :, a : a + side, b : b + side] = torch.rand(2, side, side, generator=rng, dtype=torch.float64)
        expected = net(z)
        assert (windowed.logits(z, top, left) - expected).abs().max() <= ROUNDING * expected.abs().max()
        moved += int(((expected - net(best)).abs().amax(1) > 1e-4 * expected.abs().max()).sum())
        stay = torch.rand(n, generator=rng) < 0.5
        windowed.commit(stay)
        best = torch.where(stay[:, None, None, None], z, best)
        if k == 6:
            rows = torch.tensor([0, 2, 5])
            windowed.take(rows)
            best = best[rows]
    assert moved > 20


def test_windows_that_reach_all_are_left_to_the_network():
    net, x = network("small_cnn")
    assert Windowed.of(graph_of(net), x, 18) is None
    assert graph_of(nn.Linear(3, 3).eval()) is not None
    assert Windowed.of(graph_of(nn.Sequential(nn.Flatten(), nn.Linear(836, 3)).double().eval()), x, 1) is None


class Own(nn.Sequential):
    """Code that could do anything."""

    def forward(self, x):
        assert isinstance(x, torch.Tensor), "traced"
        return super().forward(x)


def test_code_that_is_not_known_is_not_traced():
    def plain():
        return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(72, 3))

    assert graph_of(plain().eval()) is not None
    assert graph_of(plain().train()) is None
    assert graph_of(Own(*plain()).eval()) is None
    assert graph_of(nn.Sequential(Own(*plain())).eval()) is None
    hooked = plain().eval()
    hooked[0].register_forward_hook(lambda *_: None)
    assert graph_of(hooked) is None
    normed = nn.utils.parametrizations.weight_norm(nn.Conv2d(1, 2, 3))
    assert graph_of(nn.Sequential(normed, nn.Flatten()).eval()) is None


@pytest.fixture
def seen(monkeypatch):
    """The numbers of rows of which logits came from kept layers."""
    rows, inner = [], Windowed.logits
    monkeypatch.setattr(Windowed, "logits", lambda self, z, *at: rows.append(len(z)) or inner(self, z, *at))
    return rows


def test_the_search_is_the_same(conv_net, batch, seen, monkeypatch):
    model, (x, y) = conv_net(norm=True), batch(30)
    attack = Square(Threat("linf", 0.06), queries=300)
    found = attack.run(model, x, y)
    assert len(seen) > 50
    count = len(seen)
    monkeypatch.setattr("atent.attacks.windowed.graph_of", lambda model: None)
    whole = attack.run(model, x, y)
    assert len(seen) == count
    assert 3 < int(whole.success.sum()) < 27
    assert torch.equal(found.x_adv, whole.x_adv)
    assert torch.equal(found.forwards, whole.forwards)


def test_a_layer_that_is_more_than_its_name_says_is_noticed(conv_net, batch, seen):
    model, (x, y) = conv_net(), batch(10)
    conv = next(m for m in model.modules() if isinstance(m, nn.Conv2d))
    plain = conv.forward
    conv.forward = lambda z: 1.1 * plain(z)
    other = conv_net()
    with torch.no_grad():
        next(m for m in other.modules() if isinstance(m, nn.Conv2d)).weight.mul_(1.1)
        next(m for m in other.modules() if isinstance(m, nn.Conv2d)).bias.mul_(1.1)
    attack = Square(Threat("linf", 0.05), queries=100)
    found = attack.run(model, x, y)
    assert len(seen) == 1
    expected = attack.run(other, x, y)
    assert len(seen) > 10
    assert torch.equal(found.success, expected.success)


class Nudged(Windowed):
    """Rounds otherwise than the network: the largest logit's last place moves at random."""

    def logits(self, z, top, left):
        found = super().logits(z, top, left)
        noise = torch.rand(found.shape, generator=torch.Generator().manual_seed(int(top.sum())), dtype=found.dtype)
        return found + (noise - 0.5) * 4 * torch.finfo(found.dtype).eps * found.abs().amax(1, keepdim=True)


def test_rounding_is_no_gain(batch, monkeypatch):
    """A network that looks at a quarter of the image: all queries elsewhere leave its logits as they are."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(192, 10)).double()
    x, _ = batch(12)
    with torch.no_grad():
        seen = torch.zeros(3, 8, 8, dtype=torch.bool)
        seen[:, :3, :3] = True
        net[3].weight.mul_(seen.flatten())
        y = net(x).argmax(1)
    attack = Square(Threat("linf", 1e-3), queries=200)
    whole = attack.run(net, x, y)
    monkeypatch.setattr("atent.attacks.windowed.Windowed", Nudged)
    nudged = attack.run(net, x, y)
    assert torch.equal(nudged.x_adv, whole.x_adv)
    assert torch.equal(nudged.forwards, whole.forwards)


def test_no_more_is_kept_than_is_allowed(monkeypatch):
    net, x = network("small_cnn")
    monkeypatch.setattr("atent.attacks.windowed._MOST", 6 * 40_000)
    assert Windowed.of(graph_of(net), x, 1) is not None
    monkeypatch.setattr("atent.attacks.windowed._MOST", 6 * 4_000)
    assert Windowed.of(graph_of(net), x, 1) is None
