"""The attacks on few elements and patches, and PGD and Auto-PGD in other norms than linf and l2, beside slow
transcriptions: one sample at a time, from the papers' formulas, gradients of whole objectives by autograd, in float64.
"""

import math

import pytest
import torch
from test_regions import slow_visibility
from torch import nn
from torch.nn import functional as F

from atent.attacks import APGD, PGD, SAPF, SigmaZero, SparsePGD, SparseRS, TokenAttack
from atent.attacks.starts import start
from atent.rng import PerSample
from atent.threat import Threat

CLOSE = 1e-9
N = 6
SEED = 3


def gap(z, y):
    """By how much the logits z of one sample are misclassified."""
    return max(z[i] for i in range(len(z)) if i != y) - z[y]


def coloured(n=N):
    """A network of images with three channels, and images of all its classes; no pixel lies on the wall of the box."""
    g = torch.Generator().manual_seed(4)
    net = nn.Sequential(nn.Conv2d(3, 6, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(96, 5)).double()
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g, dtype=torch.float64) * 0.4)
    x = 0.1 + 0.8 * torch.rand(n, 3, 4, 4, generator=g, dtype=torch.float64)
    return net.eval(), x, net(x).argmax(1)


def grey(conv_net, batch):
    model, (x, _) = conv_net(), batch(N)
    with torch.no_grad():
        return model, x, model(x).argmax(1)


def cases(conv_net, batch):
    return {"element": grey(conv_net, batch), "pixel": coloured()}


def pooled(t, group):
    """The sum of each element or pixel of one sample, (u,)."""
    return t.flatten() if group == "element" else t.sum(0).flatten()


def spread(m, like, group):
    """One value for each element or pixel as a tensor like the sample."""
    return m.view_as(like) if group == "element" else m.view(1, *like.shape[1:]).expand_as(like)


def top(scores, k):
    """The places of the k largest scores, the first of equal ones."""
    order = sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))
    mask = torch.zeros(len(scores), dtype=torch.bool)
    mask[order[:k]] = True
    return mask


def assert_same(out, slow):
    for i, x_adv in enumerate(slow):
        assert float((out.x_adv[i] - x_adv).abs().max()) <= CLOSE, i


# -- PGD in l1, in l0 and for patches


def slow_l1(x, z, eps):
    """The nearest point of ball and box: all lengths less one number, which is found by bisection."""
    v = z - x
    room = torch.where(v > 0, 1 - x, x)

    def lengths(t):
        return torch.minimum((v.abs() - t).clamp_min(0), room)

    low, high = 0.0, float(v.abs().max())
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (low, middle) if float(lengths(middle).sum()) <= eps else (middle, high)
    return x + v.sign() * lengths(0.0 if float(lengths(0.0).sum()) <= eps else high)


def slow_units(threat, x):
    """A mask for each element, pixel or patch."""
    c, h, w = x.shape
    side = threat.side if threat.norm == "patch" else 1
    channels = [slice(k, k + 1) for k in range(c)] if threat.group == "element" and side == 1 else [slice(None)]
    for channel in channels:
        for i in range(0, h, side):
            for j in range(0, w, side):
                mask = torch.zeros(x.shape, dtype=torch.bool)
                mask[channel, i : i + side, j : j + side] = True
                yield mask


def slow_count(threat, x, z):
    """The nearest point of the box of which at most k units differ from x."""
    k, reach = int(float(threat.eps)), 1.0 if threat.inner_eps is None else float(threat.inner_eps)
    near = (x + (z - x).clamp(-reach, reach)).clamp(0, 1)
    saved = {u: float(((z - x)[u] ** 2).sum() - ((z - near)[u] ** 2).sum()) for u in slow_units(threat, x)}
    out = x.clone()
    for u in sorted(saved, key=lambda u: -saved[u])[:k]:
        out[u] = near[u]
    return out


