"""Shards and ranks: together they measure what one process measures."""

import json
import shutil
import socket
import subprocess
import sys

import numpy
import pytest
import torch
from command_line import gaussian_run, replaced
from processes import environment, until
from torch import nn

from atent import evaluate, progress
from atent.attacks import FGSM, PGD
from atent.certify import certificate
from atent.certify import rows as tables
from atent.certify.certificate import rows_of as rows_of_samples
from atent.certify.rows import read_rows
from atent.cli import main
from atent.distributed.shards import Shard
from atent.evaluate.craft import craft
from atent.evaluate.lines import of_rank
from atent.experiments import evaluation, shards
from atent.threat import Threat

LINF = Threat("linf", 0.1)
QUICK = ["--quiet", "--device", "cpu"]
# An ensemble with parts, as AutoAttack is one, at a size for tests.
ATTACKS = ["FGSM", "PGD(steps=4)", "AutoAttack(version='rand', steps=3)"]
EVALUATE = ["--attacks", *ATTACKS, "--eps", "0.2", "--limit", "60", "--batch-size", "6", *QUICK]
CERTIFY = ["--n", "1000", "--n0", "20", "--limit", "8", *QUICK]
TIMES = ("seconds", "seconds_per_image", "provenance")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return gaussian_run(tmp_path_factory.mktemp("runs"), epochs=4, limit=300)


def untimed(content):
    """What was measured, without how long it took and where."""
    if isinstance(content, dict):
        return {key: untimed(value) for key, value in content.items() if key not in TIMES}
    return [untimed(value) for value in content] if isinstance(content, list) else content


def evaluate_words(run, out, *more):
    """The words of an evaluation; an option of ``more`` replaces that of `EVALUATE`."""
    return ["evaluate", str(run), *replaced(EVALUATE, *more), "--out", str(out)]


def evaluated(run, out, *more):
    assert main(evaluate_words(run, out, *more)) == 0
    return untimed(json.loads(out.read_text()))


def merged(run, out, k, *more):
    for i in range(1, k + 1):
        assert main([*evaluate_words(run, out, *more), "--shard", f"{i}/{k}"]) == 0
    return evaluated(run, out, *more, "--merge")


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """What one process finds."""
    return evaluated(run, tmp_path_factory.mktemp("whole") / "evaluation.json")


def test_merged_shards_are_the_evaluation_of_one_process(run, whole, tmp_path):
    one = merged(run, tmp_path / "1.json", 1)
    assert 6 < one["worst"]["k"] < one["clean"]["k"]
    for k in (2, 3):
        assert merged(run, tmp_path / f"{k}.json", k) == one
    # Batches of other sizes round differently, so a sample on the boundary may differ.
    for name, text in whole["outcomes"]["attacks"].items():
        pairs = zip(text, one["outcomes"]["attacks"][name], strict=True)
        assert sum(a != b for a, b in pairs) <= 1, name
    assert not list(tmp_path.glob("*.partial*"))


@pytest.mark.slow
def test_shards_of_attacks_alone_and_radii_and_studies_are_bit_for_bit_those_of_one_process(run, tmp_path):
    simple = ["--no-cascade", "--attacks", *ATTACKS[:2], "--radius", "0.02", "--bands", "--fourier", "--limit", "20"]
    simple += ["--band-attack", "PGD(steps=2)"]
    want = evaluated(run, tmp_path / "one.json", *simple)
    assert merged(run, tmp_path / "two.json", 2, *simple) == want
    assert {"sweep", "bands", "fourier"} <= want.keys()


def said(capsys, *words):
    status = main(["evaluate", *words])
    err = capsys.readouterr().err
    assert (status, err.count("\n")) == (2, 1), err
    return err


