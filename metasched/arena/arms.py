"""The arms of an arena on one task: what each kind plays, and how it finds that out on meta-validation.

Planning trains nothing. Where an arm has something to choose, to tune or to search, it does so in ``make``, on
meta-validation alone, from seeds of streams of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from metasched.arena.config import ArenaConfig, ArmEntry
from metasched.config.schema import Experiment, ProblemConfig
from metasched.config.writing import section_dict
from metasched.core.errors import MetaschedError, unknown_name
from metasched.core.randomness import derive_seed
from metasched.evaluation.contenders import Contender, file_arm, hand_coded_arms, name_of
from metasched.evaluation.measured import method_of_named
from metasched.evaluation.rates import with_best_rates
from metasched.evaluation.references import reference_arms
from metasched.evaluation.statistics import counted, lowest, summarize
from metasched.exchange.portfolios import dumps, portfolio_for, portfolios_of
from metasched.exchange.schedule_file import read_schedule
from metasched.exchange.shipped import file_of, unknown_schedule
from metasched.meta.start import learned_controls
from metasched.network.flat import Tensors
from metasched.runs.cells import cell_scores, cells_key, digest, played, shares
from metasched.runs.pool import Mapper
from metasched.schedules.base import progress_of_steps
from metasched.schedules.curves import HandCoded
from metasched.schedules.table import NO_SCHEDULE, floor_of, has_floor, schedules_of
from metasched.search.searchers import Searcher
from metasched.search.table import SEARCHES
from metasched.search.tuning import best_of, box_of, search, spent_by, trials_within
from metasched.search.warm import members, warm_portfolio
from metasched.tracking.console import Console, open_console
from metasched.training.problem import build_problem

_POINTS = 101  # in progress, at which a constant is told from others


@dataclass(frozen=True)
class Setting:
    """A task, as arms see it.

    Attributes:
        name: of the task; its seeds follow from it and from the experiment's.
        experiment: the task's.
        pool: does the inner runs.
        console: where what breaks is shown.
    """

    name: str
    experiment: Experiment
    pool: Mapper
    console: Console

    @property
    def arena(self) -> ArenaConfig:
        """The section ``arena``."""
        return self.experiment.arena

    @property
    def problem(self) -> ProblemConfig:
        """What its inner problem depends on."""
        return self.experiment.problem

    @property
    def steps(self) -> int:
        """T of the horizon 1, at which arms choose, tune and search."""
        return self.experiment.task.steps

    def seeds(self, stream: str, number: int) -> list[int]:
        """Seeds of the inner runs of a stream, see ``task_seeds``."""
        return task_seeds(self.experiment.seed, self.name, stream, number)


def task_seeds(seed: int, task: str, stream: str, number: int) -> list[int]:
    """Seeds of the inner runs on a task for one purpose: streams never share one, nor do tasks."""
    return [derive_seed(seed, f"arena {task} {stream}", i) for i in range(number)]


class Made(NamedTuple):
    """What an arm plays, and what it took to find it.

    Attributes:
        contender: problem and schedule.
        chosen: the name of what was chosen, or the learning rate; None where nothing was.
        validation: the mean score on meta-validation that decided; the best of several, so it flatters.
        spent: inner steps on meta-validation.
    """

    contender: Contender
    chosen: str | None = None
    validation: float | None = None
    spent: int = 0


class Planned(NamedTuple):
    """An arm on a task that may have been played already.

    Attributes:
        arm: its name.
        problem: that it trains.
        about: plain values: what ``make`` depends on beside the problem and the experiment's seed.
        make: gives what it plays.
        schedule: name, or path, of its schedule where it is the same on all tasks; None where it is found here.
        search: number of the search, from 1; 0 for other arms.
    """

    arm: str
    problem: ProblemConfig
    about: Any
    make: Callable[[], Made]
    schedule: str | None = None
    search: int = 0

    def key(self, seeds: list[int], steps: int, part: Any) -> str:
        """A hash of all that its scores depend on, from these seeds at this horizon."""
        return digest([cells_key(self.problem, {}, seeds, steps, part), self.about], {})


def plan(setting: Setting, entry: ArmEntry) -> list[Planned]:
    """The arms of an entry on a task.

    Raises:
        MetaschedError: it does not fit the task.
    """
    from metasched.arena.table import ARMS

    return ARMS[entry.kind].plan(setting, entry)


def check_arms(experiment: Experiment) -> None:
    """Refuses arms that no task could play, before anything is trained.

    Raises:
        MetaschedError: none at all, no such schedule, search or portfolio, or a library that is missing.
    """
    if not experiment.arena.arms:
        raise MetaschedError("arena.arms", "is empty: there is nothing to play", "list arms, see docs/arena.md")
    for entry in experiment.arena.arms:
        if entry.kind == "search":
            builder_of(entry.of)([0.0], 0)  # is its library there?
        elif entry.kind == "portfolio":
            portfolios_of(entry.of)
        elif entry.kind == "schedule" and entry.of is not None and entry.of != NO_SCHEDULE:
            if (file := file_of(entry.of)) is not None:
                read_schedule(file)
            elif entry.of not in method_of_named():
                raise unknown_schedule("arena.arms: of", entry.of)


def builder_of(search: str | None) -> Callable[[Sequence[float], int], Searcher]:
    """What builds a search of the table that tries one candidate after the other.

    Raises:
        MetaschedError: there is none of this name.
    """
    known = {name: spec.builder for name, spec in SEARCHES.items() if spec.builder is not None}
    if search not in known:
        raise unknown_name("arena.arms: of", str(search), known)
    return known[search]


def reference(setting: Setting, entry: ArmEntry) -> list[Planned]:
    """``float``, ``ste`` or ``lsq``, with the best of five learning rates."""
    arm, runs = dict(reference_arms(setting.problem))[entry.kind], setting.arena.rate_runs
    about = ["rate", runs, setting.steps]
    return [Planned(entry.kind, arm.problem, about, partial(_with_rate, setting, entry.kind, arm, runs))]


def _with_rate(setting: Setting, name: str, arm: Contender, runs: int) -> Made:
    if not runs:
        return Made(arm)
    seeds = setting.seeds("rates", runs)
    best = with_best_rates({name: arm}, seeds, setting.steps, setting.pool, None, open_console(StringIO()))[name]
    assert best.tuned is not None
    return Made(best, f"lr {best.tuned.lr:.3g}", best.tuned.score, best.tuned.inner_steps)


def hand_coded(setting: Setting, entry: ArmEntry) -> list[Planned]:
    """Each hand-coded schedule of the method."""
    return [_same(setting, name, arm, name) for name, arm in hand_coded_arms(setting.problem, None)]


def constants(setting: Setting, entry: ArmEntry) -> list[Planned]:
    """Each hand-coded schedule that is constant up to its end, and no schedule where the method has it."""
    return [_same(setting, name, arm, name) for name, arm in _constants(setting.problem).items()]


def given(setting: Setting, entry: ArmEntry) -> list[Planned]:
    """One schedule, by name or path; that of another method is played by that method."""
    assert entry.of is not None
    name, arm = named_arm(setting.problem, entry.of, "arena.arms")
    return [_same(setting, name, arm, entry.of)]


def named_arm(config: ProblemConfig, named: str, path: str) -> tuple[str, Contender]:
    """Name and arm of a schedule that a word means: ``floor``, a name of the package, or the path of a file.

    Raises:
        MetaschedError: no such schedule, or the problem cannot play it; ``path`` is what messages begin with.
    """
    own = schedules_of(config.method)
    if named == NO_SCHEDULE:
        return named, Contender(config, floor_of(config.method, path))
    if named in own:
        return named, Contender(config, own[named])
    if (file := file_of(named)) is not None:
        return (name_of(file) if Path(named) == file else named), file_arm(config, file)
    try:
        return hand_coded_arms(config, [named])[0]
    except MetaschedError as error:
        raise MetaschedError(path, error.problem, error.fix) from None


def _same(setting: Setting, name: str, arm: Contender, schedule: str) -> Planned:
    """An arm that is there already."""
    about = ["schedule", _content(arm, setting.steps)]
    return Planned(name, arm.problem, about, partial(Made, arm), schedule)


def _content(arm: Contender, steps: int) -> str:
    """A hash of what a schedule gives this network."""
    return digest([], played(arm.problem, arm.schedule, steps))


def best_constant(setting: Setting, entry: ArmEntry) -> list[Planned]:
    """The constant with the best mean score on meta-validation."""
    return [_best(setting, entry.label, _constants(setting.problem))]


def best_published(setting: Setting, entry: ArmEntry) -> list[Planned]:
    """The hand-coded schedule with the best mean score on meta-validation."""
    return [_best(setting, entry.label, dict(hand_coded_arms(setting.problem, None)))]


def first(setting: Setting, entry: ArmEntry) -> list[Planned]:
    """The best on meta-validation of the first schedules of a portfolio; a single one is taken at no run."""
    assert entry.first is not None
    names = portfolio_for(setting.problem.method, entry.of).schedules[: entry.first]
    return [_best(setting, entry.label, dict(named_arm(setting.problem, name, "arena.arms") for name in names))]


def _best(setting: Setting, label: str, candidates: Mapping[str, Contender]) -> Planned:
    if not candidates:
        raise MetaschedError(label, f"{setting.problem.method.name} has no such schedule", "leave this arm out")
    runs = setting.arena.choice_runs if len(candidates) > 1 else 0
    content = [
        cells_key(a.problem, played(a.problem, a.schedule, setting.steps), [], 1, "validation")
        for a in candidates.values()
    ]
    return Planned(
        label, setting.problem, ["best", runs, setting.steps, content], partial(_chosen, setting, candidates, runs)
    )


def _chosen(setting: Setting, candidates: Mapping[str, Contender], runs: int) -> Made:
    if not runs:
        (name,) = candidates
        return Made(candidates[name], name)
    means = means_on_validation(candidates, setting.seeds("choice", runs), setting.steps, setting.pool)
    best = max(means, key=lambda name: means[name])  # of equal ones the first
    return Made(candidates[best], best, means[best], len(candidates) * runs * setting.steps)


def means_on_validation(
    candidates: Mapping[str, Contender], seeds: list[int], steps: int, pool: Mapper
) -> dict[str, float]:
    """The mean score of each candidate on meta-validation, from the same seeds; runs that diverge count as worst."""
    work = [
        (arm.problem, controls, part, steps, "validation")
        for arm in candidates.values()
        for controls in [played(arm.problem, arm.schedule, steps)]
        for part in shares(arm.problem, seeds, pool)
    ]
    found = [score for part in pool.map(cell_scores, work) for score in part]
    worst = build_problem(next(iter(candidates.values())).problem).task.worst_score
    scores = counted(found, lowest(found) if worst is None else worst)
    n = len(seeds)
    return {name: summarize(scores[i * n : (i + 1) * n]).mean for i, name in enumerate(candidates)}


def searches(setting: Setting, entry: ArmEntry) -> list[Planned]:
    """Several searches of a kind, with so many runs each, from ``schedule.start``, or from no schedule for ``best``."""
    assert entry.of is not None and entry.runs is not None
    experiment = setting.experiment
    tune = replace(experiment.tune, search=entry.of, inner_steps=entry.runs * setting.steps)
    trials_within(tune, setting.steps)
    about = ["search", section_dict(tune), section_dict(experiment.schedule)]
    if tune.warm_start is not None:
        about.append(dumps([portfolio_for(setting.problem.method, warm_portfolio(tune))]))
    return [
        Planned(entry.label, setting.problem, [*about, i], partial(_searched, setting, tune, i), search=i)
        for i in range(1, setting.arena.searches + 1)
    ]


def _searched(setting: Setting, tune: Any, number: int) -> Made:
    experiment, config = setting.experiment, setting.problem
    (seed,) = setting.seeds(f"search {number}", 1)
    network = build_problem(config).network
    learn = learned_controls(config.method.name, experiment.schedule.learn, network.method.controls)
    start = search_start(config, experiment.schedule.start)
    box = box_of(experiment.schedule, tune, network, start.schedule, learn, seed)
    warm = members(config, experiment.schedule, tune, learn, box)
    known = [(member.schedule, member.point) for member in warm]
    tried = search(config, tune, seed, box, setting.pool, lambda trial, score: None, known)
    best = best_of(config, tune, seed, box.member(box.first), tried, setting.pool)
    return Made(Contender(config, best.schedule), None, best.score, spent_by(tune, len(tried), setting.steps))


def search_start(config: ProblemConfig, start: str) -> Contender:
    """Where a search starts: a schedule by name or file; for ``best`` no schedule, or the method's first one."""
    if start != "best":
        return named_arm(config, start, "schedule.start")[1]
    if has_floor(config.method):
        return Contender(config, floor_of(config.method, "schedule.start"))
    return hand_coded_arms(config, None)[0][1]


def _constants(config: ProblemConfig) -> dict[str, Contender]:
    found = {
        name: arm
        for name, arm in hand_coded_arms(config, None)
        if isinstance(arm.schedule, HandCoded) and is_constant(played_early(arm))
    }
    return found if not has_floor(config.method) else {NO_SCHEDULE: search_start(config, NO_SCHEDULE), **found}


def played_early(arm: Contender) -> Tensors:
    """What an arm plays before the end of the run, {control: [T, L]}."""
    layers = build_problem(arm.problem).network.layers
    return arm.schedule(progress_of_steps(_POINTS)[:-1], layers)


def is_constant(values: Tensors) -> bool:
    """Whether no control {control: [T, L]} moves, or differs from layer to layer."""
    return all(bool((v == v[0, 0]).all()) for v in values.values())
