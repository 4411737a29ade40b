"""Threats in l1, in l0 and of patches: projections against brute force and optimality conditions; bad input."""

import itertools
import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from atent.attacks.starts import ALLOWED, start
from atent.rng import Batch, PerSample
from atent.threat import Threat

BOXES = ((0.0, -1.0, 0.2), (1.0, 2.0, 0.5))
L1, PIXELS = Threat("l1", 1.5), Threat("l0", 5, group="pixel")
PATCHES = Threat("patch", 2, side=2)
INNER = Threat("patch", 2, side=2, inner="linf", inner_eps="16/255")
SPARSE = pytest.mark.parametrize("threat", [L1, Threat("l0", 7), PIXELS, PATCHES, INNER], ids=str)
DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["f32", "f64"])
problems = {
    "scale": st.sampled_from([1e-9, 1e-3, 0.1, 1.0, 30.0]),
    "box": st.sampled_from([(0.0, 1.0), (-3.0, 5.0), BOXES]),
    "seed": st.integers(0, 2**32),
}


def pair(threat, seed, shape, scale, dtype=torch.float64):
    """Points in the box, some on its walls, and others around them, with equal changes among them."""
    g = torch.Generator().manual_seed(seed)
    low, high = (torch.zeros(shape, dtype=torch.float64) + v for v in threat.edges(torch.zeros(shape).double()))
    x = low + (high - low) * (1.6 * torch.rand(shape, generator=g, dtype=torch.float64) - 0.3).clamp(0, 1)
    d = scale * torch.randn(shape, generator=g, dtype=torch.float64)
    d = torch.where(torch.rand(shape, generator=g) < 0.2, scale, d)
    x, z = x.to(dtype), (x + d).to(dtype)
    return threat.clamp(x), z


# ---- l1 --------------------------------------------------------------------------------------------------


def slow_l1(v, low, high, eps):
    """The threshold by bisection to the last bit, and the point that it gives; lists of numbers."""

    def point(t):
        return [min(max(math.copysign(max(abs(a) - t, 0.0), a), lo), hi) for a, lo, hi in zip(v, low, high)]

    below, above = 0.0, max(map(abs, v))
    if math.fsum(map(abs, point(0.0))) <= eps:
        return point(0.0)
    for _ in range(1100):
        middle = (below + above) / 2
        if middle in (below, above):
            break
        below, above = (middle, above) if math.fsum(map(abs, point(middle))) > eps else (below, middle)
    return point(above)


@settings(max_examples=100, deadline=None)
@given(**problems, eps=st.sampled_from([0.0, 1e-6, 0.03, 1.0, 7.0, 100.0]), boxed=st.booleans())
def test_l1_projection_is_that_of_the_bisected_threshold(scale, box, seed, eps, boxed):
    threat = Threat("l1", eps, box)
    x, z = pair(threat, seed, (3, 3, 4), scale)
    got = (threat.project if boxed else threat.project_ball)(z, x)
    low, high = threat.edges(x)
    for row in range(len(x)):
        v = (z - x)[row].flatten().tolist()
        rooms = [((w - x)[row] if boxed else torch.full_like(x[row], s * math.inf)) for w, s in ((low, -1), (high, 1))]
        wanted = slow_l1(v, rooms[0].flatten().tolist(), rooms[1].flatten().tolist(), eps)
        # d = |v| - t in float64, t to 2^-53 of the largest |v|, and x + d to the last place of the box.
        error = 8 * 2**-53 * (max(map(abs, v)) + 5)
        assert ((got - x)[row].flatten() - torch.tensor(wanted, dtype=torch.float64)).abs().max() <= error


