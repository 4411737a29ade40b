"""What the commands print and write: tables of accuracies, results as JSON, warnings, and files that never replace
earlier ones."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atent.cli.width import screen

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from atent.experiments.results import EvaluationFile, Part, UnionReport


@contextlib.contextmanager
def json_alone(wanted: bool) -> Iterator[Callable[[Any], None]]:
    """If JSON is ``wanted``, redirect everything printed to standard error, and at the end print the value given to the
    yielded function to standard output as one document; otherwise change nothing."""
    if not wanted:
        yield lambda _result: None
        return
    found: list[Any] = []
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield found.append
    finally:
        # A result whose file cannot be written is printed too.
        for result in found:
            print_json(result)


def print_json(result: Any) -> None:
    """Print a result as a JSON document."""
    from atent.runs import plain

    print(json.dumps(plain(result), indent=2, allow_nan=False))


def print_table(table: Any) -> None:
    """Print a rich table at the terminal's width, or at 80 columns if output is piped; wider cells are folded, but for
    intervals."""
    from rich.console import Console

    from atent.cli.narrow import fitted

    for column in table.columns:
        column.overflow = "fold"
    # A name of a class or a run may have brackets or colons, which are markup and emoji to rich.
    console = Console(width=screen(), markup=False, emoji=False)
    for part in fitted(table, screen()):
        console.print(part)


def lines(quiet: bool) -> Callable[[str], None]:
    """A function that prints lines on the progress of several runs to standard output, at once; silent if ``quiet``."""
    return (lambda line: None) if quiet else (lambda line: print(line, flush=True))


def warn(text: str) -> None:
    """Print a warning to standard error, in one line."""
    print(f"warning: {' '.join(text.split())}", file=sys.stderr)


def share(value: dict[str, Any]) -> str:
    """An accuracy with its interval."""
    from atent.stats import percent

    return percent(value)


def accuracies(models: dict[str, EvaluationFile]) -> None:
    """Print accuracies with their intervals, one row per attack and one column per model."""
    from rich.table import Table

    from atent.experiments.comparison import attributed, caveat_of, remarks

    first = next(iter(models.values()))
    # A table's own title breaks at the width of the table.
    print(f"{first.data.name}, test images: {first.data.text}, {', '.join(first.threats)}")
    table = Table()
    table.add_column("accuracy, 95 % interval")
    for name in models:
        table.add_column(name, justify="right")
    cascade = len(models) == 1 and first.cascade
    if cascade:
        table.add_column("attacked", justify="right")
        table.add_column("seconds", justify="right")
    table.add_row("clean", *(found.clean.text for found in models.values()))
    for attack, result in first.attacks.items():
        if cascade:
            for part, inner in result.parts.items():
                table.add_row(f"  after its {part}", *_cells(inner), style="dim")
            table.add_row(f"after {attack}", *_cells(result))
        else:
            table.add_row(attack, *(found.attacks[attack].robust.text for found in models.values()))
    if len(first.attacks) > 1 and len(first.threats) == 1 and not cascade:
        table.add_row("worst of these", *(found.worst.text for found in models.values()), style="bold")
    print_table(table)
    for name, found in models.items():
        if found.last:
            best, end = (f"epoch {e.epoch} {100 * e.worst.value:.1f} %" for e in (found, found.last))
            print(f"{name}, worst case over attacks: best {best}, last {end}")
        if found.hint:
            print(f"hint: {found.hint}")
        if found.union is not None:
            print_union(found.union, name if len(models) > 1 else "")
    for line in (*attributed({name: remarks(found.attacks) for name, found in models.items()}), caveat_of(first)):
        if line:
            print(line)


def print_union(found: UnionReport, name: str = "") -> None:
    """Print robust accuracy per threat and for the union, and which images each threat fools."""
    from rich.table import Table

    print(f"\n{name + ': ' if name else ''}several threats at once, n = {found.n:,}, {found.clean.k:,} correct")
    accuracy, overlap = Table(), Table()
    for heading in ("threat", "robust, 95 % interval", "fools", "fooled by no other"):
        accuracy.add_column(heading, justify="left" if heading == "threat" else "right")
    overlap.add_column("threat")
    for threat in found.threats:
        overlap.add_column(threat, justify="right")
    for threat, result in found.threats.items():
        broken = found.broken[threat]
        accuracy.add_row(threat, result.robust.text, f"{broken[threat]:,}", f"{result.alone:,}")
        overlap.add_row(threat, *(f"{k:,}" for k in broken.values()))
    accuracy.add_row("every threat (union)", found.worst.text, f"{found.clean.k - found.worst.k:,}", style="bold")
    accuracy.add_row("average", found.average.percent)
    print_table(accuracy)
    print("overlap: of the images that the row fools, the number that the column also fools")
    print_table(overlap)


def _cells(result: Part) -> tuple[str, str, str]:
    return result.robust.text, f"{result.attacked:,}", f"{result.seconds:.1f}"


def threads(asked: int | str | None) -> None:
    """Print the number of CPU threads that the measurement chose, if it was requested."""
    if asked == "auto":
        import torch

        from atent.threads import cores

        print(f"threads {torch.get_num_threads()} of {cores()} cores")


def refuse_taken(path: Path, option: str) -> None:
    """Raise FileExistsError if ``path`` exists."""
    if path.exists():
        raise FileExistsError(f"{path} exists: choose another {option}; earlier results are never overwritten")


def check_ending(path: Path | None, option: str, *endings: str) -> None:
    """Raise ValueError, before the computation, for a file that an option names with none of the ``endings``."""
    if path is not None and path.suffix not in endings:
        raise ValueError(f"{option} {path}: the name must end in {' or '.join(endings)}")


@contextlib.contextmanager
def own(**given: Path | None) -> Iterator[None]:
    """Reserve the files that options name for this command inside the block; ``given`` maps options to files, or None.

    The rule of every option that names a result: missing folders in its path are made, and those that stay empty
    removed; a path that cannot be written is refused before the computation. Raises FileExistsError for an existing
    file, InUse if another command has reserved it, and OSError as `atent.runs.locks.held`.
    """
    from atent.runs.locks import held, lock_of

    with contextlib.ExitStack() as stack:
        for option, path in given.items():
            if path is not None:
                refuse_taken(path, f"--{option}")
                stack.enter_context(held(lock_of(path), "write"))
                refuse_taken(path, f"--{option}")
        yield


@contextlib.contextmanager
def free_file(path: Path) -> Iterator[Path]:
    """Reserve an empty file for this command: ``path``, or the same name with the first free number. Earlier results
    are never overwritten; a file that is still empty at the end of the block is removed."""
    from atent.runs.files import reserved

    file = reserved(path)
    try:
        yield file
    finally:
        with contextlib.suppress(FileNotFoundError):
            if file.stat().st_size == 0:
                file.unlink()


def save_figure(figure: Figure, path: Path, *, reserved: bool = False) -> Path:
    """Save a figure to a `free_file`, or to ``path`` itself where an option has reserved it."""
    from atent import plots

    with contextlib.nullcontext(path) if reserved else free_file(path) as file:
        plots.save(figure, file)
    return file
