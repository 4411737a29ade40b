"""The common part of the masking checks: correctly classified samples, cached attacks, paired comparisons."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from atent.attacks.base import Attack
from atent.attacks.oracle import Loss, Oracle
from atent.attacks.spec import as_attack
from atent.checks import check_logits, check_number, check_seed, check_threat
from atent.data.split import spread
from atent.evaluate.outcomes import attacked
from atent.evaluate.samples import Checked, checked
from atent.guard import ask, guard
from atent.precision import full_precision
from atent.rng import narrow
from atent.stats import share, sign_test
from atent.threat import Threat

SAMPLES = 100
"""The largest number of samples of the checks, a class-stratified subset of those given."""
LEVEL = 0.01
"""Significance level of paired differences."""
SLACK = 0.05
"""Share of the samples that a stronger attack may fool in addition, at the lower end of the 95 % interval."""


@dataclass(frozen=True, eq=False)
class Subject:
    """A model and n samples that it classifies correctly, under a threat; results of attacks are cached."""

    model: nn.Module
    threat: Threat
    attack: Attack
    """The attack whose settings are checked."""
    x: Tensor
    """Inputs (n, ...) in the box, correctly classified."""
    y: Tensor
    """True labels (n,)."""
    ids: Tensor
    """Sample numbers (n,), int64."""
    logits: Tensor
    """Logits (n, classes) without an attack."""
    seed: int
    batch: int
    _done: dict[str, tuple[Attack, Tensor, Tensor]] = field(default_factory=dict)

    @property
    def n(self) -> int:
        return len(self.x)

    def run(self, attack: Attack) -> tuple[Tensor, Tensor]:
        """Which samples are robust (bool) and the norm of each perturbation (float64), both (n,)."""
        if repr(attack) not in self._done:
            outcomes = [
                attacked(attack, self.model, self.x[part], self.y[part], seed=self.seed, ids=self.ids[part])
                for part in torch.arange(self.n, device=self.x.device).split(self.batch)
            ]
            robust = ~torch.cat([o.success for o in outcomes])
            self._done[repr(attack)] = attack, robust, torch.cat([o.norm for o in outcomes])
        return self._done[repr(attack)][1:]

    def robust(self, attack: Attack) -> Tensor:
        """Which samples remain correctly classified, bool (n,)."""
        return self.run(attack)[0]

    def robust_to_all(self) -> Tensor:
        """Which samples are robust to every attack that was run within the threat, bool (n,)."""
        runs = [robust for attack, robust, _ in self._done.values() if attack.threat == self.threat]
        return torch.stack(runs).all(0)

    def gradient(self, loss: Loss) -> Tensor:
        """Input gradient of each sample's loss, the shape of x, in the precision in which the model is evaluated."""
        return gradient(self.model, self.x, self.y, loss, seed=self.seed, batch=self.batch)


def subject(
    model: nn.Module, x: Tensor | Checked, y: Tensor | None, threat: Threat, attack: Attack, seed: int,
    ids: Tensor | None, batch: int,
) -> Subject:  # fmt: skip
    """The subject for at most `SAMPLES` of the samples; ValueError, in one line, for what cannot be evaluated."""
    check_threat(threat)
    if not 0 < float(threat.eps) < math.inf:
        raise ValueError(f"masking checks need a finite eps above 0, got {threat.eps}")
    if as_attack(attack).threat != threat:
        raise ValueError(f"the attack's threat is {attack.threat}, the checks' is {threat}: give both the same threat")
    batch, seed = check_number("batch", batch, 1, whole=True), narrow(check_seed(seed))
    samples = checked(model, x, y, ids, {threat.box})
    x, y, ids = samples.x, samples.y, samples.ids
    threat.check_eps(x.shape[1:])
    count = min(SAMPLES, len(x))
    few = torch.arange(count, device=x.device)
    if len(x) > count:
        few = torch.from_numpy(spread(y.cpu().numpy(), (0,), ids.cpu().numpy())[:count]).to(x.device)
    x, y, ids = threat.clamp(x[few].detach()), y[few].long(), ids[few]
    logits = forward(model, x, seed=seed, batch=batch)
    if not looks_like_probabilities(logits):  # probabilities are a failed check, not an error
        check_logits(logits, y)
    right = (logits.argmax(1) == y).nonzero().squeeze(1)
    if not len(right):
        raise ValueError(f"the model classifies none of {count} samples correctly: the checks need one")
    return Subject(model, threat, attack, x[right], y[right], ids[right], logits[right], seed, batch)


@torch.no_grad()
def forward(model: nn.Module, x: Tensor, *, seed: int, batch: int) -> Tensor:
    """Logits in eval mode and full precision; a random model has the same random numbers at each call."""
    with guard(model, mode="eval", seed=seed), full_precision(x.device):
        return torch.cat([ask(model, part) for part in x.split(batch)])


def gradient(model: nn.Module, x: Tensor, y: Tensor, loss: Loss, *, seed: int, batch: int) -> Tensor:
    """Input gradient of each sample's loss in eval mode and full precision; ValueError where the model has none."""
    with guard(model, mode="eval", seed=seed), full_precision(x.device):
        oracle = Oracle(model, *torch.zeros(2, 1, dtype=torch.int64, device=x.device), check=False)
        return torch.cat([oracle.gradient(a, b, loss)[0] for a, b in zip(x.split(batch), y.split(batch))])


def looks_like_probabilities(logits: object) -> bool:
    """Whether every output lies in [0, 1], as after a softmax or a sigmoid."""
    return isinstance(logits, Tensor) and logits.dim() == 2 and bool(((logits >= 0) & (logits <= 1)).all())


def weaker(attack: Tensor, rival: Tensor) -> bool:
    """Whether significantly more samples are robust to an attack than to a rival that should not be stronger.

    ``attack`` and ``rival`` are verdicts on the same samples, bool (n,), true where one is robust. Only samples on
    which they differ count (sign test).
    """
    return sign_test(int((attack & ~rival).sum()), int((rival & ~attack).sum())) < LEVEL


def gained(before: Tensor, after: Tensor) -> tuple[int, bool]:
    """The number of samples that are robust ``before`` and not ``after`` more attacks, and whether it is too large."""
    lost = int((before & ~after).sum())
    return lost, share(lost, len(before))["low"] > SLACK