@settings(max_examples=60, deadline=None)
@given(**problems, eps=st.sampled_from([0.03, 1.0, 7.0]))
def test_l1_projection_meets_the_optimality_conditions(scale, box, seed, eps):
    """<v - d, p - d> <= 0 for all p of ball and box; for a linear function its corners are enough."""
    threat = Threat("l1", eps, box)
    x, z = pair(threat, seed, (4, 3, 5), scale)
    v, d = (z - x).flatten(1), (threat.project(z, x) - x).flatten(1)
    low, high = ((w - x).flatten(1) for w in threat.edges(x))
    assert (d.abs().sum(1) <= eps * (1 + 1e-12) + 1e-14).all()
    gap = v - d
    # The largest <gap, p> over ball and box: fill coordinates to the wall, the steepest first, while eps lasts.
    room = torch.where(gap > 0, high, -low)
    order = gap.abs().argsort(1, descending=True)
    filled, steep = room.gather(1, order), gap.abs().gather(1, order)
    before = filled.cumsum(1) - filled
    best = (steep * torch.minimum(filled, (eps - before).clamp_min(0))).sum(1)
    assert (best - (gap * d).sum(1) <= 1e-12 * (1 + gap.abs().amax(1)) * (1 + eps)).all()


def test_clipping_first_is_not_the_l1_projection():
    threat, x = Threat("l1", 1.0), torch.tensor([[0.5, 0.5]], dtype=torch.float64)
    z = torch.tensor([[3.0, 1.4]], dtype=torch.float64)
    right, clipped = threat.project(z, x), threat.project(threat.clamp(z), x)
    assert right.tolist() == [[1.0, 1.0]]
    assert torch.equal(right, clipped)
    z = torch.tensor([[3.0, 0.9]], dtype=torch.float64)
    wrong = threat.clamp(threat.project_ball(z, x))
    assert (threat.project(z, x) - z).norm() < (wrong - z).norm()


def test_l1_projection_keeps_its_length_far_from_the_ball_and_in_many_dimensions():
    x = torch.full((2, 150_528), 0.5)
    z = x + 1e25 * torch.ones_like(x)
    for eps in (0.25, 12.0, 1000.0):
        for project in (Threat("l1", eps).project, Threat("l1", eps).project_ball):
            near = project(z, x)
            assert Threat("l1", eps).contains(near, x).all()
            assert Threat("l1", eps).distance(near, x).tolist() == pytest.approx([eps] * 2, rel=0.02)


# ---- what counts -----------------------------------------------------------------------------------------


def places(threat, shape):
    """The elements, pixels or patches of a sample, each as a mask."""
    c, h, w = shape
    side = threat.side or 1
    found = []
    for i, j in itertools.product(range(0, h, side), range(0, w, side)):
        for channels in [[k] for k in range(c)] if threat.norm == "l0" and threat.group == "element" else [range(c)]:
            mask = torch.zeros(shape, dtype=torch.bool)
            mask[list(channels), i : i + side, j : j + side] = True
            found.append(mask)
    return found


@settings(max_examples=60, deadline=None)
@given(
    **problems,
    k=st.integers(1, 4),
    form=st.sampled_from(
        [("l0", {}, (3, 2, 1)), ("l0", {"group": "pixel"}, (3, 2, 3)), ("patch", {"side": 2}, (3, 4, 6)),
         ("patch", {"side": 2, "inner": "linf", "inner_eps": 0.1}, (3, 4, 6))]
    ),
    boxed=st.booleans(),
)  # fmt: skip
def test_no_choice_of_elements_pixels_or_patches_is_nearer(scale, box, seed, k, form, boxed):
    norm, more, shape = form
    threat = Threat(norm, k, box, **more)
    x, z = pair(threat, seed, (2, *shape), scale)
    got = (threat.project if boxed else threat.project_ball)(z, x)
    inside = z if threat.inner_eps is None else x + (z - x).clamp(-threat.inner_eps, threat.inner_eps)
    inside = threat.clamp(inside) if boxed else inside
    masks = places(threat, shape)
    assert threat.blocks(shape).count == len(masks)
    best = torch.full((2,), math.inf, dtype=torch.float64)
    for chosen in itertools.combinations(masks, k):
        point = torch.where(torch.stack(chosen).any(0), inside, x)
        best = torch.minimum(best, (point - z).flatten(1).norm(dim=1))
    assert ((got - z).flatten(1).norm(dim=1) <= best * (1 + 1e-12)).all()
    # What is not chosen is x to the bit, and what is chosen its nearest point.
    assert ((got == x) | (got == inside)).all()
    differ = torch.stack([((got != x) & m).flatten(1).any(1) for m in masks]).sum(0)
    assert torch.equal(threat.distance(got, x), differ.double())
    assert (differ <= k).all()


