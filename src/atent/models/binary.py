"""One logit as two: networks whose last layer is a single sigmoid unit."""

import torch
from torch import Tensor, fx, nn


class _Pair(nn.Linear):
    """z to (0, z): a layer without anything to train, which bounds read as they read any other."""

    def __init__(self) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = 1, 2
        # Not saved: the weights of the wrapped network load as they are.
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
        logits: Tensor = self.pair(z.reshape(-1, 1))
        return logits


def binary_logits(net: nn.Module) -> BinaryLogits:
    """The two logits (0, z), (n, 2), of a network that gives one logit z, (n, 1) or (n,).

    Class 1 is the class whose probability is sigmoid(z): softmax of (0, z) gives it sigmoid(z), so the cross-entropy is
    that of `torch.nn.BCEWithLogitsLoss`, and the network answers 1 where z > 0. Labels are 0 and 1 accordingly. The
    network is used as it is, its weights are trained through the wrapper, and attacks, training, smoothing and bounds
    take the wrapper like any other network.

    ValueError for a network that ends in a sigmoid, which gives a probability in place of z; on the first pass for one
    that gives anything but one output.
    """
    last = [module for module in net.modules() if not list(module.children())][-1]
    if isinstance(last, nn.Sigmoid):
        raise ValueError("the network ends in a sigmoid: remove that layer, binary_logits needs the logit before it")
    return BinaryLogits(net)
