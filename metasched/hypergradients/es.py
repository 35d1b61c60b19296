"""Evolution strategies (ES): the gradient of the smoothed outer loss from antithetic pairs of inner runs.

    d/d theta E L(theta + sigma delta) = E r e / s,   r = (L(theta + sigma delta) - L(theta - sigma delta)) / 2 sigma

with delta = s e (perturbation.py), from one r for each pair. It needs values only, so L is what is played: the hard
method, no relaxed mask and no noise floor. The two runs of a pair share their seed: initial weights, batches and draws.
Biased towards what stays good under perturbation: it is unbiased for the *smoothed* loss, and its variance grows with
the number of parameters over the number of pairs.
Source: Salimans et al., 2017, arXiv 1703.03864; for inner runs: Metz et al., ICML 2019, arXiv 1810.10180.
We differ: parameters have scales; a loss that is not finite counts as the largest finite one of its population.
"""

from __future__ import annotations

import math
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from metasched.config import MetaConfig
from metasched.hypergradients.base import Diagnostics, Hypergradient
from metasched.hypergradients.estimator import Estimate, State
from metasched.hypergradients.perturbation import controls_at, direction, score_function
from metasched.hypergradients.runs import Judged, Run, Runs
from metasched.network import Tensors


@dataclass(frozen=True)
class EvolutionStrategies:
    """One hypergradient from all pairs, one pair for each seed.

    Attributes:
        sigma: standard deviation of the smoothing, in units of the parameters' scales; positive.
    """

    sigma: float

    def begin(self, schedule: nn.Module, runs: Runs) -> State:
        """Nothing is carried on."""
        return {}

    def estimate(self, schedule: nn.Module, runs: Runs, seeds: Sequence[int], state: State) -> Estimate:
        """See Estimator."""
        pairs = antithetic_pairs(schedule, runs, seeds, self.sigma)
        return Estimate([pairs.mean], state, 2 * len(seeds) * runs.problem.steps, pairs.notes)


class Pairs(NamedTuple):
    """Antithetic pairs, one for each seed.

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


def antithetic_pairs(schedule: nn.Module, runs: Runs, seeds: Sequence[int], sigma: float) -> Pairs:
    """Two plain runs for each seed, at theta + sigma delta and theta - sigma delta."""
    start = time.perf_counter()
    deltas = [direction(schedule, seed) for seed in seeds]
    both = [
        Run(controls_at(schedule, runs.problem, delta, sign * sigma), seed)
        for delta, seed in zip(deltas, seeds, strict=True)
        for sign in (1, -1)
    ]
    judged = runs.judged(both)
    losses = finite_losses([j.loss for j in judged])
    rises = [(up - down) / (2 * sigma) for up, down in zip(losses[::2], losses[1::2], strict=True)]
    terms = [[rise * e for e in score_function(schedule, delta)] for rise, delta in zip(rises, deltas, strict=True)]
    mean = population_mean(terms, losses, judged, time.perf_counter() - start)
    notes = {"pairs": float(len(seeds)), "spread": spread(rises), "bad_losses": float(bad_losses(judged))}
    return Pairs(deltas, rises, terms, mean, notes)


def finite_losses(losses: Sequence[float]) -> list[float]:
    """The losses, with the largest finite one in place of those that are not finite; all NaN where none is finite.

    >>> finite_losses([1.0, float("nan"), 3.0])
    [1.0, 3.0, 3.0]
    """
    finite = [loss for loss in losses if math.isfinite(loss)]
    worst = max(finite, default=math.nan)
    return [loss if math.isfinite(loss) else worst for loss in losses]


def bad_losses(judged: Sequence[Judged]) -> int:
    """How many of the losses are not finite."""
    return sum(not math.isfinite(j.loss) for j in judged)


def spread(values: Sequence[float]) -> float:
    """Standard deviation; 0 for a single value."""
    return float(torch.tensor(values, dtype=torch.float64).std()) if len(values) > 1 else 0.0


def population_mean(
    terms: Sequence[Sequence[torch.Tensor]], losses: Sequence[float], judged: Sequence[Judged], seconds: float
) -> Hypergradient:
    """One hypergradient from the terms of all pairs; losses and scores are means over the population."""
    gradient = [torch.stack(of_pairs).mean(0) for of_pairs in zip(*terms, strict=True)]
    diagnostics = Diagnostics(
        gradient_norm=float(torch.cat([g.flatten() for g in gradient]).norm()),
        nonfinite=sum(int((~torch.isfinite(g)).sum()) for g in gradient),
        dead_layers=math.nan,  # no gradient of a layer's weights is looked at
        seconds=seconds,
        peak_bytes=1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        score=sum(j.score for j in judged) / len(judged),
    )
    return Hypergradient(sum(losses) / len(losses), gradient, diagnostics)


def build(meta: MetaConfig) -> EvolutionStrategies:
    """As configured."""
    return EvolutionStrategies(meta.sigma)
