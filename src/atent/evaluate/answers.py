"""What a model answers without an attack."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atent.checks import as_inputs, as_labels, check_logits, check_number
from atent.guard import ask, guard
from atent.memory import Batches
from atent.precision import full_precision


def predict(model: nn.Module, x: Tensor, y: Tensor, *, batch: int = 500) -> Tensor:
    """Predicted classes (n,) in eval mode and full precision; the model comes back as it was. ValueError where it gives
    no logits."""
    batch = check_number("batch", batch, 1, whole=True)
    return answers(model, as_inputs(x, model), as_labels(y), batch)[0]


@torch.no_grad()
def answers(model: nn.Module, x: Tensor, y: Tensor, batch: int) -> tuple[Tensor, int]:
    """As `predict`, and the number of classes, 0 without a sample."""
    out, classes = [], 0
    with guard(model, mode="eval"), full_precision(x.device):
        for part, logits in Batches("the evaluation").over(len(x), batch, lambda rows: ask(model, x[rows])):
            check_logits(logits, y[part])
            out.append(logits.argmax(1))
            classes = logits.shape[1]
    return torch.cat(out) if out else y.new_zeros(0), classes
