"""Shell completion of commands, options and recipe names."""

from __future__ import annotations

import os
from pathlib import Path

from atent.cli.words import options_of
from atent.experiments.recipe_files import UsageError

_BASH = """\
_atent() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" words=""
    if [ "$COMP_CWORD" -eq 1 ]; then
        words="{commands} --help --version --install-completion"
    else
        case "${{COMP_WORDS[1]}}" in
{cases}
        esac
        case "$current" in
            -*) ;;
            *)
                case "${{COMP_WORDS[1]}}" in
                    train|pretrain|compare|recipes) words="$words $(atent recipes --names)" ;;
                esac ;;
        esac
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    [ "${{#COMPREPLY[@]}}" -gt 0 ] || COMPREPLY=($(compgen -f -- "$current"))
}}
complete -o filenames -F _atent atent
"""


def script(shell: str) -> str:
    """The completion script for bash, zsh or fish; UsageError for another shell."""
    from atent.cli import COMMANDS, command

    everywhere = ["--help", "--plugin", "--trust-code"]
    options = {name: [*everywhere, *options_of(getattr(command(name), name))] for name in COMMANDS}
    if shell == "fish":
        lines = [f"complete -c atent -f -n __fish_use_subcommand -a {name} -d '{COMMANDS[name]}'" for name in options]
        for name, all_of_it in options.items():
            seen = f"'__fish_seen_subcommand_from {name}'"
            lines += [f"complete -c atent -n {seen} -l {option[2:]}" for option in all_of_it]
            if name in ("train", "pretrain", "compare", "recipes"):
                lines.append(f"complete -c atent -n {seen} -a '(atent recipes --names)'")
        return "\n".join(lines) + "\n"
    cases = "\n".join(f'            {name}) words="{" ".join(each)}" ;;' for name, each in options.items())
    text = _BASH.format(commands=" ".join(options), cases=cases)
    if shell == "bash":
        return text
    if shell == "zsh":
        return f"#compdef atent\nautoload -U +X bashcompinit && bashcompinit\n{text}"
    raise UsageError(f"no completion for {shell!r}: use bash, zsh or fish")


def place(shell: str) -> Path:
    """The path from which the shell loads the script."""
    home = Path.home()
    data = Path(os.environ.get("XDG_DATA_HOME") or home / ".local" / "share")
    settings = Path(os.environ.get("XDG_CONFIG_HOME") or home / ".config")
    return {
        "bash": data / "bash-completion" / "completions" / "atent",
        "zsh": home / ".zfunc" / "_atent",
        "fish": settings / "fish" / "completions" / "atent.fish",
    }[shell]


def _shell(words: list[str]) -> str:
    if len(words) > 1:
        raise UsageError(f"unexpected argument {words[1]!r}: name one shell of bash, zsh, fish")
    return words[0] if words else Path(os.environ.get("SHELL", "bash")).name


def show(words: list[str]) -> int:
    """Print the completion script: `atent --show-completion [SHELL]`."""
    print(script(_shell(words)), end="")
    return 0


def install(words: list[str]) -> int:
    """Install the completion script: `atent --install-completion [SHELL]`."""
    from atent.runs import write_atomic

    shell = _shell(words)
    text = script(shell)
    path = place(shell)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, text)
    print(f"written: {path}")
    if shell == "zsh":
        print("add to ~/.zshrc, before compinit: fpath+=~/.zfunc")
    print("open a new shell to use it")
    return 0
