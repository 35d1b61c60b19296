"""The report of a comparison in a run folder: its page, with the schedules of the arms and the configuration."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from metasched.config.writing import dump_yaml
from metasched.evaluation.comparison import REFERENCES, Comparison, Drawn
from metasched.evaluation.contenders import Contender
from metasched.evaluation.page import body, ending, page, progress
from metasched.io.atomic import write_atomic
from metasched.io.environment import environment
from metasched.io.json_text import json_text
from metasched.io.run_folder import RunFolder
from metasched.runs.cells import bound
from metasched.training.problem import build_problem

_OTHERS_SHOWN = 3  # number of other schedules whose curves are drawn


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
    heading = f"<h1>{escape(config['name'])}: {escape(config['method']['name'])} on {escape(task)}</h1>"
    comparison = replace(comparison, drawn=tuple(_drawn(comparison, contenders)))
    found = body(comparison, folder.plots, "Hardened score on test data", notes)
    texts = {"Versions and device": json_text(environment(), indent=2), "Configuration": dump_yaml(config)}
    write_atomic(folder.report, page(config["name"], [heading, *found, *ending(texts)]).encode())
    return folder.report


def _best_others(comparison: Comparison) -> list[str]:
    """The best arms at the first horizon, without the learned ones, floors and ceiling."""
    arms = comparison.at(comparison.horizons[0])
    others = [name for name in arms if name not in (*comparison.learned, *REFERENCES)]
    return sorted(others, key=lambda name: -arms[name].summary.mean)[:_OTHERS_SHOWN]


def _drawn(comparison: Comparison, contenders: Mapping[str, Contender]) -> Iterable[Drawn]:
    """The learned schedules and the best others, without arms that adapted while they trained, and STE."""
    for name in (*comparison.learned, *_best_others(comparison)):
        if name in contenders:
            problem, schedule, _ = contenders[name]
            network = build_problem(problem).network
            if network.method.controls:
                layers, own = network.layers, bound(problem, schedule, comparison.horizons[0])
                yield Drawn(name, tuple(layer.name for layer in layers), own(progress(), layers))
