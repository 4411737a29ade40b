"""The command line: one file per command, whose function's signature and docstring are the command."""

from __future__ import annotations

import signal
import sys
import traceback
from contextvars import copy_context
from importlib import import_module
from types import ModuleType

from atent import signals
from atent.cli import ranks
from atent.cli.streams import steady
from atent.heap import keep_freed
from atent.threads import wait_passively
from atent.torchrun import Ending, place, quiet

# Before anything loads torch.
wait_passively()
keep_freed()

_ABOUT = "Train robust networks, measure how robust they are, and certify what can be certified."

COMMANDS: dict[str, str] = {
    "train": "train a model from a recipe and evaluate it on the test set",
    "pretrain": "pre-train a network without labels",
    "evaluate": "measure the robust accuracy of a model under attacks",
    "attack": "attack test images and save the adversarial images",
    "transfer": "transfer attacks between several networks",
    "certify": "certify accuracy by randomised smoothing or by bounds",
    "export": "export a network: ONNX, VNN-LIB, torch.export, Hugging Face Hub",
    "gate": "fail if measured accuracies are below given minimums, for CI",
    "compare": "train several recipes over several seeds into one table",
    "sweep": "search the settings of a recipe on the validation split",
    "reproduce": "reproduce the paper's tables and figures",
    "report": "write an HTML report of runs",
    "show": "list the files of a run and verify their checksums",
    "bench": "benchmark this library on this machine",
    "theory": "check the statements of the paper's theory on a network",
    "recipes": "list the recipes, or print one",
    "list": "list attacks, methods, models, data, certifiers, optimizers",
}
"""A one-line description of each command; the module in this folder has the command's name."""


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed, 2 not understood, 128 + n ended by the signal n.

    Errors are one line each."""
    signals.follow_parent()
    # Not list(): once imported, the command of that name shadows it in this namespace.
    args = [*(sys.argv[1:] if argv is None else argv)]
    with signals.raising(), steady():
        try:
            # Settings that a command makes for its own calls end with it.
            return copy_context().run(_main, args)
        except KeyboardInterrupt as error:
            return _reported(_stopped(error))


def _main(args: list[str]) -> int:
    """Run a command as one process, or as one rank of a job that torchrun started."""
    try:
        here = place()
    except ValueError as error:
        return 2 if quiet() else _fail(str(error), 2)
    if here is None or not ranks.meant(args):
        if here is not None and here.size > 1:
            if here.rank:
                return 0
            ranks.hint(args, here.size)
        return _reported(_attempt(args))
    from atent.distributed import launch

    def work() -> Ending:
        try:
            return _attempt(args)
        except KeyboardInterrupt as error:
            return _stopped(error)

    try:
        return launch.run(here, work, _reported).status
    except KeyboardInterrupt as error:
        ending = _stopped(error)
        return ending.status if here.rank else _reported(ending)
    except ValueError as error:
        alone = here.rank == 0 or isinstance(error, launch.Unreachable)
        return _fail(str(error), 2) if alone else 2


def _attempt(args: list[str]) -> Ending:
    debug = "--debug" in args
    args = [a for a in args if a != "--debug"]
    trust_code = "--trust-code" in args
    args = [a for a in args if a != "--trust-code"]
    if not args or args[0] in ("-h", "--help"):
        print(_help())
        return Ending(0)
    if args[0] == "--version":
        from atent import __version__

        print(f"atent {__version__}")
        return Ending(0)
    try:
        args, plugins = _plugins(args)
        name, rest = args[0], args[1:]
        if name in ("--install-completion", "--show-completion"):
            from atent.cli.completion import install, show

            return Ending((install if name == "--install-completion" else show)(rest))
        if name not in COMMANDS:
            from atent.messages import unknown

            return Ending(2, unknown("command", name, COMMANDS))
        from atent import trust

        # From here on, code may be imported that the command line, a recipe that it names, or the user's own run names.
        with trust.fenced(rest, trust_code=trust_code, plugins=plugins):
            return Ending(_run(name, rest, plugins))
    except SystemExit as stop:
        return Ending(int(stop.code or 0))
    except Exception as error:
        # Python and compiled libraries may convert an exception raised by a signal into errors of their own.
        if signals.caused():
            raise signals.Stopped(signals.status(0) - 128) from None
        _print_unwritten(error, "--json" in args)
        text, status = _message(error)
        lost = type(error).__name__ == "Lost"
        return Ending(1, traceback.format_exc(), lost, raw=True) if debug else Ending(status, text, lost)


def _stopped(error: KeyboardInterrupt) -> Ending:
    """Print the message of a command that a signal ended."""
    signals.ignored()
    number = getattr(error, "signum", signal.SIGINT)
    how = getattr(error, "how", None) or "saved results are unchanged; repeat the command"
    return Ending(signals.status(128 + number), f"interrupted by {signal.Signals(number).name}: {how}")


def _reported(ending: Ending) -> int:
    """Print the error of a failed command; return its exit status."""
    if ending.raw:
        print(ending.text, end="", file=sys.stderr)
    elif ending.text is not None:
        _fail(ending.text, ending.status)
    return ending.status


def command(name: str) -> ModuleType:
    """The module of a command."""
    return import_module(f"atent.cli.{name}")


def _plugins(args: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """The words without each ``--plugin MODULE``, and the modules; ValueError if one is missing."""
    left, found = [], []
    words = iter(args)
    for word in words:
        option, equals, value = word.partition("=")
        if option != "--plugin":
            left.append(word)
            continue
        value = value if equals else next(words, "")
        if not all(part.isidentifier() for part in value.split(".")):
            raise ValueError(f"--plugin needs a module, such as mypackage.attacks, got {value!r}")
        found.append(value)
    if not left:
        raise ValueError("--plugin needs a command: write `atent COMMAND --plugin MODULE`")
    return left, tuple(found)


def _run(name: str, words: list[str], plugins: tuple[str, ...]) -> int:
    """Import the plug-ins, then run a command with its words; a command that parses its own words has a function
    `run`."""
    if plugins:
        from atent.registry import load_module

        for plugin in plugins:
            load_module(plugin, f"--plugin {plugin}")
    module = command(name)
    if hasattr(module, "run"):
        return int(module.run(words))
    from atent.cli.parse import read

    function = getattr(module, name)
    given = read(
        function,
        words,
        f"atent {name}",
        renamed=getattr(module, "RENAMED", None),
        meant=getattr(module, "MEANT", None),
        refused=getattr(module, "REFUSED", None),
    )
    return int(function(**given))


def _print_unwritten(error: Exception, json: bool) -> None:
    """Print the result of a command whose file could not be written, if it was computed."""
    if isinstance(error, signals.Unwritten) and error.result is not None:
        from atent.cli.certify import print_certificate
        from atent.cli.output import accuracies, print_json
        from atent.experiments.evaluation import summary
        from atent.experiments.results import EvaluationFile

        found = error.result
        if json:
            print_json(found.to_json())
        elif isinstance(found, EvaluationFile):
            accuracies({found.run or found.model or "model": found})
            print("\n" + "\n".join(summary(found)))
        else:
            print_certificate(found)


def _message(error: Exception) -> tuple[str, int]:
    """The message and the exit status of an exception."""
    failed = type(error).__name__ in ("Diverged", "Interrupted", "OutOfMemory", "Lost", "Elsewhere")
    expected = failed or isinstance(error, ValueError | OSError | ImportError)
    text = _located(error) if expected else _unexpected(error)
    bad_input = isinstance(error, ValueError | FileNotFoundError | FileExistsError | ImportError)
    status = signals.status(1) if type(error).__name__ == "Interrupted" else 1
    return text or type(error).__name__, 2 if bad_input and not failed else status


def _located(error: Exception) -> str:
    """The message of an error, with its place if the user's own code, or what it called, raised it or its cause."""
    from atent.cli.user_code import place_of_error, raised_by_user

    place, text, cause = raised_by_user(error), str(error), error.__cause__
    if place is None and cause is not None and ".py, line " not in text:
        place = place_of_error(cause)
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        from atent.runs.files import remedy

        text = f"{error.filename}: {error.strerror}"
        text += "" if isinstance(error, FileNotFoundError) else f": {remedy(error.errno)}"
    return f"{text} ({place})" if place else text


