import contextlib
import math
import pickle

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from atent.models import MODELS, Normalize, build, has_dropout, native_shape
from atent.models.dm_resnets import DMPreActResNet, DMWideResNet
from atent.models.wrn import WideResNet

COUNTS = {
    "small_cnn": 312_202,
    "lenet5": 3_274_634,
    "resnet18": 11_173_962,
    "resnet8": 78_042,
    "resnet20": 272_474,
    "resnet110": 1_730_714,
    "preact_resnet18": 11_172_170,
    "wrn_28_4": 5_849_050,
    "wrn_28_10": 36_479_194,
    "wrn_34_10": 46_160_474,
    "digits_cnn": 42_602,
    "kw_small": 166_406,
    "kw_large": 1_974_762,
    "kw_resnet": 4_214_850,
    "dm_large": 17_190_602,
    "two_class": 16_720,
    "mlp": 8_970,
    "cnn7": 17_192_650,
    "dm_preact_resnet18": 12_548_426,
    "dm_wrn_28_10": 36_479_194,
    "dm_wrn_34_10": 46_160_474,
    "dm_wrn_70_16": 266_796_506,
    "lenet300": 266_610,
    "lenet5_small": 648_226,
    "preact_resnet18_plain": 11_171_146,
    "preact_resnet18_raw": 11_172_170,
    "resnet20_a": 269_722,
    "resnet32_a": 464_154,
    "resnet44_a": 658_586,
    "resnet56_a": 853_018,
    "resnet110_a": 1_727_962,
    "resnet50": 23_520_842,
    "resnet18_imagenet": 11_181_642,
    "resnet34_imagenet": 21_289_802,
    "resnet50_imagenet": 23_528_522,
    "wrn_34_20": 184_531_674,
    "wrn_70_16": 266_796_506,
    "vit_tiny": 40_682,
    "vit_small": 317_770,
    "vit_b16": 85_806_346,
}
LARGE = tuple(name for name, count in COUNTS.items() if count > 1.2e7 and name != "dm_large")
SMALL = [name for name in COUNTS if name not in LARGE]


pytestmark = pytest.mark.usefixtures("seeded")


def meta(name, **settings):
    with torch.device("meta"):
        return build(name, **settings)


@contextlib.contextmanager
def refuses(*parts):
    with pytest.raises(ValueError, match=r".") as error:
        yield
    text = str(error.value)
    assert "\n" not in text
    assert len(text) < 250
    for part in parts:
        assert part in text


# -- the registry


def test_every_model_is_pinned():
    assert set(MODELS) == set(COUNTS)
    assert all(function.__doc__ for function in MODELS.values())


@pytest.mark.parametrize("name", COUNTS)
def test_parameter_count(name):
    model = meta(name)
    assert sum(p.numel() for p in model.parameters()) == COUNTS[name]
    assert f"{COUNTS[name]:,}" in MODELS[name].__doc__
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize("name", COUNTS)
def test_output_shape_and_gradient_reach_on_meta(name):
    model = meta(name, classes=7)
    with torch.device("meta"):
        logits = model(torch.rand(3, *native_shape(name)))
    assert logits.shape == (3, 7)
    logits.sum().backward()
    # a layer that the forward pass never calls breaks distributed training
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("name", SMALL)
def test_forward(name):
    model = build(name).eval()
    with torch.no_grad():
        logits = model(torch.rand(1, *native_shape(name)))
    assert logits.shape == (1, 10)
    assert logits.isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_forward_of_the_large(name):
    model = build(name).eval()
    with torch.no_grad():
        logits = model(torch.rand(1, *native_shape(name)))
    assert logits.shape == (1, 10)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("small_cnn", (3, 32, 32)),
        ("small_cnn", (1, 16, 20)),
        ("lenet5", (3, 32, 32)),
        ("lenet5", (2, 4, 7)),
        ("resnet18", (1, 28, 28)),
        ("preact_resnet18", (1, 28, 28)),
        ("resnet20", (4, 8, 8)),
        ("resnet110", (1, 9, 15)),
        ("wrn_28_4", (1, 28, 28)),
        ("wrn_34_10", (3, 8, 64)),
        ("digits_cnn", (3, 12, 4)),
        ("digits_cnn", (1, 28, 28)),
        ("kw_small", (3, 32, 32)),
        ("kw_small", (1, 7, 4)),
        ("kw_large", (3, 32, 32)),
        ("kw_resnet", (1, 28, 28)),
        ("kw_resnet", (2, 4, 11)),
        ("dm_large", (1, 28, 28)),
        ("cnn7", (1, 28, 28)),
        ("dm_preact_resnet18", (1, 16, 24)),
        ("dm_wrn_28_10", (1, 28, 28)),
        ("lenet300", (3, 5, 7)),
        ("lenet5_small", (3, 32, 32)),
        ("preact_resnet18_plain", (1, 28, 28)),
        ("preact_resnet18_raw", (1, 28, 28)),
        ("resnet20_a", (1, 9, 15)),
        ("resnet50", (1, 28, 28)),
        ("resnet50_imagenet", (1, 64, 32)),
        ("dm_large", (2, 5, 8)),
        ("two_class", (5,)),
        ("vit_tiny", (2, 32, 20)),
        ("vit_small", (3, 32, 32)),
        ("vit_b16", (1, 32, 48)),
    ],
)
def test_other_shapes(name, shape):
    with torch.device("meta"):
        assert build(name, shape=list(shape), classes=3)(torch.rand(2, *shape)).shape == (2, 3)


