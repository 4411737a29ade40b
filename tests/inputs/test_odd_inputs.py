"""Inputs that are close to what is wanted: each is refused in one line that has the remedy."""

import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from atent import Threat
from atent.attacks import FGSM, PGD, AutoAttack
from atent.certify import Sampling, Smoothed, certify_run, linf_radius, verified
from atent.data import DataSettings, collect, from_tensors, load
from atent.data.corruptions import corrupt
from atent.evaluate import evaluate, predict, sweep
from atent.methods import ATENT, PGDAT, Standard
from atent.runs import read_rows
from atent.train import TrainSettings, fit, load_weights
from atent.train.interrupt import again

X, Y = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3
ATTACKS = [FGSM(Threat("linf", 0.05))]


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()


def refused(call, *parts):
    """The call raises ValueError with one line that contains the parts."""
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    text = str(caught.value)
    assert "\n" not in text
    assert [part for part in parts if part not in text] == [], text


def test_batches_of_a_loader_have_one_label_per_input():
    """Batches whose sums agree would pair images with labels of others."""
    pairs = [(X[:2], Y[:3]), (X[2:5], Y[3:5])]
    refused(lambda: collect(pairs), "(2, 1, 4, 4)", "(3,)", "one label per input")
    refused(lambda: evaluate(net(), pairs, None, ATTACKS), "(2, 1, 4, 4)", "(3,)")
    refused(lambda: collect([(X[0], Y[:3])]), "(3,)")


def test_items_of_a_loader_that_are_no_pairs_have_a_remedy():
    refused(lambda: collect([{"image": X[:2], "label": Y[:2]}]), "a dict with 'image', 'label'", 'b["label"]')
    refused(lambda: collect([(X[:2], Y[:2], Y[:2])]), "3 items", "drop the other items")
    refused(lambda: collect([X[:2]]), "a Tensor", "pair")


@pytest.mark.parametrize(
    ("x", "parts"),
    [
        (np.ma.masked_greater(X.numpy(), 0.9), ("masked", ".filled(")),
        (X.flatten(1).to_sparse(), ("sparse", ".to_dense()")),
        (X.to("meta"), ("meta device",)),
        (255 * X, ("[0, 1]", "divide pixels by 255")),
        (65535 * X, ("[0, 1]", "divide pixels by 65535")),
        (4 * X - 2, ("[0, 1]", "atent.models.Normalize")),
    ],
)  # fmt: skip
def test_arrays_that_are_no_pixels_have_a_remedy(x, parts):
    refused(lambda: evaluate(net(), x, Y, ATTACKS), *parts)
    refused(lambda: from_tensors(x, Y, x, Y), *parts)


def test_an_array_that_could_mask_and_does_not_is_taken():
    x = np.ma.masked_greater(X.numpy(), 2.0)
    assert evaluate(net(), x, Y, ATTACKS).clean == evaluate(net(), X, Y, ATTACKS).clean


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_the_seed_of_a_split_is_named(seed):
    refused(lambda: from_tensors(X, Y, X, Y, split_seed=seed), f"split_seed is {seed}", "0 to 2**32 - 1")


def test_sets_without_an_image_to_validate_on():
    refused(lambda: from_tensors(X[:3], Y[:3], X, Y), "3 training samples of 3 classes", "at least 4")
    assert len(from_tensors(X[:4], Y[:4], X, Y).train) == 3


def test_labels_with_gaps_have_a_remedy():
    refused(lambda: from_tensors(X, 2 * Y, X, 2 * Y), "class 1 of 0 to 4", "np.unique")
    refused(lambda: from_tensors(X, Y + 1, X, Y + 1), "class 0 of 0 to 3", "y - 1")


@pytest.mark.parametrize("n", [2.5, True, "some"])
def test_a_subset_has_a_number_of_samples(n):
    refused(lambda: from_tensors(X, Y, X, Y).sample("test", n), repr(n), "integer or 'all'")


