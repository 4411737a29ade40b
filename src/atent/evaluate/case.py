"""The checked arguments of an evaluation: attacks by name and in order, samples, and clean predictions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor, nn

from atent.attacks.base import Attack
from atent.attacks.spec import check_names, labelled
from atent.checks import check_number, check_seed
from atent.distributed import SINGLE, World
from atent.evaluate.answers import answers
from atent.evaluate.ledger import Ledger, fingerprint
from atent.evaluate.samples import Checked, checked
from atent.evaluate.search import prepare, resolve, settings_of
from atent.evaluate.trial import Trial
from atent.fields import shown
from atent.guard import check_module, outside_inference
from atent.precision import SearchDtype
from atent.probe import Auto
from atent.progress import Advance
from atent.threat import Threat


@dataclass(frozen=True, eq=False)
class Case:
    """The checked arguments of an evaluation, and the model's predictions without an attack."""

    attacks: dict[str, Attack]
    """The attacks by name, in the order in which they run."""
    trial: Trial
    predicted: Tensor
    """The predicted classes (n,)."""
    right: Tensor
    """bool (n,), on the CPU: the sample is classified correctly."""
    classes: int
    """Number of the model's outputs."""
    search_dtype: SearchDtype | None
    """Precision in which the attacks search; None: the model's own."""

    def blocks(self) -> tuple[Tensor, ...]:
        """The positions of the correctly classified samples, in the batches of the first attack."""
        blocks: tuple[Tensor, ...] = self.right.nonzero().squeeze(1).split(self.trial.batch)
        return blocks


def begun(
    model: nn.Module, x: Tensor | Checked, y: Tensor | None, attacks: Any, *, seed: int = 0, ids: Tensor | None = None,
    batch: int = 250, resume: str | Path | None = None, cascade: bool | Literal["threat"] = True,
    search_dtype: SearchDtype | Auto | None = None, channels_last: bool | Auto = False, folding: bool = True,
    world: World = SINGLE, advance: Advance | None = None,
) -> Case:  # fmt: skip
    """The arguments of `evaluate`, checked, with its errors, and the clean predictions."""
    if attacks is None:
        raise ValueError(
            "attacks is missing: evaluate(model, x, y, [PGD(...)]), evaluate(model, loader, attacks=[PGD(...)]), or {}"
            " as attacks for the clean accuracy alone"
        )
    check_module(model)
    batch, seed = check_number("batch", batch, 1, whole=True), check_seed(seed)
    named = named_attacks(attacks)
    samples = checked(model, x, y, ids, {a.threat.box for a in named.values()})
    x, y, ids = samples.x, samples.y, samples.ids
    for attack in named.values():
        attack.threat.check_eps(x.shape[1:])
        attack.threat.check_samples(len(x))
    if not isinstance(cascade, bool) and not (isinstance(cascade, str) and cascade == "threat"):
        raise ValueError(f'cascade must be True, False or "threat", got {shown(cascade)}')
    if cascade:
        named = in_order(named, cascade)
    x, y = outside_inference(x), outside_inference(y)
    search_dtype, channels_last = resolve(
        model, x, search_dtype=search_dtype, channels_last=channels_last, folding=folding
    )
    search = prepare(model, x, search_dtype=search_dtype, channels_last=channels_last, folding=folding)
    settings: dict[str, Any] = {"seed": seed, "cascade": cascade}
    settings |= {"search_dtype": search_dtype, "channels_last": channels_last, "folding": folding}
    about = depends_on(model, samples, named, **settings) if resume is not None else None
    ledger = Ledger(resume, about, attacks=named, n=len(x), world=world)
    trial = Trial(search, x, y, ids, seed, batch, ledger, advance, world=world)
    predicted, classes = answers(model, x, y, batch, seed)
    return Case(named, trial, predicted, (predicted == y).cpu(), classes, search_dtype)


def depends_on(
    model: nn.Module, samples: Checked, attacks: Mapping[str, Attack], *, seed: int, cascade: bool | Literal["threat"],
    search_dtype: SearchDtype | None = None, channels_last: bool = False, folding: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """The first line of the ``resume`` file of `evaluate` with these arguments."""
    named = in_order(attacks, cascade) if cascade else attacks
    settings = {"seed": seed, "cascade": cascade, **settings_of(model, search_dtype, channels_last, folding)}
    return fingerprint(model, samples.x, samples.y, samples.ids, named, **settings)


def named_attacks(attacks: Any) -> dict[str, Attack]:
    """The attacks by name; ValueError for anything else."""
    several = isinstance(attacks, Mapping | list | tuple)
    odd = (
        [a for a in (attacks.values() if isinstance(attacks, Mapping) else attacks) if not isinstance(a, Attack)]
        if several
        else [attacks]
    )
    if odd:
        raise ValueError(f"attacks must be attacks in a list or by name, got {shown(odd[0])}: write [PGD(threat)]")
    named = dict(attacks) if isinstance(attacks, Mapping) else labelled(attacks)
    check_names(named)
    return named


def in_order(named: Mapping[str, Attack], cascade: bool | Literal["threat"]) -> dict[str, Attack]:
    """The attacks in order of increasing cost, within each threat where each has a cascade of its own."""
    threats: list[Threat] = [attack.threat for attack in named.values()]
    place = {threat: i for i, threat in reversed(list(enumerate(threats)))} if cascade == "threat" else {}
    return dict(sorted(named.items(), key=lambda item: (place.get(item[1].threat, 0), item[1].passes)))