@pytest.mark.parametrize("name", SMALL)
def test_samples_do_not_meet_in_eval_mode(name):
    model = build(name).double().eval()
    if name == "small_cnn":
        nn.init.normal_(model.classifier.fc3.weight)
    x = torch.rand(2, *native_shape(name), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[1:], model(x[1:]), rtol=1e-9, atol=1e-9)


def test_models_pickle():
    for name in ("small_cnn", "resnet20", "wrn_28_4", "digits_cnn"):
        model = pickle.loads(pickle.dumps(build(name)))
        assert isinstance(model, nn.Module)


@pytest.mark.parametrize("name", ["small_cnn", "lenet5", "resnet20", "wrn_28_4", "digits_cnn"])
def test_state_dict_round_trip(name, tmp_path):
    c = native_shape(name)[0]
    norm = ([0.4] * c, [0.2] * c)
    model = build(name, normalize=norm)
    model(torch.rand(2, *native_shape(name)))  # moves the batch-norm buffers
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(1)
    other = build(name, normalize=norm)
    other.load_state_dict(load_file(tmp_path / "model.safetensors"))
    x = torch.rand(1, *native_shape(name))
    with torch.no_grad():
        assert torch.equal(model.eval()(x), other.eval()(x))


# -- starts


def test_small_cnn_start():
    model = build("small_cnn")
    assert not model.classifier.fc3.weight.any()
    assert not model.classifier.fc3.bias.any()
    conv = model.feature_extractor.conv4
    assert conv.weight.std().item() == pytest.approx((2 / (32 * 9 * 2)) ** 0.5, rel=0.02)
    assert not conv.bias.any()
    assert not model(torch.rand(2, 1, 28, 28)).any()


@pytest.mark.parametrize(("name", "outputs"), [("resnet20", 64), ("wrn_28_4", 256)])
def test_residual_start(name, outputs):
    last = [m for m in build(name).modules() if isinstance(m, nn.Conv2d)][-1]
    assert last.out_channels == outputs
    assert last.weight.std().item() == pytest.approx((2 / (9 * outputs)) ** 0.5, rel=0.02)


def test_the_start_of_kw_resnet():
    convolutions = [m for m in build("kw_resnet").modules() if isinstance(m, nn.Conv2d)]
    assert not any(m.bias.any() for m in convolutions)
    assert max(convolutions, key=lambda m: m.weight.numel()).weight.std().item() == pytest.approx(
        (2 / (9 * 64)) ** 0.5, rel=0.02
    )


