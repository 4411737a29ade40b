"""The training, from top to bottom: `Trainer.train`, `train_step`, `validate`, `state_dict`, `load_state_dict`.

All randomness of a step is a function of (seed, step): the order of an epoch, the augmentation, the adversary's samples
and dropout. So a checkpoint needs no random states, and a killed and resumed run equals the uninterrupted one.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atent import runs as folder
from atent.data import Data
from atent.distributed import SINGLE, alone, current
from atent.distributed.world import within
from atent.methods import Method
from atent.optim import Average, Optimizer, Schedule, build, lr_factor
from atent.precision import under
from atent.rng import fold
from atent.runs.weights import Snapshot, put, whole
from atent.threat import Threat
from atent.train import agreement, calibration, first_batch, graphs, kernels, machine, preflight, sharded
from atent.train.best import Best
from atent.train.builders import Builders
from atent.train.callbacks import Callback, Progress, first
from atent.train.clock import Clock
from atent.train.compiling import Compiling
from atent.train.describe import complete, summary, with_code, with_subsets
from atent.train.fingerprint import as_begun, difference, fingerprint, started
from atent.train.finite import Finite, Skipped, finite_logits, line_of, ordered
from atent.train.interrupt import Interrupted, how_to_resume, stop_requests
from atent.train.memory import MicroBatches
from atent.train.meter import Meter
from atent.train.result import Diverged, Fitted
from atent.train.rows import parts_of, row_of
from atent.train.run_files import Keeper, identified
from atent.train.settings import TrainSettings, pick_device
from atent.train.step import around, finish_gradient, rates
from atent.train.validation import Validation
from atent.train.watch import STOP, watch

# Steps between reads of the loss: each synchronises with the device.
_READ_LOSS = 50


class Trainer:
    """One training; see `fit` for the arguments."""

    def __init__(
        self, model: nn.Module, data: Data, method: Method, *, optimizer: Optimizer, schedule: Schedule,
        settings: TrainSettings, augmentation: str, threat: Threat | None, run: Path | None,
        config: dict[str, Any] | None, resume: bool, progress: bool, callbacks: list[Callback],
        say: Callable[[str], None], builders: Builders,
    ) -> None:  # fmt: skip
        self.model, self.bare, self.settings, self.schedule = model, method, settings, schedule
        self.method = around(method, settings)
        self.optimizer_settings, self.path, self.say, self.device = optimizer, run, say, pick_device(settings.device)
        self.progress, self.callbacks, self._hinted = progress, callbacks, False
        own, threat = method.threat, method.threat or threat
        before = run if resume else None
        settings, self.layout = machine.placed(model, data, settings, self.device, threat, before, say)
        self.settings = settings
        drawn = builders.check(model, data, config)
        if resume and run is not None:
            data = as_begun(data, run)
        self.data, self.augment = data.to(self.device), preflight.augmentation(augmentation, data)
        self.validation = Validation(self.data, settings, threat, robust=own is not None, config=config)
        self.watch = watch(self.method, self.data, settings, threat)
        sharded.check(settings, optimizer, self.method, watched=self.watch is not None)
        self.shared: sharded.Sharded | None = None
        self.optimizer = build(optimizer, model, seed=settings.seed)
        self.rates = rates(self.optimizer, optimizer.lr)
        self.amp = under(settings.precision, self.device)
        self.state = preflight.begin(self.method, self.data, self.device, resume=resume)
        self.begun = Snapshot(model, drawn)
        self._joined = self._check()
        self._count_steps()
        self.average: Average | None = None
        if settings.average != "none":
            self.average = Average(model, settings.average, decay=settings.average_decay, start=settings.average_start)
        self.rng = torch.Generator(self.device)
        config = complete(config, model, self.data, method, optimizer, schedule, settings, augmentation, threat)
        subsets = self.validation.subsets(self.data) | (self.watch.subsets(self.data) if self.watch else {})
        config = machine.recorded(builders.record(config), settings)
        config = with_subsets(config, self.data, subsets)
        agreement.check(self.data, settings, config, fingerprint(config))
        self.config = identified(config, run, resume)
        self.position = started(self.config, self.data, method, model, self.optimizer, self.validation.attacks)
        self.config = with_code(self.config, self.position["code"])
        self.history: list[dict[str, Any]] = []
        self.best, self.meter = Best(self.validation, settings), Meter()
        self.keeper = Keeper(run, model, self.begun, self.average, settings, self.device, say)
        self.finite = Finite(model, self.optimizer, self.average, settings, run)
        self.stopped: str | None = None
        self._begin(resume)

    def _check(self) -> bool:
        """ValueError for later errors of the training; whether a last batch of one image joins the previous one."""
        named = {f"validate_attack {self.settings.validate_attack}": a for a in self.validation.attacks.values()}
        method, settings = around(calibration.stand_in(self.bare), self.settings), self.settings
        path = self.path if current().first else None
        return preflight.check(self.model, self.data, method, self.state, named, self.begun, path, self.amp, settings)

    def _count_steps(self) -> None:
        self.parts = parts_of(self.data.epoch, self.settings.batch_size, joined=self._joined)
        self.batches = len(self.parts)
        # An optimizer may consume several batches per step (Entropy-SGD).
        self.batches_per_step = getattr(self.optimizer, "batches_per_step", 1)
        self.steps = -(-self.batches // self.batches_per_step) * self.method.replays
        self.clock = Clock(self.settings.epochs, self.steps, self.settings.minutes)

    def _begin(self, resume: bool) -> None:
        """Initialise or resume the state and the run folder."""
        if resume:
            self._resume()
        machine.prepare(self.model, self.data, self.settings, self.position, self.say)
        self.compiling = Compiling(self.model, self.settings, self.position, self.device, self.say)
        if not resume:
            self._measure()
            self.position.update(self.clock.state())
            self.keeper.begin(self.config, self.state_dict)
        method = calibration.adopt(self.bare, self.position.get("calibration"))
        self.method = around(method, self.settings, self.position.get("inner_precision"))
        if self.settings.shard == "full":  # the code before needs the full network
            self.shared = sharded.Sharded(self.model, self.optimizer, self.optimizer_settings, self.settings.seed)
            self.model, self.optimizer = self.shared.model, self.shared.optimizer
            self.finite = Finite(self.model, self.optimizer, None, self.settings, self.path)
        self.micro = MicroBatches(self.model, self.method, self.say, self.settings)
        self.backward = graphs.graphed(self.method, self.settings, self.device, self.say)

    def _measure(self) -> None:
        given = self.model, self.bare, self.data, self.settings, self.state, self.augment, self.layout, self.config
        with self.amp:
            found, self.config = alone(lambda: first_batch.measured(*given, joined=self._joined, say=self.say))
        self.position |= found

    def _resume(self) -> None:
        saved, rows = self.keeper.find()
        differs = difference(saved["mark"], self.position, self.bare)
        if differs:
            raise ValueError(f"{self.path} was trained with other {differs}")
        self.load_state_dict(saved)
        self.history = rows
        kept: dict[str, tuple[int, str]] = {}
        for row in self.history:
            kept |= {name: (row["epoch"], kind) for name, kind in self.best.add(row).items()}
            if self.watch and "watch_robust" in row:
                self.watch.assess(row)
        self.keeper.restore(self.position, kept, summary(self.config))
        if self.watch and self.history and self.history[-1].get("watch") == STOP:
            self.stopped = self.watch.line(self.history[-1])

    def train(self) -> Fitted:
        """Train to the end; the network then has the best epoch's weights. ValueError if no epoch was completed."""
        with kernels.chosen(self.settings, self.device), stop_requests() as asked:
            self.agreed = agreement.Agreement(asked, self.keeper.due)
            self.keeper.start(fresh=True)
            try:
                self.stopped = first([self.stopped, *[c.start(self._progress()) for c in self.callbacks]])
                epoch = self.position["epoch"]
                # A step saved after the end of the time still has to complete its epoch.
                while not self.stopped and (not self.clock.over(epoch) or self.position["step"]):
                    try:
                        self._train_epoch(epoch)
                        epoch += 1
                    except Diverged as error:
                        epoch = self._back(error)
            finally:
                self.compiling.end()
                for callback in self.callbacks:
                    callback.end(self._progress())
        best = self.best.row
        if best is None:
            raise ValueError(f"the training ended before its first epoch: {self.stopped}")
        self.keeper.finish(best["epoch"])
        return Fitted(
            (self.shared.end() if self.shared else self.model).eval(), self.history, best, self.path, self.stopped
        )

    def _back(self, error: Diverged) -> int:
        """Roll back to the last checkpoint, if so set, with another order of the batches; returns its epoch."""
        marks, settings = self.position.get("rollbacks", []), self.settings
        if settings.on_nonfinite != "rollback" or len(marks) == settings.rollbacks:
            raise error
        self.clock.stop()
        self.best, self.watch = Best(self.validation, settings), self.watch and self.watch.fresh()
        self._resume()
        self.finite.reset()
        epoch, step = self.position["epoch"], self.position["step"]
        taken = -(-step // self.method.replays) * self.batches_per_step * settings.batch_size
        self.position["rollbacks"] = [*marks, {"epoch": epoch, "step": step, "taken": taken, "why": error.why}]
        self.say(f"{error.why}; rolled back to epoch {epoch + 1}, step {step + 1}, with another order of the batches")
        self._save(epoch, step)
        return int(epoch)

    def _train_epoch(self, epoch: int) -> None:
        """The steps of an epoch, its validation and its checkpoint."""
        order = ordered(self.data, self.settings.seed, epoch, self.rng, self.position)
        start, self.position["step"] = self.position["step"], 0
        step = start - 1
        self.data.train.expect(order, self.parts[start // self.method.replays * self.batches_per_step :])
        self.model.train()
        self.clock.start(fresh=not start)
        for step in range(start, self.steps):
            self.train_step(order, epoch, step)
            self.agreed.meet(self.clock)
            self.compiling.after(self.clock, epoch * self.steps + step, self.position)
            last = step + 1 == self.steps or self.clock.spent()
            loss = self._read_loss(last) if step % _READ_LOSS == 0 or last else None
            if self.callbacks:
                progress = self._progress(epoch + 1, step + 1, loss, last)
                for callback in self.callbacks:
                    callback.step(progress)
            self._save_in_time(epoch, step, last)
            if last:
                break
        self.clock.stop()
        row = current().shared(row_of(
            epoch + 1, epoch + (step + 1) / self.steps, lr=self.optimizer.param_groups[0]["lr"], clock=self.clock,
            meter=self.meter, settings=self.settings, position=self.position, device=self.device, layout=self.layout,
        ))  # fmt: skip
        self.meter = Meter()
        if self.average:
            self.average.after_epoch(self.clock.progress((epoch + 1) * self.steps))
        with finite_logits(row["epoch"], row["lr"], self.path):
            measured = self.validate(row)
        self._keep(row, measured)

    def train_step(self, order: Tensor, epoch: int, step: int) -> None:
        """One optimizer step of an epoch in the given order."""
        now = epoch * self.steps + step
        done = self.clock.progress(now)
        factor = lr_factor(self.schedule, self.clock.position(now, done), self.steps, self.settings.epochs)
        for group, rate in zip(self.optimizer.param_groups, self.rates):
            group["lr"] = rate * factor
        block, share = step // self.method.replays, self.batches_per_step
        part = range(block * share, min((block + 1) * share, self.batches))
        try:
            self.optimizer.step(self._closure(order, now, done, part))  # type: ignore[arg-type]
        except Skipped:
            self.micro.undo()
            self.meter.skip()
            return
        self.meter.take()
        if self.average:
            self.average.after_step(self.clock.progress(now + 1))

    def _closure(self, order: Tensor, now: int, done: float, part: range) -> Callable[[], Tensor]:
        """The gradient for one optimizer step: each call uses the next of its batches."""
        calls, seed = itertools.count(), self.settings.seed

        def gradient() -> Tensor:
            call = next(calls)
            position = part[call % len(part)]
            index = order[self.parts[position]]
            # A batch that is repeated, within a step or as a replay, has the same augmentation and new noise.
            self.rng.manual_seed(fold(seed, "augment", now - now % self.method.replays, position))
            x, y = self.data.train.batch(index)
            x = self.augment(x, self.rng).contiguous(memory_format=self.layout)

            def descend(rows: slice, weight: float) -> dict[str, Tensor]:
                self.rng.manual_seed(fold(seed, "step", now, call))
                torch.manual_seed(fold(seed, "model", now, call))
                part = rows != slice(0, len(y))
                state = self.method.rows(self.state, x, rows) if part else self.state
                with self.amp:
                    return self.backward(
                        self.model, x[rows], y[rows], rng=self.rng, ids=index[rows], progress=done, weight=weight,
                        state=state,
                    )  # fmt: skip

            found = self.micro.accumulate(len(y), self.position, self.state, self.optimizer.zero_grad, descend)
            self.finite.see(now, [metrics["loss"] for metrics, _ in found])
            finish_gradient(self.model, self.optimizer_settings)
            self.micro.agree(self.state)
            for metrics, n in found:
                self.meter.add(metrics, n)
            return torch.stack([metrics["loss"] * (n / len(y)) for metrics, n in found]).sum()

        return gradient

    def _problem(self) -> str | None:
        """What has diverged, in one line; synchronises with the device."""
        lr = self.optimizer.param_groups[0]["lr"]
        line = self.method.diverged(self.state) or line_of(self.finite.problem(self.steps), self.meter, lr)
        return next(filter(None, current().gather(line)), None)

    def _read_loss(self, last: bool) -> float | None:
        """The epoch's mean loss so far, None if no step was taken; Diverged if something is not finite."""
        line = self._problem()
        if line is None and last and not self.meter.count:
            line = self.meter.empty
        if line is not None:
            raise Diverged(line, self.path)
        return float(self.meter.sums["loss"]) / self.meter.count if self.meter.count else None

    def validate(self, row: dict[str, Any]) -> bool:
        """Add the validation of an epoch to its row, if one is due; returns whether it was."""
        settings, model, earlier = self.settings, self.model, [r for r in self.history if "validation_clean" in r]
        before = earlier[-1].get("elapsed", 0.0) if earlier else 0.0
        measured = self.clock.due(row["epoch"], settings.validate_every, settings.validations, before)
        if measured:
            # All ranks take part in each forward pass of a sharded network: they evaluate the same samples.
            with within(SINGLE if self.shared else current()):
                measures = self.validation.measure(model, row["epoch"] * self.steps, progress=self.progress)
            accuracies, hint = current().shared(measures) if self.shared else measures
            row |= accuracies
            # At its first validation a network may not separate classes yet.
            if hint and not self._hinted and earlier:
                self.say(f"warning at epoch {row['epoch']}: {hint}")
                self._hinted = True
        if measured and self.average and self.average.count:
            with self.average.applied():
                averaged = self.validation.measure(model, row["epoch"] * self.steps, progress=self.progress)[0]
                row |= {f"average_{k}": v for k, v in averaged.items()}
        if self.watch and (measured or settings.minutes is None):
            line = self.watch.update(row, model)
            self.stopped = line if row["watch"] == STOP else None
            if line:
                self.say(line)
        return measured

    def _keep(self, row: dict[str, Any], measured: bool) -> None:
        """Save the epoch's checkpoint, and its weights if it is the best; then call the callbacks."""
        if self.shared:
            self.shared.collect()
        best, about = self.best.add(row), {"epoch": row["epoch"], **summary(self.config)}
        self.history.append(row)
        self.keeper.add(row)
        # In a time-limited training many epochs may lie between two validations: not each gets a checkpoint.
        worth = (measured or self.settings.minutes is None) and self.keeper.affordable()
        written = self.path is None or worth or self.clock.over(row["epoch"])
        if written:
            self._save(row["epoch"], 0, about, best)
        else:
            self.keeper.hold(about, best)
        self.position["step"] = 0
        progress = self._progress(row["epoch"], self.steps, last=True)
        for callback in self.callbacks:
            if measured:
                callback.validation(progress, row)
            if written and self.path is not None:
                callback.checkpoint(progress, row)
        self.stopped = first([self.stopped, *[c.epoch(progress, row) for c in self.callbacks]])
        if self.stopped and not written:  # metrics.jsonl ends with this epoch
            self._save(row["epoch"], 0, about)

    def _save_in_time(self, epoch: int, step: int, last: bool) -> None:
        """A checkpoint within an epoch, if one is due; Interrupted if a stop was requested."""
        if self.agreed.asked() or (not last and self.agreed.due()):
            self.clock.stop()
            if self._problem() is None:
                self._save(epoch, step + 1)
            elif not self.agreed.asked():
                self._read_loss(last)
            self.keeper.start()
            self.clock.start()
        if self.agreed.asked():
            raise Interrupted(how_to_resume(self.config, self.path, epoch, step))

    def _save(self, epoch: int, step: int, about: dict[str, Any] | None = None, best: Mapping[str, str] = {}) -> None:
        self.position.update(epoch=epoch, step=step, **self.clock.state())
        self.keeper.save(self.state_dict, about, best)

    def state_dict(self) -> dict[str, Any]:
        """Everything for an exact resume; the keys are those of state.pt."""
        optimizer = self.shared.collect() if self.shared else self.optimizer.state_dict()
        own = self.begun.own(self.keeper.model)
        return {
            "mark": self.position, "model": whole(self.keeper.model, own), "own": own,
            "optimizer": optimizer, "method": self.state, "meter": self.meter.state(),
            "average": self.average.state() if self.average else None,
        }  # fmt: skip

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Restore a `state_dict`."""
        self.position = {name: self.position[name] for name in ("code", "layers")} | saved["mark"]
        put(self.model, saved["model"], saved.get("own", ()))
        self.optimizer.load_state_dict(saved["optimizer"])
        self.state, self.meter = saved["method"], Meter.restore(folder.with_present_keys(saved["meter"]))
        self.clock.restore(self.position)
        if self.average:
            self.average.restore(saved["average"])

    def _progress(
        self, epoch: int | None = None, step: int = 0, loss: float | None = None, last: bool = False
    ) -> Progress:
        """The progress for the callbacks."""
        done = self.history[-1]["epoch"] if self.history else 0
        epoch = done if epoch is None else epoch
        share = self.clock.progress(max(epoch - 1, 0) * self.steps + step)
        return Progress(
            self.keeper.model, self.settings, self.config, self.path, tuple(self.history), epoch, step, self.steps,
            share, loss, last,
        )  # fmt: skip
