import dataclasses
import json
import math
import re

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from kit import BALLS

from atent.geometry.values import intervals
from atent.threat import Threat, radius, unit

NORM = pytest.mark.parametrize("norm", BALLS)
DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
problems = {
    "norm": st.sampled_from(BALLS),
    "eps": st.one_of(st.just(0.0), st.floats(1e-6, 3.0)),
    "scale": st.sampled_from([1e-9, 1e-3, 0.1, 1.0, 30.0]),
    "shape": st.sampled_from([(3, 1), (2, 5), (2, 1, 8, 8), (1, 3, 4, 5)]),
    "seed": st.integers(0, 2**32),
}


def pair(seed, shape, scale, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    x = torch.rand(shape, generator=g, dtype=torch.float64).to(dtype)
    # corners of the box are where clamping and rounding meet
    x = torch.where(torch.rand(shape, generator=g) < 0.3, x.round(), x)
    return x, x + (scale * torch.randn(shape, generator=g, dtype=torch.float64)).to(dtype)


def slow_ball(norm, z, x, eps):
    out = []
    for zi, xi, e in zip(z.flatten(1).tolist(), x.flatten(1).tolist(), eps):
        d = [a - b for a, b in zip(zi, xi)]
        if norm == "linf":
            out.append([b + min(max(v, -e), e) for b, v in zip(xi, d)])
        else:
            length = math.sqrt(math.fsum(v * v for v in d))
            out.append([b + (v if length <= e else v * e / length) for b, v in zip(xi, d)])
    return torch.tensor(out, dtype=torch.float64).view(x.shape)


def length(norm, d):
    d = d.double().flatten(1)
    return d.abs().amax(1) if norm == "linf" else (d * d).sum(1).sqrt()


def bits(t):
    return t.view(torch.int32 if t.dtype == torch.float32 else torch.int64)


@settings(max_examples=150, deadline=None)
@given(**problems)
def test_projection_onto_the_ball_matches_a_slow_one(norm, eps, scale, shape, seed):
    x, z = pair(seed, shape, scale)
    got = Threat(norm, eps).project_ball(z, x)
    assert (got - slow_ball(norm, z, x, [eps] * len(x))).abs().max() <= 1e-14 * max(1.0, eps)


@settings(max_examples=60, deadline=None)
@given(**problems)
def test_no_feasible_point_is_nearer(norm, eps, scale, shape, seed):
    x, z = pair(seed, shape, scale)
    threat = Threat(norm, eps)
    got = threat.project_ball(z, x)
    assert (length(norm, got - x) <= eps + 1e-14 * max(1.0, eps)).all()
    near = (got - z).double().flatten(1).norm(dim=1)
    g = torch.Generator().manual_seed(seed + 1)
    for k in range(20):
        # feasible points all over the ball, and close around the claimed nearest one
        u = torch.randn(shape, generator=g, dtype=torch.float64) * (1.0 if k % 2 else 0.01 * eps)
        u = u if k % 2 else u + got - x
        size = length(norm, u).clamp_min(1e-300)
        u = u * (eps * (1 - 1e-12) / size).clamp_max(1.0).view(-1, *[1] * (x.dim() - 1))
        assert (near <= (x + u - z).flatten(1).norm(dim=1) + 1e-12).all()


@settings(max_examples=60, deadline=None)
@given(**{**problems, "norm": st.just("linf")})
def test_linf_projection_with_the_box_is_the_nearest_point_of_both(norm, eps, scale, shape, seed):
    x, z = pair(seed, shape, scale)
    got = Threat(norm, eps).project(z, x)
    slow = torch.minimum(torch.maximum(z, (x - eps).clamp_min(0)), (x + eps).clamp_max(1))
    assert (got - slow).abs().max() <= 1e-15


@settings(max_examples=150, deadline=None)
@given(**problems, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_projection_keeps_the_stated_tolerances(norm, eps, scale, shape, seed, dtype):
    x, z = pair(seed, shape, scale, dtype)
    threat = Threat(norm, eps)
    got = threat.project(z, x)
    assert got.dtype == dtype
    assert got.min() >= 0
    assert got.max() <= 1
    limit = eps + 6e-8 if norm == "linf" else eps * (1 + 1e-6) + 6e-8 * math.sqrt(x[0].numel())
    assert (length(norm, got.double() - x.double()) <= limit).all()
    assert threat.contains(got, x).all()


@settings(max_examples=80, deadline=None)
@given(**problems)
def test_projection_is_idempotent(norm, eps, scale, shape, seed):
    x, z = pair(seed, shape, scale)
    threat = Threat(norm, eps)
    for project in (threat.project_ball, threat.project):
        once = project(z, x)
        assert (project(once, x) - once).abs().max() <= 2e-15


@NORM
@DTYPE
def test_points_inside_stay_to_rounding(norm, dtype):
    x, z = pair(3, (5, 20), 1e-3, dtype)
    unmoved = Threat(norm, 0.5).project_ball(z, x)
    assert (unmoved - z).abs().max() <= torch.finfo(dtype).eps


@NORM
@DTYPE
def test_eps_zero_gives_x_bit_for_bit(norm, dtype):
    x, z = pair(4, (6, 1, 8, 8), 2.0, dtype)
    assert torch.equal(bits(Threat(norm, 0).project(z, x)), bits(x))
    assert torch.equal(bits(Threat(norm, 0).project(x.clone(), x)), bits(x))


@NORM
@DTYPE
def test_each_sample_can_have_its_own_radius(norm, dtype):
    x, z = pair(5, (4, 1, 3, 3), 1.0, dtype)
    own = [0.0, 0.01, 0.3, 9.0]
    # radii are often measured, that is float64: the samples keep their dtype
    got = Threat(norm, 0.1).project_ball(z, x, torch.tensor(own, dtype=torch.float64))
    assert got.dtype == dtype
    slow = slow_ball(norm, z.double(), x.double(), own)
    assert (got - slow).abs().max() <= 20 * torch.finfo(dtype).eps
    assert torch.equal(bits(got[0]), bits(x[0]))
    for i, eps in enumerate(own):
        alone = Threat(norm, eps).project_ball(z[i : i + 1], x[i : i + 1])
        assert (got[i] - alone[0]).abs().max() <= torch.finfo(dtype).eps


@NORM
def test_huge_perturbations_end_on_the_sphere(norm):
    x = torch.full((2, 1000), 0.5)
    z = x + 1e25 * torch.ones(2, 1000)  # squares overflow float32
    threat = Threat(norm, 0.25)
    assert threat.distance(threat.project_ball(z, x), x) == pytest.approx([0.25, 0.25], rel=1e-4)


def test_l2_projection_does_not_drift_in_many_dimensions():
    x, z = pair(6, (2, 3, 224, 224), 1.0, torch.float32)
    eps = 3.0
    far = Threat("l2", eps).distance(Threat("l2", eps).project_ball(z, x), x)
    assert (far <= eps * (1 + 1e-6)).all()


@NORM
def test_contains_has_the_documented_tolerance(norm):
    eps, dim = 0.2, 100
    slack = 6e-8 if norm == "linf" else eps * 1e-6 + 6e-8 * math.sqrt(dim)
    x = torch.full((4, dim), 0.5, dtype=torch.float64)
    direction = torch.zeros(4, dim, dtype=torch.float64)
    direction[:, 7] = 1.0
    moves = torch.tensor([0.0, eps, eps + 0.9 * slack, eps + 1.1 * slack], dtype=torch.float64)
    assert Threat(norm, eps).contains(x + moves[:, None] * direction, x).tolist() == [True, True, True, False]


def test_contains_has_no_tolerance_for_the_box_and_refuses_nan():
    x = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    threat = Threat("linf", 0.5)
    assert threat.contains(x, x).all()
    for value in (-1e-15, 1 + 1e-15, math.nan):
        z = x.clone()
        z[0, 0] = value
        assert not threat.contains(z, x).any()


@NORM
def test_contains_allows_for_rounding_in_wide_boxes(norm):
    threat = Threat(norm, 0.7, (-60.0, 60.0))
    g = torch.Generator().manual_seed(8)
    x = 120 * torch.rand(200, 500, generator=g) - 60
    z = threat.project(x + torch.randn(200, 500, generator=g), x)
    assert threat.contains(z, x).all()
    assert not threat.contains(x + (z - x) * 1.001, x).any()


@NORM
@DTYPE
@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1.0, 1e30])
def test_ascent_has_unit_length_and_is_steepest(norm, dtype, scale):
    g = torch.Generator().manual_seed(9)
    grad = (torch.randn(5, 1, 4, 4, generator=g, dtype=torch.float64) * scale).to(dtype)
    step = Threat(norm, 1.0).ascent(grad)
    assert step.dtype == dtype
    assert length(norm, step).tolist() == pytest.approx([1.0] * 5, abs=1e-6)
    flat = (grad.double() / scale).flatten(1)
    gain = (step.double().flatten(1) * flat).sum(1)
    dual = flat.abs().sum(1) if norm == "linf" else flat.norm(dim=1)
    assert gain.tolist() == pytest.approx(dual.tolist(), rel=1e-5)


