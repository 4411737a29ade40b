"""Square attack against one-sample transcriptions in float64 that try every query, and models whose answer is known."""

import math

import numpy as np
import pytest
import torch
from kit import BALLS, Syncs
from scipy import stats
from torch import nn

from atent.attacks import PGD, Square
from atent.attacks.windows import Squares, _places, as_image, eta, window_side
from atent.losses import cross_entropy, margin
from atent.rng import PerSample
from atent.threat import Threat

NORM = pytest.mark.parametrize("norm", BALLS)
LOSS = {"margin": margin, "ce": cross_entropy}


def published_share(query, queries, p_init):
    """The schedule of the authors' code, as a chain of conditions."""
    it = int(query / queries * 10000)
    for low, high, part in (
        (10, 50, 2), (50, 200, 4), (200, 500, 8), (500, 1000, 16), (1000, 2000, 32), (2000, 4000, 64),
        (4000, 6000, 128), (6000, 8000, 256),
    ):  # fmt: skip
        if low < it <= high:
            return p_init / part
    return p_init / 512 if it > 8000 else p_init


@pytest.mark.parametrize("queries", [5000, 10000, 250])
def test_the_schedule_is_the_published_one(queries):
    attack = Square(Threat("linf", 0.1), queries=queries, p_init=0.8)
    shares = [attack.share(query) for query in range(queries)]
    assert shares == [published_share(query, queries, 0.8) for query in range(queries)]
    assert shares[0] == 0.8
    assert shares[-1] == 0.8 / 512
    if queries == 10000:
        assert [i for i in range(1, queries) if shares[i] != shares[i - 1]] == [
            11, 51, 201, 501, 1001, 2001, 4001, 6001, 8001,
        ]  # fmt: skip


@pytest.mark.parametrize("queries", [5000, 250])
def test_an_absolute_schedule_is_that_of_10000_queries(queries):
    """As in AutoAttack: after 5,000 queries p is p_init / 128, not p_init / 512."""
    attack = Square(Threat("linf", 0.1), queries=queries, schedule="absolute")
    shares = [attack.share(query) for query in range(queries)]
    assert shares == [published_share(query, 10_000, 0.8) for query in range(queries)]
    assert shares[-1] == 0.8 / (128 if queries == 5000 else 8)


def test_windows_have_the_published_sides():
    assert [window_side(0.8 / 2**k, 32, 32, 1) for k in range(10)] == [29, 20, 14, 10, 7, 5, 4, 3, 2, 1]
    assert [window_side(0.8 / 2**k, 8, 8, 3) for k in range(5)] == [7, 5, 4, 3, 3]
    assert window_side(0.8, 4, 100, 1) == 4
    assert window_side(0.8, 1, 10, 3) == 1


def test_vectors_are_read_as_images(conv_net, batch):
    assert [as_image(shape) for shape in ((3, 5, 7), (49,), (50,), (2, 8))] == [
        (3, 5, 7),
        (1, 7, 7),
        (1, 1, 50),
        (1, 4, 4),
    ]
    (x, y), body = batch(8), conv_net()
    flat = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), body)
    for norm, eps in (("linf", 0.1), ("l2", 0.7)):
        attack = Square(Threat(norm, eps), queries=40)
        assert torch.equal(attack(flat, x.flatten(1), y), attack(body, x, y).flatten(1))