def test_a_subset_is_of_a_part_that_exists():
    refused(lambda: from_tensors(X, Y, X, Y).sample("tests", 3), "'tests'", "train, validation, test")


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.uint16, torch.uint32, torch.uint64])
def test_labels_of_every_integer_type(dtype):
    """Before: a traceback about min_all of unsigned types of more than 8 bits."""
    y, attack, wanted = Y.to(dtype), PGD(Threat("linf", 0.05), steps=2), evaluate(net(), X, Y, ATTACKS)
    assert evaluate(net(), X, y, ATTACKS).outcomes == wanted.outcomes
    assert evaluate(net(), X, y.numpy(), ATTACKS).outcomes == wanted.outcomes
    assert torch.equal(attack(net(), X, y), attack(net(), X, Y))
    assert torch.equal(verified(net(), X, y, Threat("linf", 0.01)), verified(net(), X, Y, Threat("linf", 0.01)))


# ---- settings of a call --------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["evla", "Train", None, True])
def test_a_mode_that_does_not_exist_is_refused(mode):
    """Before: everything but "train" and "as-is" was eval mode."""
    refused(lambda: ATTACKS[0](net(), X, Y, mode=mode), repr(mode), "eval, train, as-is")


@pytest.mark.parametrize("value", ["no", 1, None, torch.tensor([0, 1, 2])])
def test_a_flag_is_true_or_false(value):
    """Before: the text "no", or a class, counted as true."""
    attack = ATTACKS[0]
    refused(lambda: attack(net(), X, Y, targeted=value), "targeted must be True or False")
    refused(lambda: attack.run(net(), X, Y, channels_last=value), "channels_last must be True or False")
    refused(lambda: evaluate(net(), X, Y, ATTACKS, folding=value), "folding must be True or False")
    refused(lambda: evaluate(net(), X, Y, ATTACKS, blocks=value), "blocks must be True or False")
    refused(lambda: sweep(net(), X, Y, ATTACKS, [0.1], blocks=value), "blocks must be True or False")


def test_a_part_and_a_callback_of_a_call_are_known():
    """Before: KeyError and TypeError."""
    refused(lambda: ATTACKS[0].run(net(), X, Y, part="FGSM"), "FGSM has no part 'FGSM'", "none")
    whole = AutoAttack(Threat("linf", 0.05))
    refused(lambda: whole.run(net(), X, Y, part="Square-5000"), "'Square-5000'", "APGD-CE", "FAB-T")
    refused(lambda: ATTACKS[0](net(), X, Y, callback=3), "callback", "3")


# ---- inputs of another size ---------------------------------------------------------------------------------