@NORM
def test_ascent_of_a_zero_gradient_is_zero(norm):
    grad = torch.zeros(3, 4)
    grad[1, 2] = 5.0
    step = Threat(norm, 1.0).ascent(grad)
    assert step.tolist() == [[0, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]]
    assert torch.equal(unit(torch.zeros(2, 3)), torch.zeros(2, 3))
    for scale in (1e-40, 1.0, 1e38):
        g = torch.tensor([[0.5, -0.25, 0.25], [0.0, 1.0, 0.0]]) * scale
        torch.testing.assert_close(unit(g, 1), torch.tensor([[0.5, -0.25, 0.25], [0.0, 1.0, 0.0]]), rtol=1e-4, atol=0)


def test_distance_is_measured_in_float64():
    x = torch.full((1, 10000), 1.0)
    z = torch.full((1, 10000), 0.1)
    assert (z - x)[0, 0].double() != z[0, 0].double() - x[0, 0].double()  # float32 cannot hold it
    exact = (x[0, 0].double() - z[0, 0].double()).item()
    far = Threat("l2", 1).distance(z, x)
    assert far.dtype == torch.float64
    assert far.item() == pytest.approx(100 * exact, rel=1e-13)
    assert Threat("linf", 1).distance(z, x).item() == exact


def test_fractions_and_numbers():
    assert Threat("linf", "8/255").eps == 8 / 255
    assert Threat("l2", " 128/255 ").eps == 128 / 255
    assert radius("0.3") == 0.3
    assert radius(0) == 0.0
    assert isinstance(Threat("l2", 1).eps, float)
    assert Threat("l2", "inf") == Threat("l2", math.inf)
    assert Threat("l2", 0.5).scaled(0.5) == Threat("l2", 0.25)
    assert Threat("linf", 1, (0, 2)).scaled(3).box == (0.0, 2.0)


