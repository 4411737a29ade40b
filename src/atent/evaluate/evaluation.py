"""Clean and robust accuracy of a model on given samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from atent.attacks.base import Attack
from atent.data.described import spans
from atent.distributed import SINGLE, World
from atent.distributed.shards import Shard
from atent.evaluate.case import begun, in_order
from atent.evaluate.case import depends_on as depends_on
from atent.evaluate.outcomes import bits
from atent.evaluate.samples import Checked
from atent.messages import deprecated
from atent.precision import SearchDtype
from atent.probe import Auto
from atent.progress import Advance
from atent.stats import share

SCHEMA_VERSION = 2
"""Version of evaluation.json."""
_LATER = ("folded",)


@dataclass(frozen=True)
class Evaluation:
    """What evaluation.json holds of the model's accuracies; a share is {"value", "low", "high", "k", "n"} with a 95 %
    interval."""

    n: int
    seed: int
    clean: dict[str, Any]
    """Share of the samples classified correctly."""
    worst: dict[str, Any]
    """Share of the samples that are right on the clean input and under every attack."""
    attacks: dict[str, dict[str, Any]]
    """By name, in the order in which they ran: attack (as text), threat, settings; attacked, the number of samples that
    it met; robust, the share of all n that remain correctly classified after it (in a cascade after those before it
    too, otherwise after it alone); fooled (ids); remarks, where the model has fewer classes than the attack is made
    for: what it does instead; distance (q10, median and q90 over the fooled samples, in the threat's norm; None without
    any), forwards, backwards, seconds. A composite attack has parts: the same from attacked on, by name of the part,
    each on the samples that are robust to the parts before it."""
    wrong: list[int]
    """Ids of the samples that are misclassified without an attack."""
    cascade: bool | Literal["threat"] = False
    """Each attack met only the samples that were robust to those before it; "threat": to those of its own threat."""
    search_dtype: str | None = None
    """Precision in which the attacks searched; verdicts are in the model's own."""
    folded: int = 0
    """Batch norms that were folded in the copy of the model that was searched; verdicts are the model's own."""
    hint: str | None = None
    """One line on a mistake that the figures suggest."""
    outcomes: dict[str, Any] = field(default_factory=dict)
    """One character per sample: ids ("0-499"), clean (1 right, 0 wrong), by attack f fooled, s robust, - not tried;
    `atent.evaluate.outcomes.per_sample` reads it."""
    per_class: list[dict[str, Any]] = field(default_factory=list)
    """For each class that has samples, in order: class, n (its samples), clean and worst (shares of these n)."""
    schema_version: int = SCHEMA_VERSION

    @property
    def natural(self) -> dict[str, Any]:
        """The former name of `clean`."""
        deprecated("Evaluation.natural", "Evaluation.clean")
        return self.clean

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Evaluation:
        """From what `to_json` gave, or the content of an evaluation.json of this version, whose other keys are left
        out.

        Raises
        ------
        ValueError
            For another version (`atent.experiments.migrate` reads older files), and where a key is missing.
        """
        version = content.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(f"the evaluation has schema version {version}, not {SCHEMA_VERSION}: migrate it first")
        missing = [f.name for f in fields(cls) if f.name not in content and f.name not in _LATER]
        if missing:
            raise ValueError(f"the evaluation has no {', '.join(missing)}: give the content of an evaluation.json")
        return cls(**{f.name: content[f.name] for f in fields(cls) if f.name in content})

    def to_json(self) -> dict[str, Any]:
        """Plain values; an infinite eps becomes "inf", which `Threat` reads."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_finite(inner) for inner in value)
    return "inf" if value == float("inf") else value


def rounds(attacks: Mapping[str, Attack] | Sequence[Attack]) -> int:
    """How often `evaluate` goes over the samples: once for each attack, for a composite one once for each part."""
    each = attacks.values() if isinstance(attacks, Mapping) else attacks
    return sum(len(attack.parts()) or 1 for attack in each)


def costs(attacks: Mapping[str, Attack], cascade: bool | Literal["threat"]) -> list[int]:
    """The most passes that a sample can cost in each of `rounds`, in the order in which `evaluate` runs them."""
    ordered = in_order(attacks, cascade) if cascade else attacks
    return [part.passes for attack in ordered.values() for part in (attack.parts().values() or [attack])]


def evaluate(
    model: nn.Module,
    x: Tensor | Checked,
    y: Tensor | None = None,
    attacks: Mapping[str, Attack] | Sequence[Attack] | None = None,
    *,
    seed: int = 0,
    ids: Tensor | None = None,
    batch: int = 250,
    resume: str | Path | None = None,
    cascade: bool | Literal["threat"] = True,
    search_dtype: SearchDtype | Auto | None = None,
    channels_last: bool | Auto = False,
    folding: bool = True,
    blocks: bool = False,
    world: World = SINGLE,
    advance: Advance | None = None,
) -> Evaluation:
    """Attack the correctly classified samples and count those that remain so.

    ``x`` (n, ...) floats in the attacks' box, ``y`` (n,) true labels, tensors or arrays; a DataLoader of (x, y) may
    replace both, ``evaluate(model, loader, attacks=[...])``, and `Checked` samples x, y and ids. ``ids`` (n,) sample
    numbers (default 0 .. n-1), which key the random numbers together with ``seed``. A sample that is wrong without an
    attack counts as fooled by all. ``attacks`` maps names to attacks; a list is named by `labelled`. The model is
    evaluated in eval mode and comes back as it was.

    Labels must be the true ones: an attack against predicted labels pushes a misclassified sample away from its wrong
    class, perhaps into the right one, and counts errors on clean images as robust.

    With ``cascade`` the attacks run in order of increasing cost (by `Attack.passes`, ties in the order given), and only
    samples that remain correctly classified meet the next one: the last figure is the worst case, at the least cost.
    Without it every attack meets every correctly classified sample, and each figure is that of one attack alone.
    `worst` is the same in both, as every sample draws from its own streams. With ``cascade="threat"`` the attacks of
    each threat are a cascade of their own, which `union` needs to say which threat breaks what.

    A composite attack (one with `parts`) runs part by part, with the share that is robust after each; on a model
    without randomness the verdict on each sample is that of the attack as one.

    ``resume`` names a JSONL file: every batch is written there, and the same call, after a kill, resumes from it (the
    batch size may differ) to the Evaluation of an unbroken one. It stays when all is done; then the same call reads
    all of it. It is for one model, inputs, labels, ids, attacks, seed, settings and version.

    Attacks search on a copy of the model with its batch norms folded where `atent.folded.fold` finds one that agrees;
    ``folding=False``: on the model itself. ``search_dtype`` ("bfloat16", "float16", on CUDA "tf32") searches in low
    precision. Neither is ever the verdict: clean and adversarial inputs are evaluated by the model itself in its own
    type without autocast and TF32, and samples near the boundary are searched again in it, see
    `atent.evaluate.search`. ``channels_last`` is that of `Attack.run`: only speed. "auto" for one of the last two is
    measured on the samples, in less than 3 s (`atent.probe.probe`), and one line on stderr says what was chosen; it may
    differ from run to run, so neither is the default.

    With ``blocks`` the samples that meet the first attack in one batch stay together: later attacks have batches of
    what is left of each block, so that the verdict on a sample depends on its own block alone, and `evaluate_shard` can
    do some blocks without the others. Without, what is left of all batches is packed anew. ``world``: the ranks that
    share the batches, as `atent.distributed.current` gives them; each calls this with the same arguments, writes a file
    of its own beside ``resume``, and gets the Evaluation that one process would find.

    ``advance(samples, text)`` receives the progress, n samples for each of `rounds`, with the running robust accuracy.

    ValueError for inputs, labels or outputs that cannot be evaluated, for no samples, for one attack twice, and for a
    resume file of another evaluation.
    """
    case = begun(
        model, x, y, attacks, seed=seed, ids=ids, batch=batch, resume=resume, cascade=cascade,
        search_dtype=search_dtype, channels_last=channels_last, folding=folding, world=world, advance=advance,
    )  # fmt: skip
    trial, right = case.trial, case.right
    if blocks:
        trial = replace(trial, blocks=case.blocks())
    hint = trial.hint(case.predicted)
    results, outcomes, remaining = trial.attacks(case.attacks, right, cascade, case.classes)
    n, ids = len(trial.x), trial.ids
    return Evaluation(
        n=n,
        seed=trial.seed,
        clean=share(int(right.sum()), n),
        worst=share(int(remaining.sum()), n),
        attacks=results,
        wrong=ids.cpu()[~right].tolist(),
        cascade=cascade,
        search_dtype=case.search_dtype,
        folded=trial.search.folded,
        hint=hint,
        outcomes={"ids": spans(ids.tolist()), "clean": bits(right), "attacks": outcomes},
        per_class=_per_class(trial.y.cpu(), right, remaining),
    )


def evaluate_shard(
    model: nn.Module,
    x: Tensor | Checked,
    y: Tensor | None,
    attacks: Mapping[str, Attack] | Sequence[Attack],
    shard: Shard,
    *,
    resume: str | Path,
    cascade: bool | Literal["threat"] = True,
    **how: Any,
) -> str:
    """Attack the blocks of one shard: what `evaluate` with ``blocks`` does to them, and nothing else.

    Parameters
    ----------
    model, x, y, attacks, cascade, how
        As in `evaluate`.
    shard
        Which blocks.
    resume
        The file that gets every batch; from the rows of all shards `evaluate` with ``blocks`` computes nothing anew.

    Returns
    -------
    str
        A character for each of all samples: 1 where it is right without an attack.

    Raises
    ------
    ValueError
        In one line, as `evaluate`, and for more shards than batches.
    """
    case = begun(model, x, y, attacks, cascade=cascade, resume=resume, **how)
    trial, right = case.trial, case.right
    shard.check(len(right), trial.batch)
    own = torch.zeros_like(right)
    # Where the model is wrong often, there may be fewer blocks than shards.
    chosen = shard.of(case.blocks())
    for block in chosen:
        own[block] = True
    replace(trial, blocks=tuple(chosen)).attacks(case.attacks, own, cascade, case.classes)
    return bits(right)


def _per_class(y: Tensor, right: Tensor, remaining: Tensor) -> list[dict[str, Any]]:
    rows = []
    for label in y.unique().tolist():
        own = y == label
        n = int(own.sum())
        shares = {name: share(int(kept[own].sum()), n) for name, kept in (("clean", right), ("worst", remaining))}
        rows.append({"class": label, "n": n, **shares})
    return rows
