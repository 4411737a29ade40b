"""Settings of the loop itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch

from atent.checks import Settings, check_number
from atent.data.settings import everything
from atent.messages import report_idle
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
    """Passes over the training set; with minutes, the length for which the schedules are defined."""
    minutes: float | None = None
    """Time limit of the training's steps, instead of epochs; schedules are rescaled to it."""
    batch_size: int = 128
    """Samples per step. A single remaining sample joins the previous batch if the network cannot train on it alone."""
    accumulate: int = 1
    """Number of micro-batches per batch, whose gradients are summed: less memory, and the weights of full batches up to
    rounding. Batch-norm normalises each micro-batch by its own statistics."""
    batch_norm: Literal["sync", "local"] = "sync"
    """Batch-norm with several processes: sync uses the statistics of the full batch, as in one process, local those of
    each process's samples, without messages within a pass. Running statistics are the same on all."""
    shard: Literal["none", "full"] = "none"
    """full: the processes share the weights, gradients and optimizer state (FSDP2), for networks that exceed the memory
    of one GPU; file formats and, up to rounding, the weights are those of none. Needs torchrun."""
    seed: int = 0
    """Seed of the weights, the order, the augmentation, the adversaries and dropout."""
    device: str = "auto"
    """auto (CUDA if available), cpu, cuda, cuda:1 ..."""
    threads: Threads = None
    """CPU threads: a number, or auto (measured; one if more are not faster). Default: all cores."""
    precision: Literal["float32", "bfloat16", "tf32", "auto"] = "float32"
    """bfloat16 runs the network under autocast; on a CPU it is measured first, and an error if not faster. tf32 is for
    CUDA. auto: the fastest that agrees with float32, as measured; the choice is recorded in the run."""
    channels_last: bool | Literal["auto"] = False
    """Store images and kernels channels-last in memory: often faster, equal up to rounding; auto: as measured; the
    choice is recorded in the run."""
    compile: Literal["off", "model", "step", "auto"] = "off"
    """Compile the network: its first steps take minutes, and rounding differs; auto: if the remaining steps would take
    more than half an hour. Entire steps cannot be compiled because of their random number generators."""
    inner_precision: InnerPrecision = "float32"
    """bfloat16 runs the method's inner chain, but not the gradient of the weights, under autocast; it is checked on the
    first batch, and an error if it disagrees. auto: bfloat16 if it also makes a step faster."""
    cuda_graphs: bool = False
    """Record the step of a full batch as a CUDA graph and replay it; methods that cannot be recorded run without
    one."""
    deterministic: bool = False
    """On CUDA, deterministic kernels, at some cost in speed: a resumed run then equals the uninterrupted one. No effect
    on a CPU, where this is always the case."""
    select: Literal["auto", "robust", "clean", "last"] = "auto"
    """Validation accuracy that selects the best epoch; auto: robust if the method has a threat, else clean."""
    validate_attack: str = "PGD(steps=10)"
    """Attack of each epoch's robust validation accuracy; none: no robust validation."""
    validate_limit: int | Literal["all"] = 500
    """Validation images, and as many training images, measured at each epoch, by data.subset; all, or 0: all of the
    validation set."""
    validate_every: int = 1
    """Epochs between validations; the last epoch always has one."""
    validations: int = 20
    """With minutes, instead of validate_every: number of validations, evenly spread over the time."""
    average: Literal["none", "ema", "swa"] = "none"
    """Also average the weights: ema (exponentially, at each step) or swa (the mean of the epochs)."""
    average_decay: float = 0.995
    """Decay of ema per step; lower in the first steps."""
    average_start: float = 0.0
    """Share of the training before the average begins."""
    awp: Perturbation = field(default=Perturbation())
    """Adversarial weight perturbation: each step uses the gradient at perturbed weights."""
    embedding: EmbeddingTerm = field(default=EmbeddingTerm())
    """Embedding regularisation: a loss term that makes the embeddings approximately Gaussian."""
    select_weights: Literal["both", "raw", "average"] = "both"
    """Weights among which the best are selected: raw, averaged, or both."""
    patience: int | None = None
    """Stop after this many consecutive measured epochs that are not the best so far. Default: train to the end."""
    watch: Literal["auto", "on", "off"] = "auto"
    """Detect catastrophic overfitting, and stop; auto: for single-step methods, such as FGSMRS, Free."""
    watch_limit: int | Literal["all"] = 200
    """Validation images attacked by the watch after each epoch, by data.subset; all: the validation set."""
    watch_steps: int = 10
    """Steps of the watch's PGD."""
    watch_drop: float = 0.2
    """Fall of the accuracy under that PGD, but not under the training's attack, that stops; half of it warns."""
    watch_gap: float = 0.15
    """Lower limit of the accuracy under the training's attack minus that under PGD, above which to warn; 1: never."""
    watch_window: int = 3
    """Consecutive watched epochs with that gap, none of them the best so far, before a warning."""
    on_nonfinite: Literal["stop", "skip", "rollback"] = "stop"
    """Response to a loss, gradient or weight that is not finite: stop the training; skip each step whose gradient is
    not finite; or roll back to the last checkpoint and continue with another order of the batches."""
    rollbacks: int = 3
    """Maximum number of rollbacks of on_nonfinite rollback, before it ends the training."""
    save_minutes: float | None = None
    """Minutes between checkpoints within an epoch, in addition to one at each epoch's end; 0: at every step. Default:
    one minute, and the ends of epochs, as long as saving takes at most 1 % of the time."""

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
                f"awp must be a Perturbation, got a {type(self.awp).__name__}: use atent.methods.Perturbation(0.005)"
            )
        if not isinstance(self.embedding, EmbeddingTerm):
            raise ValueError(
                f"embedding must be an EmbeddingTerm, got a {type(self.embedding).__name__}: use"
                " atent.methods.EmbeddingTerm(weight=0.1)"
            )
        if self.inner_precision != "float32" and self.precision == "bfloat16":
            raise ValueError(
                f"inner_precision {self.inner_precision} has no effect with precision bfloat16: use precision float32"
            )
        if self.patience is not None:
            check_number("patience", self.patience, 1, whole=True)
        if self.average == "none" and self.select_weights == "average":
            raise ValueError("select_weights average needs an average: set average to ema or swa")
        if not 0 < self.watch_drop <= 1:
            raise ValueError(f"watch_drop must be above 0 and at most 1, got {self.watch_drop}")
        if not 0 < self.watch_gap <= 1:
            raise ValueError(f"watch_gap must be above 0 and at most 1, got {self.watch_gap}")
        check_threads(self.threads)
        if self.compile == "step":
            raise ValueError(
                "compile step is not supported: a step uses torch.Generator objects, which torch.compile does not"
                " trace: use compile model"
            )
        report_idle(self, "train.", _uses(self))


def _uses(train: TrainSettings) -> list[tuple[str, str, bool]]:
    """Fields that wait for others, see `report_idle`."""
    return [
        ("average_decay", "set average to ema", train.average == "ema"),
        ("average_start", "set average to ema or swa", train.average != "none"),
        ("validations", "set minutes", train.minutes is not None),
        ("validate_every", "set validations, which minutes uses", train.minutes is None),
        ("patience", "set select to auto, robust or clean", train.select != "last"),
        ("rollbacks", "set on_nonfinite to rollback", train.on_nonfinite == "rollback"),
    ]


def pick_device(name: str) -> torch.device:
    """The device of ``name``; ValueError if it is unavailable."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"device {name!r} is unavailable here ({reason}): use auto or cpu") from None
    return device
