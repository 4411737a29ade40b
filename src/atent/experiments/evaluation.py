"""Evaluation of a model on a test set, and its summary as text."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from atent import runs as folder
from atent.attacks import Attack
from atent.attacks.spec import show, spell
from atent.checks import Settings
from atent.data import Data
from atent.data.described import described
from atent.distributed import alone, current
from atent.distributed.shards import Shard
from atent.evaluate import Evaluation, checked, evaluate, masking_checks, sweep, union
from atent.evaluate.craft import craft
from atent.evaluate.evaluation import costs, depends_on, radii_costs
from atent.evaluate.hints import Hints
from atent.evaluate.masking import CHECKS
from atent.evaluate.samples import Checked
from atent.evaluate.search import resolve
from atent.evaluate.sweep import at_radii
from atent.experiments.partial_files import beside, seen_from, unfinished
from atent.experiments.results import EvaluationFile
from atent.experiments.studies import Studies, run_studies
from atent.experiments.target import EvaluateSettings, Target, inputs
from atent.precision import SearchDtype
from atent.probe import Auto
from atent.progress import bar
from atent.runs.foreign import begins_with_file
from atent.runs.origin import commit_of
from atent.threat import Threat


def evaluate_model(
    model: nn.Module,
    data: Data,
    attacks: Mapping[str, Attack],
    settings: EvaluateSettings,
    *,
    threat: Threat | None = None,
    check_inputs: bool = True,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluate on the test images that the settings ask for, each attack alone; plain values with provenance.

    ``threat`` is that of the settings' checks, ``check_inputs`` as in `Hints`. Ranks that call this together, with
    the same network, share the batches.
    """
    x, y, ids = inputs(model, data, settings.limit)
    formats: dict[str, Any] = {"channels_last": settings.channels_last, "folding": settings.folding}
    # Ranks could choose differently.
    last = alone(lambda: resolve(model, x, search_dtype=None, **formats))[1]
    hints = Hints(check_inputs, data.about.get("class_names"))
    given = how(settings) | {"channels_last": last, "world": current(), "hints": hints}
    each = costs(attacks, False)
    with bar(len(x), "test", enabled=progress, costs=each) as advance:
        found = evaluate(model, x, y, attacks, ids=ids, cascade=False, advance=advance, **given)
    content = _measured(data, settings, found)
    if settings.checks and threat is not None:
        boxes = {threat.box} | {a.threat.box for a in attacks.values()}
        known, against = checked(model, x, y, ids, boxes), threat
        content["checks"] = alone(lambda: _masking(model, known, against, attacks, settings, progress))
    return {**content, "provenance": folder.provenance(seed=settings.seed, device=x.device)}


@dataclass(frozen=True)
class Request(metaclass=Settings):
    """What an evaluation of a target measures, beside its attacks."""

    cascade: bool = True
    """Each attack on the samples that the earlier ones left; where the target's settings have several threats, within
    each threat."""
    radii: tuple[float | str, ...] = ()
    """Radii of `sweep`."""
    checks: bool = False
    """Run `masking_checks`, also where the target's settings do not ask for them."""
    studies: Studies = field(default_factory=Studies)
    """Frequency bands, corruptions, flip rates, a Fourier map."""
    search_dtype: SearchDtype | None = None
    """Precision in which the attacks search; default: the network's own."""


def evaluate_target(
    target: Target,
    request: Request | None = None,
    *,
    partial: Path | None = None,
    blocks: bool = False,
    progress: bool = True,
) -> EvaluationFile:
    """The content of evaluation.json: what `evaluate` finds, and what the ``request`` adds: the rows of `sweep` as
    ``sweep``, the checks as ``checks``, each study by its name. Where the settings have several threats, ``union`` is
    the report on all.

    ``partial`` names a file from which a killed evaluation resumes, as `unfinished_evaluation` gives it; the sweep and
    each study have another beside it. ``blocks`` is that of `evaluate`, from `atent.experiments.shards.merging`. Ranks
    that call this together share the batches, and each gets the content that one process would find. Raises as these
    functions do.
    """
    model, attacks, settings, request = target.model, target.attacks, target.settings, request or Request()
    radii, checks = request.radii, request.checks or settings.checks
    check_request(target, replace(request, checks=checks))
    known = samples(target, checks)
    given = how(settings) | {"search_dtype": request.search_dtype, "blocks": blocks, "world": current()}
    parts = [partial, beside(partial, "sweep")] if partial else [None, None]
    cascaded = chain(target, request.cascade)
    each = costs(attacks, cascaded)
    with bar(len(known.x), "test", enabled=progress, costs=each) as advance:
        found = evaluate(
            model, known, None, attacks, cascade=cascaded, resume=parts[0], hints=_hints(target), advance=advance,
            **given,
        )  # fmt: skip
    content = {**target.about, **_measured(target.data, settings, found)}
    if radii:
        each = radii_costs(attacks, radii)
        with bar(len(known.x), "radii", enabled=progress, costs=each) as advance:
            content["sweep"] = sweep(model, known, None, attacks, radii, resume=parts[1], advance=advance, **given)
    if checks and target.threat is not None:
        threat = target.threat
        content["checks"] = alone(lambda: _masking(model, known, threat, attacks, settings, progress))
    content |= run_studies(request.studies, target, known, partial=partial, progress=progress)
    content["provenance"] = folder.provenance(seed=settings.seed, device=known.x.device)
    return EvaluationFile.from_json(content)


