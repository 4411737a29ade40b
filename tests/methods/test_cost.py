"""What one batch costs each method: passes counted on the network, against the fewest that its equations need.

The unit is one forward of the batch. A backward to the inputs alone counts 1, one that reaches the weights 2, whether
it goes on to the inputs or not. The fewest are those of the equations, with three observations: an attack needs no
weight gradients; where one forward can serve two gradients it does; and what is held constant is asked for once.
"""

import pytest
import torch
from kit import CLASSES, N, batch, network, stream
from torch import nn
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from atent import Threat
from atent.methods import (
    ACL,
    ATENT,
    CROWNIBP,
    FGSMRS,
    MART,
    METHODS,
    MMA,
    PGDAT,
    TRADES,
    DistilledTRADES,
    Dual,
    Free,
    Gaussian,
    SmoothAdv,
    Standard,
    TRADESSmoothing,
)  # fmt: skip
from atent.optim import EntropySGD

BOTH, L2, LINF = ("linf", "l2"), ("l2",), ("linf",)
SAMPLED = {"objective": "data-entropy", "gradient": "raw", "projection": "every", "noise": 0.3}

# Method, what it is given, the norms that it is defined for, and the cost as its sum of parts: K steps, B points of
# the bisection, M draws of the noise, L steps of the weights' walk.
TABLE = [
    # the loss's forward, and its backward to the weights
    (Standard, {}, ("",), "1 + 2"),
    (Gaussian, {}, ("",), "1 + 2"),
    (Gaussian, {"sigma": 0.0}, ("",), "1 + 2"),
    # a gradient at x^0 .. x^(K-1), and the loss at x^K
    (PGDAT, {}, BOTH, "K*(1 + 1) + 1 + 2"),
    (PGDAT, {"mode": "train"}, BOTH, "K*(1 + 1) + 1 + 2"),
    # the best of x^1 .. x^K: the last one's loss is asked for
    (PGDAT, {"keep": "best"}, BOTH, "K*(1 + 1) + 1 + 1 + 2"),
    # x^0 gives a gradient, x^K a loss, and one pass at each of x^1 .. x^(K-1) gives both
    (ATENT, {}, BOTH, "(1 + 1) + (K - 1)*(1 + 2) + (1 + 2)"),
    (ATENT, {"variant": "published"}, BOTH, "(1 + 1) + (K - 1)*(1 + 2) + (1 + 2)"),
    # only the last loss weighs anything
    (ATENT, {"alpha": 1.0}, BOTH, "K*(1 + 1) + (1 + 2)"),
    (ATENT, {"alpha": 1.0, "mode": "eval"}, BOTH, "K*(1 + 1) + (1 + 2)"),
    # two masks, or two modes, are two networks: no pass serves both gradients
    (ATENT, {"dropout": "fresh"}, BOTH, "K*(1 + 1) + K*(1 + 2)"),
    (ATENT, {"mode": "eval"}, BOTH, "K*(1 + 1) + K*(1 + 2)"),
    # the last iterate's loss, and a second pass once all are known; iterates before the burn-in need none
    (ATENT, {**SAMPLED, "burn_in": 0}, BOTH, "K*(1 + 1) + 1 + K*(1 + 2)"),
    (ATENT, {**SAMPLED, "burn_in": 1, "mode": "eval", "chains": 2}, BOTH, "2*(K*(1 + 1) + 1 + (K - 1)*(1 + 2))"),
    # the free energy of the divergence: the clean batch passes once each way
    (ATENT, {"outer_loss": "kl"}, BOTH, "(1 + 2) + (1 + 1) + (K - 1)*(1 + 2) + (1 + 2)"),
    (ATENT, {"outer_loss": "kl", "mode": "eval"}, BOTH, "1 + (1 + 2) + K*(1 + 1) + K*(1 + 2)"),
    # iterates before the burn-in give an input gradient alone
    (ATENT, {"burn_in": 1}, BOTH, "2*(1 + 1) + (K - 2)*(1 + 2) + (1 + 2)"),
    # the clean answer in eval mode, K gradients, and both batches in train mode
    (TRADES, {}, BOTH, "1 + K*(1 + 1) + 2*(1 + 2)"),
    (TRADES, {"beta": 0.0}, BOTH, "1 + 2"),
    (DistilledTRADES, {}, BOTH, "1 + K*(1 + 1) + 2*(1 + 2)"),
    (TRADESSmoothing, {}, L2, "1 + K*(1 + 1) + 2*(1 + 2)"),
    (TRADESSmoothing, {"sigma": 0.0}, L2, "1 + K*(1 + 1) + 2*(1 + 2)"),
    (TRADESSmoothing, {"beta": 0.0}, L2, "1 + 2"),
    # PGD-AT with M copies of each input
    (SmoothAdv, {"samples": 3}, L2, "M*(K*(1 + 1) + 1 + 2)"),
    # the search's last point is only looked at
    (SmoothAdv, {"samples": 3, "attack": "ddn"}, L2, "M*((K - 1)*(1 + 1) + 1 + 1 + 2)"),
    # the step's gradient, and the loss
    (FGSMRS, {}, LINF, "(1 + 1) + 1 + 2"),
    (FGSMRS, {"mode": "eval", "start": "zero"}, LINF, "(1 + 1) + 1 + 2"),
    # one pass for both gradients
    (Free, {}, LINF, "1 + 2"),
    # K gradients, and both batches in train mode
    (MART, {}, LINF, "K*(1 + 1) + 2*(1 + 2)"),
    # gradients, the bisection, the clean batch and the boundary points
    (MMA, {"bisection": 6}, BOTH, "K*(1 + 1) + B + 2*(1 + 2)"),
    (MMA, {"bisection": 6, "margin_loss": "slm"}, BOTH, "K*(1 + 1) + B + 2*(1 + 2)"),
    # without its loss the clean batch still measures accuracy
    (MMA, {"bisection": 6, "clean_weight": 0.0}, BOTH, "K*(1 + 1) + B + 1 + (1 + 2)"),
    # two views of each input; the best of them and x^0 .. x^K, of which the views and x^K give no gradient
    (ACL, {}, BOTH, "2*(1 + K*(1 + 1) + 1) + 2*2*(1 + 2)"),
    (ACL, {"variant": "A2A"}, BOTH, "2*(1 + K*(1 + 1) + 1) + 2*(1 + 2)"),
    # the second view is clean, and its answer in eval mode constant
    (ACL, {"variant": "A2S"}, BOTH, "1 + (1 + K*(1 + 1) + 1) + 2*(1 + 2)"),
    (ACL, {"variant": "S2S"}, BOTH, "2*(1 + 2)"),
]
CASES = [
    pytest.param(cls, norm, given, formula, id=" ".join(filter(None, [cls.__name__, norm, *map(str, given.items())])))
    for cls, given, norms, formula in TABLE
    for norm in norms
]


