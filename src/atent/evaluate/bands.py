"""Which frequencies of a perturbation fool a model: its bands under the discrete cosine transform."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from atent.attacks.base import Attack
from atent.attacks.spec import as_attack
from atent.checks import check_number
from atent.data.corruptions import check_images
from atent.data.corruptions.digital import dct_matrix
from atent.docstrings import Documented
from atent.evaluate.lines import Resume, Shape, Values
from atent.evaluate.outcomes import attacked
from atent.evaluate.samples import Checked
from atent.evaluate.study import Study, study
from atent.progress import Advance

BANDS = ("low", "high", "horizontal", "vertical")
"""low: both frequencies are below the cut; high: neither; horizontal: high along the rows of pixels only; vertical:
along the columns only."""
FULL = "full"


def dct(d: Tensor) -> Tensor:
    """The orthonormal two-dimensional discrete cosine transform (type II) of each channel (n, c, h, w)."""
    rows, columns = (dct_matrix(size).to(d) for size in d.shape[2:])
    return rows @ d @ columns.T


def inverse_dct(coefficients: Tensor) -> Tensor:
    """The inverse of `dct`."""
    rows, columns = (dct_matrix(size).to(coefficients) for size in coefficients.shape[2:])
    return rows.T @ coefficients @ columns


def band_masks(h: int, w: int, cut: int) -> dict[str, Tensor]:
    """The coefficients of each of the `BANDS`, bool (h, w): four blocks, separated at ``cut``."""
    low_rows, low_columns = torch.arange(h) < cut, torch.arange(w) < cut
    return {
        "low": low_rows[:, None] & low_columns,
        "high": ~low_rows[:, None] & ~low_columns,
        "horizontal": low_rows[:, None] & ~low_columns,
        "vertical": ~low_rows[:, None] & low_columns,
    }


def split_bands(d: Tensor, cut: int | None = None) -> dict[str, Tensor]:
    """The parts of a perturbation in the four `BANDS`: they sum to it, and their squared norms to its squared norm.

    Shao et al. 2022 cut images of 224 pixels at 32, and omit the two mixed bands.

    Parameters
    ----------
    d
        Perturbations (n, c, h, w).
    cut
        The first high frequency, 1 to the smaller side less 1; default: a quarter of the smaller side.

    Returns
    -------
    dict of str to Tensor
        By name of the band, each (n, c, h, w).

    Raises
    ------
    ValueError
        In one line, for inputs that are not images, and for a cut that makes a band empty.

    References
    ----------
    Shao, Shi, Yi, Chen and Hsieh 2022, "On the adversarial robustness of vision transformers", Transactions on Machine
    Learning Research, arXiv 2103.15670.

    Examples
    --------
    >>> import torch
    >>> from atent.evaluate import split_bands
    >>> d = torch.rand(2, 3, 8, 8)
    >>> parts = split_bands(d)
    >>> list(parts), bool(torch.isclose(sum(parts.values()), d, atol=1e-5).all())
    (['low', 'high', 'horizontal', 'vertical'], True)
    """
    check_images(d.shape[1:])
    cut = checked_cut(cut, d.shape[2], d.shape[3])
    coefficients = dct(d)
    masks = band_masks(d.shape[2], d.shape[3], cut)
    return {name: inverse_dct(coefficients * mask.to(d)) for name, mask in masks.items()}


def checked_cut(cut: int | None, h: int, w: int) -> int:
    """The cut as a number, a quarter of the smaller side by default; ValueError where a band would be empty."""
    side = min(h, w)
    if cut is None:
        return side // 4
    cut = int(check_number("band cut", cut, 1, whole=True))
    if cut >= side:
        raise ValueError(f"band cut must be 1 to {side - 1} on images of {h} x {w}, got {cut}")
    return cut


@dataclass(frozen=True, eq=False)
class Bands(metaclass=Documented):
    """The effect of each band of an attack's perturbations on n samples; tensors on the CPU.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import FGSM
    >>> from atent.evaluate import measure_bands
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> x = torch.rand(4, 1, 8, 8)
    >>> found = measure_bands(model, x, model(x).argmax(1), FGSM(Threat("linf", 0.1)))
    >>> sorted(found.shares()), round(float(found.spectrum.sum()), 6)
    (['high', 'horizontal', 'low', 'vertical'], 1.0)
    """

    cut: int
    """The first high frequency."""
    right: Tensor
    """Whether each sample is correctly classified without an attack; bool (n,)."""
    robust: dict[str, Tensor]
    """Whether each sample remains correctly classified, by band alone and, by the key ``full``, for the entire
    perturbation; bool (n,)."""
    energy: dict[str, Tensor]
    """By band, the squared l2 norm of its part; float64 (n,), 0 where no perturbation was found, and for misclassified
    samples."""
    spectrum: Tensor
    """The mean share of each coefficient in the squared norm of a perturbation; float64 (h, w), with the sum 1, or 0
    without perturbations."""
    white: dict[str, float]
    """The share of coefficients in each band, which is its share of the energy of white noise."""

    def shares(self) -> dict[str, Tensor]:
        """Each band's share of the energy, float64 (m,), over the m samples that were perturbed."""
        total = torch.stack(tuple(self.energy.values())).sum(0)
        moved = total > 0
        return {name: part[moved] / total[moved] for name, part in self.energy.items()}