@pytest.mark.parametrize(
    ("make", "share"),
    [
        (lambda: DMWideResNet(10, 2), 0.01),
        (lambda: DMPreActResNet(3, (4, 8), (1, 2), 10), 0.01),
        (lambda: WideResNet(10, 2), 0.1),
        (lambda: build("resnet8"), 0.1),
    ],
)
def test_the_running_statistics_of_published_networks(make, share):
    model, seen = make().double(), {}
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm in norms:
        norm.register_forward_pre_hook(lambda norm, given: seen.__setitem__(norm, given[0].detach()))
    model(torch.rand(3, 3, 8, 8, dtype=torch.float64))
    for norm in norms:
        values = seen[norm].transpose(0, 1).flatten(1)
        torch.testing.assert_close(norm.running_mean, share * values.mean(1))
        torch.testing.assert_close(norm.running_var, (1 - share) + share * values.var(1))


def by_hand(model, shapes):
    """Parameters of each kernel (outputs, inputs, k, k) or matrix, with its biases, in the order of the model."""
    assert [tuple(p.shape) for name, p in model.named_parameters() if name.endswith("weight")] == shapes
    return sum(math.prod(shape) + shape[0] for shape in shapes)


def test_the_layers_of_certified_training():
    conv = [(16, 1, 4, 4), (32, 16, 4, 4)]
    assert by_hand(meta("kw_small"), [*conv, (100, 32 * 7 * 7), (10, 100)]) == COUNTS["kw_small"]
    conv = [(32, 1, 3, 3), (32, 32, 4, 4), (64, 32, 3, 3), (64, 64, 4, 4)]
    dense = [(512, 64 * 7 * 7), (512, 512), (10, 512)]
    assert by_hand(meta("kw_large"), [*conv, *dense]) == COUNTS["kw_large"]
    conv = [(64, 3, 3, 3), (64, 64, 3, 3), (128, 64, 3, 3), (128, 128, 3, 3), (128, 128, 3, 3)]
    assert by_hand(meta("dm_large"), [*conv, (512, 128 * 16 * 16), (10, 512)]) == COUNTS["dm_large"]
    assert [m.stride for m in meta("dm_large").modules() if isinstance(m, nn.Conv2d)] == [
        (s, s) for s in (1, 1, 2, 1, 1)
    ]

    def block(inputs, outputs, first, skip):
        return [(outputs, inputs, first, first), (outputs, outputs, 3, 3), (outputs, inputs, skip, skip)]

    conv = [(16, 3, 3, 3), *block(16, 16, 3, 1), *block(16, 16, 3, 1), *block(16, 32, 4, 2), *block(32, 64, 4, 2)]
    assert by_hand(meta("kw_resnet"), [*conv, (1000, 64 * 8 * 8), (10, 1000)]) == COUNTS["kw_resnet"]


def test_published_names():
    wrn = meta("wrn_34_10").state_dict()
    assert {"block1.layer.0.convShortcut.weight", "block3.layer.4.bn2.bias", "fc.bias"} <= set(wrn)
    assert not any("sub_block1" in key for key in wrn)
    small = meta("small_cnn").state_dict()
    assert {"feature_extractor.conv4.bias", "classifier.fc1.weight", "classifier.fc3.bias"} <= set(small)


# -- normalisation


