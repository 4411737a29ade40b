"""The options of the commands that judge a network: evaluate, attack, certify."""

from __future__ import annotations

import dataclasses
import typing
from typing import Annotated, Any

import tyro

from atent.config.recipes import UsageError
from atent.config.words import read_words, spelled


@dataclasses.dataclass(frozen=True)
class SubjectOptions:
    """Which model is judged on what: what `atent evaluate` and `atent attack` share."""

    target: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="RUN|FILE|MODULE:FUNCTION")]
    """What to judge: a run folder (the path that training printed); a .safetensors file, with --data and, unless
    training wrote it, --model; or your own network as module:function, with --data. The function takes no arguments
    and returns an nn.Module from inputs in [0, 1] to logits."""
    data: str | None = None
    """Data set whose test images are used: digits, mnist, fashion-mnist, cifar10, moons, two-class, npz, folder, or
    your own as module:function. A run brings its own, unless it was trained on tensors from Python."""
    model: str | None = None
    """Network that a .safetensors file holds the weights of, or that a run from Python trained: a name such as
    resnet20, or module:function."""
    norm: typing.Literal["linf", "l2"] | None = None
    """Norm of the threat; left out: the run's."""
    eps: str | None = None
    """Radius of the threat in pixel units, such as 0.3 or 8/255; left out: the run's."""
    which: typing.Literal["best", "last", "raw", "ema", "swa"] = "best"
    """Weights of a run's best epoch or of its last; of a run that averages them, raw, ema or swa: the best epoch of
    each kind."""
    weights: str | None = None
    """A .safetensors file of the same network, instead of the run's own weights."""
    allow_large_eps: bool = False
    """Insist on an eps that covers the whole box: linf of its width or more, l2 of its diagonal or more."""
    limit: int | typing.Literal["all"] | None = None
    """Number of test images; all: every one. Default: as the recipe, or 1000."""
    subset: typing.Literal["stratified", "first"] | None = None
    """Which images, where they are fewer than all: stratified, every class by its share, the same for every model of
    one data.split_seed; or first, the first ones in source order. Default: as the recipe, or stratified."""
    seed: int | None = None
    """Seed of the attacks' draws; left out: as the recipe, or 0."""
    batch: int | None = None
    """Images per batch; left out: as the recipe, or 250."""
    channels_last: Annotated[bool | None, tyro.conf.FlagConversionOff] = None
    """Images in the channels-last memory format: often faster for convolutions; left out: as the recipe, or false."""
    root: str | None = None
    """Folder that holds the data (npz: the file); left out: as the run had it."""
    device: str = "auto"
    """auto, cpu, cuda ..."""
    threads: int | typing.Literal["auto"] | None = None
    """CPU threads: a number, or auto (one where the network gains nothing from more, measured). Default: all cores."""
    quiet: bool = False
    """No progress bar."""

    def subject(self) -> dict[str, Any]:
        """The keywords of `atent.experiments.target.subject`."""
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(SubjectOptions) if f.name != "quiet"}


@dataclasses.dataclass(frozen=True)
class EvaluateOptions(SubjectOptions):
    """What `atent evaluate` takes."""

    attacks: tuple[str, ...] | None = None
    """Attacks, each written as a call, such as "PGD(steps=40, step_size=0.01, restarts=5)"; left out: the recipe's, or
    PGD with 20 steps and AutoAttack."""
    cascade: Annotated[bool, tyro.conf.FlagConversionOff] = True
    """Run the attacks from cheap to dear, each on what still stands, so that the last figure is the worst case; false:
    each attack alone, on every rightly classified image, as training reports it."""
    radii: tuple[str, ...] = ()
    """Also measure each attack alone at these radii, such as 2/255 4/255 8/255: a table and security.png."""
    checks: Annotated[bool, tyro.conf.FlagConversionOff] = False
    """Also look for masked gradients and weak attacks: a table of checks with their figures."""
    per_class: bool = False
    """Also print clean and robust accuracy class by class."""
    strict: Annotated[bool, tyro.conf.FlagConversionOff] = False
    """Exit with 1 where a check warns; implies --checks."""
    search_dtype: typing.Literal["bfloat16", "float16"] | None = None
    """Let the attacks search in half precision, faster on an accelerator; verdicts stay in float32."""
    out: str | None = None
    """JSON file to write; left out: evaluation.json in the run folder, beside the file, or in this folder for your own
    network, numbered where it is taken. While it works, the same name with .partial.jsonl holds what is done: after
    Ctrl-C or a kill the same command goes on from it."""


