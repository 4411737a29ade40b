"""Several threats at once: the union, which threat fools which, the texts of threats, the command and its files."""

import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from kit import own

from atent import plots, runs
from atent.attacks import ATTACKS, FGSM, PGD, Attack
from atent.attacks.several import USUAL, parse_threat, several
from atent.attacks.spec import show
from atent.cli import main
from atent.data.described import spans
from atent.evaluate import Evaluation, evaluate, union
from atent.experiments.pipeline import run_job
from atent.experiments.recipe_files import UsageError, read_recipe
from atent.experiments.recipes import job
from atent.experiments.results import EvaluationFile, UnionReport
from atent.experiments.target import load_target
from atent.report import report
from atent.stats import bounded_mean, share
from atent.threat import Threat

BEFORE = Path(__file__).parents[1] / "files" / "before_subsets"
LINF, L2 = Threat("linf", 0.05), Threat("l2", 0.5)
ATTACKED = {
    "far": PGD(LINF, steps=3),
    "round": PGD(L2, steps=3),
    "quick": FGSM(LINF),
    "turn": PGD(L2, steps=2, loss="margin"),
}


def plain(threat):
    return {"norm": threat.norm, "eps": threat.eps, "box": threat.box}


def made(clean, **flags):
    """An evaluation with these outcomes by hand: a name of two letters is its threat and a number."""
    threats = {"a": Threat("linf", 0.1), "b": Threat("l2", 1.0), "c": Threat("l2", 2.0)}
    cost = {"attacked": 0, "forwards": 0, "backwards": 0, "seconds": 0.0}
    attacks = {
        name: {"attack": "FGSM", "threat": plain(threats[name[0]]), "fooled": [0] * text.count("f"), **cost}
        for name, text in flags.items()
    }
    n = len(clean)
    return Evaluation(
        n=n, seed=3, clean=share(clean.count("1"), n), worst=share(0, n), attacks=attacks, wrong=[], cascade=False,
        outcomes={"ids": spans(list(range(n))), "clean": clean, "attacks": flags},
    )  # fmt: skip


def test_an_outcome_table_by_hand_gives_the_matrix():
    # The last sample is misclassified without an attack. Broken by a: 0, 1, 2; by b: 1, 2, 3; by c: 2, 4.
    found = union(made("1111110", a1="fsssss-", a2="-ffsss-", b1="sffs--" + "-", b2="sssfss-", c1="ssfsfs-"))
    a, b, c = found.threats
    assert found.broken == {a: {a: 3, b: 2, c: 1}, b: {a: 2, b: 3, c: 1}, c: {a: 1, b: 1, c: 2}}
    assert [found.threats[t]["robust"]["k"] for t in (a, b, c)] == [3, 3, 4]
    assert [found.threats[t]["alone"] for t in (a, b, c)] == [1, 1, 1]
    assert found.by_count == [1, 3, 1, 1]
    assert found.worst == share(1, 7)
    assert found.average["value"] == pytest.approx((3 + 3 + 4) / 3 / 7, rel=1e-12)
    assert found.outcomes["threats"] == {a: "0001110", b: "1000110", c: "1101010"}
    assert list(found.threats[a]["attacks"]) == ["a1", "a2"]


@pytest.mark.parametrize("name", ["cascade", "one threat", "none"])
def test_what_hides_a_threat_is_refused(name):
    found = made("11", a1="fs", b1="-f")
    if name == "cascade":
        found = replace(found, cascade=True)
    elif name == "one threat":
        found = made("11", a1="fs", a2="-f")
    else:
        found = made("11")
    with pytest.raises(ValueError, match="threat"):
        union(found)


@pytest.fixture
def samples(conv_net, batch):
    return conv_net(), *batch(40)


def test_the_union_is_at_most_each_threat_and_no_cascade_changes_it(samples):
    alone, within = (evaluate(*samples, ATTACKED, cascade=cascade, seed=1) for cascade in (False, "threat"))
    # The attacks of a threat stay together, each after the cheaper ones.
    assert list(within.attacks) == ["quick", "far", "turn", "round"]
    first, second = union(alone), union(within)
    assert first.outcomes == second.outcomes
    assert (first.broken, first.by_count, first.worst) == (second.broken, second.by_count, second.worst)
    assert second.worst == within.worst == alone.worst == evaluate(*samples, ATTACKED, seed=1).worst
    robust = [found["robust"]["k"] for found in second.threats.values()]
    # Otherwise the comparison would be weak.
    assert second.clean["k"] > max(robust)
    assert second.worst["k"] <= min(robust)
    assert sum(second.by_count) == second.clean["k"]
    met = {name: found["attacked"] for name, found in within.attacks.items()}
    assert met["quick"] == met["turn"] == second.clean["k"]
    assert met["far"] < second.clean["k"] > met["round"]