class Eights(nn.Module):
    """Its batch size is part of the network."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(16, 3)

    def forward(self, z):
        return self.lin(z.reshape(8, 16))


BUILT = {
    "linear": (net, torch.rand(12, 3, 4, 4)),
    "convolution": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 3)), torch.rand(12, 3, 4, 4)),
    "rows": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 3)), torch.rand(12, 16)),
    "side": (lambda: nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 3)), torch.rand(12, 1, 2, 2)),
    "norm": (lambda: nn.Sequential(nn.Flatten(), nn.LayerNorm(16), nn.Linear(16, 3)), torch.rand(12, 1, 4, 5)),
    "batch norm": (lambda: nn.Sequential(nn.BatchNorm2d(1), nn.Flatten(), nn.Linear(48, 3)), torch.rand(12, 3, 4, 4)),
    "batch": (Eights, torch.rand(12, 1, 4, 4)),
}


@pytest.mark.parametrize("kind", BUILT)
def test_inputs_of_another_size_are_refused_with_theirs(kind, capsys):
    build, x = BUILT[kind]
    model, size = build().eval(), ", ".join(map(str, x.shape[1:]))
    refused(lambda: evaluate(model, x, Y, ATTACKS), "the model cannot take a batch of shape", size)
    refused(lambda: PGD(Threat("linf", 0.05), steps=2).run(model, x, Y), "the model cannot take a batch", size)
    refused(lambda: Smoothed(model, 0.25).certify(x[:2], n0=10, n=100, alpha=0.05), "cannot take a batch", size)
    assert "Traceback" not in capsys.readouterr().err


class Silent(nn.Module):
    """Its train() returns nothing."""

    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(16, 3)

    def train(self, mode=True):
        super().train(mode)

    def forward(self, z):
        return self.lin(z.flatten(1))


@pytest.mark.parametrize("size", [4, 9])
def test_a_network_whose_train_returns_nothing_is_trained(size, tmp_path):
    data = from_tensors(X, Y, X, Y, validation=2)
    settings = TrainSettings(epochs=1, batch_size=size, device="cpu")
    fitted = fit(
        Silent(), data, PGDAT(Threat("linf", 0.05), steps=1), settings=settings, run=tmp_path / "run", progress=False
    )
    assert len(fitted.history) == 1


class Wrapped(Eights):
    """Its output contains the logits."""

    def __init__(self, wrap):
        super().__init__()
        self.wrap = wrap

    def forward(self, z):
        return self.wrap(self.lin(z.flatten(1)))


@pytest.mark.parametrize(
    ("wrap", "parts"),
    [
        (lambda z: {"out": z, "aux": z}, ("a dict", "logits alone", "'out', 'aux'")),
        (lambda z: (z, z), ("a tuple", "logits alone")),
        (lambda z: [z], ("a list", "logits alone")),
    ],
)
def test_outputs_that_contain_the_logits_have_a_remedy(wrap, parts):
    model, data = Wrapped(wrap).eval(), from_tensors(X, Y, X, Y, validation=2)
    refused(lambda: evaluate(model, X, Y, ATTACKS), *parts)
    refused(lambda: fit(model, data, PGDAT(Threat("linf", 0.05)), progress=False), *parts)


# ---- folders of images -----------------------------------------------------------------------------------------


def images(root, names):
    image = pytest.importorskip("PIL.Image")
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        image.fromarray(np.full((4, 4), 20 * i, np.uint8)).save(root / name)


def test_hidden_files_beside_images_are_not_read(tmp_path):
    images(tmp_path, [f"{c}/{i}.png" for c in "ab" for i in range(4)])
    (tmp_path / "a" / "._1.png").write_bytes(b"no image")
    (tmp_path / "b" / ".thumbs").mkdir()
    (tmp_path / "b" / ".thumbs" / "1.png").write_bytes(b"no image")
    data = load(DataSettings("folder", root=str(tmp_path)))
    assert sum(map(len, (data.train, data.validation, data.test))) == 8


@pytest.mark.parametrize("others", [4, 0])
def test_images_of_a_folder_in_a_class_folder_are_not_left_out(others, tmp_path):
    images(tmp_path, [f"b/{i}.png" for i in range(4)] + [f"a/{i}.png" for i in range(others)] + ["a/deep/7.png"])
    refused(lambda: load(DataSettings("folder", root=str(tmp_path))), str(tmp_path / "a" / "deep"), "move them")


@pytest.mark.parametrize("other", ["a/9.webp", "b/9.TIF", "b/9.gif"])
def test_images_of_a_kind_that_is_not_read_are_not_left_out(other, tmp_path):
    images(tmp_path, [f"{c}/{i}.png" for c in "ab" for i in range(4)])
    (tmp_path / other).write_bytes(b"an image")
    (tmp_path / "a" / "notes.txt").write_bytes(b"notes")
    suffix = other[3:].lower()
    refused(lambda: load(DataSettings("folder", root=str(tmp_path))), f"images of {suffix} (1)", "convert")


def test_a_class_that_is_named_like_an_image_is_a_class(tmp_path):
    images(tmp_path, [f"{c}/{i}.png" for c in ("a", "b.gif") for i in range(4)])
    assert load(DataSettings("folder", root=str(tmp_path))).about["class_names"] == ["a", "b.gif"]


def test_a_link_to_an_image_that_is_not_there_is_not_left_out(tmp_path):
    images(tmp_path, [f"{c}/{i}.png" for c in "ab" for i in range(4)])
    (tmp_path / "a" / "9.png").symlink_to(tmp_path / "b" / "0.png")
    assert len(load(DataSettings("folder", root=str(tmp_path))).about["class_names"]) == 2
    (tmp_path / "a" / "10.png").symlink_to(tmp_path / "gone.png")
    refused(lambda: load(DataSettings("folder", root=str(tmp_path))), str(tmp_path / "a" / "10.png"), "link")


def test_binary_images_as_bytes_are_not_divided_by_255(tmp_path):
    """Before: a model was trained on images between 0 and 0.004."""
    x = (X > 0.5).byte()
    refused(lambda: from_tensors(x, Y, x, Y), "x_train", "x.astype(np.float32)")
    path = tmp_path / "data.npz"
    np.savez(path, x_train=x.numpy(), y_train=Y.numpy(), x_test=x.numpy(), y_test=Y.numpy())
    refused(lambda: load(DataSettings("npz", root=str(path))), "x_train", "x.astype(np.float32)")
    assert float(from_tensors(255 * x, Y, 255 * x, Y).train.batch([0])[0].max()) == 1.0


# ---- radii ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("radii", [0.1, "8/255", None])
def test_the_radii_of_a_sweep_are_a_list(radii):
    refused(lambda: sweep(net(), X, Y, ATTACKS, radii), "radii must be a list", "[0.1, 0.2]")


@pytest.mark.parametrize("tested", [None, 0.1])
def test_a_certificate_takes_radii_only(tested):
    found = certify_run(net(), X[:4], Y[:4], Sampling(0.25, n0=10, n=100, alpha=0.05, radius=tested))
    for radius in (float("nan"), -0.1, [0.1], "far"):
        refused(lambda radius=radius: found.certified(radius), "radius")
    for radii in (0.1, "0.1"):
        refused(lambda radii=radii: found.to_json(radii), "radii must be a list")
    rows = found.to_json(["1/10"])["certified"]
    assert [row["radius"] for row in rows] == [0.1]


def test_a_radius_in_linf_is_of_a_radius_and_a_number_of_values():
    """Before: a division by zero, and negative radii."""
    refused(lambda: linf_radius(1.0, 0), "dim must be at least 1, got 0")
    refused(lambda: linf_radius(-1.0, 4), "radius", "-1")
    assert linf_radius("1/2", np.int64(4)) == 0.25


# ---- files ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"notes", b"PK\x03\x04" + bytes(50), b"x" * 300, b"[1, 2]", b"notes\n"])
def test_a_file_of_something_else_is_not_overwritten(content, tmp_path):
    path = tmp_path / "rows"
    path.write_bytes(content)
    refused(lambda: evaluate(net(), X, Y, ATTACKS, resume=path), str(path), "give another file")
    assert path.read_bytes() == content


@pytest.mark.parametrize("end", [0, 1, 10, 17, 100])
@pytest.mark.parametrize("after", [b"", bytes(20)])
def test_a_first_line_that_was_cut_off_is_begun_anew(end, after, tmp_path):
    path = tmp_path / "rows"
    found = evaluate(net(), X, Y, ATTACKS, resume=path)
    first = path.read_bytes()
    path.write_bytes(first[:end] + after)
    again = evaluate(net(), X, Y, ATTACKS, resume=path)
    assert again.outcomes == found.outcomes
    assert path.read_bytes().partition(b"\n")[0] == first.partition(b"\n")[0]


def test_a_shard_is_a_pair():
    refused(lambda: certify_run(net(), X[:3], Y[:3], Sampling(0.25, n0=10, n=100), shard=2), "pair (i, k)", "got 2")


# ---- labels and tensors of other kinds --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "fix"),
    [
        (nn.functional.one_hot(Y), "y.argmax(1)"),
        (nn.functional.one_hot(Y).bfloat16(), "y.argmax(1)"),
        (Y[:, None], "y.squeeze(1)"),
        (Y.float(), "y.long()"),
        (Y > 0, "y.long()"),
        (np.array(list("abc"))[Y], "np.unique"),
        (list("abc" * 4), "np.unique"),
    ],
)
def test_labels_of_usual_kinds_have_a_remedy_in_an_evaluation_too(y, fix):
    refused(lambda: evaluate(net(), X, y, ATTACKS), fix)
    refused(lambda: ATTACKS[0](net(), X, y), fix)


def test_labels_of_another_number_or_length_have_no_wrong_remedy():
    with pytest.raises(ValueError, match="12 integers") as caught:
        evaluate(net(), X, Y[:3], ATTACKS)
    assert "y.long()" not in str(caught.value)
    refused(lambda: evaluate(net(), X, [[1, 2], [3]], ATTACKS), "y cannot be read as numbers")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_tensors_without_plain_values_have_a_remedy():
    nested = torch.nested.nested_tensor(list(X))
    quantized = torch.quantize_per_tensor(X, 1 / 255, 0, torch.quint8)
    for x, fix in ((nested, "torch.stack(x.unbind())"), (quantized, ".dequantize()")):
        refused(lambda x=x: evaluate(net(), x, Y, ATTACKS), fix)
        refused(lambda x=x: Smoothed(net(), 0.25).certify(x, n0=10, n=100, alpha=0.05), fix)
        refused(lambda x=x: from_tensors(x, Y, x, Y), fix)


CALLS = {
    "attack": lambda x, y: FGSM(Threat("linf", 0.05))(net(), x, y),
    "run": lambda x, y: FGSM(Threat("linf", 0.05)).run(net(), x, y),
    "evaluate": lambda x, y: evaluate(net(), x, y, ATTACKS),
    "predict": lambda x, y: predict(net(), x, y),
    "verified": lambda x, y: verified(net(), x, y, Threat("linf", 0.05), method="ibp"),
    "backward": lambda x, y: PGDAT(Threat("linf", 0.05), steps=1).backward(net(), x, y),
    "data": lambda x, y: from_tensors(x, y, x, y),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_inputs_and_labels_of_every_kind_of_tensor_are_refused_in_one_line(call):
    """Compressed sparse inputs, and labels that are complex, sparse, nested, quantized or without values, ended in
    tracebacks of torch."""
    flat, whole = X.flatten(1), Y.float()
    for x in (X + 0j, flat.to_sparse_csr(), flat.to_sparse_csc(), X.to_mkldnn(), X.to("meta"), X.to_sparse()):
        refused(lambda x=x: call(x, Y))
    labels = [
        Y + 0j, Y.to_sparse(), Y.to("meta"), torch.nested.nested_tensor(list(Y.view(4, 3))), whole.to_mkldnn(),
        torch.quantize_per_tensor(whole, 1.0, 0, torch.quint8),
    ]  # fmt: skip
    for y in labels:
        refused(lambda y=y: call(X, y))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", [torch.Tensor.to_sparse, lambda t: t.to("meta"), lambda t: torch.nested.nested_tensor(
    list(t.view(4, 3))
)], ids=["sparse", "meta", "nested"])  # fmt: skip
def test_numbers_and_radii_of_every_kind_of_tensor_are_refused_in_one_line(kind):
    ids, eps = kind(torch.arange(12)), kind(torch.linspace(0.01, 0.1, 12))
    refused(lambda: evaluate(net(), X, Y, ATTACKS, ids=ids), "ids is ")
    refused(lambda: Smoothed(net(), 0.25).certify(X, n0=10, n=100, alpha=0.05, ids=ids), "ids is ")
    refused(lambda: Threat("linf", eps), "eps is ")


def test_what_is_no_image_is_refused_by_corruptions_and_calibrations():
    for x in (X > 0.5, X + 0j):
        refused(lambda x=x: corrupt(x.repeat(1, 1, 8, 8), "gaussian_noise", 1), "use x.")
        refused(lambda x=x: ATENT(Threat("l2", 1.0)).calibrate(net(), x, Y), "inputs must be floats")
    flat = X.flatten(1).to_sparse_csr()
    refused(lambda: Smoothed(net(), 0.25).predict(flat, n=20), "sparse")


def test_inputs_that_are_no_floats_have_the_remedy_of_their_kind():
    for x, fix in ((X + 0j, "use x.real"), (X > 0.5, "use x.float()"), ((255 * X).byte(), "divide pixels by 255")):
        refused(lambda x=x: evaluate(net(), x, Y, ATTACKS), fix)
    refused(lambda: evaluate(net(), X, Y + 0j, ATTACKS), "use y.real.long()")


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_default_device_without_values_is_refused(call):
    with torch.device("meta"):
        refused(lambda: call(X, Y), "default device is meta", "torch.set_default_device('cpu')")


def test_a_training_on_a_default_device_without_values_is_refused():
    data, model = from_tensors(X, Y, X, Y, validation=3), net()
    with torch.device("meta"):
        refused(lambda: fit(model, data, PGDAT(Threat("linf", 0.05)), progress=False), "default device is meta")


@pytest.mark.parametrize("x", [1.04 * X, X - 0.04])
def test_values_that_interpolation_leaves_outside_are_clipped(x):
    refused(lambda: evaluate(net(), x, Y, ATTACKS), "x.clip(0, 1)")
    refused(lambda: from_tensors(x, Y, x, Y), "x.clip(0, 1)")


@pytest.mark.parametrize("box", [(-0.1, 0.1), (-2.1179, 2.64), (-1 / 3, 2 / 3), ((-0.1, -0.3), (2 / 3, 0.9))])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_inputs_that_are_clipped_as_the_error_says_are_accepted(box, dtype):
    """Before: an end that is no number of float32, such as 0.1, was refused with the same remedy again."""
    x, y = 100 * torch.randn(40, 2, 4, 4, dtype=dtype, generator=torch.Generator().manual_seed(0)), torch.arange(40) % 2
    low, high = (torch.tensor(end, dtype=dtype).view(1, -1, 1, 1).expand(1, 2, 1, 1) for end in box)
    with pytest.raises(ValueError, match="floats must be in"):
        from_tensors(x, y, x, y, box=box)
    x = x.clamp(low, high)
    assert len(from_tensors(x, y, x, y, box=box).test) == 40
    beyond = x + 1e-6 * x.sign()
    with pytest.raises(ValueError, match="floats must be in"):
        from_tensors(beyond, y, beyond, y, box=box)


def test_the_limits_in_the_remedy_are_those_of_the_box():
    """Before: clip(-0.333333, 0.666667) left values outside of a box that ends at 2/3."""
    x, y = torch.linspace(-0.35, 0.68, 40).view(20, 2), torch.arange(20) % 2
    with pytest.raises(ValueError, match="clip values") as caught:
        from_tensors(x, y, x, y, box=(-1 / 3, 2 / 3))
    first, last = map(float, str(caught.value).rpartition("x.clip(")[2].rstrip(")").split(", "))
    assert (first, last) == (-1 / 3, 2 / 3)


def test_a_loader_that_drops_its_last_batch_is_reported(capsys):
    """Before: 10 of 12 samples were evaluated without a word."""
    parts = torch.utils.data.TensorDataset(X, Y)
    for size, drop in ((4, True), (5, False)):
        assert evaluate(net(), torch.utils.data.DataLoader(parts, size, drop_last=drop), attacks={}).n == 12
    assert "drops" not in capsys.readouterr().err
    assert evaluate(net(), torch.utils.data.DataLoader(parts, 5, drop_last=True), attacks={}).n == 10
    assert "10 of 12 samples are used" in capsys.readouterr().err


def test_a_loader_of_a_part_of_its_data_drops_nothing(capsys):
    parts, some = torch.utils.data.TensorDataset(X, Y), torch.utils.data.SubsetRandomSampler(range(8))
    assert evaluate(net(), torch.utils.data.DataLoader(parts, 4, sampler=some, drop_last=True), attacks={}).n == 8
    assert "drops" not in capsys.readouterr().err


class InPlace(nn.Module):
    """Its ReLU's output, which the gradient needs, is changed in place."""

    def __init__(self):
        super().__init__()
        self.one, self.lin = nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, z):
        z = nn.functional.relu(self.one(z.flatten(1)))
        z += 1
        return self.lin(z)


