"""A zoo of networks as people write them, at every entry point: each gives the figures of its well-behaved twin and
leaves the caller's tensors alone, or is refused in one line."""

import copy
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from atent import Threat
from atent.attacks import DDN, FGSM, PGD, DeepFool, Langevin, Square
from atent.certify import Smoothed, bounds, verified
from atent.certify.certificate import Sampling, certify_run
from atent.data import from_tensors
from atent.evaluate import evaluate, masking_checks, predict, sweep
from atent.evaluate.craft import craft
from atent.guard import ask
from atent.independence import dependence
from atent.methods import ATENT, AWP, MART, MMA, PGDAT, TRADES, Free, SmoothAdv, Standard
from atent.models import binary_logits, check_output
from atent.optim import Optimizer
from atent.paper.theory.constants import curvature, kinks
from atent.paper.theory.density import gradients
from atent.paper.theory.network import prepared
from atent.precision import refuses_channels_last
from atent.report.samples import _predicted
from atent.train import TrainSettings, fit

LINF, L2 = Threat("linf", 0.1), Threat("l2", 0.5)
CLASSES, SIDE = 3, 6


class Twin(nn.Module):
    """The well-behaved network; the others change its ways and keep its weights."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 32, 3, padding=1)
        self.wide = nn.Conv2d(32, 4, 3, padding=1)
        self.lin = nn.Linear(4 * SIDE * SIDE, CLASSES)

    def features(self, z):
        return self.wide(self.conv(z).relu()).relu()

    def forward(self, z):
        return self.lin(self.features((z - 0.3) / 0.4).flatten(1))


class Arithmetic(Twin):
    def forward(self, z):
        z -= 0.3
        z /= 0.4
        return self.lin(self.features(z).flatten(1))


class Activation(Twin):
    """Its twin is `Clipped`."""

    def forward(self, z):
        return super().forward(F.relu_(F.hardtanh_(z, 0.2, 0.7)))


class Clipped(Twin):
    def forward(self, z):
        return super().forward(F.relu(F.hardtanh(z, 0.2, 0.7)))


class Assignment(Twin):
    """Its twin is `Blackened`."""

    def forward(self, z):
        z[:, :, 0] = 0.0
        return super().forward(z)


class Blackened(Twin):
    def forward(self, z):
        return super().forward(torch.cat([torch.zeros_like(z[:, :, :1]), z[:, :, 1:]], 2))


class Counting(Twin):
    """Writes buffers in eval mode, in place and by a new one."""

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(()))

    def forward(self, z):
        self.calls += 1
        self.mean = 0.9 * self.mean + 0.1 * z.detach().mean()
        return super().forward(z)


class Recycling(Twin):
    """Answers with a buffer that the next call overwrites, where no gradient is asked for."""

    def __init__(self):
        super().__init__()
        self.out = torch.zeros(0)

    def forward(self, z):
        logits = super().forward(z)
        if logits.requires_grad:
            return logits
        if self.out.shape != logits.shape or self.out.dtype != logits.dtype:
            self.out = torch.empty_like(logits)
        return self.out.copy_(logits)


class Requiring(Twin):
    def forward(self, z):
        z.requires_grad_()
        return super().forward(z)


class Hooked(Twin):
    """A pre-hook overwrites the input, another hook looks on."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.register_forward_pre_hook(lambda _module, inputs: (inputs[0].clamp_(0.2, 0.7),))
        self.register_forward_hook(lambda _module, _inputs, output: self.seen.append(tuple(output.shape)))

    def forward(self, z):
        return super().forward(F.relu(z))


class Viewing(Twin):
    """Flattens by view, behind a convolution that gains by channels-last."""

    def forward(self, z):
        z = self.features((z - 0.3) / 0.4)
        return self.lin(z.view(z.size(0), -1))


class Tied(Twin):
    """Two names for one weight; its twin uses the layer twice."""

    def __init__(self):
        super().__init__()
        self.again = nn.Conv2d(1, 32, 3, padding=1)
        self.again.weight, self.again.bias = self.conv.weight, self.conv.bias

    def forward(self, z):
        z = (z - 0.3) / 0.4
        return self.lin(self.wide((self.conv(z) + self.again(z)).relu()).relu().flatten(1))


class Twice(Twin):
    def forward(self, z):
        z = (z - 0.3) / 0.4
        return self.lin(self.wide((self.conv(z) + self.conv(z)).relu()).relu().flatten(1))


class Stateful(Twin):
    """Carries a state that is no tensor."""

    def get_extra_state(self):
        return {"version": 2}

    def set_extra_state(self, state):
        pass


