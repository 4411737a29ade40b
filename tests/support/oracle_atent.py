"""ATENT's training step the slow way, in the authors' structure; it shares no code with the package.

At each of K steps: a forward and a full backward at x^k (weight gradients are deposited on the way), the
Langevin move, a second forward at x^{k+1} whose mean loss is folded into a running average,
mu = (1 - alpha) mu + alpha CE. All K graphs live until the end; then the deposited weight gradients are
thrown away and mu goes backward once.

Left out, as the package says: the early break on a small batch gradient and the unused clean forward.
"""

import copy

import torch
from torch.nn import functional as F

# (gradient, whether the pull is multiplied by the step, projection)
VARIANTS = {
    ("released", "l2"): ("unit", False, "never"),
    ("released", "linf"): ("sign", False, "last"),
    ("published", "l2"): ("raw", True, "never"),
    ("published", "linf"): ("sign", True, "every"),
}


def settings(norm, eps, steps, variant="released", **given):
    """All that the step needs to know, with the defaults that the package documents."""
    gradient, scaled, projection = VARIANTS[variant, norm]
    out = {
        "norm": norm, "eps": eps, "steps": steps, "gradient": gradient, "projection": projection,
        "step_size": (2.0 if norm == "l2" else 2.5) * eps / steps, "noise": 1e-3, "alpha": 0.9,
        "gamma": 0.05 if norm == "l2" else 0.0, "start": "sphere" if norm == "l2" else "corner",
        "dropout": "fresh", "mode": "train", "box": (0.0, 1.0),
    }  # fmt: skip
    if "anchor" in given:
        scaled = given.pop("anchor") == "scaled"
    assert not set(given) - set(out)
    return {**out, **given, "scaled": scaled}


def _norms(t):
    return t.flatten(1).pow(2).sum(1).sqrt().view(-1, *[1] * (t.dim() - 1))


def _begin(s, x, rng):
    if s["start"] == "zero":
        return x.clone()
    if s["start"] == "corner":
        u = torch.rand(x.shape, generator=rng, dtype=x.dtype)
        return x + s["eps"] * torch.where(u > 0.5, 1.0, -1.0).to(x.dtype)
    u = torch.randn(x.shape, generator=rng, dtype=x.dtype)
    return x + s["eps"] * (u / _norms(u))


def _move(s, z, x, g, k, rng):
    if s["gradient"] == "unit":
        size = _norms(g)
        g = torch.where(size > 0, g / size, torch.zeros_like(g))
    elif s["gradient"] == "sign":
        g = torch.where(g > 0, 1.0, torch.where(g < 0, -1.0, 0.0)).to(g.dtype)
    new = z + s["step_size"] * g
    new = new + s["gamma"] * (s["step_size"] if s["scaled"] else 1.0) * (x - z)
    if s["noise"]:
        spread = s["noise"] * (2 * s["step_size"]) ** 0.5
        new = new + spread * torch.randn(x.shape, generator=rng, dtype=x.dtype)
    if s["projection"] == "every" or (s["projection"] == "last" and k == s["steps"] - 1):
        d = new - x
        if s["norm"] == "linf":
            d = torch.where(d.abs() > s["eps"], s["eps"] * d.sign(), d)
        else:
            size = _norms(d)
            d = torch.where(size > s["eps"], d * (s["eps"] / size), d)
        new = x + d
    return new.clamp(*s["box"]).detach()


def step(model, x, y, rng, s):
    """mu and the iterates [x^0, ..., x^K]; the gradient of mu replaces what the parameters' ``.grad`` held.

    ``rng`` draws the start (uniform for a corner, normal for a sphere), then one normal per step if there is
    noise. With dropout "shared" the gradient pass at x^k, k >= 1, replays the random state of the loss pass
    at x^k; with "fresh" it draws on. With mode "eval" the gradient passes, and only they, see the network in
    eval mode, with the statistics that it had before the batch.
    """
    sampled = copy.deepcopy(model).eval() if s["mode"] == "eval" else model
    alpha, mu = s["alpha"], torch.zeros((), dtype=x.dtype)
    z, replay = _begin(s, x, rng), None
    iterates = [z]
    for k in range(s["steps"]):
        zk = z.clone().detach().requires_grad_(True)
        if s["dropout"] == "shared" and replay is not None:
            torch.set_rng_state(replay)
        loss = F.cross_entropy(sampled(zk), y, reduction="sum" if s["gradient"] == "raw" else "mean")
        loss.backward()
        z = _move(s, z, x, zk.grad, k, rng)
        iterates.append(z)
        replay = torch.get_rng_state()
        mu = (1 - alpha) * mu + alpha * F.cross_entropy(model(z), y)
    for p in model.parameters():
        p.grad = None
    mu.backward()
    return mu.detach(), iterates


def data_entropy(model, x, y, rng, s, noise, burn_in, chains=1):
    """The data-entropy gradient the slow way, flat over the parameters, the mean loss, and the chain's losses.

    K passes move the copies of the batch, on the network as a copy holds it. Then each image's E[grad L] and
    Cov(L, grad L) are written out, sample by sample, from one gradient per image and sample; the losses are those of
    the chain's network, the gradients those of ``model`` (s["mode"] tells them apart). ``rng`` draws as in `step`.
    """
    sampled = copy.deepcopy(model).train(s["mode"] == "train")
    many, labels = torch.cat([x] * chains), torch.cat([y] * chains)
    z = _begin(s, many, rng)
    iterates, losses = [], []
    for k in range(s["steps"]):
        zk = z.clone().requires_grad_(True)
        (g,) = torch.autograd.grad(F.cross_entropy(sampled(zk), labels, reduction="sum"), zk)
        z = _move(s, z, many, g, k, rng)
        iterates.append(z)
        losses.append(F.cross_entropy(sampled(z), labels, reduction="none").detach())
    parameters = list(model.parameters())
    n = len(x)
    slopes = [[] for _ in range(n)]
    seen = [[] for _ in range(n)]
    own = []
    for z, at in zip(iterates[burn_in:], losses[burn_in:], strict=True):
        each = F.cross_entropy(model(z), labels, reduction="none")
        own.append(each.detach())
        for row in range(len(many)):
            grads = torch.autograd.grad(each[row], parameters, retain_graph=True)
            slopes[row % n].append(torch.cat([g.flatten() for g in grads]))
            seen[row % n].append(at[row])
    total = torch.zeros_like(slopes[0][0])
    for image in range(n):
        m = len(slopes[image])
        mean_slope = sum(slopes[image]) / m
        mean_loss = sum(seen[image]) / m
        covariance = torch.zeros_like(mean_slope)
        for value, slope in zip(seen[image], slopes[image], strict=True):
            covariance += (value - mean_loss) * (slope - mean_slope) / (m - 1)
        total += (mean_slope + covariance / noise**2) / n
    return total, torch.stack(own).mean()
