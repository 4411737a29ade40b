"""What the functions, methods and operators of torch mean, under whichever of their names a network calls them."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

SUMS = ("add", "sub")
PRODUCTS = ("mul", "div")
EXTREMES = ("maximum", "minimum", "max", "min")
"""What may have its constant first."""
SIZED = ("reshape", "avg_pool2d", "expand")
"""What may be given the sizes of its own input."""
NORMS = ("layer_norm", "group_norm", "instance_norm", "local_response_norm", "rms_norm")
DROPOUTS = {"dropout": True, "dropout1d": True, "dropout2d": True, "dropout3d": True, "feature_dropout": True,
            "alpha_dropout": False, "feature_alpha_dropout": False}  # fmt: skip
"""The functions that return their input unless they are told that they train, and whether they are by default."""
VIEWS = (
    "flatten", "reshape", "unflatten", "getitem", "squeeze", "unsqueeze", "permute", "transpose", "movedim", "mT",
    "select", "narrow", "chunk", "split", "tensor_split", "unbind", "expand", "contiguous", "positive", "to", "type",
    "type_as", "float", "double", *DROPOUTS,
)  # fmt: skip
"""What may return the memory of its input."""
ALIASES = {
    "iadd": "add", "subtract": "sub", "isub": "sub", "rsub": "sub", "multiply": "mul", "imul": "mul", "divide": "div",
    "true_divide": "div", "truediv": "div", "itruediv": "div", "negative": "neg", "pos": "positive", "absolute": "abs",
    "clip": "clamp", "special_expit": "sigmoid", "concat": "cat", "concatenate": "cat",
    "view": "reshape", "swapaxes": "transpose", "swapdims": "transpose", "moveaxis": "movedim", "mm": "matmul",
    "log_sigmoid": "logsigmoid",
}  # fmt: skip
# Where torch has them.
_MODULES = ("torch", "torch.functional", "torch.nn.functional", "torch._C._nn", "torch._C._special", "_operator")


def named(step: fx.Node) -> tuple[str, str]:
    """What the network's code calls a function, a method, an operator or an attribute, and the name of its meaning.

    A function of another library means nothing here, whatever its name.
    """
    target: Any = step.target
    if target is getattr:
        return str(step.args[1]), str(step.args[1])
    name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
    module = "torch" if isinstance(target, str) else getattr(target, "__module__", None)
    # torch.batch_norm has the arguments of F.batch_norm in another order.
    if module not in _MODULES or target is torch.batch_norm:
        return f"{module}.{name}", ""
    name = name.strip("_")
    return name, ALIASES.get(name, name)
