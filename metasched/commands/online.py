"""``metasched online``: a run that adapts its own schedule, what it played as a file, a comparison if asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import closing
from typing import Any

from metasched.commands.exporting import Found, show, write_found
from metasched.config.schema import Experiment
from metasched.config.writing import to_dict
from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.evaluation.compare import Plan, compare, plan_of, publish, score_row
from metasched.evaluation.comparison import Arm, Comparison
from metasched.evaluation.contenders import Contender, joined
from metasched.evaluation.floors import with_tuned_rates
from metasched.evaluation.references import reference_arms
from metasched.exchange.format import MAX_KNOTS
from metasched.io.run_folder import RunFolder
from metasched.io.strict_json import MAX_BYTES
from metasched.meta.config import OnlineConfig
from metasched.meta.guards import RunStopped
from metasched.meta.online import Adaptation, OnlineRun, Setting, expected_cost, setting_of, train_online
from metasched.meta.start import Start, given_start, learned_controls
from metasched.runs.pool import Mapper
from metasched.runs.where import open_pool
from metasched.schedules.base import Schedule, progress_of_steps
from metasched.schedules.learnable import refuse_feedback
from metasched.tasks.base import examples
from metasched.tasks.supervised import SupervisedTask
from metasched.tracking.console import Console, watched
from metasched.tracking.opening import open_tracker
from metasched.tracking.tracker import Tracker
from metasched.training.faults import broken
from metasched.training.loop import hardened_score
from metasched.training.problem import build_problem
from metasched.training.state import InnerProblem

LARGEST_COST = 3.0  # plain runs
_NUMBER_BYTES = 25  # of a float in a schedule file, with what separates it from the next


def run(experiment: Experiment, folder: RunFolder, console: Console, *, compared: bool) -> dict[str, Any]:
    """Train once, and write ``schedule.json``: what was played, a knot for each step.

    Args:
        experiment: the whole configuration.
        folder: where everything is written.
        console: where progress is shown.
        compared: also train from fresh seeds, with and without adapting, and compare them on test data.

    Returns:
        what a program would want to read: paths, scores, inner steps, the cost in plain runs.

    Raises:
        MetaschedError: what the online mode cannot do; see ``check``.
    """
    refuse_feedback(experiment.schedule)
    problem = build_problem(experiment.problem).with_seed(derive_seed(experiment.seed, "online"))
    learned_controls(experiment.method.name, experiment.schedule.learn, problem.network.method.controls)
    setting = setting_of(experiment)
    name, start = _start(setting)
    check(experiment.online, experiment.meta.objective, problem)
    with (
        open_pool(experiment.run) as pool,  # one thread, as wherever it is played again; before trackers
        closing(open_tracker(experiment, folder, "online")) as tracker,
    ):
        outcome = train_online(setting, start, problem.seed, _logger(problem.steps, tracker, console))
        score = hardened_score(problem, outcome.state, "validation")
        found = _found(outcome, Start(name, start, 0), score, problem)
        identity = write_found(found, experiment, problem, folder)
        show(outcome.controls, found.knots, problem.network.layers, folder, tracker)
        arms = joined((name, Contender(experiment.problem, start)), *reference_arms(experiment.problem))
        comparison = None
        if compared:
            console.note(f"comparing with {name} from {experiment.compare.seeds} fresh seeds")
            arms = with_tuned_rates(experiment, arms, pool, tracker, console)
            plan = plan_of(experiment)._replace(horizons=(problem.steps,))
            comparison = compare_with_start(setting, plan, name, arms, pool, tracker, console)
        published = publish(to_dict(experiment), comparison, arms, folder, tracker, console) if comparison else {}
        metadata = {"format_version": 1, "config_hash": identity, "validation_score": score}
        tracker.artifact(folder.schedule, experiment.name, "schedule", metadata)
    spent = {"playing": problem.steps, "looking_ahead": outcome.inner_steps - problem.steps}
    result: dict[str, Any] = {"schedule": str(folder.schedule), "start": name, "score": score, "cost": outcome.cost}
    result |= {"look_aheads": len(outcome.history), "skipped": sum(r.skipped for r in outcome.history)}
    if comparison:
        found = comparison.at(problem.steps)
        adapted, plain = found[comparison.learned[0]], found[name]
        spent["comparing"] = sum(arm.inner_steps for arm in comparison.arms)
        result["verdict"] = {
            "online": adapted.summary.mean,
            "start": plain.summary.mean,
            "difference": comparison.difference(adapted, plain)._asdict(),
            "against_no_schedule": published["verdict"],
        }
    return {**result, "inner_steps": spent}


def check(online: OnlineConfig, objective: str, problem: InnerProblem) -> None:
    """Refuses what the online mode cannot do, before anything is trained.

    Args:
        online: when it looks ahead, and how far.
        objective: the outer loss.
        problem: that is trained.

    Raises:
        MetaschedError: a run too short or too long for a file with a knot for each step, an outer loss over a
            trajectory, more held-out examples than there are, or more than three times the cost of a plain run.
    """
    steps = problem.steps
    if steps < 2:
        raise MetaschedError("task.steps", "leaves nothing to look ahead to, being 1", "set it to 2 or more")
    curves = len(problem.network.layers) * len(problem.network.method.controls)
    longest = min(MAX_KNOTS, MAX_BYTES * 9 // 10 // (_NUMBER_BYTES * (curves + 1)))
    if steps > longest:
        what = f"{steps} steps of {curves} curves do not fit in a schedule file, which has a knot for each step"
        raise MetaschedError("task.steps", what, f"set it to {longest} at most, or learn a schedule by metasched train")
    if objective == "trajectory":
        fix = "set it to hardened or relaxed"
        raise MetaschedError("meta.objective", "trajectory is of a whole run, and a look-ahead is not", fix)
    if online.held_out is not None and not isinstance(problem.task, SupervisedTask):
        what = f"has no effect: {problem.task.name} judges each look-ahead on its whole outer batch"
        raise MetaschedError("online.held_out", what, "leave it out, and let outer_batch give fewer examples")
    available = examples(problem.task.outer_batch())
    if online.held_out is not None and online.held_out > available:
        what = f"asks for {online.held_out} examples, but meta-validation has {available}"
        raise MetaschedError("online.held_out", what, f"ask for at most {available}, or leave it out")
    cost = expected_cost(online, problem)
    if cost > LARGEST_COST:
        what = f"{online.window} steps ahead at every {online.every} cost about {cost:.1f} plain runs, which is over 3"
        raise MetaschedError("online.window", what, "lower it or online.held_out, or raise online.every")


def compare_with_start(
    setting: Setting,
    plan: Plan,
    start_name: str,
    arms: Mapping[str, Contender],
    pool: Mapper,
    tracker: Tracker,
    console: Console,
) -> Comparison:
    """Adapted and not adapted, floors and ceiling, from the fresh seeds of ``metasched compare``, on test data."""
    (steps,) = plan.horizons
    work = [(setting, seed) for seed in plan.seeds]
    cells = list(watched(console, "adapted runs to compare", pool.map(online_cell, work), len(work)))
    inner_steps, method = sum(n for _, n in cells), setting.problem.method.name
    adapted = Arm(f"{start_name}, online", steps, tuple(s for s, _ in cells), inner_steps, method=method)
    for i, (seed, score) in enumerate(zip(plan.seeds, adapted.scores, strict=True)):
        tracker.log(score_row(i, seed, adapted.name, steps, score))
    plain = compare(plan, arms, (), pool, tracker, console)
    return Comparison(plan.seeds, (adapted, *plain.arms), (adapted.name,))


def online_cell(setting: Setting, seed: int) -> tuple[float, int]:
    """Test score of the hardened network after an online run from a seed, and the inner steps it took.

    The score of a run that diverged is NaN; if it was stopped, its inner steps are those of a whole run.
    """
    problem = build_problem(setting.problem)
    try:
        outcome = train_online(setting, _start(setting)[1], seed)
    except RunStopped:
        return math.nan, problem.steps
    score = math.nan if broken(outcome.state) else hardened_score(problem, outcome.state, "test")
    return score, outcome.inner_steps


def _start(setting: Setting) -> tuple[str, Schedule]:
    given = given_start(setting.problem, setting.schedule.start)
    if given is None:
        what = "best would train under every hand-coded schedule first, and online trains once"
        fix = f"name one, such as {setting.problem.method.name}_linear, or a file"
        raise MetaschedError("schedule.start", what, fix)
    return given


def _logger(steps: int, tracker: Tracker, console: Console) -> Callable[[Adaptation], None]:
    spent = 0

    def log(record: Adaptation) -> None:
        nonlocal spent
        spent += record.inner_steps
        tracker.log({f"online/{name}": v for name, v in (record._asdict() | {"inner_steps": spent}).items()})
        console.note(
            f"step {record.step}/{steps}  training loss {record.train_loss:.4f}  "
            f"held-out loss {record.loss:.4f}  |gradient| {record.gradient_norm:.1e}"
            + (f"  skipped, not finite: {record.fault}" if record.skipped else "")
        )

    return log


def _found(outcome: OnlineRun, start: Start, score: float, problem: InnerProblem) -> Found:
    """What was played, with a knot for each step; its score is that of the run itself."""
    return Found(
        schedule=lambda progress, layers: outcome.controls,
        knots=progress_of_steps(problem.steps),
        interpolation="linear",
        kind="learned",
        how=f"played by metasched online, starting at {start.name}",
        seed=problem.seed,
        outer_steps=len(outcome.history),
        score=score,
        runs=1,
        spent=start.spent("online", outcome.inner_steps),
    )
