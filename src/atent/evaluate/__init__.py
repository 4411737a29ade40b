"""Robustness of a model: accuracy under attacks, with intervals, and checks of its evaluation."""

import inspect
import sys
from types import ModuleType
from typing import Any

from atent.evaluate import norms
from atent.evaluate.answers import predict
from atent.evaluate.bands import Bands, measure_bands, split_bands
from atent.evaluate.corruptions import Corrupted, measure_corruptions
from atent.evaluate.evaluation import Evaluation, evaluate, evaluate_shard, rounds
from atent.evaluate.flips import Flips, measure_flips
from atent.evaluate.fourier import FourierMap, fourier_basis, fourier_map
from atent.evaluate.masking import CHECKS, Check, masking_checks
from atent.evaluate.samples import Checked, checked
from atent.evaluate.sweep import sweep, sweep_shard
from atent.evaluate.transfer import Transfers, measure_transfer
from atent.evaluate.union import Union, union

__all__ = [
    "CHECKS",
    "Bands",
    "Check",
    "Checked",
    "Corrupted",
    "Evaluation",
    "Flips",
    "FourierMap",
    "Transfers",
    "Union",
    "checked",
    "evaluate",
    "evaluate_shard",
    "fourier_basis",
    "fourier_map",
    "masking_checks",
    "measure_bands",
    "measure_corruptions",
    "measure_flips",
    "measure_transfer",
    "norms",
    "predict",
    "rounds",
    "split_bands",
    "sweep",
    "sweep_shard",
    "union",
]


class _Called(ModuleType):
    """The package has the name of its main function: ``atent.evaluate(...)`` calls it."""

    def __call__(self, *args: Any, **given: Any) -> Evaluation:
        return evaluate(*args, **given)


# For `inspect.signature` and editors, in place of that of `__call__`.
__signature__ = inspect.signature(evaluate)
sys.modules[__name__].__class__ = _Called
