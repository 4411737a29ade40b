"""Predictions of a model without an attack."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from atent.checks import as_samples, check_logits, check_number, check_seed
from atent.guard import ask, guard
from atent.memory import Batches
from atent.precision import full_precision
from atent.rng import narrow


def predict(model: nn.Module, x: Tensor, y: Tensor, *, batch: int = 500, seed: int = 0) -> Tensor:
    """Predicted classes, in eval mode and full precision.

    Parameters
    ----------
    model
        From inputs to logits (n, classes); it comes back as it was.
    x, y
        Inputs (n, ...) and labels (n,), tensors or arrays. The labels only check the number of the model's outputs.
    batch
        Samples per forward pass, 1 or more.
    seed
        Seed of the random numbers of a random model.

    Returns
    -------
    Tensor
        int64 (n,), on the device of ``x``; of an array on that of the model.

    Raises
    ------
    ValueError
        In one line, where the model returns anything but finite logits for these labels.

    Examples
    --------
    >>> import torch
    >>> from atent.evaluate import predict
    >>> logits = torch.tensor([[2.0, 5.0], [7.0, 3.0]])
    >>> predict(torch.nn.Identity(), logits, torch.tensor([1, 1])).tolist()
    [1, 0]
    """
    batch = check_number("batch", batch, 1, whole=True)
    found = answers(model, *as_samples(x, y, model), batch, check_seed(seed))[0]
    return found.to(x.device) if isinstance(x, Tensor) else found


@torch.no_grad()
def answers(model: nn.Module, x: Tensor, y: Tensor, batch: int, seed: int) -> tuple[Tensor, int]:
    """As `predict`, and the number of classes, 0 for no samples."""
    out, classes = [], 0
    with guard(model, mode="eval", seed=narrow(seed)), full_precision(x.device):
        for part, logits in Batches("the evaluation").over(len(x), batch, lambda rows: ask(model, x[rows])):
            check_logits(logits, y[part])
            out.append(logits.argmax(1))
            classes = logits.shape[1]
    return torch.cat(out) if out else y.new_zeros(0), classes
