"""Vision transformers: the layout against transformers and timm, gradients, refusals, and what runs on them."""

import json
import re
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from test_models import COUNTS, refuses
from torch import nn

from atent import Threat, load
from atent.attacks import PGD, AutoAttack
from atent.certify import Smoothed, bounds
from atent.data import DataSettings
from atent.data import load as load_data
from atent.experiments.target import load_target
from atent.methods import ATENT, PGDAT
from atent.models import ModelSettings, build, make, native_shape, transformers_logits
from atent.models.vit import VisionTransformer
from atent.optim import Optimizer
from atent.runs.checkpoint import load_weights
from atent.train import TrainSettings, fit
from atent.train.fingerprint import completed

LINF = Threat("linf", 0.1)


pytestmark = pytest.mark.usefixtures("seeded")


def small(**given):
    """Two blocks on 8 x 8 images, with weights of a size that makes every part matter."""
    settings = {"shape": (1, 8, 8), "classes": 3, "patch": 4, "width": 8, "depth": 2, "heads": 2, "mlp_ratio": 2}
    model = VisionTransformer(**{**settings, **given})
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    return model.eval()


# ---- the layout


def blocks_by_hand(model, x):
    """The forward pass from its formulas: explicit patches, heads one at a time, softmax and GELU written out."""
    p = {k: v.detach() for k, v in model.state_dict().items()}

    def norm(z, name):
        centred = z - z.mean(-1, keepdim=True)
        return (
            centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * p[f"{name}.weight"] + p[f"{name}.bias"]
        )

    def dense(z, name):
        return z @ p[f"{name}.weight"].T + p[f"{name}.bias"]

    side, kernel = p["patch_embed.proj.weight"].shape[-1], p["patch_embed.proj.weight"].flatten(1)
    rows = [
        x[:, :, i : i + side, j : j + side].flatten(1) @ kernel.T + p["patch_embed.proj.bias"]
        for i in range(0, x.shape[2], side)
        for j in range(0, x.shape[3], side)
    ]
    z = torch.stack([p["cls_token"][0].expand(len(x), -1), *rows], 1) + p["pos_embed"]
    width = z.shape[-1]
    for i, block in enumerate(model.blocks):
        q, k, v = dense(norm(z, f"blocks.{i}.norm1"), f"blocks.{i}.attn.qkv").split(width, -1)
        size = width // block.attn.heads
        heads = []
        for h in range(0, width, size):
            scores = torch.exp(q[..., h : h + size] @ k[..., h : h + size].transpose(1, 2) / size**0.5)
            heads.append(scores / scores.sum(-1, keepdim=True) @ v[..., h : h + size])
        z = z + dense(torch.cat(heads, -1), f"blocks.{i}.attn.proj")
        hidden = dense(norm(z, f"blocks.{i}.norm2"), f"blocks.{i}.mlp.fc1")
        z = z + dense(hidden * (1 + torch.erf(hidden / 2**0.5)) / 2, f"blocks.{i}.mlp.fc2")
    return dense(norm(z, "norm")[:, 0], "head")


