"""Randomised smoothing (Cohen, Rosenfeld and Kolter 2019): classes, and l2 radii within which they are certified."""

from __future__ import annotations

import math
import warnings
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from atent.certify.limits import check_alpha, check_radius, check_sampling
from atent.certify.sequential import CertifiedAt, choose, decide, plan, threshold
from atent.certify.votes import Votes, counting
from atent.checks import Settings, as_inputs, check_batch, check_number, check_seed, numbered, plain
from atent.guard import check_module, outside_inference
from atent.independence import FEW, OTHERS, dependence_hint
from atent.memory import Batches
from atent.precision import images_last
from atent.progress import Advance
from atent.rng import narrow
from atent.stats import lower_limit
from atent.threat import Threat

ABSTAIN = -1
"""The class of a sample on which the smoothed classifier abstains."""

# First block of the selection, far from those of the estimate: CERTIFY needs independent noise samples for the two.
_SELECTION = 2**31


def noisy(x: Tensor, sigma: float, seed: int) -> Tensor:
    """Some of the samples (at least one) with noise: the kind of input that a smoothed network gets."""
    most = min(FEW * OTHERS, len(x))
    some = x[torch.arange(most, device=x.device) * len(x) // most].detach()
    noise = torch.randn(some.shape, generator=torch.Generator().manual_seed(narrow(seed)))
    return some + sigma * noise.to(some)


@dataclass(frozen=True)
class Smoothed(metaclass=Settings):
    """Randomised smoothing: g(x) = argmax over c of P(f(x + sigma N(0, I)) = c), ``f`` being the argmax of ``model``.

    The noisy inputs are not clamped to the box: the certificate requires Gaussian noise.

    The noise comes in blocks of 100 samples, each a stream of its own keyed by (seed, id, block), see
    `atent.certify.noise`: results do not depend on batch size, order, sharding or resumption, no two images share
    noise, and the samples of a small n are the first ones of a larger n. The noise is the same on all devices of one
    kind; where two logits tie to rounding, matrix kernels may change a single vote with the batch size. The noise costs
    0.02 forwards of small_cnn and 0.06 of digits_cnn. Its float32 normals end near 8 standard deviations on the CPU
    and 6 on CUDA.

    Raises
    ------
    ValueError
        In one line, for a ``sigma`` that is not above 0.

    References
    ----------
    Cohen, Rosenfeld and Kolter 2019, "Certified adversarial robustness via randomized smoothing", ICML, arXiv
    1902.02918.

    Examples
    --------
    >>> import torch
    >>> from atent.certify import Smoothed
    >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3))
    >>> classes, radii = Smoothed(model, sigma=0.25).certify(torch.rand(4, 1, 4, 4), n0=10, n=100)
    >>> classes.shape, bool((radii >= 0).all())
    (torch.Size([4]), True)
    """

    model: nn.Module
    """From (n, ...) floats to (n, classes) logits, or to anything with the same argmax; it is always evaluated in eval
    mode and comes back as it was."""
    sigma: float
    """Standard deviation of the noise, in the units of x (pixels), above 0."""
    channels_last: bool | None = None
    """Whether the model gets images in that memory format, the same up to rounding; default: where its layers are
    faster with it on a CPU. A model that does not support it gets the contiguous format, with a warning."""

    def __post_init__(self) -> None:
        check_module(self.model)
        check_number("sigma", self.sigma, 0, above=True)

    def certify(
        self,
        x: Tensor,
        n0: int = 100,
        n: int = 100_000,
        alpha: float = 0.001,
        *,
        seed: int = 0,
        ids: Tensor | None = None,
        radius: float | str | Threat | None = None,
        batch: int | None = None,
        advance: Advance | None = None,
    ) -> tuple[Tensor, Tensor]:
        """CERTIFY of the paper: the class of each sample and the l2 radius within which it is certified.

        The class most frequent among ``n0`` noise samples is chosen; k of ``n`` other noise samples fall on it. With p
        the lower one-sided Clopper-Pearson limit of k in n at ``alpha``, the radius is sigma * Phi^-1(p) where p > 1/2
        (Theorem 1, with the bound 1 - p on the runner-up). For each sample, the probability that g differs from the
        class somewhere within the radius is at most ``alpha``. All n are always taken: stopping early needs another
        test, see `certify_at`. An l2 radius r contains the linf radius r / sqrt(d), see `linf_radius`.

        Parameters
        ----------
        x
            Inputs (n, ...), float32 or float64.
        n0, n
            Noise samples that choose the class, and others that estimate its share, n >= n0.
        alpha
            Probability of a wrong certificate, in (0, 1).
        seed, ids
            They key the noise; sample numbers (n,), default: 0 .. n-1.
        radius
            The l2 radius of interest: refused where n noise samples cannot certify it.
        batch
            Noise samples per forward pass, of several inputs where n is small; default: 100 on the CPU, where more
            exceeds the cache, 200 for inputs below 784 values, otherwise 4,000.
        advance
            Called with the number of noise samples that are done, n0 + n for each input, and a string.

        Returns
        -------
        tuple of Tensor
            Classes (n,) int64, `ABSTAIN` where undecided, and l2 radii (n,) float64, 0 there.

        Raises
        ------
        ValueError
            In one line, with the arithmetic, for a radius that n noise samples cannot certify, n < n0, an (n, alpha)
            that always abstains, alpha outside (0, 1) and unusable inputs.
        """
        n0, n, alpha = plain(n0), plain(n), plain(alpha)
        check_sampling(n0, n, alpha, self.sigma)
        x = as_inputs(x, self.model)
        if radius is not None:
            check_radius(radius, n, alpha, self.sigma, dim=math.prod(x.shape[1:]))
        seed = check_seed(seed)
        self._warn(x, seed, n, batch)
        found = self.two_votes(x, n0, n, seed=seed, ids=ids, batch=batch, advance=advance)
        return certificates(*found, self.sigma, alpha)

    def certify_at(
        self, x: Tensor, radius: float | str | Threat, n0: int = 100, n: int = 100_000, alpha: float = 0.001, *,
        seed: int = 0, ids: Tensor | None = None, batch: int | None = None, advance: Advance | None = None,
    ) -> CertifiedAt:  # fmt: skip
        """Whether the class is certified within one l2 radius, by a sequential test with few noise samples.

        The class is chosen as in `certify`, by ``n0`` noise samples at most, and tested on others, the first of those
        from which `certify` estimates: at certain numbers of them, ``n`` at most, the test certifies, abstains or
        continues. For each sample, the probability that a class is certified which g does not have everywhere within
        the radius is at most ``alpha`` in total, whatever the number of noise samples (docs/certification.md). A class
        near the threshold that `certify` would certify may remain undecided. The test gives no information on other
        radii.

        Parameters
        ----------
        x
            As in `certify`.
        radius
            The l2 radius, a number, a fraction such as "128/255" or a threat in l2.
        n0, n, alpha, seed, ids, batch
            As in `certify`.
        advance
            As in `certify`; it reports n0 + n noise samples per input, including those saved.

        Returns
        -------
        CertifiedAt
            Classes and numbers of noise samples.

        Raises
        ------
        ValueError
            In one line, as `certify`.
        """
        n0, n, alpha = plain(n0), plain(n), plain(alpha)
        check_sampling(n0, n, alpha, self.sigma)
        x, seed = as_inputs(x, self.model), check_seed(seed)
        goal = check_radius(radius, n, alpha, self.sigma, dim=math.prod(x.shape[1:]))
        self._warn(x, seed, n, batch)
        return self.decided(x, goal, n0, n, alpha, seed=seed, ids=ids, batch=batch, advance=advance)

    def decided(
        self, x: Tensor, radius: float, n0: int, n: int, alpha: float, *, seed: int = 0, ids: Tensor | None = None,
        batch: int | None = None, advance: Advance | None = None,
    ) -> CertifiedAt:  # fmt: skip
        """As `certify_at`, for arguments that are checked already."""
        test = plan(threshold(radius, self.sigma), n, alpha)
        with self._counting(x, seed, ids, batch, advance) as votes:
            top, chosen = choose(votes, n0, _SELECTION)
            certified, tested = decide(votes, top, test)
        if advance:
            advance(int(len(top) * (n0 + n) - chosen.sum() - tested.sum()), "")
        classes = np.where(certified, top, ABSTAIN)
        return CertifiedAt(radius, *(torch.from_numpy(v).to(x.device) for v in (classes, chosen, tested)))

    def predict(
        self,
        x: Tensor,
        n: int = 1000,
        alpha: float = 0.001,
        *,
        seed: int = 0,
        ids: Tensor | None = None,
        batch: int | None = None,
        advance: Advance | None = None,
    ) -> Tensor:
        """PREDICT of the paper: the class of g, or `ABSTAIN`.

        Abstains where the two-sided binomial test does not separate the two most frequent classes. It uses the first n
        of the noise samples from which `certify` estimates.

        Parameters
        ----------
        x
            As in `certify`.
        n
            Noise samples, 1 or more.
        alpha
            Probability of a wrong class, in (0, 1).
        seed, ids, batch
            As in `certify`.
        advance
            As in `certify`; it reports n noise samples per input.

        Returns
        -------
        Tensor
            Classes (n,) int64.

        Raises
        ------
        ValueError
            In one line, as `certify`, and for an n that abstains even where all noise samples agree.
        """
        n, alpha = check_number("n", n, 1, whole=True), plain(alpha)
        check_alpha(alpha)
        if 2.0 ** (1 - n) > alpha:
            raise ValueError(
                f"n = {n} noise samples always abstain at alpha {alpha:g}: where all agree their two-sided p is"
                f" 2^{1 - n} = {2.0 ** (1 - n):.3g}; give n >= {math.ceil(1 - math.log2(alpha))}"
            )
        x, seed = as_inputs(x, self.model), check_seed(seed)
        self._warn(x, seed, n, batch)
        return predictions(self.votes(x, n, seed=seed, ids=ids, batch=batch, advance=advance), alpha)

    def _warn(self, x: Tensor, seed: int, n: int, batch: int | None) -> None:
        size = min(forward_size(x, batch), n * len(x))
        hint = dependence_hint(self.model, noisy(x, self.sigma, seed), seed=seed, size=size) if len(x) else None
        if hint is not None:
            warnings.warn(hint, stacklevel=3)

    def two_votes(
        self, x: Tensor, n0: int, n: int, *, seed: int = 0, ids: Tensor | None = None,
        batch: int | None = None, advance: Advance | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Counts (n, classes) that choose the class, of ``n0`` noise samples, and that estimate its share, of ``n``."""
        chosen = self.votes(x, n0, seed=seed, ids=ids, first=_SELECTION, batch=batch, advance=advance)
        return chosen, self.votes(x, n, seed=seed, ids=ids, batch=batch, advance=advance)

    @cached_property
    def _forwards(self) -> Batches:
        """The forward passes of all calls: each call begins with the batch size that memory allowed before."""
        return Batches("the certification")

    def _layout(self, x: Tensor) -> torch.memory_format:
        wanted = _gains(self.model, x) if self.channels_last is None else self.channels_last
        return torch.channels_last if wanted and images_last(self.model, x) else torch.contiguous_format

    @torch.no_grad()
    def votes(
        self, x: Tensor, n: int, *, seed: int = 0, ids: Tensor | None = None, first: int = 0,
        batch: int | None = None, advance: Advance | None = None,
    ) -> Tensor:  # fmt: skip
        """How many of ``n`` noisy copies of each sample fall on each class: int64 (n, classes), on x's device.

        ``first``: number of the first block of noise. The host waits for the device only after the last forward.
        """
        n = check_number("n", n, 1, whole=True)
        with self._counting(x, seed, ids, batch, advance) as votes:
            found = votes.count(range(len(x)), 0, n, first=first)
            votes.check()
        return found

    def _counting(
        self, x: Tensor, seed: int, ids: Tensor | None, batch: int | None, advance: Advance | None
    ) -> AbstractContextManager[Votes]:
        """The vote counter of these samples, see `Votes`; ValueError for unusable inputs."""
        x, seed = outside_inference(as_inputs(x, self.model).detach()), check_seed(seed)
        check_batch(x, torch.zeros(len(x), dtype=torch.int64), (-math.inf, math.inf))
        if x.dtype not in (torch.float32, torch.float64):
            raise ValueError(f"inputs must be float32 or float64, got {x.dtype}: noise of 16 bits is not Gaussian")
        if not len(x):
            raise ValueError("no samples to smooth: give at least one")
        numbers = numbered(ids, len(x), "cpu").tolist()
        return counting(
            self.model, x, self.sigma, numbers, seed=seed, batch=forward_size(x, batch), layout=self._layout(x),
            forwards=self._forwards, advance=advance,
        )  # fmt: skip


def forward_size(x: Tensor, batch: int | None) -> int:
    """Noisy inputs in one forward pass; default: on the CPU as many as fit its cache in a convolutional network."""
    if batch is None:
        small = math.prod(x.shape[1:]) < 28 * 28
        batch = 4000 if x.device.type != "cpu" else 200 if small else 100
    size: int = check_number("batch", batch, 1, whole=True)
    return size


def _gains(model: nn.Module, x: Tensor) -> bool:
    """Whether channels-last images are faster, decided by the layers so that it is the same in every run.

    A CPU convolves channels-last 1.4 times as fast where a wide convolution keeps the resolution (SmallCNN, LeNet), and
    slower where all of them are narrow or strided (kw_small: 0.8 times).
    """
    wide = any(isinstance(m, nn.Conv2d) and m.in_channels >= 32 and m.stride == (1, 1) for m in model.modules())
    return wide and x.device.type == "cpu"


def certificates(chosen: Tensor, counts: Tensor, sigma: float, alpha: float) -> tuple[Tensor, Tensor]:
    """Classes (n,) and radii (n,) from the selection's and the estimate's counts, both (n, classes): CERTIFY."""
    from scipy.special import ndtri

    # One transfer for both; numpy's argmax takes the lowest class of a tie, on every device.
    select, estimate = torch.stack([chosen, counts]).cpu().numpy()
    top = select.argmax(1)
    hits, of = estimate[np.arange(len(top)), top], estimate.sum(1)
    low = np.array([lower_limit(int(k), int(m), alpha) for k, m in zip(hits, of)])
    sure = low > 0.5
    radii = np.where(sure, sigma * ndtri(np.where(sure, low, 0.5)), 0.0)
    classes = np.where(sure, top, ABSTAIN)
    return torch.from_numpy(classes).to(counts.device), torch.from_numpy(radii).to(counts.device)


def predictions(counts: Tensor, alpha: float) -> Tensor:
    """Classes (n,) from counts (n, classes), `ABSTAIN` where the two-sided binomial test fails: PREDICT."""
    from scipy.special import betainc

    votes = counts.cpu().numpy()
    top = votes.argmax(1)
    ordered = np.sort(np.pad(votes, ((0, 0), (1, 0))), axis=1)
    second, most = ordered[:, -2], ordered[:, -1]
    # P(X >= k) for X of Bin(m, 1/2) is I_{1/2}(k, m - k + 1); the two tails are alike.
    p = np.where(most > second, 2 * betainc(most, second + 1, 0.5), 1.0)
    return torch.from_numpy(np.where(p <= alpha, top, ABSTAIN)).to(counts.device)
