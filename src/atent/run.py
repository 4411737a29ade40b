"""Run folders: atomic files, JSON that stays valid, provenance and intervals."""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import difflib
import functools
import importlib.metadata
import json
import math
import operator
import os
import platform
import re
import secrets
import subprocess
from collections.abc import Callable, Iterable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

CONFIG = "config.json"
METRICS = "metrics.jsonl"
BEST = "best.safetensors"
LAST = "last"
EVALUATION = "evaluation.json"
CURVES = "curves.png"

# torch and safetensors report a full disk as errors that are no OSError, and torch without the reason
_WRITER = re.compile(r"inline_container|iostream error|PytorchStreamWriter|\(os error \d+\)")

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


# ---- files that are whole or not there -------------------------------------------------------------------


@contextlib.contextmanager
def atomic(path: str | Path) -> Iterator[Path]:
    """A temporary path in the folder of `path`, renamed to `path` when the block ends well.

    For libraries that write files themselves; the suffix is that of `path`. When the block raises, whatever
    it raises, the temporary file is removed and an earlier `path` stays as it was.

    Raises OSError of one line, with `errno` where known, when the file cannot be written; the write errors of
    torch and safetensors are turned into it. Any other exception of the block passes through.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        # safetensors writes for the owner alone; every other file of a run is readable as the umask says
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if not _is_write_failure(error):
            raise
        raise _write_error(path, temporary, error) from error


def _umask() -> int:
    """The process's umask, which Python only shows by setting it."""
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def write_atomic(path: str | Path, data: bytes | str) -> None:
    """Writes `data` (text as UTF-8) to `path`: all of it, or nothing. Raises OSError as `atomic` does."""
    with atomic(path) as temporary, open(temporary, "xb") as file:
        file.write(data.encode() if isinstance(data, str) else data)


def _is_write_failure(error: BaseException) -> bool:
    return isinstance(error, OSError) or (isinstance(error, Exception) and bool(_WRITER.search(str(error))))


def _write_error(path: Path, temporary: Path | None, error: BaseException) -> OSError:
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    if cause is None:
        reason = " ".join(str(error).split()) + " (is the disk full, or a quota reached?)"
        number = None
    else:
        reason = cause.strerror or " ".join(str(cause).split())
        number = cause.errno
        other = cause.filename
        if isinstance(other, str | Path) and Path(other) not in (path, temporary):
            reason += f" ({other})"
    kept = "the earlier file is intact" if os.path.lexists(path) else "nothing was written"
    # one argument only, since OSError puts "[Errno n]" before the text when it is given two
    result = OSError(f"cannot write {path}: {reason}; {kept}")
    result.errno = number
    return result


# ---- JSON ------------------------------------------------------------------------------------------------


def write_json(path: str | Path, obj: Any) -> None:
    """Writes `obj` as JSON, indented by 2, keys in their own order, by `write_atomic`.

    Dataclasses become objects, tuples and arrays lists, paths and fractions ("8/255") strings; float32
    values are written with their own shortest digits. Raises ValueError, naming the key path, for NaN,
    infinity, or a value that JSON does not have; OSError as `write_atomic`.
    """
    plain = _plain(obj, "", Path(path).name)
    write_atomic(path, json.dumps(plain, indent=2, allow_nan=False) + "\n")


def plain(obj: Any) -> Any:
    """`obj` in JSON's own types, as `write_json` writes it. Raises ValueError as `write_json`."""
    return _plain(obj, "", "value")


def dumps(obj: Any) -> str:
    """`obj` as one line of JSON with sorted keys: equal settings give equal text. Raises as `write_json`."""
    return json.dumps(_plain(obj, "", "value"), sort_keys=True, allow_nan=False)


def read_json(path: str | Path) -> Any:
    """The content of a JSON file. Raises ValueError of one line if it is broken, FileNotFoundError."""
    return _parse(Path(path).read_bytes(), str(path))


def read_config(path: str | Path) -> dict[str, Any]:
    """The config.json at ``path``, `completed`. Raises as `read_json`."""
    return completed(read_json(path))


