"""Studies of a target in addition to robust accuracy: frequency bands, corruptions, flip rates, a Fourier map."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from atent.attacks import ATTACKS, Attack
from atent.attacks.length import check_length
from atent.attacks.spec import parse, spell
from atent.attacks.transfer import load_source
from atent.checks import Settings
from atent.data.corruptions import CORRUPTIONS, DEFINITIONS, SEVERITIES, check_images, suited
from atent.data.corruptions.sequences import SEQUENCES
from atent.distributed import alone, current
from atent.distributed.shards import Shard
from atent.evaluate import (
    Bands,
    Checked,
    Corrupted,
    Flips,
    FourierMap,
    fourier_map,
    measure_bands,
    measure_corruptions,
    measure_flips,
)
from atent.evaluate.bands import FULL, checked_cut
from atent.evaluate.lines import Resume, ShardFile
from atent.experiments.partial_files import beside
from atent.experiments.results import BandReport, CorruptionReport, FlipReport, FourierReport, Mean, Result, Share
from atent.experiments.results.base import Adversary
from atent.experiments.results.studies import (
    BANDS_VERSION,
    CORRUPTIONS_VERSION,
    FLIPS_VERSION,
    FOURIER_VERSION,
    BandResult,
    CorruptionRow,
    FlipRow,
)
from atent.experiments.target import Target
from atent.models import check_output
from atent.progress import bar
from atent.stats import bounded_mean


@dataclass(frozen=True)
class Studies(metaclass=Settings):
    """Measurements in addition to robust accuracy."""

    bands: bool = False
    """Accuracy under each frequency band of an attack's perturbations alone."""
    band_attack: str = "PGD(steps=40)"
    """The attack of the bands, written as a call."""
    band_cut: int | None = None
    """First high frequency of the bands; default: a quarter of the image's side."""
    corruptions: bool = False
    """Errors under common corruptions at five severities."""
    flips: bool = False
    """Flip rates along sequences of slightly perturbed images."""
    reference: str | None = None
    """Reference network for mCE and mFR: a run folder or module:function."""
    fourier: bool = False
    """Errors under noise of each frequency."""
    fourier_eps: float | None = None
    """l2 norm of that noise in each channel; default: a root mean square of 0.1 per pixel."""

    @property
    def chosen(self) -> list[str]:
        """The selected studies, by their names in the result."""
        return [name for name in _REPORTS if getattr(self, name)]

    @property
    def about(self) -> dict[str, Any]:
        """What the results depend on, as plain values: the options, and the version of the corruptions."""
        return {"studies": asdict(self), **({"definitions": DEFINITIONS} if self.corruptions else {})}

    def check(self, target: Target) -> None:
        """Raise ValueError, before the computation, for what cannot be measured on the target, and for an option that
        has no effect."""
        for option, value, of in (
            ("--reference", self.reference, self.corruptions or self.flips),
            ("--band-attack", None if self.band_attack == Studies.band_attack else self.band_attack, self.bands),
            ("--band-cut", self.band_cut, self.bands),
            ("--fourier-eps", self.fourier_eps, self.fourier),
        ):
            if value is not None and not of:
                wanted = {"--reference": "--corruptions or --flips", "--fourier-eps": "--fourier"}.get(
                    option, "--bands"
                )
                raise ValueError(f"{option} {value} has no effect without {wanted}: add it, or omit {option}")
        if not self.chosen:
            return
        check_images(target.data.shape)
        if self.bands:
            checked_cut(self.band_cut, *target.data.shape[1:])
            attack = self.attack(target)
            attack.threat.check_eps(target.data.shape)
            check_length({f"--band-attack {self.band_attack}": attack}, allowed=target.settings.allow_long)
        self.network(target)

    def attack(self, target: Target) -> Attack:
        """The attack whose perturbations are split; ValueError without a threat."""
        if target.threat is None and "eps=" not in self.band_attack:
            raise ValueError("--bands needs a threat: give --norm and --eps")
        return parse(
            self.band_attack, target.threat, ATTACKS, allow_large_eps=target.settings.allow_large_eps
        )  # fmt: skip

    def network(self, target: Target) -> nn.Module | None:
        """The reference network on the target's device; ValueError if it does not take the target's images."""
        if self.reference is None:
            return None
        try:
            net = load_source(self.reference).eval()
        except (FileNotFoundError, ValueError) as error:
            raise type(error)(f"--reference: {error}") from error
        like = next(target.model.parameters(), None)
        if like is not None:
            net = net.to(like.device, like.dtype)
        try:
            check_output(net, target.data.shape, target.data.classes, like.device if like is not None else "cpu")
        except ValueError as error:
            raise ValueError(f"--reference {self.reference}: {error}") from error
        return net


def run_studies(
    studies: Studies, target: Target, known: Checked, *, partial: Path | None = None, progress: bool = True
) -> dict[str, Any]:
    """The reports that are wanted, by name, as plain values.

    ``partial`` names the evaluation's file to resume from; each study has one beside it, with its name before the
    suffix. Where there is one, ranks that call this together share the batches.
    """
    found: dict[str, Any] = {}
    world = current()
    for name in studies.chosen:
        resume = beside(partial, name) if partial else None
        begun = time.perf_counter()
        if world.size > 1 and resume is not None:
            part = ShardFile(resume, Shard(world.rank, world.size), world.rank)
            study_shard(studies, name, target, known, part, progress=progress)
            world.wait()
        report = alone(lambda: _report(studies, name, target, known, resume, progress).to_json())  # noqa: B023
        found[name] = report | {"seconds": round(time.perf_counter() - begun, 3)}
    return found