def test_a_cascade_has_three_kinds(samples):
    with pytest.raises(ValueError, match="'threats'"):
        evaluate(*samples, ATTACKED, cascade="threats")


def test_a_killed_evaluation_under_several_threats_resumes(samples, tmp_path, monkeypatch):
    full = union(evaluate(*samples, ATTACKED, cascade="threat", batch=15))
    path, run, calls = tmp_path / "part.jsonl", Attack.run, []

    def killed(self, *args, **given):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return run(self, *args, **given)

    with monkeypatch.context() as patch:
        patch.setattr(Attack, "run", killed)
        with pytest.raises(KeyboardInterrupt):
            evaluate(*samples, ATTACKED, cascade="threat", batch=15, resume=path)
    found = union(evaluate(*samples, ATTACKED, cascade="threat", batch=15, resume=path))
    assert (found.outcomes, found.broken) == (full.outcomes, full.broken)
    # The file records the cascade.
    with pytest.raises(ValueError, match="cascade"):
        evaluate(*samples, ATTACKED, cascade=False, batch=15, resume=path)


@pytest.mark.parametrize("n", [5, 20, 100])
def test_the_interval_of_a_mean_covers_it(n):
    # Exact coverage for shares: the sum of the probabilities of the counts whose interval contains p.
    for p in (0.01, 0.05, 0.2, 0.35, 0.5, 0.8, 0.95, 0.99):
        covered = 0.0
        for k in range(n + 1):
            found = bounded_mean([1.0] * k + [0.0] * (n - k))
            assert 0 <= found.low <= found.value <= found.high <= 1
            if found.low <= p <= found.high:
                covered += math.comb(n, k) * p**k * (1 - p) ** (n - k)
        assert covered > 0.93, (n, p)
    for wrong in ([], [1.2], [-0.1]):
        with pytest.raises(ValueError, match="share"):
            bounded_mean(wrong)


# ---- texts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "fields"),
    [
        ("linf 8/255", {"norm": "linf", "eps": 8 / 255}),
        ("  Linf   0.1 ", {"norm": "linf", "eps": 0.1}),
        ("l1 5", {"norm": "l1", "eps": 5}),
        ("l0 6 group pixel", {"norm": "l0", "eps": 6, "group": "pixel"}),
        ("l0 6 pixels", {"norm": "l0", "eps": 6, "group": "pixel"}),
        ("l0 1 element", {"norm": "l0", "eps": 1}),
        ("patch 1 side 4", {"norm": "patch", "eps": 1, "side": 4}),
        ("patch 2 of 4x4 linf 8/255", {"norm": "patch", "eps": 2, "side": 4, "inner": "linf", "inner_eps": 8 / 255}),
        (
            "patch 2 side 4 inner linf inner_eps 0.1",
            {"norm": "patch", "eps": 2, "side": 4, "inner": "linf", "inner_eps": 0.1},
        ),
    ],
)  # fmt: skip
def test_a_threat_is_read_as_it_is_shown(text, fields):
    threat = parse_threat(text)
    assert threat == Threat(**fields)
    assert parse_threat(show(threat)) == threat


@pytest.mark.parametrize(
    "text",
    [
        "", "linf", "linf much", "l3 1", "l2 1 side", "l2 1 colour red", "l2 1 side 4", "patch 1",
        "patch 1 side 4 side 4", "l0 0", "l0 2.5", "patch 1 side x", "patch 2 of 4x5",
    ],
)  # fmt: skip
def test_a_threat_that_is_none_is_refused_in_one_line(text):
    with pytest.raises(ValueError, match=r"^threat ") as error:
        parse_threat(text)
    assert repr(text) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        (["linf 0.1"], "'linf 0.1'"),
        ([], "none"),
        (["linf 0.1", "l2 1", "Linf 1/10: FGSM"], "'Linf 1/10: FGSM'"),
        (["linf 0.1", "l2 inf"], "'l2 inf'"),
        (["linf 0.1", "l2 1: PGD(eps=0.5)"], "eps"),
        (["linf 0.1", "l1 1: DeepFool"], "DeepFool"),
        (["linf 0.1", "l2 1: PGDD"], "PGDD"),
        (["linf 0.1", "l2 9"], "diagonal"),
        (["linf 0.1", "patch 1 side 3"], "side 3"),
        (["linf 0.1", "patch 16 side 2"], "16"),
        (["linf 0.1", "l0 1 group pixel"], "pixel"),
    ],
)
def test_threats_that_do_not_go_together_are_refused_in_one_line(texts, named):
    with pytest.raises(ValueError, match=re.escape(named)) as error:
        several(texts, shape=(1, 8, 8))
    assert "\n" not in str(error.value)


