"""Networks and calls that bounds refuse, each in one line."""

import copy
import random

import pytest
import torch
from bound_networks import inputs
from torch import nn
from torch.nn import functional as F

from atent.attacks import FGSM
from atent.certify import Sampling, bounds, certify_run, margins, read, verified
from atent.certify.operators import LAYERS
from atent.evaluate import evaluate
from atent.threat import Threat


def refused(call, *parts):
    with pytest.raises(ValueError, match=r".") as error:
        call()
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 300
    for part in parts:
        assert part in text


class Branch(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


class Own(nn.Linear):
    def forward(self, x):
        return super().forward(x).exp()


class Aliased(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.act = nn.Linear(3, 3), nn.ReLU(inplace=True)

    def forward(self, x):
        before = self.fc(x)
        return self.act(before) + before


class Wide(nn.Module):
    def __init__(self, scale):
        super().__init__()
        self.register_buffer("scale", scale)

    def forward(self, x):
        return x * self.scale


def hooked():
    net = nn.Sequential(nn.Linear(3, 3))
    net[0].register_forward_hook(lambda m, a, out: out * 2)
    return net


@pytest.mark.parametrize(
    ("net", "parts"),
    [
        (nn.Sequential(nn.Linear(3, 3), nn.Hardshrink()), ["1 (Hardshrink)", "not supported", "ReLU"]),
        (nn.Sequential(nn.Linear(3, 3), nn.Softmax(1)), ["1 (Softmax)", "BatchNorm, pooling, ReLU"]),
        (nn.Sequential(Own(3, 3)), ["0 (Own)", "not supported"]),
        (Branch(), ["branch"]),
        (Aliased(), ["act (ReLU)", "inplace=False"]),
        (hooked(), ["0 (Linear)", "hook"]),
        (nn.Sequential(nn.BatchNorm1d(3, track_running_stats=False)), ["track_running_stats"]),
        (nn.Sequential(nn.ConstantPad2d(1, 0.5)), ["0 (ConstantPad2d)", "value 0.5", "use zeros"]),
        (nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear")), ["0 (Upsample)", "'bilinear'", "use nearest"]),
        (nn.Sequential(nn.AvgPool2d(2, ceil_mode=True)), ["ceil_mode"]),
        (nn.Sequential(nn.AvgPool2d(2, padding=1, count_include_pad=False)), ["count_include_pad"]),
        (nn.Sequential(nn.MaxPool2d(2, ceil_mode=True)), ["ceil_mode"]),
        (nn.Sequential(nn.AdaptiveAvgPool2d(2)), ["2", "mean over the image"]),
        (nn.Sequential(nn.AdaptiveAvgPool2d(None)), ["output size None", "mean over the image"]),
        (nn.Sequential(nn.AdaptiveAvgPool1d((None,))), ["output size (None,)"]),
        (nn.Sequential(nn.MaxPool1d(2, ceil_mode=True)), ["0 (MaxPool1d)", "ceil_mode"]),
        (nn.Sequential(nn.AvgPool1d(3, padding=1, count_include_pad=False)), ["0 (AvgPool1d)", "count_include_pad"]),
        (nn.Sequential(nn.Threshold(0.5, 0.0)), ["0 (Threshold)", "use equal ones"]),
        (nn.Sequential(nn.CELU(-2.0)), ["0 (CELU)", "alpha -2.0", "use a positive number"]),
        (nn.Sequential(nn.ELU(2.5)), ["0 (ELU)", "alpha 2.5", "up to 2"]),
        (nn.Sequential(nn.Softplus(-1.0)), ["0 (Softplus)", "beta -1.0", "use a positive number"]),
        (nn.Sequential(nn.Softshrink(-0.1)), ["0 (Softshrink)", "lambd -0.1"]),
        (nn.Sequential(nn.Flatten(0)), ["start_dim"]),
        (Wide(torch.ones(3, 3)), ["(3, 3)", "samples"]),
        (Wide(torch.ones(1, 1)), None),
    ],
)
def test_networks_that_are_refused(net, parts):
    net, x = net.double().eval(), inputs((3,))
    if parts is None:
        bounds(net, x, Threat("linf", 0.1))
    else:
        refused(lambda: bounds(net, x, Threat("linf", 0.1)), *parts)


def test_what_is_no_call_for_bounds(trained, batch):
    net, (x, y) = trained["plain"], batch(3)
    threat = Threat("linf", 0.1)
    loose = copy.deepcopy(net)
    graph = read(loose)
    loose[1].train()
    refused(lambda: bounds(loose, x, threat), "1 (BatchNorm2d)", "train mode", "model.eval()")
    refused(lambda: bounds(graph, x, threat), "train mode")
    refused(lambda: bounds(copy.deepcopy(net).train(), x, threat), "the model is in train mode", "model.eval()")
    refused(lambda: bounds(net, x, threat, "lp"), "'lp'", "ibp, crown-ibp, crown, dual")
    refused(lambda: bounds(net, x, threat, chunk=0), "chunk")
    refused(lambda: bounds(net, x, Threat("linf", "inf")), "finite eps")
    refused(lambda: bounds(net, x.float(), threat), "float32", "float64")
    refused(lambda: bounds(net, 255 * x, threat), "outside the box")
    refused(lambda: bounds(net, x[:, :, :5], threat), "(3, 1, 5, 8)")
    refused(lambda: bounds(net, x.expand(-1, 2, -1, -1), threat), "(3, 2, 8, 8)", "cannot take")
    refused(lambda: margins(net, x, y[:2], threat), "3 integers")
    refused(lambda: margins(net, x, y.double(), threat), "labels")
    refused(lambda: verified(net, x, y + 8, threat), "out of range", "10 outputs")
    refused(lambda: bounds(nn.Sequential(nn.Conv2d(1, 2, 3)).double().eval(), x, threat), "(n, classes)")
    stretch = nn.Sequential(nn.Flatten(), nn.Linear(64, 1), Wide(torch.ones(3))).double().eval()
    refused(lambda: bounds(stretch, x, threat), "(1,)", "(3,)")


def test_a_wrapped_or_lazy_network_is_refused_with_what_to_give():
    x, threat = inputs((3,)), Threat("linf", 0.1)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).double().eval()
    parallel = nn.DataParallel(net)
    refused(lambda: bounds(parallel, x, threat), "a DataParallel: give the network inside, model.module")
    bounds(parallel.module, x, threat)
    within = nn.Sequential(nn.Flatten(), parallel).eval()
    refused(lambda: verified(within, x, torch.zeros(len(x)).long(), threat), "1 (DataParallel)", "model.1.module")
    lazy = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.Linear(4, 3)).double().eval()
    refused(lambda: bounds(lazy, x, threat), "0 (LazyLinear)", "pass one batch through the network first, model(x)")
    lazy(x)
    bounds(lazy, x, threat)


class Masked(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.fc = nn.Linear(3, 3)
        self.register_buffer("mask", torch.tensor([0.0, value, 0.0]))

    def forward(self, x):
        return self.fc(x) + self.mask


def test_a_class_that_is_masked_by_minus_infinity_names_the_remedy():
    """Before: bounds were infinite and no sample was verified; others named weights and inputs."""
    x, y, threat = inputs((3,)).float(), torch.zeros(len(inputs((3,)))).long(), Threat("linf", 0.01)
    net = Masked(-torch.inf).eval()
    remedy = ("-inf as a logit of class 1", "such as -1e9")
    refused(lambda: bounds(net, x, threat), *remedy)
    refused(lambda: verified(net, x, y, threat), *remedy)
    refused(lambda: FGSM(threat)(net, x, y), *remedy)
    refused(lambda: evaluate(net, x, y, [FGSM(threat)]), *remedy)
    refused(lambda: certify_run(net, x, y, Sampling(0.1, 10, 20, 0.1)), *remedy)
    for broken in (torch.nan, torch.inf):
        refused(lambda value=broken: FGSM(threat)(Masked(value).eval(), x, y), "NaN or infinite logits: check its")
    assert (verified(Masked(-1e9).eval(), x, net.fc(x)[:, ::2].argmax(1) * 2, threat)).shape == y.shape
    assert float(bounds(Masked(-1e9).eval(), x, threat)[1][:, 1].detach().max()) < -9e8


def _replaced(net):
    layer = net[1]
    layer.forward = lambda z: 3 * F.linear(z, layer.weight, layer.bias)
    return net


class _Around(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net
        self.register_buffer("scale", torch.ones(()))
        self.count = torch.ones(())


class _Filled(_Around):
    def forward(self, z):
        self.scale.fill_(3.0)
        return self.net(z) * self.scale


class _NewBuffer(_Around):
    def forward(self, z):
        self.scale = torch.tensor(3.0)
        return self.net(z) * self.scale


class _Counted(_Around):
    def forward(self, z):
        self.count = self.count + 1
        return self.net(z) * self.count


class _Autocast(_Around):
    def forward(self, z):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return self.net(z)


class _Noisy(_Around):
    def forward(self, z):
        return self.net(z) + torch.randn(3)


class _Depth(_Around):
    def forward(self, z):
        return self.net(z) * (1 if random.random() < 0.5 else 2)


def _net16():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()


UNSEEN = {
    "a replaced forward": lambda: _replaced(_net16()),
    **{kind.__name__: lambda kind=kind: kind(_net16()).eval() for kind in _Around.__subclasses__()},
}


@pytest.mark.parametrize("name", UNSEEN)
@pytest.mark.parametrize("method", ["ibp", "crown"])
def test_what_a_trace_cannot_see_is_refused(name, method):
    # Regression: each gave bounds of another network, and a point of the ball had logits outside of them.
    x = torch.rand(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    net = UNSEEN[name]()
    random_state = torch.get_rng_state()
    says = "uses random numbers" if name in ("_Noisy", "_Depth") else "bounds cannot read all"
    for call in (
        lambda: bounds(net, x, Threat("linf", 1e-4), method),
        lambda: verified(net, x, torch.zeros(3, dtype=torch.long), Threat("l2", 1e-4), method),
        lambda: bounds(read(net), x, Threat("linf", 1e-4), method),
    ):
        with pytest.raises(ValueError, match=says):
            call()
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_what_a_trace_cannot_see_around_a_sample_is_refused(norm):
    """Before: verified, as the replaced method agrees with the layer's own at the sample."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(4, 2)).eval()
    net[1].weight.data = torch.tensor([[2.0] * 4, [0.0] * 4])
    net[1].bias.data = torch.tensor([-2.5, 0.0])
    net[1].forward = lambda z: F.linear(torch.where(z < 0.45, z - 1, z), net[1].weight, net[1].bias)
    x, y = torch.full((1, 1, 2, 2), 0.5), torch.zeros(1, dtype=torch.long)
    threat = Threat(norm, 0.1 if norm == "linf" else 0.2)
    assert bool((net(threat.project(x - 0.1, x)).argmax(1) != y).all())
    refused(lambda: verified(net, x, y, threat), "bounds cannot read all")


def test_a_hook_on_all_modules_is_refused():
    x = torch.rand(3, 1, 4, 4)
    hook = nn.modules.module.register_module_forward_hook(lambda m, i, o: o * 2 if isinstance(m, nn.Linear) else None)
    try:
        with pytest.raises(ValueError, match="bounds cannot read all"):
            bounds(_net16(), x, Threat("linf", 1e-4))
    finally:
        hook.remove()


def test_a_network_that_seeds_the_generators_itself_is_a_fixed_function():
    class Seeded(_Around):
        def forward(self, z):
            torch.manual_seed(3)
            return self.net(z) + torch.randn(3)

    x, net = torch.rand(3, 1, 4, 4), Seeded(_net16()).eval()
    lower, upper = bounds(net, x, Threat("linf", 0.01))
    assert ((lower <= net(x)) & (net(x) <= upper)).all()


SHAPES = {1: (2, 4), 2: (2, 4, 4)}
ARGUMENTS = {
    nn.Linear: (4, 4), nn.Conv1d: (2, 2, 1), nn.Conv2d: (2, 2, 1), nn.ConvTranspose1d: (2, 2, 1),
    nn.ConvTranspose2d: (2, 2, 1), nn.AvgPool1d: (1,), nn.AvgPool2d: (1,), nn.BatchNorm1d: (2,), nn.BatchNorm2d: (2,),
    nn.MaxPool1d: (1,), nn.MaxPool2d: (1,), nn.AdaptiveAvgPool1d: (1,), nn.AdaptiveAvgPool2d: (1,),
    nn.Threshold: (0, 0), nn.Unflatten: (1, (2, 1)), nn.ZeroPad1d: (0,), nn.ZeroPad2d: (0,),
    nn.ConstantPad1d: (0, 0.0), nn.ConstantPad2d: (0, 0.0), nn.ReflectionPad1d: (0,), nn.ReflectionPad2d: (0,),
    nn.ReplicationPad1d: (0,), nn.ReplicationPad2d: (0,), nn.CircularPad1d: (0,), nn.CircularPad2d: (0,),
    nn.Upsample: (None, 1), nn.PixelShuffle: (1,), nn.PixelUnshuffle: (1,), nn.ChannelShuffle: (1,),
}  # fmt: skip


class _Reused(nn.Module):
    """Returns the input of a layer beside the ReLU, in place, of its output."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, z):
        before = -z
        after = F.relu_(self.layer(before))
        return torch.cat([after.flatten(1), before.flatten(1)], 1)


@torch.no_grad()
@pytest.mark.parametrize("kind", LAYERS, ids=lambda kind: kind.__name__)
def test_a_layer_that_returns_the_memory_of_its_input_is_known_to(kind):
    """Before: dropout of one dimension was read as a copy, so that a later change in place went unseen."""
    net = _Reused(kind(*ARGUMENTS.get(kind, ()))).eval()
    z = torch.rand(3, *SHAPES[1 if "1d" in kind.__name__ else 2])
    if net.layer(z).untyped_storage().data_ptr() == z.untyped_storage().data_ptr():
        refused(lambda: read(net), "changes in place what the network reads again")
    else:
        read(net)


def test_no_certificate_where_dropout_shares_its_memory():
    """The margin is -0.05 at 0.3; read without the change in place, it was at least 0.05 in the ball."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.drop = nn.Dropout1d()

        def forward(self, z):
            before = z - 0.4
            after = F.relu_(self.drop(before))
            return (2 * z - before - after) * torch.tensor([1.0, 0.0]) - torch.tensor([0.65, 0.0])

    net, x = Shared().eval(), torch.tensor([[0.5, 0.5]])
    refused(lambda: verified(net, x, torch.zeros(1, dtype=torch.long), Threat("linf", 0.2)), "in place")
