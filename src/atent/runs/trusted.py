"""The configuration of a run: signed by the user who makes it, and believed where the signature is that user's.

The signature is a field of config.json, over all other fields: a copy of the run keeps it, a changed setting breaks it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from atent import trust
from atent.runs.files import dumps, plain, read_json
from atent.runs.names import CONFIG

SIGNATURE = "signature"


def signed(config: dict[str, Any]) -> dict[str, Any]:
    """The configuration with the user's signature.

    Without it where the configuration names code that has not been granted, and where no key can be made or read: then
    a line on standard error says so, if the run names code at all.
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
    """Let the names of a run folder that this user made on this machine run in the present fence; those of another
    folder are kept for the message that refuses them. Raises as `read_json`."""
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
