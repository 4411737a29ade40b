"""ATENT in a plain PyTorch training loop, on scikit-learn's digits."""

import torch

from atent import Threat
from atent.attacks import PGD
from atent.data import DataSettings, load
from atent.methods import ATENT
from atent.models import build


def main(epochs: int = 5) -> float:
    """Train, and return the share of test images that remain correctly classified under PGD."""
    torch.manual_seed(0)
    data, model, threat = load(DataSettings("digits")), build("digits_cnn"), Threat("linf", 0.1)
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    method = ATENT(threat, steps=5)
    for _ in range(epochs):
        for index in torch.randperm(len(data.train)).split(64):
            x, y = data.train.batch(index)
            optimizer.zero_grad()
            loss, _ = method(model.train(), x, y)
            loss.backward()
            optimizer.step()
    x, y = data.test.batch(torch.arange(len(data.test)))
    robust = 1 - PGD(threat, steps=20).run(model, x, y).success.double().mean().item()
    print(f"loss {loss.item():.3f}, robust accuracy under PGD-20: {robust:.3f}")
    return robust


if __name__ == "__main__":
    main()
