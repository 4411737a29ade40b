"""Provenance of a result: version, commit, machine, seed and time."""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# a commit hook sets these, and git would then answer for the repository of the hook
_GIT_PLACES = (
    "GIT_DIR",
    "GIT_WORK_TREE",
    "GIT_INDEX_FILE",
    "GIT_OBJECT_DIRECTORY",
    "GIT_COMMON_DIR",
    "GIT_PREFIX",
    "GIT_NAMESPACE",
)


def commit_of(about: Mapping[str, Any]) -> str:
    """The commit of a `provenance` for a line on the version: ", commit 0123456789ab", and ", modified" where the files
    differ from it; "" if it is not known."""
    if not about["commit"]:
        return ""
    return f", commit {about['commit'][:12]}{', modified' if about['dirty'] else ''}"


def provenance(*, seed: int | None = None, device: Any = None) -> dict[str, Any]:
    """The provenance of a result as JSON values.

    Parameters
    ----------
    seed
        Seed of the result. Default: None.
    device
        Name or torch.device. Default: the CPU.

    Returns
    -------
    dict
        ``version`` of atent ("unknown" if it is not installed); ``commit`` of the source checkout and ``dirty``
        (whether the package's files differ from it), both None unless that checkout contains this package; the versions
        ``python``, ``torch`` and ``numpy``; ``device`` and ``device_name``; ``threads`` of torch on the CPU; ``seed``;
        ``time`` (UTC, ISO 8601, in seconds); for several processes their number ``processes`` and ``backend`` of their
        messages.

    Examples
    --------
    >>> from atent.runs import provenance
    >>> found = provenance(seed=3)
    >>> found["seed"], found["device"]
    (3, 'cpu')
    """
    import numpy
    import torch

    from atent.distributed.launch import described

    commit, dirty = _checkout()
    device = "cpu" if device is None else str(device)
    return {
        "version": _version(),
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": numpy.__version__,
        "device": device,
        "device_name": _device_name(device),
        "threads": torch.get_num_threads(),
        "seed": seed,
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **described(),
    }


def _version() -> str:
    try:
        return importlib.metadata.version("atent")
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def _device_name(device: str) -> str:
    if device.startswith("cuda"):
        import torch

        # a result read on another machine may name a GPU that is not there
        with contextlib.suppress(RuntimeError, AssertionError):
            return torch.cuda.get_device_name(device)
        return device
    if not device.startswith("cpu"):
        return device
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache
def _checkout() -> tuple[str | None, bool | None]:
    here = Path(__file__).resolve()
    # Fails where the repository around the package does not hold this file, as around a venv.
    answer = _git(here.parent, "rev-parse", "HEAD", f"HEAD:./{here.name}")
    if not answer:
        return None, None
    changes = _git(here.parents[1], "status", "--porcelain", "--", ".", ":(exclude,glob)**/__pycache__/**")
    return answer.split()[0], None if changes is None else bool(changes.strip())


def _git(folder: Path, *arguments: str) -> str | None:
    """The output of git, or None if it fails, times out, or is not installed."""
    environment = {key: value for key, value in os.environ.items() if key not in _GIT_PLACES}
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=5,
            stdin=subprocess.DEVNULL,
            env=environment,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout if done.returncode == 0 else None
