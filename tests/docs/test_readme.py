"""The README and the pages say what is so: their examples run, their commands parse, their figures are the results'."""

import importlib.util
import json
import os
import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
from commands import given, train_job
from kit import threat_in

from atent import load
from atent.attacks import ATTACKS
from atent.data import DataSettings
from atent.data import load as load_data
from atent.experiments.recipes import read_recipe, recipe_names
from atent.integrations.packages import PACKAGES
from atent.methods import METHODS
from atent.paper.evidence import difference
from atent.runs import with_present_keys

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PAGES = {path: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
# These pages make what their commands name; their own tests run them whole.
WHOLE = re.compile("training|add-.*")
TEXT = "\n".join(text for path, text in PAGES.items() if not WHOLE.fullmatch(path.stem))


def test_the_readme_is_short_and_says_where_the_rest_is():
    assert len(README.splitlines()) <= 150
    for name in ("measured", "reproduce", "methods", "recipes", "start", "index"):
        assert f"docs/{name}.md" in README


def test_the_readme_names_every_attack_and_method():
    plain = re.sub(r"[\s-]", "", README).lower()
    for name in (*ATTACKS, *METHODS):
        assert name.lower() in plain, name


@pytest.mark.parametrize("registry", [ATTACKS, METHODS], ids=["attacks", "methods"])
def test_the_tables_give_the_norms_of_each(registry):
    """The tables of docs/methods.md name each attack and method once, with the norms that it takes."""
    rows = re.findall(r"^\| (`[^|]*) \| ([^|]*) \|", PAGES[ROOT / "docs" / "methods.md"], re.M)
    given = [(name, norms) for names, norms in rows for name in re.findall(r"`(\w+)`", names)]
    for name, kind in registry.items():
        # A method without a threat takes none.
        wanted = ", ".join(kind.norms) if "threat" in {each.name for each in fields(kind)} else "no threat"
        assert [norms for other, norms in given if other == name] == [wanted], name


def test_the_table_of_threats_has_every_attack_and_method():
    """docs/threats.md says of each attack and of each method with a threat which norms it takes."""
    text = PAGES[ROOT / "docs" / "threats.md"]
    given = {}
    for names, *cells in re.findall(r"^\| (.*?) " + 5 * r"\|([^|]*)" + r"\|$", text, re.M):
        norms = [norm for norm, cell in zip(("linf", "l2", "l1", "l0", "patch"), cells) if cell.strip() == "yes"]
        given |= {name: norms for name in re.findall(r"\w+", names)}
    for registry in (ATTACKS, METHODS):
        for name, kind in registry.items():
            if "threat" in {each.name for each in fields(kind)}:
                assert given.get(name) == list(kind.norms), name


def test_the_page_on_attacks_lists_those_that_take_targets():
    (listed,) = re.findall(r"^(\w+, [\w\s,]+)\ssupport\stargets", PAGES[ROOT / "docs" / "attacks.md"], re.M)
    assert set(re.split(r",\s|\sand\s", listed)) == {name for name, kind in ATTACKS.items() if kind.aims}


def test_every_page_is_in_the_site():
    """A page is in the table of contents of the index, or in that of a page which is."""
    found, new = set(), {"index"}
    while new:
        found |= new
        trees = [re.findall(r"```\{toctree\}\n(.*?)```", PAGES[ROOT / "docs" / f"{page}.md"], re.S) for page in new]
        lines = {line for tree in trees for text in tree for line in text.splitlines()}
        new = {line for line in lines if ROOT / "docs" / f"{line}.md" in PAGES} - found
    assert found == {path.stem for path in (ROOT / "docs").glob("*.md")}


def test_the_sites_table_names_every_recipe():
    spec = importlib.util.spec_from_file_location("conf", ROOT / "docs" / "conf.py")
    conf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(conf)
    table = conf.recipe_table()
    for name in recipe_names():
        assert f"| `{name}` | {read_recipe(name)['about']} |" in table


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_links_and_figures_exist(path):
    for target in re.findall(r"\]\(([^)#]+)\)", PAGES[path]):
        if not target.startswith("http"):
            assert (path.parent / target).exists(), target


@pytest.mark.slow
def test_the_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.S)
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    assert names["fitted"].best["validation_robust"] > 0.3


