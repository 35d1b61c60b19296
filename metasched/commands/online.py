"""``metasched online``: a run that adapts its own schedule, what it played as a file, a comparison if asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from metasched.config.load import config_hash, to_dict
from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.core.imports import allow, allowed
from metasched.core.randomness import derive_seed
from metasched.evaluation.compare import compare, publish
from metasched.evaluation.comparison import Arm, Comparison
from metasched.evaluation.contenders import Contender, fresh_seeds, joined, reference_arms
from metasched.exchange.export import export
from metasched.exchange.format import MAX_KNOTS, Metric, Provenance
from metasched.exchange.schedule_file import write_schedule
from metasched.io.environment import version
from metasched.io.run_folder import RunFolder
from metasched.io.strict_json import MAX_BYTES
from metasched.meta.guards import RunStopped
from metasched.meta.online import Adaptation, OnlineRun, expected_cost, train_online
from metasched.meta.start import Start, given_start, learned_controls
from metasched.runs.pool import Mapper
from metasched.runs.ranks import open_pool
from metasched.schedules.base import Schedule, progress_of_steps
from metasched.tasks.base import examples
from metasched.tasks.supervised import SupervisedTask
from metasched.tracking.console import Console
from metasched.tracking.opening import open_tracker
from metasched.tracking.plots import plot_schedule
from metasched.tracking.tracker import Tracker
from metasched.training.faults import broken
from metasched.training.loop import hardened_score
from metasched.training.problem import build_problem
from metasched.training.step import InnerProblem

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
    problem = build_problem(experiment).with_seed(derive_seed(experiment.seed, "online"))
    learned_controls(experiment.method.name, experiment.schedule.learn, problem.network.method.controls)
    name, start = _start(experiment)
    check(experiment, problem)
    tracker = open_tracker(experiment, folder, "online")
    try:
        with open_pool(experiment.run.workers) as pool:  # one thread, as wherever it is played again
            console.note(f"{experiment.name}: {experiment.method.name} on {problem.task.name}, {problem.steps} steps")
            outcome = train_online(experiment, start, problem.seed, _logger(experiment, tracker, console))
            score = hardened_score(problem, outcome.state, "validation")
            _write(experiment, problem, outcome, Start(name, start, 0), score, folder, tracker)
            if compared:
                console.note(f"comparing with {name} from {experiment.compare.seeds} fresh seeds")
            arms = joined((name, Contender(experiment.problem, start)), *reference_arms(experiment.problem))
            comparison = compare_with_start(experiment, name, arms, pool, tracker, console) if compared else None
        published = publish(experiment, comparison, arms, folder, tracker, console) if comparison else {}
        metadata = {
            "format_version": 1,
            "config_hash": config_hash(experiment, problem.fingerprint),
            "validation_score": score,
        }
        tracker.artifact(folder.schedule, experiment.name, "schedule", metadata)
    finally:
        tracker.close()
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


def check(experiment: Experiment, problem: InnerProblem) -> None:
    """Refuses what the online mode cannot do, before anything is trained.

    Raises:
        MetaschedError: a run too short or too long for a file with a knot for each step, an outer loss over a
            trajectory, more held-out examples than there are, or more than three times the cost of a plain run.
    """
    online, steps = experiment.online, problem.steps
    if steps < 2:
        raise MetaschedError("task.steps", "leaves nothing to look ahead to, being 1", "set it to 2 or more")
    curves = len(problem.network.layers) * len(problem.network.method.controls)
    longest = min(MAX_KNOTS, MAX_BYTES * 9 // 10 // (_NUMBER_BYTES * (curves + 1)))
    if steps > longest:
        what = f"{steps} steps of {curves} curves do not fit in a schedule file, which has a knot for each step"
        raise MetaschedError("task.steps", what, f"set it to {longest} at most, or learn a schedule by metasched train")
    if experiment.meta.objective == "trajectory":
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
    experiment: Experiment,
    start_name: str,
    arms: Mapping[str, Contender],
    pool: Mapper,
    tracker: Tracker,
    console: Console,
) -> Comparison:
    """Adapted and not adapted, floor and ceiling, from the fresh seeds of ``metasched compare``, on test data."""
    steps, seeds = experiment.task.steps, fresh_seeds(experiment.seed, experiment.compare.seeds)
    cells = list(pool.map(online_cell, [(experiment, allowed(), seed) for seed in seeds]))
    inner_steps = sum(n for _, n in cells)
    adapted = Arm(
        f"{start_name}, online", steps, tuple(s for s, _ in cells), inner_steps, method=experiment.method.name
    )
    for seed, score in zip(seeds, adapted.scores, strict=True):
        tracker.log(
            {"compare/seed": seed, "compare/arm": adapted.name, "compare/horizon": steps, "compare/score": score}
        )
    once = replace(experiment, compare=replace(experiment.compare, horizons=(1,)))
    plain = compare(once, arms, (), pool, tracker, console)
    return Comparison(tuple(seeds), (adapted, *plain.arms), (adapted.name,))


def online_cell(experiment: Experiment, imports: tuple[str, ...], seed: int) -> tuple[float, int]:
    """Test score of the hardened network after an online run from a seed, and the inner steps it took.

    The score of a run that diverged is NaN; if it was stopped, its inner steps are those of a whole run.
    """
    allow(imports)
    problem = build_problem(experiment)
    try:
        outcome = train_online(experiment, _start(experiment)[1], seed)
    except RunStopped:
        return math.nan, experiment.task.steps
    score = math.nan if broken(outcome.state) else hardened_score(problem, outcome.state, "test")
    return score, outcome.inner_steps


def _start(experiment: Experiment) -> tuple[str, Schedule]:
    given = given_start(experiment.problem, experiment.schedule.start)
    if given is None:
        what = "best would train under every hand-coded schedule first, and online trains once"
        raise MetaschedError("schedule.start", what, f"name one, such as {experiment.method.name}_linear, or a file")
    return given


def _logger(experiment: Experiment, tracker: Tracker, console: Console) -> Callable[[Adaptation], None]:
    spent = 0

    def log(record: Adaptation) -> None:
        nonlocal spent
        spent += record.inner_steps
        tracker.log({f"online/{name}": v for name, v in (record._asdict() | {"inner_steps": spent}).items()})
        console.note(
            f"step {record.step}/{experiment.task.steps}  training loss {record.train_loss:.4f}  "
            f"held-out loss {record.loss:.4f}  |gradient| {record.gradient_norm:.1e}"
            + (f"  skipped, not finite: {record.fault}" if record.skipped else "")
        )

    return log


def _write(
    experiment: Experiment,
    problem: InnerProblem,
    outcome: OnlineRun,
    start: Start,
    score: float,
    folder: RunFolder,
    tracker: Tracker,
) -> None:
    layers, progress = problem.network.layers, progress_of_steps(problem.steps)
    provenance = Provenance(
        kind="learned",
        name=experiment.name,
        citation=f"played by metasched online, starting at {start.name}",
        config_hash=config_hash(experiment, problem.fingerprint),
        seeds=(problem.seed,),
        tasks=(problem.task.name,),
        outer_steps=len(outcome.history),
        versions={name: v for name in ("metasched", "torch", "numpy") if (v := version(name)) is not None},
        metric=Metric(name="meta-validation score", value=score, n=1) if math.isfinite(score) else None,
        spent=start.spent("online", outcome.inner_steps),
    )
    file = export(
        lambda progress, layers: outcome.controls,
        method_name=experiment.method.name,
        method_parameters={k: v for k, v in to_dict(experiment)["method"].items() if k != "name"},
        controls=problem.network.method.controls,
        layers=layers,
        knots=progress,
        interpolation="linear",
        provenance=provenance,
    )
    write_schedule(folder.schedule, file)
    names = [layer.name for layer in layers]
    folder.plots.mkdir(exist_ok=True)
    plot_schedule(folder.plots / "schedule.png", outcome.controls, names, progress)
    for t, u in enumerate(progress.tolist()):
        curves = {f"schedule/{c}/{n}": float(v[t, i]) for c, v in outcome.controls.items() for i, n in enumerate(names)}
        tracker.log({"schedule/progress": u, **curves})
