"""The training loop. Read `fit` from top to bottom: it is the whole of it.

All randomness of a step is a function of (seed, step): the order of an epoch, the augmentation, the adversary's draws
and dropout. So a checkpoint needs no random states, and a run that was killed and resumed equals the unbroken one.
"""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atent import run as folder
from atent.attacks import ATTACKS, Attack
from atent.attacks.spec import parse
from atent.data import Data, augment
from atent.evaluate import evaluate
from atent.methods import ATENT, AWP, Method
from atent.methods.awp import plain
from atent.models import check_output
from atent.optim import Average, Optimizer, Schedule, build, lr_factor
from atent.precision import refuses_channels_last
from atent.progress import bar
from atent.rng import fold
from atent.threat import Threat
from atent.train import calibration
from atent.train.checkpoint import load_state, load_weights, save_state, save_weights
from atent.train.clock import Clock
from atent.train.interrupt import Interrupted, stop_requests
from atent.train.meter import Meter
from atent.train.settings import TrainSettings, pick_device
from atent.train.watch import STOP, watch

# Steps between two looks at the loss: each look waits for the device.
_LOOK = 50


class Diverged(ValueError):
    """The loss became NaN or infinite."""


@dataclass(frozen=True)
class Fitted:
    """What a training gives back."""

    model: nn.Module
    """The user's network with the best epoch's weights, in eval mode."""
    history: list[dict[str, Any]]
    """One row per epoch, as in metrics.jsonl."""
    best: dict[str, Any]
    """The row of the best epoch."""
    run: Path | None
    """The run folder, where there is one."""
    stopped: str | None = None
    """Why the training ended before its time, in one line; None where it did not."""


