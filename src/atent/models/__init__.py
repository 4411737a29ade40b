"""Networks by name. Each maps floats in [0, 1] of shape (n, c, h, w) to logits (n, classes); `two_class` takes points
(n, d) of any range, `mlp` images or vectors."""

from atent.models.binary import binary_logits
from atent.models.builder import build, has_activation, has_dropout, has_patch, native_shape
from atent.models.normalize import Normalize
from atent.models.reference import check_output, from_reference
from atent.models.registry import MODELS, model
from atent.models.settings import ModelSettings, make
from atent.models.transformers import transformers_logits

__all__ = [
    "MODELS", "ModelSettings", "Normalize", "binary_logits", "build", "check_output", "from_reference",
    "has_activation", "has_dropout", "has_patch", "make", "model", "native_shape", "transformers_logits",
]  # fmt: skip
