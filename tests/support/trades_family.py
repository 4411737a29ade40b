"""What the tests of Gaussian training, TRADES and TRADES with smoothing share: the methods, and slow transcriptions."""

import copy

import pytest
import torch
from kit import ROUNDING, gradient, stream
from kit import network as _network
from torch import nn

from atent import Threat
from atent.methods.gaussian import Gaussian
from atent.methods.trades import TRADES
from atent.methods.trades_smoothing import TRADESSmoothing

EPS = {"l2": 0.8, "linf": 0.2}
SIGMA = 0.12


def threat(norm, eps=None, box=(0.0, 1.0)):
    return Threat(norm, EPS[norm] if eps is None else eps, box)


CASES = [
    pytest.param(Gaussian(SIGMA), id="Gaussian"),
    pytest.param(TRADES(threat("linf"), steps=3), id="TRADES-linf"),
    pytest.param(TRADES(threat("l2"), steps=3), id="TRADES-l2"),
    pytest.param(TRADESSmoothing(threat("l2"), steps=3), id="TRADESSmoothing"),
]
KL_CASES = CASES[1:]


def run(method, model, x, y, seed=11, **given):
    """Metrics, the gradient and the buffers, on a copy of the model; dropout draws the same."""
    model = copy.deepcopy(model)
    model.zero_grad()
    torch.manual_seed(21)
    metrics = method.backward(model, x, y, rng=stream(seed), ids=torch.arange(len(x)), **given)
    return metrics, gradient(model), list(model.buffers())


def network(norm=True, dropout=0.0, seed=3):
    return _network(norm, dropout, seed)


def same_buffers(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=ROUNDING, atol=ROUNDING)


class Recorded(nn.Module):
    """Remembers each input, its mode and whether a graph was built, and counts passes backwards."""

    def __init__(self, net):
        super().__init__()
        self.net, self.seen, self.backwards = net, [], 0

    def forward(self, x):
        self.seen.append((x.detach().clone(), self.training, torch.is_grad_enabled()))
        out = self.net(x)
        if out.requires_grad:
            out.register_hook(self.back)
        return out

    def back(self, grad):
        self.backwards += 1


def slow_kl(p_logits, q_logits):
    """KL(softmax(p_logits) || softmax(q_logits)) of each row, as it is written."""
    p, q = torch.softmax(p_logits, 1), torch.softmax(q_logits, 1)
    return (p * (p.log() - q.log())).sum(1)


def slow_adversary(model, x, rng, norm, eps, steps, step_size=None, noise=0.0, start_noise=0.001, box=(0.0, 1.0)):
    """The inner maximisation one sample at a time, in eval mode, the clean logits anew for each step."""
    step_size = 2.5 * eps / steps if step_size is None else step_size
    torch.randint(2**62, (), generator=rng)  # the package's seed for the network's own random numbers
    begin = x + start_noise * torch.randn(x.shape, generator=rng, dtype=x.dtype)
    was = model.training
    model.eval()
    out, touched = [], {"ball": False, "box": False}
    for i in range(len(x)):
        xi, z = x[i : i + 1], begin[i : i + 1]
        n = noise[i : i + 1] if isinstance(noise, torch.Tensor) else noise
        for _ in range(steps):
            z = z.detach().requires_grad_()
            slow_kl(model(xi + n).detach(), model(z + n)).sum().backward()
            g = z.grad
            with torch.no_grad():
                if norm == "linf":
                    z = z + step_size * torch.sign(g)
                    z = torch.minimum(torch.maximum(z, xi - eps), xi + eps)
                else:
                    z = z + step_size * g / g.norm()
                    if (z - xi).norm() > eps:
                        touched["ball"] = True
                        z = xi + (z - xi) * (eps / (z - xi).norm())
                touched["box"] |= bool((z < box[0]).any() or (z > box[1]).any())
                z = torch.clamp(z, *box)
        out.append(z.detach())
    model.train(was)
    model.zero_grad()
    return torch.cat(out), touched
