"""The commands. No logic: each reads its options, calls a room, and prints."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atent.threads import wait_passively

# Before anything loads torch.
wait_passively()

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
        from atent.messages import unknown

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


def _print_threads(asked: int | str | None) -> None:
    """Say how many CPU threads the measurement chose."""
    if asked == "auto":
        import torch

        from atent.threads import cores

        print(f"threads {torch.get_num_threads()} of {cores()} cores")


# ---- train -----------------------------------------------------------------------------------------------


def train(args: list[str]) -> int:
    """`atent train RECIPE`."""
    from atent import config

    job, options = config.parse_train(args)
    from atent import runs as folder
    from atent.experiments.pipeline import baseline, run_job, saved_run, threat_of
    from atent.methods.awp import title

    python = None
    if options.resume is not None:
        path = Path(options.resume)
        if not (path / folder.CONFIG).is_file():
            raise FileNotFoundError(f"{path} is not a run folder (no {folder.CONFIG}): give the one to go on with")
        saved = folder.read_config(path / folder.CONFIG)
        if all(section in saved for section in config.SECTIONS) and saved["model"].get("name"):
            job = config.resumed_job(saved, options)
        else:
            job = config.python_job(saved, options)
            python = saved_run(path, model=options.model, data=options.data, root=options.root)
    else:
        assert job is not None
        name = options.name or job.recipe or "run"
        path = Path(options.runs) / name if options.name else folder.free_name(options.runs, name)
    done = run_job(
        job, path, resume=options.resume is not None, saved=python, progress=not options.quiet, report=_epoch_line,
        say=print,
    )  # fmt: skip
    models = {title(job.method): done.evaluation}
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
        from atent.experiments.pipeline import draw_curves

        draw_curves(path, {title(job.method): done.fitted.history, "Standard": plain.fitted.history})
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
    if "average_validation_natural" in row:
        both = " / ".join(percent(f"average_validation_{k}").strip() for k in ("natural", "robust"))
        distance += f"  averaged {both}"
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
    from atent.data.described import words
    from atent.experiments.comparison import caveat, remarks
    from atent.threat import Threat

    first = next(iter(models.values()))
    where, attacks = first["data"], first["attacks"]
    threats = dict.fromkeys(show(Threat(**a["threat"])) for a in attacks.values())
    title = f"{where['name']}, test images: {words(where)}"
    # A table's own title breaks at the width of the table.
    print(f"{title}, {', '.join(threats)}")
    table = Table()
    table.add_column("accuracy, 95 % interval")
    for name in models:
        table.add_column(name, justify="right")
    cascade = len(models) == 1 and first["cascade"]
    if cascade:
        table.add_column("attacked", justify="right")
        table.add_column("seconds", justify="right")
    table.add_row("natural", *(_share(found["natural"]) for found in models.values()))
    for attack, result in attacks.items():
        if cascade:
            for part, told in result.get("parts", {}).items():
                table.add_row(f"  after its {part}", *_cells(told), style="dim")
            table.add_row(f"after {attack}", *_cells(result))
        else:
            table.add_row(attack, *(_share(found["attacks"][attack]["robust"]) for found in models.values()))
    if len(attacks) > 1 and len(threats) == 1 and not cascade:
        table.add_row("worst of these", *(_share(found["worst"]) for found in models.values()), style="bold")
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    for name, found in models.items():
        last = found.get("last")
        if last:
            best, end = (f"epoch {e['epoch']} {100 * e['worst']['value']:.1f} %" for e in (found, last))
            print(f"{name}, under the worst of these: best {best}, last {end}")
        if found["hint"]:
            print(f"hint: {found['hint']}")
    for line in (*remarks(attacks), caveat(attacks, first.get("search_dtype"))):
        if line:
            print(line)


def _cells(result: dict[str, Any]) -> tuple[str, str, str]:
    return _share(result["robust"]), f"{result['attacked']:,}", f"{result['seconds']:.1f}"


def _share(share: dict[str, Any]) -> str:
    from atent.stats import percent

    return percent(share)


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
    """`atent evaluate RUN|FILE|MODULE:FUNCTION`."""
    from atent import config
    from atent import runs as folder

    options = config.parse_evaluate(args)
    from atent.experiments.evaluation import assess, summary
    from atent.experiments.target import subject

    if options.out is not None:
        _refuse_taken(Path(options.out), "--out")
    judged = subject(**options.subject(), attacks=options.attacks)
    _print_threads(options.threads)
    place = judged.place / f"{judged.stem}{folder.EVALUATION}"
    out = Path(options.out) if options.out else _free_file(place)
    found = assess(
        judged, cascade=options.cascade, radii=options.radii, checks=options.checks or options.strict,
        search_dtype=options.search_dtype, partial=out.with_suffix(".partial.jsonl"), progress=not options.quiet,
    )  # fmt: skip
    out = out if options.out else _free_file(place)
    folder.write_json(out, found)
    _table({judged.name: found})
    if options.per_class:
        _classes(found)
    written = [out]
    if options.radii:
        from atent import plots

        written.append(_free_file(out.with_name(f"{judged.stem}security.png")))
        plots.save(plots.security(found["sweep"]), written[-1])
        _radii(found["sweep"])
    print("\n" + "\n".join(summary(found)))
    warned = _checks(found["checks"]) if "checks" in found else False
    print(f"\nwritten: {', '.join(map(str, written))}")
    return 1 if warned and options.strict else 0


def _classes(found: dict[str, Any]) -> None:
    """Clean and robust accuracy: a row a class."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="by class, 95 % intervals", title_justify="left")
    table.add_column("class")
    for heading in ("n", "clean", f"robust to all of {', '.join(found['attacks']) or 'no attack'}"):
        table.add_column(heading, justify="right")
    names = found["data"]["class_names"]
    for row in found["per_class"]:
        name = str(names[row["class"]]) if names else str(row["class"])
        table.add_row(name, f"{row['n']:,}", _share(row["natural"]), _share(row["worst"]))
    Console(width=None if sys.stdout.isatty() else 140).print(table)


