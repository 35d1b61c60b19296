"""The schedule file of a run: one path from what a command found to the file and its provenance."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import torch

from metasched.config.schema import Experiment
from metasched.config.writing import config_hash, section_dict, to_dict
from metasched.core.layer import Layer
from metasched.exchange.export import export
from metasched.exchange.extras import RecipeEntry
from metasched.exchange.form import why_table_only
from metasched.exchange.format import Metric, Provenance, ScheduleFile, Spent
from metasched.exchange.schedule_file import write_schedule
from metasched.io.environment import versions
from metasched.io.run_folder import RunFolder
from metasched.network.config import QuantizeConfig
from metasched.network.flat import Tensors
from metasched.schedules.base import Schedule
from metasched.schedules.feedback import open_loop
from metasched.tracking.plots import plot_schedule
from metasched.tracking.tracker import Tracker
from metasched.training.features import features_of_inner
from metasched.training.state import InnerProblem


class Found(NamedTuple):
    """A schedule that a command found.

    Attributes:
        schedule: gives the values.
        knots: progress [K], float64, at which the file has values.
        interpolation: between the knots.
        kind: how it was found, in a word.
        how: the same in a sentence.
        seed: of the experiment, or of the one inner run that it was found in.
        outer_steps: updates of the schedule; None for a search.
        score: mean on meta-validation; NaN where there is none.
        runs: inner runs that the score is the mean of.
        spent: training steps that finding it took.
    """

    schedule: Schedule
    knots: torch.Tensor
    interpolation: Literal["linear", "previous"]
    kind: Literal["learned", "tuned"]
    how: str
    seed: int
    outer_steps: int | None
    score: float
    runs: int
    spent: tuple[Spent, ...]


def write_found(found: Found, experiment: Experiment, problem: InnerProblem, folder: RunFolder) -> str:
    """Writes ``schedule.json`` into the run folder; returns the hash of the configuration that it names.

    Args:
        found: the schedule.
        experiment: in which it was found.
        problem: of the experiment.
        folder: of the run.

    Raises:
        MetaschedError: a value outside the range, direction or end of its control.
    """
    file = file_of(found, experiment, problem)
    write_schedule(folder.schedule, file)
    assert file.provenance.config_hash is not None
    return file.provenance.config_hash


def file_of(found: Found, experiment: Experiment, problem: InnerProblem) -> ScheduleFile:
    """The schedule file of what a command found; arguments and errors as for ``write_found``."""
    has_score = found.runs and math.isfinite(found.score)
    provenance = Provenance(
        kind=found.kind,
        name=experiment.name,
        citation=found.how,
        config_hash=config_hash(experiment, problem.fingerprint),
        seeds=(found.seed,),
        tasks=(problem.task.name,),
        outer_steps=found.outer_steps,
        versions=versions(),
        metric=Metric(name="meta-validation score", value=found.score, n=found.runs) if has_score else None,
        spent=found.spent,
    )
    task, recipe = None, None
    if not why_table_only(found.schedule, experiment.method):
        task, recipe = features_of_inner(problem), recipe_of(experiment.quantize)
    return sampled(
        found.schedule, found.knots, found.interpolation, provenance, experiment, problem, task=task, recipe=recipe
    )


def said_of_form(found: Found, experiment: Experiment) -> str:
    """One line: how a schedule is played on other layers."""
    why = why_table_only(found.schedule, experiment.method)
    if why:
        return f"the file of what was {found.kind} is a table, which other networks play by depth: {why}"
    return f"the file of what was {found.kind} holds a formula, so that networks of other layers can play it too"


def sampled(
    schedule: Schedule,
    knots: torch.Tensor,
    interpolation: Literal["linear", "previous"],
    provenance: Provenance,
    experiment: Experiment,
    problem: InnerProblem,
    *,
    task: Mapping[str, float] | None = None,
    recipe: RecipeEntry | None = None,
) -> ScheduleFile:
    """The file of any schedule for the method and the layers of an experiment, with values at the knots [K], float64.

    Args:
        schedule, knots, interpolation, provenance: see ``export``.
        experiment: names the method.
        problem: of the experiment.
        task: features of the task, {name: x}, where the file is to have them.
        recipe: which tensors were quantized, likewise.

    Raises:
        MetaschedError: a value outside the range, direction or end of its control.
    """
    return export(
        schedule,
        method_name=experiment.method.name,
        method_parameters={name: v for name, v in to_dict(experiment)["method"].items() if name != "name"},
        controls=problem.network.method.controls,
        layers=problem.network.layers,
        knots=knots,
        interpolation=interpolation,
        provenance=provenance,
        task=task,
        recipe=recipe,
    )


def recipe_of(quantize: QuantizeConfig) -> RecipeEntry | None:
    """The record of which tensors were quantized; None for the default."""
    rules = [{n: v for n, v in section_dict(rule).items() if v is not None} for rule in quantize.rules]
    if (quantize.first, quantize.last, rules) == (QuantizeConfig.first, QuantizeConfig.last, []):
        return None
    return RecipeEntry(first=quantize.first, last=quantize.last, rules=tuple(rules))


def show(values: Tensors, progress: torch.Tensor, layers: Sequence[Layer], folder: RunFolder, tracker: Tracker) -> None:
    """Draws the values {control: [T, L]} of a schedule at progress [T] into the run folder, and logs them.

    Of a closed-loop one these are the open-loop values.
    """
    values = open_loop(values)
    names = [layer.name for layer in layers]
    folder.plots.mkdir(exist_ok=True)
    plot_schedule(folder.plots / "schedule.png", values, names, progress)
    for t, u in enumerate(progress.tolist()):
        curves = {f"schedule/{c}/{n}": float(v[t, i]) for c, v in values.items() for i, n in enumerate(names)}
        tracker.log({"schedule/progress": u, **curves})
