"""Files of a training in its run folder: checkpoints, the weights of the best epochs, the history.

A checkpoint contains everything for an exact resume, including the history; the previous one is kept, and so are its
best weights. At any time, also after a kill, the folder has two checkpoints and the weights of the best epoch of each.

With several ranks, which have equal weights, only rank 0 reads and writes it.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn

from atent import runs as folder
from atent.distributed import alone, current
from atent.optim import Average
from atent.runs import manifest
from atent.runs.checkpoint import add_state, fill, find_state, held, load_weights, read_weights
from atent.runs.names import CONFIG, LAST, METRICS, PREVIOUS, STATE, WEIGHTS
from atent.runs.weights import Snapshot, State, copied, put
from atent.train import restorable
from atent.train.agreement import CPU, to
from atent.train.settings import TrainSettings

_LEAST_SECONDS = 60.0
_SHARE = 0.01
"""Maximum share of the time between two checkpoints for saving one."""


def identified(config: dict[str, Any], run: Path | None, resume: bool) -> dict[str, Any]:
    """A configuration with the id of its run: a new one, or that of the resumed run, if it has one."""
    return alone(lambda: _identified(config, run, resume))


def _identified(config: dict[str, Any], run: Path | None, resume: bool) -> dict[str, Any]:
    config = {key: value for key, value in config.items() if key != "id"}
    if not (resume and run is not None and (run / CONFIG).is_file()):
        return {"id": secrets.token_hex(8), **config}
    manifest.check(run, CONFIG)
    known = manifest.run_id(run)
    return {"id": known, **config} if known else config


class Keeper:
    """The files of one training; without a run folder, the best weights in memory.

    Parameters
    ----------
    path
        The run folder, or None.
    model, begun, average
        The network, a snapshot of its state at the start, and the average of its weights.
    settings
        Used for `train.save_minutes` and the kind of the average.
    device
        The device of the training.
    say
        Called with a line for each file that a resume restores.
    """

    def __init__(
        self, path: Path | None, model: nn.Module, begun: Snapshot, average: Average | None, settings: TrainSettings,
        device: torch.device, say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.path, self.model, self.begun, self.average = path, model, begun, average
        self.writes = current().first
        self.settings, self.device, self.say = settings, device, say
        self._lines: list[str] = []
        self._sums: dict[str, manifest.Sum] = {}
        self._held: dict[str, Callable[[Path], None]] = {}
        self._best: tuple[State, list[str]] | None = None
        self._fallback: str | None = None
        self._begun = self._saved_at = time.perf_counter()
        self._seconds = self._spent = 0.0

    # ---- saving

    def begin(self, config: dict[str, Any], state: Callable[[], dict[str, Any]]) -> None:
        """Create the run folder, with the checkpoint of step 0 and, last, config.json, which identifies it as a run."""
        if self.path is None:
            return
        path, found = self.path, self._with_history(state())
        restorable.check(found)

        def write() -> None:
            folder.create(path)
            with manifest.sealed(path, config["id"], self._sums) as files:
                add_state(files, found)
                files.write(CONFIG, folder.as_json(folder.signed(config), CONFIG))

        alone(write)

    def add(self, row: Mapping[str, Any]) -> None:
        """Add the row of an epoch to the history, which is written with the next checkpoint."""
        if self.path is not None:
            self._lines.append(json.dumps(folder.plain(row), allow_nan=False) + "\n")

    def due(self) -> bool:
        """Whether the last checkpoint is so old that another one takes at most 1 % of the time since it."""
        minutes = self.settings.save_minutes
        least = max(_LEAST_SECONDS, self._seconds / _SHARE) if minutes is None else 60.0 * minutes
        return time.perf_counter() - self._saved_at >= least

    def affordable(self) -> bool:
        """Whether all checkpoints, including another one, take at most 1 % of the time so far, or of a minute."""
        if self.settings.save_minutes is not None:
            return True
        budget = _SHARE * max(time.perf_counter() - self._begun, _LEAST_SECONDS)
        return bool(current().shared(self._spent + self._seconds <= budget))

    def start(self, *, fresh: bool = False) -> None:
        """Restart the time to the next checkpoint; ``fresh``: also that of the training."""
        self._saved_at = time.perf_counter()
        if fresh:
            self._begun = self._saved_at

    def hold(self, about: dict[str, Any], best: Mapping[str, str]) -> None:
        """Keep the best weights of an epoch in memory until the next checkpoint; arguments as `save`."""
        for name, kind in best.items() if self.writes else ():
            with self._weights(kind):
                self._held[name] = held(self.model, {**about, "weights": kind}, self.begun)

    def save(
        self, state: Callable[[], dict[str, Any]], about: dict[str, Any] | None = None, best: Mapping[str, str] = {}
    ) -> None:
        """Write a checkpoint; at the end of an epoch also its weights. All ranks call it, rank 0 writes.

        Parameters
        ----------
        state
            Returns the state for `load_state_dict`.
        about
            At an epoch's end: the metadata of its weights files.
        best
            The files of the new best weights, without their suffix, with the kind of weights, raw or average.
        """
        if self.path is not None:
            if self.device.type == "cuda":  # do not count preceding steps as time of saving
                torch.cuda.synchronize(self.device)
            begun = time.perf_counter()
            path, found = self.path, state()
            restorable.check(found)
            alone(lambda: self._write(path, found, about, best))
            self._seconds = time.perf_counter() - begun
            self._spent += self._seconds
        elif "best" in best and self.writes:
            with self._weights(best["best"]):
                self._best = copied(self.model), self.begun.own(self.model)
        self._saved_at = time.perf_counter()

    def _write(self, path: Path, state: dict[str, Any], about: dict[str, Any] | None, best: Mapping[str, str]) -> None:
        with manifest.sealed(path, known=self._sums) as files:
            # Written before the checkpoint that refers to them: the current checkpoint finds its own under the other
            # name.
            for name in self._held.keys() | best.keys():
                file = f"{name}.safetensors"
                files.keep(file, _previous(file))
                with self._weights(best.get(name, "raw")), files.add(file) as temporary:
                    if name in best:
                        fill(temporary, self.model, {**(about or {}), "weights": best[name]}, self.begun)
                    else:
                        self._held[name](temporary)
            add_state(files, self._with_history(state))
            if about is not None:
                for file, kind in self._last().items():
                    with self._weights(kind), files.add(file) as temporary:
                        fill(temporary, self.model, about, self.begun)
                files.write(METRICS, "".join(self._lines))
        self._held.clear()

    def _last(self) -> dict[str, str]:
        """The files of the last epoch's weights, with the kind of weights."""
        averaged = self.average is not None and self.average.count
        files = {f"{LAST}/{WEIGHTS}": "raw"}
        return files | {f"{LAST}/{self.settings.average}.safetensors": "average"} if averaged else files

    def _weights(self, kind: str) -> AbstractContextManager[None]:
        """Context in which the network has its raw or its averaged weights."""
        return self.average.applied() if self.average and kind == "average" else nullcontext()

    def _with_history(self, state: dict[str, Any]) -> dict[str, Any]:
        return {**state, "metrics": "".join(self._lines)}

    def finish(self, epoch: int) -> None:
        """Finish the checkpoints, and load the weights of the best epoch into the network; Damaged if the run folder
        does not have them."""
        alone(lambda: self._finish(epoch))
        if (world := current()).size > 1:
            best = (to(copied(self.model), CPU), self.begun.own(self.model)) if world.first else None
            put(self.model, *world.shared(best))

    def _finish(self, epoch: int) -> None:
        if self._best is not None:
            put(self.model, *self._best)
        elif self.path is not None:
            manifest.settle(self.path, self._sums)
            about = load_weights(self.model, self.path)
            if about.get("epoch", epoch) != epoch:
                raise folder.Damaged(
                    f"{self.path / folder.BEST} is of epoch {about['epoch']}, but the best is epoch {epoch}: train"
                    " again under another name"
                )

    # ---- resuming

    def find(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        """The checkpoint to resume from, and the rows of the epochs before it; no file is changed.

        Rank 0 reads it for all ranks, so that all use the same file.

        Raises
        ------
        FileNotFoundError, ValueError
            In one line: there is no checkpoint, none is complete, or one without history has a metrics.jsonl that does
            not contain every epoch.
        """
        if current().size == 1:
            return self._find()
        state, rows = alone(lambda: to(self._find(), CPU))
        return to(state, self.device), rows

    def _find(self) -> tuple[dict[str, Any], list[dict[str, Any]]]:
        path = self._folder()
        self._held.clear()
        state, self._fallback = find_state(path, self.device)
        text = state.pop("metrics", None)
        if text is None:
            text = _history(path / METRICS, state["mark"]["epoch"])
        self._lines = text.splitlines(keepends=True)
        rows = [json.loads(line) for line in self._lines]
        return state, folder.with_present_keys(rows)

    def restore(self, mark: Mapping[str, Any], best: Mapping[str, tuple[int, str]], about: dict[str, Any]) -> None:
        """Restore the run folder to the state of the checkpoint, reporting a line for each changed file.

        Parameters
        ----------
        mark
            The checkpoint's epoch and step; the network has its weights.
        best
            The files of the best weights, without their suffix, with their epoch and kind of weights.
        about
            The metadata of weights files, except the epoch.

        Raises
        ------
        Damaged
            Before any change: weights of the best epoch are missing, and the checkpoint is of another epoch.
        """
        alone(lambda: self._restore(mark, best, about))

    def _restore(self, mark: Mapping[str, Any], best: Mapping[str, tuple[int, str]], about: dict[str, Any]) -> None:
        path, ends = self._folder(), mark["epoch"] if not mark["step"] else None
        lines = [self._fallback] if self._fallback else []
        kept, built = [], {}
        for name, (epoch, kind) in best.items():
            file = f"{name}.safetensors"
            wrong = _wrong(path, file, epoch, mark["epoch"])
            if wrong is None or (name != "best" and manifest.sums(path) is None):
                continue  # earlier versions stored only the best
            if not _wrong(path, _previous(file), epoch, epoch):
                kept.append(file)
            elif epoch == ends:
                built[file] = kind, {**about, "epoch": epoch, "weights": kind}
            else:
                raise folder.Damaged(
                    f"{path / file} {wrong}, and the checkpoint does not have the weights of the best epoch, {epoch}:"
                    " copy the file from a backup, or train again under another name"
                )
            lines.append(f"{path / file} {wrong}: restored")
        for file, kind in self._last().items() if ends else ():
            if wrong := _wrong(path, file, mark["epoch"], mark["epoch"]):
                built[file] = kind, {**about, "epoch": ends}
                lines.append(f"{path / file} {wrong}: restored")
        text, found = "".join(self._lines), _text(path / METRICS)
        # A checkpoint within an epoch does not write the rows of short epochs before it.
        behind = found.endswith("\n") and text.startswith(found)
        if not (found.startswith(text) or behind):
            lines.append(f"{path / METRICS} is not the history of the checkpoint: restored")
        self._sums = _unsettled(path)
        with manifest.sealed(path, known=self._sums) as files:
            if self._fallback:
                files.keep(f"{LAST}/{PREVIOUS}", f"{LAST}/{STATE}")
            for file in kept:
                files.keep(_previous(file), file)
            for file, (kind, known) in built.items():
                with self._weights(kind), files.add(file) as temporary:
                    fill(temporary, self.model, known, self.begun)
            if found != text:
                files.write(METRICS, text)
        for line in lines:
            self.say(line)

    def _folder(self) -> Path:
        if self.path is None:
            raise ValueError("resume needs the run folder to resume from: give run=...")
        return self.path


def _previous(file: str) -> str:
    """The file of the best weights before those in ``file``: the previous checkpoint may refer to them."""
    return f"{LAST}/previous-{file}"


def _wrong(run: Path, file: str, epoch: int, reached: int) -> str | None:
    """Why a file does not have the weights of an epoch; None if it has them."""
    if not (run / file).is_file():
        return "is missing"
    try:
        found = read_weights(run / file)[0].get("epoch", epoch)
    except folder.Damaged:
        return "is damaged"
    except ValueError:
        return "is of another run"
    # Earlier versions wrote the weights before the checkpoint: the resumed training reaches their epoch again.
    if found == epoch or (found > reached and manifest.sums(run) is None):
        return None
    return f"is of epoch {found}"


def _unsettled(run: Path) -> dict[str, manifest.Sum]:
    """The hashes of the files that a killed training was replacing."""
    known = manifest.sums(run) or {}
    found = {
        name: manifest.settled(run, name, known)
        for name, entry in known.items()
        if "next" in entry and (name == METRICS or name.endswith(".safetensors") or name.startswith(f"{LAST}/"))
    }
    return {name: entry for name, entry in found.items() if entry is not None}


def _text(path: Path) -> str:
    """The content of a file, "" if it does not exist."""
    return path.read_bytes().decode(errors="replace") if path.is_file() else ""


def _history(path: Path, epochs: int) -> str:
    """The rows of ``epochs`` epochs from the metrics.jsonl of a checkpoint of an earlier version, without history."""
    rows = folder.read_jsonl(path)[:epochs] if path.is_file() else []
    if [row.get("epoch") for row in rows] != list(range(1, epochs + 1)):
        raise folder.Damaged(
            f"{path} does not have all {epochs} epochs of the checkpoint, which an earlier version wrote"
            " without the history: copy it from a backup, or train again under another name"
        )
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows)
