"""The configuration of a run: signed by the user who makes it, and believed where the signature is that user's.

The signature is a field of config.json, over all other fields: a copy of the run keeps it, a changed setting breaks it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from atent import trust
from atent.runs.json_files import read_json
from atent.runs.names import CONFIG
from atent.runs.values import dumps, plain

SIGNATURE = "signature"


def signed(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration with the signature of the user.

    There is none if the configuration names code that is not granted, and if no key can be made or read; in the second
    case a line on standard error reports it for a run that names code.

    Parameters
    ----------
    config
        The configuration.

    Returns
    -------
    dict
        Its plain values, with the field signature.

    Examples
    --------
    >>> from atent.runs import signed
    >>> set(signed({"data": {"name": "digits"}})) <= {"data", "signature"}
    True
    """
    made: dict[str, Any] = {key: value for key, value in plain(config).items() if key != SIGNATURE}
    names = trust.references(_naming(made))
    if not all(map(trust.granted, names)):
        return made
    try:
        return {**made, SIGNATURE: trust.signature(_content(made))}
    except OSError as error:
        if names:
            reason = f"{error.filename}: {error.strerror}" if error.strerror else str(error)
            print(
                f"atent: the run is not signed ({reason}): to open it, which runs {', '.join(names)}, will need"
                " --trust-code",
                file=sys.stderr,
            )
        return made


def admit(run: str | Path) -> None:
    """Grant the names of code in a run folder that this user made on this machine; those of another folder are recorded
    for the error of `atent.trust.check`. Errors as for `read_json`.

    Parameters
    ----------
    run
        The run folder.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> from atent.runs import admit, write_json
    >>> from atent.trust import fenced, granted
    >>> with tempfile.TemporaryDirectory() as folder, fenced():
    ...     write_json(Path(folder) / "config.json", {"model": {"name": "theirs:net"}})
    ...     admit(folder)
    ...     granted("theirs:net")
    False
    """
    config = read_json(Path(run) / CONFIG)
    if not isinstance(config, dict):
        return
    names = _naming(config)
    rest = {key: value for key, value in config.items() if key != SIGNATURE}
    if trust.genuine(_content(rest), config.get(SIGNATURE)):
        trust.grant(names)
    else:
        trust.note(run, names)


def _content(config: dict[str, Any]) -> bytes:
    return dumps(config).encode()


def _naming(config: dict[str, Any]) -> list[Any]:
    """The parts of a configuration whose texts may name code; what else is recorded never does."""
    about = config.get("about")
    data = about.get("data") if isinstance(about, dict) else None
    recorded = [data.get(key) for key in ("name", "settings")] if isinstance(data, dict) else []
    return [*(value for key, value in config.items() if key not in ("about", "provenance", "recipe")), *recorded]
