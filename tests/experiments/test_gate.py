"""A gate compares the lower limit of an interval, and says so to people, to JUnit readers and to GitHub."""

import dataclasses
import json
import re
import shlex
from pathlib import Path
from xml.etree import ElementTree

import pytest
from command_line import replaced
from commands import given

from atent.cli import main
from atent.experiments import gate
from atent.experiments.results import Share
from atent.experiments.target import load_target
from atent.export.card import card_of, results_of
from atent.report import collect


def evaluated(low_options, capsys, *more):
    status = main(["evaluate", "run", "--attacks", "FGSM", "--limit", "60", "--quiet", *low_options, *more])
    return status, capsys.readouterr()


def refused(capsys, *words):
    assert main(list(words)) == 2
    (line,) = [each for each in capsys.readouterr().err.splitlines() if "manifest.json" not in each]
    return line


def verdict(k, n, limit, run="a"):
    return gate.Verdict(run, "clean accuracy", Share.of(k, n), limit, "evaluation.json")


def test_the_lower_limit_is_what_counts():
    share = Share.of(90, 100)
    assert verdict(90, 100, share.low).passed
    assert not verdict(90, 100, share.low + 1e-12).passed
    # The accuracy itself is above the limit, by luck perhaps.
    assert not verdict(90, 100, 0.89).passed


def test_evaluate_exits_with_the_verdict(short_run, capsys):
    """Two evaluations whose gates lie on both sides of the lower limit, which the first one shows."""
    status, printed = evaluated(["--min-clean", "0", "--min-robust", "0"], capsys)
    assert status == 0, printed.err
    found = json.loads((short_run / "evaluation.json").read_text())
    below = f"{found['worst']['low'] + 1e-6:.9f}"
    status, printed = evaluated(["--min-robust", below, "--junit", "gate.xml", "--annotations"], capsys)
    assert status == 1
    assert f"n = 60: the lower limit {found['worst']['low']:.4f} is below" in printed.out
    (case,) = ElementTree.parse("gate.xml").getroot().iter("testcase")
    assert case.get("classname") == "run"
    assert "is below" in case.find("failure").get("message")
    assert sum(line.startswith("::error title=atent run::") for line in printed.out.splitlines()) == 1
    # Several finished results, without measuring again.
    capsys.readouterr()
    files = sorted(map(str, short_run.glob("evaluation*.json")))
    assert main(["gate", *files, "run", "--min-robust", below, "--json"]) == 1
    rows = json.loads(capsys.readouterr().out)
    assert [row["passed"] for row in rows] == [False] * (len(files) + 1)
    assert main(["gate", *files, "--min-robust", f"{found['worst']['low']:.12f}"[:-2]]) == 0


def recorded(path, attack, k, n, *, first, **threat):
    """An evaluation file by one attack, of n images of which k remain."""
    (entry,) = first["attacks"].values()
    worst = dataclasses.asdict(Share.of(k, n))
    entry = entry | {"attack": attack, "robust": worst, "threat": entry["threat"] | threat}
    found = first | {"n": n, "clean": dataclasses.asdict(Share.of(n, n)), "worst": worst, "last": None}
    path.write_text(json.dumps(found | {"weights": "best", "attacks": {attack.partition("(")[0]: entry}}))


@pytest.fixture
def by_attack(short_run, capsys):
    """Writes evaluation files of the run, which has no others."""
    evaluated(["--out", "first.json"], capsys)
    first = json.loads(Path("first.json").read_text())
    (short_run / "manifest.json").unlink()
    for path in short_run.glob("evaluation*.json"):
        path.unlink()
    return lambda name, *words, **threat: recorded(short_run / name, *words, first=first, **threat)


def gated(capsys, *words):
    """The exit status, and the one row of the gate on the run."""
    status = main(["gate", "run", "--json", *words])
    printed = capsys.readouterr()
    assert printed.out, printed.err
    (row,) = json.loads(printed.out)
    return status, row


