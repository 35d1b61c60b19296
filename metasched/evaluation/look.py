"""How the page of a comparison looks: its colours, its style sheet, and the script that shows values under the pointer.

Colours are named once, light and dark, so that a test can compute their contrast. The page can be read without the
script: what it adds is the line of values under the pointer, or at the place that the arrow keys choose.
"""

from __future__ import annotations

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "page": "#ffffff",
    "card": "#f6f8fa",
    "ink": "#1b1f24",
    "soft": "#57606a",
    "rule": "#d0d7de",
    "learned": "#0860c4",
    "above": "#17702f",
    "below": "#b42318",
}
DARK: Mapping[str, str] = {
    "page": "#12161b",
    "card": "#1b2128",
    "ink": "#e6edf3",
    "soft": "#a3adb8",
    "rule": "#39414a",
    "learned": "#6cb6ff",
    "above": "#5fb868",
    "below": "#ff7b72",
}
TEXT = ("ink", "soft", "learned", "above", "below")  # colours of text, on page and card
LINE_LIGHT, LINE_DARK = (68, 33), (62, 66)  # saturation and lightness of the curves of layers, in per cent
_FIRST_HUE, _LAST_HUE = 265, 20  # of the layer at the input and at the output, over blue and green


def hue(i: int, layers: int) -> int:
    """Hue of layer i of so many, in degrees.

    >>> [hue(i, 3) for i in range(3)]
    [265, 142, 20]
    """
    return round(_FIRST_HUE + (_LAST_HUE - _FIRST_HUE) * (i / (layers - 1) if layers > 1 else 0))


def style(layers: int) -> str:
    """The style sheet of a page whose figures have so many layers; a box that is not checked hides its layer."""
    curves = "\n".join(
        f".y{i} {{ --line: hsl({hue(i, layers)} var(--curve)); stroke-width: {_width(i, layers)}; }}\n"
        f".curves:has(#layer{i}:not(:checked)) polyline.y{i} {{ display: none; }}"
        for i in range(layers)
    )
    return (
        f":root {{ {_variables(LIGHT, LINE_LIGHT)} color-scheme: light dark; }}\n"
        f"@media screen and (prefers-color-scheme: dark) {{ :root {{ {_variables(DARK, LINE_DARK)} }} }}\n"
        f"{_STYLE}{curves}\n"
    )


def _width(i: int, layers: int) -> float:
    """Later curves are thinner, so that equal ones stay visible."""
    return 1.5 if layers == 1 else round(3.5 - 2 * i / (layers - 1), 2)


def _variables(colors: Mapping[str, str], curve: tuple[int, int]) -> str:
    return "".join(f"--{n}: {c}; " for n, c in colors.items()) + f"--curve: {curve[0]}% {curve[1]}%;"


