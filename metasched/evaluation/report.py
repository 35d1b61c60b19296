"""The report of a comparison: one self-contained HTML file without scripts, with embedded pictures."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import torch

from metasched.config.writing import dump_yaml
from metasched.evaluation.comparison import REFERENCES, Comparison
from metasched.evaluation.contenders import Contender
from metasched.evaluation.verdict import verdicts
from metasched.io.atomic import write_atomic
from metasched.io.environment import environment
from metasched.io.json_text import json_text
from metasched.io.run_folder import RunFolder
from metasched.tracking.plots import plot_differences, plot_schedule
from metasched.training.problem import build_problem

_OTHERS_SHOWN = 3  # number of other schedules whose curves are drawn
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


def write_report(
    config: Mapping[str, Any],
    comparison: Comparison,
    contenders: Mapping[str, Contender],
    folder: RunFolder,
    notes: Sequence[str] = (),
) -> Path:
    """Writes ``report.html`` into the run folder.

    Args:
        config: the experiment of the comparison, as ``to_dict`` has it.
        comparison: the scores.
        contenders: the arms by name.
        folder: the run folder, in which ``plots/comparison.png`` must exist.
        notes: lines that come after the verdicts.

    Returns:
        path of the report.
    """
    task = config["task"].get("factory") or config["task"]["name"]
    parts = [f"<h1>{escape(config['name'])}: {escape(config['method']['name'])} on {escape(task)}</h1>"]
    parts += [f"<p><strong>{escape(str(verdict))}</strong></p>" for verdict in verdicts(comparison)]
    parts += [f"<p>{escape(note)}</p>" for note in notes]
    parts.append(f"<p>{escape(_setting(comparison))}</p>")
    for horizon in comparison.horizons:
        parts.append(f"<h2>After {horizon} steps</h2>")
        parts.append(_table(*comparison.rows(horizon), marked=comparison.learned))
        parts += [_picture(path, alt) for path, alt in _differences(comparison, horizon, folder)]
    parts += _rates(comparison)
    parts.append("<h2>All scores</h2>")
    parts.append(_picture(folder.plots / "comparison.png", "scores of each arm, one dot per seed"))
    parts.append("<h2>The schedules</h2>")
    shown = [n for n in (*comparison.learned, *_best_others(comparison)) if _has_controls(contenders.get(n))]
    for name, path in zip(shown, _curves([contenders[n] for n in shown], folder), strict=True):
        opened = " open" if name in comparison.learned else ""
        picture = _picture(path, f"controls of {name} in each layer over progress")
        parts.append(f"<details{opened}><summary>{escape(name)}</summary>{picture}</details>")
    parts.append("<h2>Environment</h2>")
    parts.append(f"<details><summary>Versions and device</summary><pre>{_escaped(environment())}</pre></details>")
    parts.append(f"<details><summary>Configuration</summary><pre>{escape(dump_yaml(config))}</pre></details>")
    page = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(config['name'])}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )
    write_atomic(folder.report, page.encode())
    return folder.report


def _best_others(comparison: Comparison) -> list[str]:
    """The best arms at the first horizon, without the learned ones, floors and ceiling."""
    arms = comparison.at(comparison.horizons[0])
    others = [name for name in arms if name not in (*comparison.learned, *REFERENCES)]
    return sorted(others, key=lambda name: -arms[name].summary.mean)[:_OTHERS_SHOWN]


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


def _setting(comparison: Comparison) -> str:
    return (
        f"Hardened score on test data, {len(comparison.seeds)} fresh seeds, the same for every arm. Differences are "
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


def _differences(comparison: Comparison, horizon: int, folder: RunFolder) -> Iterable[tuple[Path, str]]:
    arms = comparison.at(horizon)
    for i, name in enumerate(n for n in comparison.learned if n in arms):
        others = {n: comparison.difference(arms[name], arm) for n, arm in arms.items() if n != name}
        if others:
            path = folder.plots / f"differences_{horizon}_{i}.png"
            plot_differences(path, {n: (d.mean, d.low, d.high) for n, d in others.items()}, name)
            yield path, f"paired differences of {name} to the others"


def _has_controls(contender: Contender | None) -> bool:
    """Whether there are curves to draw: not of an arm that adapted while it trained, and not of STE."""
    return contender is not None and bool(build_problem(contender.problem).network.method.controls)


def _curves(contenders: Sequence[Contender], folder: RunFolder) -> Iterable[Path]:
    progress = torch.linspace(0, 1, 101, dtype=torch.float64)
    for i, (config, schedule, _) in enumerate(contenders):
        layers = build_problem(config).network.layers
        path = folder.plots / f"schedule_{i:02d}.png"
        plot_schedule(path, schedule(progress, layers), [layer.name for layer in layers], progress)
        yield path


def _escaped(value: Any) -> str:
    return escape(json_text(value, indent=2))