def test_autoattack_counts_before_a_lower_upper_limit(by_attack, capsys):
    """A small evaluation by AutoAttack against a large one by PGD: the gate compares what the report leads with."""
    by_attack("evaluation.json", "PGD(steps=20)", 430, 500)
    status, row = gated(capsys, "--min-robust", "0.7")
    assert (status, row["source"]) == (0, "run/evaluation.json")
    assert row["caveat"].startswith("Not measured by AutoAttack")
    by_attack("evaluation-2.json", "AutoAttack", 17, 20)
    assert Share.of(430, 500).high < Share.of(17, 20).high
    assert collect.read("run").leading == "evaluation-2.json"
    status, row = gated(capsys, "--min-robust", "0.7")
    assert (status, row["source"], row["caveat"]) == (1, "run/evaluation-2.json", None)
    # A figure that is lower beyond both intervals counts before AutoAttack's.
    by_attack("evaluation-3.json", "Square", 50, 500)
    assert collect.read("run").leading == "evaluation-3.json"
    assert gated(capsys, "--min-robust", "0.05")[1]["source"] == "run/evaluation-3.json"
    # The report reads evaluation*.json, and so does the gate.
    by_attack("aa.json", "AutoAttack", 1, 500)
    assert gated(capsys, "--min-robust", "0.05")[1]["source"] == "run/evaluation-3.json"


