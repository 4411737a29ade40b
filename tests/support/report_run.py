"""What the tests of the report share: a run with everything, and a page read back."""

import json
import shutil
from html.parser import HTMLParser
from pathlib import Path

import pytest
from kit import unsealed

from atent.experiments import recipes as config
from atent.experiments.certificate import certify_folder
from atent.experiments.evaluation import Request, evaluate_target
from atent.experiments.pipeline import run_job
from atent.experiments.target import load_target
from atent.runs import write_json

RESULTS = Path(__file__).parents[2] / "results"
CAVEAT = "Not measured by AutoAttack: a stronger attack may lower these figures."
PART = ("attacked", "robust", "fooled", "distance", "forwards", "backwards", "seconds")


def complete_run(path):
    """A trained run with two evaluations, a sweep, checks and two certificates."""
    tables = config.read_recipe("digits-linf-pgdat")
    tables["method"]["steps"] = 2
    tables["train"] |= {"epochs": 6, "validate_limit": 30, "device": "cpu"}
    tables["data"] |= {"test_limit": 40}
    tables["evaluate"] |= {"attacks": ["FGSM", "PGD(steps=3)", "PGD(steps=4, loss=margin)"]}
    run_job(config.job(tables, "digits-linf-pgdat"), path, progress=False)
    target = load_target(str(path), attacks=["FGSM", "PGD(steps=2)"], limit=10, device="cpu")
    found = evaluate_target(target, Request(radii=("0.05", "0.15")), progress=False).to_json()
    found["checks"] = [
        {"name": "logits", "passed": True, "figure": "outputs lie in [-3, 3]", "why": "not shown"},
        {"name": "eps-zero", "passed": False, "figure": "9 of 10 stand", "why": "the attack ignores eps"},
    ]
    write_json(path / "evaluation-2.json", found)
    certify_folder(path, sigma=0.25, n=60, n0=10, limit=5, device="cpu", progress=False)
    certify_folder(path, method="ibp", radii=[0.01], limit=5, device="cpu", progress=False)
    return path


# Modules that import these fixtures have them as `made` and `run`.
@pytest.fixture(scope="module", name="made")
def made_once(tmp_path_factory):
    """A `complete_run`, which no test changes."""
    return complete_run(tmp_path_factory.mktemp("report") / "whole")


@pytest.fixture(name="run")
def run_to_change(made, tmp_path):
    """A copy of it to change."""
    shutil.copytree(made, tmp_path / "copy")
    return unsealed(tmp_path / "copy")


def part(*inside):
    """A part of a page, read."""
    return Document("".join(inside))


def load(path):
    return json.loads(path.read_text())


def change(path, **values):
    """Rewrite a JSON file with other values at its top."""
    path.write_text(json.dumps(load(path) | values))


class Document(HTMLParser):
    """Elements, tables and text of a page; fails where tags are not closed in order."""

    VOID = ("meta", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.words, self.tables = [], [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        names = [name for name, _ in attrs]
        assert len(names) == len(set(names))
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            value = dict(attrs).get("data-value")
            self.tables[-1][-1].append(["", None if value is None else float(value)])

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("script", "style"):
            self.words.append(data)
            if "tr" in self.open:
                self.tables[-1][-1][-1][0] += data

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    @property
    def text(self):
        return " ".join("".join(self.words).split())

    def rows(self, *headings):
        """The rows of the tables whose headings begin so, by the text of their first cell."""
        found = [t[1:] for t in self.tables if [cell[0] for cell in t[0]][: len(headings)] == list(headings)]
        assert found, headings
        return [{row[0][0]: row[1:] for row in body} for body in found]
