"""Adversarial contrastive learning: robust pre-training without labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from atent.attacks.starts import check_step, report_path, start
from atent.checks import check_number
from atent.data.views import Views
from atent.distributed import gathered
from atent.guard import ask, guard
from atent.losses import cross_entropy, nt_xent
from atent.methods.base import Method, Metrics, State, check_budget, check_reach, check_warmup, correct, method, warm
from atent.models.dual import Branch, branch
from atent.rng import Batch, seed_from
from atent.threat import Threat

Variant = Literal["S2S", "A2S", "A2A", "DS"]
# Branches that a variant trains.
TRAINED: dict[str, str] = {"S2S": "n", "A2S": "na", "A2A": "a", "DS": "na"}
Embed = Callable[[Tensor, Branch], Tensor]
"""(views, branch) -> embeddings."""


class Pairs(NamedTuple):
    """The views of a batch of n images."""

    clean: Tensor
    """(2n, ...): the first views, then the second ones."""
    perturbed: Tensor | None
    """Adversarial views: of both views (2n, ...), for A2S of the first (n, ...), for S2S None."""


@method
@dataclass(frozen=True)
class ACL(Method):
    """Contrastive learning of views x1, x2 of each image, with adversarial ones x + d (Jiang et al. 2020).

    Let L be the NT-Xent loss (`atent.losses.nt_xent`) of embeddings, and f_n and f_a the network with separate
    batch-norms for clean and adversarial inputs and all other weights shared. The variants minimise

        S2S  L(f_n(x1), f_n(x2))                   standard to standard: SimCLR
        A2S  L(f_a(x1 + d1), f_n(x2))              adversarial to standard
        A2A  L(f_a(x1 + d1), f_a(x2 + d2))         adversarial to adversarial
        DS   [S2S + A2A] / 2                       dual stream, the best variant in the paper

    The perturbations maximise the adversarial part of that loss over both views jointly, d1 and d2 in the ball around
    their view: ``steps`` of projected steepest ascent from a uniform start, with the network in eval mode. The
    adversary returns the point with the highest batch loss among the views themselves and all iterates, so it never
    lowers the loss. The loss does not use labels.

    The network has a projection head, `atent.models.contrastive.Contrastive` (``model.projection`` in a recipe). Its
    last linear layer is trained simultaneously as a linear probe: cross-entropy on detached features. The other weights
    therefore do not depend on labels, and the validation accuracies are those of a linear classifier on the current
    features. The reported loss is the contrastive loss alone. Select the last epoch (``select = "last"``) for a
    selection without labels. For unlabelled images give zeros; the probe then has no meaning. For networks without a
    projection head, the logits are the embeddings.

    Metrics: ``clean`` and ``robust``, the probe's accuracy on clean and perturbed views; ``clean_loss`` and
    ``robust_loss``, the two parts of DS; ``alignment``, the mean cosine of a pair. Passes of 2n views: ``steps`` + 2
    forwards and ``steps`` backwards of the adversary, one of each per stream.

    Deviations from the authors' code (VITA-Group/Adversarial-Contrastive-Learning): it trains on the last iterate; its
    start is not clamped to the box; it interleaves the views; its denominator subtracts exp(1/T) instead of omitting
    the self term. The batch-norms that A2S uses for its clean view are this library's reading. A schedule that weakens
    crops and colours over the training (DYNACL, Luo et al. 2023) is not implemented.

    References
    ----------
    Jiang, Chen, Chen and Wang 2020, "Robust pre-training by adversarial contrastive learning", NeurIPS, arXiv
    2010.13337.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.methods import ACL
    >>> from atent.models import build
    >>> from atent.models.contrastive import Contrastive
    >>> net = Contrastive(build("resnet8", shape=(1, 8, 8)), (64, 32), (1, 8, 8))
    >>> x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    >>> metrics = ACL(Threat("linf", "8/255"), steps=2).backward(net, x, y)
    >>> sorted(metrics)
    ['alignment', 'clean', 'clean_loss', 'loss', 'robust', 'robust_loss']
    """

    # Class attributes without annotations are not dataclass fields. Each view is compared with the others of its batch.
    labelled = False
    divisible = False
    gathers = True

    threat: Threat
    """Ball of the perturbations around each view: linf or l2."""
    variant: Variant = "DS"
    """S2S, A2S, A2A or DS."""
    steps: int = 5
    """Number of gradient steps of the adversary."""
    step_size: float | None = None
    """Length of a step in pixel units; default: 2.5 eps / steps. The paper takes 2/255 at eps 8/255."""
    temperature: float = 0.5
    """T of NT-Xent, above 0."""
    views: Views = field(default=Views())
    """How the two views of an image are made; augmentation of the data (``data.augment``) comes before it."""
    eps_warmup: float = 0.0
    """Share of the training over which eps grows linearly from 0."""

    def __post_init__(self) -> None:
        check_number("steps", self.steps, 1, whole=True)
        check_number("temperature", self.temperature, 0, above=True)
        if self.step_size is not None:
            check_step(self.threat, self.step_size)
            report_path(self.threat, "zero", self.steps, self.step_size)
        check_warmup(self.eps_warmup)
        check_budget(self.threat)
        check_reach(self.threat, self._step(1.0), f"with steps={self.steps} a step_size of")
        if self.views.recolours and self.threat.box != (0.0, 1.0):
            raise ValueError(
                f"colour jitter is defined for pixels in [0, 1], the threat's box is {self.threat.box}: set"
                " views.jitter_probability to 0"
            )

    def _step(self, factor: float) -> float:
        return (2.5 * float(self.threat.eps) / self.steps if self.step_size is None else self.step_size) * factor

    def adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator,
        ids: Tensor | None = None, progress: float = 1.0, state: State | None = None,
    ) -> Pairs:  # fmt: skip
        """Two views of each image, clean and perturbed; the state of the model is restored.

        ValueError for fewer than two images.
        """
        if len(x) < 2:
            raise ValueError(f"NT-Xent needs at least 2 pairs of views, got {len(x)}: use a batch of at least 2 images")
        clean = self.threat.clamp(torch.cat([self.views(x, rng), self.views(x, rng)]))
        if self.variant == "S2S":
            return Pairs(clean, None)
        return Pairs(clean, self.perturb(model, clean, rng=rng, progress=progress))

    def perturb(self, model: nn.Module, clean: Tensor, *, rng: torch.Generator, progress: float = 1.0) -> Tensor:
        """The perturbed views, see `Pairs`: of ``clean`` (2n, ...) in the box, by joint ascent on the batch's loss.

        The model's modes, buffers and ``.grad`` are restored, and so is the global random state.
        """
        factor = warm(self.eps_warmup, progress)
        threat, step, streams = self.threat.scaled(factor), self._step(factor), Batch(rng)
        seed = seed_from(rng)
        origin = clean[: len(clean) // 2] if self.variant == "A2S" else clean
        with guard(model, mode="eval", seed=seed):

            def embed(z: Tensor, which: Branch) -> Tensor:
                return _embedded(model, z, which)[0]

            anchor = None
            if self.variant == "A2S":
                with torch.no_grad():
                    anchor = embed(clean[len(origin) :], "n")
            with torch.no_grad():
                best, top = origin, self._adversarial(embed, origin, anchor, weighted=False)
            z = threat.clamp(start(threat, "uniform", origin, streams))
            for k in range(self.steps + 1):
                last = k == self.steps
                with torch.set_grad_enabled(not last):
                    z = z.detach().requires_grad_(not last)
                    value = self._adversarial(embed, z, anchor, weighted=False)
                better = value.detach() > top
                best, top = torch.where(better, z.detach(), best), torch.where(better, value.detach(), top)
                if not last:
                    grad = torch.autograd.grad(value, z)[0]
                    z = threat.project(z.detach() + step * threat.ascent(grad), origin)
        return best.detach()

    def _adversarial(self, embed: Embed, perturbed: Tensor, anchor: Tensor | None, weighted: bool = True) -> Tensor:
        """L of the perturbed views, against the clean second views' embeddings ``anchor`` in A2S; ``weighted`` if its
        gradient updates the weights (`atent.distributed.gathered`)."""
        z = embed(perturbed, "a")
        first, second = z.chunk(2) if anchor is None else (z, anchor)
        return self._contrast(first, second, weighted)

    def _contrast(self, first: Tensor, second: Tensor, weighted: bool = True) -> Tensor:
        """NT-Xent of the pairs of the full batch, also if several processes share it."""
        first, second = (gathered(z, weighted=weighted) for z in (first, second))
        return nt_xent(first, second, self.temperature).mean()

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        """The contrastive loss of the `Pairs` ``aux``; its gradient contains that of the probe."""
        metrics: Metrics = {}
        probes: list[Tensor] = []

        def embed(z: Tensor, which: Branch) -> Tensor:
            found, logits = _embedded(model, z, which)
            if logits is not None:
                if y is None:
                    raise ValueError("the linear probe of the network needs labels: give zeros for unlabelled images")
                labels = y.repeat(len(logits) // len(y))
                probes.append(cross_entropy(logits, labels).mean())
                metrics["clean" if which == "n" else "robust"] = correct(logits, labels)
            return found

        parts: dict[str, Tensor] = {}
        clean = aux.clean
        if self.variant == "A2S":
            anchor = embed(clean[len(x) :], "n")
            parts["robust_loss"] = self._adversarial(embed, aux.perturbed, anchor)
        if self.variant in ("S2S", "DS"):
            first, second = embed(clean, "n").chunk(2)
            parts["clean_loss"] = self._contrast(first, second)
            metrics["alignment"] = cosine_similarity(first, second).detach().mean()
        if self.variant in ("A2A", "DS"):
            parts["robust_loss"] = self._adversarial(embed, aux.perturbed, None)
        value = torch.stack(list(parts.values())).mean()
        if self.variant == "DS":
            metrics |= {name: part.detach() for name, part in parts.items()}
        if probes:
            probe = torch.stack(probes).mean()
            # Add its gradient but not its value: the reported loss is the contrastive one.
            value = value + (probe - probe.detach())
        return value, metrics


def _embedded(model: nn.Module, x: Tensor, which: Branch) -> tuple[Tensor, Tensor | None]:
    """Embeddings of a copy of ``x`` and the probe's logits; for a network without a head its logits, and None."""
    with branch(model, which):
        contrast = getattr(model, "contrast", None)
        return (ask(model, x), None) if contrast is None else contrast(x.clone())
