"""The options of the commands that make results of runs: reproduce, report, theory."""

from __future__ import annotations

import dataclasses
import re
import typing

import tyro

from atent.config.recipes import UsageError
from atent.config.words import read_words, spelled


@dataclasses.dataclass(frozen=True)
class ReproduceOptions:
    """What `atent reproduce` takes."""

    what: tyro.conf.Positional[str]
    """table-s1, table-s2, table-s3, table-s4, figure-s1, figure-1, finetune, mnist; claims, which judges the paper's
    sentences by the tables that --out holds; or all."""
    scale: typing.Literal["smoke", "laptop", "cifar", "paper"] = "smoke"
    """smoke: digits, minutes, shows that every part runs; laptop: 5,000 MNIST images and small networks, hours of CPU;
    cifar: CIFAR-10 with ResNet-20 and short schedules, hours of CPU for each network; paper: the paper's networks,
    data and epochs, which need an accelerator."""
    seeds: int | None = None
    """Trainings of each row; left out: 1, on the laptop 3, for figure-1 its own number."""
    time_limit: str | None = None
    """Stop cleanly after this time, such as 9m, 90s or 1h30m; exit status 1, and the same command goes on."""
    out: str = "results"
    """Folder for the tables and figures; those of one scale only."""
    runs: str = "runs/reproduce"
    """Folder that holds the trained networks and what was measured of them; finished ones are used again."""
    only: tuple[str, ...] = ()
    """Train and measure these rows alone, by the key that table-*.json gives them, such as atent."""
    quiet: bool = False
    """No progress bar."""

    def seconds(self) -> float | None:
        """The time limit; UsageError in one line."""
        if self.time_limit is None:
            return None
        parts = re.fullmatch(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?", self.time_limit.strip())
        total = sum(int(n or 0) * unit for n, unit in zip(parts.groups(), (3600, 60, 1))) if parts else 0
        if total < 1:
            raise UsageError(f"--time-limit {self.time_limit!r} is no time: write it as 9m, 90s or 1h30m")
        return float(total)


def parse_reproduce(args: list[str]) -> ReproduceOptions:
    """The options of `atent reproduce ...`; UsageError in one line."""
    about = (
        "Train what a table of the paper needs, measure it under the published protocol and a sound one, and write the"
        " table: the paper's figure beside ours with its interval, protocol, scale, number of images, hardware and"
        " commit. Finished networks and measures are used again, so a long table survives short allocations. Exit"
        " status: 0 done, 1 failed or out of time, 2 not understood."
    )
    words = ["--time_limit" + a[12:] if a.startswith("--time-limit") else a for a in args]
    if not words or (words[0].startswith("-") and words[0] not in ("-h", "--help")):
        raise UsageError(
            "which table? `atent reproduce table-s1`, or figure-1, mnist, all: see `atent reproduce --help`"
        )
    return read_words(ReproduceOptions, words, "atent reproduce", about)


@dataclasses.dataclass(frozen=True)
class ReportOptions:
    """What `atent report` takes."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, one or more: the paths that training printed; or result folders of atent compare."""
    out: str | None = None
    """HTML file to write; left out: report.html in the folder where there is one, in this folder for several, numbered
    where it is taken."""
    images: int = 8
    """Test images of each run to show under attack, chosen by its data.subset; 0: none. It needs the run's weights and
    data, and the page says why where they are unavailable."""
    model: str | None = None
    """For runs that were trained from Python: what builds their network, as module:function or by name."""
    data: str | None = None
    """For runs that were trained on tensors: module:function that gives their data, as atent.data.from_tensors does."""
    root: str | None = None
    """Folder that holds the data (npz: the file); left out: as the run had it."""
    quiet: bool = False
    """No progress bar."""


def parse_report(args: list[str]) -> ReportOptions:
    """The options of `atent report RUN ...`; UsageError in one line."""
    about = (
        "Write one HTML file on a run, for a screen, a phone or paper: what was trained, the robust accuracy that may"
        " be claimed, each attack with its 95 % interval, training curves, radii, certificates, images under attack,"
        " checks, settings and provenance. Several runs stand side by side. The file holds everything and connects to"
        " nothing. No figure is measured anew: the page names what was not measured, and the command that measures it."
        " Exit status: 0 done, 1 failed, 2 not understood."
    )
    options = read_words(ReportOptions, spelled(args, {}), "atent report", about)
    if not options.runs:
        raise UsageError("which run? `atent report RUN [RUN ...]` takes the paths that training printed")
    return options


@dataclasses.dataclass(frozen=True)
class TheoryOptions:
    """What `atent theory` takes."""

    target: tyro.conf.Positional[str]
    """A run folder, a .safetensors file, or module:function that builds a network."""
    data: str | None = None
    """Data set, such as digits or mnist; left out: the run's own."""
    model: str | None = None
    """Network that a .safetensors file holds, where it does not say."""
    root: str | None = None
    """Folder that holds the data; left out: as the run had it."""
    which: typing.Literal["best", "last"] = "best"
    """Weights of the best epoch or of the last."""
    limit: int | typing.Literal["all"] = 50
    """Number of test images, at least 4; all: every one."""
    subset: typing.Literal["stratified", "first"] | None = None
    """Which images, where they are fewer than all: stratified, every class by its share; or first, the first ones in
    source order. Default: as the run."""
    gamma: float = 10.0
    """Pull of the density on images, in the paper's scaling (per unit of step size); above 0."""
    temperature: float | None = None
    """T of the density; left out: gamma radius^2 / d, at which the Gaussian part alone reaches the radius."""
    radius: float | None = None
    """l2 radius that samples should reach; left out: the run's eps (linf: times sqrt(d)), or 1."""
    chains: int = 12
    """Chains for each mean, at least 3."""
    steps: int = 500
    """Kept steps of each chain with Metropolis' correction; the plain ones take six times as many."""
    samples: int = 20_000
    """Points at which Lemma B.1 is looked at."""
    seed: int = 0
    """Seed of every draw."""
    out: str | None = None
    """File to write; left out: theory.json in the run folder, numbered where it is taken. Pictures go beside it."""
    quiet: bool = False
    """Do not say which part is at work."""


def parse_theory(args: list[str]) -> TheoryOptions:
    """The options of `atent theory RUN ...`; UsageError in one line."""
    about = (
        "Check the statements of the paper's theory on a network and its data, each with the number of samples and an"
        " error bar: the lemma's constants, the normaliser, the gradients of both objectives, the sampler and its"
        " mixing, Entropy-SGD, PGD as ATENT without noise, and chains batch by batch. Statements that the supplement"
        " misprints stand as printed and mended. Sampled checks prove nothing, and say so. Exit status: 0 done, 1"
        " failed, 2 not understood."
    )
    return read_words(TheoryOptions, spelled(args, {}), "atent theory", about)
