"""A training method in 40 lines: adversarial logit pairing (Kannan, Kurakin and Goodfellow 2018).

The loss is the cross-entropy on adversarial inputs, plus the squared distance between the logits of an image and of its
adversarial version. `atent train digits-linf-pgdat --method.name own_method:LogitPairing` trains with it as well.
"""

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, mse_loss

from atent import Threat
from atent.attacks import PGD
from atent.data import DataSettings, load
from atent.methods import Method
from atent.models import build
from atent.testing import check_method
from atent.train import TrainSettings, fit


@dataclass(frozen=True)
class LogitPairing(Method):
    """Adversarial logit pairing."""

    threat: Threat
    steps: int = 10
    """Number of gradient steps."""
    weight: float = 0.5
    """Weight of the squared distance between the logits."""

    def adversary(self, model, x, y, *, rng, ids=None, progress=1.0, state=None):
        return x, PGD(self.threat, steps=self.steps)(model, x, y, rng=rng)

    def loss(self, model, x, y, aux, *, progress=1.0, state=None):
        clean, adversarial = (model(each) for each in aux)
        robust = (adversarial.argmax(1) == y).double().mean()
        return cross_entropy(adversarial, y) + self.weight * mse_loss(adversarial, clean), {"robust": robust}


def main(epochs: int = 20) -> float:
    """Train, and return the validation accuracy under PGD."""
    method = LogitPairing(Threat("linf", 0.1))
    check_method(method)  # the contract of every built-in method
    torch.manual_seed(0)
    fitted = fit(build("digits_cnn"), load(DataSettings("digits")), method, settings=TrainSettings(epochs=epochs))
    return fitted.best["validation_robust"]


if __name__ == "__main__":
    print(f"validation accuracy under PGD: {main():.1%}")
