"""ATENT in a LightningModule: `training_step` returns the loss of the method."""

import lightning
import torch
from torch.utils.data import DataLoader, TensorDataset

from atent import Threat
from atent.attacks import PGD
from atent.data import DataSettings, load
from atent.methods import ATENT, Method
from atent.models import build


class Robust(lightning.LightningModule):
    """A network trained with a method of this library and validated under an attack."""

    def __init__(self, network: torch.nn.Module, method: Method) -> None:
        super().__init__()
        self.network, self.method = network, method

    def training_step(self, batch, index):
        loss, metrics = self.method(self.network, *batch)
        self.log("train_robust", metrics["robust"])
        return loss

    def validation_step(self, batch, index):
        fooled = PGD(self.method.threat, steps=10).run(self.network, *batch).success
        self.log("validation_robust", 1 - fooled.float().mean(), prog_bar=True)

    def configure_optimizers(self):
        return torch.optim.Adam(self.network.parameters(), lr=2e-3)


def main(epochs: int = 5) -> float:
    """Train, and return the validation accuracy under PGD."""
    lightning.seed_everything(0, verbose=False)
    data = load(DataSettings("digits"))
    train, validation = (
        DataLoader(TensorDataset(*part.batch(torch.arange(len(part)))), 64, shuffle=part is data.train)
        for part in (data.train, data.validation)
    )
    robust = Robust(build("digits_cnn"), ATENT(Threat("linf", 0.1), steps=5))
    trainer = lightning.Trainer(
        max_epochs=epochs, accelerator="cpu", logger=False, enable_checkpointing=False, enable_model_summary=False
    )
    trainer.fit(robust, train, validation)
    return float(trainer.callback_metrics["validation_robust"])


if __name__ == "__main__":
    print(f"validation accuracy under PGD-10: {main():.3f}")
