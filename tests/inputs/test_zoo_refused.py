"""What no entry point can use is refused in one line, and one logit is made two."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from zoo import (
    BOUNDS,
    CLASSES,
    ENTRIES,
    LINF,
    SIDE,
    Detaching,
    Listing,
    Naming,
    OneLogit,
    OneNumber,
    Reentrant,
    Twin,
    alike,
    data,
    made,
    of,
    quietly,
    refused,
    trained,
)

from atent import Threat
from atent.attacks import PGD
from atent.certify import Smoothed, bounds, verified
from atent.certify.certificate import Sampling, certify_run
from atent.data import from_tensors
from atent.evaluate import evaluate, predict
from atent.guard import ask
from atent.methods import PGDAT
from atent.models import binary_logits, check_output
from atent.train import TrainSettings, fit

GRADIENT = ("PGD", "PGD call", "FGSM", "Langevin", "DeepFool", "DDN", "evaluate", "craft", "sweep")


def in_inference_mode():
    with torch.inference_mode():
        return Twin()


# name: (the network, what the line says, the entries that refuse it)
REFUSED = {
    "tuple": (of(Listing), "got a tuple", ENTRIES),
    "dict": (of(Naming), "got a dict", ENTRIES),
    "one logit": (of(OneLogit), "binary_logits", ENTRIES),
    "one number": (of(OneNumber), "binary_logits", ENTRIES),
    "float64": (lambda: made(Twin).double(), "float64 and its inputs torch.float32", ENTRIES),
    "half": (lambda: made(Twin).half(), "float16 and its inputs torch.float32", ENTRIES),
    "bfloat16": (lambda: made(Twin).bfloat16(), "bfloat16 and its inputs torch.float32", ENTRIES),
    "inference mode": (in_inference_mode, "inference_mode", [entry for entry in ENTRIES if entry != "ask"]),
    "re-entrant checkpoint": (of(Reentrant), "use_reentrant=False", GRADIENT),
    "requires_grad off": (of(Detaching), "gradient", GRADIENT),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_no_entry_can_use_is_refused_in_one_line(name):
    make, says, entries = REFUSED[name]
    x, y = data()
    before = x.clone()
    net = make()
    states = torch.get_rng_state()
    for entry in entries:
        refused(ENTRIES[entry], net, x, y, says=says)
        assert torch.equal(x, before), entry
        assert torch.equal(torch.get_rng_state(), states), entry


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "requires_grad off"])
def test_training_refuses_them_too(name, tmp_path):
    make, says, _ = REFUSED[name]
    refused(lambda: trained(make().train(), PGDAT(LINF, steps=1), run=tmp_path / "run"), says=says.split()[-1])


@pytest.mark.parametrize("name", ["tuple", "dict", "one logit", "one number", "half", "inference mode"])
def test_bounds_refuse_them_too(name):
    x, y = data()
    for function in BOUNDS.values():
        refused(function, REFUSED[name][0](), x, y)


def test_a_reentrant_checkpoint_serves_where_no_gradient_is_asked_for():
    x, y = data()
    for entry in ("Square", "predict", "certify", "pictures"):
        assert alike(ENTRIES[entry](made(Reentrant), x, y), ENTRIES[entry](made(Twin), x, y))


def test_data_made_in_inference_mode_are_attacked():
    net, (x, y) = made(Twin), data()
    plain = ENTRIES["evaluate"](net, x, y)
    with torch.inference_mode():
        z, labels = x * 1.0, y * 1
        inside = ENTRIES["evaluate"](net, z, labels)
    assert z.is_inference()
    assert ENTRIES["evaluate"](net, z, labels) == plain
    assert inside == plain


def test_a_label_beyond_the_outputs_is_refused_everywhere():
    net = made(Twin)
    x, y = data()
    y[3] = CLASSES
    for entry in ("PGD", "evaluate", "predict", "sweep", "craft", "certify_run"):
        refused(ENTRIES[entry], net, x, y.roll(-3), says="label 3 is out of range")
    refused(BOUNDS["verified"], net, x, y, says="label 3 is out of range")
    refused(check_output, net, (1, SIDE, SIDE), CLASSES + 1, says="3 outputs, the data has 4 classes")


@pytest.mark.parametrize("kind", [OneLogit, OneNumber])
def test_check_output_names_the_way_out_of_one_logit(kind):
    refused(check_output, made(kind), (1, SIDE, SIDE), 2, says="binary_logits")


@pytest.mark.parametrize("kind", [OneLogit, OneNumber])
def test_binary_logits_are_those_of_the_sigmoid(kind):
    """softmax(0, z) is (1 - sigmoid(z), sigmoid(z)), and the cross-entropy BCE with logits: exact, to rounding."""
    plain = made(kind).double()
    net = binary_logits(plain).eval()
    x, y = data()
    x, y = x.double(), y % 2
    z = plain(x).reshape(-1).detach()
    logits = ask(net, x).detach()
    assert torch.equal(logits, torch.stack([torch.zeros_like(z), z], 1))
    assert torch.allclose(logits.softmax(1)[:, 1], z.sigmoid(), rtol=1e-14)
    assert torch.allclose(F.cross_entropy(logits, y), F.binary_cross_entropy_with_logits(z, y.double()), rtol=1e-14)
    assert predict(net, x, y).tolist() == (z > 0).long().tolist()
    assert list(net.state_dict()) == [f"net.{key}" for key in plain.state_dict()]


def test_binary_logits_are_attacked_trained_certified_and_bounded():
    x, y = data()
    net = binary_logits(made(OneNumber)).eval()
    z = net.net(x).detach()
    y = (z > 0).long()
    _, success, *_ = PGD(Threat("linf", 0.5), steps=20).run(net, x, y)
    assert success.any()
    layers = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 8), nn.ReLU(), nn.Linear(8, 1)).eval()
    pair = binary_logits(layers).eval()
    lower, upper = bounds(pair, x, Threat("linf", 0.01))
    one = layers(x).detach().squeeze(1)
    # Zero, less what underflow may add.
    assert bool((lower[:, 0] <= 0).all() and (lower[:, 0] >= -1e-30).all())
    assert bool((lower[:, 1] <= one).all() and (one <= upper[:, 1]).all())
    # One sign over the ball is one class over the ball, whichever label is true.
    layers[-1].bias.data -= one.median()  # both classes occur
    lower, upper = bounds(pair, x, Threat("linf", 0.01))
    labels = (layers(x).detach().squeeze(1) > 0).long()
    certain = verified(pair, x, labels, Threat("linf", 0.01))
    assert certain.tolist() == ((lower[:, 1] > 0) | (upper[:, 1] < 0)).tolist()
    assert not verified(pair, x, 1 - labels, Threat("linf", 0.01)).any()
    classes, _ = Smoothed(pair, 0.05).certify(x, n0=20, n=100, alpha=0.05)
    assert set(classes.tolist()) <= {-1, 0, 1}
    parts = x, labels, x[:3], torch.tensor([0, 1, 0])
    fitted = fit(pair.train(), from_tensors(*parts, validation=3), PGDAT(LINF, steps=1), progress=False,
                 settings=TrainSettings(epochs=1, batch_size=4))  # fmt: skip
    assert len(fitted.history) == 1


class Probable(OneLogit):
    """Ends in a sigmoid, which is not the last of its modules."""

    def __init__(self, last):
        super().__init__()
        self.last = last

    def forward(self, z):
        return self.last(super().forward(z))


@pytest.mark.parametrize(
    "last",
    [
        nn.Sigmoid(), torch.sigmoid, torch.special.expit, lambda z: z.sigmoid().squeeze(1), lambda z: z.sigmoid()[:, 0],
        lambda z: z.t().sigmoid().t().contiguous().double().float(), lambda z: z.sigmoid().expand(-1, 1).clone(),
    ],
)  # fmt: skip
def test_binary_logits_see_a_sigmoid_in_the_graph(last):
    """Before: the probabilities counted as logits, all of them above 0, so that every sample had class 1."""
    net = made(lambda: Probable(last))
    # No module after it, and none that is a sigmoid at the end of the list.
    net = nn.Sequential(net, nn.Flatten(0))
    x, y = data()
    for call in (PGD(LINF, steps=2), lambda *args: evaluate(*args, [PGD(LINF, steps=2)])):
        refused(call, binary_logits(net).eval(), x, y % 2, says="ends in a sigmoid: remove that layer")


def test_binary_logits_refuse_what_has_no_single_logit():
    x, _ = data()
    refused(ask, binary_logits(made(Twin)), x, says="one logit")
    refused(binary_logits, nn.Sequential(nn.Flatten(), nn.Linear(36, 1), nn.Sigmoid()), says="remove that layer")


class Votes(Twin):
    """Whole numbers in the place of logits."""

    def forward(self, z):
        return (1000 * super().forward(z)).long()


def test_whole_numbers_are_scores_and_complex_ones_are_refused():
    # Before: TypeError of torch.finfo from evaluate and certify.
    (x, y), net, twin = data(), made(Votes), made(Twin)
    assert evaluate(net, x, y, {}).clean == evaluate(twin, x, y, {}).clean
    found = [
        [row.predict for row in quietly(certify_run, each, x, y, Sampling(0.25, 20, 100, 0.05)).rows]
        for each in (net, twin)
    ]
    assert found[0] == found[1]
    net.forward = lambda z: Twin.forward(net, z).to(torch.complex64)
    refused(evaluate, net, x, y, {}, says="real logits")


def test_a_program_of_torch_export_is_refused_in_one_line():
    x, y = data()
    program = torch.export.export(made(Twin), (x,)).module()
    refused(evaluate, program, x, y, {}, says="give the network itself")


class Unhooked(Twin):
    """Detaches its input in place."""

    def forward(self, z):
        return super().forward(z.detach_().requires_grad_())


def test_an_input_detached_in_place_has_no_gradient():
    refused(PGD(LINF, steps=2), made(Unhooked), *data(), says="no gradient with respect to its input")