class Counted(nn.Module):
    """Counts the samples that pass forwards, backwards, and backwards as far as the first layer's weights."""

    def __init__(self):
        super().__init__()
        self.net = network(True, 0.3)
        self.first, self.net[0] = self.net[0], nn.Identity()
        self.forwards = self.backwards = self.to_weights = 0

    def forward(self, x):
        self.forwards += len(x)
        # a view of its own for each pass: the weight itself hears only of the sum of several
        weight = self.first.weight.view_as(self.first.weight)
        if weight.requires_grad:
            weight.register_hook(lambda grad: self.count("to_weights", x))
        out = self.net(F.conv2d(x, weight, self.first.bias, padding=1))
        if out.requires_grad:
            out.register_hook(lambda grad: self.count("backwards", x))
        return out

    def count(self, what, x):
        setattr(self, what, getattr(self, what) + len(x))

    @property
    def cost(self):
        return (self.forwards + self.backwards + self.to_weights) / N


def value(formula, **letters):
    return eval(formula, {"__builtins__": {}}, letters)


@pytest.mark.parametrize("steps", [2, 5])
@pytest.mark.parametrize(("cls", "norm", "given", "formula"), CASES)
def test_a_batch_costs_no_more_than_the_equations_need(cls, norm, given, formula, steps):
    fields = cls.__dataclass_fields__
    if "threat" in fields:
        given = {"threat": Threat(norm, {"linf": 0.2, "l2": 0.8}[norm]), **given}
    if "steps" in fields:
        given = {"steps": steps, **given}
    model, (x, y) = Counted(), batch()
    method = cls(**given)
    state = method.init(N, tuple(x.shape[1:]), x.device)
    method.backward(model, x, y, rng=stream(), ids=torch.arange(N), state=state)
    assert model.cost == value(formula, K=steps, B=given.get("bisection"), M=given.get("samples"))
    assert all(p.grad is not None for p in model.parameters())