@pytest.mark.parametrize("given", [{}, {"shape": (2, 8, 12), "heads": 4}, {"patch": 2, "width": 6, "depth": 1}])
def test_the_forward_pass_is_the_formulas(given):
    model = small(**given).double()
    x = torch.rand(3, *given.get("shape", (1, 8, 8)), dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(model(x), blocks_by_hand(model, x), rtol=1e-11, atol=1e-11)


def test_train_and_eval_mode_give_the_same_bits_with_and_without_a_graph():
    model, x = small(), torch.rand(4, 1, 8, 8)
    with_graph = model(x.clone().requires_grad_())
    with torch.no_grad():
        assert torch.equal(model(x), with_graph)
        assert torch.equal(model.train()(x), with_graph)


def test_gradients_can_be_differentiated_again():
    model, x = small().double(), torch.rand(2, 1, 8, 8, dtype=torch.float64)
    assert torch.autograd.gradcheck(model, x.clone().requires_grad_())
    assert torch.autograd.gradgradcheck(lambda z: model(z).square().sum(), x[:1].clone().requires_grad_())


# ---- weights of other libraries


def timm_names(depth):
    """The names and shapes of timm's VisionTransformer, width 8, hidden layers of 16, 3 classes, patches of 4."""
    shapes = {"cls_token": (1, 1, 8), "pos_embed": (1, 5, 8), "patch_embed.proj.weight": (8, 1, 4, 4)}
    shapes["patch_embed.proj.bias"] = (8,)
    for i in range(depth):
        for name, shape in {
            "norm1.weight": (8,), "norm1.bias": (8,), "attn.qkv.weight": (24, 8), "attn.qkv.bias": (24,),
            "attn.proj.weight": (8, 8), "attn.proj.bias": (8,), "norm2.weight": (8,), "norm2.bias": (8,),
            "mlp.fc1.weight": (16, 8), "mlp.fc1.bias": (16,), "mlp.fc2.weight": (8, 16), "mlp.fc2.bias": (8,),
        }.items():  # fmt: skip
            shapes[f"blocks.{i}.{name}"] = shape
    return {**shapes, "norm.weight": (8,), "norm.bias": (8,), "head.weight": (3, 8), "head.bias": (3,)}


def test_the_names_are_those_of_timm(tmp_path):
    state = {name: torch.randn(shape) for name, shape in timm_names(2).items()}
    save_file(state, tmp_path / "timm.safetensors")
    model = small()
    assert [(k, tuple(v.shape)) for k, v in model.state_dict().items()] == list(timm_names(2).items())
    load_weights(model, tmp_path / "timm.safetensors")
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def classical_names(state, depth=2):
    """The state of a network as transformers publishes it: one matrix for each of queries, keys and values."""
    out = {
        "vit.embeddings.cls_token": state["cls_token"], "vit.embeddings.position_embeddings": state["pos_embed"],
    }  # fmt: skip
    for part in ("weight", "bias"):
        out[f"vit.embeddings.patch_embeddings.projection.{part}"] = state[f"patch_embed.proj.{part}"]
        out[f"vit.layernorm.{part}"], out[f"classifier.{part}"] = state[f"norm.{part}"], state[f"head.{part}"]
        for i in range(depth):
            ours, theirs = f"blocks.{i}", f"vit.encoder.layer.{i}"
            triple = state[f"{ours}.attn.qkv.{part}"].chunk(3)
            for name, matrix in zip(("query", "key", "value"), triple, strict=True):
                out[f"{theirs}.attention.attention.{name}.{part}"] = matrix.clone()
            out[f"{theirs}.attention.output.dense.{part}"] = state[f"{ours}.attn.proj.{part}"]
            out[f"{theirs}.intermediate.dense.{part}"] = state[f"{ours}.mlp.fc1.{part}"]
            out[f"{theirs}.output.dense.{part}"] = state[f"{ours}.mlp.fc2.{part}"]
            out[f"{theirs}.layernorm_before.{part}"] = state[f"{ours}.norm1.{part}"]
            out[f"{theirs}.layernorm_after.{part}"] = state[f"{ours}.norm2.{part}"]
    return out


def test_files_of_transformers_load_into_a_network_inside_another(tmp_path):
    state = {k: v.clone() for k, v in small().state_dict().items()}
    save_file(classical_names(state), tmp_path / "file.safetensors")
    model = nn.Sequential(nn.Identity(), small())
    load_weights(torch.compile(model), tmp_path / "file.safetensors")
    assert all(torch.equal(v, state[k]) for k, v in model[1].state_dict().items())


def test_files_of_timm_load_beside_a_layer_that_normalises(tmp_path):
    given = {"shape": (1, 8, 8), "patch": 2}
    source, model = build("vit_tiny", **given).eval(), build("vit_tiny", **given, normalize=((0.5,), (0.25,))).eval()
    save_file(source.state_dict(), tmp_path / "file.safetensors")
    load_weights(model, tmp_path / "file.safetensors")
    x = torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(x), source((x - 0.5) / 0.25))
    # Its own files keep loading, with the layer's own numbers.
    save_file(model.state_dict(), tmp_path / "own.safetensors")
    other = build("vit_tiny", **given, normalize=((0.1,), (0.1,)))
    load_weights(other, tmp_path / "own.safetensors")
    assert torch.equal(other.normalize.mean, model.normalize.mean)


