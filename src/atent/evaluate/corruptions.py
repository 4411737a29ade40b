"""Errors of a model under common corruptions, relative to a reference network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atent.checks import check_choice
from atent.data.corruptions import DEFINITIONS, SEVERITIES, corrupt, suited
from atent.docstrings import Documented
from atent.evaluate.lines import Resume, Values
from atent.evaluate.samples import Checked
from atent.evaluate.study import listed, study
from atent.messages import deprecated
from atent.progress import Advance
from atent.stats import Estimate, bounded_mean, mean_of_ratios
from atent.threat import Box


@dataclass(frozen=True, eq=False)
class Corrupted(metaclass=Documented):
    """Errors of a model on n corrupted samples, and of a reference network on the same images; on the CPU.

    Examples
    --------
    >>> import torch
    >>> from atent.evaluate import measure_corruptions
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    >>> found = measure_corruptions(model, x, y, names=["fog", "contrast"], reference=model)
    >>> 0 <= found.mean_error().value <= 1, found.reference.shape
    (True, torch.Size([2, 5, 4]))
    """

    names: tuple[str, ...]
    """The corruptions."""
    clean_wrong: Tensor
    """Whether each sample is misclassified without a corruption; bool (n,)."""
    wrong: Tensor
    """Whether each corrupted sample is misclassified; bool (corruptions, severities, n)."""
    distance: Tensor
    """Mean l2 distance to the clean image, in pixel units; float64 (corruptions, severities)."""
    reference: Tensor | None = None
    """As ``wrong``, of the reference network."""

    @property
    def clean(self) -> Tensor:
        """The former name of ``clean_wrong``."""
        deprecated("Corrupted.clean", "Corrupted.clean_wrong")
        return self.clean_wrong

    def mean_error(self) -> Estimate:
        """The mean over corruptions and severities of the error, with its 95 % interval over images."""
        return bounded_mean(self.wrong.double().mean((0, 1)).tolist())

    def ratios(self) -> list[float | None]:
        """The corruption error (CE) of each corruption: the sum of errors over severities, divided by the reference
        network's; None where the reference makes no error. ValueError without a reference."""
        own, other = self._sums()
        return [float(a / b) if b > 0 else None for a, b in zip(own.sum(1), other.sum(1))]

    def mce(self) -> Estimate | None:
        """The mean of the `ratios` that are not None (mCE), with its 95 % interval over images; None where all are.
        ValueError without a reference."""
        return mean_of_ratios(*(part.tolist() for part in self._sums()))

    def _sums(self) -> tuple[Tensor, Tensor]:
        """The number of severities at which each image is misclassified, (corruptions, n), by model and reference."""
        if self.reference is None:
            raise ValueError("a mean corruption error needs a reference network: give reference=")
        return self.wrong.double().sum(1), self.reference.double().sum(1)


def measure_corruptions(
    model: nn.Module,
    x: Tensor | Checked,
    y: Tensor | None = None,
    *,
    names: Sequence[str] | None = None,
    reference: nn.Module | None = None,
    box: Box = (0.0, 1.0),
    seed: int = 0,
    ids: Tensor | None = None,
    batch: int = 250,
    resume: Resume = None,
    advance: Advance | None = None,
) -> Corrupted:
    """The errors of a model under common corruptions at five severities.

    Parameters
    ----------
    model
        From images to logits; it is evaluated in eval mode and comes back as it was.
    x, y
        Images (n, c, h, w) in ``box`` and true labels (n,), or `Checked` samples and None; n is 2 or more.
    names
        Corruptions; default: all that `atent.data.corruptions.suited` gives for the images' size.
    reference
        Network whose errors on the same images are the denominators of the mean corruption error; default: none.
    box
        Smallest and largest legal value.
    seed, ids, batch
        As in `evaluate`; ``seed`` and ``ids`` key the random numbers of every image.
    resume
        JSON-lines file from which the same call resumes after an interruption.
    advance
        Called with n samples for each corruption and severity, and a string.

    Returns
    -------
    Corrupted
        Which samples are misclassified, by corruption and severity.

    Raises
    ------
    ValueError
        In one line, for inputs that are not images, and for an unknown corruption or one that does not suit them.

    References
    ----------
    Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions and perturbations",
    ICLR, arXiv 1903.12261.

    Examples
    --------
    >>> import torch
    >>> from atent.evaluate import measure_corruptions
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    >>> found = measure_corruptions(model, x, y, names=["fog", "contrast"])
    >>> found.names, found.wrong.shape
    (('fog', 'contrast'), torch.Size([2, 5, 4]))
    """
    models, names = {"reference": reference} if reference is not None else {}, listed(names, "corruption")
    s = study(
        "corruption report", model, x, y, box=box, seed=seed, ids=ids, batch=batch, resume=resume, advance=advance,
        models=models, names=None if names is None else list(names), definitions=DEFINITIONS,
    )  # fmt: skip
    known = suited(s.x.shape[1:])
    chosen = tuple(known) if names is None else tuple(names)
    for name in chosen:
        check_choice("corruption", name, tuple(known))
    asked = {"wrong": model, **models}
    wrong = {who: torch.zeros(len(chosen), len(SEVERITIES), s.n, dtype=torch.bool) for who in asked}
    distance = torch.zeros(len(chosen), len(SEVERITIES), dtype=torch.float64)
    for i, name in enumerate(chosen):
        for j, severity in enumerate(SEVERITIES):
            for key, at in s.batches():

                def row(at: Tensor = at, name: str = name, severity: int = severity) -> dict[str, object]:
                    changed = corrupt(s.x[at], name, severity, seed=s.seed, ids=s.ids[at], box=box)
                    moved = (changed.double() - s.x[at].double()).flatten(1).norm(dim=1)
                    errors = {who: s.wrong(net, changed, at) for who, net in asked.items()}
                    return {**errors, "distance": float(moved.sum())}

                shape = {**dict.fromkeys(asked, Values("bit", (len(at),))), "distance": Values("real")}
                found = s.notes.of(f"{name} {severity} {key}", row, shape)
                for who, table in wrong.items():
                    table[i, j, at.cpu()] = torch.tensor(found[who], dtype=torch.bool)
                distance[i, j] += found["distance"] / s.n
                s.step(len(at), f"{name} {severity}")
    return Corrupted(chosen, ~s.right(), wrong["wrong"], distance, wrong.get("reference"))
