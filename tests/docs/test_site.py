"""The documentation site: it builds without a warning, needs nothing from elsewhere, and shows its formulas."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from browser import CHROMIUM, wide_pages

pytest.importorskip("sphinx", reason="needs the extra docs")
pytest.importorskip("latex2mathml", reason="needs the extra docs")

ROOT = Path(__file__).parents[2]
# A telephone, a tablet, a laptop and a large screen.
WIDTHS = (390, 768, 1280, 1920)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium is installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    place = tmp_path_factory.mktemp("site")
    words = [
        "-q",
        "-W",
        "--keep-going",
        "-b",
        "html",
        "-d",
        str(place / "trees"),
        str(ROOT / "docs"),
        str(place / "html"),
    ]
    done = subprocess.run([sys.executable, "-m", "sphinx", *words], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    return place / "html"


@pytest.mark.slow
def test_formulas_are_rendered(site):
    written = {page.stem for page in (ROOT / "docs").glob("*.md") if re.search(r"\$\\", page.read_text("utf-8"))}
    assert written
    for page in site.rglob("*.html"):
        text = page.read_text("utf-8")
        if page.parent == site and page.stem in written:
            assert "<math" in text, page
        prose = re.sub(r"<(pre|code|math|script)\b.*?</\1>", "", text, flags=re.S)
        assert not re.search(r"\$\\\w|\\\(|\\lVert", prose), page


@pytest.mark.slow
def test_no_page_loads_anything_from_elsewhere(site):
    for page in site.rglob("*.html"):
        loaded = re.findall(r"<(?:script|img|iframe)[^>]*\bsrc=\"([^\"]*)\"", page.read_text("utf-8"))
        loaded += re.findall(r"<link(?![^>]*canonical)[^>]*\bhref=\"([^\"]*)\"", page.read_text("utf-8"))
        assert not [each for each in loaded if re.match(r"(https?:)?//", each)], page
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(https?:)?//", style.read_text("utf-8")), style


@pytest.mark.slow
def test_the_search_finds_a_setting_of_a_method(site):
    text = (site / "searchindex.js").read_text("utf-8")
    index = json.loads(text[text.index("(") + 1 : text.rindex(")")])
    found = [{index["docnames"][i] for i in index["terms"][word]} for word in ("pgdat", "mode")]
    assert "api/methods" in found[0] & found[1]
    assert "The mode of the adversary" in index["alltitles"]


@in_browser
@pytest.mark.slow
def test_no_page_is_wider_than_its_window(site, tmp_path):
    pages = sorted(page.relative_to(site).as_posix() for page in site.rglob("*.html"))
    assert {"index.html", "genindex.html", "api/methods.html"} < set(pages)
    assert wide_pages(site, pages, WIDTHS, tmp_path) == []


@in_browser
def test_a_wide_page_is_found(tmp_path):
    wide = "<div style='width: 1000px'>wide</div>"
    bodies = {
        "fits": "<p>text</p>",
        "scrolls-alone": f"<div style='overflow-x: auto'>{wide}</div>",
        "wide": wide,
        "hidden": f"<style>html {{ overflow-x: hidden }}</style>{wide}",
        "scrolls-whole": f"<div class='content' style='overflow-x: auto'>{wide}</div>",
    }
    (tmp_path / "pages").mkdir()
    for name, body in bodies.items():
        page = f"<!doctype html><body style='margin: 0'>{body}</body>"
        (tmp_path / "pages" / f"{name}.html").write_text(page, encoding="utf-8")
    pages = [f"{name}.html" for name in bodies]
    found = wide_pages(tmp_path / "pages", pages, WIDTHS, tmp_path / "profile", timeout=60)
    expected = [
        (f"{name}.html", width, 1000 - width, "div: wide")
        for name in ("wide", "hidden", "scrolls-whole")
        for width in (390, 768)
    ]
    assert found == expected
