"""The target of an evaluation, a run folder, a weights file or a user's network, with its data and settings."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from atent import runs as folder
from atent import trust
from atent.attacks import ATTACKS, Attack
from atent.attacks.length import check_length
from atent.attacks.several import USUAL, several
from atent.attacks.spec import labelled, parse, show
from atent.checks import Settings
from atent.data import SOURCES, Data, DataSettings, Limit, Rule, Split, everything
from atent.data import load as load_data
from atent.data.builder import built
from atent.data.described import described
from atent.data.settings import check_rule
from atent.experiments.conventions import check_convention
from atent.experiments.interrupted import note_unfinished
from atent.experiments.named import Named, check_either, is_own
from atent.experiments.recorded import recorded_data
from atent.fields import as_norm
from atent.messages import once
from atent.models import check_output, from_reference
from atent.models.convention import Convention, read_back
from atent.probe import Auto, gaining
from atent.runs.foreign import is_weights
from atent.runs.loading import load_file, restore
from atent.runs.places import is_named, place_of
from atent.threads import Threads, check_threads
from atent.threat import EXTRA, Box, Group, Inner, Norm, Threat
from atent.train.settings import pick_device

STRONG: dict[str, tuple[str, ...]] = {
    norm: ("PGD(steps=20)", *attacks) if attacks == ("AutoAttack",) else attacks for norm, attacks in USUAL.items()
}
"""Default attacks of a model without a recipe, by norm: the `USUAL` attacks, preceded by a cheap one if that is
AutoAttack."""


@dataclass(frozen=True)
class EvaluateSettings(metaclass=Settings):
    """Settings of the evaluation on the test set."""

    INFINITE: ClassVar[tuple[str, ...]] = ("eps",)

    attacks: tuple[str, ...] = ("FGSM", "PGD(steps=20)", "Langevin(steps=20)")
    """Attacks, each written as a call, such as PGD(steps=40, step_size=0.01, restarts=5)."""
    threats: tuple[str, ...] = ()
    """Several threats instead of norm, eps and attacks: each as "linf 8/255", "l0 6 group pixel" or "patch 1 side 4",
    optionally with attacks after a colon: "l1 5: APGD(steps=50), Square"; default: strong attacks for the norm."""
    norm: Norm | None = None
    """Norm of the threat; default: the method's."""
    eps: float | str | None = None
    """Radius of the threat, or how many elements, pixels or patches may change (l0, patch); default: the method's, if
    the norm is its own."""
    limit: Limit = 1000
    """Number of test images, chosen by data.subset, or all."""
    batch: int = 250
    """Images per batch."""
    seed: int = 0
    """Seed of the attacks' random numbers."""
    last: bool = True
    """Also evaluate the last epoch's weights if another epoch is the best."""
    checks: bool = False
    """Also check for masked gradients (`atent.evaluate.masking_checks`) if there is a threat."""
    channels_last: bool | Auto = False
    """Use the channels-last memory format: often faster for convolutions, equal up to rounding; auto: measure."""
    folding: bool = True
    """Attack a copy with batch norm folded into adjacent layers; success is decided by the model itself."""
    allow_large_eps: bool = False
    """Allow an eps that covers the entire box (linf: at least its width; l2, l1: at least its diagonal; l0, patch: at
    least the number of elements, pixels or patches of a sample)."""
    allow_long: bool = False
    """Allow attacks with more passes per image than `atent.attacks.length.LONGEST`."""
    group: Group | None = None
    """l0: what eps counts, element or pixel; default: as the method's threat, or element."""
    side: int | None = None
    """patch: side of a patch in pixels; default: the method's."""
    inner: Inner | None = None
    """patch: allowed changes inside a patch, free or linf; default: as the method's threat, or free."""
    inner_eps: float | str | None = None
    """patch with inner linf: largest change of an element; default: the method's."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "limit", everything(self.limit))
        # JSON has no infinity; `Threat` reads the word.
        if isinstance(self.eps, float) and math.isinf(self.eps):
            object.__setattr__(self, "eps", "inf")
        for name in ("limit", "batch"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")


def threat_of(own: Threat | None, box: Box, settings: EvaluateSettings) -> Threat | None:
    """The threat of the evaluation: the method's ``own``, with fields replaced by the settings.

    ValueError for another norm without its own eps: radii of different norms are not comparable.
    """
    norm, eps = settings.norm or (own.norm if own else None), settings.eps
    if eps is None and own is not None:
        if norm != own.norm:
            raise ValueError(
                f"norm {norm} needs its own eps: the method's threat is {show(own)}, in another norm; give"
                " --eps (evaluate.eps in a recipe) as well"
            )
        eps = float(own.eps)
    allowed = settings.allow_large_eps or (own is not None and own.allow_large_eps)
    if norm is None or eps is None:
        return None
    more = own.extra() if own is not None and own.norm == norm else {}
    if settings.inner == "free":
        more.pop("inner_eps", None)
    more |= {name: value for name in EXTRA if (value := getattr(settings, name)) is not None}
    return Threat(norm, eps, box, allowed, **more)


def inputs(model: nn.Module, data: Data, limit: Limit) -> tuple[Tensor, Tensor, Tensor]:
    """The ``limit`` test images x, in the model's own float type, their labels y and their numbers, on its device."""
    first = next((p for p in model.parameters() if p.is_floating_point()), None)
    device, dtype = (first.device, first.dtype) if first is not None else (torch.device("cpu"), torch.float32)
    if dtype not in (torch.float32, torch.float64):
        raise ValueError(f"the model is {dtype}: evaluate it in float32, by model.float() (a search may be in half)")
    part = data.sample("test", limit).to(device)
    x, y = part.batch(torch.arange(len(part), device=device))
    return x.to(dtype), y, part.ids