def test_normalize_is_the_first_layer():
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.5)
    torch.manual_seed(0)
    plain = build("resnet20").eval()
    torch.manual_seed(0)
    model = build("resnet20", normalize=(mean, std)).eval()
    x = torch.rand(2, 3, 32, 32)
    by_hand = torch.stack([(x[:, i] - mean[i]) / std[i] for i in range(3)], dim=1)
    torch.testing.assert_close(model.normalize(x), by_hand, rtol=0, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(model(x), plain(model.normalize(x)))
    assert next(iter(model.children())) is model.normalize
    assert {"normalize.mean", "normalize.std"} < set(model.state_dict())
    assert {f"network.{key}" for key in plain.state_dict()} < set(model.state_dict())
    assert sum(p.numel() for p in model.parameters()) == COUNTS["resnet20"]


def test_normalize_on_meta():
    assert meta("lenet5", normalize=((0.1,), (0.3,))).normalize.mean.is_meta


@pytest.mark.parametrize(
    ("mean", "std", "part"),
    [
        ((0.5,), (0.0,), "above 0"),
        ((0.5,), (-1.0,), "above 0"),
        ((0.5,), (0.5, 0.5), "per channel"),
        ((), (), "per channel"),
        ((float("nan"),), (1.0,), "finite"),
    ],
)
def test_normalize_errors(mean, std, part):
    with refuses(part):
        Normalize(mean, std)


@pytest.mark.parametrize(("dims", "shape"), [(0, (3, 2)), (1, (2, 2, 7)), (2, (2, 2, 3, 4)), (3, (2, 2, 3, 4, 5))])
def test_normalize_of_tables_signals_and_volumes(dims, shape):
    """Before: the samples of such a batch were broadcast against the channels, in silence where their numbers agree."""
    x, layer = torch.rand(shape), Normalize([0.25, 0.5], [0.5, 4.0], dims=dims)
    for sample, found in zip(x, layer(x), strict=True):
        for channel, (mean, std) in enumerate(((0.25, 0.5), (0.5, 4.0))):
            assert torch.equal(found[channel], (sample[channel] - mean) / std)
    for other in {0, 1, 2, 3} - {dims}:
        with refuses(f"give dims={dims}"):
            Normalize([0.25, 0.5], [0.5, 4.0], dims=other)(x)
    with refuses("dims must be 0"):
        Normalize([0.5], [0.5], dims=4)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_network_that_normalises_can_be_traced_scripted_and_exported():
    net, x = (
        torch.nn.Sequential(Normalize([0.5], [0.25]), torch.nn.Flatten(), torch.nn.Linear(16, 2)),
        torch.rand(3, 1, 4, 4),
    )
    made = (
        torch.jit.script(net),
        torch.jit.trace(net, x),
        torch.fx.symbolic_trace(net),
        torch.export.export(net, (x,)).module(),
    )
    for each in made:
        assert torch.equal(each(x), net(x))


def test_normalize_in_front_of_a_network_for_vectors():
    net = build("mlp", classes=3, shape=(4,), normalize=((0.1, 0.2, 0.3, 0.4), (1.0, 2.0, 3.0, 4.0)))
    x = torch.rand(5, 4)
    torch.testing.assert_close(net(x), net.network((x - net.normalize.mean) / net.normalize.std))
    assert net(x).shape == (5, 3)


def test_normalize_wants_the_channels_of_the_input():
    with refuses("1 channels", "3"):
        build("resnet20", normalize=((0.5,), (0.5,)))


# -- dropout


def test_which_models_drop():
    assert [name for name in MODELS if has_dropout(name)] == [n for n in MODELS if n[:3] in ("sma", "vit", "wrn")]


@pytest.mark.parametrize("name", ["small_cnn", "wrn_28_4"])
def test_dropout_in_train_and_not_in_eval(name):
    model = build(name, dropout=0.3)
    assert {m.p for m in model.modules() if isinstance(m, nn.Dropout)} == {0.3}
    if name == "small_cnn":
        nn.init.normal_(model.classifier.fc3.weight)
    x = torch.rand(2, *native_shape(name))
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))
        model.eval()
        assert torch.equal(model(x), model(x))


@pytest.mark.parametrize(("name", "native"), [("small_cnn", {0.5}), ("wrn_28_4", set())])
def test_dropout_defaults(name, native):
    def rates(model):
        return {m.p for m in model.modules() if isinstance(m, nn.Dropout)}

    assert rates(meta(name)) == native
    assert rates(meta(name, dropout=0)) == set()


def test_wrn_dropout_sits_before_the_second_convolution():
    model = WideResNet(10, 2, dropout=0.999999)
    block = model.block1.layer[0]
    x = torch.rand(2, 16, 8, 8)
    with torch.no_grad():
        only_skip = block.convShortcut(torch.relu(block.bn1(x)))
        torch.testing.assert_close(block(x), only_skip)
        assert not torch.allclose(block.eval()(x), only_skip, atol=1e-2)


@pytest.mark.parametrize(("depth", "widen"), [(4, 2), (29, 10), (28, 1)])
def test_wrn_depth(depth, widen):
    with refuses(str(depth), str(widen)):
        WideResNet(depth, widen)


# -- errors of build


