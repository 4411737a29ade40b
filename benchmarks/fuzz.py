"""Coverage-guided fuzzing of the readers of files and text: `python benchmarks/fuzz.py idx --minutes 10`.

A target passes the fuzzer's bytes to a reader. The reader must return or raise a ValueError of one line; anything else
is a finding, whose bytes are kept once for each kind of exception and place. The corpus lies in tests/files/fuzz, with
the findings that were corrected: the tests give each of its files to its target. Without atheris (the extra `fuzz`) the
targets can be called, and the corpus run, as the tests do.
"""

from __future__ import annotations

import argparse
import contextlib
import gzip
import hashlib
import io
import json
import lzma
import os
import re
import subprocess
import sys
import tempfile
import traceback
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
CORPUS = ROOT / "tests" / "files" / "fuzz"
RESULTS = ROOT / "results" / "reliability" / "fuzz.json"


def _file(suffix: str, content: bytes) -> Path:
    """A file of that content, in a folder of this process that each call overwrites."""
    folder = Path(tempfile.gettempdir()) / f"atent-fuzz-{os.getpid()}"
    folder.mkdir(exist_ok=True)
    path = folder / f"input{suffix}"
    path.write_bytes(content)
    return path


def _packed(data: bytes, packers: dict[str, Callable[[bytes], bytes]]) -> Path:
    """The bytes after the first as a plain file, as one of a packed format, or packed in it, as the first byte says."""
    kind, content = data[:1], data[1:]
    suffix, pack = [*packers.items()][kind[0] % len(packers)] if kind else ("", bytes)
    return _file(suffix, pack(content) if kind and kind[0] >= 128 else content)


def idx(data: bytes) -> None:
    from atent.data.mnist import IMAGES, LABELS, idx

    path = _packed(data, {"": bytes, ".gz": gzip.compress})
    idx(path, LABELS if data[:1] and data[0] & 64 else IMAGES)


def cifar(data: bytes) -> None:
    from atent.data.cifar import absent, records

    if data[:1] == b"m":
        absent(_file(".csv", data[1:]))
    else:
        records(_packed(data, {"": bytes, ".xz": lzma.compress}))


def npz(data: bytes) -> None:
    from atent.data.npz import npz as read

    if data[:1] == b"P":
        read(str(_file(".npz", data)))
        return
    # A fuzzer finds no checksum of a zip archive: the members are its own, the archive is whole.
    parts = data[1:].split(b"|-|")
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if data[:1] == b"d" else zipfile.ZIP_STORED) as archive:
        for name, part in zip(("x_train", "y_train", "x_test", "y_test"), parts):
            archive.writestr(f"{name}.npy", part)
    read(str(_file(".npz", out.getvalue())))


def safetensors(data: bytes) -> None:
    from atent.runs.checkpoint import read_weights

    kind, content = data[:1], data[1:]
    if kind == b"h":  # a header whose length is right
        content = len(content).to_bytes(8, "little") + content
    elif kind == b"m":  # a whole file with this metadata
        about, _, state = content.decode("utf-8", "replace").partition("|-|")
        head = {"__metadata__": {"atent": about, "state": state}}
        head["w"] = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}  # type: ignore[dict-item]
        text = json.dumps(head).encode()
        content = len(text).to_bytes(8, "little") + text + b"\0\0\0\0"
    read_weights(_file(".safetensors", content))


def toml(data: bytes) -> None:
    from atent.experiments.recipe_files import read_recipe
    from atent.experiments.recipes import job

    with contextlib.redirect_stderr(io.StringIO()):
        job(read_recipe(str(_file(".toml", data))), "fuzz")


def config(data: bytes) -> None:
    from atent.runs import read_config, read_jsonl

    if data[:1] == b"l":
        read_jsonl(_file(".jsonl", data[1:]))
    else:
        read_config(_file(".json", data))


def attack(data: bytes) -> None:
    from atent import Threat
    from atent.attacks import ATTACKS
    from atent.attacks.spec import label, parse, spell

    made = parse(data.decode("utf-8", "replace"), Threat("linf", 8 / 255), ATTACKS)
    label(made)
    if parse(spell(made, threat=True), Threat("linf", 8 / 255), ATTACKS) != made:
        raise AssertionError(f"{made} is another when it is read from {spell(made, threat=True)}")


def threat(data: bytes) -> None:
    from atent.attacks.several import parse_threat
    from atent.attacks.spec import show

    show(parse_threat(data.decode("utf-8", "replace")))


