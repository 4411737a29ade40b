"""Settings of the loop itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch


@dataclass(frozen=True)
class TrainSettings:
    """How long, in which portions, on what, and which epoch to keep; ValueError for values out of range."""

    epochs: int = 10
    """Passes over the training set."""
    batch_size: int = 128
    """Samples per step."""
    seed: int = 0
    """Seed of the weights, the order, the augmentation, the adversaries and dropout."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, cuda:1 ..."""
    threads: int | None = None
    """CPU threads; left out: torch's own choice."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 runs the network under autocast, on CUDA only."""
    channels_last: bool = False
    """Keep images and kernels channels-last in memory: often faster, equal up to rounding."""
    select: Literal["auto", "robust", "natural", "last"] = "auto"
    """Which epoch is best, by validation accuracy; auto: robust where the method has a threat, else natural."""
    validate_attack: str = "PGD(steps=10)"
    """Attack of each epoch's robust validation accuracy; none: no robust validation."""
    validate_limit: int = 500
    """Validation images, and as many training images, measured at each epoch; 0: all of the validation set."""
    validate_every: int = 1
    """Epochs between measurements; the last epoch is always measured."""
    save_minutes: float = 5.0
    """Minutes between checkpoints inside an epoch (each epoch's end has one); 0: at every step."""

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "validate_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("validate_limit", "save_minutes"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads must be at least 1, got {self.threads}")
        if self.select not in ("auto", "robust", "natural", "last"):
            raise ValueError(f"select {self.select!r} is not known: use auto, robust, natural or last")
        if self.precision not in ("float32", "bfloat16"):
            raise ValueError(f"precision {self.precision!r} is not known: use float32 or bfloat16")


def pick_device(name: str) -> torch.device:
    """The device that ``name`` means; ValueError where there is none such here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} is not to be had here ({reason}): use auto or cpu") from None
    return device
