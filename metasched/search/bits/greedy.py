"""Greedy allocation: from the most bits down, the step that loses least for what it saves."""

from __future__ import annotations

from collections.abc import Iterator

from metasched.search.bits.problem import BitProblem, Judge
from metasched.search.config import AllocateConfig


def greedy(problem: BitProblem, judge: Judge, settings: AllocateConfig, seed: int) -> None:
    """Lowers the bits of one layer after the other until the budget holds, then raises what still fits.

        down:  the layer with the least (score now - score then) / (cost now - cost then)
        up:    the layer with the highest score then, while that is higher than the score now

    A step is to the next choice of fewer bits that costs less (down) or to the next of more bits (up). With losses that
    add up over layers and are convex in the bits, and equal costs of all steps, the result is the optimum. It takes up
    to L^2 (B - 1) evaluations for L layers of B choices, whatever ``allocate.evaluations``; ``seed`` has no effect.

    Args:
        problem, judge, settings, seed: see ``BitSearchSpec``.
    """
    now = problem.highest
    while not problem.fits(now):
        here, steps = judge(now), [*_down(problem, now)]
        if not steps:
            now = problem.cheapest
            break
        now = min(steps, key=lambda then: (here - judge(then)) / (problem.total(now) - problem.total(then)))
    judge(now)
    while steps := [then for then in _up(problem, now) if judge(then) > judge(now)]:
        now = max(steps, key=judge)


def _down(problem: BitProblem, now: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for layer, b in enumerate(now):
        less = problem.lower(layer, b)
        if less is not None:
            yield (*now[:layer], less, *now[layer + 1 :])


def _up(problem: BitProblem, now: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    for layer, b in enumerate(now):
        then = (*now[:layer], b + 1, *now[layer + 1 :])
        if b + 1 < len(problem.bits) and problem.fits(then):
            yield then
