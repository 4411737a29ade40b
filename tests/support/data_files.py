"""Files of the published layouts, small and synthetic."""

import gzip
import lzma
import struct

import numpy as np
import pytest
import torch

CIFAR_BATCHES = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]


def counts(split, classes=10):
    return torch.bincount(split.y, minlength=classes).tolist()


def idx_bytes(array, magic=None):
    magic = magic or (2051 if array.ndim == 3 else 2049)
    return struct.pack(f">{1 + array.ndim}I", magic, *array.shape) + array.astype(np.uint8).tobytes()


def write_idx(folder, pack=True, n=40, test=20, **replaced):
    """Four IDX files of random 5 x 4 images, ten classes in turn; `replaced` sets the bytes of one."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(0)
    arrays = {}
    for part, size in (("train", n), ("t10k", test)):
        arrays[f"{part}_images"] = random.randint(0, 256, (size, 5, 4)).astype(np.uint8)
        arrays[f"{part}_labels"] = np.arange(size) % 10
    for key, array in arrays.items():
        part, kind = key.split("_")
        name = f"{part}-{kind}-idx{3 if kind == 'images' else 1}-ubyte"
        content = replaced.get(key, idx_bytes(array))
        (folder / (name + ".gz" if pack else name)).write_bytes(gzip.compress(content) if pack else content)
    return arrays


def write_cifar(folder, suffix=".bin", n=4, **replaced):
    """Six batches of n random records with labels in turn; returns {batch: (n, 3073) array}."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.RandomState(0)
    batches = {}
    for i, name in enumerate(CIFAR_BATCHES):
        rows = random.randint(0, 256, (n, 3073)).astype(np.uint8)
        rows[:, 0] = (n * i + np.arange(n)) % 10
        batches[name] = rows
        content = replaced.get(name, rows.tobytes())
        (folder / (name + suffix)).write_bytes(lzma.compress(content) if suffix == ".bin.xz" else content)
    return batches


def arrays(n=30, test=9, classes=3, shape=(6, 5), dtype=np.uint8):
    random = np.random.RandomState(0)
    out = {}
    for part, size in (("train", n), ("test", test)):
        x = random.randint(0, 256, (size, *shape))
        out[f"x_{part}"] = x.astype(np.uint8) if dtype == np.uint8 else (x / 255).astype(dtype)
        out[f"y_{part}"] = np.arange(size) % classes
    return out


def write_npz(path, **values):
    np.savez(path, **values)
    return str(path)


def write_images(root, classes=("cat", "dog"), n=6, size=(4, 3), mode="L"):
    image = pytest.importorskip("PIL.Image")
    random = np.random.RandomState(len(classes))
    for name in classes:
        (root / name).mkdir(parents=True)
        for i in range(n):
            shape = (size[1], size[0]) if mode == "L" else (size[1], size[0], 3)
            image.fromarray(random.randint(0, 256, shape).astype(np.uint8)).save(root / name / f"{i:02d}.png")
    return str(root)