@dataclass(frozen=True, eq=False)
class Target:
    """A model to evaluate, with its data and the place of the result."""

    name: str
    """For tables."""
    model: nn.Module
    """In eval mode, on its device."""
    data: Data
    threat: Threat | None
    attacks: dict[str, Attack]
    settings: EvaluateSettings
    about: dict[str, Any]
    """The origin of the model: the head of the result."""
    place: Path
    """The folder for results."""
    stem: str = ""
    """Prefix of the names of result files."""
    config: dict[str, Any] = field(default_factory=dict)
    """A run's configuration."""
    foreign: bool = False
    """Whether the weights are from an external file."""
    origin: Path | None = None
    """A run's folder, which is not ``place`` for a network of the zoo or of the Hub."""
    asked: tuple[Path | str | None, ...] = ()
    """As `Named.asked`."""

    def chosen(self) -> Split:
        """The test images that the settings ask for, by the data's subset."""
        return self.data.sample("test", self.settings.limit)

    def test(self) -> tuple[Tensor, Tensor, Tensor]:
        """These images, as `inputs` gives them."""
        return inputs(self.model, self.data, self.settings.limit)

    def samples(self) -> dict[str, Any]:
        """Which images those are, for the record: see `described`."""
        return described(self.data, "test", self.chosen())


def load_target(
    target: str,
    *,
    model: str | None = None,
    data: str | Data | None = None,
    root: str | None = None,
    norm: Norm | None = None,
    eps: float | str | None = None,
    group: Group | None = None,
    side: int | None = None,
    inner: Inner | None = None,
    inner_eps: float | str | None = None,
    attacks: Sequence[str] | None = None,
    threats: Sequence[str] | None = None,
    which: str = "best",
    weights: str | None = None,
    key: str | None = None,
    convention: Convention | None = None,
    device: str = "auto",
    threads: Threads = None,
    limit: Limit = None,
    subset: Rule | None = None,
    seed: int | None = None,
    batch: int | None = None,
    channels_last: bool | Auto | None = None,
    folding: bool | None = None,
    allow_large_eps: bool = False,
    trust_code: bool = False,
    allow_long: bool = False,
) -> Target:
    """Load the target of an evaluation: a run folder, a weights file, zoo:name, hub:user/name or module:function.

    A run folder brings its network, data, threat and attacks; ``which`` and ``weights`` choose its weights. One that
    was trained from Python needs ``model`` (see `restore`) and, where it was trained on tensors, ``data`` (see
    `data_of`). The others need ``data``, and ``norm`` and ``eps`` unless the attacks have their own; their attacks are
    `STRONG` of the norm by default. ``threats`` are several at once, as `EvaluateSettings` has them, in the place of
    ``attacks``. A file needs ``model`` unless it says what it holds; ``key`` and ``convention`` are as `load_file`
    takes them, and where its network is more accurate under another usual convention a warning names that
    (`check_convention`). ``limit`` test images ("all": every one) are chosen by ``subset``, "stratified" or "first"
    (default: as the run, or stratified). ``threads`` sets those of torch on the CPU, "auto" as many as the network
    gains from. Numbers are the run's by default, or those of `EvaluateSettings`. ``trust_code``: let a run from another
    machine import the code that it names. FileNotFoundError or ValueError for anything that is missing, unknown,
    incompatible or without effect; Untrusted, before an import, where that needs ``trust_code``.
    """
    listed = None if attacks is None else tuple(attacks)
    # Attacks that are named replace a recipe's threats.
    together = (None if attacks is None else ()) if threats is None else tuple(threats)
    changes = {
        "norm": as_norm(norm, Norm), "eps": eps, "group": group, "side": side, "inner": inner, "inner_eps": inner_eps,
        "attacks": listed, "threats": together, "limit": limit, "seed": seed, "batch": batch,
        "channels_last": channels_last, "folding": folding,
        "allow_large_eps": allow_large_eps or None, "allow_long": allow_long or None,
    }  # fmt: skip
    given = {k: v for k, v in changes.items() if v is not None}
    check_either(attacks, threats, given)
    named, path = is_named(target), place_of(target)
    own = not named and is_own(target)
    check_threads(threads)
    with trust.fenced(*([target] if own else []), model, data, attacks, threats, trust_code=trust_code):
        network = Named(model, which, weights, key, convention or Convention())
        made = _found(str(path) if named else target, own, given, network, data, root)
    if named:
        # Its folder belongs to the package or to the Hub's cache.
        stem, about = re.sub(r"\W+", "-", target) + "-", {**made.about, "run": target}
        made = replace(made, name=target, place=Path(), stem=stem, about=about)
    if subset is not None:
        check_rule(subset)
        made = replace(made, data=replace(made.data, subset=subset))
    made = replace(made, model=made.model.to(pick_device(device)).eval(), asked=network.asked(target))
    if made.foreign:
        check_convention(target, made.model, *made.test()[:2], made.data.classes)
    if threads is not None:
        torch.set_num_threads(gaining(made.model, made.test()[0][:128]) if threads == "auto" else threads)
    return made