def study_shard(
    studies: Studies, name: str, target: Target, known: Checked, part: ShardFile, *, progress: bool = True
) -> None:
    """Evaluate the batches of the study ``name`` in ``part``, and record their results in its file."""
    _asked(studies, name, target, known, part, progress)


def _report(
    studies: Studies, name: str, target: Target, known: Checked, resume: Path | None, progress: bool
) -> Result:  # fmt: skip
    found = _asked(studies, name, target, known, resume, progress)
    return _REPORTS[name](studies, target, len(known.x), found)


def _asked(studies: Studies, name: str, target: Target, known: Checked, resume: Resume, progress: bool) -> Any:
    """The result of the study."""
    reference = studies.network(target)
    h, w = target.data.shape[1:] if len(target.data.shape) == 3 else (0, 0)
    rounds = {
        "bands": 1, "corruptions": len(suited(target.data.shape)) * len(SEVERITIES) if studies.corruptions else 0,
        "flips": len(SEQUENCES), "fourier": h * w / max(len(known.x), 1),
    }  # fmt: skip
    how: dict[str, Any] = {"seed": target.settings.seed, "batch": target.settings.batch, "resume": resume}
    box = target.data.box
    with bar(round(rounds[name] * len(known.x)), name, enabled=progress) as advance:
        how["advance"] = advance
        if name == "bands":
            return measure_bands(target.model, known, None, studies.attack(target), cut=studies.band_cut, **how)
        if name == "fourier":
            return fourier_map(target.model, known, eps=studies.fourier_eps, box=box, **how)
        measure = measure_corruptions if name == "corruptions" else measure_flips
        return measure(target.model, known, reference=reference, box=box, **how)


def _bands(s: Studies, target: Target, n: int, found: Bands) -> BandReport:
    attack, shares = s.attack(target), found.shares()

    def kept(values: Any) -> Share:
        return Share.of(int(values.sum()), n)

    perturbed = len(next(iter(shares.values())))
    return BandReport(
        schema_version=BANDS_VERSION,
        n=n,
        seed=target.settings.seed,
        attack=spell(attack),
        threat=Adversary.of(attack.threat),
        cut=found.cut,
        clean=kept(found.right),
        full=kept(found.robust[FULL]),
        bands=[
            BandResult(
                name,
                kept(found.robust[name]),
                Mean.of(bounded_mean(each.tolist())) if perturbed > 1 else None,
                found.white[name],
            )
            for name, each in shares.items()
        ],
        perturbed=perturbed,
        spectrum=found.spectrum.tolist(),
    )


def _corruptions(s: Studies, target: Target, n: int, found: Corrupted) -> CorruptionReport:
    other = found.reference
    rows = [
        CorruptionRow(
            name,
            CORRUPTIONS[name].kind,
            severity,
            Share.of(int(found.wrong[i, j].sum()), n),
            float(found.distance[i, j]),
            None if other is None else Share.of(int(other[i, j].sum()), n),
        )
        for i, name in enumerate(found.names)
        for j, severity in enumerate(SEVERITIES)
    ]
    mce = None if other is None else found.mce()
    return CorruptionReport(
        schema_version=CORRUPTIONS_VERSION,
        n=n,
        seed=target.settings.seed,
        definitions=DEFINITIONS,
        clean_error=Share.of(int(found.clean_wrong.sum()), n),
        rows=rows,
        mean=Mean.of(found.mean_error()),
        left_out=[name for name in CORRUPTIONS if name not in found.names],
        reference=s.reference,
        ratios={} if other is None else dict(zip(found.names, found.ratios())),
        mce=None if mce is None else Mean.of(mce, math.inf),
    )


def _flips(s: Studies, target: Target, n: int, found: Flips) -> FlipReport:
    others = None if found.reference is None else type(found)(found.names, found.reference)
    rows = [
        FlipRow(
            name,
            SEQUENCES[name].ordered,
            len(SEQUENCES[name].amounts) - int(SEQUENCES[name].ordered),
            Mean.of(found.rate(i)),
            None if others is None else Mean.of(others.rate(i)),
        )
        for i, name in enumerate(found.names)
    ]
    mfr = None if others is None else found.mean_flip_rate()
    return FlipReport(
        schema_version=FLIPS_VERSION,
        n=n,
        seed=target.settings.seed,
        rows=rows,
        mean=Mean.of(found.mean_rate()),
        reference=s.reference,
        mfr=None if mfr is None else Mean.of(mfr, math.inf),
    )


def _fourier(s: Studies, target: Target, n: int, found: FourierMap) -> FourierReport:
    return FourierReport(
        schema_version=FOURIER_VERSION,
        n=n,
        seed=target.settings.seed,
        eps=found.eps,
        clean_error=Share.of(int(found.clean_wrong.sum()), n),
        errors=found.errors.tolist(),
    )


_REPORTS: dict[str, Callable[..., Result]] = {
    "bands": _bands, "corruptions": _corruptions, "flips": _flips, "fourier": _fourier,
}  # fmt: skip
"""Study -> its report, in the order in which they run."""
