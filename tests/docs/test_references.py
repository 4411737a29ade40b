"""The References sections of the docstrings: one form, and one citation of each paper."""

import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "atent"


@pytest.fixture
def references(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "docs" / "_ext"))
    monkeypatch.delitem(sys.modules, "references", raising=False)
    import references

    yield references
    sys.modules.pop("references", None)


def test_each_paper_is_cited_alike(references):
    cited = {}
    for path, text in references.cited(SOURCE):
        paper = references.PAPER.fullmatch(text)
        assert paper, (path, text)
        number = re.search(r"arXiv (\S+?)\.?$", paper["where"])
        key = (paper["authors"], paper["year"], number and number[1])
        assert cited.setdefault(paper["title"].lower(), key) == key, path
    assert cited["mma training: direct input space margin maximization through adversarial training"][1] == "2020"


def test_the_list_links_each_number_of_arxiv(references):
    lines = references.reference_list(SOURCE).splitlines()
    titles = [re.search(r"\*(.+?)\*", line)[1] for line in lines]
    assert len(set(titles)) == len(titles) > 50
    for line in lines:
        assert re.findall(r"arXiv (\d\S+?)\]", line) == re.findall(r"arxiv\.org/abs/([\d.]+)\)", line), line
        assert line.endswith("."), line
        assert "Section" not in line, line
    assert "arXiv" in "".join(line for line in lines if "Explaining and harnessing" in line)


def test_another_form_is_refused(references, tmp_path):
    (tmp_path / "mine.py").write_text('"""Mine.\n\nReferences\n----------\nA paper of ours.\n"""\n')
    with pytest.raises(ValueError, match=r"mine\.py: a reference is Authors year"):
        references.papers(tmp_path)


def test_the_glossary_cites_the_titles_of_the_docstrings(references):
    known = {}
    for title, paper in references.papers(SOURCE).items():
        first = re.split(r",| et al\.| and ", paper["authors"])[0]
        known.setdefault((first, paper["year"]), {})[title.lower()] = paper["where"]
    sources = (ROOT / "docs" / "glossary.md").read_text("utf-8").partition("\n## Sources\n")[2]
    shared = 0
    for entry in (" ".join(text.split()) for text in sources.split("\n- ")[1:]):
        name, year = re.match(r"(.+?)(?:,| et al\.| and .+?)? (\d{4})[a-z]?:", entry).groups()
        title, where = re.search(r'"(.+?)[,.]?"(.*)', entry).groups()
        titles = known.get((name.split(",")[0], year))
        # the docstrings cite another paper of its first author and year
        if titles and "Obfuscated" not in title:
            assert title.lower() in titles, entry
            number = re.search(r"\d{4}\.\d{5}", where)
            assert number is None or number[0] in titles[title.lower()], entry
            shared += 1
    assert shared > 20
