"""Certify a network: verified accuracy by bounds in linf, certified accuracy by randomised smoothing in l2."""

import atent
from atent import Threat
from atent.certify import Smoothed, verified
from atent.data import DataSettings, load


def main(images: int = 100, n: int = 1000) -> tuple[float, float]:
    """Return the verified and the certified accuracy."""
    model = atent.load("zoo:digits-linf-crown-ibp")  # part of the package
    x, y = load(DataSettings("digits")).sample("test", images).batch(range(images))

    threat = Threat("linf", 0.1)
    by_bounds = verified(model, x, y, threat, "crown").double().mean().item()
    print(f"verified accuracy within linf {threat.eps}: {by_bounds:.1%}")

    # The most frequent class under Gaussian noise, and the radius within which it does not change.
    classes, radii = Smoothed(model, sigma=0.25).certify(x, n=n)
    by_smoothing = ((classes == y) & (radii >= 0.25)).double().mean().item()
    print(f"certified accuracy within l2 0.25: {by_smoothing:.1%} (confidence of each radius: 99.9 %)")
    return by_bounds, by_smoothing


if __name__ == "__main__":
    main()
