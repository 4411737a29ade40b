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
from atent.docstrings import Documented
from atent.evaluate.case import begun, in_order
from atent.evaluate.case import depends_on as depends_on
from atent.evaluate.hints import Hints
from atent.evaluate.outcomes import bits
from atent.evaluate.samples import Checked
from atent.fields import check_flag
from atent.messages import deprecated
from atent.precision import SearchDtype, without_callers_modes
from atent.probe import Auto
from atent.progress import Advance
from atent.stats import percent, share

SCHEMA_VERSION = 2
"""Version of evaluation.json."""
_LATER = ("folded", "fooled_as")


@dataclass(frozen=True)
class Evaluation(metaclass=Documented):
    """Clean and robust accuracy of a model on n samples: the content of evaluation.json.

    A share is {"value", "low", "high", "k", "n"} with a 95 % interval.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import PGD
    >>> from atent.evaluate import Evaluation, evaluate
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> x, y = torch.rand(6, 1, 4, 4), torch.tensor([0, 1, 2, 0, 1, 2])
    >>> found = evaluate(model, x, y, [PGD(Threat("linf", 0.1), steps=3)])
    >>> found.worst["k"] <= found.clean["k"], Evaluation.from_json(found.to_json()) == found
    (True, True)
    """

    n: int
    """Number of samples."""
    seed: int
    """Seed of the random numbers."""
    clean: dict[str, Any]
    """Share of the samples classified correctly."""
    worst: dict[str, Any]
    """Share of the samples that are classified correctly without an attack and under every attack."""
    attacks: dict[str, dict[str, Any]]
    """By name, in the order in which they ran: attack (as text), threat, settings; code, hashes of the files that
    define an attack of the user; attacked, the number of samples that were attacked; robust, the share of all n that
    remain correctly classified after it (in a cascade after it and those before it, otherwise after it alone); fooled
    (ids); remarks: what the attack does instead where the model has fewer classes than it needs, and NaN or infinite
    input gradients that its search met; distance (q10, median and q90 over the fooled samples, in the threat's norm;
    None without any), forwards, backwards, seconds. A composite attack has parts: the same keys from attacked on, by
    name of the part, each on the samples that are robust to the parts before it."""
    wrong: list[int]
    """Ids of the samples that are misclassified without an attack."""
    cascade: bool | Literal["threat"] = False
    """Whether each attack had only the samples that were robust to those before it; "threat": to those before it of its
    own threat."""
    search_dtype: str | None = None
    """Precision in which the attacks searched; verdicts are in the model's own precision."""
    folded: int = 0
    """Batch norms that were folded in the copy of the model that was searched; verdicts are of the model itself."""
    hint: str | None = None
    """One line on a mistake that the results suggest."""
    outcomes: dict[str, Any] = field(default_factory=dict)
    """One character per sample: ids ("0-499"), clean (1 correct, 0 misclassified), by attack f fooled, s robust, - not
    attacked; `atent.evaluate.outcomes.per_sample` reads it."""
    per_class: list[dict[str, Any]] = field(default_factory=list)
    """For each class that has samples, in order: class, n (its samples), clean and worst (shares of these n)."""
    fooled_as: list[dict[str, Any]] = field(default_factory=list)
    """The pairs of classes that attacks confuse, most frequent first: class, predicted (for the first adversarial input
    that fools the model), and k of the n samples of the class. Samples that are misclassified without an attack are in
    no pair. Empty where a resume file of an earlier version has no classes."""
    schema_version: int = SCHEMA_VERSION
    """Version of the format."""

    def __str__(self) -> str:
        """A line for the clean accuracy, each attack and the worst case, in percent with 95 % intervals."""
        # After the last attack of a cascade the worst case is left.
        several, after = len(self.attacks) > 1, ""
        if several and self.cascade is True:
            several, after = False, "after "
        shares = {"clean": self.clean, **{f"{after}{name}": found["robust"] for name, found in self.attacks.items()}}
        if several:
            shares["worst of these"] = self.worst
        width = max(map(len, shares))
        lines = [f"accuracy of {self.n:,} samples, 95 % interval"]
        lines += [f"{name:{width}}  {percent(each)}" for name, each in shares.items()]
        lines += [f"{name}: {'; '.join(each['remarks'])}" for name, each in self.attacks.items() if each.get("remarks")]
        return "\n".join(lines + ([f"hint: {self.hint}"] if self.hint else []))

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """A notebook cell shows the lines of `str`."""
        printer.text(str(self))

    @property
    def natural(self) -> dict[str, Any]:
        """The former name of `clean`."""
        deprecated("Evaluation.natural", "Evaluation.clean")
        return self.clean

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Evaluation:
        """From the result of `to_json`, or the content of an evaluation.json of this version; other keys are ignored.

        Raises
        ------
        ValueError
            In one line, for another version (`atent.experiments.migrate` reads older files), and for a missing key.
        """
        version = content.get("schema_version")
        if version != SCHEMA_VERSION:
            raise ValueError(
                f"the evaluation has schema version {version}, not {SCHEMA_VERSION}: use atent.experiments.migrate"
            )
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
    """How many passes over the samples `evaluate` makes: one for each attack, or for each part of a composite one.

    Parameters
    ----------
    attacks
        Attacks in a list or by name.

    Returns
    -------
    int
        The number of passes; ``advance`` of `evaluate` reports n samples for each.

    Examples
    --------
    >>> from atent import Threat
    >>> from atent.attacks import FGSM, AutoAttack
    >>> from atent.evaluate import rounds
    >>> threat = Threat("linf", "8/255")
    >>> rounds([FGSM(threat)]), rounds([FGSM(threat), AutoAttack(threat)])
    (1, 5)
    """
    each = attacks.values() if isinstance(attacks, Mapping) else attacks
    return sum(len(attack.parts()) or 1 for attack in each)


