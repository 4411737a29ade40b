"""Functions, methods and operators of torch whose bounds are those of the layer or the operator that means the same."""

import pytest
import torch
from bound_forms import TWINS, net_of
from bound_networks import encloses, inputs
from torch import fx, nn

from atent.certify import bounds, functions, names, read, sharing
from atent.certify.affine import plain, vectors
from atent.certify.tracing import Tracer
from atent.threat import Threat

FORMS = [(name, number) for name, forms in TWINS.items() for number in range(1, len(forms))]


@pytest.mark.parametrize(("name", "number"), FORMS)
def test_bounds_are_those_of_what_means_the_same(name, number):
    """Before: most of these forms were refused."""
    x, threat = inputs((1, 4, 4), n=2), Threat("linf", 0.03)
    twin, form = (net_of(TWINS[name][place]) for place in (0, number))
    with torch.no_grad():
        torch.testing.assert_close(form(x), twin(x), rtol=0, atol=1e-10)
        # The forms round in another order: by parts of 1e-16 of values below 100.
        for one, other in zip(bounds(form, x, threat), bounds(twin, x, threat), strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-9)
    encloses(form.float(), x.float(), threat, "crown", 10)


def traced(middle):
    root = nn.Sequential(net_of(middle))
    return root, Tracer().trace(root)


class Seen(fx.Interpreter):
    """Notes the functions and methods of a forward pass, and which of them return memory of their first argument."""

    def __init__(self, root, graph):
        super().__init__(fx.GraphModule(root, graph))
        self.spelled, self.meanings, self.views = set(), set(), set()

    def run_node(self, step):
        source = self.env.get(step.args[0]) if step.args and isinstance(step.args[0], fx.Node) else None
        out = super().run_node(step)
        if step.op in ("call_function", "call_method"):
            meaning = names.named(step)[1]
            self.spelled.add(getattr(step.target, "__name__", step.target).strip("_"))
            self.meanings.add(meaning)
            both = isinstance(source, torch.Tensor) and isinstance(out, torch.Tensor)
            if both and source.untyped_storage().data_ptr() == out.untyped_storage().data_ptr():
                self.views |= set() if sharing.in_place(step, self.module) else {meaning}
        return out


@torch.no_grad()
def test_every_function_has_a_twin_and_those_that_share_memory_are_known():
    spelled, meanings, views = set(), set(), set()
    for middle in (middle for forms in TWINS.values() for middle in forms):
        seen = Seen(*traced(middle))
        seen.run(inputs((1, 4, 4), n=2))
        spelled, meanings, views = spelled | seen.spelled, meanings | seen.meanings, views | seen.views
    # Dropouts and casts to one dtype have tests of their own.
    assert set(functions.FUNCTIONS) - meanings <= {*names.DROPOUTS, "float", "double"}
    assert set(names.ALIASES) <= spelled
    # Weights are never changed in place, whatever shares their memory.
    assert views & set(functions.FUNCTIONS) <= set(names.VIEWS)


def value(node, values):
    """The value of a node of a network, from those of its inputs."""
    z = values[node.inputs[0]]
    if node.kind == "affine":
        offset = node.op.offset(node.op.apply(z, plain).dim() - 1, z.dtype, plain)
        return node.op.apply(z, plain) + (0 if offset is None else offset)
    others = {
        "sum": lambda: z + values[node.inputs[-1]],
        "cat": lambda: torch.cat([values[k] for k in node.inputs], node.op),
        "relu": z.relu,
        "maxpool": lambda: node.op(z),
        "smooth": lambda: node.op.value(z),
    }
    return others[node.kind]()


@torch.no_grad()
@pytest.mark.parametrize("name", TWINS)
def test_the_nodes_compute_the_network_and_their_way_back_is_the_adjoint(name):
    """<a, W z> = <W^T a, z> of every affine node, and the last node has the network's logits."""
    g, x = torch.Generator().manual_seed(0), inputs((1, 4, 4), n=2)
    for middle in TWINS[name]:
        net = net_of(middle)
        graph, values = read(net), [x]
        for node in graph.nodes[1:]:
            values.append(value(node, values))
            if node.kind != "affine":
                continue
            z = values[node.inputs[0]]
            out = node.op.apply(z, plain)
            a = torch.randn(2, 3, *out.shape[1:], generator=g, dtype=torch.float64)
            back = node.op.transpose(a, z.shape[1:])
            sides = vectors(a * out[:, None], 2).sum(2), vectors(back * z[:, None], 2).sum(2)
            size = vectors(a.abs() * node.op.apply(z.abs(), torch.abs)[:, None], 2).sum(2)
            assert ((sides[0] - sides[1]).abs() <= 1e-13 * (1 + size)).all()
        torch.testing.assert_close(values[graph.output], net(x), rtol=0, atol=1e-10)
