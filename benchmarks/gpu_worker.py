"""One item of the GPU queue, in a process of its own, which may break without the queue; `gpu.py` starts it.

    python gpu_worker.py NAME STATE OUT UNTIL DEVICE

UNTIL is a time of `time.time()`: before it, the work is saved and the process ends. Trainings, measurements and attacks
are those of the CPU's queue (campaign_worker.py); here are the checks and the timings.
"""

from __future__ import annotations

import json
import re
import statistics
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from campaign import INTERRUPTED, State, write
from campaign_worker import WORK, Beat, Work
from gpu_counts import Counted

from atent import runs as folder
from atent import signals
from atent.data import Data, from_tensors
from atent.data import load as load_data
from atent.experiments.job import Job
from atent.models import make
from atent.paper import engine
from atent.rng import fold
from atent.train import fit
from atent.train.callbacks import Callback, Progress
from atent.train.interrupt import Interrupted

WARM, BLOCK, BLOCKS = 8, 5, 6
"""Steps before those that are timed, steps between two looks at the clock, and how many looks."""
SECONDS = 30.0
"""Of timing, at most."""
IMAGES = 48_928
"""Training images of CIFAR-10 as it is here, less the validation split: the epoch of a timing."""


# ---- checks ------------------------------------------------------------------------------------------------


def smoke(work: Work, until: float, device: torch.device) -> None:
    """Every check, once, each caught and recorded; one in which the process died is not tried again."""
    import gpu_smoke

    path, of = work.out / "smoke.json", work.job["of"]
    work.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    spent = sum(entry.get("seconds", 0.0) for entry in found.values())
    for name, check in gpu_smoke.checks().items():
        if (name in found and found[name]["status"] != "begun") or not re.search(of.get("only", ""), name):
            continue
        if name in found:
            found[name] = {"status": "died"}
        elif spent > 60 * of.get("minutes", 3.0):
            found[name] = {"status": "not run", "error": "the minutes of the checks are over"}
        else:
            if time.time() > until:
                raise Interrupted("time limit reached: the next slice resumes")
            found[name] = {"status": "begun"}
            write(path, found)
            found[name] = _checked(check, device)
            spent += found[name]["seconds"]
        write(path, found)
        _show(name, found[name])
        if found[name]["status"] == "failed" and not _alive(device):
            raise Interrupted("the device no longer responds: the checks continue in a new process")
    write(work.out / "job.json", work.describe(provenance=folder.provenance(seed=0, device=device)))


def _checked(check: Callable[[torch.device], dict[str, Any]], device: torch.device) -> dict[str, Any]:
    import gpu_smoke

    begun = time.perf_counter()
    try:
        entry = {"status": "ok", "found": check(device)}
    except gpu_smoke.Skipped as error:
        entry = {"status": "skipped", "error": str(error)}
    except Exception as error:  # whatever a device that was never tried does
        line = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        entry = {"status": "failed", "error": line, "traceback": traceback.format_exc()[-2000:]}
    return {**entry, "seconds": round(time.perf_counter() - begun, 2)}


def _show(name: str, entry: dict[str, Any]) -> None:
    print(f"{entry['status']:8} {name} {entry.get('error', '')}", flush=True)


def _alive(device: torch.device) -> bool:
    """Whether the device still computes: after some errors nothing does in the same process."""
    try:
        return float(torch.rand(2, device=device).sum()) <= 2.0
    except Exception:
        return False


# ---- speed -------------------------------------------------------------------------------------------------


class Enough(Exception):
    """The timing is over."""


class Stopwatch(Callback):
    """Times blocks of steps and then counts one step's launches; the device is waited for between blocks alone."""

    def __init__(self, device: torch.device, until: float) -> None:
        self.device, self.until = device, until
        self.blocks: list[float] = []
        self.steps, self.counts = 0, Counted(device)
        self._since = 0.0
        self._counting = False

    def step(self, progress: Progress) -> None:
        """After each step."""
        if self._counting:
            self.counts.__exit__(None, None, None)
            raise Enough
        self.steps += 1
        if self.steps < WARM or (self.steps - WARM) % BLOCK:
            return
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        if self.steps > WARM:
            self.blocks.append((now - self._since) / BLOCK)
        self._since = now
        late = sum(self.blocks) * BLOCK > SECONDS or time.time() > self.until
        if len(self.blocks) == BLOCKS or (late and self.blocks):
            self._counting = True
            self.counts.__enter__()


