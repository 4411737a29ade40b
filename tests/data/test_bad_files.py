"""Files that promise more than they hold, and packed ones that would fill the memory: one line, and little memory."""

import gzip
import io
import json
import lzma
import struct
import tracemalloc
import zipfile

import numpy as np
import pytest

from atent.data.cifar import PIXELS, absent, records
from atent.data.files import LIMIT, largest, read
from atent.data.mnist import IMAGES, LABELS, idx
from atent.data.npz import npz
from atent.runs.checkpoint import read_weights

PACK = {".gz": gzip.compress, ".xz": lzma.compress}
MIB = 2**20


@pytest.fixture
def small(monkeypatch):
    """At most 1 MiB is unpacked."""
    monkeypatch.setenv(LIMIT, str(1 / 1024))


def refused(call, *says, memory=16 * MIB):
    """The call is refused in one line that says this, and takes less memory."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the text is compared below
            call()
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "\n" not in str(error.value)
    for part in says:
        assert part in str(error.value), error.value
    assert taken < memory, taken


@pytest.mark.parametrize("suffix", PACK)
def test_a_bomb_is_unpacked_as_far_as_the_limit(suffix, small, tmp_path):
    path = tmp_path / f"bomb{suffix}"
    path.write_bytes(PACK[suffix](bytes(64 * MIB)))
    refused(lambda: read(path), "bomb", LIMIT)


@pytest.mark.parametrize("suffix", PACK)
@pytest.mark.parametrize("parts", [1, 3])
def test_what_is_packed_comes_back(suffix, parts, tmp_path):
    content = [np.random.default_rng(k).bytes(1000) for k in range(parts)]
    path = tmp_path / f"x{suffix}"
    path.write_bytes(b"".join(map(PACK[suffix], content)))
    assert read(path)[0] == b"".join(content)
    path.write_bytes(path.read_bytes()[:-9])
    refused(lambda: read(path), "truncated")


def test_a_limit_is_a_number_of_gibibytes(monkeypatch, tmp_path):
    assert largest() == 8 * 2**30
    monkeypatch.setenv(LIMIT, "0.5")
    assert largest() == 2**29
    for odd in ("x", "0", "-1", "nan", "inf"):
        monkeypatch.setenv(LIMIT, odd)
        refused(largest, LIMIT)
    path = tmp_path / "plain"
    path.write_bytes(bytes(2 * MIB))
    monkeypatch.setenv(LIMIT, str(1 / 1024))
    refused(lambda: read(path), "plain", LIMIT)


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_an_idx_header_of_ten_terabytes(suffix, tmp_path):
    path = tmp_path / f"images{suffix}"
    content = struct.pack(">4I", IMAGES, 2**30, 100, 100) + bytes(16)
    path.write_bytes(PACK.get(suffix, bytes)(content))
    refused(lambda: idx(path, IMAGES), "its header")


def test_a_bomb_behind_a_true_header_is_unpacked_as_far_as_the_header_says(tmp_path):
    path = tmp_path / "labels.gz"
    path.write_bytes(gzip.compress(struct.pack(">2I", LABELS, 10) + bytes(64 * MIB)))
    refused(lambda: idx(path, LABELS), "or more values; its header says [10]", memory=4 * MIB)


def test_cifar_that_is_packed_beyond_the_limit(small, tmp_path):
    path = tmp_path / "data_batch_1.bin.xz"
    path.write_bytes(lzma.compress(bytes((1 + PIXELS) * 1000)))
    refused(lambda: records(path), LIMIT)


@pytest.mark.parametrize("label", ["-1", "10", "x", "9" * 5000])
def test_a_list_of_missing_records_has_labels_of_classes(label, tmp_path):
    path = tmp_path / "missing.csv"
    path.write_text(f"file,position,label\ntest_batch,0,{label}\n")
    refused(lambda: absent(path), "missing.csv")


def member(shape, dtype="|u1"):
    """The header of an array."""
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": shape})
    return out.getvalue()


def archive(path, kind=zipfile.ZIP_STORED, **members):
    with zipfile.ZipFile(path, "w", kind) as out:
        for name, content in members.items():
            out.writestr(f"{name}.npy", content)
    return str(path)


GOOD = {
    "x_train": member((2, 2, 2)) + bytes(8), "y_train": member((2,)) + b"\0\1",
    "x_test": member((2, 2, 2)) + bytes(8), "y_test": member((2,)) + b"\0\1",
}  # fmt: skip


def test_an_npz_header_of_ten_terabytes(tmp_path):
    assert len(npz(archive(tmp_path / "good.npz", **GOOD)).train) == 2
    for shape in ((10**13,), (10**13, 2, 2), (2**62, 2**62, 2), (-1, 2, 2)):
        path = archive(tmp_path / "odd.npz", **{**GOOD, "x_train": member(shape) + bytes(8)})
        refused(lambda path=path: npz(path), "odd.npz", "x_train")


def test_an_npz_that_is_packed_beyond_the_limit(small, tmp_path):
    big = member((64 * MIB // 4, 2, 2)) + bytes(64 * MIB)
    path = archive(tmp_path / "bomb.npz", zipfile.ZIP_DEFLATED, **{**GOOD, "x_train": big})
    refused(lambda: npz(path), "bomb.npz", LIMIT)


def test_an_npz_of_objects_and_of_a_broken_header(tmp_path):
    refused(lambda: npz(archive(tmp_path / "a.npz", **{**GOOD, "y_test": member((1,), "|O") + bytes(8)})), "y_test")
    for header in (b"{'descr': ", b"(" * 90, b"lambda: 1"):
        content = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header
        refused(lambda content=content: npz(archive(tmp_path / "b.npz", **{**GOOD, "y_test": content})), "b.npz")


def tensors(path, header, body=b""):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    return path


ONE = {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}


@pytest.mark.parametrize(
    ("about", "state"),
    [
        ("[]", "{}"), ('"a"', "{}"), ('{"model": 3}', "{}"), ("{", "{}"), ("[" * 5000, "{}"),
        ("{}", "[]"), ("{}", '{"tied": {"v": "nothing"}}'), ("{}", '{"tied": 3}'), ("{}", '{"complex": ["w"]}'),
        ("{}", '{"complex": "w"}'), ("{}", '{"extra": []}'),
    ],
)  # fmt: skip
def test_metadata_of_weights_is_checked(about, state, tmp_path):
    path = tensors(tmp_path / "w.safetensors", {**ONE, "__metadata__": {"atent": about, "state": state}}, bytes(4))
    refused(lambda: read_weights(path))


def test_weights_of_ten_terabytes(tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes((10**13).to_bytes(8, "little") + b"{}")
    refused(lambda: read_weights(path), "w.safetensors")
    huge = {"w": {"dtype": "F32", "shape": [25 * 10**11], "data_offsets": [0, 10**13]}}
    refused(lambda: read_weights(tensors(path, huge)), "w.safetensors")