def costs(attacks: Mapping[str, Attack], cascade: bool | Literal["threat"]) -> list[int]:
    """The most passes that a sample can cost in each of the `rounds`, in the order in which `evaluate` runs them."""
    ordered = in_order(attacks, cascade) if cascade else attacks
    return [part.passes for attack in ordered.values() for part in (attack.parts().values() or [attack])]


def radii_costs(attacks: Mapping[str, Attack], radii: Sequence[float | str]) -> list[int]:
    """As `costs`, for `sweep`: each attack at all radii, then the next."""
    return [cost for name in attacks for cost in costs({name: attacks[name]}, False) * len(radii)]


@without_callers_modes()
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
    hints: Hints | None = None,
    world: World = SINGLE,
    advance: Advance | None = None,
) -> Evaluation:
    """Clean and robust accuracy: attack the correctly classified samples and count those that remain correct.

    A sample that is misclassified without an attack counts as fooled by all. Labels must be the true ones: an attack
    against predicted labels moves a misclassified sample away from its wrong class, perhaps into the right one, and
    counts errors on clean images as robust.

    Parameters
    ----------
    model
        From inputs to logits (n, classes); it is evaluated in eval mode and comes back as it was.
    x, y
        Inputs (n, ...) in the attacks' box and true labels (n,), tensors or arrays; a DataLoader of (x, y) as ``x``, or
        `Checked` samples, which contain y and ids.
    attacks
        Attacks by name, or in a list, which is named by `atent.attacks.spec.labelled`; {} for the clean accuracy alone.
    seed, ids
        They key the random numbers of every sample; sample numbers (n,), default: 0 .. n-1.
    batch
        Samples attacked at a time, 1 or more.
    resume
        JSON-lines file to which every batch is written. The same call resumes from it after an interruption, also with
        another batch size, and gives the Evaluation of an uninterrupted one. The file remains when all is done; then
        the same call reads all of it. It is for one model, inputs, labels, ids, attacks, seed, settings and version.
    cascade
        True: the attacks run in order of increasing cost (by `Attack.passes`, ties in the order given), and each has
        only the samples that remain correctly classified, so that the last figure is the worst case at the least cost.
        False: every attack has every correctly classified sample, and each figure is that of one attack alone.
        "threat": a cascade within each threat, which `union` needs. ``worst`` is the same in all, as the random numbers
        of a sample depend on its own streams.
    search_dtype
        "bfloat16", "float16" or, on CUDA, "tf32": attacks search in that precision; "auto": the fastest by a
        measurement (`atent.probe.probe`, less than 3 s; one line on stderr reports it). Default: the model's own.
        Verdicts never depend on it: clean and adversarial inputs are evaluated by the model itself in its own precision
        without autocast and TF32, and samples near the boundary are searched again in it, see `atent.evaluate.search`.
    channels_last
        Whether attacks search in that memory format, which affects only the speed; "auto": measured likewise.
    folding
        Whether attacks search on a copy of the model with its batch norms folded, where `atent.folded.fold` finds one
        that agrees. Verdicts are of the model itself.
    blocks
        True: samples that share a batch of the first attack stay together in later attacks, so that the verdict on a
        sample depends on its own block alone and `evaluate_shard` can evaluate some blocks without the others. False:
        the samples that remain are batched anew for every attack.
    hints
        What the hint of the result considers, and its words. Default: `Hints()`.
    world
        The ranks that share the batches, as `atent.distributed.current` gives them. Each calls this with the same
        arguments, writes a file of its own beside ``resume``, and gets the Evaluation that one process would find.
    advance
        Called with the number of samples that are done, n for each of `rounds`, and the running robust accuracy.

    Returns
    -------
    Evaluation
        Accuracies with 95 % intervals, and the outcome of every sample. A composite attack (one with `parts`) runs part
        by part, with the share that is robust after each; on a model without randomness the verdict on each sample is
        that of the attack as one.

    Raises
    ------
    ValueError
        In one line, for inputs, labels or outputs that cannot be evaluated, for no samples, for one attack twice, and
        for a resume file of another evaluation.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import PGD, Square
    >>> from atent.evaluate import evaluate
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> x, threat = torch.rand(6, 1, 4, 4), Threat("linf", 0.02)
    >>> found = evaluate(model, x, model(x).argmax(1), [PGD(threat, steps=3), Square(threat, queries=10)])
    >>> found.clean["value"], list(found.attacks)
    (1.0, ['PGD-3', 'Square-10'])
    """
    check_flag("blocks", blocks)
    case = begun(
        model, x, y, attacks, seed=seed, ids=ids, batch=batch, resume=resume, cascade=cascade,
        search_dtype=search_dtype, channels_last=channels_last, folding=folding, world=world, advance=advance,
    )  # fmt: skip
    trial, right = case.trial, case.right
    if blocks:
        trial = replace(trial, blocks=case.blocks())
    every = list(case.attacks.values())
    hint = trial.hint(case.predicted, hints or Hints(), every)
    results, outcomes, remaining, turned = trial.attacks(case.attacks, right, cascade, case.classes)
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
        hint=hint or trial.slopes(every, remaining),
        outcomes={"ids": spans(ids.tolist()), "clean": bits(right), "attacks": outcomes},
        per_class=_per_class(trial.y.cpu(), right, remaining),
        fooled_as=_fooled_as(trial.y.cpu(), turned, right & ~remaining),
    )


