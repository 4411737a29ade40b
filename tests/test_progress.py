"""Progress: a line a minute where there is no terminal, an estimate from what was measured, and tables that fold."""

import io
import re
import sys
import time

import pytest
import torch
from rich.table import Table

from atent import progress
from atent.attacks import FGSM, PGD, AutoAttack
from atent.cli import output
from atent.distributed.shards import Shard
from atent.evaluate import evaluate, evaluate_shard
from atent.evaluate.evaluation import costs, rounds
from atent.threat import Threat
from atent.train import callbacks
from atent.train.settings import TrainSettings


def test_long_work_prints_a_line_a_minute_also_inside_a_batch(capsys, monkeypatch):
    monkeypatch.setattr(progress, "MINUTE", 0.02)
    with progress.bar(10, "test", estimate=False) as advance:
        advance(2, "FGSM 31.0 %")
        deadline = time.monotonic() + 20
        lines = []
        while len(lines) < 2 and time.monotonic() < deadline:
            time.sleep(0.01)
            lines += capsys.readouterr().err.splitlines()
    assert len(lines) >= 2
    assert set(lines) <= {"test: begun", "test: 0%", "test: 20%, FGSM 31.0 %"}
    capsys.readouterr()
    with progress.bar(10, "test", enabled=False) as advance:
        advance(2, "")
        time.sleep(0.1)
    monkeypatch.setenv("RANK", "1")
    with progress.bar(10, "test") as advance:
        advance(2, "")
        time.sleep(0.1)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "said"), [(1.0, False), (6.0, True)])
def test_an_estimate_comes_from_measured_batches_once_and_for_long_work_alone(capsys, monkeypatch, seconds, said):
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    for total in (10, 1_000):
        with progress.plain(total, "test") as advance:
            advance(0, "what was known before")
            for _ in range(3):
                now[0] += seconds
                advance(2, "")
    lines = capsys.readouterr().err.splitlines()
    # 3 s a piece: 24 s are short work, and 998 pieces take 50 min
    assert lines == (["test: about 50 min on this machine, estimated from the first batches"] if said else [])
    assert [progress.roughly(t) for t in (50, 2400, 9000)] == ["50 s", "40 min", "2.5 h"]


def test_the_bar_of_an_evaluation_moves_by_cost_and_ends_full():
    threat = Threat("linf", 0.1)
    attacks = {"PGD": PGD(threat, steps=3), "FGSM": FGSM(threat)}
    each = costs(attacks, True)
    assert each == [attacks["FGSM"].passes, attacks["PGD"].passes]
    assert costs(attacks, False) == each[::-1]
    auto = [AutoAttack(threat)]
    assert len(costs({"AutoAttack": auto[0]}, True)) == rounds(auto) > 1
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    x, y = torch.rand(9, 1, 2, 2), torch.arange(9) % 3
    moved = []
    work = progress.Work(9, "test", each)
    evaluate(model, x, y, attacks, batch=2, advance=lambda amount, text="": moved.append(work.add(amount, text)))
    assert sum(moved) == work.done == work.total == 9 * sum(each)


def test_the_progress_of_a_shard_refers_to_its_own_samples(tmp_path):
    threat = Threat("linf", 0.0)  # fools no sample
    attacks = {"FGSM": FGSM(threat), "PGD": PGD(threat, steps=3)}
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3))
    x = torch.rand(9, 1, 2, 2)
    y = model(x).argmax(1)
    y[4] = (y[4] + 1) % 3
    for shard in Shard(0, 3).each():
        work, texts = progress.Work(9, "shard", costs(attacks, True)), []

        def advance(amount, text="", work=work, texts=texts):
            work.add(amount, text)
            texts.append(text)

        evaluate_shard(model, x, y, attacks, shard, resume=tmp_path / shard.name, batch=2, advance=advance)
        assert work.done == work.total
        assert set(texts) == {"FGSM 100.0 %", "PGD 100.0 %"}


@pytest.fixture
def clock(monkeypatch):
    """The time that progress reads, as a list of one number."""
    now = [0.0]
    monkeypatch.setattr(progress.time, "perf_counter", lambda: now[0])
    return now


def test_an_estimate_falls_during_a_batch_and_ends_where_the_batch_takes_longer(clock):
    work = progress.Work(100, "test")
    work.add(0, "")
    clock[0] += 100
    assert work.left() is None  # nothing is measured yet
    work.add(10, "")
    estimates = []
    for _ in range(9):
        estimates.append(work.left())
        clock[0] += 100
    assert estimates == [900 - 100 * k for k in range(9)]
    clock[0] += 1
    assert work.left() is None
    assert work.line() == "test: 10%"


def test_an_estimate_of_a_cascade_leaves_out_what_earlier_parts_fooled_and_never_rises(clock):
    # Parts of 1, 10 and 5 passes; 100 samples, of which 20, then 50, then 60 need no attack.
    work = progress.Work(100, "test", [1, 10, 5])
    estimates = []
    for cost, skipped in zip(work.costs, (20, 50, 60)):
        work.add(skipped, "")
        estimates.append(work.left())
        for _ in range(skipped, 100, 10):
            clock[0] += 10 * cost
            work.add(10, "")
            estimates.append(work.left())
    known = [left for left in estimates if left is not None]
    assert estimates[0] is None
    assert known[0] == 70 + 80 * 15
    assert known == sorted(known, reverse=True)
    assert known[-1] == 0
    assert work.done == work.total


