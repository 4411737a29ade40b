"""NT-Xent, views, dual batch-norm, LARS and the objective of adversarial contrastive learning."""

import copy
import math

import pytest
import torch
from kit import ROUNDING, batch, distance, gradient, network, stream
from torch import nn
from torch.nn import functional as F

from atent import Threat
from atent.attacks.starts import start
from atent.data.views import Views, _hue
from atent.losses import nt_xent
from atent.methods import ACL, TRADES, DistilledTRADES
from atent.models import ModelSettings, build, make
from atent.models.contrastive import Contrastive, Frozen, last_linear
from atent.models.dual import DualBatchNorm, branch, doubled
from atent.optim import LARS, Optimizer
from atent.rng import Batch, seed_from
from atent.testing.networks import Snapshot, same

LINF = Threat("linf", 0.1)
# Views that are the images themselves.
STILL = Views(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.0, jitter_probability=0.0, grey=0.0)


def contrastive(which="a", widths=(7, 6)):
    """A small network with a projection head, float64, in train mode; its branches are equal."""
    torch.manual_seed(3)
    return Contrastive(network(norm=True).float(), widths, (1, 6, 6), which).double().train()


def embeddings(n=5, d=4, seed=1):
    rng = torch.Generator().manual_seed(seed)
    return (torch.randn(n, d, generator=rng, dtype=torch.float64) for _ in range(2))


# -- NT-Xent


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_equal_features_cost_the_log_of_the_others(temperature):
    n = 6
    z = torch.randn(1, 5, dtype=torch.float64).expand(n, 5)
    found = nt_xent(z, 3 * z, temperature)
    assert found.shape == (n,)
    assert found.tolist() == pytest.approx([math.log(2 * n - 1)] * n, rel=1e-12)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_orthogonal_pairs(temperature):
    n, t = 5, temperature
    z = torch.eye(n, dtype=torch.float64)
    want = -1 / t + math.log(math.exp(1 / t) + 2 * n - 2)
    assert float(nt_xent(z, z, t).mean()) == pytest.approx(want, rel=1e-12)


def test_it_is_the_cross_entropy_of_similarities():
    a, b = embeddings()
    z = F.normalize(torch.cat([a, b]), dim=1)
    total = 0.0
    for i in range(10):
        others = [k for k in range(10) if k != i]
        similar = [float(z[i] @ z[k]) / 0.5 for k in others]
        total += math.log(sum(map(math.exp, similar))) - float(z[i] @ z[(i + 5) % 10]) / 0.5
    assert float(nt_xent(a, b).mean()) == pytest.approx(total / 10, rel=1e-12)


def test_pairs_and_views_may_be_exchanged():
    a, b = embeddings()
    order = torch.tensor([3, 1, 4, 0, 2])
    want = nt_xent(a, b)
    assert torch.allclose(nt_xent(a[order], b[order]), want[order], rtol=1e-12)
    assert torch.allclose(nt_xent(b, a), want, rtol=1e-12)


def test_its_gradient_is_that_of_finite_differences():
    a, b = embeddings(3)
    assert torch.autograd.gradcheck(lambda a, b: nt_xent(a, b), (a.requires_grad_(), b.requires_grad_()))


