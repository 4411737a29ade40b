"""Pages in headless Chromium: which are wider than their window."""

import functools
import http.server
import json
import queue
import shutil
import subprocess
import threading
import time
from contextlib import contextmanager

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
CHROMIUM = next((path for name in NAMES if (path := shutil.which(name))), None)

# Chromium has a smallest width of a window, an iframe has none. A page is loaded once and measured at every width.
PROBE = """<!doctype html>
<iframe style="border: 0; height: 900px"></iframe>
<script>
const frame = document.querySelector("iframe");

// All that is around a page's text: a theme may hide what is too wide, or scroll the whole text sideways.
function around(page) {
  const boxes = [];
  for (let box = page.querySelector(".content") || page.body; box; box = box.parentElement) boxes.push(box);
  return boxes;
}

// The element that goes furthest beyond the right side of `box`, but for those in a box that scrolls by itself.
function widest(box) {
  const held = (node) => node !== box && (getComputedStyle(node).overflowX !== "visible" || held(node.parentElement));
  const right = (node) => node.getBoundingClientRect().right;
  const nodes = [...box.querySelectorAll("*")].filter((node) => !held(node.parentElement));
  const node = nodes.reduce((best, each) => (right(each) >= right(best) ? each : best), box);
  return node.tagName.toLowerCase() + ": " + node.textContent.trim().slice(0, 40);
}

async function measure(page, widths) {
  frame.style.width = widths[0] + "px";
  await new Promise((loaded) => { frame.onload = loaded; frame.src = "/" + page; });
  const root = frame.contentDocument.documentElement, wide = [];
  const boxes = around(frame.contentDocument);
  for (const width of widths) {
    frame.style.width = width + "px";
    if (root.clientWidth !== width) throw new Error(`a window of ${root.clientWidth} px in place of ${width} px`);
    const box = boxes.find((each) => each.scrollWidth > each.clientWidth + 1);
    if (box) wide.push([page, width, box.scrollWidth - box.clientWidth, widest(box)]);
  }
  return wide;
}

(async () => {
  const answer = { wide: [], error: "" };
  try {
    for (const page of PAGES) answer.wide.push(...await measure(page, WIDTHS));
  } catch (error) {
    answer.error = String(error);
  }
  await fetch("/answer", { method: "POST", body: JSON.stringify(answer) });
})();
</script>
"""


class _Handler(http.server.SimpleHTTPRequestHandler):
    def __init__(self, probe, answers, *args, **kwargs):
        self.probe, self.answers = probe, answers
        super().__init__(*args, **kwargs)

    def do_GET(self):
        if self.path != "/probe":
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.end_headers()
        self.wfile.write(self.probe.encode())

    def do_POST(self):
        self.answers.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *args):
        pass


@contextmanager
def _served(folder, probe, answers):
    """The address of the probe; it and the pages have one origin, else it could not read them."""
    handler = functools.partial(_Handler, probe, answers, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/probe"
        finally:
            server.shutdown()
            thread.join()


def wide_pages(folder, pages, widths, profile, timeout=600):
    """(page, width of the window, pixels that are missing, what goes beyond) for every page that is too wide.

    ``profile`` is a new folder for the browser. RuntimeError without an answer: of a browser that ends, or after
    ``timeout`` seconds.
    """
    probe = PROBE.replace("PAGES", json.dumps(list(pages))).replace("WIDTHS", json.dumps(list(widths)))
    words = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    answers = queue.Queue()
    with _served(folder, probe, answers) as address:
        command = [CHROMIUM, *words, f"--window-size={max(widths)},1000", f"--user-data-dir={profile}", address]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as browser:
            try:
                answer = _first(answers, browser, time.monotonic() + timeout)
            finally:
                browser.terminate()
    if answer["error"]:
        raise RuntimeError(answer["error"])
    return [tuple(each) for each in answer["wide"]]


def _first(answers, browser, end):
    while browser.poll() is None and time.monotonic() < end:
        try:
            return answers.get(timeout=1)
        except queue.Empty:
            pass
    raise RuntimeError(f"no answer of {CHROMIUM}: exit status {browser.poll()}")
