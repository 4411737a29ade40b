"""`atent report`: what it writes and refuses, and the next steps it gives."""

from dataclasses import replace
from pathlib import Path

from commands import given
from report_run import RESULTS, Document, made_once, run_to_change  # noqa: F401 - fixtures

from atent.cli import main
from atent.report.collect import read


def said(capsys, *args):
    status = main(list(map(str, args)))
    out, err = capsys.readouterr()
    return status, out, err


def test_the_command_writes_beside_the_run_and_never_over_an_earlier_report(run, made, capsys, monkeypatch):
    monkeypatch.chdir(run.parent)
    for name in ("report.html", "report-2.html"):
        status, out, err = said(capsys, "report", run, "--images", 0, "--quiet")
        assert (status, out) == (0, f"written: {run / name}\n"), err
        Document((run / name).read_text())
    assert said(capsys, "report", made, run, "--images", 0)[:2] == (0, "written: report.html\n")
    assert "Side by side" in Path("report.html").read_text()
    assert said(capsys, "report", run, "--images", 0, "--out", "mine.html")[:2] == (0, "written: mine.html\n")
    before = sorted(run.parent.rglob("*"))
    for args, status, reported in (
        ([run, "--out", "mine.html"], 2, "never overwritten"),
        ([run.parent], 2, "is not a run folder (no config.json)"),
        ([run / "nothing"], 2, "is not a run folder"),
        ([run, "--images", -1], 2, "images must be at least 0, got -1"),
        ([run, "--image", 1], 2, "did you mean '--images'"),
        ([], 2, "no run given: write `atent report RUN"),
    ):
        got, out, err = said(capsys, "report", *args)
        assert (got, out) == (status, ""), err
        assert reported in err
        assert len(err.strip().splitlines()) == 1
    assert sorted(run.parent.rglob("*")) == before
    status, out, _ = said(capsys, "report", "--help")
    assert status == 0
    assert "--images" in out
    assert "self-contained" in " ".join(out.split())


def test_the_commands_of_the_readme_parse():
    lines = (RESULTS.parent / "docs" / "start.md").read_text().splitlines()
    found = [line.split("#")[0].split()[2:] for line in lines if line.startswith("atent report ")]
    assert found
    assert all(given("report", *words)["runs"] for words in found)


def test_the_next_steps_are_commands_that_run(made):
    from atent.report.commands import next_steps

    steps = next_steps(read(made))
    assert [words[:3] for _, words in steps] == [["atent", v, str(made)] for v in ("report", "evaluate", "certify")]
    for shows, (_, verb, *words) in steps:
        assert shows
        assert given(verb, *words)


def test_the_next_steps_are_those_that_are_left(made):
    from atent.report.commands import next_steps

    run = read(made)
    few = {"about": {**run.config["about"], "data": {**run.config["about"]["data"], "counts": {"test": 30}}}}
    small = next_steps(replace(run, config={**run.config, **few}))
    assert [words[words.index("--limit") + 1] for _, words in small[1:]] == ["all", "all"]
    assert all("all 30 test images" in shows for shows, _ in small[1:])

    (name, found), *_ = run.evaluations.items()
    by = {"AutoAttack": replace(next(iter(found.attacks.values())), attack="AutoAttack")}
    left = next_steps(replace(run, evaluations={name: replace(found, attacks=by)}))
    assert [words[1] for _, words in left] == ["report", "certify"]