@without_callers_modes()
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
    """Attack the blocks of one shard: the part of `evaluate` with ``blocks`` that concerns them, and nothing else.

    Parameters
    ----------
    model, x, y, attacks
        As in `evaluate`.
    shard
        Which blocks.
    resume
        The file to which every batch is written; with the rows of all shards, `evaluate` with ``blocks`` attacks
        nothing again.
    cascade, **how
        As in `evaluate`. ``advance`` counts the samples of other shards as done, and its robust accuracy is among the
        correctly classified samples of this one.

    Returns
    -------
    str
        A character for each of all samples: 1 where it is correctly classified without an attack, else 0.

    Raises
    ------
    ValueError
        In one line, as `evaluate`, and for more shards than batches.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import FGSM
    >>> from atent.distributed.shards import Shard
    >>> from atent.evaluate import evaluate_shard
    >>> model, x = torch.nn.Linear(4, 3), torch.rand(6, 4)
    >>> attacks, y = [FGSM(Threat("linf", 0.1))], model(x).argmax(1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     evaluate_shard(model, x, y, attacks, Shard(0, 2), resume=Path(folder) / "rows.jsonl", batch=2)
    '111111'
    """
    case = begun(model, x, y, attacks, cascade=cascade, resume=resume, **how)
    trial, right = case.trial, case.right
    shard.check(len(right), trial.batch)
    own = torch.zeros_like(right)
    # Where the model misclassifies many samples, there may be fewer blocks than shards.
    chosen = shard.of(case.blocks())
    for block in chosen:
        own[block] = True
    replace(trial, blocks=tuple(chosen), own=int(own.sum())).attacks(case.attacks, own, cascade, case.classes)
    return bits(right)


def _per_class(y: Tensor, right: Tensor, remaining: Tensor) -> list[dict[str, Any]]:
    rows = []
    for label in y.unique().tolist():
        own = y == label
        n = int(own.sum())
        shares = {name: share(int(flags[own].sum()), n) for name, flags in (("clean", right), ("worst", remaining))}
        rows.append({"class": label, "n": n, **shares})
    return rows


def _fooled_as(y: Tensor, turned: Tensor, fooled: Tensor) -> list[dict[str, Any]]:
    if bool((turned[fooled] < 0).any()):  # rows of an earlier version have no classes, and a part of them misleads
        return []
    # The second prediction of a model with random numbers may be correct.
    fooled = fooled & (turned != y)
    pairs, counts = torch.stack([y[fooled], turned[fooled]], 1).unique(dim=0, return_counts=True)
    sizes = dict(zip(*(each.tolist() for each in y.unique(return_counts=True))))
    rows = [
        {"class": label, "predicted": predicted, "k": k, "n": sizes[label]}
        for (label, predicted), k in zip(pairs.tolist(), counts.tolist())
    ]
    return sorted(rows, key=lambda row: (-row["k"], row["class"], row["predicted"]))
