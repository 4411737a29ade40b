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
    "train": "train a model by a recipe, evaluate it on the test set, keep a run folder",
    "pretrain": "pre-train a network without labels, for a training to begin from",
    "evaluate": "robust accuracy of a model under attacks, with 95 % intervals: a run's, or your own",
    "attack": "attack a model's test images and keep the results, as arrays and as a picture",
    "transfer": "adversarial images of each of several networks, tried on all of them",
    "certify": "certified accuracy of a run's test images: randomised smoothing, or bounds",
    "export": "write a network for other programs: ONNX, VNN-LIB, torch.export, the Hugging Face Hub",
    "gate": "compare measured accuracies with the least that is accepted, for continuous integration",
    "compare": "train several recipes alike over several seeds, into one table with intervals",
    "sweep": "try a recipe's settings over a grid, at random or by a model, on validation figures",
    "reproduce": "make the paper's tables and figures again: its figures beside ours",
    "report": "write one HTML page on runs, for a screen, a phone or paper",
    "show": "show a run's files and data, and whether they are still what was written",
    "bench": "measure how fast this library is on this machine, beside other packages and the machine's peak",
    "theory": "check the statements of the paper's theory on a network and its data",
    "recipes": "list the recipes, or print one",
    "list": "list attacks, methods, models, data, certifiers and optimizers, with where they come from",
}
"""What each command does, in one line; its module in this folder has its name."""


def main(argv: list[str] | None = None) -> int:
    """Run a command; returns the exit status: 0 done, 1 failed, 2 not understood, 128 + n ended by the signal n.

    Errors are one line each."""
    signals.follow_parent()
    # Not list(): the command of that name is a module in this namespace once it is imported.
    args = [*(sys.argv[1:] if argv is None else argv)]
    with signals.raising(), steady():
        try:
            # What a command sets for its own calls ends with it.
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

        # From here on a name runs that these words, a recipe that they name, or a run of the user's own gives.
        with trust.fenced(rest, trust_code=trust_code, plugins=plugins):
            return Ending(_run(name, rest, plugins))
    except SystemExit as stop:
        return Ending(int(stop.code or 0))
    except Exception as error:
        # Python and compiled libraries turn what a signal raises inside them into errors of their own.
        if signals.caused():
            raise signals.Stopped(signals.status(0) - 128) from None
        text, status = _message(error)
        lost = type(error).__name__ == "Lost"
        return Ending(1, traceback.format_exc(), lost, raw=True) if debug else Ending(status, text, lost)


def _stopped(error: KeyboardInterrupt) -> Ending:
    """The ending of a command that a signal ended."""
    signals.ignored()
    number = getattr(error, "signum", signal.SIGINT)
    how = getattr(error, "how", None) or "what was saved before stays as it was; give the same command again"
    return Ending(signals.status(128 + number), f"interrupted by {signal.Signals(number).name}: {how}")


def _reported(ending: Ending) -> int:
    """Print the error of a command that ended with one; its exit status."""
    if ending.raw:
        print(ending.text, end="", file=sys.stderr)
    elif ending.text is not None:
        _fail(ending.text, ending.status)
    return ending.status


def command(name: str) -> ModuleType:
    """The module of a command."""
    return import_module(f"atent.cli.{name}")


def _plugins(args: list[str]) -> tuple[list[str], tuple[str, ...]]:
    """The words without each ``--plugin MODULE``, and the modules; ValueError in one line where one is missing."""
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
        raise ValueError("--plugin is for a command: `atent COMMAND --plugin MODULE`")
    return left, tuple(found)


def _run(name: str, words: list[str], plugins: tuple[str, ...]) -> int:
    """Run a command with its words, after the plug-ins; one that reads its words itself has a function `run`."""
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


def _message(error: Exception) -> tuple[str, int]:
    """The message and the exit status of an exception."""
    failed = type(error).__name__ in ("Diverged", "Interrupted", "OutOfMemory", "Lost", "Elsewhere")
    expected = failed or isinstance(error, ValueError | OSError | ImportError)
    text = str(error) if expected else f"{type(error).__name__}: {error} (run again with --debug for the traceback)"
    bad_input = isinstance(error, ValueError | FileNotFoundError | FileExistsError | ImportError)
    status = signals.status(1) if type(error).__name__ == "Interrupted" else 1
    return text or type(error).__name__, 2 if bad_input and not failed else status


def _fail(text: str, status: int) -> int:
    for line in text.splitlines():
        print(f"atent: {line}", file=sys.stderr)
    return status


_OPTIONS = {
    "--help": "this text; `atent COMMAND --help` explains a command",
    "--version": "the version",
    "--plugin MODULE": "with a command: import this module of yours first, which may register attacks, methods ...",
    "--trust-code": "with a command: let run folders that you did not make on this machine import what they name",
    "--debug": "a traceback instead of a one-line error",
    "--install-completion [bash|zsh|fish]": "complete commands, options and recipes in the shell",
}
_EXAMPLES = (
    "atent train digits-linf-atent",
    "atent train cifar10-l2-atent --method.steps 5 --data.limit 2000",
    'atent evaluate runs/digits-linf-atent --attacks "PGD(steps=40, restarts=5)"',
)


def _help() -> str:
    from atent.cli.width import wrapped

    commands = [wrapped(f"  {name:<10} {about}", 13) for name, about in COMMANDS.items()]
    options = [wrapped(f"  {name:<10} {about}", 13) for name, about in _OPTIONS.items()]
    # A command that is broken into lines cannot be copied.
    examples = [f"  {line}" for line in _EXAMPLES]
    head = ["usage: atent COMMAND [OPTIONS]", "", wrapped(_ABOUT, 0), ""]
    return "\n".join([*head, "commands:", *commands, "", "options:", *options, "", "examples:", *examples])


def run() -> None:
    """The entry point of the installed command."""
    sys.exit(main())