def _hints(target: Target) -> Hints:
    """What the hint of a target's evaluation considers, and its words."""
    hints = Hints(_may_differ(target), target.data.about.get("class_names"))
    # Advice on a training has no effect on weights of others.
    trained = target.origin is not None and target.origin == target.place
    return hints if trained else replace(hints, advice="")


def _may_differ(target: Target) -> bool:
    """Whether the network may expect other inputs than those of the data: not where a training of this library made
    its weights, unless that began with the weights of a file."""
    if target.origin is not None and target.about["weights"] in ("best", "last"):
        return begins_with_file(target.config)
    return target.foreign or target.origin is not None or "weights" not in target.about


def measured(target: Target, search_dtype: SearchDtype | Auto | None) -> tuple[Target, SearchDtype | None]:
    """The target and the precision of its search with "auto" resolved on this machine, measured once: see
    `atent.evaluate.search.resolve`."""
    settings = target.settings
    # Ranks could choose differently.
    dtype, last = alone(
        lambda: resolve(
            target.model, target.test()[0][:64], search_dtype=search_dtype, channels_last=settings.channels_last,
            folding=settings.folding,
        )
    )  # fmt: skip
    return replace(target, settings=replace(settings, channels_last=last)), dtype


@contextlib.contextmanager
def unfinished_evaluation(target: Target, place: Path, request: Request) -> Iterator[Path]:
    """The ``partial`` of `evaluate_target` with this request for a result at ``place``: see `unfinished`, whose kind,
    an evaluation, it is."""
    # The other parts of the request are in the description of the evaluation.
    more = {"radii": [str(r) for r in request.radii], "checks": request.checks, **request.studies.about}
    about = about_evaluation(target, request)
    with unfinished(place, "evaluation", about, network=network_of(target, place), **more) as partial:
        yield partial


def network_of(target: Target, place: Path) -> list[str | None]:
    """The network that a command names, whatever its weights are now: see `Named.asked`.

    Files and folders are relative to the folder of the result ``place``, so that all may be moved together.
    """
    return [seen_from(place, each) if isinstance(each, Path) else each for each in target.asked]


def about_evaluation(target: Target, request: Request) -> dict[str, Any]:
    """The inputs that the results of an evaluation depend on: see `atent.evaluate.evaluation.depends_on`."""
    return depends_on(
        target.model, samples(target, request.checks), target.attacks, cascade=chain(target, request.cascade),
        search_dtype=request.search_dtype, **{k: v for k, v in how(target.settings).items() if k != "batch"},
    )  # fmt: skip


def samples(target: Target, checks: bool) -> Checked:
    """The target's test images, checked against the boxes of the threats."""
    boxes = {a.threat.box for a in target.attacks.values()}
    if checks and target.threat:
        boxes.add(target.threat.box)
    return checked(target.model, *target.test(), boxes)


def chain(target: Target, cascade: bool) -> bool | Literal["threat"]:
    """The cascade of `evaluate`: within each threat, where the settings have several."""
    return "threat" if cascade and target.settings.threats else cascade


def _masking(
    model: nn.Module, known: Checked, threat: Threat, attacks: Mapping[str, Attack], settings: EvaluateSettings,
    progress: bool,
) -> list[dict[str, Any]]:  # fmt: skip
    """The result of `masking_checks` with the most expensive attack of the threat."""
    own = [a for a in attacks.values() if a.threat == threat]
    strongest = max(own, key=lambda attack: attack.passes, default=None)
    with bar(len(CHECKS), "checks", enabled=progress) as advance:
        made = masking_checks(
            model, known, None, threat, attack=strongest, seed=settings.seed, batch=settings.batch, advance=advance
        )  # fmt: skip
    return [asdict(check) for check in made]


