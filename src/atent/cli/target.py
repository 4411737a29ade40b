"""The options for the target, the data and the threat that several commands share."""

from __future__ import annotations

import dataclasses
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
    Which,
    arg,
)
from atent.experiments.recipe_files import UsageError

if TYPE_CHECKING:
    from atent.models.convention import Convention


NETWORK = "RUN|FILE|zoo:NAME|hub:USER/NAME|MODULE:FUNCTION"
"""What names a network on the command line."""


@dataclasses.dataclass(frozen=True)
class InputOptions:
    """Input convention of an external network."""

    mean: Annotated[tuple[float, ...] | None, arg("X ...")] = None
    """Per-channel mean that an external network expects to be subtracted. Default: that of its file, or none."""
    std: Annotated[tuple[float, ...] | None, arg("X ...")] = None
    """Per-channel standard deviation to divide by; with --mean."""
    input_range: Annotated[str | None, arg("A..B")] = None
    """Pixel values of black and white for an external network, such as 0..255; --mean and --std are in these units.
    Default: 0..1."""
    bgr: bool = False
    """The network expects channels in the order blue, green, red."""

    def convention(self) -> Convention | None:
        """The options as `atent.models.convention.Convention`; None if no option is given."""
        if self == InputOptions():
            return None
        from atent.models.convention import Convention

        return Convention(self.mean, self.std, self.input_range, self.bgr)


@dataclasses.dataclass(frozen=True)
class Target:
    """The target of an evaluation and its settings."""

    target: Annotated[tyro.conf.Positional[str], arg(NETWORK)]
    """A run folder (the path that training printed); a weights file (.safetensors, .pt, .pth, .th, .ckpt) with --data
    and, unless training wrote it, --model; a network of this package (`atent list zoo`) or of the Hugging Face Hub; or
    your own network as module:function with --data. The function takes no arguments and returns an nn.Module that maps
    inputs in [0, 1] to logits."""
    data: Name = None
    """Data set that provides the test images: a name of `atent list data`, or your own as module:function. Default: the
    run's, unless it was trained on tensors from Python."""
    model: Name = None
    """Architecture of a weights file or of a run trained from Python: a name such as resnet20, or module:function."""
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
    """patch: allowed changes inside a patch: any (free), or at most --inner-eps per value (linf). Default: the run's,
    or free."""
    inner_eps: Text = None
    """patch with --inner linf: largest change of a pixel value. Default: the run's."""
    which: Which = "best"
    """Weights of a run: of the best or of the last epoch; if the run averages weights, raw, ema or swa select the best
    epoch of each kind."""
    weights: Place = None
    """Weights file of the same network to use instead of the run's own weights."""
    key: Name = None
    """Key of the network in a weights file with several, such as ema or state_dict."""
    inputs: Annotated[InputOptions, Flat] = dataclasses.field(default_factory=lambda: InputOptions())
    """Input convention of an external network."""
    allow_large_eps: bool = False
    """Allow an eps that covers the entire box: linf at least its width, l2 and l1 at least its diagonal, l0 and patch
    at least the number of elements, pixels or patches of a sample."""
    allow_long: bool = False
    """Allow attacks that need more than a million passes per image."""
    limit: Limit = None
    """Number of test images, or all. Default: the recipe's, or 1000; 100 for `atent export`."""
    subset: Subset = None
    """How to select images if not all are used: stratified (in proportion to the classes; the same for all models with
    the same data.split_seed) or first (in source order). Default: the recipe's, or stratified."""
    seed: Number = None
    """Seed of the attacks' random numbers. Default: the recipe's, or 0."""
    batch_size: Number = None
    """Images per batch. Default: the recipe's, or 250."""
    channels_last: Tristate = None
    """Same as --memory-format channels_last; --no-channels-last is the same as contiguous."""
    memory_format: Format = None
    """Memory format of images: channels_last is often faster for convolutions, with equal results up to rounding; auto
    measures which is faster. Default: the recipe's, or contiguous."""
    precision: Precision = None
    """Precision of the attack search: bfloat16, float16 and (CUDA) tf32 are often faster, and samples that end near the
    decision boundary are searched again in float32; auto measures which is fastest. Success is always decided by the
    network in its own precision. Default: float32."""
    folding: Tristate = None
    """Attack a copy of the network with batch norm folded into adjacent layers; --no-folding: attack the network
    itself. Default: the recipe's, or folded."""
    root: Place = None
    """Folder of the data (npz: the file). Default: the run's."""
    device: Annotated[str, arg("NAME")] = "auto"
    """auto, cpu, cuda ..."""
    threads: Threads = None
    """CPU threads: a number, or auto, which measures whether more than one is faster. Default: all cores."""
    quiet: bool = False
    """Print only results, warnings and errors: no progress, estimates or suggestions."""
    steal_lock: bool = False
    """Take over the lock of a process on another host. Use it only if that process has ended."""

    def keywords(self) -> dict[str, Any]:
        """Keyword arguments for `atent.experiments.target.load_target`."""
        given = {
            f.name: getattr(self, f.name)
            for f in dataclasses.fields(self)
            if f.name not in ("quiet", "steal_lock", "precision", "memory_format", "inputs")
        }
        given["convention"] = self.inputs.convention()
        given["batch"] = given.pop("batch_size")
        if self.memory_format is not None:
            if self.channels_last is not None:
                raise UsageError("--memory-format and --channels-last set the same field: use --memory-format only")
            given["channels_last"] = "auto" if self.memory_format == "auto" else self.memory_format == "channels_last"
        return given

    def search_dtype(self, former: str | None = None) -> str | None:
        """The precision of the search for `atent.evaluate`; ``former`` is the value of --search-dtype."""
        if former is not None and self.precision is not None:
            raise UsageError("--precision and --search-dtype set the same field: use --precision only")
        return former or (None if self.precision == "float32" else self.precision)
