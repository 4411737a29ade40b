"""One logit as two: networks whose last layer is a single sigmoid unit."""

import torch
from torch import Tensor, fx, nn


class _Pair(nn.Linear):
    """z to (0, z): a linear layer without trainable weights, which bounds support like any other."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = 1, 2
        # Not saved: the state dict contains the weights of the wrapped network only.
        self.register_buffer("weight", torch.tensor([[0.0], [1.0]]), persistent=False)
        self.register_parameter("bias", None)


class BinaryLogits(nn.Module):
    """See `binary_logits`."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.pair = net, _Pair()
        like = next((p for p in net.parameters() if p.is_floating_point()), None)
        if like is not None:
            self.pair.to(like)

    def forward(self, x: Tensor) -> Tensor:
        z = self.net(x)
        traced = isinstance(z, fx.Proxy)
        if not traced and (not isinstance(z, Tensor) or z.numel() != len(x) or z.dim() > 2):
            given = f"shape {tuple(z.shape)}" if isinstance(z, Tensor) else f"a {type(z).__name__}"
            raise ValueError(f"binary_logits needs a network with one logit, (n, 1) or (n,), got {given}")
        if not traced and not torch.compiler.is_compiling() and _is_probability(z):
            raise ValueError(_SIGMOID)
        logits: Tensor = self.pair(z.reshape(-1, 1))
        return logits


_SIGMOID = "the network ends in a sigmoid: remove that layer, binary_logits needs the logit before it"
_SHAPES = (
    "Alias", "AsStrided", "Clone", "Expand", "Permute", "Reshape", "Select", "Slice", "Squeeze", "TBackward", "ToCopy",
    "Transpose", "UnsafeView", "Unsqueeze", "View",
)  # fmt: skip
"""Beginnings of the names of torch's functions that change no value."""


def _is_probability(z: Tensor) -> bool:
    """Whether the graph of an output shows that its last function is a sigmoid; False without a graph."""
    node = z.grad_fn
    while node is not None and node.name().startswith(_SHAPES):
        node = node.next_functions[0][0]
    return node is not None and node.name().startswith("Sigmoid")


def binary_logits(net: nn.Module) -> BinaryLogits:
    """A network with one logit z as a network with the two logits (0, z).

    Class 1 has the probability sigmoid(z), the second entry of the softmax of (0, z), so the cross-entropy equals
    `torch.nn.BCEWithLogitsLoss`, and the predicted class is 1 where z > 0. Labels are 0 and 1 accordingly. The network
    is not copied: training the wrapper trains its weights. Attacks, training, smoothing and bounds take the wrapper
    like any other network.

    Parameters
    ----------
    net
        A network from inputs (n, ...) to one logit each, (n, 1) or (n,).

    Returns
    -------
    BinaryLogits
        A module from inputs (n, ...) to logits (n, 2); its attribute ``net`` is the network.

    Raises
    ------
    ValueError
        If the network ends in a sigmoid, which gives a probability instead of z: at once if that is its last layer,
        otherwise at the first pass with a gradient; at the first pass, if it does not give one output per input.

    Examples
    --------
    >>> import torch
    >>> from atent.models import binary_logits
    >>> model = binary_logits(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1)))
    >>> logits = model(torch.rand(5, 1, 8, 8))
    >>> logits.shape, (logits[:, 0] == 0).all().item()
    (torch.Size([5, 2]), True)
    """
    last = [module for module in net.modules() if not list(module.children())][-1]
    if isinstance(last, nn.Sigmoid):
        raise ValueError(_SIGMOID)
    return BinaryLogits(net)
