"""TRADES in the Trainer of Hugging Face transformers: `compute_loss` returns the loss of the method."""

import tempfile

import torch
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification

from atent import Threat
from atent.attacks import PGD
from atent.data import DataSettings, load
from atent.methods import TRADES, Method
from atent.models import transformers_logits


class RobustTrainer(Trainer):
    """A Trainer that minimises the loss of a method of this library."""

    def __init__(self, *args, method: Method, **given) -> None:
        super().__init__(*args, **given)
        self.method = method
        # The loss is a mean over the batch, so the Trainer must average it over accumulated batches.
        self.model_accepts_loss_kwargs = False

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if not model.training:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        loss, _ = self.method(transformers_logits(model), inputs["pixel_values"], inputs["labels"])
        return loss


class Images(torch.utils.data.Dataset):
    """The images of a split, with the keys that transformers expects."""

    def __init__(self, part) -> None:
        self.x, self.y = part.batch(torch.arange(len(part)))

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, i):
        return {"pixel_values": self.x[i], "labels": self.y[i]}


def main(epochs: float = 5) -> float:
    """Train, and return the share of 100 test images that remain correctly classified under PGD."""
    torch.manual_seed(0)
    data, threat = load(DataSettings("digits")), Threat("linf", 0.1)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = ViTConfig(image_size=8, patch_size=2, num_channels=1, num_labels=10, **size)
    network = ViTForImageClassification(config)
    with tempfile.TemporaryDirectory() as folder:
        settings = TrainingArguments(
            folder, num_train_epochs=epochs, per_device_train_batch_size=64, learning_rate=3e-3, use_cpu=True,
            report_to=[], save_strategy="no", seed=0, disable_tqdm=True,
        )  # fmt: skip
        trainer = RobustTrainer(network, settings, train_dataset=Images(data.train), method=TRADES(threat, steps=5))
        trainer.train()
    x, y = data.test.batch(torch.arange(100))
    return 1 - PGD(threat, steps=10).run(transformers_logits(network), x, y).success.double().mean().item()


if __name__ == "__main__":
    print(f"robust accuracy under PGD-10: {main():.3f}")
