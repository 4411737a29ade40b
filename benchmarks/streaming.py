"""Cost of data on disk: decoded images per second by threads, and a step of ResNet-20 from memory and from disk.

    python benchmarks/streaming.py [--images 240] [--repeats 5] [--out results/speed/streaming.json]

CPU seconds are those of the process, all threads together; the wall clock needs a machine without other work.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

from atent.data import Data, DataSettings, load
from atent.data.images import decoded, form_of, listing
from atent.models import build
from atent.runs import provenance, write_json

BATCH, STEPS = 128, 4


def main() -> None:
    """Measure in a temporary folder, print, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=240, help="photographs to decode")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    given = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        found = {
            "images": given.images, "repeats": given.repeats,
            **decoding(Path(place) / "photos", given.images, given.repeats),
            **steps(Path(place) / "small", given.repeats),
        }  # fmt: skip
    if given.out:
        write_json(given.out, {**found, "provenance": provenance()})


def timed(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, tuple[float, float]]:
    """Median CPU and wall seconds of each, interleaved, after one that is not counted."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for _ in range(repeats + 1):
        for name, work in works.items():
            cpu, wall = time.process_time(), time.perf_counter()
            work()
            found[name].append((time.process_time() - cpu, time.perf_counter() - wall))
    return {name: (median(c for c, _ in kept[1:]), median(w for _, w in kept[1:])) for name, kept in found.items()}


def decoding(root: Path, n: int, repeats: int) -> dict[str, Any]:
    """Images per CPU second: JPEG files of 500 x 375 pixels, smooth random images, to two sizes by one and by two
    threads."""
    rng = np.random.default_rng(0)
    for i in range(n):
        path = root / "ab"[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (47, 63, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(path, quality=90)
    part, rates = listing(root, root), {}
    size_of = float(part.stamps[:, 0].mean()) / 1000
    print(f"{n} JPEG files of 500 x 375, {size_of:.0f} kB each")
    for size in (224, 64):
        form = form_of([part], size, 1)
        found = timed({str(w): partial(decoded, part, range(n), form, w) for w in (1, 2)}, repeats)
        rates[str(size)] = {threads: n / cpu for threads, (cpu, _) in found.items()}
        for threads, (cpu, wall) in found.items():
            print(f"  to {size} by {threads} threads: {n / cpu:.0f} images per CPU second, {n / wall:.0f} per second")
    return {"kilobytes": size_of, "images_per_cpu_second": rates}


def steps(root: Path, repeats: int) -> dict[str, Any]:
    """CPU milliseconds of batches of 32 x 32 colour images, and of steps of standard training on them."""
    rng = np.random.default_rng(0)
    for part, n in (("train", 1024), ("test", 16)):
        for name in "ab":
            (root / part / name).mkdir(parents=True)
            for i in range(n):
                pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(root / part / name / f"{i}.bmp")
    memory = DataSettings("folder", root=str(root), resident=True)
    disk = replace(memory, resident=False)
    data = {"memory": load(memory), "cache": load(disk), "decoded": load(replace(disk, cache="off"))}
    order = torch.randperm(len(data["memory"].train), generator=torch.Generator().manual_seed(0))
    parts = [slice(i * BATCH, (i + 1) * BATCH) for i in range(STEPS)]
    torch.manual_seed(0)
    model = build("resnet20")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)

    def batches(source: Data, train: bool) -> None:
        source.train.expect(order, parts)
        for part in parts:
            x, y = source.train.batch(order[part])
            if train:
                optimizer.zero_grad()
                cross_entropy(model(x), y).backward()
                optimizer.step()

    milliseconds = {}
    for what, train in (("batch", False), ("step", True)):
        works = {name: partial(batches, source, train) for name, source in data.items()}
        found = timed(works, repeats)
        milliseconds[what] = {name: 1000 * cpu / STEPS for name, (cpu, _) in found.items()}
        shown = ", ".join(f"{name} {each:.2f} ms" for name, each in milliseconds[what].items())
        print(f"{what} of {BATCH} images, CPU: {shown}")
    return {"batch": BATCH, "cpu_milliseconds": milliseconds}


if __name__ == "__main__":
    main()
