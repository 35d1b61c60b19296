"""``metasched tune``: a hand-coded family tuned by search, for as many inner steps as learning took."""

from __future__ import annotations

from contextlib import closing
from typing import Any

from metasched.config.load import config_hash, to_dict
from metasched.config.schema import Experiment
from metasched.evaluation.compare import compare, publish
from metasched.evaluation.contenders import Contender, given_arms, joined
from metasched.exchange.export import export
from metasched.exchange.format import Metric, Provenance
from metasched.exchange.player import PlayedSchedule
from metasched.exchange.schedule_file import read_schedule, write_schedule
from metasched.io.json_lines import cut_back
from metasched.io.run_folder import RunFolder
from metasched.meta.resume import keep_fingerprint
from metasched.meta.start import Start, best_start, given_start, learned_controls
from metasched.runs.cells import CachedPool
from metasched.runs.pooled import PooledRuns
from metasched.runs.ranks import open_pool
from metasched.schedules.family import ScheduleFamily
from metasched.search.population import population_search
from metasched.search.table import SEARCHES
from metasched.search.tuning import Box, Candidate, best_of, search, trials_within
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
    problem = build_problem(experiment)
    network, settings = problem.network, experiment.tune
    keep_fingerprint(folder, problem.fingerprint)
    learn = learned_controls(experiment.method.name, experiment.schedule.learn, network.method.controls)
    trials_within(experiment)
    searcher = SEARCHES[settings.search].builder
    if searcher is not None:
        searcher([0.0], 0)  # is its library there?
    given = given_start(experiment.problem, experiment.schedule.start)
    others = joined(*given_arms(experiment))
    cut_back(folder.metrics, 0)
    tracker = open_tracker(experiment, folder, "tune")
    try:
        with open_pool(experiment.run.workers) as pool, closing(CachedPool(pool, folder.cells)) as cells:
            console.note(f"{experiment.name}: {settings.search} over {settings.inner_steps} inner steps")
            start = Start(*given, 0) if given else best_start(experiment, cells, tracker, console)

            def log(trial: int, score: float) -> None:
                tracker.log({"tune/trial": trial + 1, "tune/score": score})
                console.note(f"{settings.search} {trial + 1}: {score:.4f}")

            family = ScheduleFamily(
                network.method.controls, start.schedule, learn, knots=experiment.schedule.knots, layers=network.layers
            )
            box = Box(family, network.layers)
            if searcher is None:
                runs = PooledRuns(experiment.problem, experiment.meta, pool)
                tried = population_search(experiment, box, family.learned, runs, log)
            else:
                tried = search(experiment, box, cells, log)
            best = best_of(experiment, box.member(box.first), tried, cells)
            _export(experiment, best, start, folder)
            console.note(
                f"best of {len(tried)}: {best.score:.4f} on meta-validation, over {settings.final_runs} fresh seeds"
            )
            tuned = PlayedSchedule(read_schedule(folder.schedule))
            arms = joined((TUNED, Contender(experiment.problem, tuned)), *others.items())
            comparison = compare(experiment, arms, [TUNED], cells, tracker, console)
        published = publish(experiment, comparison, arms, folder, tracker, console)
    finally:
        tracker.close()
    spent = {"selecting": start.selecting, "tuning": settings.inner_steps}
    result = {"schedule": str(folder.schedule), "start": start.name, "inner_steps": spent, "score": best.score}
    return {**result, "verdict": published["verdict"]}


def _export(experiment: Experiment, best: Candidate, start: Start, folder: RunFolder) -> None:
    problem, settings = build_problem(experiment), experiment.tune
    how = f"{settings.search}, {settings.inner_steps} inner steps, from {start.name}"
    file = export(
        best.schedule,
        method_name=experiment.method.name,
        method_parameters={k: v for k, v in to_dict(experiment)["method"].items() if k != "name"},
        controls=problem.network.method.controls,
        layers=problem.network.layers,
        knots=best.schedule.knots,
        interpolation=best.schedule.kind,
        provenance=Provenance(
            kind="tuned",
            name=experiment.name,
            citation=f"tuned by metasched: {how}",
            config_hash=config_hash(experiment, problem.fingerprint),
            seeds=(experiment.seed,),
            tasks=(problem.task.name,),
            metric=Metric(name="meta-validation score", value=best.score, n=settings.final_runs),
            spent=start.spent(settings.search, settings.inner_steps),
        ),
    )
    write_schedule(folder.schedule, file)
