"""TRADES with the predictions of another network instead of labels, for mostly unlabelled training sets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from atent.checks import check_number
from atent.data import Data
from atent.guard import ask
from atent.losses import cross_entropy, kl
from atent.messages import report_idle
from atent.methods.base import Method, Metrics, State, method
from atent.methods.trades import TRADES, combined
from atent.runs.loading import load
from atent.threat import Threat

# Images per pass of the teacher.
_BATCH = 500


@method
@dataclass(frozen=True)
class DistilledTRADES(Method):
    """TRADES on a teacher's predictions: the adversarial fine-tuning of semi-supervised ACL (after Jiang et al. 2020).

    With t the teacher's logits on the clean training image, the loss of a sample is

        (1 - share) CE(f(x), argmax t) + share tau^2 KL(softmax(t / tau) || softmax(f(x) / tau))
            + beta KL(f(x) || f(x'))

    the cross-entropy of its pseudo-label, distillation at the temperature tau (Hinton et al. 2015), and the robust part
    of TRADES, with its adversary. The teacher is evaluated once, before the first step, on images without augmentation;
    its logits are saved with the run, which therefore resumes without it. Labels of the training set are used only for
    the reported accuracies. Without a teacher the labels are used: `TRADES`. A loop of your own passes the sample
    numbers ``ids``, and the result of `prepare` as ``state``; with a teacher and without either, ValueError.

    Deviations from the authors' code (VITA-Group/Adversarial-Contrastive-Learning), which the form above simplifies: it
    evaluates the cross-entropy and the distillation at x', and f(x) is only an argument of the KL; x' is the end of PGD
    on the cross-entropy, from a uniform start; a batch has a constant share of labelled images, whose cross-entropy is
    that of the label, and the other images have the distillation alone, with weight 1; tau is 1.

    References
    ----------
    Jiang, Chen, Chen and Wang 2020, "Robust pre-training by adversarial contrastive learning", NeurIPS, arXiv
    2010.13337.

    Zhang, Yu, Jiao, Xing, El Ghaoui and Jordan 2019, "Theoretically principled trade-off between robustness and
    accuracy", ICML, arXiv 1901.08573.

    Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network", arXiv 1503.02531.

    Examples
    --------
    >>> import torch
    >>> from atent import Threat
    >>> from atent.methods import DistilledTRADES
    >>> from atent.models import build
    >>> x, y = torch.rand(8, 1, 8, 8), torch.arange(8)
    >>> net = build("digits_cnn", shape=(1, 8, 8))
    >>> metrics = DistilledTRADES(Threat("linf", 0.1), steps=2).backward(net, x, y)  # leaves the gradient in .grad
    >>> sorted(metrics)
    ['clean', 'clean_loss', 'loss', 'robust', 'robust_loss']
    """

    threat: Threat
    """Ball of the adversary: linf or l2."""
    teacher: str | None = None
    """Run folder of the teacher, for example of standard training on few labels. Default: the labels are used."""
    share: float = 0.5
    """Weight of the distillation relative to the pseudo-labels, in [0, 1]."""
    temperature: float = 2.0
    """tau of the distillation, above 0."""
    steps: int = 10
    """Number of gradient steps of the adversary."""
    step_size: float | None = None
    """Length of a step in pixel units; default: 2.5 eps / steps."""
    beta: float = 6.0
    """Weight of the robust part, at least 0."""
    eps_warmup: float = 0.0
    """Share of the training over which eps grows linearly from 0."""

    def __post_init__(self) -> None:
        check_number("share", self.share, 0, 1)
        check_number("temperature", self.temperature, 0, above=True)
        self._trades()
        taught = ("set teacher", self.teacher is not None)
        report_idle(self, "DistilledTRADES.", [("share", *taught), ("temperature", *taught)])

    def _trades(self) -> TRADES:
        return TRADES(self.threat, self.steps, self.step_size, self.beta, eps_warmup=self.eps_warmup)

    def prepare(self, data: Data) -> State:
        """``teacher``: its logits on the training images, (n, classes).

        ValueError or FileNotFoundError, in one line, if it is not a run folder, or of another task.
        """
        if self.teacher is None:
            return {}
        train = data.train
        model = load(self.teacher, device=str(train.x.device))
        answers = []
        with torch.no_grad():
            for part in torch.arange(len(train), device=train.x.device).split(_BATCH):
                answers.append(ask(model, train.batch(part)[0]))
        found = torch.cat(answers)
        if found.shape[1] != data.classes:
            raise ValueError(f"the teacher {self.teacher} has {found.shape[1]} classes, the data have {data.classes}")
        return {"teacher": found}

    def adversary(
        self, model: nn.Module, x: Tensor, y: Tensor, *, rng: torch.Generator,
        ids: Tensor | None = None, progress: float = 1.0, state: State | None = None,
    ) -> tuple[Tensor | None, Tensor | None]:  # fmt: skip
        """x' (None where beta is 0) and the teacher's logits (None without one)."""
        known = None if not state or "teacher" not in state or ids is None else state["teacher"][ids]
        if known is None and self.teacher is not None:
            raise ValueError(
                f"the predictions of the teacher {self.teacher} are missing: give ids, and state=method.prepare(data)"
            )
        return self._trades().adversary(model, x, y, rng=rng, progress=progress), known

    def points(self, x: Tensor, aux: Any) -> Tensor | None:
        perturbed: Tensor | None = aux[0]
        return perturbed

    def loss(
        self, model: nn.Module, x: Tensor, y: Tensor, aux: Any, *, progress: float = 1.0, state: State | None = None
    ) -> tuple[Tensor, Metrics]:
        perturbed, known = aux

        def fit(logits: Tensor) -> Tensor:
            hard = cross_entropy(logits, y if known is None else known.argmax(1)).mean()
            if known is None or not self.share:
                return hard
            tau = self.temperature
            soft = tau**2 * kl(logits / tau, known.to(logits) / tau).mean()
            return (1 - self.share) * hard + self.share * soft

        return combined(model, x, y, perturbed, self.beta, fit)
