"""The training loop, its checkpoints, and loading of trained networks."""

from atent.runs.checkpoint import export, load_weights
from atent.runs.loading import load
from atent.train.callbacks import Callback, EarlyStopping
from atent.train.interrupt import Interrupted
from atent.train.loop import fit
from atent.train.result import Diverged, Fitted
from atent.train.settings import TrainSettings

__all__ = [
    "Callback",
    "Diverged",
    "EarlyStopping",
    "Fitted",
    "Interrupted",
    "TrainSettings",
    "export",
    "fit",
    "load",
    "load_weights",
]