def test_half_precision_and_vectors_of_no_length():
    a, b = (torch.zeros(4, 3, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    found = nt_xent(a, b, 0.01).mean()
    found.backward()
    assert found.dtype == torch.float32
    assert float(found.detach()) == pytest.approx(math.log(7), rel=1e-6)
    assert torch.isfinite(a.grad).all()


def test_one_pair_is_one_line():
    with pytest.raises(ValueError, match=r"NT-Xent compares 2 pairs .* got 1: use a batch of at least 2") as error:
        nt_xent(torch.ones(1, 3), torch.ones(1, 3))
    assert "\n" not in str(error.value)


# -- views


def images(n=6, c=3, h=12, w=12, seed=2):
    return torch.rand(n, c, h, w, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_a_whole_crop_is_the_image_and_a_flip_its_mirror():
    x = images()
    # The grid's coordinates round to a few 1e-16 of a pixel, and neighbours differ by at most 1.
    assert torch.allclose(STILL(x, stream()), x, atol=1e-13)
    mirrored = Views(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=1.0, jitter_probability=0.0, grey=0.0)
    assert torch.allclose(mirrored(x, stream()), x.flip(3), atol=1e-13)


def test_a_crop_shows_a_part_of_its_share_and_shape():
    # Bilinear sampling is exact on a linear image: away from the border, differences are those of the crop's scale.
    side, area = 32, 0.25
    ramp = torch.arange(side, dtype=torch.float64) / side
    for axis, size in ((2, ramp[:, None]), (3, ramp[None, :])):
        x = size.expand(side, side).expand(200, 1, side, side)
        views = Views(scale=(area, area), ratio=(1.0, 1.0), flip=0.0, jitter_probability=0.0, grey=0.0)
        out = views(x, stream())
        steps = out.diff(dim=axis).narrow(axis, 1, side - 3)
        assert torch.allclose(steps, torch.full_like(steps, math.sqrt(area) / side), atol=1e-12)
        centres = out.mean((1, 2, 3)) * side
        # Crops of half the side have their centres between a quarter and three quarters.
        assert 7.4 < float(centres.min()) < 9.5
        assert 21.5 < float(centres.max()) < 23.6


def test_ratios_are_those_of_pixels():
    x = images(400, 1, 32, 32)
    views = Views(scale=(0.2, 0.2), ratio=(0.5, 2.0), flip=0.0, jitter_probability=0.0)
    columns = torch.arange(32, dtype=torch.float64)[None, :].expand(32, 32)
    wide = views(columns.expand_as(x) / 32, stream()).diff(dim=3)[:, 0, 0, 10]
    tall = views(columns.t().expand_as(x) / 32, stream()).diff(dim=2)[:, 0, 10, 0]
    assert torch.allclose(wide * tall * 32 * 32, torch.full_like(wide, 0.2), atol=1e-9)
    ratio = wide / tall
    assert 0.5 - 1e-9 < float(ratio.min()) < 0.55
    assert 1.8 < float(ratio.max()) < 2 + 1e-9
    # log-uniform: as many wide as tall ones, by four standard errors of a fair coin
    assert abs(int((ratio > 1).sum()) - 200) < 4 * 10


@pytest.mark.parametrize("c", [1, 2, 3])
def test_views_stay_in_the_box_and_repeat(c):
    x = images(40, c)
    views = Views()
    out = views(x, stream())
    assert out.shape == x.shape
    assert out.dtype == x.dtype
    assert float(out.min()) >= 0
    assert float(out.max()) <= 1
    assert torch.equal(out, views(x, stream()))
    assert not torch.equal(out, views(x, stream(12)))
    assert torch.equal(x, images(40, c))


def test_colours_change_as_torchvision_says():
    x = images(300)
    bright = Views((1.0, 1.0), (1.0, 1.0), 0.0, (0.4, 0.0, 0.0, 0.0), 1.0, 0.0)(x / 2, stream())
    factor = (bright / (x / 2)).flatten(1)
    assert torch.allclose(factor.amin(1), factor.amax(1), atol=1e-9)
    assert 0.6 - 1e-9 < float(factor.min()) < 0.65
    assert 1.35 < float(factor.max()) < 1.4 + 1e-9
    # Contrast keeps an image's mean grey, saturation each pixel's grey, where the box cuts nothing.
    luma = torch.tensor([0.299, 0.587, 0.114], dtype=x.dtype)[None, :, None, None]
    middle = x / 4 + 0.375
    contrast = Views((1.0, 1.0), (1.0, 1.0), 0.0, (0.0, 0.4, 0.0, 0.0), 1.0, 0.0)(middle, stream())
    assert torch.allclose((contrast * luma).sum(1).mean((1, 2)), (middle * luma).sum(1).mean((1, 2)), atol=1e-12)
    saturation = Views((1.0, 1.0), (1.0, 1.0), 0.0, (0.0, 0.0, 0.4, 0.0), 1.0, 0.0)(middle, stream())
    assert torch.allclose((saturation * luma).sum(1), (middle * luma).sum(1), atol=1e-12)
    assert not torch.allclose(saturation, middle, atol=1e-3)
    grey = Views((1.0, 1.0), (1.0, 1.0), 0.0, (0.0, 0.0, 0.0, 0.0), 0.0, 1.0)(x, stream())
    assert torch.allclose(grey, (x * luma).sum(1, keepdim=True).expand_as(x), atol=1e-12)


def test_the_hue_turns_as_colorsys_turns_it():
    import colorsys

    x, shift = images(4, 3, 5, 5), torch.tensor([0.1, -0.1, 0.5, 0.0], dtype=torch.float64)
    x[:, :, 0, 0] = 0.3  # grey: without a hue
    out = _hue(x, shift)
    for i in range(4):
        for pixel, found in zip(x[i].flatten(1).t().tolist(), out[i].flatten(1).t().tolist()):
            hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
            assert found == pytest.approx(
                colorsys.hsv_to_rgb((hue + float(shift[i])) % 1, saturation, value), abs=1e-12
            )


def test_probabilities_are_kept():
    x = images(2000, 3, 4, 4)
    views = Views((1.0, 1.0), (1.0, 1.0), 0.0, (0.4, 0.4, 0.4, 0.1), 0.3, 0.0)
    changed = (views(x, stream()) - x).abs().flatten(1).amax(1) > 1e-6
    # four standard errors
    assert abs(float(changed.double().mean()) - 0.3) < 4 * math.sqrt(0.21 / 2000)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"scale": (0.0, 1.0)}, "scale"), ({"scale": (0.5, 1.5)}, "at most 1"), ({"scale": (0.9, 0.5)}, "scale"),
        ({"ratio": (2.0, 1.0)}, "ratio"), ({"flip": 1.5}, "flip"), ({"grey": -0.1}, "grey"),
        ({"jitter": (0.4, 0.4, 0.4, 0.6)}, "hue"), ({"jitter": (-1.0, 0.0, 0.0, 0.0)}, "at least 0"),
    ],
)  # fmt: skip
def test_views_refuse_in_one_line(given, says):
    with pytest.raises(ValueError, match=says) as error:
        Views(**given)
    assert "\n" not in str(error.value)


