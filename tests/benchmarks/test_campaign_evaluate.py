"""The evaluation queue of a campaign and its tables: on a toy network, and the files that the repository ships."""

import json
import re
import shlex
import shutil
import statistics
from pathlib import Path

import campaign_evaluate as queue
import campaign_pages
import campaign_tables as tables
import pytest
import tables as pages

from atent import runs as folder
from atent.cli.certify import certify as certify_command
from atent.cli.evaluate import evaluate as evaluate_command
from atent.cli.parse import read
from atent.evaluate.outcomes import per_sample
from atent.experiments import recipes as config
from atent.paper import engine, timing
from atent.paper.layout import Training
from atent.paper.scales import SMOKE
from atent.paper.tables import TABLES
from atent.runs.checkpoint import export

ROOT = Path(__file__).parents[2]

NAME, TUNED = "digits-linf-standard", "digits-finetune-pgdat"
STEPS = """
scale = "smoke"
jobs = "jobs.toml"
[[step]]
networks = ["*"]
measures = "natural*"
[[step]]
networks = ["*-standard"]
attack = "FGSM(norm=linf, eps=0.1)"
n = 20
[[step]]
networks = ["*-standard"]
minutes = 0.5
argv = ["evaluate", "{network}", "--attacks", "FGSM", "--norm", "linf", "--eps", "0.1", "--limit", "20",
        "--out", "{network}/evaluation.json"]
"""
JOBS = f"""
scale = "smoke"
[[job]]
name = "{NAME}"
kind = "train"
[[job]]
name = "digits-linf-atent"
kind = "train"
hours = 2.5
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder as a campaign's worker leaves it."""
    place = tmp_path_factory.mktemp("campaign")
    bench = engine.Bench(SMOKE, place / "runs", config.job, config.read_recipe)
    (tuned,) = (t for t in TABLES["finetune"](SMOKE).trainings() if t.name == TUNED)
    for training in (Training(NAME), tuned):
        run = engine.train(bench, training, 0)
        export(run, place / "out" / training.name)
        job = {
            "name": training.name, "training": training.name, "kind": "train", "seed": 0, "commit": "0" * 40,
            "epochs": 3, "images_seen": 3000, "core_hours": 0.1,
            "segments": [{"hardware": "a machine", "threads": 1, "precision": "float32"}],
        }  # fmt: skip
        folder.write_json(place / "out" / training.name / "job.json", job)
    (place / "steps.toml").write_text(STEPS)
    (place / "jobs.toml").write_text(JOBS)
    return place


def call(place, *words):
    return queue.main([*words, "--steps", str(place / "steps.toml"), "--results", str(place / "out")])


def test_a_queue_stops_resumes_and_ends(trained, tmp_path, capsys):
    later = shutil.ignore_patterns(queue.ENTRIES, engine.MEASURES, "evaluation*", "*.md")
    trained = shutil.copytree(trained, tmp_path / "campaign", ignore=later)
    assert call(trained, "run", "--minutes", "0") == 1
    assert "time limit reached" in capsys.readouterr().err
    assert call(trained, "status") == 0
    shown = capsys.readouterr().out
    assert f"{NAME}: 0 of 3 done" in shown
    assert "digits-linf-atent: not trained, 2.5 core hours" in shown
    assert call(trained, "run", NAME) == 0
    made = queue.entries(trained / "out" / NAME)
    assert [entry["finished"] for entry in made] == [True] * len(made)
    assert all(entry["core_seconds"] >= 0 and "commit" in entry for entry in made)
    measures = engine.measured(trained / "out" / NAME)
    assert measures["FGSM(norm=linf, eps=0.1), stratified 20"]["share"]["n"] == 20
    evaluation = json.loads((trained / "out" / NAME / "evaluation.json").read_text())
    assert evaluation["attacks"]["FGSM"]["robust"]["n"] == 20
    assert call(trained, "run") == 0
    assert queue.entries(trained / "out" / NAME) == made
    assert call(trained, "run", "nothing") == 1
    assert "nothing" in capsys.readouterr().err


