"""`atent gate`: compares measured accuracies with required minimums, for continuous integration."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from atent.cli import output
from atent.cli.parse import Flat, Place, arg

if TYPE_CHECKING:
    from atent.experiments.gate import Limits, Verdict


@dataclasses.dataclass(frozen=True)
class GateOptions:
    """Required minimum accuracies."""

    min_robust: Annotated[str | None, arg("SHARE")] = None
    """Exit with 1 if the lower limit of the 95 % interval of the robust accuracy is below this fraction, such as
    0.4."""
    min_clean: Annotated[str | None, arg("SHARE")] = None
    """The same for clean accuracy."""
    min_certified: Annotated[str | None, arg("SHARE[@[NORM ]R]")] = None
    """The same for certified or verified accuracy, read from a finished certificate of the same weights; append a
    radius, or a norm and a radius, such as 0.5@8/255 or "0.5@l2 0.25". Default: those of the threat, or the only radius
    in its norm."""
    require: Annotated[str | None, arg("ATTACK")] = None
    """Exit with 2 unless the evaluation that --min-robust compares contains this attack, such as AutoAttack.
    "PGD" means PGD at any settings, "PGD(steps=20)" at these."""
    junit: Place = None
    """Also write the results to this file as JUnit XML."""
    annotations: bool = False
    """Also print the results as GitHub Actions annotations."""

    def limits(self, *, whole: bool = True) -> Limits:
        """The limits as numbers. Raises ValueError for a value that is not a fraction, for report options without a
        limit, and for limits on one shard of a measurement (not ``whole``)."""
        from atent.experiments.gate import limits

        found = limits(self.min_robust, self.min_clean, self.min_certified, self.require)
        for option, given in (("--junit", self.junit), ("--annotations", self.annotations)):
            if given and not found.given:
                raise ValueError(f"{option} needs a limit: give --min-robust, --min-clean or --min-certified")
        if found.given and not whole:
            raise ValueError("--min-... needs the complete evaluation, not a shard: give it with --merge")
        return found

    def report(self, verdicts: Sequence[Verdict]) -> bool:
        """Print and write the results; return whether all passed."""
        from atent.experiments import gate
        from atent.runs import write_atomic

        for verdict in verdicts:
            print(f"{'pass' if verdict.passed else 'FAIL'}  {verdict.text}")
        if self.annotations:
            print("\n".join(gate.github(verdicts)))
        if self.junit:
            write_atomic(Path(self.junit), gate.junit(verdicts))
        return all(verdict.passed for verdict in verdicts)


def gate(
    results: Annotated[tyro.conf.Positional[tuple[str, ...]], arg("RUN|FILE|zoo:NAME|hub:USER/NAME ...")],
    gates: Annotated[GateOptions, Flat],
    *,
    json: bool = False,
) -> int:
    """Compare measured accuracies with required minimums, without measuring again.

    The lower limit of the exact 95 % interval must reach the minimum. `atent evaluate` takes the same options and
    evaluates first. Exit status: 0 all pass, 1 at least one is below its minimum, 2 invalid usage, or an accuracy that
    was not measured.

    Parameters
    ----------
    results
        Run folders, and files of `atent evaluate` and `atent certify`. Of a run folder the evaluation counts
        that its report leads with, among the files evaluation*.json: the one by AutoAttack, unless another one under
        the same threat is lower and the two intervals are disjoint; without AutoAttack the one with the lowest upper
        limit.
    json
        Print the results to standard output as a single JSON document; an error leaves it empty.
    """
    from atent.experiments.recipe_files import UsageError

    asked = gates.limits()
    if not asked.given:
        raise UsageError("no limit given: use --min-robust, --min-clean or --min-certified")
    with output.json_alone(json) as emit, output.own(junit=Path(gates.junit) if gates.junit else None):
        verdicts = [verdict for result in results for verdict in _verdicts(result, asked)]
        passed = gates.report(verdicts)
        emit([{**dataclasses.asdict(v), "passed": v.passed} for v in verdicts])
    return 0 if passed else 1


def _verdicts(result: str, asked: Limits) -> list[Verdict]:
    """The results for one run folder or file."""
    from atent.experiments import gate
    from atent.experiments.results import CertificateFile, EvaluationFile
    from atent.report import collect
    from atent.runs.places import place_of

    path = place_of(result)
    evaluated: tuple[str, EvaluationFile] | None = None
    about: tuple[str | None, float | None] = None, None
    if path.is_dir():
        run = collect.read(path)
        if not isinstance(run, collect.Run):
            raise ValueError(f"{path} is not a run folder: give a folder that `atent train` wrote, or a result file")
        name, certified = run.name, gate.certificates(path)
        if run.leading is not None:
            evaluated = str(path / run.leading), run.evaluations[run.leading]
        about = gate.threat_of(run.config, evaluated and evaluated[1])
    else:
        found = gate.read(path)
        name = str(found.run or path)
        certified = {path: found} if isinstance(found, CertificateFile) else {}
        evaluated = (str(path), found) if isinstance(found, EvaluationFile) else None
    out = []
    if asked.robust is not None or asked.clean is not None:
        if evaluated is None:
            raise ValueError(f"{path} has no evaluation for --min-robust and --min-clean: run `atent evaluate` first")
        out += gate.of_evaluation(evaluated[1], asked, name, evaluated[0])
    return [*out, *gate.of_certificates(certified, asked, name, *about)]
