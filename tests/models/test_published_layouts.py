"""The names of published networks: every key list loads, and what the networks compute is what the published code did.

``data/published_keys.json.gz`` holds, for each network of a public repository, the names and shapes of its state dict,
and for some the logits that its own code gave in float64 for the weights and images of `filled` and `images`.
"""

import gzip
import json
import math
from pathlib import Path

import pytest
import torch

from atent.models import MODELS, build
from atent.models.dm_resnets import DMWideResNet
from atent.models.layouts import KUANGLIU, LAYOUTS, Layout
from atent.runs.checkpoint import load_weights
from atent.runs.match import match, nearest, recorded
from atent.runs.weights import visible

PUBLISHED = json.loads(gzip.decompress((Path(__file__).parents[1] / "files" / "published_keys.json.gz").read_bytes()))
COMPUTED = [
    pytest.param(name, marks=[pytest.mark.slow] if sum(map(math.prod, entry["entries"].values())) > 1e7 else [])
    for name, entry in PUBLISHED.items()
    if "logits" in entry
]


def empty(entries):
    """A state of the names and shapes alone; only what a file's normalisation would be has values."""
    return {n: torch.ones(s) if n in ("mu", "sigma") else torch.empty(s, device="meta") for n, s in entries.items()}


def built(entry, device="cpu"):
    with torch.device(device):
        if entry["network"] == "dm_wrn_10_2":
            return DMWideResNet(10, 2)
        return build(entry["network"], classes=entry["classes"], shape=entry["shape"])


def filled(entries):
    """Weights that are the same everywhere: a sine wave for each entry, by its place in the order of names."""
    state = {}
    for number, (name, shape) in enumerate(sorted(entries.items())):
        n = math.prod(shape)
        wave = torch.sin(torch.arange(n, dtype=torch.float64) * 0.7 + number).view(shape)
        if name.endswith("num_batches_tracked"):
            state[name] = torch.zeros(shape, dtype=torch.long)
        elif len(shape) > 1:
            state[name] = wave / math.sqrt(max(n // shape[0], 1)) * 0.6
        else:
            state[name] = 1 + wave / 4 if name.endswith(("weight", "running_var")) else wave / 10
    return state


def images(shape):
    n = 2 * math.prod(shape)
    return ((torch.sin(torch.arange(n, dtype=torch.float64) * 1.3) + 1) / 2).view(2, *shape)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_key_list_fills_its_network(name):
    entry = PUBLISHED[name]
    own = built(entry, "meta")
    state = {f"module.{key}": value for key, value in empty(entry["entries"]).items()}
    state = recorded({"": state})[1][""]
    with pytest.raises(ValueError, match="meta device") as error:
        match(own, {"": state}, Path("weights.pt"))
    # A state without values is refused last, when every name and shape fits.
    assert "another architecture" not in str(error.value)


@pytest.mark.parametrize("name", COMPUTED)
def test_the_networks_compute_what_the_published_code_computed(name, tmp_path):
    entry = PUBLISHED[name]
    model = built(entry).double().eval()
    torch.save({"state_dict": filled(entry["entries"]), "epoch": 3}, tmp_path / "weights.pt")
    load_weights(model, tmp_path / "weights.pt")
    with torch.no_grad():
        logits = model(images(entry["shape"]))[:, :10]
    wanted = torch.tensor(entry["logits"], dtype=torch.float64)
    # float64 leaves 1e-9 after some hundred layers, the file keeps nine digits.
    torch.testing.assert_close(logits, wanted, rtol=1e-6, atol=1e-7)


def test_the_nearest_network_is_named():
    for name in ("akamaster_resnet20", "robustbench_dm_preact_resnet18", "rice_preact_resnet18", "fast_mnist"):
        entry = PUBLISHED[name]
        assert nearest({"": empty(entry["entries"])}).startswith(f"its tensors are those of {entry['network']}")
    state = empty(PUBLISHED["fast_mnist"]["entries"])
    with pytest.raises(ValueError, match=r"fc2\.weight is missing.*nearest is kw_small"):
        match(build("kw_small"), {"": {k: v for k, v in state.items() if k != "7.weight"}}, Path("weights.pt"))
    wide = empty(PUBLISHED["robustbench_wrn_28_10"]["entries"])
    wide["extra.weight"] = torch.empty(3, 3, device="meta")
    assert "nearest is wrn_28_10, with 9" in nearest({"": wide})


def test_networks_with_the_same_tensors_are_all_named():
    for name in ("rice_preact_resnet18", "fast_preact_resnet18"):
        assert nearest({"": empty(PUBLISHED[name]["entries"])}) == (
            "its tensors are those of preact_resnet18 and preact_resnet18_raw: give --model preact_resnet18 or"
            " preact_resnet18_raw, by the code that trained it"
        )


def test_recorded_normalisation_is_found_among_the_entries():
    state = {
        "mu": torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1),
        "sigma": torch.ones(1, 3, 1, 1),
        "fc.bias": torch.ones(2),
    }
    pair, rest = recorded({"net": state})
    assert pair[1] == (1.0, 1.0, 1.0)
    assert pair[0] == pytest.approx((0.1, 0.2, 0.3))
    assert list(rest["net"]) == ["fc.bias"]
    # Batch norm's statistics and a deviation that is not one are no normalisation.
    norm = {
        "bn.running_mean": torch.zeros(3),
        "bn.running_var": torch.ones(3),
        "mean": torch.zeros(3),
        "std": -torch.ones(3),
    }
    assert recorded({"": norm})[0] is None


def test_layouts_rename_and_never_merge():
    assert Layout("x", renames=((r"^a\.", "b."),)).apply({"a.w": 1, "b.w": 2}) is None
    assert Layout("x", unused=("a",)).apply({"a.w": 1, "b.w": 2}) == {"b.w": 2}
    # No layout touches the names of this library's own networks, so that own files mean one thing.
    for name in MODELS:
        with torch.device("meta"):
            own = visible(build(name))
        for layout in LAYOUTS:
            kept = layout.apply(own)
            # preact_resnet18 itself has the name that pytorch-cifar gives to the last layer of other networks.
            named = {key for key in own if not (layout is KUANGLIU and key.startswith("linear."))}
            assert kept is None or (named <= kept.keys() and len(kept) == len(own))
