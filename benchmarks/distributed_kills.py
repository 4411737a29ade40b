"""Kill ranks of a training that torchrun starts again: no epoch that was written is lost, and the weights are the same.

    python benchmarks/distributed_kills.py FOLDER --kills 30

trains once uninterrupted and once under kills, each time on two processes: SIGKILL to a random rank at a random time
within an epoch. Before each kill the rows of metrics.jsonl are noted, which must all be there in the end. ``--stop``
interrupts the training after these kills, and the next call with the same FOLDER resumes it; without it the training
runs to its end, and its rows and weights are compared with those of the unbroken one. ``--compare`` compares again what
an earlier call left in FOLDER. ``--out`` writes the comparison, with the run's provenance.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from safetensors.torch import load_file

from atent.runs import write_json

OWN = ("seconds", "memory_mb", "elapsed")
"""What the rows of two equal trainings do not share."""
TINY = (
    "--data.limit", "128", "--data.test_limit", "40", "--train.device", "cpu", "--train.validate_limit", "20",
    "--evaluate.limit", "20", "--evaluate.attacks", "FGSM", "--no-baseline", "--quiet",
)  # fmt: skip


def torchrun(folder: Path, *words: str, restarts: int = 0, log: str) -> subprocess.Popen:
    """A training on two processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["--max-restarts", str(restarts), "--monitor-interval", "0.1", "-m", "atent", "train", *words]
    with (folder / log).open("a") as file:
        return subprocess.Popen(command, cwd=folder, stdout=file, stderr=subprocess.STDOUT)


def ranks_of(torchrun: int) -> dict[int, int]:
    """The processes of the ranks, by rank."""
    found = {}
    for entry in Path("/proc").iterdir():
        try:
            parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            environ = (entry / "environ").read_bytes().split(b"\0") if parent == torchrun else []
        except (OSError, ValueError, IndexError):
            continue
        found |= {int(each[5:]): int(entry.name) for each in environ if each.startswith(b"RANK=")}
    return found


def rows_of(run: Path) -> list[str]:
    """The whole rows of the epochs so far."""
    path = run / "metrics.jsonl"
    return (
        [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.is_file() else []
    )


def killed(process: subprocess.Popen, run: Path, kills: int, draw: random.Random) -> list[str]:
    """Kill so many ranks, one after another; the rows that were there before any kill."""
    kept = rows_of(run)
    for _ in range(kills):
        begun, end = len(rows_of(run)), time.monotonic() + 120
        while len(rows_of(run)) == begun:
            if process.poll() is not None or time.monotonic() > end:
                raise SystemExit(f"the training ended, or came to no new epoch after {begun}: see the log")
            time.sleep(0.01)
        time.sleep(draw.uniform(0.0, 0.3))
        now = rows_of(run)
        assert now[: len(kept)] == kept, "an epoch that was written is lost"
        kept = now
        rank = draw.randrange(2)
        # Where the survivor of the kill before wrote the epoch, the ranks have yet to start again.
        while rank not in (there := ranks_of(process.pid)) and process.poll() is None:
            time.sleep(0.01)
        os.kill(there[rank], signal.SIGKILL)
        print(f"killed rank {rank} after {len(kept)} epochs", flush=True)
    return kept


def stopped(process: subprocess.Popen, run: Path) -> None:
    """Interrupt a training after its next epoch."""
    begun = len(rows_of(run))
    while len(rows_of(run)) == begun and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    process.wait()


def compared(unbroken: Path, broken: Path) -> dict[str, object]:
    """Whether two runs have the same rows, but for their times, and the same weights, bit for bit."""
    plain = [
        [{k: v for k, v in json.loads(row).items() if k not in OWN} for row in rows_of(r)] for r in (unbroken, broken)
    ]
    same = {}
    for name in ("best.safetensors", "last/model.safetensors"):
        a, b = load_file(unbroken / name), load_file(broken / name)
        same[name] = a.keys() == b.keys() and all(a[k].equal(b[k]) for k in a)
    return {"epochs": len(plain[0]), "rows": plain[0] == plain[1], **same}


def ended(runs: Path, kills: int, given: argparse.Namespace) -> int:
    """Print and write the comparison; 1 where anything differs."""
    same = compared(runs / "unbroken", runs / "killed")
    made = json.loads((runs / "killed" / "config.json").read_text())["provenance"]
    found = {"benchmark": "distributed_kills", "kills": kills, "seed": given.seed, **same, "provenance": made}
    print(json.dumps(found))
    if given.out:
        write_json(given.out, found)
    return 0 if all(same.values()) else 1


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--stop", action="store_true", help="interrupt the training after the kills")
    parser.add_argument("--compare", action="store_true", help="compare alone: nothing is trained")
    parser.add_argument("--out", type=Path, help="JSON file for the comparison")
    given = parser.parse_args()
    folder, noted = given.folder, given.folder / "kills.json"
    folder.mkdir(parents=True, exist_ok=True)
    new = ["digits-linf-atent", *TINY, "--train.epochs", str(given.epochs)]
    runs = folder / "runs"
    if given.compare:
        return ended(runs, json.loads(noted.read_text())["kills"], given)
    if not (runs / "unbroken" / "evaluation.json").is_file():
        assert torchrun(folder, *new, "--name", "unbroken", log="unbroken.log").wait() == 0, "see unbroken.log"
    before = json.loads(noted.read_text()) if noted.is_file() else {"kills": 0, "rows": []}
    words = ["--resume", "runs/killed", "--quiet"] if before["kills"] else [*new, "--name", "killed"]
    process = torchrun(folder, *words, restarts=given.kills + 1, log="killed.log")
    kept = killed(process, runs / "killed", given.kills, random.Random(given.seed + before["kills"]))
    assert kept[: len(before["rows"])] == before["rows"], "an epoch that was written is lost"
    noted.write_text(json.dumps({"kills": before["kills"] + given.kills, "rows": kept}))
    if given.stop:
        stopped(process, runs / "killed")
        return 0
    assert process.wait() == 0, "see killed.log"
    assert rows_of(runs / "killed")[: len(kept)] == kept, "an epoch that was written is lost"
    return ended(runs, before["kills"] + given.kills, given)


if __name__ == "__main__":
    sys.exit(main())
