"""How often the predicted class changes along sequences of slightly different images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atent.checks import check_choice
from atent.data.corruptions.sequences import SEQUENCES, flips, framed
from atent.docstrings import Documented
from atent.evaluate.lines import Resume, Values
from atent.evaluate.samples import Checked
from atent.evaluate.study import listed, study
from atent.progress import Advance
from atent.stats import Estimate, bounded_mean, mean_of_ratios
from atent.threat import Box


@dataclass(frozen=True, eq=False)
class Flips(metaclass=Documented):
    """Flip rates of a model along sequences from n samples, and of a reference network along the same ones.

    Examples
    --------
    >>> import torch
    >>> from atent.evaluate import measure_flips
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    >>> found = measure_flips(model, x, y, names=["brightness"])
    >>> found.rate(0).value == found.mean_rate().value
    True
    """

    names: tuple[str, ...]
    """The sequences."""
    rates: Tensor
    """The share of comparisons in which the class changes; float64 (sequences, n)."""
    reference: Tensor | None = None
    """As ``rates``, of the reference network."""

    def rate(self, i: int) -> Estimate:
        """The mean rate of the sequence with index ``i`` over the images, with its 95 % interval."""
        return bounded_mean(self.rates[i].tolist())

    def mean_rate(self) -> Estimate:
        """The mean over sequences and images, with its 95 % interval over images."""
        return bounded_mean(self.rates.mean(0).tolist())

    def mean_flip_rate(self) -> Estimate | None:
        """The mean over the sequences of the rate divided by the reference network's (mFR), with its 95 % interval.

        Sequences in which the reference never changes its class are omitted; None where all are. ValueError without a
        reference.
        """
        if self.reference is None:
            raise ValueError("a mean flip rate needs a reference network: give reference=")
        return mean_of_ratios(self.rates.tolist(), self.reference.tolist())


def measure_flips(
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
) -> Flips:
    """How often the predicted class changes along sequences of slightly different images.

    A sequence is one of noise samples, each compared with the first image, or an ordered one, in which neighbours are
    compared. No label is used: a constant classifier never changes its class.

    Parameters
    ----------
    model
        From images to logits; it is evaluated in eval mode and comes back as it was.
    x, y
        Images (n, c, h, w) in ``box`` and labels (n,), or `Checked` samples and None; n is 2 or more.
    names
        Sequences, of `atent.data.corruptions.sequences.SEQUENCES`; default: all.
    reference
        Network whose flip rates on the same sequences are the denominators of the mean flip rate; default: none.
    box
        Smallest and largest legal value.
    seed, ids, batch
        As in `evaluate`; ``seed`` and ``ids`` key the random numbers of every image.
    resume
        JSON-lines file from which the same call resumes after an interruption.
    advance
        Called with n samples for each sequence, and a string.

    Returns
    -------
    Flips
        The rate of each sample, by sequence.

    Raises
    ------
    ValueError
        In one line, for inputs that are not images, and for an unknown sequence.

    References
    ----------
    Hendrycks and Dietterich 2019, "Benchmarking neural network robustness to common corruptions and perturbations",
    ICLR, arXiv 1903.12261.

    Examples
    --------
    >>> import torch
    >>> from atent.evaluate import measure_flips
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> x, y = torch.rand(4, 1, 8, 8), torch.tensor([0, 1, 2, 0])
    >>> measure_flips(model, x, y, names=["brightness", "rotate"]).rates.shape
    torch.Size([2, 4])
    """
    models = {"reference": reference} if reference is not None else {}
    chosen = listed(names, "sequence") or tuple(SEQUENCES)
    for name in chosen:
        check_choice("sequence", name, tuple(SEQUENCES))
    s = study(
        "flip report", model, x, y, box=box, seed=seed, ids=ids, batch=batch, resume=resume, advance=advance,
        models=models, names=list(chosen),
    )  # fmt: skip
    asked = {"rates": model, **models}
    rates = {who: torch.zeros(len(chosen), s.n, dtype=torch.float64) for who in asked}
    for i, name in enumerate(chosen):
        for key, at in s.batches():

            def row(at: Tensor = at, name: str = name) -> dict[str, object]:
                classes: dict[str, list[Tensor]] = {who: [] for who in asked}
                for frame in framed(s.unit(s.x[at]), name, seed=s.seed, ids=s.ids[at]):
                    for who, net in asked.items():
                        classes[who].append(s.predicted(net, s.boxed(frame), at))
                ordered = SEQUENCES[name].ordered
                return {who: flips(torch.stack(each, 1), ordered=ordered).tolist() for who, each in classes.items()}

            found = s.notes.of(f"{name} {key}", row, {who: Values("real", (len(at),), 1.0) for who in asked})
            for who, table in rates.items():
                table[i, at.cpu()] = torch.tensor(found[who], dtype=torch.float64)
            s.step(len(at), name)
    return Flips(chosen, rates["rates"], rates.get("reference"))