_STYLE = """
* { box-sizing: border-box; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page);
  max-width: 78rem; margin: 0 auto; padding: 1rem; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; line-height: 1.25; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; }
p { max-width: 52rem; margin: .5rem 0; } a { color: var(--learned); } .soft, caption { color: var(--soft); }
:focus-visible { outline: 3px solid var(--learned); outline-offset: 2px; }
.verdict { border-left: .4rem solid var(--soft); background: var(--card); padding: .75rem 1rem; margin: .75rem 0; }
.verdict p { max-width: none; } .verdict.above { border-color: var(--above); }
.verdict.below { border-color: var(--below); }
.verdict strong { font-size: 1.1rem; } .above strong { color: var(--above); } .below strong { color: var(--below); }
dl { display: grid; gap: .5rem; grid-template-columns: repeat(auto-fill, minmax(min(100%, 10.5rem), 1fr)); margin: 0; }
dl div { background: var(--card); border: 1px solid var(--rule); border-radius: .4rem; padding: .4rem .7rem; }
dt { color: var(--soft); font-size: .875rem; } dd { margin: 0; font-size: 1.15rem; font-variant-numeric: tabular-nums; }
dd small { display: block; font-size: .8rem; color: var(--soft); }
dl.where { grid-template-columns: repeat(auto-fill, minmax(min(100%, 18rem), 1fr)); } .where dd { font-size: .95rem; }
.grid { display: grid; gap: 1rem; align-items: end; margin-bottom: 1rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 22rem), 1fr)); }
.pair { grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); align-items: start; }
figure { margin: 0; min-width: 0; max-width: 40rem; } figcaption { font-weight: 600; font-size: .9rem; }
figcaption small { display: block; font-weight: 400; color: var(--soft); }
svg { display: block; width: 100%; height: auto; overflow: visible; }
svg text { font: 12px system-ui, sans-serif; fill: var(--ink); font-variant-numeric: tabular-nums; }
svg .tick { fill: var(--soft); } svg .end { text-anchor: end; } svg .mid { text-anchor: middle; }
svg .rule { stroke: var(--rule); stroke-width: 1; } svg .zero { stroke: var(--ink); stroke-width: 1; }
svg .cross { stroke: var(--soft); stroke-width: 1; visibility: hidden; }
polyline { fill: none; stroke: var(--line, var(--learned)); stroke-width: 2; stroke-linejoin: round; }
.mark { --line: var(--soft); } .mark.learned { --line: var(--learned); } .mark.above { --line: var(--above); }
.mark.below { --line: var(--below); }
.mark line { stroke: var(--line); stroke-width: 2; } .mark circle, .mark rect { fill: var(--line); }
.mark .seed { opacity: .55; } .mark .hollow { fill: var(--page); stroke: var(--line); stroke-width: 2; }
svg .mark.learned text { fill: var(--learned); font-weight: 600; }
svg .mark text.inside, svg .mark.learned text.inside { fill: var(--page); }
output { display: block; min-height: 1.4em; font-size: .8rem; color: var(--soft); font-variant-numeric: tabular-nums; }
.keys { display: flex; flex-wrap: wrap; gap: .25rem 1rem; margin: .5rem 0; padding: 0; border: 0; font-size: .875rem;
  max-height: 12rem; overflow-y: auto; list-style: none; }
.keys legend { padding: 0; color: var(--soft); } .keys svg { display: inline-block; width: 1.6rem; height: .9rem; }
.swatch { display: inline-block; width: 1.5rem; height: .25rem; background: var(--line); vertical-align: middle; }
.wide { overflow-x: auto; margin: .75rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .85rem; }
caption { text-align: left; padding-bottom: .25rem; }
th, td { padding: .3rem .6rem; text-align: right; vertical-align: top; border-bottom: 1px solid var(--rule); }
th { font-weight: 600; } td { overflow-wrap: normal; }
tr > :first-child { text-align: left; min-width: 8rem; } thead th { border-bottom: 2px solid var(--soft); }
tr.learned > * { color: var(--learned); font-weight: 600; }
pre { background: var(--card); padding: .75rem; overflow-x: auto; font-size: .8rem; overflow-wrap: normal; }
summary { cursor: pointer; padding: .35rem 0; }
@media screen and (max-width: 60rem) {
  .wide { overflow: visible; } table, caption, tbody, tr, td, tbody th { display: block; } thead { display: none; }
  tr { border: 1px solid var(--rule); border-radius: .4rem; margin-bottom: .5rem; padding: .25rem .6rem; }
  tbody th, td { display: flex; justify-content: space-between; gap: 1rem; border: 0; padding: .1rem 0; }
  td::before { content: attr(data-label); color: var(--soft); font-weight: 400; text-align: left; }
  td:empty { display: none; }
}
@media print {
  body { font-size: 10pt; max-width: none; padding: 0; } table { font-size: 7.5pt; } th, td { padding: .15rem .3rem; }
  figure, tr, .verdict, dl div { break-inside: avoid; } h2 { break-after: avoid; } output, .hint { display: none; }
  .grid { grid-template-columns: repeat(3, 1fr); } .pair { grid-template-columns: 1fr 1fr; }
  .wide { overflow: visible; }
  .keys { max-height: none; } .keys input { display: none; } tr > :first-child { min-width: 0; }
}
"""

SCRIPT = """
for (const svg of document.querySelectorAll("svg[data-range]")) {
  const [left, right, top, bottom] = svg.dataset.frame.split(" ").map(Number);
  const [x0, x1, y0, y1] = svg.dataset.range.split(" ").map(Number);
  const cross = svg.querySelector(".cross"), out = svg.parentElement.querySelector("output");
  const lines = [...svg.querySelectorAll("polyline")];
  const said = v => String(Number(v.toPrecision(4)));
  let at = 0;
  const show = u => {
    at = Math.min(1, Math.max(0, u));
    const x = left + at * (right - left);
    cross.setAttribute("x1", x);
    cross.setAttribute("x2", x);
    cross.style.visibility = "visible";
    const values = lines.filter(l => getComputedStyle(l).display !== "none").map(line => {
      let near = line.points[0];
      for (const p of line.points) if (Math.abs(p.x - x) < Math.abs(near.x - x)) near = p;
      return `${line.dataset.name} ${said(y0 + (bottom - near.y) / (bottom - top) * (y1 - y0))}`;
    });
    out.textContent = `${svg.dataset.x} ${said(x0 + at * (x1 - x0))}: ${values.join(", ")}`;
  };
  svg.addEventListener("pointermove", event => {
    const box = svg.getBoundingClientRect();
    show(((event.clientX - box.left) * svg.viewBox.baseVal.width / box.width - left) / (right - left));
  });
  svg.addEventListener("focus", () => show(at));
  svg.addEventListener("keydown", event => {
    const step = { ArrowLeft: -0.02, ArrowRight: 0.02, Home: -1, End: 1 }[event.key];
    if (step) { show(at + step); event.preventDefault(); }
  });
}
"""