def test_the_gain_of_a_patch_is_not_the_length_of_what_is_kept():
    """One element far outside the bound gains less than many within it... and the other way round."""
    threat = Threat("patch", 1, side=2, inner="linf", inner_eps=0.25)
    x = torch.full((1, 1, 2, 4), 0.5, dtype=torch.float64)
    v = torch.tensor([[[[3.0, 0.0, 0.24, 0.24], [0.0, 0.0, 0.24, 0.24]]]], dtype=torch.float64)
    kept = threat.project(x + v, x) - x
    clipped = v.clamp(-0.25, 0.25)
    left, right = ((clipped[..., s] ** 2).sum() for s in (slice(0, 2), slice(2, 4)))
    assert left < right  # the length of what is kept would choose the right patch
    assert kept[..., :2].any()
    assert not kept[..., 2:].any()


def test_all_patches_with_an_inner_linf_are_the_linf_ball():
    x, z = pair(Threat("linf", 0.1), 3, (5, 3, 4, 4), 0.3)
    whole = Threat("patch", 4, side=2, inner="linf", inner_eps=0.1)
    whole.check_eps((3, 4, 4))
    assert torch.equal(whole.project(z, x), Threat("linf", 0.1).project(z, x))


# ---- what all of them share ------------------------------------------------------------------------------


@SPARSE
@DTYPE
@pytest.mark.parametrize("box", [(0.0, 1.0), (-60.0, 60.0), BOXES])
def test_projections_are_contained_idempotent_and_keep_what_is_inside(threat, dtype, box):
    threat = Threat(**{**threat.plain(), "box": box})
    for scale in (1e-3, 1.0, 100.0):
        x, z = pair(threat, 8, (20, 3, 6, 8), scale, dtype)
        once = threat.project(z, x)
        assert once.dtype == dtype
        assert threat.contains(once, x).all()
        top = max(map(abs, threat.span)) + scale
        assert (threat.project(once, x) - once).abs().max() <= 4 * torch.finfo(dtype).eps * top
        ball = threat.project_ball(z, x)
        assert (threat.distance(ball, x) <= float(threat.eps) * (1 + 1e-6) + 6e-8 * top * x[0].numel()).all()
    if threat.norm == "l1":
        assert not threat.contains(x + (once - x) * 1.01, x)[threat.distance(once, x) > 1.49].any()


@SPARSE
@DTYPE
def test_each_sample_has_a_radius_of_its_own(threat, dtype):
    own = [1.0, 4.0, 2.0, 3.0]
    each = Threat(**{**threat.plain(), "eps": own})
    x, z = pair(threat, 5, (4, 3, 6, 8), 1.0, dtype)
    for project, eps in ((each.project, None), (threat.project, torch.tensor(own, dtype=torch.float64))):
        got = project(z, x, eps)
        for i, radius in enumerate(own):
            one = Threat(**{**threat.plain(), "eps": radius})
            assert torch.equal(one.project(z[i : i + 1], x[i : i + 1])[0], got[i])
            assert each.take(torch.tensor([i])).contains(got[i : i + 1], x[i : i + 1])
    assert each.contains(got, x).all()
    assert each.scaled(0.5).eps == ((0.5, 2.0, 1.0, 1.5) if threat.norm == "l1" else (1.0, 2.0, 1.0, 1.0))


@SPARSE
def test_a_batch_is_the_sum_of_its_samples(threat):
    x, z = pair(threat, 6, (9, 3, 6, 8), 1.0)
    got = threat.project(z, x)
    assert torch.equal(torch.cat([threat.project(a, b) for a, b in zip(z.split(2), x.split(2))]), got)


def test_contains_has_the_documented_tolerance():
    x = torch.full((3, 100), 0.5, dtype=torch.float64)
    threat, z = Threat("l1", 1.0), x.clone()
    slack = 1e-6 + 6e-8 * 10
    for row, excess in enumerate((0.0, 0.9 * slack, 1.1 * slack)):
        z[row, :10] += (1 + excess) / 10
    assert threat.contains(z, x).tolist() == [True, True, False]
    z = x.clone()
    z[:, :5] += 1e-9
    z[1, 5] += 1e-9
    assert Threat("l0", 5).contains(z, x).tolist() == [True, False, True]
    x = torch.full((2, 1, 4, 4), 0.5, dtype=torch.float64)
    z = x.clone()
    z[:, :, :2, :2] += torch.tensor([16 / 255 + 5e-8, 16 / 255 + 7e-8], dtype=torch.float64).view(2, 1, 1, 1)
    assert INNER.contains(z, x).tolist() == [True, False]
    assert PATCHES.contains(z, x).tolist() == [True, True]


