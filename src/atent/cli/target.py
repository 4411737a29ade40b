"""The options that say what is evaluated, on which data and under which threat: what several commands share."""

from __future__ import annotations

import dataclasses
import typing
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from atent.cli.parse import (
    AnyNorm,
    Flat,
    Format,
    Group,
    Inner,
    Limit,
    Name,
    Number,
    Place,
    Precision,
    Subset,
    Text,
    Threads,
    Tristate,
    arg,
)
from atent.experiments.recipe_files import UsageError

if TYPE_CHECKING:
    from atent.models.convention import Convention


@dataclasses.dataclass(frozen=True)
class InputOptions:
    """What a network from elsewhere expects of its input."""

    mean: Annotated[tuple[float, ...] | None, arg("X ...")] = None
    """Per-channel mean that a network from elsewhere expects to be subtracted. Default: as its file says, or none."""
    std: Annotated[tuple[float, ...] | None, arg("X ...")] = None
    """Per-channel standard deviation that it expects to be divided by; with --mean."""
    input_range: Annotated[str | None, arg("A..B")] = None
    """What black and white are to a network from elsewhere, such as 0..255; --mean and --std are in these units.
    Default: 0..1."""
    bgr: bool = False
    """The network takes its channels in the order blue, green, red."""

    def convention(self) -> Convention | None:
        """The options as `atent.models.convention.Convention`; None where none is given."""
        if self == InputOptions():
            return None
        from atent.models.convention import Convention

        return Convention(self.mean, self.std, self.input_range, self.bgr)


@dataclasses.dataclass(frozen=True)
class Target:
    """What is evaluated, and how."""

    target: Annotated[tyro.conf.Positional[str], arg("RUN|FILE|zoo:NAME|hub:USER/NAME|MODULE:FUNCTION")]
    """What to evaluate: a run folder (the path that training printed); a weights file (.safetensors, .pt, .pth, .th,
    .ckpt), with --data and, unless training wrote it, --model; a network of this package (`atent list zoo`) or of the
    Hugging Face Hub; or your own network as module:function, with --data. The function takes no arguments and returns
    an nn.Module from inputs in [0, 1] to logits."""
    data: Name = None
    """Data set whose test images are used: a name of `atent list data`, or your own as module:function. A run brings
    its own, unless it was trained on tensors from Python."""
    model: Name = None
    """Network that a weights file is of, or that a run from Python trained: a name such as resnet20, or
    module:function."""
    norm: AnyNorm = None
    """Norm of the threat. Default: the run's."""
    eps: Text = None
    """Radius of the threat in pixel units, such as 0.3 or 8/255; l0, patch: how many elements, pixels or patches may
    change. Default: the run's; needed with another --norm than the run's."""
    group: Group = None
    """l0: what --eps counts. Default: the run's, or element."""
    side: Number = None
    """patch: side of a patch in pixels. Default: the run's."""
    inner: Inner = None
    """patch: what may happen inside a patch, anything (free) or changes of --inner-eps at most (linf). Default: the
    run's, or free."""
    inner_eps: Text = None
    """patch with --inner linf: largest change of a pixel value. Default: the run's."""
    which: typing.Literal["best", "last", "raw", "ema", "swa"] = "best"
    """Weights of a run's best epoch or of its last; of a run that averages them, raw, ema or swa: the best epoch of
    each kind."""
    weights: Place = None
    """A weights file of the same network, instead of the run's own weights."""
    key: Name = None
    """Place of the network in a weights file that holds several, such as ema or state_dict."""
    inputs: Annotated[InputOptions, Flat] = dataclasses.field(default_factory=lambda: InputOptions())
    """What a network from elsewhere expects of its input."""
    allow_large_eps: bool = False
    """Allow an eps that covers the whole box: linf of its width or more, l2 and l1 of its diagonal or more, l0 and
    patch of as many elements, pixels or patches as a sample has."""
    allow_long: bool = False
    """Allow attacks that take more than a million passes through the network for each image."""
    limit: Limit = None
    """Number of test images; all: every one. Default: as the recipe, or 1000; 100 for `atent export`."""
    subset: Subset = None
    """Which images, where they are fewer than all: stratified, every class by its share, the same for every model of
    one data.split_seed; or first, the first ones in source order. Default: as the recipe, or stratified."""
    seed: Number = None
    """Seed of the attacks' random numbers. Default: as the recipe, or 0."""
    batch_size: Number = None
    """Images per batch. Default: as the recipe, or 250."""
    channels_last: Tristate = None
    """The same as --memory-format channels_last, and --no-channels-last as contiguous."""
    memory_format: Format = None
    """How images lie in memory: channels_last is often faster for convolutions, equal up to rounding; auto measures
    it. Default: as the recipe, or contiguous."""
    precision: Precision = None
    """In which precision attacks search: bfloat16, float16 and (CUDA) tf32 are often faster, and what ends near the
    boundary is searched again in float32; auto measures which one pays. Verdicts are those of the network itself in its
    own precision. Default: float32."""
    folding: Tristate = None
    """Attacks search on a copy of the network with batch norm folded into the layers beside it; --no-folding: on the
    network itself. Default: as the recipe, or folded."""
    root: Place = None
    """Folder that holds the data (npz: the file). Default: as the run had it."""
    device: Annotated[str, arg("NAME")] = "auto"
    """auto, cpu, cuda ..."""
    threads: Threads = None
    """CPU threads: a number, or auto (one where the network gains nothing from more, measured). Default: all cores."""
    quiet: bool = False
    """No progress: neither bar, lines nor estimate."""
    steal_lock: bool = False
    """Take over the lock of a process on another host, which is known to be gone."""

    def keywords(self) -> dict[str, Any]:
        """The keywords of `atent.experiments.target.load_target`."""
        given = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("quiet", "steal_lock", "precision", "memory_format", "inputs")
        }
        given["convention"] = self.inputs.convention()
        given["batch"] = given.pop("batch_size")
        if self.memory_format is not None:
            if self.channels_last is not None:
                raise UsageError("--memory-format and --channels-last are the same setting: keep --memory-format")
            given["channels_last"] = "auto" if self.memory_format == "auto" else self.memory_format == "channels_last"
        return given

    def search_dtype(self, former: str | None = None) -> str | None:
        """The precision of a search as `atent.evaluate` takes it; ``former`` is what --search-dtype gave."""
        if former is not None and self.precision is not None:
            raise UsageError("--precision and --search-dtype are the same setting: keep --precision")
        return former or (None if self.precision == "float32" else self.precision)
