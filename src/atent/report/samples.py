"""Sample images: test images of a run, their adversarial versions, and the predictions on both."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from atent import plots
from atent.attacks import ATTACKS
from atent.attacks.spec import parse, spell
from atent.data.described import words
from atent.experiments.evaluation import adversarial
from atent.experiments.target import load_target
from atent.guard import ask, guard
from atent.precision import full_precision
from atent.report.collect import Run
from atent.threat import Threat


@dataclass(frozen=True)
class Seen:
    """An image and its prediction."""

    png: bytes
    label: str
    """The predicted class."""
    confidence: float
    """Its softmax probability."""


@dataclass(frozen=True)
class Sample:
    """A test image before and after an attack."""

    number: int
    """Its number in the test set's source."""
    label: str
    """The true class."""
    original: Seen
    adversarial: Seen
    difference: bytes
    """PNG: the magnified difference, centred at mid-grey."""
    distance: float
    """Distance of the two images, in the threat's norm."""
    right: bool
    """The original is classified correctly."""
    fooled: bool
    """The adversarial image is misclassified."""


@dataclass(frozen=True)
class Gallery:
    """Samples of one attack."""

    attack: str
    threat: Threat
    which: str
    """The selection of the test images, as text."""
    factor: float
    """Magnification of the differences."""
    samples: tuple[Sample, ...]


def gallery(run: Run, count: int, *, root: str | None = None, progress: bool = True) -> Gallery | str:
    """``count`` test images by the run's data.subset, under the strongest gradient-based attack of the run's
    evaluation, on the best epoch's weights; or a string that states why there are none."""
    text, threat = _attack(run)
    if count < 1:
        return "No images were requested (--images 0)."
    if threat is None:
        return "The run has no threat: set evaluate.norm and evaluate.eps to attack it."
    try:
        target = load_target(
            str(run.path), model=run.model, data=run.data, root=root, norm=threat.norm, eps=str(threat.eps),
            **threat.extra(), attacks=(text,), limit=count, allow_large_eps=threat.allow_large_eps,
        )  # fmt: skip
        x, _, ids = target.test()
        if x.dim() != 4 or x.shape[1] not in (1, 3):
            return f"The data are not images: each sample has the shape {tuple(x.shape[1:])}."
        made, _ = adversarial(target, progress=progress)
    except (ValueError, OSError, ImportError, KeyError, TypeError, RuntimeError) as error:
        # The rest of the page does not need them.
        reason = f"the configuration has no {error}" if isinstance(error, KeyError) else " ".join(str(error).split())
        return f"The images could not be made: {reason}"
    before, after = (plots.pixels(made[k], target.data.box) for k in ("x", "x_adv"))
    changes, factor = plots.magnified(before, after)
    names = [str(name) for name in target.data.about.get("class_names") or range(target.data.classes)]
    (clean, sure), (attacked, sure_of_it) = (_predicted(target.model, made[k].to(x)) for k in ("x", "x_adv"))
    samples = [
        Sample(
            int(ids[i]), names[y],
            Seen(_png(before[i]), names[clean[i]], sure[i]), Seen(_png(after[i]), names[attacked[i]], sure_of_it[i]),
            _png(changes[i]), float(made["norm"][i]), right=clean[i] == y, fooled=bool(made["success"][i]),
        )
        for i, y in enumerate(made["y"].tolist())
    ]  # fmt: skip
    (attack,) = target.attacks.values()
    return Gallery(spell(attack), threat, words(target.samples()), factor, tuple(samples))


def _attack(run: Run) -> tuple[str, Threat | None]:
    """The attack to show, as text, and its threat."""
    found = run.evaluated
    attacks = list(found.attacks.values()) if found is not None else []
    known = []
    for entry in attacks:
        # An ensemble takes minutes, and gradient-free attacks illustrate the network's weakness poorly.
        if entry.backwards and not entry.parts:
            threat = entry.threat.threat()
            try:
                parse(entry.attack, threat, ATTACKS)
            except ValueError:
                continue  # an attack that holds a network cannot be written as text
            known.append((entry.robust.k, entry.attack, threat))
    if known and found is not None:
        # In a cascade each met what the ones before had left, in order of increasing cost.
        return known[-1][1:] if found.cascade is True else min(known, key=lambda item: item[0])[1:]
    if attacks:
        return "PGD(steps=40)", attacks[0].threat.threat()
    given = run.config["method"].get("threat")
    return "PGD(steps=40)", Threat(**given) if given else None


@torch.no_grad()
def _predicted(model: nn.Module, x: Tensor) -> tuple[list[int], list[float]]:
    """The predicted class of each image, and its softmax probability."""
    with guard(model, mode="eval"), full_precision(x.device):
        found = ask(model, x).double().softmax(1).max(1)
    return found.indices.tolist(), found.values.tolist()


def _png(image: Tensor) -> bytes:
    """An image (c, h, w) in [0, 1], c = 1 or 3, pixel by pixel."""
    from matplotlib.image import imsave

    pixels = (255 * image.clamp(0, 1)).round().to(torch.uint8).permute(1, 2, 0).numpy()
    out = io.BytesIO()
    imsave(out, np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3))), format="png")
    return out.getvalue()
