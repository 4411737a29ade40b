"""Settings of the loop itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from atent.checks import Settings, check_number
from atent.data.settings import everything
from atent.methods.awp import Perturbation
from atent.methods.embedding import EmbeddingTerm
from atent.methods.inner import InnerPrecision
from atent.optim.average import check_average
from atent.threads import Threads, check_threads


@dataclass(frozen=True)
class TrainSettings(metaclass=Settings):
    """Length, batches, device and selection of a training; ValueError for values out of range.

    Examples
    --------
    >>> from atent.train import TrainSettings
    >>> TrainSettings(epochs=30, batch_size=256, average="ema", select="robust").epochs
    30
    >>> TrainSettings(epochs=0)
    Traceback (most recent call last):
    ...
    ValueError: epochs must be at least 1, got 0
    """

    FORMER_VALUES: ClassVar[dict[str, dict[str, str]]] = {"select": {"natural": "clean"}}

    epochs: int = 10
    """Passes over the training set; with minutes, the length that the schedules are written for."""
    minutes: float | None = None
    """Time that the steps of the training may take, instead of epochs; schedules are stretched to fit."""
    batch_size: int = 128
    """Samples per step. One that is left over joins the batch before where the network cannot train on it alone."""
    accumulate: int = 1
    """Take each batch in that many micro-batches, whose gradients add up: less memory, and the weights of whole batches
    up to rounding. Batch-norm normalises each micro-batch by its own statistics."""
    batch_norm: Literal["sync", "local"] = "sync"
    """Batch-norm of several processes: sync by the statistics of the whole batch, as one process would, or local by
    those of each process's samples, without messages between its layers. Running statistics are the same on all."""
    shard: Literal["none", "full"] = "none"
    """full: the processes share the weights, gradients and optimizer state (FSDP2), for networks past the memory of one
    GPU; the file formats and, up to rounding, the weights are those of none. Needs torchrun."""
    seed: int = 0
    """Seed of the weights, the order, the augmentation, the adversaries and dropout."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda, cuda:1 ..."""
    threads: Threads = None
    """CPU threads: a number, or auto (one where the network gains nothing from more, measured). Default: all cores."""
    precision: Literal["float32", "bfloat16", "tf32", "auto"] = "float32"
    """bfloat16 runs the network under autocast; a CPU is measured first, and refused where that is not faster. tf32 is
    for CUDA. auto: the fastest that agrees with float32, as measured; the run keeps the choice."""
    channels_last: bool | Literal["auto"] = False
    """Keep images and kernels channels-last in memory: often faster, equal up to rounding; auto: as measured, the run
    keeps the choice."""
    compile: Literal["off", "model", "step", "auto"] = "off"
    """Compile the network: its first steps take minutes, and its numbers round differently; auto: where the remaining
    steps would take more than half an hour. A step cannot be compiled whole: its generators of random numbers."""
    inner_precision: InnerPrecision = "float32"
    """bfloat16 runs the method's inner chain, and not the gradient of the weights, under autocast; it is checked on the
    first batch, and refused where it disagrees. auto: bfloat16 where it also makes a step faster."""
    cuda_graphs: bool = False
    """Record the step of a whole batch as a CUDA graph and replay it; methods that cannot be recorded run without."""
    deterministic: bool = False
    """On CUDA, kernels that give the same bits each time, at some cost in speed: an interrupted run that is resumed
    then equals the unbroken one. Without effect on a CPU, where that is always so."""
    select: Literal["auto", "robust", "clean", "last"] = "auto"
    """Which epoch is best, by validation accuracy; auto: robust where the method has a threat, else clean."""
    validate_attack: str = "PGD(steps=10)"
    """Attack of each epoch's robust validation accuracy; none: no robust validation."""
    validate_limit: int | Literal["all"] = 500
    """Validation images, and as many training images, measured at each epoch, by data.subset; all, or 0: all of the
    validation set."""
    validate_every: int = 1
    """Epochs between measurements; the last epoch is always measured."""
    validations: int = 20
    """With minutes, in place of validate_every: how many measurements, evenly spread over the time."""
    average: Literal["none", "ema", "swa"] = "none"
    """Also average the weights: ema (exponentially, at each step) or swa (the mean of the epochs)."""
    average_decay: float = 0.995
    """Share of the old average that a step of ema keeps; less in the first steps."""
    average_start: float = 0.0
    """Share of the training before the average begins."""
    awp: Perturbation = field(default=Perturbation())
    """Adversarial weight perturbation: each step takes its gradient at weights that were moved along it."""
    embedding: EmbeddingTerm = field(default=EmbeddingTerm())
    """Embedding regularisation: each step also draws the embeddings towards a Gaussian."""
    select_weights: Literal["both", "raw", "average"] = "both"
    """Which weights may be the best: the raw ones, the averaged ones, or both."""
    patience: int | None = None
    """Stop after this many measured epochs in a row that were not the best so far. Default: train to the end."""
    watch: Literal["auto", "on", "off"] = "auto"
    """Watch for catastrophic overfitting, and stop at it; auto: for methods of a single step, such as FGSMRS, Free."""
    watch_limit: int | Literal["all"] = 200
    """Validation images that the watch attacks after each epoch, by data.subset; all: the validation set."""
    watch_steps: int = 10
    """Steps of the watch's PGD."""
    watch_drop: float = 0.2
    """Fall of the accuracy under that PGD, and not under the training's attack, that stops; half of it warns."""
    watch_gap: float = 0.15
    """Accuracy under the training's attack above that under PGD, lower limit, that warns; 1: never."""
    watch_window: int = 3
    """Watched epochs in a row with that gap, none of them the best so far, before it warns."""
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """What a loss, gradient or weight that is not finite does: ends the training; skips each step whose gradient is
    not finite; or goes back to the last checkpoint and takes the batches in another order."""
    rollbacks: int = 3
    """How often on_nonfinite rollback goes back in all, before it ends the training."""
    save_minutes: float | None = None
    """Minutes between checkpoints inside an epoch, and each epoch's end has one; 0: at every step. Default: one minute,
    and the ends of epochs, as long as saving takes at most 1 % of the time."""

    def __post_init__(self) -> None:
        if everything(self.validate_limit) is None:
            object.__setattr__(self, "validate_limit", 0)
        for name in (
            "epochs",
            "batch_size",
            "accumulate",
            "validate_every",
            "validations",
            "watch_steps",
            "watch_window",
            "rollbacks",
        ):
            check_number(name, getattr(self, name), 1, whole=True)
        for name in ("watch_limit",):
            value = everything(getattr(self, name))
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("validate_limit", "save_minutes"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"{name} must be at least 0, got {value}")
        if self.minutes is not None and not 0 < self.minutes < math.inf:
            raise ValueError(f"minutes must be above 0, got {self.minutes}")
        check_average(self.average_decay, self.average_start)
        if not isinstance(self.awp, Perturbation):
            raise ValueError(
                f"awp is a Perturbation, got a {type(self.awp).__name__}: write Perturbation(0.005), from atent.methods"
            )
        if not isinstance(self.embedding, EmbeddingTerm):
            raise ValueError(
                f"embedding is an EmbeddingTerm, got a {type(self.embedding).__name__}: write"
                " EmbeddingTerm(weight=0.1), from atent.methods"
            )
        if self.inner_precision != "float32" and self.precision == "bfloat16":
            raise ValueError(
                f"inner_precision {self.inner_precision} has no effect with precision bfloat16: use precision float32"
            )
        if self.patience is not None:
            check_number("patience", self.patience, 1, whole=True)
        if self.average == "none" and self.select_weights == "average":
            raise ValueError("select_weights average needs an average: give average ema or swa")
        if not 0 < self.watch_drop <= 1:
            raise ValueError(f"watch_drop must be above 0 and at most 1, got {self.watch_drop}")
        if not 0 < self.watch_gap <= 1:
            raise ValueError(f"watch_gap must be above 0 and at most 1, got {self.watch_gap}")
        check_threads(self.threads)
        if self.compile == "step":
            raise ValueError(
                "compile step is impossible: a step draws from torch.Generator objects, which torch.compile does not"
                " trace: use compile model"
            )


def pick_device(name: str) -> torch.device:
    """The device that ``name`` means; ValueError where there is none such here."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} is unavailable here ({reason}): use auto or cpu") from None
    return device
