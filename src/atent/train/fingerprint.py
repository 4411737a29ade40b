"""Comparison of the settings that a resumed run must share."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

from torch import nn

from atent import runs as folder
from atent.data import Data
from atent.data.settings import READING
from atent.fields import shown
from atent.methods import Method
from atent.models import MODELS, ModelSettings
from atent.optim import OPTIMIZERS, Optimizer, Schedule
from atent.origins import sources_of
from atent.registry import Registry, where
from atent.runs.folder import BUILDER_KEYS
from atent.runs.identity import functions_of, is_built_in, layers_of
from atent.runs.manifest import read_json
from atent.runs.weights import unwrapped
from atent.threat import EXTRA
from atent.train.settings import TrainSettings

# Settings of the machine: a run may resume with other values of these.
_MACHINE = (
    "save_minutes", "threads", "device", "precision", "channels_last", "compile", "cuda_graphs", "deterministic",
    "shard",
)  # fmt: skip


# The modules or settings that an error lists.
_NAMED = 4


def fingerprint(config: dict[str, Any]) -> str:
    """The settings that a resumed run must share, as text; those of the machine may change, and so may the builders of
    the network and the data, since these are compared directly."""
    parts = {k: config[k] for k in ("method", "optimizer", "schedule")}
    parts["model"] = {k: v for k, v in config["model"].items() if k not in BUILDER_KEYS}
    train = {k: v for k, v in config["train"].items() if k not in _MACHINE}
    # Runs from before data.subset used the first samples; runs from before the other fields had these values.
    former = (
        ("subset", "first"), ("size", None), ("generated", None), ("generated_share", None), ("label", None),
        ("box", None), ("units", "range"),
    )  # fmt: skip
    data = {k: v for k, v in config["data"].items() if k not in (*READING, *BUILDER_KEYS) and (k, v) not in former}
    about = config["about"]["data"]
    if config.get("recipe") is None and config["method"].get("threat") is None:
        # The robust validation is under the threat of the evaluation, which a recipe's run may change.
        parts["validation"] = {name: config.get("evaluate", {}).get(name) for name in ("norm", "eps", *EXTRA)}
    # For a training from Python these are recorded nowhere else.
    read = {name: about[name] for name in ("generated", "table") if name in about}
    return folder.dumps({**parts, "train": train, "data": data, "files": about.get("files"), **read})


def started(
    config: dict[str, Any], data: Data, method: Method, model: nn.Module, optimizer: Any, attacks: Mapping[str, Any]
) -> dict[str, Any]:
    """The position before the first step, with what a resumed run must share: the settings, the layers of the network,
    and the source of the user's own method, network, ``optimizer`` and ``attacks``, by module. Of the data the samples
    count."""
    kinds = {type(each) for each in (method, *model.modules(), optimizer, *attacks.values())}
    builders = [_builder(kind, config[part].get("name") or "") for part, kind in _BUILT]
    net, name = unwrapped(model), config["model"].get("name")
    code = sources_of([*kinds, *builders, *functions_of(net)])
    # A later version may build the layers of a network that the settings name in another way.
    layers = layers_of(net, named=name is not None and is_built_in(net))
    shared = {"config": fingerprint(config), "code": code, "layers": layers}
    frozen = sorted(name for name, p in model.named_parameters() if not p.requires_grad)
    shared |= {"frozen": frozen, "samples": config["about"]["data"].get("digest"), "split": _split(data)}
    return {**shared, "epoch": 0, "step": 0}


def _split(data: Data) -> str:
    """A hash of the numbers of the samples to train on and to validate on, in their order."""
    digest = hashlib.sha256()
    for part in (data.train, data.validation):
        digest.update(part.ids.cpu().numpy().tobytes() + b"|")
    return digest.hexdigest()[:16]


_BUILT: tuple[tuple[str, Registry[Any]], ...] = ("model", MODELS), ("optimizer", OPTIMIZERS)


def _builder(kind: Registry[Any], name: str) -> Any:
    """The user's function that builds the network or the optimizer, by its reference or as a plug-in; None for a
    built-in one, and if it is not there any more."""
    module, colon, path = name.partition(":")
    if not colon:
        return kind.find(name) if name in kind and not kind.is_built_in(name) else None
    try:
        return attrgetter(path)(sys.modules[module])
    except (AttributeError, KeyError):
        return None


def difference(before: Mapping[str, Any], now: Mapping[str, Any], method: Method) -> str | None:
    """The difference that prevents resuming a run from the saved position ``before``, as text; None if there is none.

    Runs of earlier versions have no record of the code, of layers, of frozen parameters, of samples without files and
    of the split."""
    if changed := edited(before.get("code") or {}, now["code"]):
        return (
            f"code: {changed} since then; restore it, or train with the new code under another --name, from the"
            " weights so far by --model.weights"
        )
    frozen = now.get("frozen", [])
    was = before.get("frozen", frozen)
    other = next(iter(sorted({*was} ^ {*frozen})), None)
    if other is not None:
        how = "was frozen, and is not" if other in was else "was trained, and is frozen"
        return f"parameters: {other} {how}; set its requires_grad as then"
    changed = _changed(before["config"], now["config"], method) or _rebuilt(before.get("layers"), now.get("layers"))
    for part, line in (
        ("samples", "its samples have changed, use those of its training"),
        ("split", "other samples are in its training or its validation set, use its limit, validation and split_seed"),
    ):
        if changed is None and None not in (before.get(part), now[part]) and before[part] != now[part]:
            changed = f"data: {line}"
    return changed


def _rebuilt(before: Mapping[str, str] | None, now: Mapping[str, str] | None) -> str | None:
    """The first layer that is another one ``now``; None if there is none, or no record."""
    if before is None or now is None or before == now:
        return None
    names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
    # A container is named by its type and its own settings; the layers in it tell more.
    name = next((each for each in names if each), "")
    was, present = (layers.get(name, "not there") for layers in (before, now))
    left = len(names) - 1
    more = f" and {left} other{'s' if left > 1 else ''}" if left else ""
    return f"layers: {name or 'the network'} was {was}, and is {present}{more}; build the network as it was then"


def edited(before: Mapping[str, str], now: Mapping[str, str]) -> str | None:
    """The modules whose source is another one ``now``, as "mine has changed"; None if there is none."""
    found = [name for name, source in before.items() if now.get(name, source) != source]
    named = ", ".join(found[:_NAMED]) + (f" and {len(found) - _NAMED} others" if len(found) > _NAMED else "")
    return f"{named} {'has' if len(found) == 1 else 'have'} changed" if found else None


def _changed(saved: str, now: str, method: Method) -> str | None:
    """The difference of two fingerprints."""
    before, after = json.loads(completed(saved, now, method)), json.loads(now)
    parts = [part for part in {**before, **after} if before.get(part) != after.get(part)]
    if parts == ["files"]:
        return "data: the SHA-256 of its files has changed, use those of its training"
    if not parts:
        return None
    was, present = _leaves(before), _leaves(after)
    # Where the method has another name, its fields differ too.
    names = sorted({name for name in was | present if was.get(name) != present.get(name)}, key=_order)
    named = ", ".join(f"{name} {shown(was.get(name))}, not {shown(present.get(name))}" for name in names[:_NAMED])
    more = f" and {len(names) - _NAMED} others" if len(names) > _NAMED else ""
    return f"settings ({named}{more}): resume with those of its {folder.CONFIG}"


def _order(name: str) -> tuple[bool, str]:
    return not name.endswith(".name"), name


def _leaves(value: Any, path: str = "") -> dict[str, Any]:
    """The values of nested mappings by path, such as train.epochs."""
    if not isinstance(value, dict):
        return {path: value}
    inner = [_leaves(each, f"{path}.{key}" if path else key) for key, each in value.items()]
    return {name: leaf for leaves in inner for name, leaf in leaves.items()}


def completed(fingerprint: str, now: str, method: Method) -> str:
    """A saved fingerprint without the settings of `_MACHINE`, two of which earlier versions stored, and with newer
    settings of the fingerprint ``now`` that have their defaults."""
    parts = folder.relocated(json.loads(fingerprint))
    parts["train"] = {k: v for k, v in parts["train"].items() if k not in _MACHINE}
    if "validation" not in parts and "validation" in json.loads(now):
        parts["validation"] = json.loads(now)["validation"]  # earlier versions did not record it
    name, new = parts["method"]["name"], json.loads(now)["method"]["name"]
    if (":" not in name and new.rpartition(":")[2] == name) or name == where(type(method)):
        # Earlier versions stored only the class name of a custom method, or its module where a package announces it.
        parts["method"]["name"] = new
    known = {f.name: f.default for f in fields(method) if f.default is not MISSING}
    defaults = {
        "model": asdict(ModelSettings()), "optimizer": asdict(Optimizer()), "schedule": asdict(Schedule()),
        "train": asdict(TrainSettings()),
    }  # fmt: skip
    return folder.dumps(_completed(parts, json.loads(now), json.loads(folder.dumps({**defaults, "method": known}))))


def _completed(old: dict[str, Any], new: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """``old`` with the entries that only ``new`` has, if they equal ``defaults``."""
    out = dict(old)
    for key, default in defaults.items():
        if isinstance(default, dict) and isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
            out[key] = _completed(old[key], new[key], default)
        elif key not in old and key in new and new[key] == default:
            out[key] = default
    return out


def as_begun(data: Data, run: Path) -> Data:
    """The data with the subset rule of the run at ``run``: runs from before data.subset was recorded used the first
    samples in source order."""
    path = run / folder.CONFIG
    if data.subset == "first" or not path.is_file() or "subset" in read_json(path).get("data", {}):
        return data
    return replace(data, subset="first", validation=data.validation.take(data.validation.ids.argsort()))
