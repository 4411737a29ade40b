"""The input convention of a network, if it is not pixels in [0, 1] in the order red, green, blue."""

from __future__ import annotations

import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from atent.geometry.values import intervals
from atent.models.normalize import Normalize
from atent.threat import Box


class Reversed(nn.Module):
    """The channels of (n, c, h, w) in reverse order: RGB to BGR and back."""

    def forward(self, x: Tensor) -> Tensor:
        return x.flip(1)


@dataclass(frozen=True)
class Convention:
    """From pixels in [0, 1] to the input of a published network.

    The channels are reversed first (``bgr``), then scaled to ``input_range``, then normalised: (x - mean) / std, with
    mean and std in the units of that range and in the network's own order of channels. ValueError, in one line, for
    one of mean and std without the other, and for an input range that is not a..b with a below b.
    """

    mean: tuple[float, ...] | None = None
    """Per channel, or one number for all."""
    std: tuple[float, ...] | None = None
    """Per channel, or one number for all."""
    input_range: str | None = None
    """Input values of black and white, such as 0..255; default: 0..1."""
    bgr: bool = False
    """Whether the network takes blue, green, red."""

    def __post_init__(self) -> None:
        if (self.mean is None) != (self.std is None):
            raise ValueError("--mean and --std go together: give both or neither")
        if self.input_range is not None:
            self.bounds()

    def bounds(self) -> tuple[float, float]:
        """The input range as two numbers, the first below the second; ValueError for other texts."""
        found = re.fullmatch(r"\s*([-+.\deE]+?)\.\.([-+.\deE]+)\s*", self.input_range or "0..1")
        try:
            low, high = map(float, found.groups()) if found else (0.0, 0.0)
        except ValueError:
            low, high = 0.0, 0.0
        if not low < high < float("inf"):
            raise ValueError(f"--input-range {self.input_range} is not a..b with a below b: give 0..255, 0..1 or -1..1")
        return low, high

    def check_box(self, box: Box) -> None:
        """ValueError for an input range of data in another box than [0, 1], whose black and white are other numbers."""
        if self.input_range is not None and box != (0.0, 1.0):
            raise ValueError(
                f"--input-range {self.input_range} is for pixels in [0, 1], and the data lie in {intervals(box)}: give"
                " --mean and --std in their units, or nothing if the network takes the data as they are"
            )

    def normalisation(self, channels: int) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
        """Mean and standard deviation in pixel units for (x - mean) / std; None for unchanged pixels."""
        low, high = self.bounds()
        if self.mean is None and (low, high) == (0.0, 1.0):
            return None
        mean, std = self.mean or (0.0,), self.std or (1.0,)
        mean, std = (value * channels if len(value) == 1 else value for value in (mean, std))
        width = high - low
        return tuple((m - low) / width for m in mean), tuple(s / width for s in std)

    def around(self, network: nn.Module, channels: int, dims: int = 2) -> nn.Module:
        """The network after the layers of this convention, in pixel units; the network itself if there are none.

        ``dims``: dimensions of a sample after its channels, 2 for images. ValueError, in one line, as `Normalize`, and
        if mean and std do not fit the channels.
        """
        pair = self.normalisation(channels)
        if pair is not None and len(pair[0]) != channels:
            raise ValueError(f"--mean and --std are for {len(pair[0])} channels, the images have {channels}")
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        if self.bgr:
            layers["reversed"] = Reversed()
        if pair is not None:
            layers["normalize"] = Normalize(*pair, dims=dims)
        return nn.Sequential(OrderedDict(**layers, network=network)) if layers else network

    def options(self) -> str:
        """The options of the command line for this convention."""
        given = []
        if self.mean is not None and self.std is not None:
            given += ["--mean", *(f"{v:g}" for v in self.mean), "--std", *(f"{v:g}" for v in self.std)]
        if self.input_range is not None:
            given += ["--input-range", self.input_range]
        return " ".join([*given, *(["--bgr"] if self.bgr else [])])


def parts(model: nn.Module) -> tuple[nn.Module, Convention]:
    """The network after the layers of a convention, and that convention in pixel units."""
    layers = dict(model.named_children()) if isinstance(model, nn.Sequential) else {}
    if "network" not in layers or not layers.keys() <= {"reversed", "normalize", "network"}:
        return model, Convention()
    normalize = layers.get("normalize")
    mean, std = (
        (tuple(t.flatten().tolist()) for t in (normalize.mean, normalize.std))
        if isinstance(normalize, Normalize)
        else (None, None)
    )
    return layers["network"], Convention(mean, std, bgr="reversed" in layers)


def read_back(model: nn.Module) -> dict[str, Any]:
    """The convention of a model in pixel units, as plain values; {} without one."""
    found = parts(model)[1]
    pair = {} if found.mean is None or found.std is None else {"mean": list(found.mean), "std": list(found.std)}
    return {**pair, **({"bgr": True} if found.bgr else {})}
