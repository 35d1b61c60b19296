"""The page of a comparison: one self-contained HTML file without scripts, with embedded pictures."""

from __future__ import annotations

import base64
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path

import torch

from metasched.evaluation.comparison import Comparison
from metasched.evaluation.verdict import verdicts
from metasched.io.atomic import write_atomic
from metasched.io.environment import environment
from metasched.io.json_text import json_text
from metasched.tracking.plots import plot_comparison, plot_differences, plot_schedule

POINTS = 101  # in progress, of a curve
_STYLE = """
:root { color-scheme: light; }
body { font: 16px/1.5 system-ui, sans-serif; color: #1a1a1a; max-width: 64rem; margin: 0 auto; padding: 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .875rem; }
th, td { padding: .25rem .75rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #e2e2e2; }
th:first-child, td:first-child { text-align: left; }
thead th { border-bottom: 2px solid #888; }
tr.learned td { color: #c1272d; font-weight: 600; }
img { max-width: 100%; height: auto; }
pre { background: #f6f6f6; padding: .75rem; overflow-x: auto; font-size: .8rem; }
summary { cursor: pointer; padding: .25rem 0; }
"""


def write_page(path: Path, title: str, comparison: Comparison) -> Path:
    """Writes the page of a comparison that no run folder holds; returns its path.

    Raises:
        MetaschedError: the file cannot be written.
    """
    versions = {"Versions and device that wrote this page": json_text(environment(), indent=2)}
    scores = {h: {name: arm.counted for name, arm in comparison.at(h).items()} for h in comparison.horizons}
    with tempfile.TemporaryDirectory() as folder:
        plots = Path(folder)
        plot_comparison(plots / "comparison.png", scores, comparison.learned)
        found = body(comparison, plots, "Score of the hard network")
        text = page(title, [f"<h1>{escape(title)}</h1>", *found, *ending(versions)])
    write_atomic(path, text.encode())
    return path


def page(title: str, parts: Sequence[str]) -> str:
    """The whole page.

    Args:
        title: plain text.
        parts: of HTML.
    """
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def body(comparison: Comparison, plots: Path, score: str, notes: Sequence[str] = ()) -> Iterable[str]:
    """What was found, as HTML: verdicts, tables, pictures.

    Args:
        comparison: the scores, and the schedules that are drawn.
        plots: folder of pictures, in which ``comparison.png`` must exist.
        score: what the numbers are.
        notes: lines that come after the verdicts.
    """
    yield from (f"<p><strong>{escape(str(verdict))}</strong></p>" for verdict in verdicts(comparison))
    yield from (f"<p>{escape(note)}</p>" for note in notes)
    yield f"<p>{escape(_setting(comparison, score))}</p>"
    for horizon in comparison.horizons:
        yield f"<h2>After {horizon} steps</h2>"
        yield _table(*comparison.rows(horizon), marked=comparison.learned)
        yield from (_picture(path, alt) for path, alt in _differences(comparison, horizon, plots))
    yield from _rates(comparison)
    yield "<h2>All scores</h2>"
    yield _picture(plots / "comparison.png", "scores of each arm, one dot per seed")
    if comparison.drawn:
        yield "<h2>The schedules</h2>"
    for i, drawn in enumerate(comparison.drawn):
        path = plots / f"schedule_{i:02d}.png"
        plot_schedule(path, drawn.values, drawn.layers, progress())
        opened = " open" if drawn.name in comparison.learned else ""
        picture = _picture(path, f"controls of {drawn.name} in each layer over progress")
        yield f"<details{opened}><summary>{escape(drawn.name)}</summary>{picture}</details>"


def ending(texts: Mapping[str, str]) -> Iterable[str]:
    """The last part of a page: folded texts, {heading: text}."""
    yield "<h2>Environment</h2>"
    for heading, text in texts.items():
        yield f"<details><summary>{escape(heading)}</summary><pre>{escape(text)}</pre></details>"


def progress() -> torch.Tensor:
    """Where curves are drawn: [POINTS], float64."""
    return torch.linspace(0, 1, POINTS, dtype=torch.float64)


def _rates(comparison: Comparison) -> Iterable[str]:
    """What was tried to tune the learning rates of floors and ceiling; nothing if they were not tuned."""
    arms = comparison.at(comparison.horizons[0]).values()
    rows = [
        [name, f"{lr:.3g}", f"{score:.4f}", str(tuned.runs), "chosen" if lr == tuned.lr else ""]
        for name, tuned in [(arm.name, arm.tuned) for arm in arms]
        if tuned is not None
        for lr, score in tuned.tried
    ]
    if rows:
        yield "<h2>Learning rates of floors and ceiling</h2>"
        yield "<p>Mean hardened scores on meta-validation; the rates were chosen before test data was read.</p>"
        yield _table(["arm", "learning rate", "mean", "n", ""], rows, marked=())


def _setting(comparison: Comparison, score: str) -> str:
    return (
        f"{score}, {len(comparison.seeds)} fresh seeds, the same for every arm. Differences are "
        "paired by seed; intervals are 95 % Student's t intervals. p is corrected for the number of arms (Holm)."
    )


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[str]) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "\n".join(
        f"<tr{' class=learned' if row[0] in marked else ''}>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table></div>'


def _picture(path: Path, alt: str) -> str:
    data = base64.b64encode(path.read_bytes()).decode("ascii")
    return f'<p><img alt="{escape(alt)}" src="data:image/png;base64,{data}"></p>'


def _differences(comparison: Comparison, horizon: int, plots: Path) -> Iterable[tuple[Path, str]]:
    arms = comparison.at(horizon)
    for i, name in enumerate(n for n in comparison.learned if n in arms):
        others = {n: comparison.difference(arms[name], arm) for n, arm in arms.items() if n != name}
        if others:
            path = plots / f"differences_{horizon}_{i}.png"
            plot_differences(path, {n: (d.mean, d.low, d.high) for n, d in others.items()}, name)
            yield path, f"paired differences of {name} to the others"