def slow_pgd(net, threat, x, y, steps, step):
    z = x
    for _ in range(steps):
        z = z.detach().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(net(z[None]), torch.tensor([y])), z)
        z = z.detach()
        if threat.norm == "l1":
            # To the faces of the box, in the coordinates of the largest gradients, until the length is used up.
            moved, left = z.flatten().clone(), step
            for i in sorted(range(len(moved)), key=lambda i: -abs(float(g.flatten()[i]))):
                up = float(g.flatten()[i]) > 0
                length = min(left, float(1 - moved[i] if up else moved[i]))
                moved[i] += length if up else -length
                left -= length
            z = slow_l1(x, moved.view_as(x), float(threat.eps))
        else:
            z = slow_count(threat, x, z + step * g / g.abs().max())
    return z


@pytest.mark.parametrize("given", [True, False], ids=["given", "default"])
@pytest.mark.parametrize(
    ("threat", "short", "default"),
    [
        (Threat("l1", 2.0), 0.3, 2.5 * 2.0 / 4),
        (Threat("l0", 5), 0.15, 10.0),
        (Threat("l0", 3, group="pixel"), 0.15, 10.0),
        (Threat("patch", 1, side=2), 0.15, 10.0),
        (Threat("patch", 2, side=2, inner="linf", inner_eps=0.2), 0.15, 10.0),
    ],
    ids=["l1", "elements", "pixels", "patch", "patches"],
)
def test_pgd(threat, short, default, given):
    net, x, y = coloured(3)
    step = short if given else default
    found = PGD(threat, steps=4, step_size=short if given else None, start="zero")(net, x, y)
    for i in range(len(x)):
        slow = slow_pgd(net, threat, x[i], int(y[i]), 4, step)
        assert float((found[i] - slow).abs().max()) <= CLOSE, i
        assert float((slow - x[i]).abs().max()) > 0.05


# -- sigma-zero


def slow_sigma_zero(net, attack, x, y, group):
    delta = torch.zeros_like(x, requires_grad=True)
    adam = torch.optim.Adam([delta], lr=attack.step_size)
    best, fewest, tau, eta = x.clone(), math.inf, attack.threshold, attack.step_size
    for k in range(attack.steps):
        z = net((x + delta)[None])[0]
        squares = pooled(delta**2, group)
        loss = (squares / (squares + attack.sigma)).mean() + (-gap(z, y)).clamp_min(0)
        fooled, count = bool(gap(z.detach(), y) > 0), int((pooled((delta != 0).double(), group) > 0).sum())
        if fooled and count < fewest:
            best, fewest = (x + delta).detach(), count
        if k + 1 == attack.steps:
            return best
        (grad,) = torch.autograd.grad(loss, delta)
        delta.grad = grad / grad.abs().max()
        adam.param_groups[0]["lr"] = eta
        adam.step()
        eta = (0.1 + 0.9 * (1 + math.cos(math.pi * k / attack.steps)) / 2) * attack.step_size
        tau = min(1.0, max(0.0, tau + attack.threshold_rate * (eta if fooled else -eta)))
        with torch.no_grad():
            delta.copy_((x + delta).clamp(0, 1) - x)
            size = delta.abs().flatten() if group == "element" else delta.abs().amax(0).flatten()
            delta.mul_(spread((size >= tau).double(), x, group))


@pytest.mark.parametrize("group", ["element", "pixel"])
def test_sigma_zero(group, conv_net, batch):
    net, x, y = cases(conv_net, batch)[group]
    attack = SigmaZero(Threat("l0", "inf", group=group), steps=60)
    out = attack.run(net, x, y)
    assert out.success.any()
    assert_same(out, [slow_sigma_zero(net, attack, a, int(b), group) for a, b in zip(x, y)])


# -- SAPF


