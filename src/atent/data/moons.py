"""Two interleaved half circles in the plane, small enough to draw a decision boundary over."""

import hashlib

from atent.data.files import record
from atent.data.sources import dataset
from atent.data.split import Source, halves

POINTS = 3000
TEST = 1000
NOISE = 0.1
SEED = 20210
BOX = (-2.0, 3.0)
# Another C library may round a sine differently; `verified` is then false.
KNOWN = "e2861e2ec838424be47a11d7480ea020030499f8c21aafaea029e8e651827dca"


@dataset
def moons(root: str | None = None) -> Source:
    """2000 training and 1000 test points, x float32 (n, 2), two classes; `root` is not used.

    The half circles have radius 1 and are in [-1, 2] x [-0.5, 1]; Gaussian noise of standard deviation 0.1
    is added. The box [-2, 3] contains both coordinates with a margin of at least ten standard deviations around
    the curves, so that it is never active for radii below 0.5. Points and test set come from constant seeds.
    """
    from sklearn.datasets import make_moons

    x, y = make_moons(POINTS, noise=NOISE, random_state=SEED)
    train, test = halves(x, y, None, TEST, SEED)
    digest = hashlib.sha256(x.astype("<f4").tobytes() + y.astype("u1").tobytes()).hexdigest()
    return Source(
        classes=2,
        train=train,
        test=test,
        validation=200,
        box=BOX,
        about={
            "source": f"sklearn.datasets.make_moons({POINTS}, noise={NOISE}, random_state={SEED})",
            "files": {"make_moons": record(digest, KNOWN)},
            "test": f"stratified split by the constant seed {SEED}",
            "class_names": ["upper", "lower"],
        },
    )