@dataclasses.dataclass(frozen=True)
class AttackOptions(SubjectOptions):
    """What `atent attack` takes."""

    attack: str = "PGD(steps=40)"
    """The attack, written as a call, such as "PGD(steps=40, restarts=5)" or AutoAttack."""
    out: str = "adversarial.npz"
    """File to write: x_adv, x, y, ids, success, predicted and norm as numpy arrays, and provenance as JSON text."""
    png: str | None = None
    """Also draw the first fooled images into this file: original, adversarial, difference."""


@dataclasses.dataclass(frozen=True)
class CertifyOptions:
    """What `atent certify` takes."""

    runs: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN|FILE|MODULE:FUNCTION")]
    """What to certify, one or more: run folders (the paths that training printed), .safetensors files, or your own
    networks as module:function; the last two with --data."""
    data: str | None = None
    """Data set whose test images are used, for what is not a run; or module:function. As for `atent evaluate`."""
    model: str | None = None
    """Network that a .safetensors file holds, or that a run from Python trained; or module:function."""
    method: typing.Literal["smoothing", "ibp", "crown-ibp", "crown", "dual"] = "smoothing"
    """Randomised smoothing, which certifies the network under noise, or bounds, which verify the network itself."""
    sigma: float | None = None
    """Standard deviation of the noise in pixel units; default: what the run was trained with."""
    n: int = 100_000
    """Draws that estimate the share of the class."""
    n0: int = 100
    """Draws that choose the class."""
    alpha: float = 0.001
    """Probability, per image, that its certificate is wrong."""
    radius: tuple[str, ...] | None = None
    """Radii to report; refused where n draws cannot reach them. Smoothing: l2, left out: multiples of sigma. Bounds: in
    the run's norm, left out: its eps."""
    norm: typing.Literal["linf", "l2"] | None = None
    """Norm of the bounds; left out: the run's. Smoothing is l2."""
    allow_large_eps: bool = False
    """Insist on bounds over the whole box: a linf radius of its width or more, an l2 one of its diagonal or more."""
    limit: int | typing.Literal["all"] = 200
    """Number of test images; all: every one."""
    subset: typing.Literal["stratified", "first"] | None = None
    """Which images, where they are fewer than all: stratified, every class by its share; or first, the first ones in
    source order. Default: as the run."""
    shard: str | None = None
    """i/k: certify the images i::k only, into a file of their own; i counts from 0."""
    merge: bool = False
    """Join the shards of the same command into one certificate."""
    seed: int = 0
    """Seed of the noise."""
    which: typing.Literal["best", "last"] = "best"
    """Weights of the best epoch or of the last."""
    batch: int | None = None
    """Noisy images per forward; left out: 200 on the CPU, else 4,000."""
    compile: bool = False
    """Fuse the network by torch.compile first: worth its minute for a larger network (smoothing)."""
    channels_last: Annotated[bool | None, tyro.conf.FlagConversionOff] = None
    """Noisy images in the channels-last memory format, the same up to rounding; default: where the network's layers
    gain by it on a CPU (smoothing)."""
    root: str | None = None
    """Folder that holds the data; left out: as the run had it."""
    device: str = "auto"
    """auto, cpu, cuda ..."""
    threads: int | typing.Literal["auto"] | None = None
    """CPU threads: a number, or auto (one where the network gains nothing from more, measured). Default: all cores."""
    plot: str | None = None
    """Draw certified accuracy against radius, one curve per run, into this .png or .svg file."""
    table: str | None = None
    """Write what was proved, a row per run, into this .md file and the .json beside it; rows that it holds stay, so
    that smoothing and bounds of several commands meet in one table."""
    quiet: bool = False
    """No progress bar."""


def parse_certify(args: list[str]) -> CertifyOptions:
    """The options of `atent certify RUN ...`; UsageError in one line."""
    words = spelled(args, {})
    options = read_words(CertifyOptions, words, "atent certify", "Prove how far a run's test images can be moved.")
    if not options.runs:
        raise UsageError("which run? `atent certify RUN [RUN ...]` takes the paths that training printed")
    return options


def parse_evaluate(args: list[str]) -> EvaluateOptions:
    """The options of `atent evaluate RUN ...`; UsageError in one line."""
    about = (
        "Measure how a model holds on its test images: natural and robust accuracy with exact 95 % intervals, against"
        " true labels. The attacks run from cheap to dear, each on what the ones before left standing. A killed"
        " evaluation goes on where it was. Exit status: 0 done, 1 failed or, with --strict, a check warns, 2 not"
        " understood."
    )
    return read_words(EvaluateOptions, spelled(args, {}), "atent evaluate", about)


def parse_attack(args: list[str]) -> AttackOptions:
    """The options of `atent attack RUN ...`; UsageError in one line."""
    about = (
        "Attack a model's test images and keep the results as an .npz file, and as a picture. Every image is attacked,"
        " also one that the model gets wrong by itself; success is judged on the stored image, against its true label."
    )
    return read_words(AttackOptions, spelled(args, {}), "atent attack", about)
