"""`fit`: a training in one call, by `Trainer`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from atent.attacks.spec import show
from atent.data import Data
from atent.distributed import entered
from atent.distributed.launch import joined
from atent.guard import check_module
from atent.methods import Method
from atent.optim import Optimizer, Schedule
from atent.precision import without_callers_modes
from atent.runs.locks import held
from atent.runs.names import LOCK
from atent.signals import repaired_by
from atent.threat import Threat
from atent.train.builders import Builders
from atent.train.callbacks import Bar, Callback, EarlyStopping, Report
from atent.train.describe import describe, digest_of, facts
from atent.train.interrupt import resumption
from atent.train.result import Diverged, Fitted
from atent.train.settings import TrainSettings
from atent.train.step import apart
from atent.train.trainer import Trainer

__all__ = ["Diverged", "Fitted", "describe", "digest_of", "facts", "fit"]


def fit(
    model: nn.Module,
    data: Data,
    method: Method,
    *,
    optimizer: Optimizer | None = None,
    schedule: Schedule | None = None,
    settings: TrainSettings | None = None,
    augmentation: str | None = None,
    threat: Threat | None = None,
    run: str | Path | None = None,
    config: dict[str, Any] | None = None,
    resume: bool = False,
    progress: bool = True,
    report: Callable[[dict[str, Any]], None] | None = None,
    say: Callable[[str], None] = lambda line: None,
    callbacks: Sequence[Callback] = (),
    builder: str | None = None,
    builder_args: Mapping[str, Any] | None = None,
    data_builder: str | None = None,
    data_builder_args: Mapping[str, Any] | None = None,
) -> Fitted:
    """Train a network by a method and keep the epoch that is best on the validation split.

    The network may be any `nn.Module` from pixels to logits; the global random state is unchanged. Under torchrun each
    process makes the same call, and the ranks train one network (page *distributed*): rank 0 alone writes, reports and
    calls ``report``, ``say`` and ``callbacks``; all return the same `Fitted`.

    Parameters
    ----------
    model
        The network; it is trained in place.
    data
        See `atent.data.load`, and `atent.data.from_tensors` for arrays. If only a subset is measured, it is that of
        `Data.sample`, the same for every method and seed.
    method
        A training method. ``AWP(method)`` equals ``method`` with ``settings.awp``, `EmbeddingRegularised` with
        ``settings.embedding``.
    optimizer, schedule, settings
        Default: ``Optimizer()``, ``Schedule()``, ``TrainSettings()``.
    augmentation
        Augmentation of the training images: "none" or a name of `atent.data.augment`. Default: that of the data, such
        as ``DataSettings.augment``.
    threat
        Threat of the robust validation, for methods without one; ValueError if the method has another.
    run
        A new folder for config.json, metrics.jsonl, best.safetensors and last/. Default: nothing is written.
    config
        Further entries of config.json, under names that it does not have.
    resume
        Resume the training in ``run`` exactly.
    progress
        Show a progress bar, or a line per minute if stderr is not a terminal.
    report
        Called with the row of each epoch.
    say
        Called with one line on the result of a calibration, on warnings of the watch (`atent.train.watch`), which may
        end the training early, and on mistakes indicated by the validation.
    callbacks
        Called during the training, see `Callback`; they may end it.
    builder, builder_args
        Builder of the network, as module:function or a name of `atent.models.MODELS`, and its arguments. It is tried
        before the training and recorded, so that commands accept the run without ``--model``.
    data_builder, data_builder_args
        The same for the data and ``--data``; data of `atent.data.load` need none.

    Returns
    -------
    Fitted
        The network with the best epoch's weights, the rows of the epochs, and why the training ended early, if it did.

    Raises
    ------
    ValueError
        In one line, for settings that cannot work; `InUse` while another process works in the run folder; `Diverged`
        for a loss, gradient or weight that is not finite.
    FileExistsError
        For a folder with other contents.
    OutOfMemory
        If a step with a single sample does not fit.
    Interrupted
        After Ctrl-C, SIGTERM, SIGHUP, SIGUSR1 or SIGUSR2; with ``run`` the state is saved first.

    Examples
    --------
    >>> from atent import Threat
    >>> from atent.data import DataSettings, load
    >>> from atent.methods import FGSMRS
    >>> from atent.train import TrainSettings, fit
    >>> data = load(DataSettings("digits", limit=64, validation=50))
    >>> net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
    >>> fitted = fit(net, data, FGSMRS(Threat("linf", 0.1)), settings=TrainSettings(epochs=2), progress=False)
    >>> len(fitted.history), fitted.model.training, fitted.stopped
    (2, False, None)
    """
    check_module(model)
    _check(data, method, threat)
    for name, value, kind in (
        ("settings", settings, TrainSettings), ("optimizer", optimizer, Optimizer), ("schedule", schedule, Schedule),
    ):  # fmt: skip
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{name} must be {kind.__name__}(...), got a {type(value).__name__}")
    if isinstance(callbacks, Callback):
        raise ValueError(f"callbacks must be a list, got a {type(callbacks).__name__}: give a list of Callback")
    callbacks = list(callbacks)  # a generator gives them once
    wrong = next((c for c in callbacks if not isinstance(c, Callback)), None)
    if wrong is not None:
        raise ValueError(
            f"each of callbacks must be an atent.train.Callback, got a {type(wrong).__name__}: inherit from it"
        )
    method, settings = apart(method, settings or TrainSettings())
    stopping = [EarlyStopping(settings.patience)] if settings.patience else []
    shown = [*([Bar(lines=report is None)] if progress else []), *([Report(report)] if report else [])]
    every = [*shown, *stopping, *callbacks]
    builders = Builders(builder, builder_args or {}, data_builder, data_builder_args or {})
    lock = held(Path(run) / LOCK, "train") if run is not None else nullcontext()
    place = Path(run) if run is not None else None
    kept = repaired_by(lambda: resumption(place)) if place else nullcontext()
    with without_callers_modes(), joined() as world, entered(lambda: lock), kept:
        return Trainer(
            model, data, method, optimizer=optimizer or Optimizer(), schedule=schedule or Schedule(),
            settings=settings, augmentation=augmentation or data.augment, threat=threat,
            run=place, config=config, resume=resume,
            progress=progress and world.first, callbacks=every if world.first else [],
            say=say if world.first else lambda line: None, builders=builders,
        ).train()  # fmt: skip


def _check(data: Any, method: Any, threat: Threat | None) -> None:
    """ValueError for other objects, for a threat beside another one of the method, and for labels that are not of the
    data's classes."""
    if not isinstance(data, Data):
        raise ValueError(
            f"data must be Data, got a {type(data).__name__}: create it by atent.data.from_tensors(x_train, y_train,"
            " x_test, y_test), from DataLoaders by from_tensors(*collect(train_loader), *collect(test_loader))"
        )
    if not isinstance(method, Method):
        given = method.__name__ if isinstance(method, type) else repr(method)
        raise ValueError(f"method must be a method such as atent.methods.PGDAT(Threat('linf', 8/255)), got {given}")
    if threat is not None and method.threat not in (None, threat):
        raise ValueError(
            f"threat {show(threat)} has no effect with {type(method).__name__}, whose own is {show(method.threat)}:"
            " omit it, and validate under another one by validate_attack, such as 'PGD(norm=l2, eps=0.5)'"
        )
    for part in ("train", "validation"):
        y = getattr(data, part).y
        if len(y) and not 0 <= int(y.min()) <= int(y.max()) < data.classes:
            found = f"{int(y.min())} to {int(y.max())}"
            raise ValueError(f"the labels of data.{part} run from {found}; with {data.classes} classes they start at 0")
