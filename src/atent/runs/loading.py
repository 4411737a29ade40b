"""The network of a run folder or of a weights file, built and with its weights."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atent import runs as folder
from atent import trust
from atent.contracts import kind_of
from atent.messages import unknown
from atent.models import MODELS, ModelSettings, build, has_patch, make
from atent.models.convention import Convention
from atent.models.reference import built_anew
from atent.models.registry import takes_task
from atent.runs.checkpoint import load_weights, put_states, read_states, weights_file
from atent.runs.foreign import is_weights
from atent.runs.match import classes_of, nearest, recorded, shape_of
from atent.runs.places import place_of
from atent.runs.weights import Notes, State


def load(
    run: str | Path, *, which: str = "best", device: str = "cpu", model: str | None = None, trust_code: bool = False,
    classes: int | None = None, shape: Sequence[int] | None = None, mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None, input_range: str | None = None, bgr: bool = False, key: str | None = None,
) -> nn.Module:  # fmt: skip
    """The model of a run folder, of a name or of a weights file, in eval mode: from pixels in [0, 1] to logits.

    Parameters
    ----------
    run
        A run folder, zoo:name or hub:user/name, whose best weights are taken (or ``which`` of `load_weights`); or a
        weights file, .safetensors or what `torch.save` wrote, which is read without running code.
    which, key
        As `load_weights`.
    device
        Where the model is put.
    model
        The network's name, or module:function, where the run or the file does not say.
    trust_code
        Let a run that you did not make on this machine import what it names.
    classes, shape
        Of a weights file: the number of classes and the (c, h, w) of one input. Default: as the file shows or
        records them, and the native sides of the network.
    mean, std, input_range, bgr
        Of a weights file that training here did not write: what the network expects, see `Convention`. Default: the
        mean and std in the file, or none.

    Returns
    -------
    torch.nn.Module
        The network in eval mode on ``device``: inputs (n, c, h, w) in [0, 1] to logits (n, classes).

    Raises
    ------
    FileNotFoundError, ValueError
        Not a run or a weights file, or the model cannot be built.
    Untrusted
        Before anything is imported, if that needs ``trust_code``.

    Examples
    --------
    >>> import tempfile, torch
    >>> from atent import load
    >>> from atent.models import build
    >>> network = build("small_cnn", classes=10, shape=(1, 28, 28))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     torch.save(network.state_dict(), f"{folder}/weights.pt")
    ...     model = load(f"{folder}/weights.pt", model="small_cnn", classes=10, shape=(1, 28, 28))
    >>> model(torch.rand(2, 1, 28, 28)).shape
    torch.Size([2, 10])
    """
    if not isinstance(model, str | None):
        raise ValueError(
            f"model must be the name of a network or module:function, got {kind_of(model)}: for your own network use"
            " atent.train.load_weights(net, run)"
        )
    given = Convention(tuple(mean) if mean else None, tuple(std) if std else None, input_range, bgr)
    path = Path(run)
    if path.is_dir() or not (path.is_file() or is_weights(path)):
        _check_for_files(path, given, classes, shape, key)
        return restore(run, which=which, model=model, trust_code=trust_code)[0].to(device).eval()
    about, states, notes = read_states(path)
    name = _name_of(path, model, about, states)
    with trust.fenced(model, trust_code=trust_code):
        bare = recorded(states)[1]
        own = ":" in name or not takes_task(name)
        inputs = tuple(shape or about.get("shape") or ((3, 32, 32) if own else shape_of(name, bare)))
        many = classes or about.get("classes") or (None if own else classes_of(name, inputs, bare))
        net = _filled(path, name, (about, states, notes), many or 10, inputs, given, key)
    return net.to(device).eval()


def _check_for_files(path: Path, given: Convention, *others: object) -> None:
    """ValueError for what has no effect on a run folder."""
    if given != Convention() or any(value is not None for value in others):
        raise ValueError(
            f"classes, shape, mean, std, input_range, bgr and key have no effect on {path}: they are for a weights file"
        )


def restore(
    run: str | Path, *, which: str = "best", weights: str | None = None, model: str | None = None,
    trust_code: bool = False, key: str | None = None,
) -> tuple[nn.Module, dict[str, Any], dict[str, Any]]:  # fmt: skip
    """The model of a run folder with its weights, their metadata, and the run's configuration.

    ``weights``: a file instead of the run's own, where ``key`` is the place of the network. ``model``: for a run that
    was trained from a Python object, which network it was, a built-in one by name or the user's own as module:function,
    in place of its builder.
    ``trust_code`` and errors as `load` and `load_weights`.
    """
    run = place_of(run)
    if not (run / folder.CONFIG).is_file():
        raise FileNotFoundError(f"{folder.no_run(run)}: give the path that training printed")
    config = folder.read_config(run / folder.CONFIG)
    path = weights_file(Path(weights) if weights else run, which)
    names = next(iter(read_states(path)[1].values())) if model is not None else {}
    with trust.fenced(model, trust_code=trust_code):
        folder.admit(run)
        net = model_of(config, run, model, names)
    return net, load_weights(net, path, key=key), config


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
                f"{run} was trained from a Python object, a {kind}: give --model module:function, or"
                " build it yourself and call atent.train.load_weights(model, run)"
            )
        return _named(name, settings, tensors or {}, about["classes"], tuple(about["shape"]))
    if name is not None:
        raise ValueError(f"--model {name} has no effect on {run}, whose own network is {settings['name']}: omit it")
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
        For an unknown name or keyword, and for what the function raises. The global random state comes
        back as it was.
    """
    with torch.random.fork_rng():
        if ":" in name:
            return built_anew(name, args)
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
    path: str | Path, name: str | None = None, *, classes: int, shape: tuple[int, ...],
    convention: Convention | None = None, key: str | None = None,
) -> tuple[nn.Module, dict[str, Any]]:  # fmt: skip
    """The network of a weights file, in eval mode, and the file's metadata, {} where training here did not write it.

    Parameters
    ----------
    path
        A .safetensors file, or what `torch.save` wrote.
    name
        The network, or the user's own as module:function. Default: as the file says, where that is a built-in one.
    classes, shape
        What a built-in network is built for.
    convention
        What a network expects that training here did not write. Default: the mean and std that the file has, or none.
    key
        As `load_weights`.

    Raises
    ------
    FileNotFoundError, ValueError
        For a missing or unknown name, a convention that contradicts the file, and as `load_weights`.
    """
    path = Path(path)
    read = read_states(path)
    name = _name_of(path, name, *read[:2])
    return _filled(path, name, read, classes, shape, convention or Convention(), key).eval(), read[0]


