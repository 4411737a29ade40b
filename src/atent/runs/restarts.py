"""The run folder of a job that torchrun may start again: the second start resumes what the first began."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from atent.distributed import launch
from atent.runs import locks
from atent.runs.names import CONFIG, LOCK


@contextmanager
def claimed(root: str | Path, name: str, what: str, *, numbered: bool = True) -> Iterator[tuple[Path, bool]]:
    """As `locks.claimed`: a new run folder; where torchrun has started this job again, the one that it began before.

    Yields the folder, and whether there is a run in it to resume.
    """
    key = f"{what} {root}/{name}"
    before = launch.remember(key)
    if before is not None:
        # The lock may name a host that torchrun no longer uses; its process was of this job, and is gone.
        with locks.held(Path(before) / LOCK, what, steal=True):
            yield Path(before), (Path(before) / CONFIG).is_file()
        return
    with locks.claimed(root, name, what, numbered=numbered) as path:
        launch.remember(key, str(path))
        yield path, False