@DTYPE
@pytest.mark.parametrize("scale", [1e-38, 1.0, 1e30])
def test_l1_ascent_is_the_largest_coordinate_and_a_step_goes_on_at_the_wall(dtype, scale):
    grad = torch.tensor([[1.0, -3.0, 2.0], [0.0, 0.0, 0.0], [-2.0, 2.0, 1.0]], dtype=dtype) * scale
    threat = Threat("l1", 1.0)
    assert threat.ascent(grad).tolist() == [[0, -1, 0], [0, 0, 0], [-1, 0, 0]]
    z = torch.tensor([[0.5, 0.25, 0.25], [0.5, 0.5, 0.5], [0.0, 1.0, 0.5]], dtype=dtype)
    assert threat.step(z, grad, 0.75).tolist() == [[0.5, 0, 0.75], [0.5, 0.5, 0.5], [0, 1, 1]]
    lengths = torch.tensor([[0.125], [1.0], [0.25]], dtype=dtype)
    assert threat.step(z, grad, lengths).tolist() == [[0.5, 0.125, 0.25], [0.5, 0.5, 0.5], [0, 1, 0.75]]


@pytest.mark.parametrize("threat", [Threat("l0", 3), PATCHES], ids=str)
def test_the_ascent_of_a_count_keeps_sizes(threat):
    grad = torch.tensor([[[[1.0, -4.0], [2.0, 0.0]]]]) * 1e-30
    torch.testing.assert_close(threat.ascent(grad), torch.tensor([[[[0.25, -1.0], [0.5, 0.0]]]]))


@SPARSE
@DTYPE
def test_starts_are_in_the_ball_and_differ(threat, dtype):
    x, _ = pair(threat, 7, (200, 3, 6, 8), 1.0, dtype)
    streams = [PerSample(0, torch.arange(200), "test"), Batch(torch.Generator().manual_seed(1))]
    for kind, draws in itertools.product(ALLOWED[threat.norm], streams):
        z = start(threat, kind, x, draws)
        assert threat.contains(threat.clamp(z), x).all()
        if kind == "zero":
            assert z is x
            continue
        far = threat.distance(z, x)
        assert far.unique().numel() > 1 or threat.norm != "l1" or kind != "uniform"
        if threat.norm != "l1":
            assert (far == threat.eps).all()
            changed = (z != x).flatten(1)
            assert changed.any(0).all()
            assert (changed[0] != changed[1]).any()
        elif kind in ("sphere", "boundary"):
            assert far.tolist() == pytest.approx([1.5] * 200, rel=1e-5)


def test_the_uniform_start_is_uniform_in_the_l1_ball():
    threat, x = Threat("l1", 2.0), torch.full((4000, 3), 0.5, dtype=torch.float64)
    z = start(threat, "uniform", x, PerSample(0, torch.arange(4000), "test"))
    # The share of the volume within r is (r / eps)^3; the mean of n = 4000 uniforms is off by 4 / sqrt(12 n) at most.
    share = (threat.distance(z, x) / 2) ** 3
    assert abs(float(share.mean()) - 0.5) <= 4 / math.sqrt(12 * 4000)
    assert abs(float((z - x).mean())) <= 4 * 2 / math.sqrt(12000)


# ---- as values, and bad ones -----------------------------------------------------------------------------


@SPARSE
def test_threats_are_written_read_compared_and_shown(threat):
    assert Threat(**json.loads(json.dumps(threat.plain()))) == threat
    assert hash(Threat(**threat.plain())) == hash(threat)
    assert eval(repr(threat)) == threat
    assert threat != Threat("l0", 3)