def _found(
    target: str, own: bool, given: dict[str, Any], named: Named, data: str | Data | None, root: str | None
) -> Target:
    """A run, or one of the user's ``own`` networks; ValueError for options that are for the other kind."""
    if not own:
        named.check_other(target)
        return _run(Path(target), given, named, data, root)
    named.check_file(target)
    return _other(target, given, named, data, root)


def data_of(config: dict[str, Any], run: Path, name: str | None = None, root: str | None = None) -> Data:
    """The data of a run, from ``root`` where that is given; ``name`` names those of a run that cannot, or replaces its
    builder: a data set of `SOURCES`, or module:function that returns data as `atent.data.from_tensors` does.

    ValueError without a name where one is needed, with one where none is, and for data of another form.
    """
    settings = recorded_data(config)
    if settings is not None:
        if name is not None:
            raise ValueError(f"--data {name} has no effect on {run}, whose own data are {settings.name}: omit it")
        return _as_trained(load_data(replace(settings, root=root) if root else settings), config, run)
    made = config.get("data") or {}
    builder, args = (made.get("builder"), made.get("builder_args") or {}) if name is None else (name, {})
    if builder is None:
        raise ValueError(
            f"{run} was trained on tensors, which are not saved: give --data module:function, a function"
            " that returns the data as atent.data.from_tensors does, or --data npz --root FILE"
        )
    found, about = built(builder, args, root), config["about"]["data"]
    for what, seen, wanted in (
        ("classes", found.classes, about["classes"]),
        ("inputs of shape", list(found.shape), list(about["shape"])),
        ("values in", folder.plain(found.box), list(about["box"])),
    ):
        if seen != wanted:
            raise ValueError(f"--data {builder} has {what} {seen}, {run} was trained with {wanted}: give its own data")
    return found


def _as_trained(data: Data, config: dict[str, Any], run: Path) -> Data:
    """The data of a run, with one line on stderr where a file is not the one that the run was trained with."""
    before = config["about"]["data"].get("files") or {}
    for name, entry in (data.about.get("files") or {}).items():
        if entry["sha256"] != before.get(name, entry)["sha256"]:
            once(f"{name} of {data.name} has a different SHA-256 than when {run} was trained: the data changed")
    return data