def _name_of(path: Path, name: str | None, about: dict[str, Any], states: Mapping[str, State]) -> str:
    """The network of a file; ValueError if neither ``name`` nor the file says it."""
    # A file must not choose whose code is run.
    name = name or next((n for n in [(about.get("model") or {}).get("name")] if n and MODELS.is_built_in(n)), None)
    if name is None:
        raise ValueError(f"{path} does not record its architecture: {nearest(recorded(states)[1])}")
    return name


def _filled(
    path: Path, name: str, read: tuple[dict[str, Any], dict[str, State], Notes], classes: int, shape: tuple[int, ...],
    given: Convention, key: str | None,
) -> nn.Module:  # fmt: skip
    """The network called ``name`` with what was read from ``path``, behind the layers of its convention."""
    about, states, notes = read
    if about or notes:
        if given != Convention():
            raise ValueError(
                f"--mean, --std, --input-range and --bgr have no effect on {path}: training here wrote it, with what"
                " its network expects"
            )
        model = _named(name, about.get("model") or {}, states[""], classes, shape)
    else:
        if MODELS.is_built_in(name):
            given, states = _with_recorded(given, states, path)
        patch = next((side for state in states.values() if (side := _patch(name, state))), None)
        network = make(ModelSettings(name=name, patch=patch), classes=classes, shape=shape)
        model = given.around(network, shape[0], len(shape) - 1)
    put_states(model, states, path, about, notes, key, name)
    return model


def _with_recorded(given: Convention, states: dict[str, State], path: Path) -> tuple[Convention, dict[str, State]]:
    """The convention with the mean and std that the networks of a file have, and the states without them."""
    pair, rest = recorded(states)
    if pair is None:
        return given, states
    if given.mean is not None and (given.mean, given.std) != pair:
        mean, std = (" ".join(f"{v:.4g}" for v in values) for values in pair)
        raise ValueError(f"{path} has its own normalisation, mean {mean} and std {std}: omit --mean and --std")
    return replace(given, mean=pair[0], std=pair[1]), rest