class Squeezing(Twin):
    """Takes one sample for none: the batch dimension goes."""

    def forward(self, z):
        return super().forward(z).squeeze()


class SqueezingInside(Twin):
    """The same before its last layer, so that one sample alone fails."""

    def forward(self, z):
        z = self.features((z - 0.3) / 0.4).squeeze()
        return self.lin(z.flatten(1))


class Checkpointed(Twin):
    reentrant = False

    def forward(self, z):
        z = self.conv((z - 0.3) / 0.4).relu()
        z = checkpoint(self.wide, z, use_reentrant=self.reentrant).relu()
        return self.lin(z.flatten(1))


class Reentrant(Checkpointed):
    reentrant = True


class Listing(Twin):
    def forward(self, z):
        return super().forward(z), z


class Naming(Twin):
    def forward(self, z):
        return {"logits": super().forward(z)}


class Detaching(Twin):
    def forward(self, z):
        return super().forward(z.requires_grad_(False))


class Batched(Twin):
    """Batch statistics in eval mode."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(4, track_running_stats=False)

    def features(self, z):
        return self.norm(super().features(z))


class Attending(Twin):
    """Subtracts the mean of the batch's logits."""

    def forward(self, z):
        z = super().forward(z)
        return z - 0.5 * z.mean(0)


class OneLogit(Twin):
    def forward(self, z):
        return super().forward(z)[:, :1]


class OneNumber(Twin):
    def forward(self, z):
        return super().forward(z)[:, 0]


def made(kind, seed=0):
    """A network of the kind in eval mode, with the weights of its twins."""
    torch.manual_seed(seed)
    net = kind()
    for p in net.parameters():
        p.data.mul_(1.5)
    return net.eval()


def normed(wrap):
    def build():
        net = made(Twin)
        wrap(net.lin)
        return net.eval()

    return build


def folded(wrap):
    """The plain network with the weight that the parametrised one computes."""

    def build():
        other = normed(wrap)()
        net = made(Twin)
        net.lin.weight.data = other.lin.weight.detach().clone()
        net.lin.bias.data = other.lin.bias.detach().clone()
        return net

    return build


def scripted():
    return torch.jit.script(made(Arithmetic))


def traced():
    return torch.jit.trace(made(Arithmetic), torch.rand(2, 1, SIDE, SIDE), check_trace=False)


def compiled():
    return torch.compile(made(Arithmetic), backend="eager")


def of(kind):
    return lambda: made(kind)


weight_norm = nn.utils.parametrizations.weight_norm
spectral_norm = nn.utils.parametrizations.spectral_norm


def old_weight_norm(layer):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return nn.utils.weight_norm(layer)


# name: (the network, its well-behaved twin)
ZOO = {
    "arithmetic in place": (of(Arithmetic), of(Twin)),
    "activation in place": (of(Activation), of(Clipped)),
    "assignment": (of(Assignment), of(Blackened)),
    "buffers": (of(Counting), of(Twin)),
    "recycled output": (of(Recycling), of(Twin)),
    "requires_grad_": (of(Requiring), of(Twin)),
    "hooks": (of(Hooked), of(Clipped)),
    "view": (of(Viewing), of(Twin)),
    "tied": (of(Tied), of(Twice)),
    "extra state": (of(Stateful), of(Twin)),
    "squeezes": (of(Squeezing), of(Twin)),
    "squeezes inside": (of(SqueezingInside), of(Twin)),
    "checkpoint": (of(Checkpointed), of(Twin)),
    "weight norm": (normed(weight_norm), folded(weight_norm)),
    "spectral norm": (normed(spectral_norm), folded(spectral_norm)),
    "old weight norm": (normed(old_weight_norm), folded(old_weight_norm)),
    "compiled": (compiled, of(Twin)),
    "scripted": (scripted, of(Twin)),
    "traced": (traced, of(Twin)),
}
# The ways in which networks differ most; the others are tried where time allows.
FIRST = ("arithmetic in place", "hooks", "view", "recycled output", "scripted")


def names(keep, of=tuple(ZOO)):
    """The networks as parameters, those that are not in ``keep`` as slow tests."""
    return pytest.mark.parametrize("name", [n if n in keep else pytest.param(n, marks=pytest.mark.slow) for n in of])


PLAIN = pytest.mark.parametrize("name", ZOO)