# Methods by bounds read the layers, not the forward pass: what passes the first layer is counted, forwards (also by its
# absolute weights) and, for the linear bounds, back to front. C classes, U units that are neither of the first layer
# nor logits, P projections.
BY_BOUNDS = [
    # the clean batch, the middles and the half-widths of the intervals
    (CROWNIBP, {}, "(1 + 2) + 2*(1 + 2)"),
    (CROWNIBP, {"kappa_end": 0.0}, "1 + 2*(1 + 2)"),
    # and each margin back to the input
    (CROWNIBP, {"beta_end": 1.0}, "(1 + 2) + 2*(1 + 2) + C*(1 + 2)"),
    # the mixture asks for the intervals twice
    (CROWNIBP, {"beta_end": 0.5}, "(1 + 2) + 2*2*(1 + 2) + C*(1 + 2)"),
    (CROWNIBP, {"kappa_end": 1.0}, "(1 + 2) + 2"),
    (CROWNIBP, {"eps_start": 1.0, "eps_end": 1.0, "threat": Threat("linf", 0.0)}, "1 + 2"),
    # each unit from below and from above
    (Dual, {}, "1 + 2*(1 + 2) + 2*U*(1 + 2) + C*(1 + 2)"),
    # the projections, and the value at the centre
    (Dual, {"projections": 7}, "1 + 2*(1 + 2) + (P + 1)*(1 + 2) + C*(1 + 2)"),
]


class First(TorchDispatchMode):
    """Counts the rows that pass a convolution of the first layer's shape; a backward that reaches weights twice."""

    def __init__(self):
        super().__init__()
        self.rows = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name == "convolution" and args[1].shape == (6, 1, 3, 3):
            self.rows += len(args[0])
        if name == "convolution_backward" and args[2].shape == (6, 1, 3, 3):
            self.rows += len(args[0]) * (2 if args[-1][1] else 1)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("cls", "given", "formula"), BY_BOUNDS)
def test_bounds_cost_no_more_than_the_equations_need(cls, given, formula):
    # In float32: in float64 a CPU takes a product of matrices for a transposed convolution, which is not counted.
    model, (x, y) = network().float(), batch()
    x = x.float()
    method = cls(**{"threat": Threat("linf", 0.2), **given})
    with First() as first:
        method.backward(model, x, y, rng=stream())
    assert first.rows / N == value(formula, C=CLASSES, U=24, P=given.get("projections"))


def test_every_method_has_its_cost_here():
    missing = set(METHODS) - {cls.__name__ for cls, *_ in [*TABLE, *BY_BOUNDS]}
    assert not missing, f"add the formula of {', '.join(sorted(missing))} to the table"


@pytest.mark.parametrize("walk", [0, 1, 5])
def test_entropy_sgd_costs_as_many_batches_as_its_walk_has_steps(walk):
    model, (x, y) = Counted(), batch()
    optimizer = EntropySGD(model.parameters(), lr=0.1, inner_steps=walk)

    def closure():
        optimizer.zero_grad()
        return Standard().backward(model, x, y, rng=stream())["loss"]

    optimizer.step(closure)
    assert model.cost == value("L*(1 + 2)", L=max(walk, 1))
    assert optimizer.calls_per_step == max(walk, 1)


def test_the_figures_of_the_default_settings():
    """Ten steps, as the methods are usually compared: PGD-AT 23, TRADES 27, ATENT 32, MMA 36 forwards of the batch."""
    found = {cls.__name__: value(formula, K=10, B=10, M=2) for cls, _, _, formula in reversed(TABLE)}
    assert {name: found[name] for name in ("Standard", "PGDAT", "TRADES", "ATENT", "MMA")} == {
        "Standard": 3, "PGDAT": 23, "TRADES": 27, "ATENT": 32, "MMA": 36,
    }  # fmt: skip