def completed(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration with what the absence of a setting means: runs made before data.subset took the first
    samples."""
    data = config.get("data") if isinstance(config, dict) else None
    if not isinstance(data, dict) or "subset" in data:
        return config
    return {**config, "data": {**data, "subset": "first"}}


def append_jsonl(path: str | Path, row: dict) -> None:
    """Appends one row, as one line; a torn last line, left by a kill, is cut off first.

    Raises ValueError as `write_json`, and OSError of one line if the row cannot be written: the rows before
    it stay. One process writes at a time.
    """
    path = Path(path)
    line = json.dumps(_plain(row, "", path.name), allow_nan=False).encode() + b"\n"
    try:
        # unbuffered, or closing the file would write the row a second time after it was cut off
        with open(path, "ab+", buffering=0) as file:
            end, gap = _mend(file)
            file.truncate(end)
            try:
                written = file.write(gap + line)
                if written != len(gap + line):
                    file.write((gap + line)[written:])
                os.fsync(file.fileno())
            except BaseException:
                file.truncate(end)
                raise
    except OSError as error:
        raise _write_error(path, None, error) from error


def read_jsonl(path: str | Path) -> list[dict]:
    """The rows of a JSON-lines file, without a torn last line (a kill in mid-write leaves one).

    Raises ValueError of one line, with the line number, for a broken line elsewhere; FileNotFoundError.
    """
    *lines, tail = Path(path).read_bytes().split(b"\n")
    if _is_row(tail):
        lines.append(tail)
    rows = []
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        row = _parse(line, f"{path}, line {number}")
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number}: expected an object, found {type(row).__name__}")
        rows.append(row)
    return rows


def keep_jsonl(path: str | Path, keep: Callable[[dict], bool]) -> None:
    """Rewrites a JSON-lines file with the rows for which `keep(row)` holds, atomically.

    Raises as `read_jsonl` and `write_atomic`.
    """
    rows = [row for row in read_jsonl(path) if keep(row)]
    write_atomic(path, "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows))


def _mend(file) -> tuple[int, bytes]:
    """Where the whole rows of an open file end, and the newline that is missing there, if one is."""
    file.seek(0)
    content = file.read()
    start = content.rfind(b"\n") + 1
    if start == len(content):
        return start, b""
    return (len(content), b"\n") if _is_row(content[start:]) else (start, b"")


def _is_row(line: bytes) -> bool:
    # no proper prefix of an object is an object, so a line that parses to one is complete
    try:
        return isinstance(_parse(line, ""), dict)
    except ValueError:
        return False


def _parse(data: bytes, where: str) -> Any:
    def refuse(name):
        raise ValueError(f"holds {name}, which is not JSON")

    try:
        return json.loads(data.decode(), parse_constant=refuse)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno} column {error.colno}"
        raise ValueError(f"{where}: not valid JSON at {place}: {error.msg}") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not valid JSON: {' '.join(str(error).split())}") from None


def _plain(obj: Any, where: str, name: str) -> Any:
    if obj is None or isinstance(obj, bool | str):
        return str(obj) if isinstance(obj, str) else obj
    if isinstance(obj, int):
        return int(obj)
    # numpy's float64 is a float, and is exact as it stands
    if isinstance(obj, float):
        if not math.isfinite(obj):
            raise ValueError(f"{name}: {where or 'the value'} is {float(obj)}, which JSON cannot hold")
        return float(obj)
    if isinstance(obj, os.PathLike | Fraction):
        return str(obj)
    if dataclasses.is_dataclass(obj) and not isinstance(obj, type):
        obj = {field.name: getattr(obj, field.name) for field in dataclasses.fields(obj)}
    if isinstance(obj, dict):
        return _plain_dict(obj, where, name)
    if isinstance(obj, list | tuple):
        return [_plain(item, f"{where}[{i}]", name) for i, item in enumerate(obj)]
    if hasattr(obj, "tolist"):
        return _plain(_shortest(obj), where, name)
    raise ValueError(f"{name}: {where or 'the value'} is a {type(obj).__name__}, which JSON cannot hold")


def _plain_dict(obj: dict, where: str, name: str) -> dict:
    result = {}
    for key, value in obj.items():
        # an int key is common (a class, an epoch); any other would come back as something else
        if not isinstance(key, str) and (not isinstance(key, int) or isinstance(key, bool)):
            raise ValueError(f"{name}: {where or 'the value'} has the key {key!r}, not a string or integer")
        text = str(key)
        if text in result:
            raise ValueError(f"{name}: {where or 'the value'} has the key {text!r} twice")
        result[text] = _plain(value, f"{where}.{text}" if where else text, name)
    return result


def _shortest(array: Any) -> Any:
    """Numbers of an array or scalar as Python's; float32 0.1 as 0.1, not as 0.10000000149011612."""
    values = array.tolist()
    if not str(array.dtype).endswith("float32"):
        return values
    import numpy

    def short(value):
        if isinstance(value, list):
            return [short(item) for item in value]
        return float(str(numpy.float32(value)))

    return short(values)


# ---- folders ---------------------------------------------------------------------------------------------


def create(path: str | Path) -> Path:
    """Makes a run folder, with its parents; an empty one is taken as it is.

    Raises FileExistsError of one line if something is there already, OSError if it cannot be made.
    """
    path = Path(path)
    if not _is_free(path):
        raise FileExistsError(f"{path} exists and is not empty: choose another --name, or --resume")
    path.mkdir(parents=True, exist_ok=True)
    return path


def free_name(root: str | Path, name: str) -> Path:
    """The first of root/name, root/name-2, root/name-3 ... that `create` would take; makes nothing.

    Raises ValueError if `name` is not the name of one folder.
    """
    if name in ("", ".", "..") or "/" in name or "\\" in name or "\0" in name:
        raise ValueError(f"a run name is the name of one folder, without slashes, not {name!r}")
    path, number = Path(root) / name, 1
    while not _is_free(path):
        number += 1
        path = Path(root) / f"{name}-{number}"
    return path


def _is_free(path: Path) -> bool:
    if not os.path.lexists(path):
        return True
    return path.is_dir() and next(path.iterdir(), None) is None


# ---- provenance ------------------------------------------------------------------------------------------


def provenance(*, seed: int | None = None, device: Any = None) -> dict:
    """What a result must stand beside, ready for JSON.

    Keys: `version` of atent ("unknown" when it is not installed); `commit` of the source checkout and `dirty`
    (the package's files differ from it), both None unless that checkout holds this package; `python`,
    `torch`, `numpy` versions; `device` as given (a name or torch.device; None is the CPU) and `device_name`;
    `threads` of torch on the CPU; `seed`; `time` (UTC, ISO 8601, whole seconds).
    """
    import numpy
    import torch

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
    package = Path(__file__).resolve().parent
    # HEAD:./run.py fails where the repository around the package does not hold it, as around a venv
    answer = _git(package, "rev-parse", "HEAD", "HEAD:./run.py")
    if not answer:
        return None, None
    changes = _git(package, "status", "--porcelain", "--", ".", ":(exclude,glob)**/__pycache__/**")
    return answer.split()[0], None if changes is None else bool(changes.strip())


def _git(folder: Path, *arguments: str) -> str | None:
    """What git prints, or None where it fails, is slow, or is not installed."""
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


# ---- numbers and names -----------------------------------------------------------------------------------


def interval(k: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """The exact (Clopper-Pearson, 1934) two-sided interval of a share, from k successes in n trials.

    Each end has (1 - level)/2 outside it, also for k = 0 and k = n, where one end is 0 or 1. Raises
    ValueError unless n > 0, 0 <= k <= n, both are whole, and 0 < level < 1.
    """
    k, n = _whole("k", k), _whole("n", n)
    if n <= 0:
        raise ValueError(f"an interval needs n > 0 samples, not n = {n}")
    if not 0 <= k <= n:
        raise ValueError(f"k must lie in 0..n, not k = {k} with n = {n}")
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    tail = (1 - level) / 2
    return _lower(k, n, tail), 1 - _lower(n - k, n, tail)


def lower_limit(k: int, n: int, alpha: float) -> float:
    """The exact one-sided lower limit of a share (Clopper-Pearson, 1934): the share lies below it with probability at
    most ``alpha``, from k successes in n trials.

    Raises ValueError unless n > 0, 0 <= k <= n, both are whole, and 0 < alpha < 1.
    """
    k, n = _whole("k", k), _whole("n", n)
    if n <= 0 or not 0 <= k <= n:
        raise ValueError(f"a limit needs n > 0 samples and k in 0..n, not k = {k} with n = {n}")
    if not 0 < alpha < 1:
        raise ValueError(f"alpha must lie between 0 and 1, not {alpha}")
    return _lower(k, n, alpha)


def share(k: int, n: int) -> dict:
    """k of n as {"value", "low", "high", "k", "n"}, with the 95 % interval. Raises as `interval`."""
    low, high = interval(k, n)
    k, n = int(k), int(n)
    return {"value": k / n, "low": low, "high": high, "k": k, "n": n}


def percent(share: dict) -> str:
    """A share for people: "98.2 % [96.6, 99.2]"."""
    return f"{100 * share['value']:.1f} % [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"


def _lower(k: int, n: int, tail: float) -> float:
    # betaincinv is nan at k = 0
    if k == 0:
        return 0.0
    from scipy.special import betaincinv

    return float(betaincinv(k, n - k + 1, tail))


def _whole(name: str, value: Any) -> int:
    try:
        return operator.index(value)
    except TypeError:
        raise ValueError(f"{name} must be a whole number, not {value!r}") from None


def nearest(name: str, names: Iterable[str]) -> str | None:
    """The one of `names` that `name` was probably meant to be, or None; case does not count."""
    lower = {known.lower(): known for known in names}
    found = difflib.get_close_matches(name.lower(), lower, n=1)
    return lower[found[0]] if found else None


def unknown(kind: str, name: str, names: Iterable[str]) -> str:
    """One line for a bad name: "unknown model 'resnt20': did you mean 'resnet20'? (known: ...)".

    A list of more than twenty names is left out where one of them is near.
    """
    names = list(names)
    meant = nearest(name, names)
    hint = f": did you mean {meant!r}?" if meant else ""
    known = "" if meant and len(names) > 20 else f" (known: {', '.join(names) or 'none'})"
    return f"unknown {kind} {name!r}{hint}{known}"
