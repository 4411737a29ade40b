"""How well a model holds: accuracy under attacks, with intervals."""

from atent.evaluate.evaluation import Evaluation, evaluate, predict

__all__ = ["Evaluation", "evaluate", "predict"]