def slow_rectangle(h, w, order):
    """Squares that grow around the middle cell, cut at the edge, the k-th adding 1 / k^2 (l2) or 1 / k^4 (l1)."""
    delta = np.zeros((h, w))
    for k in range(1, max(h // 2, w // 2) + 2):
        for i in range(max(h // 2 - k + 1, 0), min(h // 2 + k, h)):
            for j in range(max(w // 2 - k + 1, 0), min(w // 2 + k, w)):
                delta[i, j] += 1 / k ** {2: 2, 1: 4}[order]
    return delta / measured(delta, order) if delta.size else delta


def measured(d, order):
    """The l2 (``order`` 2) or the l1 norm of all entries."""
    return np.sqrt((d**2).sum()) if order == 2 else np.abs(d).sum()


def slow_eta(side, order):
    halves = slow_rectangle(side // 2, side, order), slow_rectangle(side - side // 2, side, order)
    pattern = np.concatenate([halves[0], -halves[1]])
    return pattern / measured(pattern, order)


@pytest.mark.parametrize("order", [2, 1])
@pytest.mark.parametrize("side", [1, 2, 3, 5, 8, 13])
def test_the_pattern(side, order):
    pattern = eta(side, torch.empty(0).double(), order)
    assert np.abs(pattern.numpy() - slow_eta(side, order)).max() <= 1e-15
    assert float(pattern.norm(order)) == pytest.approx(1)
    assert (pattern[: side // 2] > 0).all()
    assert (pattern[side // 2 :] < 0).all()


def test_all_places_are_equally_likely():
    sides = torch.full((6000,), 6)
    u = PerSample(3, torch.arange(5)).uniform(torch.empty(5, 6000))
    counts = torch.bincount(_places(u, sides, 8, 9).flatten(), minlength=12)
    assert len(counts) == 12
    assert stats.chisquare(counts.numpy()).pvalue > 1e-3
    # the largest number that is drawn names the last place: its product does not round up
    top = torch.full((1, 6000), 1 - 2.0**-24)
    for h in (8, 20, 28, 32, 225, 4101):
        assert (_places(top, sides, h, h) == (h - 5) ** 2 - 1).all()


# -- one sample at a time, every query


def slow_nearest(d, x, eps):
    """The point of the l1 ball and the box that is nearest to x + d: the multiplier by bisection."""
    room = np.where(d > 0, 1 - x, x)

    def cut(t):
        return np.minimum(np.maximum(np.abs(d) - t, 0), room)

    low, high = 0.0, np.abs(d).max()
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if cut(middle).sum() <= eps else (middle, high)
    return x + np.sign(d) * cut(0.0 if cut(0.0).sum() <= eps else high)


def slow_square(norm, eps, model, x, label, streams, queries, p_init, loss):
    """The algorithm as published, with the draws of the attack; the start counts as no query."""
    c, h, w = x.shape
    x, order = x.numpy(), 1 if norm == "l1" else 2
    each = 1 + c if norm == "linf" else 3 + c
    blocks = [range(first, min(first + 256, queries)) for first in range(0, queries, 256)]
    u = np.concatenate([
        streams.uniform(torch.empty(1, len(block) * each), use="query", step=step).view(-1, each).numpy()
        for step, block in enumerate(blocks)
    ])  # fmt: skip

    def coins(use, *shape):
        return (streams.uniform(torch.empty(1, math.prod(shape)).double(), use=use) > 0.5).view(shape).numpy()

    def score_of(point):
        with torch.no_grad():
            logits = model(torch.tensor(point)[None])
        y = torch.tensor([label])
        return float(LOSS[loss](logits, y)), float(margin(logits, y)) > 0

    def window(number, side):
        across = w - side + 1
        place = int(np.float32(number) * np.float32((h - side + 1) * across))
        top, left = place // across, place % across
        return slice(top, top + side), slice(left, left + side)

    def spread(delta):
        if norm == "l1":
            return slow_nearest(delta, x, eps)
        return np.clip(x + delta * eps / (np.sqrt((delta**2).sum()) + 1e-12), 0, 1)

    if norm == "linf":
        sign = np.where(coins("stripes", c, 1, w), 1.0, -1.0)
        best = np.clip(x + eps * sign, 0, 1)
    else:
        side = max(min(h, w) // 5, 1)
        down, across = h // side, w // side
        up, turned = coins("tile signs", c, down, across), coins("tile turns", down, across)
        delta = np.zeros_like(x)
        for ch in range(c):
            for i in range(down):
                for j in range(across):
                    top, left = (h - side * down) // 2 + i * side, (w - side * across) // 2 + j * side
                    tile = slow_eta(side, order).T if turned[i, j] else slow_eta(side, order)
                    delta[ch, top : top + side, left : left + side] = tile if up[ch, i, j] else -tile
        if norm == "l1":
            delta *= max(eps / np.abs(delta).sum(), 1.0)
        best = spread(delta)
    value, fallen = score_of(best)
    tried = []
    for query in range(queries):
        if fallen:
            break
        p = published_share(query, queries, p_init)
        side = min(max(round(math.sqrt(p * h * w)), 1 if norm == "linf" else 3), h, w)
        if norm == "linf":
            rows, columns = window(u[query, 0], side)
            z = best.copy()
            for ch in range(c):
                z[ch, rows, columns] += 2 * eps * (1 if u[query, 1 + ch] > 0.5 else -1)
            z = np.clip(np.clip(z, x - eps, x + eps), 0, 1)
        else:
            side = min(side if side % 2 else side + 1, h, w)
            rows, columns = window(u[query, 0], side)
            rows2, columns2 = window(u[query, 1], side)
            delta, pattern = best - x, slow_eta(side, order)
            mask = np.zeros((h, w), dtype=bool)
            mask[rows, columns] = mask[rows2, columns2] = True
            new = np.zeros((c, side, side))
            for ch in range(c):
                held = delta[ch, rows, columns]
                shape = (pattern.T if u[query, 2] > 0.5 else pattern) * (1 if u[query, 3 + ch] > 0.5 else -1)
                new[ch] = shape + held / (measured(held, order) + 1e-12)
                if norm == "l2":
                    length = np.sqrt(max(eps**2 - (delta**2).sum(), 0) / c + (delta[ch][mask] ** 2).sum())
                else:
                    length = c * (max(eps - np.abs(delta).sum(), 0) / c + np.abs(delta[ch][mask]).sum())
                new[ch] *= length / (measured(new[ch], order) + 1e-12)
            delta[:, rows2, columns2] = 0
            delta[:, rows, columns] = new
            z = spread(delta)
        score, wrong = score_of(z)
        tried.append((score, value))
        if score > value or wrong:
            best, value, fallen = z, score, wrong
    return best, fallen, tried


class Colour(nn.Module):
    """Three channels of 6 by 9 pixels."""

    def __init__(self):
        super().__init__()
        g = torch.Generator().manual_seed(4)
        self.first, self.second = (
            nn.Parameter(torch.randn(*shape, generator=g, dtype=torch.float64)) for shape in ((162, 12), (12, 4))
        )

    def forward(self, x):
        return torch.tanh((x.flatten(1) - 0.5) @ self.first / 4) @ self.second


def colours(n=5):
    x = torch.rand(n, 3, 6, 9, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return (1.5 * x - 0.25).clamp(0, 1)


# In each norm both losses and both kinds of images, in two of their four pairs; the others are slow.
@pytest.mark.parametrize(
    ("kind", "loss"),
    [
        pytest.param(kind, loss, marks=[] if (kind == "digits") == (loss == "margin") else [pytest.mark.slow])
        for kind in ("digits", "colours")
        for loss in LOSS
    ],
)
@pytest.mark.parametrize("norm", [*BALLS, "l1"])
def test_the_transcription_finds_the_same(norm, kind, loss, conv_net, batch):
    if kind == "digits":
        model, (x, y) = conv_net(norm=True), batch(8)
        eps, queries = {"linf": (0.09, 700), "l2": (0.7, 200), "l1": (3.0, 200)}[norm]
    else:
        model, x = Colour(), colours()
        y, eps, queries = model(x).argmax(1), {"linf": 0.02, "l2": 0.25, "l1": 1.0}[norm], 300
    ids = torch.arange(len(x)) + 40
    attack = Square(Threat(norm, eps), queries=queries, p_init=0.6, loss=loss)
    out = attack.run(model, x, y, seed=9, ids=ids)
    accepted = 0
    for i in range(len(x)):
        streams = PerSample(9, ids[i : i + 1], "Square")
        slow, fallen, tried = slow_square(norm, eps, model, x[i], int(y[i]), streams, queries, 0.6, loss)
        assert bool(out.success[i]) == fallen
        assert np.abs(out.x_adv[i].numpy() - slow).max() <= 1e-9
        accepted += sum(score > value for score, value in tried)
    assert accepted > 20
    assert 0 < int(out.success.sum()) < len(x)


# -- what it asks the model


class Recorded(nn.Module):
    def __init__(self, body):
        super().__init__()
        self.body, self.seen, self.grads = body, [], []

    def forward(self, x):
        self.seen.append(x.detach().clone())
        self.grads.append(torch.is_grad_enabled() or x.requires_grad)
        return self.body(x)


def test_queries_that_change_nothing_are_passed_over(conv_net, batch):
    """What is asked of one sample: never its best point, never the same twice in vain, and less than there is."""
    (x, y), body = batch(6), conv_net(norm=True)
    right = body(x).argmax(1) == y
    x, y = x[right], y[right]
    for i in range(3):
        model, queries = Recorded(body), 1500
        out = Square(Threat("linf", 0.02), queries=queries).run(model, x[i : i + 1], y[i : i + 1])
        assert not out.success.any()
        seen = model.seen[:-1]
        best, value, vain, useless = seen[0], margin(body(seen[0]), y[i : i + 1]), set(), 0
        for z in seen[1:]:
            key = z.numpy().tobytes()
            useless += torch.equal(z, best) or key in vain
            score = margin(body(z), y[i : i + 1])
            if score > value:
                best, value, vain = z, score, set()
            vain.add(key)
        assert torch.equal(out.x_adv, best)
        assert queries / 20 < len(seen) < queries / 2
        # only where nothing useful is in sight: 32 queries ahead
        assert useless <= queries / 32 + 64


def test_what_is_tried_again_is_seen_in_the_random_numbers():
    x = torch.rand(4, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    moves = Squares.sample(Threat("linf", 0.1), x, [0.2] * 30 + [0.04] * 170, PerSample(1, torch.arange(4)), 0)
    for i in range(4):
        last = {}
        for query in range(200):
            key = (query >= 30, int(moves.places[i, query]), bool(moves.signs[i, query, 0]))
            assert int(moves.before[i, query]) == last.get(key, -1)
            last[key] = query


@NORM
def test_no_gradient_is_asked_for(norm, conv_net, batch):
    (x, y), model = batch(5), Recorded(conv_net())
    out = Square(Threat(norm, 0.05), queries=20, restarts=2).run(model, x, y)
    assert not any(model.grads)
    assert not out.backwards.any()


class Rounded(nn.Module):
    """Sees 16 grey values: gradients are zero or absent."""

    def __init__(self, body):
        super().__init__()
        self.body = body

    def forward(self, x):
        return self.body((x * 16).round() / 16)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.12), ("l2", 0.9)])
def test_a_model_that_rounds_its_input_falls(norm, eps, conv_net, batch):
    (x, y), model = batch(40), Rounded(conv_net(norm=True))
    right = model(x).argmax(1) == y
    x, y = x[right], y[right]
    blind = PGD(Threat(norm, eps), steps=20).run(model, x, y).success
    fooled = Square(Threat(norm, eps), queries=300).run(model, x, y).success
    assert int(fooled.sum()) > len(x) // 2
    assert int(fooled.sum()) > 2 * int(blind.sum())


@NORM
def test_who_falls_drops_out_soon(norm, conv_net, batch):
    (x, y), model = batch(40), Recorded(conv_net(norm=True))
    eps = {"linf": 0.1, "l2": 0.8}[norm]
    out = Square(Threat(norm, eps), queries=200).run(model, x, y)
    # after 1, 2, 4, ... 64 and then every 64 queries, with the start and the verdict
    assert set(out.forwards.tolist()) <= {2 + k for k in (1, 2, 4, 8, 16, 32, 64, 128, 192, 200)}
    assert len(set(out.forwards[out.success].tolist())) >= 3
    sizes = [len(seen) for seen in model.seen[:-1]]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) + 40 == int(out.forwards.sum())


def test_the_loop_waits_for_nothing_between_two_checks(conv_net, batch):
    (x, y), model = batch(6), conv_net()
    counts = []
    for queries in (65, 126):
        with Syncs() as syncs:
            Square(Threat("l2", 1e-3), queries=queries)(model, x, y)
        counts.append(len(syncs.seen))
    assert counts[0] == counts[1]


# -- linear models: the distance is known


@NORM
def test_a_linear_model_falls_beyond_its_distance(norm, two_class):
    model, x, y, distance = two_class()
    near, beyond = 0, 0
    for i in range(6):
        one = slice(i, i + 1)
        for factor in (0.99, 1.05 if norm == "linf" else 1.25):
            threat = Threat(norm, factor * float(distance[norm][i]))
            fooled = bool(Square(threat, queries=500).run(model, x[one], y[one]).success)
            near, beyond = near + (fooled and factor < 1), beyond + (fooled and factor > 1)
    assert near == 0
    assert beyond == 6


class Turned(nn.Module):
    """Right where it looks first, though barely; anywhere else wrong, with a smaller cross-entropy."""

    def __init__(self):
        super().__init__()
        self.first = None

    def forward(self, x):
        self.first = x if self.first is None else self.first
        same = (x == self.first).flatten(1).all(1, keepdim=True)
        return torch.where(same, torch.tensor([0.0, -0.01, -0.01]), torch.tensor([0.0, 0.01, -9.0]))


@NORM
def test_who_is_misclassified_is_done_whatever_the_loss_says(norm):
    x, y = torch.full((3, 1, 6, 6), 0.5), torch.zeros(3).long()
    assert Square(Threat(norm, 0.1), queries=5, loss="ce").run(Turned(), x, y).success.all()


def test_restarts_help(conv_net, batch):
    (x, y), model = batch(60), conv_net(norm=True)
    fooled = [Square(Threat("l2", 0.5), queries=15, restarts=r).run(model, x, y, seed=2).success for r in (1, 4)]
    assert (fooled[1] >= fooled[0]).all()
    assert int(fooled[1].sum()) > int(fooled[0].sum())