def test_views_are_for_images():
    for x in (torch.rand(4, 10), torch.zeros(4, 1, 6, 6, dtype=torch.uint8)):
        with pytest.raises(ValueError, match="views are for images, a float batch"):
            Views()(x, stream())


# -- dual batch-norm


def test_a_branch_leaves_the_other_ones_statistics():
    model = doubled(network(norm=True))
    layer = next(m for m in model.modules() if isinstance(m, DualBatchNorm))
    x = batch()[0]
    for acting, other in (("a", layer.branch_n), ("n", layer.branch_a)):
        before = copy.deepcopy(other.state_dict())
        moved = copy.deepcopy(getattr(layer, f"branch_{acting}").state_dict())
        with branch(model, acting):
            model(x).sum().backward()
        assert same(dict(other.state_dict()), dict(before))
        assert not same(dict(getattr(layer, f"branch_{acting}").state_dict()), dict(moved))
        assert all(p.grad is None for p in other.parameters()) or acting == "n"
    assert layer.branch == "a"


def test_the_branch_comes_back_after_an_exception():
    model = doubled(network(norm=True), "n")
    with pytest.raises(KeyError), branch(model, "a"):
        raise KeyError
    assert all(m.branch == "n" for m in model.modules() if isinstance(m, DualBatchNorm))


def test_doubled_branches_equal_the_network():
    model, x = network(norm=True), batch()[0]
    twin = doubled(copy.deepcopy(model))
    for which in ("n", "a"):
        with branch(twin, which):
            assert torch.equal(twin.eval()(x), model.eval()(x))
    assert doubled(doubled(copy.deepcopy(model))).state_dict().keys() == twin.state_dict().keys()


# -- networks


def test_the_head_stands_beside_the_last_layer():
    plain = network(norm=True)
    x = batch()[0]
    want = copy.deepcopy(plain).eval()(x)
    model = Contrastive(plain, (7, 6), (1, 6, 6)).double().eval()
    assert torch.equal(model(x), want)
    z, logits = model.contrast(x)
    assert torch.equal(logits, want)
    assert torch.equal(z, model.embed(x))
    assert z.shape == (len(x), 6)
    logits.sum().backward()
    assert all(p.grad is None for n, p in model.named_parameters() if not n.startswith("probe"))