@pytest.mark.parametrize("eps", ["one", "1/0", "nan", "", "1e400", None, math.nan, -math.inf, -0.1, "-1/255"])
def test_a_bad_radius_is_refused_in_one_line(eps):
    with pytest.raises(ValueError, match="eps") as error:
        Threat("linf", eps)
    assert "\n" not in str(error.value)
    assert str(eps) in str(error.value)


@pytest.mark.parametrize("box", [(1, 0), (0.5, 0.5), (0, math.nan), (0, math.inf), (-math.inf, 0)])
def test_a_bad_box_is_refused(box):
    with pytest.raises(ValueError, match="low < high, got") as error:
        Threat("linf", 0.1, box)
    assert "\n" not in str(error.value)


def test_a_bad_norm_is_refused_and_a_threat_is_frozen():
    with pytest.raises(ValueError, match=r"unknown norm 'l3': use one of linf, l2"):
        Threat("l3", 0.1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        Threat("l2", 0.1).eps = 1.0


def test_a_custom_box_is_kept():
    threat = Threat("linf", 0.5, (-2, 3))
    x = torch.tensor([[-1.9, 2.9]])
    assert threat.project(x + torch.tensor([[-1.0, 1.0]]), x).tolist() == [[-2.0, 3.0]]


@pytest.mark.parametrize(
    ("given", "meant"),
    [((0.1, "linf"), "Threat('linf', 0.1)"), (("8/255", "L2"), "Threat('l2', '8/255')")],
)
def test_exchanged_arguments_are_named(given, meant):
    with pytest.raises(ValueError, match=re.escape(meant)) as error:
        Threat(*given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("norm", ["Linf", "LINF", "L2", "L1", "L0", "Patch"])
def test_a_norm_in_another_case_is_that_in_lower_case(norm):
    more = {"side": 2, "inner": "Linf", "inner_eps": 0.1} if norm == "Patch" else {}
    plain = {**more, "inner": "linf"} if more else {}
    threat, lower = Threat(norm, 2, **more), Threat(norm.lower(), 2, **plain)
    assert (threat, hash(threat), repr(threat), threat.plain()) == (lower, hash(lower), repr(lower), lower.plain())


BOXES = ((0.0, -1.0, 0.2), (1.0, 2.0, 0.5))


def test_a_box_for_each_channel_is_kept_compared_and_written():
    threat = Threat("l2", 0.5, BOXES)
    assert threat == Threat("l2", 0.5, (torch.tensor(BOXES[0], dtype=torch.float64), list(BOXES[1])))
    assert hash(threat) == hash(Threat("l2", 0.5, BOXES))
    assert Threat(**json.loads(json.dumps(threat.plain()))) == threat
    assert threat.width == 3.0
    assert threat.span == (-1.0, 2.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        threat.box = (0.0, 1.0)


@pytest.mark.parametrize(
    "box",
    [((0.0, 1.0), (1.0, 1.0)), ((0.0,), (1.0, 2.0)), ((), ()), ((0.0,), (math.inf,)), (0.0, (1.0, 2.0)), 3, ("a", "b")],
)  # fmt: skip
def test_boxes_that_are_none_are_refused_in_one_line(box):
    with pytest.raises(ValueError, match=r"^box must be [^\n]*$"):
        Threat("linf", 0.1, box)


@NORM
@DTYPE
@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 4, 2)])
def test_each_channel_is_clamped_and_contained_in_its_own_box(norm, dtype, shape):
    g = torch.Generator().manual_seed(3)
    threat = Threat(norm, 0.4, BOXES)
    x = 4 * torch.rand(shape, generator=g).to(dtype) - 2
    inside = threat.clamp(x)
    slow = torch.stack([x[:, c].clamp(low, high) for c, (low, high) in enumerate(zip(*BOXES))], 1)
    assert torch.equal(inside, slow)
    z = threat.project(inside + torch.randn(shape, generator=g).to(dtype), inside)
    assert threat.contains(z, inside).all()
    assert torch.equal(threat.clamp(z), z)
    for c, high in enumerate(BOXES[1]):
        out = inside.clone()
        out[0, c] = high + 1e-3
        assert not Threat(norm, 9.0, BOXES).contains(out, inside)[0]
        assert Threat(norm, 9.0, BOXES).contains(out, inside)[1:].all()


