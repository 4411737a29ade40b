"""How robust a model is: accuracy under attacks, with intervals, and the checks that say why to believe it."""

import sys
from types import ModuleType
from typing import Any

from atent.evaluate import norms
from atent.evaluate.evaluation import Evaluation, evaluate, predict, rounds
from atent.evaluate.masking import CHECKS, Check, masking_checks
from atent.evaluate.samples import Checked, checked
from atent.evaluate.sweep import sweep
from atent.evaluate.union import Union, union

__all__ = [
    "CHECKS",
    "Check",
    "Checked",
    "Evaluation",
    "Union",
    "checked",
    "evaluate",
    "masking_checks",
    "norms",
    "predict",
    "rounds",
    "sweep",
    "union",
]


class _Called(ModuleType):
    """The package is named as its main function: ``from atent import evaluate`` and a call do what they say."""

    def __call__(self, *args: Any, **given: Any) -> Evaluation:
        return evaluate(*args, **given)


sys.modules[__name__].__class__ = _Called
