"""Image data sets of the Hugging Face Hub, or of its formats on disk, through its package `datasets`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from atent.data import checks
from atent.data.folder import in_arrays
from atent.data.images import Listing, pillow
from atent.data.reading import MEMORY, Reading
from atent.data.split import Source, split
from atent.registry import first_line

PREFIX = "hf:"
_IMAGES, _LABELS = ("image", "img"), ("label", "fine_label")
_TESTS = ("test", "validation", "valid")


def find(name: str) -> Callable[..., Source]:
    """The loader of ``hf:NAME``, of the Hub, or ``hf:/PATH``, of a folder or a parquet file.

    x: (n, 1, h, w) if all images are greyscale, else (n, 3, h, w); uint8, scale 255, in memory. ids are positions in
    the split. The test set is the split test, else validation or valid.
    """

    def hugging_face(reading: Reading = MEMORY) -> Source:
        return _source(name, reading)

    return hugging_face


def _source(name: str, reading: Reading) -> Source:
    if (reading.cache, reading.workers) != (None, None) or reading.resident is False:
        raise ValueError(f"data.resident false, data.cache and data.workers have no effect for {name}: it is in memory")
    pillow()
    rows = _opened(name)
    test = next((part for part in _TESTS if part in rows), None)
    if "train" not in rows or test is None:
        raise ValueError(f"{name}: splits {', '.join(rows) or 'none'}; wanted train and one of {', '.join(_TESTS)}")
    image, label = _columns(name, rows["train"].features)
    parts: dict[str, Listing] = {
        part: _encoded(f"{name}: split {part}", rows[part], image, label) for part in ("train", test)
    }
    classes = len(parts["train"].classes) or int(parts["train"].labels.max()) + 1
    for part, each in parts.items():
        checks.labels(f"{name}: split {part}: {label}", each.labels, len(each), classes)
    checks.every_class(f"{name}: split train: {label}", parts["train"].labels, classes)
    found = in_arrays(parts, reading.size, 1)
    splits = {part: split(found[part][0].numpy(), each.labels, 255.0) for part, each in parts.items()}
    sized = {} if reading.size is None else {"size": reading.size}
    return Source(
        classes=classes,
        train=splits["train"],
        test=splits[test],
        validation=min(1000, max(1, len(splits["train"]) // 10)),
        about={
            "source": name,
            "files": {
                part: {"sha256": found[part][1], "verified": False, "files": len(each)} for part, each in parts.items()
            },
            "test": test,
            "class_names": parts["train"].classes or None,
            **sized,
        },
    )


def _opened(name: str) -> Mapping[str, Any]:
    """The splits; a name that starts with /, . or ~ is a path. Errors are one line."""
    try:
        import datasets
    except ImportError as error:
        raise ImportError(f"{name} needs the package datasets: pip install 'atent[hf-data]'") from error
    given = name.removeprefix(PREFIX)
    path = Path(given).expanduser()
    local = given.startswith(("/", ".", "~"))
    if not given or (local and not path.exists()):
        raise FileNotFoundError(
            f"{name}: not found; wanted hf:NAME of the Hub, or hf:/PATH of a folder or parquet file"
        )
    try:
        if local and any((path / file).is_file() for file in ("dataset_dict.json", "state.json")):
            found = datasets.load_from_disk(str(path))
        elif local and path.is_file():
            found = datasets.load_dataset("parquet", data_files=str(path))
        else:
            found = datasets.load_dataset(str(path) if local else given)
    # The package reports errors, those of the network included, by exceptions of many types.
    except Exception as error:
        raise ValueError(f"{name}: datasets raised {first_line(error)}") from error
    if not isinstance(found, Mapping):
        raise ValueError(f"{name}: a single split; wanted a DatasetDict of train and one of {', '.join(_TESTS)}")
    return found


def _columns(name: str, features: Mapping[str, Any]) -> tuple[str, str]:
    """The columns of the images and of the labels: by type, and by their usual names if several have that type."""
    kinds = {column: type(feature).__name__ for column, feature in features.items()}
    images = [column for column, kind in kinds.items() if kind == "Image"]
    labels = [column for column, kind in kinds.items() if kind == "ClassLabel"]
    labels = labels or [c for c in _LABELS if "int" in str(getattr(features.get(c), "dtype", ""))]
    chosen = []
    for what, known, usual in (("images", images, _IMAGES), ("labels", labels, _LABELS)):
        named = [column for column in usual if column in known]
        if not named and len(known) != 1:
            listed = ", ".join(f"{column} ({kind})" for column, kind in kinds.items())
            raise ValueError(f"{name}: no column of {what}, named {' or '.join(usual)}, among {listed}")
        chosen.append((named or known)[0])
    return chosen[0], chosen[1]


@dataclass(frozen=True, eq=False)
class _Encoded(Listing):
    """Image files in the rows of a split."""

    rows: Any

    def source(self, i: int) -> Any:
        return BytesIO(self.content(i))

    def content(self, i: int) -> bytes:
        (value,) = self.rows[i].values()
        if not value or not (value["bytes"] or value["path"]):
            raise ValueError(f"{self.root / self.names[i]}: no image")
        try:
            return bytes(value["bytes"] or Path(value["path"]).read_bytes())
        except OSError as error:
            raise ValueError(
                f"{self.root / self.names[i]}: {value['path']} cannot be read ({error.strerror})"
            ) from error


def _encoded(what: str, rows: Any, image: str, label: str) -> Listing:
    import datasets

    for column in (image, label):
        if column not in rows.features:
            raise ValueError(f"{what} has no column {column}, which train has")
    kept = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))
    y = np.array(rows.with_format(None).select_columns([label])[:][label])
    checks.labels(f"{what}: {label}", y, len(rows))
    names = [f"row {i}" for i in range(len(rows))]
    classes = list(getattr(rows.features[label], "names", None) or [])
    return _Encoded(Path(what), names, y, np.zeros((0, 2), np.int64), classes, kept)
