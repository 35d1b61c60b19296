"""The figures of a comparison: schedules by layer, the outer loop, scores, differences, and scores over their cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import torch

from metasched.evaluation.charts import Curve, Row, curves, rows, scatter, span
from metasched.evaluation.comparison import Arm, Comparison, Drawn
from metasched.evaluation.statistics import half_interval

POINTS = 101  # in progress, of a curve
ALPHA = 0.05
_LEGEND = {  # finding -> what it means
    "above": "{} is better (p < 0.05 after Holm's correction)",
    "level": "no difference stands after the correction",
    "below": "{} is worse (p < 0.05 after Holm's correction)",
}


def progress() -> torch.Tensor:
    """Where curves are drawn: [POINTS], float64."""
    return torch.linspace(0, 1, POINTS, dtype=torch.float64)


def layers_of(drawn: Sequence[Drawn]) -> list[str]:
    """The layers of all schedules, in the order in which they first come."""
    return list(dict.fromkeys(layer for one in drawn for layer in one.layers))


def schedule_figures(drawn: Sequence[Drawn]) -> Iterable[str]:
    """The schedules, a panel for each control and schedule, with boxes that hide layers.

    Controls that are the same constant in all layers of all schedules are named, not drawn.
    """
    layers, names = layers_of(drawn), list(dict.fromkeys(c for one in drawn for c in one.values))
    boxes = "".join(
        f'<label class="y{i}"><input type="checkbox" id="layer{i}" checked> <span class="swatch"></span> '
        f"{escape(layer)}</label>"
        for i, layer in enumerate(layers)
    )
    yield f'<div class="curves"><fieldset class="keys"><legend>Layers, input to output</legend>{boxes}</fieldset>'
    still = []
    for control in names:
        own = [one for one in drawn if control in one.values]
        values = [v for one in own for v in one.values[control].double().flatten().tolist()]
        if max(values) == min(values):
            still.append(f"{control} is {values[0]:.4g}")
            continue
        yield '<div class="grid">'
        for one in own:
            table = one.values[control].detach().cpu().double()
            u = torch.linspace(0, 1, len(table)).tolist()
            shown = [
                Curve(layer, f"y{layers.index(layer)}", u, table[:, i].tolist()) for i, layer in enumerate(one.layers)
            ]
            yield curves(one.name, shown, "progress", span(values), control)
        yield "</div>"
    if still:
        yield f'<p class="soft">Not drawn, because constant and the same everywhere: {escape(", ".join(still))}.</p>'
    yield "</div>"


def learning_figures(history: Sequence[Mapping[str, Any]]) -> str:
    """The outer loop, a search, or the adaptation, over its steps, from the logged rows; empty where there are none."""
    panels = []
    for axis, name, title, note in (
        ("outer/step", "outer/score", "Score of hardened networks", "meta-validation, mean over inner runs"),
        ("outer/step", "outer/loss", "Outer loss", "what the schedule is moved down on"),
        ("tune/trial", "tune/score", "Score of each candidate", "meta-validation"),
        ("online/step", "online/score", "Score at the end of each window", "hardened, on held-out examples"),
    ):
        pairs = [(float(r[axis]), float(r[name])) for r in history if axis in r and name in r]
        pairs = [(x, y) for x, y in pairs if math.isfinite(y)]
        if len(pairs) > 1:
            xs, ys = zip(*pairs, strict=True)
            drawn = [Curve(name.partition("/")[2], "learning", xs, ys)]
            if axis == "tune/trial":
                best = [max(ys[: i + 1]) for i in range(len(ys))]
                drawn.append(Curve("best so far", "mark", xs, best))
            panels.append(curves(title, drawn, axis.replace("/", " "), span(ys), note))
    return f'<div class="grid">{"".join(panels)}</div>' if panels else ""


def score_figure(comparison: Comparison, horizon: int) -> str:
    """The scores by arm, a dot for each seed, the best arm first."""
    best_first = sorted(comparison.at(horizon).values(), key=lambda arm: -arm.summary.mean)
    note = "dots: seeds; mark and line: mean and its 95 % interval"
    drawn = [_row(comparison, arm, seeds=True) for arm in best_first]
    return rows("Scores", drawn, "score", note)


def difference_figure(comparison: Comparison, arm: Arm) -> str:
    """The paired differences of an arm to all others, coloured by what stands after Holm's correction."""
    corrected, drawn = comparison.corrected(arm), []
    for other in comparison.at(arm.horizon).values():
        if other is not arm:
            d, p = comparison.difference(arm, other), corrected[other.name]
            found = "level" if p >= ALPHA else "above" if d.mean > 0 else "below"
            said = f"{d.mean:+.4f}, p {p:.2g}"
            drawn.append(Row(other.name, said, found, d.mean, d.low, d.high, hollow=found == "level"))
    drawn.sort(key=lambda row: -row.mean)
    note = "mean paired difference and 95 % interval, not corrected; p is corrected for the arms (Holm)"
    keys = "".join(
        f'<li class="mark {name}"><svg viewBox="0 0 32 18" aria-hidden="true"><line x1="2" x2="30" y1="9" y2="9"/>'
        f'<circle {"class=hollow " if name == "level" else ""}cx="16" cy="9" r="5"/></svg> {escape(said)}</li>'
        for name, said in ((name, text.format(arm.name)) for name, text in _LEGEND.items())
    )
    return rows(f"{arm.name} minus each other", drawn, "difference of scores", note, zero=True) + (
        f'<ul class="keys">{keys}</ul>'
    )


def compute_figure(comparison: Comparison, horizon: int) -> str:
    """The scores over the training steps that finding a schedule took; empty where no arm took any."""
    best_first = sorted(comparison.at(horizon).values(), key=lambda arm: -arm.summary.mean)
    spent = [sum(entry.inner_steps for entry in arm.spent) for arm in best_first]
    if not any(spent):
        return ""
    drawn = [_row(comparison, arm, seeds=False) for arm in best_first]
    return scatter("Score over compute", drawn, spent, "training steps spent to find it", "mean and 95 % interval")


def _row(comparison: Comparison, arm: Arm, seeds: bool) -> Row:
    summary, half = arm.summary, half_interval(arm.counted)
    dots = [(s, f"seed {i + 1}: {s:.4f}") for i, s in enumerate(arm.counted)] if seeds else []
    css = "learned" if arm.name in comparison.learned else ""
    said = f"{summary.mean:.4f}"
    return Row(arm.name, said, css, summary.mean, summary.mean - half, summary.mean + half, dots)
