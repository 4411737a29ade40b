"""Sensitivity of a model to the frequencies of noise: its errors for a Fourier basis, as a map."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atent.checks import check_number
from atent.docstrings import Documented
from atent.evaluate.lines import Resume, Values
from atent.evaluate.samples import Checked
from atent.evaluate.study import Study, study
from atent.messages import deprecated
from atent.progress import Advance
from atent.rng import PerSample
from atent.threat import Box, Threat, radius

PIXEL = 0.1
"""The root mean square of a perturbation's pixels by default, in widths of the box."""


def fourier_basis(h: int, w: int) -> Tensor:
    """An orthonormal real Fourier basis of images.

    The images are cos + sin of the frequency's phase (Hartley's): each has unit norm and two opposite frequencies only.

    Parameters
    ----------
    h, w
        Height and width of the images.

    Returns
    -------
    Tensor
        float64 (h, w, h, w): ``basis[i, j]`` is the image of the frequency (i - h // 2, j - w // 2), so that the
        constant image is in the centre.

    Examples
    --------
    >>> from atent.evaluate import fourier_basis
    >>> basis = fourier_basis(4, 4)
    >>> basis.shape, [round(value, 6) for value in basis[2, 2, 0].tolist()]
    (torch.Size([4, 4, 4, 4]), [0.25, 0.25, 0.25, 0.25])
    """
    rows = torch.outer(torch.arange(h, dtype=torch.float64) - h // 2, torch.arange(h, dtype=torch.float64) / h)
    columns = torch.outer(torch.arange(w, dtype=torch.float64) - w // 2, torch.arange(w, dtype=torch.float64) / w)
    phase = 2 * math.pi * (rows[:, None, :, None] + columns[None, :, None, :])
    return (phase.cos() + phase.sin()) / math.sqrt(h * w)


@dataclass(frozen=True, eq=False)
class FourierMap(metaclass=Documented):
    """Errors of a model on n samples under noise of one frequency; on the CPU.

    Examples
    --------
    >>> import torch
    >>> from atent.evaluate import fourier_map
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> found = fourier_map(model, torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0]), eps=1.0)
    >>> rates = found.errors / len(found.clean_wrong)
    >>> rates.shape, found.eps
    (torch.Size([4, 4]), 1.0)
    """

    eps: float
    """l2 norm of the noise in one channel, in pixel units."""
    clean_wrong: Tensor
    """Whether each sample is misclassified without noise; bool (n,)."""
    errors: Tensor
    """Misclassified samples by frequency, the constant one in the centre (h // 2, w // 2); int64 (h, w)."""

    @property
    def clean(self) -> Tensor:
        """The former name of ``clean_wrong``."""
        deprecated("FourierMap.clean", "FourierMap.clean_wrong")
        return self.clean_wrong


def fourier_map(
    model: nn.Module,
    x: Tensor | Checked,
    y: Tensor | None = None,
    *,
    eps: float | str | None = None,
    box: Box = (0.0, 1.0),
    seed: int = 0,
    ids: Tensor | None = None,
    batch: int = 250,
    resume: Resume = None,
    advance: Advance | None = None,
) -> FourierMap:
    """The errors of a model on ``x + eps r U``, clipped to the box, for every image U of `fourier_basis`.

    r is 1 or -1 at random for each sample, channel and frequency. Yin et al. 2019 take one of each pair of opposite
    frequencies, and so one image for both.

    Parameters
    ----------
    model
        From images to logits; it is evaluated in eval mode and comes back as it was.
    x, y
        Images (n, c, h, w) in ``box`` and true labels (n,), or `Checked` samples and None; n is 2 or more.
    eps
        l2 norm of the noise in one channel, in pixel units, a number or a fraction as text; default: pixels of a root
        mean square of 0.1 box widths, 2.8 on images of 28 x 28.
    box, seed, ids, batch
        As in `measure_corruptions`.
    resume
        JSON-lines file from which the same call resumes after an interruption.
    advance
        Called with h w in all, one for each frequency, and a string.

    Returns
    -------
    FourierMap
        Misclassified samples by frequency.

    Raises
    ------
    ValueError
        In one line, for inputs that are not images, and for an eps that is not above 0.

    References
    ----------
    Yin, Gontijo Lopes, Shlens, Cubuk and Gilmer 2019, "A Fourier perspective on model robustness in computer vision",
    NeurIPS, arXiv 1906.08988.

    Examples
    --------
    >>> import torch
    >>> from atent.evaluate import fourier_map
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> found = fourier_map(model, torch.rand(4, 1, 4, 4), torch.tensor([0, 1, 2, 0]))
    >>> found.errors.shape, round(found.eps, 6)
    (torch.Size([4, 4]), 0.4)
    """
    if eps is not None:
        eps = float(check_number("fourier eps", radius(eps, "fourier eps"), 0, above=True))
    s = study(
        "Fourier map", model, x, y, box=box, seed=seed, ids=ids, batch=batch, resume=resume, advance=advance, eps=eps
    )  # fmt: skip
    h, w = s.x.shape[2:]
    if eps is None:
        eps = PIXEL * Threat("linf", 0.0, box).width * math.sqrt(h * w)
    basis = fourier_basis(h, w).to(s.x)
    errors = torch.zeros(h, w, dtype=torch.int64)
    for i in range(h):
        shape = {"errors": Values("count", (w,), s.n)}
        found = s.notes.of(str(i), lambda i=i: {"errors": _line(s, basis[i], eps, i)}, shape)  # type: ignore[misc]
        errors[i] = torch.tensor(found["errors"])
        s.step(w, f"frequency {i - h // 2}")
    return FourierMap(eps, ~s.right(), errors)


def _line(s: Study, images: Tensor, eps: float, i: int) -> list[int]:
    """The errors at each frequency of row ``i`` of the map, given its basis ``images``."""
    threat = Threat("linf", 0.0, s.box)
    errors = [0] * len(images)
    for _, at in s.batches():
        streams = PerSample(s.seed, s.ids[at], "fourier")
        x = s.x[at]
        for j, image in enumerate(images):
            u = streams.uniform(x[:, :, :1, :1], restart=i, step=j)
            noisy = threat.clamp(x + eps * torch.where(u < 0.5, -1.0, 1.0).to(x.dtype) * image)
            errors[j] += sum(s.wrong(s.model, noisy, at))
    return errors