def test_the_tables_say_what_is_missing(trained):
    place = trained / "out"
    call(trained, "run")
    (place / "README.md").write_text(f"# Page\n\n{tables.BEGIN}\n{tables.END}\n")
    steps = queue.read_steps(trained / "steps.toml")
    tables.write_all(steps, place, trained / "none")
    shown = (place / "tables.md").read_text()
    assert "not trained (~2.5 core hours)" in shown
    assert "not trained (not in the queue)" in shown
    clean = engine.measured(place / NAME)["natural, stratified 100"]["share"]
    assert f"{100 * clean['value']:.1f} [" in shown
    # A network that begins from another is recognised away from the place where it was trained.
    tuned = engine.measured(place / TUNED)["natural, stratified 100"]["share"]
    assert f"| PGD-AT, fine-tuned | clean | - | {100 * tuned['value']:.1f} [" in shown
    page = (place / "README.md").read_text()
    assert f"`{NAME}`" in page
    # Each network with what its evaluation took, and nothing that is missing.
    assert re.search(rf"\| `{NAME}` \| nothing \| \d+\.\d\d \|", page)
    assert "evaluation.json" in (place / NAME / "card.md").read_text()
    assert "`digits-linf-atent` (2.5)" in page
    tables.write_all(steps, place, trained / "none")
    assert (place / "README.md").read_text() == page
    with pytest.raises(ValueError, match="lacks the line"):
        tables.filled("no marks", "")


def test_the_times_of_a_campaign_are_a_table(trained, tmp_path):
    place = tmp_path / "out"
    shutil.copytree(trained / "out", place)
    (place / "README.md").write_text(f"# Page\n\n{tables.BEGIN}\n{tables.END}\n")
    steps, kept = queue.read_steps(trained / "steps.toml"), place / tables.TIMES
    tables.write_all(steps, place, trained / "none")
    assert "## Table S4: seconds per epoch\n\nnot measured" in (place / "tables.md").read_text()
    bench, job = engine.Bench(SMOKE, tmp_path, config.job, config.read_recipe), {"kind": "timing", "segments": [{}]}
    found = {norm: timing.timed(bench, norm) for norm in timing.NORMS}
    kept.mkdir()
    for norm, times in found.items():
        folder.write_json(kept / f"timing-{norm}.json", times)
    folder.write_json(kept / "job.json", {**job, "name": tables.TIMES, "training": tables.TIMES, "core_hours": 0.1})
    tables.write_all(steps, place, trained / "none")
    content = json.loads((place / "table-s4.json").read_text())
    assert content["timings"] == found
    assert (place / "table-s4.png").is_file()
    shown = (place / "tables.md").read_text()
    assert "## Table S4: seconds per epoch\n\n| row |" in shown
    assert f"{statistics.mean(found['l2']['rows']['atent-10']['cpu_seconds']):.2f}" in shown
    assert "table-s4" not in campaign_pages.times(place)


@pytest.mark.parametrize(
    ("step", "said"),
    [("networks = ['*']", "one of measures"), ("networks = ['*']\nmeasures = '*'\nattack = 'FGSM'", "one of measures")],
)
def test_a_bad_step(trained, tmp_path, capsys, step, said):
    (tmp_path / "jobs.toml").write_text(JOBS)
    (tmp_path / "steps.toml").write_text(f'scale = "smoke"\njobs = "jobs.toml"\n[[step]]\n{step}\n')
    assert call(tmp_path, "status") == 1
    assert said in capsys.readouterr().err


# ---- what the repository ships -------------------------------------------------------------------------------

SHIPPED = queue.read_steps(ROOT / "benchmarks" / "cifar_evaluate.toml")
RESULTS = ROOT / "results" / "cifar"


def test_every_network_of_the_queue_is_evaluated():
    for job in SHIPPED.queue.jobs:
        if job.kind not in ("train", "curves"):
            continue
        network = queue.Network(Path("somewhere") / job.name, job.training or job.name, job.seed)
        pieces = SHIPPED.pieces(network)
        assert pieces, job.name
        assert all(piece.hours > 0 for piece in pieces)
        asked = {piece.measure.key for piece in pieces if piece.measure}
        assert {m.key for m in queue.of_tables(SHIPPED.scale, network.training)} <= asked
        assert "natural, stratified 10000" in asked, job.name
        for piece in pieces:
            if piece.argv:
                command = {"evaluate": evaluate_command, "certify": certify_command}[piece.argv[0]]
                assert read(command, list(piece.argv[1:]), shlex.join(piece.argv))


def test_the_page_and_the_tables_are_those_of_the_networks(tmp_path):
    text = (RESULTS / "README.md").read_text()
    # A campaign that is at work may have added a network that the page does not have yet.
    found = [network for network in queue.networks(RESULTS, SHIPPED.queue) if f"| `{network.name}` | " in text]
    assert "cifar10-l2-pgdat" in {network.name for network in found}
    tables.made_as_runs(found, SHIPPED.scale.name, tmp_path)
    bench = engine.Bench(SHIPPED.scale, tmp_path, config.job, config.read_recipe)
    made = tables.Campaign(SHIPPED, found, bench)
    assert tables.filled(text, tables.page(made)) == text
    for table, content in tables.contents(made):
        assert json.loads((RESULTS / f"{table.name}.json").read_text()) == content


