"""Result files: every committed one is read through its migration, and comes back the same from its type."""

import json
from pathlib import Path

import pytest

from atent.experiments import migrate
from atent.experiments.results import (
    BenchFile,
    CertificateFile,
    CertifiedTable,
    ComparisonFile,
    EvaluationFile,
    SweepFile,
    TheoryFile,
    TransferFile,
)

ROOT = Path(__file__).parents[2]
KINDS = {
    "bench": (migrate.bench, BenchFile),
    "evaluation": (migrate.evaluation, EvaluationFile),
    "certificate": (migrate.certificate, CertificateFile),
    "certified": (migrate.certified, CertifiedTable),
    "comparison": (migrate.comparison, ComparisonFile),
    "sweep": (migrate.sweep, SweepFile),
    "theory": (migrate.theory, TheoryFile),
    "transfer": (migrate.transfer, TransferFile),
}
FILES = [
    (path, kind)
    for kind in KINDS
    for place in ("results", "tests/files/before_subsets")
    for path in sorted((ROOT / place).rglob(f"{kind}/*.json" if kind in ("theory", "certified") else f"{kind}*.json"))
]


@pytest.mark.parametrize(("path", "kind"), FILES, ids=lambda value: str(value).removeprefix(f"{ROOT}/"))
def test_committed_result_is_read_and_comes_back(path, kind):
    migrated, cls = KINDS[kind]
    content = json.loads(path.read_text())
    before = json.dumps(content)
    current = migrated(content)
    found = cls.from_json(current)
    assert json.dumps(content) == before
    assert cls.from_json(json.loads(json.dumps(found.to_json()))) == found
    assert migrated(current) == current
    plain = found.to_json()
    for key, value in current.items():
        if not isinstance(value, dict | list):
            assert plain[key] == value


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_has_a_committed_file(kind):
    assert any(found == kind for _, found in FILES)


@pytest.mark.parametrize("kind", KINDS)
def test_a_later_version_and_an_unknown_key_are_refused(kind):
    migrated, cls = KINDS[kind]
    path = next(path for path, found in FILES if found == kind)
    current = migrated(json.loads(path.read_text()))
    with pytest.raises(ValueError, match="version 99"):
        migrated({**current, "schema_version": 99})
    with pytest.raises(ValueError, match="unheard_of"):
        cls.from_json({**current, "unheard_of": 1})


@pytest.mark.parametrize("kind", KINDS)
def test_schema_file_is_up_to_date(kind):
    path = ROOT / "docs/schemas" / f"{kind}.json"
    assert json.loads(path.read_text()) == KINDS[kind][1].schema()


def test_a_file_is_read_as_its_type_and_an_error_names_it(tmp_path):
    path = next(path for path, found in FILES if found == "evaluation")
    content = json.loads(path.read_text())
    copy = tmp_path / "evaluation.json"
    copy.write_text(json.dumps(content))
    found = migrate.read(copy, EvaluationFile)
    assert (found.worst.value, found.n) == (content["worst"]["value"], content["n"])
    for changed, what in (
        ({"schema_version": 99}, "version 99"),
        ({"n": "many"}, "n: "),
        ({"worst": {}}, "worst"),
        ({"data": {}}, "data"),
    ):
        copy.write_text(json.dumps(migrate.evaluation(content) | changed))
        with pytest.raises(ValueError, match=what) as error:
            migrate.read(copy, EvaluationFile)
        assert str(error.value).startswith(str(copy))
        assert "\n" not in str(error.value)