@pytest.mark.parametrize("name", ["resnet8", "digits_cnn", "preact_resnet18", "lenet5", "small_cnn"])
def test_the_last_layer_is_found(name):
    model = build(name, shape=(1, 28, 28))
    before = Snapshot(model)
    found = model.get_submodule(last_linear(model, (1, 28, 28)))
    before.check()
    assert isinstance(found, nn.Linear)
    assert found.out_features == 10


def test_a_network_of_another_kind_is_one_line():
    for model, says in (
        (nn.Sequential(nn.Flatten(), nn.Linear(36, 5), nn.Softmax(1)), "does not end in a linear layer"),
        (nn.Linear(36, 5), "is one linear layer"),
    ):
        with pytest.raises(ValueError, match=says) as error:
            Contrastive(model, (4,), (36,) if isinstance(model, nn.Linear) else (1, 6, 6))
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="set one of them"):
        make(ModelSettings("digits_cnn", projection=(4, 4), frozen=True), classes=10, shape=(1, 8, 8))
    with pytest.raises(ValueError, match="widths of at least 2"):
        make(ModelSettings("digits_cnn", projection=(1,)), classes=10, shape=(1, 8, 8))


def test_the_encoder_begins_as_the_network_of_that_seed():
    plain = make(ModelSettings("resnet8"), classes=10, shape=(1, 8, 8), seed=4)
    model = make(ModelSettings("resnet8", projection=(8, 8)), classes=10, shape=(1, 8, 8), seed=4)
    assert torch.equal(model.network.conv1.weight, plain.conv1.weight)
    assert torch.equal(model.probe.weight, plain.fc.weight)


def test_a_frozen_network_trains_its_last_layer_alone():
    model = Frozen(network(norm=True, dropout=0.5), (1, 6, 6))
    before = copy.deepcopy(model.state_dict())
    x, y = batch()
    last = model.network[-1]
    for mode in (True, False, True):
        assert model.train(mode) is model
        assert [m.training for m in model.network[:-1]] == [False] * (len(model.network) - 1)
        assert last.training is model.training is mode
    F.cross_entropy(model(x), y).backward()
    trained = [n for n, p in model.named_parameters() if p.grad is not None]
    assert (
        trained == [n for n, p in model.named_parameters() if p.requires_grad] == ["network.7.weight", "network.7.bias"]
    )
    assert same(dict(model.state_dict()), dict(before))


# -- LARS


def test_lars_is_its_formula():
    torch.manual_seed(0)
    p = [nn.Parameter(torch.randn(3, 2, dtype=torch.float64)), nn.Parameter(torch.zeros(3, dtype=torch.float64))]
    optimizer = LARS(p, 2.0, momentum=0.9, weight_decay=0.01, trust=0.05)
    w, v = [q.detach().clone() for q in p], [torch.zeros_like(q) for q in p]
    for step in range(3):
        optimizer.param_groups[0]["lr"] = lr = 2.0 / (step + 1)
        for q, value, speed in zip(p, w, v):
            q.grad = torch.randn_like(q)
            norm, slope = float(value.norm()), float(q.grad.norm())
            rate = 0.05 * norm / (slope + 0.01 * norm) if norm and slope else 1.0
            speed.mul_(0.9).add_(lr * rate * (q.grad + 0.01 * value))
        optimizer.step()
        for value, speed in zip(w, v):
            value.sub_(speed)
    assert all(torch.allclose(q, value, rtol=1e-12, atol=1e-15) for q, value in zip(p, w))


def test_lars_does_not_see_the_scale_of_the_loss():
    ends = []
    for scale in (1.0, 1e4):
        model = network()
        optimizer = LARS(model.parameters(), 1.0)
        for _ in range(2):
            optimizer.zero_grad()
            (scale * F.cross_entropy(model(batch()[0]), batch()[1])).backward()
            optimizer.step()
        ends.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert distance(*ends) < 1e-9