def data(n=7, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return torch.rand(n, 1, SIDE, SIDE, generator=rng), torch.arange(n) % CLASSES


def shares(found):
    return {"clean": found.clean, "worst": found.worst, "outcomes": found.outcomes, "hint": found.hint}


def run(attack):
    return lambda net, x, y: tuple(attack.run(net, x, y))


# What each entry point gives, in comparable form.
ENTRIES = {
    "ask": lambda net, x, y: ask(net, x).detach(),
    "PGD": run(PGD(LINF, steps=3)),
    "PGD call": lambda net, x, y: PGD(L2, steps=3, restarts=2)(net, x, y),
    "PGD channels-last": lambda net, x, y: quietly(PGD(LINF, steps=3).run, net, x, y, channels_last=True).success,
    "FGSM": run(FGSM(LINF)),
    "Langevin": run(Langevin(L2, steps=3)),
    "DeepFool": run(DeepFool(L2, steps=3)),
    "DDN": run(DDN(L2, steps=5)),
    "Square": run(Square(LINF, queries=5)),
    "evaluate": lambda net, x, y: shares(evaluate(net, x, y, [PGD(LINF, steps=3)], batch=3)),
    "evaluate one by one": lambda net, x, y: shares(evaluate(net, x, y, [FGSM(LINF)], batch=1)),
    "predict": lambda net, x, y: predict(net, x, y, batch=3),
    "sweep": lambda net, x, y: [row["robust"] for row in sweep(net, x, y, [FGSM(LINF)], [0.05, 0.1])],
    "craft": lambda net, x, y: craft(net, x, y, FGSM(LINF), batch=3),
    "certify": lambda net, x, y: quietly(Smoothed(net, 0.25).certify, x[:3], n0=20, n=100, alpha=0.05),
    "certify_run": lambda net, x, y: [
        row._replace(time=0.0) for row in quietly(certify_run, net, x[:3], y[:3], Sampling(0.25, 20, 100, 0.05)).rows
    ],
    "pictures": lambda net, x, y: _predicted(net, x),
}
BOUNDS = {
    "bounds": lambda net, x, y: tuple(t.detach() for t in bounds(net, x[:2], LINF)),
    "verified": lambda net, x, y: verified(net, x, y, Threat("linf", 0.002), "crown-ibp"),
}
CAN_BE_BOUNDED = (
    "arithmetic in place", "view", "tied", "extra state", "checkpoint", "weight norm", "spectral norm", "compiled",
)  # fmt: skip


def quietly(function, *args, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return function(*args, **more)


def alike(a, b):
    """Equal, tensors to float32 rounding of values near 1 (another kernel, or a norm computed on the way)."""
    if isinstance(a, torch.Tensor):
        if not a.is_floating_point():
            return torch.equal(a, b)
        return torch.allclose(a, b, rtol=1e-4, atol=1e-5)
    if isinstance(a, float):
        return a == pytest.approx(b, rel=1e-4, abs=1e-5)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[k], b[k]) for k in a)
    if isinstance(a, (tuple, list)):
        return len(a) == len(b) and all(map(alike, a, b))
    return a == b


def untouched(net, entry, x, y):
    """What the entry gives; the caller's tensors must be as they were, bit for bit."""
    before = x.clone(), y.clone()
    found = entry(net, x, y)
    assert torch.equal(x, before[0])
    assert torch.equal(y, before[1])
    assert not x.requires_grad
    return found


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


@PLAIN
def test_bounds_are_those_of_the_twin_or_refused(name):
    net, twin = (make() for make in ZOO[name])
    x, y = data()
    for function in BOUNDS.values():
        if name in CAN_BE_BOUNDED:
            assert alike(untouched(net, function, x, y), untouched(twin, function, x, y))
        else:
            refused(function, net, x, y)


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


METHODS = {
    "Standard": Standard(),
    "PGDAT": PGDAT(LINF, steps=2),
    "TRADES": TRADES(LINF, steps=2),
    "ATENT": ATENT(L2, steps=2),
    "ATENT, kl": ATENT(L2, steps=2, outer_loss="kl"),
    "AWP": AWP(PGDAT(LINF, steps=2)),
    "MART": MART(LINF, steps=2),
    "MMA": MMA(L2, steps=2, bisection=5),
    "Free": Free(LINF, replays=2),
    "SmoothAdv": SmoothAdv(L2, sigma=0.1, steps=2),
}


def trained(net, method, run=None, n=11, **settings):
    x, y = data(n + 4)
    parts = x[:n], y[:n], x[n:], y[n:]
    before = [part.clone() for part in parts]
    given = {"epochs": 1, "batch_size": 5, "validate_attack": "PGD(steps=2)", "watch": "off", **settings}
    found = fit(
        net, from_tensors(*parts, validation=4), method, settings=TrainSettings(**given), run=run, progress=False,
        optimizer=Optimizer(lr=0.1),
    )  # fmt: skip
    assert all(torch.equal(a, b) for a, b in zip(parts, before))
    rows = [{k: v for k, v in row.items() if k not in ("seconds", "memory_mb")} for row in found.history]
    return rows, [p.detach().clone() for p in found.model.parameters()]


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


