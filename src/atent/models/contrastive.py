"""Wrappers of a network: with a projection head for pre-training, and with all but the last layer frozen."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from atent.guard import dtype_of, guard
from atent.models.dual import Branch, doubled


class Contrastive(nn.Module):
    """A network for contrastive pre-training: dual batch-norms, and a projection head in parallel to its last layer.

    The last linear layer is kept as a probe: the model returns logits (n, classes), so that it is evaluated, attacked
    and saved like any other, while pre-training compares the embeddings of the head.

    Parameters
    ----------
    network
        A network from inputs (n, ...) to logits whose last operation is a linear layer; it is changed in place.
    widths
        Widths of the head's linear layers; each is followed by batch-norm and, except the last, ReLU.
    shape
        Shape of one input, without the batch.
    branch
        The batch-norms in use by default: "a" (adversarial) or "n" (clean).

    Raises
    ------
    ValueError
        In one line, for a network that does not end in a linear layer, or has no other layer, and for widths below 2.

    Examples
    --------
    >>> import torch
    >>> from atent.models import build
    >>> from atent.models.contrastive import Contrastive
    >>> net = Contrastive(build("resnet8", shape=(1, 8, 8)), (64, 32), (1, 8, 8))
    >>> x = torch.rand(4, 1, 8, 8)
    >>> net(x).shape, net.embed(x).shape
    (torch.Size([4, 10]), torch.Size([4, 32]))
    """

    def __init__(self, network: nn.Module, widths: Sequence[int], shape: Sequence[int], branch: Branch = "a") -> None:
        super().__init__()
        if not widths or min(widths) < 2:
            raise ValueError(f"projection is a list of widths of at least 2, got {tuple(widths)}: use such as 512 512")
        name = last_linear(network, shape)
        if not name:
            raise ValueError("the network is one linear layer: pre-training needs layers before it")
        layer = cast(nn.Linear, network.get_submodule(name))
        parent, _, own = name.rpartition(".")
        network.get_submodule(parent).add_module(own, nn.Identity())
        self.network = doubled(network, branch)
        self.probe = layer
        self.projection = doubled(_head(layer.in_features, widths), branch)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (n, classes) of the probe."""
        return cast(Tensor, self.probe(self.network(x)))

    def embed(self, x: Tensor) -> Tensor:
        """Embeddings (n, d) of the head."""
        return cast(Tensor, self.projection(self.network(x)))

    def contrast(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings, and the logits of the probe on detached features."""
        features = self.network(x)
        return self.projection(features), self.probe(features.detach())


def _head(inputs: int, widths: Sequence[int]) -> nn.Sequential:
    """fc - BN - ReLU - fc - BN ...; a bias before batch-norm would have no effect."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.ReLU()] if layers else []
        layers += [nn.Linear(inputs, width, bias=False), nn.BatchNorm1d(width)]
        inputs = width
    return nn.Sequential(*layers)


class Frozen(nn.Sequential):
    """A network of which only the last linear layer is trained: a linear evaluation of its features.

    All other weights need no gradient, and all other layers stay in eval mode, so that batch-norm statistics are fixed
    and dropout is off.

    Parameters
    ----------
    network
        The network, whose last layer is linear.
    shape
        Shape of one input.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> from atent.models.contrastive import Frozen
    >>> network = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 3))
    >>> [name for name, p in Frozen(network, (1, 4, 4)).named_parameters() if p.requires_grad]
    ['network.3.weight', 'network.3.bias']
    """

    network: nn.Module

    def __init__(self, network: nn.Module, shape: Sequence[int]) -> None:
        name = last_linear(network, shape)
        super().__init__(OrderedDict(network=network))
        self._last = f"network.{name}".rstrip(".")
        self.requires_grad_(False)
        self.get_submodule(self._last).requires_grad_(True)
        self.train(self.training)

    def train(self, mode: bool = True) -> Frozen:
        """Train or eval mode of the last layer; the others are in eval mode."""
        super().train(False)
        self.training = mode
        self.get_submodule(self._last).train(mode)
        return self


def last_linear(network: nn.Module, shape: Sequence[int]) -> str:
    """The name of the linear layer whose output is the network's, "" if it is the network itself.

    One forward pass of zeros; the state of the network is restored. ValueError, in one line, if there is none.
    """
    first = next(network.parameters(), torch.zeros(0))
    outputs: dict[str, Any] = {}
    handles = [
        m.register_forward_hook(lambda _m, _given, out, name=name: outputs.__setitem__(name, out))
        for name, m in network.named_modules()
        if isinstance(m, nn.Linear)
    ]
    try:
        with guard(network, mode="eval"), torch.no_grad():
            out = network(torch.zeros(2, *shape, dtype=dtype_of(network) or torch.float32, device=first.device))
    finally:
        for handle in handles:
            handle.remove()
    found = next((name for name, output in outputs.items() if output is out), None)
    if found is None:
        raise ValueError(
            f"{type(network).__name__} does not end in a linear layer: pre-training and linear evaluation need one"
        )
    return found