def test_another_depth_is_one_line(tmp_path):
    save_file({name: torch.randn(shape) for name, shape in timm_names(3).items()}, tmp_path / "deep.safetensors")
    with refuses("another architecture", "blocks.2"):
        load_weights(small(), tmp_path / "deep.safetensors")


# ---- the packages themselves, where they are installed


@pytest.fixture
def theirs():
    transformers = pytest.importorskip("transformers")
    config = transformers.ViTConfig(
        image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=16,
        num_channels=1, num_labels=3, layer_norm_eps=1e-6,
    )  # fmt: skip
    net = transformers.ViTForImageClassification(config)
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.3 * torch.randn(p.shape))
    return net.double().eval()


def test_a_transformer_of_transformers_has_equal_logits(theirs, tmp_path):
    theirs.save_pretrained(tmp_path)
    x = torch.rand(3, 1, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        wanted = theirs(x).logits
        from_file, in_memory = small().double(), small().double()
        load_weights(from_file, tmp_path / "model.safetensors")
        in_memory.load_state_dict(VisionTransformer.published_state(theirs.state_dict()))
        for model in (from_file, in_memory):
            torch.testing.assert_close(model(x), wanted, rtol=1e-11, atol=1e-11)


def test_transformers_run_through_the_wrapper(theirs, tmp_path, monkeypatch):
    x, y = torch.rand(4, 1, 8, 8, dtype=torch.float64), torch.arange(4) % 3
    model = transformers_logits(theirs, mean=(0.5,), std=(0.5,)).double()
    with torch.no_grad():
        torch.testing.assert_close(model(x), theirs(2 * x - 1).logits)
    assert PGD(LINF, steps=2).run(model, x, y).x_adv.shape == x.shape
    with refuses("wrap", "atent.models.transformers_logits"):
        PGD(LINF, steps=2)(theirs, x, y)
    with refuses("layernorm_before (LayerNorm) is not supported by bounds"):
        bounds(model, x, LINF)
    Smoothed(model.float(), 0.25).certify(x[:1].float(), n0=4, n=20)
    (tmp_path / "theirs.py").write_text(
        "from transformers import ViTConfig, ViTForImageClassification\n"
        "from atent.models import transformers_logits\n"
        "def net():\n"
        "    config = ViTConfig(image_size=8, patch_size=4, hidden_size=8, num_hidden_layers=1, num_labels=10,\n"
        "        num_attention_heads=2, intermediate_size=16, num_channels=1)\n"
        "    return transformers_logits(ViTForImageClassification(config))\n"
    )
    monkeypatch.chdir(tmp_path)
    found = load_target("theirs:net", data="digits", norm="linf", eps=0.1, attacks=["FGSM"], limit=10)
    assert found.model(found.test()[0]).shape == (10, 10)
    sys.modules.pop("theirs")


def test_timm_has_the_same_names_and_logits():
    transformer = pytest.importorskip("timm.models.vision_transformer")
    net = transformer.VisionTransformer(
        img_size=8, patch_size=4, in_chans=1, num_classes=3, embed_dim=8, depth=2, num_heads=2, mlp_ratio=2
    ).double().eval()  # fmt: skip
    model, x = small().double(), torch.rand(3, 1, 8, 8, dtype=torch.float64)
    model.load_state_dict(net.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(x), net(x), rtol=1e-11, atol=1e-11)


# ---- the wrapper, without the package


class Answer:
    def __init__(self, logits):
        self.logits = logits


class Classifier(nn.Module):
    """Answers as transformers does."""

    def __init__(self, kind=Answer):
        super().__init__()
        self.net, self.kind = nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), kind

    def forward(self, pixel_values):
        return self.kind(self.net(pixel_values))


