"""The embedded default: 1797 handwritten digits of 8 x 8 pixels that come with scikit-learn."""

import gzip
import hashlib
import importlib.util
from pathlib import Path

import numpy as np

from atent.data.files import record
from atent.data.sources import dataset
from atent.data.split import Source, halves

TEST = 500
TEST_SEED = 20210
KNOWN = "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"


@dataset
def digits(root: str | None = None) -> Source:
    """Digits 0 to 9, x (n, 1, 8, 8) uint8 in 0..16 with scale 16; `root` is not used.

    The source has no official test set: a stratified split by a constant seed gives 1297 training and 500
    test images, the same for every `split_seed`. ids are positions in `sklearn.datasets.load_digits`.
    UCI, Optical Recognition of Handwritten Digits (Alpaydin and Kaynak, 1998), its test part.
    """
    x, y = _arrays()
    train, test = halves(x, y, 16.0, TEST, TEST_SEED)
    digest = hashlib.sha256(x.tobytes() + y.astype(np.uint8).tobytes()).hexdigest()
    return Source(
        classes=10,
        train=train,
        test=test,
        validation=200,
        about={
            "source": "UCI optical recognition of handwritten digits, as in sklearn.datasets.load_digits",
            "files": {"load_digits": record(digest, KNOWN)},
            "test": f"stratified split by the constant seed {TEST_SEED}; the source has no official one",
            "class_names": [str(label) for label in range(10)],
        },
    )


def _arrays() -> tuple[np.ndarray, np.ndarray]:
    """x (1797, 1, 8, 8) uint8 and y (1797,), from the file that `sklearn.datasets.load_digits` reads."""
    # Importing scikit-learn takes a second, half of the start of a training.
    spec = importlib.util.find_spec("sklearn")
    file = Path(*((spec and spec.submodule_search_locations) or [""]), "datasets", "data", "digits.csv.gz")
    if not file.is_file():
        from sklearn.datasets import load_digits

        bunch = load_digits()
        return bunch.images.astype(np.uint8)[:, None], bunch.target
    with gzip.open(file) as lines:
        table = np.loadtxt(lines, delimiter=",", dtype=np.uint8)
    return np.ascontiguousarray(table[:, :-1]).reshape(-1, 1, 8, 8), table[:, -1].astype(np.int64)