def test_the_fields_of_other_threats_are_not_written():
    assert Threat("linf", 0.1).plain() == {"norm": "linf", "eps": 0.1, "box": (0.0, 1.0)}
    assert repr(Threat("l2", 0.5)) == "Threat(norm='l2', eps=0.5, box=(0.0, 1.0))"
    assert INNER.plain() == {
        "norm": "patch", "eps": 2.0, "box": (0.0, 1.0), "side": 2, "inner": "linf", "inner_eps": 16 / 255,
    }  # fmt: skip


def test_counts_are_scaled_to_whole_numbers():
    assert Threat("l0", 100).scaled(0.29).eps == 29.0
    assert Threat("l0", 10).scaled(0.0).eps == 1.0
    assert PATCHES.scaled(1.9).eps == 3.0
    assert Threat("l0", "inf").scaled(0.5).eps == math.inf
    assert L1.scaled(0.5).eps == 0.75


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: Threat("l0", 0), "l0 eps is a number of elements or pixels: give an integer of at least 1, got 0"),
        (lambda: Threat("l0", -1), "give an integer of at least 1, got -"),
        (lambda: Threat("l0", True), "eps must be a number, got True"),
        (lambda: Threat("l0", 2.5), "integer of at least 1, got 2.5"),
        (lambda: Threat("patch", "8/255", side=2), "patch eps is a number of patches: give an integer"),
        (lambda: Threat("l0", [3, 0.5]), "integer of at least 1, got 0.5"),
        (lambda: Threat("l1", -1), "eps must be finite and at least 0, got -1"),
        (lambda: Threat("linf", 0.1, group="pixel"), "group is for a l0 threat, got group 'pixel' with linf"),
        (lambda: Threat("l0", 3, group="row"), "group 'row' is not known: use one of element, pixel"),
        (lambda: Threat("l0", 3, side=2), "side is for a patch threat, got side 2 with l0"),
        (lambda: Threat("l1", 3.0, inner="linf"), "inner is for a patch threat, got inner 'linf' with l1"),
        (lambda: Threat("linf", 0.1, inner_eps=0.1), "inner_eps is for a patch threat"),
        (lambda: Threat("patch", 1), "needs side, its width in pixels, an integer of at least 1, got None"),
        (lambda: Threat("patch", 1, side=0), "of at least 1, got 0"),
        (lambda: Threat("patch", 1, side=2.0), "got 2.0"),
        (lambda: Threat("patch", 1, side=2, inner="l2"), "inner 'l2' is not known: use one of free, linf"),
        (lambda: Threat("patch", 1, side=2, inner="linf"), "inner 'linf' needs inner_eps"),
        (lambda: Threat("patch", 1, side=2, inner_eps=0.1), "inner_eps 0.1 needs inner 'linf', got inner 'free'"),
        (lambda: Threat("patch", 1, side=2, inner="linf", inner_eps="x"), "inner_eps 'x' is not a number"),
        (lambda: Threat("patch", 5, side=2).check_eps((1, 4, 4)), "below the number of patches of a sample, 4, got 5"),
        (lambda: Threat("patch", 4, side=2).check_eps((1, 4, 4)), "below the number of patches of a sample, 4, got 4"),
        (
            lambda: Threat("patch", 5, side=2, inner="linf", inner_eps=0.1).check_eps((1, 4, 4)),
            "at most the number of patches of a sample, 4, got 5",
        ),
        (
            lambda: Threat("patch", 1, side=2, inner="linf", inner_eps=1.0).check_eps((1, 4, 4)),
            "inner_eps must be below the box width 1, got 1.0",
        ),
        (lambda: Threat("patch", 1, side=3).check_eps((1, 4, 6)), "do not tile images of 4 x 6: use a side of 1, 2"),
        (lambda: Threat("patch", 1, side=2).check_eps((16,)), "for images (n, c, h, w), got inputs of shape (n, 16)"),
        (lambda: PIXELS.check_eps((1, 4, 4)), "inputs of shape (1, 4, 4) have one: use group 'element'"),
        (lambda: PIXELS.check_eps((16,)), "inputs of shape (16,) have one"),
        (lambda: Threat("l0", 16).check_eps((1, 4, 4)), "below the number of elements of a sample, 16, got 16"),
        (lambda: Threat("l0", 16, group="pixel").check_eps((3, 4, 4)), "below the number of pixels of a sample, 16"),
        (lambda: Threat("l1", 16.0).check_eps((1, 4, 4)), "l1 eps must be below the box diagonal 16, got 16"),
        (lambda: Threat("l1", 17.2, BOXES).check_eps((3, 2, 2)), "l1 eps must be below the box diagonal 17.2"),
    ],
)  # fmt: skip
def test_bad_threats_are_refused_in_one_line(make, text):
    with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared below
        make()
    assert text in str(error.value)
    assert "\n" not in str(error.value)