# ---- refused in one line


def refused(function, *args, says=None):
    """The one line of the ValueError."""
    with pytest.raises(ValueError, match=says) as caught:
        quietly(function, *args)
    text = str(caught.value)
    assert "\n" not in text
    return text


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


# ---- fewer outputs than classes


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


def test_binary_logits_refuse_what_has_no_single_logit():
    x, _ = data()
    refused(ask, binary_logits(made(Twin)), x, says="one logit")
    refused(binary_logits, nn.Sequential(nn.Flatten(), nn.Linear(36, 1), nn.Sigmoid()), says="remove that layer")


# ---- answers that depend on the batch


@pytest.mark.parametrize("kind", [Batched, Attending])
def test_dependence_on_the_batch_is_reported_by_evaluate_certify_and_the_checks(kind):
    net, (x, y) = made(kind), data(12)
    says = "depends on the other samples of its batch"
    assert says in evaluate(net, x, y, {}).hint
    assert says in quietly(certify_run, net, x[:2], y[:2], Sampling(0.25, 20, 100, 0.05)).to_json()["hint"]
    with pytest.warns(UserWarning, match=says):
        Smoothed(net, 0.25).certify(x[:2], n0=20, n=100, alpha=0.05)
    with pytest.warns(UserWarning, match=says):
        Smoothed(net, 0.25).predict(x[:2], n=100)
    found = dependence(net, x)
    assert found.dtype == torch.float64
    assert found.change > 1e-3


def test_dependence_is_the_difference_in_closed_form():
    """z - mean/2 over the batch: alone z/2, so that the difference is (mean - z)/2."""

    class Centred(nn.Module):
        def forward(self, x):
            z = x.flatten(1)
            return z - z.mean(0) / 2

    x = torch.eye(4)
    found = dependence(Centred(), x)
    batch = torch.cat([x, x.flip(0), x.flip(-1) / 2, torch.zeros(1, 4)]).double()
    beside = batch - batch.mean(0) / 2
    fewer = batch - batch[:-1].mean(0) / 2
    rows = [0, 1, 2, 3, 8]  # the samples, and an altered copy
    expected = max((z - batch / 2)[rows].abs().max() for z in (beside, fewer)) / beside.abs().max()
    assert found.change == pytest.approx(float(expected), rel=1e-12)
    assert (found.n, found.size) == (5, 13)


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


class Largest(Twin):
    """Divides by the largest value of the batch: 1 for whole images."""

    def forward(self, z):
        return super().forward(z / z.max())


class Parity(Twin):
    def forward(self, z):
        return super().forward(z if len(z) % 2 else 1.5 * z)


class Beyond(Twin):
    """Depends on its batch only where noise goes beyond the box."""

    def forward(self, z):
        return super().forward(z / z.max().clamp(min=1.2))


@pytest.mark.parametrize("kind", [Largest, Parity])
def test_dependence_that_whole_images_or_odd_batches_hide_is_found(kind):
    x = data(12)[0]
    x[:, :, 0, 0] = 1.0  # as in most images of digits: every sample's largest value is the batch's
    assert dependence(made(kind), x).found  # before: no


def test_dependence_that_only_noise_shows_is_found():
    (x, y), net = data(12), made(Beyond)
    assert evaluate(net, x, y, {}).hint is None
    assert (
        "of its batch" in certify_run(net, x[:2], y[:2], Sampling(0.5, 20, 100, 0.05)).to_json()["hint"]
    )  # before: None
    with pytest.warns(UserWarning, match="of its batch"):
        Smoothed(net, 0.5).certify(x[:2], n0=20, n=100, alpha=0.05)


@pytest.mark.parametrize("name", ["arithmetic in place", "spectral norm", "squeezes inside", "traced", "compiled"])
def test_no_dependence_where_there_is_none(name):
    """Rounding is not dependence: below half of the digits."""
    found = dependence(ZOO[name][0](), data()[0])
    assert not found.found


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_cancelling_sums_and_random_layers_are_not_dependence(scale):
    torch.manual_seed(2)
    big = nn.Linear(36, 256)
    big.bias.data += 1e3 * scale
    net = nn.Sequential(nn.Flatten(), big, nn.ReLU(), nn.Linear(256, 3))
    x, _ = data()
    assert not dependence(net.eval(), x).found

    class Noisy(Twin):
        def forward(self, z):
            return super().forward(z + 0.1 * torch.randn_like(z))

    assert not dependence(made(Noisy), x).found


