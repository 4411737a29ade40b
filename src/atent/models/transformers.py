"""Image classifiers of the package transformers, whose output is an object with the logits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from atent.models.normalize import Normalize


class TransformersLogits(nn.Module):
    """See `transformers_logits`."""

    def __init__(self, net: nn.Module, normalize: Normalize | None) -> None:
        super().__init__()
        self.normalize = nn.Identity() if normalize is None else normalize
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        output = self.net(self.normalize(x))
        logits = getattr(output, "logits", None)
        if not isinstance(logits, Tensor):
            raise ValueError(
                f"transformers_logits needs an output with .logits, {type(self.net).__name__} returns a"
                f" {type(output).__name__}: use a class such as ViTForImageClassification, with return_dict=True"
            )
        return logits


def transformers_logits(
    net: nn.Module, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> TransformersLogits:
    """An image classifier of the package transformers as a network that returns logits.

    The network is not copied: training the wrapper trains its weights. Attacks, training and certificates take the
    wrapper like any other network. The package transformers is not imported here.

    Parameters
    ----------
    net
        A network that takes images (n, c, h, w) and returns an object with ``.logits``, such as
        ``ViTForImageClassification``.
    mean, std
        Mean and standard deviation of its image processor, per channel, in pixel units: the wrapper then takes images
        in [0, 1]. Default: no normalisation.

    Returns
    -------
    TransformersLogits
        A module from images (n, c, h, w) to logits (n, classes), in the mode of ``net``; its attribute ``net`` is the
        network.

    Raises
    ------
    ValueError
        For one of mean and std without the other, and as `Normalize`; at the first pass, for an output without
        ``.logits``.

    Examples
    --------
    >>> import torch
    >>> from types import SimpleNamespace
    >>> from atent.models import transformers_logits
    >>> class Classifier(torch.nn.Linear):  # stands for ViTForImageClassification
    ...     def forward(self, x):
    ...         return SimpleNamespace(logits=super().forward(x.flatten(1)))
    >>> transformers_logits(Classifier(48, 3), mean=[0.5] * 3, std=[0.5] * 3)(torch.rand(2, 3, 4, 4)).shape
    torch.Size([2, 3])
    """
    if (mean is None) != (std is None):
        raise ValueError("mean and std go together: give both or neither")
    model = TransformersLogits(net, None if mean is None or std is None else Normalize(mean, std))
    return model.train(net.training)