def test_what_is_allowed_beside_the_limits():
    Threat("l0", 16, allow_large_eps=True).check_eps((1, 4, 4))
    Threat("patch", 9, side=2, allow_large_eps=True).check_eps((1, 4, 4))
    Threat("patch", "inf", side=2).check_eps((1, 4, 4))
    Threat("l0", 15).check_eps((16,))
    Threat("l1", 17.1, BOXES).check_eps((3, 2, 2))


# ---- from options, recipes and result files ---------------------------------------------------------------


def test_options_replace_what_the_methods_threat_says():
    from atent.experiments.target import EvaluateSettings, threat_of

    box = (0.0, 1.0)
    assert threat_of(INNER, box, EvaluateSettings()) == INNER
    assert threat_of(INNER, box, EvaluateSettings(eps=3)).eps == 3.0
    assert threat_of(INNER, box, EvaluateSettings(inner="free")) == PATCHES
    assert threat_of(INNER, box, EvaluateSettings(norm="l1", eps="3/2")) == L1
    assert threat_of(None, box, EvaluateSettings(norm="l0", eps="5", group="pixel")) == PIXELS
    with pytest.raises(ValueError, match=r"^group is for a l0 threat, got group 'pixel' with patch$"):
        threat_of(INNER, box, EvaluateSettings(group="pixel"))


def test_a_recipes_attacks_without_a_form_are_named_by_their_field():
    from atent.experiments.target import EvaluateSettings, recipe_attacks

    with pytest.raises(ValueError, match=r"^evaluate\.attacks: .*no form for l0.*SparsePGD[^\n]*$"):
        recipe_attacks(EvaluateSettings(), Threat("l0", 3))


def test_another_norm_needs_its_own_eps():
    from atent.attacks import ATTACKS
    from atent.attacks.spec import parse
    from atent.experiments.target import EvaluateSettings, threat_of

    own = Threat("linf", 0.15)
    for norm in ("l2", "l0"):
        with pytest.raises(ValueError, match=rf"^norm {norm} needs its own eps: .*linf 0\.15.* --eps [^\n]*$"):
            threat_of(own, own.box, EvaluateSettings(norm=norm))
        with pytest.raises(ValueError, match=rf"has norm {norm} without its eps: add eps"):
            parse(f"PGD(norm={norm})", own, ATTACKS)
    assert threat_of(own, own.box, EvaluateSettings(norm="linf")) == own
    assert parse("PGD(norm=linf)", own, ATTACKS).threat == own


def test_recipes_and_result_files_hold_them():
    from atent.experiments.recipe_files import read_recipe
    from atent.experiments.recipes import job
    from atent.experiments.results import Adversary

    tables = read_recipe("digits-linf-pgdat")
    tables["method"]["threat"] = {"norm": "patch", "eps": 2, "side": 2, "inner": "linf", "inner_eps": "16/255"}
    made = job(tables, "x")
    assert made.method.threat == INNER
    assert json.loads(json.dumps(made.sections()))["method"]["threat"]["inner_eps"] == 16 / 255
    tables["method"]["threat"] = {"norm": "l0", "eps": 0}
    with pytest.raises(ValueError, match=r"method\.threat: l0 eps is a number of elements or pixels"):
        job(tables, "x")
    for threat in (L1, PIXELS, PATCHES, INNER):
        assert Adversary(**threat.plain()).threat() == threat


def test_certificates_refuse_them_in_one_line():
    from atent.certify import bounds

    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 2))
    for threat in (L1, Threat("l0", 3), PATCHES):
        with pytest.raises(ValueError, match=rf"^bounds do not support {threat.norm}: give a threat in linf or l2$"):
            bounds(model, torch.rand(2, 1, 4, 4), threat)