def fit(
    model: nn.Module,
    data: Data,
    method: Method,
    *,
    optimizer: Optimizer | None = None,
    schedule: Schedule | None = None,
    settings: TrainSettings | None = None,
    augmentation: str = "none",
    threat: Threat | None = None,
    run: str | Path | None = None,
    config: dict[str, Any] | None = None,
    resume: bool = False,
    progress: bool = True,
    report: Callable[[dict[str, Any]], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Fitted:
    """Train ``model`` on ``data`` by ``method`` and keep the epoch that is best on the validation split.

    ``data`` is a `Data` (see `atent.data.from_tensors` for your own arrays). With ``run``, a new folder, everything is
    written there: config.json, metrics.jsonl, best.safetensors and last/. ``resume=True`` goes on from an existing one,
    exactly. ``threat`` is what the robust validation judges by where the method has none of its own. ``report`` is
    called with each epoch's row, ``say`` with a line on what a calibrated method found before the first batch, with
    the warnings of the watch (`atent.train.watch`), which may end the training early, and where the validation hints at
    a mistake, such as a network that gives everything one class. The global random state comes back as it was.

    Raises ValueError for settings that cannot work, Diverged for a loss that is not finite, FileExistsError for a run
    folder in use, Interrupted after Ctrl-C or SIGTERM (with ``run``, the state is saved first).
    """
    optimizer, schedule = optimizer or Optimizer(), schedule or Schedule()
    settings = settings or TrainSettings()
    device = pick_device(settings.device)
    if settings.precision == "bfloat16" and device.type != "cuda":
        raise ValueError("precision bfloat16 is for CUDA: on a CPU it is many times slower than float32")
    if settings.threads:
        torch.set_num_threads(settings.threads)
    own = getattr(method, "threat", None)
    threat = own or threat
    if threat is not None and threat.box != data.box:
        raise ValueError(f"the threat's box {threat.box} is not the data's box {data.box}: set threat.box to it")
    check_output(model, data.shape, data.classes, dtype=data.validation.batch([0])[0].dtype)
    model.to(device)
    layout = torch.contiguous_format
    if settings.channels_last and len(data.shape) == 3:
        refused = refuses_channels_last(model, data.validation.batch([0, 0])[0].to(device))
        if refused is None:
            layout = torch.channels_last
            model.to(memory_format=layout)  # type: ignore[call-overload]
        else:
            say(f"warning: {refused}")
    data, move = data.to(device), augment(augmentation)
    probe = _Probe(data, settings, threat, robust=own is not None)
    watcher = watch(method, data, settings, threat)
    weights = build(optimizer, model, seed=settings.seed)
    n, batches = len(data.train), -(-len(data.train) // settings.batch_size)
    # An optimizer may use up several batches per step (Entropy-SGD).
    share = getattr(weights, "batches_per_step", 1)
    steps = -(-batches // share) * method.replays
    clock = Clock(settings.epochs, steps, settings.minutes)
    state = method.init(n, data.shape, device)
    mean = None
    if settings.average != "none":
        mean = Average(model, settings.average, decay=settings.average_decay, start=settings.average_start)
    amp = torch.autocast(device.type, torch.bfloat16) if settings.precision == "bfloat16" else nullcontext()
    rng = torch.Generator(device)

    config = config or describe(model, data, method, optimizer, schedule, settings, augmentation)
    mark: dict[str, Any] = {"config": _fingerprint(config), "epoch": 0, "step": 0}
    if not resume:
        with amp:
            found = calibration.look(method, model, data, settings, move)
        if found is not None:
            say(f"found   {found}")
            mark["calibration"] = found.describe()
            chain = found.method.chain().describe()
            config = {**config, "about": {**config["about"], "chain": chain, "calibration": found.describe()}}
    history: list[dict[str, Any]] = []
    shelf = _Shelf(probe, settings)
    best_weights: dict[str, Tensor] | None = None
    meter = Meter()
    stopped: str | None = None
    told = False
    path = Path(run) if run is not None else None
    if resume:
        if path is None:
            raise ValueError("resume needs the run folder to go on from: give run=...")
        saved = load_state(path, device)
        if saved["mark"]["config"] != mark["config"]:
            raise ValueError(f"{path} was trained with other settings: resume with those of its {folder.CONFIG}")
        mark = saved["mark"]
        model.load_state_dict(saved["model"])
        weights.load_state_dict(saved["optimizer"])
        state, meter = saved["method"], Meter.restore(saved["meter"])
        clock.elapsed = mark.get("elapsed", 0.0)
        if mean:
            mean.restore(saved["average"])
        # A run that was stopped within its first epoch has none.
        if (path / folder.METRICS).is_file():
            folder.keep_jsonl(path / folder.METRICS, lambda row: row["epoch"] <= mark["epoch"])
            history = folder.read_jsonl(path / folder.METRICS)
        for row in history:
            shelf.add(row)
            if watcher and "watch_robust" in row:
                watcher.judge(row)
        if watcher and history and history[-1].get("watch") == STOP:
            stopped = watcher.line(history[-1])
    elif path is not None:
        folder.create(path)
        folder.write_json(path / folder.CONFIG, config)
    method = calibration.adopt(method, mark.get("calibration"))

    def save(epoch: int, step: int) -> None:
        if path is not None:
            mark.update(epoch=epoch, step=step, elapsed=clock.seconds())
            save_state(
                path,
                {
                    "mark": mark, "model": model.state_dict(), "optimizer": weights.state_dict(),
                    "method": state, "meter": meter.state(), "average": mean.state() if mean else None,
                },
            )  # fmt: skip

    def lent(kind: str) -> AbstractContextManager[None]:
        return mean.applied() if mean and kind == "average" else nullcontext()

    def closure(order: Tensor, now: int, done: float, part: range) -> Callable[[], Tensor]:
        """The gradient for one optimizer step: each call takes the next of its batches, in turn."""
        calls = itertools.count()

        def gradient() -> Tensor:
            call = next(calls)
            position = part[call % len(part)]
            index = order[position * settings.batch_size : (position + 1) * settings.batch_size]
            # A batch that comes again, within a step or as a replay, has the same augmentation, and new draws.
            rng.manual_seed(fold(settings.seed, "augment", now - now % method.replays, position))
            x, y = data.train.batch(index)
            x = move(x, rng).contiguous(memory_format=layout)
            rng.manual_seed(fold(settings.seed, "step", now, call))
            torch.manual_seed(fold(settings.seed, "model", now, call))
            weights.zero_grad()
            with amp:
                metrics = method.backward(model, x, y, rng=rng, ids=index, progress=done, state=state)
            if optimizer.clip_norm is not None:
                nn.utils.clip_grad_norm_(model.parameters(), optimizer.clip_norm)
            meter.add(metrics, len(y))
            return metrics["loss"]

        return gradient

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), stop_requests() as asked:
        saved_at = time.perf_counter()
        for epoch in itertools.count(mark["epoch"]):
            # A step that was saved after the time was over still has its epoch to end.
            if stopped or (clock.over(epoch) and not mark["step"]):
                break
            rng.manual_seed(fold(settings.seed, "order", epoch))
            order = torch.randperm(n, generator=rng, device=device)
            first, mark["step"] = mark["step"], 0
            begun = time.perf_counter()
            model.train()
            clock.start()
            step = first - 1
            of = f"/{settings.epochs}" if settings.minutes is None else f" ({clock.progress(0):.0%} of the time)"
            with bar(steps, f"epoch {epoch + 1}{of}", enabled=progress) as advance:
                advance(first, "")
                for step in range(first, steps):
                    now = epoch * steps + step
                    done = clock.progress(now)
                    for group in weights.param_groups:
                        at = clock.position(now, done)
                        group["lr"] = optimizer.lr * lr_factor(schedule, at, steps, settings.epochs)
                    block = step // method.replays
                    part = range(block * share, min((block + 1) * share, batches))
                    weights.step(closure(order, now, done, part))  # type: ignore[arg-type]
                    if mean:
                        mean.after_step(clock.progress(now + 1))
                    ended = step + 1 == steps or clock.spent()
                    look = step % _LOOK == 0 or ended
                    if look and not meter.finite():
                        raise Diverged(
                            f"the loss is not finite at epoch {epoch + 1}, step {step + 1}: lower optimizer.lr"
                            f" (now {weights.param_groups[0]['lr']:g}) or warm eps up;"
                            f" {'what was saved before stays in ' + str(path) if path else 'nothing was written'}"
                        )
                    advance(1, f"loss {float(meter.sums['loss']) / meter.count:.3f}" if look else "")
                    due = time.perf_counter() - saved_at >= 60 * settings.save_minutes
                    if asked() or (due and not ended):
                        clock.stop()
                        if meter.finite():
                            save(epoch, step + 1)
                        saved_at = time.perf_counter()
                        clock.start()
                    if asked():
                        raise Interrupted(_how_to_resume(config, path, epoch, step))
                    if ended:
                        break
            clock.stop()
            row = {
                "epoch": epoch + 1,
                "lr": weights.param_groups[0]["lr"],
                "seconds": round(time.perf_counter() - begun, 3),
                "memory_mb": _peak_memory(device),
                **meter.summary(),
            }
            if settings.minutes is not None:
                row |= {"passes": round(epoch + (step + 1) / steps, 3), "elapsed": round(clock.elapsed, 3)}
            meter = Meter()
            if mean:
                mean.after_epoch(clock.progress((epoch + 1) * steps))
            measured = clock.due(epoch + 1, settings.validate_every, settings.validations, _last_look(history))
            if measured:
                accuracies, hint = probe.measure(model, progress=progress)
                row |= accuracies
                # At its first look a network may not have begun to tell classes apart.
                if hint and not told and any("validation_natural" in r for r in history):
                    say(f"warning at epoch {epoch + 1}: {hint}")
                    told = True
            if measured and mean and mean.count:
                with mean.applied():
                    row |= {f"average_{k}": v for k, v in probe.measure(model, progress=progress)[0].items()}
            if watcher and (measured or settings.minutes is None):
                line = watcher.look(row, model)
                stopped = line if row["watch"] == STOP else None
                if line:
                    say(line)
            about = {"epoch": epoch + 1, **_short(config)}
            for name, kind in shelf.add(row).items():
                with lent(kind):
                    if path is not None:
                        save_weights(path / f"{name}.safetensors", model, {**about, "weights": kind})
                    elif name == "best":
                        best_weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
            history.append(row)
            if path is not None:
                folder.append_jsonl(path / folder.METRICS, row)
            # Many epochs may fit between two measurements in a given time: not each is worth a checkpoint.
            if path is not None and (measured or settings.minutes is None):
                (path / folder.LAST).mkdir(exist_ok=True)
                save_weights(path / folder.LAST / "model.safetensors", model, about)
                if mean and mean.count:
                    with mean.applied():
                        save_weights(path / folder.LAST / f"{settings.average}.safetensors", model, about)
                save(epoch + 1, 0)
                saved_at = time.perf_counter()
            mark["step"] = 0
            if report and (measured or settings.minutes is None):
                report(row)
    best = shelf.best
    assert best is not None
    if best_weights is not None:
        model.load_state_dict(best_weights)
    elif path is not None:
        load_weights(model, path)
    return Fitted(model.eval(), history, best, path, stopped)


class _Probe:
    """Natural and robust accuracy on the validation split and on as many training samples, without augmentation."""

    def __init__(self, data: Data, settings: TrainSettings, threat: Threat | None, *, robust: bool) -> None:
        limit = settings.validate_limit or len(data.validation)
        self.parts = {"train": data.train.first(limit), "validation": data.validation.first(limit)}
        spec = settings.validate_attack.strip()
        wanted = spec.lower() != "none" and threat is not None
        self.attacks: dict[str, Attack] = {"robust": parse(spec, threat, ATTACKS)} if wanted else {}
        self.seed = settings.seed
        select = settings.select
        if select == "robust" and not wanted:
            raise ValueError("select robust needs a robust validation: give validate_attack, and a threat")
        self.select = select if select != "auto" else ("robust" if wanted and robust else "natural")

    def measure(self, model: nn.Module, *, progress: bool) -> tuple[dict[str, float], str | None]:
        """The accuracies, and what the evaluation hints at on the validation split."""
        row: dict[str, float] = {}
        hint = None
        total = sum(len(p) for p in self.parts.values()) * len(self.attacks)
        with bar(total, "validation", enabled=progress) as advance:
            for name, part in self.parts.items():
                x, y = part.batch(torch.arange(len(part), device=part.x.device))
                found = evaluate(
                    model, x, y, self.attacks, seed=self.seed, ids=part.ids, cascade=False, advance=advance
                )
                shares = {"natural": found.natural, **{k: v["robust"] for k, v in found.attacks.items()}}
                for kind, share in shares.items():
                    row[f"{name}_{kind}"] = share["value"]
                    if name == "validation":
                        row |= {f"{name}_{kind}_low": share["low"], f"{name}_{kind}_high": share["high"]}
                if name == "validation":
                    hint = found.hint
        return row, hint

    def score(self, row: dict[str, Any], prefix: str = "") -> tuple[float, float]:
        """What the best epoch has most of; ties go to the other accuracy, then to the earlier epoch."""
        if self.select == "last":
            return row["epoch"], 0.0
        kinds = ("robust", "natural") if self.select == "robust" else ("natural", "robust")
        first, second = (row.get(f"{prefix}validation_{kind}", -1.0) for kind in kinds)
        return first, second if self.select == "robust" else 0.0


class _Shelf:
    """The best epoch so far: of the raw weights, of the averaged ones, and over those that may be the best."""

    def __init__(self, probe: _Probe, settings: TrainSettings) -> None:
        self.probe, self.average = probe, settings.average
        self.allowed = ("raw", "average") if settings.select_weights == "both" else (settings.select_weights,)
        self.tops: dict[str, tuple[float, float]] = {}
        self.best: dict[str, Any] | None = None

    def add(self, row: dict[str, Any]) -> dict[str, str]:
        """Marks the row; what is now to be kept: {"best", "raw", "ema" or "swa": of which weights}."""
        if row.get("watch") == STOP:  # whatever it is selected by, a collapsed epoch is not the best
            row["best"] = False
            return {}
        scores = {"raw": self.probe.score(row)}
        if "average_validation_natural" in row:
            scores["average"] = self.probe.score(row, "average_")
        candidates = [kind for kind in self.allowed if kind in scores]
        if self.probe.select == "last":
            candidates.reverse()  # who averages wants the average in the end
        kept = {}
        row["best"] = False
        for kind in candidates:
            if "best" not in self.tops or scores[kind] > self.tops["best"]:
                self.tops["best"], self.best, row["best"], kept["best"] = scores[kind], row, True, kind
        if self.average == "none":
            return kept
        if row["best"]:
            row["best_weights"] = kept["best"]
        for kind, score in scores.items():
            if kind not in self.tops or score > self.tops[kind]:
                self.tops[kind] = score
                kept["raw" if kind == "raw" else self.average] = kind
        return kept


def _last_look(history: list[dict[str, Any]]) -> float:
    """Seconds of training at the last measurement."""
    return next((row.get("elapsed", 0.0) for row in reversed(history) if "validation_natural" in row), 0.0)


def describe(
    model: nn.Module, data: Data, method: Method, optimizer: Optimizer, schedule: Schedule, settings: TrainSettings,
    augmentation: str,
) -> dict[str, Any]:  # fmt: skip
    """A run's configuration from the settings alone, where no recipe gave one."""
    return {
        "recipe": None,
        "data": {"augment": augmentation},
        "model": {"name": None, "class": type(model).__qualname__},
        "method": plain(method),
        "optimizer": asdict(optimizer),
        "schedule": asdict(schedule),
        "train": asdict(settings),
        "about": facts(model, data, method),
        "provenance": folder.provenance(seed=settings.seed, device=pick_device(settings.device)),
    }


def facts(model: nn.Module, data: Data, method: Method) -> dict[str, Any]:
    """What the settings imply: the data as loaded, the number of parameters, ATENT's resolved chain."""
    out: dict[str, Any] = {
        "data": {"classes": data.classes, "shape": list(data.shape), "box": list(data.box), **data.about},
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    inner = method.method if isinstance(method, AWP) else method
    if isinstance(inner, ATENT):
        out["chain"] = inner.chain().describe()
    return out


def _fingerprint(config: dict[str, Any]) -> str:
    """The settings that a resumed run must share, as text; where it runs and how often it saves may change."""
    parts = {k: config[k] for k in ("model", "method", "optimizer", "schedule")}
    train = {k: v for k, v in config["train"].items() if k not in ("save_minutes", "threads", "device")}
    data = {k: v for k, v in config["data"].items() if k != "root"}
    files = config["about"]["data"].get("files")
    return folder.dumps({**parts, "train": train, "data": data, "files": files})


def _short(config: dict[str, Any]) -> dict[str, Any]:
    """What a weights file should say of itself."""
    data = config["about"]["data"]
    return {
        "recipe": config.get("recipe"), "model": config["model"], "classes": data["classes"],
        "shape": data["shape"], "box": data["box"], "provenance": config["provenance"],
    }  # fmt: skip


def _peak_memory(device: torch.device) -> float | None:
    """MiB: the most that torch has allocated on a GPU, or that this process has held; None where nobody counts."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    # Linux counts in KiB, macOS in bytes.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)


def _how_to_resume(config: dict[str, Any], path: Path | None, epoch: int, step: int) -> str:
    where = f"interrupted at epoch {epoch + 1}, step {step + 1}"
    if path is None:
        return f"{where}; without a run folder nothing is kept"
    # Only a run that names its network can be built again from its folder.
    again = (
        f"`atent train --resume {path}`" if config["model"].get("name") else f"fit(..., run={str(path)!r}, resume=True)"
    )
    return f"{where}: go on with {again}"