def test_a_line_names_what_autoattack_did_not_measure(by_attack, capsys):
    by_attack("evaluation.json", "PGD(steps=20)", 430, 500)
    assert main(["gate", "run", "--min-robust", "0.4", "--min-clean", "0.4", "--annotations"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert ["Not measured by AutoAttack" in line for line in lines] == [True, False, True, False]


def test_a_required_attack(by_attack, capsys):
    by_attack("evaluation.json", "PGD(steps=20)", 430, 500)
    words = ("gate", "run", "--min-robust", "0.4", "--require")
    for name in ("PGD", "pgd", "PGD(steps=20)", "PGD( steps=20 )"):
        assert main([*words, name]) == 0, capsys.readouterr().err
    for name in ("AutoAttack", "Square", "PGD(steps=40)"):
        line = refused(capsys, *words, name)
        assert f"by {name}" in line
        assert "--require" in line
        assert "atent evaluate" in line
    assert "--min-robust" in refused(capsys, "gate", "run", "--min-clean", "0.4", "--require", "PGD")
    # At other settings it is not AutoAttack.
    by_attack("evaluation.json", "AutoAttack(version=rand)", 430, 500)
    assert "standard settings" in refused(capsys, *words, "AutoAttack")
    by_attack("evaluation.json", "AutoAttack", 430, 500)
    assert main([*words, "autoattack"]) == 0
    # Where there is none, the remedy is another one.
    by_attack("evaluation.json", "SparseRS", 430, 500, norm="l0", eps=3.0)
    assert "omit --require" in refused(capsys, *words, "AutoAttack")


@pytest.mark.parametrize(
    ("evaluated_by", "required", "other"),
    [
        ("PGD(steps=20)", "PGD(steps=20)", "PGD(steps=21)"),
        ("PGD(steps=20)", "PGD", "FGSM"),
        ("PGD(steps=20)", "PGD(steps=20)", "PGD(steps=20, eps=0.001)"),
        ("PGD(steps=20)", "pgd( steps=20, restarts=1)", "PGD(restarts=2)"),
        ("PGD(restarts=2, steps=3)", "PGD(steps=3, restarts=2)", "PGD(steps=3)"),
        ("PGD(steps=3, step_size=1/255)", "PGD(step_size=1/255, steps=3)", "PGD(step_size=2/255, steps=3)"),
        ("PGD(steps=3, loss='margin')", 'PGD(loss="margin", steps=3)', "PGD(loss=ce, steps=3)"),
    ],
)
def test_a_required_attack_is_the_one_of_the_same_settings(short_run, capsys, evaluated_by, required, other):
    """As it is recorded, without defaults; the same words serve `atent evaluate` and `atent gate`."""
    words = ["evaluate", "run", "--attacks", evaluated_by, "--limit", "5", "--quiet", "--min-robust", "0"]
    assert main([*words, "--require", required, "--out", "e.json"]) == 0, capsys.readouterr().err
    assert main(["gate", "e.json", "--min-robust", "0", "--require", required]) == 0, capsys.readouterr().err
    capsys.readouterr()
    assert "Not measured by" in refused(capsys, "gate", "e.json", "--min-robust", "0", "--require", other)
    unknown = refused(capsys, "gate", "e.json", "--min-robust", "0", "--require", "PGD(stepz=20)")
    assert "did you mean 'steps'" in unknown


def test_a_required_attack_beside_one_that_cannot_be_read(by_attack, capsys):
    by_attack("evaluation.json", "PGD(former=20)", 430, 500)
    assert main(["gate", "run", "--min-robust", "0.4", "--require", "PGD"]) == 0
    assert "Not measured by" in refused(capsys, "gate", "run", "--min-robust", "0.4", "--require", "PGD(steps=20)")
    # The colon of a plug-in is part of its name.
    line = refused(capsys, "gate", "run", "--min-robust", "0.4", "--require", "mine:Own(steps=2)")
    assert "Not measured by mine:Own(steps=2): run" in line


def test_a_required_attack_is_missed_before_the_work(short_run, capsys, monkeypatch):
    from atent.experiments import evaluation

    def worked(*_args, **_given):
        raise AssertionError("evaluated before the gate was checked")

    words = ("evaluate", "run", "--limit", "5", "--quiet", "--min-robust", "0")
    several = ("--threats", "linf 0.1: FGSM, PGD(steps=2)", "l2 0.5: PGD(steps=2)")
    assert main([*words, *several, "--require", "PGD"]) == 0, capsys.readouterr().err
    capsys.readouterr()
    monkeypatch.setattr(evaluation, "evaluate_target", worked)
    assert "FGSM" in refused(capsys, *words, "--attacks", "FGSM", "--require", "AutoAttack")
    assert "at l2 0.5" in refused(capsys, *words, *several, "--require", "FGSM")
    # AutoAttack in a lower precision, also where that is found by a measurement.
    monkeypatch.setattr(evaluation, "resolve", lambda *_args, **_given: ("bfloat16", False))
    for precision in ("bfloat16", "auto"):
        attacked = ("--attacks", "AutoAttack", "--precision", precision)
        line = refused(capsys, *words, *attacked, "--require", "AutoAttack")
        assert "in bfloat16" in line
        assert "without --precision" in line


def test_what_was_not_measured_is_an_error_before_the_work(short_run, capsys, monkeypatch):
    from atent.experiments import evaluation

    def worked(*_args, **_given):
        raise AssertionError("evaluated before the gate was checked")

    monkeypatch.setattr(evaluation, "evaluate_target", worked)
    words = ("evaluate", "run", "--limit", "5", "--quiet", "--attacks", "FGSM")
    assert "atent certify" in refused(capsys, *words, "--min-certified", "0.5")
    assert "did you mean 0.4" in refused(capsys, *words, "--min-robust", "40")
    assert "fraction between 0 and 1" in refused(capsys, *words, "--min-clean", "nan")
    assert "fraction between 0 and 1" in refused(capsys, *words, "--min-clean", "high")
    assert "--junit needs a limit" in refused(capsys, *words, "--junit", "gate.xml")
    (short_run / "manifest.json").unlink()
    (short_run / "evaluation.json").unlink()
    assert "no evaluation" in refused(capsys, "gate", "run", "--min-clean", "0.5")
    assert "no limit" in refused(capsys, "gate", "run")
    assert "SHARE" not in refused(capsys, "gate", "run", "--min-certified", "0.5@")
    Path("other.json").write_text('{"schema_version": 1}')
    assert "other.json" in refused(capsys, "gate", "other.json", "--min-clean", "0.5")


def test_a_certificate_counts_for_its_own_weights_and_radius(short_run, capsys):
    assert main(["certify", "run", "--method", "ibp", "--radius", "0", "0.01", "--norm", "linf", "--limit", "20"]) == 0
    (path,) = short_run.glob("certificate*.json")
    found = json.loads(path.read_text())
    low = {entry["threat"]["eps"]: entry["share"]["low"] for entry in found["certified"]}
    assert main(["gate", "run", "--min-certified", f"{low[0.0]}@0"]) == 0
    assert main(["gate", "run", "--min-certified", f"{min(1, low[0.01] + 1e-9)}@1/100"]) == 1
    assert "several figures" in refused(capsys, "gate", "run", "--min-certified", "0.5")
    assert "nothing at radius 0.3" in refused(capsys, "gate", str(path), "--min-certified", "0.5@0.3")
    status, printed = evaluated(["--min-certified", "0@0.01"], capsys)
    assert status == 0, printed.err
    path.write_text(path.read_text().replace(found["made"]["weights"], "0" * 16))
    (short_run / "manifest.json").unlink(missing_ok=True)
    assert "of these weights" in refused(capsys, "evaluate", "run", "--attacks", "FGSM", "--min-certified", "0@0.01")


def test_a_certificate_by_smoothing_counts_for_its_own_weights(short_run, capsys):
    """Before: it counted for none."""
    words = ["--sigma", "0.1", "--n", "100", "--n0", "10", "--radius", "0.01", "--limit", "10", "--quiet"]
    assert main(["certify", "run", *words]) == 0
    status, printed = evaluated(["--min-certified", "0@l2 0.01"], capsys)
    assert status == 0, printed.err
    (path,) = short_run.glob("certificate*.json")
    found = json.loads(path.read_text())
    path.write_text(path.read_text().replace(found["made"]["about"]["weights"], "0" * 16))
    (short_run / "manifest.json").unlink(missing_ok=True)
    assert "of these weights" in refused(capsys, "evaluate", "run", "--attacks", "FGSM", "--min-certified", "0@l2 0.01")


def test_a_certificate_in_another_norm_does_not_pass_in_its_place(short_run, capsys):
    """Before: the only certificate at a radius counted, so that one in l2 passed a gate of a run in linf."""
    words = ["--sigma", "0.1", "--n", "100", "--n0", "10", "--radius", "0.01", "--limit", "10", "--quiet"]
    assert main(["certify", "run", *words]) == 0
    (smoothed,) = short_run.glob("certificate*.json")
    evaluate = ("evaluate", "run", "--attacks", "FGSM", "--limit", "4", "--quiet")
    for command in (("gate", "run"), evaluate):
        for share in ("0@0.01", "0", "0@linf 0.01"):
            line = refused(capsys, *command, "--min-certified", share)
            assert "nothing at linf 0.01" in line if "@" in share else "nothing in linf" in line
            assert 'SHARE@"NORM R"' in line
            assert "certified accuracy at l2 0.01" in line
        for share in ("0@l2 0.01", "0@L2  1/100"):
            assert main([*command, "--min-certified", share]) == 0, capsys.readouterr().err
        capsys.readouterr()
    # The norm of the attacks, and that of a file, are the ones that count there.
    for command in ((*evaluate, "--norm", "l2", "--eps", "0.1"), ("gate", str(smoothed))):
        assert main([*command, "--min-certified", "0@0.01"]) == 0, capsys.readouterr().err
    assert main(["certify", "run", "--method", "ibp", "--radius", "0.01", "--norm", "linf", "--limit", "20"]) == 0
    capsys.readouterr()
    for share, norm in (("0@0.01", "linf"), ("0@l2 0.01", "l2")):
        assert main(["gate", "run", "--min-certified", share]) == 0
        assert f" at {norm} 0.01" in capsys.readouterr().out
    assert "'lx'" in refused(capsys, "gate", "run", "--min-certified", "0@lx 0.01")


def test_without_a_threat_the_norm_is_named_where_there_are_several(short_run, capsys):
    certificates = gate.certificates(short_run)
    assert not certificates
    for how in (["--method", "ibp", "--norm", "linf"], ["--sigma", "0.1", "--n", "100", "--n0", "10"]):
        radius = "0.01" if "linf" in how else "0.02"
        assert main(["certify", "run", *how, "--radius", radius, "--limit", "10", "--quiet"]) == 0
    found = gate.certificates(short_run)
    for text in ("0@0.01", "0@0.02", "0"):
        with pytest.raises(ValueError, match="several"):
            gate.of_certificates(found, gate.limits(certified=text), "run")
    (one,) = gate.of_certificates(found, gate.limits(certified="0@l2 0.02"), "run")
    assert one.figure == "certified accuracy at l2 0.02"


def test_a_certificate_that_is_not_valid_counts_nowhere(short_run, capsys):
    words = ["--sigma", "0.1", "--n", "100", "--n0", "10", "--radius", "0.01", "--limit", "10", "--quiet"]
    assert main(["certify", "run", *words]) == 0
    (path,) = short_run.glob("certificate*.json")
    found = json.loads(path.read_text())
    path.write_text(json.dumps({**found, "hint": "answers depend on the batch: no certificate is valid"}))
    (short_run / "manifest.json").unlink(missing_ok=True)
    words = ("--min-certified", "0@l2 0.01")
    for command in (("gate", "run"), ("gate", str(path)), ("evaluate", "run", "--attacks", "FGSM", "--limit", "4")):
        assert "no certificate is valid" in refused(capsys, *command, *words)
    target = load_target("run", attacks=(), limit=4)
    card = card_of(target, results_of(target))
    assert f"{path.name}: answers depend on the batch: no certificate is valid" in card.limits


@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ("runs/nope", "no results at runs/nope"),
        ("nope.json", "no results at nope.json"),
        ("w.pt", "w.pt is not a file of results"),
    ],
)
def test_what_is_no_result_is_refused_in_one_line(tmp_path, monkeypatch, capsys, result, reason):
    monkeypatch.chdir(tmp_path)
    Path("w.pt").write_bytes(b"\x80\x02")
    line = refused(capsys, "gate", result, "--min-robust", "0.4")
    assert reason in line
    assert "atent evaluate" in line


