"""The page of a comparison: one self-contained HTML file with inline figures, which loads nothing."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

from metasched.evaluation.comparison import Comparison
from metasched.evaluation.figures import (
    compute_figure,
    difference_figure,
    layers_of,
    learning_figures,
    schedule_figures,
    score_figure,
)
from metasched.evaluation.headline import best_published, headline
from metasched.evaluation.look import SCRIPT, style
from metasched.evaluation.verdict import Verdict, verdicts
from metasched.io.atomic import write_atomic
from metasched.io.environment import environment
from metasched.io.json_text import json_text

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

_OPEN = 3  # verdicts that are not folded
_WORDS = {"above": "Above no schedule", "level": "Level with no schedule", "below": "Below no schedule"}


class Made(NamedTuple):
    """How a comparison came about.

    Attributes:
        notes: lines that come after the verdicts.
        history: logged rows of the outer loop or the search.
        where: {name: value}: command, versions, hardware.
        texts: {heading: text}, folded at the end.
        score: what the numbers are.
    """

    notes: Sequence[str] = ()
    history: Sequence[Mapping[str, Any]] = ()
    where: Mapping[str, str] = {}
    texts: Mapping[str, str] = {}
    score: str = "Score of the hard network"


def write_page(path: Path, title: str, comparison: Comparison) -> Path:
    """Writes the page of a comparison that no run folder holds; returns its path.

    Raises:
        MetaschedError: the file cannot be written.
    """
    here = environment()
    texts = {"Versions and device that wrote this page": json_text(here, indent=2)}
    write_atomic(path, page(title, comparison, Made(where=where(here), texts=texts)).encode())
    return path


def page(title: str, comparison: Comparison, made: Made) -> str:
    """The whole page; ``title`` is plain text."""
    parts = "\n".join([f"<h1>{escape(title)}</h1>", *_body(comparison, made)])
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style(len(layers_of(comparison.drawn)))}</style></head>\n"
        f"<body><main>\n{parts}\n</main><script>{SCRIPT}</script></body></html>\n"
    )


def where(here: Mapping[str, Any]) -> dict[str, str]:
    """What of an environment belongs on the page: {name: value}."""
    git = here.get("git") or {}
    found = {
        "command": here.get("command"),
        "device": here.get("device"),
        "processor": f"{here.get('cpu')}, {here.get('cpu_count')} cores",
        "threads of a run": here.get("inner_threads"),
        "python": here.get("python"),
        **{name: here.get(name) for name in ("metasched", "torch", "numpy", "cuda")},
        "commit": f"{git['commit']}{' and changes' if git.get('dirty') else ''}" if git.get("commit") else None,
    }
    return {name: str(value) for name, value in found.items() if value not in (None, "")}


def _body(comparison: Comparison, made: Made) -> Iterable[str]:
    said = [_said(verdict) for verdict in verdicts(comparison)]
    yield from said[:_OPEN]
    if rest := said[_OPEN:]:
        yield f"<details><summary>{len(rest)} more verdicts</summary>{''.join(rest)}</details>"
    yield _headline(comparison)
    yield from (f"<p>{escape(note)}</p>" for note in made.notes)
    yield f'<p class="soft">{escape(_setting(comparison, made.score))}</p>'
    if comparison.drawn:
        yield "<h2>Schedules</h2>"
        yield '<p class="soft hint">Move over a figure, or choose it and press the arrow keys, to read values.</p>'
        yield from schedule_figures(comparison.drawn)
    if learning := learning_figures(made.history):
        yield f"<h2>Learning</h2>{learning}"
    for horizon in comparison.horizons:
        yield f"<h2>After {horizon} steps</h2>"
        yield from _at(comparison, horizon)
    yield from _rates(comparison)
    yield "<h2>Where it was measured</h2>"
    if made.where:
        items = "".join(f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in made.where.items())
        yield f'<dl class="where">{items}</dl>'
    for heading, text in made.texts.items():
        yield f'<details><summary>{escape(heading)}</summary><pre tabindex="0">{escape(text)}</pre></details>'


def _said(verdict: Verdict) -> str:
    sentence = str(verdict).removeprefix("verdict ")
    words = "No schedule is best" if verdict.difference is None else _WORDS[verdict.finding]
    text = f"<strong>{words}.</strong> {escape(sentence[:1].upper() + sentence[1:])}"
    return f'<div class="verdict {verdict.finding}"><p>{text}</p></div>'


def _headline(comparison: Comparison) -> str:
    """The numbers of the first horizon as cards."""
    found, horizon = headline(comparison), comparison.horizons[0]
    floors, published = comparison.floors(horizon), best_published(comparison, horizon)
    names = {
        "learned": ("learned", next(iter(comparison.learned), "")),
        "floor": ("no schedule", floors[0].name if floors else ""),
        "ceiling": ("float network", "no quantization"),
        "best_published": ("best published", published.name if published else ""),
    }
    cards = [(label, f"{found[key]:.4f}", small) for key, (label, small) in names.items() if key in found]
    if "difference" in found:
        interval = f"95 % interval {found['low']:+.4f} to {found['high']:+.4f}, n = {found['n']}"
        cards.insert(0, ("learned - no schedule", f"{found['difference']:+.4f}", interval))
    items = "".join(
        f"<div><dt>{escape(name)}</dt><dd>{value}<small>{escape(small)}</small></dd></div>"
        for name, value, small in cards
    )
    return f"<dl>{items}</dl>"


def _at(comparison: Comparison, horizon: int) -> Iterable[str]:
    arms = comparison.at(horizon)
    references = [arms[name] for name in comparison.learned if name in arms and len(arms) > 1]
    differences = [difference_figure(comparison, arm) for arm in references]
    figures = [score_figure(comparison, horizon), *differences, compute_figure(comparison, horizon)]
    yield f'<div class="grid pair">{"".join(f"<div>{figure}</div>" for figure in figures if figure)}</div>'
    yield table(f"Scores after {horizon} steps", *comparison.rows(horizon, ()), comparison.learned)
    for arm in references:
        corrected, rows = comparison.corrected(arm), []
        others = [(o, comparison.difference(arm, o)) for o in arms.values() if o is not arm]
        for other, d in sorted(others, key=lambda pair: -pair[1].mean):
            interval = f"[{d.low:+.4f}, {d.high:+.4f}]"
            rows.append([other.name, f"{d.mean:+.4f}", interval, f"{d.p:.2g}", f"{corrected[other.name]:.2g}"])
        columns = ["schedule", f"{arm.name} - this", "95 % interval", "p", "p (Holm)"]
        yield table(f"Differences of {arm.name}", columns, rows, comparison.learned)


def _rates(comparison: Comparison) -> Iterable[str]:
    """What was tried to tune the learning rates of floors and ceiling; nothing if they were not tuned."""
    arms = comparison.at(comparison.horizons[0]).values()
    rows = [
        [name, f"{lr:.3g}", f"{score:.4f}", str(tuned.runs), "yes" if lr == tuned.lr else ""]
        for name, tuned in [(arm.name, arm.tuned) for arm in arms]
        if tuned is not None
        for lr, score in tuned.tried
    ]
    if rows:
        yield "<h2>Learning rates of floors and ceiling</h2>"
        said = "Mean hardened scores on meta-validation; the rates were chosen before test data was read"
        yield table(said, ["arm", "learning rate", "mean", "n", "chosen"], rows, ())


def _setting(comparison: Comparison, score: str) -> str:
    return (
        f"{score}, {len(comparison.seeds)} fresh seeds, the same for every arm. Differences are "
        "paired by seed; intervals are 95 % Student's t intervals. p is corrected for the number of arms (Holm)."
    )


def table(caption: str, columns: Sequence[str], rows: Sequence[Sequence[str]], marked: Sequence[str]) -> str:
    """A table that scrolls in its own place where the page is narrow for it; on telephones a row is a card.

    Roles are written out: browsers forget those of elements that a style sheet lays out anew.
    """
    head = "".join(f'<th scope="col" role="columnheader">{escape(column)}</th>' for column in columns)

    def cells(row: Sequence[str]) -> str:
        first = f'<th scope="row" role="rowheader">{escape(row[0])}</th>'
        pairs = zip(columns[1:], row[1:], strict=True)
        return first + "".join(
            f'<td role="cell" data-label="{escape(c)}">{escape(v).replace(", ", ",&nbsp;")}</td>' for c, v in pairs
        )

    body = "\n".join(f'<tr role="row"{" class=learned" if row[0] in marked else ""}>{cells(row)}</tr>' for row in rows)
    return (
        f'<div class="wide" role="region" tabindex="0" aria-label="{escape(caption)}"><table role="table">'
        f'<caption>{escape(caption)}</caption><thead role="rowgroup"><tr role="row">{head}</tr></thead>\n'
        f'<tbody role="rowgroup">{body}</tbody></table></div>'
    )
