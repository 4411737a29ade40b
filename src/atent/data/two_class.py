"""Digits 5 against 8 in the plane: t-SNE of MNIST's test images, the data of the paper's Figure 1."""

import io
import json
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from atent import runs as folder
from atent.data import checks
from atent.data.arrays import arrays
from atent.data.files import data_root, record
from atent.data.mnist import mnist
from atent.data.sources import dataset
from atent.data.split import Source, Split, halves

DIGITS = (5, 8)
TEST_SHARE = 0.3
SPLIT_SEED = 20210
BOX = 10.0


@dataclass(frozen=True)
class Embedding:
    """Settings of the t-SNE; default: those of the paper's notebook, as far as it states them.

    It states perplexity 40, 300 iterations and all ten digits of the 10,000 test images; initialisation and learning
    rate were the defaults of scikit-learn at that time, the seed was not set. 250 of the 300 iterations are the early
    exaggeration, so the figure shows an embedding stopped early.
    """

    points: int = 10_000
    """Number of test images, the first ones, of all ten digits."""
    perplexity: float = 40.0
    iterations: int = 300
    learning_rate: float = 200.0
    init: str = "random"
    seed: int = 2
    """Not from the paper: of 0, 1 and 2 the first with which all points of both digits are in the figure's box, [-10,
    10]."""


def embed(settings: Embedding, root: str | None = None) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Coordinates float32 (points, 2) and digits (points,) of MNIST's first test images, and their provenance.

    About 28 s on one core for 10,000 images. The points differ between machines: t-SNE amplifies rounding.
    Raises FileNotFoundError without MNIST, ValueError for a number of points that t-SNE or the split does not allow.
    """
    import sklearn
    from sklearn.manifold import TSNE

    source = mnist(root)
    n = len(source.test)
    least = int(3 * settings.perplexity) + 1
    if not least <= settings.points <= n:
        raise ValueError(f"points must be {least} to {n} at perplexity {settings.perplexity:g}, got {settings.points}")
    x = source.test.x[: settings.points].flatten(1).numpy().astype(np.float32) / 255
    tsne = TSNE(
        n_components=2, perplexity=settings.perplexity, max_iter=settings.iterations, init=settings.init,
        learning_rate=settings.learning_rate, random_state=settings.seed, n_jobs=1,
    )  # fmt: skip
    z = tsne.fit_transform(x).astype(np.float32)
    about = {
        "embedding": asdict(settings), "divergence": float(tsne.kl_divergence_), "scikit-learn": sklearn.__version__,
        "images": source.about["files"],
    }  # fmt: skip
    return z, source.test.y[: settings.points].numpy(), about


def cached(where: str | Path, settings: Embedding | None = None, root: str | None = None) -> Path:
    """The .npz of `embed`'s points in the folder ``where``, computed if absent; its name is a hash of the settings.
    `two_class` accepts it as its root. Raises as `embed`, and OSError."""
    settings = settings or Embedding()
    key = sha256(folder.dumps({"embedding": settings, "digits": DIGITS}).encode()).hexdigest()[:12]
    path = Path(where) / f"two-class-{key}.npz"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        _save(path, *embed(settings, root))
    return path


def _save(path: Path, z: np.ndarray, digits: np.ndarray, about: dict[str, Any]) -> None:
    out = io.BytesIO()
    np.savez(out, z=z, digits=digits, about=np.array(json.dumps(about)))
    with folder.atomic(path) as temporary:
        temporary.write_bytes(out.getvalue())


@dataset("two-class")
def two_class(root: str | None = None) -> Source:
    """Two classes, digit 5 (class 0) and digit 8, x float32 (n, 2): with all test images 1866 points, 559 for the test.

    ``root`` is the folder of MNIST, or a file that `cached` wrote, which saves the half minute of t-SNE. The points are
    t-SNE's coordinates, not scaled; the box is [-10, 10], enlarged to the next integer if a point is outside. 30 % of
    the points are the test set, stratified by class with a constant seed; ids are positions in MNIST's test file. The
    paper's permutation had no seed, so its split is unavailable.
    Raises FileNotFoundError, or ValueError for a file without such points.
    """
    path = data_root(root)
    if path.suffix == ".npz":
        z, digits, about, files = _read(path)
    else:
        z, digits, about = embed(Embedding(), root)
        digest = sha256(z.astype("<f4").tobytes() + digits.astype("u1").tobytes()).hexdigest()
        files = {"t-sne": record(digest, None)}
    ours = np.flatnonzero(np.isin(digits, DIGITS))
    x, y = z[ours], (digits[ours] == DIGITS[1]).astype(np.int64)
    checks.every_class("two-class", y, 2)
    train, test = halves(x, y, None, int(TEST_SHARE * len(y)), SPLIT_SEED)
    # `halves` numbers the points of both digits; ids are positions in MNIST's file.
    train, test = (_numbered(part, ours) for part in (train, test))
    edge = max(BOX, float(np.ceil(np.abs(x).max())))
    e = about["embedding"]
    return Source(
        classes=2,
        train=train,
        test=test,
        validation=max(2, len(train) // 10),
        box=(-edge, edge),
        about={
            "source": f"t-SNE (perplexity {e['perplexity']:g}, {e['iterations']} iterations, seed {e['seed']}) of the"
            f" first {e['points']} MNIST test images, digits {DIGITS[0]} and {DIGITS[1]}",
            "files": files,
            "test": f"stratified split by the constant seed {SPLIT_SEED}",
            "class_names": [str(digit) for digit in DIGITS],
            **about,
        },
    )


def _numbered(part: Split, numbers: np.ndarray) -> Split:
    return replace(part, ids=torch.from_numpy(numbers)[part.ids])


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, Any], dict[str, Any]]:
    if not path.is_file():
        raise FileNotFoundError(f"two-class: {path} does not exist: give the folder of MNIST, or a file of points")
    found, digest = arrays(path, ("z", "digits", "about"))
    z, digits = found["z"], found["digits"]
    try:
        about = json.loads(str(found["about"]))
        _check_about(about["embedding"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no points of digits ({' '.join(str(error).split())})") from error
    if z.dtype != np.float32 or z.shape != (len(digits), 2):
        raise ValueError(f"{path}: coordinates are {z.dtype} {z.shape}; wanted float32 ({len(digits)}, 2)")
    checks.labels(path, digits, len(z), 10)
    checks.floats(path, z, (-1e6, 1e6))
    return z, digits, about, {path.name: record(digest, None)}


def _check_about(embedding: dict[str, Any]) -> None:
    """ValueError unless the file states the settings of its points, as numbers."""
    for name in ("perplexity", "iterations", "seed", "points"):
        if not isinstance(embedding[name], int | float):
            raise ValueError(f"{name} is not a number")