@pytest.mark.parametrize(
    ("name", "settings", "parts"),
    [
        ("resnet_20", {}, ["'resnet_20'", "did you mean 'resnet20'"]),
        ("zzz", {}, ["unknown model 'zzz'", f"{len(COUNTS)} in all", "`atent list models`"]),
        ("small_cnn", {"shape": (1, 8, 8)}, ["16 x 16", "(1, 8, 8)"]),
        ("lenet5", {"shape": (1, 28, 3)}, ["4 x 4", "(1, 28, 3)"]),
        ("digits_cnn", {"shape": (1, 8, 6)}, ["divisible by 4", "(1, 8, 6)"]),
        ("resnet18", {"shape": (3, 7, 32)}, ["resnet18", "8 x 8"]),
        ("preact_resnet18", {"shape": (3, 7, 32)}, ["preact_resnet18", "8 x 8"]),
        ("resnet20", {"shape": (3, 7, 32)}, ["resnet20", "8 x 8"]),
        ("resnet110", {"shape": (3, 32, 1)}, ["resnet110", "8 x 8"]),
        ("wrn_28_4", {"shape": (3, 4, 4)}, ["wrn_28_4", "8 x 8"]),
        ("wrn_28_10", {"shape": (3, 4, 4)}, ["wrn_28_10", "8 x 8"]),
        ("wrn_34_10", {"shape": (3, 4, 4)}, ["wrn_34_10", "8 x 8"]),
        ("dm_wrn_28_10", {"shape": (3, 30, 32)}, ["dm_wrn_28_10", "divisible by 4", "(3, 30, 32)"]),
        ("dm_preact_resnet18", {"shape": (3, 28, 28)}, ["dm_preact_resnet18", "divisible by 8"]),
        ("lenet5_small", {"shape": (1, 3, 28)}, ["lenet5_small", "4 x 4"]),
        ("resnet20_a", {"shape": (3, 7, 32)}, ["resnet20_a", "8 x 8"]),
        ("resnet18_imagenet", {"shape": (3, 28, 28)}, ["resnet18_imagenet", "32 x 32"]),
        ("kw_small", {"shape": (1, 3, 28)}, ["kw_small", "4 x 4", "(1, 3, 28)"]),
        ("kw_large", {"shape": (1, 28, 3)}, ["kw_large", "4 x 4", "(1, 28, 3)"]),
        ("kw_resnet", {"shape": (1, 8, 2)}, ["kw_resnet", "4 x 4", "(1, 8, 2)"]),
        ("resnet20", {"shape": (32, 32)}, ["(c, h, w)", "(32, 32)"]),
        ("two_class", {"shape": (1, 2, 2)}, ["(d,)", "(1, 2, 2)"]),
        ("two_class", {"normalize": ((0.5,), (0.5,))}, ["normalize", "two_class"]),
        ("resnet20", {"shape": (0, 32, 32)}, ["(c, h, w)"]),
        ("resnet20", {"shape": (3, 32.0, 32)}, ["(c, h, w)"]),
        ("resnet20", {"classes": 1}, ["classes", "1"]),
        ("resnet20", {"classes": "ten"}, ["classes", "'ten'"]),
        (
            "resnet20",
            {"dropout": 0.1},
            ["resnet20 has no dropout", "small_cnn, vit_b16, vit_small, vit_tiny, wrn_28_10"],
        ),
        ("small_cnn", {"dropout": 1.0}, ["[0, 1)", "1.0"]),
        ("small_cnn", {"dropout": -0.1}, ["at least 0", "-0.1"]),
        ("wrn_34_10", {"dropout": float("nan")}, ["at least 0", "nan"]),
    ],
)
def test_errors(name, settings, parts):
    with refuses(*parts):
        build(name, **settings)


def test_native_shape():
    assert native_shape("lenet5") == (1, 28, 28)
    assert native_shape("digits_cnn") == (1, 8, 8)
    with refuses("did you mean 'lenet5'"):
        native_shape("lenet")


def test_a_shape_that_is_one_number_is_refused_in_one_line():
    """Before: a TypeError that an int is not iterable."""
    with pytest.raises(ValueError, match=r"shape must be three positive integers \(c, h, w\), got \(32,\)"):
        build("resnet20", shape=32)
