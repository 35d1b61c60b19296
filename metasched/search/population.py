"""Population-based training: copies the best of many runs and perturbs their schedules.

    every tune.interval steps:  each member of the worst fifth copies state and point of one member of the best fifth,
                                and moves each coordinate of its point by +0.2 or -0.2

A point is a schedule of the family, in the box of the other searches (see tuning.py). After an exchange a member plays
the values of its new point, so its schedule is the path under which its state was trained. The first member starts at
the initial schedule of learning, the others at random points of the box.

Source: Jaderberg et al., 2017, arXiv 1711.09846 (truncation selection, perturbation). We differ: the paper multiplies
by 0.8 or 1.2, we add to coordinates of a box around 0; and because a control must keep the direction that its method
declares, the last value is kept until the new point allows a change.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from metasched.core.randomness import derive_seed, generator
from metasched.methods.base import Control
from metasched.network.flat import Tensors
from metasched.runs.local import Reached, Runs, Segment
from metasched.schedules.base import progress_of_steps
from metasched.search.config import TuneConfig
from metasched.search.tuning import Box, Candidate, Sampled, trials_within

SHARE = 5  # one of this many members is replaced
STEP = 0.2  # in half-widths of the box


def populations_within(tune: TuneConfig, steps: int) -> int:
    """The number of populations within the budget; an inner run has T = steps."""
    return max(1, trials_within(tune, steps) * tune.runs // tune.population)


def population_search(
    tune: TuneConfig,
    steps: int,
    seed: int,
    box: Box,
    learned: Sequence[Control],
    runs: Runs,
    log: Callable[[int, float], None],
) -> list[Candidate]:
    """The best member's path of each population, within the budget.

    Args:
        tune: the size of a population, the interval and the budget.
        steps: T, training steps of a run.
        seed: of the experiment.
        box: maps points to schedules.
        learned: the controls that differ between points.
        runs: trains the members.
        log: called with the number of each population and its best score.
    """
    candidates = []
    for number in range(populations_within(tune, steps)):
        paths, scores = evolve(tune, steps, seed, box, learned, runs, number)
        best = max(range(len(scores)), key=lambda i: scores[i])
        knots = progress_of_steps(steps)
        candidates.append(Candidate(Sampled(knots, paths[best], "previous"), scores[best]))
        log(number, scores[best])
    return candidates


def evolve(
    tune: TuneConfig, steps: int, seed: int, box: Box, learned: Sequence[Control], runs: Runs, number: int
) -> tuple[list[Tensors], list[float]]:
    """Trains one population; returns the path {control: [T, L]} and the last score of each member."""
    draws = generator(derive_seed(seed, "tune", number), "population")
    seeds = [derive_seed(seed, "tune", number, member) for member in range(tune.population)]
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
        for worst, best in zip(order[: len(order) // SHARE], reversed(order), strict=False):
            up = torch.rand(first.shape, generator=draws, dtype=torch.float64) < 0.5
            points[worst] = (points[best] + torch.where(up, STEP, -STEP)).clamp(-1, 1)
            reached[worst] = reached[best]
            paths[worst] = _joined(paths[best], _played(box, points[worst], steps), learned, stop)
    return paths, scores


def _played(box: Box, point: torch.Tensor, steps: int) -> Tensors:
    """Values {control: [T, L]} of the schedule at a point."""
    schedule = box.member(point.tolist())
    return schedule(progress_of_steps(steps), ())


def _joined(before: Tensors, after: Tensors, learned: Sequence[Control], since: int) -> Tensors:
    """The path ``before`` until step ``since``, then ``after``, as far as the direction of each control allows."""
    path = {name: torch.cat([v[:since], after[name][since:]]) for name, v in before.items()}
    for control in learned:
        if control.direction == "nonincreasing":
            path[control.name] = path[control.name].cummin(0).values
        elif control.direction == "nondecreasing":
            path[control.name] = path[control.name].cummax(0).values
    return path
