"""``metasched tune``: a hand-coded family tuned by search, for as many inner steps as learning took."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from typing import Any

from metasched.commands.estimate import announce, runs_of_tune, timed_arm
from metasched.commands.exporting import Found, said_of_form, write_found
from metasched.commands.scored import write_scores
from metasched.config.schema import Experiment
from metasched.config.writing import to_dict
from metasched.core.errors import MetaschedError
from metasched.evaluation.compare import compare, plan_of, publish
from metasched.evaluation.contenders import Contender, joined
from metasched.evaluation.floors import with_tuned_rates
from metasched.evaluation.references import given_arms
from metasched.exchange.played import PlayedSchedule
from metasched.exchange.portfolios import portfolio_for
from metasched.exchange.schedule_file import read_schedule
from metasched.io.json_lines import cut_back
from metasched.io.run_folder import RunFolder
from metasched.meta.resume import keep_fingerprint
from metasched.meta.start import Start, best_start, given_start, learned_controls
from metasched.runs.cells import CachedPool
from metasched.runs.pooled import PooledRuns
from metasched.runs.store import store_at
from metasched.runs.where import open_pool
from metasched.schedules.base import Schedule
from metasched.schedules.learnable import refuse_feedback
from metasched.search.config import TuneConfig
from metasched.search.population import population_search, populations_within
from metasched.search.table import SEARCHES
from metasched.search.tuning import Candidate, best_of, box_of, search, trials_within
from metasched.search.warm import Member, members, warm_portfolio
from metasched.tracking.console import Console
from metasched.tracking.opening import open_tracker
from metasched.training.problem import build_problem

TUNED = "tuned"


def tune(experiment: Experiment, folder: RunFolder, console: Console) -> dict[str, Any]:
    """Search, judge the finalists anew, write the best one's schedule, and compare it as ``metasched train`` does.

    Args:
        experiment: the whole configuration; ``tune`` says how and for how many inner steps.
        folder: where everything is written.
        console: where progress is shown.

    Returns:
        what a program would want to read: paths, the start, inner steps spent, the finalists' best score.

    Raises:
        MetaschedError: names or files that do not fit, a search whose library is missing, a budget that is too small.
    """
    refuse_feedback(experiment.schedule)
    problem = build_problem(experiment.problem)
    network, settings = problem.network, experiment.tune
    keep_fingerprint(folder, problem.fingerprint)
    learn = learned_controls(experiment.method.name, experiment.schedule.learn, network.method.controls)
    trials_within(settings, problem.steps)
    if settings.space == "directions" and experiment.schedule.directions is None:
        fix = "set schedule.directions, such as to 20"
        raise MetaschedError("tune.space", "is directions, and schedule.directions is null", fix)
    searcher = SEARCHES[settings.search].builder
    if searcher is not None:
        searcher([0.0], 0)  # is its library there?
    if settings.warm_start is not None:
        portfolio_for(experiment.method, warm_portfolio(settings))  # is there one?
    given = given_start(experiment.problem, experiment.schedule.start)
    others = joined(*given_arms(experiment.problem, experiment.compare.baselines))
    store = store_at(experiment.run.store)
    cut_back(folder.metrics, 0)
    with (
        open_pool(experiment.run) as pool,  # before trackers: they start threads
        closing(open_tracker(experiment, folder, "tune")) as tracker,
        closing(CachedPool(pool, folder.cells, store=store)) as cells,
    ):
        console.note(f"{experiment.name}: {settings.search} over {settings.inner_steps} inner steps")
        announce(runs_of_tune(experiment, len(others) + 1), timed_arm(experiment, others), pool, console)
        select = (experiment.meta.select_runs, experiment.seed)
        start = Start(*given, 0) if given else best_start(experiment.problem, *select, cells, tracker, console)

        within = trials_within if searcher else populations_within
        unit, total = ("candidates" if searcher else "populations"), within(settings, problem.steps)
        seen: list[float] = []
        console.progress(unit, 0, total)

        def log(trial: int, score: float) -> None:
            tracker.log({"tune/trial": trial + 1, "tune/score": score})
            seen.append(score)
            console.progress(unit, len(seen), total, f"best {max(seen):.4f}")

        box = box_of(experiment.schedule, settings, network, start.schedule, learn, experiment.seed)
        warm = members(experiment.problem, experiment.schedule, settings, learn, box)
        if warm:
            console.note(_said(warm, trials_within(settings, problem.steps)))
        if searcher is None:
            runs = PooledRuns(experiment.problem, experiment.meta, pool, store)
            tried = population_search(settings, problem.steps, experiment.seed, box, box.learned, runs, log)
        else:
            known = [(member.schedule, member.point) for member in warm]
            tried = search(experiment.problem, settings, experiment.seed, box, cells, log, known)
        first = box.member(box.first)
        best = best_of(experiment.problem, settings, experiment.seed, first, tried, cells)
        found = _found(best, box.whole(best.schedule), start, settings, experiment.seed)
        write_found(found, experiment, problem, folder)
        console.note(said_of_form(found, experiment))
        console.note(
            f"best of {len(tried)}: {best.score:.4f} on meta-validation, over {settings.final_runs} fresh seeds"
        )
        tuned = PlayedSchedule(read_schedule(folder.schedule))
        arms = joined((TUNED, Contender(experiment.problem, tuned)), *others.items())
        arms = with_tuned_rates(experiment, arms, cells, tracker, console)
        comparison = compare(plan_of(experiment), arms, [TUNED], cells, tracker, console)
        began = (start.name, Contender(experiment.problem, start.schedule))
        published = publish(to_dict(experiment), comparison, arms, folder, tracker, console, start=began)
        write_scores(folder.schedule, comparison, TUNED)
    spent = {"selecting": start.selecting, "tuning": settings.inner_steps}
    result = {"schedule": str(folder.schedule), "report": published["report"], "start": start.name}
    result |= {"inner_steps": spent, "score": best.score}
    return {**result, "verdict": published["verdict"]}


def _said(warm: Sequence[Member], trials: int) -> str:
    """How a search starts warm."""
    told = sum(member.point is not None for member in warm[:trials])
    few = f", of which the budget lasts for {trials}" if trials < len(warm) else ""
    names = ", ".join(member.name for member in warm[:trials])
    return f"tries first, as they are: {names}{few}; {told} of them are near a point of the search, which is told"


def _found(best: Candidate, schedule: Schedule, start: Start, tune: TuneConfig, seed: int) -> Found:
    return Found(
        schedule=schedule,
        knots=best.schedule.knots,
        interpolation=best.schedule.kind,
        kind="tuned",
        how=f"tuned by metasched: {tune.search}, {tune.inner_steps} inner steps, from {start.name}",
        seed=seed,
        outer_steps=None,
        score=best.score,
        runs=tune.final_runs,
        spent=start.spent(tune.search, tune.inner_steps),
    )