def test_the_commands_parse():
    """Every `atent train` line of the README builds a job; options and names cannot rot."""
    lines = [line.split("#")[0].split() for line in TEXT.splitlines() if line.startswith("atent train ")]
    assert lines
    for _, _, *args in lines:
        if "--resume" in args:
            assert given("train", *args)["resume"]
        else:
            assert train_job(*args).recipe


def test_the_commands_that_evaluate_parse():
    from atent.attacks.several import several
    from atent.attacks.spec import parse

    lines = [line.removeprefix("$ ") for line in TEXT.splitlines()]
    found = [
        shlex.split(line, comments=True) for line in lines if line.startswith(("atent evaluate ", "atent attack "))
    ]
    assert {words[1] for words in found} == {"evaluate", "attack"}
    for _, command, *args in found:
        options = given(command, *args)
        threat = threat_in(args[args.index("--norm") + 1] if "--norm" in args else "linf")
        for text in (options["attacks"] or ()) if command == "evaluate" else [options["attack"]]:
            # An attack of another package parses where that is installed: test_peers.py.
            if text.partition(":")[0] not in PACKAGES:
                parse(text, threat, ATTACKS)
        if options.get("threats"):
            assert len(several(options["threats"])) >= len(options["threats"])


def measured(heading):
    """A section of docs/measured.md, on one line."""
    (section,) = (s for s in PAGES[ROOT / "docs" / "measured.md"].split("\n## ") if s.startswith(heading + "\n"))
    return " ".join(section.split())


def test_figures_are_those_of_the_results():
    """What the README says of MNIST and of the step is what the commands wrote."""
    found = with_present_keys(json.loads((ROOT / "results/mnist-linf-atent-laptop/evaluation.json").read_text()))
    shares = [found["clean"], *(a["robust"] for a in found["attacks"].values())]
    cells = [f"{100 * s['value']:.1f} % [{100 * s['low']:.1f}, {100 * s['high']:.1f}]" for s in shares]
    assert f"| {' | '.join(cells)} |" in TEXT
    assert f"first {found['data']['n']:,} test images" in measured("MNIST, linf eps 0.3")
    harder = with_present_keys(
        json.loads((ROOT / "results/mnist-linf-atent-laptop/evaluation-margin.json").read_text())
    )
    for share in (harder["worst"], *(a["robust"] for a in harder["attacks"].values())):
        assert f"{100 * share['value']:.1f} % [{100 * share['low']:.1f}, {100 * share['high']:.1f}]" in TEXT
    for name in ("mma", "pgdat"):
        found = with_present_keys(json.loads((ROOT / f"results/mma-digits-l2/{name}.json").read_text()))
        for share in (found["attacks"]["PGD-20"]["robust"], found["worst"]):
            cell = f"{100 * share['value']:.1f} %[{100 * share['low']:.1f}, {100 * share['high']:.1f}]"
            assert cell.replace(" ", "") in TEXT.replace(" ", "").replace("\n", "")
    for result in with_present_keys(json.loads((ROOT / "results/atent_step.json").read_text()))["results"]:
        ratios = [result["ratio_to_accumulated"][kind] for kind in ("authors", "inputs only")]
        cells = [f"{r['median']:.2f} [{r['q10']:.2f}, {r['q90']:.2f}]" for r in ratios]
        assert " | ".join(cells) in TEXT


@pytest.mark.parametrize("name", ["digits-linf", "digits-l2", "mnist5k-linf"])
def test_comparisons_are_those_of_the_results(name):
    """A row of the README for each recipe, and the claim that stands above them."""
    rows = with_present_keys(json.loads((ROOT / f"results/{name}/comparison.json").read_text()))["rows"]
    for row in rows:
        clean, weak, worst = row["clean"], row["attacks"]["PGD-20"], row["worst"]
        cells = [f"{100 * cell['mean']:.1f} ± {100 * cell['sd']:.1f}" for cell in (clean, weak, worst)]
        interval = f"[{100 * worst['low']:.1f}, {100 * worst['high']:.1f}]"
        assert f"| `{row['recipe']}` | {' | '.join(cells)} {interval} |" in TEXT
    plain = next(row["worst"]["high"] for row in rows if row["recipe"] == f"{name}-standard")
    trained = [row for row in rows if row["threat"] is not None and row["method"] not in ("Standard", "Gaussian")]
    assert len(trained) >= 4
    assert all(row["worst"]["low"] > plain for row in trained)


