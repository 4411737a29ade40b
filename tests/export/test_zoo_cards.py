"""The cards of the package's networks: their figures are those of the results that they were exported from."""

import re
from dataclasses import asdict
from pathlib import Path

import pytest
from pydantic import TypeAdapter

from atent import zoo
from atent.experiments import migrate
from atent.experiments.comparison import caveat_of
from atent.experiments.gate import certificates
from atent.experiments.results import EvaluationFile
from atent.export.card import CARD, README, Card, Results, figures_of, markdown
from atent.runs import plain, read_json
from atent.runs.names import results_in

ROOT = Path(__file__).parents[2]
PLACES = {name: path for name, path in zoo.networks().items() if zoo.origin(name) == "built-in"}
EXPORTS = re.compile(r"^atent export (results/\S+) --format hub .*--out src/atent/zoo/(\S+)$", re.MULTILINE)
SOURCES = {name: ROOT / source for source, name in EXPORTS.findall((ROOT / "docs/export.md").read_text())}
"""The folder of results that each network is exported from, by the commands of the page."""


def results(place):
    read = {path: migrate.read(path, EvaluationFile) for path in results_in(place, "evaluation")}
    return Results(read, certificates(place, ""))


@pytest.mark.parametrize("name", PLACES)
def test_a_card_has_the_figures_of_the_results_beside_it(name):
    card, found = read_json(PLACES[name] / CARD), results(PLACES[name])
    figures, attacks = figures_of(found)
    assert card["figures"] == plain([asdict(each) for each in figures])
    assert card["attacks"] == plain([asdict(each) for each in attacks])
    caveat = caveat_of(found.evaluations[found.headline])
    assert [line for line in card["limits"] if line.startswith("Not measured by")] == ([caveat] if caveat else [])
    page = markdown(TypeAdapter(Card).validate_python({**card, "box": tuple(card["box"])}))
    assert (PLACES[name] / README).read_text() == page


@pytest.mark.parametrize("name", SOURCES)
def test_a_network_has_all_results_that_it_was_exported_from(name):
    source, place = SOURCES[name], PLACES[name]
    assert (place / "model.safetensors").read_bytes() == (source / "best.safetensors").read_bytes()
    found = {path.name: path.read_bytes() for path in results_in(source, "evaluation")}
    assert {path.name: path.read_bytes() for path in results_in(place, "evaluation")} == found, (
        f"export {source.relative_to(ROOT)} again, by its command in docs/export.md"
    )


def test_networks_from_results_are_among_them():
    assert {"mnist-linf-atent", "cifar10-l2-pgdat"} <= SOURCES.keys() <= PLACES.keys()
