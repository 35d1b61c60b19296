"""Charts as inline SVG: curves over a number, and rows of marks on a common scale.

A chart is 420 units wide, as wide as a telephone, and grows with its place on the page. Colours come from classes of
the style sheet. Each chart has a text for those who do not see it, and each mark a title with its numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 420, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 50, 410, 8, 172  # frame of a chart of curves
_MARGIN, _ROW = 12, 36  # of a chart of rows: beside it, and the height of a row
_STEPS = (1, 2, 2.5, 5, 10)
_SAID = 12  # curves whose ends a text names
_LONG = 46  # characters of a name that is drawn narrower


class Curve(NamedTuple):
    """A curve: its name, its class in the style sheet, and its points."""

    name: str
    css: str
    xs: Sequence[float]
    ys: Sequence[float]


class Row(NamedTuple):
    """A row of marks.

    Attributes:
        name: at the left, above the marks.
        said: at the right: its numbers.
        css: classes of the marks.
        mean, low, high: a mark and its interval.
        dots: further values, with a title each.
        hollow: whether the mark is an outline.
    """

    name: str
    said: str
    css: str
    mean: float
    low: float
    high: float
    dots: Sequence[tuple[float, str]] = ()
    hollow: bool = False


def ticks(low: float, high: float, most: int = 5) -> list[float]:
    """Round numbers within [low, high], at most so many.

    >>> ticks(0.0, 1.0), ticks(0.71, 0.9)
    ([0.0, 0.25, 0.5, 0.75, 1.0], [0.75, 0.8, 0.85, 0.9])
    """
    unit = 10.0 ** math.floor(math.log10((high - low) / most))
    for step in (unit * s for s in _STEPS):
        first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
        if last - first + 1 <= most:
            break
    return [round(i * step, 12) for i in range(first, last + 1)]


def span(values: Sequence[float]) -> tuple[float, float]:
    """Lowest and highest finite value, apart from each other, with a twentieth of their distance on both sides.

    >>> span([0.0, 1.0, float("nan")]), span([2.0, 2.0])
    ((-0.05, 1.05), (1.8, 2.2))
    """
    finite = [v for v in values if math.isfinite(v)] or [0.0]
    low, high = min(finite), max(finite)
    extra = 0.05 * (high - low) or 0.1 * abs(high) or 1.0
    return low - extra, high + extra


def curves(title: str, drawn: Sequence[Curve], x: str, y_range: tuple[float, float], note: str = "") -> str:
    """A figure of curves.

    Args:
        title: of the figure.
        drawn: the curves; those without a finite value are left out.
        x: name of the horizontal axis.
        y_range: lowest and highest value, apart; several figures with the same one can be compared.
        note: a second line of the title.
    """
    drawn = [c for c in drawn if any(map(math.isfinite, c.ys))]
    x0, x1 = _whole([v for c in drawn for v in c.xs])
    ends = ", ".join(f"{c.name} from {c.ys[0]:.4g} to {c.ys[-1]:.4g}" for c in drawn[:_SAID])
    more = f", and {len(drawn) - _SAID} more" if len(drawn) > _SAID else ""
    data = (
        f'tabindex="0" data-x="{escape(x)}" data-frame="{_LEFT} {_RIGHT} {_TOP} {_BOTTOM}" '
        f'data-range="{x0:g} {x1:g} {y_range[0]:.9g} {y_range[1]:.9g}"'
    )
    of = f", {note}" if note else ""
    said, parts = f"{title}{of} over {x}: {ends}{more}", curve_parts(drawn, x, y_range)
    return _figure(title, note, HEIGHT, said, parts, data, "<output></output>")


def curve_parts(drawn: Sequence[Curve], x: str, y_range: tuple[float, float]) -> list[str]:
    """The inside of a chart of curves, WIDTH by HEIGHT: axes, curves, and a line for the pointer."""
    x0, x1 = _whole([v for c in drawn for v in c.xs])
    y0, y1 = y_range

    def at(px: float, py: float) -> str:
        return f"{_across(px, x0, x1, _LEFT, _RIGHT):.1f},{_across(py, y0, y1, _BOTTOM, _TOP):.1f}"

    parts = []
    for v in ticks(y0, y1):
        height = _across(v, y0, y1, _BOTTOM, _TOP)
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{_RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 6}" y="{height + 4:.1f}">{v:g}</text>')
    for v in ticks(x0, x1):
        along = _across(v, x0, x1, _LEFT, _RIGHT)
        parts.append(f'<text class="tick mid" x="{along:.1f}" y="{_BOTTOM + 17}">{v:g}</text>')
    parts.append(f'<text class="tick mid" x="{(_LEFT + _RIGHT) / 2}" y="{_BOTTOM + 33}">{escape(x)}</text>')
    for c in drawn:
        pairs = " ".join(at(px, py) for px, py in zip(c.xs, c.ys, strict=True) if math.isfinite(py))
        parts.append(f'<polyline class="{c.css}" data-name="{escape(c.name)}" points="{pairs}"/>')
    parts.append(f'<line class="cross" x1="{_LEFT}" x2="{_LEFT}" y1="{_TOP}" y2="{_BOTTOM}"/>')
    return parts


def _whole(xs: Sequence[float]) -> tuple[float, float]:
    """First and last of some numbers, apart from each other."""
    first, last = min(xs, default=0.0), max(xs, default=1.0)
    return first, last if last > first else first + 1.0


def rows(title: str, drawn: Sequence[Row], x: str, note: str = "", zero: bool = False) -> str:
    """A figure of rows of marks on one scale; ``zero`` draws a line at 0, which the scale then has."""
    values = [v for r in drawn for v in (r.low, r.high, r.mean, *(dot for dot, _ in r.dots))]
    low, high = span([*values, *[0.0] * zero])
    left, right, end = _MARGIN, WIDTH - _MARGIN, 6 + _ROW * len(drawn)

    def at(v: float) -> float:
        return _across(v, low, high, left, right)

    parts = []
    for v in ticks(low, high):
        parts.append(f'<line class="rule" x1="{at(v):.1f}" x2="{at(v):.1f}" y1="4" y2="{end}"/>')
        parts.append(f'<text class="tick mid" x="{at(v):.1f}" y="{end + 15}">{v:g}</text>')
    if zero:
        parts.append(f'<line class="zero" x1="{at(0):.1f}" x2="{at(0):.1f}" y1="4" y2="{end}"/>')
    parts.append(f'<text class="tick mid" x="{WIDTH / 2}" y="{end + 31}">{escape(x)}</text>')
    for i, r in enumerate(drawn):
        base, middle = 16 + i * _ROW, 27 + i * _ROW
        dots = "".join(
            f'<circle class="seed" cx="{at(v):.1f}" cy="{middle + 4}" r="2.5"><title>{escape(said)}</title></circle>'
            for v, said in r.dots
            if math.isfinite(v)
        )
        shape = f'class="hollow" cx="{at(r.mean):.1f}"' if r.hollow else f'cx="{at(r.mean):.1f}"'
        parts.append(
            f'<g class="mark {r.css}"><title>{escape(f"{r.name}: {r.said}")}</title>'
            f'<text x="{left}" y="{base}"{_fitted(r.name)}>{escape(r.name)}</text>'
            f'<text class="end" x="{right}" y="{base}">{escape(r.said)}</text>{dots}'
            f'<line x1="{at(r.low):.1f}" x2="{at(r.high):.1f}" y1="{middle - 2}" y2="{middle - 2}"/>'
            f'<circle {shape} cy="{middle - 2}" r="4"/></g>'
        )
    said = "; ".join(f"{r.name}: {r.said}" for r in drawn)
    return _figure(title, note, end + 38, f"{title}. {said}", parts)


def scatter(title: str, drawn: Sequence[Row], spent: Sequence[float], x: str, note: str = "") -> str:
    """A figure of numbered marks with intervals over a cost, on a logarithmic scale with a place of its own for none.

    Marks of the same cost are drawn beside each other.

    Args:
        title: of the figure.
        drawn: the marks.
        spent: the cost of each, 0 for none.
        x: name of the horizontal axis.
        note: a second line of the title.
    """
    paid = [math.log10(cost) for cost in spent if cost > 0] or [0.0]
    first, last = min(paid) - 0.15, max(paid) + 0.15
    first, last = min(first, (first + last - 1) / 2), max(last, (first + last + 1) / 2)  # at least a factor of ten
    y0, y1 = span([v for r in drawn for v in (r.low, r.high)])
    free = [i for i, cost in enumerate(spent) if cost <= 0]
    wall = _LEFT + max(40, 22 * len(free)) if free else _LEFT  # between no cost and some
    wall = min(wall, _LEFT + 150)

    at, beside = {i: _across(k + 0.5, 0, len(free), _LEFT, wall) for k, i in enumerate(free)}, -math.inf
    for i in sorted((i for i, cost in enumerate(spent) if cost > 0), key=lambda i: spent[i]):
        beside = max(beside + 17, _across(math.log10(spent[i]), first, last, wall, _RIGHT))
        at[i] = beside
    parts = []
    for v in ticks(y0, y1):
        height = _across(v, y0, y1, _BOTTOM, _TOP)
        parts.append(f'<line class="rule" x1="{_LEFT}" x2="{_RIGHT}" y1="{height:.1f}" y2="{height:.1f}"/>')
        parts.append(f'<text class="tick end" x="{_LEFT - 6}" y="{height + 4:.1f}">{v:g}</text>')
    if free:
        parts.append(f'<line class="zero" x1="{wall}" x2="{wall}" y1="{_TOP}" y2="{_BOTTOM}"/>')
        parts.append(f'<text class="tick mid" x="{(_LEFT + wall) / 2}" y="{_BOTTOM + 17}">none</text>')
    for v in _decades(first, last):
        along = _across(math.log10(v), first, last, wall, _RIGHT)
        parts.append(f'<text class="tick mid" x="{along:.1f}" y="{_BOTTOM + 17}">{v:,.0f}</text>')
    parts.append(f'<text class="tick mid" x="{(wall + _RIGHT) / 2}" y="{_BOTTOM + 33}">{escape(x)}</text>')
    for i, r in enumerate(drawn):
        across = at[i]
        low, high, mean = (_across(v, y0, y1, _BOTTOM, _TOP) for v in (r.low, r.high, r.mean))
        parts.append(
            f'<g class="mark {r.css}"><title>{escape(f"{r.name}: {r.said}")}</title>'
            f'<line x1="{across:.1f}" x2="{across:.1f}" y1="{low:.1f}" y2="{high:.1f}"/>'
            f'<circle cx="{across:.1f}" cy="{mean:.1f}" r="8"/>'
            f'<text class="inside mid" x="{across:.1f}" y="{mean + 4:.1f}">{i + 1}</text></g>'
        )
    said = "; ".join(f"{i + 1} {r.name}: {r.said}" for i, r in enumerate(drawn))
    keys = "".join(f"<li>{i + 1} {escape(r.name)}</li>" for i, r in enumerate(drawn))
    return _figure(title, note, HEIGHT, f"{title}. {said}", parts, after=f'<ol class="keys">{keys}</ol>')


def _decades(first: float, last: float) -> list[float]:
    """Round numbers between 10 ** first and 10 ** last, for a logarithmic scale."""
    steps = (1,) if last - first > 3 else (1, 3) if last - first > 1 else (1, 2, 5)
    every = [s * 10.0**d for d in range(math.floor(first), math.ceil(last) + 1) for s in steps]
    return [v for v in every if first <= math.log10(v) <= last]


def _fitted(name: str) -> str:
    """A long name is drawn narrower, so that it stays whole."""
    return f' textLength="{WIDTH - 120}" lengthAdjust="spacingAndGlyphs"' if len(name) > _LONG else ""


def _across(v: float, low: float, high: float, start: float, stop: float) -> float:
    """Where a value of [low, high] lies between start and stop."""
    return start + (v - low) / (high - low) * (stop - start)


def _figure(
    title: str, note: str, height: int, said: str, parts: Sequence[str], data: str = "", after: str = ""
) -> str:
    second = f"<small>{escape(note)}</small>" if note else ""
    return (
        f"<figure><figcaption>{escape(title)}{second}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(said)}" {data}>'
        + "".join(parts)
        + f"</svg>{after}</figure>"
    )
