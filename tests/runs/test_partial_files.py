"""Files of unfinished measurements: after any damage, only rows that were measured count."""

import dataclasses
import json
import os
import random
import shutil
from pathlib import Path

import pytest
import torch
from processes import held_elsewhere
from torch import nn

from atent import evaluate
from atent.attacks import FGSM, PGD, AutoAttack
from atent.certify import Sampling, certify_run
from atent.certify.rows import sums
from atent.evaluate import measure_corruptions, measure_transfer
from atent.evaluate.lines import Foreign, Lines
from atent.runs.locks import InUse, lock_of
from atent.threat import Threat

LINF = Threat("linf", 0.1)
ATTACKS = {"fgsm": FGSM(LINF), "pgd": PGD(LINF, steps=2), "again": PGD(LINF, steps=3, restarts=2)}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """No test here depends on writes that reach the disk."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


@pytest.fixture(scope="module")
def task():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x = torch.rand(40, 1, 4, 4)
    return model, x, model(x).argmax(1)


def measured(task, path, attacks=ATTACKS):
    """An evaluation without its seconds."""
    found = evaluate(*task, attacks, resume=path, batch=8, cascade=True).to_json()
    for result in found["attacks"].values():
        for each in (result, *result.get("parts", {}).values()):
            del each["seconds"]
    return found


@pytest.fixture(scope="module")
def full(task, tmp_path_factory):
    """A file of a complete evaluation, and its result."""
    path = tmp_path_factory.mktemp("full") / "evaluation.partial.jsonl"
    found = measured(task, path)
    assert len(path.read_text().splitlines()) > 8
    return path, found


# ---- damage


def flip(data, rng):
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


def lines(change):
    def damaged(data, rng):
        rows = data.split(b"\n")[:-1]
        change(rows, rng)
        return b"\n".join(rows) + b"\n"

    return damaged


def replaced(with_this):
    def change(rows, rng):
        rows[rng.randrange(1, len(rows))] = with_this

    return lines(change)


def forged(**values):
    """A row of an earlier version, without a checksum, with impossible values."""

    def change(rows, rng):
        at = rng.randrange(1, len(rows))
        rows[0] = json.dumps({k: v for k, v in json.loads(rows[0]).items() if k != "sums"}).encode()
        rows[at] = json.dumps({**json.loads(rows[at]), **values} | {"sum": None}).replace(', "sum": null', "").encode()
        for i in range(1, len(rows)):
            row = json.loads(rows[i])
            row.pop("sum", None)
            rows[i] = json.dumps(row).encode()

    return lines(change)


DAMAGE = {
    "a flipped bit": flip,
    "a lost row": lines(lambda rows, rng: rows.pop(rng.randrange(1, len(rows)))),
    "a row twice": lines(lambda rows, rng: rows.append(rng.choice(rows[1:]))),
    "another order": lines(lambda rows, rng: rows.insert(1, rows.pop(rng.randrange(1, len(rows))))),
    "a cut": lambda data, rng: data[: rng.randrange(len(data))],
    "a block of zeros": lambda data, rng: data[: (at := rng.randrange(len(data)))] + bytes(min(64, len(data) - at)),
    "a lost first line": lines(lambda rows, rng: rows.pop(0)),
    "not a number": replaced(b'{"attack": "pgd", "distance": [NaN]}'),
    "infinity": replaced(b'{"attack": "pgd", "seconds": 1e999}'),
    "not an object": replaced(b"[1, 2]"),
    "another object": replaced(b'{"rows": 3}'),
    "depth": replaced(b"[" * 100_000),
    "digits": replaced(b"1" * 10_000),
    "no text": replaced(b"\xff\xfe\x00"),
    "empty lines": lines(lambda rows, rng: rows.insert(rng.randrange(1, len(rows)), b"")),
}
FORGED = {
    "places beyond the samples": {"rows": "0-99999999999"},
    "places that fall": {"rows": "7 3"},
    "places of another kind": {"rows": ["0"]},
    "more flags than places": {"fooled": "0" * 500},
    "flags of another kind": {"fooled": "2"},
    "a negative distance": {"distance": [-1.0]},
    "a distance of text": {"distance": ["1"]},
    "no list": {"distance": 1.0},
    "a negative class": {"fooled": "1", "predicted": [-1]},
    "more classes than fooled samples": {"fooled": "0", "predicted": [3]},
    "negative passes": {"forwards": -1},
    "half a pass": {"backwards": 0.5},
    "true passes": {"forwards": True},
    "no time": {"seconds": None},
    "an attack of no name": {"attack": 3},
    "another attack": {"attack": "square"},
    "another part": {"part": "first"},
    "a further value": {"more": 1},
}


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.parametrize("seed", range(4))
def test_a_damaged_evaluation_counts_nothing_wrong(task, full, tmp_path, capsys, kind, seed):
    """60 files: the same figures as without damage, and one line on stderr at most."""
    source, found = full
    path = tmp_path / source.name
    data = DAMAGE[kind](source.read_bytes(), random.Random(f"{kind} {seed}"))
    path.write_bytes(data)
    assert measured(task, path) == found
    err = capsys.readouterr().err
    assert err.count("\n") <= 1
    # Dropped rows are measured again, and no line is damaged.
    assert measured(task, path) == found
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", FORGED)
def test_rows_of_earlier_versions_are_taken_where_they_can_be_ones(task, full, tmp_path, capsys, kind):
    source, found = full
    path = tmp_path / source.name
    path.write_bytes(forged(**FORGED[kind])(source.read_bytes(), random.Random(kind)))
    assert measured(task, path) == found
    assert "1 damaged row is dropped, and measured again" in capsys.readouterr().err
    path.write_bytes(forged()(source.read_bytes(), random.Random(kind)))
    before = path.read_bytes()
    assert measured(task, path) == found
    assert path.read_bytes() == before


def test_every_flipped_bit_of_a_row_is_found(task, full, tmp_path, capsys):
    """At every position of a row: all its values are in the checksum."""
    source, _ = full
    head, row, *_ = source.read_bytes().split(b"\n")
    first = Lines(None, "evaluation", {k: v for k, v in json.loads(head).items() if k not in ("kind", "sums")})
    about = {k: v for k, v in first._head.items() if k != "kind"}
    path = tmp_path / "p.jsonl"
    for at in range(0, len(row), 2):
        changed = row[:at] + bytes([row[at] ^ (1 << at % 7)]) + row[at + 1 :]
        path.write_bytes(head + b"\n" + changed + b"\n")
        kept = Lines(path, "evaluation", about).rows
        assert kept == [] or kept == [{k: v for k, v in json.loads(row).items() if k != "sum"}]
    capsys.readouterr()


def test_composite_attacks_too(task, tmp_path, capsys):
    few = (task[0], task[1][:10], task[2][:10])
    attacks = {"aa": AutoAttack(LINF)}
    path = tmp_path / "p.jsonl"
    found = measured(few, path, attacks)
    data = path.read_bytes()
    for seed in range(3):
        path.write_bytes(flip(data, random.Random(seed)))
        assert measured(few, path, attacks) == found
    capsys.readouterr()


def test_a_file_that_is_not_one_is_named(task, tmp_path):
    path = tmp_path / "notes.txt"
    for data in (b"something else\n", b"\x00" * 4096 + b"\n", b'{"kind": "atent evaluation, unfinished"}\n'):
        path.write_bytes(data)
        with pytest.raises(Foreign, match=r"notes\.txt") as caught:
            measured(task, path)
        assert "\n" not in str(caught.value)
        assert path.read_bytes() == data


def test_a_row_of_another_measurement_is_found(task, full, tmp_path, capsys):
    source, found = full
    other = tmp_path / "other.jsonl"
    evaluate(*task, ATTACKS, resume=other, batch=8, seed=1)
    path = tmp_path / "p.jsonl"
    path.write_bytes(source.read_bytes() + other.read_bytes().split(b"\n")[1] + b"\n")
    assert measured(task, path) == found
    assert "1 damaged row" in capsys.readouterr().err


def test_a_live_file_is_not_taken(task, full, tmp_path):
    path = Path(shutil.copy(full[0], tmp_path))
    before = path.read_bytes()
    with held_elsewhere(lock_of(path), "evaluation"):
        with pytest.raises(InUse) as caught:
            measured(task, path)
        assert "remove" not in str(caught.value)
    assert path.read_bytes() == before
    measured(task, path)
    assert not lock_of(path).exists()


@pytest.mark.parametrize("kind", ["corruptions", "transfer"])
def test_studies_too(task, tmp_path, capsys, kind):
    model, x, y = task
    if kind == "corruptions":
        x = torch.rand(6, 1, 8, 8)
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
        y = model(x).argmax(1)

    def study():
        path = tmp_path / "p.jsonl"
        if kind == "transfer":
            found = measure_transfer({"a": model, "b": task[0]}, x, y, FGSM(LINF), batch=16, resume=path)
            return found.robust.tolist(), found.right.tolist()
        found = measure_corruptions(model, x, y, names=["contrast"], batch=3, resume=path)
        return found.wrong.tolist(), found.distance.tolist()

    found, path = study(), tmp_path / "p.jsonl"
    data = path.read_bytes()
    for seed in range(10):
        path.write_bytes(flip(data, random.Random(seed)))
        assert study() == found
    # Rows of an earlier version, without checksums: one of another form is measured again.
    head, *rows = (json.loads(line) for line in data.splitlines())
    del head["sums"]
    for row in rows:
        del row["sum"]
    rows[0]["wrong"] = [2] if kind == "corruptions" else [[0], [0]]
    path.write_text("".join(json.dumps(row) + "\n" for row in (head, *rows)))
    capsys.readouterr()
    assert study() == found
    assert "1 damaged row" in capsys.readouterr().err


def test_a_matrix_of_networks_in_another_order_is_another(task, tmp_path):
    """Before: the rows and columns of the second and the third were exchanged, without a word."""
    _, x, y = task
    nets = {}
    for seed, name in enumerate("abc"):
        torch.manual_seed(seed)
        nets[name] = nn.Sequential(nn.Flatten(), nn.Linear(16, 3))
    path = tmp_path / "p.jsonl"
    measure_transfer(nets, x, y, FGSM(LINF), resume=path)
    with pytest.raises(Foreign, match="order"):
        measure_transfer({name: nets[name] for name in "acb"}, x, y, FGSM(LINF), resume=path)


def test_a_certificate_that_grows(task, tmp_path, capsys):
    model, x, y = task
    path, sampling = tmp_path / "c.csv", Sampling(0.25, n0=10, n=100)

    def rows():
        made = certify_run(model, x[:12], y[:12], sampling, path=path, batch=400)
        return [row._replace(time=0.0) for row in made.rows]

    found, data, known = rows(), path.read_bytes(), sums(path).read_bytes()
    for seed in range(20):
        rng = random.Random(seed)
        path.write_bytes(DAMAGE["a cut" if seed % 4 == 3 else "a flipped bit"](data, rng))
        sums(path).write_bytes(known)
        assert rows() == found
        assert [line.split(b"\t")[:4] for line in sorted(path.read_bytes().splitlines())] == [
            line.split(b"\t")[:4] for line in sorted(data.splitlines())
        ]
    # In files of earlier versions, without checksums, impossible values are detected.
    capsys.readouterr()
    for column, value in ((1, b"7"), (3, b"99.0"), (3, b"-0.5"), (4, b"5"), (5, b"nan"), (2, b"-1")):
        head, first, *rest = data.split(b"\n")
        cells = first.split(b"\t")
        if cells[column] == value:
            continue
        cells[column] = value
        path.write_bytes(b"\n".join([head, b"\t".join(cells), *rest]))
        sums(path).unlink()
        assert rows() == found
        assert "1 damaged row" in capsys.readouterr().err


def test_rows_without_classes_resume_and_give_no_pairs(tmp_path):
    x, y, net = torch.rand(40, 4), torch.arange(40) % 2, torch.nn.Linear(4, 2)
    path, attacks = tmp_path / "rows.jsonl", {"pgd": PGD(LINF, steps=2)}
    found = evaluate.evaluate(net, x, y, attacks, resume=path)
    assert found.clean["k"] > found.worst["k"]
    # As earlier versions wrote them: without checksums and classes.
    head, *rows = (json.loads(line) for line in path.read_text().splitlines())
    kept = [{k: v for k, v in row.items() if k not in ("predicted", "sum", "sums")} for row in (head, *rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    assert evaluate.evaluate(net, x, y, attacks, resume=path) == dataclasses.replace(found, fooled_as=[])


def test_a_loss_with_a_mean_over_the_batch_is_refused():
    from atent.attacks.oracle import Oracle

    x, y, net = torch.rand(20, 4), torch.arange(20) % 2, torch.nn.Linear(4, 2)
    oracle = Oracle(net, *torch.zeros(2, 20, dtype=torch.int64), check=False)
    with pytest.raises(ValueError, match="one value per sample, 20, got"):
        oracle.gradient(x, y, torch.nn.functional.cross_entropy)
    with pytest.raises(ValueError, match="function of"):
        oracle.gradient(x, y, "ce")
