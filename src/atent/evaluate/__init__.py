"""How well a model holds: accuracy under attacks, with intervals, and the checks that say why to believe it."""

from atent.evaluate.evaluation import Evaluation, evaluate, predict
from atent.evaluate.masking import CHECKS, Check, masking_checks

__all__ = ["CHECKS", "Check", "Evaluation", "evaluate", "masking_checks", "predict"]
