"""Schedules as one SVG file: a row for each control, a column for each schedule, light and dark."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import torch

from metasched.evaluation.charts import HEIGHT, WIDTH, Curve, curve_parts, span
from metasched.evaluation.comparison import Drawn
from metasched.evaluation.figures import layers_of
from metasched.evaluation.look import DARK, LIGHT, LINE_DARK, LINE_LIGHT, hue

_HEAD, _KEYS, _EACH = 30, 26, 190  # height of a title and of a row of the legend, width of an entry
_LEGEND = 24  # layers; with more, the legend names the first and the last


def schedules_svg(drawn: Sequence[Drawn]) -> str:
    """The file: text of an SVG that needs nothing else. Constants that are the same everywhere are left out.

    Args:
        drawn: at least one schedule with at least one control.
    """
    layers = layers_of(drawn)
    every = list(dict.fromkeys(c for one in drawn for c in one.values))
    controls = [c for c in every if _moves([one.values[c] for one in drawn if c in one.values])] or every
    width, panel = len(drawn) * WIDTH, HEIGHT + _HEAD
    parts = []
    for row, control in enumerate(controls):
        own = [(column, one) for column, one in enumerate(drawn) if control in one.values]
        scale = span([v for _, one in own for v in one.values[control].double().flatten().tolist()])
        for column, one in own:
            table = one.values[control].detach().cpu().double()
            u = torch.linspace(0, 1, len(table)).tolist()
            lines = [
                Curve(name, f"y{layers.index(name)}", u, table[:, i].tolist()) for i, name in enumerate(one.layers)
            ]
            inside = "".join(curve_parts(lines, "progress", scale))
            title = f'<text class="head" x="8" y="20">{escape(one.name)}: {escape(control)}</text>'
            parts.append(f'<g transform="translate({column * WIDTH} {row * panel})">{title}')
            parts.append(f'<g transform="translate(0 {_HEAD})">{inside}</g></g>')
    named = range(len(layers)) if len(layers) <= _LEGEND else (0, len(layers) - 1)
    across, top = max(1, width // _EACH), len(controls) * panel + 18
    for k, i in enumerate(named):
        x, y = 8 + k % across * _EACH, top + k // across * _KEYS
        parts.append(f'<polyline class="y{i}" points="{x},{y - 4} {x + 24},{y - 4}"/>')
        parts.append(f'<text x="{x + 30}" y="{y}">{escape(layers[i])}</text>')
    height = top + -(-len(named) // across) * _KEYS
    about = f"{' and '.join(one.name for one in drawn)}: {', '.join(controls)} of {len(layers)} layers over progress"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-label="{escape(about)}"><style>{_style(len(layers))}</style>'
        f'<rect class="page" width="{width}" height="{height}"/>{"".join(parts)}</svg>\n'
    )


def _moves(values: Sequence[torch.Tensor]) -> bool:
    """Whether not all numbers of some tensors [T, L] are equal."""
    return min(float(v.min()) for v in values) < max(float(v.max()) for v in values)


def _style(layers: int) -> str:
    def colors(of: dict[str, str], line: tuple[int, int]) -> str:
        curves = "".join(f".y{i}{{stroke:hsl({hue(i, layers)} {line[0]}% {line[1]}%)}}" for i in range(layers))
        return (
            f".page{{fill:{of['page']}}}text{{fill:{of['ink']}}}.tick{{fill:{of['soft']}}}"
            f".rule{{stroke:{of['rule']}}}{curves}"
        )

    return (
        "text{font:12px system-ui,sans-serif}.head{font-weight:600;font-size:14px}.end{text-anchor:end}"
        ".mid{text-anchor:middle}.cross{display:none}polyline{fill:none;stroke-width:2;stroke-linejoin:round}"
        f"{colors(dict(LIGHT), LINE_LIGHT)}"
        f"@media(prefers-color-scheme:dark){{{colors(dict(DARK), LINE_DARK)}}}"
    )
