"""The one training loop, its checkpoints, and loading what it made."""

from atent.runs.checkpoint import export, load_weights
from atent.runs.loading import load
from atent.train.interrupt import Interrupted
from atent.train.loop import Diverged, Fitted, fit
from atent.train.settings import TrainSettings

__all__ = ["Diverged", "Fitted", "Interrupted", "TrainSettings", "export", "fit", "load", "load_weights"]
