"""The report of a comparison in a run folder: its page, with schedules, the outer loop and the configuration."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from metasched.config.writing import dump_yaml
from metasched.evaluation.comparison import Comparison, Drawn
from metasched.evaluation.contenders import Contender
from metasched.evaluation.figures import progress
from metasched.evaluation.headline import best_published
from metasched.evaluation.page import Made, page, where
from metasched.io.atomic import write_atomic
from metasched.io.environment import environment
from metasched.io.json_lines import read_json_lines
from metasched.io.json_text import json_text
from metasched.io.run_folder import RunFolder
from metasched.runs.cells import bound
from metasched.schedules.feedback import open_loop
from metasched.training.problem import build_problem


def write_report(
    config: Mapping[str, Any],
    comparison: Comparison,
    contenders: Mapping[str, Contender],
    folder: RunFolder,
    notes: Sequence[str] = (),
    start: tuple[str, Contender] | None = None,
) -> Path:
    """Writes ``report.html`` into the run folder.

    Args:
        config: the experiment of the comparison, as ``to_dict`` has it.
        comparison: the scores.
        contenders: the arms by name.
        folder: the run folder.
        notes: lines that come after the verdicts.
        start: name and arm of what learning started at.

    Returns:
        path of the report.
    """
    task = config["task"].get("factory") or config["task"]["name"]
    title = f"{config['name']}: {config['method']['name']} on {task}"
    comparison = replace(comparison, drawn=tuple(_drawn(comparison, contenders, start)))
    here = environment()
    if folder.environment.exists():  # the command is that of the run, the rest of the process that compared
        here |= {k: v for k, v in json.loads(folder.environment.read_text("utf-8")).items() if k == "command"}
    rows = read_json_lines(folder.metrics) if folder.metrics.exists() else []
    history = [row for row in rows if {"outer/step", "tune/trial", "online/step"} & {*row}]
    texts = {"Versions and device": json_text(here, indent=2), "Configuration": dump_yaml(config)}
    made = Made(notes, history, where(here), texts, "Hardened score on test data")
    write_atomic(folder.report, page(title, comparison, made).encode())
    return folder.report


def _drawn(
    comparison: Comparison, contenders: Mapping[str, Contender], start: tuple[str, Contender] | None
) -> Iterable[Drawn]:
    """The learned schedules, their start, and the best published one; no arm that adapted, and none of no schedule."""
    shown = {name: contenders[name] for name in comparison.learned if name in contenders}
    best = best_published(comparison, comparison.horizons[0])
    if start is not None:
        same = " and best published" if best is not None and best.name == start[0] else ""
        shown[f"start{same}: {start[0]}"] = start[1]
    if best is not None and best.name in contenders and (start is None or start[0] != best.name):
        shown[f"best published: {best.name}"] = contenders[best.name]
    for name, (problem, schedule, _) in shown.items():
        network = build_problem(problem).network
        if network.method.controls:
            layers, own = network.layers, bound(problem, schedule, comparison.horizons[0])
            yield Drawn(name, tuple(layer.name for layer in layers), open_loop(own(progress(), layers)))
