"""``metasched train``: choose the start, learn, export, compare; everything lands in the run folder."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch

from metasched.config import Experiment
from metasched.errors import MetaschedError, unknown_name
from metasched.evaluation.cells import Remembered, cell_scores, digest, played
from metasched.evaluation.compare import compare, publish
from metasched.evaluation.comparison import Comparison
from metasched.evaluation.contenders import (
    Contender,
    hand_coded_arms,
    joined,
    name_of,
    named_schedule,
    reference_arms,
)
from metasched.evaluation.statistics import counted, summarize
from metasched.exchange.export import export, read_schedule, write_schedule
from metasched.exchange.format import MAX_RUNS, Metric, Provenance, Spent
from metasched.exchange.player import PlayedSchedule, spent_on
from metasched.files import RunFolder, settled_size, version
from metasched.hypergradients.auto import summary
from metasched.layers import Layer
from metasched.loading import config_hash, to_dict
from metasched.meta.checkpoint import Checkpoint, write_checkpoint
from metasched.meta.outer import MetaTraining, OuterState, OuterStep, check_estimator, meta_train
from metasched.meta.resume import last_checkpoint, resumable_state, write_config
from metasched.methods.base import Control
from metasched.randomness import derive_seed
from metasched.schedules.base import Schedule
from metasched.schedules.learnable import build_learnable
from metasched.schedules.table import HandCoded, hand_coded
from metasched.tracking import Tracker, cut_back, open_tracker
from metasched.tracking.console import Console
from metasched.tracking.plots import plot_schedule
from metasched.training.pool import Mapper
from metasched.training.problem import build_problem
from metasched.training.ranks import open_pool

LEARNED = "learned"


class Start(NamedTuple):
    """The schedule that learning starts at: its name, itself, and the inner steps that choosing it took."""

    name: str
    schedule: Schedule
    selecting: int

    def spent(self, by: str, inner_steps: int) -> tuple[Spent, ...]:
        """What finding a schedule from here took: finding or choosing this one, and then so many steps by ``by``."""
        own = (Spent(by="best", inner_steps=self.selecting), Spent(by=by, inner_steps=inner_steps))
        before = spent_on(self.schedule)[: MAX_RUNS - len(own)]  # what a file may hold
        return (*before, *(entry for entry in own if entry.inner_steps))


def train(experiment: Experiment, folder: RunFolder, console: Console) -> dict[str, Any]:
    """Learn a schedule, write ``schedule.json`` and compare it with the hand-coded ones.

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
    problem = build_problem(experiment)
    layers, controls = problem.network.layers, problem.network.method.controls
    learn = learned_controls(experiment, controls)
    others = joined(*reference_arms(experiment), *hand_coded_arms(experiment))
    given = given_start(experiment)
    check_estimator(experiment)
    checkpoint = last_checkpoint(experiment, folder)
    cut_back(folder.metrics, checkpoint.position if checkpoint else 0)
    tracker = open_tracker(experiment, folder, "outer")
    try:
        with open_pool(experiment.run.workers) as pool, closing(Remembered(pool, folder.cells)) as cells:
            console.note(f"{experiment.name}: {experiment.method.name} on {problem.task.name}, {problem.steps} steps")
            for line in problem.network.describe().splitlines():
                console.note(f"  {line}")
            if checkpoint:
                console.note(f"goes on after outer step {checkpoint.state.step}/{experiment.meta.steps}")
                start = start_of(checkpoint, given, experiment)
            else:
                start = Start(*given, 0) if given else best_start(experiment, cells, tracker, console)
            base = digest([], played(experiment, start.schedule, experiment.task.steps))
            seed = derive_seed(experiment.seed, "schedule network")
            schedule = build_learnable(experiment.schedule, controls, start.schedule, learn, layers, seed)

            def save(state: OuterState) -> None:
                done = settled_size(folder.metrics)
                now = Checkpoint(to_dict(experiment), _versions(), start.name, base, start.selecting, done, state)
                write_checkpoint(folder.checkpoint, now)

            since = None
            if checkpoint:
                since = resumable_state(checkpoint, folder, base, schedule, experiment, pool)
                if checkpoint.config != to_dict(experiment):  # fields that were allowed to differ
                    write_config(folder, experiment)
            outcome = meta_train(experiment, schedule, pool, _logger(experiment, tracker, console, since), since, save)
            _export(experiment, outcome, start, layers, controls, folder)
            learned = PlayedSchedule(read_schedule(folder.schedule))  # what is compared is what was exported
            _show(folder, learned, layers, tracker)
            arms = joined((LEARNED, Contender(experiment, learned)), *others.items())
            comparison = compare(experiment, arms, [LEARNED], cells, tracker, console)
        published = publish(experiment, comparison, arms, folder, tracker, console)
        spent = {"selecting": start.selecting, "learning": outcome.inner_steps}
        console.note(
            f"inner steps spent: {start.selecting} to choose the start ({start.name}), {outcome.inner_steps} to learn, "
            f"{sum(a.inner_steps for a in comparison.arms)} to compare"
        )
        tracker.artifact(folder.schedule, experiment.name, "schedule", _metadata(experiment, comparison))
    finally:
        tracker.close()
    result: dict[str, Any] = {"schedule": str(folder.schedule), "start": start.name, "inner_steps": spent}
    result["verdict"] = published["verdict"]
    if experiment.meta.estimator == "auto" and outcome.history:
        result["estimator"] = summary([step.notes for step in outcome.history])
    return result