def test_a_network_whose_gradient_is_destroyed_in_place_has_a_remedy():
    """Before: a message of several lines about output 0 of ReluBackward0."""
    refused(lambda: evaluate(InPlace().eval(), X, Y, ATTACKS), "in place", "inplace=False")
    refused(lambda: PGDAT(Threat("linf", 0.05), steps=1).backward(InPlace(), X, Y), "in place")


def test_a_command_that_a_message_suggests_takes_a_path_with_spaces(tmp_path, monkeypatch):
    """Before: the path was written as it is, and the command that is copied read it as several arguments."""
    monkeypatch.chdir(tmp_path)
    run = Path("my runs") / "it's ü"
    fit(net(), from_tensors(X, Y, X, Y, validation=3), Standard(), settings=TrainSettings(epochs=1, device="cpu"),
        run=run, progress=False)  # fmt: skip
    config = json.loads((run / "config.json").read_text())
    said = [again(config, run)]
    for name in ("metrics.jsonl", "best.safetensors"):
        (run / name).unlink()
        with pytest.raises((OSError, ValueError)) as caught:
            read_rows(run / name) if name == "metrics.jsonl" else load_weights(net(), run)
        said.append(str(caught.value))
    for text in said:
        command = next(part for part in text.split("`") if "--resume" in part and part.startswith("atent"))
        assert shlex.split(command)[:4] == ["atent", "train", "--resume", str(run)]