def speed(work: Work, until: float, device: torch.device) -> None:
    """Seconds of an epoch of a training, from some of its steps, in the loop that trains."""
    made = engine.job(work.bench, work.training(), work.job["seed"])
    data, said = _data(made), []
    model = make(made.model, classes=data.classes, shape=data.shape, seed=fold(0, "weights"))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    watch = Stopwatch(device, until)
    # Nothing but steps: a checkpoint inside an epoch waits for the device.
    settings = replace(made.train, patience=None, validate_attack="none", select="last", watch="off", save_minutes=None)
    try:
        fit(
            model, data, made.method, optimizer=made.optimizer, schedule=made.schedule, settings=settings,
            augmentation=made.data.augment, progress=False, say=said.append, callbacks=[watch],
        )  # fmt: skip
        raise ValueError(f"{work.record['name']} ended after {watch.steps} steps: give it more epochs")
    except Enough:
        pass
    step, batch = statistics.median(watch.blocks), made.train.batch_size
    images = work.job["of"].get("images", IMAGES)
    write(work.out / "speed.json", {
        "model": made.model.name, "method": type(made.method).__name__, "awp": bool(made.train.awp.gamma),
        "batch_size": batch, "precision": made.train.precision, "channels_last": made.train.channels_last,
        "cuda_graphs": made.train.cuda_graphs, "seconds_per_step": step,
        "blocks": {"steps": BLOCK, "seconds_per_step": watch.blocks}, "images": images,
        "seconds_per_epoch": step * -(-images // batch), "goal": work.job["of"].get("goal"),
        "published": work.job["of"].get("published"), "one_step": watch.counts.found(), "said": said,
        "memory_mib": torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None,
        "provenance": folder.provenance(seed=0, device=device),
    })  # fmt: skip
    write(work.out / "job.json", work.describe())
    print(f"{1e3 * step:.1f} ms a step, {step * -(-images // batch):.1f} s an epoch", flush=True)


def _data(made: Job) -> Data:
    """Random images in CIFAR-10's place, which takes as long; other data are those of the recipe."""
    if made.data.name != "cifar10":
        return load_data(made.data)
    rng = torch.Generator().manual_seed(0)
    x = torch.randint(256, (IMAGES + 1000, 3, 32, 32), dtype=torch.uint8, generator=rng)
    y = torch.arange(len(x)) % 10
    return from_tensors(x, y, x[:100], y[:100], validation=1000)


# ---- the process -------------------------------------------------------------------------------------------


def adapted(job: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The job for the device: GPU-only settings are removed on a CPU."""
    train = {**job["train"], "device": str(device)}
    if device.type == "cpu":
        train = {k: v for k, v in train.items() if k not in ("precision", "cuda_graphs")}
    return {**job, "train": train}


def main(name: str, place: str, out: str, until: str, device: str) -> int:
    """Exit status 0 done, 3 saved and stopped, 1 failed with the reason as the last line of the log."""
    state = State(Path(place))
    record = json.loads((state.place / "jobs" / f"{name}.json").read_text())
    beat = Beat(state.beat_file(name))
    beat.start()
    try:
        with signals.raising():
            where, kind = torch.device(device), record["job"]["kind"]
            work = Work({**record, "job": adapted(record["job"], where)}, state, Path(out), beat)
            work.bench = replace(work.bench, deadline=time.monotonic() + float(until) - time.time())
            work.out.mkdir(parents=True, exist_ok=True)
            if kind in OWN:
                OWN[kind](work, float(until), where)
            else:
                WORK[kind](work)
    except Interrupted as stop:
        print(stop, flush=True)
        return INTERRUPTED
    except signals.Stopped:
        print("interrupted: saved results are unchanged", flush=True)
        return INTERRUPTED
    except Exception as error:  # the queue continues, whatever it was
        traceback.print_exc()
        print(f"{type(error).__name__}: {' '.join(str(error).split())[:500] or 'no message'}", flush=True)
        return 1
    finally:
        beat.end()
    return 0


OWN: dict[str, Callable[[Work, float, torch.device], None]] = {"smoke": smoke, "speed": speed}

if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