def _run(
    path: Path, given: dict[str, Any], named: Named, name: str | Data | None, root: str | None
) -> Target:  # fmt: skip
    if isinstance(name, Data):
        raise ValueError(f"data as an object has no effect on {path}: name it, for a run that brings none")
    note_unfinished(path)
    net, about, config = restore(path, which=named.which, weights=named.weights, model=named.model, key=named.key)
    data = data_of(config, path, name, root)
    # What was trained from Python is evaluated as a network without a recipe is.
    known = {"attacks": (), **(config.get("evaluate") or {}), **given}
    lists = {name: tuple(known.get(name, ())) for name in ("attacks", "threats")}
    settings = EvaluateSettings(**{**known, **lists})
    check_either(None, settings.threats, given)
    method = config["method"].get("threat")
    own = Threat(**{**method, "box": data.box}) if method else None
    threat = threat_of(own, data.box, settings)
    # A recipe's attacks are for its own norm.
    if "attacks" not in given and not (settings.attacks and _have_forms(settings.attacks, threat)):
        settings = replace(settings, attacks=strong(threat))
    _need_threat(path, threat, settings)
    attacks = attacks_of(settings, threat, data)
    if named.model is not None:
        check_output(net, data.shape, data.classes)
    head = {"run": path.name, "weights": str(named.weights or named.which), "epoch": about.get("epoch")}
    return Target(path.name, net, data, threat, attacks, settings, head, path, config=config, origin=path)


def strong(threat: Threat | None) -> tuple[str, ...]:
    """The attacks of `STRONG` for a threat."""
    return STRONG["linf" if threat is None else threat.norm]


def _have_forms(attacks: Sequence[str], threat: Threat | None) -> bool:
    """Whether each of the attacks without its own threat supports the norm."""
    names = [re.split(r"[^\w.:]", text.strip())[0] for text in attacks if "norm=" not in text]
    return threat is None or all(threat.norm in ATTACKS.find(name).norms for name in names)


def _need_threat(target: str | Path, threat: Threat | None, settings: EvaluateSettings) -> None:
    """Raise ValueError if neither the options nor the attacks define the threat."""
    if threat is None and not settings.threats and not all("eps=" in text for text in settings.attacks):
        missing = [f"--{name}" for name in ("norm", "eps") if getattr(settings, name) is None]
        raise ValueError(
            f"{' and '.join(missing)} missing: give the threat of {target}, such as --norm linf --eps 8/255"
        )


def _other(target: str, given: dict[str, Any], named: Named, data: str | Data | None, root: str | None) -> Target:
    if data is None:
        raise ValueError(
            f"--data is missing: give the data set of {target}, one of {', '.join(SOURCES)}, or your own as"
            " module:function"
        )
    settings = EvaluateSettings(**{"attacks": (), **given})
    loaded = data if isinstance(data, Data) else load_data(DataSettings(data, root))
    threat = threat_of(None, loaded.box, settings)
    if "attacks" not in given:
        settings = replace(settings, attacks=strong(threat))
    _need_threat(target, threat, settings)
    attacks = attacks_of(settings, threat, loaded)
    path, foreign = Path(target), False
    named.convention.check_box(loaded.box)
    if is_weights(path):
        net, about = load_file(
            path, named.model, classes=loaded.classes, shape=loaded.shape, convention=named.convention, key=named.key
        )
        head = {"weights": target, "model": named.model or about["model"]["name"], "epoch": about.get("epoch")}
        foreign = not about
        head |= {"input": read_back(net)} if named.convention != Convention() else {}
        place, stem = path.parent, f"{path.stem}-"
    else:
        if named.model is not None:
            raise ValueError(f"--model {named.model} has no effect on {target}: it is for a weights file")
        named.check_other(target)
        net, head = from_reference(target), {"model": target}
        place, stem = Path(), re.sub(r"\W+", "-", target) + "-"
    check_output(net, loaded.shape, loaded.classes, next((p.device for p in net.parameters()), "cpu"))
    return Target(target, net, loaded, threat, attacks, settings, head, place, stem, foreign=foreign)


def recipe_attacks(settings: EvaluateSettings, threat: Threat | None) -> list[Attack]:
    """The attacks of a recipe; ValueError names the field that holds them."""
    try:
        return [parse(text, threat, ATTACKS, allow_large_eps=settings.allow_large_eps) for text in settings.attacks]
    except ValueError as error:
        raise ValueError(f"evaluate.attacks: {error}") from None


def attacks_of(settings: EvaluateSettings, threat: Threat | None, data: Data) -> dict[str, Attack]:
    """The attacks of the settings by name: under their threats, or where they have none under ``threat``."""
    allowed = settings.allow_large_eps
    if settings.threats:
        made = several(settings.threats, data.box, shape=data.shape, allow_large_eps=allowed)
    else:
        made = labelled([parse(text, threat, ATTACKS, allow_large_eps=allowed) for text in settings.attacks])
    check_length(made, allowed=settings.allow_long)
    return made
