"""Optimizers by name, and learning-rate schedules as pure functions of the step."""

from atent.optim.schedules import Schedule, lr_factor
from atent.optim.settings import OPTIMIZERS, Optimizer, build

__all__ = ["OPTIMIZERS", "Optimizer", "Schedule", "build", "lr_factor"]