def test_a_layer_that_lowers_its_precision_is_not_dependence():
    class Low(Twin):
        def forward(self, z):
            z = self.features((z - 0.3) / 0.4).flatten(1)
            return F.linear(z.float(), self.lin.weight.float(), self.lin.bias.float()).type_as(z)

    assert not dependence(made(Low), data()[0]).found


def test_batch_norm_that_takes_no_sample_alone_is_compared_in_pairs():
    net = nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, 3))
    x, y = data(12)
    assert dependence(net.eval(), x).found
    assert "batch" in evaluate(net.eval(), x, y, {}).hint


# ---- channels-last


def test_a_network_that_flattens_by_view_gets_the_usual_format_and_says_so():
    net, twin, (x, y) = made(Viewing), made(Twin), data()
    says = "does not take channels-last images .view size"
    with pytest.warns(UserWarning, match=says):
        classes, radii = Smoothed(net, 0.25).certify(x, n0=20, n=100, alpha=0.05)
    expected = Smoothed(twin, 0.25, channels_last=False).certify(x, n0=20, n=100, alpha=0.05)
    assert torch.equal(classes, expected[0])
    assert torch.equal(radii, expected[1])
    assert "view" in refuses_channels_last(net, x)
    assert refuses_channels_last(twin, x) is None
    three = torch.cat([x] * 3, 1)
    colour = nn.Sequential(nn.Conv2d(3, 1, 1), made(Viewing)).eval()
    with pytest.warns(UserWarning, match=says):
        found = evaluate(colour, three, y, [FGSM(LINF)], channels_last=True)
    assert found.outcomes == evaluate(colour, three, y, [FGSM(LINF)]).outcomes
    with pytest.warns(UserWarning, match=says):
        FGSM(LINF).run(colour, three, y, channels_last=True)


def test_smoothing_s_format_can_be_chosen():
    seen = []

    class Looking(Twin):
        def forward(self, z):
            seen.append(len(z) == 100 and z.is_contiguous() and z.stride(1) == SIDE * SIDE)
            return super().forward(z)

    net = made(Looking)
    x = torch.rand(1, 1, SIDE, SIDE)
    for choice, usual in ((None, False), (True, False), (False, True)):
        seen.clear()
        Smoothed(net, 0.25, channels_last=choice).votes(x, 100)
        assert seen[-1] is usual


def test_training_in_channels_last_falls_back_and_says_so():
    lines = []
    x, y = data(12)
    parts = from_tensors(x[:8], y[:8], x[8:], y[8:], validation=3)
    settings = {"epochs": 1, "batch_size": 4, "validate_attack": "none"}
    fitted = [
        fit(made(kind).train(), parts, PGDAT(LINF, steps=1), progress=False, say=lines.append,
            settings=TrainSettings(**settings, channels_last=last))
        for kind, last in ((Viewing, True), (Twin, False))
    ]  # fmt: skip
    assert sum("channels-last" in line for line in lines) == 1
    assert all(map(torch.equal, *(f.model.state_dict().values() for f in fitted)))


# ---- bounds read the code: what changes in place must not be read again under another name


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.lin = nn.Linear(36, 36), nn.Linear(36, 36), nn.Linear(36, 3)


class OtherName(Residual):
    def forward(self, z):
        z = self.a(z.flatten(1))
        old = z
        z -= 0.3
        return self.lin(self.b(z).relu() + old)


class OtherView(Residual):
    def forward(self, z):
        flat = z.flatten(1)
        z -= 0.3
        return self.lin(self.a(flat).relu())


class Summed(Residual):
    def forward(self, z):
        z = self.a(z.flatten(1))
        old = z
        z += self.b(z)
        return self.lin(old.relu())


class Written(Residual):
    def __init__(self):
        super().__init__()
        self.register_buffer("offset", torch.zeros(36))

    def forward(self, z):
        h = self.offset
        h += z.flatten(1)
        return self.lin(h.relu())


@pytest.mark.parametrize("kind", [OtherName, OtherView, Summed, Written])
def test_bounds_refuse_a_change_in_place_that_is_read_elsewhere(kind):
    refused(bounds, made(kind), data()[0], LINF, says="in place")


def test_bounds_take_a_residual_sum_in_place():
    class Usual(Residual):
        def forward(self, z):
            old = self.a(z.flatten(1))
            z = self.b(old.relu())
            z += old
            return self.lin(z.relu_())

    x, net = data()[0], made(Usual)
    lower, upper = bounds(net, x, Threat("linf", 0.01))
    assert bool((lower <= net(x)).all() and (net(x) <= upper).all())
