"""The choices that one run of a comparison measured for "auto", for the other runs on the same machine."""

from __future__ import annotations

from pathlib import Path

from atent import runs as folder
from atent.experiments.plan import Plan, Run
from atent.probe import AUTO

_NAMES = ("precision", "channels_last")
_MACHINE = ("device_name", "torch")


def asked(run: Run) -> tuple[object, ...] | None:
    """The settings of which one is "auto"; None if none is."""
    found = tuple(getattr(run.job.train, name) for name in _NAMES)
    return (run.job.train.device, *found) if AUTO in found else None


def choice(plan: Plan, path: Path, run: Run) -> dict[str, str]:
    """Setting -> what another run of the comparison in ``path`` chose for it on this machine; {} where none did.

    The runs of a comparison have one network, one data set and one batch size, on which the choice is measured.
    """
    for other in plan.runs(path):
        if other.path == run.path or asked(other) != asked(run) or not (other.path / folder.CONFIG).is_file():
            continue
        config = folder.read_config(other.path / folder.CONFIG)
        made, chosen = config.get("provenance") or {}, {name: config["train"].get(name, AUTO) for name in _NAMES}
        if AUTO in chosen.values() or not all(name in made for name in ("device", *_MACHINE)):
            continue
        here = folder.provenance(device=made["device"])
        if all(made[name] == here[name] for name in _MACHINE):
            return {f"train.{name}": str(value) for name, value in chosen.items()}
    return {}