def test_lars_resumes_and_refuses():
    def steps(optimizer, model, n):
        for _ in range(n):
            optimizer.zero_grad()
            F.cross_entropy(model(batch()[0]), batch()[1]).backward()
            optimizer.step()

    model = network()
    optimizer = LARS(model.parameters(), 1.0)
    steps(optimizer, model, 2)
    twin = copy.deepcopy(model)
    other = LARS(twin.parameters(), 1.0)
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for pair in ((optimizer, model), (other, twin)):
        steps(*pair, 2)
    assert same(dict(model.state_dict()), dict(twin.state_dict()))
    for given, says in (({"lr": 0.0}, "lr"), ({"momentum": 1.0}, "momentum"), ({"trust": 0.0}, "trust")):
        with pytest.raises(ValueError, match=says):
            LARS(model.parameters(), **{"lr": 1.0, **given})
    assert Optimizer("LARS", 5.0, args={"trust": 0.01})
    with pytest.raises(ValueError, match="unknown argument of LARS 'thrust': did you mean 'trust'"):
        Optimizer("LARS", 5.0, args={"thrust": 0.01})
    with pytest.raises(ValueError, match="for a custom optimizer, not for SGD"):
        Optimizer("SGD", args={"trust": 0.01})


# -- the objective


def test_dual_stream_at_eps_0_is_standard_to_standard():
    """Equal branches and no perturbation: the same value, and the same gradient, of which each branch has a half."""
    x, y = batch()
    models, values = [], []
    for variant in ("S2S", "DS"):
        model = contrastive()
        method = ACL(Threat("linf", 0.0), variant, steps=2)
        values.append(float(method.backward(model, x, y, rng=stream())["loss"]))
        models.append(dict(model.named_parameters()))
    assert values[0] == pytest.approx(values[1], rel=ROUNDING)
    for name, p in models[0].items():
        if "branch_a" in name:
            continue
        other = models[1][name].grad
        if "branch_n" in name:
            other = other + models[1][name.replace("branch_n", "branch_a")].grad
        assert distance(other, p.grad) < ROUNDING, name


@pytest.mark.parametrize("variant", ["S2S", "A2S", "A2A", "DS"])
def test_the_loss_is_that_of_the_variant(variant):
    model, (x, y) = contrastive(), batch()
    method = ACL(LINF, variant, steps=2, temperature=0.3)
    pairs = method.adversary(model, x, y, rng=stream())
    twin, n = copy.deepcopy(model), len(x)

    def at(z, which):
        with branch(twin, which):
            return twin.embed(z)

    clean, moved = pairs
    if variant == "S2S":
        assert moved is None
        z = at(clean, "n")
        want = nt_xent(z[:n], z[n:], 0.3).mean()
    elif variant == "A2S":
        assert len(moved) == n
        want = nt_xent(at(moved, "a"), at(clean[n:], "n"), 0.3).mean()
    else:
        z = at(moved, "a")
        want = nt_xent(z[:n], z[n:], 0.3).mean()
        if variant == "DS":
            z = at(clean, "n")
            want = (want + nt_xent(z[:n], z[n:], 0.3).mean()) / 2
    value, metrics = method.loss(model, x, y, pairs)
    assert float(value.detach()) == pytest.approx(float(want.detach()), rel=ROUNDING)
    if moved is not None:
        assert bool(LINF.contains(moved, clean[: len(moved)]).all())
    assert set(metrics) == {
        "S2S": {"clean", "alignment"}, "A2S": {"clean", "robust"}, "A2A": {"robust"},
        "DS": {"clean", "robust", "clean_loss", "robust_loss", "alignment"},
    }[variant]  # fmt: skip


@pytest.mark.parametrize("variant", ["S2S", "A2S", "A2A", "DS"])
def test_only_the_variants_branches_move(variant):
    model, (x, y) = contrastive(), batch()
    before = {k: v.clone() for k, v in model.named_buffers()}
    ACL(LINF, variant, steps=2).backward(model, x, y, rng=stream())
    moved = {k.split(".branch_")[1][0] for k, v in model.named_buffers() if not torch.equal(v, before[k])}
    assert moved == {"S2S": {"n"}, "A2S": {"n", "a"}, "A2A": {"a"}, "DS": {"n", "a"}}[variant]


