"""Population based training: a schedule found by copying the best of many runs and changing what they play a little.

    every tune.interval steps:  the worst fifth of the members takes over state and point of the best fifth, one each,
                                and each coordinate of its point moves by 0.2 up or down

A point is a member of the family, in the same box that the searches have (see tuning.py). What a member of the
population plays is its point's values from the exchange on, so its schedule is the path that its state was trained
under. The first one begins at the start of learning, the others anywhere in the box.

Source: Jaderberg et al., 2017, arXiv 1711.09846 (truncation selection, perturbation). We differ: the paper multiplies
by 0.8 or 1.2, and coordinates of a box around 0 are moved instead; a control must keep the direction that its method
declares, so where a new point lies behind what was played already, the last value is kept until the point catches up.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from metasched.config.schema import Experiment
from metasched.core.randomness import derive_seed, generator
from metasched.methods.base import Control
from metasched.network.quantize import Tensors
from metasched.runs.local import Reached, Runs, Segment
from metasched.schedules.base import progress_of_steps
from metasched.search.tuning import Box, Candidate, Sampled, trials_within

_SHARE = 5  # one in so many is replaced
_STEP = 0.2  # of half the box


def population_search(
    experiment: Experiment, box: Box, learned: Sequence[Control], runs: Runs, log: Callable[[int, float], None]
) -> list[Candidate]:
    """The best member's path of one population after another, for as long as the budget lasts.

    Args:
        experiment: its ``tune`` has the size of a population, its interval and the budget.
        box: what the members play.
        learned: the controls that differ between points.
        runs: where the members train.
        log: called with the number of the population and its best score.
    """
    tune = experiment.tune
    populations = max(1, trials_within(experiment) * tune.runs // tune.population)
    candidates = []
    for number in range(populations):
        paths, scores = evolve(experiment, box, learned, runs, number)
        best = max(range(len(scores)), key=lambda i: scores[i])
        knots = progress_of_steps(experiment.task.steps)
        candidates.append(Candidate(Sampled(knots, paths[best], "previous"), scores[best]))
        log(number, scores[best])
    return candidates


def evolve(
    experiment: Experiment, box: Box, learned: Sequence[Control], runs: Runs, number: int
) -> tuple[list[Tensors], list[float]]:
    """One population: the path {control: [T, L]} and the last score of each member."""
    tune, steps = experiment.tune, experiment.task.steps
    draws = generator(derive_seed(experiment.seed, "tune", number), "population")
    seeds = [derive_seed(experiment.seed, "tune", number, member) for member in range(tune.population)]
    first = torch.tensor(box.first, dtype=torch.float64)
    anywhere = 2 * torch.rand(tune.population - 1, len(first), generator=draws, dtype=torch.float64) - 1
    points = [first, *anywhere]
    paths = [_played(box, point, steps) for point in points]
    reached: list[Reached | None] = [None] * len(seeds)
    scores = [0.0] * len(seeds)
    for start in range(0, steps, tune.interval):
        stop = min(start + tune.interval, steps)
        work = [Segment(p, seed, since, stop) for p, seed, since in zip(paths, seeds, reached, strict=True)]
        found = runs.segments(work)
        scores = [r.score if r.fault is None else float("-inf") for r in found]
        reached = list(found)
        if stop == steps:
            break
        order = sorted(range(len(seeds)), key=lambda i: scores[i])
        for worst, best in zip(order[: len(order) // _SHARE], reversed(order), strict=False):
            up = torch.rand(first.shape, generator=draws, dtype=torch.float64) < 0.5
            points[worst] = (points[best] + torch.where(up, _STEP, -_STEP)).clamp(-1, 1)
            reached[worst] = reached[best]
            paths[worst] = _joined(paths[best], _played(box, points[worst], steps), learned, stop)
    return paths, scores


def _played(box: Box, point: torch.Tensor, steps: int) -> Tensors:
    """Values {control: [T, L]} of the family's member at a point."""
    schedule = box.member(point.tolist())
    return schedule(progress_of_steps(steps), ())


def _joined(before: Tensors, after: Tensors, learned: Sequence[Control], since: int) -> Tensors:
    """One path until a step, another one from there on, as far as the direction of each control allows."""
    path = {name: torch.cat([v[:since], after[name][since:]]) for name, v in before.items()}
    for control in learned:
        if control.direction == "nonincreasing":
            path[control.name] = path[control.name].cummin(0).values
        elif control.direction == "nondecreasing":
            path[control.name] = path[control.name].cummax(0).values
    return path