def test_a_file_of_results_without_a_run_has_its_own_name(short_run, tmp_path, capsys):
    content = json.loads((short_run / "evaluation.json").read_text()) | {"run": None, "model": "mine:net"}
    (tmp_path / "epoch-3.json").write_text(json.dumps(content))
    main(["gate", str(tmp_path / "epoch-3.json"), "--min-clean", "0", "--json"])
    assert [row["run"] for row in json.loads(capsys.readouterr().out)] == [str(tmp_path / "epoch-3.json")]


def test_names_of_runs_break_no_report():
    odd = [verdict(1, 2, 0.9, run='a<b>&"c"\x00,:%\n::error::x'), verdict(2, 2, 0.1)]
    root = ElementTree.fromstring(gate.junit(odd).encode())
    assert (root.get("tests"), root.get("failures")) == ("2", "1")
    lines = gate.github(odd)
    assert not any("\n" in line for line in lines)
    assert re.fullmatch(r"::error title=[^,:]*::.*", lines[0])
    assert lines[1].startswith("::notice ")


PAGE = (Path(__file__).parents[2] / "docs" / "ci.md").read_text()


def test_the_page_runs(short_run, capsys):
    """Its commands, on a run of that name; the workflow's are the same ones."""
    Path("runs").mkdir()
    short_run.rename("runs/digits-linf-atent")
    (block,) = re.findall(r"```bash\n(.*?)```", PAGE, re.S)
    commands = [shlex.split(line, comments=True)[1:] for line in block.replace("\\\n", " ").splitlines()]
    few = {"evaluate": ["--limit", "20", "--quiet"], "certify": ["--limit", "5"], "gate": []}
    for words in commands:
        # The network of the test is trained for a moment.
        assert main(replaced(words, *few[words[0]])) in (0, 1), capsys.readouterr().err
    assert ElementTree.parse("gate.xml").getroot().get("tests") == "2"
    workflow = re.findall(r"- run: (atent .*)", PAGE)
    assert workflow
    for line in workflow:
        _, name, *words = shlex.split(line)
        assert name in ("train", "evaluate", "certify", "gate")
        assert name == "train" or given(name, *words)
