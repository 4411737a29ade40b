"""The commands. No logic: each reads its options, calls a room, and prints."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

_ABOUT = "Train networks that hold under attack, and measure how well they hold."


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed, 2 not understood. Errors are one line each."""
    args = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return 0
    if args[0] == "--version":
        from atent import __version__

        print(f"atent {__version__}")
        return 0
    name, rest = args[0], args[1:]
    if name not in COMMANDS:
        from atent.run import unknown

        return _fail(unknown("command", name, COMMANDS), 2)
    try:
        return COMMANDS[name][0](rest)
    except SystemExit as stop:
        return int(stop.code or 0)
    except KeyboardInterrupt:
        return _fail("interrupted: what was saved before stays as it was", 1)
    except BrokenPipeError:
        return 1
    except Exception as error:
        if debug:
            traceback.print_exc()
            return 1
        return _fail(*_told(error))


def _told(error: Exception) -> tuple[str, int]:
    """The message and the exit status of an exception."""
    failed = type(error).__name__ in ("Diverged", "Interrupted")
    expected = failed or isinstance(error, ValueError | OSError | ImportError)
    text = str(error) if expected else f"{type(error).__name__}: {error} (run again with --debug for the traceback)"
    bad_input = isinstance(error, ValueError | FileNotFoundError | FileExistsError | ImportError)
    return text or type(error).__name__, 2 if bad_input and not failed else 1


def _fail(text: str, status: int) -> int:
    for line in text.splitlines():
        print(f"atent: {line}", file=sys.stderr)
    return status


def _help() -> str:
    rows = "\n".join(f"  {name:<10} {about}" for name, (_, about) in COMMANDS.items())
    return (
        f"usage: atent COMMAND [OPTIONS]\n\n{_ABOUT}\n\ncommands:\n{rows}\n\n"
        "options:\n  --help     this text; `atent COMMAND --help` explains a command\n"
        "  --version  the version\n  --debug    a traceback instead of a one-line error\n\n"
        "examples:\n  atent train digits-linf-atent\n"
        "  atent train cifar10-l2-atent --method.steps 5 --data.limit 2000\n"
        '  atent evaluate runs/digits-linf-atent --attacks "PGD(steps=40, restarts=5)"'
    )


# ---- train -----------------------------------------------------------------------------------------------


def train(args: list[str]) -> int:
    """`atent train RECIPE`."""
    from atent import config

    job, options = config.parse_train(args)
    from atent import run as folder
    from atent.train.pipeline import baseline, run_job, threat_of

    if options.resume is not None:
        path = Path(options.resume)
        if not (path / folder.CONFIG).is_file():
            raise FileNotFoundError(f"{path} is not a run folder (no {folder.CONFIG}): give the one to go on with")
        saved = folder.read_json(path / folder.CONFIG)
        sections = ("data", "model", "method", "optimizer", "schedule", "train", "evaluate")
        if any(section not in saved for section in sections) or not saved["model"].get("name"):
            raise ValueError(
                f"{path} was not trained by `atent train`: resume it with atent.train.fit(..., resume=True)"
            )
        job = config.job({s: saved[s] for s in sections}, saved["recipe"])
    else:
        assert job is not None
        name = options.name or job.recipe or "run"
        path = Path(options.runs) / name if options.name else folder.free_name(options.runs, name)
    done = run_job(
        job, path, resume=options.resume is not None, progress=not options.quiet, report=_epoch_line, say=print
    )
    models = {type(job.method).__name__: done.evaluation}
    status = 0
    if options.baseline:
        threat = threat_of(getattr(job.method, "threat", None), (0.0, 1.0), job.evaluate)
        if threat is None:
            raise ValueError(
                "--baseline compares under a threat: choose a robust method, or give evaluate.norm and eps"
            )
        plain_path = folder.free_name(path.parent, f"{path.name}-standard")
        print("\nBeside it, trained plainly: the same data, split, network, epochs, optimizer and schedule.")
        plain = run_job(baseline(job, threat), plain_path, progress=not options.quiet, report=_epoch_line, say=print)
        models["Standard"] = plain.evaluation
        from atent.train.pipeline import draw_curves

        draw_curves(path, {type(job.method).__name__: done.fitted.history, "Standard": plain.fitted.history})
    print()
    _table(models)
    if options.baseline:
        status = _verdict(done.evaluation, plain.evaluation)
    print(f"\nrun folder: {path}")
    return status


def _epoch_line(row: dict[str, Any]) -> None:
    def percent(key: str) -> str:
        return f"{100 * row[key]:5.1f} %" if key in row else "    - "

    distance = f"  distance {row['distance_median']:.3g}" if "distance_median" in row else ""
    print(
        f"epoch {row['epoch']:>3}  loss {row['loss']:.3f}  validation natural {percent('validation_natural')}"
        f"  robust {percent('validation_robust')}{distance}  {row['seconds']:.1f} s{'  best' if row['best'] else ''}",
        flush=True,
    )