def slow_sapf(net, attack, x, y, group, regions):
    k, u = int(float(attack.threat.eps)), x.numel() if group == "element" else x[0].numel()
    seen_at = slow_visibility(x, 0.0, 1.0).flatten() if attack.visibility else torch.ones(u, dtype=x.dtype)
    best, smallest, last = x, math.inf, x
    c, low, high = attack.initial_const, 0.0, math.inf

    def objective(e, places):
        z = (x + e * spread(places, x, group)).clamp(0, 1)
        logits = net(z[None])[0]
        hinge = (attack.confidence - gap(logits, y)).clamp_min(0)
        cost = (e * spread(places * seen_at, x, group)).pow(2).sum()
        return cost + c * hinge, z.detach(), float(gap(logits.detach(), y))

    def rate(step):
        return max(attack.step_size * 0.9 ** (step // 50), 1e-3)

    def size(z):
        return float(((z - x) * spread(seen_at, x, group)).norm())

    def descend(e, places, steps):
        """Steps on e; every point before a step, with its margin."""
        seen = []
        for step in range(steps):
            e = e.detach().requires_grad_()
            value, z, margin = objective(e, places)
            seen.append((z, margin))
            e = e.detach() - rate(step) * torch.autograd.grad(value, e)[0]
        return e, seen

    for _ in range(attack.search_steps):
        e, seen = descend(torch.zeros_like(x), torch.ones(u, dtype=x.dtype), attack.steps)
        g = torch.ones(u, dtype=x.dtype)
        found, length = None, math.inf
        if any(margin > attack.confidence for _, margin in seen):
            for round_ in range(attack.rounds):
                if round_:
                    e, _ = descend(e, g, attack.steps)
                box, sphere, region, total = (torch.zeros(u, dtype=x.dtype) for _ in range(4))
                total = torch.zeros((), dtype=x.dtype)
                rho = [5e-3, 5e-3, 5e-3, 1e-4]
                for step in range(attack.steps):
                    y1 = (g + box / rho[0]).clamp(0, 1)
                    away = g + sphere / rho[1] - 0.5
                    y2 = 0.5 + math.sqrt(u) / 2 * away / away.norm()
                    y3 = g.clone()
                    if regions is not None:
                        y3 = g + region / rho[2]
                        for b in regions.unique():
                            part = y3[regions == b]
                            y3[regions == b] = max(0, 1 - attack.region_weight / (rho[2] * float(part.norm()))) * part
                    leaf = g.detach().requires_grad_()
                    grad = torch.autograd.grad(objective(e, leaf)[0], leaf)[0]
                    grad = grad + box + sphere + total + rho[0] * (g - y1) + rho[1] * (g - y2) + rho[3] * (g.sum() - k)
                    if regions is not None:
                        grad = grad + region + rho[2] * (g - y3)
                    bend = 2 * float((pooled(e**2, group) * seen_at**2).max()) + sum(rho[:3]) + rho[3] * u
                    g = g - min(rate(step), 1 / bend) * grad
                    box, sphere = box + rho[0] * (g - y1), sphere + rho[1] * (g - y2)
                    region = region + rho[2] * (g - y3)
                    total = total + rho[3] * (g.sum() - k)
                    rho = [min(1.01 * r, most) for r, most in zip(rho, (20, 20, 100, 1e-2))]
            g = top(g.abs(), k).double()
            e, seen = descend(e, g, attack.final_steps)
            last = (x + e * spread(g, x, group)).clamp(0, 1)
            seen.append((last, float(gap(net(last[None])[0].detach(), y))))
            for z, margin in seen:
                if margin > attack.confidence and size(z) < length:
                    found, length = z, size(z)
        else:
            last = (x + e * spread(top(pooled(e**2, group), k).double(), x, group)).clamp(0, 1)
        if found is not None:
            short, long, whole = 0.0, 1.0, found - x
            for _ in range(12):
                middle = (short + long) / 2
                z = x + middle * whole
                if float(gap(net(z[None])[0].detach(), y)) > attack.confidence:
                    found, long = z, middle
                else:
                    short = middle
            length = size(found)
            if length < smallest:
                best, smallest = found, length
            high = c
        else:
            low = c
        c = min(10 * c, 100) if high == math.inf else (low + high) / 2
    return best if smallest < math.inf else last


GRID = {"regions": "grid", "region_side": 4, "region_weight": 0.3}


@pytest.mark.parametrize(
    ("group", "given"),
    [
        ("element", {}),
        ("pixel", {}),
        ("element", GRID),
        ("element", {"visibility": True, "steps": 12, "rounds": 2}),
        # More than 50 steps, after which both step sizes decay.
        ("pixel", {"visibility": True, "steps": 60, "final_steps": 55, "search_steps": 2, "initial_const": 0.5}),
    ],
    ids=["element", "pixel", "grid", "rounds", "decay"],
)
def test_sapf(group, given, conv_net, batch):
    net, x, y = cases(conv_net, batch)[group]
    x, y = x[:4], y[:4]
    settings = {"steps": 25, "final_steps": 20, "search_steps": 4, "initial_const": 0.05, "confidence": 0.01, **given}
    attack = SAPF(Threat("l0", 4, group=group), **settings)
    out = attack.run(net, x, y)
    assert out.success.any()
    place = torch.arange(8) // 4
    numbers = (place[:, None] * 2 + place).flatten() if "regions" in given else None
    assert_same(out, [slow_sapf(net, attack, a, int(b), group, numbers) for a, b in zip(x, y)])


@pytest.mark.parametrize("first", [0.1, 5e-4])
def test_sapfs_step_sizes_are_the_published_ones(first):
    """A tenth less after every 50 steps, but not below 1e-3; a smaller one that is given stays."""
    attack, rate = SAPF(Threat("l0", 4), step_size=first), first
    for step in range(2600):
        assert attack._rate(step) == pytest.approx(rate, rel=1e-12)
        if (step + 1) % 50 == 0:
            rate = min(first, max(0.9 * rate, 1e-3))


# -- sPGD


def slow_spgd(net, attack, x, y, group, sample):
    """One start; every iterate with its margin."""
    streams, k = PerSample(SEED, torch.tensor([sample]), "SparsePGD"), int(float(attack.threat.eps))
    u, n = x.numel() if group == "element" else x[0].numel(), x.numel()
    p = (x + 2 * streams.uniform(x[None], use="start")[0] - 1).clamp(0, 1) - x
    scores = streams.normal(torch.empty(1, u, dtype=x.dtype), use="mask")[0]
    seen, idle = [], 0
    for step in range(attack.steps + 1):
        mask = spread(top(scores, k).double(), x, group)
        z = (x + p * mask).requires_grad_()
        logits = net(z[None])[0]
        seen.append((z.detach(), float(gap(logits.detach(), y))))
        if step == attack.steps or seen[-1][1] > 0:
            break
        grad = torch.autograd.grad(F.cross_entropy(logits[None], torch.tensor([y])), z)[0]
        soft = scores.sigmoid()
        weight = spread(soft, x, group) if attack.gradient == "unprojected" else mask
        # The mask's straight-through gradient: that of the sigmoid in its place.
        leaf = scores.detach().requires_grad_()
        toward = torch.autograd.grad((grad * p * spread(leaf.sigmoid(), x, group)).sum(), leaf)[0]
        before = top(scores, k)
        scores = scores + attack.mask_step * math.sqrt(n) * toward / toward.norm()
        p = (p + attack.step_size * (grad * weight).sign()).clamp(-1, 1)
        p = (x + p).clamp(0, 1) - x
        idle = idle + 1 if bool((top(scores, k) == before).all()) else 0
        if idle >= attack.patience:
            scores = streams.normal(torch.empty(1, u, dtype=x.dtype), use="mask", step=step + 1)[0]
            idle = 0
    won = [z for z, margin in seen if margin > 0]
    return won[0] if won else max(seen, key=lambda pair: pair[1])[0]


@pytest.mark.parametrize("gradient", ["unprojected", "projected"])
@pytest.mark.parametrize("group", ["element", "pixel"])
def test_spgd(group, gradient, conv_net, batch):
    net, x, y = cases(conv_net, batch)[group]
    attack = SparsePGD(Threat("l0", 1, group=group), steps=25, gradient=gradient)
    ids = 10 + torch.arange(len(x))
    out = attack.run(net, x, y, seed=SEED, ids=ids)
    assert_same(out, [slow_spgd(net, attack, x[i], int(y[i]), group, int(ids[i])) for i in range(len(x))])


# -- Sparse-RS


def slow_sparse_rs(net, attack, x, y, group, sample):
    streams, k = PerSample(SEED, torch.tensor([sample]), "SparseRS"), int(float(attack.threat.eps))
    u = x.numel() if group == "element" else x[0].numel()
    channels = 1 if group == "element" else len(x)
    flat = x.reshape(channels, u)

    def colours(step):
        """A corner of the box for each unit, the opposite one where it is x already."""
        up = (streams.uniform(x[None], use="corners", step=step)[0] > 0.5).reshape(channels, u).double()
        same = (up == flat).all(0)
        return torch.where(same, 1 - up, up)

    def keys(step):
        return streams.uniform(torch.empty(1, u, dtype=x.dtype), use="blocks", step=step)[0].tolist()

    def margin(z):
        return float(gap(net(z.view_as(x)[None])[0].detach(), y))

    first, z, colour = keys(0), flat.clone(), colours(0)
    chosen = set(sorted(range(u), key=lambda i: -first[i])[:k])
    for i in chosen:
        z[:, i] = colour[:, i]
    value = margin(z)
    for query in range(attack.queries):
        if value > 0:
            break
        m = min(max(int(attack.share(query) * k), 1), u - k)
        key, colour = keys(query + 1), colours(query + 1)
        gone = sorted(chosen, key=lambda i: -key[i])[:m]
        come = sorted(set(range(u)) - chosen, key=lambda i: -key[i])[:m]
        tried = z.clone()
        for i in gone:
            tried[:, i] = flat[:, i]
        for i in come:
            tried[:, i] = colour[:, i]
        new = margin(tried)
        if new > value:
            z, value, chosen = tried, new, (chosen - set(gone)) | set(come)
    return z.view_as(x)


@pytest.mark.parametrize("group", ["element", "pixel"])
def test_sparse_rs(group, conv_net, batch):
    net, x, y = cases(conv_net, batch)[group]
    attack = SparseRS(Threat("l0", 5 if group == "element" else 2, group=group), queries=40)
    ids = 10 + torch.arange(len(x))
    with torch.no_grad():
        slow = [slow_sparse_rs(net, attack, x[i], int(y[i]), group, int(ids[i])) for i in range(len(x))]
    assert_same(attack.run(net, x, y, seed=SEED, ids=ids), slow)


# -- the token attack


def slow_token(net, attack, x, y):
    side, k = attack.threat.side, int(float(attack.threat.eps))
    reach = 1.0 if attack.threat.inner == "free" else float(attack.threat.inner_eps)
    length = 2.5 * reach / attack.steps * (k if attack.score == "greedy" else 1)
    places = [(i, j) for i in range(0, x.shape[1], side) for j in range(0, x.shape[2], side)]
    chosen, z, seen = [], x, []
    for step in range(attack.steps + 1):
        z = z.detach().requires_grad_()
        logits = net(z[None])[0]
        seen.append((z.detach(), float(gap(logits.detach(), y))))
        if step == attack.steps or seen[-1][1] > 0:
            break
        grad = torch.autograd.grad(F.cross_entropy(logits[None], torch.tensor([y])), z)[0]
        order = 2 if attack.score == "l2" else 1
        norms = [float(grad[:, i : i + side, j : j + side].norm(order)) for i, j in places]
        allowed = min(k, 1 + step * k // attack.steps) if attack.score == "greedy" else k
        rest = sorted((p for p in range(len(places)) if p not in chosen), key=lambda p: -norms[p])
        if not step or attack.score == "greedy":
            chosen = chosen + rest[: allowed - len(chosen)]
        moved = z.detach().clone()
        for p in chosen:
            i, j = places[p]
            here = (slice(None), slice(i, i + side), slice(j, j + side))
            moved[here] = z.detach()[here] + length * grad[here].sign()
            moved[here] = (x[here] + (moved[here] - x[here]).clamp(-reach, reach)).clamp(0, 1)
        z = moved
    won = [z for z, margin in seen if margin > 0]
    return won[0] if won else max(seen, key=lambda pair: pair[1])[0]


@pytest.mark.parametrize("score", ["l2", "l1", "greedy"])
@pytest.mark.parametrize("inner", ["free", "linf"])
def test_the_token_attack(inner, score, conv_net, batch):
    given = {"inner": "linf", "inner_eps": 0.2} if inner == "linf" else {}
    for net, x, y in cases(conv_net, batch).values():
        attack = TokenAttack(Threat("patch", 2, side=2, **given), steps=12, score=score)
        assert_same(attack.run(net, x, y), [slow_token(net, attack, a, int(b)) for a, b in zip(x, y)])


# -- Auto-PGD in l1


def slow_projection(v, x, eps):
    """The nearest point of the l1 ball and the box, the threshold by bisection."""
    room = torch.where(v > 0, 1 - x, x)

    def at(t):
        return v.sign() * torch.minimum((v.abs() - t).clamp_min(0), room)

    if float(at(0).abs().sum()) <= eps:
        return at(0)
    low, high = 0.0, float(v.abs().max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float(at(middle).abs().sum()) > eps else (low, middle)
    # Bisection leaves a rounding of a coordinate that ends at the threshold.
    return torch.where(at(high).abs() < 1e-12, 0.0, at(high))


def slow_apgd_l1(net, attack, x, y, sample):
    """Croce and Hein 2021 with the two deviations of the docstring: one start, until the first success."""
    eps, d, n = float(attack.threat.eps), x.numel(), attack.steps
    streams = PerSample(SEED, torch.tensor([sample]), "APGD")

    def seen(z):
        z = z.detach().requires_grad_()
        logits = net(z[None])[0]
        value = F.cross_entropy(logits[None], torch.tensor([y]))
        return float(value.detach()), torch.autograd.grad(value, z)[0], float(gap(logits.detach(), y))

    z = start(attack.threat, "boundary", x[None], streams)[0]
    z = x + slow_projection(z - x, x, eps)
    value, grad, margin = seen(z)
    best, best_value, best_grad, best_margin = z, value, grad, margin
    step, share, changed = eps, 0.2, d
    every = max(1, n * 4 // 100)
    for k in range(1, n + 1):
        if best_margin > 0 and ((k - 1) % every == 0 or k - 1 in (1, 2, 4, 8, 16)):
            break
        blocked = ((grad > 0) & (z >= 1)) | ((grad < 0) & (z <= 0))
        free = torch.where(blocked, 0, grad).flatten()
        count = min(d, max(1, math.floor(share * d + 1e-6)))
        limit = free.abs().sort(descending=True).values[count - 1]
        sign = torch.where(free.abs() >= limit, free.sign(), 0.0)
        move = step * sign / max(1.0, float(sign.abs().sum()))
        z = (x + slow_projection(z + move.view_as(x) - x, x, eps)).clamp(0, 1)
        value, grad, margin = seen(z)
        if (margin > best_margin) if max(margin, best_margin) > 0 else (value > best_value):
            best, best_grad, best_margin = z, grad, margin
        best_value = max(best_value, value)
        if k % every == 0:
            now = int((best != x).sum())
            fewer = now < 0.95 * changed
            step = eps if fewer else max(step / 1.5, eps / 10)
            share, changed = now / (1.5 * d), now
            if fewer:
                z, grad = best, best_grad
    return best


@pytest.mark.parametrize("eps", [0.3, 0.6, 1.2])
def test_apgd_in_l1(eps):
    # Smooth, with no two equal gradients: of those that rounding makes unequal another would move in a batch.
    net, x, y = coloured(12)
    attack, ids = APGD(Threat("l1", eps), steps=50), 10 + torch.arange(12)
    out = attack.run(net, x, y, seed=SEED, ids=ids)
    assert eps > 1 or not out.success.all()
    assert_same(out, [slow_apgd_l1(net, attack, x[i], int(y[i]), int(ids[i])) for i in range(12)])