def check_request(target: Target, request: Request) -> None:
    """Raise ValueError, before the computation, for checks without a finite threat, for radii that cannot be swept and
    for studies of what the target is not."""
    radii, checks = request.radii, request.checks
    if checks and target.threat is None:
        raise ValueError("the checks need a threat: give --norm and --eps")
    if checks and target.threat is not None and target.threat.eps == math.inf:
        raise ValueError("the checks need a finite eps, got inf: give --eps")
    norms = sorted({a.threat.norm for a in target.attacks.values()})
    if radii and len(norms) > 1:
        raise ValueError(f"--radius needs a single norm, and the attacks have {' and '.join(norms)}: omit some")
    if radii:
        for attack in at_radii(target.attacks, radii).values():
            attack.threat.check_eps(target.data.shape)
    request.studies.check(target)


def how(settings: EvaluateSettings) -> dict[str, Any]:
    """Keyword arguments of `evaluate` from the settings."""
    names = ("seed", "batch", "channels_last", "folding")
    return {name: getattr(settings, name) for name in names}


def _measured(data: Data, settings: EvaluateSettings, found: Evaluation) -> dict[str, Any]:
    """The content of evaluation.json for what was found."""
    about = described(data, "test", data.sample("test", settings.limit))
    return {
        "data": {**about, "class_names": data.about.get("class_names")},
        **found.to_json(),
        **({"union": union(found).to_json()} if settings.threats else {}),
    }


def _with_decimals(threat: Threat) -> str:
    """A threat as text, with the decimals of a radius that is shown as a fraction."""
    text, eps = show(threat), f"{float(threat.eps):.6g}"
    return text if eps in text.split() else f"{text} (eps {eps})"


def summary(found: EvaluationFile) -> list[str]:
    """The context of a robust accuracy, one line each: threat, samples, both accuracies, versions, seed."""
    about = found.provenance
    threats = {name: attack.threat.threat() for name, attack in found.attacks.items()}
    shown = dict.fromkeys(_with_decimals(t) for t in threats.values())
    device = about["device"] + (f" ({about['device_name']})" if about["device_name"] != about["device"] else "")
    lines = [
        f"threat   {', '.join(shown) or 'none'}",
        f"samples  {found.data.name}, test images: {found.data.text}",
        f"clean    {found.clean.text}",
    ]
    if len({(t.norm, t.eps, *t.extra().items()) for t in threats.values()}) == 1:
        lines.append(f"robust   {found.worst.text} under the worst of {', '.join(threats)}")
    if found.union is not None:
        lines.append(f"robust   {found.worst.text} to all of {', '.join(found.union.threats)}")
    how = [f"in {found.search_dtype}"] if found.search_dtype else []
    how += [f"with {found.folded} batch norms folded"] if found.folded else []
    searched = f", search {' '.join(how)}" if how else ""
    return [
        *lines,
        f"version  atent {about['version']}{commit_of(about)}; torch {about['torch']} on {device}{searched}",
        f"seed     {found.seed}",
    ]


def adversarial(
    target: Target, *, search_dtype: SearchDtype | None = None, progress: bool = True, shard: Shard | None = None
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The target's one attack on its test images, or a shard of them: the tensors of `craft`, and what they are, as
    plain values."""
    (name, attack), x, y, ids = next(iter(target.attacks.items())), *target.test()
    given = how(target.settings) | {"search_dtype": search_dtype, "shard": shard}
    with bar(len(x), name, enabled=progress) as advance:
        made = craft(target.model, x, y, attack, ids=ids, advance=advance, **given)
    return made, about_adversarial(target, search_dtype)


def about_adversarial(target: Target, search_dtype: SearchDtype | None = None) -> dict[str, Any]:
    """The description of the adversarial images of the target's attack, as plain values."""
    (attack,) = target.attacks.values()
    device = target.test()[0].device
    return {
        **target.about,
        "data": target.samples(),
        "attack": spell(attack),
        "threat": {**attack.threat.plain(), "eps": str(attack.threat.eps)},
        **({"search_dtype": search_dtype} if search_dtype else {}),
        "provenance": folder.provenance(seed=target.settings.seed, device=device),
    }