def _table(models: dict[str, dict[str, Any]]) -> None:
    """Accuracies with their intervals: a row an attack, a column a model."""
    from rich.console import Console
    from rich.table import Table

    from atent.attacks.spec import show
    from atent.threat import Threat
    from atent.train.comparison import caveat

    first = next(iter(models.values()))
    where, attacks = first["data"], first["attacks"]
    threats = dict.fromkeys(show(Threat(**a["threat"])) for a in attacks.values())
    title = f"{where['name']}, {where['n']} of {where['of']} test images"
    table = Table(title=f"{title}, {', '.join(threats)}", title_justify="left")
    table.add_column("accuracy, 95 % interval")
    for name in models:
        table.add_column(name, justify="right")
    table.add_row("natural", *(_share(found["natural"]) for found in models.values()))
    for attack in attacks:
        table.add_row(attack, *(_share(found["attacks"][attack]["robust"]) for found in models.values()))
    if len(attacks) > 1 and len(threats) == 1:
        table.add_row("worst of these", *(_share(found["worst"]) for found in models.values()), style="bold")
    Console().print(table)
    for name, found in models.items():
        last = found.get("last")
        if last:
            best, end = (f"epoch {e['epoch']} {100 * e['worst']['value']:.1f} %" for e in (found, last))
            print(f"{name}, under the worst of these: best {best}, last {end}")
    note = caveat(attacks)
    if note:
        print(note)


def _share(share: dict[str, Any]) -> str:
    return f"{100 * share['value']:.1f} % [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"


def _verdict(robust: dict[str, Any], plain: dict[str, Any]) -> int:
    """0 where the robust model's lower PGD limit lies above the plain one's upper limit, else 1."""
    name = next((n for n, a in robust["attacks"].items() if a["attack"].startswith("PGD")), None)
    if name is None:
        raise ValueError("--baseline needs a PGD among evaluate.attacks to judge by")
    low, high = robust["attacks"][name]["robust"]["low"], plain["attacks"][name]["robust"]["high"]
    won = low > high
    sign, text = (">", "more robust than plain training") if won else ("<=", "NOT shown to be more robust")
    print(f"\n{name}: lower limit {100 * low:.1f} % {sign} {100 * high:.1f} %, the plain model's upper limit: {text}.")
    return 0 if won else 1


# ---- evaluate --------------------------------------------------------------------------------------------


def evaluate(args: list[str]) -> int:
    """`atent evaluate RUN`."""
    from atent import config
    from atent import run as folder

    options = config.parse_evaluate(args)
    from atent.train.pipeline import evaluate_run

    path, out = Path(options.run), Path(options.out) if options.out else None
    if out is not None and out.exists():
        raise FileExistsError(f"{out} exists: choose another --out, an earlier result is never overwritten")
    found = evaluate_run(
        path, attacks=options.attacks, which=options.which, root=options.root, device=options.device,
        limit=options.limit, seed=options.seed, batch=options.batch, progress=not options.quiet,
        weights=Path(options.weights) if options.weights else None,
    )  # fmt: skip
    out = out or _free_file(path / folder.EVALUATION)
    folder.write_json(out, found)
    _table({path.name: found})
    print(f"\nwritten: {out}")
    return 0


def _free_file(path: Path) -> Path:
    """``path``, or the same name with the first free number: an earlier result is never overwritten."""
    number = 1
    free = path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


# ---- compare ---------------------------------------------------------------------------------------------


def compare(args: list[str]) -> int:
    """`atent compare RECIPE RECIPE ...`."""
    import shlex

    from atent import config

    options, jobs, overrides = config.parse_compare(args)
    from atent.train import compare as room
    from atent.train.comparison import caption, layout

    seeds = tuple(range(options.first_seed, options.first_seed + options.seeds))
    plan = room.Plan(jobs, seeds, overrides, shlex.join(["atent", "compare", *args]))
    path, found = room.compare(
        plan, runs=options.runs, name=options.name, at_once=options.jobs, build=config.job,
        progress=not options.quiet, say=lambda line: print(line, flush=True),
    )  # fmt: skip
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    headings, rows = layout(found)
    table = Table()
    table.add_column("recipe", overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right")
    for name, entries in rows:
        cells = (Text(f"{e.text}\n{e.interval}".rstrip(), style="bold" if e.best else "") for e in entries)
        table.add_row(name, *cells)
    print()
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    print("\n".join(caption(found)))
    print(f"\nresult folder: {path}")
    return 0


# ---- recipes ---------------------------------------------------------------------------------------------


def recipes(args: list[str]) -> int:
    """`atent recipes [NAME]`."""
    from atent import config

    if args and args[0] in ("-h", "--help"):
        print("usage: atent recipes [NAME]\n\nList the recipes, or print one as TOML to copy and change.")
        return 0
    if args:
        config.read_recipe(args[0])
        from importlib import resources

        named = args[0] in config.recipe_names()
        text = resources.files("atent.recipes") / f"{args[0]}.toml" if named else Path(args[0])
        print(text.read_text(), end="")
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table(show_edge=False, pad_edge=False)
    for heading in ("recipe", "what it trains", "published figures that it aims at"):
        table.add_column(heading, overflow="fold", no_wrap=heading == "recipe")
    for name in config.recipe_names():
        tables = config.read_recipe(name)
        table.add_row(name, tables["about"], "; ".join(tables.get("aims", [])) or "-")
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    return 0


COMMANDS: dict[str, tuple[Callable[[list[str]], int], str]] = {
    "train": (train, "train a model by a recipe, judge it on the test set, leave a run folder"),
    "evaluate": (evaluate, "judge a run's model under attacks, with 95 % intervals"),
    "compare": (compare, "train several recipes alike over several seeds, into one table with intervals"),
    "recipes": (recipes, "list the recipes, or print one"),
}


def run() -> None:
    """The entry point of the installed command."""
    sys.exit(main())
