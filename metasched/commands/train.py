"""``metasched train``: choose the start, learn, export, compare; everything lands in the run folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

import torch

from metasched.commands.confirming import Exported, export_confirmed, start_file
from metasched.commands.estimate import announce, runs_of_train, timed_arm
from metasched.commands.exporting import Found, show
from metasched.commands.scored import write_scores
from metasched.config.schema import Experiment
from metasched.config.writing import to_dict
from metasched.core.randomness import derive_seed
from metasched.estimators.auto import summary
from metasched.evaluation.compare import compare, plan_of, publish
from metasched.evaluation.confirm import steps_to_confirm
from metasched.evaluation.contenders import Contender, joined
from metasched.evaluation.floors import with_tuned_rates
from metasched.evaluation.references import given_arms
from metasched.exchange.format import ScheduleFile
from metasched.io.atomic import settled_size
from metasched.io.environment import versions
from metasched.io.json_lines import cut_back
from metasched.io.run_folder import RunFolder
from metasched.meta.checkpoint import Checkpoint, write_checkpoint
from metasched.meta.config import MetaConfig
from metasched.meta.hybrid import check_search, searched_first
from metasched.meta.outer import MetaTraining, OuterState, OuterStep, check_estimator, meta_train
from metasched.meta.rate import with_best_rate
from metasched.meta.resume import keep_fingerprint, last_checkpoint, resumable_state, write_config
from metasched.meta.start import Start, best_start, given_start, learned_controls, start_of
from metasched.runs.cells import CachedPool, bound, digest, played
from metasched.runs.pooled import PooledRuns
from metasched.runs.store import store_at
from metasched.runs.where import open_pool
from metasched.schedules.curves import HandCoded
from metasched.schedules.learnable import build_trained
from metasched.tracking.console import Console
from metasched.tracking.opening import open_tracker
from metasched.tracking.tracker import Tracker
from metasched.training.problem import build_problem

LEARNED, START = "learned", "start"
_DRAWN = 101  # points of the curves that are drawn and logged


def train(experiment: Experiment, folder: RunFolder, console: Console) -> dict[str, Any]:
    """Learn a schedule, write ``schedule.json`` and compare what was learned with the hand-coded ones.

    If what was learned is not better than its start on fresh seeds, ``schedule.json`` is the start (confirming.py).
    Goes on where the run in the folder was stopped, if it was: what is left there is what an uninterrupted run leaves.

    Args:
        experiment: the whole configuration.
        folder: where everything is written.
        console: where progress is shown.

    Returns:
        what a program would want to read: paths, the start, inner steps spent, mean scores.

    Raises:
        MetaschedError: names, files or a memory budget that do not fit, outer steps that give no finite gradient, or a
            folder that cannot be resumed or written.
    """
    config, problem = to_dict(experiment), build_problem(experiment.problem)
    keep_fingerprint(folder, problem.fingerprint)
    layers, controls = problem.network.layers, problem.network.method.controls
    learn = learned_controls(experiment.method.name, experiment.schedule.learn, controls)
    given = given_start(experiment.problem, experiment.schedule.start)
    check_estimator(
        experiment.problem, experiment.meta, experiment.schedule.kind, feedback=experiment.schedule.feedback
    )
    check_search(experiment, learn)
    joined(*given_arms(experiment.problem, experiment.compare.baselines))  # refuses what does not fit before any run
    checkpoint = last_checkpoint(config, folder, problem.fingerprint)
    store = store_at(experiment.run.store)
    cut_back(folder.metrics, checkpoint.position if checkpoint else 0)
    with (
        open_pool(experiment.run) as pool,  # before trackers: they start threads
        closing(open_tracker(experiment, folder, "train")) as tracker,
        closing(CachedPool(pool, folder.cells, store=store)) as cells,
    ):
        for line in problem.network.describe().splitlines():
            console.note(f"  {line}")
        if checkpoint is None:
            arms = joined(*given_arms(experiment.problem, experiment.compare.baselines))
            announce(runs_of_train(experiment, len(arms) + 1), timed_arm(experiment, arms), pool, console)
        experiment, rate = with_best_rate(experiment, given, cells, None if checkpoint else tracker, console)
        problem = build_problem(experiment.problem)
        others = joined(*given_arms(experiment.problem, experiment.compare.baselines))
        if checkpoint:
            console.note(f"goes on after outer step {checkpoint.state.step}/{experiment.meta.steps}")
            start = start_of(checkpoint, given, experiment.method)
        else:
            select = (experiment.meta.select_runs, experiment.seed)
            start = Start(*given, 0) if given else best_start(experiment.problem, *select, cells, tracker, console)
        start = start._replace(rate=rate)
        fallback = start_file(start, experiment, problem) if experiment.meta.confirm_runs else None
        start = searched_first(experiment, start, learn, cells, None if checkpoint else tracker, console)
        base = digest([], played(experiment.problem, start.first, experiment.task.steps))
        seed = derive_seed(experiment.seed, "schedule network")
        first = bound(experiment.problem, start.first, problem.steps)  # the rate may be another one now
        schedule = build_trained(experiment.schedule, controls, first, learn, layers, seed)

        def save(state: OuterState) -> None:
            done = settled_size(folder.metrics)
            now = Checkpoint(
                config,
                versions(),
                start.name,
                base,
                start.selecting,
                done,
                state,
                problem.fingerprint,
            )
            write_checkpoint(folder.checkpoint, now)

        runs, since = PooledRuns(experiment.problem, experiment.meta, pool, store), None
        if checkpoint:
            since = resumable_state(checkpoint, folder, base, schedule, runs)
            if checkpoint.config != config:  # fields that were allowed to differ
                write_config(folder, config)
        log = step_logger(experiment.meta.steps, tracker, console, since)
        outcome = meta_train(runs, experiment.seed, schedule, log, since, save)
        found = _found(outcome, start, experiment.meta, experiment.seed)
        exported = export_confirmed(found, start, fallback, experiment, problem, folder, cells, tracker, console)
        progress = torch.linspace(0, 1, _DRAWN, dtype=torch.float64)
        show(exported.learned(progress, layers), progress, layers, folder, tracker)
        own = {LEARNED: Contender(experiment.problem, exported.learned)}
        arm = LEARNED
        if exported.is_start:
            arm = start.name if _plays(others, start, experiment) else START
            own |= {START: Contender(experiment.problem, start.schedule)} if arm == START else {}
        arms = joined(*own.items(), *others.items())
        arms = with_tuned_rates(experiment, arms, cells, tracker, console)
        comparison = compare(plan_of(experiment), arms, [LEARNED], cells, tracker, console)
        confirmation = exported.confirmation
        began = (start.name, Contender(experiment.problem, start.schedule))
        published = publish(config, comparison, arms, folder, tracker, console, confirmation, began)
        written = write_scores(folder.schedule, comparison, arm)
        if exported.is_start:
            write_scores(folder.learned, comparison, LEARNED)
        spent = {"tuning": rate.inner_steps} if rate else {}
        spent |= {"selecting": start.selecting}
        spent |= {"searching": start.searched.spent.inner_steps} if start.searched else {}
        spent |= {"learning": outcome.inner_steps}
        spent["confirming"] = confirmation.inner_steps if confirmation else 0
        tuned = f"{rate.inner_steps} to tune the learning rate, " if rate else ""
        rated = sum(arm.tuned.inner_steps for arm in arms.values() if arm.tuned)
        floors = f"{rated} to tune floors, " if rated else ""
        searched = f"{spent['searching']} to search, " if start.searched else ""
        console.note(
            f"training steps spent: {tuned}{start.selecting} to choose the start ({start.name}), {searched}"
            f"{outcome.inner_steps} to learn, {spent['confirming']} to confirm, {floors}"
            f"{sum(a.inner_steps for a in comparison.arms)} to compare"
        )
        tracker.artifact(folder.schedule, experiment.name, "schedule", _metadata(exported, written))
    result: dict[str, Any] = {"schedule": str(folder.schedule), "report": published["report"]}
    result |= {"start": start.name, "inner_steps": spent}
    result["exported"] = START if exported.is_start else LEARNED
    result["confirmed"] = confirmation.to_dict() if confirmation else None
    result["verdict"] = published["verdict"]
    if experiment.meta.estimator == "auto" and outcome.history:
        result["estimator"] = summary([step.notes for step in outcome.history])
    return result


def step_logger(
    steps: int, tracker: Tracker, console: Console, since: OuterState | None
) -> Callable[[OuterStep], None]:
    """What logs and shows each outer step, of so many, of a run that goes on from ``since``."""
    spent = sum(record.inner_steps for record in since.history) if since else 0
    console.progress("outer step", since.step if since else 0, steps)

    def log(record: OuterStep) -> None:
        nonlocal spent
        spent += record.inner_steps
        values = record._asdict() | {"step": record.step + 1, "inner_steps": spent}
        for own in ("notes", "line", "updates_skipped", "fault"):
            del values[own]
        metrics = {f"outer/{name}": value for name, value in values.items()}
        metrics |= {f"estimator/{name}": value for name, value in record.notes.items()}
        metrics["guard/skipped"] = record.updates_skipped
        if record.fault:
            metrics["guard/fault"] = record.fault
        tracker.log(metrics)
        console.outer(record.step + 1, steps, metrics)
        if record.line is not None:
            console.note(record.line)
        if record.fault:
            console.note(f"outer step {record.step + 1}: not finite: {record.fault}")

    return log


def _found(outcome: MetaTraining, start: Start, meta: MetaConfig, seed: int) -> Found:
    """What the outer loop learned; its score is the mean over the last half of the outer steps."""
    tail = outcome.history[len(outcome.history) // 2 :]
    tail = [r for r in tail if math.isfinite(r.score)]  # steps without a finite run have none
    by = f", then {start.searched.spent.by} and {meta.estimator}" if start.searched else ""
    at = f", at learning rate {start.rate.lr:.3g}, which was tuned there" if start.rate else ""
    return Found(
        schedule=outcome.schedule,
        knots=outcome.schedule.knots,
        interpolation="linear",
        kind="learned",
        how=f"learned by metasched, starting at {start.name}{at}{by}",
        seed=seed,
        outer_steps=meta.steps,
        score=sum(r.score for r in tail) / len(tail) if tail else math.nan,
        runs=sum(r.inner_steps for r in tail) // outcome.horizon,
        spent=start.spent(meta.estimator, outcome.inner_steps, steps_to_confirm(meta.confirm_runs, outcome.horizon)),
    )


def _plays(arms: Mapping[str, Contender], start: Start, experiment: Experiment) -> bool:
    """Whether a hand-coded start is among the arms."""
    arm = arms.get(start.name)
    return arm is not None and isinstance(start.schedule, HandCoded) and arm.problem == experiment.problem


def _metadata(exported: Exported, written: ScheduleFile) -> dict[str, Any]:
    """What wandb stores with the schedule: its test score, and the configuration that it was learned in."""
    about = {"format_version": written.version, "config_hash": exported.config_hash}
    metric = written.provenance.metric
    return about if metric is None else {**about, "test_score": metric.value, "n": metric.n}