def test_labels_reach_the_probe_alone():
    x, y = batch()
    grads = []
    for labels in (y, (y + 1) % 5):
        model = contrastive()
        ACL(LINF, steps=2).backward(model, x, labels, rng=stream())
        grads.append({n: p.grad for n, p in model.named_parameters()})
    for name, grad in grads[0].items():
        assert torch.equal(grad, grads[1][name]) is not name.startswith("probe"), name


@pytest.mark.parametrize("variant", ["A2S", "A2A", "DS"])
@pytest.mark.parametrize("threat", [LINF, Threat("l2", 0.5)])
def test_the_adversary_is_a_guest_and_never_lowers_the_loss(variant, threat):
    model, x = contrastive(), batch()[0]
    with torch.no_grad():
        for p in model.parameters():
            p.grad = torch.full_like(p, -3.0)
    # A step far too long: its iterates may lie below the start.
    for step_size in (None, 0.99 if threat.norm == "linf" else 10.0):
        method = ACL(threat, variant, steps=3, step_size=step_size)
        clean = threat.clamp(torch.cat([x, x.flip(3)]))
        found = Snapshot(model)
        moved = method.perturb(model, clean, rng=stream())
        found.check()
        assert not moved.requires_grad
        assert bool(threat.contains(moved, clean[: len(moved)]).all())
        eval_model = copy.deepcopy(model).eval()

        def value(p, eval_model=eval_model, clean=clean):
            with torch.no_grad(), branch(eval_model, "n"):
                anchor = eval_model.embed(clean[len(x) :])
            with torch.no_grad(), branch(eval_model, "a"):
                z = eval_model.embed(p)
            first, second = (z, anchor) if variant == "A2S" else z.chunk(2)
            return float(nt_xent(first, second).mean())

        start = value(clean[: len(moved)])
        assert value(moved) >= start
        if step_size is None:
            assert value(moved) > start + 1e-3


@pytest.mark.parametrize("threat", [LINF, Threat("l2", 0.8)], ids=str)
@pytest.mark.parametrize("variant", ["A2S", "A2A"])
def test_the_adversary_equals_a_slow_transcription(variant, threat):
    """Ascent on the loss of all pairs at once, from a random start in ball and box; of all iterates and the views
    themselves the one with the highest loss."""
    model, x, (k, step) = contrastive(), batch()[0], (4, 0.06)
    n, clean = len(x), torch.cat([x, x.flip(3)])
    # Pixels at the walls of the box, where the start is cut.
    clean = torch.where(clean < 0.2, 0.0, torch.where(clean > 0.8, 1.0, clean))
    found = ACL(threat, variant, steps=k, step_size=step, temperature=0.3).perturb(model, clean, rng=stream())

    twin, origin = copy.deepcopy(model).eval(), clean[:n] if variant == "A2S" else clean
    with torch.no_grad(), branch(twin, "n"):
        anchor = twin.embed(clean[n:])

    def loss(z):
        with branch(twin, "a"):
            moved = twin.embed(z)
        a, b = (moved, anchor) if variant == "A2S" else (moved[:n], moved[n:])
        views = F.normalize(torch.cat([a, b]), dim=1)
        total = 0.0
        for i in range(2 * n):
            others = [math.inf if j == i else views[i] @ views[j] / 0.3 for j in range(2 * n)]
            terms = torch.stack([o for j, o in enumerate(others) if j != i])
            total = total + terms.logsumexp(0) - others[(i + n) % (2 * n)]
        return total / (2 * n)

    rng = stream()
    seed_from(rng)  # the random numbers of the network's own layers
    z = start(threat, "uniform", origin, Batch(rng)).clamp(0, 1)
    candidates = [origin]
    for _ in range(k):
        candidates.append(z)
        z = z.detach().requires_grad_()
        (grad,) = torch.autograd.grad(loss(z), z)
        if threat.norm == "linf":
            d = (z.detach() + step * grad.sign() - origin).clamp(-0.1, 0.1)
        else:
            length = grad.flatten(1).norm(dim=1).view(-1, 1, 1, 1)
            d = z.detach() + step * grad / length - origin
            d = d * (0.8 / d.flatten(1).norm(dim=1)).clamp_max(1).view(-1, 1, 1, 1)
        z = (origin + d).clamp(0, 1)
    candidates.append(z)
    with torch.no_grad():
        values = [float(loss(c)) for c in candidates]
    assert values.index(max(values)) > 1
    assert (found - candidates[values.index(max(values))]).abs().max() <= 1e-9


