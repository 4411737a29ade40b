"""Each network of the zoo gives the figures of its well-behaved twin at every entry point, training included."""

import copy

import pytest
import torch
from zoo import (
    ENTRIES,
    FIRST,
    LINF,
    METHODS,
    PLAIN,
    ZOO,
    Arithmetic,
    Counting,
    Hooked,
    Requiring,
    Squeezing,
    Twin,
    alike,
    data,
    made,
    names,
    refused,
    trained,
    untouched,
)

from atent.evaluate import masking_checks, predict
from atent.methods import PGDAT
from atent.paper.theory.constants import curvature, kinks
from atent.paper.theory.density import gradients
from atent.paper.theory.network import prepared


@PLAIN
def test_every_entry_gives_the_figures_of_the_twin(name):
    net, twin = (make() for make in ZOO[name])
    x, y = data()
    state = {k: copy.deepcopy(v) for k, v in net.state_dict().items()}
    for entry, function in ENTRIES.items():
        try:
            found = untouched(net, function, x, y)
        except Exception as error:
            raise AssertionError(f"{entry}: {error!r}") from error
        assert alike(found, untouched(twin, function, x, y)), entry
        for key, value in net.state_dict().items():
            assert entry == "ask" or not isinstance(value, torch.Tensor) or torch.equal(value, state[key]), entry
        state = {k: copy.deepcopy(v) for k, v in net.state_dict().items()}


@names(("arithmetic in place",))
def test_masking_checks_give_the_verdicts_of_the_twin(name):
    net, twin = (make() for make in ZOO[name])
    x, y = data()
    y = predict(twin, x, y)
    found, expected = (
        {check.name: check.passed for check in untouched(n, lambda n, x, y: masking_checks(n, x, y, LINF), x, y)}
        for n in (net, twin)
    )
    assert found == expected


@names((*FIRST, "old weight norm"))
def test_theory_sees_the_twin(name):
    net, twin = (make() for make in ZOO[name])
    x, y = data()
    if name in ("old weight norm",):
        refused(lambda n, x, y: prepared(n), net, x, y)
        return

    def figures(n, x, y):
        n = prepared(n)
        return gradients(n, x.double(), y), curvature(n, x.double(), y, iterations=2)[0], kinks(n, x[:2].double())

    (a, b, kinked), (c, d, _) = (untouched(n, figures, x, y) for n in (net, twin))
    assert alike((a, b), (c, d))
    assert kinked
    assert a.abs().max() > 0


USUAL = ("Standard", "PGDAT", "TRADES", "ATENT")
TRAINED = [name for name in ZOO if "norm" not in name and name not in ("squeezes inside", "extra state")]


@names(("arithmetic in place", "activation in place", "requires_grad_", "hooks", "view", "squeezes"), TRAINED)
def test_training_is_that_of_the_twin(name):
    for method in METHODS if name == "arithmetic in place" else USUAL:
        (rows, weights), (twin_rows, twin_weights) = (
            trained(make().train(), METHODS[method]) for make in ZOO[name]
        )  # fmt: skip
        assert alike(rows, twin_rows), method
        assert alike(weights, twin_weights), method


@pytest.mark.parametrize("kind", [Arithmetic, Requiring, Counting])
def test_training_in_place_and_out_of_it_is_the_same_to_the_bit(kind):
    """A copy changes no number: ATENT's fused passes give equal weights."""
    ways = [trained(made(k).train(), METHODS["ATENT, kl"])[1] for k in (kind, Twin)]
    assert all(map(torch.equal, *ways))


@pytest.mark.parametrize("kind", [Arithmetic, Hooked, Squeezing])
def test_trains_into_a_run_folder(kind, tmp_path):
    _, weights = trained(made(kind).train(), PGDAT(LINF, steps=1), run=tmp_path / "run")
    assert (tmp_path / "run" / "best.safetensors").is_file()
    assert all(torch.isfinite(p).all() for p in weights)