def test_what_does_not_fit_together_is_named_in_one_line(run, tmp_path, capsys):
    out = tmp_path / "e.json"
    words = [str(run), "--attacks", "FGSM", *EVALUATE[1 + len(ATTACKS) :], "--out", str(out)]
    capsys.readouterr()
    assert "has no shard of e.json" in said(capsys, *words, "--merge")
    assert main(["evaluate", *words, "--shard", "1/2"]) == 0
    capsys.readouterr()
    assert "shard 2/2 is missing" in said(capsys, *words, "--merge")
    first, second = (tmp_path / f"e.shard-{i}-of-2.json" for i in (1, 2))
    second.write_bytes(first.read_bytes())
    assert f"{second} is shard 1/2" in said(capsys, *words, "--merge")
    assert f"{second} was made with other seed" in said(capsys, *words, "--seed", "1", "--shard", "2/2")
    second.unlink()
    assert main(["evaluate", *words, "--seed", "1", "--shard", "2/2"]) == 0
    capsys.readouterr()
    assert f"{second} was made with other seed" in said(capsys, *words, "--merge")
    second.write_text(second.read_text().replace("0.0", "0.1", 1))
    assert f"{second} is damaged" in said(capsys, *words, "--merge")
    second.rename(tmp_path / "e.shard-2-of-3.json")
    assert "shards of 2 (e.shard-1-of-2.json) and 3 (e.shard-2-of-3.json)" in said(capsys, *words, "--merge")
    for bad in ("0/2", "3/2", "one", "1/0"):
        assert f"got '{bad}'" in said(capsys, *words, "--shard", bad)
    assert "11 shards of 60 samples in batches of 6" in said(capsys, *words, "--shard", "1/11")
    assert "omit one" in said(capsys, *words, "--shard", "1/2", "--merge")
    assert not out.exists()


@pytest.mark.parametrize("more", [["--radius", "0.05"], []], ids=["sequential", "all samples"])
def test_merged_shards_are_the_certificate_of_one_process(run, more, tmp_path, capsys):
    words = ["certify", "", *CERTIFY, *more]
    want = certified(copied(run, tmp_path / "one"), *more)
    for k in (2, 3):
        words[1] = str(copied(run, tmp_path / str(k)))
        for i in range(1, k + 1):
            if i == k:
                assert main([*words, "--merge"]) == 2
                assert f"shard {k}/{k} is missing" in capsys.readouterr().err
            assert main([*words, "--shard", f"{i}/{k}"]) == 0
        assert main([*words, "--merge"]) == 0
        assert rows_of(tmp_path / str(k)) == want


def test_shards_of_earlier_versions_which_count_from_0_are_merged(run, tmp_path, capsys):
    words = ["certify", "", "--n", "100", "--n0", "10", "--limit", "4", *QUICK]
    old, mixed = copied(run, tmp_path / "old"), copied(run, tmp_path / "mixed")
    for i in (1, 2):
        made = copied(run, tmp_path / str(i))
        words[1] = str(made)
        assert main([*words, "--shard", f"{i}/2"]) == 0
        for file in made.glob(f"certificate.shard-{i}-of-2.*"):
            for place in (old, mixed)[: 3 - i]:
                shutil.copy(file, place / file.name.replace(f"shard-{i}", f"shard-{i - 1}"))
    words[1] = str(mixed)
    assert main([*words, "--merge"]) == 2
    assert "run --shard 2/2" in capsys.readouterr().err
    assert main([*words, "--shard", "2/2"]) == 0
    for place in (old, mixed):
        words[1] = str(place)
        assert main([*words, "--merge"]) == 0
    assert len(rows_of(old)) == 4
    assert rows_of(mixed) == rows_of(old)


def copied(run, place):
    """A copy, as files of a run folder are its manifest's."""
    return shutil.copytree(run, place)


def certified(run, *more):
    assert main(["certify", str(run), *CERTIFY, *more]) == 0
    return rows_of(run)


def rows_of(run):
    """The rows of a certificate, without how long they took."""
    return [row._replace(time=0.0) for row in read_rows(run / "certificate.csv")]


def test_two_ranks_measure_what_one_process_measures(run, whole, tmp_path):
    want = certified(copied(run, tmp_path / "one"))
    other = copied(run, tmp_path / "other")
    out = tmp_path / "two.json"
    together(
        evaluate_words(run, out),
        ["certify", str(other), *CERTIFY],
        ["attack", str(run), *ATTACK, "--out", str(tmp_path / "two.npz")],
    )
    assert main(["attack", str(run), *ATTACK, "--out", str(tmp_path / "one.npz")]) == 0
    same_arrays(tmp_path / "one.npz", tmp_path / "two.npz")
    assert untimed(json.loads(out.read_text())) == whole
    assert rows_of(other) == want
    assert not [*tmp_path.glob("*partial*"), *other.glob(".*rank*")]