def test_each_threat_has_its_own_attacks_or_those_of_its_norm():
    found = several(["linf 0.1: PGD(steps=3, restarts=2), FGSM", "l2 0.5"])
    assert [(type(a).__name__, a.threat.norm) for a in found.values()] == [
        ("PGD", "linf"), ("FGSM", "linf"), *(("AutoAttack", "l2") for _ in USUAL["l2"]),
    ]  # fmt: skip
    assert next(iter(found.values())).restarts == 2


@pytest.mark.parametrize("norm", USUAL)
def test_the_usual_attacks_have_a_form_for_the_norm(norm):
    first = {"l0": "l0 2", "patch": "patch 1 side 2"}.get(norm, f"{norm} 0.1")
    found = several([first, "linf 0.2: FGSM"], shape=(1, 8, 8))
    assert len(found) == len(USUAL[norm]) + 1
    assert all(norm in ATTACKS[type(attack).__name__].norms for attack in list(found.values())[:-1])


# ---- recipe, command, files ----------------------------------------------------------------------------------

THREATS = ["linf 0.06: FGSM, PGD(steps=2)", "l2 0.5: PGD(steps=2)"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    shutil.copytree(BEFORE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return own(tmp_path / "finished")


def test_the_command_writes_prints_draws_and_reports(run, capsys):
    words = ["evaluate", "finished", "--threats", *THREATS, "--device", "cpu", "--json", "--out", "both.json"]
    assert main(words) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed == json.loads((run.parent / "both.json").read_text())
    found = EvaluationFile.from_json(printed)
    assert found.union is not None
    assert found.union == UnionReport.from_json(printed["union"])
    assert (found.union.worst, found.cascade) == (found.worst, "threat")
    assert list(found.union.threats) == ["linf 0.06", "l2 0.5"]
    assert (run.parent / "union.png").stat().st_size > 10_000
    # The same as from Python, each attack alone.
    target = load_target("finished", threats=THREATS, device="cpu")
    x, y, ids = target.test()
    python = union(evaluate(target.model, x, y, target.attacks, ids=ids, seed=target.settings.seed, cascade=False))
    assert python.outcomes == printed["union"]["outcomes"]
    runs.write_json(run / "evaluation-2.json", printed)
    page = str(report([run], images=0))
    assert all(text in page for text in ("several threats at once", found.union.average.percent, found.worst.text))


def test_the_schema_of_the_report_is_up_to_date():
    path = Path(__file__).parents[2] / "docs/schemas/union.json"
    assert json.loads(path.read_text()) == UnionReport.schema()


def test_attacks_belong_to_one_threat(run, capsys):
    assert main(["evaluate", "finished", "--threats", *THREATS, "--attacks", "FGSM"]) == 2
    line = capsys.readouterr().err.strip()
    assert "\n" not in line
    assert "--attacks" in line
    assert "linf 0.06: FGSM" in line


def test_a_recipe_names_several_threats(tmp_path):
    tables = read_recipe("digits-linf-pgdat")
    tables["train"] |= {"epochs": 1}
    tables["data"] |= {"limit": 300}
    tables["evaluate"] |= {"threats": THREATS, "limit": 20, "last": False}
    done = run_job(job(tables, "both"), tmp_path / "both", progress=False)
    assert done.evaluation.union is not None
    assert done.evaluation.cascade is False
    assert [attack.threat.text for attack in done.evaluation.attacks.values()] == ["linf 0.06", "linf 0.06", "l2 0.5"]
    # A second evaluation uses the run's threats, and attacks that are given replace them.
    assert load_target(str(tmp_path / "both")).settings.threats == tuple(THREATS)
    assert list(load_target(str(tmp_path / "both"), attacks=["FGSM"]).attacks) == ["FGSM"]
    tables["evaluate"]["threats"] = "linf 0.06"
    with pytest.raises(UsageError, match=r"evaluate\.threats"):
        job(tables, "both")


def test_the_picture_says_what_the_report_says():
    found = union(made("1111110", a1="fffsss-", b1="sfffss-", c1="ssssss-")).to_json()
    figure = plots.union(found)
    accuracy, overlap = figure.axes
    shares = [found["threats"][t]["robust"]["value"] for t in found["threats"]]
    wanted = [*shares, found["average"]["value"], found["worst"]["value"]]
    assert [bar.get_width() for bar in accuracy.patches] == pytest.approx([100 * v for v in wanted])
    # The third threat fools no sample: its row has no figure.
    texts = [text.get_text() for text in overlap.texts]
    assert texts == ["3", "67 %", "0 %", "67 %", "3", "0 %"]
    with pytest.raises(ValueError, match="threats"):
        plots.union({**found, "threats": {}})
