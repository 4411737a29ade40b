"""Optimizers by name, and learning-rate schedules as pure functions of the step."""

from atent.optim.average import Average
from atent.optim.entropy_sgd import EntropySGD
from atent.optim.lars import LARS
from atent.optim.schedules import Schedule, lr_factor
from atent.optim.settings import OPTIMIZERS, Optimizer, Walk, build
from atent.optim.sgld import SGLD

__all__ = ["LARS", "OPTIMIZERS", "SGLD", "Average", "EntropySGD", "Optimizer", "Schedule", "Walk", "build", "lr_factor"]