def partial(data: bytes) -> None:
    from atent.evaluate.lines import Lines

    with contextlib.redirect_stderr(io.StringIO()):
        Lines(_file(".partial.jsonl", data), "evaluation", {"seed": 0})


def manifest(data: bytes) -> None:
    from atent.runs.manifest import check, states

    path = _file(".json", b"{}").with_name("run")
    path.mkdir(exist_ok=True)
    (path / "config.json").write_text('{"method": {}, "about": {}}')
    (path / "manifest.json").write_bytes(data)
    with contextlib.redirect_stderr(io.StringIO()):
        check(path, "config.json")
        states(path)


TARGETS: dict[str, Callable[[bytes], None]] = {
    each.__name__: each for each in (idx, cifar, npz, safetensors, toml, config, attack, threat, partial, manifest)
}
"""Name -> what gives bytes to a reader."""
# What is instrumented beside this package, which must be pure Python.
_MODULES = ["atent", "tomllib", "zipfile", "numpy.lib.format", "numpy.lib._format_impl"]


def tried(name: str, data: bytes) -> None:
    """Give the bytes to the target; raises what no reader may: all but a ValueError, or a missing file, of one line."""
    try:
        TARGETS[name](data)
    except (ValueError, FileNotFoundError) as error:
        text = str(error)
        # A recipe has a line for each mistake.
        lines = text.splitlines() if name == "toml" else [text]
        if not text or any("\n" in line or len(line) > 2000 for line in lines):
            raise AssertionError(f"not one short line: {text[:500]!r}") from error


def corpus(name: str) -> list[Path]:
    """The files of a target."""
    return sorted((CORPUS / name).iterdir())


def _fuzz(name: str, seconds: int, work: Path) -> None:
    """Run in a process of its own: the fuzzer, which never returns."""
    import atheris

    with atheris.instrument_imports(include=_MODULES):
        import atent.attacks.several
        import atent.data
        import atent.experiments.recipes
        import atent.methods
        import atent.runs.checkpoint

        _ = [*atent.attacks.ATTACKS], [*atent.data.SOURCES], [*atent.methods.METHODS]
    seen: set[str] = set()

    def one(data: bytes) -> None:
        try:
            tried(name, data)
        except Exception as error:
            frame = traceback.extract_tb(error.__traceback__)[-1]
            kind = f"{type(error).__name__}-{Path(frame.filename).stem}-{frame.lineno}"
            if kind not in seen:
                seen.add(kind)
                (work / "findings" / kind).write_bytes(data)
                print(f"finding {kind}: {str(error)[:300]}", flush=True)

    (work / "findings").mkdir(exist_ok=True)
    (work / "corpus").mkdir(exist_ok=True)
    flags = [f"-max_total_time={seconds}", "-max_len=4096", "-timeout=30", "-rss_limit_mb=4096", "-print_final_stats=1"]
    places = [str(work / "corpus"), str(CORPUS / name)]
    atheris.Setup([sys.argv[0], *flags, f"-artifact_prefix={work}/", *places], one)
    atheris.Fuzz()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("target", choices=[*TARGETS])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--work", type=Path, help="folder for the growing corpus and the findings")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    work = args.work or Path(tempfile.mkdtemp(prefix=f"fuzz-{args.target}-"))
    work.mkdir(parents=True, exist_ok=True)
    if args.child:
        _fuzz(args.target, round(60 * args.minutes), work)
        return 0
    command = [sys.executable, __file__, args.target, "--child", "--minutes", str(args.minutes), "--work", str(work)]
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    text = done.stdout + done.stderr
    (work / "log").write_text(text)
    record(args.target, args.minutes, text, sorted(p.name for p in (work / "findings").glob("*")), done.returncode)
    print(f"findings, corpus and log: {work}")
    return done.returncode


def record(name: str, minutes: float, text: str, findings: list[str], status: int) -> None:
    """Write what the fuzzer reached into the file of results, and print it."""
    executions = re.search(r"stat::number_of_executed_units: *(\d+)", text)
    coverage = re.findall(r"cov: (\d+) ft: (\d+) corp: (\d+)/", text)
    found: dict[str, Any] = {
        "minutes": minutes,
        "executions": int(executions[1]) if executions else None,
        "coverage": dict(zip(("edges", "features", "inputs"), map(int, coverage[-1]))) if coverage else None,
        "findings": findings,
        "status": status,
        "corpus": {p.name: hashlib.sha256(p.read_bytes()).hexdigest()[:12] for p in corpus(name)},
    }
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    RESULTS.write_text(json.dumps({**known, name: found}, indent=2, sort_keys=True) + "\n")
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    sys.exit(main())
