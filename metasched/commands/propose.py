"""``metasched propose``: a schedule for a new task from the runs of others, without a run."""

from __future__ import annotations

from pathlib import Path

from metasched.commands.exporting import sampled
from metasched.config.schema import Experiment
from metasched.config.writing import config_hash
from metasched.exchange.format import Provenance, ScheduleFile
from metasched.io.environment import versions
from metasched.runs.store import read_store
from metasched.schedules.base import progress_of_steps
from metasched.search.surface import proposal
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
    schedule, said = proposal(problem, experiment.method.name, read_store(store))
    source = Provenance(
        kind="tuned",
        name=experiment.name,
        citation=f"proposed by a response surface without a run on this task: {said}",
        config_hash=config_hash(experiment, problem.fingerprint),
        seeds=(experiment.seed,),
        versions=versions(),
    )
    knots = progress_of_steps(experiment.schedule.knots)
    file = sampled(schedule, knots, "linear", source, experiment, problem)
    return file, said