def evaluated(place, name, attack):
    """A network's folder with the evaluation of another, by an attack of that name."""
    (place / name).mkdir(parents=True)
    folder.write_json(place / name / "job.json", {"name": name, "epochs": 15, "core_hours": 3.0})
    found = json.loads((ROOT / "results/mnist-linf-atent-laptop/evaluation.json").read_text())
    found["attacks"] = {attack: next(iter(found["attacks"].values()))}
    folder.write_json(place / name / "evaluation.json", found)


def test_the_readmes_table_changes_once_both_networks_are_evaluated(tmp_path):
    text = "<!-- headline: cifar -->\npresent\n<!-- end -->\n"
    place = tmp_path / "cifar"
    evaluated(place, "cifar10-l2-pgdat", "AutoAttack")
    assert pages.refreshed(text, tmp_path) == text
    evaluated(place, "cifar10-l2-atent", "PGD-20")
    assert pages.refreshed(text, tmp_path) == text
    evaluated(tmp_path / "other", "cifar10-l2-atent", "AutoAttack")
    (tmp_path / "other" / "cifar10-l2-atent").rename(place / "cifar10-l2-atent-new")
    folder.write_json(place / "cifar10-l2-atent-new" / "job.json", {"name": "cifar10-l2-atent", "epochs": 15})
    shown = pages.refreshed(text, tmp_path)
    assert "present" not in shown
    assert "| ATENT | PGD-AT |" in shown
    assert "AutoAttack, linf 76/255" in shown
    # The repository's README is as its results say.
    readme = (ROOT / "README.md").read_text()
    assert pages.refreshed(readme, ROOT / "results") == readme


def test_autoattack_of_the_tables_counts_as_the_strongest_attack_in_every_norm():
    for network in campaign_pages.trained(ROOT / "results/cifar"):
        measures = folder.read_json(ROOT / "results/cifar" / network.job["name"] / "measures.json")
        norm = network.radius.partition(" ")[0]
        assert bool(network.strongest) == any(key.startswith(f"AutoAttack(norm={norm}, ") for key in measures)


PAIRS = [pair for pair in tables.PAIRS.values() if all((RESULTS / name / "measures.json").is_file() for name in pair)]


@pytest.mark.parametrize("pair", PAIRS)
def test_differences_are_those_of_the_outcomes_by_image(pair):
    shares = [folder.read_json(RESULTS / name / "measures.json") for name in pair]
    steps = queue.read_steps(ROOT / "benchmarks/cifar_evaluate.toml")
    networks = queue.networks(ROOT / "results/cifar", steps.queue)
    lines = tables.differences(tables.Campaign(steps, networks, None), pair)
    assert set(shares[0]) & set(shares[1])
    for key in set(shares[0]) & set(shares[1]):
        one, other = (each[key]["outcomes"]["share"] for each in shares)
        lost = [sum(a == "1" and b == "0" for a, b in zip(x, y)) for x, y in ((one, other), (other, one))]
        what, n = key.rpartition(", stratified")[0].replace("natural", "no attack"), len(one)
        (line,) = (each for each in lines if each.startswith(f"| {what} | ") and f"| {n:,} |" in each)
        assert f"| {100 * (lost[0] - lost[1]) / n:+.1f} [" in line
        assert f"| {n:,} | {lost[0]:,} | {lost[1]:,} |" in line


def test_the_difference_of_two_evaluation_files_is_that_of_their_outcomes():
    pair = tables.PAIRS["ATENT less PGD-AT in l2"]
    steps = queue.read_steps(ROOT / "benchmarks/cifar_evaluate.toml")
    lines = tables.differences(tables.Campaign(steps, queue.networks(RESULTS, steps.queue), None), pair)
    found = [folder.read_json(RESULTS / name / "evaluation-autoattack.json") for name in pair]
    sides = [{r["id"]: r["attacks"]["AutoAttack"] == "robust" for r in per_sample(each["outcomes"])} for each in found]
    assert [sum(side.values()) for side in sides] == [each["worst"]["k"] for each in found]
    lost = [sum(x[i] and not y[i] for i in x) for x, y in (sides, sides[::-1])]
    (line,) = (each for each in lines if each.startswith("| AutoAttack, l2 1 | "))
    assert f"| 1,000 | {lost[0]:,} | {lost[1]:,} |" in line


def test_tables_do_not_mix_definitions_of_the_corruptions():
    old, new = {"definitions": 1}, {"definitions": 2}
    assert campaign_pages.comparable([old, None, new]) == [None, None, new]
    assert campaign_pages.comparable([old, None]) == [old, None]
