"""What ``metasched train`` exports: what was learned, or where that gave no gain, the schedule that it started at."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from metasched.commands.exporting import Found, file_of, said_of_form, sampled
from metasched.config.schema import Experiment
from metasched.config.writing import config_hash
from metasched.evaluation.confirm import Confirmation, confirm
from metasched.exchange.baselines import TOLERANCE, knots_within
from metasched.exchange.format import Metric, Provenance, ScheduleFile
from metasched.exchange.played import PlayedSchedule
from metasched.exchange.schedule_file import write_schedule
from metasched.io.environment import versions
from metasched.io.run_folder import RunFolder
from metasched.meta.start import Start
from metasched.runs.pool import Mapper
from metasched.schedules.curves import HandCoded
from metasched.tracking.console import Console
from metasched.tracking.tracker import Tracker
from metasched.training.state import InnerProblem

_WORSE = (
    "learning made the schedule worse: lower meta.lr, or take the settings of experiments/digits.yaml "
    "(method, schedule, meta); docs/own_task.md has them"
)
_LONGEST_SOURCE = 3000  # characters of a citation that has another sentence put before it


class Exported(NamedTuple):
    """What a run has written.

    Attributes:
        learned: what was learned, as its file holds it.
        confirmation: None if nothing was confirmed.
        config_hash: of the configuration in which it was learned.
    """

    learned: PlayedSchedule
    confirmation: Confirmation | None
    config_hash: str

    @property
    def is_start(self) -> bool:
        """Whether ``schedule.json`` is the start."""
        return self.confirmation is not None and not self.confirmation.gain


def start_file(start: Start, experiment: Experiment, problem: InnerProblem) -> ScheduleFile:
    """The file of the schedule that learning starts at, for the layers of the experiment.

    A hand-coded schedule is sampled within TOLERANCE, step functions exactly; one from a file keeps that file's knots,
    name, kind and seeds.

    Raises:
        MetaschedError: a value outside the range, direction or end of its control.
    """
    schedule = start.schedule
    if isinstance(schedule, PlayedSchedule):
        knots, interpolation, source = schedule.knots, schedule.file.interpolation, schedule.file.provenance
    else:
        assert isinstance(schedule, HandCoded), schedule
        knots = knots_within(schedule, problem.network.layers, TOLERANCE)
        interpolation = schedule.interpolation
        source = Provenance(
            kind="hand-coded",
            name=schedule.name,
            citation=schedule.citation,
            config_hash=config_hash(experiment, problem.fingerprint),
            seeds=(experiment.seed,),
            tasks=(problem.task.name,),
            versions=versions(),
        )
    return sampled(schedule, knots, interpolation, source, experiment, problem)


def export_confirmed(
    found: Found,
    start: Start,
    fallback: ScheduleFile | None,
    experiment: Experiment,
    problem: InnerProblem,
    folder: RunFolder,
    pool: Mapper,
    tracker: Tracker,
    console: Console,
) -> Exported:
    """Confirms what was learned, and writes ``schedule.json``; without a gain that is the start.

    What was learned is then in ``schedule_learned.json``.

    Args:
        found: what was learned.
        start: where learning started.
        fallback: the file of the start; None: nothing is confirmed.
        experiment: in which it was learned.
        problem: of the experiment.
        folder: of the run.
        pool: does the inner runs.
        tracker, console: receive the scores and the outcome.

    Raises:
        MetaschedError: a value outside the range, direction or end of its control.
    """
    file = file_of(found, experiment, problem)
    assert file.provenance.config_hash is not None
    learned, confirmation = PlayedSchedule(file), None
    console.note(said_of_form(found, experiment))
    if fallback is not None:
        pair, runs = (start.name, start.schedule), experiment.meta.confirm_runs
        confirmation = confirm(experiment.problem, learned, pair, runs, experiment.seed, pool, tracker, console)
        console.note(str(confirmation))
        if confirmation.difference.high < 0:
            console.note(_WORSE)
    else:
        console.note("what was learned was not confirmed to be better than its start: meta.confirm_runs is 0")
    written = file
    if fallback is None or confirmation is None or confirmation.gain:
        folder.learned.unlink(missing_ok=True)  # of a run that was stopped, and goes on with other settings
    else:
        write_schedule(folder.learned, file)
        written = without_gain(fallback, file, confirmation)
    write_schedule(folder.schedule, written)
    return Exported(learned, confirmation, file.provenance.config_hash)


def without_gain(start: ScheduleFile, learned: ScheduleFile, confirmation: Confirmation) -> ScheduleFile:
    """The file of a start that learning gave no gain over: it says so, and what that took."""
    d, source = confirmation.difference, start.provenance
    said = (
        f"metasched learned from this schedule without a gain: {d.mean:+.4f} [{d.low:+.4f}, {d.high:+.4f}] on {d.n} "
        f"{confirmation.unit}"
    )
    citation = f"{said}. {source.citation[:_LONGEST_SOURCE]}" if source.citation else said
    score = Metric(name="meta-validation score", value=confirmation.score.mean, n=confirmation.score.n)
    return replace(start, provenance=replace(source, citation=citation, metric=score, spent=learned.provenance.spent))