def _radii(rows: list[dict[str, Any]]) -> None:
    """Robust accuracies: a row a radius, a column an attack."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="each attack alone, by radius", title_justify="left")
    table.add_column("accuracy, 95 % interval")
    names = dict.fromkeys(row["attack"] for row in rows)
    for name in names:
        table.add_column(name, justify="right")
    for threat in dict.fromkeys(row["threat"] for row in rows):
        cells = {row["attack"]: _share(row["robust"]) for row in rows if row["threat"] == threat}
        table.add_row(threat, *(cells.get(name, "") for name in names))
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    for row in rows:
        if row["robust"]["k"] > row["monotone"]["k"]:
            print(
                f"{row['attack']} at {row['threat']}: {_share(row['monotone'])} with what it fooled at smaller radii,"
                " so it is too weak at this one"
            )


def _checks(checks: list[dict[str, Any]]) -> bool:
    """The table of the checks; whether one of them warns."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title="checks for masked gradients and weak attacks", title_justify="left")
    for heading in ("check", "", "figure"):
        table.add_column(heading, overflow="fold")
    failed = [check for check in checks if not check["passed"]]
    for check in checks:
        table.add_row(check["name"], "pass" if check["passed"] else "warn", check["figure"])
    print()
    Console(width=None if sys.stdout.isatty() else 140).print(table)
    for check in failed:
        print(f"{check['name']}: {check['why']}")
    return bool(failed)


def _refuse_taken(path: Path, option: str) -> None:
    if path.exists():
        raise FileExistsError(f"{path} exists: choose another {option}, an earlier result is never overwritten")


def _free_file(path: Path) -> Path:
    """``path``, or the same name with the first free number: an earlier result is never overwritten."""
    number = 1
    free = path
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}-{number}")
    return free


# ---- certify ---------------------------------------------------------------------------------------------


