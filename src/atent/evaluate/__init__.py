"""How robust a model is: accuracy under attacks, with intervals, and the checks that say why to believe it."""

from atent.evaluate import norms
from atent.evaluate.evaluation import Evaluation, evaluate, predict, rounds
from atent.evaluate.masking import CHECKS, Check, masking_checks
from atent.evaluate.samples import Checked, checked
from atent.evaluate.sweep import sweep

__all__ = [
    "CHECKS",
    "Check",
    "Checked",
    "Evaluation",
    "checked",
    "evaluate",
    "masking_checks",
    "norms",
    "predict",
    "rounds",
    "sweep",
]