def _unexpected(error: Exception) -> str:
    """One line for an error that no check foresaw, with its place in the user's own code if it came through that."""
    from atent.cli.user_code import place_of_error
    from atent.registry import first_line

    place = place_of_error(error)
    return f"{first_line(error)} ({f'{place}; ' if place else ''}run again with --debug for the traceback)"


def _fail(text: str, status: int) -> int:
    for line in text.splitlines():
        print(f"atent: {line}", file=sys.stderr)
    return status


_OPTIONS = {
    "--help": "show this help; `atent COMMAND --help` describes a command",
    "--version": "show the version",
    "--plugin MODULE": "with a command: first import this module, which may register attacks, methods ...",
    "--trust-code": "with a command: let run folders from elsewhere import the code that they name",
    "--debug": "show tracebacks instead of one-line errors",
    "--install-completion": "install shell completion; name bash, zsh or fish, default: the current shell",
}
_EXAMPLES = (
    "atent train digits-linf-atent",
    "atent train cifar10-l2-atent --method.steps 5 --data.limit 2000",
    'atent evaluate runs/digits-linf-atent --attacks "PGD(steps=40, restarts=5)"',
)


def _help() -> str:
    from atent.cli.width import wrapped

    commands = [wrapped(f"  {name:<10} {about}", 13) for name, about in COMMANDS.items()]
    options = [wrapped(f"  {name:<20} {about}", 23) for name, about in _OPTIONS.items()]
    # Examples are not wrapped, so that they can be copied.
    examples = [f"  {line}" for line in _EXAMPLES]
    head = ["usage: atent COMMAND [OPTIONS]", "", wrapped(_ABOUT, 0), ""]
    return "\n".join([*head, "commands:", *commands, "", "options:", *options, "", "examples:", *examples])


def run() -> None:
    """The entry point of the installed command."""
    sys.exit(main())
