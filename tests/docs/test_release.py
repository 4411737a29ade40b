"""A release: one version everywhere, and a package page without links that lead nowhere."""

import importlib.util
import re
import sys
import tomllib
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture
def package_page(monkeypatch):
    """The function of hatch_build.py, without hatchling, which only a build has."""
    interface = types.ModuleType("interface")
    interface.MetadataHookInterface = object
    monkeypatch.setitem(sys.modules, "hatchling.metadata.plugin.interface", interface)
    for name in ("hatchling", "hatchling.metadata", "hatchling.metadata.plugin"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    spec = importlib.util.spec_from_file_location("hatch_build", ROOT / "hatch_build.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.package_page


def test_one_version():
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.M)[1]
    released = re.search(r"^## (\d\S*)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]
    assert PROJECT["version"] == citation == released


def test_the_page_on_platforms_lists_the_extras():
    """All but those of a development checkout."""
    page = (ROOT / "docs" / "platforms.md").read_text("utf-8")
    listed = [name for row in re.findall(r"^\| (`[^|]+) \|", page, re.M) for name in re.findall(r"`([\w-]+)`", row)]
    developed = {"coverage", "dev", "docs", "fuzz", "release"}
    assert sorted(listed) == sorted(set(PROJECT["optional-dependencies"]) - developed)


def test_the_pages_show_this_version():
    """Sample outputs are those of this version; generated blocks keep the version that was measured."""
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
    shown = []
    for page in pages:
        text = re.sub(r"<!-- \w+: .*?<!-- end -->", "", page.read_text("utf-8"), flags=re.S)
        shown += [(page.name, version) for version in re.findall(r"\batent (\d+\.\d+\.\d+)", text)]
    assert "commands.md" in {name for name, _ in shown}
    assert [each for each in shown if each[1] != PROJECT["version"]] == []


@pytest.mark.parametrize("source", [None, "https://example.org/files/"])
def test_the_package_page_links_nothing_relative(package_page, source):
    page = package_page((ROOT / "README.md").read_text(), source)
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert all(link.startswith("https://") for link in links)
    assert ("https://example.org/files/docs/measured.md" in links) == bool(source)
    assert "docs/measured.md" in page


def test_links_of_each_kind(package_page):
    text = "![a](b.png) [c](d.md#e) [f.cff](f.cff) [g](https://h)"
    assert package_page(text, None) == " c (`d.md#e`) `f.cff` [g](https://h)"
    assert package_page(text, "https://s") == (
        "![a](https://s/b.png) [c](https://s/d.md#e) [f.cff](https://s/f.cff) [g](https://h)"
    )
