"""Evolution strategies (ES): the gradient of the smoothed outer loss from antithetic pairs of inner runs.

    d/d theta E L(theta + sigma delta) = E r e / s,   r = (L(theta + sigma delta) - L(theta - sigma delta)) / 2 sigma

with delta = s e (perturbation.py), from one r for each pair. It needs values only, so L is what is played: the hard
method, no relaxed mask and no noise floor. The two runs of a pair share their seed: initial weights, batches and draws.
Biased towards what stays good under perturbation: it is unbiased for the *smoothed* loss, and its variance grows with
the number of parameters over the number of pairs.
Source: Salimans et al., 2017, arXiv 1703.03864; for inner runs: Metz et al., ICML 2019, arXiv 1810.10180.
We differ: parameters have scales; a pair in which a loss is not finite is left out.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import nn

from metasched.engines.base import Diagnostics, Hypergradient, norm
from metasched.estimators.base import Estimate, State, Stateless
from metasched.estimators.perturbation import controls_at, direction, score_function
from metasched.meta.config import MetaConfig
from metasched.network.flat import Tensors
from metasched.runs.local import Judged, Run, Runs
from metasched.training.faults import Fault


@dataclass(frozen=True)
class EvolutionStrategies(Stateless):
    """One hypergradient from all pairs, one pair for each seed.

    Attributes:
        sigma: standard deviation of the smoothing, in units of the parameters' scales; positive.
    """

    sigma: float

    def estimate(self, schedule: nn.Module, runs: Runs, seeds: Sequence[int], state: State) -> Estimate:
        """See Estimator."""
        pairs = antithetic_pairs(schedule, runs, seeds, self.sigma)
        return Estimate([pairs.mean], state, 2 * len(seeds) * runs.problem.steps, pairs.notes)


class Pairs(NamedTuple):
    """Antithetic pairs, one for each seed, without those of which a loss is not finite (all, where none is left).

    Attributes:
        deltas: direction of each pair, {parameter: change}.
        rises: r, slope of the outer loss along each direction.
        terms: what each pair says of the gradient; their mean is the estimate.
        mean: of the terms, with diagnostics.
        notes: for the log.
    """

    deltas: list[Tensors]
    rises: list[float]
    terms: list[list[torch.Tensor]]
    mean: Hypergradient
    notes: dict[str, float]


def antithetic_pairs(
    schedule: nn.Module, runs: Runs, seeds: Sequence[int], sigma: float, deltas: Sequence[Tensors] | None = None
) -> Pairs:
    """Two plain runs for each seed, at theta + sigma delta and theta - sigma delta.

    ``deltas`` has {parameter: change [...]} for each seed; None: those of evolution strategies (perturbation.py).
    """
    start = time.perf_counter()
    deltas = [direction(schedule, seed) for seed in seeds] if deltas is None else list(deltas)
    both = [
        Run(controls_at(schedule, runs.problem, delta, sign * sigma), seed)
        for delta, seed in zip(deltas, seeds, strict=True)
        for sign in (1, -1)
    ]
    judged = runs.judged(both)
    kept = finite_pairs([j.loss for j in judged])
    deltas = [deltas[i] for i in kept]
    rises = [(judged[2 * i].loss - judged[2 * i + 1].loss) / (2 * sigma) for i in kept]
    terms = [[rise * e for e in score_function(schedule, delta)] for rise, delta in zip(rises, deltas, strict=True)]
    mean = population_mean(terms, [judged[j] for i in kept for j in (2 * i, 2 * i + 1)], time.perf_counter() - start)
    mean = with_faults(mean, [j.fault for j in judged])
    notes = {"pairs": float(len(seeds)), "spread": spread(rises), "bad_losses": float(bad_losses(judged))}
    return Pairs(deltas, rises, terms, mean, notes)


def finite_pairs(values: Sequence[float]) -> list[int]:
    """Which pairs, of values one after the other, are finite; all where none is, so that their mean is not either.

    >>> nan = float("nan")
    >>> finite_pairs([1.0, nan, 3.0, 4.0]), finite_pairs([1.0, nan, nan, 4.0])
    ([1], [0, 1])
    """
    pairs = range(len(values) // 2)
    return [i for i in pairs if math.isfinite(values[2 * i]) and math.isfinite(values[2 * i + 1])] or list(pairs)


def with_faults(found: Hypergradient, faults: Sequence[Fault | None]) -> Hypergradient:
    """Which of its runs were broken, and where."""
    named = tuple(fault for fault in faults if fault)
    return replace(found, diagnostics=replace(found.diagnostics, faults=named))


def bad_losses(judged: Sequence[Judged]) -> int:
    """How many of the losses are not finite."""
    return sum(not math.isfinite(j.loss) for j in judged)


def spread(values: Sequence[float]) -> float:
    """Standard deviation; 0 for a single value."""
    return float(torch.tensor(values, dtype=torch.float64).std()) if len(values) > 1 else 0.0


def population_mean(terms: Sequence[Sequence[torch.Tensor]], judged: Sequence[Judged], seconds: float) -> Hypergradient:
    """One hypergradient from the terms of all pairs; losses and scores are means over the population.

    Args:
        terms: of each pair, one tensor [...] for each parameter of the schedule, of its shape.
        judged: both runs of each pair.
        seconds: wall time.
    """
    gradient = [torch.stack(of_pairs).mean(0) for of_pairs in zip(*terms, strict=True)]
    loss = sum(j.loss for j in judged) / len(judged)
    diagnostics = Diagnostics(
        gradient_norm=norm(gradient),
        nonfinite=sum(int((~torch.isfinite(g)).sum()) for g in gradient) + (not math.isfinite(loss)),
        dead_layers=math.nan,  # no gradient of a layer's weights is looked at
        seconds=seconds,
        peak_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        score=sum(j.score for j in judged) / len(judged),
    )
    return Hypergradient(loss, gradient, diagnostics)


def build(meta: MetaConfig) -> EvolutionStrategies:
    """As configured."""
    return EvolutionStrategies(meta.sigma)