def learned_controls(experiment: Experiment, controls: Sequence[Control]) -> list[str]:
    """The controls that the schedule network learns.

    Raises:
        MetaschedError: a name that the method does not declare, or a control without a derivative.
    """
    known = {c.name: c for c in controls}
    asked = experiment.schedule.learn
    for i, name in enumerate(asked or ()):
        if name not in known:
            problem = f"{experiment.method.name} has no control {name!r}"
            raise MetaschedError(f"schedule.learn[{i}]", problem, f"its controls are {', '.join(known) or 'none'}")
        if known[name].gradient == "none":
            raise MetaschedError(f"schedule.learn[{i}]", f"{name} has no derivative", "leave it out of schedule.learn")
    return list(asked) if asked is not None else [c.name for c in controls if c.gradient != "none"]


def given_start(experiment: Experiment) -> tuple[str, Schedule] | None:
    """Name and schedule that learning starts at, where the configuration gives them; None for ``best``.

    Raises:
        MetaschedError: neither the name of a hand-coded schedule nor a schedule file that fits.
    """
    start = experiment.schedule.start
    if start == "best":
        return None
    schedule = named_schedule(experiment, start, "schedule.start")
    return (start if isinstance(schedule, HandCoded) else name_of(Path(start))), schedule


def start_of(checkpoint: Checkpoint, given: tuple[str, Schedule] | None, experiment: Experiment) -> Start:
    """The start that a checkpoint names.

    Raises:
        MetaschedError: there is no such schedule.
    """
    known = dict([given]) if given else hand_coded(experiment.method.name)
    if checkpoint.start not in known:
        raise unknown_name("the checkpoint's start", checkpoint.start, known)
    return Start(checkpoint.start, known[checkpoint.start], checkpoint.selecting)


def best_start(experiment: Experiment, pool: Mapper, tracker: Tracker, console: Console) -> Start:
    """The best hand-coded schedule.

    Every hand-coded schedule of the method is played on the same seeds; the best mean score on meta-validation wins.
    """
    family = hand_coded(experiment.method.name)
    steps, runs = experiment.task.steps, experiment.meta.select_runs
    seeds = [derive_seed(experiment.seed, "select", i) for i in range(runs)]
    values = {name: played(experiment, s, steps) for name, s in family.items()}
    work = [(experiment, values[name], [seed], steps, "validation") for name in family for seed in seeds]
    found = [score for (score,) in pool.map(cell_scores, work)]
    means = {name: summarize(counted(found[i * runs : (i + 1) * runs])).mean for i, name in enumerate(family)}
    for name, mean in means.items():
        tracker.log({"select/name": name, "select/score": mean})
    best = max(means, key=lambda name: means[name])
    console.note(f"start: {best}, {means[best]:.4f} on meta-validation, best of {len(family)} hand-coded schedules")
    return Start(best, family[best], len(work) * steps)


def _logger(
    experiment: Experiment, tracker: Tracker, console: Console, since: OuterState | None
) -> Callable[[OuterStep], None]:
    spent = sum(record.inner_steps for record in since.history) if since else 0

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
        console.outer(record.step + 1, experiment.meta.steps, metrics)
        if record.line is not None:
            console.note(record.line)
        if record.fault:
            console.note(f"outer step {record.step + 1}: not finite: {record.fault}")

    return log


def _versions() -> dict[str, str]:
    return {name: v for name in ("metasched", "torch", "numpy", "higher") if (v := version(name)) is not None}


def _export(
    experiment: Experiment,
    outcome: MetaTraining,
    start: Start,
    layers: Sequence[Layer],
    controls: Sequence[Control],
    folder: RunFolder,
) -> None:
    settings = to_dict(experiment)["method"]
    tail = outcome.history[len(outcome.history) // 2 :]
    tail = [r for r in tail if math.isfinite(r.score)]  # steps without a finite run have none
    score = sum(r.score for r in tail) / len(tail) if tail else float("nan")
    runs = sum(r.inner_steps for r in tail) // experiment.task.steps
    provenance = Provenance(
        kind="learned",
        name=experiment.name,
        citation=f"learned by metasched, starting at {start.name}",
        config_hash=config_hash(experiment),
        seeds=(experiment.seed,),
        tasks=(experiment.task.name,),
        outer_steps=experiment.meta.steps,
        versions=_versions(),
        metric=Metric(name="meta-validation score", value=score, n=runs) if runs else None,
        spent=start.spent(experiment.meta.estimator, outcome.inner_steps),
    )
    file = export(
        outcome.schedule,
        method_name=experiment.method.name,
        method_parameters={k: v for k, v in settings.items() if k != "name"},
        controls=controls,
        layers=layers,
        knots=outcome.schedule.knots,
        interpolation="linear",
        provenance=provenance,
    )
    write_schedule(folder.schedule, file)


def _show(folder: RunFolder, learned: PlayedSchedule, layers: Sequence[Layer], tracker: Tracker) -> None:
    progress = torch.linspace(0, 1, 101, dtype=torch.float64)
    values = learned(progress, layers)
    names = [layer.name for layer in layers]
    folder.plots.mkdir(exist_ok=True)
    plot_schedule(folder.plots / "schedule.png", values, names, progress)
    for t, u in enumerate(progress.tolist()):
        curves = {f"schedule/{c}/{n}": float(values[c][t, i]) for c in values for i, n in enumerate(names)}
        tracker.log({"schedule/progress": u, **curves})


def _metadata(experiment: Experiment, comparison: Comparison) -> dict[str, Any]:
    first = comparison.at(comparison.horizons[0])[LEARNED].summary
    return {"format_version": 1, "config_hash": config_hash(experiment), "test_score": first.mean, "n": first.n}