def certify(args: list[str]) -> int:
    """`atent certify RUN|FILE|MODULE:FUNCTION ...`."""
    from atent import config

    o = config.parse_certify(args)
    from atent.experiments.certificate import certify_folder, draw, layout
    from atent.experiments.certified import add, check_table, row

    check_table(o.table)
    if o.plot and o.method != "smoothing":
        raise ValueError(f"--plot draws the radii of smoothing: method {o.method} proves single radii, leave it out")
    done = {}
    for run in dict.fromkeys(o.runs):
        done[run] = certify_folder(
            run, model=o.model, data=o.data, method=o.method, sigma=o.sigma, n0=o.n0, n=o.n, alpha=o.alpha,
            seed=o.seed, limit=o.limit, subset=o.subset, radii=o.radius, norm=o.norm,
            allow_large_eps=o.allow_large_eps, shard=o.shard, merged=o.merge, which=o.which, root=o.root,
            device=o.device, threads=o.threads, batch=o.batch, compiled=o.compile, channels_last=o.channels_last,
            progress=not o.quiet,
        )  # fmt: skip
    _print_threads(o.threads)
    from rich.console import Console
    from rich.table import Table

    for out, content, _ in done.values():
        title, rows, below = layout(content)
        table = Table()
        table.add_column("accuracy, 95 % interval")
        table.add_column("", justify="right")
        for name, share in rows:
            table.add_row(name, _share(share))
        print(title)
        Console().print(table)
        print("\n".join(below))
        print(f"written: {out}\n")
    if o.plot:
        draw({run: rows for run, (_, _, rows) in done.items()}, o.plot, o.radius)
        print(f"written: {o.plot}")
    if o.table:
        beside = add(Path(o.table), [row(content) for _, content, _ in done.values()])
        print(f"written: {o.table}, {beside}")
    return 0


# ---- attack ----------------------------------------------------------------------------------------------


def attack(args: list[str]) -> int:
    """`atent attack RUN|FILE|MODULE:FUNCTION`."""
    from atent import config

    options = config.parse_attack(args)
    from atent import plots
    from atent.evaluate.craft import save
    from atent.experiments.evaluation import adversarial
    from atent.experiments.target import subject

    out, png = Path(options.out), Path(options.png) if options.png else None
    for path, option, kind in ((out, "--out", ".npz"), (png, "--png", ".png")):
        if path is not None:
            _refuse_taken(path, option)
            if path.suffix != kind:
                raise ValueError(f"{option} {path}: the name must end in {kind}")
    judged = subject(**options.subject(), attacks=(options.attack,))
    _print_threads(options.threads)
    made, about = adversarial(judged, progress=not options.quiet)
    save(out, made, about)
    if png is not None:
        shown = (made["success"] & (made["norm"] > 0)).nonzero().squeeze(1)[:8]
        rows = shown if len(shown) else slice(8)
        title = f"{judged.name}, {about['attack']}, {about['threat']['norm']} {about['threat']['eps']}"
        plots.save(plots.adversarial(*(made[k][rows] for k in ("x", "x_adv", "y", "predicted")), title=title), png)
    fooled, n = int(made["success"].sum()), len(made["y"])
    print(f"{about['attack']}: {fooled} of {n} images are misclassified after it, natural errors included")
    print(f"written: {', '.join(str(p) for p in (out, png) if p)}")
    return 0


# ---- compare ---------------------------------------------------------------------------------------------


def compare(args: list[str]) -> int:
    """`atent compare RECIPE RECIPE ...`."""
    import shlex

    from atent import config

    options, jobs, overrides = config.parse_compare(args)
    from atent.experiments import compare as room
    from atent.experiments.comparison import caption, layout

    seeds = tuple(range(options.first_seed, options.first_seed + options.seeds))
    plan = room.Plan(jobs, seeds, overrides, shlex.join(["atent", "compare", *args]))
    path, found = room.compare(
        plan, runs=options.runs, name=options.name, at_once=options.jobs, build=config.job, beside=options.beside,
        progress=not options.quiet, say=lambda line: print(line, flush=True),
    )  # fmt: skip
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    headings, rows = layout(found)
    table = Table()
    table.add_column("recipe", no_wrap=True)
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


# ---- theory ----------------------------------------------------------------------------------------------