def test_the_time_of_a_sequential_test_is_an_upper_limit_until_a_group_has_ended(clock, capsys):
    """Three groups of 4 inputs, each with at most 1,000 noise samples, of which the test takes 250."""
    with progress.plain(12_000, "test", group=4_000) as advance:
        work = progress.Work(12_000, "test", group=4_000)
        words = []
        for _ in range(3):
            for amount, seconds in [(100, 100)] * 10 + [(3_000, 0)]:
                clock[0] += seconds
                for report in (advance, work.add):
                    report(amount, "")
                words.append(work.word)
    assert words == ["at most"] * 10 + ["about"] * 23
    assert "test: at most 3.3 h on this machine, estimated from the first batches" in capsys.readouterr().err
    assert progress.Work(12_000, "test").word == "about"


def test_the_command_says_so(tmp_path, monkeypatch):
    """`atent certify` tells the bar its groups where the test is sequential, and nowhere else."""
    from contextlib import contextmanager

    from atent.experiments import certificate

    groups = []

    @contextmanager
    def bar(total, title, *, enabled, group=0):
        groups.append((total, group))
        yield lambda amount, text="": None

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(certificate, "bar", bar)
    for radii in (["0.05"], ["0.05", "0.1"]):
        certificate.certify_folder("zoo:digits-linf-crown-ibp", sigma=0.1, n=1000, limit=3, radii=radii, progress=False)
    assert groups == [(3 * 1100, 3 * 1100), (3 * 1100, 0)]


def test_known_results_are_no_measure(clock):
    work = progress.Work(100, "test", [3, 3])
    work.add(100, "")  # a pass of an interrupted evaluation
    work.add(0, "")
    clock[0] += 10
    assert work.left() is None
    work.add(50, "")
    assert work.left() == 10


def test_tables_fold_at_80_columns_where_output_is_piped_and_lose_no_text(monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    table = Table("name", "figure")
    name, figure = "x" * 130, "31.0 % [27.5, 35.9]"
    table.add_row(name, figure)
    output.print_table(table)
    lines = sys.stdout.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    assert sum(line.count("x") for line in lines) == len(name)
    assert figure in sys.stdout.getvalue()
    assert "\x1b" not in sys.stdout.getvalue()


def test_no_color_switches_colours_off(monkeypatch, capsys):
    table = Table("name", style="red")
    table.add_row("x")
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    output.print_table(table)
    assert "\x1b[31m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    output.print_table(table)
    assert not re.search(r"\x1b\[[0-9;]*(3|9)\dm", capsys.readouterr().out)


@pytest.mark.parametrize(("minutes", "said"), [(None, ["about 17 min"]), (5.0, [])])
def test_a_training_says_once_how_long_it_takes(capsys, monkeypatch, minutes, said):
    now = [0.0]
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: now[0])
    shown = callbacks.Bar()
    settings = TrainSettings(epochs=10, minutes=minutes)
    for step in range(1, 5):
        now[0] += 4
        share = (step - 1) / 250
        shown.step(callbacks.Progress(None, settings, {}, None, (), 1, step, 25, share))
    shown.end(None)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("training:")]
    # 4 s for each 250th of the training
    assert [re.findall(r"about \S+ \w+", line)[0] for line in lines] == said


@pytest.mark.parametrize("reported", [False, True])
def test_short_epochs_print_a_line_a_minute(reported, monkeypatch, capsys):
    """The bar of an epoch that is shorter than a minute prints none of its own."""
    from torch import nn

    from atent.data import DataSettings, load
    from atent.methods import Standard
    from atent.train import TrainSettings, fit

    data = load(DataSettings(limit=64, validation=40))
    settings = TrainSettings(epochs=3, batch_size=32, validate_limit=20, device="cpu")
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    threat = Threat("linf", 0.1)
    fit(model, data, Standard(), settings=settings, threat=threat)
    assert "epoch" not in capsys.readouterr().err
    monkeypatch.setattr(callbacks, "MINUTE", 0.0)
    rows = []
    found = fit(model, data, Standard(), settings=settings, threat=threat, report=rows.append if reported else None)
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("epoch")]
    if reported:  # who reports each epoch needs no other line
        assert (len(rows), lines) == (3, [])
        return
    for i, (line, row) in enumerate(zip(lines, found.history, strict=True), 1):
        figures = [f"{100 * row[f'validation_{name}']:.1f} %" for name in ("clean", "robust")]
        assert line.startswith(f"epoch {i}/3: loss {row['loss']:.3f}")
        assert all(figure in line for figure in figures)


def test_a_bar_shows_names_in_brackets_as_they_are(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("TERM", "xterm")
    with progress.bar(3, "run [/b]") as advance:
        advance(1, "tabby [cat] 50.0 %")
    assert "run [/b]" in screen.getvalue()
    assert "tabby [cat] 50.0 %" in screen.getvalue()
