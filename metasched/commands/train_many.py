"""``metasched train`` with a section ``tasks``: learn one schedule for many tasks, and judge it on fresh ones."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from typing import Any

import torch

from metasched.commands.confirming import start_file, without_gain
from metasched.commands.exporting import recipe_of, sampled, show
from metasched.commands.judging_many import compared_arms, confirmed, fresh_tasks, publish_tasks
from metasched.commands.train import LEARNED, START, step_logger
from metasched.config.schema import Experiment
from metasched.config.writing import config_hash, to_dict
from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.estimators import ESTIMATORS
from metasched.evaluation.confirm import Confirmation
from metasched.evaluation.contenders import Contender, joined
from metasched.evaluation.floors import with_tuned_rates
from metasched.evaluation.measured import MEASURED
from metasched.evaluation.references import given_arms
from metasched.evaluation.statistics import summarize
from metasched.exchange.form import why_table_only
from metasched.exchange.format import Provenance, ScheduleFile
from metasched.exchange.played import PlayedSchedule
from metasched.exchange.schedule_file import write_schedule
from metasched.families.family import DrawnTask, TaskFamily
from metasched.families.survey import Survey, survey
from metasched.io.atomic import settled_size
from metasched.io.environment import versions
from metasched.io.json_lines import cut_back
from metasched.io.run_folder import RunFolder
from metasched.meta.checkpoint import Checkpoint, write_checkpoint
from metasched.meta.many import build_many, check_controls, features_for
from metasched.meta.outer import OuterState, check_estimator, meta_train
from metasched.meta.resume import keep_fingerprint, last_checkpoint, resumable_state, write_config
from metasched.meta.start import Start, given_start, learned_controls
from metasched.runs.cells import CachedPool, digest, played
from metasched.runs.pooled import PooledRuns
from metasched.runs.store import store_at
from metasched.runs.where import open_pool
from metasched.schedules.curves import HandCoded
from metasched.schedules.learnable import build_learnable, refuse_feedback
from metasched.schedules.shared import SharedSchedule
from metasched.tracking.console import Console
from metasched.tracking.opening import open_tracker
from metasched.training.problem import build_problem

_DRAWN = 101  # points of the curves that are drawn and logged


def train_many(experiment: Experiment, folder: RunFolder, console: Console) -> dict[str, Any]:
    """Learn a schedule over tasks, write ``schedule.json``, and compare it on fresh tasks.

    What was learned is confirmed on one draw of fresh tasks, and compared on another; both have intervals over tasks.
    Without a gain ``schedule.json`` is the start. Goes on where the run in the folder was stopped, with the same bits.

    Args:
        experiment: with tasks.
        folder: where everything is written.
        console: where progress is shown.

    Returns:
        what a program would want to read: paths, the start, inner steps spent, mean scores over tasks.

    Raises:
        MetaschedError: settings that are for one task, tasks that do not go together, and as ``train``.
    """
    refuse_settings_of_one_task(experiment)
    refuse_feedback(experiment.schedule)
    config, family, meta = to_dict(experiment), TaskFamily(experiment), experiment.meta
    seen = survey(family, experiment.seed)
    reference = seen.reference
    inner = build_problem(reference.problem)
    layers, controls = inner.network.layers, inner.network.method.controls
    for task in (task for of_entry in seen.examples for task in of_entry):
        check_controls(task, controls)
    learn = learned_controls(reference.experiment.method.name, experiment.schedule.learn, controls)
    given = given_start(reference.problem, experiment.schedule.start)
    assert given is not None
    start = Start(*given, 0)
    if isinstance(start.schedule, PlayedSchedule) and start.schedule.reads:
        problem, fix = "is a file that depends on features of a task", "start at a hand-coded schedule, or at a table"
        raise MetaschedError("schedule.start", problem, fix)
    check_estimator(reference.problem, meta, experiment.schedule.kind)
    many = build_many(meta, family, seen.probabilities)
    arms = joined(*given_arms(reference.problem, experiment.compare.baselines))
    fresh = {name: fresh_tasks(experiment, family, name) for name in ("confirm", "compare")}
    keep_fingerprint(folder, seen.fingerprint)
    checkpoint = last_checkpoint(config, folder, seen.fingerprint)
    store = store_at(experiment.run.store)
    cut_back(folder.metrics, checkpoint.position if checkpoint else 0)
    base = digest([], played(reference.problem, start.schedule, inner.steps))
    seed = derive_seed(experiment.seed, "schedule network")
    form = build_learnable(experiment.schedule, controls, start.schedule, learn, layers, seed)
    shared = SharedSchedule(form)
    with (
        open_pool(experiment.run) as pool,  # before trackers: they start threads
        closing(open_tracker(experiment, folder, "train")) as tracker,
        closing(CachedPool(pool, folder.cells, store=store)) as cells,
    ):
        for line in (*seen.lines(), *_plan(experiment, seen, shared, len(arms))):
            console.note(line)
        runs = PooledRuns(reference.problem, meta, pool, store)
        since = None
        if checkpoint:
            console.note(f"goes on after outer step {checkpoint.state.step}/{meta.steps}")
            since = resumable_state(checkpoint, folder, base, shared, runs, many)
            if checkpoint.config != config:  # fields that were allowed to differ
                write_config(folder, config)

        def save(state: OuterState) -> None:
            done = settled_size(folder.metrics)
            now = Checkpoint(config, versions(), start.name, base, 0, done, state, seen.fingerprint)
            write_checkpoint(folder.checkpoint, now)

        log = step_logger(meta.steps, tracker, console, since)
        outcome = meta_train(runs, experiment.seed, shared, log, since, save, many)

        def pair(task: DrawnTask) -> dict[str, Contender]:
            own = shared.at(features_for(task, experiment.tasks.features))
            return {LEARNED: Contender(task.problem, own), START: Contender(task.problem, start.schedule)}

        def all_arms(task: DrawnTask) -> dict[str, Contender]:
            others = joined(*given_arms(task.problem, experiment.compare.baselines))
            own = pair(task)
            if _plays(others, start, task):
                del own[START]
            both = joined(*own.items(), *others.items())
            return with_tuned_rates(task.experiment, both, cells, tracker, console)

        confirmation = confirmed(experiment, fresh["confirm"], pair, start.name, cells, tracker, console)
        spent = {"learning": outcome.inner_steps, "confirming": confirmation.inner_steps if confirmation else 0}
        hashed = config_hash(experiment, seen.fingerprint)
        file = _file(experiment, reference, shared, hashed, start, meta.steps, spent)
        version = _export(file, shared, start, confirmation, reference, folder, console)
        progress = torch.linspace(0, 1, _DRAWN, dtype=torch.float64)
        of_reference = shared.at(features_for(reference, experiment.tasks.features))
        with torch.no_grad():
            show(of_reference(progress, layers), progress, layers, folder, tracker)
        compared = compared_arms(experiment, fresh["compare"], all_arms, cells, tracker, console)
        publish_tasks(experiment, compared, confirmation, folder, tracker, console)
        spent["comparing"] = sum(len(t.seeds) * len(t.scores) * t.task.experiment.task.steps for t in compared)
        console.note("inner steps spent: " + ", ".join(f"{n} {what}" for what, n in spent.items()))
        tracker.artifact(
            folder.schedule, experiment.name, "schedule", {"format_version": version, "config_hash": hashed}
        )
    means = {arm: summarize([t.mean(arm) for t in compared]).mean for arm in compared[0].scores}
    gain = confirmation is None or confirmation.gain
    return {
        "schedule": str(folder.schedule),
        "start": start.name,
        "exported": LEARNED if gain else START,
        "confirmed": confirmation.to_dict() if confirmation else None,
        "inner_steps": spent,
        "over_tasks": str(folder.over_tasks),
        "arms": means,
    }


def refuse_settings_of_one_task(experiment: Experiment) -> None:
    """Refuses settings that say something about one task.

    Raises:
        MetaschedError: the first of them.
    """
    schedule, meta, compare = experiment.schedule, experiment.meta, experiment.compare
    name = "name one: floor, a hand-coded schedule or a file"
    horizons = "leave it out, and draw task.steps in the entries"
    for path, given, problem, fix in (
        ("schedule.start", schedule.start == "best", "is chosen on one task, and there are several", name),
        ("schedule.start", schedule.start in MEASURED, "is measured on one task, and there are several", name),
        ("schedule.directions", _all_weights(experiment), "is null: hundreds of numbers for each feature", "set it"),
        ("meta.tune_lr", meta.tune_lr, "tunes the rate of one task, and there are several", "set it to 0"),
        ("meta.search_steps", meta.search_steps, "searches on one task, and there are several", "set it to 0"),
        ("compare.horizons", compare.horizons != (1,), "is of one task, and each has its own horizon", horizons),
        ("compare.tune_floors", compare.tune_floors == "as_learned", "is of one task", "give a number of runs"),
    ):
        if given:
            raise MetaschedError(path, problem, fix)


def _all_weights(experiment: Experiment) -> bool:
    return experiment.schedule.kind == "network" and experiment.schedule.directions is None


def _plan(experiment: Experiment, seen: Survey, shared: SharedSchedule, arms: int) -> list[str]:
    """What will be done, and about how many inner steps it takes."""
    settings, meta, name = experiment.tasks, experiment.meta, experiment.meta.estimator
    a_seed = 2 if ESTIMATORS[name].many == "pairs" else 1
    learn = meta.steps * settings.per_step * meta.runs * a_seed * seen.steps
    a_play = settings.examples * seen.steps_by_share
    judge = 2 * meta.confirm_runs * a_play, (arms + 1) * experiment.compare.seeds * a_play
    numbers = shared.weights.shape[1]
    features = "a weight for each feature" if settings.features else "no features"
    layers = len(build_problem(seen.reference.problem).network.layers)
    return [
        f"{numbers} numbers a task, {features}; fitted at the {layers} layers of {seen.reference.label}",
        f"inner steps: about {learn:,.0f} to learn by {name}, {judge[0]:,.0f} to confirm, {judge[1]:,.0f} to compare",
    ]


def _file(
    experiment: Experiment,
    reference: DrawnTask,
    shared: SharedSchedule,
    hashed: str,
    start: Start,
    outer_steps: int,
    spent: Mapping[str, int],
) -> ScheduleFile:
    """The file of what was learned, at the layers of the reference."""
    names = ", ".join(entry.name for entry in experiment.tasks.entries)
    source = Provenance(
        kind="learned",
        name=experiment.name,
        citation=f"learned by metasched over tasks ({names}), starting at {start.name}"[:3000],
        config_hash=hashed,
        seeds=(experiment.seed,),
        tasks=tuple(entry.name for entry in experiment.tasks.entries),
        outer_steps=outer_steps,
        versions=versions(),
        spent=start.spent(experiment.meta.estimator, spent["learning"], spent["confirming"]),
    )
    problem, recipe = build_problem(reference.problem), recipe_of(reference.experiment.quantize)
    with torch.no_grad():
        return sampled(shared, shared.form.knots, "linear", source, reference.experiment, problem, recipe=recipe)


def _export(
    file: ScheduleFile,
    shared: SharedSchedule,
    start: Start,
    confirmation: Confirmation | None,
    reference: DrawnTask,
    folder: RunFolder,
    console: Console,
) -> int:
    """Writes ``schedule.json``, what was learned, or without a gain the start; returns the version of its format."""
    written = file
    if confirmation is None or confirmation.gain:
        folder.learned.unlink(missing_ok=True)  # of a run that was stopped, and goes on with other settings
    else:
        write_schedule(folder.learned, file)
        own = start_file(start, reference.experiment, build_problem(reference.problem))
        written = without_gain(own, file, confirmation)
    write_schedule(folder.schedule, written)
    why = why_table_only(shared, reference.experiment.method)
    form = f"it has no form for other tasks: {why}" if why else "its form is for all layers and tasks"
    console.note(f"the table of what was learned is at the layers of {reference.label}, for a mean task; {form}")
    return written.version


def _plays(arms: Mapping[str, Contender], start: Start, task: DrawnTask) -> bool:
    """Whether the start, hand-coded, is among the arms of a task."""
    arm = arms.get(start.name)
    return arm is not None and isinstance(start.schedule, HandCoded) and arm.problem == task.problem
