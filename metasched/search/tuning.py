"""Tuning of hand-coded schedules by search, with as many inner steps as learning takes; the baseline of learning.

A candidate is a member of the family of schedules/family.py (for each control, a window with a decay, of five to seven
numbers), or a network at some numbers of its directions (schedules/directions.py). Its score is the mean hardened score
of ``tune.runs`` fresh inner runs on meta-validation. The best of many noisy scores is biased upwards, so a part of the
budget is reserved: the ``tune.finalists`` best candidates are played again from ``tune.final_runs`` new seeds, the same
for all, and the candidate with the best mean wins. The initial schedule is one of the finalists, because a few noisy
runs may rank a good one below many worse candidates.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from metasched.config.schema import ProblemConfig
from metasched.core.errors import MetaschedError
from metasched.core.layer import Layer
from metasched.core.randomness import derive_seed
from metasched.evaluation.statistics import counted, lowest, summarize
from metasched.methods.base import Control
from metasched.network.flat import Tensors
from metasched.network.quantized import QuantizedNetwork
from metasched.runs.cells import cell_scores, played
from metasched.runs.pool import Mapper
from metasched.schedules.base import Schedule
from metasched.schedules.config import ScheduleConfig
from metasched.schedules.interpolation import Interpolation, interpolate
from metasched.schedules.learnable import LearnableSchedule, build_learnable
from metasched.search.config import TuneConfig
from metasched.search.searchers import known_to
from metasched.search.table import SEARCHES
from metasched.training.problem import build_problem

# Half-widths of the searched box around 0. It covers 2 to 98 % of a control's range and of the run, slopes over depth
# that place the first and the last layer at opposite ends, and powers from 1/12 to 12.
# A number of a network's directions is about a log-correction: a factor of up to 7 each way.
_BOX = {"power": 1.5, "numbers": 2.0}
_WIDTH = 4.0


class Sampled(NamedTuple):
    """A schedule given by its values at knots: knots [K], and {control: [K, L]}.

    ``numbers`` are those of the family or network that it was sampled from, where it was.
    """

    knots: torch.Tensor
    values: Tensors
    kind: Interpolation
    numbers: tuple[float, ...] = ()

    def __call__(self, progress: torch.Tensor, layers: Sequence[Layer]) -> dict[str, torch.Tensor]:
        """Values {control: [T, L]} at progress [T], for the layers at which it was sampled."""
        return {n: interpolate(progress, self.knots.to(progress), v, self.kind) for n, v in self.values.items()}


class Candidate(NamedTuple):
    """A candidate of a search, and its mean score on meta-validation."""

    schedule: Sampled
    score: float


def trials_within(tune: TuneConfig, steps: int) -> int:
    """The number of candidates within the budget, without the share of the finalists; an inner run has T = steps.

    Raises:
        MetaschedError: the budget is too small for one candidate.
    """
    runs = tune.inner_steps // steps - tune.finalists * tune.final_runs
    if runs < tune.runs:
        least = (tune.finalists * tune.final_runs + tune.runs) * steps
        problem = f"{tune.inner_steps} steps leave nothing for the search after the runs of {tune.finalists} finalists"
        raise MetaschedError("tune.inner_steps", problem, f"give at least {least}, or lower tune.finalists")
    return runs // tune.runs


class Box:
    """Maps points of [-1, 1]^n to schedules of a family, or of a network that learns directions.

    Args:
        searched: the family or network; ``first`` is the point nearest to the schedule that it starts at. Its
            parameters are overwritten; ``names`` has their names and shapes.
        layers: layers at which the schedules are sampled.
    """

    def __init__(self, searched: LearnableSchedule, layers: Sequence[Layer]) -> None:
        self._searched, self._layers = searched, layers
        widths = [p.new_full((p.numel(),), _width(name)) for name, p in searched.named_parameters()]
        self._widths = torch.cat(widths)
        values = parameters_to_vector(p.detach() for p in searched.parameters())
        self.first = (values / self._widths).clamp(-1, 1).tolist()
        self.names = [(name, tuple(p.shape)) for name, p in searched.named_parameters()]

    @property
    def learned(self) -> tuple[Control, ...]:
        """The controls that differ between points."""
        return tuple(self._searched.learned)

    def member(self, point: Sequence[float]) -> Sampled:
        """The schedule at a point, sampled at the knots."""
        assert len(point) == len(self._widths), (len(point), len(self._widths))
        numbers = self._widths.new_tensor(point) * self._widths
        with torch.no_grad():
            vector_to_parameters(numbers, self._searched.parameters())
            values = {n: v.detach().clone() for n, v in self._searched.at_knots(self._layers).items()}
        return Sampled(self._searched.knots, values, "linear", tuple(numbers.tolist()))

    def whole(self, member: Sampled) -> Schedule:
        """The family or network itself that a member was sampled from; a member that was not is returned as it is."""
        if not member.numbers:
            return member
        own = copy.deepcopy(self._searched)
        vector_to_parameters(self._widths.new_tensor(member.numbers), own.parameters())
        return own


def box_of(
    schedule: ScheduleConfig,
    tune: TuneConfig,
    network: QuantizedNetwork,
    start: Schedule,
    learn: Sequence[str],
    seed: int,
) -> Box:
    """The box that ``tune.space`` names, whose first point is the one nearest to a schedule.

    Args:
        schedule: section of the experiment: knots and size.
        tune: names the space.
        network: that plays it.
        start: the schedule that the family is fitted to, or the network starts at.
        learn: names of the searched controls.
        seed: of the experiment.
    """
    kind = "network" if tune.space == "directions" else "family"
    controls, layers = network.method.controls, network.layers
    drawn = derive_seed(seed, "schedule network")
    return Box(build_learnable(replace(schedule, kind=kind), controls, start, learn, layers, drawn), layers)


def spent_by(tune: TuneConfig, trials: int, steps: int) -> int:
    """Inner steps of so many trials and of the finalists that are judged then."""
    return (trials * tune.runs + min(tune.finalists, trials) * tune.final_runs) * steps


def _width(parameter: str) -> float:
    """Half of the width of the box of a parameter."""
    return _BOX.get(parameter.rpartition(".")[2], _WIDTH)


def search(
    config: ProblemConfig,
    tune: TuneConfig,
    seed: int,
    box: Box,
    pool: Mapper,
    log: Callable[[int, float], None],
    known: Sequence[tuple[Sampled, Sequence[float] | None]] = (),
) -> list[Candidate]:
    """The candidates in the order of the search; calls ``log(trial, score)`` after each.

    The first candidate is the schedule that the family was fitted to: search and learning start at the same schedule;
    but known schedules come before it.

    Args:
        config: the problem that is trained.
        tune: names the search and its budget.
        seed: of the experiment.
        box: maps points to schedules.
        pool: does the inner runs.
        log: see above.
        known: schedules that are tried first, as far as the budget lasts, each with the point that stands for it, whose
            score the search is told; None: there is none.
    """
    steps, builder = config.task.steps, SEARCHES[tune.search].builder
    assert builder is not None, "a population is searched by population.py"
    searcher = builder(box.first, derive_seed(seed, "tune"))
    candidates, seen = [], list[float]()
    for trial in range(trials_within(tune, steps)):
        schedule, point = known[trial] if trial < len(known) else (box.member(searcher.ask()), None)
        seeds = [derive_seed(seed, "tune", trial, run) for run in range(tune.runs)]
        score = mean_score(config, schedule, seeds, steps, pool, seen)
        if trial >= len(known):
            searcher.tell(score)
        elif point is not None:
            known_to(searcher, point, score)
        candidates.append(Candidate(schedule, score))
        log(trial, score)
    return candidates


def mean_score(
    config: ProblemConfig, schedule: Schedule, seeds: Sequence[int], steps: int, pool: Mapper, seen: list[float]
) -> float:
    """Mean score on meta-validation, hardened, over inner runs from these seeds; their scores join ``seen``.

    Where the task does not say what a diverged run counts, it is the lowest score seen so far.
    """
    values = played(config, schedule, steps)
    work = [(config, values, [seed], steps, "validation") for seed in seeds]
    found = [score for (score,) in pool.map(cell_scores, work)]
    seen += found
    worst = build_problem(config).task.worst_score
    return summarize(counted(found, lowest(seen) if worst is None else worst)).mean


def best_of(
    config: ProblemConfig,
    tune: TuneConfig,
    seed: int,
    start: Sampled,
    candidates: Sequence[Candidate],
    pool: Mapper,
) -> Candidate:
    """The finalist with the best mean over new seeds; that mean is its score.

    If there are at least two finalists, ``start`` replaces the last one unless it already is a finalist.
    """
    seeds = [derive_seed(seed, "tune final", run) for run in range(tune.final_runs)]
    ranked = sorted(candidates, key=lambda c: -c.score)  # a stable sort: of equal scores, the earlier candidate
    finalists = [c.schedule for c in ranked[: tune.finalists]]
    if len(finalists) > 1 and not any(_same(s, start) for s in finalists):
        finalists[-1] = start
    seen = [c.score for c in candidates]
    judged = [Candidate(s, mean_score(config, s, seeds, config.task.steps, pool, seen)) for s in finalists]
    return max(judged, key=lambda c: c.score)


def _same(a: Sampled, b: Sampled) -> bool:
    return a.kind == b.kind and all(torch.equal(a.values[name], b.values[name]) for name in a.values)
