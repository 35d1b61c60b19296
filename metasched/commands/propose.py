"""``metasched propose``: a schedule for a new task from the runs of others, without a run."""

from __future__ import annotations

from pathlib import Path

import torch

from metasched.commands.exporting import sampled
from metasched.config.schema import Experiment
from metasched.config.writing import config_hash
from metasched.core.errors import MetaschedError
from metasched.exchange.format import Provenance, ScheduleFile
from metasched.io.environment import versions
from metasched.runs.store import GridSchedule, read_store
from metasched.schedules.base import progress_of_steps
from metasched.search.surface import fit, tried
from metasched.training.features import features_of_inner
from metasched.training.problem import build_problem


def propose(experiment: Experiment, store: Path) -> tuple[ScheduleFile, str]:
    """The stored schedule with the best prediction for an experiment's task, and a line that says what it rests on.

    Args:
        experiment: its task, method and ``schedule.knots``.
        store: of runs, see ``run.store``.

    Raises:
        MetaschedError: the store cannot be read, or holds nothing for the method and its controls.
    """
    problem = build_problem(experiment.problem)
    controls = problem.network.method.controls
    surface = fit(tried(read_store(store), experiment.method.name))
    best = surface.proposed(features_of_inner(problem))
    grid = {name: torch.tensor(values, dtype=torch.float64) for name, values in best}
    if missing := {c.name for c in controls} ^ grid.keys():
        what = f"has schedules with other controls than {experiment.method.name} here ({', '.join(sorted(missing))})"
        raise MetaschedError(str(store), what, "give runs of the same method with the same parameters")
    said = (
        f"best prediction of {len(surface.grids)} stored schedules, by {surface.runs} scores of {surface.tasks} tasks; "
        f"on tasks left out, predictions correlate with scores by {surface.correlation:.2f}"
    )
    source = Provenance(
        kind="tuned",
        name=experiment.name,
        citation=f"proposed by a response surface without a run on this task: {said}",
        config_hash=config_hash(experiment, problem.fingerprint),
        seeds=(experiment.seed,),
        versions=versions(),
    )
    knots = progress_of_steps(experiment.schedule.knots)
    file = sampled(GridSchedule(controls, grid), knots, "linear", source, experiment, problem)
    return file, said