def sections_with(row):
    """The sections of all pages that have a table with this row, each on one line."""
    found = [" ".join(s.split()) for text in PAGES.values() for s in re.split(r"\n#+ ", text) if f"\n| `{row}` |" in s]
    assert found
    return found


def _lead(row, base):
    """How far one row of a comparison lies above another under the worst attack, paired by seed."""
    one, other = (
        {"each": [s["worst"]["value"] for s in r["seeds"]], "n": r["seeds"][0]["worst"]["n"]} for r in (row, base)
    )
    return difference(one, other)


def test_what_is_decided_on_digits_is_what_the_results_decide():
    """Of the adversarial methods, those that the README puts above or below PGD-AT, and no others."""
    reported = {"digits-linf": {"mma": True}, "digits-l2": {"trades": False, "trades-smoothing": False}}
    text = " ".join(TEXT.split())
    for name, expected in reported.items():
        rows = with_present_keys(json.loads((ROOT / f"results/{name}/comparison.json").read_text()))["rows"]
        rows = {row["recipe"].removeprefix(f"{name}-"): row for row in rows}
        leads = {key: _lead(row, rows["pgdat"]) for key, row in rows.items()}
        weak = ("standard", "gaussian", "entropy-sgd", "pgdat")
        found = {key: lead.inside(0) for key, lead in leads.items() if key not in weak}
        assert {key: answer for key, answer in found.items() if answer is not None} == expected
        assert all(f"({leads[key]}" in text for key in expected)


def test_the_two_objectives_are_those_of_the_results():
    found = with_present_keys(json.loads((ROOT / "results/digits-data-entropy/comparison.json").read_text()))
    rows = {row["recipe"].removeprefix("digits-l2-atent-"): row for row in found["rows"]}
    for row in rows.values():
        cells = [row["clean"], row["attacks"]["PGD-20"], row["worst"]]
        reported = " | ".join(f"{100 * cell['mean']:.1f} ± {100 * cell['sd']:.1f}" for cell in cells)
        assert f"{reported} [{100 * row['worst']['low']:.1f}, {100 * row['worst']['high']:.1f}] |" in TEXT
    gain = _lead(rows["data-entropy"], rows["free-energy"])
    assert gain.inside(0) is True
    value, interval = str(gain).split(" ", 1)
    sections = sections_with("digits-l2-atent-data-entropy")
    assert any(f"{value} points {interval}" in section for section in sections)
    best = {
        row["recipe"]: row
        for row in with_present_keys(json.loads((ROOT / "results/digits-l2/comparison.json").read_text()))["rows"]
    }
    for name in ("digits-l2-pgdat", "digits-l2-atent"):
        assert f"`{name}` ({100 * best[name]['worst']['mean']:.1f} %)" in TEXT
        assert _lead(rows["data-entropy"], best[name]).inside(0) is False
        assert _lead(rows["free-energy"], best[name]).inside(0) is False
    gap = _lead(best["digits-l2-atent"], rows["data-entropy"]).found
    reported = f"{100 * gap.value:.1f} points [{100 * gap.low:.1f}, {100 * gap.high:.1f}]"
    assert any(reported in section for section in sections)


def test_parity_is_that_of_the_results():
    """No attack is weaker than its peer, and AutoAttack's figures are the file's."""
    found = with_present_keys(json.loads((ROOT / "results/parity.json").read_text()))
    rows = [row for result in found["results"] for row in result["rows"]]
    assert not any(row["weaker"] for row in rows)
    text = measured("Attacks compared with other libraries")
    assert f"{len({(row['ours'], row['peer']) for row in rows})} pairings" in text
    whole = [row for row in rows if row["ours"] == "AutoAttack"]
    ours, peer = ([round(100 * row[key]["value"]) for row in whole] for key in ("ours_robust", "peer_robust"))
    spent = [sum(row[key] for row in whole) for key in ("ours_seconds", "peer_seconds")]
    for shares in (ours, peer):
        assert "{}, {}, {} and {} %".format(*shares) in text
    cost = measured("Cost of AutoAttack")
    for figure in (*(f"{seconds:.0f} s" for seconds in spent), f"{spent[1] / spent[0]:.2f}"):
        assert figure in cost