def test_what_any_number_of_ranks_left_is_taken_up(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Linear(12, 3)).eval()
    x = torch.rand(40, 1, 4, 4)
    task = (model, x, model(x).argmax(1), [FGSM(LINF), PGD(LINF, steps=3)])
    path = tmp_path / "e.jsonl"
    want = untimed(evaluate(*task, batch=4, resume=path).to_json())
    head, *rows = path.read_text().splitlines()
    for rank in range(3):
        kept = "\n".join([head, *rows[rank::3]]) + "\n"
        of_rank(path, rank).write_text(kept if rank < 2 else kept[:-20])
    before = path.read_text()
    assert untimed(evaluate(*task, batch=4, resume=path).to_json()) == want
    added = path.read_text().removeprefix(before).splitlines()
    # The row that the kill tore.
    assert [without(row, "seconds", "sum") for row in added] == [without(rows[2::3][-1], "seconds", "sum")]


def without(row, *keys):
    return {key: value for key, value in json.loads(row).items() if key not in keys}


def test_shards_of_adversarial_inputs_are_those_of_one_process():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()
    x, y = torch.rand(22, 1, 4, 4), torch.arange(22) % 3
    want = craft(model, x, y, PGD(LINF, steps=3), batch=4)
    parts = [craft(model, x, y, PGD(LINF, steps=3), batch=4, shard=Shard(i, 3)) for i in range(3)]
    order = torch.cat([part["ids"] for part in parts]).argsort()
    for name, tensor in want.items():
        assert torch.equal(torch.cat([part[name] for part in parts])[order], tensor), name


ATTACK = [
    "--attack",
    "AutoAttack(version='rand', steps=2)",
    "--eps",
    "0.2",
    "--limit",
    "23",
    "--batch-size",
    "4",
    *QUICK,
]


def test_merged_shards_of_an_attack_are_the_file_of_one_process(run, tmp_path, capsys):
    words = ["attack", str(run), *ATTACK, "--out"]
    assert main([*words, str(tmp_path / "one.npz")]) == 0
    words.append(str(tmp_path / "two.npz"))
    assert main([*words, "--shard", "1/2"]) == 0
    capsys.readouterr()
    assert main([*words, "--merge"]) == 2
    assert "shard 2/2 is missing" in capsys.readouterr().err
    assert main([*words, "--shard", "2/2"]) == 0
    assert main([*words, "--seed", "1", "--merge"]) == 2
    assert "was made with other seed" in capsys.readouterr().err
    assert main([*words, "--merge"]) == 0
    same_arrays(tmp_path / "one.npz", tmp_path / "two.npz")
    damaged = tmp_path / "two.shard-2-of-2.npz"
    whole = damaged.read_bytes()
    middle = len(whole) // 2
    for harm in (whole[:middle], whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :], b""):
        damaged.write_bytes(harm)
        (tmp_path / "two.npz").unlink(missing_ok=True)
        for more in (["--merge"], ["--shard", "2/2"]):
            capsys.readouterr()
            assert main([*words, *more]) == 2
            err = capsys.readouterr().err
            assert f"{damaged} is damaged: remove it" in err
            assert err.count("\n") == 1
        assert not (tmp_path / "two.npz").exists()


def same_arrays(one, two):
    with numpy.load(one) as a, numpy.load(two) as b:
        assert a.files == b.files
        assert [name for name in a.files if not numpy.array_equal(a[name], b[name])] in ([], ["provenance"])


def test_rows_of_a_certificate_that_any_number_of_ranks_left_are_absorbed(run, tmp_path, monkeypatch):
    one, other = (copied(run, tmp_path / name) for name in ("one", "other"))
    want = certified(one)
    left, made = read_rows(one / "certificate.csv"), tables.made(one / "certificate.csv")
    table = other / "certificate.csv"
    for rank, some in enumerate((left[:2], left[2:3], left[3:6])):
        file = tables.of_rank(table, rank)
        tables.claim(file, made)
        tables.append(file, some)
    torn = tables.of_rank(table, 2)
    torn.write_text(torn.read_text()[:-5])
    anew = []

    def counted(smoothed, model, x, y, ids, *more):
        anew.extend(ids.tolist())
        return rows_of_samples(smoothed, model, x, y, ids, *more)

    monkeypatch.setattr(certificate, "rows_of", counted)
    assert main(["certify", str(other), *CERTIFY]) == 0
    assert rows_of(other) == want
    # What no rank had, and the row that the kill tore.
    assert sorted(anew) == sorted(row.idx for row in left[5:])
    assert not list(other.glob(".certificate*"))


SCRIPT = """
import json, os, sys
from atent.cli import main
for words, port in zip(json.loads(sys.argv[1]), sys.argv[2:], strict=True):
    os.environ["MASTER_PORT"] = port
    assert main(words) == 0
"""


