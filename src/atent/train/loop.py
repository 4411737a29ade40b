"""`fit`: a training in one call; `Trainer` is the whole of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch import nn

from atent.data import Data
from atent.distributed import entered
from atent.distributed.launch import joined
from atent.methods import Method
from atent.optim import Optimizer, Schedule
from atent.runs.locks import held
from atent.runs.names import LOCK
from atent.threat import Threat
from atent.train.builders import Builders
from atent.train.callbacks import Bar, Callback, EarlyStopping, Report
from atent.train.describe import describe, digest_of, facts
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
    augmentation: str = "none",
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
    """Train ``model`` on ``data`` by ``method`` and keep the epoch that is best on the validation split.

    ``data`` is a `Data` (see `atent.data.from_tensors` for your own arrays); where fewer samples than there are get
    measured, they are those of `Data.sample`, the same for every method and seed. With ``run``, a new folder, all is
    written there: config.json, metrics.jsonl, best.safetensors and last/. ``resume=True`` resumes an existing one,
    exactly. ``threat`` is what the robust validation uses where the method has none of its own. ``report`` is
    called with each epoch's row, ``say`` with a line on what a calibrated method found before the first batch, with
    the warnings of the watch (`atent.train.watch`), which may end the training early, and where the validation hints at
    a mistake, such as a network that gives everything one class. ``callbacks`` are
    called during the training (see `Callback`) and may end it. The global random state comes back as it was.
    ``builder`` names what builds the network again, as module:function or a network of `atent.models.MODELS`, called
    with ``builder_args``; ``data_builder`` what gives the data. Both are tried before the training, and recorded, so
    that the commands take the run without ``--model`` and ``--data``. Data of `atent.data.load` need no builder.
    ``AWP(method)`` is the same as ``method`` with ``settings.awp``, `EmbeddingRegularised` as with
    ``settings.embedding``.

    Under torchrun each process calls this alike, and the ranks train one network: see the page *distributed*. Rank 0
    alone writes, reports, calls ``report``, ``say`` and ``callbacks``; all get the same `Fitted`.

    Raises ValueError for settings that cannot work, InUse (a ValueError) while another process is at work in the run
    folder, FileExistsError for a folder that holds something else, Diverged for a loss, gradient or weight that is not
    finite, OutOfMemory for a step that does not fit with a single sample, Interrupted after Ctrl-C, SIGTERM, SIGHUP,
    SIGUSR1 or SIGUSR2 (with ``run``, the state is saved first).
    """
    if not isinstance(data, Data):
        raise ValueError(
            f"data is a {type(data).__name__}, fit needs Data: make it by atent.data.from_tensors(x_train, y_train,"
            " x_test, y_test), of DataLoaders by from_tensors(*collect(train_loader), *collect(test_loader))"
        )
    if not isinstance(method, Method):
        given = method.__name__ if isinstance(method, type) else repr(method)
        raise ValueError(f"method is {given}, fit needs a method such as atent.methods.PGDAT(Threat('linf', 8/255))")
    for name, value, kind in (
        ("settings", settings, TrainSettings), ("optimizer", optimizer, Optimizer), ("schedule", schedule, Schedule),
    ):  # fmt: skip
        if value is not None and not isinstance(value, kind):
            raise ValueError(f"{name} is a {type(value).__name__}, fit needs a {kind.__name__}: {kind.__name__}(...)")
    if isinstance(callbacks, Callback):
        raise ValueError(f"callbacks is one {type(callbacks).__name__}: give a list of them")
    wrong = next((c for c in callbacks if not isinstance(c, Callback)), None)
    if wrong is not None:
        raise ValueError(f"callbacks has a {type(wrong).__name__}: derive it from atent.train.Callback")
    method, settings = apart(method, settings or TrainSettings())
    stopping = [EarlyStopping(settings.patience)] if settings.patience else []
    every = [*([Bar()] if progress else []), *([Report(report)] if report else []), *stopping, *callbacks]
    builders = Builders(builder, builder_args or {}, data_builder, data_builder_args or {})
    lock = held(Path(run) / LOCK, "train") if run is not None else nullcontext()
    with joined() as world, entered(lambda: lock):
        return Trainer(
            model, data, method, optimizer=optimizer or Optimizer(), schedule=schedule or Schedule(),
            settings=settings, augmentation=augmentation, threat=threat,
            run=Path(run) if run is not None else None, config=config, resume=resume,
            progress=progress and world.first, callbacks=every if world.first else [],
            say=say if world.first else lambda line: None, builders=builders,
        ).train()  # fmt: skip