def test_the_wrapper_takes_the_logits():
    net, x = Classifier(), torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(transformers_logits(net)(x), net.net(x))
        torch.testing.assert_close(transformers_logits(net, mean=(0.5,), std=(0.25,))(x), net.net((x - 0.5) / 0.25))
    with refuses("needs an output with .logits", "Classifier returns a tuple", "return_dict=True"):
        transformers_logits(Classifier(kind=lambda z: (z,)))(x)
    with refuses("mean and std go together"):
        transformers_logits(net, mean=(0.5,))
    with refuses("got a Answer: wrap the model by atent.models.transformers_logits(net)"):
        PGD(LINF, steps=1)(net, x, torch.tensor([0, 1]))


# ---- refusals


@pytest.mark.parametrize(
    ("name", "given", "parts"),
    [
        ("vit_tiny", {"shape": (1, 28, 30)}, ["patch must divide", "got 4 for 28 x 30", "use one of 1, 2"]),
        ("vit_tiny", {"patch": 5}, ["got 5 for 28 x 28", "1, 2, 4, 7, 14, 28"]),
        ("vit_small", {"patch": 0}, ["got 0 for 28 x 28"]),
        ("vit_small", {"patch": True}, ["got True"]),
        ("vit_b16", {"shape": (3, 224, 225)}, ["got 16 for 224 x 225"]),
        ("resnet20", {"patch": 4}, ["resnet20 has no patches", "vit_b16, vit_small, vit_tiny"]),
    ],
)
def test_bad_patches_are_one_line(name, given, parts):
    with refuses(*parts):
        build(name, **given)


def test_heads_divide_the_width():
    with refuses("heads must divide the width, got 3 for a width of 8"):
        small(heads=3)


def test_bounds_name_the_module():
    with refuses("expand in the code of the model (VisionTransformer) computes with a size of its input"):
        bounds(small(), torch.rand(2, 1, 8, 8), LINF)


def test_patches_are_for_built_in_models():
    with refuses("dropout, activation, patch, mean and std are for built-in models"):
        make(ModelSettings("mine:net", patch=2), classes=3, shape=(1, 8, 8))


# ---- what runs on them


def test_smoothing_certifies_it():
    classes, radii = Smoothed(small(), 0.25).certify(torch.rand(2, 1, 8, 8), n0=10, n=200)
    assert classes.shape == radii.shape == (2,)


def test_autoattack_runs_on_it():
    model, x = small(width=4, depth=1, heads=1), torch.rand(2, 1, 8, 8)
    with torch.no_grad():
        y = model(x).argmax(1)
    out = AutoAttack(Threat("linf", 0.02)).run(model, x, y)
    assert float((out.x_adv - x).abs().max()) <= 0.02 + 6e-8


def test_dropout_drops_in_train_mode_alone():
    model, x = build("vit_tiny", shape=(1, 8, 8), patch=4, dropout=0.3), torch.rand(2, 1, 8, 8)
    assert sum(isinstance(m, nn.Dropout) for m in model.modules()) == 1 + 3 * 3
    with torch.no_grad():
        assert not torch.equal(model(x), model(x))
        assert torch.equal(model.eval()(x), model(x))


