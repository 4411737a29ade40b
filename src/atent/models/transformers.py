"""Image classifiers of the package transformers, which answer with an object that holds the logits."""

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
        answer = self.net(self.normalize(x))
        logits = getattr(answer, "logits", None)
        if not isinstance(logits, Tensor):
            raise ValueError(
                f"transformers_logits needs an answer with .logits, {type(self.net).__name__} gives a"
                f" {type(answer).__name__}: use a class such as ViTForImageClassification, with return_dict=True"
            )
        return logits


def transformers_logits(
    net: nn.Module, *, mean: Sequence[float] | None = None, std: Sequence[float] | None = None
) -> TransformersLogits:
    """The logits (n, classes) of an image classifier of transformers, as attacks, training and certificates take them.

    The network is used as it is, and its weights are trained through the wrapper. Nothing of transformers is imported
    here.

    Parameters
    ----------
    net
        A network that is called with images (n, c, h, w) and gives an object with ``.logits``, such as
        ``ViTForImageClassification``.
    mean, std
        What its image processor takes off and divides by, per channel, in pixel units: then the wrapper takes images
        in [0, 1]. Default: images go in as they are.

    Raises
    ------
    ValueError
        For one of mean and std without the other, and as `Normalize`; on the first pass for an answer without
        ``.logits``.
    """
    if (mean is None) != (std is None):
        raise ValueError("mean and std go together: give both or neither")
    model = TransformersLogits(net, None if mean is None or std is None else Normalize(mean, std))
    return model.train(net.training)
