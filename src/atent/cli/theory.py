"""`atent theory`: the statements of the paper's theory, checked on a network."""

from __future__ import annotations

import sys
import typing
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from atent.cli import output
from atent.cli.parse import Flat, Name, Place, Real, Subset, arg
from atent.cli.target import NETWORK, InputOptions

if TYPE_CHECKING:
    from atent.experiments.results import Statement

_WHOLE = "the statements concern all samples together, which one process measures"
REFUSED = {"--shard": _WHOLE, "--merge": _WHOLE}
"""Options of other commands that this one does not support, with the reason."""


def theory(
    target: Annotated[tyro.conf.Positional[str], arg(NETWORK)],
    *,
    inputs: Annotated[InputOptions, Flat],
    data: Name = None,
    model: Name = None,
    root: Place = None,
    which: typing.Literal["best", "last"] = "best",
    limit: Annotated[int | typing.Literal["all"], arg("N|all")] = 50,
    subset: Subset = None,
    gamma: Annotated[float, arg("X")] = 10.0,
    temperature: Real = None,
    radius: Real = None,
    chains: Annotated[int, arg("N")] = 12,
    steps: Annotated[int, arg("N")] = 500,
    samples: Annotated[int, arg("N")] = 20_000,
    seed: Annotated[int, arg("N")] = 0,
    out: Place = None,
    quiet: bool = False,
    json: bool = False,
) -> int:
    """Check the statements of the paper's theory on a network and its data, with sample counts and error bars.

    Checks the lemma's constants, the normaliser, the gradients of both objectives, the sampler and its mixing,
    Entropy-SGD, PGD as ATENT without noise, and per-batch chains. Statements that the supplement misprints are given as
    printed and corrected. A check on samples is evidence, not a proof. Exit status: 0 success, 1 failure, 2 invalid
    usage.

    Parameters
    ----------
    target
        A run folder, a network as zoo:NAME or hub:USER/NAME, a weights file, or module:function that builds a network.
    data
        Data set, such as digits or mnist. Default: the run's.
    model
        Architecture of a weights file that does not record it.
    root
        Folder of the data. Default: the run's.
    which
        Weights to load: of the best or of the last epoch.
    limit
        Number of test images, at least 4, or all.
    subset
        How to select images if not all are used: stratified (in proportion to the classes) or first (in source order).
        Default: the run's.
    gamma
        Coefficient of the quadratic penalty of the density on images, in the paper's scaling (per unit of step size);
        above 0.
    temperature
        Temperature T of the density. Default: gamma radius^2 / d, at which the Gaussian part alone reaches the radius.
    radius
        l2 radius that samples should reach. Default: the run's eps (linf: times sqrt(d)), or 1.
    chains
        Chains per mean, at least 3.
    steps
        Recorded steps of each Metropolis-adjusted chain; unadjusted chains take six times as many.
    samples
        Points at which Lemma B.1 is checked.
    seed
        Seed of all random numbers.
    out
        File to write. Default: theory.json in the run folder; a number is appended if it exists. Figures are written
        beside it.
    quiet
        Print only results, warnings and errors: no progress, estimates or suggestions.
    json
        Print the result to standard output as a single JSON document; an error leaves it empty.
    """
    from atent.experiments.recipes import chains as recipes
    from atent.experiments.results import TheoryFile
    from atent.paper.theory import command as room
    from atent.progress import bar
    from atent.runs.manifest import write_json

    say = (lambda _part: None) if quiet else (lambda part: print(f"checking: {part}", file=sys.stderr, flush=True))
    # A place that cannot be written is refused before the chains.
    with output.json_alone(json) as emit, output.own(out=Path(out) if out is not None else None):
        with bar(1, "theory", enabled=not quiet):
            subject, found = room.of_run(
                target, data=data, model=model, root=root, which=which, limit=limit, subset=subset, gamma=gamma,
                temperature=temperature, radius=radius, chains=chains, steps=steps, samples=samples, seed=seed,
                recipes=recipes, say=say, convention=inputs.convention(),
            )  # fmt: skip
        shown = TheoryFile.from_json(found)
        _print_rows(shown.rows)
        print("\n".join(shown.summary()))
        for warning in found["warnings"]:
            print(f"warning: {warning}", file=sys.stderr)
        emit(found)
        place = subject.place / f"{subject.stem}{room.THEORY}"
        with nullcontext(Path(out)) if out is not None else output.free_file(place) as file:
            write_json(file, found)
        print(f"written: {', '.join(map(str, [file, *room.draw(found, file)]))}")
    return 0


def _print_rows(rows: list[Statement]) -> None:
    """Print one row per statement: the verdict, the figure and the reason."""
    from rich.table import Table

    table = Table(title_justify="left")
    for heading in ("", "statement and what was checked", "verdict", "figure, 95 %", "n"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        described = f"{row.claim}\n[dim]{row.checked.replace('[', '(').replace(']', ')')}[/dim]"
        why = "\n".join(part for part in (f"{row.what} {row.figure}" if row.figure else "", row.reason) if part)
        n = "" if row.n is None else f"{row.n:,}"
        table.add_row(row.statement, described, f"{row.verdict}\n[dim]{row.basis}[/dim]", why, n)
    output.print_table(table)