@pytest.mark.parametrize("path", sorted((ROOT / "results").glob("autoattack-*.json")), ids=lambda path: path.stem)
def test_the_cost_of_autoattack_is_that_of_the_results(path):
    found = json.loads(path.read_text())
    seconds = {name: sum(values) for name, values in found["cpu_seconds"].items()}
    cells = [str(found["n"]), f"{seconds['ours']:.0f} s", f"{seconds['port']:.0f} s", f"{found['ratio']['total']:.2f}"]
    robust = " / ".join(f"{100 * found['robust'][name]['value']:.1f} %" for name in ("ours", "port"))
    assert f"| {' | '.join(cells)} | {robust} |" in TEXT


def _percent(share):
    return "-" if share is None else f"{100 * share['value']:.1f} [{100 * share['low']:.1f}, {100 * share['high']:.1f}]"


@pytest.mark.parametrize("name", ["digits", "mnist5k"])
def test_what_is_certified_is_that_of_the_results(name):
    """Every row of the certified table is a row of the README, and the claim on ATENT's noise holds."""
    rows = {
        row["run"]: row
        for row in with_present_keys(json.loads((ROOT / f"results/certified/{name}.json").read_text()))["rows"]
    }
    assert len(rows) == 7
    for run, row in rows.items():
        proved = [_percent(entry["share"]) for entry in row["certified"] if entry["l2"] > 0]
        cells = [_percent(row["clean"]), _percent(row["smoothed"]), *proved]
        (line,) = [line for line in TEXT.splitlines() if line.startswith(f"| `{run}` | {cells[0]} |")]
        assert [cell for cell in map(str.strip, line.split("|")[2:-2]) if cell != "-"] == [c for c in cells if c != "-"]
    published, corrected = (
        rows[f"{name}-l2-atent-smoothing{kind}"]["certified"][-1]["share"]["value"] for kind in ("", "-mended")
    )
    assert corrected > published
    if name == "mnist5k":
        sections = sections_with("mnist5k-l2-atent-smoothing-mended")
        assert any(f"{100 * (corrected - published):.0f} points" in section for section in sections)


def test_the_speed_of_certificates_is_that_of_the_results():
    found = with_present_keys(json.loads((ROOT / "results/certify.json").read_text()))
    for result in found["results"]:
        ratios = [result["rows"][f"usual, batch {b}"]["times_slower_than_atent"] for b in (1000, 400, 200)]
        cells = [f"{r['median']:.2f} [{r['q10']:.2f}, {r['q90']:.2f}]" for r in ratios]
        assert f"| {result['model']} | {' | '.join(cells)} |" in TEXT


def test_the_provable_network_is_verified_again():
    """The kept weights of kw_small verify as the file says, on the first images of the real test set."""
    from atent import Threat
    from atent.certify import verified

    run = ROOT / "results/mnist-linf-crown-ibp"
    found = json.loads((run / "certificate.json").read_text())
    (said,) = found["certified"]
    assert (found["n"], said["threat"]["eps"]) == (10_000, 0.1)
    assert said["share"]["value"] >= 0.9
    assert f"{100 - 100 * said['share']['value']:.1f} %" in TEXT
    if not os.environ.get("ATENT_DATA_ROOT") or not (Path(os.environ["ATENT_DATA_ROOT"]) / "mnist").is_dir():
        pytest.skip("ATENT_DATA_ROOT holds no mnist")
    part = load_data(DataSettings("mnist")).test.first(100)
    x, y = part.batch(range(100))
    proved = verified(load(run), x, y, Threat("linf", 0.1), "crown")
    assert part.ids[proved].tolist() == [i for i in said["verified"] if i < 100]


def test_the_kept_weights_load_and_classify():
    """The float16 weights in results/ are a whole run folder; on real images where they are available."""
    model = load(ROOT / "results/mnist-linf-atent-laptop")
    assert sum(p.numel() for p in model.parameters()) == 312_202
    if not os.environ.get("ATENT_DATA_ROOT") or not (Path(os.environ["ATENT_DATA_ROOT"]) / "mnist").is_dir():
        pytest.skip("ATENT_DATA_ROOT holds no mnist")
    part = load_data(DataSettings("mnist")).test.first(200)
    x, y = part.batch(range(200))
    assert (model(x).argmax(1) == y).double().mean() > 0.97