def theory(args: list[str]) -> int:
    """`atent theory RUN`."""
    from atent import config
    from atent.runs import write_json

    o = config.parse_theory(args)
    from atent.paper.theory import command as room

    if o.out is not None:
        _refuse_taken(Path(o.out), "--out")
    say = (lambda _part: None) if o.quiet else (lambda part: print(f"checking: {part}", file=sys.stderr, flush=True))
    judged, found = room.of_run(
        o.target, data=o.data, model=o.model, root=o.root, which=o.which, limit=o.limit, subset=o.subset,
        gamma=o.gamma,
        temperature=o.temperature, radius=o.radius, chains=o.chains, steps=o.steps, samples=o.samples, seed=o.seed,
        recipes=config.chains, say=say,
    )  # fmt: skip
    out = Path(o.out) if o.out is not None else _free_file(judged.place / f"{judged.stem}{room.THEORY}")
    write_json(out, found)
    written = [out, *room.draw(found, out)]
    _theory_table(found["rows"], room.figure)
    print("\n".join(room.summary(found)))
    for warning in found["warnings"]:
        print(f"warning: {warning}", file=sys.stderr)
    print(f"written: {', '.join(map(str, written))}")
    return 0


def _theory_table(rows: list[dict[str, Any]], figure: Callable[[dict[str, Any]], str]) -> None:
    """A line a row: the statement, the verdict, the figure, and why."""
    from rich.console import Console
    from rich.table import Table

    table = Table(title_justify="left")
    for heading in ("", "statement and what was checked", "verdict", "figure, 95 %", "n"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        told = f"{row['claim']}\n[dim]{row['checked'].replace('[', '(').replace(']', ')')}[/dim]"
        value = figure(row)
        why = "\n".join(part for part in (f"{row['what']} {value}" if value else "", row["reason"]) if part)
        n = "" if row["n"] is None else f"{row['n']:,}"
        table.add_row(row["statement"], told, f"{row['verdict']}\n[dim]{row['basis']}[/dim]", why, n)
    Console(width=None if sys.stdout.isatty() else 160).print(table)


# ---- report ----------------------------------------------------------------------------------------------


def report(args: list[str]) -> int:
    """`atent report RUN [RUN ...]`."""
    from atent import config

    options = config.parse_report(args)
    from atent.report import report as page
    from atent.runs import write_atomic

    if options.out is not None:
        _refuse_taken(Path(options.out), "--out")
    text = page(
        options.runs, images=options.images, model=options.model, data=options.data, root=options.root,
        progress=not options.quiet,
    )  # fmt: skip
    # The same folder given twice is one.
    place = Path(options.runs[0]) if len(set(map(Path, options.runs))) == 1 else Path()
    out = Path(options.out) if options.out is not None else _free_file(place / "report.html")
    write_atomic(out, text)
    print(f"written: {out}")
    return 0


# ---- reproduce -------------------------------------------------------------------------------------------


def reproduce(args: list[str]) -> int:
    """`atent reproduce TABLE`."""
    import shlex

    from atent import config

    o = config.parse_reproduce(args)
    limit = o.seconds()
    from atent.paper.reproduce import reproduce as make

    written = make(
        o.what, o.scale, build=config.job, read=config.read_recipe, seeds=o.seeds, time_limit=limit, out=o.out,
        runs=o.runs, only=o.only, progress=not o.quiet, say=lambda line: print(line, flush=True),
        command=shlex.join(["atent", "reproduce", *args]),
    )  # fmt: skip
    print(f"written: {', '.join(map(str, written))}")
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
    "evaluate": (evaluate, "judge a model under attacks, with 95 % intervals: a run's, or your own"),
    "attack": (attack, "attack a model's test images and keep the results, as arrays and as a picture"),
    "certify": (certify, "prove how far a run's test images can be moved: smoothing, or bounds"),
    "compare": (compare, "train several recipes alike over several seeds, into one table with intervals"),
    "reproduce": (reproduce, "make the paper's tables and figures again: its figures beside ours"),
    "report": (report, "write one HTML page on runs, for a screen, a phone or paper"),
    "theory": (theory, "check the statements of the paper's theory on a network and its data"),
    "recipes": (recipes, "list the recipes, or print one"),
}


def run() -> None:
    """The entry point of the installed command."""
    sys.exit(main())


if __name__ == "__main__":
    run()