@pytest.mark.parametrize(
    ("method", "more"),
    [
        (PGDAT(LINF, steps=2), {"average": "ema"}),
        (ATENT(LINF, steps=2), {}),
        (PGDAT(LINF, steps=2), {"channels_last": True}),
    ],
    ids=["pgdat-ema", "atent", "channels-last"],
)
def test_it_trains_saves_and_loads(method, more, tmp_path):
    data = load_data(DataSettings(limit=96, validation=20))
    model = build("vit_tiny", shape=data.shape, patch=4)
    settings = TrainSettings(epochs=2, batch_size=32, device="cpu", validate_limit=20, **more)
    given = {"patch": 4, "shape": list(data.shape)}
    fitted = fit(
        model, data, method, optimizer=Optimizer("Adam", lr=3e-3, clip_norm=1.0), settings=settings,
        run=tmp_path / "run", progress=False, builder="vit_tiny", builder_args=given,
    )  # fmt: skip
    assert fitted.history[1]["loss"] < fitted.history[0]["loss"]
    x, _ = data.test.batch(torch.arange(5))
    with torch.no_grad():
        assert torch.equal(load(tmp_path / "run")(x), fitted.model(x))


def test_bfloat16_agrees_to_its_rounding():
    model, x = build("vit_tiny", shape=(1, 8, 8), patch=4).eval(), torch.rand(3, 1, 8, 8)
    with torch.no_grad():
        wanted = model(x)
        with torch.autocast("cpu", torch.bfloat16):
            found = model(x)
    # About 40 roundings of 2^-9 on the way, of values as large as the logits.
    assert float((found - wanted).abs().max()) <= 40 * 2**-9 * float(wanted.abs().max())


@pytest.mark.parametrize("layout", ["timm", "transformers"])
def test_a_file_shows_the_side_of_its_patches(layout, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = build("vit_tiny", shape=(1, 8, 8), patch=2).eval()
    state = model.state_dict()
    save_file(classical_names(state, 3) if layout == "transformers" else state, tmp_path / "file.safetensors")
    ask = {"data": "digits", "norm": "linf", "eps": 0.1, "attacks": ["FGSM"], "limit": 10}
    found = load_target("file.safetensors", model="vit_tiny", **ask)
    x = found.test()[0]
    with torch.no_grad():
        assert torch.equal(found.model(x), model(x))


def test_runs_made_before_patches_resume():
    now = {
        "method": {"name": "PGDAT"}, "optimizer": {}, "schedule": {}, "train": {}, "data": {}, "files": None,
        "model": {"name": "small_cnn", "patch": None},
    }  # fmt: skip
    before = {**now, "model": {"name": "small_cnn"}}
    assert json.loads(completed(json.dumps(before), json.dumps(now), PGDAT(LINF))) == now


# ---- docs/networks.md


PAGE = (Path(__file__).parents[2] / "docs" / "networks.md").read_text()


def blocks():
    first, own, published, wrapped = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    return first, own, published, wrapped


def test_the_page_runs():
    names = {}
    for code in blocks()[:2]:
        exec(code, names)
    assert names["logits"].shape == (2, 10)
    assert names["net"]()(torch.rand(1, 3, 32, 32)).shape == (1, 10)


@pytest.mark.slow
def test_the_page_loads_published_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    source = build("vit_b16", classes=1000)
    save_file(source.state_dict(), "vit_base_patch16_224.safetensors")
    names = {}
    for code in (blocks()[0], blocks()[2]):
        exec(code, names)
    assert torch.equal(names["model"].network.norm.weight, source.norm.weight)


def test_the_page_wraps_a_classifier_of_transformers():
    pytest.importorskip("transformers")
    names = {}
    for code in (blocks()[0], blocks()[3]):
        exec(code, names)
    assert names["x_adv"].shape == (4, 3, 8, 8)


def test_the_page_has_the_inputs_and_parameters_of_every_network():
    rows = [line.strip("| ").split(" | ") for line in PAGE.splitlines() if line.startswith("| `")]
    told = {}
    for names, _, sides, counts in rows:
        shape = tuple(map(int, re.findall(r"\d+", sides.partition(",")[0])))
        for name, count in zip(re.findall(r"`(\w+)`", names), re.findall(r"[\d,]+", counts), strict=True):
            told[name] = shape, int(count.replace(",", ""))
    assert told == {name: (native_shape(name), count) for name, count in COUNTS.items()}
