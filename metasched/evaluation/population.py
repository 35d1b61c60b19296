"""Population based training: a schedule found by copying the best of many runs and changing their controls a little.

    every tune.interval steps:  the worst fifth of the members takes over state and controls of the best fifth, one
                                each, and each of its controls in each layer is multiplied by 0.8 or 1.2

A member's schedule is the path of controls that its state was trained under. Source: Jaderberg et al., 2017, arXiv
1711.09846 (truncation selection, perturbation). We differ: each control must keep the direction and the end value that
its method declares, so a perturbed value goes back at most to the last one, and from where the control must dwell at
its end it is there; a control at 0 takes a step of a tenth of its range instead, since 0 times anything is 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from metasched.config import Experiment
from metasched.evaluation.tuning import Candidate, Sampled, trials_within
from metasched.hypergradients.runs import Reached, Runs, Segment
from metasched.methods.base import Control
from metasched.network import Tensors
from metasched.randomness import derive_seed, generator
from metasched.schedules.base import progress_of_steps

_SHARE = 5  # one in so many is replaced
_FACTORS = (0.8, 1.2)
_STEP = 0.1


def population_search(
    experiment: Experiment,
    learned: Sequence[Control],
    base: Tensors,
    runs: Runs,
    log: Callable[[int, float], None],
) -> list[Candidate]:
    """The best member's path of one population after another, for as long as the budget lasts.

    Args:
        experiment: its ``tune`` has the size of a population, its interval and the budget.
        learned: the controls that are changed.
        base: values {control: [T, L]} of all controls; those not learned keep them, and members start near the others.
        runs: where the members train.
        log: called with the number of the population and its best score.
    """
    tune = experiment.tune
    populations = max(1, trials_within(experiment) * tune.runs // tune.population)
    candidates = []
    for number in range(populations):
        paths, scores = evolve(experiment, learned, base, runs, number)
        best = max(range(len(scores)), key=lambda i: scores[i])
        knots = progress_of_steps(experiment.task.steps)
        candidates.append(Candidate(Sampled(knots, paths[best], "previous"), scores[best]))
        log(number, scores[best])
    return candidates


def evolve(
    experiment: Experiment, learned: Sequence[Control], base: Tensors, runs: Runs, number: int
) -> tuple[list[Tensors], list[float]]:
    """One population: the path {control: [T, L]} and the last score of each member."""
    tune, steps = experiment.tune, experiment.task.steps
    draws = generator(derive_seed(experiment.seed, "tune", number), "population")
    seeds = [derive_seed(experiment.seed, "tune", number, member) for member in range(tune.population)]
    paths = [{name: v.clone() for name, v in base.items()} for _ in seeds]
    for path in paths:
        for control in learned:
            _set(path, control, 0, _changed(path[control.name][0], control, draws))
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
            reached[worst] = reached[best]
            paths[worst] = {name: v.clone() for name, v in paths[best].items()}
            for control in learned:
                _set(paths[worst], control, stop, _changed(paths[worst][control.name][stop], control, draws))
    return paths, scores


def _changed(values: torch.Tensor, control: Control, draws: torch.Generator) -> torch.Tensor:
    """Each layer's value times 0.8 or 1.2, or where it is 0 up or down by a tenth of the range; within the range."""
    up = torch.rand(values.shape, generator=draws, dtype=torch.float64) < 0.5
    factor = torch.where(up, _FACTORS[1], _FACTORS[0]).to(values)
    step = (torch.where(up, 1.0, -1.0) * _STEP * (control.high - control.low)).to(values)
    return torch.where(values == 0, step, values * factor).clamp(control.low, control.high)


def _set(path: Tensors, control: Control, since: int, now: torch.Tensor) -> None:
    """In place: a control keeps ``now`` from a step on, as far as its direction allows, until it must be at its end."""
    values = path[control.name]
    if since:
        if control.direction == "nonincreasing":
            now = torch.minimum(now, values[since - 1])
        elif control.direction == "nondecreasing":
            now = torch.maximum(now, values[since - 1])
    values[since:] = now
    if control.end is not None:
        values[progress_of_steps(len(values)) >= 1 - control.dwell] = control.end
