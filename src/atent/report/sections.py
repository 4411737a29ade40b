"""The sections of the page on one run, in their order: each has a template of its name and a function for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from markupsafe import Markup

from atent.report import certified, made, measured, studied, theory
from atent.report.collect import Run
from atent.report.render import render
from atent.report.samples import Gallery

Context = Callable[[Run], dict[str, Any]]

SECTIONS: dict[str, tuple[str, Context]] = {
    "headline": ("", measured.headline),
    "trained": ("What was trained", made.trained),
    "attacks": ("Accuracy under each attack", measured.attacks),
    "classes": ("Accuracy by class", measured.classes),
    "epochs": ("Best and last epoch", measured.epochs),
    "course": ("Training", made.course),
    "unions": ("Several threats at once", measured.unions),
    "radii": ("Robustness against radius", measured.radii),
    "frequencies": ("Frequencies", studied.frequencies),
    "corruptions": ("Common corruptions", studied.corruptions),
    "transfers": ("Transfer between networks", studied.transfers),
    "certificates": ("Certified accuracy", certified.certificates),
    "images": ("Test images under attack", lambda run: {}),
    "checks": ("Checks for masked gradients and weak attacks", measured.checks),
    "theory": ("Checks of the theory", theory.theory),
    "settings": ("Settings", made.settings),
    "environment": ("Provenance", made.environment),
}
"""Template -> title and context."""


_PARTS = {
    "attacks": ("evaluations",), "classes": ("evaluations",), "epochs": ("validation", "test"), "course": ("drawing",),
    "unions": ("unions",), "radii": ("sweeps",), "frequencies": ("bands", "maps"),
    "corruptions": ("corruptions", "flips"), "certificates": ("certificates", "unfinished"),
    "checks": ("evaluations",), "theory": ("theories",),
}  # fmt: skip
"""The content of a section, by the keys of its context; a section without content names the command that adds it."""


def section(name: str, run: Run, *, level: int = 2, **more: Any) -> Markup:
    """One section, without its title, a heading of this ``level``; ``more`` goes to its template as well."""
    return render(f"{name}.html", **SECTIONS[name][1](run), level=level, **more)


_CONCERNS: dict[str, Callable[[Run], bool]] = {
    "theory": theory.concerns,
    "frequencies": studied.has_images,
    "corruptions": studied.has_images,
    "transfers": lambda run: bool(run.transfers),
}
"""Optional sections."""


def of_run(run: Run, gallery: Gallery | str, *, level: int = 2, prefix: str = "") -> Markup:
    """Every section of a run, what is not measured at the end; ``gallery`` are its images, or why there are none.

    Titles are headings of this ``level``, and their anchors begin with ``prefix``.
    """
    shown: list[tuple[str, str, Markup]] = []
    absent: list[tuple[str, str, Markup]] = []
    for name, (title, _) in SECTIONS.items():
        if name not in _CONCERNS or _CONCERNS[name](run):
            context = SECTIONS[name][1](run) | ({"gallery": gallery} if name == "images" else {})
            content = render(f"{name}.html", **context, level=level)
            missing = isinstance(gallery, str) if name == "images" else not any(map(context.get, _PARTS.get(name, ())))
            kept = absent if missing and (name in _PARTS or name == "images") else shown
            kept.append((title, prefix + name, content))
    return render("run.html", sections=shown, absent=absent, level=level, prefix=prefix)
