"""The commands that the page names: what measures a figure that is missing."""

from __future__ import annotations

from atent import runs as folder
from atent.experiments.noise import sigma_of
from atent.experiments.recorded import names_data, names_model
from atent.report.collect import Run
from atent.runs.checkpoint import STATE
from atent.threat import Threat


def command(run: Run, verb: str, *options: str) -> list[str]:
    """A command on the run, with the names that its folder does not hold; the one that resumes it before its first
    weights."""
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
    """The options with which the run can be certified: by its own noise, by the bounds it was trained for, or by noise
    that it never saw."""
    try:
        sigma_of(run.config, run.name)
    except ValueError:
        if run.config["method"].get("name") in ("CROWNIBP", "Dual"):
            return "--method", "crown"
        box = ((run.config.get("about") or {}).get("data") or {}).get("box") or (0.0, 1.0)
        return "--sigma", f"{0.25 * Threat('l2', 0.0, box).width:g}"
    return ()


def next_steps(run: Run) -> list[tuple[str, list[str]]]:
    """Three commands to try on a trained run, each after what it shows."""
    return [
        ("one page as text: the accuracies, each attack, images under attack", ["atent", "report", str(run.path)]),
        (
            "robust accuracy under AutoAttack, the field's standard, on 100 test images",
            command(run, "evaluate", "--attacks", "AutoAttack", "--limit", "100"),
        ),
        (
            "certified accuracy, which no attack can lower, of 100 test images",
            command(run, "certify", *certified_by(run), "--limit", "100", *_noise(run)),
        ),
    ]


def _noise(run: Run) -> tuple[str, ...]:
    # 1,000 noise samples are enough for a first look; bounds take none.
    return () if "--method" in certified_by(run) else ("--n", "1000")


def _has_threat(run: Run) -> bool:
    evaluate = run.config.get("evaluate") or {}
    return bool(run.config["method"].get("threat")) or None not in (evaluate.get("norm"), evaluate.get("eps"))