def begun(*commands, size=2):
    """These commands of `atent`, one after another, in processes that torchrun's variables make one job."""
    ports = [str(free_port()) for _ in commands]
    job = {"WORLD_SIZE": str(size), "MASTER_ADDR": "localhost", "MASTER_PORT": ports[0]}
    return [
        subprocess.Popen(
            [sys.executable, "-c", SCRIPT, json.dumps(commands), *ports],
            env={**environment(), **job, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(size)
    ]  # fmt: skip


def together(*commands, size=2):
    """They end well."""
    ranks = begun(*commands, size=size)
    errors = [rank.communicate(timeout=300)[1] for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0] * size, errors


def broken(command, killed, ready):
    """Two ranks do the command until ``ready``; then one is killed, and the other ends with one line that names it."""
    ranks = begun(command)
    try:
        assert until(ready, ranks[killed])
        ranks[killed].kill()
        _, err = ranks[1 - killed].communicate(timeout=60)
        lines = [line for line in err.splitlines() if line.startswith("atent: ")]
        assert len(lines) == 1
        assert f"rank {killed} of 2" in lines[0]
    finally:
        for rank in ranks:
            rank.kill()
            rank.communicate()


def lines(files):
    """How many lines each of the files has."""
    return [file.read_bytes().count(b"\n") for file in files]


@pytest.mark.slow
def test_a_rank_of_an_evaluation_is_killed_and_three_resume(run, tmp_path):
    slow = ["--attacks", "FGSM", "PGD(steps=400)", "--no-cascade", "--batch-size", "2"]
    want = evaluated(run, tmp_path / "one.json", *slow)
    out = tmp_path / "two.json"
    command = evaluate_words(run, out, *slow)
    batches = -(-want["clean"]["k"] // 2)
    assert batches >= 6

    def of_each():
        return sorted(tmp_path.glob("two.*.partial*.jsonl"))

    # A first line, and more than half of the batches of FGSM: both ranks are inside the second attack.
    broken(command, 1, lambda: len(of_each()) == 2 and min(lines(of_each())) > 1 + -(-batches // 2))
    assert not out.exists()
    assert sum(lines(of_each())) < 2 + 2 * batches
    together(command, size=3)
    assert untimed(json.loads(out.read_text())) == want
    assert not of_each()


@pytest.mark.slow
def test_a_rank_of_a_certificate_is_killed_and_one_process_resumes(run, tmp_path):
    several = ["--n", "20000", "--n0", "20", "--limit", "10", *QUICK]
    one, other = (copied(run, tmp_path / name) for name in ("one", "other"))
    assert main(["certify", str(one), *several]) == 0

    def of_each():
        return [*other.glob("certificate.csv"), *other.glob(".certificate.rank-*.csv")]

    broken(["certify", str(other), *several], 0, lambda: len(of_each()) == 2 and min(lines(of_each())) > 1)
    had = sum(lines(of_each())) - 2
    assert 2 <= had < 10
    assert main(["certify", str(other), *several]) == 0
    assert sorted(rows_of(other)) == sorted(rows_of(one))
    assert not list(other.glob(".certificate*"))


def free_port():
    with socket.socket() as held:
        held.bind(("localhost", 0))
        return held.getsockname()[1]


@pytest.mark.parametrize("option", [["--shard", "1/2"], ["--merge"]], ids=str)
def test_theory_has_no_shards(option, capsys):
    """One line, without another option in their place."""
    assert main(["theory", "runs/none", *option]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert option[0] in err
    assert "did you mean" not in err


def test_the_remaining_time_of_a_shard_is_weighted_by_the_passes_of_each_attack(run, tmp_path, monkeypatch):
    seen = []

    def bar(total, title, **how):
        seen.append((total, title, how["costs"]))
        return progress.bar(total, title, **how)

    for module in (shards, evaluation):
        monkeypatch.setattr(module, "bar", bar)
    found = []
    for i, more in enumerate((["--shard", "1/2"], [])):
        seen.clear()
        out = str(tmp_path / f"{i}.json")
        assert main(["evaluate", str(run), *EVALUATE, "--radii", "0.1", "0.2", *more, "--out", out]) == 0
        found.append(dict((title, (total, each)) for total, title, each in seen))
    assert found[0] == {"shard 1/2": found[1]["test"], "radii": found[1]["radii"]}
    assert len(set(found[1]["test"][1])) > 1
