"""Looks at every page of the built documentation in a browser: what is wider than the page, what is too pale to read.

    sphinx-build docs docs/_build/html && python scripts/look_at_docs.py docs/_build/html --pictures /tmp/pictures

Each page is laid out at 1280 and 390 pixels, light and dark, with all folds open. It is an error if the page scrolls
sideways (code, tables and formulas may, by themselves), or if a text has less contrast to its background than 4.5 (3
for large text), as WCAG 2.1 asks in 1.4.3. Needs Chromium; nothing is loaded from a network. With --pictures each page
is a PNG file at each width too.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from html import unescape
from pathlib import Path
from typing import Any

WIDTHS = (1280, 390)
SKIPPED = ("genindex.html", "search.html", "_modules")  # written by Sphinx and filled by scripts
_TALLEST = 12_000  # pixels of a picture

_MEASURE = """
const pages = PAGES, widths = WIDTHS, found = [];
const number = text => text.match(/[\\d.]+/g).map(Number);
const light = rgb => {
  const [r, g, b] = rgb.map(v => v / 255).map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
function behind(window, element) {
  for (let e = element; e; e = e.parentElement) {
    const c = number(window.getComputedStyle(e).backgroundColor);
    if (c.length < 4 || c[3] > 0.9) return c.slice(0, 3);
  }
  return [255, 255, 255];
}
const shown = e => (e.tagName + "." + e.className + " " + e.textContent.trim().replace(/\\s+/g, " ")).slice(0, 90);
function look(window, page, width, theme) {
  const d = window.document, root = d.documentElement;
  const folded = [...d.querySelectorAll("details:not([open])")];
  folded.forEach(e => e.open = true);
  const own = "pre, .table-wrapper, .math, .sig, .toc-scroll, .sidebar-scroll";  // scroll by themselves
  const cuts = e => e == root || ["auto", "scroll", "hidden"].includes(window.getComputedStyle(e).overflowX);
  const boxes = [root, ...d.querySelectorAll("body *")].filter(e => !e.closest(own + ", svg, math"))
    .filter(e => e.clientWidth > 200 && e.scrollWidth > e.clientWidth + 1 && cuts(e));
  const wide = [...d.querySelectorAll("article *")].filter(e => !e.closest(own.replaceAll(",", " *,") + " *"))
    .filter(e => e.getBoundingClientRect().right > width + 1);
  if (boxes.length && boxes.some(e => e == root || e.querySelector("article") || e.closest("article")))
    found.push([page, width, theme, "scrolls to " + boxes[0].scrollWidth, wide.slice(0, 2).map(shown)]);
  const pale = new Map();
  for (const e of d.querySelectorAll("article *, aside *")) {
    const text = [...e.childNodes].some(n => n.nodeType == 3 && n.textContent.trim());
    const style = window.getComputedStyle(e), box = e.getBoundingClientRect();
    if (!text || !box.width || style.visibility == "hidden" || e.closest("svg, math")) continue;
    const a = light(number(style.color)), b = light(behind(window, e)), size = parseFloat(style.fontSize);
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    const least = size >= 24 || (size >= 18.66 && style.fontWeight >= 700) ? 3 : 4.5;
    const said = "contrast " + ratio.toFixed(2) + ": " + shown(e);
    if (ratio < least && !pale.has(style.color)) pale.set(style.color, said);
  }
  if (pale.size && width == widths[0]) found.push([page, width, theme, "is too pale", [...pale.values()]]);
  folded.forEach(e => e.open = false);
  return Math.ceil(Math.max(root.scrollHeight, d.body.scrollHeight));
}
const heights = {};
for (const width of widths) for (const page of pages) {
  const frame = document.createElement("iframe");
  frame.style.cssText = "border:0;height:900px;width:" + width + "px";
  const loaded = new Promise(done => frame.onload = done);
  frame.src = page; document.body.append(frame); await loaded;
  for (const theme of ["light", "dark"]) {
    frame.contentDocument.body.dataset.theme = theme;
    heights[page + " " + width] = look(frame.contentWindow, page, width, theme);
  }
  frame.remove();
}
const result = document.createElement("pre");
result.id = "result"; result.textContent = JSON.stringify({found, heights}); document.body.append(result);
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Prints what was found; 1 if there is anything."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("html", type=Path, help="the built documentation")
    parser.add_argument("--pictures", type=Path, metavar="FOLDER", help="write a PNG file of each page at each width")
    arguments = parser.parse_args(argv)
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("look_at_docs: needs Chromium on the PATH", file=sys.stderr)
        return 2
    html = arguments.html.resolve()
    pages = [str(path.relative_to(html)) for path in sorted(html.rglob("*.html"))]
    pages = [page for page in pages if not page.startswith(SKIPPED)]
    result = measured(browser, html, pages)
    for page, width, theme, problem, where in result["found"]:
        print(f"{page} at {width}, {theme}: {problem}", *(f"    {line}" for line in where), sep="\n")
    if arguments.pictures:
        arguments.pictures.mkdir(parents=True, exist_ok=True)
        for page in pages:
            for width in WIDTHS:
                name = f"{page.removesuffix('.html').replace('/', '-')}-{width}.png"
                height = min(result["heights"][f"{page} {width}"] + 20, _TALLEST)
                _run(
                    browser, f"--screenshot={arguments.pictures / name}", f"--window-size={width},{height}", html / page
                )
    print(
        f"{len(pages)} pages at {' and '.join(map(str, WIDTHS))} pixels, light and dark: {len(result['found'])} to mend"
    )
    return bool(result["found"])


def measured(browser: str, html: Path, pages: Sequence[str]) -> dict[str, Any]:
    """What the browser found in the pages, and their heights."""
    script = _MEASURE.replace("PAGES", json.dumps([(html / page).as_uri() for page in pages]), 1)
    with tempfile.TemporaryDirectory() as folder:
        page = Path(folder) / "look.html"
        page.write_text(f"<body><script type=module>{script.replace('WIDTHS', json.dumps(WIDTHS), 1)}</script>")
        dom = _run(browser, "--allow-file-access-from-files", "--virtual-time-budget=600000", "--dump-dom", page)
    written = re.search(r'<pre id="result">(.*?)</pre>', dom, re.DOTALL)
    assert written, "the browser did not come to the end"
    return json.loads(unescape(written.group(1)).replace(f"{html.as_uri()}/", ""))


def _run(browser: str, *words: object) -> str:
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout


if __name__ == "__main__":
    sys.exit(main())
