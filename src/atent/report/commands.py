"""The commands that the report suggests for missing measurements."""

from __future__ import annotations

from atent import runs as folder
from atent.experiments.comparison import caveat_of
from atent.experiments.noise import sigma_of
from atent.experiments.recorded import names_data, names_model
from atent.report.collect import Run
from atent.runs.checkpoint import STATE
from atent.threat import Threat

# Images of a first estimate.
_FIRST = 100


def command(run: Run, verb: str, *options: str) -> list[str]:
    """A command on the run, with the options that its folder does not record; before its first weights, the command
    that resumes it."""
    words = ["atent", verb, str(run.path), *options]
    if not (run.path / folder.BEST).is_file() and (run.path / folder.LAST / STATE).is_file():
        words = ["atent", "train", "--resume", str(run.path)]
    elif verb == "evaluate" and not _has_threat(run):
        words += ["--norm", "linf", "--eps", "8/255"]
    if not names_model(run.config):
        words += ["--model", run.model or "MODULE:FUNCTION"]
    if not names_data(run.config):
        words += ["--data", run.data or "MODULE:FUNCTION"]
    return words


def certified_by(run: Run) -> tuple[str, ...]:
    """The options for certifying the run: its training noise, the bounds it was trained for, or else unseen noise."""
    try:
        sigma_of(run.config, run.name)
    except ValueError:
        if run.config["method"].get("name") in ("CROWNIBP", "Dual"):
            return "--method", "crown"
        box = ((run.config.get("about") or {}).get("data") or {}).get("box") or (0.0, 1.0)
        return "--sigma", f"{0.25 * Threat('l2', 0.0, box).width:g}"
    return ()


def next_steps(run: Run) -> list[tuple[str, list[str]]]:
    """Suggested commands for a trained run, each with a description: for what has not been measured."""
    report = ("HTML report: accuracies, each attack, adversarial images", ["atent", "report", str(run.path)])
    images, limit = _images(run)
    attack = (
        f"robust accuracy under AutoAttack, the field's standard, on {images}",
        command(run, "evaluate", "--attacks", "AutoAttack", *limit),
    )
    certificate = (
        f"certified accuracy, a lower bound that no attack can reduce, on {images}",
        command(run, "certify", *certified_by(run), *limit, *_noise(run)),
    )
    measured = any(found.attacks and caveat_of(found) is None for found in run.evaluations.values())
    return [report, certificate] if measured else [report, attack, certificate]


def _images(run: Run) -> tuple[str, tuple[str, ...]]:
    """The test images that a first estimate uses, as words and as options: 100, or all where there are no more."""
    counts = ((run.config.get("about") or {}).get("data") or {}).get("counts") or {}
    few = counts.get("test", _FIRST)
    if few < _FIRST:
        return f"all {few} test images", ("--limit", "all")
    return f"{_FIRST} test images", ("--limit", str(_FIRST))


def _noise(run: Run) -> tuple[str, ...]:
    # 1,000 noise samples suffice for a first estimate; bounds need none.
    return () if "--method" in certified_by(run) else ("--n", "1000")


def _has_threat(run: Run) -> bool:
    evaluate = run.config.get("evaluate") or {}
    return bool(run.config["method"].get("threat")) or None not in (evaluate.get("norm"), evaluate.get("eps"))
