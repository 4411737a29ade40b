"""The page of the report: its structure, names in files as text, and a browser that shows it without complaint."""

import base64
import hashlib
import html
import itertools
import json
import re
import shutil
import subprocess

import pytest
from kit import unsealed
from report_run import PART, RESULTS, Document, change, load, made_once  # noqa: F401 - fixtures

from atent.report import report
from atent.runs import write_json

EVIL = "<script>alert(1)</script>"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def page(made):
    return report([made], images=3, progress=False)


# ---- the page itself ----------------------------------------------------------------------------------------


def test_the_page_is_whole_and_needs_nothing_else(page):
    doc = Document(page)
    assert page.startswith("<!doctype html>")
    ids = [a["id"] for _, a in doc.elements if "id" in a]
    assert len(ids) == len(set(ids))
    images = doc.all("img")
    assert len(images) >= 12
    assert all(a["src"].startswith("data:image/") and re.search(r"\d", a["alt"]) for a in images)
    assert not {"link", "iframe", "object", "base", "form"} & {name for name, _ in doc.elements}
    for image in images:
        if "svg" in image["src"][:20]:
            drawn = base64.b64decode(image["src"].partition(",")[2]).decode()
            # names of dialects and licences are no addresses that are fetched
            assert not re.search(r"(href|src)=[\"'](?!#)|url\((?!#)|@import", drawn)
    assert all(a["href"].startswith("#") for a in doc.all("a"))
    assert "url(" not in page
    (script,) = re.findall(r"<script>(.*?)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(a["content"] for a in doc.all("meta") if a.get("http-equiv") == "Content-Security-Policy")
    assert policy == f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'"
    assert "@media print" in page
    for axis in ("accuracy (%)", "epoch", "linf radius", "certified l2 radius (pixel units)"):
        svgs = [base64.b64decode(a["src"].partition(",")[2]).decode() for a in images if "svg" in a["src"][:20]]
        assert any(axis in svg for svg in svgs), axis


def test_the_page_has_one_outline_and_tables_that_say_what_they_are(made, page):
    for text in (page, report([made, RESULTS / "digits-linf", RESULTS / "digits-sweep"], images=1, progress=False)):
        doc = Document(text)
        levels = [int(tag[1]) for tag, _ in doc.elements if re.fullmatch("h[1-6]", tag)]
        assert levels.count(1) == 1
        assert levels[0] == 1
        assert all(b <= a + 1 for a, b in itertools.pairwise(levels))
        titles = re.findall(r"<h[1-6]>(.*?)</h[1-6]>", text)
        assert len(titles) == len(levels)
        assert not [title for title in titles if re.search(r"\.(json|csv|jsonl|html)\b", title)]
        anchors = {a["id"] for _, a in doc.elements if "id" in a}
        assert {a["href"][1:] for a in doc.all("a")} <= anchors
        tables = re.findall(r"<table.*?</table>", text, re.S)
        assert len(tables) > 5
        for table in tables:
            inside = Document(table)
            assert table.count("<caption>") == 1
            heads = [a for a in inside.all("th") if a.get("scope") == "col"]
            names = [cell[0] for cell in inside.tables[0][0]]
            cells = [a for tag, a in inside.elements if tag in ("td", "th") and a.get("scope") != "col"]
            # a card says beside each value what the column's heading says, in the heading's place
            assert [a["data-label"] for a in cells] == names * (len(cells) // len(names))
            assert len(heads) == len(names)
            for a in cells:
                assert ("data-value" in a) == (a.get("class") == "number")
                column = heads[names.index(a["data-label"])]
                assert "data-value" not in a or column.get("class") == "number"
    assert "prefers-color-scheme: dark" in page
    assert "max-width: 40rem" in page


def spoil(path, tmp_path):
    """The run again, with markup wherever a file can hold a name."""
    evil = tmp_path / '"><img src=x onerror=alert(2)> $\\frac$'
    unsealed(shutil.copytree(path, evil))
    change(evil / "config.json", recipe=EVIL)
    settings = load(evil / "config.json")
    settings["about"]["data"] |= {"name": EVIL, "source": EVIL, "files": {EVIL: {"sha256": EVIL}}}
    settings["method"] |= {EVIL: EVIL, "name": EVIL}
    settings["provenance"]["device_name"] = EVIL
    write_json(evil / "config.json", settings)
    found = load(evil / "evaluation-2.json")
    reported = found["attacks"].pop("PGD-2") | {"attack": EVIL}
    found["attacks"][EVIL] = reported | {"parts": {EVIL: {key: reported[key] for key in PART}}}
    for row in found["sweep"]:
        row["attack"] = EVIL
    found["checks"][1] |= {"name": EVIL, "figure": EVIL, "why": EVIL}
    found |= {"hint": EVIL, "weights": EVIL, "data": found["data"] | {"name": EVIL}}
    found["provenance"] |= {"version": EVIL, "device": EVIL}
    write_json(evil / "evaluation.json", found)
    (evil / "evaluation-2.json").rename(evil / "evaluation-<b>.json")
    return evil


def test_names_in_files_are_text(made, tmp_path):
    text = report([spoil(made, tmp_path), made], images=1, progress=False)
    doc = Document(text)
    assert text.count("<script") == 1
    assert not re.search(r"<img src=x|<b>\.json", text)
    assert not [a for _, a in doc.elements if "onerror" in a]
    # recipe, method, field, attack, its part, radii, check, hint, provenance ...
    assert text.count(html.escape(EVIL)) > 20
    assert all(a["src"].startswith("data:image/") for a in doc.all("img"))
    svgs = [base64.b64decode(a["src"].partition(",")[2]).decode() for a in doc.all("img") if "svg" in a["src"][:20]]
    assert svgs
    assert not any(re.search(r"<script|<img", svg) for svg in svgs)
    assert any("$\\frac$" in svg for svg in svgs)


# ---- in a browser ---------------------------------------------------------------------------------------------


WATCH = """
const seen = [];
for (const kind of ["error", "securitypolicyviolation", "unhandledrejection"])
  window.addEventListener(kind, e => seen.push(kind + " " + (e.message || e.blockedURI || e.target)), true);
for (const kind of ["error", "warn"]) console[kind] = (...what) => seen.push(kind + " " + what);
"""

LOOK = """
const tables = [...document.querySelectorAll("table.sortable")].map(table => {
  const columns = [...table.tHead.rows[0].cells].map((head, i) => {
    const look = () => [...table.tBodies[0].rows].map(r => [r.cells[i].dataset.value ?? null, r.cells[0].textContent]);
    head.querySelector("button").click();
    const up = look(), said = head.getAttribute("aria-sort");
    head.querySelector("button").click();
    return { up, down: look(), said: [said, head.getAttribute("aria-sort")] };
  });
  return { columns, foot: table.tFoot ? table.rows[table.rows.length - 1].parentNode === table.tFoot : null };
});
const found = {
  width: innerWidth, scroll: document.documentElement.scrollWidth, tables, seen: [...seen],
  images: [...document.images].map(i => i.naturalWidth * i.complete),
};
// The watch is not blind: what the policy forbids is refused, and noticed.
const forbidden = new Image();
forbidden.src = "https://example.invalid/x.png";
setTimeout(() => {
  found.control = seen.slice(found.seen.length);
  parent.postMessage(JSON.stringify(found), "*");
}, 200);
"""


# A window may be no narrower than 500 pixels; a frame may.
FRAME = """<!doctype html><title>frame</title><pre id="found"></pre>
<script>addEventListener("message", e => { document.getElementById("found").textContent = e.data; });</script>
<iframe src="page.html" width="390" height="844" style="border: 0"></iframe>
"""


@pytest.mark.timeout(600)
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium, chromium-browser or google-chrome on the path")
def test_a_browser_shows_the_page_on_a_phone_without_complaint(made, tmp_path):
    text = report([made, spoil(made, tmp_path), RESULTS / "digits-linf"], images=2, progress=False)
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in (WATCH, LOOK)
    )
    copy = text.replace("script-src ", f"script-src {hashes} ")
    copy = copy.replace("<meta name=", f"<script>{WATCH}</script><meta name=", 1)
    copy = copy.replace("</body>", f"<script>{LOOK}</script></body>")
    (tmp_path / "page.html").write_text(copy)
    frame = tmp_path / "frame.html"
    frame.write_text(FRAME)
    done = subprocess.run(
        [
            CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'browser'}",
            "--window-size=800,1000", "--virtual-time-budget=5000", "--enable-logging=stderr", "--dump-dom",
            frame.as_uri(),
        ],
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    (found,) = re.findall(r'<pre id="found">(.*?)</pre>', done.stdout, re.S)
    found = json.loads(html.unescape(found))
    assert found["seen"] == []
    assert "CONSOLE" not in re.sub(r".*example\.invalid.*", "", done.stderr)
    assert any("securitypolicyviolation" in line for line in found["control"])
    assert found["width"] == 390
    assert found["scroll"] <= 390
    assert len(found["images"]) > 15
    assert all(width > 0 for width in found["images"])
    assert len(found["tables"]) > 5
    for table in found["tables"]:
        assert table["foot"] in (None, True)
        for column in table["columns"]:
            assert column["said"] == ["ascending", "descending"]
            assert sorted(map(str, column["up"])) == sorted(map(str, column["down"]))
            up, down = ([float(v) for v, _ in column[way] if v is not None] for way in ("up", "down"))
            assert up == sorted(up)
            assert down == sorted(up, reverse=True)
            for way in ("up", "down"):
                # rows without a number come last
                empty = [v is None for v, _ in column[way]]
                assert empty == sorted(empty)
    # some column was out of order before one of the clicks, and some was moved by them
    assert any(c["up"] != c["down"] for t in found["tables"] for c in t["columns"])
