"""Losses per sample: functions of logits (n, classes) and labels (n,) that return (n,).

Half-precision logits are converted to float32 first, since bfloat16 exponentials are too inaccurate.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "boosted_cross_entropy", "cross_entropy", "dlr", "dlr_targeted", "kl", "margin", "margin_targeted", "nt_xent",
]  # fmt: skip


def wide(logits: Tensor) -> Tensor:
    """The logits, converted to float32 if they are in half precision."""
    return logits if logits.dtype in (torch.float32, torch.float64) else logits.float()


def cross_entropy(logits: Tensor, y: Tensor, smoothing: float = 0.0) -> Tensor:
    """The cross-entropy -log softmax(z)_y.

    With ``smoothing`` s a share s of the target is uniform over all classes:
    -(1 - s) log softmax(z)_y - s / classes * sum_i log softmax(z)_i (Szegedy et al. 2016).

    Parameters
    ----------
    logits
        Logits (n, classes), of any floating-point type.
    y
        True classes (n,), integers.
    smoothing
        s, in [0, 1). Default: 0.

    Returns
    -------
    Tensor
        (n,): one value for each sample.

    Examples
    --------
    >>> import torch
    >>> z, y = torch.tensor([[3.0, 1.0, 0.0, -1.0], [0.0, 2.0, 1.0, 1.0]]), torch.tensor([0, 2])
    >>> from atent.losses import cross_entropy
    >>> cross_entropy(z, y)
    tensor([0.1852, 1.6265])
    """
    return F.cross_entropy(wide(logits), y, reduction="none", label_smoothing=smoothing)


def magnitude(logits: Tensor) -> Tensor:
    """The size of each sample's logits, (n,), of which rounding errors are a share: the largest absolute value, but at
    most 1000 times that of the two largest logits.

    The limit is for classes that a network masks by a large negative constant, such as -1e9.
    """
    return logits.abs().amax(1).minimum(1000 * logits.topk(2, dim=1).values.abs().amax(1))


def check_smoothing(smoothing: float) -> None:
    """ValueError unless ``smoothing`` is in [0, 1)."""
    if not 0 <= smoothing < 1:
        raise ValueError(f"label_smoothing must lie in [0, 1), got {smoothing}")


def _true_and_best_other(z: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    own = z.gather(1, y[:, None]).squeeze(1)
    return own, z.scatter(1, y[:, None], float("-inf")).amax(1)


def margin(logits: Tensor, y: Tensor) -> Tensor:
    """max over i != y of z_i - z_y: positive exactly where the sample is misclassified (Carlini and Wagner 2017).

    Parameters
    ----------
    logits
        Logits (n, classes), of any floating-point type.
    y
        True classes (n,), integers.

    Returns
    -------
    Tensor
        (n,): one value for each sample.

    Examples
    --------
    >>> import torch
    >>> z, y = torch.tensor([[3.0, 1.0, 0.0, -1.0], [0.0, 2.0, 1.0, 1.0]]), torch.tensor([0, 2])
    >>> from atent.losses import margin
    >>> margin(z, y)
    tensor([-2.,  1.])
    """
    own, other = _true_and_best_other(wide(logits), y)
    return other - own


def margin_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """z_t - z_y for target classes t: positive where the target has the larger logit of the two.

    Parameters
    ----------
    logits
        Logits (n, classes), of any floating-point type.
    y
        True classes (n,), integers.
    target
        Target classes (n,), integers.

    Returns
    -------
    Tensor
        (n,): one value for each sample.

    Examples
    --------
    >>> import torch
    >>> z, y = torch.tensor([[3.0, 1.0, 0.0, -1.0], [0.0, 2.0, 1.0, 1.0]]), torch.tensor([0, 2])
    >>> from atent.losses import margin_targeted
    >>> margin_targeted(z, y, torch.tensor([1, 1]))
    tensor([-2.,  1.])
    """
    own, aim = wide(logits).gather(1, torch.stack([y, target], 1)).unbind(1)
    return aim - own


def dlr(logits: Tensor, y: Tensor) -> Tensor:
    """Difference of logits ratio, (max_{i != y} z_i - z_y) / (z_(1) - z_(3)), with sorted logits z_(1) >= z_(2) ...

    It is invariant to shifts and positive rescalings of the logits.

    Parameters
    ----------
    logits
        Logits (n, classes), of any floating-point type.
    y
        True classes (n,), integers.

    Returns
    -------
    Tensor
        (n,): one value for each sample.

    Raises
    ------
    ValueError
        For fewer than 3 classes.

    References
    ----------
    Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", ICML, arXiv 2003.01690.

    Examples
    --------
    >>> import torch
    >>> z, y = torch.tensor([[3.0, 1.0, 0.0, -1.0], [0.0, 2.0, 1.0, 1.0]]), torch.tensor([0, 2])
    >>> from atent.losses import dlr
    >>> dlr(z, y)
    tensor([-0.6667,  1.0000])
    """
    z = wide(logits)
    if z.shape[1] < 3:
        raise ValueError(f"the DLR loss needs at least 3 classes, got {z.shape[1]}: use the margin loss")
    own, other = _true_and_best_other(z, y)
    top = z.topk(3, dim=1).values
    return (other - own) / (top[:, 0] - top[:, 2] + 1e-12)


def dlr_targeted(logits: Tensor, y: Tensor, target: Tensor) -> Tensor:
    """Targeted difference of logits ratio, -(z_y - z_t) / (z_(1) - (z_(3) + z_(4)) / 2), for target classes t.

    It is invariant to shifts and positive rescalings of the logits.

    Parameters
    ----------
    logits
        Logits (n, classes), of any floating-point type.
    y
        True classes (n,), integers.
    target
        Target classes (n,), integers.

    Returns
    -------
    Tensor
        (n,): one value for each sample.

    Raises
    ------
    ValueError
        For fewer than 4 classes.

    References
    ----------
    Croce and Hein 2020, "Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free
    attacks", ICML, arXiv 2003.01690.

    Examples
    --------
    >>> import torch
    >>> z, y = torch.tensor([[3.0, 1.0, 0.0, -1.0], [0.0, 2.0, 1.0, 1.0]]), torch.tensor([0, 2])
    >>> from atent.losses import dlr_targeted
    >>> dlr_targeted(z, y, torch.tensor([1, 1]))
    tensor([-0.5714,  0.6667])
    """
    z = wide(logits)
    if z.shape[1] < 4:
        raise ValueError(
            f"the targeted DLR loss needs at least 4 classes, got {z.shape[1]}: use the margin loss or cross-entropy"
        )
    top = z.topk(4, dim=1).values
    return margin_targeted(z, y, target) / (top[:, 0] - 0.5 * (top[:, 2] + top[:, 3]) + 1e-12)


def kl(logits: Tensor, reference: Tensor) -> Tensor:
    """The Kullback-Leibler divergence KL(softmax(reference) || softmax(logits)).

    Parameters
    ----------
    logits, reference
        Logits (n, classes), of any floating-point type.

    Returns
    -------
    Tensor
        (n,): one value for each sample.

    Examples
    --------
    >>> import torch
    >>> from atent.losses import kl
    >>> z = torch.tensor([[3.0, 1.0, 0.0]])
    >>> kl(z, z), kl(z, 0 * z)
    (tensor([0.]), tensor([0.7379]))
    """
    return F.kl_div(
        F.log_softmax(wide(logits), 1), F.log_softmax(wide(reference), 1), reduction="none", log_target=True
    ).sum(1)


def boosted_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """The boosted cross-entropy of MART, -log p_y - log(1 - max_{i != y} p_i).

    Parameters
    ----------
    logits
        Logits (n, classes), of any floating-point type.
    y
        True classes (n,), integers.

    Returns
    -------
    Tensor
        (n,): one value for each sample.

    References
    ----------
    Wang, Zou, Yi, Bailey, Ma and Gu 2020, "Improving adversarial robustness requires revisiting misclassified
    examples", ICLR.

    Examples
    --------
    >>> import torch
    >>> z, y = torch.tensor([[3.0, 1.0, 0.0, -1.0], [0.0, 2.0, 1.0, 1.0]]), torch.tensor([0, 2])
    >>> from atent.losses import boosted_cross_entropy
    >>> boosted_cross_entropy(z, y)
    tensor([0.3045, 2.3911])
    """
    log_p = F.log_softmax(wide(logits), 1)
    own = log_p.gather(1, y[:, None]).squeeze(1)
    other = log_p.scatter(1, y[:, None], float("-inf")).argmax(1)
    # 1 - p is the sum of all the others' probabilities: exact, and finite where p rounds to 1.
    return -own - log_p.scatter(1, other[:, None], float("-inf")).logsumexp(1)


def nt_xent(first: Tensor, second: Tensor, temperature: float = 0.5) -> Tensor:
    """The normalised temperature-scaled cross-entropy of n pairs, the mean of a pair's two views, (n,).

    With unit vectors z of all 2n views and s_ij = z_i^T z_j, view i costs
    -s_i,pos(i) / T + log sum_{k != i} exp(s_ik / T): the cross-entropy of the similarities with -inf on the diagonal.

    Parameters
    ----------
    first, second
        Embeddings (n, d) of the two views, of any length; row i of one is the pair of row i of the other.
    temperature
        T, above 0.

    Returns
    -------
    Tensor
        (n,): one value for each pair.

    Raises
    ------
    ValueError
        For fewer than two pairs, which have no negatives.

    References
    ----------
    Chen, Kornblith, Norouzi and Hinton 2020, "A simple framework for contrastive learning of visual representations",
    ICML, arXiv 2002.05709.

    Examples
    --------
    >>> import torch
    >>> from atent.losses import nt_xent
    >>> views = torch.eye(2)
    >>> nt_xent(views, views)
    tensor([0.2395, 0.2395])
    """
    n = len(first)
    if n < 2:
        raise ValueError(f"NT-Xent compares 2 pairs of views or more, got {n}: use a batch of at least 2 images")
    z = F.normalize(wide(torch.cat([first, second])), dim=1)
    similar = (z @ z.t()) / temperature
    # The self term is masked: subtracting exp(1/T) is exact only where a cosine of 1 is.
    own = torch.eye(2 * n, dtype=torch.bool, device=z.device)
    pair = torch.arange(2 * n, device=z.device).roll(n)
    each = F.cross_entropy(similar.masked_fill(own, float("-inf")), pair, reduction="none")
    return (each[:n] + each[n:]) / 2


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ce": cross_entropy,
    "margin": margin,
    "dlr": dlr,
}
"""The losses of logits and labels that an attack can maximise, by name."""
