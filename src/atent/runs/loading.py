"""The network of a run folder or of a weights file, built and with its weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atent import runs as folder
from atent import trust
from atent.messages import unknown
from atent.models import MODELS, ModelSettings, build, from_reference, has_patch, make
from atent.runs.checkpoint import load_weights, read_weights, weights_file
from atent.runs.places import place_of


def load(
    run: str | Path, *, which: str = "best", device: str = "cpu", model: str | None = None, trust_code: bool = False
) -> nn.Module:
    """The model of a run folder, with its best weights (or ``which`` of `load_weights`), in eval mode; ``run`` may also
    be zoo:name or hub:user/name.

    ``model`` names the network, as `restore` takes it, where the run does not. ``trust_code``: let a run that you did
    not make on this machine import what it names. FileNotFoundError or ValueError, in one line, where the folder is not
    a run or the model cannot be built; Untrusted, before anything is imported, where that needs ``trust_code``.
    """
    return restore(run, which=which, model=model, trust_code=trust_code)[0].to(device).eval()


def restore(
    run: str | Path, *, which: str = "best", weights: str | None = None, model: str | None = None,
    trust_code: bool = False,
) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:  # fmt: skip
    """The model of a run folder with its weights, their metadata, and the run's configuration.

    ``weights``: a file instead of the run's own. ``model``: for a run that was trained from a Python object, which
    network it was, a built-in one by name or the user's own as module:function, in place of its builder.
    ``trust_code`` and errors as `load` and `load_weights`.
    """
    run = place_of(run)
    if not (run / folder.CONFIG).is_file():
        raise FileNotFoundError(f"{run} is not a run folder (no {folder.CONFIG}): give the path that training printed")
    config = folder.read_config(run / folder.CONFIG)
    path = weights_file(Path(weights) if weights else run, which)
    names = read_weights(path)[1] if model is not None else {}
    with trust.fenced(model, trust_code=trust_code):
        folder.admit(run)
        net = model_of(config, run, model, names)
    return net, load_weights(net, path), config


def model_of(
    config: dict[str, Any], run: Path, name: str | None = None, tensors: Mapping[str, Tensor] | None = None
) -> nn.Module:
    """The untrained model that a run's configuration describes; ``name`` and ``tensors`` as `_named` takes them, of a
    run that was trained from a Python object."""
    settings = config.get("model") or {}
    about = config["about"]["data"]
    if not settings.get("name"):
        if name is None and settings.get("builder"):
            given = settings.get("builder_args") or {}
            return built(settings["builder"], given, classes=about["classes"], shape=tuple(about["shape"]))
        if name is None:
            kind = settings.get("class") or "network"
            raise ValueError(
                f"{run} was trained from a Python object, a {kind}: name what builds it by --model module:function, or"
                " build it yourself and call atent.train.load_weights(model, run)"
            )
        return _named(name, settings, tensors or {}, about["classes"], tuple(about["shape"]))
    if name is not None:
        raise ValueError(f"--model {name} has no effect for {run}: a run brings its own, {settings['name']}")
    known: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
    known["weights"] = None
    return make(ModelSettings(**known), classes=about["classes"], shape=tuple(about["shape"]))


def built(name: str, args: Mapping[str, Any], *, classes: int, shape: tuple[int, ...]) -> nn.Module:
    """The network that a builder gives.

    Parameters
    ----------
    name
        A function as module:function, or a network of `atent.models.MODELS`.
    args
        The function's keywords; of a network by name those of `atent.models.build`.
    classes, shape
        What a network by name is built for, where ``args`` do not say so.

    Raises
    ------
    ValueError
        In one line, for an unknown name or keyword, and for what the function raises. The global random state comes
        back as it was.
    """
    with torch.random.fork_rng():
        if ":" in name:
            return from_reference(name, args)
        known = list(inspect.signature(build).parameters)[1:]
        odd = next((key for key in args if key not in known), None)
        if odd is not None:
            raise ValueError(f"builder {name}: {unknown('argument', odd, known)}")
        return build(name, **{"classes": classes, "shape": shape, **args})


def _named(
    name: str, made: dict[str, Any], tensors: Mapping[str, Tensor], classes: int, shape: tuple[int, ...]
) -> nn.Module:
    """The network called ``name`` as ``tensors`` have it: with the layer that normalises where they do."""
    # Weights do not show it.
    activation = made.get("activation") if name == made.get("name") else None
    settings = ModelSettings(name=name, activation=activation, patch=_patch(name, tensors))
    if "normalize.mean" in tensors and ":" not in name:
        channels = tensors["normalize.mean"].numel()
        settings = replace(settings, mean=(0.0,) * channels, std=(1.0,) * channels)
    return make(settings, classes=classes, shape=shape)


def _patch(name: str, tensors: Mapping[str, Tensor]) -> int | None:
    """The side of a vision transformer's patches, as its kernel shows it."""
    if ":" in name or not has_patch(name):
        return None
    kernels = ("patch_embed.proj.weight", "patch_embeddings.projection.weight")
    return next((t.shape[-1] for key, t in tensors.items() if key.endswith(kernels)), None)


def load_file(
    path: str | Path, name: str | None = None, *, classes: int, shape: tuple[int, ...]
) -> tuple[nn.Module, dict[str, Any]]:
    """A built-in model with the weights of a .safetensors file, in eval mode, and the file's metadata.

    ``name`` is that of the network, or the user's own as module:function; without it the file must name a
    house's, as those that training wrote do. The layer that normalises is there where the file has one.
    FileNotFoundError or ValueError, in one line, for a missing or unknown name, and as `load_weights`.
    """
    path = Path(path)
    about, tensors, _ = read_weights(path)
    # A file must not choose whose code is run.
    name = name or next((n for n in [(about.get("model") or {}).get("name")] if n and MODELS.is_built_in(n)), None)
    if name is None:
        raise ValueError(f"{path} does not say what network it holds: name it by --model, one of {', '.join(MODELS)}")
    model = _named(name, about.get("model") or {}, tensors, classes, shape)
    load_weights(model, path)
    return model.eval(), about
