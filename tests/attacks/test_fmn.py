"""FMN against a slow transcription, and its two projections."""

import math

import pytest
import torch
from minimum_norm import FREE, assert_same_walk, linear, logits_and_gradient, runner_up
from torch import nn

from atent.attacks.fmn import FMN
from atent.threat import Threat


def nearest_in_l1(d, x, radius):
    """The point of the l1 ball and the box that is nearest to x + d: the multiplier by bisection."""
    room = torch.where(d > 0, 1 - x, x)

    def cut(t):
        return (d.abs() - t).clamp_min(0).minimum(room)

    low, high = 0.0, float(d.abs().max())
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (low, middle) if float(cut(middle).sum()) <= radius else (middle, high)
    return x + d.sign() * cut(0.0 if float(cut(0.0).sum()) <= radius else high)


def nearest_in_l0(d, x, count):
    """The nearest point with so many changed elements: those whose change brings it nearest to x + d."""
    held = (x + d).clamp(0, 1) - x
    gain = (d.square() - (d - held).square()).flatten().tolist()
    kept = sorted(range(len(gain)), key=lambda i: -gain[i])[: int(count)]
    z = x.clone().flatten()
    z[kept] = (x + held).flatten()[kept]
    return z.view_as(x)


def slow_fmn(model, x, label, norm, steps, first, last, gamma_first, gamma_last, projection=None):
    order, dual = {"l2": (2, 2), "linf": (math.inf, 1), "l1": (1, math.inf), "l0": (0, None)}[norm]
    z, radius, best, best_norm, seen = x, 1 if norm == "l0" else math.inf, x, math.inf, []
    farthest = float(torch.maximum(x, 1 - x).flatten().norm(p=order))
    for k in range(steps):
        seen.append(z)
        logits, g = logits_and_gradient(model, z, lambda v: v[runner_up(v, label)] - v[label])
        adversarial, here = int(logits.argmax()) != label, float((z - x).flatten().norm(p=order))
        if adversarial and here < best_norm:
            best, best_norm = z, here
        cosine = (1 + math.cos(math.pi * k / steps)) / 2
        step, gamma = last + (first - last) * cosine, gamma_last + (gamma_first - gamma_last) * cosine
        gap = abs(float(logits[runner_up(logits, label)] - logits[label]))
        if norm == "l0":
            shrunk, grown = min(radius - 1, math.floor(radius * (1 - gamma))), math.floor(radius * (1 + gamma))
            radius = min(shrunk, best_norm) if adversarial else max(grown, radius + 1)
        elif adversarial:
            radius = min(radius * (1 - gamma), best_norm)
        elif best_norm < math.inf or k >= steps / 2:
            radius = radius * (1 + gamma)
        else:
            radius = 1.001 * (here + gap / float(g.flatten().norm(p=dual)))
        radius = min(radius, farthest)
        d = z + step * g / g.norm() - x
        if norm in ("l1", "l0"):
            z = (nearest_in_l1 if norm == "l1" else nearest_in_l0)(d, x, radius)
            continue
        if norm == "linf":
            d = d.clamp(-radius, radius)
        else:
            d = d * (min(1.0, radius / float(d.norm())) if projection == "ball" else radius / float(d.norm()))
        z = (x + d).clamp(0, 1)
    return best, seen


@pytest.mark.parametrize("norm", [*FREE, "l1", "l0"])
@pytest.mark.parametrize(
    "given",
    [{}, {"projection": "ball"}, {"step_size": 0.2, "final_step_size": 0.05, "gamma": 0.2, "final_gamma": 0.01}],
)
def test_fmn_equals_its_transcription(norm, given, five):
    model, x, y = five
    a = FMN(Threat(norm, "inf"), steps=40, **given)
    first = given.get("step_size", 1.0)
    last = given.get("final_step_size", first / 100)

    def slow(*sample):
        return slow_fmn(*sample, norm, 40, first, last, a.gamma, a.final_gamma, a.projection)

    assert_same_walk(a, slow, model, x, y)


def test_fmn_in_l2_ends_on_the_boundary_where_the_ball_stalls():
    # The gradient turns with the position: each step of the paper's form crosses the ball and ends inside it.
    x, y = torch.full((6, 24), 0.02, dtype=torch.float64), torch.zeros(6).long()
    x[:, ::2] = torch.linspace(0.02, 0.1, 6, dtype=torch.float64)[:, None]

    class Curved(nn.Module):
        def forward(self, z):
            away = (z.square() * torch.linspace(1, 9, 24, dtype=z.dtype)).sum(1) + 3 * z[:, 0] * z[:, 1]
            return torch.stack([torch.full_like(away, 1.5), away], 1)

    found = {p: FMN(FREE["l2"], steps=100, projection=p).run(Curved(), x, y) for p in ("sphere", "ball")}
    assert found["sphere"].success.all()
    assert (found["sphere"].norm <= found["ball"].norm.where(found["ball"].success, math.inf) * 1.001).all()
    assert torch.equal(FMN(FREE["l2"], steps=100)(Curved(), x, y), found["sphere"].x_adv)


def test_the_sphere_is_for_l2():
    with pytest.raises(ValueError, match=r"projection \(for linf\) 'sphere' is not known: use one of ball"):
        FMN(FREE["linf"], projection="sphere")
    with pytest.raises(ValueError, match="projection 'cube' is not known"):
        FMN(FREE["l2"], projection="cube")


def test_fmn_grows_where_the_estimate_never_arrives():
    # in a corner the box takes so much of each step that the estimate stays short
    model, x, y = linear(True)
    a = FMN(FREE["l2"], steps=40, step_size=0.02, final_step_size=0.02)
    waited = [
        i for i in range(len(x))
        if not any(int(model(z).argmax()) != int(y[i]) for z in slow_fmn(
            model, x[i], int(y[i]), "l2", 40, 0.02, 0.02, 0.05, 0.001)[1][:21])
    ]  # fmt: skip
    assert len(waited) >= 1
    out = a.run(model, x, y)
    assert out.success[waited].any()
    assert_same_walk(a, lambda m, z, label: slow_fmn(m, z, label, "l2", 40, 0.02, 0.02, 0.05, 0.001), model, x, y)