def measure_bands(
    model: nn.Module,
    x: Tensor | Checked,
    y: Tensor | None,
    attack: Attack,
    *,
    cut: int | None = None,
    seed: int = 0,
    ids: Tensor | None = None,
    batch: int = 250,
    resume: Resume = None,
    advance: Advance | None = None,
) -> Bands:
    """Attack the correctly classified samples, and test each band of the perturbations alone.

    A part is added to the clean image and the sum is clipped to the box. A sample that is misclassified without an
    attack is robust to no part.

    Parameters
    ----------
    model
        From images to logits; it is evaluated in eval mode and comes back as it was.
    x, y
        Images (n, c, h, w) in the attack's box and true labels (n,), or `Checked` samples and None; n is 2 or more.
    attack
        The attack whose perturbations are split.
    cut
        As in `split_bands`.
    seed, ids, batch
        As in `evaluate`.
    resume
        JSON-lines file from which the same call resumes after an interruption.
    advance
        Called with the number of samples that are done, n in all, and a string.

    Returns
    -------
    Bands
        Robustness to each band, its energy, and the mean spectrum.

    Raises
    ------
    ValueError
        In one line, as `evaluate` and `split_bands`.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.attacks import FGSM
    >>> from atent.evaluate import measure_bands
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 3))
    >>> x = torch.rand(4, 1, 8, 8)
    >>> found = measure_bands(model, x, model(x).argmax(1), FGSM(Threat("linf", 0.1)), cut=3)
    >>> found.cut, found.robust["low"].shape
    (3, torch.Size([4]))
    """
    s = study(
        "band report", model, x, y, box=as_attack(attack).threat.box, seed=seed, ids=ids, batch=batch, resume=resume,
        advance=advance, attacks={"attack": attack}, cut=cut,
    )  # fmt: skip
    h, w = s.x.shape[2:]
    cut = checked_cut(cut, h, w)
    attack.threat.check_eps(s.x.shape[1:])
    attack.threat.check_samples(s.n)
    right = s.right()
    robust = {name: torch.zeros(s.n, dtype=torch.bool) for name in (FULL, *BANDS)}
    energy = {name: torch.zeros(s.n, dtype=torch.float64) for name in BANDS}
    spectrum, moved = torch.zeros(h * w, dtype=torch.float64), 0
    s.step(s.n - int(right.sum()), "bands")
    for key, at in s.batches(right.nonzero().squeeze(1)):
        bits, reals = Values("bit", (len(at),)), Values("real", (len(at),))
        shape: Shape = {
            "wrong": dict.fromkeys((FULL, *BANDS), bits), "energy": dict.fromkeys(BANDS, reals),
            "spectrum": Values("real", (h * w,)), "moved": Values("count", (), len(at)),
        }  # fmt: skip
        row = s.notes.of(key, lambda at=at: _row(s, attack, cut, at), shape)  # type: ignore[misc]
        for name, flags in robust.items():
            flags[at.cpu()] = ~torch.tensor(row["wrong"][name], dtype=torch.bool)
        for name, part in energy.items():
            part[at.cpu()] = torch.tensor(row["energy"][name], dtype=torch.float64)
        spectrum += torch.tensor(row["spectrum"], dtype=torch.float64)
        moved += row["moved"]
        s.step(len(at), f"bands {int(robust[FULL].sum())} robust")
    white = {name: float(mask.double().mean()) for name, mask in band_masks(h, w, cut).items()}
    return Bands(cut, right, robust, energy, spectrum.view(h, w) / max(moved, 1), white)


def _row(s: Study, attack: Attack, cut: int, at: Tensor) -> dict[str, object]:
    """Energy and effect of the perturbations of one batch, as plain values."""
    x = attack.threat.clamp(s.x[at])
    x_adv = attacked(attack.of(at), s.model, x, s.y[at], seed=s.seed, ids=s.ids[at]).x_adv
    d = x_adv.double() - x.double()
    parts = split_bands(d, cut)
    wrong = {FULL: s.wrong(s.model, x_adv, at)}
    wrong |= {name: s.wrong(s.model, attack.threat.clamp((x + part).to(x.dtype)), at) for name, part in parts.items()}
    squares = dct(d).square().sum(1).flatten(1)
    total = squares.sum(1, keepdim=True)
    shares = torch.where(total > 0, squares / total, 0.0)
    return {
        "wrong": wrong,
        "energy": {name: part.square().flatten(1).sum(1).tolist() for name, part in parts.items()},
        "spectrum": shares.sum(0).tolist(),
        "moved": int((total > 0).sum()),
    }
