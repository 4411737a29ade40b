"""The training loop. Read `fit` from top to bottom: it is the whole of it.

All randomness of a step is a function of (seed, step): the order of an epoch, the augmentation, the adversary's draws
and dropout. So a checkpoint needs no random states, and a run that was killed and resumed equals the unbroken one.

On a CPU a generator keeps 32 bits of its seed. A long training, 200 epochs of 391 steps with three seeds each, has 6 of
its 2.7 10^10 pairs of seeds in common: twice the same start noise, for other images and weights. Each step's gradient
keeps its law, and nothing counts steps as independent.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import MISSING, asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from atent import runs as folder
from atent.attacks import ATTACKS, Attack
from atent.attacks.spec import parse
from atent.data import Data, Split, augment, everything
from atent.data.described import described
from atent.data.split import Part
from atent.evaluate import evaluate
from atent.methods import ATENT, AWP, METHODS, Method
from atent.methods.awp import plain
from atent.models import check_output
from atent.optim import Average, Optimizer, Schedule, build, lr_factor
from atent.precision import bfloat16_pays, gaining, refuses_channels_last
from atent.progress import bar
from atent.registry import plugin_of
from atent.rng import fold
from atent.runs.checkpoint import load_state, load_weights, save_state, save_weights
from atent.runs.weights import Snapshot, State, copied, put, unwrapped, whole
from atent.threads import cores
from atent.threat import Threat
from atent.train import calibration, preflight
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

    ``data`` is a `Data` (see `atent.data.from_tensors` for your own arrays); where fewer samples than there are get
    measured, they are those of `Data.sample`, the same for every method and seed. With ``run``, a new folder, all is
    written there: config.json, metrics.jsonl, best.safetensors and last/. ``resume=True`` goes on from an existing one,
    exactly. ``threat`` is what the robust validation judges by where the method has none of its own. ``report`` is
    called with each epoch's row, ``say`` with a line on what a calibrated method found before the first batch, with
    the warnings of the watch (`atent.train.watch`), which may end the training early, and where the validation hints at
    a mistake, such as a network that gives everything one class. The global random state comes back as it was.

    Raises ValueError for settings that cannot work, Diverged for a loss that is not finite, FileExistsError for a run
    folder in use, Interrupted after Ctrl-C or SIGTERM (with ``run``, the state is saved first).
    """
    if not isinstance(data, Data):
        raise ValueError(
            f"data is a {type(data).__name__}, fit needs Data: make it by atent.data.from_tensors(x_train, y_train,"
            " x_test, y_test), of DataLoaders by from_tensors(*collect(train_loader), *collect(test_loader))"
        )
    optimizer, schedule = optimizer or Optimizer(), schedule or Schedule()
    settings = settings or TrainSettings()
    device = pick_device(settings.device)
    own = getattr(method, "threat", None)
    threat = own or threat
    if threat is not None and threat.box != data.box:
        raise ValueError(f"the threat's box {threat.box} is not the data's box {data.box}: set threat.box to it")
    if threat is not None:
        threat.check_eps(data.shape)
    layout = torch.contiguous_format
    preflight.move(model, device, layout)
    preflight.check_views(model)
    check_output(model, data.shape, data.classes, device, dtype=data.validation.batch([0])[0].dtype)
    preflight.check_lazy(model)
    if settings.channels_last and len(data.shape) == 3:
        layout = _channels_last(model, data, device, say)
    if resume and run is not None:
        data = _as_begun(data, Path(run))
    data, move = data.to(device), augment(augmentation)
    probe = _Probe(data, settings, threat, robust=own is not None)
    watcher = watch(method, data, settings, threat)
    weights = build(optimizer, model, seed=settings.seed)
    amp = torch.autocast(device.type, torch.bfloat16) if settings.precision == "bfloat16" else nullcontext()
    state = preflight.begin(method, len(data.train), data.shape, device)
    path, start = Path(run) if run is not None else None, Snapshot(model)
    joined = _preflight(model, data, method, state, settings, probe, start, path, amp)
    n, batches = len(data.train), -(-len(data.train) // settings.batch_size) - joined
    # An optimizer may use up several batches per step (Entropy-SGD).
    share = getattr(weights, "batches_per_step", 1)
    steps = -(-batches // share) * method.replays
    clock = Clock(settings.epochs, steps, settings.minutes)
    mean = None
    if settings.average != "none":
        mean = Average(model, settings.average, decay=settings.average_decay, start=settings.average_start)
    rng = torch.Generator(device)

    config = config or describe(model, data, method, optimizer, schedule, settings, augmentation, threat)
    config = {**config, "data": {**config["data"], "subset": data.subset}}
    config["about"] = {**config["about"], "subsets": probe.subsets(data) | (watcher.subsets(data) if watcher else {})}
    mark: dict[str, Any] = {"config": _fingerprint(config), "epoch": 0, "step": 0}
    history: list[dict[str, Any]] = []
    shelf = _Shelf(probe, settings)
    best_weights: tuple[State, list[str]] | None = None
    meter = Meter()
    stopped: str | None = None
    told = False
    if resume:
        if path is None:
            raise ValueError("resume needs the run folder to go on from: give run=...")
        saved = load_state(path, device)
        if _of_the_run(saved["mark"]["config"], mark["config"], method) != mark["config"]:
            raise ValueError(f"{path} was trained with other settings: resume with those of its {folder.CONFIG}")
        mark = saved["mark"]
        put(model, saved["model"], saved.get("own", ()))
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
    if settings.threads is not None:
        mark["threads"] = _threads(model, data, settings, mark.get("threads"), say)
        torch.set_num_threads(mark["threads"])
    if settings.precision == "bfloat16" and device.type != "cuda":
        _check_bfloat16(model, data, settings, device)
    if not resume:
        with amp:
            found = calibration.look(method, model, data, settings, move, joined=joined)
        if found is not None:
            say(f"found   {found}")
            mark["calibration"] = found.describe()
            chain = found.method.chain().describe()
            config = {**config, "about": {**config["about"], "chain": chain, "calibration": found.describe()}}
        if path is not None:
            folder.create(path)
            folder.write_json(path / folder.CONFIG, config)
    method = calibration.adopt(method, mark.get("calibration"))

    def save(epoch: int, step: int) -> None:
        if path is not None:
            mark.update(epoch=epoch, step=step, elapsed=clock.seconds())
            own = start.own(model)
            save_state(
                path,
                {
                    "mark": mark, "model": whole(model, own), "own": own, "optimizer": weights.state_dict(),
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
            end = n if position == batches - 1 else (position + 1) * settings.batch_size
            index = order[position * settings.batch_size : end]
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
                "precision": settings.precision,
                "channels_last": layout is torch.channels_last,
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
                        save_weights(path / f"{name}.safetensors", model, {**about, "weights": kind}, start)
                    elif name == "best":
                        best_weights = copied(model), start.own(model)
            history.append(row)
            if path is not None:
                folder.append_jsonl(path / folder.METRICS, row)
            # Many epochs may fit between two measurements in a given time: not each is worth a checkpoint.
            if path is not None and (measured or settings.minutes is None):
                (path / folder.LAST).mkdir(exist_ok=True)
                save_weights(path / folder.LAST / "model.safetensors", model, about, start)
                if mean and mean.count:
                    with mean.applied():
                        save_weights(path / folder.LAST / f"{settings.average}.safetensors", model, about, start)
                save(epoch + 1, 0)
                saved_at = time.perf_counter()
            mark["step"] = 0
            if report and (measured or settings.minutes is None):
                report(row)
    best = shelf.best
    assert best is not None
    if best_weights is not None:
        put(model, *best_weights)
    elif path is not None:
        load_weights(model, path)
    return Fitted(model.eval(), history, best, path, stopped)


class _Probe:
    """Natural and robust accuracy on the validation split and on as many training samples, without augmentation."""

    def __init__(self, data: Data, settings: TrainSettings, threat: Threat | None, *, robust: bool) -> None:
        limit = everything(settings.validate_limit) or len(data.validation)
        self.parts: dict[Part, Split] = {name: data.sample(name, limit) for name in ("train", "validation")}
        spec = settings.validate_attack.strip()
        wanted = spec.lower() != "none" and threat is not None
        self.attacks: dict[str, Attack] = {"robust": parse(spec, threat, ATTACKS)} if wanted else {}
        for attack in self.attacks.values():
            attack.threat.check_eps(data.shape)  # type: ignore[attr-defined]
        self.seed = settings.seed
        select = settings.select
        if select == "robust" and not wanted:
            raise ValueError("select robust needs a robust validation: give validate_attack, and a threat")
        self.select = select if select != "auto" else ("robust" if wanted and robust else "natural")

    def subsets(self, data: Data) -> dict[str, Any]:
        """Which samples are measured, for the record."""
        return {name: described(data, name, part) for name, part in self.parts.items()}

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
    augmentation: str, threat: Threat | None = None,
) -> dict[str, Any]:  # fmt: skip
    """A run's configuration from the settings alone, where no recipe gave one."""
    evaluate = {"norm": threat.norm, "eps": float(threat.eps)} if threat and not hasattr(method, "threat") else {}
    return {
        "recipe": None,
        "data": {"augment": augmentation, "subset": data.subset},
        "model": {"name": None, "class": type(unwrapped(model)).__qualname__},
        "method": plain(method),
        "optimizer": asdict(optimizer),
        "schedule": asdict(schedule),
        "train": asdict(settings),
        "evaluate": evaluate,
        "about": facts(model, data, method),
        "provenance": folder.provenance(seed=settings.seed, device=pick_device(settings.device)),
    }


def facts(model: nn.Module, data: Data, method: Method) -> dict[str, Any]:
    """What the settings imply: the data as loaded, the number of parameters, ATENT's resolved chain."""
    found = plugin_of(METHODS, type(method.method if isinstance(method, AWP) else method))
    out: dict[str, Any] = {"plugins": [asdict(found)]} if found else {}
    out |= {
        "data": {
            "classes": data.classes,
            "shape": list(data.shape),
            "box": list(data.box),
            **data.about,
            **digest_of(data),
        },
        "parameters": sum(p.numel() for p in model.parameters()),
    }
    inner = method.method if isinstance(method, AWP) else method
    if isinstance(inner, ATENT):
        out["chain"] = inner.chain().describe()
    return out


def _preflight(
    model: nn.Module, data: Data, method: Method, state: Any, settings: TrainSettings, probe: _Probe, start: Snapshot,
    path: Path | None, amp: AbstractContextManager[Any],
) -> bool:  # fmt: skip
    """ValueError for what would end the training later; whether a last batch of one image joins the one before."""
    preflight.check_attacks(
        model, data, {f"validate_attack {settings.validate_attack}": a for a in probe.attacks.values()}
    )
    made = preflight.twin(model)
    x, _ = data.train.batch(torch.arange(min(2, len(data.train)), device=data.train.x.device))
    if made is not None and len(x) > 1:
        with amp:
            preflight.check_pass(made, x, data.classes)
    if path is not None:
        preflight.check_folder(path)
        preflight.check_files(model if made is None else made, start, state)
    step = preflight.gradient_of(calibration.stand_in(method), data, state, amp, model)
    return preflight.last_joins(len(data.train), settings.batch_size, step)


# What belongs to the machine: a run may resume with other values of these.
_MACHINE = ("save_minutes", "threads", "device", "precision", "channels_last")


def _check_bfloat16(model: nn.Module, data: Data, settings: TrainSettings, device: torch.device) -> None:
    """ValueError, with what was measured, unless bfloat16 is faster here and agrees with float32."""
    x, _ = data.train.batch(torch.arange(min(len(data.train), settings.batch_size), device=device))
    probe = bfloat16_pays(model, data.shape, device, x=x, channels_last=settings.channels_last)
    if not probe.pays:
        why = "disagrees with float32" if probe.faster else "is not faster than float32"
        raise ValueError(f"precision bfloat16 {why} on this {device.type} ({probe}): use precision float32")


def _channels_last(
    model: nn.Module, data: Data, device: torch.device, say: Callable[[str], None]
) -> torch.memory_format:
    """Channels-last, with the model's kernels, where the network takes it; else the usual layout, with a warning."""
    refused = refuses_channels_last(model, data.validation.batch([0, 0])[0].to(device))
    if refused is None:
        preflight.move(model, device, torch.channels_last)
        return torch.channels_last
    say(f"warning: {refused}")
    return torch.contiguous_format


def _threads(
    model: nn.Module, data: Data, settings: TrainSettings, before: int | None, say: Callable[[str], None]
) -> int:
    """The number of CPU threads; "auto" is measured once, and a resumed run keeps it where there are as many cores."""
    if isinstance(settings.threads, int):
        return settings.threads
    most = cores()
    if before is not None and before <= most:
        return before
    x, _ = data.train.batch(torch.arange(min(len(data.train), settings.batch_size), device=data.train.x.device))
    chosen = gaining(model, x, low=settings.precision == "bfloat16")
    say(f"threads {chosen} of {most} cores")
    return chosen


def _of_the_run(fingerprint: str, now: str, method: Method) -> str:
    """A saved fingerprint without the settings of `_MACHINE`, of which earlier versions kept two, and with those of the
    fingerprint ``now`` that came later, where they are at their defaults."""
    parts = json.loads(fingerprint)
    parts["train"] = {k: v for k, v in parts["train"].items() if k not in _MACHINE}
    inner = method.method if isinstance(method, AWP) else method
    name = parts["method"]["name"]
    if ":" not in name and json.loads(now)["method"]["name"].rpartition(":")[2] == name:
        # Earlier versions kept the bare name of a method of the user's own.
        parts["method"]["name"] = json.loads(now)["method"]["name"]
    known = {f.name: f.default for f in fields(inner) if f.default is not MISSING}
    defaults = {"optimizer": asdict(Optimizer()), "schedule": asdict(Schedule()), "train": asdict(TrainSettings())}
    return folder.dumps(_completed(parts, json.loads(now), json.loads(folder.dumps({**defaults, "method": known}))))


def _completed(old: dict[str, Any], new: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """``old`` with the entries that only ``new`` has, where they equal ``defaults``."""
    out = dict(old)
    for key, default in defaults.items():
        if isinstance(default, dict) and isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
            out[key] = _completed(old[key], new[key], default)
        elif key not in old and key in new and new[key] == default:
            out[key] = default
    return out


def _as_begun(data: Data, run: Path) -> Data:
    """The data as the run at ``run`` took its subsets: one made before runs recorded data.subset took the first
    samples in source order."""
    path = run / folder.CONFIG
    if data.subset == "first" or not path.is_file() or "subset" in folder.read_json(path).get("data", {}):
        return data
    return replace(data, subset="first", validation=data.validation.take(data.validation.ids.argsort()))


def digest_of(data: Data) -> dict[str, str]:
    """A hash of the training samples of data without files, by which a resumed training knows them again."""
    if data.about.get("files"):
        return {}
    digest = hashlib.sha256()
    for part in (data.train.x, data.train.y, data.validation.x, data.validation.y):
        digest.update(part.cpu().contiguous().numpy().tobytes())
    return {"digest": digest.hexdigest()[:16]}


def _fingerprint(config: dict[str, Any]) -> str:
    """The settings that a resumed run must share, as text; those of the machine may change."""
    parts = {k: config[k] for k in ("model", "method", "optimizer", "schedule")}
    train = {k: v for k, v in config["train"].items() if k not in _MACHINE}
    # Runs made before data.subset took the first samples.
    data = {k: v for k, v in config["data"].items() if k != "root" and (k, v) != ("subset", "first")}
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
    again = f"`atent train --resume {path}`"
    if not config["model"].get("name"):
        data = " --data module:function" if config["about"]["data"].get("source") == "tensors" else ""
        again = f"fit(..., run={str(path)!r}, resume=True), or {again[:-1]} --model module:function{data}`"
    return f"{where}: go on with {again}"
