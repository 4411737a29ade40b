"""Trackers as callbacks: TensorBoard, MLflow and Weights & Biases.

Each records the configuration and the name of the run once, the metrics of every epoch, and the evaluation at the end.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from atent import runs as folder
from atent.messages import unknown
from atent.train.callbacks import Callback, Progress, Row

IDS = "trackers.json"
"""The file of a run folder with the ids of the run in the trackers, by which it resumes."""

# Maximum length of a parameter in MLflow.
_LONGEST = 500


class Tracker(Callback):
    """Base class of trackers; a tracker overrides `open`, `figures` and `close`.

    Parameters
    ----------
    keep_open
        Wait for the evaluation after the training, as `atent train` does; the caller then calls `close`.

    Raises
    ------
    ValueError
        In one line, if the library is not installed.
    """

    name = ""
    """Its name for ``--log``, and that of the extra."""
    module = ""
    """The module to import."""

    def __init__(self, *, keep_open: bool = False) -> None:
        self.keep_open, self.library = keep_open, _imported(self.module, self.name)

    def start(self, progress: Progress) -> None:
        """Open the tracker; a resumed run continues the same run."""
        self.open(progress)

    def epoch(self, progress: Progress, row: Row) -> None:
        """Record the figures of an epoch."""
        self.figures(numbers(row), row["epoch"])

    def end(self, progress: Progress) -> None:
        """Close, unless an evaluation follows."""
        if not self.keep_open:
            self.close()

    def evaluation(self, content: dict[str, Any]) -> None:
        """Record the accuracies on the test set."""
        self.figures(accuracies(content), content["epoch"])

    def open(self, progress: Progress) -> None:
        """Start recording, with the configuration."""

    def figures(self, values: dict[str, float], epoch: int) -> None:
        """Record numbers by name."""

    def close(self) -> None:
        """Write what is pending; has no effect if nothing was opened."""


class TensorBoard(Tracker):
    """Event files in the run folder, or in ``place``: view them with ``tensorboard --logdir runs``."""

    name, module = "tensorboard", "torch.utils.tensorboard"

    def __init__(self, place: str | Path | None = None, *, keep_open: bool = False) -> None:
        super().__init__(keep_open=keep_open)
        self.place = place
        self.writer: Any = None

    def open(self, progress: Progress) -> None:
        """Open the event files; figures that an interrupted run recorded after its checkpoint are hidden.
        ValueError without a folder."""
        place = self.place or (progress.run / self.name if progress.run else None)
        if place is None:
            raise ValueError("TensorBoard needs a folder: give fit(run=...), or TensorBoard('FOLDER')")
        self.writer = self.library.SummaryWriter(str(place), purge_step=len(progress.history) + 1)
        if not progress.history:
            self.writer.add_text("config", f"```json\n{json.dumps(folder.plain(progress.config), indent=2)}\n```")
            self.writer.add_text("run", _title(progress))

    def figures(self, values: dict[str, float], epoch: int) -> None:
        """Record each as a scalar."""
        if self.writer is not None:
            for key, value in values.items():
                self.writer.add_scalar(key, value, epoch)

    def close(self) -> None:
        """Write and close the event files."""
        if self.writer is not None:
            self.writer.close()
            self.writer = None


class MLflow(Tracker):
    """A run of the MLflow experiment "atent", at ``MLFLOW_TRACKING_URI``, by default in the current folder."""

    name, module = "mlflow", "mlflow"

    def __init__(self, experiment: str = "atent", *, keep_open: bool = False) -> None:
        super().__init__(keep_open=keep_open)
        self.experiment, self.id = experiment, ""
        self.client: Any = None

    def open(self, progress: Progress) -> None:
        """Create the run, or resume it by the id in the run folder."""
        self.client = self.library.MlflowClient()
        known = _ids(progress.run).get(self.name)
        if known is not None:
            self.id = known
            self.client.update_run(self.id, status="RUNNING")
            return
        found = self.client.get_experiment_by_name(self.experiment)
        where = self.client.create_experiment(self.experiment) if found is None else found.experiment_id
        self.id = self.client.create_run(where, run_name=_title(progress)).info.run_id
        _keep(progress.run, self.name, self.id)
        self.client.set_tag(self.id, "atent.run", str(progress.run))
        for key, value in _flat(settings(progress.config)):
            self.client.log_param(self.id, key, str(value)[:_LONGEST])

    def figures(self, values: dict[str, float], epoch: int) -> None:
        """Record each as a metric."""
        if self.client is not None:
            for key, value in values.items():
                # MLflow allows letters, digits and these signs.
                self.client.log_metric(self.id, re.sub(r"[^\w./ -]", "_", key), value, step=epoch)

    def close(self) -> None:
        """End the run."""
        if self.client is not None:
            self.client.set_terminated(self.id)
            self.client = None


class WandB(Tracker):
    """A Weights & Biases run of the project "atent", offline unless ``WANDB_MODE`` is set; ``wandb sync`` uploads it
    later."""

    name, module = "wandb", "wandb"

    def __init__(self, project: str = "atent", *, keep_open: bool = False) -> None:
        super().__init__(keep_open=keep_open)
        self.project = project
        self.run: Any = None

    def open(self, progress: Progress) -> None:
        """Start the run, or resume it by the id in the run folder."""
        name = _ids(progress.run).get(self.name) or uuid.uuid4().hex[:8]
        _keep(progress.run, self.name, name)
        self.run = self.library.init(
            project=self.project, name=_title(progress), id=name, resume="allow",
            mode=os.environ.get("WANDB_MODE", "offline"), dir=str(progress.run) if progress.run else None,
            config={**folder.plain(settings(progress.config)), "run": str(progress.run)},
        )  # fmt: skip

    def figures(self, values: dict[str, float], epoch: int) -> None:
        """Record them as one step."""
        if self.run is not None:
            self.run.log({"epoch": epoch, **values})

    def close(self) -> None:
        """End the run."""
        if self.run is not None:
            self.run.finish()
            self.run = None


TRACKERS: dict[str, type[Tracker]] = {kind.name: kind for kind in (TensorBoard, MLflow, WandB)}
"""By their names for ``--log``."""


def trackers(names: tuple[str, ...], *, keep_open: bool = False) -> list[Tracker]:
    """The trackers of these names; ValueError, in one line, for an unknown one, and if a library is not installed."""
    for name in names:
        if name not in TRACKERS:
            raise ValueError(unknown("tracker", name, TRACKERS))
    return [TRACKERS[name](keep_open=keep_open) for name in dict.fromkeys(names)]


def numbers(row: Row) -> dict[str, float]:
    """The figures of an epoch's row."""
    kept = {k: v for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {key: value for key, value in kept.items() if key != "epoch"}


def accuracies(content: dict[str, Any]) -> dict[str, float]:
    """The accuracies of an evaluation.json, named test/ and the name of the attack."""
    robust = {name: entry["robust"]["value"] for name, entry in content["attacks"].items()}
    both = {"clean": content["clean"]["value"], **robust}
    if content.get("worst"):
        both["worst"] = content["worst"]["value"]
    return {f"test/{name}": value for name, value in both.items()}


def settings(config: dict[str, Any]) -> dict[str, Any]:
    """A run's configuration without ``about`` and ``provenance``."""
    return {key: value for key, value in config.items() if key not in ("about", "provenance")}


def _flat(tables: dict[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tables.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{path}{key}.")
        else:
            yield f"{path}{key}", value


def _title(progress: Progress) -> str:
    return progress.run.name if progress.run else str(progress.config["method"]["name"])


def _ids(run: Path | None) -> dict[str, str]:
    """The ids of the run in the trackers."""
    if run is None or not (run / IDS).is_file():
        return {}
    found: dict[str, str] = folder.read_json(run / IDS)
    return found


def _keep(run: Path | None, name: str, value: str) -> None:
    if run is not None:
        folder.write_json(run / IDS, {**_ids(run), name: value})


def _imported(module: str, name: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ValueError(f"{name} is not installed ({error}): pip install 'atent[{name}]'") from error
