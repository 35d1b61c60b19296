"""The hybrid: a search over a few numbers first, then hypergradients from what it found, in one account.

Hypergradients of several runs agree little, most in the last third of a run (docs/log/main_job.md). A search with a
surrogate model, such as TPE, needs no derivative, in few numbers. So the first stage searches the network at
``meta.search_numbers`` smooth directions (schedules/directions.py), or the numbers of the family, and the second learns
all directions from the best candidate, and the gains of a schedule with feedback from 0. The section ``tune`` says how
the search is made (search/tuning.py): its finalists, with the start among them, meet fresh seeds, so that a lucky
candidate is not taken for a good one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from metasched.config.schema import Experiment
from metasched.core.errors import MetaschedError
from metasched.core.randomness import derive_seed
from metasched.exchange.format import Spent
from metasched.meta.start import Searched, Start
from metasched.runs.pool import Mapper
from metasched.schedules.learnable import build_learnable
from metasched.search.config import TuneConfig
from metasched.search.table import SEARCHES
from metasched.search.tuning import Box, best_of, search, trials_within
from metasched.tracking.console import Console
from metasched.tracking.tracker import Tracker
from metasched.training.problem import build_problem


def check_search(experiment: Experiment, learn: Sequence[str]) -> None:
    """Refuses a first search that makes no sense, before anything is written.

    Args:
        experiment: ``meta.search_steps`` is its budget; 0: there is no search.
        learn: names of the learned controls.

    Raises:
        MetaschedError: nothing to search, nothing to learn after it, too small a budget, a search of populations, or
            one whose library is missing.
    """
    if not experiment.meta.search_steps:
        return
    path, builder = "meta.search_steps", SEARCHES[experiment.tune.search].builder
    if not learn:
        problem = f"there is nothing to search: no control of {experiment.method.name} is learned"
        raise MetaschedError(path, problem, "set it to 0")
    if not experiment.meta.steps:
        problem = "nothing is learned after the search, because meta.steps is 0"
        raise MetaschedError(path, problem, "raise meta.steps, or use `metasched tune`")
    if builder is None:
        problem = f"learning starts at one candidate, and tune.search is {experiment.tune.search}, which trains many"
        raise MetaschedError(path, problem, "set tune.search to tpe, cmaes or random")
    try:
        trials_within(_settings(experiment), experiment.task.steps)
    except MetaschedError as error:
        raise MetaschedError(path, error.problem, error.fix) from None
    builder([0.0], 0)  # is its library there?


def searched_first(
    experiment: Experiment,
    start: Start,
    learn: Sequence[str],
    pool: Mapper,
    tracker: Tracker | None,
    console: Console,
) -> Start:
    """The start, with the schedule that a search found from there, if ``meta.search_steps`` asks for one.

    Args:
        experiment: accepted by ``check_search``.
        start: the first candidate.
        learn: names of the learned controls.
        pool: does the inner runs.
        tracker: receives the scores; None where it has them already, from a run that is resumed.
        console: as ``tracker``, and what was found.
    """
    if not experiment.meta.search_steps:
        return start
    network, settings = build_problem(experiment.problem).network, _settings(experiment)
    few = replace(experiment.schedule, directions=experiment.meta.search_numbers, feedback=False)
    seed = derive_seed(experiment.seed, "schedule network")
    searched = build_learnable(few, network.method.controls, start.schedule, learn, network.layers, seed)
    box = Box(searched, network.layers)

    seen: list[float] = []
    total = trials_within(settings, experiment.task.steps)
    console.progress(f"candidates of {settings.search}", 0, total)

    def log(trial: int, score: float) -> None:
        if tracker is not None:
            tracker.log({"tune/trial": trial + 1, "tune/score": score})
        seen.append(score)
        console.progress(f"candidates of {settings.search}", len(seen), total, f"best {max(seen):.4f}")

    tried = search(experiment.problem, settings, experiment.seed, box, pool, log)
    first = box.member(box.first)
    best = best_of(experiment.problem, settings, experiment.seed, first, tried, pool)
    runs = len(tried) * settings.runs + min(settings.finalists, len(tried)) * settings.final_runs
    moved = any(not best.schedule.values[name].equal(v) for name, v in first.values.items())
    console.note(
        f"search: best of {len(tried)} candidates in {len(box.first)} numbers, {best.score:.4f} on meta-validation"
        f" over {settings.final_runs} fresh seeds{'' if moved else ': the start itself'}"
    )
    spent = Spent(by=settings.search, inner_steps=runs * experiment.task.steps)
    return start._replace(searched=Searched(best.schedule if moved else start.schedule, spent))


def _settings(experiment: Experiment) -> TuneConfig:
    """The section ``tune`` with the budget of the first search."""
    return replace(experiment.tune, inner_steps=experiment.meta.search_steps)