def test_an_eps_is_held_against_the_boxes_of_the_channels():
    Threat("linf", 2.9, BOXES).check_eps((3, 2, 2))
    with pytest.raises(ValueError, match="below the box width 3, got 3"):
        Threat("linf", 3.0, BOXES).check_eps((3, 2, 2))
    diagonal = math.sqrt(4 * (1 + 9 + 0.3**2))
    Threat("l2", 0.999 * diagonal, BOXES).check_eps((3, 2, 2))
    with pytest.raises(ValueError, match="below the box diagonal"):
        Threat("l2", diagonal, BOXES).check_eps((3, 2, 2))


def test_a_box_is_written_as_the_closed_interval_that_it_is():
    assert intervals((0.0, 1.0)) == "[0, 1]"
    assert intervals([[0.0, -1.5], [1.0, 255.0]]) == "[0, 1], [-1.5, 255] by channel"


def test_another_number_of_channels_is_one_line():
    threat = Threat("linf", 0.1, BOXES)
    for call in (threat.clamp, lambda x: threat.check_eps(x.shape[1:]), lambda x: threat.contains(x, x)):
        with pytest.raises(ValueError, match=r"^the threat's box is for 3 channels, got inputs of 2: [^\n]*$"):
            call(torch.rand(4, 2, 5, 5))