@pytest.mark.parametrize("convert", [torch.Tensor.int, torch.Tensor.tolist, torch.Tensor.numpy])
def test_the_probe_takes_the_labels_that_other_methods_take(convert):
    x, y = batch()
    grads = []
    for labels in (y, convert(y)):
        model = contrastive()
        torch.manual_seed(3)
        ACL(LINF, steps=1).backward(model, x, labels)
        grads.append(gradient(model))
    assert torch.equal(*grads)


def test_labels_that_the_probe_cannot_use_are_one_line():
    x, y = batch()
    negative = torch.full_like(y, -1)
    for labels, says in ((None, "give zeros for unlabelled images"), (negative, "labels must be 0 or more, got -1")):
        with pytest.raises(ValueError, match=says) as error:
            ACL(LINF, steps=1).backward(contrastive(), x, labels)
        assert "\n" not in str(error.value)
    # Without a head there is no probe.
    assert "robust" not in ACL(LINF, steps=1).backward(network(norm=True), x, None)


def test_networks_without_a_head_give_embeddings_by_their_logits():
    model, (x, y) = network(norm=True), batch()
    method = ACL(LINF, "S2S", views=STILL)
    metrics = method.backward(model, x, y, rng=stream())
    z = copy.deepcopy(model)(torch.cat([x, x]))
    assert float(metrics["loss"]) == pytest.approx(float(nt_xent(z[: len(x)], z[len(x) :]).mean().detach()), rel=1e-9)
    assert "clean" not in metrics


def test_what_it_refuses():
    x, y = batch()
    for given, says in (
        ({"variant": "S2A"}, "variant"), ({"steps": 0}, "steps"), ({"temperature": 0.0}, "temperature"),
        ({"step_size": -0.1}, "step_size"), ({"eps_warmup": 2.0}, "eps_warmup"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=says) as error:
            ACL(LINF, **given)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"colour jitter is defined for pixels in \[0, 1\]"):
        ACL(Threat("linf", 0.1, (-1.0, 1.0)))
    assert ACL(Threat("linf", 0.1, (-1.0, 1.0)), views=STILL)
    with pytest.raises(ValueError, match="NT-Xent needs at least 2 pairs of views, got 1"):
        ACL(LINF).backward(contrastive(), x[:1], y[:1], rng=stream())


# -- TRADES on a teacher's answers


def test_without_a_teacher_it_is_trades():
    x, y = batch()
    found = []
    for method in (TRADES(LINF, steps=2), DistilledTRADES(LINF, steps=2)):
        model = network(norm=True)
        metrics = method.backward(model, x, y, rng=stream(), ids=torch.arange(len(x)), state={})
        found.append((gradient(model), metrics))
    assert torch.equal(found[0][0], found[1][0])
    assert same(found[0][1], found[1][1])


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_the_teachers_answers_replace_the_labels(share):
    x, y = batch()
    answers = torch.randn(20, 5, dtype=torch.float64, generator=stream(4))
    ids, state = torch.arange(len(x)) + 7, {"teacher": answers}
    method = DistilledTRADES(LINF, share=share, temperature=3.0, beta=0.0, steps=2)
    grads = []
    for labels in (y, (y + 2) % 5):
        model = network()
        method.backward(model, x, labels, rng=stream(), ids=ids, state=state)
        grads.append(gradient(model))
    assert torch.equal(*grads)
    model = network()
    z, t = model(x), answers[ids]
    soft = -(F.softmax(t / 3, 1) * (F.log_softmax(z / 3, 1) - F.log_softmax(t / 3, 1))).sum(1).mean()
    ((1 - share) * F.cross_entropy(z, t.argmax(1)) + share * 9 * soft).backward()
    assert distance(grads[0], gradient(model)) < ROUNDING
